"""Compare the schedule that the ablation runner chooses with eight sequential runs.

  python -m benchmarks.replicas [--size=small|10m] [--steps=N]

Two learning rates by four seeds of experiments/shakespeare_char.py, each time from an empty folder:
the times include process start, compilation, evaluation, reports and the runner's own calibration.
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
  """Study of eight runs of one program."""
  quiet = {'eval_every': 0, 'eval_tokens': 16384, 'sample_every': 0, 'train.steps': steps}
  return Study(
    base='experiments/shakespeare_char.py',
    name='replicas',
    factors={'lr': {'base': {}, 'half': {'optim.lr': 1.5e-3}}},
    changes=SIZES[size] | quiet,
    seeds=4,
  )


def time_study(size, steps, workers):
  """Run the study -> (seconds, schedule, parameters, {arm: losses})."""
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    analysis = runner.run(study(size, steps), Path(folder) / 'study', workers=workers)
    seconds = time.perf_counter() - start
    manifest = records.read_json(Path(folder) / 'study' / 'study.json')
    losses = {arm['name']: arm['values'] for arm in analysis['arms']}
    return seconds, manifest.get('schedule', {}), manifest['arms'][0]['parameters'], losses


def main():
  """Measure both and write the result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='small', choices=SIZES)
  parser.add_argument('--steps', type=int, default=400)
  arguments = parser.parse_args()
  sequential, _, parameters, losses = time_study(arguments.size, arguments.steps, 1)
  chosen, schedule, _, others = time_study(arguments.size, arguments.steps, 0)
  largest = max(abs(a - others[arm][seed]) for arm, of in losses.items() for seed, a in of.items())
  numbers = {
    'parameters': parameters,
    'runs': 8,
    'steps': arguments.steps,
    'one_after_another_seconds': sequential,
    'chosen_seconds': chosen,
    'ratio': chosen / sequential,
    'schedule': schedule,
    'largest_difference_of_losses': largest,
  }
  claim = f'8 small runs as the runner chooses to run them: {chosen / sequential:.2f} of the time'
  record.write_result(f'ablations/replicas_{arguments.size}', claim, numbers)
  print(f'{chosen:.1f} s against {sequential:.1f} s: {chosen / sequential:.2f}')


if __name__ == '__main__':
  main()
