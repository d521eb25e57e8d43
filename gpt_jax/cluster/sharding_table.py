"""Where the arrays of a tree lie: tables and one-line summaries of shardings."""

import math

import jax

from gpt_jax.cluster.meshes import axes_of, describe
from gpt_jax.runs.text_table import format_table


def table(abstract, mesh):
  """Format one line per array of a tree: name, shape, spec, bytes per device.

  abstract: arrays or ShapeDtypeStructs that have NamedShardings, such as Program.abstract.model.
  """
  rows, total, whole = [], 0, 0
  for name, x, local_bytes, all_bytes in sizes_of(abstract):
    entries = [' x '.join(axes_of(entry)) or '-' for entry in x.sharding.spec] or ['-'] * x.ndim
    total, whole = total + local_bytes, whole + all_bytes
    shape = ' x '.join(map(str, x.shape)) or 'scalar'
    rows.append((name, f'{shape} {x.dtype}', ', '.join(entries) or '-', f'{local_bytes:,}'))
  rows.append(('total', '', describe(mesh.shape), f'{total:,} of {whole:,}'))
  return format_table(rows, ('tensor', 'shape', 'spec', 'bytes per device'))


def summary(abstract, mesh, large=2**20):
  """Format one line: number of arrays, bytes per device, and the large arrays that are replicated.

  large: bytes from which a replicated array is named.
  """
  rows = sizes_of(abstract)
  total, whole = (sum(row[i] for row in rows) for i in (2, 3))
  replicas = sorted((-size, name) for name, _, local, size in rows if local == size >= large)
  mib = lambda n: f'{n / 2**20:,.1f} MiB'
  listed = ', '.join(f'{name} {mib(-size)}' for size, name in replicas[:3])
  more = f' and {len(replicas) - 3} more' if len(replicas) > 3 else ''
  line = f'{len(rows)} arrays on {describe(mesh.shape)}, {mib(total)} of {mib(whole)} per device'
  return f'{line}, whole on each: {listed}{more}' if replicas else line


def sizes_of(abstract):
  """Rows (name, array, bytes on a device, bytes in all) of a tree that has NamedShardings."""
  size = lambda x, shape: math.prod(shape) * x.dtype.itemsize
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')
  return [
    (name(path), x, size(x, x.sharding.shard_shape(x.shape)), size(x, x.shape))
    for path, x in jax.tree_util.tree_flatten_with_path(abstract)[0]
  ]
