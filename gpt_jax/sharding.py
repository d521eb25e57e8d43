"""Meshes, the two rule tables that map letters to mesh axes, and the way onto devices.

A tensor's letters say its layout: `P(*map(rule, 'DHK'))`. Parameters and activations need different
rules: fsdp shards a weight's D (gathered just before use) but never an activation's. A mesh always
exists; on one device it is 1x1x1x1x1x1. Auto axis types: the compiler places what no rule names.

Sources: GSPMD (Xu et al. 2021); ZeRO stage 3 (Rajbhandari et al. 2020) for fsdp; Megatron-LM
(Shoeybi et al. 2019, section 3) for tensor.
"""

import contextlib
import dataclasses
import functools
import math

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gpt_jax.runs.text_table import format_table

AXES = ('replica', 'data', 'fsdp', 'sequence', 'expert', 'tensor')  # slowest network first

PARAM_RULES = {
  'R': 'replica',
  'D': 'fsdp',
  'H': 'tensor',
  'G': 'tensor',
  'F': 'tensor',
  'V': 'tensor',
  'E': 'expert',
}
ACTIVATION_RULES = {
  'R': 'replica',
  'B': ('data', 'fsdp', 'expert'),
  'b': ('data', 'fsdp'),  # the batch of a tensor that has E
  'E': 'expert',
  'T': 'sequence',
  'H': 'tensor',
  'G': 'tensor',
  'F': 'tensor',
  'V': 'tensor',
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many devices each mesh axis gets; their product is the number of devices."""

  preset: str = ''  # a row of PRESETS; '' = the numbers below
  replica: int = 1  # whole runs side by side
  data: int = -1  # copies of the model, each with its share of the batch; -1 = what is left
  fsdp: int = 1  # like data, and every weight's width D is spread over them
  sequence: int = 1  # pieces of a row's tokens T
  expert: int = 1  # shares of the experts E; the batch is spread over them too
  tensor: int = 1  # shares of heads, feed-forward width and vocabulary
  slices: int = 0  # pods or hosts that a slower network joins; 0 = as devices say, 1 = no matter

  def __post_init__(self):
    if self.preset and self.preset not in PRESETS:
      raise ValueError(f'mesh.preset={self.preset} is not a known mesh\nfix: use one of {", ".join(PRESETS)}')
    for axis in AXES:
      size = getattr(self, axis)
      if size < 1 and size != -1:
        raise ValueError(f'mesh.{axis}={size} is not a size\nfix: use a number >= 1, or -1')
    if self.slices < 0:
      raise ValueError(f'mesh.slices={self.slices} is not a number of slices\nfix: use 0 or more')
    for axis, size in PRESETS.get(self.preset, {}).items():
      if getattr(self, axis) not in (size, getattr(MeshConfig, axis)):
        raise ValueError(
          f'mesh.{axis}={getattr(self, axis)} with mesh.preset={self.preset}, which sets it to '
          f'{size}\nfix: set one of the two'
        )

  def sizes(self, devices, slices=1):
    """Sizes of all AXES for this many devices, -1 replaced; ValueError if they do not fit."""
    wanted = {axis: getattr(self, axis) for axis in AXES}
    wanted.update(PRESETS[self.preset] if self.preset else {})
    wanted = {axis: slices if size == SLICES else size for axis, size in wanted.items()}
    known = math.prod(size for size in wanted.values() if size != -1)
    free = [axis for axis, size in wanted.items() if size == -1]
    if len(free) > 1:
      raise ValueError(f'mesh axes {free} are both -1\nfix: let at most one axis take what is left')
    if devices % known or (not free and known != devices):
      raise ValueError(
        f'mesh {shown(wanted)} does not fit {devices} device(s)\n'
        'fix: let the product of the mesh.* sizes be the number of devices, or set mesh.data=-1'
      )
    return {axis: devices // known if size == -1 else size for axis, size in wanted.items()}


def make_mesh(config, devices=None):
  """A jax Mesh with all six AXES over these devices (default: all of them).

  Of several slices, which a slower network (DCN) joins, each holds an equal part of the outermost
  axis, so that no other axis leaves a slice. Raises ValueError where they do not divide it.
  """
  devices = jax.devices() if devices is None else devices
  found = len({getattr(device, 'slice_index', None) for device in devices})
  slices = check_slices(config, found, len(devices))
  sizes = config.sizes(len(devices), slices)
  types = (AxisType.Auto,) * len(AXES)
  # A tensor axis of 4 on a torus of 8 x 8 x 8 takes half of a physical axis.
  split = {'allow_split_physical_axes': devices[0].platform == 'tpu'}
  if found == 1:
    placed = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, **split)
    return Mesh(placed, AXES, axis_types=types)
  if slices == 1:  # mesh_utils refuses them
    return Mesh(np.reshape(devices, tuple(sizes.values())), AXES, axis_types=types)
  outer = next(axis for axis in AXES if sizes[axis] > 1)
  if sizes[outer] % slices:
    raise ValueError(
      f'mesh.{outer}={sizes[outer]}, the outermost axis, does not split over {slices} slices\n'
      f'fix: use a multiple of {slices}, an axis outside of it such as mesh.data={slices}, or '
      'mesh.slices=1 to let any axis cross the slower network'
    )
  within = sizes | {outer: sizes[outer] // slices}
  across = dict.fromkeys(AXES, 1) | {outer: slices}
  placed = mesh_utils.create_hybrid_device_mesh(
    tuple(within.values()), tuple(across.values()), devices, **split
  )
  return Mesh(placed, AXES, axis_types=types)


def check_slices(config, found, devices):
  """How many slices to heed of those found; ValueError if the config wants another number."""
  if config.slices > 1 and config.slices != found:
    raise ValueError(
      f'mesh.slices={config.slices}, and the {devices} device(s) are in {found} slice(s)\n'
      'fix: leave mesh.slices=0 to take what the devices say'
    )
  return 1 if config.slices == 1 else found


def spec(letters, rules, sizes, name='tensor', shape=None):
  """The PartitionSpec of a tensor by its letters.

  Raises ValueError, naming the tensor, when two of its letters want one mesh axis or when (given
  `shape`) an axis does not divide its dimension. Axes of size 1 are left out.
  """
  taken, entries = {}, []
  for i, letter in enumerate(letters):
    axes = rules.get(letter)
    axes = tuple(a for a in names(axes) if sizes[a] > 1)
    for axis in axes:
      if axis in taken:
        raise ValueError(
          f'{name}: letters {taken[axis]} and {letter} of {letters} both want mesh axis {axis}\n'
          'fix: change one of the two rules in gpt_jax/sharding.py'
        )
      taken[axis] = letter
    parts = math.prod(sizes[a] for a in axes)
    if shape is not None and shape[i] % parts:
      raise ValueError(
        f'{name}: dimension {letter}={shape[i]} of {letters} is not divisible by '
        f'{" x ".join(f"{a}={sizes[a]}" for a in axes)}\n'
        f'fix: choose a mesh whose {"/".join(axes)} divides {shape[i]}, or change the model'
      )
    entries.append(axes if len(axes) > 1 else (axes[0] if axes else None))
  return PartitionSpec(*entries)


def param_sharding(mesh, letters, shape, name):
  """NamedSharding of one parameter, checked."""
  return NamedSharding(mesh, spec(letters, PARAM_RULES, mesh.shape, name, shape))


def table(abstract, mesh):
  """Lines that say where each array of a tree lies: name, shape, spec, bytes on each device.

  abstract: arrays or ShapeDtypeStructs that have NamedShardings, such as Program.abstract.model.
  """
  rows, total, whole = [], 0, 0
  for name, x, held, size in placed(abstract):
    entries = [' x '.join(names(entry)) or '-' for entry in x.sharding.spec] or ['-'] * x.ndim
    total, whole = total + held, whole + size
    shape = ' x '.join(map(str, x.shape)) or 'scalar'
    rows.append((name, f'{shape} {x.dtype}', ', '.join(entries) or '-', f'{held:,}'))
  rows.append(('total', '', shown(mesh.shape), f'{total:,} of {whole:,}'))
  return format_table(rows, ('tensor', 'shape', 'spec', 'bytes a device'))


def summary(abstract, mesh, large=2**20):
  """The same in a line: how many arrays, bytes a device, and which large ones every device has.

  large: bytes from which an array that is not cut up is named.
  """
  rows = placed(abstract)
  total, whole = (sum(row[i] for row in rows) for i in (2, 3))
  copies = sorted((-size, name) for name, _, held, size in rows if held == size >= large)
  mib = lambda n: f'{n / 2**20:,.1f} MiB'
  listed = ', '.join(f'{name} {mib(-size)}' for size, name in copies[:3])
  more = f' and {len(copies) - 3} more' if len(copies) > 3 else ''
  line = f'{len(rows)} arrays on {shown(mesh.shape)}, {mib(total)} of {mib(whole)} a device'
  return f'{line}, whole on each: {listed}{more}' if copies else line


def placed(abstract):
  """Of each array of a tree that has NamedShardings: (name, it, bytes on a device, bytes)."""
  size = lambda x, shape: math.prod(shape) * x.dtype.itemsize
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/').removesuffix('/value')
  return [
    (name(path), x, size(x, x.sharding.shard_shape(x.shape)), size(x, x.shape))
    for path, x in jax.tree_util.tree_flatten_with_path(abstract)[0]
  ]


def shown(sizes):
  """Such as 'data=2 x fsdp=4'."""
  return ' x '.join(f'{axis}={n}' for axis, n in sizes.items() if n != 1) or 'one device'


def constrain(x, letters):
  """Pin an activation's layout to the rules, under `jax.set_mesh`; without a mesh, do nothing."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, fitting(letters, x.shape))


def fitting(letters, shape):
  """The PartitionSpec of an activation on the mesh in force.

  A dimension that its axes do not divide stays whole: prompts come in any number. What must
  divide is checked where it enters: parameters in `param_sharding`, batches in `to_devices`.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  wanted = spec(letters, ACTIVATION_RULES, sizes)
  parts = [math.prod(sizes[a] for a in names(entry)) for entry in wanted]
  fits = zip(wanted, shape, parts, strict=True)
  return PartitionSpec(*(entry if n % k == 0 else None for entry, n, k in fits))


def platform():
  """What code is traced for: 'cpu', 'gpu' or 'tpu'; of the mesh in force, which may be absent."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def names(entry):
  """The mesh axes of one entry of a PartitionSpec, as a tuple."""
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def replicated(mesh):
  """The sharding of a value that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh, name, stacked=False):
  """The sharding of a batch's entry by the letters that end its name (`token_ids_BT`)."""
  entries = spec(name.rsplit('_', 1)[1], ACTIVATION_RULES, mesh.shape, name)
  return NamedSharding(mesh, PartitionSpec(None, *entries) if stacked else entries)


def check_batch(rows, length, mesh):
  """Raise ValueError unless a batch of these sizes, over all processes, fits the mesh."""
  shards = math.prod(mesh.shape[a] for a in ACTIVATION_RULES['B'])
  sequence = mesh.shape['sequence']
  # A device computes two chunks of a row, an early and a late one (model/kernels/context_parallel.py).
  if rows % shards or (sequence > 1 and length % (2 * sequence)):
    raise ValueError(
      f'a batch of {rows} rows of {length} tokens does not split over data x fsdp x expert = '
      f'{shards} and sequence = {sequence} devices, two pieces of a row each\n'
      'fix: use a train.batch_size and length that they divide, or fewer devices on these axes'
    )


@functools.cache
def share(mesh):
  """(index, count): which of `count` equal parts of a batch's rows this process's devices hold.

  Processes that share rows, because a tensor or sequence axis spans them, have one index.
  """
  rows = NamedSharding(mesh, spec('B', ACTIVATION_RULES, mesh.shape))
  parts = math.prod(mesh.shape[a] for a in ACTIVATION_RULES['B'])
  held = {}
  for device, (part,) in rows.devices_indices_map((parts,)).items():
    held.setdefault(device.process_index, set()).update(range(parts)[part])
  shares = sorted({tuple(sorted(rows)) for rows in held.values()})
  if sum(map(len, shares)) != parts:
    raise ValueError(
      f'mesh {dict(mesh.shape)}: processes hold overlapping rows of a batch\n'
      'fix: let data x fsdp x expert be a multiple of the number of hosts, or the rest of it'
    )
  return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def to_devices(batch, mesh, stacked=False):
  """This process's rows of a batch (numpy; see `share`) -> global arrays on the mesh."""
  sizes = [dict(zip(k.rsplit('_', 1)[1], np.shape(v)[stacked:], strict=True)) for k, v in batch.items()]
  _, count = share(mesh)
  rows, length = sizes[0]['B'] * count, max(size.get('T', 0) for size in sizes)
  check_batch(rows, length, mesh)

  def put(name, local):
    local = np.asarray(local)
    whole = list(local.shape)
    whole[stacked + name.rsplit('_', 1)[1].index('B')] = rows
    placed = batch_sharding(mesh, name, stacked)
    return jax.make_array_from_process_local_data(placed, local, tuple(whole))

  return {name: put(name, local) for name, local in batch.items()}


def fetch(tree):
  """Arrays on devices, of this process or of all -> numpy, whole, in every process."""

  def whole(x):
    here = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
    return x if here else multihost_utils.process_allgather(x, tiled=True)

  return jax.device_get(jax.tree.map(whole, tree))


def together(name):
  """Wait until all processes are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def in_turn():
  """Process 0 first, then all others."""
  if jax.process_index() > 0:
    together('in turn')
  yield
  if jax.process_index() == 0:
    together('in turn')


SLICES = 'slices'  # as many as there are slices
FSDP = dict(data=1, fsdp=-1)
PRESETS = {
  'laptop': dict(data=-1),
  'gpu8': dict(data=-1),
  'gpu8-fsdp': FSDP,
  'gpu8-tensor2': dict(data=1, fsdp=-1, tensor=2),
  'h200-8': FSDP,
  '4xh100-8': dict(data=4, fsdp=-1),  # weights are gathered within a host, gradients meet across
  'v5e-256': FSDP,
  'v5p-128': FSDP,
  'v6e-256': FSDP,
  'multi-slice': dict(data=SLICES, fsdp=-1),  # likewise
}
