"""Pictures in their own sizes, for encoders that take any grid of patches (Qwen2-VL, Qwen2.5-VL).

A vector has the row and column of its square behind it: where pictures have grids of their own, positions
follow from these (see Layout.positions3).

Letters: Y X A rows, columns and channels of a picture, S squares, O numbers of an output.
"""

import functools
import pathlib

import numpy as np

from gpt_jax.runs import digests
from gpt_jax.tokenizers import readers
from gpt_jax.tokenizers.processors import Pixels, read_pixels

AREA = (56 * 56, 28 * 28 * 1280)  # least and most pixels, where the processor does not say


class NativeReader(readers.EncoderReader):
  """The outputs of an encoder of pictures of any size, which are multiples of a square."""

  has_cells = True

  @functools.cached_property
  def spec(self):
    """The NativeSpec of the encoder."""
    from gpt_jax.interop.encoders import native

    return native.read_spec(self.config)

  @property
  def feature_width(self) -> int:
    """The numbers of a place: an output, and its row and column."""
    return self.spec.out + 2

  @property
  def grid(self) -> tuple:
    """Each picture has its own."""
    return ()

  @functools.cached_property
  def encoder(self):
    """The weights; errors as of readers.EncoderReader."""
    from gpt_jax.interop.encoders import native

    digests.check_weights(self.path, self.digest, 'encoder')
    return native.load(self.path, self.spec)

  def tiles_of(self, picture) -> tuple[int, int]:
    """Return (0, 0): no picture is cut."""
    return 0, 0

  def cut(self, picture) -> list[np.ndarray]:
    """Return the picture alone."""
    return [picture]

  def _encode(self, items):
    """Return the vectors [S, O + 2] of each picture."""
    from gpt_jax.interop.encoders import native

    pixels, square = Pixels(*self.pixels), self.spec.side * self.spec.square
    result = []
    for picture in items:
      rows, columns = (size // square for size in picture.shape[:2])
      cells_S2 = np.stack(np.indices((rows, columns)), -1).reshape(-1, 2)
      vectors_SO = native.run(self.encoder, pixels.normalize(picture))
      result.append(np.concatenate([vectors_SO, cells_S2.astype(np.float32)], 1))
    return result


def families() -> list[str]:
  """Return the model_types of encoders of pictures of any size."""
  from gpt_jax.interop.encoders import native

  return [*native.FAMILIES]


def picture_preparation(folder: pathlib.Path, spec) -> list:
  """Return the fields of Pixels of the processor in a folder; ValueError for that of another encoder."""
  from gpt_jax.interop.encoders import native

  family, saved = native.FAMILIES[spec.family], readers.read_processor(folder) or {}
  expected = {
    'patch_size': spec.side,
    'merge_size': spec.square,
    'temporal_patch_size': dict(spec.sizes)['N'],
  }
  for key, value in expected.items():
    if saved.get(key, native.SIZES[key.replace('merge', 'spatial_merge')]) != value:
      raise ValueError(
        f'{folder}: {key}={saved.get(key)} of the processor is not {value}, as config.json has it\n'
        'fix: restore preprocessor_config.json'
      )
  size = saved.get('size') or {}
  least, most = (
    saved.get(old) or size.get(new) or default
    for old, new, default in zip(
      ('min_pixels', 'max_pixels'), ('shortest_edge', 'longest_edge'), AREA, strict=True
    )
  )
  plain = {key: value for key, value in saved.items() if key not in ('size', 'crop_size')}
  pixels = read_pixels(plain, folder / readers.PROCESSOR, (0, 0), Pixels(family.mean, family.deviation))
  area = (spec.side * spec.square, least, most)
  return [*map(list, pixels[:2]), *pixels._replace(area=area)[2:]]
