"""Attention one block of scores at a time, on one device or with rows spread over devices.

On the mesh axis `sequence` each device holds T/n of a row's tokens (context parallelism). It gathers the keys
and values of the whole row, one layer at a time, and computes its own queries; never more than BLOCK x BLOCK
scores per head exist at once, forward or backward. A block that no query may attend to is skipped, be it for
order, window or document. So that all devices skip equally many, the row is cut into 2n chunks and device i
computes chunks i and 2n - 1 - i (zigzag); outside of this file tokens stay in their order.

All-gather and not a ring (Liu et al. 2023): with grouped queries one layer's keys and values are small beside
the activations that the device keeps for all layers (2 T G K against L T D / n numbers per row), the bytes
sent are the same, and each device's program has one gather and one scatter per layer, whatever n is, without
bubbles where blocks are skipped. Beyond some millions of tokens per row a ring would win.

Letters: as in mask.py; N blocks, C tokens of a block.

Sources: all-gather context parallelism with balanced chunks (Llama 3, Dubey et al. 2024, section 3.3.2);
online softmax (Milakov & Gimelshein 2018) in blocks, recomputed in the backward pass (FlashAttention-2, Dao
2023, algorithms 1 and 2).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gpt_jax.model.kernels import flash
from gpt_jax.sharding import activation_spec

BLOCK = 512  # tokens; the largest block. 1 MB of float32 scores per head


class Spread(NamedTuple):
  """How many devices share a row's tokens and its heads, for code inside `shard_map`. Hashable."""

  n: int = 1  # devices along the row
  tensor: int = 1  # devices along the heads


def blocks_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """Attention in blocks, on any mesh, BTHK. Supports everything but dropout of attention weights."""
  del key
  fn = functools.partial(block_attention, cfg, spread_of(k_BSGK.shape))
  return map_devices(fn, q_BTHK, k_BSGK, v_BSGK, mask, jnp.asarray(mask.window, jnp.int32))


def map_devices(fn, q_BTHK, k_BSGK, v_BSGK, mask, extra, extra_specs=PartitionSpec):
  """Call fn(q, k, v, row, extra) on each device with its rows, tokens and heads -> y_BTHK.

  row: Tokens of the whole row, on every device; queries and keys are the same tokens.
  extra_specs: () -> the PartitionSpecs of `extra`.
  """
  mesh, row = jax.sharding.get_abstract_mesh(), flash.row_tokens(mask)
  if mesh.empty or mesh.size == 1:
    return fn(q_BTHK, k_BSGK, v_BSGK, row, extra)
  tokens = 'sequence' if spread_of(k_BSGK.shape).n > 1 else None
  batch, _, heads, _ = activation_spec('BTGK', k_BSGK.shape)  # queries go where their keys are
  spec = PartitionSpec(batch, tokens, heads)
  # Orders are one row for the whole batch; each row has its own documents and prefixes.
  row_specs = jax.tree.map(lambda x: PartitionSpec(batch if len(x) == len(q_BTHK) else None), row)
  in_specs = (spec, spec, spec, row_specs, extra_specs())
  # check_vma=False: a batch that the mesh does not divide is computed by all devices, which it can't prove.
  fn = jax.shard_map(fn, in_specs=in_specs, out_specs=spec, check_vma=False)
  return fn(q_BTHK, k_BSGK, v_BSGK, row, extra)


def spread_of(shape):
  """The Spread of keys of this shape, BSGK, on the current mesh.

  A row that does not split into two chunks per device stays whole: prompts come in any length.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return Spread()
  n, tensor = mesh.shape['sequence'], mesh.shape['tensor']
  return Spread(1 if shape[1] % (2 * n) else n, 1 if shape[2] % tensor else tensor)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def block_attention(cfg, spread, q_BTHK, k_BSGK, v_BSGK, row, window):
  """One device's part: its share of the tokens of q, k and v, and Tokens of the whole row."""
  return block_attention_forward(cfg, spread, q_BTHK, k_BSGK, v_BSGK, row, window)[0]


