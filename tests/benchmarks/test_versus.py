"""Comparisons of speed: sides in their own processes, those that are missing, and the ratio."""

import time

from benchmarks import table, versus


def sleeper(seconds):
  """A side that takes so long."""
  return lambda: time.sleep(seconds), {'asked': seconds}


def absent():
  """A side that is not installed."""
  raise versus.Missing('no such library')


def test_sides_take_turns_and_the_missing_are_told(capsys):
  kept = []
  sides = [
    versus.Side('slow', 'tests.test_versus:sleeper', {'seconds': 0.2}),
    versus.Side('quick', 'tests.test_versus:sleeper', {'seconds': 0.1}),
    versus.Side('absent', 'tests.test_versus:absent'),
    versus.Side('broken', 'tests.test_versus:sleeper', {'minutes': 1}),
  ]
  rows = versus.compare(sides, 2, lambda rows: kept.append(len(rows['quick']['seconds'])))
  assert kept == [1, 2] and len(rows['slow']['seconds']) == 2
  assert rows['slow']['asked'] == 0.2 and 0.19 < rows['slow']['median'] < 0.4
  assert rows['absent'] == {'missing': 'no such library'}
  assert 'minutes' in rows['broken']['missing']
  assert 'absent is left out: no such library' in capsys.readouterr().out
  value, (low, high) = versus.ratio(rows, 'quick', 'slow')
  assert 1.2 < low <= value <= high < 3
  assert versus.ratio(rows, 'quick', 'absent') is None


def test_the_interval_of_a_ratio_covers_what_noise_allows():
  steady = {'a': {'seconds': [1.0] * 5}, 'b': {'seconds': [2.0] * 5}}
  assert versus.ratio(steady, 'a', 'b') == (2.0, [2.0, 2.0])
  noisy = {'a': {'seconds': [1.0, 1.1, 0.9, 1.3, 1.0]}, 'b': {'seconds': [2.0, 2.6, 1.9, 2.2, 2.0]}}
  value, (low, high) = versus.ratio(noisy, 'a', 'b')
  assert low < value == 2.0 < high


def test_marks_that_a_readme_does_not_have_are_left_alone():
  assert table.rewritten('no marks here') == 'no marks here'
