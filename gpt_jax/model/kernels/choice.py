"""The choice of an attention kernel: what each one supports, and which is fastest where.

A configured kernel that does not support a call is an error that says why; `auto` takes the fastest one
that does. Rows that are spread over devices, or long on a GPU, take one that never holds all scores.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from gpt_jax.cluster.meshes import platform
from gpt_jax.model.kernels import context_parallel, cudnn, splash, tiled_cpu
from gpt_jax.model.kernels.context_parallel import BLOCK, spread_of
from gpt_jax.model.mask import Mask


def choose_kernel(cfg, mask, T, backend=None):
  """Return the name of the kernel for rows of T tokens under this mask.

  Raises ValueError when the configured kernel does not support the call.
  """
  backend = backend or platform()
  if cfg.kernel == 'auto':
    spread = spread_of((1, T, cfg.G, cfg.K)).n > 1
    long = fastest_on(backend) == 'cudnn' and T >= LONG and T % BLOCK == 0
    names = (fastest_on(backend), 'blocks' if spread or long else None, 'xla')
    return next(name for name in names if name and not unsupported_reason(name, cfg, mask, T))
  reason = unsupported_reason(cfg.kernel, cfg, mask, T)
  is_cached = not mask.is_plain_self_attention
  if reason and is_cached and not FUSED_KERNELS[cfg.kernel].is_definition:  # no fused kernel decodes
    return 'xla'
  if reason:
    raise ValueError(f'model.kernel={cfg.kernel} cannot honor {reason}\nfix: set model.kernel=auto or xla')
  return cfg.kernel


def unsupported_reason(kernel, cfg, mask, T):
  """Return why `kernel` cannot compute this call, '' if it can."""
  if kernel == 'xla':
    return ''
  row = FUSED_KERNELS[kernel]
  reasons = {
    'attention_dropout': cfg.attention_dropout > 0 and not row.is_definition,
    'a cache or other row order': not (mask.is_plain_self_attention or row.is_definition),
    **row.limits(cfg, mask, T),
  }
  return ', '.join(reason for reason, applies in reasons.items() if applies)


def fastest_on(backend):
  """Return the name of the fastest kernel of a backend where it supports the call, or None."""
  return next((name for name, kernel in FUSED_KERNELS.items() if backend in kernel.fastest_on), None)


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
  kernel, fastest = choose_kernel(cfg, mask, T, backend), fastest_on(backend)
  reason = unsupported_reason(fastest, cfg, mask, T) if cfg.kernel == 'auto' and fastest else ''
  return f'{kernel} ({fastest} cannot honor {reason})' if reason else kernel


class Kernel(NamedTuple):
  """One fused kernel. A new one is a file and a row of FUSED_KERNELS."""

  attend: Callable  # (cfg, q_BTHK, k_BSGK, v_BSGK, mask, key) -> y_BTHK
  limits: Callable = lambda cfg, mask, T: {}  # -> {what it does not support: whether this call has it}
  fastest_on: tuple = ()  # backends
  is_definition: bool = False  # whether it is another attention than softmax, used for cached keys, too


LONG = 2048  # tokens per row from which blocks move fewer bytes on a GPU than whole scores do
FUSED_KERNELS = {
  'blocks': Kernel(context_parallel.blocks_attention),
  'chunks': Kernel(tiled_cpu.chunks_attention, tiled_cpu.limits, ('cpu',)),
  'cudnn': Kernel(cudnn.cudnn_attention, cudnn.limits, ('gpu', 'cuda')),
  'splash': Kernel(splash.splash_attention, splash.limits, ('tpu',)),
}
