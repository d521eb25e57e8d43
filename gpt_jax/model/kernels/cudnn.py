"""cuDNN's fused attention on NVIDIA GPUs, and a probe of whether this GPU and installation have it."""

import functools

import jax
import jax.numpy as jnp

from gpt_jax.model.kernels.context_parallel import spread_of
from gpt_jax.model.positions import POSITIONS


def cudnn_attention(cfg, q_BTHK, k_BSGK, v_BSGK, mask, key=None):
  """Causal attention by cuDNN, BTHK, with an optional static window."""
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
  """Return why this process's GPU cannot run cuDNN attention, '' if it can or there is no GPU.

  Version numbers don't tell: a tiny forward and backward pass is compiled.
  """
  device = jax.local_devices()[0]
  if device.platform != 'gpu':  # compiling for another machine's hardware
    return ''
  capability = str(getattr(device, 'compute_capability', ''))
  major = capability.partition('.')[0]
  if not major.isdecimal() or int(major) < 8:
    return f'compute capability {capability} (8.0 or more only)'
  loss = lambda x: jax.nn.dot_product_attention(x, x, x, is_causal=True, implementation='cudnn').sum()
  try:
    jax.jit(jax.grad(loss)).lower(jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)).compile()
  except (RuntimeError, ValueError, NotImplementedError) as error:  # how jax reports a missing cuDNN
    return f'this installation ({str(error).strip().splitlines()[0]})'
  return ''


def limits(cfg, mask, T):
  """Return what this kernel does not support: {reason: whether this call has it}."""
  n = spread_of((1, T, cfg.G, cfg.K)).n
  return fixed_mask_limits(cfg, mask) | {
    cudnn_obstacle(): bool(cudnn_obstacle()),
    'document masks': mask.segments is not None,
    'attention_softcap': cfg.attention_softcap > 0,
    f'dtype {cfg.dtype} (bfloat16 only)': cfg.dtype != 'bfloat16',
    f'head width {cfg.K} (a multiple of 8, at most 128, only)': cfg.K % 8 > 0 or cfg.K > 128,
    f'rows spread over {n} devices (mesh.sequence)': n > 1,
  }


def fixed_mask_limits(cfg, mask):
  """Return the limits of kernels that other people wrote: causal masks with a static window alone."""
  traced = 'traced windows (a layer_pattern in scanned layers: set model.unroll=on)'
  return {
    traced: isinstance(mask.window, jax.Array),
    'alibi': POSITIONS[cfg.positions].bias is not None,
    'a bidirectional prefix': mask.prefix is not None,
  }
