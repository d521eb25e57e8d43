"""Grouped matmul: its blocks of rows, and ragged_dot as the reference; gradients are in test_moe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model.kernels import grouped_matmul

SIZES = [(5, 0, 3, 9), (0, 0, 0, 17), (1, 2, 3, 4), (0, 0, 0, 0)]


@pytest.mark.parametrize('sizes', SIZES)
def test_row_blocks_cover_every_grouped_row_once(sizes):
  for N in (17, 40):
    size, blocks = grouped_matmul.row_blocks(N, jnp.asarray(sizes, jnp.int32))
    blocks = zip(*map(np.asarray, blocks), strict=True)
    rows = [(expert, start + i) for expert, start, count in blocks for i in range(count)]
    assert size == N // 8
    assert rows == list(zip(np.repeat(np.arange(4), sizes), range(sum(sizes)), strict=True))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_blocked_matmul_equals_ragged_dot_and_is_zero_after_the_last_group(dtype):
  rng = np.random.default_rng(0)
  x_ND, w_EDF = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((17, 8), (4, 8, 6)))
  blocked, ragged = jax.jit(grouped_matmul.blocked_matmul), jax.jit(jax.lax.ragged_dot)
  for sizes in SIZES:
    sizes_E = jnp.asarray(sizes, jnp.int32)
    y_NF = np.asarray(blocked(x_ND, w_EDF, sizes_E), np.float32)
    expected_NF = np.asarray(ragged(x_ND, w_EDF, sizes_E), np.float32)
    rows, tolerance = sum(sizes), 1e-5 if dtype == 'float32' else 0.05
    np.testing.assert_allclose(y_NF[:rows], expected_NF[:rows], rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(y_NF[rows:], 0)
