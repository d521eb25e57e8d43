"""Checkpoints: saved states are restored equal on any mesh, and altered ones are never trusted."""

import contextlib
import dataclasses
import errno
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import bit_flips
from gpt_jax.evaluation import trained
from gpt_jax.model import gpt
from gpt_jax.runs import digests, records
from gpt_jax.tokenizers import Tokenizers
from gpt_jax.training import checkpoint, trees
from gpt_jax.training.checkpoint import CheckpointConfig, Checkpoints, Corrupt
from gpt_jax.training.checkpoint_writer import CheckpointWriter, SaveFailed
from tests import command_line, models, tiny_runs

NOW = CheckpointConfig(background=False)


class Inner(NamedTuple):
  """An optimizer state, as optax makes them."""

  count: jax.Array
  mu: dict


class State(NamedTuple):
  """Everything that a TrainState is made of."""

  step: jax.Array
  params: dict
  opt_state: tuple
  key: jax.Array
  hyper: dict
  ema: dict | None


def make_state(seed=0, width=16):
  """A state of dtypes, shapes and paths that a run may hold."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape, np.float32)
  params = {
    'embed_VD': jnp.asarray(draw(8, width)),
    'blocks/mlp/up_DF': jnp.asarray(draw(width, 24).astype(ml_dtypes.bfloat16)),
    'blocks/attention/scale': jnp.asarray(draw(2, width)),
  }
  mu = {path: jnp.asarray(draw(*p.shape)) for path, p in params.items()}
  return State(
    step=jnp.int32(7),
    params=params,
    opt_state=(Inner(jnp.int32(3), mu), ()),
    key=jax.random.key(seed + 5),
    hyper={'lr': jnp.float32(1e-3)},
    ema=None,
  )


def abstract_on(mesh, state):
  """ShapeDtypeStructs of a state with width over the fsdp axis where there is one."""

  def place(leaf):
    width = [16 if size == 16 else None for size in leaf.shape]
    spec = PartitionSpec(*['fsdp' if size else None for size in width])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

  return jax.tree.map(place, jax.eval_shape(lambda: state))


def values(tree):
  """Leaves as numpy, keys as their data."""
  plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  return jax.tree.map(lambda x: np.asarray(plain(x)), tree)


def assert_equal(found, expected):
  """The same structure, dtypes and bits."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert x.dtype == y.dtype
  for x, y in zip(*map(jax.tree.leaves, (values(found), values(expected))), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with good checkpoints of steps 3 and 6. Do not change it."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  checkpoints = CheckpointWriter(folder, NOW)
  for step in (3, 6):
    checkpoints.save(step, make_state(step), {'tokens': 10.0 * step, 'name': 'é'})
  checkpoints.close()
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  """A copy of them to harm."""
  shutil.copytree(saved, tmp_path / 'checkpoints')
  return tmp_path / 'checkpoints'


def reader(folder):
  """Checkpoints open for reading, and the lines that they report."""
  lines = []
  return Checkpoints(folder, report=lines.append), lines


def files_of(folder, step):
  return sorted(path for path in (folder / str(step)).rglob('*') if path.is_file())


# ------------------------------------------------------------------------------------ round trip


def test_paths_join_the_names_of_branches_with_slashes():
  tree = trees.to_tree(make_state())
  assert set(trees.flat(tree)) == {
    'step',
    'key',
    'hyper/lr',
    'params/embed_VD',
    'params/blocks/mlp/up_DF',
    'params/blocks/attention/scale',
    'opt_state/0/count',
    'opt_state/0/mu/embed_VD',
    'opt_state/0/mu/blocks/mlp/up_DF',
    'opt_state/0/mu/blocks/attention/scale',
  }
  assert trees.nest(trees.flat(tree)) == tree
  assert_equal(trees.from_tree(tree, make_state(1)), make_state())


def test_round_trip_of_keys_bfloat16_and_named_tuples(saved):
  checkpoints, lines = reader(saved)
  assert checkpoints.latest_good() == 6
  restored = checkpoints.restore(6, abstract_on(models.mesh(), make_state()))
  assert_equal(restored, make_state(6))
  assert jax.random.uniform(restored.key) == jax.random.uniform(make_state(6).key)
  assert checkpoints.read_extra(6) == {'tokens': 60.0, 'name': 'é'}
  assert_equal(checkpoints.restore(3, abstract_on(models.mesh(), make_state())), make_state(3))
  assert not lines


@pytest.mark.parametrize('there, here', [(1, 8), (8, 1), (8, 2)])
def test_restored_on_another_mesh(tmp_path, there, here):
  state = make_state()
  like = abstract_on(models.mesh(fsdp=there), state)
  put = lambda x, s: jax.device_put(x, s.sharding)
  checkpoints = CheckpointWriter(tmp_path / 'checkpoints', NOW)
  checkpoints.save(1, jax.tree.map(put, state, like), {})
  checkpoints.close()
  like = abstract_on(models.mesh(fsdp=here), state)
  restored = checkpoints.restore(1, like)
  assert_equal(restored, state)
  for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
  shard = restored.params['embed_VD'].addressable_shards[0].data
  assert shard.shape == (8, 16 // here)


def test_a_save_in_the_background_gets_its_digests(tmp_path):
  checkpoints = CheckpointWriter(tmp_path / 'checkpoints', CheckpointConfig(keep=3))
  checkpoints.save(1, make_state(1), {})
  checkpoints.save(2, make_state(2), {})  # waits for step 1
  checkpoints.verify(1)
  while not (tmp_path / 'checkpoints/digests/2.json').exists():
    checkpoints.poll()
  checkpoints.verify(2)
  checkpoints.close()
  assert_equal(checkpoints.restore(2, abstract_on(models.mesh(), make_state())), make_state(2))


def test_the_state_may_be_donated_while_it_is_being_saved(tmp_path):
  checkpoints = CheckpointWriter(tmp_path / 'checkpoints', CheckpointConfig())
  weights = jnp.zeros((256, 256))
  checkpoints.save(1, {'w': weights}, {})
  jax.jit(lambda x: x + 1.0, donate_argnums=0)(weights)
  checkpoints.close()
  like = abstract_on(models.mesh(), {'w': jnp.zeros((256, 256))})
  assert not np.asarray(checkpoints.restore(1, like)['w']).any()


# ----------------------------------------------------------------------------------- verification


def test_one_flipped_bit_in_any_file_is_found(folder):
  checkpoints, _ = reader(folder)
  victims = [*files_of(folder, 6), folder / 'digests/6.json']
  kinds = {path.name if path.parent.name != 'd' else 'd/' for path in victims}
  assert kinds >= {'metadata', '_METADATA', '_CHECKPOINT_METADATA', 'manifest.ocdbt', 'd/'}
  for path in victims:
    content = path.read_bytes()
    for place in {0, len(content) // 2, len(content) - 1} if content else ():
      altered = bytearray(content)
      altered[place] ^= 1 << (place % 8)
      path.write_bytes(altered)
      with pytest.raises(Corrupt, match='checkpoint 6: file .* is (changed|foreign|missing)'):
        checkpoints.verify(6)
    path.write_bytes(content)
  checkpoints.verify(6)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # of Orbax's
def test_random_flips_are_found_and_the_older_step_is_used(tmp_path):
  """Orbax alone gives wrong values without a word, wherever the bit is in array data."""
  # Large enough that the files of array data hold little else.
  folder, states = tmp_path / 'checkpoints', {1: make_state(1, 4096), 2: make_state(2, 4096)}
  checkpoints = CheckpointWriter(folder, NOW)
  for step, state in states.items():
    checkpoints.save(step, state, {'tokens': 1.0})
  checkpoints.close()
  outcomes = bit_flips.trials(folder, abstract_on(models.mesh(), states[1]), states, flips=20)
  summary = bit_flips.count_outcomes(outcomes)
  assert {name: summary[name]['flips'] for name in summary} == {
    'data': 12,
    'metadata': 6,
    'digests': 2,
    'all': 20,
  }
  assert (summary['all']['detected'], summary['all']['fell_back']) == (20, 20)
  assert summary['data']['orbax_alone'] == {'wrong values': 12}


def test_verify_size_finds_truncated_files_only(folder):
  checkpoints = Checkpoints(folder, report=lambda line: None, verify='size')
  victim = max(files_of(folder, 6), key=lambda path: path.stat().st_size)
  bit_flips.flip(victim, random.Random(0))
  assert checkpoints.latest_good() == 6
  harm_by_truncation(victim)
  assert checkpoints.latest_good() == 3


def harm_by_truncation(path):
  path.write_bytes(path.read_bytes()[:-1])


def harm_by_emptying(path):
  path.write_bytes(b'')


def harm_by_removal(path):
  path.unlink()


def harm_by_a_foreign_file(path):
  (path.parent / 'extra-file').write_bytes(b'')


@pytest.mark.parametrize(
  'harm, word',
  [
    (harm_by_truncation, 'changed'),
    (harm_by_emptying, 'changed'),
    (harm_by_removal, 'missing'),
    (harm_by_a_foreign_file, 'foreign'),
  ],
)
def test_a_harmed_checkpoint_falls_back_to_the_one_before(folder, harm, word):
  harm(max(files_of(folder, 6), key=lambda path: path.stat().st_size))
  checkpoints, lines = reader(folder)
  assert checkpoints.latest_good() == 3
  [line] = lines
  assert line.startswith('not trusted: checkpoint 6: file state/')
  assert f'is {word}' in line
  assert_equal(checkpoints.restore(3, abstract_on(models.mesh(), make_state())), make_state(3))


def test_an_unfinished_checkpoint_is_not_trusted(folder):
  (folder / 'digests/6.json').unlink()
  shutil.copytree(folder / '3', folder / '9.orbax-checkpoint-tmp')  # killed while it was written
  checkpoints, lines = reader(folder)
  assert checkpoints.steps() == [6, 3]
  assert checkpoints.latest_good() == 3
  assert lines == ['not trusted: checkpoint 6 was never finished; trying the one before']
  (folder / 'digests/3.json').unlink()
  with pytest.raises(Corrupt, match='no good checkpoint'):
    checkpoints.latest_good()  # a kill leaves one step without digests: these were lost
  shutil.rmtree(folder / '6')
  assert checkpoints.latest_good() is None  # as a run that was killed during its first save


def test_no_good_checkpoint_is_an_error_that_names_each(folder):
  for step in (3, 6):
    harm_by_truncation(files_of(folder, step)[-1])
  checkpoints, lines = reader(folder)
  with pytest.raises(Corrupt) as error:
    checkpoints.latest_good()
  tiny_runs.assert_two_lines(error.value, str(folder), 'checkpoint 6', 'checkpoint 3')
  assert len(lines) == 2


def test_a_missing_folder_has_no_checkpoint(tmp_path):
  checkpoints, lines = reader(tmp_path / 'none')
  assert checkpoints.latest_good() is None
  assert not lines
  assert not (tmp_path / 'none').exists()


def test_a_harmed_step_is_dropped_and_saved_again(folder):
  harm_by_truncation(files_of(folder, 6)[-1])
  checkpoints = CheckpointWriter(folder, NOW, report=lambda line: None)
  checkpoints.delete_after(checkpoints.latest_good())
  assert checkpoints.steps() == [3]
  checkpoints.poll()
  assert not (folder / 'digests/6.json').exists()
  checkpoints.save(6, make_state(60), {})
  checkpoints.close()
  assert checkpoints.latest_good() == 6
  assert_equal(checkpoints.restore(6, abstract_on(models.mesh(), make_state())), make_state(60))


# ------------------------------------------------------------------------------ saves that fail


@contextlib.contextmanager
def files_of_at_most(size):
  """A file system that takes no larger files; also of what background threads write."""
  _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(seed):
  """A state that does not compress."""
  return {'w': jax.random.normal(jax.random.key(seed), (200, 200))}


def wait_by_polling(checkpoints):
  while True:
    checkpoints.poll()
    time.sleep(0.01)


@pytest.mark.parametrize('background', [True, False])
@pytest.mark.parametrize(
  'notice', [wait_by_polling, CheckpointWriter.wait_until_finished, CheckpointWriter.close]
)
def test_a_save_that_fails_is_an_error_that_names_path_and_cause(tmp_path, background, notice):
  folder = tmp_path / 'checkpoints'
  checkpoints = CheckpointWriter(folder, CheckpointConfig(background=background))
  checkpoints.save(1, noise(1), {})
  checkpoints.wait_until_finished()
  with files_of_at_most(50_000), pytest.raises(SaveFailed) as error:
    checkpoints.save(2, noise(2), {})
    notice(checkpoints)
  cause, fix = tiny_runs.assert_two_lines(error.value, f'checkpoint {folder}/2', 'File too large')
  assert fix.endswith('resumes from step 1')
  checkpoints.close()  # it was told: no second error, which would hide the first
  assert sorted(path.name for path in folder.iterdir()) == ['1', 'digests']
  again = CheckpointWriter(folder, NOW)
  assert again.latest_good() == 1
  again.save(2, noise(2), {})
  again.close()
  assert_equal(again.restore(2, abstract_on(models.mesh(), noise(2))), noise(2))


def test_orbax_calls_a_failed_step_the_latest(tmp_path):
  """Why nothing here asks it."""
  checkpoints = CheckpointWriter(tmp_path / 'checkpoints', CheckpointConfig())
  with files_of_at_most(50_000), pytest.raises(SaveFailed):
    checkpoints.save(1, noise(1), {})
    while checkpoints._manager.is_saving_in_progress():
      time.sleep(0.01)
    assert checkpoints._manager.latest_step() == 1
    assert checkpoints.latest_good() is None
    checkpoints.wait_until_finished()
  checkpoints.close()


def test_digests_that_cannot_be_written_fail_the_save(tmp_path, monkeypatch):
  def full(path, folder):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

  monkeypatch.setattr(digests, 'write_manifest', full)
  checkpoints = CheckpointWriter(tmp_path / 'checkpoints', CheckpointConfig())
  checkpoints.save(1, noise(1), {})
  with pytest.raises(SaveFailed) as error:
    checkpoints.wait_until_finished()
  tiny_runs.assert_two_lines(error.value, 'No space left on device', 'digests/1.json')
  checkpoints.close()


def test_digests_are_computed_in_the_background(tmp_path, monkeypatch):
  started, may_end, write = threading.Event(), threading.Event(), digests.write_manifest

  def slow(path, folder):
    assert threading.current_thread() is not threading.main_thread()
    started.set()
    assert may_end.wait(30)
    write(path, folder)

  monkeypatch.setattr(digests, 'write_manifest', slow)
  checkpoints = CheckpointWriter(tmp_path / 'checkpoints', CheckpointConfig())
  checkpoints.save(1, noise(1), {})
  while not started.is_set():
    checkpoints.poll()
  checkpoints.poll()  # returns: it does not wait
  with pytest.raises(Corrupt, match='never finished'):
    checkpoints.verify(1)
  may_end.set()
  checkpoints.wait_until_finished()
  checkpoints.verify(1)
  checkpoints.close()


def test_a_save_without_room_is_not_started(tmp_path, monkeypatch):
  folder, state = tmp_path / 'checkpoints', noise(1)
  checkpoints, free = CheckpointWriter(folder, NOW), int(1.1 * state['w'].nbytes)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(9**9, 9**9, free))
  with pytest.raises(SaveFailed) as error:
    checkpoints.save(1, state, {})  # none before: it may be as large as the state
  need = f'{int(1.2 * state["w"].nbytes):,} bytes are needed and {free:,} free'
  _, fix = tiny_runs.assert_two_lines(error.value, f'checkpoint {folder}/1 was not started: {need}')
  assert fix.endswith('starts from the beginning')
  monkeypatch.undo()
  checkpoints.close()
  checkpoints = CheckpointWriter(folder, NOW)
  checkpoints.save(1, state, {})
  size = sum(path.stat().st_size for path in files_of(folder, 1))
  free = int(1.2 * size) - 1
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(9**9, 9**9, free))
  with pytest.raises(SaveFailed, match=f'{free + 1:,} bytes are needed and {free:,} free'):
    checkpoints.save(2, state, {})
  free += 1
  monkeypatch.undo()
  checkpoints.close()
  assert checkpoints.steps() == [1]


def test_only_process_0_verifies(folder, monkeypatch):
  """As another process sees it, without Orbax's own part of a save."""
  harm_by_truncation(files_of(folder, 6)[-1])
  broadcast = []
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  monkeypatch.setattr(checkpoint, 'from_process_0', lambda value: broadcast.append(value) or 3)
  other, lines = reader(folder)
  monkeypatch.setattr(other, 'verify', lambda step: pytest.fail('process 0 does that'))
  assert other.latest_good() == 3
  assert broadcast == [checkpoint.NO_CHECKPOINT] and not lines
  monkeypatch.setattr(checkpoint, 'from_process_0', lambda value: checkpoint.NONE_GOOD)
  with pytest.raises(Corrupt, match='as process 0 reports'):
    other.latest_good()


TWO = """
import pathlib, shutil, sys, time
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec

rank, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.config.update('jax_platforms', 'cpu')
jax.distributed.initialize(
  f'127.0.0.1:{port}', 2, rank, initialization_timeout=60, heartbeat_timeout_seconds=20
)
from gpt_jax.training import checkpoint, checkpoint_writer

mesh = jax.make_mesh((2,), ('fsdp',), axis_types=(jax.sharding.AxisType.Auto,))
place = NamedSharding(mesh, PartitionSpec('fsdp'))
values = np.random.default_rng(0).standard_normal((64, 64), np.float32)
made_of = lambda step: lambda index: values[index] + step
state = lambda step: {'w': jax.make_array_from_callback((64, 64), place, made_of(step))}
made = checkpoint_writer.CheckpointWriter(folder, checkpoint.CheckpointConfig())
for step in (1, 2):
  made.save(step, state(step), {'step': step})
made.wait_until_finished()
assert checkpoint.from_process_0(rank + 7) == 7
if rank == 0:
  victim = max((folder / '2').rglob('*'), key=lambda p: p.stat().st_size if p.is_file() else 0)
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 4
  victim.write_bytes(content)
lines = []
reader = checkpoint.Checkpoints(folder, report=lines.append)
good = reader.latest_good()
like = {'w': jax.ShapeDtypeStruct((64, 64), np.float32, sharding=place)}
restored = reader.restore(good, like)['w']
for shard in restored.addressable_shards:
  np.testing.assert_array_equal(shard.data, (values + good)[shard.index])
remove = shutil.rmtree  # slow in process 0: the other must not look before all is gone
shutil.rmtree = lambda *args, **kwargs: (time.sleep(1), remove(*args, **kwargs))
made.delete_after(good)
shutil.rmtree = remove
assert made._manager.all_steps() == [1], made._manager.all_steps()
free, checkpoint_writer.SIZE_MARGIN = checkpoint_writer.SIZE_MARGIN, 1e12 if rank == 0 else 0
try:
  made.save(2, state(2), {})
except checkpoint_writer.SaveFailed as error:
  print(rank, good, len(lines), str(error).splitlines()[0], flush=True)
made.close()
"""


@pytest.mark.slow
def test_two_processes_write_one_checkpoint_and_agree_on_it(tmp_path):
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    port = listener.getsockname()[1]
  command = lambda rank: [sys.executable, '-c', TWO, str(rank), str(port), str(tmp_path / 'both')]
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  options = dict(cwd=command_line.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
  with contextlib.ExitStack() as stack:
    both = [stack.enter_context(subprocess.Popen(command(rank), **options)) for rank in (0, 1)]
    for process in both:
      stack.callback(process.kill)  # where the other failed
    last_lines = [process.communicate(timeout=120)[0].splitlines()[-1] for process in both]
  assert [process.returncode for process in both] == [0, 0]
  # Both go back to step 1, which only process 0 looked at; and none saves, as process 0 found.
  assert last_lines[0].startswith(f'0 1 1 checkpoint {tmp_path}/both/2 was not started: ')
  assert last_lines[1] == f'1 1 0 checkpoint {tmp_path}/both/2 was not started: the disk is full'
  assert sorted(path.name for path in (tmp_path / 'both').iterdir()) == ['1', 'digests']


# ------------------------------------------------------------------------------------- retention


def test_retention(tmp_path):
  cfg = CheckpointConfig(keep=2, keep_every=4, background=False)
  checkpoints = CheckpointWriter(tmp_path / 'checkpoints', cfg)
  state = {'w': jnp.zeros(2)}
  for step in range(1, 8):
    checkpoints.save(step, state, {})
  assert checkpoints.steps() == [7, 6, 4]
  checkpoints.close()
  reopened = CheckpointWriter(tmp_path / 'checkpoints', cfg)
  reopened.save(8, state, {})
  reopened.save(9, state, {})
  reopened.close()
  assert reopened.steps() == [9, 8, 4]
  digests = {path.name for path in (tmp_path / 'checkpoints/digests').iterdir()}
  assert digests == {'9.json', '8.json', '4.json'}
  for step in (9, 8, 4):
    reopened.verify(step)


@pytest.mark.parametrize('wrong', [dict(keep=1), dict(every=-1), dict(keep_every=-2), dict(verify='half')])
def test_impossible_settings(wrong):
  with pytest.raises(ValueError) as error:
    CheckpointConfig(**wrong)
  tiny_runs.assert_two_lines(error.value, f'checkpoint.{next(iter(wrong))}')


# ---------------------------------------------------------------------------------------- models


def test_a_mismatch_lists_every_path_shape_and_dtype(saved):
  wanted = make_state(width=8)
  wanted.params['new_D'] = jnp.zeros(3)
  del wanted.params['blocks/attention/scale']
  wanted = wanted._replace(step=jnp.float32(0))
  checkpoints, _ = reader(saved)
  with pytest.raises(ValueError) as error:
    checkpoints.restore(6, abstract_on(models.mesh(), wanted))
  tiny_runs.assert_two_lines(
    error.value,
    f'{saved}/6 does not fit',
    'params/new_D is missing in the checkpoint',
    'params/blocks/attention/scale is only in the checkpoint',
    'step: checkpoint int32[], model float32[]',
    'params/embed_VD: checkpoint float32[8, 16], model float32[8, 8]',
    'params/blocks/mlp/up_DF: checkpoint bfloat16[16, 24], model bfloat16[8, 24]',
    'opt_state/0/mu/embed_VD: checkpoint float32[8, 16], model float32[8, 8]',
  )


def model_like(cfg):
  """The abstract model, laid out on one device."""
  abstract = gpt.GPT(cfg)
  shardings = gpt.shardings(abstract, models.mesh())
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, abstract, shardings)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return tiny_runs.finished(tmp_path_factory)


def test_weights_of_a_run_are_their_average(run):
  cfg = trained.load(run).model.cfg
  model = checkpoint.load_model(run, model_like(cfg))
  stored = tiny_runs.arrays(run)
  for path, array in models.params(model).items():
    np.testing.assert_array_equal(array, stored[f'opt_state/ema/{path}'], err_msg=path)
    assert (array != stored[f'model/{path}']).any()


@pytest.mark.parametrize(('fsdp', 'cut'), [(4, 4), (3, 1)])
def test_a_model_is_sharded_as_in_training_if_the_devices_suffice(run, tmp_path, fsdp, cut):
  """One that was trained in pieces may fit no single device."""
  folder = shutil.copytree(run, tmp_path / 'run')
  config = records.read_json(folder / 'config.json')
  config['mesh'] |= {'data': -1, 'fsdp': fsdp}
  records.write_json(folder / 'config.json', config)
  model = trained.load(folder).model
  assert trained.load(folder).mesh.shape['fsdp'] == cut
  whole = models.params(trained.load(run).model)
  for path, array in models.params(model).items():
    np.testing.assert_array_equal(array, whole[path], err_msg=path)
  held = model.embed_VD.get_value().addressable_shards[0].data.size
  assert held * cut == model.embed_VD.get_value().size


def test_weights_that_do_not_fit_are_an_error_that_lists_them(run):
  loaded = trained.load(run)
  with pytest.raises(ValueError) as error:
    checkpoint.load_model(run, model_like(dataclasses.replace(loaded.model.cfg, hidden=40, qk_norm=True)))
  tiny_runs.assert_two_lines(
    error.value,
    f'{run}/checkpoints/{loaded.step} does not fit',
    'blocks/mlp/up_DF: checkpoint float32[1, 16, 64], model float32[1, 16, 40]',
    'blocks/attention/q_norm/scale is missing in the checkpoint',
  )


def test_readers_of_a_run_compare_what_its_config_says(run, tmp_path):
  """checkpoint.verify=size: sampling, evaluation and train.init_from do not hash the files."""
  folder = shutil.copytree(run, tmp_path / 'run')
  step = Checkpoints(folder / 'checkpoints').steps()[0]
  bit_flips.flip(
    max(files_of(folder / 'checkpoints', step), key=lambda p: p.stat().st_size), random.Random(0)
  )
  config_json = folder / 'config.json'
  settings = records.read_json(config_json)
  older = trained.load(folder)
  assert older.step < step
  like = model_like(older.model.cfg)
  records.write_json(config_json, settings | {'checkpoint': settings['checkpoint'] | {'verify': 'size'}})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(digests, '_sha256', lambda path: pytest.fail('hashed'))
    assert Checkpoints(folder / 'checkpoints', verify='size').latest_good() == step
    patch.setattr(Checkpoints, 'restore_model', lambda self, step, like: None)  # its bits are wrong
    assert trained.load(folder).step == step
    assert checkpoint.load_model(folder, like, verify='size') is None


def test_a_run_without_checkpoints(tmp_path):
  with pytest.raises(ValueError) as error:
    checkpoint.load_model(tmp_path, model_like(models.tiny()))
  tiny_runs.assert_two_lines(error.value, f'{tmp_path} has no checkpoint')


def test_a_checkpoint_carries_the_tokenizer(run):
  checkpoints, _ = reader(run / 'checkpoints')
  extra = checkpoints.read_extra(checkpoints.latest_good())
  toks = trained.load_tokenizers(trained.unpack_files(extra['tokenizer']))
  assert toks.hash == Tokenizers.load(run / 'tokenizer').hash
  assert extra['vocab'] == toks.vocabulary.size
  assert extra['config'] == records.read_json(run / 'config.json')


# ----------------------------------------------------------------------- checkpoints of other runs


@pytest.fixture
def copied(run, tmp_path):
  """A copy of a run's checkpoints, and its config."""
  folder = shutil.copytree(run / 'checkpoints', tmp_path / 'checkpoints')
  return Checkpoints(folder), records.read_json(run / 'config.json')


def test_a_checkpoint_that_was_copied_to_another_step_is_refused(copied):
  checkpoints, cfg = copied
  step = checkpoints.steps()[0]
  shutil.copytree(checkpoints.folder / str(step), checkpoints.folder / '99')
  shutil.copy(checkpoints.manifest(step), checkpoints.manifest(99))
  assert checkpoints.latest_good() == 99
  with pytest.raises(ValueError) as error:
    checkpoints.check_origin(99, checkpoints.read_extra(99), cfg, ())
  tiny_runs.assert_two_lines(error.value, 'checkpoints/99', f'was written at step {step}')


def test_a_checkpoint_of_a_run_with_another_config_is_refused(copied):
  checkpoints, cfg = copied
  step = checkpoints.steps()[0]
  extra = checkpoints.read_extra(step)
  checkpoints.check_origin(step, extra, cfg, ())
  free = ('mesh.', 'train.tasks')
  other = cfg | {'mesh': cfg['mesh'] | {'fsdp': 2}, 'train': cfg['train'] | {'tasks': ['draw']}}
  checkpoints.check_origin(step, extra, other, free)
  other = cfg | {'optim': cfg['optim'] | {'lr': 0.5}}
  with pytest.raises(ValueError) as error:
    checkpoints.check_origin(step, extra, other, free)
  tiny_runs.assert_two_lines(error.value, f'checkpoints/{step}', 'optim.lr 0.02 -> 0.5')


@pytest.mark.parametrize('kind', ['folder', 'file', 'link', 'notes'])
def test_what_no_run_writes_is_refused_before_a_run_deletes_it(copied, tmp_path, kind):
  checkpoints, _ = copied
  checkpoints.check_folders()
  step = checkpoints.folder / str(checkpoints.steps()[0])
  for name in ('.DS_Store', 'state/.DS_Store', '._extra'):  # a file manager's are no reason
    (step / name).write_bytes(b'icons')
  checkpoints.check_folders()
  assert checkpoints.latest_good() == int(step.name)
  mine = checkpoints.folder / '2024'
  if kind == 'folder':
    mine.mkdir()
    (mine / 'thesis.tex').write_text('mine')
  elif kind == 'file':
    mine.write_text('mine')
  elif kind == 'link':
    step.rename(tmp_path / 'elsewhere')
    step.symlink_to(tmp_path / 'elsewhere')
  else:
    (step / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError) as error:
    checkpoints.check_folders()
  where = mine if kind in ('folder', 'file') else step
  tiny_runs.assert_two_lines(error.value, str(where), {'link': 'is a link'}.get(kind, 'no run writes'))
