"""Attention for a CPU: some rows and queries at a time, so that scores stay in its caches.

Scores of a whole batch are B H T T numbers, written and read again by each of the dozen operations of a
softmax and its gradient: at memory speed that costs more than the products. Here a loop takes a few rows at a
time, and of these one block of queries with the keys up to its end: the upper half of the scores is never
computed. The backward pass recomputes the scores from the output and the logarithm of each sum of weights.

Letters: as in mask.py; N pieces of the batch, each of B rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax.model.kernels import flash

QUERIES = 128  # about so many in a block
BLOCKS = 8  # at most; each is compiled
SCORES = 2**19  # at once: 2 MB, the second-level cache of two cores


def chunks_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """Plain self-attention, BTHK. Supports everything but dropout of attention weights."""
  del key
  B, T, H, K = q_BTHK.shape
  rows = rows_at_once(B, H * T * min(T, QUERIES))
  split = lambda x: x.reshape(-1, rows, *x.shape[1:])
  split_row = lambda x: split(x) if len(x) == B else jnp.broadcast_to(x, (B // rows, *x.shape))
  q_NBTGMK = split(q_BTHK).reshape(-1, rows, T, cfg.G, H // cfg.G, K)
  row = jax.tree.map(split_row, flash.row_tokens(mask))
  window = jnp.asarray(mask.window, jnp.int32)
  blocks = query_blocks(T, mask)
  y_NBTGMK = tiled_attention(cfg, blocks, q_NBTGMK, split(k_BSGK), split(v_BSGK), row, window)
  return y_NBTGMK.reshape(B, T, H, K)


def rows_at_once(B, scores):
  """The largest divisor of B whose rows, of so many scores each, fit in the caches; at least 1."""
  return max(n for n in range(1, B + 1) if B % n == 0 and (n == 1 or n * scores <= SCORES))


def query_blocks(T, mask):
  """Tuple of (first query, end, first key, end of keys) that together hold every visible pair."""
  n = max(1, min(BLOCKS, T // QUERIES))
  window = 0 if isinstance(mask.window, jax.Array) else mask.window
  edges = [T * i // n for i in range(n + 1)]

  def block(start, end):
    first = max(0, start - window + 1) if window else 0
    return (start, end, 0, T) if mask.prefix is not None else (start, end, first, end)

  return tuple(block(start, end) for start, end in zip(edges[:-1], edges[1:], strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def tiled_attention(cfg, blocks, q_NBTGMK, k_NBSGK, v_NBSGK, row, window):
  """Attention of each piece of the batch; row: flash.Tokens of its rows."""
  return tiled_attention_forward(cfg, blocks, q_NBTGMK, k_NBSGK, v_NBSGK, row, window)[0]


def tiled_attention_forward(cfg, blocks, q_NBTGMK, k_NBSGK, v_NBSGK, row, window):
  """-> (y_NBTGMK, residuals)."""

  def attend_piece(piece):
    ys, log_sums = [], []
    for block in blocks:
      q, k, v, score = slice_block(cfg, block, window, piece)
      scores = score(q, k)
      row_max = scores.max(-1, keepdims=True)
      weights = jnp.exp(scores - row_max)
      total = weights.sum(-1, keepdims=True)
      y_BGMTK = flash.einsum32('BGMTS,BSGK->BGMTK', weights.astype(v.dtype), v) / total
      ys.append(jnp.moveaxis(y_BGMTK, 3, 1).astype(q.dtype))
      log_sums.append((row_max + jnp.log(total))[..., 0])
    return jnp.concatenate(ys, 1), jnp.concatenate(log_sums, -1)

  y_NBTGMK, log_sum_NBGMT = jax.lax.map(attend_piece, (q_NBTGMK, k_NBSGK, v_NBSGK, row))
  y_NBTGMK = checkpoint_name(y_NBTGMK, flash.RESIDUALS)
  log_sum_NBGMT = checkpoint_name(log_sum_NBGMT, flash.RESIDUALS)
  return y_NBTGMK, (q_NBTGMK, k_NBSGK, v_NBSGK, row, window, y_NBTGMK, log_sum_NBGMT)


def tiled_attention_backward(cfg, blocks, residuals, dy_NBTGMK):
  """Gradients of q, k and v."""
  q_NBTGMK, k_NBSGK, v_NBSGK, row, window, y_NBTGMK, log_sum_NBGMT = residuals
  S = k_NBSGK.shape[2]

  def backward_piece(piece):
    *piece, y_BTGMK, dy_BTGMK, log_sum_BGMT = piece
    dqs, dks, dvs = [], [], []
    for block in blocks:
      start, end, first, last = block
      q, k, v, score = slice_block(cfg, block, window, piece)
      dy, log_sum = dy_BTGMK[:, start:end], log_sum_BGMT[..., start:end]
      delta_BGMT = flash.output_delta(dy, y_BTGMK[:, start:end])
      dq, dk, dv = flash.block_gradients(score, q, k, v, dy, delta_BGMT, log_sum)
      padding = ((0, 0), (first, S - last), (0, 0), (0, 0))
      dqs.append(dq)
      dks.append(jnp.pad(dk.astype(jnp.float32), padding))
      dvs.append(jnp.pad(dv, padding))
    return jnp.concatenate(dqs, 1), sum(dks).astype(k.dtype), sum(dvs).astype(v.dtype)

  pieces = (q_NBTGMK, k_NBSGK, v_NBSGK, row, y_NBTGMK, dy_NBTGMK, log_sum_NBGMT)
  return *jax.lax.map(backward_piece, pieces), None, None


tiled_attention.defvjp(tiled_attention_forward, tiled_attention_backward)


def slice_block(cfg, block, window, piece):
  """A block's (queries, keys, values, masked scores as a function of the first two)."""
  q_BTGMK, k_BSGK, v_BSGK, row = piece
  start, end, first, last = block
  queries = jax.tree.map(lambda x_BT: x_BT[:, start:end], row)
  keys = jax.tree.map(lambda x_BT: x_BT[:, first:last], row)
  visible_BTS = flash.block_visible(queries, keys, window)
  score = lambda q, k: flash.block_scores(cfg, q, k, queries, keys, visible_BTS)
  return q_BTGMK[:, start:end], k_BSGK[:, first:last], v_BSGK[:, first:last], score


def limits(cfg, mask, T):
  """Return what this kernel does not support: {reason: whether this call has it}."""
  mesh = jax.sharding.get_abstract_mesh()
  return {
    f'dtype {cfg.dtype} (float32 only)': cfg.dtype != 'float32',
    f'a mesh of {mesh.size} devices': not mesh.empty and mesh.size > 1,
  }
