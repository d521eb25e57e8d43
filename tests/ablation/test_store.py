"""Reading run folders in any state, and the table of runs."""

import json
import math
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.ablation import store
from gpt_jax.runs import records
from tests import tiny_runs
from tests.tiny_runs import assert_two_lines

KNOWN = [
  'folder',
  'status',
  'optim.lr',
  'optim.name',
  'model.positions',
  'image.kind',
  'audio.kind',
  'valid_loss',
  'valid_loss/text',
  'steps',
]


def run_folder(folder, config=None, result=None, metrics=(), events=()):
  """A run folder with these files."""
  folder.mkdir(parents=True, exist_ok=True)
  if config is not None:
    records.write_json(folder / 'config.json', config)
  if result is not None:
    records.write_json(folder / 'result.json', result)
  for name, lines in (('metrics', metrics), ('events', events)):
    for line in lines:
      records.append_line(folder / f'{name}.jsonl', line)
  return folder


@pytest.fixture
def study(tmp_path):
  """The folder of a study of two arms and two seeds without runs."""
  arms = [{'name': 'base', 'slug': 'base'}, {'name': 'a b', 'slug': 'a-b'}]
  records.write_json(tmp_path / 'study.json', {'metric': 'valid_loss', 'seeds': [0, 1], 'arms': arms})
  return tmp_path


# ---------------------------------------------------------------------------------- rows of a study


def test_rows_follow_the_study(study):
  run_folder(store.run_path(study, 'a-b', 1), {'model': {}}, {'valid_loss': 2.0, 'steps': 3})
  (study / 'attempts.jsonl').write_text(
    json.dumps({'arm': 'a b', 'seed': 1, 'how': 'replicas', 'outcome': 'done'}) + '\n{"arm": "ba'
  )
  rows = store.read_runs(study)
  assert [(row['arm'], row['seed'], row['status']) for row in rows] == [
    ('base', 0, 'missing'),
    ('base', 1, 'missing'),
    ('a b', 0, 'missing'),
    ('a b', 1, 'done'),
  ]
  assert rows[3]['result'] == {'valid_loss': 2.0, 'steps': 3} and rows[3]['how'] == 'replicas'
  assert all(row['message'] for row in rows[:3]) and not rows[3]['message']


def test_examples_are_those_of_the_metric(tmp_path):
  about = {'task': 'answer', 'source': 'text', 'split': 'valid'}
  score, line = about | {'metric': 'exact_match', 'value': 0.75, 'n': 4}, about | {'step': 3}
  right = [True, True, False, True]
  lines = [line | {'index': i, 'right': right[i], 'token_f1': 0.5} for i in (3, 1, 0, 2)]
  lines += [line | {'index': i, 'right': False, 'source': 'more'} for i in range(4)]
  lines += [line | {'index': i, 'right': False, 'data.mixture.text.path': 'x'} for i in range(4)]
  path = tmp_path / 'predictions.jsonl'
  path.write_text(''.join(json.dumps(x) + '\n' for x in lines) + '{"torn')
  read = lambda name, **changes: store.read_examples(tmp_path, {'evaluations': [score | changes]}, name)
  assert read('answer/text/exact_match') == read('answer/exact_match') == [1.0, 1.0, 0.0, 1.0]
  assert read('answer/text/token_f1', metric='token_f1', value=0.5) == [0.5] * 4
  assert read('answer/text/exact_match', value=0.5) == [], 'predictions of another evaluation'
  assert read('answer/text/exact_match', n=5) == [], 'of a part of the examples'
  assert read('answer/text/exact_match', split='test') == []
  path.unlink()
  assert read('answer/text/exact_match') == []


def test_a_folder_without_a_study_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    store.read_runs(tmp_path)
  assert_two_lines(error.value, str(tmp_path), 'study.json')


START, ERROR = {'time': '1', 'event': 'start'}, {'time': '2', 'event': 'error'}
RESULT = {'steps': 3, 'valid_loss': 1.0}


