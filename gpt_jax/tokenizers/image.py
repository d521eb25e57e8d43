"""The table of image tokenizers.

pixels is lossless: one code a pixel, for color one of each channel, or one of a palette. patches are
square pieces by their nearest k-means centroid. fsq and vq are autoencoders, trained by a run of
their own (`train.job=image_tokenizer`). codec is a pretrained one (Emu3, Janus, Chameleon), of a folder.
continuous has no codes: patches stay numbers, for a model with a flow head (`model.flow_layers`).
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable

import numpy as np

from gpt_jax.tokenizers import kmeans
from gpt_jax.tokenizers.base import TokenizerKind, load_tokenizer, unpack_arrays
from gpt_jax.tokenizers.image_codes import (
  FILE,
  ClusterTokenizer,
  ContinuousTokenizer,
  ImageTokenizer,
  LearnedImageTokenizer,
  PixelTokenizer,
)
from gpt_jax.tokenizers.patches import to_patches
from gpt_jax.tokenizers.picture_codec import CodecImageTokenizer
from gpt_jax.tokenizers.settings import check_effective, check_fields, not_trained

LEARNED = ('fsq', 'vq')


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """The kind of image tokenizer, and the shape of images."""

  kind: str = ''  # a row of IMAGE_TOKENIZERS; '' = the model knows no images
  path: str = ''  # fsq and vq: run folder of the trained tokenizer; codec: its folder
  height: int = 28  # pixels
  width: int = 28  # pixels
  channels: int = 1  # 1 gray, 3 color
  patch: int = 4  # pixels of a code's side; pixels: 1
  codes: int = 256  # patches, vq, palette: how many there are
  levels: tuple[int, ...] = (8, 6, 5)  # fsq: levels of each number of a code
  values: int = 256  # pixels: gray values, evenly spaced from 0 to 255
  palette: bool = False  # pixels: one of `codes` colors instead of a code a channel
  network_width: int = 64  # fsq, vq: of the vectors on the grid of codes
  network_blocks: int = 2  # fsq, vq: of the encoder; as many of the decoder

  def __post_init__(self):
    kind, learned, patch = self.kind, self.kind in LEARNED, max(self.patch, 1)
    sizes = ('height', 'width', 'patch', 'network_width', 'network_blocks')
    rules = [
      ('kind', kind in ('', *IMAGE_TOKENIZERS), f'give one of {", ".join(IMAGE_TOKENIZERS)}'),
      (
        'path',
        not self.path or learned or kind == 'codec',
        f'only {", ".join(LEARNED)} and codec read a folder',
      ),
      *((name, getattr(self, name) > 0, 'give 1 or more') for name in sizes),
      ('channels', self.channels in (1, 3), 'give 1 for gray or 3 for color'),
    ]
    if kind:
      rules += [
        ('patch', kind != 'pixels' or patch == 1, 'a code is one pixel: set image.patch=1'),
        ('height', self.height % patch == 0, f'give a multiple of image.patch={patch}'),
        ('width', self.width % patch == 0, f'give a multiple of image.patch={patch}'),
        ('codes', self.codes > 1, 'give 2 or more'),
        ('levels', min(self.levels, default=0) > 1, 'give at least one, each 2 or more'),
        ('values', 1 < self.values <= 256, 'give 2 to 256'),
      ]
    check_fields('image', self, rules)
    check_effective('image', self, self.fields_read)

  @property
  def fields_read(self) -> set[str]:
    """The names of the fields that this kind reads; all of them without images."""
    if not self.kind:
      return {field.name for field in dataclasses.fields(ImageConfig)}
    names = {'path', 'height', 'width', 'channels', 'patch', *FIELDS_READ[self.kind]}
    if self.palette:
      names = names - {'values'} | {'codes'}
    if self.kind == 'fsq' and self.codes == math.prod(self.levels):
      names.add('codes')
    return names

  @property
  def shape(self) -> tuple[int, int, int]:
    """Y, X, A of the images."""
    return (self.height, self.width, self.channels)


def autoencoder_config(cfg: ImageConfig):
  """Return the AutoencoderConfig of a config with kind fsq or vq."""
  from gpt_jax.tokenizers.learned.autoencoder import AutoencoderConfig

  return AutoencoderConfig(
    shape=cfg.shape,
    stride=cfg.patch,
    quantizer=cfg.kind,
    levels=tuple(cfg.levels),
    codes=cfg.codes,
    width=cfg.network_width,
    hidden=2 * cfg.network_width,
    blocks=cfg.network_blocks,
  )


def baseline_config(cfg: ImageConfig) -> ImageConfig:
  """Return the config of k-means with as many positions and codes as a learned tokenizer."""
  codes = math.prod(cfg.levels) if cfg.kind == 'fsq' else cfg.codes
  return ImageConfig('patches', '', *cfg.shape, patch=cfg.patch, codes=codes)


def build(cfg: ImageConfig, images: Callable[[], np.ndarray]) -> ImageTokenizer:
  """Make the tokenizer that a config describes.

  `images` returns the training images, uint8 [N, Y, X, A]; only patches and a palette read them.
  Raises FileNotFoundError or ValueError for missing or invalid files.
  """
  return IMAGE_TOKENIZERS[cfg.kind].build(cfg, images)


def load(folder) -> ImageTokenizer:
  """Read what `save` wrote; FileNotFoundError or ValueError if it was altered."""
  return load_tokenizer(folder, 'image', IMAGE_TOKENIZERS)


def _build_clusters(cfg, images):
  patches_NRSC = to_patches(images(), cfg.patch)
  centroids_KC = kmeans.fit(patches_NRSC.reshape(-1, patches_NRSC.shape[-1]), cfg.codes)
  return ClusterTokenizer(cfg.kind, cfg.shape, cfg.patch, centroids_KC)


def _build_pixels(cfg, images):
  return _build_clusters(cfg, images) if cfg.palette else PixelTokenizer(cfg.shape, cfg.values)


def _build_continuous(cfg, images):
  return ContinuousTokenizer(cfg.shape, cfg.patch)


def _build_learned(cfg, _):
  if not cfg.path:
    raise not_trained('image', cfg)
  tokenizer = load(pathlib.Path(cfg.path).expanduser() / 'codec')
  codec_cfg, wanted = tokenizer.codec_cfg, autoencoder_config(cfg)
  for key in ('quantizer', 'shape', 'stride', 'levels' if cfg.kind == 'fsq' else 'codes'):
    has, asked = getattr(codec_cfg, key), getattr(wanted, key)
    if has != asked:
      name = {'quantizer': 'kind', 'stride': 'patch', 'shape': '(height, width, channels)'}
      raise ValueError(
        f'image.path={cfg.path} was trained with image.{name.get(key, key)}={has}, but the config '
        f'says {asked}\nfix: set {has} in the config, or give another path'
      )
  return tokenizer


def _restore_clusters(kind):
  return lambda fields, files: ClusterTokenizer(kind, **fields, **unpack_arrays(files[FILE]))


def _restore_pixels(fields, files):
  return _restore_clusters('pixels')(fields, files) if files else PixelTokenizer(**fields)


def _restore_learned(fields, files):
  from gpt_jax.tokenizers.learned import autoencoder

  return LearnedImageTokenizer(autoencoder.from_json(fields), unpack_arrays(files[FILE]))


def _from_model(cfg, codec_cfg, params):
  """Return the tokenizer of an ImageConfig, an AutoencoderConfig and parameters {path: array}."""
  return LearnedImageTokenizer(codec_cfg, params)


IMAGE_TOKENIZERS = {
  'pixels': TokenizerKind(_build_pixels, _restore_pixels),
  'patches': TokenizerKind(_build_clusters, _restore_clusters('patches')),
  'codec': TokenizerKind(lambda cfg, _: CodecImageTokenizer.open(cfg), lambda f, _: CodecImageTokenizer(**f)),
  'continuous': TokenizerKind(_build_continuous, lambda fields, files: ContinuousTokenizer(**fields)),
  'fsq': TokenizerKind(_build_learned, _restore_learned, _from_model),
  'vq': TokenizerKind(_build_learned, _restore_learned, _from_model),
}
FIELDS_READ = {  # beside path, shape and patch; with a palette `codes` in place of `values`
  'pixels': ('values', 'palette'),
  'patches': ('codes',),
  'codec': (),
  'continuous': (),
  'fsq': ('levels', 'network_width', 'network_blocks'),
  'vq': ('codes', 'network_width', 'network_blocks'),
}
