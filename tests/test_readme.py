"""README and docs/ are true: its tables come from the results; its paths, flags, settings and rooms exist."""

import ast
import json
import re

import pytest
from absl import flags

from benchmarks import folds, table
from gpt_jax import config
from gpt_jax.ablation import sweeps
from gpt_jax.cli import verbs
from gpt_jax.data.sources import SOURCES
from tests import command_line, test_architecture

DOCS = table.read_docs()
PACKAGE = command_line.ROOT / 'gpt_jax'


def test_tables_are_generated_from_the_results():
  for page in table.PAGES:
    assert table.render_tables(page) == page.read_text(), page


def test_merged_folds_have_the_mean_and_its_t_interval():
  row = dict(task='answer', metric='exact_match', source='s', split='test', temperature=0.0, n=10)
  run = lambda value: {
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
  merged = folds.merge_folds({'a': run(0.5), 'b': run(0.7), 'c': run(0.9)})
  [mean] = merged['numbers']['evaluations']
  assert mean['value'] == pytest.approx(0.7) and mean['n'] == 30
  assert mean['interval'][0] == pytest.approx(0.7 - 4.303 * 0.2 / 3**0.5, abs=1e-3)
  assert mean['interval'][1] == 1 and mean['runs'] == {'a': 0.5, 'b': 0.7, 'c': 0.9}
  assert table.minutes(merged) == pytest.approx(18)


def test_every_result_has_claim_command_hardware_and_versions():
  folders = (table.RESULTS, table.RESULTS / 'speed', table.RESULTS / 'plan')
  for path in (path for folder in folders for path in folder.glob('*.json')):
    result = json.loads(path.read_text())
    assert result['claim'] and result['command'] and result['hardware'], path
    assert {'jax', 'python', 'git'} <= result['versions'].keys(), path


def test_linked_files_exist():
  for page in table.PAGES:
    links = re.findall(r'\]\((?!http)([^)#]+)', page.read_text())
    for link in links:
      assert (page.parent / link).exists(), link


def test_config_keys_and_experiments_exist():
  keys = {section: set(values) for section, values in config.default().items()}
  for section, key in re.findall(r'--config\.(\w+)\.(\w+)', DOCS):
    assert key in keys[section], f'{section}.{key}'
  for path in re.findall(r'--config=(experiments/[\w/]+\.py)', DOCS):
    assert (command_line.ROOT / path).exists(), path


def flags_of(verb):
  """The names of a verb's flags."""
  before = set(flags.FLAGS)
  verbs.VERBS[verb].define_flags()
  names = set(flags.FLAGS) - before
  for name in names:
    delattr(flags.FLAGS, name)
  return names | {'config'}


def test_verbs_and_flags_of_commands_exist():
  commands = re.findall(r'launch\.py (\w+) ([^#`\n|]*)', DOCS)
  assert len(commands) > 20
  for verb, arguments in commands:
    names = flags_of(verb) | {'help'}
    for flag in re.findall(r'(?<=--)\w+', arguments):
      assert names & {flag, flag.removeprefix('no')}, (verb, flag)


def test_sweeps_are_all_listed():
  [line] = re.findall(r'`Study\(sweep=\.\.\.\)` is one of (.*?), or', DOCS, re.S)
  assert re.findall(r'`(\w+)`', line) == list(sweeps.SWEEPS)


def test_every_kind_of_source_has_a_row():
  [table] = re.findall(r'^\| `kind` \| reads \|\n\|---\|---\|\n((?:\|.*\n)+)', DOCS, re.M)
  assert sorted(re.findall(r'^\| `(\w+)` \| ', table, re.M)) == sorted(SOURCES)
  assert len(table.splitlines()) == len(SOURCES)


def test_the_reading_path_and_its_total_are_those_of_the_package():
  listed = re.findall(r'^\d+\. \[(\S+)\.py\]\(gpt_jax/\1\.py\): ', DOCS, re.M)
  assert sorted(listed) == sorted(test_architecture.READING_PATH)
  total = sum(len((PACKAGE / f'{name}.py').read_text().splitlines()) for name in listed)
  assert re.findall(r'[Tt]hirteen files, ([\d,]+) lines', DOCS) == [f'{total:,}'] * 2


def test_every_room_is_listed_with_the_sentence_of_its_docstring():
  listed = dict(re.findall(r'^\| \[`(\S+)/`\]\(gpt_jax/\1\) \| (.*) \|$', DOCS, re.M))
  paths = [path for path in PACKAGE.glob('**/__init__.py') if path.parent != PACKAGE]
  docstrings = {
    str(p.parent.relative_to(PACKAGE)): ast.get_docstring(ast.parse(p.read_text())) for p in paths
  }
  assert listed == {room: ' '.join(text.split('\n\n')[0].split()) for room, text in docstrings.items()}


def test_tables_to_extend_exist():
  section = DOCS.partition('## Add your own')[2].partition('## Without touching the package')[0]
  rows = re.findall(r'`([A-Z_]+)`[^|]*?\((gpt_jax/\S+\.py)\)', section)
  assert len(rows) == 9
  for name, path in rows:
    assert re.search(rf'^{name}\b.* = ', (command_line.ROOT / path).read_text(), re.M), (name, path)


def test_make_targets_exist():
  makefile = (command_line.ROOT / 'Makefile').read_text()
  for target in re.findall(r'^make (\w+)', DOCS, re.M):
    assert re.search(rf'^{target}:', makefile, re.M), target
