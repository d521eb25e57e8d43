"""An autoencoder with quantized codes: images or log-mel frames <-> integers, a row an item.

Encoder and decoder work on the grid of codes: patches of the input are projected to width D, and
residual blocks mix neighbors (a depthwise window of 3 x 3) and channels (an MLP). A signal in time is
an image one pixel wide.

Letters: B batch, Y X grid of codes or pixels, A channels, J frames, M mel bands, I values of a
patch, P codes of an item, Z code width, K codes, W places of a window, D width, F hidden width.
Sources: blocks as in ConvNeXt (Liu et al. 2022), patches as in ViT (Dosovitskiy et al. 2021).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model import layers as nn
from gpt_jax.tokenizers.learned import quantizers as quantize
from gpt_jax.tokenizers.patches import from_patches, to_patches
from gpt_jax.tokenizers.settings import check_fields

COMMITMENT = 0.25  # weight of the distance to the code (VQ-VAE, van den Oord et al. 2017)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """Input shape, codes and network size."""

  shape: tuple[int, ...] = (28, 28, 1)  # Y, X, A pixels; or J, M frames (any J at run time)
  stride: int = 4  # pixels or frames of a code's side
  quantizer: str = 'fsq'  # a row of QUANTIZERS
  levels: tuple[int, ...] = (8, 6, 5)  # fsq: steps of each number of a code
  codes: int = 256  # vq: entries of the codebook
  code_width: int = 8  # vq: numbers of a code
  width: int = 64  # of the grid's vectors
  hidden: int = 128  # of the MLPs
  blocks: int = 2  # of the encoder; as many of the decoder
  param_dtype: str = 'float32'

  def __post_init__(self):
    sizes = ('stride', 'codes', 'code_width', 'width', 'hidden', 'blocks')
    fits = not any(n % max(self.stride, 1) for n in self.shape[:-1])
    rules = (
      ('quantizer', self.quantizer in QUANTIZERS, f'give one of {", ".join(QUANTIZERS)}'),
      ('shape', len(self.shape) in (2, 3) and min(self.shape) > 0, 'give (Y, X, A) or (J, M)'),
      *((name, getattr(self, name) > 0, 'give 1 or more') for name in sizes),
      ('shape', fits, f'give all but the last as a multiple of stride={self.stride}'),
      ('levels', min(self.levels, default=0) > 1, 'give at least one, each 2 or more'),
    )
    check_fields('autoencoder', self, rules)

  @property
  def in_time(self):
    """Whether the input is frames rather than an image."""
    return len(self.shape) == 2

  @property
  def grid(self):
    """Rows and columns of codes; (codes in time, 1) of a training crop."""
    return tuple(n // self.stride for n in (*self.shape[:-1], self.stride)[:2])

  @property
  def codebook(self):
    """The number of codes."""
    return math.prod(self.levels) if self.quantizer == 'fsq' else self.codes

  @property
  def dims(self):
    """The size of each letter of a parameter's name."""
    patch = self.stride ** (len(self.shape) - 1) * self.shape[-1]
    Z = len(self.levels) if self.quantizer == 'fsq' else self.code_width
    window = 3 ** (len(self.shape) - 1)
    return dict(I=patch, D=self.width, F=self.hidden, Z=Z, K=self.codes, W=window)


def from_json(fields):
  """Return the AutoencoderConfig of a `dataclasses.asdict` read from JSON, which has no tuples."""
  return AutoencoderConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


class Block(nnx.Module):
  """x + MLP(norm(x and its neighbors))."""

  def __init__(self, cfg):
    self.window_WD = nn.param(cfg, 'WD', 0.1)
    self.up_DF = nn.param(cfg, 'DF', cfg.width**-0.5)
    self.up_bias_F = nn.param(cfg, 'F')
    self.down_FD = nn.param(cfg, 'FD', 0.5 * cfg.hidden**-0.5)
    self.down_bias_D = nn.param(cfg, 'D')

  def __call__(self, x_BYXD):
    """Return the grid after this block."""
    window_WD = self.window_WD[...]
    mixed_BYXD = x_BYXD
    for w, near_BYXD in enumerate(neighbors(x_BYXD, len(window_WD))):
      mixed_BYXD = mixed_BYXD + near_BYXD * window_WD[w].reshape(1, 1, 1, -1)
    h_BYXD = nn.rmsnorm(mixed_BYXD, 1e-6)
    h_BYXF = jax.nn.gelu(nn.linear('BYXD,DF->BYXF', h_BYXD, self.up_DF, self.up_bias_F))
    return x_BYXD + nn.linear('BYXF,FD->BYXD', h_BYXF, self.down_FD, self.down_bias_D)


def neighbors(x_BYXD, window):
  """Yield the grid shifted to each place of a window of 3 (in time) or 3 x 3, zeros beyond its edge."""
  Y, X = x_BYXD.shape[1:3]
  side = 0 if window == 3 else 1
  padded = jnp.pad(x_BYXD, ((0, 0), (1, 1), (side, side), (0, 0)))
  for i, j in itertools.product(range(3), range(2 * side + 1)):
    yield padded[:, i : i + Y, j : j + X]


