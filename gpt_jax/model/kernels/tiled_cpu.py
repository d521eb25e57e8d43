"""Attention for a CPU: some rows and some queries at a time, so that scores stay in its caches.

Scores of a whole batch are as many as B H T T numbers, written and read again by each of the dozen
operations of a softmax and its gradient: at memory's speed that costs more than the products. Here
a loop takes a few rows at a time, and of these one block of queries with the keys up to its end:
the upper half of the scores is never computed. The backward pass computes the scores again from
what it keeps, the output and the logarithm of each sum of weights (FlashAttention-2, Dao 2023,
section 2.3).

Letters: as in scores.py; N pieces of the batch, each of B rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt_jax.model.kernels.context_parallel import product
from gpt_jax.model.mask import Mask, scores_BGMTS

QUERIES = 128  # about so many in a block
BLOCKS = 8  # at most; each is compiled
SCORES = 2**19  # at once: 2 MB, what two cores have of second-level cache
KEPT = 'attention'  # what the backward pass needs and a remat policy keeps


def chunks_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """Attention of rows that are alone. Honors everything but dropout of attention weights."""
  del key
  B, T, H, K = q_BTHK.shape
  rows = rows_at_once(B, H * T * min(T, QUERIES))
  cut = lambda x: x.reshape(-1, rows, *x.shape[1:])
  each = lambda x: cut(x) if len(x) == B else jnp.broadcast_to(x, (B // rows, *x.shape))
  q_NBTGMK = cut(q_BTHK).reshape(-1, rows, T, cfg.G, H // cfg.G, K)
  sides = jax.tree.map(each, mask.sides()[1])
  window = jnp.asarray(mask.window, jnp.int32)
  blocks = query_blocks(T, mask)
  y_NBTGMK = attend(cfg, blocks, q_NBTGMK, cut(k_BSGK), cut(v_BSGK), sides, window)
  return y_NBTGMK.reshape(B, T, H, K)


def rows_at_once(B, scores):
  """The largest divisor of B whose rows, of so many scores each, fit in the caches; at least 1."""
  return max(n for n in range(1, B + 1) if B % n == 0 and (n == 1 or n * scores <= SCORES))


def query_blocks(T, mask):
  """Tuple of (first query, end, first key, end of keys) that together hold all that is visible."""
  n = max(1, min(BLOCKS, T // QUERIES))
  window = 0 if isinstance(mask.window, jax.Array) else mask.window
  edges = [T * i // n for i in range(n + 1)]

  def of(start, end):
    first = max(0, start - window + 1) if window else 0
    both_ways = mask.prefix is not None
    return (start, end, 0, T) if both_ways else (start, end, first, end)

  return tuple(of(start, end) for start, end in zip(edges[:-1], edges[1:], strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(cfg, blocks, q_NBTGMK, k_NBSGK, v_NBSGK, row, window):
  """Attention of each piece of the batch; row: Tokens of its rows."""
  return attend_forward(cfg, blocks, q_NBTGMK, k_NBSGK, v_NBSGK, row, window)[0]


def attend_forward(cfg, blocks, q_NBTGMK, k_NBSGK, v_NBSGK, row, window):
  """-> (y_NBTGMK, what the backward pass needs)."""

  def of_piece(piece):
    ys, log_sums = [], []
    for block in blocks:
      q, k, v, score = parts(cfg, block, window, piece)
      scores = score(q, k)
      most = scores.max(-1, keepdims=True)
      weights = jnp.exp(scores - most)
      total = weights.sum(-1, keepdims=True)
      y_BGMTK = product('BGMTS,BSGK->BGMTK', weights.astype(v.dtype), v) / total
      ys.append(jnp.moveaxis(y_BGMTK, 3, 1).astype(q.dtype))
      log_sums.append((most + jnp.log(total))[..., 0])
    return jnp.concatenate(ys, 1), jnp.concatenate(log_sums, -1)

  y_NBTGMK, log_sum_NBGMT = jax.lax.map(of_piece, (q_NBTGMK, k_NBSGK, v_NBSGK, row))
  y_NBTGMK = checkpoint_name(y_NBTGMK, KEPT)
  log_sum_NBGMT = checkpoint_name(log_sum_NBGMT, KEPT)
  return y_NBTGMK, (q_NBTGMK, k_NBSGK, v_NBSGK, row, window, y_NBTGMK, log_sum_NBGMT)


def attend_backward(cfg, blocks, kept, dy_NBTGMK):
  """Gradients of q, k and v."""
  q_NBTGMK, k_NBSGK, v_NBSGK, row, window, y_NBTGMK, log_sum_NBGMT = kept

  def of_piece(piece):
    *piece, y_BTGMK, dy_BTGMK, log_sum_BGMT = piece
    dqs, dks, dvs = [], [], []
    for block in blocks:
      start, end, first, last = block
      q, k, v, score = parts(cfg, block, window, piece)
      dy, y = dy_BTGMK[:, start:end], y_BTGMK[:, start:end]
      scores, pull = jax.vjp(score, q, k)
      weights = jnp.exp(scores - log_sum_BGMT[..., start:end, None])
      delta_BGMT = jnp.einsum('BTGMK,BTGMK->BGMT', to32(dy), to32(y))
      dweights = product('BTGMK,BSGK->BGMTS', dy, v)
      dq, dk = pull(weights * (dweights - delta_BGMT[..., None]))
      dv = product('BGMTS,BTGMK->BSGK', weights.astype(dy.dtype), dy)
      around = ((0, 0), (first, k_NBSGK.shape[2] - last), (0, 0), (0, 0))
      dqs.append(dq)
      dks.append(jnp.pad(to32(dk), around))
      dvs.append(jnp.pad(dv, around))
    return jnp.concatenate(dqs, 1), sum(dks).astype(k.dtype), sum(dvs).astype(v.dtype)

  pieces = (q_NBTGMK, k_NBSGK, v_NBSGK, row, y_NBTGMK, dy_NBTGMK, log_sum_NBGMT)
  return *jax.lax.map(of_piece, pieces), None, None


attend.defvjp(attend_forward, attend_backward)


def parts(cfg, block, window, piece):
  """A block's (queries, keys, values, masked scores as a function of the first two)."""
  q_BTGMK, k_BSGK, v_BSGK, row = piece
  start, end, first, last = block
  queries = jax.tree.map(lambda x_BT: x_BT[:, start:end], row)
  keys = jax.tree.map(lambda x_BT: x_BT[:, first:last], row)
  visible_BTS = Mask.between(queries, keys, window).visible_BTS()

  def score(q_BTGMK, k_BSGK):
    scores = scores_BGMTS(cfg, q_BTGMK, k_BSGK, queries.order_BT, keys.order_BT)
    return jnp.where(visible_BTS[:, None, None], scores, -1e30)

  return q_BTGMK[:, start:end], k_BSGK[:, first:last], v_BSGK[:, first:last], score


def to32(x):
  """As float32."""
  return x.astype(jnp.float32)
