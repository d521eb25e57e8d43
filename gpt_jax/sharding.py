"""Meshes, the two rule tables that map letters to mesh axes, and the way onto devices.

A tensor's letters say its layout: `P(*map(rule, 'DHK'))`. Parameters and activations need different
rules: fsdp shards a weight's D (gathered just before use) but never an activation's. A mesh always
exists; on one device it is 1x1x1x1x1x1. Auto axis types: the compiler places what no rule names.

Sources: GSPMD (Xu et al. 2021); ZeRO stage 3 (Rajbhandari et al. 2020) for fsdp; Megatron-LM
(Shoeybi et al. 2019, section 3) for tensor.
"""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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

  def __post_init__(self):
    if self.preset and self.preset not in PRESETS:
      raise ValueError(
        f'mesh.preset={self.preset} is not a known mesh\nfix: use one of {", ".join(PRESETS)}'
      )
    for axis in AXES:
      size = getattr(self, axis)
      if size < 1 and size != -1:
        raise ValueError(f'mesh.{axis}={size} is not a size\nfix: use a number >= 1, or -1')
    for axis, size in PRESETS.get(self.preset, {}).items():
      if getattr(self, axis) not in (size, getattr(MeshConfig, axis)):
        raise ValueError(
          f'mesh.{axis}={getattr(self, axis)} with mesh.preset={self.preset}, which sets it to '
          f'{size}\nfix: set one of the two'
        )

  def sizes(self, devices):
    """Sizes of all AXES for this many devices, -1 replaced; ValueError if they do not fit."""
    wanted = {axis: getattr(self, axis) for axis in AXES}
    wanted.update(PRESETS[self.preset] if self.preset else {})
    known = math.prod(size for size in wanted.values() if size != -1)
    free = [axis for axis, size in wanted.items() if size == -1]
    if len(free) > 1:
      raise ValueError(f'mesh axes {free} are both -1\nfix: let at most one axis take what is left')
    shown = (
      ' x '.join(f'{axis}={size}' for axis, size in wanted.items() if size != 1) or 'one device'
    )
    if devices % known or (not free and known != devices):
      raise ValueError(
        f'mesh {shown} does not fit {devices} device(s)\n'
        'fix: let the product of the mesh.* sizes be the number of devices, or set mesh.data=-1'
      )
    return {axis: devices // known if size == -1 else size for axis, size in wanted.items()}


def make_mesh(config, devices=None):
  """A jax Mesh with all six AXES over these devices (default: all of them)."""
  devices = jax.devices() if devices is None else devices
  sizes = tuple(config.sizes(len(devices)).values())
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


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


def constrain(x, letters):
  """Pin an activation's layout to the rules, under `jax.set_mesh`; without a mesh, do nothing.

  A dimension that its axes do not divide stays whole: prompts come in any number. What must
  divide is checked where it enters: parameters in `param_sharding`, batches in `to_devices`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  wanted = spec(letters, ACTIVATION_RULES, mesh.shape)
  parts = [math.prod(mesh.shape[a] for a in names(entry)) for entry in wanted]
  fits = [entry if n % k == 0 else None for entry, n, k in zip(wanted, x.shape, parts, strict=True)]
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*fits))


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
  if rows % shards or length % mesh.shape['sequence']:
    raise ValueError(
      f'a batch of {rows} rows of {length} tokens does not split over data x fsdp x expert = '
      f'{shards} and sequence = {mesh.shape["sequence"]} devices\n'
      'fix: use a train.batch_size and length that they divide, or fewer devices on these axes'
    )


def to_devices(batch, mesh, stacked=False):
  """This process's rows of a batch (numpy) -> global arrays on the mesh."""
  put = jax.make_array_from_process_local_data
  sizes = [dict(zip(k.rsplit('_', 1)[1], np.shape(v)[stacked:], strict=True))
           for k, v in batch.items()]  # fmt: skip
  rows, length = sizes[0]['B'], max(size.get('T', 0) for size in sizes)
  check_batch(rows * jax.process_count(), length, mesh)
  return {k: put(batch_sharding(mesh, k, stacked), np.asarray(v)) for k, v in batch.items()}


PRESETS = {
  'laptop': dict(data=-1),
  'gpu8': dict(data=-1),
  'gpu8-fsdp': dict(data=1, fsdp=-1),
  'gpu8-tensor2': dict(data=1, fsdp=-1, tensor=2),
  'v5e-256': dict(data=1, fsdp=-1),
  'v5p-128': dict(data=1, fsdp=-1),
}
