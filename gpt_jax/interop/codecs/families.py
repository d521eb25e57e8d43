"""The families of codecs: config.json -> Spec, the rows of layers of the encoder and the decoder.

Sources: Defossez et al. 2022 (EnCodec); Kumar et al. 2023 (DAC); Defossez et al. 2024 (Moshi, section 3.3:
Mimi); transformers 5, `models/{encodec,dac,mimi}/`.
"""

import math
from typing import NamedTuple

from gpt_jax.interop.codecs.layers import Conv, Lstm, Pointwise, Residual, Snake, Transposed
from gpt_jax.interop.codecs.transformer import Transformer
from gpt_jax.runs.reading import check_types, reading


class Spec(NamedTuple):
  """One codec: everything that its computation depends on but the weights."""

  family: str  # a row of FAMILIES
  rate: int  # Hz
  hop: int  # samples of a position
  books: int
  codes: int  # of a codebook
  width: int  # of the vectors between encoder and decoder
  code_width: int  # of the vectors of a codebook
  encoder: tuple  # of layers
  decoder: tuple
  semantic: int = 0  # codebooks that stand apart from the residual ones (Mimi)
  fills_hop: bool = False  # whether a sound is filled with zeros up to whole positions
  channels: int = 1  # of a sound
  chunk: int = 0  # samples that are encoded at a time, each chunk apart; 0 = all
  stride: int = 0  # samples from chunk to chunk
  normalizes: bool = False  # whether a chunk is divided by its loudness, which the codes do not hold


ENCODEC = {
  'target_bandwidths': (1.5, 3.0, 6.0, 12.0, 24.0),
  'sampling_rate': 24_000,
  'audio_channels': 1,
  'normalize': False,
  'chunk_length_s': None,
  'overlap': None,
  'hidden_size': 128,
  'num_filters': 32,
  'num_residual_layers': 1,
  'upsampling_ratios': (8, 5, 4, 2),
  'norm_type': 'weight_norm',
  'kernel_size': 7,
  'last_kernel_size': 7,
  'residual_kernel_size': 3,
  'dilation_growth_rate': 2,
  'use_causal_conv': True,
  'pad_mode': 'reflect',
  'compress': 2,
  'num_lstm_layers': 2,
  'trim_right_ratio': 1.0,
  'codebook_size': 1024,
  'codebook_dim': None,
  'use_conv_shortcut': True,
}
DAC = {
  'encoder_hidden_size': 64,
  'downsampling_ratios': (2, 4, 8, 8),
  'decoder_hidden_size': 1536,
  'upsampling_ratios': (8, 8, 4, 2),
  'hidden_size': 0,
  'n_codebooks': 9,
  'codebook_size': 1024,
  'codebook_dim': 8,
  'sampling_rate': 16_000,
}

MIMI = {
  'sampling_rate': 24_000,
  'audio_channels': 1,
  'frame_rate': None,
  'hidden_size': 512,
  'num_filters': 64,
  'num_residual_layers': 1,
  'upsampling_ratios': (8, 6, 5, 4),
  'kernel_size': 7,
  'last_kernel_size': 3,
  'residual_kernel_size': 3,
  'dilation_growth_rate': 2,
  'use_causal_conv': True,
  'pad_mode': 'constant',
  'compress': 2,
  'trim_right_ratio': 1.0,
  'codebook_size': 2048,
  'codebook_dim': 256,
  'num_quantizers': 32,
  'num_semantic_quantizers': 1,
  'use_conv_shortcut': False,
  'upsample_groups': 512,
  'num_hidden_layers': 8,
  'intermediate_size': 2048,
  'num_attention_heads': 8,
  'num_key_value_heads': 8,
  'head_dim': None,
  'hidden_act': 'gelu',
  'norm_eps': 1e-5,
  'rope_parameters': None,
  'rope_theta': 10_000.0,
  'sliding_window': 250,
  'attention_bias': False,
}


class Settings:
  """The entries of a config.json as attributes."""

  def __init__(self, entries: dict, defaults: dict):
    self.__dict__.update({name: entries.get(name, default) for name, default in defaults.items()})


def encodec_conv(cfg, name, inputs, outputs, width, stride=1, dilation=1):
  """A convolution that gives a position for each whole or partial stride."""
  total = (width - 1) * dilation + 1 - stride
  before = total if cfg.use_causal_conv else total - total // 2
  sizes = inputs, outputs, width, stride, dilation, (before, total - before)
  return Conv(f'{name}.conv', *sizes, cfg.pad_mode, is_whole=True, norm=has_norm(cfg))


def has_norm(cfg):
  """Whether all outputs of a convolution are normalized together."""
  return getattr(cfg, 'norm_type', '') == 'time_group_norm'


def cut(cfg, stride):
  """Return the outputs that are cut off before and after a transposed convolution of width 2 stride."""
  after = math.ceil(stride * cfg.trim_right_ratio) if cfg.use_causal_conv else stride // 2
  return stride - after, after


