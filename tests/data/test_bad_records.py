"""Unreadable records are skipped up to a number; beyond it one error tells the worst and its fix."""

import logging
import types

import numpy as np
import pytest

from gpt_jax import data
from gpt_jax.data import DataConfig, Source, bad_records
from gpt_jax.data.bad_records import BadRecords
from gpt_jax.data.media_io import to_wav


@pytest.fixture
def sounds(tmp_path):
  """The config of a source of sounds of 1 to 4 s, and one that is none."""
  for seconds in (1, 4, 2, 3):
    (tmp_path / f'{seconds}.wav').write_bytes(to_wav(np.zeros(100 * seconds), 100))
  (tmp_path / '0.wav').write_bytes(b'no sound')

  def config(**fields):
    return DataConfig(
      {'x': Source('files', str(tmp_path), '{audio:audio}', **fields)},
      packing='first_fit',
      valid_fraction=0.0,
    )

  return config


def test_one_scan_tells_the_longest_and_the_fix(sounds):
  with pytest.raises(ValueError) as error:
    data.load_waveforms(sounds(), 100, seconds=1.5)
  cause, fix = str(error.value).split('\n')
  assert cause.startswith('data.mixture.x has 4 unreadable records or more, the largest: ')
  assert cause.endswith('4.wav: the sound lasts 4 s, more than 1.5 s')
  assert fix == (
    'fix: raise audio.seconds to 4, or cut or drop it; or set data.mixture.x.bad_records=4 or more, the '
    'number that may be skipped (now 0)'
  )
  assert [len(wave) for wave in data.load_waveforms(sounds(bad_records=4), 100, seconds=1.5)] == [100]


def test_a_scan_for_further_bad_records_ends(monkeypatch):
  monkeypatch.setattr(bad_records, 'SCAN_SECONDS', 0)
  source, seen = types.SimpleNamespace(bad_records=1), []

  def read(item):
    seen.append(item)
    if item:
      raise ValueError(f'{item} is bad\nfix: drop it')

  with pytest.raises(ValueError, match='has 2 unreadable .*, the first: 1 is bad\nfix: drop it; or'):
    list(BadRecords('x', source).readable(range(9), read))
  assert seen == [0, 1, 2]


def test_sources_of_the_same_files_log_a_conversion_once(caplog):
  for name, template in (('read', '{image:image} -> {name}'), ('draw', '{name} -> {image:image}')):
    source = Source('files', 'these pictures', template)
    BadRecords(name, source, 'train').repeat_report({'images resized from 26x60': 2}, 0)
  assert [r.getMessage() for r in caplog.records] == [
    'data.mixture.read (train): 2 images resized from 26x60'
  ]


def test_conversions_are_one_line_with_their_most_frequent_details(caplog):
  records = BadRecords('many', types.SimpleNamespace(bad_records=0), 'train')
  records.notes.update({f'images resized from {size}x{size}': size for size in range(1, 136)})
  records.notes['images turned upright'] = 2
  with caplog.at_level(logging.WARNING):
    records.report()
  assert [record.getMessage() for record in caplog.records] == [
    'data.mixture.many (train): 9180 images resized from 135x135, 134x134, 133x133 and 132 others',
    'data.mixture.many (train): 2 images turned upright',
  ]
