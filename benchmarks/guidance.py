"""Choose a guidance scale on validation data, then score it once on test data.

Command: python -m benchmarks.guidance --workdir=runs/mnist --task=draw --name=mnist_guidance

Evaluates the task on validation data at each scale, chooses the scale with the highest mean of
--metric over the sources, and evaluates that scale and scale 1 on test data. Test data never influence
the choice. Writes results/NAME.json.
"""

import argparse

import numpy as np

from benchmarks import record
from gpt_jax.evaluation import evaluate, trained


def scores(subject, task, metric, split, limit, scale):
  """Evaluate at one scale -> (mean of the metric over sources, all rows)."""
  rows = evaluate.run_tasks(subject, [task], split=split, limit=limit, guidance=scale)
  values = [r['value'] for r in rows if r['metric'] == metric and not {'of', 'control'} & set(r)]
  if not values:
    known = ', '.join(dict.fromkeys(row['metric'] for row in rows))
    raise SystemExit(f'error: --metric={metric} is not a metric of {task}\nfix: use one of {known}')
  return float(np.mean(values)), rows


def choose_scale(subject, task, metric, scales, limit):
  """Evaluate all scales on validation data -> (best scale, {scale: mean of the metric})."""
  by_scale = {s: scores(subject, task, metric, 'valid', limit, s)[0] for s in scales}
  return max(scales, key=by_scale.get), by_scale


def main():
  """Write one result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--name', required=True)
  parser.add_argument('--task', default='draw', choices=('draw', 'speak'))
  parser.add_argument('--metric', default='accuracy')
  parser.add_argument('--scales', default='1,1.5,2,3')
  parser.add_argument('--limit', type=int, default=300)
  arguments = parser.parse_args()
  subject = trained.load(arguments.workdir).subject()
  scales = [float(scale) for scale in arguments.scales.split(',')]
  best, valid = choose_scale(subject, arguments.task, arguments.metric, scales, arguments.limit)
  test = [
    row
    for scale in dict.fromkeys((1.0, best))
    for row in scores(subject, arguments.task, arguments.metric, 'test', arguments.limit, scale)[1]
  ]
  numbers = dict(task=arguments.task, metric=arguments.metric, valid=valid, chosen=best, test=test)
  record.write_result(arguments.name, f'guidance {best:g} is best on validation data', numbers)


if __name__ == '__main__':
  main()
