"""Speed comparisons: sides in their own processes, missing sides, and the ratio."""

import time

import pytest

from benchmarks import table, versus


def sleeper(seconds):
  """A side whose unit of work takes `seconds`."""
  return lambda: time.sleep(seconds), {'requested': seconds}


def absent():
  """A side that is not installed."""
  raise versus.Missing('no such library')


@pytest.mark.slow
def test_sides_alternate_and_missing_sides_are_reported(capsys):
  turns = []
  sides = [
    versus.Side('slow', 'tests.benchmarks.test_versus:sleeper', {'seconds': 0.2}),
    versus.Side('quick', 'tests.benchmarks.test_versus:sleeper', {'seconds': 0.1}),
    versus.Side('absent', 'tests.benchmarks.test_versus:absent'),
    versus.Side('broken', 'tests.benchmarks.test_versus:sleeper', {'minutes': 1}),
  ]
  rows = versus.compare(sides, 2, lambda rows: turns.append(len(rows['quick']['seconds'])))
  assert turns == [1, 2] and len(rows['slow']['seconds']) == 2
  assert rows['slow']['requested'] == 0.2 and 0.19 < rows['slow']['median'] < 0.4
  assert rows['absent'] == {'missing': 'no such library'}
  assert 'minutes' in rows['broken']['missing']
  assert 'absent is skipped: no such library' in capsys.readouterr().out
  value, (low, high) = versus.ratio(rows, 'quick', 'slow')
  assert 1.2 < low <= value <= high < 3
  assert versus.ratio(rows, 'quick', 'absent') is None


def test_the_range_of_a_ratio_covers_the_noise_of_turns():
  steady = {'a': {'seconds': [1.0] * 5}, 'b': {'seconds': [2.0] * 5}}
  assert versus.ratio(steady, 'a', 'b') == (2.0, [2.0, 2.0])
  noisy = {'a': {'seconds': [1.0, 1.1, 0.9, 1.3, 1.0]}, 'b': {'seconds': [2.0, 2.6, 1.9, 2.2, 2.0]}}
  value, (low, high) = versus.ratio(noisy, 'a', 'b')
  assert low < value == 2.0 < high


def test_a_page_without_markers_is_unchanged(tmp_path):
  (tmp_path / 'page.md').write_text('no markers here')
  assert table.render_tables(tmp_path / 'page.md') == 'no markers here'