def block_attention_forward(cfg, spread, q_BTHK, k_BSGK, v_BSGK, row, window):
  """-> (y_BTHK, residuals: nothing that is longer than the device's share)."""
  q_NBCGMK, k_NBCGK, v_NBCGK, queries, keys = device_blocks(spread, q_BTHK, k_BSGK, v_BSGK, row)
  score = functools.partial(flash.block_scores, cfg, first_head=first_head(spread, q_NBCGMK))

  def attend_queries(_, block):
    q_BCGMK, queries = block

    def attend_block(total, block):
      k_BCGK, v_BCGK, keys = block
      visible_BTS = flash.block_visible(queries, keys, window)

      def accumulate(total):
        row_max_BGMT, sum_BGMT, y_BTGMK = total
        scores = score(q_BCGMK, k_BCGK, queries, keys, visible_BTS)
        new_max_BGMT = jnp.maximum(row_max_BGMT, scores.max(-1))
        correction_BGMT = jnp.exp(row_max_BGMT - new_max_BGMT)
        weights = jnp.exp(scores - new_max_BGMT[..., None])
        y_BTGMK = y_BTGMK * tokens_first(correction_BGMT)[..., None] + flash.einsum32(
          'BGMTS,BSGK->BTGMK', weights.astype(v_BCGK.dtype), v_BCGK
        )
        return new_max_BGMT, sum_BGMT * correction_BGMT + weights.sum(-1), y_BTGMK

      return jax.lax.cond(visible_BTS.any(), accumulate, lambda total: total, total), None

    B, C, G, M, _ = q_BCGMK.shape
    row_max_BGMT = jnp.full((B, G, M, C), -1e30, jnp.float32)
    start = (row_max_BGMT, jnp.zeros_like(row_max_BGMT), jnp.zeros(q_BCGMK.shape, jnp.float32))
    (row_max_BGMT, sum_BGMT, y_BTGMK), _ = jax.lax.scan(attend_block, start, (k_NBCGK, v_NBCGK, keys))
    y_BTGMK = y_BTGMK / tokens_first(sum_BGMT)[..., None]  # every query sees itself: no zeros
    return None, (y_BTGMK.astype(q_BCGMK.dtype), row_max_BGMT + jnp.log(sum_BGMT))

  _, (y_NBCGMK, log_sum_NBGMC) = jax.lax.scan(attend_queries, None, (q_NBCGMK, queries))
  y_BTHK = from_zigzag(spread, join_blocks(y_NBCGMK)).reshape(q_BTHK.shape)
  return y_BTHK, (q_BTHK, k_BSGK, v_BSGK, row, window, y_BTHK, log_sum_NBGMC)


def block_attention_backward(cfg, spread, residuals, dy_BTHK):
  """Gradients of q, k and v; each block's scores are recomputed."""
  q_BTHK, k_BSGK, v_BSGK, row, window, y_BTHK, log_sum_NBGMC = residuals
  q_NBCGMK, k_NBCGK, v_NBCGK, queries, keys = device_blocks(spread, q_BTHK, k_BSGK, v_BSGK, row)
  dy_NBCGMK, y_NBCGMK = (
    query_blocks(spread, x_BTHK, k_BSGK.shape[2], q_NBCGMK.shape[2]) for x_BTHK in (dy_BTHK, y_BTHK)
  )
  delta_NBGMC = flash.output_delta(dy_NBCGMK, y_NBCGMK)
  score = functools.partial(flash.block_scores, cfg, first_head=first_head(spread, q_NBCGMK))

  def backward_keys(dq_NBCGMK, block):
    k_BCGK, v_BCGK, keys = block

    def backward_block(total, block):
      dq_NBCGMK, dk_BCGK, dv_BCGK = total
      i, q_BCGMK, dy_BCGMK, delta_BGMC, log_sum_BGMC, queries = block
      visible_BTS = flash.block_visible(queries, keys, window)

      def gradients():
        masked = lambda q, k: score(q, k, queries, keys, visible_BTS)
        block = (q_BCGMK, k_BCGK, v_BCGK, dy_BCGMK, delta_BGMC, log_sum_BGMC)
        return tuple(x.astype(jnp.float32) for x in flash.block_gradients(masked, *block))

      def zeros():
        return tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_BCGMK, k_BCGK, v_BCGK))

      dq, dk, dv = jax.lax.cond(visible_BTS.any(), gradients, zeros)
      return (dq_NBCGMK.at[i].add(dq), dk_BCGK + dk, dv_BCGK + dv), None

    zeros = jnp.zeros(k_BCGK.shape, jnp.float32)
    blocks = (jnp.arange(len(q_NBCGMK)), q_NBCGMK, dy_NBCGMK, delta_NBGMC, log_sum_NBGMC, queries)
    (dq_NBCGMK, dk, dv), _ = jax.lax.scan(backward_block, (dq_NBCGMK, zeros, zeros), blocks)
    return dq_NBCGMK, (dk, dv)

  start = jnp.zeros(q_NBCGMK.shape, jnp.float32)
  dq_NBCGMK, dkv = jax.lax.scan(backward_keys, start, (k_NBCGK, v_NBCGK, keys))
  dq_BTHK = from_zigzag(spread, join_blocks(dq_NBCGMK).astype(q_BTHK.dtype)).reshape(q_BTHK.shape)
  dk, dv = (reduce_scatter(spread, join_blocks(x)).astype(k_BSGK.dtype) for x in dkv)
  return dq_BTHK, dk, dv, None, None


block_attention.defvjp(block_attention_forward, block_attention_backward)


def first_head(spread, q_NBCGMK):
  """The index of this device's first head among all heads."""
  heads = q_NBCGMK.shape[3] * q_NBCGMK.shape[4]
  return jax.lax.axis_index('tensor') * heads if spread.tensor > 1 else 0


