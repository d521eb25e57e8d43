"""How much sooner the `modern` preset reaches the loss of the `gpt2` one: `-m benchmarks.to_loss`.

Both are trained by the same loop on characters of Tiny Shakespeare at the same size, batch and
number of steps: `modern` with Muon, as it is meant to be, `gpt2` with AdamW, each at the best
learning rate, found with another seed by halving and doubling until both neighbors are worse. The
loss to reach is the highest that any run of
`gpt2` ends with, so that all reach it; `modern` meets it in the middle of its schedule, where its
learning rate is still high, which is no advantage. Seconds are steps, interpolated between
evaluations, times the median seconds of the run's own steps: evaluation and compilation are in
neither. The runs take turns.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import versus
from benchmarks.record import RESULTS
from experiments import shakespeare_char
from gpt_jax import config as configs
from gpt_jax.model.presets import PRESETS
from gpt_jax.runs import records
from gpt_jax.train import train

SIZES = dict(layers=4, width=128, heads=4, context=128, vocab=0)
ARMS = {'gpt2': 'adamw', 'modern': 'muon'}
RATE = 1.2e-2  # where the search begins
FILE = RESULTS / 'speed' / 'to_loss.json'


def run(preset, lr, seed, steps, folder):
  """Train once -> {steps, losses, step_seconds} of its evaluations."""
  section = shakespeare_char.get_config('adamw' if ARMS[preset] == 'adamw' else '')
  section.model = configs.section(PRESETS[preset](**SIZES))
  section.optim.lr = lr
  section.train.update(
    steps=steps, batch_size=16, eval_every=25, eval_tokens=16384, seed=seed, sample_every=0, sample_prompts=()
  )
  cfg = configs.build(configs.Config, section)
  train(cfg, folder)
  lines = list(records.read_lines(Path(folder) / 'metrics.jsonl'))
  evaluated = [line for line in lines if 'valid_loss' in line]
  return {
    'lr': lr,
    'seed': seed,
    'steps': [line['step'] for line in evaluated],
    'losses': [line['valid_loss'] for line in evaluated],
    'step_seconds': [line['step_seconds'] for line in lines if 'step_seconds' in line],
  }


def search(preset, steps, folder):
  """Runs at RATE and at its halves and doubles, until the best has a worse one on either side."""
  tried = {}
  best = 0
  while missing := [power for power in (best, best - 1, best + 1) if power not in tried]:
    for power in missing:
      lr, where = RATE * 2.0**power, f'{folder}/{preset}-search{power}'
      tried[power] = run(preset, lr, 100, steps, where)
    best = min(tried, key=lambda power: tried[power]['losses'][-1])
  return [tried[power] for power in sorted(tried)]


def steps_to(run, loss):
  """Steps until a run's validation loss is at most this, interpolated."""
  at = next((i for i, value in enumerate(run['losses']) if value <= loss), None)
  if at is None:
    raise SystemExit(
      f'error: a run ended at {min(run["losses"]):.3f} and never reached {loss:.3f}\nfix: more --steps'
    )
  if at == 0:
    return float(run['steps'][0])
  (a, b), (x, y) = run['steps'][at - 1 : at + 1], run['losses'][at - 1 : at + 1]
  return a + (b - a) * (x - loss) / (x - y)


def compared(runs):
  """{arm: runs} -> the loss to reach, seconds of each run, ratio of medians and its interval."""
  loss = max(run['losses'][-1] for run in runs['gpt2'])
  pace = {arm: [float(np.median(r['step_seconds'])) for r in of] for arm, of in runs.items()}
  rows = {}
  for arm, of in runs.items():
    steps = [steps_to(run, loss) for run in of]
    seconds = [p * n for p, n in zip(pace[arm], steps, strict=True)]
    rows[arm] = {'seconds': seconds, 'steps': steps, 'median': float(np.median(seconds))}
  rows = {'gpt_jax' if arm == 'modern' else arm: row for arm, row in rows.items()}
  return {
    'loss': loss,
    'step_seconds': pace,
    'rows': rows,
    'ratios': {'gpt2': versus.ratio(rows, 'gpt_jax', 'gpt2')},
    'runs': runs,
  }


def main():
  """Choose rates, train the seeds in turns, keep what was found."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--steps', type=int, default=300)
  parser.add_argument('--seeds', type=int, default=3)
  arguments = parser.parse_args()
  FILE.parent.mkdir(exist_ok=True, parents=True)
  tried, runs = {}, {arm: [] for arm in ARMS}
  with tempfile.TemporaryDirectory() as folder:
    for arm in ARMS:
      tried[arm] = search(arm, arguments.steps, folder)
    best = {arm: min(of, key=lambda run: run['losses'][-1])['lr'] for arm, of in tried.items()}
    for seed in range(arguments.seeds):
      for arm in ARMS:
        where = f'{folder}/{arm}-{seed}'
        runs[arm].append(run(arm, best[arm], seed, arguments.steps, where))
      question = 'time to a loss, modern against gpt2 with AdamW'
      claim = 'How much sooner the modern preset with Muon reaches the final loss of GPT-2 with AdamW'
      told = versus.content('to_loss', claim, {question: compared(runs)}, tried=tried)
      records.write_json(FILE, told)
  print(json.dumps(told['rows'][question]['ratios']))


if __name__ == '__main__':
  main()
