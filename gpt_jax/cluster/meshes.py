"""Named meshes, and the arrangement of devices that a slower network joins.

A slice is a TPU pod slice or a GPU host: fast links inside, the data-center network between.
"""

import jax
import numpy as np
from jax.experimental import mesh_utils

NUM_SLICES = 'slices'  # stands for the number of slices
FSDP = dict(data=1, fsdp=-1)
PRESETS: dict[str, dict] = {  # sizes of mesh axes; -1 = the devices that are left
  'laptop': dict(data=-1),
  'gpu8': dict(data=-1),
  'gpu8-fsdp': FSDP,
  'gpu8-tensor2': dict(data=1, fsdp=-1, tensor=2),
  'h200-8': FSDP,
  '4xh100-8': dict(data=4, fsdp=-1),  # weights are gathered within a host, gradients meet across hosts
  'v5e-256': FSDP,
  'v5p-128': FSDP,
  'v6e-256': FSDP,
  'multi-slice': dict(data=NUM_SLICES, fsdp=-1),  # likewise
}


def check_sizes(config, defaults):
  """Raise ValueError for a size of a sharding.MeshConfig that is impossible; defaults: {axis: size}."""
  if config.preset and config.preset not in PRESETS:
    raise ValueError(f'mesh.preset={config.preset} is not a known mesh\nfix: use one of {", ".join(PRESETS)}')
  for axis, default in defaults.items():
    size = getattr(config, axis)
    if size < 1 and size != -1:
      raise ValueError(f'mesh.{axis}={size} is not a size\nfix: use a number >= 1, or -1')
    preset_size = PRESETS.get(config.preset, {}).get(axis, size)
    if size not in (preset_size, default):
      raise ValueError(
        f'mesh.{axis}={size}, but mesh.preset={config.preset} sets {preset_size}\nfix: set one of the two'
      )
  if config.slices < 0:
    raise ValueError(f'mesh.slices={config.slices} is not a number of slices\nfix: use 0 or more')


def count_slices(devices, expected=0):
  """Number of slices to arrange devices by; 1 ignores the slower network.

  Raises ValueError where the config expects another number than the devices report.
  """
  actual = len({getattr(device, 'slice_index', None) for device in devices})
  if expected > 1 and expected != actual:
    raise ValueError(
      f'mesh.slices={expected}, but the {len(devices)} device(s) are in {actual} slice(s)\n'
      'fix: leave mesh.slices=0 to use the number that the devices report'
    )
  return 1 if expected == 1 else actual


def arrange(devices, sizes, slices):
  """Return an array of devices of shape `sizes.values()`, each neighbor on the fastest link there is.

  sizes: {mesh axis: devices}, outermost first. Of several slices, each holds an equal part of the
  outermost axis, so that no other axis leaves a slice. Raises ValueError where that axis does not divide.
  """
  shape = tuple(sizes.values())
  # A tensor axis of 4 on a torus of 8 x 8 x 8 takes half of a physical axis.
  split = {'allow_split_physical_axes': devices[0].platform == 'tpu'}
  if slices > 1:
    outer = next(axis for axis, size in sizes.items() if size > 1)
    if sizes[outer] % slices:
      raise ValueError(
        f'mesh.{outer}={sizes[outer]}, the outermost axis, does not split over {slices} slices\n'
        f'fix: use a multiple of {slices}, an axis outside of it such as mesh.data={slices}, or '
        'mesh.slices=1 to let any axis cross the slower network'
      )
    within = sizes | {outer: sizes[outer] // slices}
    across = dict.fromkeys(sizes, 1) | {outer: slices}
    return mesh_utils.create_hybrid_device_mesh(
      tuple(within.values()), tuple(across.values()), devices, **split
    )
  if count_slices(devices) > 1:  # create_device_mesh refuses devices of several slices
    return np.reshape(devices, shape)
  return mesh_utils.create_device_mesh(shape, devices, **split)


def describe(sizes):
  """Format mesh sizes, such as 'data=2 x fsdp=4'."""
  return ' x '.join(f'{axis}={n}' for axis, n in sizes.items() if n != 1) or 'one device'


def axes_of(entry):
  """The mesh axes of one entry of a PartitionSpec, as a tuple."""
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def platform():
  """Platform that code is traced for: 'cpu', 'gpu' or 'tpu'; that of the mesh in force, if any."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform
