"""The picture tokenizers of Chameleon and Janus: VQGANs of pictures alone.

That of Chameleon has no decoder in transformers' files: it reads pictures and makes none.

Letters: B pictures, Y X rows and columns, C channels, N M rows times columns.

Source: Esser et al. 2021 (VQGAN); transformers 5, `models/{chameleon,janus}/`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.interop.codecs.picture_layers import conv, group_norm, residual, swish
from gpt_jax.interop.codecs.quantizers import nearest, unit

ANCHOR = 'quantize.embedding.weight'
DEFAULTS = {
  'num_embeddings': 8192,
  'embed_dim': 256,
  'latent_channels': 256,
  'in_channels': 3,
  'base_channels': 128,
  'channel_multiplier': (1, 1, 2, 2, 4),
  'num_res_blocks': 2,
}


class VqganSpec(NamedTuple):
  """The entries of config.json that the computation depends on."""

  codebook_size: int
  embed_dim: int
  latent_channels: int
  in_channels: int
  base_channels: int
  channel_multiplier: tuple
  num_res_blocks: int
  attention_levels: tuple  # resolutions with attention, 0 the finest
  has_attention: bool  # between encoder and codes
  out_channels: int  # 0 = it has no decoder

  @property
  def patch(self) -> int:
    """Pixels of a code's side."""
    return 2 ** (len(self.channel_multiplier) - 1)

  def channels(self, level: int) -> int:
    """Return the channels of a resolution, 0 the finest."""
    return self.base_channels * self.channel_multiplier[level]


def read_chameleon(entries: dict) -> VqganSpec:
  """Return the VqganSpec of Chameleon's tokenizer."""
  side, sides = entries.get('resolution', 512), entries.get('attn_resolutions') or ()
  is_vanilla = entries.get('attn_type', 'vanilla') == 'vanilla'
  levels = range(len(entries.get('channel_multiplier', DEFAULTS['channel_multiplier'])))
  return _read(entries, tuple(l for l in levels if is_vanilla and side // 2**l in sides), is_vanilla, 0)


def read_janus(entries: dict) -> VqganSpec:
  """Return the VqganSpec of Janus's tokenizer."""
  entries = {'embed_dim': 8, 'num_embeddings': 16_384} | entries
  last = len(entries.get('channel_multiplier', DEFAULTS['channel_multiplier'])) - 1
  return _read(entries, (last,), True, entries.get('out_channels', 3))


def _read(entries, levels, has_attention, out_channels):
  if entries.get('double_latent'):
    raise ValueError(
      'config.json has double_latent=True, which is not supported\nfix: use a tokenizer without it'
    )
  fields = [entries.get(name, default) for name, default in DEFAULTS.items()]
  fields = [tuple(value) if isinstance(value, (list, tuple)) else value for value in fields]
  return VqganSpec(*fields, levels, has_attention, out_channels)


def pointwise(p, name, x_BYXC, outputs):
  """Apply a convolution of one pixel."""
  return conv(p, name, x_BYXC, outputs, 1, padding=(0, 0))


def attend(p, name, x_BYXC):
  """Add what each position finds at all others, by one head."""
  B, Y, X, C = x_BYXC.shape
  h_BYXC = group_norm(p, f'{name}.norm', x_BYXC)
  q_BNC, k_BNC, v_BNC = (pointwise(p, f'{name}.{part}', h_BYXC, C).reshape(B, Y * X, C) for part in 'qkv')
  weights_BNM = jax.nn.softmax(jnp.einsum('BNC,BMC->BNM', q_BNC, k_BNC) * C**-0.5, -1)
  y_BYXC = jnp.einsum('BNM,BMC->BNC', weights_BNM, v_BNC).reshape(B, Y, X, C)
  return x_BYXC + pointwise(p, f'{name}.proj_out', y_BYXC, C)


def blocks(spec, p, name, x_BYXC, level, count):
  """Residual blocks of a resolution."""
  for block in range(count):
    x_BYXC = residual(p, f'{name}.block.{block}', x_BYXC, spec.channels(level))
    if level in spec.attention_levels:
      x_BYXC = attend(p, f'{name}.attn.{block}', x_BYXC)
  return x_BYXC


def middle(spec, p, name, x_BYXC):
  """Residual, attention, residual, at the coarsest resolution."""
  C = x_BYXC.shape[-1]
  x_BYXC = residual(p, f'{name}.block_1', x_BYXC, C)
  x_BYXC = attend(p, f'{name}.attn_1', x_BYXC) if spec.has_attention else x_BYXC
  return residual(p, f'{name}.block_2', x_BYXC, C)


def encode(spec: VqganSpec, p, x_BYXC):
  """Normalized pixels float32 [B, Y, X, C] -> codes int32 [B, rows, columns]."""
  x, levels = conv(p, 'encoder.conv_in', x_BYXC, spec.base_channels), len(spec.channel_multiplier)
  for level in range(levels):
    x = blocks(spec, p, f'encoder.down.{level}', x, level, spec.num_res_blocks)
    if level < levels - 1:
      name = f'encoder.down.{level}.downsample.conv'
      x = conv(p, name, x, x.shape[-1], stride=2, padding=(0, 1))
  x = swish(group_norm(p, 'encoder.norm_out', middle(spec, p, 'encoder.mid', x)))
  x = conv(p, 'encoder.conv_out', x, spec.latent_channels)
  x = pointwise(p, 'quant_conv', x, spec.embed_dim)
  return nearest(x.reshape(len(x), -1, spec.embed_dim), embedding(spec, p)).reshape(x.shape[:3])


def decode(spec: VqganSpec, p, codes_BYX):
  """Codes int32 [B, rows, columns] -> normalized pixels float32 [B, Y, X, C]; the vectors have length 1."""
  x = pointwise(p, 'post_quant_conv', unit(embedding(spec, p)[codes_BYX]), spec.latent_channels)
  x = middle(spec, p, 'decoder.mid', conv(p, 'decoder.conv_in', x, spec.channels(-1)))
  levels = len(spec.channel_multiplier)
  for number in range(levels):  # from the coarsest
    level, name = levels - 1 - number, f'decoder.up.{number}'
    x = blocks(spec, p, name, x, level, spec.num_res_blocks + 1)
    if level:
      x = conv(p, f'{name}.upsample.conv', jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), x.shape[-1])
  return conv(p, 'decoder.conv_out', swish(group_norm(p, 'decoder.norm_out', x)), spec.out_channels)


def embedding(spec, p):
  """The codebook [codes, C]."""
  return p(ANCHOR, (spec.codebook_size, spec.embed_dim))
