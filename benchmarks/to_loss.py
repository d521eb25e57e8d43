"""Time of the `modern` preset to the final loss of `gpt2`: `python -m benchmarks.to_loss`.

Both train with the same loop on characters of Tiny Shakespeare, with equal size, batch and number of
steps: `modern` with Muon, `gpt2` with AdamW, each at its best learning rate. The search for the rate
uses another seed and halves or doubles until both neighbors are worse. The target is the highest final
loss of any `gpt2` run, so that all runs reach it; `modern` reaches it in the middle of its schedule,
where a high learning rate is a handicap. Seconds are steps (interpolated between evaluations) times
the run's median step time, without evaluation and compilation. The runs alternate.
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
RATE = 1.2e-2  # start of the search
FILE = RESULTS / 'speed' / 'to_loss.json'


def run(preset, lr, seed, steps, folder):
  """Train once -> {lr, seed, steps and losses of its evaluations, step_seconds}."""
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
  """Train at RATE, halves and doubles until the best rate has worse neighbors -> runs."""
  tried = {}
  best = 0
  while missing := [power for power in (best, best - 1, best + 1) if power not in tried]:
    for power in missing:
      lr, where = RATE * 2.0**power, f'{folder}/{preset}-search{power}'
      tried[power] = run(preset, lr, 100, steps, where)
    best = min(tried, key=lambda power: tried[power]['losses'][-1])
  return [tried[power] for power in sorted(tried)]


def steps_to(run, loss):
  """Interpolated number of steps until a run's validation loss reaches `loss`."""
  at = next((i for i, value in enumerate(run['losses']) if value <= loss), None)
  if at is None:
    raise SystemExit(
      f'error: a run ended at {min(run["losses"]):.3f} and never reached {loss:.3f}\nfix: more --steps'
    )
  if at == 0:
    return float(run['steps'][0])
  (a, b), (x, y) = run['steps'][at - 1 : at + 1], run['losses'][at - 1 : at + 1]
  return a + (b - a) * (x - loss) / (x - y)


def compare(runs):
  """Compare {arm: runs} -> target loss, seconds of each run, ratio of medians with its range."""
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
  """Choose rates, train the seeds alternately, write the result file."""
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
      result = versus.result_content('to_loss', claim, {question: compare(runs)}, tried=tried)
      records.write_json(FILE, result)
  print(json.dumps(result['rows'][question]['ratios']))


if __name__ == '__main__':
  main()