@pytest.mark.parametrize(
  'files, attempt, expected, message',
  [
    ({}, {}, 'missing', 'not begun'),
    ({'config': {'a': 1}}, {}, 'unfinished', ''),
    ({'config': {'a': 1}, 'result': RESULT}, {'outcome': 'killed'}, 'done', ''),
    ({'config': {'a': 1}, 'result': RESULT | {'valid_loss': math.nan}}, {}, 'diverged', 'nan'),
    ({'config': {'a': 1}, 'result': RESULT | {'loss': math.nan}}, {}, 'done', ''),
    ({'config': {'a': 1}, 'events': [START]}, {'outcome': 'stopped'}, 'unfinished', ''),
    ({'config': {'a': 1}, 'events': [START]}, {'outcome': 'killed', 'message': 'oom'}, 'killed', 'oom'),
    (
      {'config': {'a': 1}, 'events': [START, ERROR | {'type': 'OSError', 'message': 'full'}]},
      {},
      'failed',
      'full',
    ),
    (
      {'config': {'a': 1}, 'events': [ERROR | {'type': 'FloatingPointError', 'message': 'inf'}]},
      {},
      'diverged',
      'inf',
    ),
    ({}, {'outcome': 'failed', 'message': 'no such data'}, 'failed', 'no such data'),
  ],
)
def test_run_statuses(tmp_path, files, attempt, expected, message):
  status, said, result = store.run_status(run_folder(tmp_path / 'run', **files), 'valid_loss', attempt)
  assert status == expected and message in said
  assert bool(result) == ('result' in files)


@given(content=st.binary(max_size=60), name=st.sampled_from(['result.json', 'config.json']))
def test_unreadable_files_do_not_raise(tmp_path_factory, content, name):
  folder = run_folder(tmp_path_factory.mktemp('run'), {'a': 1}, RESULT)
  (folder / name).write_bytes(content)
  assert store.run_status(folder)[0] in ('corrupt', 'done', 'unfinished')


@pytest.mark.parametrize('key', ['steps', 'replicas', 'data', 'tail'])
def test_a_result_of_another_type_is_corrupt(study, key):
  """A report sorts and counts these."""
  run_folder(store.run_path(study, 'base', 0), {'a': 1}, RESULT | {key: None})
  row = store.read_runs(study)[0]
  assert row['status'] == 'corrupt' and 'result.json' in row['message']


def test_a_half_written_result_is_corrupt(study):
  folder = run_folder(store.run_path(study, 'base', 0), {'a': 1}, RESULT)
  content = (folder / 'result.json').read_bytes()
  for size in range(1, len(content) - 2):
    (folder / 'result.json').write_bytes(content[:size])
    status, message, result = store.run_status(folder)
    assert status == 'corrupt' and 'result.json' in message and result == {}
  assert store.read_runs(study)[0]['status'] == 'corrupt'


def test_curves_interpolate_tokens_between_logged_steps(tmp_path):
  lines = [
    {'step': 10, 'tokens': 100.0},
    {'step': 15, 'valid_loss': 3.0, 'valid_loss/a': 1.0},
    {'step': 20, 'tokens': 300.0, 'valid_loss': 2.0, 'valid_loss/a': 0.5},
  ]
  folder = run_folder(tmp_path / 'run', {'a': 1}, metrics=lines)
  assert store.read_curve(folder) == [[200.0, 3.0], [300.0, 2.0]]
  assert store.read_curve(folder, 'valid_loss/a') == [[200.0, 1.0], [300.0, 0.5]]
  assert store.read_curve(folder, 'answer/exact') == []  # known at the end only: no curve of another metric
  assert store.read_curve(tmp_path / 'none') == []


@pytest.mark.parametrize('value', ['x', None, [], {'a': 1}, True])
def test_a_curve_without_numbers_is_said_in_its_row(study, value):
  lines = [{'step': 1, 'tokens': 5, 'valid_loss': 2.0}, {'step': 2, 'tokens': value, 'valid_loss': 1.0}]
  run_folder(store.run_path(study, 'base', 0), {'a': 1}, {'valid_loss': 1.0, 'steps': 2}, metrics=lines)
  row = store.read_runs(study)[0]
  assert (row['status'], row['curve']) == ('done', [])
  assert row['message'].endswith('metrics.jsonl: tokens of step 2 is not a number')


def test_unreadable_metrics_lose_the_curve_only(study):
  folder = run_folder(store.run_path(study, 'base', 0), {'a': 1}, RESULT)
  (folder / 'metrics.jsonl').write_text('{"step": 1\n{"step": 2}\n')
  row = store.read_runs(study)[0]
  assert row['status'] == 'done' and row['curve'] == [] and 'metrics.jsonl' in row['message']


