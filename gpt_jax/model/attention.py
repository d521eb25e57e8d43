"""Causal self-attention: project, normalize, rotate, cache, attend, project.

`xla_attention` is the definition; the kernels of kernels/ compute the same faster, where they can.
Norms of queries and keys are in head_norms.py.

Letters: B batch, T queries, S keys, D width, H query heads, G key/value heads, M query heads per key/value
head (H = G M), K head width.

Source: QK-norm (Henry et al. 2020; Dehghani et al. 2023).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model.head_norms import head_norms
from gpt_jax.model.kernels.choice import FUSED_KERNELS, choose_kernel
from gpt_jax.model.layers import dropout, linear, param
from gpt_jax.model.mask import scores_BGMTS
from gpt_jax.model.positions import POSITIONS
from gpt_jax.sharding import constrain


def xla_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """Plain attention, BTHK: einsums in the compute dtype, softmax in float32. Supports every setting."""
  B, T, H, K = q_BTHK.shape
  q_BTGMK = q_BTHK.reshape(B, T, cfg.G, H // cfg.G, K)
  scores = scores_BGMTS(cfg, q_BTGMK, k_BSGK, mask.t_BT, mask.s_BS)
  # Finite, so that a padding query without visible keys gets a uniform average, not NaN.
  scores = jnp.where(mask.visible_BTS()[:, None, None], scores, -1e30)
  weights_BGMTS = jax.nn.softmax(scores, -1).astype(v_BSGK.dtype)
  if key is not None:
    weights_BGMTS = dropout(weights_BGMTS, jnp.float32(cfg.attention_dropout), key)
  return jnp.einsum('BGMTS,BSGK->BTGMK', weights_BGMTS, v_BSGK).reshape(B, T, H, K)


def attend(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """Attention by the configured kernel, or by the fastest that supports this call."""
  kernel = choose_kernel(cfg, mask, q_BTHK.shape[1])
  fn = xla_attention if kernel == 'xla' else FUSED_KERNELS[kernel].attend
  return fn(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key)


class Attention(nnx.Module):
  """The attention layer: its projections and their order."""

  def __init__(self, cfg):
    self.cfg = cfg
    self.wq_DHK = param(cfg, 'DHK', cfg.matrix_std)
    self.wk_DGK = param(cfg, 'DGK', cfg.matrix_std)
    self.wv_DGK = param(cfg, 'DGK', cfg.matrix_std)
    self.wo_HKD = param(cfg, 'HKD', cfg.projection_std)
    bias = cfg.attention_bias
    self.q_bias_HK = param(cfg, 'HK') if bias else None
    self.k_bias_GK = param(cfg, 'GK') if bias else None
    self.v_bias_GK = param(cfg, 'GK') if bias else None
    self.o_bias_D = param(cfg, 'D') if bias else None
    self.q_norm, self.k_norm = head_norms(cfg)

  def __call__(self, x_BTD, mask, positions_BT, cache=None, key=None, frequencies_k=None):
    """Attend within the row, or within a cache -> (y_BTD, cache with this call's keys and values).

    frequencies_k: RoPE's of this layer; default: those of all layers.
    """
    q_BTHK = linear('BTD,DHK->BTHK', x_BTD, self.wq_DHK, self.q_bias_HK)
    # Keys and values are of this call's tokens (S = T) until the cache adds those before them.
    k_BSGK = linear('BTD,DGK->BTGK', x_BTD, self.wk_DGK, self.k_bias_GK)
    v_BSGK = linear('BTD,DGK->BTGK', x_BTD, self.wv_DGK, self.v_bias_GK)
    if self.q_norm and self.k_norm:
      q_BTHK, k_BSGK = self.q_norm(q_BTHK), self.k_norm(k_BSGK)
    rotate = POSITIONS[self.cfg.positions].rotate
    if rotate is not None:
      q_BTHK = rotate(self.cfg, q_BTHK, positions_BT, frequencies_k)
      k_BSGK = rotate(self.cfg, k_BSGK, positions_BT, frequencies_k)
    q_BTHK = constrain(q_BTHK, 'BTHK')
    k_BSGK, v_BSGK = constrain(k_BSGK, 'BTGK'), constrain(v_BSGK, 'BTGK')
    if cache is not None:
      cache = write_cache(cache, k_BSGK, v_BSGK, mask.t_BT)
      k_BSGK, v_BSGK = (cache[name].swapaxes(1, 2) for name in ('k_BGSK', 'v_BGSK'))
    y_BTHK = attend(self.cfg, q_BTHK, k_BSGK, v_BSGK, mask, key)
    return linear('BTHK,HKD->BTD', y_BTHK, self.wo_HKD, self.o_bias_D), cache


def write_cache(cache, k_BTGK, v_BTGK, t_BT):
  """The cache (k_BGSK, v_BGSK) with row b's keys and values at slots t_BT[b], which are consecutive."""
  write_row = lambda old, new, start: jax.lax.dynamic_update_slice(old, new, (0, start, 0))
  write = jax.vmap(write_row)
  if len(t_BT) == 1:  # vmap would make a scatter: 3 GPU kernels per layer instead of 1
    write = lambda old, new, start_B: jax.lax.dynamic_update_slice(old, new, (0, 0, start_B[0], 0))
  new = dict(k_BGSK=k_BTGK.swapaxes(1, 2), v_BGSK=v_BTGK.swapaxes(1, 2))
  return {name: write(old, new[name].astype(old.dtype), t_BT[:, 0]) for name, old in cache.items()}
