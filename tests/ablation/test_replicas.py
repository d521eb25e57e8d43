"""Replicas equal single runs and do not affect each other."""

import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest

from gpt_jax import config, sharding, train
from gpt_jax.ablation.execute import replicas
from gpt_jax.runs import records, run_folder
from gpt_jax.step import TrainState
from gpt_jax.training import session
from tests import tiny_runs
from tests.tiny_runs import assert_two_lines, experiment

ROOT = pathlib.Path(__file__).parents[2]
TIMED = ('time', 'tokens_per_second', 'mfu', 'mfu_causal', 'memory_gib', 'step_seconds')
# A seed and two traced numbers; dropout is one that a model's static part knows, too.
COMMON = dict(train__sample_prompts=(), train__eval_every=6, checkpoint__every=6)
SETTINGS = (
  COMMON | dict(train__seed=0, model__dropout=0.1),
  COMMON | dict(train__seed=1, model__dropout=0.1),
  COMMON | dict(train__seed=0, model__dropout=0.3, optim__lr=1e-2),
)


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


def one_device(monkeypatch):
  """Replicas on one device; else each of them has its own."""
  everywhere = jax.devices
  monkeypatch.setattr(replicas.jax, 'devices', lambda *a: everywhere(*a)[:1])


def logged(workdir):
  """{step: what was logged that the machine's speed has no part in}."""
  lines = run_folder.read_metrics(workdir)
  return {x['step']: {k: v for k, v in x.items() if k not in (*TIMED, 'step')} for x in lines}


def events(workdir):
  return [(event['event'], event.get('step')) for event in run_folder.read_events(workdir)]


def assert_same(found, alone, tolerance=1e-5):
  """Two run folders hold the same numbers and the same parameters."""
  lines, expected = logged(found), logged(alone)
  assert lines.keys() == expected.keys()
  for step, line in expected.items():
    assert lines[step] == pytest.approx(line, rel=tolerance, abs=tolerance, nan_ok=True), step
  arrays, expected = tiny_runs.arrays(found), tiny_runs.arrays(alone)
  assert arrays.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_allclose(
      arrays[path].astype(np.float64), value, rtol=tolerance, atol=tolerance, err_msg=path
    )


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """`alone(r)` -> the folder of the r-th run of SETTINGS, trained by itself once."""

  @functools.cache
  def run(r):
    folder = tmp_path_factory.mktemp('alone')
    train.train(experiment(**SETTINGS[r]), folder)
    return folder

  return run


@pytest.mark.slow
def test_replicas_that_branch_off_equal_the_branches_alone(alone, tmp_path, monkeypatch):
  one_device(monkeypatch)
  branch = dict(train__branch_from=f'{alone(0)}@6', optim__schedule='wsd', model__dropout=0.1)
  changes = [COMMON | branch | more for more in ({}, {'optim__lr': 1e-3}, {'train__seed': 7})]
  folders = [tmp_path / str(r) for r in range(3)]
  outcomes = replicas.train_together([experiment(**c) for c in changes], folders)
  assert [(o.outcome, o.message) for o in outcomes] == [('done', '')] * 3
  assert outcomes[0].result['replicas'] == 3
  for r, change in enumerate(changes):
    train.train(experiment(**change), tmp_path / f'alone{r}')
    assert_same(folders[r], tmp_path / f'alone{r}')
    assert sorted(logged(folders[r])) == list(range(6, 13))  # evaluated at 6 as its parent was
    assert [parent['step'] for parent in outcomes[r].result['parents']] == [6]


