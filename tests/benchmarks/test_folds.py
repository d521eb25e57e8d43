"""Several runs in one row of the results: their mean, its interval, and where they started."""

import json
import re
import sys

import pytest

from benchmarks import folds, record, table


def summary(value):
  """Return the summary of a run with one test score."""
  row = dict(task='answer', metric='exact_match', source='sums', split='test', temperature=0.0)
  row |= dict(value=value, chance=0.01, n=100, interval=[0, 1])
  times = {'started': '2026-01-01T00:00:00Z', 'finished': '2026-01-01T00:10:00Z'}
  fields = {
    'command': 'python launch.py train',
    'hardware': 'cpu',
    'versions': {},
    'evaluations_later': [row],
  }
  return fields | times | {'numbers': {'evaluations': []}}


def test_runs_of_several_seeds_are_one_row():
  runs = {f'seed{i}': summary(value) for i, value in enumerate((0.8, 0.9, 0.85))}
  merged = folds.merge_folds(runs, [summary(value) for value in (0.2, 0.3, 0.25)])
  [row] = merged['numbers']['evaluations']
  half = 4.3027 * 0.05 / 3**0.5  # t of 2 degrees of freedom, standard deviation
  assert row['value'] == pytest.approx(0.85) and row['before'] == pytest.approx(0.25)
  assert row['interval'] == pytest.approx([0.85 - half, 0.85 + half], rel=1e-4)
  assert row['before_runs'] == {'seed0': 0.2, 'seed1': 0.3, 'seed2': 0.25}
  assert table.headline(merged) == 'sums 85.0% (72.6% to 97.4%, chance 1%, 3 runs, before 25%)'
  assert merged['minutes'] == pytest.approx(30)
  assert [table.run_minutes(result) for result in (merged, summary(0.8))] == pytest.approx([10, 10])
  assert 'before' not in folds.merge_folds(runs)['numbers']['evaluations'][0]


def test_a_metric_may_be_named():
  runs = {f'seed{i}': summary(value) for i, value in enumerate((0.8, 0.9))}
  for result in runs.values():
    [row] = result['evaluations_later']
    result['evaluations_later'] += [row | {'metric': 'token_f1', 'value': row['value'] / 2}]
  [row] = folds.merge_folds(runs, metric='token_f1')['numbers']['evaluations']
  assert (row['metric'], row['value']) == ('token_f1', pytest.approx(0.425))
  assert folds.merge_folds(runs, metric='bleu')['numbers']['evaluations'] == []


def test_equal_scores_of_all_runs_have_the_interval_of_their_examples():
  runs = {f'seed{i}': summary(1.0) for i in range(3)}
  for run in runs.values():
    run['evaluations_later'][0]['interval'] = [0.96, 1.0]
  [row] = folds.merge_folds(runs)['numbers']['evaluations']
  assert (row['value'], row['interval']) == (1.0, [0.96, 1.0])


def test_pauses_between_sessions_are_no_minutes_of_a_run():
  run = summary(0.8) | {'numbers': {'seconds': 240.0, 'goodput': 0.8}, 'sessions': 2}
  assert table.minutes(run) == 5 and table.minutes(run | {'sessions': 1}) == 10


def test_each_source_has_a_row_with_its_baseline():
  runs = {f'seed{i}': summary(value) for i, value in enumerate((0.8, 0.9))}
  for run in runs.values():
    [row] = run['evaluations_later']
    more = {'baseline': 0.3, 'baseline_of': 'copy', 'difference': row['value'] - 0.3}
    more['difference_interval'] = [0.0, 1.0]
    run['evaluations_later'] += [row | more | {'source': 'other'}, row | {'metric': 'later', 'value': 0.0}]
  first, other = folds.merge_folds(runs)['numbers']['evaluations']
  assert (first['source'], other['source'], other['metric']) == ('sums', 'other', 'exact_match')
  assert (other['baseline'], other['difference']) == pytest.approx((0.3, 0.55)) and 'baseline' not in first


def test_a_run_whose_folder_is_gone_is_read_from_its_result(tmp_path, monkeypatch):
  monkeypatch.setattr(record, 'RESULTS', tmp_path)
  monkeypatch.setattr(record, 'run_summary', lambda workdir: summary(float(str(workdir)[-3:])))
  metrics = [{'step': 5, 'bleu': 0.1}, {'step': 6}]
  monkeypatch.setattr(folds.run_folder, 'read_metrics', lambda workdir: metrics)
  shared = ['folds', '--name=sums', '--claim=Sums', '--curve=bleu']
  for done in (['0.8'], ['0.8', '0.9']):
    monkeypatch.setattr(sys, 'argv', [*shared, f'--workdirs={",".join(str(tmp_path / d) for d in done)}'])
    folds.main()
    merged = json.loads((tmp_path / 'sums.json').read_text())
    assert merged['name'] == 'sums' and len(merged['numbers']['curves']['bleu']) == len(done)
    assert len(done) > 1 or merged['numbers']['evaluations'][0]['interval'] == [0, 1]
  monkeypatch.setattr(record, 'run_summary', None)
  folds.main()
  merged = json.loads((tmp_path / 'sums.json').read_text())
  assert merged['numbers']['evaluations'][0]['runs'] == {'0.8': 0.8, '0.9': 0.9}
  assert merged['numbers']['curves'] == {'bleu': {'0.8': [[5, 0.1]], '0.9': [[5, 0.1]]}}


def test_bleu_counts_to_a_hundred():
  run = summary(36.4)
  run['evaluations_later'][0] |= {
    'metric': 'bleu',
    'interval': [34.8, 37.9],
    'chance': 0.6,
    'task': 'translate',
  }
  assert table.headline(run) == 'sums BLEU 36.4 (34.8 to 37.9)'
  [row] = folds.merge_folds({'a': run, 'b': summary(38.0)})['numbers']['evaluations']
  assert row['value'] == pytest.approx(37.2) and row['interval'][1] > 40


def test_examples_are_the_first_texts_of_each_source(tmp_path):
  lines = [
    {'split': split, 'source': source, 'input': text, 'target': 'A', 'prediction': f'{n}', 'baseline': 'B'}
    for n, (split, source, text) in enumerate(
      [('valid', 'a', 'x'), *[('test', 'a', 'x')] * 3, ('test', 'b', {'image': 'x.png'}), ('test', 'c', 'y')]
    )
  ]
  (tmp_path / 'predictions.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
  examples = record.text_examples(tmp_path, 2)
  assert [(e['source'], e['run'], e['references']) for e in examples] == [
    ('a', '1', ['A']),
    ('a', '2', ['A']),
    ('c', '5', ['A']),
  ]


def test_results_have_no_path_of_a_machine():
  parents = [{'how': 'import', 'path': '/home/me/models/gemma', 'parents': []}]
  assert record.without_folders({'parents': parents})['parents'][0]['path'] == 'models/gemma'
  assert record.without_folders({'text': ('a/b', 'I/O', 3)}) == {'text': ['a/b', 'I/O', 3]}
  for path in record.RESULTS.rglob('*.json'):
    assert not re.search(r'"/\w+/', path.read_text()), path
