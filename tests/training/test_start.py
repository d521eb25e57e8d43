"""Branches of a run, and runs that are made longer."""

import dataclasses
import hashlib
import pathlib
import shutil

import jax
import numpy as np
import pytest

from gpt_jax import sharding, step, train
from gpt_jax.reports import run_report
from gpt_jax.runs import ancestry, history, records, run_folder
from gpt_jax.training import checkpoint, session, start
from tests import tiny_runs
from tests.tiny_runs import assert_two_lines, experiment

QUIET = dict(train__eval_every=0, train__sample_every=0, train__sample_prompts=(), checkpoint__every=0)
STABLE = dict(**QUIET, optim__schedule='constant')
TIMED = ('time', 'tokens_per_second', 'mfu', 'mfu_causal', 'memory_gib', 'step_seconds')


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The tiny experiment, trained to the end: checkpoints 9 and 12. Do not change it."""
  return tiny_runs.finished(tmp_path_factory)


def untimed(workdir, after=0):
  """{step: metrics that the machine's speed has no part in}."""
  lines = records.read_lines(workdir / 'metrics.jsonl')
  return {
    line['step']: {name: value for name, value in line.items() if name not in TIMED}
    for line in lines
    if line['step'] > after
  }


def setup(cfg, workdir):
  """A Session that has been set up; nothing is written."""
  mesh = train.make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    return session.setup(cfg, workdir, mesh, train.JOBS[cfg.train.job])


def assert_same_arrays(one, other):
  actual, expected = tiny_runs.arrays(one), tiny_runs.arrays(other)
  assert actual.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_array_equal(actual[path], value, err_msg=path)


def test_a_branch_without_changes_is_bitwise_the_run(run, tmp_path):
  cfg = experiment(train__branch_from=f'{run}@9')
  result = train.train(cfg, tmp_path / 'branch')
  assert_same_arrays(tmp_path / 'branch', run)
  assert untimed(tmp_path / 'branch') == untimed(run, after=9)
  parent = run_folder.read_result(run)
  for key in ('steps', 'loss', 'valid_loss', 'tokens', 'targets', 'data', 'tokenizer', 'hyper'):
    assert result[key] == parent[key], key
  [entry] = result['parents']
  assert (entry['how'], entry['path'], entry['step']) == ('train.branch_from', str(run), 9)
  assert entry['diff'] == {} and entry['tokens'] == untimed(run)[9]['tokens']
  states = [
    checkpoint.Checkpoints(f / 'checkpoints').read_extra(12)['data'] for f in (run, tmp_path / 'branch')
  ]
  assert states[0] == states[1]
  phases = history.seconds_by_phase(history.read_history(tmp_path / 'branch'))
  assert phases['steps'] <= result['seconds']  # the parent's seconds are in the result alone


@pytest.fixture(scope='module')
def stable(tmp_path_factory):
  """A run of 6 steps with a constant learning rate. Do not change it."""
  workdir = tmp_path_factory.mktemp('stable') / 'run'
  train.train(experiment(**STABLE, train__steps=6), workdir)
  return workdir


def test_a_branch_takes_what_the_config_changes_and_keeps_the_rest(run, tmp_path):
  changes = {'optim__lr': 1e-3, 'optim__schedule': 'wsd', 'train__steps': 20, 'model__dropout': 0.1}
  before = setup(experiment(train__branch_from=f'{run}@9'), tmp_path / 'a').state
  begun = setup(experiment(train__branch_from=f'{run}@9', **changes), tmp_path / 'b')
  assert begun.step == begun.state.step == begun.state.opt_state.updates == 9
  assert begun.state.hyper.keys() - before.hyper.keys() == {'dropout'}
  assert [begun.state.hyper[name] for name in ('lr', 'dropout')] == [np.float32(1e-3), np.float32(0.1)]
  for one, other in zip(
    *(jax.tree.leaves(x._replace(hyper={}, key=None)) for x in (before, begun.state)), strict=True
  ):
    np.testing.assert_array_equal(one, other)
  assert (jax.random.key_data(before.key) == jax.random.key_data(begun.state.key)).all()
  assert begun.job.loader.state()['next_batch'] == 9
  assert not (tmp_path / 'b').exists() or not list((tmp_path / 'b').glob('*.json'))


def test_a_branch_from_the_latest_step_with_another_seed_and_a_spike_guard(run, tmp_path):
  guard = dict(train__spike_sigma=6.0, train__spike_window=8)
  begun = setup(experiment(train__branch_from=str(run), train__steps=20, train__seed=5, **guard), tmp_path)
  assert begun.step == 12
  fresh = setup(experiment(train__seed=5, **guard), tmp_path / 'new').state
  assert (jax.random.key_data(fresh.key) == jax.random.key_data(begun.state.key)).all()
  np.testing.assert_array_equal(begun.state.recent_SW, fresh.recent_SW)
  notes = '\n'.join(begun.notes)
  assert 'spike guard starts with an empty window' in notes
  assert 'train.seed 0 -> 5' in notes
  assert 'text starts at its first row (seed 0 -> 5)' in notes


@pytest.mark.slow
def test_a_branch_keeps_the_spike_window(tmp_path):
  guard = dict(train__spike_sigma=50.0, train__spike_window=4)
  train.train(experiment(**QUIET, **guard, train__steps=6), tmp_path / 'run')
  more = dict(guard, train__branch_from=str(tmp_path / 'run'), train__steps=8)
  begun = setup(experiment(**QUIET, **more), tmp_path / 'branch')
  np.testing.assert_array_equal(begun.state.recent_SW, tiny_runs.arrays(tmp_path / 'run')['recent_SW'])
  assert np.isfinite(begun.state.recent_SW).all()
  other = setup(experiment(**QUIET, **more | dict(train__spike_window=6)), tmp_path / 'other')
  assert np.isnan(other.state.recent_SW).all() and other.state.recent_SW.shape == (2, 6)


def test_a_branch_reshards(run, tmp_path, monkeypatch):
  monkeypatch.setattr(train, 'make_mesh', sharding.make_mesh)
  begun = setup(experiment(train__branch_from=f'{run}@9', mesh__data=2, mesh__fsdp=4), tmp_path)
  stored = step.params_of(begun.state.model)
  one_device = setup_on_one(experiment(train__branch_from=f'{run}@9'), tmp_path / 'one', monkeypatch)
  for path, value in step.params_of(one_device.state.model).items():
    np.testing.assert_array_equal(stored[path], value, err_msg=path)
  assert len(stored['embed_VD'].sharding.device_set) == 8


def setup_on_one(cfg, workdir, monkeypatch):
  monkeypatch.setattr(train, 'make_mesh', lambda cfg: sharding.make_mesh(cfg, jax.devices()[:1]))
  return setup(cfg, workdir)


@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    ({'optim__name': 'lion'}, ['state of optim.name=adamw, this run optim.name=lion']),
    ({'train__steps': 9}, ['leaves no step to train: train.steps=9']),
    ({'train__init_from': 'runs/x'}, ['and train.init_from=runs/x both give the weights']),
    ({'data__reset': True}, ['data.reset=True has no effect']),
    ({'tokenizer__kind': 'chars'}, ['has the tokenizer section']),
    ({'train__steps_per_call': 2, 'checkpoint__every': 4}, ['9 is not a multiple of train.steps_per_call=2']),
  ],
)
def test_a_branch_that_its_parent_cannot_give(run, tmp_path, changes, parts):
  with pytest.raises(ValueError) as error:
    setup(experiment(train__branch_from=f'{run}@9', **changes), tmp_path / 'branch')
  assert_two_lines(error.value, f'train.branch_from={run}', *parts)


