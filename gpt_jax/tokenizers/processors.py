"""What processors of transformers do: how a picture is prepared, and how media stand in a text.

`Pixels` is read from preprocessor_config.json: resize, crop in the center or cut in tiles, rescale,
normalize. A picture in tiles is one array: rows of tiles, and below them the whole picture. `Places` says
which tokens of an imported model stand for a picture or a sound; `expand` writes them into a text.

Letters: Y X rows and columns, A channels.

Source: transformers 5, `image_processing_backends.py` (PilBackend), `models/*/processing_*.py`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SCALE = 1 / 255
BILINEAR, BICUBIC = 2, 3  # of Pillow


class Pixels(NamedTuple):
  """How pictures become the inputs of an encoder."""

  mean: tuple  # by channel, of pixels between 0 and 1
  deviation: tuple
  resample: int = BICUBIC  # of Pillow: how pictures are resized
  shorter: int = 0  # pixels of the shorter side before the center is cut out; 0 = resized to the whole
  longer: int = 0  # pixels of the longer side before tiles are cut; 0 = no tiles
  sizes: tuple = ()  # (Y, X), of which the best is padded to and cut in tiles; () = no tiles
  area: tuple = ()  # (side of a square, least, most pixels): resized to whole squares; () = not
  scale: float = 0.0  # factor on pixels from 0 to 255; 0 = 1/255

  def normalize(self, image: np.ndarray) -> np.ndarray:
    """uint8 [Y, X, A] -> float32 of about mean 0 and deviation 1, as in transformers bit for bit."""
    mean, deviation = np.float32(self.mean), np.float32(self.deviation)
    scaled = (image.astype(np.float64) * (self.scale or SCALE)).astype(np.float32)
    return (scaled - mean) / deviation


def read_pixels(saved: dict, where, size: tuple[int, int], defaults: Pixels, is_exact: bool = True) -> Pixels:
  """Read preprocessor_config.json -> Pixels. size: (Y, X) of the encoder's inputs.

  Raises ValueError for a preparation that is not known. Pictures of another size are refused, too, or (not
  is_exact) resized to that of the encoder.
  """
  refuse = lambda cause: ValueError(
    f'{where}: {cause}\nfix: use a processor that resizes, crops, rescales and normalizes pictures to {size}'
  )
  for key in ('do_resize', 'do_rescale', 'do_normalize'):
    if not saved.get(key, True) and (is_exact or key != 'do_resize'):
      raise refuse(f'{key}=false is not supported')
  for key in ('do_pan_and_scan', 'do_image_splitting', 'do_pad'):
    if saved.get(key) and is_exact and not saved.keys() & {'max_image_size', 'image_grid_pinpoints'}:
      raise refuse(f'{key}=true: pictures cut in parts or padded are not supported')
  if not defaults.scale and not math.isclose(saved.get('rescale_factor', SCALE), SCALE):
    raise refuse(f'rescale_factor={saved["rescale_factor"]} is not 1/255')
  mean, deviation = (
    tuple(map(float, saved.get(key, value)))
    for key, value in (('image_mean', defaults.mean), ('image_std', defaults.deviation))
  )
  resample = saved.get('resample', defaults.resample)
  if 'image_grid_pinpoints' in saved and is_exact:
    actual = (_size(saved.get('size', size)), _size(saved.get('crop_size') or size))
    if actual != (tuple(size),) * 2:
      raise refuse(f'size={actual[0]} with crop_size={actual[1]} gives other tiles')
    return Pixels(mean, deviation, resample, sizes=tuple(map(tuple, saved['image_grid_pinpoints'])))
  if 'max_image_size' in saved:
    side, longer = saved['max_image_size'].get('longest_edge'), saved.get('size', {}).get('longest_edge')
    if not saved.get('do_image_splitting', True) or (side, side) != tuple(size) or not longer:
      raise refuse(f'max_image_size={saved["max_image_size"]} without splitting is not supported')
    return Pixels(mean, deviation, resample, 0, longer)
  if not saved.get('do_center_crop'):
    if (actual := _size(saved.get('size', size))) != tuple(size) and is_exact:
      raise refuse(f'size={saved.get("size")} gives pictures of {actual}')
    return Pixels(mean, deviation, resample)
  crop = _size(saved.get('crop_size', size))
  shorter = saved.get('size', min(size))
  shorter = shorter.get('shortest_edge', 0) if isinstance(shorter, dict) else shorter
  if crop != tuple(size) or not isinstance(shorter, int) or shorter < max(crop):
    if not is_exact:
      return Pixels(mean, deviation, resample)
    raise refuse(f'size={saved.get("size")} with crop_size={saved.get("crop_size")} gives other pictures')
  return Pixels(mean, deviation, resample, shorter, scale=defaults.scale)


def _size(value):
  """Return (Y, X) of a size as files write it, None for one without both."""
  if isinstance(value, dict):
    side = value.get('shortest_edge')
    return (value['height'], value['width']) if 'height' in value else None if side is None else (side, side)
  return (value, value) if isinstance(value, int) else tuple(value)


@dataclasses.dataclass(frozen=True)
class Places:
  """How pictures or sounds stand in the texts of an imported model."""

  token: str  # one for each vector, as in <image>
  slot: str = ''  # stands for a whole item in a chat template and in prompts; '' = the token
  before: str = ''  # text in front of the tokens of an item
  after: str = ''  # text behind them
  last: str = ''  # text behind the last item of a prompt; '' = texts begin as the tokenizer begins them
  end: str = ''  # ends a prompt
  tile: str = ''  # text in front of the tokens of a tile, with {row} and {column}
  most: int = 0  # tiles that keep all their vectors: more are resized to so many; 0 = any
  mask: str = 'causal'  # prefix = the whole prompt sees itself both ways; items = each item sees itself so

  @property
  def mark(self) -> str:
    """What stands for a whole item."""
    return self.slot or self.token

  def spell(self, count: int, tiles: tuple[int, int] = (0, 0)) -> str:
    """Return the text of an item of so many vectors; tiles: its rows and columns, (0, 0) = it is not cut."""
    rows, columns = tiles if self.tile else (0, 0)
    tokens = self.token * (count // (rows * columns + 1))
    name = lambda row, column: self.tile.format(row=row + 1, column=column + 1)
    parts = [''.join(f'{name(r, c)}{tokens}' for c in range(columns)) + '\n' for r in range(rows)]
    return f'{"".join(parts)}{chr(10) * (rows > 0)}{self.before}{tokens}{self.after}'


def expand(text: str, places: dict[str, Places], items: dict[str, Iterator[tuple]]) -> str:
  """Write out the marks of media in a text. items: of each kind (number of vectors, tiles) of its items.

  Raises ValueError where a text has more marks than there are items.
  """
  kinds = {place.mark: kind for kind, place in places.items()}
  pattern = '|'.join(map(re.escape, kinds))

  def write(match):
    kind = kinds[match[0]]
    if (item := next(items[kind], None)) is None:
      raise ValueError(
        f'a text has more {match[0]} than it has media\nfix: give a file for each, or leave the mark out'
      )
    return places[kind].spell(*item)

  return re.sub(pattern, write, text) if kinds else text
