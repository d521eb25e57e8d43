"""Batches onto the mesh: each process puts its rows, together they are one global array.

The letters that end a batch entry's name (`token_ids_BT`) say its layout.
"""

import functools
import math

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax.sharding import ACTIVATION_RULES, spec


def batch_sharding(mesh, name, stacked=False):
  """Return the sharding of a batch's entry by the letters that end its name (`token_ids_BT`)."""
  entries = spec(name.rsplit('_', 1)[1], ACTIVATION_RULES, mesh.shape, name)
  return NamedSharding(mesh, PartitionSpec(None, *entries) if stacked else entries)


def check_batch(rows, length, mesh):
  """Raise ValueError unless a batch of these sizes, over all processes, fits the mesh."""
  shards = math.prod(mesh.shape[a] for a in ACTIVATION_RULES['B'])
  sequence = mesh.shape['sequence']
  # A device computes two chunks of a row, an early and a late one (model/kernels/context_parallel.py).
  if rows % shards or (sequence > 1 and length % (2 * sequence)):
    raise ValueError(
      f'a batch of {rows} rows of {length} tokens does not split over data x fsdp x expert = {shards} and '
      f'sequence = {sequence} devices, two chunks of a row each\n'
      'fix: use a train.batch_size and length that they divide, or fewer devices on these axes'
    )


@functools.cache
def data_shard(mesh):
  """Return (index, count): which of `count` equal parts of a batch's rows this process's devices hold.

  Processes that hold the same rows, because a tensor or sequence axis spans them, have one index.
  """
  sharding = NamedSharding(mesh, spec('B', ACTIVATION_RULES, mesh.shape))
  shards = math.prod(mesh.shape[a] for a in ACTIVATION_RULES['B'])
  rows_by_process = {}
  for device, (rows,) in sharding.devices_indices_map((shards,)).items():
    rows_by_process.setdefault(device.process_index, set()).update(range(shards)[rows])
  parts = sorted({tuple(sorted(rows)) for rows in rows_by_process.values()})
  if sum(map(len, parts)) != shards:
    raise ValueError(
      f'mesh {dict(mesh.shape)}: processes hold overlapping rows of a batch\n'
      'fix: let data x fsdp x expert be a multiple of the number of hosts, or the rest of it'
    )
  return parts.index(tuple(sorted(rows_by_process[jax.process_index()]))), len(parts)


def to_devices(batch, mesh, stacked=False):
  """Put this process's rows of a batch (numpy; see `data_shard`) on the mesh as global arrays.

  stacked: whether every array has a leading axis of steps.
  """
  letters = lambda name: name.rsplit('_', 1)[1]
  sizes = [dict(zip(letters(k), np.shape(v)[stacked:], strict=True)) for k, v in batch.items()]
  rows = sizes[0]['B'] * data_shard(mesh)[1]
  check_batch(rows, max(size.get('T', 0) for size in sizes), mesh)

  def put(name, local):
    local = np.asarray(local)
    shape = list(local.shape)
    shape[stacked + letters(name).index('B')] = rows
    return jax.make_array_from_process_local_data(batch_sharding(mesh, name, stacked), local, tuple(shape))

  return {name: put(name, local) for name, local in batch.items()}