def tokens_first(x_BGMT):
  """BGMT -> BTGM."""
  return jnp.moveaxis(x_BGMT, -1, 1)


# ----------------------------------------------------------------------------------------- blocks


def device_blocks(spread, q_BTHK, k_BSGK, v_BSGK, row):
  """This device's work in blocks: (its chunks of the queries, all keys and values, Tokens of both)."""
  T, G = k_BSGK.shape[1:3]
  size = block_size(T // 2 if spread.n > 1 else T)
  q_NBCGMK = query_blocks(spread, q_BTHK, G, size)
  k_NBCGK, v_NBCGK = (split_blocks(all_gather(spread, x), size) for x in (k_BSGK, v_BSGK))
  queries, keys = (
    jax.tree.map(lambda x: split_blocks(x, size), tokens) for tokens in (zigzag_shard(spread, row), row)
  )
  return q_NBCGMK, k_NBCGK, v_NBCGK, queries, keys


def query_blocks(spread, x_BTHK, G, size):
  """Queries, or arrays of their shape -> this device's chunks in blocks, NBCGMK."""
  B, T, H, K = x_BTHK.shape
  return split_blocks(to_zigzag(spread, x_BTHK).reshape(B, T, G, H // G, K), size)


def block_size(tokens):
  """The largest block of at most BLOCK tokens that divides so many."""
  return max(size for size in range(1, min(tokens, BLOCK) + 1) if tokens % size == 0)


def split_blocks(x_BT, size):
  """Cut the tokens into blocks: BT... -> NBC..."""
  B, T = x_BT.shape[:2]
  return jnp.moveaxis(x_BT.reshape(B, T // size, size, *x_BT.shape[2:]), 1, 0)


def join_blocks(x_NBC):
  """NBC... -> BT..."""
  x_BNC = jnp.moveaxis(x_NBC, 0, 1)
  return x_BNC.reshape(x_BNC.shape[0], -1, *x_BNC.shape[3:])


# ------------------------------------------------------------------------- tokens between devices


def zigzag_owner(n, chunk):
  """The device that computes this chunk of 2n: device i has i, early in the row, and 2n - 1 - i."""
  return min(chunk, 2 * n - 1 - chunk)


def zigzag_order(n, tokens):
  """int32 [tokens]: the tokens of a row in the order in which the devices compute them."""
  chunks = np.arange(tokens, dtype=np.int32).reshape(2 * n, -1)
  even = [i if i % 2 == 0 else 2 * n - 1 - i for i in range(n)]
  return np.concatenate([chunks[[c, 2 * n - 1 - c]] for c in even]).ravel()


def zigzag_shard(spread, row):
  """Tokens of a whole row -> of the two chunks that this device computes, the even one first."""
  if spread.n == 1:
    return row
  i = jax.lax.axis_index('sequence')
  even = jnp.where(i % 2 == 0, i, 2 * spread.n - 1 - i)
  chunks = (even, 2 * spread.n - 1 - even)

  def slice_chunks(x_BT):
    size = x_BT.shape[1] // (2 * spread.n)
    parts = [jax.lax.dynamic_slice_in_dim(x_BT, c * size, size, 1) for c in chunks]
    return jnp.concatenate(parts, 1)

  return jax.tree.map(slice_chunks, row)


def to_zigzag(spread, x_BT):
  """This device's share of a row, chunks 2i and 2i + 1 -> the two chunks that it computes."""
  return exchange_chunks(spread, x_BT, lambda c: (c // 2, zigzag_owner(spread.n, c)))


def from_zigzag(spread, x_BT):
  """The chunks that this device computed -> its share of the row."""
  return exchange_chunks(spread, x_BT, lambda c: (zigzag_owner(spread.n, c), c // 2))


def exchange_chunks(spread, x_BT, route):
  """Send the two halves of the tokens, an even and an odd chunk c, by route(c) = (from, to)."""
  if spread.n == 1:
    return x_BT
  halves = jnp.split(x_BT, 2, 1)
  routes = [[route(c) for c in range(parity, 2 * spread.n, 2)] for parity in (0, 1)]
  send = lambda x, pairs: jax.lax.ppermute(x, 'sequence', pairs)
  return jnp.concatenate([send(x, pairs) for x, pairs in zip(halves, routes, strict=True)], 1)


def all_gather(spread, x_BT):
  """Shares of a row -> the row."""
  if spread.n == 1:
    return x_BT
  return jax.lax.all_gather(x_BT, 'sequence', axis=1, tiled=True)


def reduce_scatter(spread, x_BT):
  """Each device's gradients of the whole row -> the sum of those of this device's share."""
  if spread.n == 1:
    return x_BT
  return jax.lax.psum_scatter(x_BT, 'sequence', scatter_dimension=1, tiled=True)
