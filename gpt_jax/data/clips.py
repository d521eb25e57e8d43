"""Clips: the frames of a film as pictures in a row.

`{clip:video,every=2,frames=8}` in a template takes every second frame, and of these eight, evenly spaced from
the first to the last. A clip is a file of several frames (GIF, APNG, WebP, TIFF, AVIF), a list of files, or
an array [N, Y, X] or [N, Y, X, A]. It is decoded with the media of its document.

Letters: N frames, Y X A rows, columns and channels of a frame.
"""

from typing import NamedTuple

import numpy as np

from gpt_jax.data import media_io
from gpt_jax.data.decoders import MOST_PIXELS, TooLarge, count_frames, decode_frames, name_record

SPEC = 'video'
KIND = 'patches'  # frames are read, not made
FIX = 'fix: write {clip:video}, {clip:video,frames=8} or {clip:video,every=4,frames=8}'


class Field(str):
  """The name of a field that holds a clip."""

  frames = 0  # at most so many; 0 = all
  every = 1  # the first of so many in a row


class Clip(NamedTuple):
  """A clip that is not decoded."""

  files: tuple  # paths, encoded bytes, or frames as arrays
  frames: int = 0
  every: int = 1


def parse(field: str, spec: str, template: str) -> Field:
  """Return the field of `video,frames=8,every=2`; ValueError for other settings."""
  result = Field(field)
  for item in spec.split(',')[1:]:
    name, _, value = item.partition('=')
    if name not in ('frames', 'every') or not value.isdecimal() or int(value) < 1:
      raise ValueError(f'template={template!r} has {item!r}, which is no setting of a clip\n{FIX}')
    setattr(result, name, int(value))
  return result


def split(value) -> list:
  """Return the files of a clip, or its frames if it is an array or nested numbers."""
  value = [*value] if getattr(value, 'dtype', None) == np.dtype(object) else value
  is_file = lambda item: isinstance(item, (str, bytes, dict, np.ndarray))
  if isinstance(value, (list, tuple)) and all(map(is_file, value)):
    return [*value]
  if not isinstance(value, (list, np.ndarray)):
    return [value]
  frames = np.asarray(value)
  if frames.ndim not in (3, 4):
    raise ValueError(
      f'a clip has the shape {frames.shape}\nfix: give [frames, rows, columns] or [.., channels] of uint8'
    )
  return [*frames]


def files_of(value) -> tuple:
  """Return the files of a clip, or the value of any other piece alone."""
  return value.files if isinstance(value, Clip) else (value,)


def read(value, where: str = '') -> list:
  """Return the chosen frames of a clip, uint8 [Y, X, A] or as they are; of any other value, itself alone.

  Raises ValueError or FileNotFoundError that begins with `where` for files that cannot be read, and TooLarge
  for more than MOST_PIXELS pixels.
  """
  if not isinstance(value, Clip):
    return [value]
  with name_record(where):
    opened = [file if isinstance(file, np.ndarray) else media_io.read_content(file) for file in value.files]
    counts = [1 if isinstance(file, np.ndarray) else count_frames(*file) for file in opened]
    places = [(n, frame) for n, count in enumerate(counts) for frame in range(count)][:: value.every]
    if 0 < value.frames < len(places):
      places = [places[n] for n in np.linspace(0, len(places) - 1, value.frames).round().astype(int)]
    frames, pixels = [], 0
    for n, file in enumerate(opened):
      own = [frame for number, frame in places if number == n]
      for frame in [file] * len(own) if isinstance(file, np.ndarray) else decode_frames(*file, own):
        pixels += frame.shape[0] * frame.shape[1]
        if pixels > MOST_PIXELS:
          fix = 'fix: take fewer frames, as in {clip:video,frames=8}, or shrink them'
          raise TooLarge.of('pixels', pixels, f'the frames of a clip have {pixels} pixels or more\n{fix}')
        frames.append(frame)
  return frames
