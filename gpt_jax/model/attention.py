"""Causal attention: queries, keys, values and output, and which kernel computes it.

Letters: as in scores.py, which says who may look at whom; D width.

A kernel that cannot honor what a call asks is refused with the reason; `auto` takes the fastest
that can, and for rows that are spread over devices, or long on a GPU, one that never holds all
scores.
Sources: QK-norm (Henry et al. 2020; Dehghani et al. 2023).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.cluster.meshes import platform
from gpt_jax.model.kernels.context_parallel import BLOCK, blocks_attention, spread_of
from gpt_jax.model.kernels.splash import splash_attention
from gpt_jax.model.kernels.tiled_cpu import chunks_attention
from gpt_jax.model.layers import Norm, dropout, linear, param
from gpt_jax.model.mask import Mask, scores_BGMTS
from gpt_jax.model.positions import POSITIONS
from gpt_jax.sharding import constrain


def xla_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """Plain einsums in the compute dtype, softmax in float32. Honors everything."""
  B, T, H, K = q_BTHK.shape
  q_BTGMK = q_BTHK.reshape(B, T, cfg.G, H // cfg.G, K)
  scores = scores_BGMTS(cfg, q_BTGMK, k_BSGK, mask.t_BT, mask.s_BS)
  # Finite, so that a padding query that sees no key gets a uniform average, not NaN.
  scores = jnp.where(mask.visible_BTS()[:, None, None], scores, -1e30)
  weights_BGMTS = jax.nn.softmax(scores, -1).astype(v_BSGK.dtype)
  if key is not None:
    weights_BGMTS = dropout(weights_BGMTS, jnp.float32(cfg.attention_dropout), key)
  return jnp.einsum('BGMTS,BSGK->BTGMK', weights_BGMTS, v_BSGK).reshape(B, T, H, K)


def cudnn_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """cuDNN's fused attention, causal, with an optional static window."""
  window = (mask.window - 1, 0) if mask.window else None
  return jax.nn.dot_product_attention(
    q_BTHK,
    k_BSGK,
    v_BSGK,
    scale=cfg.attention_scale,
    is_causal=True,
    local_window_size=window,
    implementation='cudnn',
  )


@functools.cache
def cudnn_obstacle():
  """Why the GPU of this process cannot run cuDNN's attention, '' if it can or there is none.

  Asked of the device and not of version numbers: a tiny forward and backward pass is compiled.
  """
  device = jax.local_devices()[0]
  if device.platform != 'gpu':  # compiling for hardware that is elsewhere
    return ''
  capability = str(getattr(device, 'compute_capability', ''))
  major = capability.partition('.')[0]
  if not major.isdecimal() or int(major) < 8:
    return f'compute capability {capability} (8.0 or more only)'
  loss = lambda x: jax.nn.dot_product_attention(x, x, x, is_causal=True, implementation='cudnn').sum()
  try:
    jax.jit(jax.grad(loss)).lower(jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)).compile()
  except (RuntimeError, ValueError, NotImplementedError) as error:  # as jax says it has no cuDNN
    return f'this installation ({str(error).strip().splitlines()[0]})'
  return ''


def refusal(kernel, cfg, mask, T):
  """Why `kernel` cannot compute this call, or '' if it can."""
  if kernel == 'xla':
    return ''
  n, mesh = spread_of((1, T, cfg.G, cfg.K)).n, jax.sharding.get_abstract_mesh()
  asked = {'attention_dropout': cfg.attention_dropout > 0, 'a cache or other row order': not mask.rows_alone}
  if kernel == 'chunks':
    asked[f'dtype {cfg.dtype} (float32 only)'] = cfg.dtype != 'float32'
    asked[f'a mesh of {mesh.size} devices'] = not mesh.empty and mesh.size > 1
  elif kernel != 'blocks':
    traced = 'traced windows (a window_pattern in scanned layers: set model.unroll=on)'
    asked[traced] = isinstance(mask.window, jax.Array)
    asked['alibi'] = POSITIONS[cfg.positions].bias is not None
    asked['a bidirectional prefix'] = mask.prefix is not None
  if kernel == 'cudnn':
    asked[cudnn_obstacle()] = bool(cudnn_obstacle())
    asked['document masks'] = mask.segments is not None
    asked['attention_softcap'] = cfg.attention_softcap > 0
    asked[f'dtype {cfg.dtype} (bfloat16 only)'] = cfg.dtype != 'bfloat16'
    asked[f'head width {cfg.K} (a multiple of 8, at most 128, only)'] = cfg.K % 8 > 0 or cfg.K > 128
    asked[f'rows spread over {n} devices (mesh.sequence)'] = n > 1
  if kernel == 'splash':
    multiple = 128 * (2 * n if n > 1 else 1)  # of 128 in each of a device's two chunks
    asked[f'a row of {T} tokens (multiples of {multiple} only)'] = T % multiple > 0
  return ', '.join(what for what, is_asked in asked.items() if is_asked)


