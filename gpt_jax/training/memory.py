"""Whether a run fits the memory of its devices: said before it starts, not by the kernel's OOM killer.

A lower bound for the state before it is made, the compiler's numbers for a step before the first one.
"""

import math
import re
from pathlib import Path

import jax

CGROUPS = Path('/sys/fs/cgroup')
FIX = (
  'fix: use a smaller model, train.batch_size or train.length, more train.accumulate, model.remat=full, or '
  'more devices (mesh.fsdp); `launch.py plan` tells how much a run needs'
)


def check_state(state):
  """Raise ValueError if an abstract TrainState and one gradient of its parameters do not fit.

  The gradients are counted in the narrower of the parameters' dtype and bfloat16.
  """
  gradients = sum(device_bytes(x) * 2 // x.dtype.itemsize for x in jax.tree.leaves(state.model))
  needed = sum(map(device_bytes, jax.tree.leaves(state))) + gradients
  check(needed, available_bytes(), 'parameters, optimizer and gradients', ValueError)


def check_program(compiled):
  """Raise RuntimeError if what a compiled step allocates beside its arguments does not fit."""
  if stats := compiled.memory_analysis():
    needed = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    check(needed, available_bytes(), 'the activations and gradients of a step', RuntimeError)


def check(needed, available, purpose, error):
  """Raise `error` if a device needs more bytes than it has."""
  if needed > available:
    gib = lambda n: f'{n / 2**30:.1f} GiB'
    raise error(f'{purpose} need {gib(needed)} of memory and {gib(available)} are available\n{FIX}')


def device_bytes(x):
  """Return the bytes of an abstract array on one device; of a PRNG key, its two words."""
  is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  return math.prod(x.sharding.shard_shape(x.shape)) * (8 if is_key else x.dtype.itemsize)


def available_bytes():
  """Return the bytes that one of the local devices can still allocate; infinity where nothing says so."""
  devices = jax.local_devices()
  if devices[0].platform == 'cpu':
    return host_bytes() / len(devices)
  stats = [device.memory_stats() or {} for device in devices]
  return min(s.get('bytes_limit', math.inf) - s.get('bytes_in_use', 0) for s in stats)


def host_bytes(proc=Path('/proc'), cgroups=CGROUPS):
  """Return the bytes that this process can allocate at most: free memory and swap, cgroup limits."""
  limits = [math.inf]
  try:
    free = dict(re.findall(r'^(MemAvailable|SwapFree): *(\d+) kB$', (proc / 'meminfo').read_text(), re.M))
    limits.append(sum(map(int, free.values())) * 1024)
    groups = [line.split(':', 2)[1:] for line in (proc / 'self/cgroup').read_text().splitlines()]
  except (OSError, ValueError):  # not Linux
    return limits[-1]
  for controllers, path in groups:
    if controllers not in ('', 'memory'):  # '': version 2
      continue
    folder = cgroups / controllers / path.lstrip('/')
    name = 'memory.limit_in_bytes' if controllers else 'memory.max'
    for level in (folder, *folder.parents):  # a container may see its own group as the root
      text = (level / name).read_text().strip() if (level / name).is_file() else ''
      limits += [int(text)] if text.isdigit() else []
  return min(limits)
