"""FSQ and codebooks: bijections, references in numpy, gradients that pass straight through."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.tokenizers.learned import quantizers

fsq = jax.jit(quantizers.fsq, static_argnums=1)  # compiled whole: faster than one by one
fsq_codes = jax.jit(quantizers.fsq_codes, static_argnums=1)
vq_statistics = jax.jit(quantizers.vq_statistics, static_argnums=2)
vq_update = jax.jit(quantizers.vq_update)
LEVELS = [(2,), (3, 2), (4, 4), (8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5)]


def reference(z, levels):
  """The published equations, one number at a time."""
  index, place, values = 0, 1, []
  for x, level in zip(z, levels, strict=True):
    half = (level - 1) * (1 + 1e-3) / 2
    offset = 0.5 if level % 2 == 0 else 0.0
    rounded = round(np.tanh(x + np.arctanh(offset / half)) * half - offset)
    index += (rounded + level // 2) * place
    place *= level
    values.append(rounded / (level // 2))
  return values, index


@pytest.mark.parametrize('levels', LEVELS, ids=str)
def test_every_index_has_its_own_codes(levels):
  count = math.prod(levels)
  values_KZ = np.asarray(fsq_codes(jnp.arange(count, dtype=jnp.int32), levels))
  assert values_KZ.dtype == np.float32
  expected = itertools.product(*[(np.arange(n) - n // 2) / (n // 2) for n in reversed(levels)])
  np.testing.assert_allclose(values_KZ[:, ::-1], list(expected))
  half, offset, shift = quantizers._bounds(levels)
  steps = values_KZ * (np.asarray(levels) // 2)
  inside = np.clip((steps + offset) / half, -0.9999, 0.9999)
  z_KZ = (np.arctanh(inside) - shift).astype(np.float32)
  again_KZ, index_K = fsq(jnp.asarray(z_KZ), levels)
  np.testing.assert_array_equal(index_K, np.arange(count))
  np.testing.assert_allclose(again_KZ, values_KZ, atol=1e-6)


@pytest.mark.parametrize('levels', LEVELS, ids=str)
def test_fsq_follows_the_equations(levels):
  z = np.random.default_rng(0).normal(0, 2, (40, len(levels))).astype(np.float32)
  values, index = fsq(jnp.asarray(z), levels)
  expected = [reference(row, levels) for row in z.astype(np.float64)]
  np.testing.assert_array_equal(index, [i for _, i in expected])
  np.testing.assert_allclose(values, [v for v, _ in expected], atol=1e-6)


def test_zero_is_a_code_and_even_levels_reach_one_step_further_down():
  values, _ = fsq(jnp.zeros((1, 2)), (8, 5))
  np.testing.assert_array_equal(values, [[0, 0]])
  low, _ = fsq(jnp.full((1, 2), -20.0), (8, 5))
  high, _ = fsq(jnp.full((1, 2), 20.0), (8, 5))
  np.testing.assert_allclose(low, [[-1, -1]])
  np.testing.assert_allclose(high, [[0.75, 1]])


def test_fsq_computes_in_float32_for_any_input():
  z = jnp.asarray(np.random.default_rng(1).normal(size=(50, 3)), jnp.bfloat16)
  values, index = fsq(z, (8, 6, 5))
  exact, expected = fsq(z.astype(jnp.float32), (8, 6, 5))
  assert values.dtype == jnp.float32 and index.dtype == jnp.int32
  np.testing.assert_array_equal(index, expected)
  np.testing.assert_array_equal(values, exact)


def test_the_gradient_of_fsq_is_that_of_the_bounding():
  levels, z = (8, 5), jnp.array([[0.3, -0.7]])
  half, offset, shift = quantizers._bounds(levels)
  grad = jax.grad(lambda z: quantizers.fsq(z, levels)[0].sum())(z)
  expected = half * (1 - np.tanh(np.asarray(z) + shift) ** 2) / (np.array(levels) // 2)
  np.testing.assert_allclose(grad, expected, rtol=1e-5)


# --------------------------------------------------------------------------------------- codebooks


def draws(n=60, z=3, seed=0):
  return np.random.default_rng(seed).normal(size=(n, z)).astype(np.float32)


def test_vq_takes_the_nearest_and_passes_gradients_through():
  z_NZ, codebook_KZ = draws(), draws(7, seed=1)
  values, index = quantizers.vq(jnp.asarray(z_NZ).reshape(6, 10, 3), jnp.asarray(codebook_KZ))
  distances_NK = np.square(z_NZ[:, None] - codebook_KZ).sum(-1)
  np.testing.assert_array_equal(index.reshape(-1), distances_NK.argmin(1))
  np.testing.assert_allclose(values.reshape(-1, 3), codebook_KZ[distances_NK.argmin(1)], atol=1e-6)
  weights = jnp.asarray(draws(seed=2))
  by_z, by_codebook = jax.grad(lambda z, c: (quantizers.vq(z, c)[0] * weights).sum(), (0, 1))(
    jnp.asarray(z_NZ), jnp.asarray(codebook_KZ)
  )
  np.testing.assert_array_equal(by_z, weights)
  np.testing.assert_array_equal(by_codebook, 0)


def test_statistics_of_parts_add_up():
  z_NZ, index_N = jnp.asarray(draws()), jnp.asarray(np.arange(60) % 5, jnp.int32)
  whole = vq_statistics(z_NZ, index_N, 5)
  parts = [vq_statistics(z_NZ[s], index_N[s], 5) for s in (slice(0, 13), slice(13, 60))]
  for name, value in whole.items():
    np.testing.assert_allclose(value, parts[0][name] + parts[1][name], rtol=1e-4, atol=1e-5)


def test_the_first_update_is_a_step_of_k_means_and_the_next_an_average():
  z_NZ, index_N = draws(), np.arange(60) % 4
  statistics = vq_statistics(jnp.asarray(z_NZ), jnp.asarray(index_N, jnp.int32), 4)
  zeros = {'counts_K': jnp.zeros(4), 'sums_KZ': jnp.zeros((4, 3))}
  codebook, average = vq_update(zeros, statistics, jax.random.key(0))
  means = np.stack([z_NZ[index_N == k].mean(0) for k in range(4)])
  np.testing.assert_allclose(codebook, means, rtol=1e-4, atol=1e-5)
  other = {
    'counts_K': jnp.full(4, 30.0),
    'sums_KZ': jnp.full((4, 3), 60.0),
    'squares_KZ': jnp.full((4, 3), 120.0),
  }
  codebook, _ = vq_update(average, other, jax.random.key(0))
  expected = (0.99 * 0.15 * means + 0.01 * 60) / (0.99 * 0.15 + 0.01 * 30)
  np.testing.assert_allclose(codebook, expected, rtol=1e-4, atol=1e-5)


def test_a_dead_code_starts_where_the_error_is():
  """Codes 0 and 1 are used, 0 with no error: code 2 must start among the vectors of code 1."""
  z_NZ = np.concatenate([np.full((50, 3), -9.0), 5 + draws(50)]).astype(np.float32)
  index_N = jnp.asarray(np.repeat([0, 1], 50), jnp.int32)
  statistics = vq_statistics(jnp.asarray(z_NZ), index_N, 3)
  zeros = {'counts_K': jnp.zeros(3), 'sums_KZ': jnp.zeros((3, 3))}
  seen = [vq_update(zeros, statistics, jax.random.key(i))[0] for i in range(5)]
  for codebook in seen:
    np.testing.assert_allclose(codebook[0], -9, rtol=1e-5)
    assert np.abs(codebook[2] - 5).max() < 5
  assert len({float(codebook[2, 0]) for codebook in seen}) == 5
  _, average = vq_update(zeros, statistics, jax.random.key(0))
  assert average['counts_K'][2] > 0.1