@pytest.mark.parametrize(
  ('key', 'changes', 'cause'),
  [
    ('branch_from', {'model__width': 32, 'optim__ema': 0.0}, 'this run: model.width 16 -> 32'),
    ('branch_from', {'optim__ema': 0.0, 'optim__lr': 1.0}, 'this run: optim.ema 0.5 -> 0.0'),
    ('init_from', {'model__width': 32, 'model__layers': 2}, ': model.layers 1 -> 2, model.width 16 -> 32'),
  ],
)
def test_another_shape_names_the_settings_that_differ(run, tmp_path, key, changes, cause):
  parent = {f'train__{key}': str(run), 'model__dropout': 0.1, 'train__steps': 20}
  with pytest.raises(ValueError) as error:
    setup(experiment(**parent, **changes), tmp_path / 'new')
  assert assert_two_lines(error.value, f'{run}')[0].endswith(cause)


def test_a_branch_from_a_step_that_is_gone(run, tmp_path):
  with pytest.raises(ValueError) as error:
    setup(experiment(train__branch_from=f'{run}@3'), tmp_path / 'branch')
  cause, fix = assert_two_lines(
    error.value, f'train.branch_from={run}@3: {run} has no good checkpoint of step 3'
  )
  assert 'use one of its steps: 9, 12' in fix


