"""Studies with several metrics: one family of tests, a direction and a tolerance for each metric."""

import csv
import io

import numpy as np
import pytest

from gpt_jax.ablation import design, proof, protocol, store
from gpt_jax.ablation.design import Study
from gpt_jax.ablation.stats import analyze, inference
from gpt_jax.ablation.stats.sequential import Sequential
from gpt_jax.reports import study_report, study_results, study_tables
from gpt_jax.runs import records
from tests import ablation_study, tiny_runs
from tests.tiny_runs import assert_two_lines

SHARE = 'answer/read/exact_match'
OUTCOMES = [{'metric': SHARE, 'better': 'higher', 'tolerance': 0.02}]


@pytest.fixture
def measured(tmp_path):
  """A study of losses and, in opposite directions, shares of right answers."""
  planned = ablation_study.study() | {'outcomes': OUTCOMES}
  rows = ablation_study.rows(planned, tmp_path, samples=False)
  for row in rows:
    score = {'task': 'answer', 'source': 'read', 'metric': 'exact_match', 'n': 1000}
    value = round(2.4 - row['result']['valid_loss'], 3)
    row['result']['evaluations'] = [score | {'value': value}]
  analysis = analyze.analyze(planned, rows)
  return study_results.StudyResults(planned, rows, analysis, (), tmp_path)


def test_all_arms_and_metrics_are_one_family(measured):
  [outcome] = measured.analysis['outcomes']
  compared = [arm for arm in (*measured.analysis['arms'], *outcome['arms']) if arm['verdict'] != 'baseline']
  assert measured.analysis['family'] == len(compared) == 2 * len(ablation_study.ARMS)
  adjusted = inference.holm([arm['p'] for arm in compared])
  np.testing.assert_allclose([arm['p_holm'] for arm in compared], adjusted)
  alone = analyze.analyze(measured.spec | {'outcomes': []}, measured.rows)
  assert alone['family'] == len(ablation_study.ARMS) and alone['outcomes'] == []
  pairs = zip(alone['arms'], measured.analysis['arms'], strict=True)
  assert all(one['p'] == both['p'] and (one['p_holm'] or 0) <= (both['p_holm'] or 0) for one, both in pairs)


def test_each_metric_has_its_own_direction_and_tolerance(measured):
  [outcome] = measured.analysis['outcomes']
  losses, shares = ({arm['name']: arm for arm in each['arms']} for each in (measured.analysis, outcome))
  for arms, sign in ((losses, -1), (shares, 1)):
    assert arms['positions=alibi']['verdict'] == 'better'
    assert arms['positions=alibi']['difference'] * sign > 0
    assert arms['positions=none']['verdict'] == 'worse'
  # Worse by more than the 0.01 of losses; not shown to be different by more than the 0.02 of shares.
  assert losses['positions=learned']['verdict'] == 'worse'
  assert shares['positions=learned']['verdict'] in ('undecided', 'no difference', 'worse')
  assert shares['positions=nope=a|b']['p_equivalence'] <= losses['positions=nope=a|b']['p_equivalence']
  assert shares['base']['se_examples'] is None and shares['positions=none']['se_examples'] > 0


def test_the_headline_is_of_the_first_metric_and_the_tables_show_all(measured):
  assert 'validation loss' in study_results.headline(measured)
  assert 'exact match' not in study_results.headline(measured)
  table = study_tables.results_table(measured)
  assert table.header[:2] == ['metric', 'arm'] and len(table.rows) == 2 * len(measured.arms)
  assert {row[0] for row in table.rows} == {'validation loss', 'answer/read/exact match'}
  markdown = study_report.render_markdown(measured)
  assert 'comparisons in 2 metrics' in markdown and 'higher answer/read/exact' in markdown
  assert 'exact match' not in str(study_tables.measures_table(measured))
  lines = list(csv.DictReader(io.StringIO(study_tables.to_csv(measured))))
  assert [line['metric'] for line in lines].count(SHARE) == len(measured.arms)
  assert study_report.render_latex(measured).count('positions=alibi') > 1
  assert 'metric' not in study_tables.results_table(without_outcomes(measured)).header


def without_outcomes(study):
  analysis = analyze.analyze(study.spec | {'outcomes': []}, study.rows)
  return study_results.StudyResults(study.spec, study.rows, analysis, (), study.folder)


def test_outcomes_are_in_the_protocol(measured):
  with_outcomes = protocol.make_protocol(measured.spec)
  earlier = protocol.make_protocol({k: v for k, v in measured.spec.items() if k != 'outcomes'})
  [text] = protocol.describe_changes(earlier, with_outcomes)
  assert text.startswith('outcomes [] -> ') and SHARE in text
  assert protocol.describe_changes(with_outcomes, with_outcomes) == []


def test_examples_are_read_for_each_metric(tmp_path):
  planned = ablation_study.study((), seeds=1) | {'outcomes': OUTCOMES}
  ablation_study.write(tmp_path, planned)
  run = store.run_path(tmp_path, 'base', 0)
  run.mkdir(parents=True)
  records.write_json(run / 'config.json', {'train': {'steps': 3}})
  score = {'task': 'answer', 'source': 'read', 'metric': 'exact_match', 'value': 0.5, 'n': 2}
  records.write_json(run / 'result.json', {'steps': 3, 'valid_loss': 1.0, 'evaluations': [score]})
  for index in range(2):
    line = {'task': 'answer', 'source': 'read', 'index': index, 'exact_match': float(index)}
    records.append_line(run / 'predictions.jsonl', line)
  [row] = store.read_runs(tmp_path)
  assert row['examples'] == [] and row['further_examples'] == {SHARE: [0.0, 1.0]}


@pytest.mark.parametrize(
  'settings, part',
  [
    ({'outcomes': {SHARE: 'higher'}}, 'not (better, tolerance)'),
    ({'outcomes': {SHARE: ('up', 0.1)}}, 'not (better, tolerance)'),
    ({'outcomes': {SHARE: ('higher', -0.1)}}, 'not (better, tolerance)'),
    ({'metric': 'loss', 'outcomes': {'loss': ('lower', 0.1)}}, "metric='loss' again"),
    ({'outcomes': {'loss': ('lower', 0.1)}, 'seeds': Sequential(3, 6)}, 'judged by one metric'),
  ],
)
def test_mistakes(settings, part):
  with pytest.raises(ValueError) as error:
    Study('x.py', {'optim.lr': [1e-3]}, **settings)
  assert_two_lines(error.value, part)


def test_an_unknown_metric_is_an_error_before_anything_runs(tmp_path):
  (tmp_path / 'tiny.py').write_text(
    'from tests import tiny_runs\ndef get_config(arg=""):\n  return tiny_runs.section()\n'
  )
  with pytest.raises(ValueError) as error:
    cfg = tiny_runs.experiment()
    study = Study(str(tmp_path / 'tiny.py'), {'optim.lr': [1e-3]}, outcomes={'valid_los': ('lower', 0.1)})
    arms = design.make_arms(study)
    fake = dict.fromkeys((arm.name for arm in arms), proof_of(cfg))
    proof.describe_study(study, arms, fake)
  assert 'valid_loss' in assert_two_lines(error.value, "metric='valid_los'")[1]


def proof_of(cfg):
  """A Proof with what describe_study reads before the arms."""
  fields = dict.fromkeys(proof.Proof._fields, 0)
  return proof.Proof(**fields | {'scored_on': {'bytes': True, 'sources': {'text': {}}}})
