"""Several real processes, joined by gloo, are one run: by the command line, as a scheduler would.

What one process computes is the reference: equal to 1e-6 in float32, as sums go in another order.
"""

import re
import shutil
import signal
import time

import numpy as np
import pytest

from gpt_jax.cluster import bootstrap
from gpt_jax.runs import records, run_folder
from tests import command_line, tiny_runs

pytestmark = pytest.mark.slow
TIMED = ('time', 'tokens_per_second', 'mfu', 'mfu_causal', 'memory_gib', 'step_seconds')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('processes')


def train(folder, count, name, *more):
  """Train in so many processes -> (exit codes, outputs)."""
  words = ('train', f'--config={command_line.experiment(folder)}', f'--workdir={folder / name}', *more)
  return command_line.ended(command_line.start_all(count, *words, folder=folder))


def trained(folder, count, name, *more):
  """The folder of a run in so many processes that got to its end."""
  codes, outputs = train(folder, count, name, *more)
  assert codes == [0] * count, outputs
  return folder / name


@pytest.fixture(scope='module')
def two(folder):
  """A run of two processes, never interrupted."""
  return trained(folder, 2, 'two')


@pytest.fixture(scope='module')
def one(folder):
  """The same run in one process."""
  return trained(folder, 1, 'one')


def metrics(workdir):
  """What was logged and does not depend on time, a line a step."""
  return [{k: v for k, v in x.items() if k not in TIMED} for x in run_folder.read_metrics(workdir)]


def assert_bitwise(found, expected):
  found, expected = tiny_runs.arrays(found), tiny_runs.arrays(expected)
  assert found.keys() == expected.keys()
  for path, array in expected.items():
    np.testing.assert_array_equal(found[path], array, err_msg=path)


def assert_close(found, expected):
  """The same losses, and gradient norms, at the same steps."""
  found, expected = metrics(found), metrics(expected)
  assert [line['step'] for line in found] == [line['step'] for line in expected]
  for line, wanted in zip(found, expected, strict=True):
    for name in {'loss', 'valid_loss', 'grad_norm'} & wanted.keys():
      assert line[name] == pytest.approx(wanted[name], rel=1e-6), (name, line['step'])


def events(workdir, name):
  return [event for event in run_folder.read_events(workdir) if event['event'] == name]


# ------------------------------------------------------------------------------------- one run


def test_two_are_one(two, one):
  """One set of files, the same numbers, and a step of each in the metrics."""
  assert_close(two, one)
  assert [line['step'] for line in metrics(two)] == list(range(1, 13))
  assert len(events(two, 'start')) == len(events(two, 'done')) == 1
  assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
  found, expected = (records.read_json(run / 'result.json') for run in (two, one))
  assert found['valid_loss'] == pytest.approx(expected['valid_loss'], rel=1e-6)
  assert found['tokens'] == expected['tokens'] == 12 * 4 * 32


def test_a_model_that_two_share(folder, one):
  """Neither process has all of it: each computes all rows and holds half of every weight."""
  assert_close(trained(folder, 2, 'shared', '--config.mesh.tensor=2'), one)


def test_a_branch_of_two_from_a_run_of_one(folder, one):
  """It is the run from there on, on another mesh, too; only process 0 writes its parents."""
  for name, more in (('branch', ()), ('branch_shared', ('--config.mesh.tensor=2',))):
    branch = trained(folder, 2, name, f'--config.train.branch_from={one}@9', *more)
    rest = [line for line in metrics(one) if line['step'] > 9]
    assert [line['step'] for line in metrics(branch)] == [10, 11, 12]
    for line, wanted in zip(metrics(branch), rest, strict=True):
      assert line['loss'] == pytest.approx(wanted['loss'], rel=1e-6)
      assert line['tokens'] == wanted['tokens']
    [parent] = records.read_json(branch / 'result.json')['parents']
    assert parent['step'] == 9 and parent['path'] == str(one)


def test_a_branch_of_two_is_changed_and_grows_longer(folder, one):
  """A new seed, a spike guard and more steps: what is not of the parent lies on all processes."""
  more = ('--config.train.seed=3', '--config.train.spike_sigma=9', '--config.optim.schedule=constant')
  more += (f'--config.train.branch_from={one}@9',)
  for count in (1, 2):
    trained(folder, count, f'grown{count}', *more)
    trained(folder, count, f'grown{count}', *more, '--config.train.steps=15')
  assert_close(folder / 'grown2', folder / 'grown1')
  assert [line['step'] for line in metrics(folder / 'grown2')] == list(range(10, 16))


def test_samples_and_scores_do_not_depend_on_the_processes(two, folder):
  """And only one of two prints, and writes."""
  ask = ('--prompt=ab', '--num_samples=2', '--max_new_tokens=12', f'--workdir={two}')
  commands = (('sample', *ask), ('evaluate', f'--workdir={two}', '--limit=500'))
  for words in commands:
    code, alone = command_line.launch(*words, folder=folder)
    codes, both = command_line.ended(command_line.start_all(2, *words, folder=folder))
    assert [code, *codes] == [0] * 3, (alone, both)
    said = [re.sub(r'\[Gloo\].*\n?', '', output) for output in both]
    assert said == [alone, '']
  rows = [line for line in alone.splitlines()[:-1] if not line.startswith('note: ')]  # the last: the report
  assert len((two / 'evaluations.jsonl').read_text().splitlines()) == 2 * len(rows)


