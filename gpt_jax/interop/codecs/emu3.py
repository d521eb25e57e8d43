"""The picture tokenizer of Emu3: pixels to one code a patch, and codes to pixels.

It is made for clips; a picture is a clip of equal frames, whose spatial layers run once, and of the decoded
clip only the first frame is computed.

Letters: B pictures, T frames, Y X rows and columns, C channels; I O inputs and outputs, L S R widths of a
convolution over frames, rows and columns; N rows times columns, H heads, K width of a head.

Source: Wang et al. 2024 (Emu3, section 2.2); Esser et al. 2021 (VQGAN); transformers 5, `models/emu3/`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.interop.codecs.picture_layers import conv, norm, residual, swish
from gpt_jax.interop.codecs.quantizers import nearest

BATCH_EPS = 1e-5  # of batch norms
ANCHOR = 'quantize.embedding.weight'
DEFAULTS = {
  'codebook_size': 32_768,
  'embed_dim': 4,
  'latent_channels': 4,
  'in_channels': 3,
  'out_channels': 3,
  'temporal_downsample_factor': 4,
  'base_channels': 256,
  'channel_multiplier': (1, 2, 2, 4),
  'num_res_blocks': 2,
  'attn_resolutions': (3,),
  'num_attention_heads': 1,
}


class PictureSpec(NamedTuple):
  """The entries of config.json that the computation depends on."""

  codebook_size: int
  embed_dim: int
  latent_channels: int
  in_channels: int
  out_channels: int
  temporal_downsample_factor: int
  base_channels: int
  channel_multiplier: tuple
  num_res_blocks: int
  attn_resolutions: tuple
  num_attention_heads: int

  @property
  def patch(self) -> int:
    """Pixels of a code's side."""
    return 2 ** (len(self.channel_multiplier) - 1)

  def channels(self, level: int) -> int:
    """Return the channels of a resolution, 0 the finest."""
    return self.base_channels * self.channel_multiplier[level]


def read_spec(entries: dict) -> PictureSpec:
  """Return the PictureSpec of a config.json."""
  fields = {name: entries.get(name, default) for name, default in DEFAULTS.items()}
  return PictureSpec(**{k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in fields.items()})


# ------------------------------------------------------------------------------------------- layers


def linear(p, name, x, outputs):
  """Apply a matrix and a bias to the last axis."""
  y = jnp.einsum('...I,OI->...O', x, p(f'{name}.weight', (outputs, x.shape[-1])))
  return y + p(f'{name}.bias', (outputs,)).reshape((1,) * (y.ndim - 1) + (-1,))


def conv_over_frames(p, name, x_BTYXC, outputs, widths=(3, 3, 3), stride=1):
  """Apply a convolution that is causal over frames."""
  edge = widths[1] // 2
  y = jax.lax.conv_general_dilated(
    x_BTYXC,
    p(f'{name}.conv.weight', (outputs, x_BTYXC.shape[-1], *widths)),
    (stride, 1, 1),
    [(2, 0), (edge, edge), (edge, edge)],
    dimension_numbers=('NDHWC', 'OIDHW', 'NDHWC'),
  )
  return y + p(f'{name}.conv.bias', (outputs,))[None, None, None, None]


def residual_over_frames(p, name, x_BTYXC):
  """Two batch norms, as trained, and convolutions over frames beside the input."""
  y, C = x_BTYXC, x_BTYXC.shape[-1]
  for part in '12':
    names = ('weight', 'bias', 'running_mean', 'running_var')
    scale, bias, mean, variance = (p(f'{name}.norm{part}.{x}', (C,))[None, None, None, None] for x in names)
    y = swish((y - mean) * jax.lax.rsqrt(variance + BATCH_EPS) * scale + bias)
    y = conv_over_frames(p, f'{name}.conv{part}', y, C)
  return x_BTYXC + y


