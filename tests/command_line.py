"""Run launch.py as a user would, on an experiment of seconds."""

import contextlib
import os
import pathlib
import subprocess
import sys
from unittest import mock

from absl import flags, logging

from gpt_jax.cli import job, main, verbs
from gpt_jax.cluster import bootstrap

ROOT = pathlib.Path(__file__).parents[1]

EXPERIMENT = """
from gpt_jax import config as configs

def get_config(arg=''):
  configs.arguments(arg)
  config = configs.default()
  config.data.mixture = {'text': {'kind': 'synthetic', 'documents': 60}}
  config.model.update(layers=2, width=16, heads=2, context=32, dropout=0.1)
  config.optim.update(lr=1e-2, warmup=2, ema=0.9)
  config.train.update(steps=12, batch_size=4, eval_every=4, sample_every=0, eval_tokens=256)
  config.checkpoint.every = 3
  config.log.every = 1
  config.sample.max_new_tokens = 8
  return config
"""


def experiment(folder):
  """Write an experiment file that trains for 12 steps -> its path."""
  path = folder / 'tiny_experiment.py'
  path.write_text(EXPERIMENT)
  return path


def start(*arguments, folder, **options):
  """Start a launch.py process; the processes of a test share a compilation cache.

  They compile as little as conftest.py lets the tests: 12 steps take 8 s of processor time instead of 23.
  """
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONUNBUFFERED': '1',
  }
  return subprocess.Popen(
    [sys.executable, str(ROOT / 'launch.py'), *map(str, arguments)],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=ROOT,
    env=environment | options.pop('env', {}),
    **options,
  )


def start_all(count, *arguments, folder, **options):
  """Start the processes of one job."""
  port = bootstrap.free_port()
  job = (f'--coordinator=127.0.0.1:{port}', f'--processes={count}')
  return [start(*arguments, *job, f'--process={i}', folder=folder, **options) for i in range(count)]


def ended(processes, seconds=240):
  """Wait for all processes -> (exit codes, outputs); kills them on failure."""
  with contextlib.ExitStack() as stack:
    for process in processes:
      stack.callback(process.kill)
    outputs = [process.communicate(timeout=seconds)[0] for process in processes]
  return [process.returncode for process in processes], outputs


def launch(*arguments, folder, **options):
  """Run launch.py to its end -> (exit code, output)."""
  (code,), (output,) = ended([start(*arguments, folder=folder, **options)], seconds=300)
  return code, output


class NoWatchdog:
  """A Watchdog that handles no signals."""

  stop_requested = False
  start_hang_timer = staticmethod(lambda seconds, folder: None)
  wait_for_save = staticmethod(lambda: None)
  share_requests = staticmethod(lambda process, processes: None)
  should_stop = staticmethod(lambda step: False)


# What `run_verb` needs replaced in this process: (object, name, value).
IN_PROCESS = (
  (bootstrap, 'join', lambda *_: None),  # jax is already initialized
  *((module, 'process_watchdog', NoWatchdog) for module in (verbs, job)),
)
ENVIRONMENT = {'JAX_COMPILATION_CACHE_DIR': ''}  # no cache folder in the home folder


def run_verb(*arguments):
  """Run a verb by cli.main in this process -> its exit code."""
  before, verbosity = set(flags.FLAGS), logging.get_verbosity()
  try:
    with mock.patch.dict(os.environ):  # `plan` sets variables of its process
      return main.main(['launch.py', *map(str, arguments)])
  except SystemExit as exit_:
    return exit_.code
  finally:
    for name in set(flags.FLAGS) - before:
      module = flags.FLAGS.find_module_defining_flag(name)
      if not module.startswith(('grain', 'array_record')):  # they stay loaded
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    logging.set_verbosity(verbosity)


def in_process(capsys, monkeypatch):
  """Return call('train', '--workdir=x') -> (exit code, stdout, stderr) by cli.main in this process."""
  for name, value in ENVIRONMENT.items():
    monkeypatch.setenv(name, value)
  for target, name, value in IN_PROCESS:
    monkeypatch.setattr(target, name, value)

  def call(*arguments):
    capsys.readouterr()
    return run_verb(*arguments), *capsys.readouterr()

  return call


def assert_user_error(outcome, *parts, code=2):
  """Check for an `error:` line with these parts, a `fix:` line and no traceback -> the fix."""
  exit_code, out, err = outcome
  assert exit_code == code, (out, err)
  assert 'Traceback' not in out + err
  lines = err.rstrip('\n').split('\n')
  assert len(lines) == 2, err
  assert lines[0].startswith('error: ') and lines[1].startswith('fix: ')
  for part in parts:
    assert part in lines[0], (part, lines[0])
  return lines[1]
