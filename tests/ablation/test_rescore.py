"""`report --rescore`: finished runs of a study are evaluated again, by other code."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from gpt_jax.ablation import source_digest, store
from gpt_jax.ablation.execute import rescore, runner
from gpt_jax.evaluation import evaluate
from gpt_jax.reports import study_report
from gpt_jax.runs import records
from tests import ablation_study, tiny_runs
from tests.tiny_runs import assert_two_lines, snapshot


@pytest.fixture
def study(tmp_path, tmp_path_factory):
  """A study folder of two arms, both of which are the tiny run."""
  planned = ablation_study.study(('learned',), seeds=1) | {'evaluation code': 'old', 'analysis code': ''}
  for arm in planned['arms']:
    arm['inputs'] = {'evaluation code': 'old', 'train step': arm['name']}
    run = store.run_path(tmp_path, arm['slug'], 0)
    shutil.copytree(tiny_runs.finished(tmp_path_factory), run)
  ablation_study.write(tmp_path, planned)
  runner.judge(tmp_path, lambda line: None)
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield tmp_path


def results(study):
  return [row['result'] for row in store.read_runs(study)]


def shifted(task):
  """A task whose values are larger by 1."""
  run = lambda *args, **options: [row | {'value': row['value'] + 1} for row in task.run(*args, **options)]
  return dataclasses.replace(task, run=run) if dataclasses.is_dataclass(task) else task._replace(run=run)


def test_scores_of_the_present_code_replace_the_old_ones(study, monkeypatch):
  before, spec = results(study), store.read_study(study)
  arms = [arm | {'inputs': arm['inputs'] | {'evaluation code': 'new'}} for arm in spec['arms']]
  new_spec = spec | {'arms': arms}
  with pytest.raises(ValueError) as error:  # what launch.py ablate says then
    runner.check_same(study, spec, new_spec)
  assert '--rescore' in assert_two_lines(error.value, 'evaluation code')[1]
  monkeypatch.setattr(source_digest, 'scoring_code', lambda: 'new')
  monkeypatch.setitem(evaluate.TASKS, 'perplexity', shifted(evaluate.TASKS['perplexity']))
  rescore.rescore(study, lambda line: None)
  for old, new in zip(before, results(study), strict=True):
    assert new['valid_loss'] == pytest.approx(old['valid_loss'] + 1, abs=1e-5)
    [change] = new['rescored']
    assert change['evaluation code'] == ['old', 'new']
    assert change['before']['valid_loss'] == old['valid_loss'] and 'tokens' not in change['before']
    assert all(new[key] == old[key] for key in ('steps', 'tokens', 'seconds', 'loss', 'tail', 'hyper'))
  runner.check_same(study, store.read_study(study), new_spec)
  runner.judge(study, lambda line: None)
  analysis = records.read_json(study / 'analysis.json')
  assert analysis['arms'][0]['mean'] == pytest.approx(before[0]['valid_loss'] + 1, abs=1e-5)
  assert 'evaluation code after 2 results' in analysis['exploratory'][0]
  page = (study / 'report.md').read_text()
  assert 'Scored again' in page and f'{before[0]["valid_loss"]:.3f}' in page


def test_the_same_code_gives_the_same_scores(study, monkeypatch):
  monkeypatch.setattr(source_digest, 'scoring_code', lambda: 'old')
  before = results(study)
  rescore.rescore(study, lambda line: None)
  for old, new in zip(before, results(study), strict=True):
    assert new['valid_loss'] == pytest.approx(old['valid_loss'], abs=1e-6)
  assert not store.read_study(study).get('amendments')


@pytest.mark.parametrize('what', ['checkpoint', 'metric'])
def test_nothing_is_written_where_a_run_cannot_be_scored_again(study, what):
  spec = store.read_study(study)
  if what == 'metric':
    records.write_json(study / 'study.json', spec | {'metric': 'loss'})
  else:
    shutil.rmtree(store.run_path(study, spec['arms'][1]['slug'], 0) / 'checkpoints' / '12')
  before = snapshot(study)
  with pytest.raises(ValueError) as error:
    rescore.rescore(study, lambda line: None)
  assert_two_lines(error.value, 'last step, 12' if what == 'checkpoint' else "metric='loss'")
  after = snapshot(study)
  assert {path for path in before if before[path] != after[path]} <= {'.lock'}


def test_a_result_without_its_digest_is_named_in_the_report(study):
  row = store.read_runs(study)[1]
  assert not row['message']
  path = Path(row['folder']) / 'result.json'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join(lines).replace(f'{lines[-2]}', '').replace(',\n\n}', '\n}'))
  assert store.read_runs(study)[1]['status'] == 'done'
  study_report.write_report(study)
  assert 'no digest: it was edited' in (study / 'report.md').read_text()