def attend(p, name, norm_name, x_BYXC, heads, codes_BYXC=None):
  """Add what each position finds at all others."""
  B, Y, X, C = x_BYXC.shape
  x_BNC = norm(p, norm_name, x_BYXC, codes_BYXC).reshape(B, Y * X, C)
  parts = (linear(p, f'{name}.{part}_proj', x_BNC, C).reshape(B, Y * X, heads, -1) for part in 'qkv')
  q_BNHK, k_BNHK, v_BNHK = parts
  scores_BHNM = jnp.einsum('BNHK,BMHK->BHNM', q_BNHK, k_BNHK) * (C // heads) ** -0.5
  y_BNHK = jnp.einsum('BHNM,BMHK->BNHK', jax.nn.softmax(scores_BHNM, -1), v_BNHK)
  return x_BYXC + linear(p, f'{name}.out_proj', y_BNHK.reshape(B, Y * X, C), C).reshape(B, Y, X, C)


def middle(p, name, x_BYXC, heads, codes_BYXC=None):
  """Residual, attention, residual, at the coarsest resolution."""
  C = x_BYXC.shape[-1]
  x_BYXC = residual(p, f'{name}.block_1', x_BYXC, C, codes_BYXC)
  x_BYXC = attend(p, f'{name}.attn_1', f'{name}.attn_norm', x_BYXC, heads, codes_BYXC)
  return residual(p, f'{name}.block_2', x_BYXC, C, codes_BYXC)


# --------------------------------------------------------------------------------------------- model


def encode(spec: PictureSpec, p, x_BYXC):
  """Normalized pixels float32 [B, Y, X, C] -> codes int32 [B, rows, columns]."""
  heads, levels = spec.num_attention_heads, len(spec.channel_multiplier)
  x = conv(p, 'encoder.conv_in', x_BYXC, spec.base_channels)
  for level in range(levels):
    name = f'encoder.down_block.down.{level}'
    for block in range(spec.num_res_blocks):
      x = residual(p, f'{name}.block.{block}', x, spec.channels(level))
      if level in spec.attn_resolutions:
        x = attend(p, f'{name}.attn.{block}', f'{name}.attn_norms.{block}', x, heads)
    if level < levels - 1:
      x = conv(p, f'{name}.downsample.conv', x, x.shape[-1], stride=2, padding=(0, 1))
  x = swish(norm(p, 'encoder.norm_out', middle(p, 'encoder.middle_block', x, heads)))
  x = conv(p, 'encoder.conv_out', x, spec.latent_channels)
  x = jnp.repeat(x[:, None], spec.temporal_downsample_factor, 1)
  for n in range(int(math.log2(spec.temporal_downsample_factor))):
    x = swish(conv_over_frames(p, f'encoder.time_conv.{n}.conv', x, spec.latent_channels, (4, 3, 3), 2))
  for n in range(spec.num_res_blocks):
    x = residual_over_frames(p, f'encoder.time_res_stack.{n}', x)
  x = conv_over_frames(p, 'quant_conv', x, spec.embed_dim, (3, 1, 1))[:, 0]
  flat_BNC = x.reshape(len(x), -1, spec.embed_dim)
  return nearest(flat_BNC, embedding(spec, p)).reshape(x.shape[:3])


def decode(spec: PictureSpec, p, codes_BYX):
  """Codes int32 [B, rows, columns] -> normalized pixels float32 [B, Y, X, C]."""
  heads, latent = spec.num_attention_heads, spec.latent_channels
  codes_BTYXC = embedding(spec, p)[codes_BYX][:, None]
  x = conv_over_frames(p, 'post_quant_conv', codes_BTYXC, latent, (3, 1, 1))
  both = jnp.concatenate([x, codes_BTYXC])
  for n in range(spec.num_res_blocks):
    both = residual_over_frames(p, f'decoder.time_res_stack.{n}', both)
  for n in range(int(math.log2(spec.temporal_downsample_factor))):  # of frames alike, the first stays alone
    both = swish(conv_over_frames(p, f'decoder.time_conv.{n}.conv', both, latent))
  x, codes = jnp.split(both[:, 0], 2)
  x = conv(p, 'decoder.conv_in', x, spec.channels(-1))
  x = middle(p, 'decoder.middle_block', x, heads, codes)
  for level in reversed(range(len(spec.channel_multiplier))):
    name = f'decoder.up_block.up.{level}'
    for block in range(spec.num_res_blocks + 1):
      x = residual(p, f'{name}.block.{block}', x, spec.channels(level), codes)
      if level in spec.attn_resolutions:
        x = attend(p, f'{name}.attn.{block}', f'{name}.attn_norms.{block}', x, heads, codes)
    if level:
      x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
      x = conv(p, f'{name}.upsample.conv', x, x.shape[-1])
  return conv(p, 'decoder.conv_out', swish(norm(p, 'decoder.norm_out', x, codes)), spec.out_channels)


def embedding(spec, p):
  """The codebook [codes, C]."""
  return p(ANCHOR, (spec.codebook_size, spec.embed_dim))
