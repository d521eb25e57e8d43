"""Collective traffic against the number of chips, from compiled programs: 8 to 4,096 TPU chips.

  python -m benchmarks.weak_scaling [--size=1b] [--chips=8,64,512,4096]

One row of 2,048 tokens per device for each of PRESETS. For each program: bytes that a device sends per
step and mesh axis, and the seconds of collectives and of arithmetic at data sheet rates. A preset
`pays` while its collectives take no longer than its arithmetic; `tokens_to_pay` is the number of tokens
per device and step that makes both equal. Writes results/plan/weak_scaling.json after each program,
skips existing points, and plots weak_scaling.png. Needs the extra `plan`.
"""

import argparse
import collections
import json

from benchmarks.plans import run_plan, write_result
from benchmarks.record import RESULTS
from gpt_jax.plan import topologies

PATH = RESULTS / 'plan' / 'weak_scaling.json'
CLAIM = 'What devices send each other a step as a job grows, read from compiled programs'
TOKENS = 2048  # of one row: one device's share of a step


def v5p(chips):
  """Name of a v5p slice; v5p slices are named by cores."""
  return f'v5p-{2 * chips}'


def v5e(chips):
  """Name of one v5e slice, or of several slices of 256 chips."""
  return f'v5e-{chips}' if chips <= 256 else f'{chips // 256}xv5e-256'


PRESETS = {  # name -> (topology name by chips, mesh by chips and slices)
  'v5p data': (v5p, lambda chips, slices: dict(data=chips)),
  'v5p fsdp': (v5p, lambda chips, slices: dict(data=1, fsdp=-1)),
  'v5p fsdp, tensor 4': (v5p, lambda chips, slices: dict(data=1, fsdp=-1, tensor=4)),
  'v5e slices: data x fsdp': (v5e, lambda chips, slices: dict(data=slices, fsdp=-1)),
}


def plan_point(preset, chips, size):
  """Compile one program -> its row."""
  name, mesh = PRESETS[preset]
  topology = topologies.parse(name(chips))
  arguments = [
    f'--config=experiments/llama.py:size={size},rows={chips}',
    '--nodecode',
    f'--topology={name(chips)}',
  ]
  arguments += [f'--config.mesh.{axis}={n}' for axis, n in mesh(chips, topology.slices).items()]
  code, plan, seconds = run_plan(arguments)
  row = {'preset': preset, 'size': size, 'chips': chips, 'topology': name(chips), 'exit': code}
  row |= {'seconds': seconds, 'command': ' '.join(['launch.py plan', *arguments])}
  if 'estimate' not in plan.get('train', {}):
    return row | {'error': plan.get('error', 'does not fit')}
  step, chip = plan['train'], topology.chip
  sent, seconds_of_axes = collections.Counter(), collections.Counter()
  for c in step['collectives']:
    sent[c['axes']] += c['sent']
    seconds_of_axes[c['axes']] += c['sent'] / (chip.network if c['network'] else chip.link)
  compute = step['estimate']['compute']
  axis, estimate = max(seconds_of_axes, key=seconds_of_axes.get), step['estimate']
  busiest = max(estimate['link'], estimate['network'])  # axes that share a medium take turns
  return row | {
    'sent': dict(sent),
    'seconds_of_axes': dict(seconds_of_axes),
    'compute_seconds': compute,
    'slowest_axis': axis,
    'collective_seconds': busiest,
    'pays': busiest <= compute,
    # Traffic of gradients and weights does not depend on tokens; that of `tensor` does.
    'tokens_to_pay': None if 'tensor' in axis else round(TOKENS * busiest / compute),
    'memory': step['memory']['total'],
    'fits': plan['fits'],
  }


def draw(rows):
  """Plot bytes sent per step, and collective over arithmetic time, against chips."""
  import matplotlib.pyplot as plt

  fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
  for preset in PRESETS:
    points = [row for row in rows if row['preset'] == preset and 'sent' in row]
    chips = [row['chips'] for row in points]
    left.plot(chips, [sum(row['sent'].values()) / 1e9 for row in points], 'o-', label=preset)
    ratio = [row['collective_seconds'] / row['compute_seconds'] for row in points]
    right.plot(chips, ratio, 'o-', label=preset)
  right.axhline(1, color='gray', linewidth=1)
  left.set(ylabel='GB that a device sends a step', xlabel='chips', xscale='log', ylim=(0, None))
  right.set(ylabel='time of collectives / time of arithmetic', xlabel='chips', xscale='log')
  right.set_yscale('log')
  fig.legend(*left.get_legend_handles_labels(), loc='outside lower center', ncols=4, frameon=False)
  fig.savefig(PATH.with_suffix('.png'), dpi=110)


def table(rows):
  """Lines of a Markdown table."""
  yield '| preset | chips | a device sends a step | collectives / arithmetic | pays | tokens |'
  yield '|---|---:|---|---:|---|---:|'
  for row in sorted(rows, key=lambda row: (list(PRESETS).index(row['preset']), row['chips'])):
    yield format_row(row)


def format_row(row):
  """Format one row of the table."""
  if 'sent' not in row:
    return f'| {row["preset"]} | {row["chips"]:,} | {" ".join(row["error"].split())[:80]} | | | |'
  axes = ', '.join(f'{axis} {n / 1e9:.2f} GB' for axis, n in row['sent'].items() if n > 1e6)
  axis = row['slowest_axis']
  ratio, tokens = row['collective_seconds'] / row['compute_seconds'], row['tokens_to_pay']
  return (
    f'| {row["preset"]} | {row["chips"]:,} | {axes} | {ratio:.2f} '
    f'| {"yes" if row["pays"] else f"no, {axis}"} | {f"{tokens:,}" if tokens else "-"} |'
  )


def main():
  """Compile missing points, write after each, print and plot."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='1b')
  parser.add_argument('--chips', default='8,64,512,4096')
  arguments = parser.parse_args()
  rows = json.loads(PATH.read_text())['numbers']['rows'] if PATH.exists() else []
  done = {(row['preset'], row['chips']) for row in rows if row['size'] == arguments.size}
  for chips in map(int, arguments.chips.split(',')):
    for preset in PRESETS:
      if (preset, chips) not in done:
        rows.append(plan_point(preset, chips, arguments.size))
        write_result('plan/weak_scaling', CLAIM, {'tokens_a_device': TOKENS, 'rows': rows})
        print(format_row(rows[-1]), flush=True)
  draw(rows)


if __name__ == '__main__':
  main()
