"""Absent accelerators: names, data-sheet figures, and devices to compile for.

`v5e-256` is a TPU slice by its cloud name (the number counts TensorCores on v4 and v5p, chips on v5e and
v6e); `h200-8` is eight GPUs of one host; `2xv5e-256` is two slices and `4x8-h100` or `4xh100-8` four
hosts, joined by a slower network. jax is imported only in `devices`: ENVIRONMENT must be set first.

Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e; read 2026), NVIDIA's data sheets of A100, H100,
H200, B200 (SXM) and of their DGX systems (one network port per GPU); CUDA's device properties as the
OpenXLA project publishes them.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from typing import NamedTuple

ENVIRONMENT = {  # set before jax is imported: compile only, use no device, share libtpu
  'JAX_PLATFORMS': 'cpu',
  'JAX_ENABLE_COMPILATION_CACHE': 'false',  # programs never run here
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',  # with the next two: libtpu prints no warnings
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
  'TF_CPP_MIN_LOG_LEVEL': '3',
}


class Chip(NamedTuple):
  """One device. Bandwidths in bytes/s: of its memory, and of what leaves it in one direction."""

  kind: str  # of hardware.PEAK_FLOPS
  platform: str  # tpu or cuda
  memory: int  # bytes for a program
  bandwidth: float  # of the memory
  link: float  # all links to its neighbors of a slice, or of a host
  network: float  # its share of the network that joins slices, or hosts
  cores: int = 1  # TPU: TensorCores, by which slices are named
  axes: int = 2  # TPU: of the torus
  most: int = 8  # TPU: devices of a slice; GPU: of a host
  target: dict = {}  # GPU: properties that differ from TARGET


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices of a parsed name."""

  name: str
  chip: Chip
  per_slice: int  # devices of a slice, or of a host of GPUs
  slices: int = 1  # slices, or hosts of GPUs

  @property
  def size(self):
    """All devices."""
    return self.per_slice * self.slices


def parse(name):
  """Such as 'v5e-256', '2xv5e-256', 'h200-8', '4x8-h100', '4x8 h100' or 'h100' -> Topology.

  Raises ValueError for an unknown chip, or a slice of a size that does not exist.
  """
  text = name.strip().lower().replace('_', '-')
  hosts = re.fullmatch(r'(\d+)x(\d+)[- ]([a-z0-9]+)', text)
  slices = re.fullmatch(r'(?:(\d+)x)?([a-z]+\d+[a-z]*)(?:-(\d+))?', text)
  if hosts and hosts[3] in CHIPS:
    count, number, kind = int(hosts[1]), int(hosts[2]), hosts[3]
  elif slices:
    count, kind = int(slices[1] or 1), slices[2]
    number = int(slices[3] or (CHIPS[kind].cores if kind in CHIPS else 1))
  else:
    raise ValueError(unknown(name))
  if kind not in CHIPS:
    raise ValueError(unknown(name))
  chip = CHIPS[kind]
  per_slice = number // chip.cores
  sizes = [n for n in POWERS if n <= chip.most and (chip.platform == 'tpu' or n <= 8)]
  if number % chip.cores or per_slice not in sizes or count < 1:
    choices = ', '.join(f'{kind}-{n * chip.cores}' for n in sizes)
    raise ValueError(
      f'--topology={name}: {number} is not a size of {kind}\n'
      f'fix: use one of {choices}, or several of them such as 2x{kind}-{sizes[-1] * chip.cores}'
    )
  return Topology(name, chip, per_slice, count)


def unknown(name):
  """The error for an unknown name."""
  near = difflib.get_close_matches(name.lower(), EXAMPLES, 1)
  near = near or [example for example in EXAMPLES if example[:2] == name.lower()[:2]]
  hint = f'did you mean {near[0]}?' if near else f'use a name such as {", ".join(EXAMPLES)}'
  return f'--topology={name} is not known\nfix: {hint} Chips: {", ".join(CHIPS)}'


