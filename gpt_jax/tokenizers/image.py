"""Image tokenizers: uint8 images of one shape <-> codes, as rows of one table.

pixels is lossless: a code a pixel, for color one of each channel, or of a palette. patches are
square pieces by their nearest k-means centroid. fsq and vq are autoencoders, trained by a run of
their own (`train.job=image_tokenizer`). `build` makes one from a config, `load` reads what `save`
wrote. Codes are in reading order.

Letters: N images, Y X A rows, columns and channels of pixels, P positions of codes, Q codebooks,
C values of a patch.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.tokenizers import kmeans
from gpt_jax.tokenizers.media_tokenizer import MediaTokenizer, load_media_tokenizer

FILE = 'image.safetensors'
BATCH = 256  # images that a learned tokenizer takes at a time
BLOCK = 4096  # images whose patches are held as float32 at a time
LEARNED = ('fsq', 'vq')


@dataclasses.dataclass(frozen=True)
class ImageConfig:
  """Which image tokenizer, and for which images."""

  kind: str = ''  # a row of IMAGE_TOKENIZERS; '' = the model knows no images
  path: str = ''  # fsq and vq: run folder of the trained tokenizer
  height: int = 28  # pixels
  width: int = 28  # pixels
  channels: int = 1  # 1 gray, 3 color
  patch: int = 4  # pixels of a code's side; pixels: 1
  codes: int = 256  # patches, vq, palette: how many there are
  levels: tuple[int, ...] = (8, 6, 5)  # fsq: steps of each number of a code
  values: int = 256  # pixels: gray values, evenly spaced from 0 to 255
  palette: bool = False  # pixels: one of `codes` colors instead of a code a channel
  network_width: int = 64  # fsq, vq: of the vectors on the grid of codes
  network_blocks: int = 2  # fsq, vq: of the encoder; as many of the decoder

  def __post_init__(self):
    kind, learned = self.kind, self.kind in LEARNED
    self._need(kind in ('', *IMAGE_TOKENIZERS), 'kind', f'give one of {", ".join(IMAGE_TOKENIZERS)}')
    self._need(not self.path or learned, 'path', f'only {" and ".join(LEARNED)} read a folder')
    for key in ('height', 'width', 'patch', 'network_width', 'network_blocks'):
      self._need(getattr(self, key) > 0, key, 'give 1 or more')
    self._need(self.channels in (1, 3), 'channels', 'give 1 for gray or 3 for color')
    if not kind:
      return
    self._need(kind != 'pixels' or self.patch == 1, 'patch', 'a code is one pixel: set image.patch=1')
    for key in ('height', 'width'):
      whole = getattr(self, key) % self.patch == 0
      self._need(whole, key, f'give a multiple of image.patch={self.patch}')
    self._need(self.codes > 1, 'codes', 'give 2 or more')
    self._need(self.levels and min(self.levels) > 1, 'levels', 'give at least one, each 2 or more')
    self._need(1 < self.values <= 256, 'values', 'give 2 to 256')
    self._used('values', kind == 'pixels' and not self.palette)
    self._used('palette', kind == 'pixels')
    self._used('levels', kind == 'fsq')
    self._used('network_width', learned)
    self._used('network_blocks', learned)
    same = kind == 'fsq' and self.codes == math.prod(self.levels)
    self._used('codes', kind in ('patches', 'vq') or self.palette or same)

  def _need(self, ok, key, fix):
    if not ok:
      raise ValueError(f'image.{key}={getattr(self, key)} is not possible\nfix: {fix}')

  def _used(self, key, used):
    default = getattr(type(self), key)
    if not used and getattr(self, key) != default:
      raise ValueError(
        f'image.{key}={getattr(self, key)} has no effect with image.kind={self.kind}\n'
        f'fix: leave image.{key}={default}, or choose another image.kind'
      )

  @property
  def shape(self) -> tuple[int, int, int]:
    """Y, X, A of the images."""
    return (self.height, self.width, self.channels)


class ImageTokenizer(MediaTokenizer):
  """The interface of an image tokenizer; a row of IMAGE_TOKENIZERS makes one."""

  modality = 'image'

  def __init__(self, kind: str, shape: tuple[int, int, int], patch: int, codebooks: tuple[int, ...]):
    self.kind, self.shape, self.patch = kind, tuple(shape), patch
    self.codebooks = tuple(codebooks)
    self.grid = (shape[0] // patch, shape[1] // patch)  # rows and columns of codes
    self.positions = self.grid[0] * self.grid[1]
    self.length = self.positions * len(self.codebooks)
    self.feature_width = patch * patch * shape[2]

  def fields(self):
    """Shape and patch."""
    return {'shape': list(self.shape), 'patch': self.patch}

  def encode(self, images_NYXA: np.ndarray) -> np.ndarray:
    """uint8 [N, Y, X, A] -> codes int32 [N, P, Q]; ValueError for another shape or dtype."""
    return self._encode(self._images(images_NYXA))

  def decode(self, codes_NPQ: np.ndarray) -> np.ndarray:
    """Codes [N, P, Q] -> uint8 [N, Y, X, A]; ValueError for codes that there are not."""
    codes_NPQ = np.asarray(codes_NPQ)
    sizes_Q = np.array(self.codebooks)
    if codes_NPQ.ndim != 3 or codes_NPQ.shape[1:] != (self.positions, len(sizes_Q)):
      raise ValueError(
        f'codes of shape {codes_NPQ.shape} are no images of this tokenizer\n'
        f'fix: give [images, {self.positions}, {len(sizes_Q)}]'
      )
    integers = np.issubdtype(codes_NPQ.dtype, np.integer)
    if not integers or (codes_NPQ < 0).any() or (codes_NPQ >= sizes_Q).any():
      raise ValueError(
        f'codes of type {codes_NPQ.dtype} hold more than the numbers below {self.codebooks}\n'
        'fix: give codes that this tokenizer made, without the offset of the vocabulary'
      )
    return self._decode(codes_NPQ)

  def features(self, images_NYXA: np.ndarray) -> np.ndarray:
    """Pixels of each patch from -1 to 1, float32 [N, P, feature_width]: continuous input."""
    patches_NPC = to_patches(self._images(images_NYXA), self.patch)
    return patches_NPC.astype(np.float32) / np.float32(127.5) - np.float32(1)

  def _encode(self, images_NYXA):
    raise NotImplementedError

  def _decode(self, codes_NPQ):
    raise NotImplementedError

  def _images(self, images_NYXA):
    images_NYXA = np.asarray(images_NYXA)
    if images_NYXA.dtype != np.uint8 or images_NYXA.shape[1:] != self.shape:
      raise ValueError(
        f'images are {images_NYXA.dtype} of shape {images_NYXA.shape}\n'
        f'fix: give uint8 of shape [images, {", ".join(map(str, self.shape))}]'
      )
    return images_NYXA


class PixelTokenizer(ImageTokenizer):
  """One code for each channel of each pixel; exact for images of `values` even steps."""

  def __init__(self, shape, values: int):
    super().__init__('pixels', shape, 1, (values,) * shape[2])
    self.values = values

  def fields(self):
    """Shape and the number of values."""
    return {'shape': list(self.shape), 'values': self.values}

  def files(self):
    """None: the fields say it all."""
    return {}

  def _encode(self, images_NYXA):
    shape = (len(images_NYXA), self.positions, self.shape[2])
    flat_NPQ = images_NYXA.reshape(shape).astype(np.int32)
    return (flat_NPQ * (self.values - 1) + 127) // 255

  def _decode(self, codes_NPQ):
    gray = np.round(np.arange(self.values) * (255 / (self.values - 1))).astype(np.uint8)
    return gray[codes_NPQ].reshape(-1, *self.shape)


class ClusterTokenizer(ImageTokenizer):
  """The nearest of K centroids for each patch (patches), or for each pixel (pixels, a palette)."""

  def __init__(self, kind, shape, patch, centroids_KC):
    super().__init__(kind, shape, patch, (len(centroids_KC),))
    self.centroids_KC = centroids_KC  # float32, pixels 0 to 255

  def files(self):
    """The centroids."""
    return {FILE: pack({'centroids_KC': self.centroids_KC})}

  def _encode(self, images_NYXA):
    codes_NPQ = np.empty((len(images_NYXA), self.positions, 1), np.int32)
    for start in range(0, len(images_NYXA), BLOCK):
      patches_NPC = to_patches(images_NYXA[start : start + BLOCK], self.patch)
      flat_NC = patches_NPC.reshape(-1, self.feature_width)
      codes = kmeans.assign(flat_NC, self.centroids_KC)
      codes_NPQ[start : start + BLOCK] = codes.reshape(-1, self.positions, 1)
    return codes_NPQ

  def _decode(self, codes_NPQ):
    pixels_KC = np.clip(np.round(self.centroids_KC), 0, 255).astype(np.uint8)
    return from_patches(pixels_KC[codes_NPQ[..., 0]], self.shape, self.patch)


class LearnedTokenizer(ImageTokenizer):
  """A trained autoencoder: fsq or vq."""

  def __init__(self, codec_cfg, params: dict[str, np.ndarray]):
    super().__init__(codec_cfg.quantizer, codec_cfg.shape, codec_cfg.stride, (codec_cfg.codebook,))
    self.codec_cfg = codec_cfg
    self.params = {path: np.asarray(array) for path, array in params.items()}

  def fields(self):
    """The autoencoder's config."""
    saved = dataclasses.asdict(self.codec_cfg)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in saved.items()}

  def files(self):
    """The autoencoder's parameters."""
    return {FILE: pack(self.params)}

  @functools.cached_property
  def _compiled(self):
    """encode and decode of one batch, jitted, and the parameters on the device."""
    import jax

    return *_coders(self.codec_cfg), jax.device_put(self.params)

  def _batches(self, fn, items, empty):
    """fn in batches of one size, the last padded: one compilation, and the same codes each time."""
    import jax

    done = [empty]
    for start in range(0, len(items), BATCH):
      batch = items[start : start + BATCH]
      padding = np.zeros((BATCH - len(batch), *batch.shape[1:]), batch.dtype)
      padded = jax.device_put(np.concatenate([batch, padding]))
      # Without it a GPU multiplies in TF32, and codes near the edge of a bin differ from a CPU's.
      with jax.default_matmul_precision('float32'):
        done.append(jax.device_get(fn(self._compiled[2], padded))[: len(batch)])
    return np.concatenate(done)

  def _encode(self, images_NYXA):
    empty = np.zeros((0, self.positions, 1), np.int32)
    return self._batches(self._compiled[0], images_NYXA, empty)

  def _decode(self, codes_NPQ):
    empty = np.zeros((0, *self.shape), np.uint8)
    return self._batches(self._compiled[1], codes_NPQ.astype(np.int32), empty)