# ----------------------------------------------------------------------------- stopping, going on


def after(process, line):
  """Read what a process says up to a line with this in it."""
  said = ''
  while line not in said:
    said = process.stdout.readline()
    assert said or process.poll() is None


@pytest.fixture(scope='module')
def half(folder):
  """A run of two that SIGTERM to one of them has ended in the middle."""
  # Its probe takes seconds to compile: agreement needs one or two, and twelve steps less.
  words = (
    'train',
    f'--config={command_line.experiment(folder)}',
    f'--workdir={folder / "half"}',
    '--config.train.probe_every=1',
  )
  processes = command_line.start_all(2, *words, folder=folder)
  after(processes[0], 'from step 0')
  processes[1].send_signal(signal.SIGTERM)
  codes, outputs = command_line.ended(processes)
  assert codes == [75, 75], outputs
  [event] = events(folder / 'half', 'preempted')
  said = [re.findall(r'agreed to, after step (\d+)', output) for output in outputs]
  assert said == [[str(event['step'])], []]  # process 0 prints the step that both stop after
  assert event['step'] < 12
  return folder / 'half'


@pytest.mark.parametrize('count', [2, 1, 4])
def test_what_was_asked_to_stop_goes_on(folder, half, two, count):
  """Bitwise in as many processes, else as closely as sums in another order are."""
  shutil.copytree(half, folder / f'then{count}')
  found = trained(folder, count, f'then{count}')
  assert events(found, 'resume')[0]['step'] == events(half, 'preempted')[0]['step']
  assert_close(found, two)
  if count == 2:
    assert_bitwise(found, two)
    assert metrics(found) == metrics(two)


def test_a_dead_process_ends_the_other(folder):
  """Within 30 seconds, and the last lines say why."""
  for victim in (0, 1):
    words = (
      'train',
      f'--config={command_line.experiment(folder)}',
      f'--workdir={folder / "dead"}',
      '--config.train.steps=100000',
      '--config.train.eval_every=0',
    )
    processes = command_line.start_all(2, *words, folder=folder)
    after(processes[0], 'step 2')
    processes[victim].kill()
    killed = time.monotonic()
    output, _ = processes[1 - victim].communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert processes[1 - victim].returncode == 1
    cause, fix = output.rstrip().splitlines()[-2:]
    assert cause == 'error: another process of this job ended, or stopped sending heartbeats'
    assert fix.startswith('fix: read its log')
    processes[victim].communicate()


# ------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize(
  'changes, environ, named',
  [
    (['--config.optim.lr=0.002'], {}, 'config.optim.lr=0.01 in process 0, 0.002 in process 1'),
    (['--config.train.eval_every=3'], {}, 'config.train.eval_every=4 in process 0, 3 in process 1'),
    (['--config.model.width=24'], {}, 'config.model.width=16 in process 0, 24 in process 1'),
    ([], {'JAX_ENABLE_X64': '1'}, 'jax_enable_x64="False" in process 0, "True" in process 1'),
    (['--config.model.heads=5'], {}, 'heads=5'),  # not a possible config
    (['--config.modle.heads=2'], {}, 'did you mean model'),  # not a flag
  ],
)
def test_a_process_that_differs_ends_all_within_seconds(folder, changes, environ, named):
  """With one error that names the key; nothing is written."""
  words = ('train', f'--config={command_line.experiment(folder)}', f'--workdir={folder / "differ"}')
  job = ('--processes=2', f'--coordinator=127.0.0.1:{bootstrap.free_port()}')
  first = command_line.start(*words, *job, '--process=0', folder=folder)
  second = command_line.start(*words, *job, '--process=1', *changes, folder=folder, env=environ)
  codes, outputs = command_line.ended([first, second], seconds=60)
  assert codes == [2, 2], outputs
  for output in outputs:
    assert named in output and 'Traceback' not in output
    assert [line.split(':')[0] for line in output.splitlines()] == ['error', 'fix']
  assert not (folder / 'differ').exists()


@pytest.mark.parametrize('index', [0, 1])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_for_others_heeds_a_signal(folder, index, number):
  words = ('train', f'--config={command_line.experiment(folder)}', f'--workdir={folder / "lonely"}')
  job = (f'--coordinator=127.0.0.1:{bootstrap.free_port()}', '--processes=2', f'--process={index}')
  process = command_line.start(*words, *job, folder=folder)
  waits = process.stdout.readline()
  assert waits.startswith('waiting for process') and '127.0.0.1' in waits
  process.send_signal(number)
  (code,), (output,) = command_line.ended([process], seconds=5)
  assert (code, output) == (75, 'stopped: nothing to save yet; run the same command again\n')