def choose_kernel(cfg, mask, T, backend=None):
  """The name of the kernel for this call.

  Raises ValueError when the configured kernel cannot honor it: never a silently wrong mask.
  """
  backend = backend or platform()
  if cfg.kernel == 'auto':
    spread = spread_of((1, T, cfg.G, cfg.K)).n > 1
    long = FASTEST.get(backend) == 'cudnn' and T >= LONG and T % BLOCK == 0
    choices = (FASTEST.get(backend), 'blocks' if spread or long else None, 'xla')
    return next(name for name in choices if name and not refusal(name, cfg, mask, T))
  reason = refusal(cfg.kernel, cfg, mask, T)
  if reason and not mask.rows_alone:  # decoding: one query a row, where no fused kernel applies
    return 'xla'
  if reason:
    raise ValueError(f'model.kernel={cfg.kernel} cannot honor {reason}\nfix: set model.kernel=auto or xla')
  return cfg.kernel


def explained(cfg, entries, T, backend=None):
  """Which kernel a batch with these entries gets, and why no faster one: 'xla (cudnn cannot ...)'.

  entries: names, such as 'segment_ids_BT'. Rows of T tokens, on the mesh in force.
  """
  backend, windows = backend or platform(), set(cfg.windows())
  traced = len(windows) > 1 and cfg.unroll != 'on'
  mask = Mask(None, None, jnp.int32(0) if traced else max(windows))
  pair = lambda name: () if name in entries else None
  mask = mask._replace(segments=pair('segment_ids_BT'), prefix=pair('prefix_BT'))
  kernel, fastest = choose_kernel(cfg, mask, T, backend), FASTEST.get(backend)
  reason = refusal(fastest, cfg, mask, T) if cfg.kernel == 'auto' and fastest else ''
  return f'{kernel} ({fastest} cannot honor {reason})' if reason else kernel


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

    `cache` is a dict of k_BGSK and v_BGSK whose slots are row orders: query order t writes slot t.
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
    k_BSGK, v_BSGK = constrain(k_BSGK, 'BTGK'), constrain(v_BSGK, 'BTGK')
    if cache is not None:
      cache = write(cache, k_BSGK, v_BSGK, mask.t_BT)
      k_BSGK, v_BSGK = (cache[name].swapaxes(1, 2) for name in ('k_BGSK', 'v_BGSK'))
    kernel = KERNELS[choose_kernel(self.cfg, mask, x_BTD.shape[1])]
    y_BTHK = kernel(self.cfg, q_BTHK, k_BSGK, v_BSGK, mask, key)
    return linear('BTHK,HKD->BTD', y_BTHK, self.wo_HKD, self.o_bias_D), cache


def write(cache, k_BTGK, v_BTGK, t_BT):
  """The cache with this call's keys and values at slots `t_BT[b] = t_BT[b, 0] + (0, 1, ...)`."""
  put_row = lambda old, new, start: jax.lax.dynamic_update_slice(old, new, (0, start, 0))
  put = jax.vmap(put_row)
  if len(t_BT) == 1:  # of which vmap makes a scatter: 3 kernels a layer on a GPU where one will do
    put = lambda old, new, start_B: jax.lax.dynamic_update_slice(old, new, (0, 0, start_B[0], 0))
  new = dict(k_BGSK=k_BTGK.swapaxes(1, 2), v_BGSK=v_BTGK.swapaxes(1, 2))
  put_new = lambda name, old: put(old, new[name].astype(old.dtype), t_BT[:, 0])
  return {name: put_new(name, old) for name, old in cache.items()}


LONG = 2048  # tokens of a row from which blocks move fewer bytes on a GPU than whole scores do
FASTEST = {'cpu': 'chunks', 'gpu': 'cudnn', 'cuda': 'cudnn', 'tpu': 'splash'}
KERNELS = {
  'xla': xla_attention,
  'blocks': blocks_attention,
  'chunks': chunks_attention,
  'cudnn': cudnn_attention,
  'splash': splash_attention,
}
