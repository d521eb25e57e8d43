"""A codec of a folder of transformers: its weights without torch, waves to codes and codes to waves.

Letters: B sounds of a batch, N samples, C channels, P positions, Q codebooks, K codes of one, Z numbers of a
vector between encoder and decoder, U of a vector of a codebook.
"""

import functools
import pathlib

import jax
import numpy as np

from gpt_jax.interop import weight_files
from gpt_jax.interop.codecs import chunks, layers
from gpt_jax.interop.codecs.families import Spec
from gpt_jax.interop.codecs.quantizers import QUANTIZERS

MOST_SAMPLES = 1 << 21  # of a batch
BATCH, SHORTEST = 8, 64  # sounds of a batch, at most; positions of an array, at least
NEWER = {  # beginnings of names in files of newer versions -> those of the files on the hub
  'encoder.encoder_seanet.': 'encoder.',
  'decoder.decoder_seanet.': 'decoder.',
  'encoder.encoder_transformer.': 'encoder_transformer.',
  'decoder.decoder_transformer.': 'decoder_transformer.',
  'encoder.downsample.': 'downsample.',
  'decoder.upsample.': 'upsample.',
}
NORMS = (  # names of the factor and of the direction of a weight that is kept as their product
  ('parametrizations.weight.original0', 'parametrizations.weight.original1'),
  ('weight_g', 'weight_v'),
)


class Codec:
  """A codec with its weights."""

  def __init__(self, spec: Spec, params: dict[str, np.ndarray]):
    """params: float32 by the names of `tensors_of`."""
    self.spec, self.params = spec, jax.device_put(params)

  @classmethod
  def load(cls, folder, spec: Spec) -> 'Codec':
    """Read the weights of a folder; ValueError or FileNotFoundError for missing or other ones."""
    return cls(spec, read_params(folder, tensors_of(spec)))

  def encode(self, waves, books: int) -> list[np.ndarray]:
    """Waves float [N] or [N, C] at the codec's rate -> codes int32 [P, Q] of the first `books` codebooks.

    Where the codec normalizes chunks, a position of its loudness stands before each (`chunks`).
    """
    waves = [chunks.filled(self.spec, np.asarray(wave)) for wave in waves]
    return [chunks.to_rows(self.spec, *frames) for frames in self.encode_chunks(waves, books)]

  def decode(self, codes) -> list[np.ndarray]:
    """Codes int [P, Q] of `encode`, all with the same Q -> waves float32 [N], of several channels [N, C]."""
    return self.decode_chunks([chunks.from_rows(self.spec, codes_PQ) for codes_PQ in codes])

  def encode_chunks(self, waves, books: int) -> list[tuple]:
    """Waves as of `encode` -> (codes int32 [P, Q] of each chunk, their loudness float32 [chunks]) each."""
    frames = [chunks.cut(self.spec, np.asarray(wave, np.float32)) for wave in waves]
    scales = [chunks.loudness(self.spec, parts) for parts in frames]
    pairs = [zip(*both, strict=True) for both in zip(frames, scales, strict=True)]
    rows = [part / scale for own in pairs for part, scale in own]
    codes = iter(self._run(functools.partial(_encode, self.spec, books), rows, self.spec.hop))
    return [([next(codes) for _ in own], own) for own in scales]

  def decode_chunks(self, items) -> list[np.ndarray]:
    """What `encode_chunks` gives -> waves as of `decode`."""
    parts = [codes_PQ for codes, _ in items for codes_PQ in codes]
    waves = iter(self._run(functools.partial(_decode, self.spec), parts, 1))
    return [chunks.join(self.spec, [next(waves) * scale for scale in own]) for _, own in items]

  def _run(self, function, items, unit):
    """Run a function of (params, items, lengths) on items [N, ..] of many lengths, in batches of a few sizes.

    unit: entries of an item that are one position.
    """
    outputs, sizes = [None] * len(items), {}
    for number, item in enumerate(items):
      positions = -(-len(item) // unit)
      size = max(SHORTEST, 1 << (positions - 1).bit_length())
      sizes.setdefault(min(size, chunks.positions(self.spec) or size), []).append(number)
    for size, numbers in sorted(sizes.items()):
      count = max(1, min(BATCH, MOST_SAMPLES // (size * self.spec.hop)))
      for start in range(0, len(numbers), count):
        chosen = numbers[start : start + count]
        rows = [items[number] for number in chosen] + [items[chosen[0]]] * (count - len(chosen))
        padded = np.stack([np.pad(x, [(0, size * unit - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in rows])
        lengths = np.array(list(map(len, rows)), np.int32)
        with jax.default_matmul_precision('float32'):  # a GPU would multiply in TF32
          results, ends = jax.device_get(function(self.params, padded, lengths))
        for row, number in enumerate(chosen):
          outputs[number] = results[row, : ends[row]]
    return outputs


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(spec, books, params, x_BNC, lengths_B):
  x_BPZ, lengths_B = layers.apply(spec.encoder, params, x_BNC, lengths_B)
  return QUANTIZERS[spec.family].encode(spec, params, x_BPZ, books), lengths_B


@functools.partial(jax.jit, static_argnums=0)
def _decode(spec, params, codes_BPQ, lengths_B):
  x_BPZ = QUANTIZERS[spec.family].decode(spec, params, codes_BPQ)
  return layers.apply(spec.decoder, params, x_BPZ, lengths_B)


def rename(name: str) -> str:
  """Return the name of a tensor as the files on the hub have it."""
  return next((new + name.removeprefix(old) for old, new in NEWER.items() if name.startswith(old)), name)


def tensors_of(spec: Spec) -> dict[str, tuple]:
  """Return the shapes of all tensors by their names."""
  return layers.tensors_of((*spec.encoder, *spec.decoder)) | QUANTIZERS[spec.family].tensors(spec)


def read_params(folder, shapes: dict[str, tuple], anchor: str = '') -> dict[str, np.ndarray]:
  """Return tensors of these shapes, float32 by name; weights kept as two factors are multiplied.

  anchor: a name that tells the prefix of all names, which files of a larger model have.
  """
  stored = {rename(name): tensor for name, tensor in weight_files.open_folder(pathlib.Path(folder)).items()}
  prefix = next((name.removesuffix(anchor) for name in stored if anchor and name.endswith(anchor)), '')
  stored = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}

  def read(name, shape):
    if name not in stored:
      raise ValueError(f'{folder} has no tensor {name}\nfix: use the weights that came with config.json')
    tensor = stored[name]
    weight_files.check_shape(tensor, shape)
    return np.array(tensor.read(), np.float32)

  def read_weight(name, shape):
    stem = name.removesuffix('weight')
    for factor, direction in NORMS:
      if name.endswith('.weight') and stem + direction in stored:
        g, v = read(stem + factor, (shape[0], *[1] * (len(shape) - 1))), read(stem + direction, shape)
        return g * v / np.sqrt(np.square(v).sum(tuple(range(1, v.ndim)), keepdims=True))
    return read(name, shape)

  return {name: read_weight(name, shape) for name, shape in shapes.items()}
