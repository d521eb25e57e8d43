"""Join the vectors of a picture's tiles: LLaVA-NeXT and LLaVA-OneVision.

The whole picture comes first, then its tiles as one grid, row by row, without what pads it. Ones, which no
encoder gives, end a row: the projector's newline.

Letters: T vectors of a tile, D numbers of one, Y X rows and columns of a grid, P places, C numbers of one.

Source: transformers 5.23, `models/{llava_next,llava_onevision}/modeling_*.py`, `pack_image_features`.
"""

import math

import numpy as np

from gpt_jax.model.continuous import MIXED
from gpt_jax.tokenizers import readers

RESIZED = 1.1  # times the side of the most vectors: from here on a picture is resized


class NextReader(readers.EncoderReader):
  """The outputs of an encoder on tiles."""

  def join(self, picture, tiles) -> np.ndarray:
    """Return the vectors [P, D] of a prepared picture; tiles: those [T, D] of each, the whole last."""
    grid_YXD = tile_grid(tiles, self.tiles_of(picture), picture.size_before)
    return np.concatenate([tiles[-1], with_newlines(grid_YXD)])


class OneVisionReader(readers.EncoderReader):
  """The outputs of an encoder on tiles, with what the projector `llava_onevision` mixes side by side.

  One of several pictures is not cut: it is padded to a square.
  """

  @property
  def feature_width(self) -> int:
    """The numbers of a place: vectors with a weight each."""
    return MIXED * (super().feature_width + 1)

  @property
  def form_of_several(self) -> tuple:
    """The form of pictures that are not alone in their document."""
    pixels = readers.Pixels(*self.pixels)
    color = tuple(int(value * 255) for value in pixels.mean)
    return (*readers.picture_size(self.spec), pixels.resample, 0, 0, (), (), color)

  def join(self, picture, tiles) -> np.ndarray:
    """Return the places [P, C] of a prepared picture; tiles: vectors [T, D] each, the whole picture last."""
    side = math.isqrt(len(tiles[-1]))
    whole = mix(tiles[-1].reshape(side, side, -1), (side, side)).reshape(side * side, -1)
    if len(tiles) == 1:
      return np.concatenate([whole, np.ones((1, whole.shape[1]), np.float32)])
    grid_YXD = tile_grid(tiles, self.tiles_of(picture), picture.size_before)
    rows, columns, _ = grid_YXD.shape
    ratio = math.sqrt(rows * columns / (self.places.most * side**2))
    size = (int(rows // ratio), int(columns // ratio)) if ratio > RESIZED else (rows, columns)
    return np.concatenate([whole, with_newlines(mix(grid_YXD, size))])


def tile_grid(tiles, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
  """Return the vectors [Y, X, D] of a picture from border to border.

  tiles: vectors [T, D] of each, and of the whole picture behind them. grid: rows and columns of tiles. size:
  the (Y, X) of the picture before.
  """
  (rows, columns), side = grid, math.isqrt(len(tiles[0]))
  picture = np.stack(tiles[:-1]).reshape(rows, columns, side, side, -1).transpose(0, 2, 1, 3, 4)
  picture = picture.reshape(rows * side, columns * side, -1)
  down, across = (n * side for n in grid)
  if size[1] / size[0] > across / down:
    border = (down - int(round(size[0] * (across / size[1]), 7))) // 2
    return picture[border : down - border]
  border = (across - int(round(size[1] * (down / size[0]), 7))) // 2
  return picture[:, border : across - border]


def with_newlines(grid_YXD: np.ndarray) -> np.ndarray:
  """Return the rows of a grid one after another, each with ones behind it: [P, D]."""
  ended = np.pad(grid_YXD, ((0, 0), (0, 1), (0, 0)), constant_values=1)
  return ended.reshape(-1, grid_YXD.shape[2])


def mix(grid_YXD: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Return what a grid of this size (Y, X) takes from another one: in a place four vectors with weights.

  Their weighted mean is bilinear interpolation, without antialiasing, as in torch.
  """
  (rows_Y2, down_Y2), (columns_X2, across_X2) = map(_neighbors, grid_YXD.shape[:2], size)
  vectors = grid_YXD[rows_Y2[:, None, :, None], columns_X2[None, :, None, :]]
  weights = down_Y2[:, None, :, None] * across_X2[None, :, None, :]
  return np.concatenate([vectors, weights[..., None]], -1).astype(np.float32).reshape(*size, -1)


def _neighbors(length, new):
  """Return (indices, weights) [new, 2] of the two places between which each new place lies."""
  at = np.maximum((np.arange(new) + 0.5) * (length / max(1, new)) - 0.5, 0)  # a line of pixels has no rows
  first = at.astype(int)
  indices = np.stack([first, np.minimum(first + 1, length - 1)], 1)
  return indices, np.stack([1 - (at - first), at - first], 1)