def test_a_branch_killed_before_its_first_checkpoint_begins_at_the_same_step(run, tmp_path):
  class Killed(BaseException):
    pass

  def kill(step):
    if step == 11:
      raise Killed

  parent, late = tmp_path / 'parent', tmp_path / 'late'
  shutil.copytree(run, parent)
  shutil.move(parent / 'checkpoints/12', late)
  cfg = experiment(train__branch_from=str(parent), checkpoint__every=0)
  with pytest.raises(Killed):
    train.train(cfg, tmp_path / 'branch', kill)
  shutil.move(late, parent / 'checkpoints/12')  # the parent went on
  begun = setup(cfg, tmp_path / 'branch')
  assert begun.step == 9 and [entry['step'] for entry in begun.parents] == [9]
  with pytest.raises(ValueError, match='leaves no step to train'):
    setup(cfg, tmp_path / 'other')


def test_a_branch_resumes_without_its_parent(run, tmp_path):
  parent = tmp_path / 'parent'
  shutil.copytree(run, parent)
  cfg = experiment(**STABLE, train__branch_from=f'{parent}@9', train__steps=15)
  assert train.train(cfg, tmp_path / 'branch', tiny_runs.stop_before(13)) is None
  shutil.rmtree(parent)
  result = train.train(cfg, tmp_path / 'branch')
  assert result['steps'] == 15
  [entry] = result['parents']
  assert entry['diff']['optim.schedule'] == ('cosine', 'constant')
  manifest = (run / 'checkpoints' / 'digests' / '9.json').read_bytes()
  assert entry['digest'] == hashlib.sha256(manifest).hexdigest()[:12]


@pytest.mark.slow
@pytest.mark.parametrize('modality', ['image', 'audio'])
def test_a_branch_of_a_learned_tokenizer_is_bitwise_the_run(modality, tmp_path, tmp_path_factory):
  parent = tiny_runs.codec_finished(tmp_path_factory, modality)
  train.train(tiny_runs.codec(modality, train__branch_from=f'{parent}@9'), tmp_path / 'branch')
  assert_same_arrays(tmp_path / 'branch', parent)


# ------------------------------------------------------------------------------------ more steps


def test_a_run_that_is_made_longer_is_bitwise_the_longer_run(stable, tmp_path):
  train.train(experiment(**STABLE, train__steps=9), tmp_path / 'whole')
  shutil.copytree(stable, tmp_path / 'longer')
  rows = [{'task': 'perplexity', 'value': 3.0}, {'task': 'perplexity', 'value': 4.0, 'step': 3}]
  for row in rows:
    records.append_line(tmp_path / 'longer' / 'evaluations.jsonl', row)
  result = train.train(experiment(**STABLE, train__steps=9), tmp_path / 'longer')
  assert_same_arrays(tmp_path / 'longer', tmp_path / 'whole')
  whole = untimed(tmp_path / 'whole')
  for number, line in untimed(tmp_path / 'longer').items():
    assert {k: v for k, v in line.items() if k in whole[number]} == whole[number]
  assert result['steps'] == run_folder.read_result(tmp_path / 'longer')['steps'] == 9
  assert run_folder.read_config(tmp_path / 'longer')['train']['steps'] == 9
  assert 'after 9 steps' in (tmp_path / 'longer' / 'report.html').read_text()
  later = records.read_lines(tmp_path / 'longer' / 'evaluations.jsonl')
  assert later == [rows[0] | {'step': 6}, rows[1]]  # not of the longer run


def test_a_kill_while_a_run_is_reopened_leaves_it_done_or_open(stable, tmp_path, monkeypatch):
  class Killed(BaseException):
    pass

  def kill(*args):
    raise Killed

  for name, steps in (('write_json', 6), ('StepLines', 9)):  # before and after config.json is replaced
    folder = tmp_path / name
    shutil.copytree(stable, folder)
    with monkeypatch.context() as patch:
      patch.setattr(records, name, kill)
      with pytest.raises(Killed):
        train.train(experiment(**STABLE, train__steps=9), folder)
    assert run_folder.read_config(folder)['train']['steps'] == steps
    assert bool(run_folder.read_result(folder)) == (steps == 6)
  assert train.train(experiment(**STABLE, train__steps=9), folder)['steps'] == 9