@pytest.mark.slow  # in the fast set: test_trust.py
@pytest.mark.parametrize('devices', [1, 3])
def test_replicas_equal_the_runs_alone(alone, tmp_path, monkeypatch, devices):
  if devices == 1:
    one_device(monkeypatch)
  else:
    assert replicas.make_replica_mesh(sharding.MeshConfig(), 3).shape['replica'] == 3
  folders = [tmp_path / str(r) for r in range(3)]
  fits, seen = replicas.replicas_that_fit, []
  spy = lambda step, *rest: seen.append(fits(step, 3, 1e5)) or fits(step, *rest)
  monkeypatch.setattr(replicas, 'replicas_that_fit', spy)
  outcomes = replicas.train_together([experiment(**s) for s in SETTINGS], folders)
  assert [(o.outcome, o.code, o.message) for o in outcomes] == [('done', 0, '')] * 3
  assert seen == [1]  # a real step says what it needs: more than 100 kB
  for folder, reference, outcome in zip(folders, map(alone, range(3)), outcomes, strict=True):
    assert_same(folder, reference)
    assert events(folder) == events(reference)
    result, expected = run_folder.read_result(folder), run_folder.read_result(reference)
    assert outcome.result['valid_loss'] == result['valid_loss']
    for name in ('tokens', 'targets', 'flops', 'hyper', 'data', 'tokenizer'):
      assert result[name] == expected[name], name
    assert result['valid_loss'] == pytest.approx(expected['valid_loss'], abs=1e-5)
    assert (result['replicas'], expected['replicas']) == (3, 1)
    assert 0 < result['goodput'] < 1
    assert run_folder.read_config(folder) == run_folder.read_config(reference)
    assert (folder / 'report.html').exists()
  ends = [run_folder.read_result(folder)['valid_loss'] for folder in folders]
  assert len({round(value, 3) for value in ends}) == 3  # they are three runs


@pytest.mark.slow
def test_several_steps_a_call_and_shards_within_a_replica(tmp_path):
  """Whole runs on two groups of devices, each of which shares a batch and the weights."""
  changes = dict(
    train__steps_per_call=2,
    train__eval_every=0,
    train__sample_prompts=(),
    train__sample_every=0,
    checkpoint__every=6,
  )
  alone, meshes = experiment(**changes), dict(mesh__replica=2, mesh__data=2, mesh__fsdp=2)
  train.train(alone, tmp_path / 'alone')
  configs = [experiment(train__seed=seed, **changes, **meshes) for seed in (1, 0)]
  outcomes = replicas.train_together(configs, [tmp_path / '1', tmp_path / '0'])
  assert [outcome.outcome for outcome in outcomes] == ['done', 'done']
  assert_same(tmp_path / '0', tmp_path / 'alone')


@pytest.mark.slow
def test_runs_resume_alone_or_together_from_different_steps(alone, tmp_path):
  configs, folders = [experiment(**s) for s in SETTINGS], [tmp_path / str(r) for r in range(3)]
  assert train.train(configs[0], folders[0], tiny_runs.stop_before(5)) is None
  stopped = replicas.train_together(configs[:2], folders[:2], tiny_runs.stop_before(3))
  assert [(o.outcome, o.code, o.result) for o in stopped] == [('stopped', 75, None)] * 2
  assert [events(folder)[-1] for folder in folders[:2]] == [('preempted', 6), ('preempted', 1)]
  train.train(configs[2], folders[2])
  before = tiny_runs.snapshot(folders[2])
  outcomes = replicas.train_together(configs, folders)
  assert [outcome.outcome for outcome in outcomes] == ['done'] * 3
  for folder, reference in zip(folders, map(alone, range(3)), strict=True):
    assert_same(folder, reference)
  changed = {k for k, v in tiny_runs.snapshot(folders[2]).items() if before.get(k) != v}
  assert changed <= {'.lock', 'events.jsonl'}  # it was done
  assert ('resume', 6) in events(folders[0]) and ('resume', 1) in events(folders[1])


@pytest.mark.slow
def test_a_diverged_replica_does_not_affect_the_others(alone, tmp_path, capsys):
  wild = experiment(**SETTINGS[0] | dict(optim__lr=1e20))
  configs = [experiment(**SETTINGS[0]), wild, experiment(**SETTINGS[1])]
  configs = [replace(cfg, max_skipped=3) for cfg in configs]
  folders = [tmp_path / str(r) for r in range(3)]
  outcomes = replicas.train_together(configs, folders)
  assert [outcome.outcome for outcome in outcomes] == ['done', 'diverged', 'done']
  assert outcomes[1].code == 1
  assert 'not finite in 3 steps in a row, up to step 4' in outcomes[1].message
  last = run_folder.read_events(folders[1])[-1]
  assert (last['event'], last['type']) == ('error', 'FloatingPointError')
  assert not (folders[1] / 'result.json').exists()
  assert list(logged(folders[1])) == [1, 2, 3, 4]
  assert_same(folders[0], alone(0))
  assert_same(folders[2], alone(1))


def replace(cfg, **changes):
  """The config with these keys of its train section."""
  return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, **changes))