def test_interrupted_runs_are_recognized(tmp_path):
  folder = run_folder(tmp_path / 'run', {'a': 1}, events=[START | {'time': '2026-01-02'}])
  assert store.was_interrupted(folder, '') and store.was_interrupted(folder, '2026-01-01')
  assert not store.was_interrupted(folder, '2026-01-03') and not store.was_interrupted(tmp_path / 'none', '')
  run_folder(folder, events=[{'time': '2026-01-04', 'event': 'preempted'}])  # it saved, orphaned
  assert store.was_interrupted(folder, '2026-01-01') and not store.was_interrupted(folder, '2026-01-03')
  run_folder(folder, events=[{'time': '2026-01-05', 'event': 'error'}])
  assert not store.was_interrupted(folder, '')


# ----------------------------------------------------------------------------------- table of runs


@pytest.fixture
def several(tmp_path):
  """Four runs, of which the last has no result and one result is corrupt."""
  losses = [1.25, 1.5, None, None]
  for k, (lr, positions) in enumerate([(1e-2, 'rope'), (1e-3, "o'k"), (1e-4, 'rope'), (1, 'none')]):
    config = {
      'optim': {'lr': lr},
      'model': {'positions': positions, 'qk_norm': k > 1},
      'data': {'sizes': [1, 2]},
    }
    result = losses[k] and {'steps': 3, 'valid_loss': losses[k], 'parameters': 7, 'tail': {'x': 1}}
    run_folder(tmp_path / f'group/run{k}', config, result)
  (tmp_path / 'group/run2/result.json').write_text('{')
  (tmp_path / 'group/run2/checkpoints').mkdir()
  run_folder(tmp_path / 'group/run2/checkpoints/5', {'not': 'a run'})
  return tmp_path


def test_runs_that_satisfy_a_condition(several):
  chosen = lambda where: [row[0] for row in store.select(several, where, ['folder'])[1]]
  every = [f'group/run{k}' for k in range(4)]
  assert chosen('') == every
  assert chosen("optim.lr > 1e-3 and model.positions = 'rope'") == every[:1]
  assert chosen("lr>1E-3 AND positions='rope'") == every[:1]
  assert chosen("positions = 'o''k' or optim.lr=1") == [every[1], every[3]]
  assert chosen('qk_norm') == every[2:] and chosen('not "model.qk_norm"') == every[:2]
  assert chosen("status = 'corrupt'") == every[2:3]
  assert chosen('valid_loss is null') == every[2:]
  assert chosen("tail.x = 1 and data.sizes like '%2]'") == every[:2]
  names, rows = store.select(several)
  assert names == [
    'folder',
    'status',
    'optim.lr',
    'model.positions',
    'model.qk_norm',
    'valid_loss',
    'parameters',
  ]
  assert rows[0] == ('group/run0', 'done', 0.01, 'rope', 0, 1.25, 7)
  lines = store.format_table(names, rows)
  assert lines[0].split() == names and lines[3].split()[-1] == '-'
  assert len({line.index(word) for line, word in zip(lines[:2], ('status', 'done'), strict=True)}) == 1


@pytest.mark.parametrize(
  'where, columns, cause, fix',
  [
    ('optim.lrr > 1', (), 'optim.lrr', 'optim.lr'),
    ('model.postions = 1', (), 'model.postions', 'model.positions'),
    ('"optim.lrr" > 1', (), 'optim.lrr', 'optim.lr'),
    ('positions = rope', (), 'column rope', "'rope'"),
    ('', ['valid_los'], '--columns', 'valid_loss'),
    ('optim.lr >', (), 'syntax error', "'rope'"),
    ('optim.lr > 1; drop table runs', (), '', ''),
    ("positions = 'rope", (), '', ''),
  ],
)
def test_invalid_conditions_are_errors(several, where, columns, cause, fix):
  with pytest.raises(ValueError) as error:
    store.select(several, where, columns)
  assert fix in assert_two_lines(error.value, cause)[1]
  assert len(store.select(several)[1]) == 4


def test_a_text_without_quotes_may_be_a_part_of_columns(tmp_path):
  run_folder(tmp_path / 'one', {'audio': {'text': 'x'}, 'image': {'text': 'y'}, 'lr': 1}, {'steps': 3})
  for where, columns, more in (('audio.text = text', (), "; a text is written 'text'"), ('', ['text'], '')):
    with pytest.raises(ValueError) as error:
      store.select(tmp_path, where, columns)
    fix = assert_two_lines(error.value, 'text is the last part of several columns')[1]
    assert fix.endswith(f'use one of audio.text, image.text{more}')


def test_a_folder_without_runs_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    store.select(tmp_path)
  assert_two_lines(error.value, str(tmp_path), 'no runs')


