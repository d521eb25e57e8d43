"""Layers of picture tokenizers. They read their tensors by p(name, shape): a dry run lists them all.

Letters: B pictures, Y X rows and columns, C channels; of a convolution I O inputs and outputs, S R widths.

Source: Esser et al. 2021 (VQGAN).
"""

import jax
import jax.numpy as jnp

GROUPS, EPS = 32, 1e-6  # of the norms


def swish(x):
  """x sigmoid(x)."""
  return x * jax.nn.sigmoid(x)


def conv(p, name, x_BYXC, outputs, width=3, stride=1, padding=(1, 1)):
  """Apply a square convolution."""
  w_OISR = p(f'{name}.weight', (outputs, x_BYXC.shape[-1], width, width))
  y = jax.lax.conv_general_dilated(
    x_BYXC, w_OISR, (stride, stride), [padding, padding], dimension_numbers=('NHWC', 'OIHW', 'NHWC')
  )
  return y + p(f'{name}.bias', (outputs,))[None, None, None]


def group_norm(p, name, x_BYXC):
  """Normalize groups of channels, over all positions."""
  B, Y, X, C = x_BYXC.shape
  groups = x_BYXC.reshape(B, Y * X, GROUPS, C // GROUPS)
  groups = groups - groups.mean((1, 3), keepdims=True)
  groups = groups * jax.lax.rsqrt(jnp.square(groups).mean((1, 3), keepdims=True) + EPS)
  scale, bias = (p(f'{name}.{part}', (C,))[None, None, None] for part in ('weight', 'bias'))
  return groups.reshape(B, Y, X, C) * scale + bias


def norm(p, name, x_BYXC, codes_BYXC=None):
  """Normalize; with the vectors of the codes, scale and shift by them (of the decoder)."""
  if codes_BYXC is None:
    return group_norm(p, name, x_BYXC)
  for axis in (1, 2):
    codes_BYXC = jnp.repeat(codes_BYXC, x_BYXC.shape[axis] // codes_BYXC.shape[axis], axis)
  x_BYXC, C = group_norm(p, f'{name}.norm_layer', x_BYXC), x_BYXC.shape[-1]
  scale, shift = (conv(p, f'{name}.conv_{part}', codes_BYXC, C, 1, padding=(0, 0)) for part in 'yb')
  return x_BYXC * scale + shift


def residual(p, name, x_BYXC, outputs, codes_BYXC=None):
  """Two norms and convolutions beside a shortcut."""
  y = conv(p, f'{name}.conv1', swish(norm(p, f'{name}.norm1', x_BYXC, codes_BYXC)), outputs)
  y = conv(p, f'{name}.conv2', swish(norm(p, f'{name}.norm2', y, codes_BYXC)), outputs)
  if x_BYXC.shape[-1] != outputs:
    x_BYXC = conv(p, f'{name}.nin_shortcut', x_BYXC, outputs, 1, padding=(0, 0))
  return x_BYXC + y
