"""How far to follow the condition: a scale chosen on validation, then scored once on the test.

Command: python -m benchmarks.guidance --workdir=runs/mnist --task=draw --name=mnist_guidance

Evaluates the task on validation data at each scale, takes the one with the highest mean of
--metric over the sources, and evaluates that one, and scale 1 beside it, on the test data. Writes
results/NAME.json. The test set has no part in the choice.
"""

import argparse

import numpy as np

from benchmarks import record
from gpt_jax.evaluation import evaluate, trained


def scores(subject, task, metric, split, limit, scale):
  """(mean of the metric over sources, all rows) at one scale."""
  rows = evaluate.run_tasks(subject, [task], split=split, limit=limit, guidance=scale)
  own = [r['value'] for r in rows if r['metric'] == metric and not {'of', 'control'} & set(r)]
  if not own:
    known = ', '.join(dict.fromkeys(row['metric'] for row in rows))
    raise SystemExit(f'error: --metric={metric} is not among the rows of {task}\nfix: use {known}')
  return float(np.mean(own)), rows


def choose(subject, task, metric, scales, limit):
  """-> (the best scale on validation data, {scale: mean of the metric})."""
  found = {s: scores(subject, task, metric, 'valid', limit, s)[0] for s in scales}
  return max(scales, key=found.get), found


def main():
  """Write one result file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--name', required=True)
  parser.add_argument('--task', default='draw', choices=('draw', 'speak'))
  parser.add_argument('--metric', default='accuracy')
  parser.add_argument('--scales', default='1,1.5,2,3')
  parser.add_argument('--limit', type=int, default=300)
  given = parser.parse_args()
  subject = trained.load(given.workdir).subject()
  scales = [float(scale) for scale in given.scales.split(',')]
  best, valid = choose(subject, given.task, given.metric, scales, given.limit)
  test = [
    row
    for scale in dict.fromkeys((1.0, best))
    for row in scores(subject, given.task, given.metric, 'test', given.limit, scale)[1]
  ]
  numbers = dict(task=given.task, metric=given.metric, valid=valid, chosen=best, test=test)
  record.keep(given.name, f'guidance {best:g} is best on validation data', numbers)


if __name__ == '__main__':
  main()
