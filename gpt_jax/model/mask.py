"""Who may look at whom, and how much a query likes a key: what all attention kernels agree on.

Letters: B batch, T queries, S keys, H query heads, G key/value heads, K head width, M query heads
a key/value head (H = G M).

Sources: grouped queries (Ainslie et al. 2023), sliding window (Beltagy et al. 2020), prefix-LM
(Raffel et al. 2019, section 3.2.1), soft-cap (Gemma 2, section 2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.model.positions import POSITIONS


class Tokens(NamedTuple):
  """What a mask asks of tokens, be they queries or keys."""

  order_BT: jax.Array
  segment_BT: jax.Array | None
  is_prefix_BT: jax.Array | None


class Mask(NamedTuple):
  """Who may look at whom. Orders are places in the row (cache slots), not in a document."""

  t_BT: jax.Array  # order of each query; keys at or before it are visible
  s_BS: jax.Array  # order of each key
  window: int | jax.Array = 0  # a query sees this many keys, itself included; 0 = all before it
  segments: tuple | None = None  # (ids_BT, ids_BS): only keys of the query's document are visible
  prefix: tuple | None = None  # (is_prefix_BT, is_prefix_BS): prefix tokens see each other both ways
  rows_alone: bool = True  # T == S and both orders are 0, 1, 2, ...: what fused kernels assume

  def visible_BTS(self):
    """Boolean mask, True where the query may look at the key."""
    distance_BTS = self.t_BT[:, :, None] - self.s_BS[:, None, :]
    visible_BTS = distance_BTS >= 0
    if isinstance(self.window, jax.Array):  # one of several windows, chosen by the scan over layers
      visible_BTS &= (distance_BTS < self.window) | (self.window == 0)
    elif self.window:
      visible_BTS &= distance_BTS < self.window
    if self.prefix is not None:
      visible_BTS |= self.prefix[0][:, :, None] & self.prefix[1][:, None, :]
    if self.segments is not None:
      visible_BTS &= self.segments[0][:, :, None] == self.segments[1][:, None, :]
    return visible_BTS

  def sides(self):
    """(queries, keys), each Tokens: the mask as pieces that can be cut and sent."""
    segments, prefix = self.segments or (None, None), self.prefix or (None, None)
    return Tokens(self.t_BT, segments[0], prefix[0]), Tokens(self.s_BS, segments[1], prefix[1])

  @classmethod
  def between(cls, queries, keys, window):
    """The mask between any of a row's queries and any of its keys (Tokens)."""
    pair = lambda a, b: None if a is None else (a, b)
    segments = pair(queries.segment_BT, keys.segment_BT)
    prefix = pair(queries.is_prefix_BT, keys.is_prefix_BT)
    return cls(queries.order_BT, keys.order_BT, window, segments, prefix, False)


def scores_BGMTS(cfg, q_BTGMK, k_BSGK, t_BT, s_BS, head=0):
  """Scores before the mask, float32; `head` is the first of these heads among all of cfg.heads."""
  q_BTGMK = q_BTGMK * cfg.attention_scale
  scores_BGMTS = jnp.einsum('BTGMK,BSGK->BGMTS', q_BTGMK, k_BSGK).astype(jnp.float32)
  if cfg.attention_softcap:
    scores_BGMTS = cfg.attention_softcap * jnp.tanh(scores_BGMTS / cfg.attention_softcap)
  bias = POSITIONS[cfg.positions].bias
  if bias is not None:
    G, M = scores_BGMTS.shape[1:3]
    bias_BHTS = jax.lax.dynamic_slice_in_dim(bias(cfg, t_BT, s_BS), head, G * M, 1)
    scores_BGMTS += bias_BHTS.reshape(bias_BHTS.shape[0], G, M, *bias_BHTS.shape[2:])
  return scores_BGMTS
