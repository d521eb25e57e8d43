"""Every job x every key that names a metric: names that no run gives fail before training, others do not."""

import dataclasses
import itertools

import pytest

from gpt_jax import train
from gpt_jax.ablation import proof
from gpt_jax.ablation.stats import scores
from gpt_jax.evaluation import evaluate
from gpt_jax.runs import run_folder
from gpt_jax.training import session
from tests import tiny_runs
from tests.tiny_runs import assert_two_lines

# Of accelerators, experts, a reference, shared completions, a learned codebook, or a whole validation text:
# not in `tail` here.
ABSENT = {'mfu', 'mfu_causal', 'memory_gib', 'moe_balance', 'moe_z', 'moe_dropped', 'kl', 'commitment'}
ABSENT |= {'clipped_tokens', 'valid_bits_per_byte'}


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
  """{job: a tiny Config of it}."""
  base = tiny_runs.finished(tmp_path_factory)
  records = tiny_runs.questions(tmp_path_factory.mktemp('records') / 'records.jsonl')
  made = {job: tiny_runs.on_base(base, records, job) for job in ('dpo', 'grpo', 'distil')}
  codecs = {f'{modality}_tokenizer': tiny_runs.codec(modality) for modality in ('image', 'audio')}
  return {'gpt': tiny_runs.experiment()} | made | codecs


@pytest.fixture(scope='module')
def job_of(configs, tmp_path_factory):
  """A function: name of a job -> the job, built once."""
  made = {}

  def build(name):
    if name not in made:
      folder = tmp_path_factory.mktemp('job')
      made[name] = session.setup(
        configs[name], folder, train.make_mesh(configs[name].mesh), train.JOBS[name], trace=False
      ).job
    return made[name]

  return build


def known(cfg, job, metric):
  """Whether a study of this config may be judged by a metric."""
  scored_on = proof.validation_inputs(job, cfg)[1]
  try:
    proof.check_metric(metric, cfg, scored_on)
  except ValueError as error:
    assert_two_lines(error, metric)
    return False
  return True


def test_every_job_is_here(configs):
  assert set(configs) == set(train.JOBS)


@pytest.mark.parametrize('name', train.JOBS)
def test_a_study_may_be_judged_by_what_a_run_gives_and_nothing_else(
  name, configs, job_of, tmp_path_factory, tmp_path
):
  if name == 'gpt':
    folder = tiny_runs.finished(tmp_path_factory)
  elif name.endswith('_tokenizer'):
    folder = tiny_runs.codec_finished(tmp_path_factory, name.partition('_')[0])
  else:
    folder = tmp_path / 'run'
    train.train(configs[name], folder)
  numbers = scores.numeric_results(run_folder.read_result(folder))
  cfg, job = configs[name], job_of(name)
  refused = {metric for metric in numbers if not known(cfg, job, metric)}
  assert not refused
  own = {*itertools.chain(*((s, f'tail/{s}') for s in job.scores)), *(f'tail/{s}' for s in job.logged)}
  assert {metric for metric in own - set(numbers) if metric.partition('/')[2] not in ABSENT} == set()
  others = {s for other in train.JOBS.values() for s in (*other.scores, *other.logged)}
  for metric in others - {*job.scores, *job.logged}:
    assert not known(cfg, job, metric) and not known(cfg, job, f'tail/{metric}'), metric
  assert set(job.scored_tasks) <= {row['task'] for row in run_folder.read_result(folder)['evaluations']}


KEYS = {  # what names a metric: how a wrong name of it is met
  'Study.metric': lambda cfg, job_of, name, wrong: proof.check_metric(
    wrong, cfg, proof.validation_inputs(job_of(name), cfg)[1]
  ),
  'train.tasks': lambda cfg, job_of, name, wrong: build_with(cfg, name, tasks=(wrong,)),
  'train.tasks_every': lambda cfg, job_of, name, wrong: build_with(cfg, name, tasks=(wrong,), tasks_every=2),
}


def build_with(cfg, name, **changes):
  """Set the job up with changes of cfg.train; it never gets to write a folder."""
  cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, **changes))
  session.setup(cfg, None, train.make_mesh(cfg.mesh), train.JOBS[name], trace=False)


@pytest.mark.parametrize('wrong', ['answr', 'answr/records/exact_match', 'valid_los', 'tail/rewrad'])
@pytest.mark.parametrize('key', KEYS)
@pytest.mark.parametrize('name', train.JOBS)
def test_a_wrong_name_is_met_before_training(name, key, wrong, configs, job_of):
  with pytest.raises(ValueError) as error:
    KEYS[key](configs[name], job_of, name, wrong)
  assert_two_lines(error.value, wrong)


@pytest.mark.parametrize('name', [name for name in train.JOBS if not name.endswith('_tokenizer')])
def test_a_score_of_a_task_that_does_not_run_is_refused(name, configs, job_of):
  assert 'answer' in evaluate.TASKS and configs[name].train.tasks == ()
  metric = f'answer/{next(iter(configs[name].data.mixture))}/exact_match'
  assert not known(configs[name], job_of(name), metric)
  cfg = dataclasses.replace(configs[name], train=dataclasses.replace(configs[name].train, tasks=('answer',)))
  assert known(cfg, job_of(name), metric)


@pytest.mark.parametrize('name', train.JOBS)
def test_scores_of_validation_data_need_some(name, configs, job_of):
  cfg, job = configs[name], job_of(name)
  nothing = proof.validation_inputs(job, cfg)[1] | {'sources': {}}
  for metric in job.scores:
    with pytest.raises(ValueError) as error:
      proof.check_metric(metric, cfg, nothing)
    assert_two_lines(error.value, metric, 'validation data')


@pytest.mark.parametrize('name', train.JOBS)
def test_a_score_of_a_source_that_is_not_there_is_refused(name, configs, job_of):
  cfg, job = configs[name], job_of(name)
  task = job.scored_tasks[0]
  assert known(cfg, job, f'{task}/{next(iter(cfg.data.mixture))}/x') and known(cfg, job, f'{task}/x')
  assert not known(cfg, job, f'{task}/recods/x')
