"""Runs of seconds that the tests of training, checkpoints, tasks and the command line share."""

import contextlib
import fcntl
import functools
import hashlib
import os
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.compilation_cache import compilation_cache

from gpt_jax import checkpoint, config, hardware, sharding, train, trained

TINY = {
  'data.mixture': {'text': {'kind': 'synthetic', 'documents': 60}},
  'model': {'layers': 1, 'width': 16, 'heads': 2, 'context': 32},
  # eps: updates stay smooth where gradients are near zero, so that runs can be compared.
  'optim': {'lr': 2e-2, 'warmup': 2, 'eps': 1e-3, 'ema': 0.5},
  'train': {'steps': 12, 'batch_size': 16, 'eval_every': 4, 'sample_every': 6, 'eval_tokens': 600},
  'checkpoint': {'every': 3},
  'log': {'every': 1},
  'sample': {'max_new_tokens': 8},
}


def section(**changes):
  """The tiny experiment as a ConfigDict; `changes` by dotted key, '.' written as '__'."""
  made = config.default()
  for key, value in (TINY | {key.replace('__', '.'): v for key, v in changes.items()}).items():
    *parents, name = key.split('.')
    node = functools.reduce(lambda node, parent: node[parent], parents, made)
    if isinstance(value, dict) and key != 'data.mixture':
      node[name].update(value)
    else:
      node[name] = value
  return config.overridable(made)


def experiment(**changes):
  """The tiny experiment as a Config."""
  return config.build(config.Config, section(**changes))


def stop_before(step):
  """A should_stop that asks the run to stop once `step` steps are made, one step a call."""
  asked = iter(range(step))
  return lambda: next(asked, None) is None


def finished(factory):
  """The run folder of the tiny experiment, trained to the end once a session. Do not change it."""
  workdir = shared(factory) / 'finished'
  with open(shared(factory) / 'finished.lock', 'w') as file, compiled_programs(factory):
    fcntl.flock(file, fcntl.LOCK_EX)  # one process trains it, the others wait
    if not (workdir / 'report.html').exists():
      train.train(experiment(), workdir)
  return workdir


def shared(factory):
  """The temporary folder of a session, the same in all processes that pytest-xdist starts."""
  folder = factory.getbasetemp()
  return folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder


@contextlib.contextmanager
def compiled_programs(factory):
  """One device, and equal programs are compiled once a session: they are kept on disk.

  Compiling is the bill, and for eight devices it is a third more. Where they matter, a test puts
  `sharding.make_mesh` back.
  """
  options = {
    'jax_compilation_cache_dir': str(shared(factory) / 'compiled'),
    'jax_persistent_cache_min_compile_time_secs': 0.2,
  }
  before = {name: getattr(jax.config, name) for name in options}
  _configure(options)
  alone = lambda cfg: sharding.make_mesh(cfg, jax.devices()[:1])
  try:
    with (
      # Measuring takes seconds where XLA optimises little, as in these tests.
      mock.patch.object(hardware, 'measured_matmul_flops', lambda: 1e11),
      mock.patch.object(train, 'make_mesh', alone),
      mock.patch.object(trained, 'make_mesh', alone),
    ):
      yield
  finally:
    _configure(before)


def _configure(options):
  for name, value in options.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  hardware.peak_flops.cache_clear()


def arrays(workdir):
  """{path: array} of a run's newest good checkpoint, read without its config."""
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
  step = checkpoints.newest_good()
  like = checkpoint.nest(checkpoints.stored(step))
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    path = checkpoints.folder / str(step) / 'state'
    tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
  return checkpoint.flat(tree)


def snapshot(folder):
  """{relative path: hash of the content} of a folder, None if there is none."""
  if not folder.exists():
    return None
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_two_lines(message, *parts):
  """A cause line with these parts, then a fix line, and nothing else."""
  cause, fix = str(message).split('\n')
  assert fix.startswith('fix: ')
  assert len(fix) > len('fix: xx')
  for part in parts:
    assert part in cause, (part, cause)
  return cause, fix
