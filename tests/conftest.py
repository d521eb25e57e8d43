"""Strict modes, eight fake devices and shared fixtures."""

import collections
import gc
import importlib.metadata
import os
import pathlib
import time
from unittest import mock

# Must be set before the backend starts. Async dispatch off: eight fake devices on two cores can
# deadlock in a collective rendezvous when several steps are in flight.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Compilation dominates the cost of these tests. XLA's older emitters and modules of one part take half
# the processor time (29 -> 13 s of a part of test_trust.py). An unknown flag would end the process.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  flags = '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
  os.environ.setdefault('XLA_FLAGS', flags)

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_cpu_enable_async_dispatch', False)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
# LLVM's cheapest level compiles 2 to 4 times faster.
jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(autouse=True)
def environment():
  """Restore the environment variables that a test changed: the next test's processes inherit them."""
  with mock.patch.dict(os.environ):
    yield


@pytest.fixture(autouse=True, scope='module')
def clear_caches_after_module():
  """Forget compiled programs: collecting garbage among those of all modules slowed the last tests down."""
  yield
  jax.clear_caches()
  gc.collect()
  gc.freeze()


@pytest.fixture
def data_dir():
  """The folder of development data sets; skips the test without one."""
  path = pathlib.Path(os.environ.get('GPT_JAX_DATA', '../shared/data'))
  if not path.is_dir():
    pytest.skip(f'no development data at {path}: set GPT_JAX_DATA')
  return path.resolve()


@pytest.fixture(scope='session')
def tiny():
  """`tiny(**overrides)` -> a resolved ModelConfig of 2 layers, width 16, 50 ids, context 16."""
  from tests import models

  return models.tiny


@pytest.fixture(autouse=True)
def no_mesh_is_left_behind():
  """A benchmark sets the mesh of its process for good; the next test has another."""
  before = jax.sharding.get_mesh()
  yield
  if jax.sharding.get_mesh() != before:
    jax.sharding.set_mesh(before)


@pytest.fixture
def mesh():
  """A mesh of one device."""
  from tests import models

  return models.mesh()


def pytest_runtest_setup(item):
  """Skip slow tests after GPT_JAX_SLOW_UNTIL (Unix seconds): CI runs as many as a machine has time for."""
  if item.get_closest_marker('slow') and time.time() > float(os.environ.get('GPT_JAX_SLOW_UNTIL') or 'inf'):
    pytest.skip('no time is left for slow tests')


def pytest_terminal_summary(terminalreporter):
  """Print why tests were skipped, one line per reason."""
  skipped = terminalreporter.stats.get('skipped', [])
  reasons = collections.Counter(report.longrepr[2].removeprefix('Skipped: ') for report in skipped)
  for reason, count in sorted(reasons.items()):
    terminalreporter.write_line(f'skipped {count}: {reason}')