@pytest.mark.slow
def test_an_error_of_one_run_does_not_affect_the_others(alone, tmp_path, monkeypatch):
  """One cannot start, one cannot save, one is another's already."""
  settings = [*SETTINGS, SETTINGS[0]]
  configs, folders = [experiment(**s) for s in settings], [tmp_path / str(r) for r in range(4)]
  (tmp_path / '0').mkdir()
  (tmp_path / '0' / 'precious.txt').write_text('not a run')
  save = session.save

  def full(s):
    if s.workdir == folders[1] and s.step == 6:
      raise OSError(28, 'No space left on device')
    save(s)

  monkeypatch.setattr(session, 'save', full)
  folders[3].mkdir()
  with records.locked(folders[3]):
    outcomes = replicas.train_together(configs, folders)
  codes = [(o.outcome, o.code) for o in outcomes]
  assert codes == [('failed', 2), ('failed', 1), ('done', 0), ('failed', 2)]
  assert f'is being written by process {os.getpid()}' in outcomes[3].message
  assert 'precious.txt' in outcomes[0].message
  assert outcomes[1].message == 'OSError: [Errno 28] No space left on device'
  assert run_folder.read_events(folders[1])[-1]['type'] == 'OSError'
  assert_same(folders[2], alone(2))
  monkeypatch.undo()
  with records.locked(folders[1]):  # both folders are free again
    pass


@pytest.mark.slow
def test_an_error_of_the_step_fails_all_runs(tmp_path, monkeypatch):
  def broken(group, live):
    raise RuntimeError('out of memory')

  monkeypatch.setattr(replicas.Group, 'train_step', broken)
  folders = [tmp_path / '0', tmp_path / '1']
  outcomes = replicas.train_together([experiment(train__seed=s) for s in (0, 1)], folders)
  assert [o.outcome for o in outcomes] == ['failed', 'failed']
  for folder in folders:
    assert run_folder.read_events(folder)[-1]['message'] == 'out of memory'
    with records.locked(folder):
      pass


@pytest.fixture
def grouped(monkeypatch):
  """The seeds of each group that is made, where memory holds two and seed 7 cannot start."""
  made = []

  class Fake:
    def __init__(self, pairs):
      self.seeds = [cfg.train.seed for cfg, _ in pairs]
      self.max_replicas = min(2, len(self.seeds))
      made.append(self.seeds)

    def outcomes(self):
      return [replicas.Outcome('failed') if seed == 7 else None for seed in self.seeds]

    def release(self):
      pass

    def train(self, should_stop):
      return [replicas.Outcome('done', result=seed) for seed in self.seeds]

  def alone(cfg, folder, should_stop):
    made.append([cfg.train.seed])
    return replicas.Outcome('done', result=cfg.train.seed)

  monkeypatch.setattr(replicas, 'Group', Fake)
  monkeypatch.setattr(replicas, 'train_alone', alone)
  return made


@pytest.mark.parametrize(
  'seeds, groups',
  [
    ([0], [[0]]),
    ([0, 1], [[0, 1]]),
    ([0, 1, 2], [[0, 1, 2], [0, 1], [2]]),
    ([0, 7, 2], [[0, 7, 2], [0, 2]]),  # the mesh is for as many as train
    ([0, 1, 2, 3, 4], [[0, 1, 2, 3, 4], [0, 1], [2, 3], [4]]),
  ],
)
def test_as_many_runs_train_at_once_as_fit(grouped, seeds, groups):
  configs = [experiment(train__seed=seed) for seed in seeds]
  outcomes = replicas.train_together(configs, seeds)
  assert grouped == groups
  for seed, outcome in zip(seeds, outcomes, strict=True):
    assert (outcome.outcome, outcome.result) == (('failed', None) if seed == 7 else ('done', seed))


@pytest.mark.parametrize('changes', [dict(train__spike_sigma=6.0), dict(train__sdc_every=4)])
def test_runs_with_spike_rollback_or_sdc_checks_train_alone(grouped, changes):
  """They may go back to a checkpoint, or compare what a step gives."""
  configs = [experiment(train__seed=seed, **changes) for seed in range(3)]
  replicas.train_together(configs, range(3))
  assert grouped == [[0], [1], [2]]


def test_waiting_runs_do_not_start_after_a_stop_request(grouped):
  configs = [experiment(train__seed=seed) for seed in range(4)]
  outcomes = replicas.train_together(configs, range(4), tiny_runs.stop_before(2))
  assert [outcome.outcome for outcome in outcomes] == ['done', 'done', 'stopped', 'stopped']


