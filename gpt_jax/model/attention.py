"""Causal attention: who may look at whom, and the kernels that compute it.

Letters: B batch, T queries, S keys, D width, H query heads, G key/value heads, K head width, M
query heads a key/value head (H = G M).

A kernel that cannot honour what a call asks is refused with the reason; `auto` takes the fastest
that can.
Sources: grouped queries (Ainslie et al. 2023), sliding window (Beltagy et al. 2020), prefix-LM
(Raffel et al. 2019, section 3.2.1), soft-cap (Gemma 2, section 2), QK-norm (Henry et al. 2020;
Dehghani et al. 2023).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model.layers import Norm, dropout, linear, param
from gpt_jax.model.positions import POSITIONS
from gpt_jax.sharding import constrain


class Mask(NamedTuple):
  """Who may look at whom. Orders are places in the row (cache slots), not in a document."""

  t_BT: jax.Array  # order of each query; keys at or before it are visible
  s_BS: jax.Array  # order of each key
  window: int | jax.Array = 0  # a query sees this many keys, itself included; 0 = all before it
  segments: tuple | None = None  # (ids_BT, ids_BS): only keys of the query's document are visible
  prefix: tuple | None = (
    None  # (is_prefix_BT, is_prefix_BS): prefix tokens see each other both ways
  )
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


def xla_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """Plain einsums in the compute dtype, softmax in float32. Honours everything."""
  B, T, H, K = q_BTHK.shape
  q_BTGMK = (q_BTHK * cfg.attention_scale).reshape(B, T, cfg.G, H // cfg.G, K)
  scores_BGMTS = jnp.einsum('BTGMK,BSGK->BGMTS', q_BTGMK, k_BSGK).astype(jnp.float32)
  if cfg.attention_softcap:
    scores_BGMTS = cfg.attention_softcap * jnp.tanh(scores_BGMTS / cfg.attention_softcap)
  bias = POSITIONS[cfg.positions].bias
  if bias is not None:
    bias_BHTS = bias(cfg, mask.t_BT, mask.s_BS)
    scores_BGMTS += bias_BHTS.reshape(bias_BHTS.shape[0], cfg.G, H // cfg.G, *bias_BHTS.shape[2:])
  # Finite, so that a padding query that sees no key gets a uniform average, not NaN.
  scores_BGMTS = jnp.where(mask.visible_BTS()[:, None, None], scores_BGMTS, -1e30)
  weights_BGMTS = jax.nn.softmax(scores_BGMTS, -1).astype(v_BSGK.dtype)
  if key is not None:
    weights_BGMTS = dropout(weights_BGMTS, jnp.float32(cfg.attention_dropout), key)
  return jnp.einsum('BGMTS,BSGK->BTGMK', weights_BGMTS, v_BSGK).reshape(B, T, H, K)


def cudnn_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """cuDNN's fused attention, causal, with an optional static window."""
  window = (mask.window - 1, 0) if mask.window else None
  return jax.nn.dot_product_attention(
    q_BTHK, k_BSGK, v_BSGK, scale=cfg.attention_scale, is_causal=True, local_window_size=window,
    implementation='cudnn',
  )  # fmt: skip


