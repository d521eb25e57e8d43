"""Stochastic rounding of float32 updates into bfloat16 parameters (Gupta et al. 2015, section 3)."""

import zlib

import jax
import jax.numpy as jnp


def round_stochastically(x, dtype, path, count):
  """Return float32 x as float32, or rounded up or down at random, right on average, as bfloat16.

  Rounded to the nearest, a weight of 0.02 would never move by less than 4e-5, however many updates
  there are. path and count seed the draw: no two are alike, and a resumed run repeats them.
  """
  if dtype == jnp.float32:
    return x
  key = jax.random.fold_in(jax.random.key(zlib.crc32(path.encode())), count)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)  # of the half that is cut off
  bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
  return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)
