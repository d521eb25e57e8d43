"""The README says what is so: its table comes from the results, its paths and settings exist."""

import json
import re

import pytest

from benchmarks import folds, table
from gpt_jax import config
from tests import command_line

README = table.README.read_text()


def test_tables_are_made_from_the_results():
  for page in table.PAGES:
    assert table.render_tables(page.read_text()) == page.read_text(), page


def test_a_result_of_several_runs_is_their_mean_and_its_interval():
  row = dict(task='answer', metric='exact_match', source='s', split='test', temperature=0.0, n=10)
  made = lambda value: {
    'command': 'c',
    'hardware': 'h',
    'versions': {},
    'started': '2026-01-01T00:00:00+00:00',
    'finished': '2026-01-01T00:06:00+00:00',
    'numbers': {'evaluations': []},
    'evaluations_later': [
      row | {'value': 0.0, 'control': 'shuffled', 'chance': 0.1},
      row | {'value': value, 'chance': 0.1},
    ],
  }
  found = folds.merge_folds({'a': made(0.5), 'b': made(0.7), 'c': made(0.9)})
  [mean] = found['numbers']['evaluations']
  assert mean['value'] == pytest.approx(0.7) and mean['n'] == 30
  assert mean['interval'][0] == pytest.approx(0.7 - 4.303 * 0.2 / 3**0.5, abs=1e-3)
  assert mean['interval'][1] == 1 and mean['runs'] == {'a': 0.5, 'b': 0.7, 'c': 0.9}
  assert table.minutes(found) == pytest.approx(18)


def test_every_result_says_how_it_was_made():
  folders = (table.RESULTS, table.RESULTS / 'speed', table.RESULTS / 'plan')
  for path in (path for folder in folders for path in folder.glob('*.json')):
    result = json.loads(path.read_text())
    assert result['claim'] and result['command'] and result['hardware'], path
    assert {'jax', 'python', 'git'} <= result['versions'].keys(), path


def test_linked_files_exist():
  for page in table.PAGES:
    links = re.findall(r'\]\((?!http)([^)#]+)', page.read_text())
    assert len(links) > 4
    for link in links:
      assert (page.parent / link).exists(), link


def test_config_keys_and_experiments_exist():
  flat = {}
  defaults = config.default()
  for section, values in defaults.items():
    flat[section] = set(values)
  for section, key in re.findall(r'--config\.(\w+)\.(\w+)', README):
    assert key in flat[section], f'{section}.{key}'
  for path in re.findall(r'--config=(experiments/\w+\.py)', README):
    assert (command_line.ROOT / path).exists(), path


def test_make_targets_exist():
  makefile = (command_line.ROOT / 'Makefile').read_text()
  for target in re.findall(r'^make (\w+)', README, re.M):
    assert re.search(rf'^{target}:', makefile, re.M), target
