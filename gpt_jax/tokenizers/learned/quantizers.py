"""Continuous codes <-> integers: finite scalar quantization, and a codebook with moving averages.

Both give integers and a value whose gradient is that of the unquantized one (straight through).
Always float32: in bfloat16, values near the edge of a bin round to the wrong side.

Letters: Z width of a code, K codes of a codebook, N vectors of a batch; `_` in front = any axes.
Sources: FSQ (Mentzer et al. 2023, section 3.1), shift by atanh as in its reference code; VQ-VAE
(van den Oord et al. 2017, appendix A.1, for the moving averages); restarts as in Jukebox (Dhariwal
et al. 2020, section 3.1), but drawn from what the busy codes hold.
"""

import jax
import jax.numpy as jnp
import numpy as np

EPS = 1e-3  # how far tanh reaches beyond the outermost level
DECAY = 0.99  # of the moving averages of a codebook
DEAD = 0.03  # a code used less than this share of the mean use is moved


def fsq(z, levels):
  """Quantize z [..., Z] -> (values [..., Z] in -1..1, straight-through; index int32 [...])."""
  half_Z, offset_Z, shift_Z = (_like(a, z) for a in _bounds(levels))
  bounded = jnp.tanh(z.astype(jnp.float32) + shift_Z) * half_Z - offset_Z
  rounded = jnp.round(bounded)
  steps_Z = _like(np.asarray(levels) // 2, z)
  places_Z = _like(_places(levels), z)
  index = jnp.sum((rounded + steps_Z) * places_Z, -1).astype(jnp.int32)
  return (bounded + jax.lax.stop_gradient(rounded - bounded)) / steps_Z, index


def fsq_codes(index, levels):
  """Return the values [..., Z] float32 of indices [...] from `fsq`."""
  places, sizes = (np.asarray(a, np.int32) for a in (_places(levels), levels))
  shape = (1,) * index.ndim + (len(levels),)
  digits = index[..., None] // places.reshape(shape) % sizes.reshape(shape)
  steps = (sizes // 2).reshape(shape)
  return (digits - steps).astype(jnp.float32) / steps.astype(np.float32)


def _bounds(levels):
  """Return (half width, offset, shift) of each level: an even number of levels has no middle."""
  levels_Z = np.asarray(levels, np.float64)
  half_Z = (levels_Z - 1) * (1 + EPS) / 2
  offset_Z = np.where(levels_Z % 2 == 0, 0.5, 0.0)
  return half_Z, offset_Z, np.arctanh(offset_Z / half_Z)


def _places(levels):
  """Return the index stride of each level; that of the first is 1."""
  return np.cumprod((1, *levels[:-1]))


def _like(a_Z, z):
  return np.asarray(a_Z, np.float32).reshape((1,) * (z.ndim - 1) + (-1,))


def vq(z, codebook_KZ):
  """Quantize z [..., Z] -> (nearest codes [..., Z], straight-through; index int32 [...])."""
  z = z.astype(jnp.float32)
  codebook_KZ = jax.lax.stop_gradient(codebook_KZ)
  half_K = 0.5 * jnp.square(codebook_KZ).sum(-1)
  scores = jnp.einsum('...Z,KZ->...K', z, codebook_KZ) - half_K.reshape((1,) * (z.ndim - 1) + (-1,))
  index = jnp.argmax(scores, -1).astype(jnp.int32)
  nearest = codebook_KZ[index]
  return z + jax.lax.stop_gradient(nearest - z), index


def vq_statistics(z_NZ, index_N, codes):
  """Return the sums of a batch for `vq_update`; sums of parts add up to those of the whole."""
  one_hot_NK = jax.nn.one_hot(index_N, codes, dtype=jnp.float32)
  z_NZ = jax.lax.stop_gradient(z_NZ.astype(jnp.float32))
  return {
    'counts_K': one_hot_NK.sum(0),
    'sums_KZ': jnp.einsum('NK,NZ->KZ', one_hot_NK, z_NZ),
    'squares_KZ': jnp.einsum('NK,NZ->KZ', one_hot_NK, jnp.square(z_NZ)),
  }


def vq_update(average, statistics, key):
  """Update the codebook's moving averages -> (codebook_KZ, average).

  average: {'counts_K', 'sums_KZ'}. A code that is hardly used starts anew in a busy one's place,
  drawn in proportion to the squared error that the busy ones leave in this batch.
  """
  counts_K, sums_KZ = (
    DECAY * average[name] + (1 - DECAY) * statistics[name] for name in ('counts_K', 'sums_KZ')
  )
  mean_count = counts_K.mean()
  new_KZ = _draw(statistics, key)
  dead_K1 = (counts_K < DEAD * mean_count)[:, None]
  counts_K = jnp.where(dead_K1[:, 0], mean_count, counts_K)
  sums_KZ = jnp.where(dead_K1, mean_count * new_KZ, sums_KZ)
  codebook_KZ = sums_KZ / jnp.maximum(counts_K, 1e-6)[:, None]
  return codebook_KZ, {'counts_K': counts_K, 'sums_KZ': sums_KZ}


def _draw(statistics, key):
  """Return K vectors, each from the normal distribution of the vectors of one code."""
  choose, noise = jax.random.split(key)
  counts_K1 = jnp.maximum(statistics['counts_K'], 1.0)[:, None]
  mean_KZ = statistics['sums_KZ'] / counts_K1
  variance_KZ = jnp.maximum(statistics['squares_KZ'] / counts_K1 - jnp.square(mean_KZ), 0.0)
  error_K = (variance_KZ * counts_K1).sum(-1)
  index_K = jax.random.categorical(choose, jnp.log(error_K + 1e-30), shape=error_K.shape)
  spread_KZ = jnp.sqrt(variance_KZ[index_K])
  return mean_KZ[index_K] + spread_KZ * jax.random.normal(noise, spread_KZ.shape)
