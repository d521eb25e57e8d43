"""What a run does when its disk refuses: it ends, says why, and goes on from what was saved."""

import resource
import subprocess

import numpy as np
import pytest

from gpt_jax.runs import run_folder
from gpt_jax.training import checkpoint_writer
from gpt_jax.training.checkpoint import CheckpointConfig
from gpt_jax.training.checkpoint_writer import CheckpointWriter, SaveFailed
from tests import command_line, tiny_runs

LONG = ('--config.train.steps=300', '--config.checkpoint.every=20', '--config.train.eval_every=0')


@pytest.fixture
def disk(tmp_path):
  """A file system of 4 MB."""
  place = tmp_path / 'disk'
  place.mkdir()
  made = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', place], capture_output=True, text=True
  )
  if made.returncode:
    pytest.skip(f'no file system can be mounted here: {made.stderr.strip()}')
  yield place
  subprocess.run(['umount', '-l', place], check=True)


def fill(place, left=0):
  """Take all of a disk but so many bytes -> the file that holds them."""
  filler = place / 'filler'
  with open(filler, 'wb', buffering=0) as file:
    try:
      while True:
        file.write(bytes(4096))
    except OSError:
      file.truncate(file.tell() - left // 4096 * 4096)
  return filler


@pytest.mark.parametrize('background', [True, False])
def test_a_disk_that_fills_up_during_a_save(disk, monkeypatch, background):
  state = {'w': np.random.default_rng(0).standard_normal((500, 500), np.float32)}
  checkpoints = CheckpointWriter(disk / 'checkpoints', CheckpointConfig(background=background))
  checkpoints.save(1, state, {})
  checkpoints.wait_until_finished()
  filler = fill(disk, left=40960)
  monkeypatch.setattr(checkpoint_writer, 'SIZE_MARGIN', 0)  # as if others had filled it since
  with pytest.raises(SaveFailed) as error:
    checkpoints.save(2, state, {})
    checkpoints.wait_until_finished()
  _, fix = tiny_runs.assert_two_lines(
    error.value, f'checkpoint {disk}/checkpoints/2', 'No space left on device'
  )
  assert fix.endswith('resumes from step 1')
  checkpoints.close()
  filler.unlink()
  again = CheckpointWriter(disk / 'checkpoints', CheckpointConfig())
  assert again.latest_good() == 1
  assert not list((disk / 'checkpoints').glob('*tmp*'))
  again.save(2, state, {})
  again.close()
  assert again.latest_good() == 2


@pytest.fixture(scope='module')
def untouched(tmp_path_factory):
  """A run that no disk refused anything."""
  folder = tmp_path_factory.mktemp('survival')
  code, output = train(folder, folder / 'whole')
  assert code == 0, output
  return folder


def words(folder, workdir):
  return ('train', f'--config={command_line.experiment(folder)}', f'--workdir={workdir}', *LONG)


def train(folder, workdir):
  return command_line.launch(*words(folder, workdir), folder=folder)


def interrupted(folder, workdir, harm, *more):
  """A training that meets harm after its second checkpoint -> (exit code, what else it says)."""
  process = command_line.start(*words(folder, workdir), *more, folder=folder)
  while 'step 45/' not in process.stdout.readline():
    assert process.poll() is None
  harm(process.pid)
  output, _ = process.communicate(timeout=120)
  return process.returncode, output


def assert_ends_well(untouched, workdir, code, output, cause):
  """The interrupted run said why in two lines; the same command makes it the untouched run."""
  assert code == 1, output
  lines = output.rstrip().splitlines()[-2:]
  assert lines[0].startswith(f'error: checkpoint {workdir}/checkpoints/')
  assert cause in lines[0], output
  assert lines[1].startswith('fix: free space there') and 'resumes from step' in lines[1]
  code, output = train(untouched, workdir)
  assert code == 0, output
  [resume] = [event for event in run_folder.read_events(workdir) if event['event'] == 'resume']
  assert resume['step'] % 20 == 0 and resume['step'] >= 20
  actual, expected = tiny_runs.arrays(workdir), tiny_runs.arrays(untouched / 'whole')
  for path, array in expected.items():
    np.testing.assert_array_equal(actual[path], array, err_msg=path)


@pytest.mark.slow
def test_a_run_whose_files_may_grow_no_more(untouched):
  workdir, limit = untouched / 'limited', 40_000
  harm = lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
  code, output = interrupted(untouched, workdir, harm)
  assert_ends_well(untouched, workdir, code, output, 'File too large')


@pytest.mark.slow
def test_a_run_on_a_full_disk(untouched, disk):
  """Nothing can be written any more, neither a checkpoint nor what went wrong."""
  workdir = disk / 'run'
  code, output = interrupted(untouched, workdir, lambda pid: fill(disk))
  assert code != 0, output
  (disk / 'filler').unlink()
  assert 'No space left on device' in output or 'free' in output, output
  assert str(workdir) in output.rstrip().splitlines()[-2], output
  assert 'Traceback' not in output
  code, output = train(untouched, workdir)
  assert code == 0, output
  actual, expected = tiny_runs.arrays(workdir), tiny_runs.arrays(untouched / 'whole')
  for path, array in expected.items():
    np.testing.assert_array_equal(actual[path], array, err_msg=path)


@pytest.mark.slow
def test_a_run_without_room_for_the_next_checkpoint(untouched, disk):
  """Metrics still fit: the check before a save ends the run."""
  workdir = disk / 'run'
  # No save is under way at step 45, as one in the background may be, and the next is far off.
  more = ('--config.checkpoint.background=False', '--config.checkpoint.every=40')
  code, output = interrupted(untouched, workdir, lambda pid: fill(disk, left=120_000), *more)
  (disk / 'filler').unlink()
  assert_ends_well(untouched, workdir, code, output, 'was not started')
