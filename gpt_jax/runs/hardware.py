"""Hardware: peak FLOP/s by device kind, device names, memory in use.

Sources: vendors' data sheets, dense bfloat16 without sparsity. A CPU's peak is measured.
"""

import functools
import os
import platform
import re
import sys
import time

import jax
import numpy as np

PEAK_FLOPS = {  # dense bfloat16 FLOP/s of one device, by a word of its device_kind
  'H200': 989e12,
  'H100': 989e12,
  'B200': 2250e12,
  'A100': 312e12,
  'L4': 121e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
}


@functools.cache
def peak_flops():
  """Return (FLOP/s of one device, source of the number); (0, reason) for an unknown device."""
  device = jax.devices()[0]
  if device.platform == 'cpu':
    return measured_matmul_flops(), 'measured float32 matmul'
  for kind, flops in PEAK_FLOPS.items():
    if re.search(rf'\b{kind}\b', device.device_kind):
      return flops, f'{kind} data sheet, dense bfloat16'
  return 0.0, f'no peak known for {device.device_kind}'


def measured_matmul_flops(size=1536, repeats=3):
  """Measure the best float32 matmul rate of one CPU device, FLOP/s; takes 0.2 s."""
  a = jax.device_put(np.random.default_rng(0).standard_normal((size, size), np.float32))
  multiply = jax.jit(lambda a: a @ a)
  multiply(a).block_until_ready()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    multiply(a).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)


def name():
  """Return a name such as '8 x NVIDIA H100' or '1 x cpu (2 cores, AMD EPYC)'."""
  device = jax.devices()[0]
  devices = f'{jax.device_count()} x {device.device_kind}'
  if device.platform != 'cpu':
    return devices
  try:
    with open('/proc/cpuinfo') as f:
      model = next(line.partition(':')[2].strip() for line in f if line.startswith('model name'))
  except (OSError, StopIteration):
    model = platform.processor() or platform.machine()
  return f'{devices} ({os.cpu_count()} cores, {model})'


def memory_gib():
  """Return the peak GiB of the fullest local device; on a CPU the process's peak resident size."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peak = max(s.get('peak_bytes_in_use', 0) for s in stats)
  if peak:
    return peak / 2**30
  import resource  # absent on Windows, where jax on CPU has no other source either

  unit = 1 if sys.platform == 'darwin' else 1024  # bytes there, KiB elsewhere
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
