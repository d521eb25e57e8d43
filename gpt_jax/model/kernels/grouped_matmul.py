"""Grouped matmul: consecutive groups of rows, each times its own matrix, with FLOPs linear in the rows.

On a TPU `jax.lax.ragged_dot` is such a kernel. Elsewhere XLA computes it from E masked copies of the rows, at
E times the FLOPs and memory, so a scan multiplies one block of rows at a time. Of each group only the last
block may be filled in part.

Letters: N rows, b rows of a block, E groups (experts), D input width, F output width.

Source: MegaBlocks (Gale et al. 2022, section 4).
"""

import jax
import jax.numpy as jnp

from gpt_jax.cluster.meshes import platform

BLOCK = 128  # rows; the largest block


def grouped_matmul(x_ND, w_EDF, sizes_E):
  """y_NF: group e, the next sizes_E[e] rows of x, times w_EDF[e]; rows after the last group are 0."""
  if platform() != 'tpu':
    return blocked_matmul(x_ND, w_EDF, sizes_E)
  is_grouped_N1 = (jnp.arange(len(x_ND)) < sizes_E.sum())[:, None]
  return jnp.where(is_grouped_N1, jax.lax.ragged_dot(x_ND, w_EDF, sizes_E), 0)


@jax.custom_vjp
def blocked_matmul(x_ND, w_EDF, sizes_E):
  """grouped_matmul as a scan over blocks of rows."""
  return multiply_blocks('bD,DF->bF', x_ND, w_EDF, sizes_E)


def _blocked_backward(residuals, dy_NF):
  x_ND, w_EDF, sizes_E = residuals
  dx_ND = multiply_blocks('bF,DF->bD', dy_NF, w_EDF, sizes_E)
  size, blocks = row_blocks(len(x_ND), sizes_E)
  x_ND, dy_NF = (jnp.pad(x, ((0, size), (0, 0))) for x in (x_ND, dy_NF))

  def add_block(dw_EDF, block):
    expert, start, count = block

    def outer():
      x_bD, dy_bF = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in (x_ND, dy_NF))
      dy_bF = jnp.where((jnp.arange(size) < count)[:, None], dy_bF, 0)
      return jnp.einsum('bD,bF->DF', x_bD, dy_bF, preferred_element_type=jnp.float32)

    dw_DF = jax.lax.cond(count > 0, outer, lambda: jnp.zeros(w_EDF.shape[1:], jnp.float32))
    return dw_EDF.at[expert].add(dw_DF), None

  dw_EDF, _ = jax.lax.scan(add_block, jnp.zeros(w_EDF.shape, jnp.float32), blocks)
  return dx_ND, dw_EDF.astype(w_EDF.dtype), None


blocked_matmul.defvjp(lambda *args: (blocked_matmul(*args), args), _blocked_backward)


def multiply_blocks(subscripts, x_ND, w_EDF, sizes_E):
  """Each block of rows times its group's matrix, by an einsum of x_bD and w_DF or w_FD."""
  N, width = len(x_ND), w_EDF.shape[2 if subscripts.endswith('F') else 1]
  size, blocks = row_blocks(N, sizes_E)
  x_ND = jnp.pad(x_ND, ((0, size), (0, 0)))  # the last group's last block may end beyond the rows

  def write_block(y_NF, block):
    expert, start, count = block

    def multiply():
      x_bD = jax.lax.dynamic_slice_in_dim(x_ND, start, size)
      y_bF = jnp.einsum(subscripts, x_bD, w_EDF[expert])
      return jnp.where((jnp.arange(size) < count)[:, None], y_bF, 0)

    y_bF = jax.lax.cond(count > 0, multiply, lambda: jnp.zeros((size, width), x_ND.dtype))
    # Zeros beyond the group's end are overwritten by the next group.
    return jax.lax.dynamic_update_slice_in_dim(y_NF, y_bF, start, 0), None

  y_NF, _ = jax.lax.scan(write_block, jnp.zeros((N + size, width), x_ND.dtype), blocks)
  return y_NF[:N]


def row_blocks(N, sizes_E):
  """-> (b, (expert, first row, number of rows) of each block as int32 arrays; unused blocks have no rows)."""
  E = len(sizes_E)
  size = min(BLOCK, max(1, N // (2 * E)))
  blocks_E, ends_E = -(-sizes_E // size), jnp.cumsum(sizes_E)
  last_block_E = jnp.cumsum(blocks_E)
  block = jnp.arange(min(N, N // size + E), dtype=jnp.int32)  # at least as many as any sizes need
  expert = jnp.minimum(jnp.searchsorted(last_block_E, block, side='right', method='compare_all'), E - 1)
  start = (ends_E - sizes_E)[expert] + (block - (last_block_E - blocks_E)[expert]) * size
  is_used = block < last_block_E[-1]
  count = jnp.where(is_used, jnp.minimum(ends_E[expert] - start, size), 0)
  return size, (expert, jnp.where(is_used, start, N).astype(jnp.int32), count)