def test_steps_that_change_the_past_are_refused(run, stable, tmp_path):
  before = tiny_runs.snapshot(run)
  with pytest.raises(ValueError) as error:
    train.train(experiment(train__steps=20), run)
  cause, fix = assert_two_lines(error.value, 'train.steps=20 changes the learning rates of the 12 steps')
  assert f'train.branch_from={run}@STEP' in fix
  with pytest.raises(ValueError) as error:
    train.train(experiment(**STABLE, train__steps=5), stable)
  assert_two_lines(error.value, 'train.steps=5 is less than the 6 steps that are done')
  assert tiny_runs.snapshot(run) == before


@pytest.mark.parametrize(
  ('schedule', 'done', 'longer'),
  [
    ('constant', 100, True),
    ('wsd', 80, True),
    ('wsd', 83, False),
    ('cosine', 90, False),
    ('linear', 9, False),
  ],
)
def test_which_schedules_can_be_made_longer(schedule, done, longer):
  cfg = experiment(optim__schedule=schedule, optim__warmup=5, train__steps=200)
  assert start.has_equal_past(cfg, 100, done) == longer


# -------------------------------------------------------------------------------------- ancestors


def test_a_chain_of_parents_survives_the_removal_of_their_folders(run, tmp_path):
  """Imported and trained, branched off, fine-tuned: the report and the result name each of them."""
  base, sft, dpo = (tmp_path / name for name in ('base', 'sft', 'dpo'))
  shutil.copytree(run, base)
  ancestry.write_parents(
    base, [ancestry.describe_import('acme/tiny', 'x/models--acme--tiny/snapshots/c0ffee')]
  )
  train.train(experiment(**QUIET, train__branch_from=f'{base}@9', train__steps=13), sft)
  shutil.rmtree(base)
  cfg = experiment(**QUIET, train__init_from=str(sft), train__steps=1, optim__lr=1e-4)
  result = train.train(cfg, dpo)
  shutil.rmtree(sft)
  [parent] = result['parents']
  assert (parent['how'], parent['step']) == ('train.init_from', 13)
  assert parent['diff']['optim.lr'] == (0.02, 1e-4) and 'train.init_from' not in parent['diff']
  [grandparent] = parent['parents']
  assert (grandparent['how'], grandparent['step']) == ('train.branch_from', 9)
  assert grandparent['diff']['train.steps'] == (12, 13)
  assert grandparent['parents'] == [
    {'how': 'import', 'path': 'acme/tiny', 'revision': 'c0ffee', 'parents': []}
  ]
  text = run_report.rewrite_report(dpo)
  table = [line.split() for line in text.splitlines()[-4:]]
  assert [row[0] for row in table] == ['run', 'base', 'sft', 'dpo']
  assert 'import of acme/tiny (c0ffee)' in text
  assert 'train.branch_from base@9' in text and 'train.init_from sft@13' in text
  assert f'step 9, {grandparent["digest"]}' in text and 'optim.lr 0.02 -> 0.0001' in text
  page = (dpo / 'report.html').read_text()
  assert 'Ancestors' in page and 'import of acme/tiny' in page


def test_a_run_without_parents_has_no_table(run):
  assert run_folder.read_result(run)['parents'] == []
  assert not (run / ancestry.FILE).exists()
  assert 'Ancestors' not in (run / 'report.html').read_text()


@pytest.mark.parametrize(
  ('text', 'folder', 'number'), [('a/b', 'a/b', None), ('a/b@5', 'a/b', 5), ('a@b', 'a@b', None)]
)
def test_parse_run(text, folder, number):
  assert ancestry.parse_run(text) == (pathlib.Path(folder), number)


def test_parse_run_prefers_an_existing_folder(tmp_path):
  (tmp_path / 'x@5').mkdir()
  (tmp_path / 'x@5/config.json').touch()
  assert ancestry.parse_run(f'{tmp_path}/x@5') == (tmp_path / 'x@5', None)


def test_a_run_of_a_version_with_fewer_keys_goes_on():
  cfg = tiny_runs.experiment()
  stored = dataclasses.asdict(cfg)
  del stored['adapter'], stored['train']['tasks_every'], stored['data']['mixture']['text']['keep']
  keys = start.later_keys(cfg, stored)
  assert {'adapter.rank', 'adapter.kind', 'train.tasks_every', 'data.mixture.text.keep'} <= {*keys}
  assert all(key.startswith(('adapter.', 'train.tasks_every', 'data.mixture.text.keep')) for key in keys)
  changed = tiny_runs.experiment(train={'tasks_every': 4})
  assert 'train.tasks_every' not in start.later_keys(changed, stored)
  assert start.later_keys(cfg, {}) == ()
