"""One result of several runs that each hold out another part: `python -m benchmarks.folds`.

  python -m benchmarks.folds --workdirs=runs/a,runs/b --name=NAME --claim=WORDS

Writes results/NAME/RUN.json of each run as `record` does, and results/NAME.json with the mean of
their first score on the test over the runs, and a t interval of it: the runs are the sample, not
what they were tested on.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks import record, table
from gpt_jax.runs import records


def first_score(result):
  """The first row of a run's test that has a chance level and is no control."""
  rows = [*result['numbers']['evaluations'], *result['evaluations_later']]
  fit = lambda r: r['split'] == 'test' and 'chance' in r and not {'of', 'control'} & set(r)
  return next(row for row in rows if fit(row))


def folded(results):
  """{run: what `record.summary` says} -> the content of the result that stands for all."""
  rows = {name: first_score(result) for name, result in results.items()}
  values = np.array([row['value'] for row in rows.values()])
  half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
  one, any_of = next(iter(rows.values())), next(iter(results.values()))
  mean = {key: one[key] for key in ('task', 'metric', 'source', 'split', 'temperature')}
  mean |= {
    'value': float(values.mean()),
    'interval': [float(values.mean() - half), float(min(1, values.mean() + half))],
    'chance': float(np.mean([row['chance'] for row in rows.values()])),
    'n': sum(row['n'] for row in rows.values()),
    'runs': {name: row['value'] for name, row in rows.items()},
  }
  return {
    **{key: any_of[key] for key in ('command', 'hardware', 'versions')},
    'started': min(result['started'] for result in results.values()),
    'finished': max(result['finished'] for result in results.values()),
    'minutes': sum(table.minutes(result) for result in results.values()),
    'numbers': {'evaluations': [mean]},
    'evaluations_later': [],
  }


def main():
  """Write the result files."""
  parser = argparse.ArgumentParser(description=__doc__)
  for name in ('workdirs', 'name', 'claim'):
    parser.add_argument(f'--{name}', required=True)
  given = parser.parse_args()
  results = {Path(w).name: record.summary(w) for w in given.workdirs.split(',')}
  folder = record.RESULTS / given.name
  folder.mkdir(exist_ok=True, parents=True)
  told = {name: {'name': name, 'claim': given.claim} | result for name, result in results.items()}
  whole = {'name': given.name, 'claim': given.claim} | folded(results)
  for path, content in [(folder / f'{name}.json', one) for name, one in told.items()] + [
    (record.RESULTS / f'{given.name}.json', whole)
  ]:
    path.write_text(json.dumps(records.to_json(content), indent=1) + '\n')
    print(path)


if __name__ == '__main__':
  main()