def seanet_block(cfg, name, channels, dilation):
  """ELU and a convolution of a few samples, ELU and one of one, beside a shortcut."""
  hidden = channels // cfg.compress
  body = (
    Pointwise('elu'),
    encodec_conv(cfg, f'{name}.block.1', channels, hidden, cfg.residual_kernel_size, dilation=dilation),
    Pointwise('elu'),
    encodec_conv(cfg, f'{name}.block.3', hidden, channels, 1),
  )
  shortcut = (encodec_conv(cfg, f'{name}.shortcut', channels, channels, 1),) if cfg.use_conv_shortcut else ()
  return Residual(body, shortcut)


def numbered(prefix, makers):
  """Call makers with the names of their layers: prefix.0, prefix.1, ..."""
  return tuple(make(f'{prefix}.{number}') for number, make in enumerate(makers))


def seanet_encoder(cfg, middle):
  """Return the layers of the encoder; middle: makers of those before the last convolution."""
  channels, elu = cfg.num_filters, lambda name: Pointwise('elu')
  makers = [lambda n: encodec_conv(cfg, n, cfg.audio_channels, cfg.num_filters, cfg.kernel_size)]
  for ratio in reversed(cfg.upsampling_ratios):
    for j in range(cfg.num_residual_layers):
      makers.append(lambda n, c=channels, j=j: seanet_block(cfg, n, c, cfg.dilation_growth_rate**j))
    makers.append(elu)
    makers.append(lambda n, c=channels, r=ratio: encodec_conv(cfg, n, c, 2 * c, 2 * r, stride=r))
    channels *= 2
  makers += [*middle(channels), elu]
  makers.append(lambda n, c=channels: encodec_conv(cfg, n, c, cfg.hidden_size, cfg.last_kernel_size))
  return numbered('encoder.layers', makers)


def seanet_decoder(cfg, middle):
  """Return the layers of the decoder; middle: makers of those after the first convolution."""
  channels, elu = cfg.num_filters * 2 ** len(cfg.upsampling_ratios), lambda name: Pointwise('elu')
  makers = [lambda n, c=channels: encodec_conv(cfg, n, cfg.hidden_size, c, cfg.kernel_size)]
  makers += middle(channels)
  for ratio in cfg.upsampling_ratios:
    makers.append(elu)
    sizes = channels, channels // 2, 2 * ratio, ratio, cut(cfg, ratio)
    makers.append(lambda n, sizes=sizes: Transposed(f'{n}.conv', *sizes, norm=has_norm(cfg)))
    channels //= 2
    for j in range(cfg.num_residual_layers):
      makers.append(lambda n, c=channels, j=j: seanet_block(cfg, n, c, cfg.dilation_growth_rate**j))
  makers += [elu, lambda n: encodec_conv(cfg, n, cfg.num_filters, cfg.audio_channels, cfg.last_kernel_size)]
  return numbered('decoder.layers', makers)