def score(value, metric='exact_match', source='read', **more):
  """A row of a task as evaluate.run makes it."""
  row = {'task': 'answer', 'metric': metric, 'value': value, 'source': source, 'split': 'valid'}
  return row | {'n': 300, 'sampling': {'temperature': 0.0}, 'interval': [0.1, 0.9]} | more


def test_scores_of_tasks_are_columns(tmp_path):
  """Those of the training and those that came later, of which the last counts."""
  rows = [score(0.5), score(0.01, control='shuffled'), score(0.2, 'token_f1', 'recognize')]
  one = run_folder(tmp_path / 'one', {'a': {'b': 1}}, {'steps': 3, 'evaluations': rows})
  for row in (score(0.91), score(0.95), score(0.9, split='test'), {'value': 'odd'}):
    records.append_line(one / 'evaluations.jsonl', row)
  two = run_folder(tmp_path / 'two', {'a': {'b': 2}}, {'steps': 3, 'evaluations': rows[:1]})
  (two / 'evaluations.jsonl').write_text('{\n{}\n')  # it costs the later scores alone
  names = [
    'answer/read/exact_match',
    'answer/read/exact_match/test',
    'answer/read/exact_match/shuffled',
    'token_f1',
  ]
  chosen, actual = store.select(tmp_path, '', names)
  assert actual == [(0.95, 0.9, 0.01, 0.2), (0.5, None, None, None)]
  assert chosen[3] == 'answer/recognize/token_f1'
  for where in ('exact_match > 0.9', 'answer/read/exact_match > 0.9 and b = 1'):
    assert store.select(tmp_path, where, ['folder'])[1] == [('one',)]
  assert store.select(tmp_path)[0] == ['folder', 'status', 'a.b']
  for name in ('exact_mach', 'answer/exact_match'):
    with pytest.raises(ValueError) as error:
      store.select(tmp_path, '', [name])
    assert 'answer/read/exact_match' in assert_two_lines(error.value, name)[1]
  run_folder(two, result={'steps': 3, 'evaluations': [score(0.5, source='listen')]})
  with pytest.raises(ValueError) as error:
    store.select(tmp_path, 'exact_match > 0.9')
  hint = assert_two_lines(error.value, 'several columns')[1]
  assert 'answer/read/exact_match, answer/listen/exact_match' in hint


@pytest.mark.parametrize(
  'where, expected',
  [
    ('lr >= 1e-3', '"optim.lr" >= 1e-3'),
    ('valid_loss/text<2', '"valid_loss/text"<2'),
    ('valid_loss/steps < 2', '"valid_loss"/"steps" < 2'),
    ("status in ('a.b', 'optim.lr')", "\"status\" in ('a.b', 'optim.lr')"),
    ('NOT positions IS NULL', 'NOT "model.positions" IS NULL'),
    ('optim.lr > -1.5e+3', '"optim.lr" > -1.5e+3'),
  ],
)
def test_column_names_are_quoted_and_texts_are_not(where, expected):
  assert store.quote_condition(where, KNOWN) == expected


def test_an_ambiguous_column_name_is_an_error():
  with pytest.raises(ValueError) as error:
    store.quote_condition("kind = 'fsq'", KNOWN)
  assert 'image.kind, audio.kind' in assert_two_lines(error.value, 'kind')[1]


@given(st.text(st.sampled_from('ab\'"._/ 1e-+<>=()'), max_size=20))
def test_any_condition_is_quoted_or_a_two_line_error(text):
  try:
    made = store.quote_condition(text, ['a', 'b.e'])
  except ValueError as error:
    assert str(error).count('\n') == 1
  else:
    assert made.replace('"', '').replace('b.e', 'e') == text.replace('"', '').replace('b.e', 'e')


def test_column_names_that_differ_in_case_only(tmp_path):
  run_folder(tmp_path / 'run', {'Loss': 1}, {'steps': 1, 'loss': 2})
  assert store.select(tmp_path, 'Loss = 1', ['loss'])[1] == [(1,)]


def test_a_real_run(tmp_path_factory, tmp_path):
  shutil.copytree(tiny_runs.finished(tmp_path_factory), tmp_path / 'run')
  status, _, result = store.run_status(tmp_path / 'run')
  assert status == 'done' and result['steps'] == 12
  curve = store.read_curve(tmp_path / 'run')
  assert len(curve) == 3 and curve[-1][0] == result['tokens']
  assert [tokens for tokens, _ in curve] == sorted(tokens for tokens, _ in curve)
  [row] = store.select(tmp_path, 'train.steps = 12 and optim.ema > 0', ['valid_loss', 'train.seed'])[1]
  assert row == (result['valid_loss'], 0)
