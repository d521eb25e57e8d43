"""Attention a block of scores at a time, and of rows that are spread over devices.

On the mesh axis `sequence` each device holds T/n of a row's tokens (context parallelism). It
gathers the keys and values of the whole row, one layer at a time, and computes its own queries;
never more than BLOCK x BLOCK scores a head exist at once, forward or backward. A block that no
query may look into is skipped, be it for order, window or document. So that all devices skip
equally many, the row is cut into 2n chunks and device i computes chunks i and 2n - 1 - i
(zig-zag); outside of this file tokens stay in their order.

Gathered and not passed round a ring (Liu et al. 2023): with grouped queries one layer's keys and
values are small beside the activations that the device keeps for all layers (2 T G K against
L T D / n numbers a row), the bytes sent are the same, and each device's program has one gather
and one scatter a layer, whatever n is, with no bubble where blocks are skipped. Beyond some
millions of tokens a row a ring would win.

Letters: as in scores.py; N blocks, C tokens of a block.

Sources: all-gather context parallelism with balanced chunks (Llama 3, Dubey et al. 2024, section
3.3.2); online softmax (Milakov & Gimelshein 2018) in blocks, recomputed in the backward pass
(FlashAttention-2, Dao 2023, algorithms 1 and 2).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gpt_jax.model.mask import Mask, scores_BGMTS
from gpt_jax.sharding import activation_spec

BLOCK = 512  # tokens; the largest block. 1 MB of float32 scores a head


class Spread(NamedTuple):
  """How rows and heads lie on the mesh, as code inside `shard_map` needs to know it. Hashable."""

  n: int = 1  # devices that share a row's tokens
  tensor: int = 1  # devices that share its heads


def blocks_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """Attention in blocks, on any mesh. Honors everything but dropout of attention weights."""
  del key
  fn = functools.partial(attend, cfg, spread_of(k_BSGK.shape))
  return each_device(fn, q_BTHK, k_BSGK, v_BSGK, mask, jnp.asarray(mask.window, jnp.int32))


def each_device(fn, q_BTHK, k_BSGK, v_BSGK, mask, extra, specs=PartitionSpec):
  """Call fn(q, k, v, row, extra) on each device with its rows, tokens and heads -> y_BTHK.

  row: Tokens of the whole row, which every device gets; queries and keys are the same tokens.
  specs: () -> how `extra` is cut up.
  """
  mesh, row = jax.sharding.get_abstract_mesh(), mask.sides()[1]
  if mesh.empty or mesh.size == 1:
    return fn(q_BTHK, k_BSGK, v_BSGK, row, extra)
  tokens = 'sequence' if spread_of(k_BSGK.shape).n > 1 else None
  batch, _, heads, _ = activation_spec('BTGK', k_BSGK.shape)  # queries go where their keys are
  cut = PartitionSpec(batch, tokens, heads)
  # Orders are one row for the whole batch, documents and prefixes are of each row.
  whole = jax.tree.map(lambda x: PartitionSpec(batch if len(x) == len(q_BTHK) else None), row)
  # check_vma: a batch that the mesh does not divide is computed by all, which it cannot know.
  fn = jax.shard_map(fn, in_specs=(cut, cut, cut, whole, specs()), out_specs=cut, check_vma=False)
  return fn(q_BTHK, k_BSGK, v_BSGK, row, extra)


def spread_of(shape):
  """The Spread of keys of this shape, BSGK, on the mesh in force.

  A row that does not split into two chunks a device stays whole: prompts come in any length.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return Spread()
  n, tensor = mesh.shape['sequence'], mesh.shape['tensor']
  return Spread(1 if shape[1] % (2 * n) else n, 1 if shape[2] % tensor else tensor)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(cfg, spread, q_BTHK, k_BSGK, v_BSGK, row, window):
  """One device's part: its share of the tokens of q, k and v, and Tokens of the whole row."""
  return attend_forward(cfg, spread, q_BTHK, k_BSGK, v_BSGK, row, window)[0]