@pytest.mark.slow
def test_a_stop_during_compilation_changes_no_run(tmp_path):
  pairs = [(experiment(**setting), tmp_path / str(r)) for r, setting in enumerate(SETTINGS[:2])]
  for cfg, folder in pairs:
    train.train(cfg, folder, tiny_runs.stop_before(2))
  group, before = replicas.Group(pairs), tiny_runs.snapshot(tmp_path)
  assert [(o.outcome, o.code) for o in group.train(lambda: True)] == [('stopped', 75)] * 2
  assert tiny_runs.snapshot(tmp_path) == before


def test_states_that_fit_are_counted_whole_and_stacked():
  sharding_of = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  words = lambda n: jax.ShapeDtypeStruct((n,), np.float32, sharding=sharding_of)
  state = TrainState(None, words(20), words(5), None, {})
  fits = lambda memory, devices=1, frozen=None: replicas.states_that_fit(
    state._replace(frozen=frozen), 8, devices, memory
  )
  assert (fits(1600), fits(1599), fits(200), fits(1)) == (8, 7, 1, 1)
  assert (fits(900, devices=8), fits(899, devices=8)) == (8, 7)
  assert (fits(1680, frozen=words(10)), fits(1679, frozen=words(10))) == (8, 7)


def test_runs_beyond_the_memory_of_states_are_not_set_up(tmp_path, monkeypatch):
  """A limit between the first state and all of them: a smaller group trains, and no run fails."""

  class FirstOnly(replicas.Group):
    def __init__(self, pairs):
      super().__init__(pairs)
      groups.append((len(pairs), len(self.replicas), self.max_replicas))

  groups, alone = [], []
  finish = lambda cfg, *_: alone.append(cfg.train.seed) or replicas.Outcome('done')
  monkeypatch.setattr(replicas, 'Group', FirstOnly)
  monkeypatch.setattr(replicas, 'train_alone', finish)
  monkeypatch.setattr(replicas, 'available_bytes', lambda: 1000)
  configs = [experiment(train__seed=seed) for seed in range(3)]
  outcomes = replicas.train_together(configs, [tmp_path / str(r) for r in range(3)])
  assert [outcome.outcome for outcome in outcomes] == ['done'] * 3
  assert (groups, alone) == ([(3, 1, 1)], [0, 1, 2])


def test_replicas_that_fit_counts_the_memory_of_the_step():
  used = SimpleNamespace(
    argument_size_in_bytes=100, output_size_in_bytes=90, alias_size_in_bytes=80, temp_size_in_bytes=190
  )
  compiled = mock.Mock(memory_analysis=lambda: used)
  assert replicas.replicas_that_fit(compiled, 8, 400) == 8
  assert replicas.replicas_that_fit(compiled, 8, 399) == 7
  assert replicas.replicas_that_fit(compiled, 8, 100) == 2
  assert replicas.replicas_that_fit(compiled, 8, 1) == 1


@pytest.mark.parametrize(
  'changes, part',
  [
    (dict(model__width=32), 'model.width=16 and 32'),
    (dict(train__steps=24), 'train.steps=12 and 24'),
    (dict(model__dropout=0.1), 'model.dropout=0.0 and 0.1'),  # none needs no random numbers
    (dict(loss__z_loss=1e-4), 'loss.z_loss=0.0 and 0.0001'),
    (dict(optim__b1=0.5), 'optim.b1=0.9 and 0.5'),
  ],
)
def test_different_programs_are_an_error(tmp_path, changes, part):
  configs = [experiment(), experiment(train__seed=1, **changes)]
  with pytest.raises(ValueError) as error:
    replicas.train_together(configs, [tmp_path / '0', tmp_path / '1'])
  assert_two_lines(error.value, part)
  assert not list(tmp_path.iterdir())


def test_meshes():
  shape = lambda cfg, count: dict(replicas.make_replica_mesh(cfg, count).shape)
  ones = dict.fromkeys(sharding.AXES, 1)
  assert shape(sharding.MeshConfig(), 5) == ones | {'replica': 5}
  assert shape(sharding.MeshConfig(), 12) == ones | {'replica': 6}
  assert shape(sharding.MeshConfig(), 11) == ones
  assert shape(sharding.MeshConfig(replica=4), 8) == ones | {'replica': 4, 'data': 2}
  with pytest.raises(ValueError) as error:
    replicas.make_replica_mesh(sharding.MeshConfig(replica=4), 6)
  assert_two_lines(error.value, 'mesh.replica=4 does not divide 6 runs')


