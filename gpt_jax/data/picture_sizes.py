"""The sizes of pictures for encoders: resized, cut out of the center, or cut in tiles.

Tiles are one array: rows of tiles below each other, and below them the whole picture in one tile.

Letters: Y X A rows, columns and channels of a picture.

Source: transformers 5.23, `models/{idefics3,llava_next,llava_onevision,qwen2_vl}/image_processing_pil_*.py`.
"""

import math

import numpy as np


class Prepared(np.ndarray):
  """A picture that was cut for an encoder, with its (Y, X) before tiles; it is not cut again."""

  def __array_finalize__(self, other):
    self.size_before = getattr(other, 'size_before', ())


def fit(picture, shape, resample=3, shorter=0, longer=0, sizes=(), area=(), border=()):
  """Fit a Pillow image to an encoder -> (uint8 [Y, X, A], list of notes).

  shape: (Y, X, A) of the encoder's input. border: the color that fills a square before it is resized; () =
  no square. The other arguments are the fields of processors.Pixels.
  """
  if area:
    return _whole_squares(picture, shape, resample, *area)
  if sizes:
    return _best_tiles(picture, shape, resample, sizes), []
  if longer:
    return _tiles(picture, shape, resample, longer), []
  picture = _square(picture, border) if border else picture
  notes, size = [], (shape[1], shape[0]) if not shorter else _with_shorter(picture.size, shorter)
  if picture.size != size:
    notes.append(f'resized from {picture.width}x{picture.height}')
    picture = picture.resize(size, resample)
  if size != (shape[1], shape[0]):
    notes.append(f'cut from {size[0]}x{size[1]}')
    left, top = (size[0] - shape[1]) // 2, (size[1] - shape[0]) // 2
    picture = picture.crop((left, top, left + shape[1], top + shape[0]))
  return np.asarray(picture, np.uint8).reshape(shape), notes


def _square(picture, color):
  """Return a picture in the middle of a square of this color."""
  from PIL import Image

  width, height = picture.size
  side = max(width, height)
  square = Image.new(picture.mode, (side, side), color)
  square.paste(picture, ((side - width) // 2, (side - height) // 2))
  return square


def _whole_squares(picture, shape, resample, side, least, most):
  """Resize a picture to whole squares, with pixels within limits, as Qwen2-VL does."""
  width, height = picture.size
  if max(width, height) > 200 * min(width, height):
    raise ValueError(
      f'a picture of {width}x{height} pixels is more than 200 times as long as wide\nfix: cut it, or drop it'
    )
  down, across = (round(size / side) * side for size in (height, width))
  ratio = math.sqrt(height * width / most)
  if down * across > most:
    down, across = (max(side, math.floor(size / ratio / side) * side) for size in (height, width))
  elif down * across < least:
    ratio = math.sqrt(least / (height * width))
    down, across = (math.ceil(size * ratio / side) * side for size in (height, width))
  notes = [f'resized from {width}x{height}'] if (across, down) != picture.size else []
  return np.asarray(picture.resize((across, down), resample), np.uint8).reshape(down, across, shape[2]), notes


def _tiles(picture, shape, resample, longer):
  """Cut a picture in tiles as Idefics3 does: first resized to its longer side, then to whole tiles."""
  (rows, columns, _), (width, height) = shape, picture.size
  width, height = _with_longer(width, height, longer)
  picture = picture.resize((width, height), resample)
  if width >= height:
    across = -(-width // columns) * columns
    down = -(-int(across / (width / height)) // rows) * rows
  else:
    down = -(-height // rows) * rows
    across = -(-int(down * (width / height)) // columns) * columns
  picture = picture.resize((across, down), resample)
  if (down, across) == (rows, columns):
    return np.asarray(picture, np.uint8).reshape(shape)
  canvas = _canvas(picture, shape, (down, across), resample)
  canvas[:down] = np.asarray(picture).reshape(down, across, -1)
  return canvas


def _best_tiles(picture, shape, resample, sizes):
  """Cut a picture in tiles as LLaVA-NeXT does: resized into the best of some sizes, with black borders.

  What the model leaves out of the borders depends on the size before.
  """
  width, height = picture.size
  down, across = best_size(height, width, sizes)
  scale_x, scale_y = across / width, down / height
  if scale_x < scale_y:
    inner = across, min(math.ceil(height * scale_x), down)
  else:
    inner = min(math.ceil(width * scale_y), across), down
  canvas = _canvas(picture, shape, (down, across), resample)
  left, top = (across - inner[0]) // 2, (down - inner[1]) // 2
  pixels = np.asarray(picture.resize(inner, resample)).reshape(inner[1], inner[0], -1)
  canvas[top : top + inner[1], left : left + inner[0]] = pixels
  prepared = canvas.view(Prepared)
  prepared.size_before = height, width
  return prepared


def best_size(height, width, sizes):
  """Return the (Y, X) that keeps most pixels of a picture, and of these the smallest."""

  def rank(size):
    scale = min(size[1] / width, size[0] / height)
    kept = min(int(width * scale) * int(height * scale), width * height)
    return -kept, size[0] * size[1]

  return min(sizes, key=rank)


def _canvas(picture, shape, size, resample):
  """Return zeros for the tiles of a picture of this size (Y, X), and below them the whole picture."""
  (rows, columns, channels), (down, across) = shape, size
  canvas = np.zeros((down + rows, across, channels), np.uint8)
  canvas[down:, :columns] = np.asarray(picture.resize((columns, rows), resample)).reshape(shape)
  return canvas


def _with_longer(width, height, longer):
  """Return (width, height) whose longer side has so many pixels; the other one is rounded up to even."""
  ratio = width / height
  if width >= height:
    width, height = longer, int(longer / ratio)
    height += height % 2
  else:
    width, height = int(longer * ratio), longer
    width += width % 2
  return max(width, 1), max(height, 1)


def _with_shorter(size, shorter):
  """Return (width, height) whose shorter side has so many pixels, of the same aspect ratio."""
  width, height = size
  longer = int(shorter * max(size) / min(size))
  return (shorter, longer) if width <= height else (longer, shorter)
