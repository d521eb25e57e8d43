"""Attention masks and scores: the definition that every attention kernel must reproduce.

Letters: B batch, T queries, S keys, H query heads, G key/value heads, M = H / G, K head width.

Sources: grouped queries (Ainslie et al. 2023), sliding window (Beltagy et al. 2020), prefix-LM (Raffel et al.
2019, section 3.2.1), soft-cap (Gemma 2, section 2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.model.positions import POSITIONS


class Mask(NamedTuple):
  """Which keys each query attends to. Orders are indices in the row (cache slots); B may be 1."""

  t_BT: jax.Array  # order of each query; keys at or before it are visible
  s_BS: jax.Array  # order of each key
  window: int | jax.Array = 0  # a query sees this many keys, itself included; 0 = all before it
  segments: tuple | None = None  # (ids_BT, ids_BS): only keys of the query's document are visible
  prefix: tuple | None = None  # (groups_BT, groups_BS): tokens of a group but 0 see each other both ways
  is_plain_self_attention: bool = True  # T == S and both orders are 0, 1, 2, ...: fused kernels need it

  def visible_BTS(self):
    """Boolean mask, True where the query attends to the key."""
    distance_BTS = self.t_BT[:, :, None] - self.s_BS[:, None, :]
    visible_BTS = distance_BTS >= 0
    if isinstance(self.window, jax.Array):  # traced: the scan over layers picks one of several
      visible_BTS &= (distance_BTS < self.window) | (self.window == 0)
    elif self.window:
      visible_BTS &= distance_BTS < self.window
    if self.prefix is not None:
      group_BT, group_BS = self.prefix
      visible_BTS |= (group_BT[:, :, None] == group_BS[:, None]) & group_BT.astype(bool)[:, :, None]
    if self.segments is not None:
      visible_BTS &= self.segments[0][:, :, None] == self.segments[1][:, None, :]
    return visible_BTS


def scores_BGMTS(cfg, q_BTGMK, k_BSGK, t_BT, s_BS, first_head=0):
  """Unmasked scores, float32: scaled q.k, soft-capped, plus the position bias.

  first_head: the index, among all of cfg.heads, of the first head in q_BTGMK.
  """
  q_BTGMK = q_BTGMK * cfg.attention_scale
  scores_BGMTS = jnp.einsum('BTGMK,BSGK->BGMTS', q_BTGMK, k_BSGK).astype(jnp.float32)
  if cfg.attention_softcap:
    scores_BGMTS = cfg.attention_softcap * jnp.tanh(scores_BGMTS / cfg.attention_softcap)
  bias = POSITIONS[cfg.positions].bias
  if bias is not None:
    G, M = scores_BGMTS.shape[1:3]
    bias_BHTS = jax.lax.dynamic_slice_in_dim(bias(cfg, t_BT, s_BS), first_head, G * M, 1)
    scores_BGMTS += bias_BHTS.reshape(bias_BHTS.shape[0], G, M, *bias_BHTS.shape[2:])
  return scores_BGMTS
