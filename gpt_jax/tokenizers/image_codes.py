"""Image tokenizers: uint8 images of one shape <-> codes in reading order.

Letters: N images, Y X A rows, columns and channels of pixels, P positions of codes, Q codebooks,
C values of a patch, K codes.
"""

import dataclasses
import functools

import numpy as np

from gpt_jax.tokenizers import kmeans
from gpt_jax.tokenizers.base import MediaTokenizer, pack_arrays
from gpt_jax.tokenizers.patches import from_patches, to_patches

FILE = 'image.safetensors'
BATCH = 256  # images that a learned tokenizer takes at a time
BLOCK = 4096  # images whose patches are held as float32 at a time


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
    """Return the shape and the patch size."""
    return {'shape': list(self.shape), 'patch': self.patch}

  def encode(self, images_NYXA: np.ndarray) -> np.ndarray:
    """uint8 [N, Y, X, A] -> codes int32 [N, P, Q]; ValueError for another shape or dtype."""
    return self._encode(self._images(images_NYXA))

  def decode(self, codes_NPQ: np.ndarray) -> np.ndarray:
    """Codes [N, P, Q] -> uint8 [N, Y, X, A]; ValueError for codes out of range."""
    return self._decode(self.checked_codes(codes_NPQ, None, self.positions))

  def features(self, images_NYXA: np.ndarray) -> np.ndarray:
    """Return the pixels of each patch from -1 to 1, float32 [N, P, feature_width]: continuous input."""
    patches_NRSC = to_patches(self._images(images_NYXA), self.patch)
    patches_NPC = patches_NRSC.reshape(-1, self.positions, self.feature_width)
    return patches_NPC.astype(np.float32) / np.float32(127.5) - np.float32(1)

  def decode_features(self, patches_NPC: np.ndarray) -> np.ndarray:
    """Invert `features`: float32 [N, P, feature_width] -> uint8 [N, Y, X, A], clipped."""
    pixels_NPC = np.clip(np.round((np.asarray(patches_NPC, np.float32) + 1) * 127.5), 0, 255)
    return from_patches(pixels_NPC.astype(np.uint8).reshape(-1, *self.grid, self.feature_width), self.patch)

  def reconstruct(self, images_NYXA: np.ndarray) -> np.ndarray:
    """Return the images as their codes give them back, uint8 [N, Y, X, A]."""
    return self.decode(self.encode(images_NYXA))

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
    """Return the shape and the number of values."""
    return {'shape': list(self.shape), 'values': self.values}

  def files(self):
    """Return none: the fields are all of the content."""
    return {}

  def _encode(self, images_NYXA):
    shape = (len(images_NYXA), self.positions, self.shape[2])
    flat_NPQ = images_NYXA.reshape(shape).astype(np.int32)
    return (flat_NPQ * (self.values - 1) + 127) // 255

  def _decode(self, codes_NPQ):
    gray = np.round(np.arange(self.values) * (255 / (self.values - 1))).astype(np.uint8)
    return gray[codes_NPQ].reshape(-1, *self.shape)


class ContinuousTokenizer(ImageTokenizer):
  """No codes: an image is its patches as numbers, which a flow head (model/flow.py) makes."""

  def __init__(self, shape, patch: int):
    super().__init__('continuous', shape, patch, ())

  def files(self):
    """Return none: the fields are all of the content."""
    return {}

  def reconstruct(self, images_NYXA):
    """Return the images as their patches give them back: unchanged."""
    return self.decode_features(self.features(images_NYXA))

  def _encode(self, _):
    raise ValueError('image.kind=continuous has no codes\nfix: use its features, or a tokenizer with codes')

  _decode = _encode


class ClusterTokenizer(ImageTokenizer):
  """The nearest of K centroids for each patch (patches), or for each pixel (pixels, a palette)."""

  def __init__(self, kind, shape, patch, centroids_KC):
    super().__init__(kind, shape, patch, (len(centroids_KC),))
    self.centroids_KC = centroids_KC  # float32, pixels 0 to 255

  def files(self):
    """Return the centroids."""
    return {FILE: pack_arrays({'centroids_KC': self.centroids_KC})}

  def _encode(self, images_NYXA):
    codes_NPQ = np.empty((len(images_NYXA), self.positions, 1), np.int32)
    for start in range(0, len(images_NYXA), BLOCK):
      flat_NC = to_patches(images_NYXA[start : start + BLOCK], self.patch).reshape(-1, self.feature_width)
      codes = kmeans.assign(flat_NC, self.centroids_KC)
      codes_NPQ[start : start + BLOCK] = codes.reshape(-1, self.positions, 1)
    return codes_NPQ

  def _decode(self, codes_NPQ):
    pixels_KC = np.clip(np.round(self.centroids_KC), 0, 255).astype(np.uint8)
    patches_NPC = pixels_KC[codes_NPQ[..., 0]]
    return from_patches(patches_NPC.reshape(-1, *self.grid, self.feature_width), self.patch)


class LearnedImageTokenizer(ImageTokenizer):
  """A trained autoencoder: fsq or vq."""

  def __init__(self, codec_cfg, params: dict[str, np.ndarray]):
    super().__init__(codec_cfg.quantizer, codec_cfg.shape, codec_cfg.stride, (codec_cfg.codebook,))
    self.codec_cfg = codec_cfg
    self.params = {path: np.asarray(array) for path, array in params.items()}

  def fields(self):
    """Return the config of the autoencoder."""
    saved = dataclasses.asdict(self.codec_cfg)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in saved.items()}

  def files(self):
    """Return the parameters of the autoencoder."""
    return {FILE: pack_arrays(self.params)}

  @functools.cached_property
  def _coder(self):
    from gpt_jax.tokenizers.learned.coder import Coder

    return Coder(self.codec_cfg, self.params, BATCH, is_pixels=True)

  def _encode(self, images_NYXA):
    return self._coder.encode(images_NYXA)[..., None]

  def _decode(self, codes_NPQ):
    return self._coder.decode(codes_NPQ[..., 0])