def torus(chips, axes):
  """The shape of a TPU slice, as equal as powers of two allow: 8 chips are 2x4 or 2x2x2."""
  shape = [1] * axes
  while chips > 1:
    least = min(range(axes), key=lambda i: (shape[i], -i if axes == 2 else i))
    if axes == 3 and max(shape) == 1:  # a host is 2x2x1
      shape, chips = [min(2, chips), 2 if chips >= 4 else 1, 1], max(chips // 4, 1)
      continue
    shape[least] *= 2
    chips //= 2
  return tuple(sorted(shape)) if axes == 2 or math.prod(shape) > 4 else tuple(shape)


def missing(topology):
  """The packages that compile for a topology and are not installed."""
  return [
    package
    for module, package in PACKAGES[topology.chip.platform].items()
    if importlib.util.find_spec(module) is None
  ]


def devices(topology):
  """The devices of a topology, to compile for; ValueError if their compiler is not installed."""
  if absent := missing(topology):
    raise ValueError(
      f'--topology={topology.name} needs {" and ".join(absent)}, which are not installed\n'
      "fix: pip install 'gpt_jax[plan]', or in this folder: pip install -e '.[plan]'"
    )
  from jax.experimental import topologies

  chip = topology.chip
  if chip.platform == 'cuda':
    shape = f'1x{topology.slices}x{topology.per_slice}'
    return topologies.get_topology_desc(
      platform='cuda', topology_name=topology.name, topology=shape, target_config=target(chip)
    ).devices
  # No TPU is opened: plans may run at once, and beside a training run.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  options = {'num_slices': topology.slices} if topology.slices > 1 else {}
  if topology.per_slice == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  if chip.cores > 1:
    options['chip_config_name'] = 'megacore'  # both cores of a chip are one device
  kind = next(kind for kind, row in CHIPS.items() if row is chip)
  shape = 'x'.join(map(str, torus(topology.per_slice, chip.axes)))
  return topologies.get_topology_desc(f'{kind}:{shape}', platform='tpu', **options).devices


def target(chip):
  """The text of XLA's GpuTargetConfigProto for a GPU."""
  fields = TARGET | chip.target | {'memory_bandwidth': int(chip.bandwidth)}
  fields['device_memory_size'] = chip.memory
  major = fields.pop('major')
  lines = ''.join(f'  {key}: {value}\n' for key, value in fields.items())
  return (
    f'gpu_device_info {{\n{lines}  cuda_compute_capability {{ major: {major} }}\n}}\n'
    'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\n'
    f'device_description_str: "NVIDIA {chip.kind}"\n'
  )


TARGET = dict(  # an H100 as CUDA's device properties
  **dict(threads_per_block_limit=1024, threads_per_warp=32, threads_per_core_limit=2048),
  **dict(shared_memory_per_block=49152, shared_memory_per_core=233472, shared_memory_per_block_optin=232448),
  **dict(registers_per_core_limit=65536, registers_per_block_limit=65536, fpus_per_core=128, core_count=132),
  **dict(block_dim_limit_x=2147483647, block_dim_limit_y=65535, block_dim_limit_z=65535),
  **dict(l2_cache_size=52428800, clock_rate_ghz=1.98, major=9),
)
A100 = dict(shared_memory_per_core=167936, shared_memory_per_block_optin=166912, core_count=108)
A100 |= dict(fpus_per_core=64, l2_cache_size=41943040, clock_rate_ghz=1.41, major=8)
B200 = dict(core_count=148, l2_cache_size=132644864, clock_rate_ghz=1.965, major=10)
GiB = 2**30
CHIPS = {
  # TPU memory: the compiler's limit for a program; the runtime keeps the rest of the chip's.
  'v4': Chip('TPU v4', 'tpu', int(30.75 * GiB), 1.2e12, 300e9, 3.1e9, 2, 3, 4096),
  'v5e': Chip('TPU v5 lite', 'tpu', int(15.75 * GiB), 819e9, 200e9, 3.1e9, 1, 2, 256),
  'v5p': Chip('TPU v5', 'tpu', int(95.74 * GiB), 2.765e12, 600e9, 6.25e9, 2, 3, 4096),
  'v6e': Chip('TPU v6 lite', 'tpu', int(31.25 * GiB), 1.638e12, 400e9, 12.5e9, 1, 2, 256),
  'a100': Chip('A100', 'cuda', 85100068864, 2.039e12, 300e9, 25e9, target=A100),
  'h100': Chip('H100', 'cuda', 84942979072, 3.352e12, 450e9, 50e9),
  'h200': Chip('H200', 'cuda', 151397597184, 4.8e12, 450e9, 50e9),
  'b200': Chip('B200', 'cuda', 191514411008, 7.7e12, 900e9, 50e9, target=B200),
}
POWERS = [2**k for k in range(13)]
EXAMPLES = ('v5e-256', 'v6e-256', 'v5p-128', 'v4-32', '2xv5e-256', 'h200-8', 'h100-8', 'a100-8', 'b200-8')
EXAMPLES += ('4x8-h100',)
PACKAGES = {'tpu': {'libtpu': 'libtpu'}, 'cuda': {'jax_cuda13_plugin': 'jax-cuda13-plugin'}}
