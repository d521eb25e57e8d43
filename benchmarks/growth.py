"""Time and memory of an optimizer step against the size of the work, one size at a time.

  python -m benchmarks.growth [--only=T]

Starts from BASE and changes one of AXES: length T, rows B, layers, width, or devices (1 to 8 fake
devices on two cores share the rows, kernel `blocks`). Each point runs the train program of
`launch.py train` in its own process. Time is a median. Memory is XLA's count of a device's state and
temporaries, and the peak resident memory of the process. FLOPs count causal attention. Writes
results/speed/growth.json after each point, then growth.png.
"""

import argparse
import math

import numpy as np

from benchmarks import train_step, versus
from benchmarks.record import RESULTS
from gpt_jax.runs import records

FILE = RESULTS / 'speed' / 'growth.json'
BASE = train_step.Shape(layers=4, heads=4, width=128, length=256, rows=8, vocab=256)
AXES = {  # name -> (field of Shape that changes, sizes)
  'T': ('length', (64, 128, 256, 512, 1024, 2048)),
  'B': ('rows', (1, 2, 4, 8, 16, 32)),
  'layers': ('layers', (1, 2, 4, 8, 16)),
  'width': ('width', (64, 128, 256, 512)),
  'devices': ('', (1, 2, 4, 8)),
}
SAMPLES = 5
DEVICES_KERNEL = 'blocks'  # `chunks`, the fastest on one CPU device, supports one device only


def measure_point(axis, size):
  """Measure one process -> its row."""
  field = AXES[axis][0]
  shape = BASE._replace(**{field: size}) if field else BASE
  arguments, environment = {'shape': shape, 'memory': True}, {}
  if axis == 'devices':
    arguments['model'] = {'kernel': DEVICES_KERNEL}
    environment['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={size}'
  process = versus.Process(versus.Side('gpt_jax', 'benchmarks.train_step:ours', arguments, environment))
  row = {'axis': axis, 'size': size, **process.facts}
  if 'missing' not in row:
    samples = [process.sample() for _ in range(SAMPLES)]
    row['seconds'] = [sample['seconds'] for sample in samples]
    row |= {'median': float(np.median(row['seconds'])), 'resident_gib': samples[-1]['memory_gib']}
  process.close()
  return row


def exponent(points, key):
  """Slope of log(key) over the last two sizes, or None."""
  if len(points) < 2:
    return None
  a, b = points[-2:]
  return math.log(b[key] / a[key]) / math.log(b['size'] / a['size'])


def points_on(rows, axis):
  """The measured points of an axis, sorted by size."""
  points = [row for row in rows if row['axis'] == axis and 'median' in row]
  return sorted(points, key=lambda row: row['size'])


def span(row):
  """Smallest and largest milliseconds of a point."""
  return ' to '.join(f'{1e3 * seconds:.0f}' for seconds in (min(row['seconds']), max(row['seconds'])))


def table(rows):
  """Lines of a Markdown table."""
  yield '| changed | size | ms a step | GFLOP/s | state MiB | temporaries MiB | resident GiB |'
  yield '|---|---:|---:|---:|---:|---:|---:|'
  for axis in AXES:
    points = points_on(rows, axis)
    for row in points:
      memory = row['memory']
      yield (
        f'| {axis} | {row["size"]} | {1e3 * row["median"]:.1f} ({span(row)}) '
        f'| {row["causal_flops"] / row["median"] / 1e9:.0f} | {memory["state"] / 2**20:.1f} '
        f'| {memory["temporaries"] / 2**20:.1f} | {row["resident_gib"]:.2f} |'
      )
    if len(points) > 1 and axis != 'devices':
      slopes = {key: exponent(points, key) for key in ('median', 'causal_flops')}
      yield (
        f'| {axis} | last doubling | time grows as {axis}^{slopes["median"]:.2f}, '
        f'FLOPs as {axis}^{slopes["causal_flops"]:.2f} | | | | |'
      )


def draw(rows):
  """Plot time in the upper row and memory in the lower row, one column per axis."""
  import matplotlib.pyplot as plt

  fig, panels = plt.subplots(2, len(AXES), figsize=(13, 5), layout='constrained', sharey='row')
  for (time, memory), axis in zip(panels.T, AXES, strict=True):
    points = points_on(rows, axis)
    sizes = [row['size'] for row in points]
    time.plot(sizes, [1e3 * row['median'] for row in points], 'o-')
    if points and axis != 'devices':
      middle = points[len(points) // 2]
      scale = middle['median'] / middle['causal_flops']
      ideal = [1e3 * scale * row['causal_flops'] for row in points]
      time.plot(sizes, ideal, ':', color='gray', label='proportional to FLOPs')
      time.legend(frameon=False)
    for key in ('state', 'temporaries'):
      memory.plot(sizes, [row['memory'][key] / 2**20 for row in points], 'o-', label=key)
    memory.set(xlabel=axis)
    if not points:
      continue
    for panel in (time, memory):
      panel.set(xscale='log', yscale='log')
      panel.set_xticks(sizes, [str(size) for size in sizes])
      panel.minorticks_off()
  panels[0, 0].set_ylabel('ms a step')
  panels[1, 0].set_ylabel('MiB a device')
  panels[1, 0].legend(frameon=False)
  fig.savefig(FILE.with_suffix('.png'), dpi=110)


def main():
  """Measure, write after each point, print and plot."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default='', choices=['', *AXES], help='measure only this axis')
  only = parser.parse_args().only
  rows = [row for row in versus.read_rows(FILE) if row['axis'] != only] if only else []
  claim = 'What a training step costs in time and memory as one size of the work grows'
  FILE.parent.mkdir(exist_ok=True, parents=True)
  for axis in [only] if only else AXES:
    for size in AXES[axis][1]:
      rows.append(measure_point(axis, size))
      records.write_json(FILE, versus.result_content('growth', claim, rows, base=BASE._asdict()))
      print(axis, size, rows[-1].get('missing') or f'{1e3 * rows[-1]["median"]:.1f} ms', flush=True)
  print('\n'.join(table(rows)))
  draw(rows)


if __name__ == '__main__':
  main()
