"""A run that was killed and resumed is bitwise the run that was never touched."""

import random
import shutil
import signal

import numpy as np
import pytest

from gpt_jax.runs import records, run_folder
from tests import command_line, tiny_runs


def losses(workdir):
  """{step: what was logged that does not depend on time}."""
  timed = (
    'time',
    'tokens_per_second',
    'images_per_second',
    'mfu',
    'mfu_causal',
    'memory_gib',
    'step_seconds',
  )
  lines = records.read_lines(workdir / 'metrics.jsonl')
  merged = {}
  for line in lines:
    values = {k: v for k, v in line.items() if k not in timed}
    merged.setdefault(line['step'], {}).update(values)
  return merged


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('resume')


@pytest.fixture(scope='module')
def untouched(folder):
  """A run of 12 steps, never interrupted."""
  code, output = command_line.launch(
    'train', f'--config={command_line.experiment(folder)}', f'--workdir={folder / "whole"}', folder=folder
  )
  assert code == 0, output
  return folder / 'whole'


def assert_same(run, reference):
  actual, expected = tiny_runs.arrays(run), tiny_runs.arrays(reference)
  assert actual.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_array_equal(actual[path], value, err_msg=path)
  assert losses(run) == losses(reference)


def kill_until_done(folder, workdir, kills, seed, number=signal.SIGKILL):
  """Train, killed after a random number of output lines each time, then to the end."""
  rng = random.Random(seed)
  for _ in range(kills):
    process = command_line.start(
      'train', f'--config={command_line.experiment(folder)}', f'--workdir={workdir}', folder=folder
    )
    for _ in range(rng.randint(1, 14)):
      if not process.stdout.readline():
        break
    process.send_signal(number)
    process.communicate()
  code, output = command_line.launch(
    'train', f'--config={command_line.experiment(folder)}', f'--workdir={workdir}', folder=folder
  )
  assert code == 0, output


def test_killed_and_resumed_is_bitwise_uninterrupted(folder, untouched):
  kill_until_done(folder, folder / 'killed', kills=1, seed=3)
  assert_same(folder / 'killed', untouched)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_killed_many_times(folder, untouched, seed):
  workdir = folder / f'killed{seed}'
  kill_until_done(folder, workdir, kills=3, seed=seed)
  assert_same(workdir, untouched)


def test_sigterm_saves_and_exits_75(folder, untouched):
  workdir = folder / 'stopped'
  command = ('train', f'--config={command_line.experiment(folder)}', f'--workdir={workdir}')
  process = command_line.start(*command, folder=folder)
  while 'loss' not in process.stdout.readline():
    pass
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate()
  assert process.returncode == 75, output
  code, output = command_line.launch('train', f'--workdir={workdir}', folder=folder)  # no config needed
  assert code == 0, output
  assert_same(workdir, untouched)


def test_truncated_checkpoint_falls_back_and_goes_on(folder, untouched):
  workdir = folder / 'truncated'
  shutil.copytree(untouched, workdir)
  (workdir / 'result.json').unlink()
  newest = max(int(p.name) for p in (workdir / 'checkpoints').glob('[0-9]*'))
  victim = max((workdir / 'checkpoints' / str(newest)).rglob('*'), key=lambda p: p.stat().st_size)
  victim.write_bytes(victim.read_bytes()[:-7])
  code, output = command_line.launch('train', f'--workdir={workdir}', folder=folder)
  assert code == 0, output
  assert f'not trusted: checkpoint {newest}' in output
  assert_same(workdir, untouched)


MEDIA = """
from tests import tiny_runs

def get_config(arg=''):
  if arg == 'codec':
    vq = {'kind': 'vq', 'codes': 16, 'height': 8, 'width': 8, 'patch': 2, 'network_width': 16}
    return tiny_runs.codec_section('image', image=vq)
  return tiny_runs.media(model__dropout=0.1)
"""


@pytest.mark.slow
@pytest.mark.parametrize('which', ['media', 'codec'])
def test_pictures_and_sounds_are_resumed_bitwise_too(folder, which):
  (folder / 'media_experiment.py').write_text(MEDIA)
  spec = f'--config={folder}/media_experiment.py:{which}'
  train = lambda name: ('train', spec, f'--workdir={folder / which}_{name}')
  code, output = command_line.launch(*train('whole'), folder=folder)
  assert code == 0, output
  process = command_line.start(*train('killed'), folder=folder)
  while 'step 7/12' not in process.stdout.readline():
    assert process.poll() is None
  process.kill()
  process.communicate()
  code, output = command_line.launch(*train('killed'), folder=folder)
  assert code == 0, output
  whole, killed = (folder / f'{which}_{name}' for name in ('whole', 'killed'))
  [resumed] = [e for e in run_folder.read_events(killed) if e['event'] == 'resume']
  assert resumed['step'] in (3, 6)  # that of step 6 may not have been written yet
  assert_same(killed, whole)
  for made in ('tokenizer', 'codec'):
    assert tiny_runs.snapshot(killed / made) == tiny_runs.snapshot(whole / made)
