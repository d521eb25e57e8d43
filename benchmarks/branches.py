"""WSD decays branched off one stable run against runs from scratch: `python -m benchmarks.branches`.

A schedule that is stable until it decays makes one run the start of all longer ones. For each seed a run
at the peak learning rate goes as far as the longest decay begins, and a branch decays from there for each
length. Runs from scratch of the same lengths and seed are the reference, on characters of Tiny
Shakespeare, which lies in GPT_JAX_DATA. A branch and its reference have the same data order and learning
rates, so their losses should be equal. Seconds are those of optimizer steps; wall adds setup, compilation
and evaluation. With the same --workdir a benchmark that was killed goes on.
"""

import argparse
import time
from pathlib import Path

from benchmarks import record
from experiments import shakespeare_char
from gpt_jax import config as configs
from gpt_jax.runs import records
from gpt_jax.train import train

LENGTHS = (300, 600, 900)
COOLDOWN = 0.2  # share of a run that decays


def get_config():
  """Return the config that all runs share."""
  section = shakespeare_char.get_config('small,adamw')
  section.train.update(eval_every=0, eval_tokens=0, sample_every=0, sample_prompts=())
  return section


def decay_start(steps):
  """Return the step at which the schedule of a run of `steps` begins to decay."""
  return int(steps * (1 - COOLDOWN))


def train_once(section, folder, seed, steps, schedule, branch_from='', **checkpoint):
  """Train one run, unless it is done -> its own steps and seconds, its loss, the digest of its parent."""
  section.optim.update(schedule=schedule, cooldown=COOLDOWN)
  section.train.update(steps=steps, seed=seed, branch_from=branch_from)
  section.checkpoint.update(checkpoint)
  start = time.perf_counter()
  result = train(configs.build(configs.Config, section), folder)
  wall, path = time.perf_counter() - start, folder / 'wall.json'
  if not path.exists():
    records.write_json(path, {'wall': wall})
  parents = result['parents']
  first = parents[0]['step'] if parents else 0
  lines = [line for line in records.read_lines(folder / 'metrics.jsonl') if 'step_seconds' in line]
  befores = [first, *(line['step'] for line in lines)]
  seconds = sum(x['step_seconds'] * (x['step'] - b) for x, b in zip(lines, befores, strict=False))
  return {
    'seed': seed,
    'length': steps,
    'steps': steps - first,
    'seconds': seconds,
    'wall': records.read_json(path)['wall'],
    'valid_loss': result['valid_loss'],
    'parent': parents[0]['digest'] if parents else '',
  }


def train_seed(get_config, folder, lengths, seed):
  """Train one stable run, its branches and their references -> {stable, branches, scratch: rows}."""
  starts, stable = [decay_start(steps) for steps in lengths], folder / f'stable-{seed}'
  every = min(b - a for a, b in zip([0, *starts], starts, strict=False))
  if wrong := [step for step in starts if step % every]:
    raise SystemExit(f'error: decays begin at {wrong}, not at multiples of {every}\nfix: use equal --lengths')
  rows = {
    'stable': [train_once(get_config(), stable, seed, starts[-1], 'constant', every=every, keep_every=every)]
  }
  rows['branches'] = [
    train_once(get_config(), folder / f'branch-{seed}-{n}', seed, n, 'wsd', branch_from=f'{stable}@{start}')
    for n, start in zip(lengths, starts, strict=True)
  ]
  rows['scratch'] = [
    train_once(get_config(), folder / f'scratch-{seed}-{n}', seed, n, 'wsd') for n in lengths
  ]
  return rows


def compare(seeds):
  """Compare rows of `train_seed` -> losses, their differences, the noise of seeds, steps and time saved."""
  total = lambda names, key: sum(row[key] for rows in seeds for name in names for row in rows[name])
  pairs = [pair for rows in seeds for pair in zip(rows['branches'], rows['scratch'], strict=True)]
  by_length = {}
  for branch, scratch in pairs:
    row = by_length.setdefault(str(branch['length']), {'branch': [], 'scratch': []})
    row['branch'].append(branch['valid_loss'])
    row['scratch'].append(scratch['valid_loss'])
  return {
    'loss': by_length,
    'largest_difference': max(abs(b['valid_loss'] - s['valid_loss']) for b, s in pairs),
    'largest_range_over_seeds': max(max(row['scratch']) - min(row['scratch']) for row in by_length.values()),
    'share_of_scratch': {
      key: total(('stable', 'branches'), key) / total(('scratch',), key)
      for key in ('steps', 'seconds', 'wall')
    },
    'runs': seeds,
  }


def main():
  """Train all seeds and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True, help='folder of the runs')
  parser.add_argument('--lengths', type=int, nargs='+', default=LENGTHS)
  parser.add_argument('--seeds', type=int, default=3)
  arguments = parser.parse_args()
  folder = Path(arguments.workdir)
  numbers = compare(
    [train_seed(get_config, folder, arguments.lengths, seed) for seed in range(arguments.seeds)]
  )
  claim = 'Three WSD decays branched off one stable run against three runs from scratch'
  record.write_result('speed/branches', claim, numbers)


if __name__ == '__main__':
  main()
