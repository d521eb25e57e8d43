"""What devices send each other as a job grows, from compiled programs: 8 to 4,096 TPU chips.

  python -m benchmarks.weak_scaling [--size=1b] [--chips=8,64,512,4096]

One row of 2,048 tokens a device, however many there are, for each row of PRESETS. Of each program:
bytes that a device sends a step, by mesh axis, and the seconds they take beside those of its
arithmetic, both at data sheet rates. A preset stops paying at the axis whose collectives take
longer than the arithmetic; `tokens_to_pay` is how many tokens a device needs a step for the two to
be equal. Keeps results/plan/weak_scaling.json after each program, goes on from there, and draws
weak_scaling.png beside it. Needs the packages of the extra `plan`.
"""

import argparse
import collections
import json

from benchmarks.plans import keep, made
from benchmarks.record import RESULTS
from gpt_jax.plan import topologies

PATH = RESULTS / 'plan' / 'weak_scaling.json'
CLAIM = 'What devices send each other a step as a job grows, read from compiled programs'
TOKENS = 2048  # a row, and a device's share of a step


def v5p(chips):
  """The name of one v5p slice, which is named by its cores."""
  return f'v5p-{2 * chips}'


def v5e(chips):
  """One v5e slice, or several of 256 chips."""
  return f'v5e-{chips}' if chips <= 256 else f'{chips // 256}xv5e-256'


PRESETS = {  # name -> (topology of so many chips, mesh of so many chips in so many slices)
  'v5p data': (v5p, lambda chips, slices: dict(data=chips)),
  'v5p fsdp': (v5p, lambda chips, slices: dict(data=1, fsdp=-1)),
  'v5p fsdp, tensor 4': (v5p, lambda chips, slices: dict(data=1, fsdp=-1, tensor=4)),
  'v5e slices: data x fsdp': (v5e, lambda chips, slices: dict(data=slices, fsdp=-1)),
}


def point(preset, chips, size):
  """Compile one program -> its row."""
  name, mesh = PRESETS[preset]
  topology = topologies.parse(name(chips))
  words = [
    f'--config=experiments/llama.py:size={size},rows={chips}',
    '--nodecode',
    f'--topology={name(chips)}',
  ]
  words += [f'--config.mesh.{axis}={n}' for axis, n in mesh(chips, topology.slices).items()]
  code, plan, seconds = made(words)
  row = {'preset': preset, 'size': size, 'chips': chips, 'topology': name(chips), 'exit': code}
  row |= {'seconds': seconds, 'command': ' '.join(['launch.py plan', *words])}
  if 'estimate' not in plan.get('train', {}):
    return row | {'error': plan.get('error', 'does not fit')}
  step, chip = plan['train'], topology.chip
  sent, took = collections.Counter(), collections.Counter()
  for c in step['collectives']:
    sent[c['axes']] += c['sent']
    took[c['axes']] += c['sent'] / (chip.network if c['network'] else chip.link)
  compute = step['estimate']['compute']
  axis, estimate = max(took, key=took.get), step['estimate']
  busiest = max(estimate['link'], estimate['network'])  # axes of one medium wait for each other
  return row | {
    'sent': dict(sent),
    'seconds_of_axes': dict(took),
    'compute_seconds': compute,
    'slowest_axis': axis,
    'collective_seconds': busiest,
    'pays': busiest <= compute,
    # Gradients and weights are as many however many tokens there are; what `tensor` sends is not.
    'tokens_to_pay': None if 'tensor' in axis else round(TOKENS * busiest / compute),
    'memory': step['memory']['total'],
    'fits': plan['fits'],
  }


def draw(rows):
  """Bytes sent a step, and the share of arithmetic that they would take, by chips."""
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
    yield line(row)


def line(row):
  """One row of the table."""
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
  """Compile what is missing, keep, print and draw."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='1b')
  parser.add_argument('--chips', default='8,64,512,4096')
  arguments = parser.parse_args()
  kept = json.loads(PATH.read_text())['numbers'] if PATH.exists() else {'rows': []}
  done = {(row['preset'], row['chips']) for row in kept['rows'] if row['size'] == arguments.size}
  for chips in map(int, arguments.chips.split(',')):
    for preset in PRESETS:
      if (preset, chips) not in done:
        kept['rows'].append(point(preset, chips, arguments.size))
        keep('plan/weak_scaling', CLAIM, {'tokens_a_device': TOKENS, 'rows': kept['rows']})
        print(line(kept['rows'][-1]), flush=True)
  draw(kept['rows'])


if __name__ == '__main__':
  main()
