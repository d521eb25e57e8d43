"""Pictures as ids of an imported model's own vocabulary: the codes of its picture tokenizer (Chameleon).

Codes stand in the places of a picture as text does, and are read: they are not learned and never sampled, as
in transformers, whose files of the tokenizer have no decoder.

Letters: Y X A rows, columns and channels of a picture, P places.
"""

import functools
import pathlib

import numpy as np

from gpt_jax.runs import digests
from gpt_jax.tokenizers import readers
from gpt_jax.tokenizers.processors import Pixels, read_pixels

LANCZOS, FACTOR = 1, 0.0078  # of Chameleon's processor: how pictures are resized, and what pixels are times
SIDE = 512  # pixels
TOKEN_IDS = 'token_ids'  # key of the config: the id of each code


class CodeReader(readers.EncoderReader):
  """The ids of a picture's codes. `config` is that of the picture tokenizer, with the id of each code."""

  @property
  def token_ids(self) -> list[int]:
    """The id of each code."""
    return self.config[TOKEN_IDS]

  @functools.cached_property
  def spec(self):
    """The spec of the picture tokenizer."""
    from gpt_jax.interop.codecs import pictures

    return pictures.read_spec(self.config)

  @property
  def feature_width(self) -> int:
    """A place has one id."""
    return 1

  @property
  def grid(self) -> tuple:
    """The model does not know of rows and columns."""
    return ()

  @property
  def form(self) -> tuple:
    """(Y, X, A) of pictures and how they are resized."""
    side = self.config.get('resolution', SIDE)
    return side, side, self.spec.in_channels, *Pixels(*self.pixels)[2:5]

  @property
  def shapes(self) -> dict[str, tuple]:
    """The shapes of its tensors by their names."""
    from gpt_jax.interop.codecs import pictures

    return pictures.tensors_of(self.spec)

  @functools.cached_property
  def encoder(self):
    """The weights; errors as of readers.EncoderReader."""
    from gpt_jax.interop.codecs import codec, pictures

    digests.check_weights(self.path, self.digest, 'picture tokenizer')
    return codec.read_params(self.path, self.shapes, pictures.ANCHOR)

  def tiles_of(self, picture) -> tuple[int, int]:
    """Return (0, 0): no picture is cut."""
    return 0, 0

  def cut(self, picture) -> list[np.ndarray]:
    """Return the picture alone."""
    return [picture]

  def _encode(self, items):
    """Return the ids int32 [P, 1] of each picture."""
    from gpt_jax.interop.codecs import pictures

    if not items:
      return []
    pixels = np.stack([Pixels(*self.pixels).normalize(picture) for picture in items])
    codes = pictures.run(pictures.encode, self.spec, self.encoder, pixels).reshape(len(items), -1, 1)
    return list(np.asarray(self.token_ids, np.int32)[codes])


def families() -> list[str]:
  """Return the model_types of picture tokenizers."""
  from gpt_jax.interop.codecs import pictures

  return [*pictures.FAMILIES]


def picture_preparation(folder: pathlib.Path, side: int) -> list:
  """Return the fields of Pixels of the processor in a folder; ValueError for other preparations."""
  saved = readers.read_processor(folder) or {}
  saved = {'do_center_crop': True, 'size': {'shortest_edge': SIDE}, 'crop_size': SIDE} | saved
  ones = (1.0, 1.0, 1.0)
  defaults = Pixels(ones, ones, LANCZOS, scale=saved.get('rescale_factor', FACTOR))
  pixels = read_pixels(saved, folder / readers.PROCESSOR, (side, side), defaults)
  return [*map(list, pixels[:2]), *pixels[2:]]