def attend_forward(cfg, spread, q_BTHK, k_BSGK, v_BSGK, row, window):
  """-> (y_BTHK, what the backward pass needs: nothing that is longer than the device's share)."""
  q_NBCGMK, k_NBCGK, v_NBCGK, queries, keys = deal(spread, q_BTHK, k_BSGK, v_BSGK, row)
  score = scorer(cfg, spread)

  def of_queries(_, block):
    q_BCGMK, queries = block

    def add(total, block):
      k_BCGK, v_BCGK, keys = block
      visible_BTS = Mask.between(queries, keys, window).visible_BTS()

      def look(total):
        most_BGMT, sum_BGMT, y_BTGMK = total
        scores = masked(score(q_BCGMK, k_BCGK, queries, keys), visible_BTS)
        new_BGMT = jnp.maximum(most_BGMT, scores.max(-1))
        fade_BGMT = jnp.exp(most_BGMT - new_BGMT)
        weights = jnp.exp(scores - new_BGMT[..., None])
        y_BTGMK = y_BTGMK * tokens_first(fade_BGMT)[..., None] + product(
          'BGMTS,BSGK->BTGMK', weights.astype(v_BCGK.dtype), v_BCGK
        )
        return new_BGMT, sum_BGMT * fade_BGMT + weights.sum(-1), y_BTGMK

      return jax.lax.cond(visible_BTS.any(), look, lambda total: total, total), None

    B, C, G, M, _ = q_BCGMK.shape
    most_BGMT = jnp.full((B, G, M, C), -1e30, jnp.float32)
    start = (most_BGMT, jnp.zeros_like(most_BGMT), jnp.zeros(q_BCGMK.shape, jnp.float32))
    (most_BGMT, sum_BGMT, y_BTGMK), _ = jax.lax.scan(add, start, (k_NBCGK, v_NBCGK, keys))
    y_BTGMK = y_BTGMK / tokens_first(sum_BGMT)[..., None]  # every query sees itself: no zeros
    return None, (y_BTGMK.astype(q_BCGMK.dtype), most_BGMT + jnp.log(sum_BGMT))

  _, (y_NBCGMK, log_sum_NBGMC) = jax.lax.scan(of_queries, None, (q_NBCGMK, queries))
  y_BTHK = home(spread, joined(y_NBCGMK)).reshape(q_BTHK.shape)
  return y_BTHK, (q_BTHK, k_BSGK, v_BSGK, row, window, y_BTHK, log_sum_NBGMC)


def attend_backward(cfg, spread, kept, dy_BTHK):
  """Gradients of q, k and v; each block's scores are computed again."""
  q_BTHK, k_BSGK, v_BSGK, row, window, y_BTHK, log_sum_NBGMC = kept
  q_NBCGMK, k_NBCGK, v_NBCGK, queries, keys = deal(spread, q_BTHK, k_BSGK, v_BSGK, row)
  dy_NBCGMK = dealt_queries(spread, dy_BTHK, k_BSGK.shape[2], q_NBCGMK.shape[2])
  y_NBCGMK = dealt_queries(spread, y_BTHK, k_BSGK.shape[2], q_NBCGMK.shape[2])
  delta_NBGMC = jnp.einsum(
    'NBCGMK,NBCGMK->NBGMC', dy_NBCGMK.astype(jnp.float32), y_NBCGMK.astype(jnp.float32)
  )
  score = scorer(cfg, spread)

  def of_keys(dq_NBCGMK, block):
    k_BCGK, v_BCGK, keys = block

    def add(total, block):
      dq_NBCGMK, dk_BCGK, dv_BCGK = total
      i, q_BCGMK, dy_BCGMK, delta_BGMT, log_sum_BGMT, queries = block
      visible_BTS = Mask.between(queries, keys, window).visible_BTS()

      def look():
        scores, pull = jax.vjp(lambda q, k: score(q, k, queries, keys), q_BCGMK, k_BCGK)
        weights = jnp.exp(masked(scores, visible_BTS) - log_sum_BGMT[..., None])
        dweights = product('BTGMK,BSGK->BGMTS', dy_BCGMK, v_BCGK)
        dq, dk = pull(weights * (dweights - delta_BGMT[..., None]))
        dv = product('BGMTS,BTGMK->BSGK', weights.astype(dy_BCGMK.dtype), dy_BCGMK)
        return dq.astype(jnp.float32), dk.astype(jnp.float32), dv

      def nothing():
        return tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_BCGMK, k_BCGK, v_BCGK))

      dq, dk, dv = jax.lax.cond(visible_BTS.any(), look, nothing)
      return (dq_NBCGMK.at[i].add(dq), dk_BCGK + dk, dv_BCGK + dv), None

    zeros = jnp.zeros(k_BCGK.shape, jnp.float32)
    each = (jnp.arange(len(q_NBCGMK)), q_NBCGMK, dy_NBCGMK, delta_NBGMC, log_sum_NBGMC, queries)
    (dq_NBCGMK, dk, dv), _ = jax.lax.scan(add, (dq_NBCGMK, zeros, zeros), each)
    return dq_NBCGMK, (dk, dv)

  start = jnp.zeros(q_NBCGMK.shape, jnp.float32)
  dq_NBCGMK, dkv = jax.lax.scan(of_keys, start, (k_NBCGK, v_NBCGK, keys))
  dq_BTHK = home(spread, joined(dq_NBCGMK).astype(q_BTHK.dtype)).reshape(q_BTHK.shape)
  dk, dv = (returned(spread, joined(x)).astype(k_BSGK.dtype) for x in dkv)
  return dq_BTHK, dk, dv, None, None


attend.defvjp(attend_forward, attend_backward)


def scorer(cfg, spread):
  """scores_BGMTS of this device's heads, as a function of two blocks."""

  def score(q_BCGMK, k_BCGK, queries, keys):
    heads = q_BCGMK.shape[2] * q_BCGMK.shape[3]
    head = jax.lax.axis_index('tensor') * heads if spread.tensor > 1 else 0
    return scores_BGMTS(cfg, q_BCGMK, k_BCGK, queries.order_BT, keys.order_BT, head)

  return score


