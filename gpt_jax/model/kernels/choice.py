"""The choice of an attention kernel: what each one supports, and which is fastest where.

A configured kernel that does not support a call is an error that says why; `auto` takes the fastest one
that does. Rows that are spread over devices, or long on a GPU, take one that never holds all scores.
"""

import jax
import jax.numpy as jnp

from gpt_jax.cluster.meshes import platform
from gpt_jax.model.kernels.context_parallel import BLOCK, blocks_attention, spread_of
from gpt_jax.model.kernels.cudnn import cudnn_attention, cudnn_obstacle
from gpt_jax.model.kernels.splash import splash_attention
from gpt_jax.model.kernels.tiled_cpu import chunks_attention
from gpt_jax.model.mask import Mask
from gpt_jax.model.positions import POSITIONS


def choose_kernel(cfg, mask, T, backend=None):
  """Return the name of the kernel for rows of T tokens under this mask.

  Raises ValueError when the configured kernel does not support the call.
  """
  backend = backend or platform()
  if cfg.kernel == 'auto':
    spread = spread_of((1, T, cfg.G, cfg.K)).n > 1
    long = FASTEST.get(backend) == 'cudnn' and T >= LONG and T % BLOCK == 0
    names = (FASTEST.get(backend), 'blocks' if spread or long else None, 'xla')
    return next(name for name in names if name and not unsupported_reason(name, cfg, mask, T))
  reason = unsupported_reason(cfg.kernel, cfg, mask, T)
  if reason and not mask.is_plain_self_attention:  # decoding: no fused kernel applies to single queries
    return 'xla'
  if reason:
    raise ValueError(f'model.kernel={cfg.kernel} cannot honor {reason}\nfix: set model.kernel=auto or xla')
  return cfg.kernel


def unsupported_reason(kernel, cfg, mask, T):
  """Return why `kernel` cannot compute this call, '' if it can."""
  if kernel == 'xla':
    return ''
  n, mesh = spread_of((1, T, cfg.G, cfg.K)).n, jax.sharding.get_abstract_mesh()
  reasons = {
    'attention_dropout': cfg.attention_dropout > 0,
    'a cache or other row order': not mask.is_plain_self_attention,
  }
  if kernel == 'chunks':
    reasons[f'dtype {cfg.dtype} (float32 only)'] = cfg.dtype != 'float32'
    reasons[f'a mesh of {mesh.size} devices'] = not mesh.empty and mesh.size > 1
  elif kernel != 'blocks':
    traced = 'traced windows (a window_pattern in scanned layers: set model.unroll=on)'
    reasons[traced] = isinstance(mask.window, jax.Array)
    reasons['alibi'] = POSITIONS[cfg.positions].bias is not None
    reasons['a bidirectional prefix'] = mask.prefix is not None
  if kernel == 'cudnn':
    reasons[cudnn_obstacle()] = bool(cudnn_obstacle())
    reasons['document masks'] = mask.segments is not None
    reasons['attention_softcap'] = cfg.attention_softcap > 0
    reasons[f'dtype {cfg.dtype} (bfloat16 only)'] = cfg.dtype != 'bfloat16'
    reasons[f'head width {cfg.K} (a multiple of 8, at most 128, only)'] = cfg.K % 8 > 0 or cfg.K > 128
    reasons[f'rows spread over {n} devices (mesh.sequence)'] = n > 1
  if kernel == 'splash':
    multiple = 128 * (2 * n if n > 1 else 1)  # 128 in each of a device's two chunks
    reasons[f'a row of {T} tokens (multiples of {multiple} only)'] = T % multiple > 0
  return ', '.join(reason for reason, applies in reasons.items() if applies)


def describe_choice(cfg, entries, T, backend=None):
  """Return the kernel of a batch and why not a faster one: 'xla (cudnn cannot honor ...)'.

  entries: names of the batch's arrays, such as 'segment_ids_BT'. T: tokens per row, on the current mesh.
  """
  backend, windows = backend or platform(), set(cfg.windows())
  is_traced = len(windows) > 1 and cfg.unroll != 'on'
  pair = lambda name: () if name in entries else None
  mask = Mask(
    t_BT=None,
    s_BS=None,
    window=jnp.int32(0) if is_traced else max(windows),
    segments=pair('segment_ids_BT'),
    prefix=pair('prefix_BT'),
  )
  kernel, fastest = choose_kernel(cfg, mask, T, backend), FASTEST.get(backend)
  reason = unsupported_reason(fastest, cfg, mask, T) if cfg.kernel == 'auto' and fastest else ''
  return f'{kernel} ({fastest} cannot honor {reason})' if reason else kernel


LONG = 2048  # tokens per row from which blocks move fewer bytes on a GPU than whole scores do
FASTEST = {'cpu': 'chunks', 'gpu': 'cudnn', 'cuda': 'cudnn', 'tpu': 'splash'}
FUSED_KERNELS = {
  'blocks': blocks_attention,
  'chunks': chunks_attention,
  'cudnn': cudnn_attention,
  'splash': splash_attention,
}
