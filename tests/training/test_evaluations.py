"""Tasks during training: curves of their scores, which change nothing else in a run."""

import dataclasses
import json

import numpy as np
import pytest

from gpt_jax import train
from gpt_jax.ablation import store
from gpt_jax.ablation.execute import replicas
from gpt_jax.runs import run_folder
from gpt_jax.runs.metric_names import score_name
from tests import tiny_runs
from tests.tiny_runs import TINY, experiment

QUESTIONS = [{'query': 'a b', 'choices': ['c', 'd', 'e f'], 'gold': n % 3} for n in range(6)]
NAME = 'choose/quiz/accuracy'


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def cfg(tmp_path_factory):
  """The tiny experiment with a benchmark that it does not train on."""
  path = tmp_path_factory.mktemp('quiz') / 'quiz.jsonl'
  path.write_text(''.join(json.dumps(question) + '\n' for question in QUESTIONS))
  quiz = {'kind': 'jsonl', 'path': str(path), 'template': '{query} {choices[gold]}', 'weight': 0.0}
  return experiment(
    data__mixture=TINY['data.mixture'] | {'quiz': quiz},
    train__tasks=('choose',),
    train__tasks_every=4,
    train__tasks_limit=5,
    train__sample_prompts=(),
  )


@pytest.fixture(scope='module')
def run(cfg, tmp_path_factory):
  """The run folder of `cfg`."""
  folder = tmp_path_factory.mktemp('tasks') / 'run'
  train.train(cfg, folder)
  return folder


def curve(folder, name=NAME):
  return {line['step']: line[name] for line in run_folder.read_metrics(folder) if name in line}


def test_tasks_are_logged_as_curves_and_change_nothing_else(run, tmp_path_factory):
  assert list(curve(run)) == [4, 8, 12]
  assert all(score in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) for score in curve(run).values())  # of five examples
  [row] = [
    row
    for row in run_folder.read_result(run)['evaluations']
    if row['metric'] == 'accuracy' and 'control' not in row
  ]
  assert row['n'] == 6  # at the end, all of them
  scored = [e for e in run_folder.read_events(run) if e['event'] == 'evaluate' and 'chances' in e]
  assert [(e['step'], e['chances']) for e in scored] == [
    (step, {NAME: pytest.approx(1 / 3)}) for step in (4, 8, 12)
  ]
  expected = tiny_runs.arrays(tiny_runs.finished(tmp_path_factory))
  for path, value in tiny_runs.arrays(run).items():
    np.testing.assert_array_equal(value, expected[path], err_msg=path)


def test_the_examples_of_the_last_scores_are_kept(run):
  result = run_folder.read_result(run)
  right = store.read_examples(run, result, NAME)
  assert len(right) == len(QUESTIONS)
  [row] = [row for row in result['evaluations'] if score_name(row) == NAME]
  assert sum(right) / len(QUESTIONS) == pytest.approx(row['value'])
  assert store.read_examples(run, result, 'valid_loss') == []


def test_the_report_draws_the_curves_beside_the_losses(run):
  page = (run / 'report.html').read_text()
  assert page.index('<h2>Loss</h2>') < page.index('<h2>Tasks</h2>') < page.index('<h2>Evaluation</h2>')
  assert 'aria-label="choose quiz: accuracy against tokens"' in page
  assert f'<figcaption>{NAME}<span>' not in page  # not among the signals, too


def test_a_run_stopped_in_a_task_runs_it_again_and_the_period_may_change(cfg, run, tmp_path):
  calls = []
  stop = lambda step: bool(calls.append(step)) or calls.count(8) == 4  # step, two batches of text, choose
  assert train.train(cfg, tmp_path / 'run', stop) is None
  events = [(e['event'], e.get('step')) for e in run_folder.read_events(tmp_path / 'run')]
  assert events[-1] == ('preempted', 8) and ('evaluate', 8) in events
  assert list(curve(tmp_path / 'run')) == [4]
  often = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, tasks_every=2, tasks_limit=5))
  train.train(often, tmp_path / 'run')
  resumed = curve(tmp_path / 'run')
  assert list(resumed) == [4, 8, 10, 12]
  assert {step: resumed[step] for step in (4, 8, 12)} == curve(run)


@pytest.mark.slow
def test_vmapped_replicas_have_the_curves_of_the_run_alone(cfg, run, tmp_path):
  other = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, seed=1))
  outcomes = replicas.train_together([cfg, other], [tmp_path / '0', tmp_path / '1'])
  assert [outcome.outcome for outcome in outcomes] == ['done', 'done']
  assert curve(tmp_path / '0') == curve(run)
  assert list(curve(tmp_path / '1')) == [4, 8, 12]
  bits = 'choose/quiz/bits_per_byte'
  assert curve(tmp_path / '0', bits) == pytest.approx(curve(run, bits), rel=1e-4)
  assert curve(tmp_path / '1', bits) != pytest.approx(curve(run, bits), rel=1e-4)
