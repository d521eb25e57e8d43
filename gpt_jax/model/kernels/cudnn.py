"""cuDNN's fused attention on NVIDIA GPUs, and a probe of whether this GPU and installation have it."""

import functools

import jax
import jax.numpy as jnp


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