class Autoencoder(nnx.Module):
  """Encoder, quantizer, decoder. `Autoencoder(cfg)` is abstract; `layers.initialize` fills it."""

  def __init__(self, cfg):
    self.cfg = cfg
    dims = cfg.dims
    self.patch_ID = nn.param(cfg, 'ID', dims['I'] ** -0.5)
    self.patch_bias_D = nn.param(cfg, 'D')
    self.encoder = nnx.List([Block(cfg) for _ in range(cfg.blocks)])
    self.code_DZ = nn.param(cfg, 'DZ', cfg.width**-0.5)
    self.code_bias_Z = nn.param(cfg, 'Z')
    self.codebook = Codebook(cfg) if cfg.quantizer == 'vq' else None
    self.grid_ZD = nn.param(cfg, 'ZD', dims['Z'] ** -0.5)
    self.grid_bias_D = nn.param(cfg, 'D')
    self.decoder = nnx.List([Block(cfg) for _ in range(cfg.blocks)])
    self.out_DI = nn.param(cfg, 'DI', 0.5 * cfg.width**-0.5)
    self.out_bias_I = nn.param(cfg, 'I')

  def encode(self, x):
    """Encode x float32 [B, Y, X, A] or [B, J, M] to z_BPZ."""
    if self.cfg.in_time:
      patches_BYXI = x.reshape(len(x), -1, 1, self.cfg.dims['I'])
    else:
      patches_BYXI = to_patches(x, self.cfg.stride)
    h_BYXD = nn.linear('BYXI,ID->BYXD', patches_BYXI, self.patch_ID, self.patch_bias_D)
    for block in self.encoder:
      h_BYXD = block(h_BYXD)
    h_BYXD = nn.rmsnorm(h_BYXD, 1e-6)
    z_BYXZ = nn.linear('BYXD,DZ->BYXZ', h_BYXD, self.code_DZ, self.code_bias_Z)
    return z_BYXZ.reshape(len(x), -1, z_BYXZ.shape[-1])

  def quantize(self, z_BPZ):
    """Return (values of the codes BPZ with straight-through gradients, codes int32 BP) of z."""
    return QUANTIZERS[self.cfg.quantizer].quantize(self, z_BPZ)

  def lookup(self, codes_BP):
    """Return the values BPZ of codes, the input of `decode`."""
    return QUANTIZERS[self.cfg.quantizer].lookup(self, codes_BP)

  def decode(self, z_BPZ):
    """Decode values of codes to x, float32 [B, Y, X, A] or [B, J, M]."""
    cfg = self.cfg
    B, P, Z = z_BPZ.shape
    Y, X = (P, 1) if cfg.in_time else cfg.grid
    z_BYXZ = z_BPZ.reshape(B, Y, X, Z)
    h_BYXD = nn.linear('BYXZ,ZD->BYXD', z_BYXZ, self.grid_ZD, self.grid_bias_D)
    for block in self.decoder:
      h_BYXD = block(h_BYXD)
    h_BYXD = nn.rmsnorm(h_BYXD, 1e-6)
    patches_BYXI = nn.linear('BYXD,DI->BYXI', h_BYXD, self.out_DI, self.out_bias_I)
    if cfg.in_time:
      return patches_BYXI.reshape(B, P * cfg.stride, -1)
    return from_patches(patches_BYXI, cfg.stride)


class Codebook(nnx.Module):
  """A codebook updated by moving averages in `after_update`, without gradients."""

  def __init__(self, cfg):
    self.values_KZ = nn.param(cfg, 'KZ', 1.0)
    self.counts_K = nn.param(cfg, 'K')
    self.sums_KZ = nn.param(cfg, 'KZ')


def loss(model, x):
  """Return (loss, metrics) of the mean squared error over all of x.

  metrics: 'mse', for vq 'commitment'; 'statistics', sums that `after_update` takes ({} for fsq).
  """
  z_BPZ = model.encode(x)
  values_BPZ, codes_BP = model.quantize(z_BPZ)
  mse = jnp.square(model.decode(values_BPZ) - x).mean()
  term, metrics = QUANTIZERS[model.cfg.quantizer].learn(model, z_BPZ, values_BPZ, codes_BP)
  return mse + term, {'mse': mse, **metrics}


def after_update(cfg, params, statistics, key):
  """Return params {path: array} after the codebook's update, which follows an optimizer step."""
  if cfg.quantizer == 'fsq':
    return params
  average = {name: params[f'codebook/{name}'] for name in ('counts_K', 'sums_KZ')}
  values_KZ, average = quantize.vq_update(average, statistics, key)
  new = {'values_KZ': values_KZ, **average}
  return params | {f'codebook/{name}': value for name, value in new.items()}


def _learn_vq(model, z_BPZ, values_BPZ, codes_BP):
  flat_NZ = z_BPZ.reshape(-1, z_BPZ.shape[-1])
  statistics = quantize.vq_statistics(flat_NZ, codes_BP.reshape(-1), model.cfg.codes)
  commitment = jnp.square(z_BPZ - jax.lax.stop_gradient(values_BPZ)).mean()
  return COMMITMENT * commitment, {'commitment': commitment, 'statistics': statistics}


class Quantizer(NamedTuple):
  """The functions of a quantizer."""

  quantize: Callable  # (model, z_BPZ) -> (values_BPZ, codes_BP)
  lookup: Callable  # (model, codes_BP) -> values_BPZ
  learn: Callable  # (model, z, values, codes) -> (term of the loss, metrics with 'statistics')


QUANTIZERS = {
  'fsq': Quantizer(
    quantize=lambda model, z: quantize.fsq(z, model.cfg.levels),
    lookup=lambda model, codes: quantize.fsq_codes(codes, model.cfg.levels),
    learn=lambda *_: (0.0, {'statistics': {}}),
  ),
  'vq': Quantizer(
    quantize=lambda model, z: quantize.vq(z, model.codebook.values_KZ[...]),
    lookup=lambda model, codes: model.codebook.values_KZ[...][codes],
    learn=_learn_vq,
  ),
}
