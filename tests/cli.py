"""Runs launch.py as a user does, on an experiment of seconds."""

import os
import pathlib
import subprocess
import sys

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
  """The path of an experiment file that trains for 12 steps."""
  path = folder / 'tiny_experiment.py'
  path.write_text(EXPERIMENT)
  return path


def start(*arguments, folder, **options):
  """A launch.py process; compiled programs are shared between a test's processes."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONUNBUFFERED': '1',
  }
  environment.pop('XLA_FLAGS', None)
  return subprocess.Popen(
    [sys.executable, str(ROOT / 'launch.py'), *map(str, arguments)],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=ROOT,
    env=environment | options.pop('env', {}),
    **options,
  )


def launch(*arguments, folder, **options):
  """Run to the end -> (exit code, output)."""
  process = start(*arguments, folder=folder, **options)
  output, _ = process.communicate(timeout=300)
  return process.returncode, output