def read_encodec(entries: dict) -> Spec:
  """Return the Spec of an EnCodec."""
  cfg = Settings(entries, ENCODEC)
  refuse(cfg, ('audio_channels', 1, 2), ('norm_type', 'weight_norm', 'time_group_norm'))
  hop = math.prod(cfg.upsampling_ratios)
  bits = math.ceil(math.log2(cfg.codebook_size))
  books = int(1000 * cfg.target_bandwidths[-1] // (math.ceil(cfg.sampling_rate / hop) * bits))
  lstm = lambda channels: [lambda n: Lstm(f'{n}.lstm', channels, cfg.num_lstm_layers)]
  layers = seanet_encoder(cfg, lstm), seanet_decoder(cfg, lstm)
  code_width = cfg.codebook_dim or cfg.hidden_size
  sizes = cfg.sampling_rate, hop, books, cfg.codebook_size, cfg.hidden_size, code_width
  chunk = int((cfg.chunk_length_s or 0) * cfg.sampling_rate)
  if chunk and (cfg.overlap is None or not 0 <= cfg.overlap <= 0.5):
    raise ValueError(
      f'config.json has overlap={cfg.overlap} with chunk_length_s={cfg.chunk_length_s}\n'
      'fix: use a codec whose chunks overlap by at most half'
    )
  stride = max(1, int((1.0 - (cfg.overlap or 0)) * chunk))
  options = dict(channels=cfg.audio_channels, chunk=chunk, stride=stride, normalizes=bool(cfg.normalize))
  return Spec('encodec', *sizes, *layers, **options)


def dac_unit(name, channels, dilation):
  """Snake and a dilated convolution, Snake and one of one sample."""
  pad = 3 * dilation
  return Residual(
    (
      Snake(f'{name}.snake1', channels),
      Conv(f'{name}.conv1', channels, channels, 7, 1, dilation, (pad, pad)),
      Snake(f'{name}.snake2', channels),
      Conv(f'{name}.conv2', channels, channels, 1),
    )
  )


def dac_units(name, channels):
  """Three units of growing dilation."""
  return tuple(dac_unit(f'{name}.res_unit{i}', channels, d) for i, d in ((1, 1), (2, 3), (3, 9)))


def read_dac(entries: dict) -> Spec:
  """Return the Spec of a DAC."""
  cfg = Settings(entries, DAC)
  channels, pad = cfg.encoder_hidden_size, lambda stride: math.ceil(stride / 2)
  width = cfg.hidden_size or channels * 2 ** len(cfg.downsampling_ratios)
  encoder = [Conv('encoder.conv1', 1, channels, 7, padding=(3, 3))]
  for i, r in enumerate(cfg.downsampling_ratios):
    name = f'encoder.block.{i}'
    conv = Conv(f'{name}.conv1', channels, 2 * channels, 2 * r, r, 1, (pad(r), pad(r)))
    encoder += [*dac_units(name, channels), Snake(f'{name}.snake1', channels), conv]
    channels *= 2
  encoder += [Snake('encoder.snake1', channels), Conv('encoder.conv2', channels, width, 3, padding=(1, 1))]
  channels = cfg.decoder_hidden_size
  decoder = [Conv('decoder.conv1', width, channels, 7, padding=(3, 3))]
  for i, r in enumerate(cfg.upsampling_ratios):
    name = f'decoder.block.{i}'
    grow = Transposed(f'{name}.conv_t1', channels, channels // 2, 2 * r, r, (pad(r), pad(r)))
    decoder += [Snake(f'{name}.snake1', channels), grow, *dac_units(name, channels // 2)]
    channels //= 2
  decoder += [Snake('decoder.snake1', channels), Conv('decoder.conv2', channels, 1, 7, padding=(3, 3))]
  sizes = cfg.sampling_rate, math.prod(cfg.downsampling_ratios), cfg.n_codebooks, cfg.codebook_size
  layers = tuple(encoder), (*decoder, Pointwise('tanh'))
  return Spec('dac', *sizes, width, cfg.codebook_dim, *layers, fills_hop=True)


def read_mimi(entries: dict) -> Spec:
  """Return the Spec of a Mimi."""
  cfg = Settings(entries, MIMI)
  refuse(cfg, ('audio_channels', 1), ('hidden_act', 'gelu'))
  hop, none = math.prod(cfg.upsampling_ratios), lambda channels: []
  rate = math.ceil(cfg.sampling_rate / hop)  # of the convolutions' outputs
  stride = int(rate / (cfg.frame_rate or cfg.sampling_rate / (2 * hop)))
  width, parameters = cfg.hidden_size, cfg.rope_parameters or {}
  head_dim = cfg.head_dim or width // cfg.num_attention_heads
  sizes = (cfg.num_hidden_layers, width, cfg.num_attention_heads, cfg.num_key_value_heads, head_dim)
  sizes += (cfg.intermediate_size, cfg.sliding_window, parameters.get('rope_theta', cfg.rope_theta))
  blocks = lambda name: Transformer(name, *sizes, cfg.norm_eps, cfg.attention_bias)
  down = encodec_conv(cfg, 'downsample', width, width, 2 * stride, stride)._replace(
    mode='replicate', bias=False
  )
  up = Transposed(
    'upsample.conv', width, width, 2 * stride, stride, cut(cfg, stride), cfg.upsample_groups, False
  )
  encoder = (*seanet_encoder(cfg, none), blocks('encoder_transformer'), down)
  decoder = (up, blocks('decoder_transformer'), *seanet_decoder(cfg, none))
  books = cfg.sampling_rate, hop * stride, cfg.num_quantizers, cfg.codebook_size
  return Spec('mimi', *books, width, cfg.codebook_dim, encoder, decoder, cfg.num_semantic_quantizers)


def refuse(cfg, *supported):
  """Raise ValueError for an entry of config.json with none of the values of `supported`, (name, *values)."""
  for name, *values in supported:
    if getattr(cfg, name) not in values:
      raise ValueError(
        f'config.json has {name}={getattr(cfg, name)}, which is not supported\n'
        f'fix: use a codec with {name}={" or ".join(map(str, values))}, such as facebook/encodec_24khz'
      )


FAMILIES = {'encodec': read_encodec, 'dac': read_dac, 'mimi': read_mimi}


def read_spec(entries: dict) -> Spec:
  """Return the Spec of the entries of a config.json; ValueError for another kind of model."""
  kind = entries.get('model_type')
  if kind not in FAMILIES:
    raise ValueError(
      f'config.json has model_type={kind}, not a codec that is known\nfix: use one of {", ".join(FAMILIES)}'
    )
  with reading('config.json', f'the config of {kind}', 'use the one that came with these weights'):
    check_types(entries, {'codebook_size': int, 'sampling_rate': int, 'upsampling_ratios': [int]}, 'it')
    return FAMILIES[kind](entries)
