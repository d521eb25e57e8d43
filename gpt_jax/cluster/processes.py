"""What the processes of one job do together: barriers, and arrays gathered to every host."""

import contextlib

import jax
from jax.experimental import multihost_utils


def fetch(tree):
  """Gather device arrays, of this process or of all, to whole numpy arrays in every process."""

  def gather(x):
    is_whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
    return x if is_whole else multihost_utils.process_allgather(x, tiled=True)

  return jax.device_get(jax.tree.map(gather, tree))


def barrier(name):
  """Wait until all processes have reached the barrier of this name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def main_process_first():
  """Run the body in process 0, then in all others."""
  if jax.process_index() > 0:
    barrier('main process first')
  yield
  if jax.process_index() == 0:
    barrier('main process first')
