"""Residual vector quantizers: vectors to the codes of several codebooks and back.

Letters: those of codec.py.

Sources: Defossez et al. 2022 (EnCodec, section 3.2); Kumar et al. 2023 (DAC, section 3.2: codes of few
numbers and unit length); Defossez et al. 2024 (Moshi, section 3.3: a semantic quantizer apart).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

EMBED = 'quantizer.layers.{q}.codebook.embed'
STEM = 'quantizer.quantizers.{q}'


class Quantizer(NamedTuple):
  """A row of QUANTIZERS."""

  tensors: Callable  # Spec -> {name: shape}
  encode: Callable  # (spec, params, x_BPZ, books) -> codes int32 [B, P, Q]
  decode: Callable  # (spec, params, codes_BPQ) -> x_BPZ


def encodec_tensors(spec):
  """Return the shapes of the codebooks."""
  return {EMBED.format(q=q): (spec.codes, spec.code_width) for q in range(spec.books)}


def encodec_encode(spec, params, x_BPZ, books):
  """Take the nearest vector of each codebook to what those before it left."""
  return jnp.stack(residual(x_BPZ, [params[EMBED.format(q=q)] for q in range(books)]), -1)


def residual(x_BPZ, embeds):
  """Return the codes int32 [B, P] by each of the codebooks [K, Z] in turn."""
  codes = []
  for embed_KZ in embeds:
    codes.append(nearest(x_BPZ, embed_KZ))
    x_BPZ = x_BPZ - embed_KZ[codes[-1]]
  return codes


def encodec_decode(spec, params, codes_BPQ):
  """Sum the vectors of the codes."""
  return sum(params[EMBED.format(q=q)][codes_BPQ[..., q]] for q in range(codes_BPQ.shape[-1]))


def nearest(x_BPZ, embed_KZ):
  """Return the index of the nearest vector, int32 [B, P], by the terms of the squared distance."""
  squares_BP1 = jnp.square(x_BPZ).sum(-1, keepdims=True)
  squares_11K = jnp.square(embed_KZ).sum(-1)[None, None]
  distance_BPK = squares_BP1 - 2 * jnp.einsum('BPZ,KZ->BPK', x_BPZ, embed_KZ) + squares_11K
  return jnp.argmin(distance_BPK, -1).astype(jnp.int32)


def dac_tensors(spec):
  """Return the shapes of the codebooks, and of the matrices before and after them."""
  shapes = {}
  for q in range(spec.books):
    stem, Z, U = STEM.format(q=q), spec.width, spec.code_width
    shapes |= {f'{stem}.codebook.weight': (spec.codes, U)}
    shapes |= {f'{stem}.in_proj.weight': (U, Z, 1), f'{stem}.in_proj.bias': (U,)}
    shapes |= {f'{stem}.out_proj.weight': (Z, U, 1), f'{stem}.out_proj.bias': (Z,)}
  return shapes


def dac_encode(spec, params, x_BPZ, books):
  """Take the codebook vector of the nearest direction to the projection of what those before it left."""
  rest_BPZ, codes = x_BPZ, []
  for q in range(books):
    stem = STEM.format(q=q)
    x_BPU = project(params, f'{stem}.in_proj', rest_BPZ)
    embed_KU = params[f'{stem}.codebook.weight']
    codes.append(nearest(unit(x_BPU), unit(embed_KU)))
    rest_BPZ = rest_BPZ - project(params, f'{stem}.out_proj', embed_KU[codes[-1]])
  return jnp.stack(codes, -1)


def dac_decode(spec, params, codes_BPQ):
  """Sum the projections of the vectors of the codes."""
  stems = [STEM.format(q=q) for q in range(codes_BPQ.shape[-1])]
  vectors = [params[f'{stem}.codebook.weight'][codes_BPQ[..., q]] for q, stem in enumerate(stems)]
  return sum(project(params, f'{stem}.out_proj', x) for stem, x in zip(stems, vectors, strict=True))


def mimi_stems(spec):
  """Return (stem of the names, first codebook, codebook after the last) of the two quantizers."""
  parts = ('semantic', 0, spec.semantic), ('acoustic', spec.semantic, spec.books)
  return [(f'quantizer.{name}_residual_vector_quantizer', first, stop) for name, first, stop in parts]


def mimi_tensors(spec):
  """Return the shapes of the codebooks, as sums and counts, and of the matrices before and after them."""
  shapes, Z, U = {}, spec.width, spec.code_width
  for stem, first, stop in mimi_stems(spec):
    for q in range(stop - first):
      shapes[f'{stem}.layers.{q}.codebook.embed_sum'] = (spec.codes, U)
      shapes[f'{stem}.layers.{q}.codebook.cluster_usage'] = (spec.codes,)
    if U != Z:
      shapes |= {f'{stem}.input_proj.weight': (U, Z, 1), f'{stem}.output_proj.weight': (Z, U, 1)}
  return shapes


def mimi_embed(params, stem, q):
  """Return a codebook [K, U]: means of what its codes stand for."""
  usage_K1 = jnp.maximum(params[f'{stem}.layers.{q}.codebook.cluster_usage'], 1e-5)[:, None]
  return params[f'{stem}.layers.{q}.codebook.embed_sum'] / usage_K1


def mimi_encode(spec, params, x_BPZ, books):
  """Quantize the same vectors twice: by the semantic codebooks, and by the residual ones."""
  codes = []
  for stem, first, stop in mimi_stems(spec):
    x = project(params, f'{stem}.input_proj', x_BPZ) if spec.code_width != spec.width else x_BPZ
    codes += residual(x, [mimi_embed(params, stem, q) for q in range(min(stop, books) - first)])
  return jnp.stack(codes, -1)


def mimi_decode(spec, params, codes_BPQ):
  """Sum the vectors of both quantizers."""
  total, books = 0, codes_BPQ.shape[-1]
  for stem, first, stop in mimi_stems(spec):
    if books > first:
      x = sum(mimi_embed(params, stem, q - first)[codes_BPQ[..., q]] for q in range(first, min(stop, books)))
      total = total + (project(params, f'{stem}.output_proj', x) if spec.code_width != spec.width else x)
  return total


def project(params, name, x_BPC):
  """Apply a convolution of width 1, with a bias if it has one."""
  y_BPO = jnp.einsum('BPC,OC->BPO', x_BPC, params[f'{name}.weight'][..., 0])
  return y_BPO + params[f'{name}.bias'][None, None] if f'{name}.bias' in params else y_BPO


def unit(x):
  """Return vectors of length 1."""
  return x / jnp.maximum(jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)), 1e-12)


QUANTIZERS = {
  'encodec': Quantizer(encodec_tensors, encodec_encode, encodec_decode),
  'dac': Quantizer(dac_tensors, dac_encode, dac_decode),
  'mimi': Quantizer(mimi_tensors, mimi_encode, mimi_decode),
}
