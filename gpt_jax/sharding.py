"""Meshes, and the two rule tables that map letters to mesh axes.

A tensor's letters say its layout: 'DHK' is sharded by the rules of D, H and K. Parameters and
activations need different rules: fsdp shards a weight's D (gathered just before use) but never an
activation's. A run always has a mesh; on one device it is 1x1x1x1x1x1. Axis types are Auto: the compiler
places what no rule names.

Sources: GSPMD (Xu et al. 2021); ZeRO stage 3 (Rajbhandari et al. 2020) for fsdp; Megatron-LM (Shoeybi et
al. 2019, section 3) for tensor.
"""

import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gpt_jax.cluster import meshes
from gpt_jax.cluster.meshes import PRESETS, axes_of

AXES = ('replica', 'data', 'fsdp', 'sequence', 'expert', 'tensor')  # slowest network first

PARAM_RULES = {'R': 'replica', 'D': 'fsdp', 'E': 'expert', **dict.fromkeys('HGFV', 'tensor')}
ACTIVATION_RULES = {
  'R': 'replica',
  'B': ('data', 'fsdp', 'expert'),
  'b': ('data', 'fsdp'),  # the batch of a tensor that has E
  'E': 'expert',
  'T': 'sequence',
  **dict.fromkeys('HGFV', 'tensor'),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices per mesh axis; their product is the number of devices."""

  preset: str = ''  # a row of cluster/meshes.PRESETS; '' = the numbers below
  replica: int = 1  # whole runs side by side
  data: int = -1  # copies of the model, each with its part of the batch; -1 = the devices that are left
  fsdp: int = 1  # like data, and every weight's width D is sharded too
  sequence: int = 1  # shards of a row's tokens T
  expert: int = 1  # shards of the experts E; the batch is sharded over them too
  tensor: int = 1  # shards of heads, feed-forward width and vocabulary
  slices: int = 0  # pods or hosts that a slower network joins; 0 = as devices report, 1 = ignore them

  def __post_init__(self):
    meshes.check_sizes(self, {axis: getattr(MeshConfig, axis) for axis in AXES})

  def sizes(self, devices, slices=1):
    """Return {axis: size} for this number of devices, -1 replaced; ValueError if they do not fit."""
    sizes = {axis: getattr(self, axis) for axis in AXES} | PRESETS.get(self.preset, {})
    sizes = {axis: slices if size == meshes.NUM_SLICES else size for axis, size in sizes.items()}
    known = math.prod(size for size in sizes.values() if size != -1)
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
      raise ValueError(f'mesh axes {free} are both -1\nfix: give all but one a size, such as mesh.data=1')
    if devices % known or (not free and known != devices):
      raise ValueError(
        f'mesh {meshes.describe(sizes)} does not fit {devices} device(s)\n'
        'fix: let the product of the mesh.* sizes be the number of devices, or set mesh.data=-1'
      )
    return {axis: devices // known if size == -1 else size for axis, size in sizes.items()}


def make_mesh(config, devices=None):
  """Build a jax Mesh with all six AXES over these devices (default: all). ValueError if it does not fit."""
  devices = jax.devices() if devices is None else devices
  slices = meshes.count_slices(devices, config.slices)
  device_array = meshes.arrange(devices, config.sizes(len(devices), slices), slices)
  return Mesh(device_array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(letters, rules, sizes, name='tensor', shape=None):
  """Return the PartitionSpec of a tensor by its letters; axes of size 1 are left out.

  Raises ValueError, naming the tensor, when two of its letters map to one mesh axis or when (given
  `shape`) an axis does not divide its dimension.
  """
  taken: dict = {}
  entries = []
  for i, letter in enumerate(letters):
    axes = tuple(a for a in axes_of(rules.get(letter)) if sizes[a] > 1)
    for axis in axes:
      if axis in taken:
        raise ValueError(
          f'{name}: letters {taken[axis]} and {letter} of {letters} both map to mesh axis {axis}\n'
          'fix: change one of the two rules in gpt_jax/sharding.py'
        )
      taken[axis] = letter
    shards = math.prod(sizes[a] for a in axes)
    if shape is not None and shape[i] % shards:
      raise ValueError(
        f'{name}: dimension {letter}={shape[i]} of {letters} is not divisible by '
        f'{" x ".join(f"{a}={sizes[a]}" for a in axes)}\n'
        f'fix: choose a mesh whose {"/".join(axes)} divides {shape[i]}, or change the model'
      )
    entries.append(axes if len(axes) > 1 else (axes[0] if axes else None))
  return PartitionSpec(*entries)


def param_sharding(mesh, letters, shape, name):
  """Return the NamedSharding of one parameter; ValueError where the mesh does not divide it."""
  return NamedSharding(mesh, spec(letters, PARAM_RULES, mesh.shape, name, shape))


def replicated(mesh):
  """Return the sharding of a value that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def constrain(x, letters):
  """Pin an activation's layout to the rules, under `jax.set_mesh`; without a mesh, do nothing."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, activation_spec(letters, x.shape))


def activation_spec(letters, shape):
  """Return the PartitionSpec of an activation on the mesh in force.

  A dimension that its axes do not divide stays whole: a batch of prompts has any size. Sizes that must
  divide are checked where they enter: parameters in `param_sharding`, batches in cluster/batches.py.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  entries = spec(letters, ACTIVATION_RULES, sizes)
  shards = [math.prod(sizes[a] for a in axes_of(entry)) for entry in entries]
  return PartitionSpec(*(e if n % k == 0 else None for e, n, k in zip(entries, shape, shards, strict=True)))
