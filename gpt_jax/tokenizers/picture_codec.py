"""Pictures as the codes of a pretrained picture tokenizer of a folder of transformers.

It is frozen: its weights stay in their folder, whose path and sha256 a tokenizer keeps.

Letters: N images, Y X A rows, columns and channels of pixels, P positions, Q = 1 codebook.
"""

import functools
import math

import numpy as np

from gpt_jax.runs import digests
from gpt_jax.tokenizers import base, readers
from gpt_jax.tokenizers.image_codes import ImageTokenizer
from gpt_jax.tokenizers.processors import SCALE, Pixels

FIX = 'name a folder of Emu3VQVAE, JanusVQVAE or ChameleonVQVAE with config.json and model.safetensors'
HALF = (0.5, 0.5, 0.5)  # mean and deviation of pixels between 0 and 1, where the folder gives none


class CodecImageTokenizer(ImageTokenizer):
  """The picture tokenizer of a folder."""

  def __init__(self, path: str, digest: str, config: dict, pixels, shape):
    """digest: of the weights. config: config.json. shape: Y, X, A.

    pixels: mean and deviation by channel, of pixels times a factor that may follow, 1/255 without one.
    """
    from gpt_jax.interop.codecs import pictures

    self.path, self.digest, self.config, self.pixels = path, digest, config, pixels
    self.spec = pictures.read_spec(config)
    super().__init__('codec', tuple(shape), self.spec.patch, (self.spec.codebook_size,))

  @classmethod
  def open(cls, cfg) -> 'CodecImageTokenizer':
    """Read the folder that an ImageConfig names; ValueError or FileNotFoundError if it does not fit."""
    if not cfg.path:
      raise ValueError(f"image.path='' with image.kind=codec, which reads a folder\nfix: {FIX}")
    folder = readers.find_folder(cfg.path)
    config = base.read_json(folder / readers.CONFIG, FIX, {})
    processor = folder / readers.PROCESSOR
    saved = base.read_json(processor, FIX, {}) if processor.exists() else {}
    pixels = [list(map(float, saved.get(name, HALF))) for name in ('image_mean', 'image_std')]
    factor = saved.get('rescale_factor', SCALE)
    pixels += [] if math.isclose(factor, SCALE) else [factor]
    tokenizer = cls(str(folder), digests.weights_digest(folder), config, pixels, cfg.shape)
    for name, actual, wanted in (
      ('patch', tokenizer.patch, cfg.patch),
      ('channels', tokenizer.spec.in_channels, cfg.channels),
    ):
      if actual != wanted:
        raise ValueError(
          f'image.{name}={wanted}, and the tokenizer in image.path={cfg.path} has {actual}\n'
          f'fix: set image.{name}={actual}'
        )
    return tokenizer

  def fields(self):
    """Return all that the codes depend on, and where the weights are."""
    names = ('path', 'digest', 'config', 'pixels')
    return {name: getattr(self, name) for name in names} | {'shape': list(self.shape)}

  def files(self):
    """Return none: the weights stay where they are."""
    return {}

  @property
  def has_decoder(self) -> bool:
    """Whether it makes pictures, and does not only read them."""
    return self.spec.out_channels > 0

  @property
  def _preparation(self):
    return Pixels(*self.pixels[:2], scale=(*self.pixels[2:], SCALE)[0])

  @functools.cached_property
  def params(self):
    """The weights; ValueError or FileNotFoundError if they are not those that were read before."""
    from gpt_jax.interop.codecs import codec, pictures

    digests.check_weights(self.path, self.digest, 'picture tokenizer')
    return codec.read_params(self.path, pictures.tensors_of(self.spec), pictures.ANCHOR)

  def _encode(self, images_NYXA):
    from gpt_jax.interop.codecs import pictures

    if not len(images_NYXA):
      return np.zeros((0, self.positions, 1), np.int32)
    pixels = self._preparation.normalize(images_NYXA)
    codes = pictures.run(pictures.encode, self.spec, self.params, pixels)
    return codes.reshape(len(codes), self.positions, 1)

  def _decode(self, codes_NPQ):
    from gpt_jax.interop.codecs import pictures

    codes, form = codes_NPQ.reshape(-1, *self.grid), self._preparation
    pixels = pictures.run(pictures.decode, self.spec, self.params, codes)
    pixels = pixels * np.float32(form.deviation) + np.float32(form.mean)
    return np.clip(np.round(pixels * np.float32(1 / form.scale)), 0, 255).astype(np.uint8)