@functools.lru_cache(maxsize=16)
def _coders(codec_cfg):
  """(encode, decode) of one batch by parameters, compiled once for all that have this config."""
  import jax
  import jax.numpy as jnp

  from gpt_jax.model import layers as nn
  from gpt_jax.tokenizers.learned import autoencoder

  abstract = autoencoder.Autoencoder(codec_cfg)
  fill = lambda params: nn.map_params(lambda path, _: params[path], abstract)

  @jax.jit
  def encode(params, images_BYXA):
    model = fill(params)
    z_BPZ = model.encode(images_BYXA.astype(jnp.float32) / 127.5 - 1)
    return model.quantize(z_BPZ)[1][..., None]

  @jax.jit
  def decode(params, codes_BPQ):
    model = fill(params)
    x_BYXA = model.decode(model.lookup(codes_BPQ[..., 0]))
    return jnp.clip(jnp.round((x_BYXA + 1) * 127.5), 0, 255).astype(jnp.uint8)

  return encode, decode


def to_patches(images_NYXA: np.ndarray, patch: int) -> np.ndarray:
  """[N, Y, X, A] -> [N, P, C], patches in reading order and pixels in reading order in each."""
  N, Y, X, A = images_NYXA.shape
  pieces = images_NYXA.reshape(N, Y // patch, patch, X // patch, patch, A)
  P = (Y // patch) * (X // patch)
  return pieces.transpose(0, 1, 3, 2, 4, 5).reshape(N, P, patch * patch * A)


def from_patches(patches_NPC: np.ndarray, shape: tuple[int, int, int], patch: int) -> np.ndarray:
  """Inverse of `to_patches`: [N, P, C] -> [N, *shape]."""
  Y, X, A = shape
  pieces = patches_NPC.reshape(-1, Y // patch, X // patch, patch, patch, A)
  return pieces.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *shape)


def pack(arrays: dict[str, np.ndarray]) -> bytes:
  """Arrays as the bytes of a safetensors file: equal arrays give equal bytes."""
  from safetensors.numpy import save

  return save({name: np.ascontiguousarray(a) for name, a in sorted(arrays.items())})


def unpack(content: bytes) -> dict[str, np.ndarray]:
  """Inverse of `pack`; ValueError if it is no such file."""
  from safetensors import SafetensorError
  from safetensors.numpy import load as parse

  try:
    return parse(content)
  except SafetensorError as error:
    raise ValueError(f'{FILE} is damaged: {error}\nfix: restore it, or train anew') from None


def autoencoder_config(cfg: ImageConfig):
  """The AutoencoderConfig that a config with kind fsq or vq asks for."""
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
  """k-means with as many positions and codes as a learned tokenizer: what it has to beat."""
  codes = math.prod(cfg.levels) if cfg.kind == 'fsq' else cfg.codes
  return ImageConfig('patches', '', *cfg.shape, patch=cfg.patch, codes=codes)


def build(cfg: ImageConfig, images: Callable[[], np.ndarray]) -> ImageTokenizer:
  """Make the tokenizer that a config describes.

  `images` returns the training images, uint8 [N, Y, X, A]; only patches and a palette read them.
  Raises FileNotFoundError or ValueError for missing or invalid files.
  """
  return IMAGE_TOKENIZERS[cfg.kind].build(cfg, images)


def load(folder) -> ImageTokenizer:
  """Read what `save` wrote; FileNotFoundError or ValueError if it is not as it was saved."""
  try:
    return load_media_tokenizer(folder, 'image', IMAGE_TOKENIZERS)
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{folder} holds no image tokenizer as it was saved: {type(error).__name__} {error}\n'
      'fix: name a folder with a saved tokenizer, and restore it if a file was altered'
    ) from None


def _build_clusters(cfg, images):
  images_NYXA = images()
  patches_NPC = to_patches(images_NYXA, cfg.patch)
  centroids_KC = kmeans.fit(patches_NPC.reshape(-1, patches_NPC.shape[-1]), cfg.codes)
  return ClusterTokenizer(cfg.kind, cfg.shape, cfg.patch, centroids_KC)


def _build_pixels(cfg, images):
  return _build_clusters(cfg, images) if cfg.palette else PixelTokenizer(cfg.shape, cfg.values)


def _build_learned(cfg, _):
  if not cfg.path:
    raise ValueError(
      f"image.path='' with image.kind={cfg.kind}, which has to be trained first\n"
      'fix: train one with train.job=image_tokenizer, and set image.path to its run folder'
    )
  made = load(pathlib.Path(cfg.path).expanduser() / 'codec')
  codec_cfg, wanted = made.codec_cfg, autoencoder_config(cfg)
  for key in ('quantizer', 'shape', 'stride', 'levels' if cfg.kind == 'fsq' else 'codes'):
    has, asked = getattr(codec_cfg, key), getattr(wanted, key)
    if has != asked:
      name = {'quantizer': 'kind', 'stride': 'patch', 'shape': '(height, width, channels)'}
      raise ValueError(
        f'image.path={cfg.path} was trained with image.{name.get(key, key)}={has}, but the config '
        f'says {asked}\nfix: set {has} in the config, or give another path'
      )
  return made


def _restore_clusters(kind):
  def restore(fields, files):
    return ClusterTokenizer(kind, **fields, **unpack(files[FILE]))

  return restore


def _restore_pixels(fields, files):
  if files:
    return _restore_clusters('pixels')(fields, files)
  return PixelTokenizer(**fields)


def _restore_learned(fields, files):
  from gpt_jax.tokenizers.learned import autoencoder

  return LearnedTokenizer(autoencoder.from_json(fields), unpack(files[FILE]))


class Row(NamedTuple):
  """How a kind is made: from a config and images, from saved content, from a trained model."""

  build: Callable[[ImageConfig, Callable[[], np.ndarray]], ImageTokenizer]
  restore: Callable[[dict, dict[str, bytes]], ImageTokenizer]
  from_model: Any = None  # (ImageConfig, AutoencoderConfig, {path: array}) -> tokenizer; learned


_LEARNED_ROW = Row(
  _build_learned, _restore_learned, lambda cfg, codec_cfg, params: LearnedTokenizer(codec_cfg, params)
)
IMAGE_TOKENIZERS = {
  'pixels': Row(_build_pixels, _restore_pixels),
  'patches': Row(_build_clusters, _restore_clusters('patches')),
  'fsq': _LEARNED_ROW,
  'vq': _LEARNED_ROW,
}
