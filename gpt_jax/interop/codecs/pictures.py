"""Picture tokenizers of transformers' folders: pixels to one code a patch, and codes to pixels.

Letters: B pictures, Y X rows and columns of pixels or codes, C channels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.interop.codecs import emu3, vqgan
from gpt_jax.runs.reading import reading

BATCH = 4  # pictures at a time
ANCHOR = emu3.ANCHOR  # the tensor of all of them that tells the prefix of names in a whole model
FAMILIES = {  # model_type -> reader of its config.json
  'emu3_vqgan': emu3.read_spec,
  'chameleon_vqgan': vqgan.read_chameleon,
  'janus_vqgan': vqgan.read_janus,
}
MODULES = {emu3.PictureSpec: emu3, vqgan.VqganSpec: vqgan}


def read_spec(entries: dict):
  """Return the spec of a config.json, of a tokenizer or of a whole model; ValueError for others."""
  whole = entries.get('model_type')
  entries = {'model_type': f'{whole}_vqgan'} | entries['vq_config'] if entries.get('vq_config') else entries
  kind = entries.get('model_type')
  if kind not in FAMILIES:
    raise ValueError(
      f'config.json has model_type={kind}, not a picture tokenizer that is known\n'
      f'fix: use a folder of {", ".join(FAMILIES)}'
    )
  with reading('config.json', f'the config of {kind}', 'use the one that came with these weights'):
    return FAMILIES[kind](entries)


def encode(spec, p, x_BYXC):
  """Normalized pixels float32 [B, Y, X, C] -> codes int32 [B, rows, columns]."""
  return MODULES[type(spec)].encode(spec, p, x_BYXC)


def decode(spec, p, codes_BYX):
  """Codes int32 [B, rows, columns] -> normalized pixels float32 [B, Y, X, C].

  Raises ValueError for a tokenizer without a decoder.
  """
  if not spec.out_channels:
    raise ValueError(
      'this picture tokenizer has no decoder in files of transformers: it reads pictures alone\n'
      'fix: use its pictures as conditions, or another tokenizer to make some'
    )
  return MODULES[type(spec)].decode(spec, p, codes_BYX)


def tensors_of(spec) -> dict[str, tuple]:
  """Return the shapes of all tensors by their names."""
  shapes, side = {}, 2 * spec.patch

  def p(name, shape):
    shapes[name] = shape
    return jnp.zeros(shape)

  def both(x_BYXC):
    codes_BYX = encode(spec, p, x_BYXC)
    return decode(spec, p, codes_BYX) if spec.out_channels else codes_BYX

  jax.eval_shape(both, jax.ShapeDtypeStruct((1, side, side, spec.in_channels), np.float32))
  return shapes


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(function, spec, params, x):
  return function(spec, lambda name, _: params[name], x)


def run(function, spec, params, items: np.ndarray) -> np.ndarray:
  """Run `encode` or `decode` in batches of one size."""
  outputs = []
  for start in range(0, len(items), BATCH):
    batch = items[start : start + BATCH]
    padded = np.concatenate([batch, np.repeat(batch[:1], BATCH - len(batch), 0)])
    with jax.default_matmul_precision('float32'):  # a GPU would multiply in TF32
      outputs.append(jax.device_get(_run(function, spec, params, padded))[: len(batch)])
  return np.concatenate(outputs)