def splash_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """TPU splash attention: causal, windows, documents, soft-cap; interpreted elsewhere."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
  )

  T = q_BTHK.shape[1]
  if mask.window:
    head_mask = splash_attention_mask.LocalMask((T, T), (mask.window - 1, 0), 0)
  else:
    head_mask = splash_attention_mask.CausalMask((T, T))
  block = splash_attention_kernel.BlockSizes(
    **dict.fromkeys(SPLASH_BLOCKS, max(b for b in (128, 256, 384, 512) if T % b == 0)),
    use_fused_bwd_kernel=True,
  )
  kernel = splash_attention_kernel.make_splash_mha(
    mask=splash_attention_mask.MultiHeadMask([head_mask] * cfg.heads),
    block_sizes=block,
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=cfg.attention_softcap or None,
    interpret=jax.default_backend() != 'tpu',
  )
  segments = None
  if mask.segments is not None:
    segments = splash_attention_kernel.SegmentIds(*mask.segments)
  heads_first = lambda x, repeats: jnp.repeat(x.transpose(0, 2, 1, 3), repeats, 1)
  groups = cfg.heads // cfg.G
  q, k, v = (
    heads_first(q_BTHK * cfg.attention_scale, 1),
    heads_first(k_BSGK, groups),
    heads_first(v_BSGK, groups),
  )
  y_BHTK = jax.vmap(kernel)(q, k, v, segments)
  return y_BHTK.transpose(0, 2, 1, 3)


def refusal(kernel, cfg, mask, T):
  """Why `kernel` cannot compute this call, or '' if it can."""
  if kernel == 'xla':
    return ''
  asked = {
    'traced windows (a window_pattern in scanned layers: set model.unroll=on)': isinstance(
      mask.window, jax.Array
    ),
    'alibi': POSITIONS[cfg.positions].bias is not None,
    'attention_dropout': cfg.attention_dropout > 0,
    'a bidirectional prefix': mask.prefix is not None,
    'a cache or other row order': not mask.rows_alone,
  }
  if kernel == 'cudnn':
    asked['document masks'] = mask.segments is not None
    asked['attention_softcap'] = cfg.attention_softcap > 0
    asked[f'dtype {cfg.dtype} (bfloat16 only)'] = cfg.dtype != 'bfloat16'
    asked[f'head width {cfg.K} (a multiple of 8, at most 128, only)'] = cfg.K % 8 > 0 or cfg.K > 128
  if kernel == 'splash':
    asked[f'a row of {T} tokens (multiples of 128 only)'] = T % 128 > 0
    mesh = jax.sharding.get_abstract_mesh()
    asked['a mesh of several devices'] = not mesh.empty and mesh.size > 1
  return ', '.join(what for what, is_asked in asked.items() if is_asked)


def choose_kernel(cfg, mask, T, backend=None):
  """The name of the kernel for this call.

  Raises ValueError when the configured kernel cannot honour it: never a silently wrong mask.
  """
  backend = backend or jax.default_backend()
  if cfg.kernel == 'auto':
    best = FASTEST.get(backend, 'xla')
    return 'xla' if refusal(best, cfg, mask, T) else best
  reason = refusal(cfg.kernel, cfg, mask, T)
  if reason and not mask.rows_alone:  # decoding: one query a row, where no fused kernel applies
    return 'xla'
  if reason:
    raise ValueError(
      f'model.kernel={cfg.kernel} cannot honour {reason}\nfix: set model.kernel=auto or xla'
    )
  return cfg.kernel


class Attention(nnx.Module):
  """Queries, keys, values and output of one layer."""

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
    self.q_norm = Norm(cfg, 'K') if cfg.qk_norm else None
    self.k_norm = Norm(cfg, 'K') if cfg.qk_norm else None

  def __call__(self, x_BTD, mask, positions_BT, cache=None, key=None):
    """Attend within the row, or within a cache that comes back with this call in it.

    `cache` is a dict of k_BSGK and v_BSGK whose slots are row orders: query order t writes slot t.
    """
    q_BTHK = linear('BTD,DHK->BTHK', x_BTD, self.wq_DHK, self.q_bias_HK)
    k_BSGK = linear('BTD,DGK->BTGK', x_BTD, self.wk_DGK, self.k_bias_GK)
    v_BSGK = linear('BTD,DGK->BTGK', x_BTD, self.wv_DGK, self.v_bias_GK)
    if self.q_norm is not None:
      q_BTHK, k_BSGK = self.q_norm(q_BTHK), self.k_norm(k_BSGK)
    rotate = POSITIONS[self.cfg.positions].rotate
    if rotate is not None:
      q_BTHK = rotate(self.cfg, q_BTHK, positions_BT)
      k_BSGK = rotate(self.cfg, k_BSGK, positions_BT)
    q_BTHK = constrain(q_BTHK, 'BTHK')
    if cache is not None:
      cache = write(cache, k_BSGK, v_BSGK, mask.t_BT)
      k_BSGK, v_BSGK = cache['k_BSGK'], cache['v_BSGK']
    kernel = KERNELS[choose_kernel(self.cfg, mask, x_BTD.shape[1])]
    y_BTHK = kernel(self.cfg, q_BTHK, k_BSGK, v_BSGK, mask, key)
    return linear('BTHK,HKD->BTD', y_BTHK, self.wo_HKD, self.o_bias_D), cache


def write(cache, k_BTGK, v_BTGK, t_BT):
  """The cache with this call's keys and values at slots `t_BT[b] = t_BT[b, 0] + (0, 1, ...)`."""
  put = jax.vmap(lambda old, new, start: jax.lax.dynamic_update_slice(old, new, (start, 0, 0)))
  new = dict(k_BSGK=k_BTGK, v_BSGK=v_BTGK)
  return {name: put(old, new[name].astype(old.dtype), t_BT[:, 0]) for name, old in cache.items()}


SPLASH_BLOCKS = (
  'block_q',
  'block_kv',
  'block_kv_compute',
  'block_q_dkv',
  'block_kv_dkv',
  'block_kv_dkv_compute',
)
FASTEST = {'gpu': 'cudnn', 'cuda': 'cudnn', 'tpu': 'splash'}
KERNELS = {'xla': xla_attention, 'cudnn': cudnn_attention, 'splash': splash_attention}
