"""Eight runs as the ablation runner trains them, against the same eight one after another.

  python -m benchmarks.replicas [--size=small|10m] [--steps=N]

Two learning rates by four seeds of the character model of experiments/shakespeare_char.py, from an
empty folder each time: starting processes, compiling, evaluation and reports are in the figures.
The runner measures what is fastest here and its measuring is in its time, too.
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks import record
from gpt_jax.ablation.design import Study
from gpt_jax.ablation.execute import runner
from gpt_jax.runs import records

SIZES = {
  'small': {'layers': 2, 'model.width': 64, 'heads': 4, 'context': 128, 'batch_size': 16},
  '10m': {'layers': 6, 'model.width': 384, 'heads': 6, 'context': 256, 'batch_size': 64},
}


def study(size, steps):
  """Eight runs of one program."""
  quiet = {'eval_every': 0, 'eval_tokens': 16384, 'sample_every': 0, 'train.steps': steps}
  return Study(
    base='experiments/shakespeare_char.py',
    name='replicas',
    factors={'lr': {'base': {}, 'half': {'optim.lr': 1.5e-3}}},
    changes=SIZES[size] | quiet,
    seeds=4,
  )


def timed(size, steps, workers):
  """-> (seconds of the whole study, its schedule, its losses)."""
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    analysis = runner.run(study(size, steps), Path(folder) / 'study', workers=workers)
    seconds = time.perf_counter() - start
    told = records.read_json(Path(folder) / 'study' / 'study.json')
    losses = {arm['name']: arm['values'] for arm in analysis['arms']}
    return seconds, told.get('schedule', {}), told['arms'][0]['parameters'], losses


def main():
  """Measure both ways and keep the result."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='small', choices=SIZES)
  parser.add_argument('--steps', type=int, default=400)
  arguments = parser.parse_args()
  apart, _, parameters, losses = timed(arguments.size, arguments.steps, 1)
  chosen, schedule, _, others = timed(arguments.size, arguments.steps, 0)
  most = max(abs(a - others[arm][seed]) for arm, of in losses.items() for seed, a in of.items())
  numbers = {
    'parameters': parameters,
    'runs': 8,
    'steps': arguments.steps,
    'one_after_another_seconds': apart,
    'chosen_seconds': chosen,
    'ratio': chosen / apart,
    'schedule': schedule,
    'largest_difference_of_losses': most,
  }
  claim = f'8 small runs as the runner chooses to run them: {chosen / apart:.2f} of the time'
  record.keep(f'ablations/replicas_{arguments.size}', claim, numbers)
  print(f'{chosen:.1f} s against {apart:.1f} s: {chosen / apart:.2f}')


if __name__ == '__main__':
  main()
