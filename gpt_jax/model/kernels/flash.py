"""Block arithmetic of FlashAttention, shared by the kernels that are written in jax.numpy.

A row's mask is cut into the sides of queries and keys, so that any block of queries can meet any block of
keys; the backward pass recomputes each block's weights from its scores and the saved logarithm of their sum.

Letters: as in mask.py; C tokens of a block.

Source: FlashAttention-2 (Dao 2023, section 2.3 and algorithm 2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.model.mask import Mask, scores_BGMTS

RESIDUALS = 'attention_residuals'  # checkpoint_name of what a remat policy should save of attention


class Tokens(NamedTuple):
  """What a mask reads of tokens, queries or keys."""

  order_BT: jax.Array
  segment_BT: jax.Array | None
  prefix_BT: jax.Array | None


def row_tokens(mask):
  """The Tokens of plain self-attention's rows: queries and keys are the same."""
  segments, prefix = mask.segments or (None, None), mask.prefix or (None, None)
  return Tokens(mask.s_BS, segments[1], prefix[1])


def block_visible(queries, keys, window):
  """Boolean BTS: the mask between some of a row's queries and some of its keys (Tokens)."""
  pair = lambda a, b: None if a is None else (a, b)
  segments = pair(queries.segment_BT, keys.segment_BT)
  prefix = pair(queries.prefix_BT, keys.prefix_BT)
  return Mask(queries.order_BT, keys.order_BT, window, segments, prefix, False).visible_BTS()


def block_scores(cfg, q_BTGMK, k_BSGK, queries, keys, visible_BTS, first_head=0):
  """Masked scores, BGMTS; finite as in xla_attention: beside any visible key their weight is 0."""
  scores = scores_BGMTS(cfg, q_BTGMK, k_BSGK, queries.order_BT, keys.order_BT, first_head)
  return jnp.where(visible_BTS[:, None, None], scores, -1e30)


def block_gradients(score, q_BTGMK, k_BSGK, v_BSGK, dy_BTGMK, delta_BGMT, log_sum_BGMT):
  """A block's part of (dq, dk, dv), the last in float32.

  score: (q, k) -> masked scores. delta_BGMT: sum of dy * y over K. log_sum_BGMT: logarithm of the sum of
  exponentiated scores over all keys.
  """
  scores, pull_back = jax.vjp(score, q_BTGMK, k_BSGK)
  weights_BGMTS = jnp.exp(scores - log_sum_BGMT[..., None])
  dweights_BGMTS = einsum32('BTGMK,BSGK->BGMTS', dy_BTGMK, v_BSGK)
  dq, dk = pull_back(weights_BGMTS * (dweights_BGMTS - delta_BGMT[..., None]))
  dv = einsum32('BGMTS,BTGMK->BSGK', weights_BGMTS.astype(dy_BTGMK.dtype), dy_BTGMK)
  return dq, dk, dv


def output_delta(dy, y):
  """Sum of dy * y over the head width, float32: [..., T, G, M, K] -> [..., G, M, T]."""
  return jnp.einsum('...TGMK,...TGMK->...GMT', dy.astype(jnp.float32), y.astype(jnp.float32))


def einsum32(subscripts, a, b):
  """einsum of operands in their dtype, summed in float32."""
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