def masked(scores_BGMTS, visible_BTS):
  """Scores of what is not visible are finite, as in xla_attention, and fade beside any other."""
  return jnp.where(visible_BTS[:, None, None], scores_BGMTS, -1e30)


def product(subscripts, a, b):
  """einsum in the dtype of its operands, summed in float32."""
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def tokens_first(x_BGMT):
  """BGMT -> BTGM."""
  return jnp.moveaxis(x_BGMT, -1, 1)


# ------------------------------------------------------------------------- tokens between devices


def deal(spread, q_BTHK, k_BSGK, v_BSGK, row):
  """What this device computes, in blocks: its chunks of the queries, and all keys and values."""
  share, G = k_BSGK.shape[1], k_BSGK.shape[2]
  size = block_size(share // 2 if spread.n > 1 else share)
  q_NBCGMK = dealt_queries(spread, q_BTHK, G, size)
  k_NBCGK, v_NBCGK = (blocks(gathered(spread, x), size) for x in (k_BSGK, v_BSGK))
  keys = jax.tree.map(lambda x: blocks(x, size), row)
  return (q_NBCGMK, k_NBCGK, v_NBCGK, jax.tree.map(lambda x: blocks(x, size), dealt(spread, row)), keys)


def dealt(spread, row):
  """Tokens of a whole row -> of the chunks that this device computes."""
  if spread.n == 1:
    return row
  i = jax.lax.axis_index('sequence')
  even = jnp.where(i % 2 == 0, i, 2 * spread.n - 1 - i)
  both = (even, 2 * spread.n - 1 - even)  # an even chunk and an odd one

  def cut(x_BT):
    size = x_BT.shape[1] // (2 * spread.n)
    parts = [jax.lax.dynamic_slice_in_dim(x_BT, c * size, size, 1) for c in both]
    return jnp.concatenate(parts, 1)

  return jax.tree.map(cut, row)


def dealt_queries(spread, x_BTHK, G, size):
  """Queries, or what belongs to them -> this device's chunks in blocks, NBCGMK."""
  B, T, H, K = x_BTHK.shape
  return blocks(away(spread, x_BTHK).reshape(B, T, G, H // G, K), size)


def block_size(tokens):
  """The largest block of at most BLOCK tokens that divides so many."""
  return max(size for size in range(1, min(tokens, BLOCK) + 1) if tokens % size == 0)


def blocks(x_BT, size):
  """Cut the tokens into blocks: BT... -> NBC..."""
  B, T = x_BT.shape[:2]
  return jnp.moveaxis(x_BT.reshape(B, T // size, size, *x_BT.shape[2:]), 1, 0)


def joined(x_NBC):
  """NBC... -> BT..."""
  x_BNC = jnp.moveaxis(x_NBC, 0, 1)
  return x_BNC.reshape(x_BNC.shape[0], -1, *x_BNC.shape[3:])


def owner(n, c):
  """The device that computes chunk c of 2n: i has i, early in the row, and 2n - 1 - i."""
  return min(c, 2 * n - 1 - c)


def order(n, tokens):
  """int32 [tokens]: the tokens of a row in the order in which the devices compute them."""
  chunks = np.arange(tokens, dtype=np.int32).reshape(2 * n, -1)
  even = [i if i % 2 == 0 else 2 * n - 1 - i for i in range(n)]
  return np.concatenate([chunks[[c, 2 * n - 1 - c]] for c in even]).ravel()


def away(spread, x_BT):
  """This device's share of a row, chunks 2i and 2i + 1 -> the two chunks that it computes."""
  return exchange(spread, x_BT, lambda c: (c // 2, owner(spread.n, c)))


def home(spread, x_BT):
  """The chunks that this device computed -> its share of the row."""
  return exchange(spread, x_BT, lambda c: (owner(spread.n, c), c // 2))


def exchange(spread, x_BT, route):
  """Send the first half of the tokens, an even chunk c, by route(c) = (from, to); the other too."""
  if spread.n == 1:
    return x_BT
  halves = jnp.split(x_BT, 2, 1)
  routes = [[route(c) for c in range(parity, 2 * spread.n, 2)] for parity in (0, 1)]
  send = lambda x, pairs: jax.lax.ppermute(x, 'sequence', pairs)
  return jnp.concatenate([send(x, pairs) for x, pairs in zip(halves, routes, strict=True)], 1)


def gathered(spread, x_BT):
  """Shares of a row -> the row."""
  if spread.n == 1:
    return x_BT
  return jax.lax.all_gather(x_BT, 'sequence', axis=1, tiled=True)


def returned(spread, x_BT):
  """Each device's gradients of the whole row -> the sum of those of this device's share."""
  if spread.n == 1:
    return x_BT
  return jax.lax.psum_scatter(x_BT, 'sequence', scatter_dimension=1, tiled=True)
