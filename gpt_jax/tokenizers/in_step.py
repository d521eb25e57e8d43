"""Readers whose encoder is a part of the model: what such an encoder takes, and its model.towers.Tower.

A place of a picture has the pixels of its patches plus 1, so that zeros are no place; one of a sound the
log-mel frames of its outputs. Sounds are whole windows, silence behind them included.

Letters: B windows, N samples, J frames, M mel bands.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from gpt_jax.model.continuous import KINDS
from gpt_jax.tokenizers.processors import Pixels


def put_in_step(reader):
  """Return the reader of the inputs of a readers.EncoderReader; ValueError where it cannot be in the step."""
  if reader.token_ids:
    raise ValueError(
      f'encoder.train: the pictures of {reader.path} are ids, which no encoder in the step makes\n'
      'fix: leave encoder.train=cached'
    )
  pixels = Pixels(*reader.pixels) if reader.pixels else Pixels((), ())
  leaves_some = not reader.grid and reader.positions % reader.stack
  parts = {
    'sounds of an imported model': not reader.grid and reader.places is not None,
    'outputs that are averaged': reader.spec.pool > 1,
    f'windows that encoder.stack={reader.stack} does not divide': leaves_some,
    'a class token as a place': reader.has_class,
    'tiles without their borders': bool(pixels.sizes),
    'pictures of any size': bool(pixels.area),
  }
  if part := next((part for part, is_in in parts.items() if is_in), ''):
    raise ValueError(
      f'encoder.train: the encoder in {reader.path} has {part}, which cannot be in the step\n'
      'fix: leave encoder.train=cached'
    )
  places = None if reader.places is None else dataclasses.asdict(reader.places)
  form = {'pool': reader.pool, 'places': places, 'in_step': True}
  return type(reader)(**reader.fields() | form)


def tower_of(reader, training: str = '') -> Any:
  """Return the Tower of the encoder of a reader, trained so."""
  from gpt_jax.model import towers

  kind = next(name for name, kind in KINDS.items() if kind.modality == reader.spec.modality)
  known = (kind, reader.spec, training, reader.path, reader.digest)
  if not reader.grid:
    return towers.Tower(*known, (), (), reader.stack, window=reader.positions)
  pixels = Pixels(*map(tuple, reader.pixels[:2]))
  group = max(reader.pool**2, reader.stack)
  return towers.Tower(*known, pixels.mean, pixels.deviation, group, reader.pool > 1)


def features(reader, items) -> list[np.ndarray]:
  """Prepared pictures or sounds float32 [samples] -> float32 [places, numbers of one] each."""
  if not reader.grid:
    return [_frames(reader, wave_N) for wave_N in items]
  pixels_of_places = tower_of(reader).pixels_of_places
  return [np.concatenate([*map(pixels_of_places, reader.cut(picture))]) for picture in items]


def _frames(reader, wave_N):
  """Return the log-mel frames of the places of a sound's windows."""
  from gpt_jax.interop.encoders import log_mel

  windows = max(1, math.ceil(len(wave_N) / reader.window))
  waves_BN = np.pad(wave_N, (0, windows * reader.window - len(wave_N))).reshape(windows, -1)
  frames_BJM = log_mel.log_mel(waves_BN, dict(reader.spec.sizes)['M'])
  return frames_BJM.reshape(-1, reader.feature_width)