# ----------------------------------------------------------------------------------------- worker


@pytest.fixture
def worker(tmp_path, tmp_path_factory):
  """A worker process; it is ended after the test."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(tiny_runs.shared(tmp_path_factory) / 'worker'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  with open(tmp_path / 'worker.log', 'wb') as log:
    process = subprocess.Popen(
      [sys.executable, '-m', 'gpt_jax.ablation.execute.worker'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
      cwd=ROOT,
      env=environment,
    )
  yield process
  process.kill()
  process.wait()
  process.stdin.close()
  process.stdout.close()


def give(worker, configs, folders):
  """Send a job."""
  job = {'configs': configs, 'folders': [str(folder) for folder in folders]}
  print(json.dumps(records.to_json(job)), file=worker.stdin, flush=True)


def read_outcomes(lines):
  """The outcomes of the next answer among a worker's lines, which may begin with heartbeats."""
  messages = map(json.loads, lines)
  return next(message['outcomes'] for message in messages if 'outcomes' in message)


def short(**changes):
  """A config.json of a run of few steps that does not look at itself."""
  quick = dict(train__steps=4, train__sample_prompts=(), train__eval_every=0)
  return config.to_dict(experiment(**quick | changes))


@pytest.mark.slow
def test_a_worker_serves_jobs_until_there_are_no_more(worker, tmp_path):
  folders = [tmp_path / name for name in 'abc']
  give(worker, [short(), short(train__seed=1)], folders[:2])
  outcomes = read_outcomes(worker.stdout)
  assert [o['outcome'] for o in outcomes] == ['done', 'done'], outcomes
  assert all(o['code'] == 0 for o in outcomes)
  assert [run_folder.read_result(folder)['replicas'] for folder in folders[:2]] == [2, 2]
  give(worker, [short() | {'model': {'widht': 3}}], folders[2:])
  [outcome] = read_outcomes(worker.stdout)
  assert (outcome['outcome'], outcome['code']) == ('failed', 2)
  assert 'model.widht is not a config key' in outcome['message']
  give(worker, [short(optim__lr=1e20, train__max_skipped=1)], folders[2:])
  [outcome] = read_outcomes(worker.stdout)
  assert (outcome['outcome'], outcome['code']) == ('diverged', 1)
  worker.stdin.close()
  assert worker.wait(60) == 0
  assert 'step 4/4' in (tmp_path / 'worker.log').read_text()


@pytest.mark.slow
def test_a_worker_saves_on_sigterm(worker, tmp_path):
  folders = [tmp_path / 'a', tmp_path / 'b']
  endless = [short(train__steps=10**6, train__seed=seed) for seed in (0, 1)]
  give(worker, endless, folders)
  while not (folders[1] / 'metrics.jsonl').exists() or len(run_folder.read_metrics(folders[1])) < 3:
    assert worker.poll() is None, (tmp_path / 'worker.log').read_text()
  worker.send_signal(signal.SIGTERM)
  outcomes = read_outcomes(worker.stdout)
  assert [(o['outcome'], o['code']) for o in outcomes] == [('stopped', 75)] * 2
  assert worker.wait(60) == 75
  steps = [run_folder.read_events(folder)[-1]['step'] for folder in folders]
  assert steps[0] == steps[1] >= 3
  for folder, step in zip(folders, steps, strict=True):
    assert (folder / 'checkpoints' / str(step)).is_dir()
    assert (folder / 'checkpoints/digests' / f'{step}.json').exists()


def test_a_worker_whose_parent_died_at_startup_trains_nothing(tmp_path):
  """It learns who started it from the environment, not from whoever is its parent by then."""
  job = json.dumps(records.to_json({'configs': [short()], 'folders': [str(tmp_path / 'a')]}))
  done = subprocess.run(
    [sys.executable, '-m', 'gpt_jax.ablation.execute.worker'],
    input=job + '\n',
    text=True,
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'GPT_JAX_PARENT': '1'},
    capture_output=True,
  )
  [outcome] = read_outcomes(done.stdout.splitlines())
  assert (outcome['outcome'], done.returncode) == ('stopped', 75)
  assert not (tmp_path / 'a').exists()


def test_an_idle_worker_ends_at_once(worker, tmp_path):
  give(worker, [{'x': 1}], [tmp_path / 'a'])
  worker.stdout.readline()  # it has begun to listen
  worker.send_signal(signal.SIGTERM)
  assert worker.wait(60) == 75
