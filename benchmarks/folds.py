"""Merge runs with other held-out parts or other seeds: `python -m benchmarks.folds`.

  python -m benchmarks.folds --workdirs=runs/a,runs/b --name=NAME --claim=WORDS

Writes results/NAME/RUN.json for each run as `record` does, and results/NAME.json with the mean over the runs
and its t interval of each source's first test score, or that of `--metric`. The sample is the runs, not the
test examples.
`--before=runs/c,runs/d` are the runs that they started from: adds their scores. `--curve=METRIC` adds this
validation metric at each step where a run measured it. A run whose folder is gone is read from
results/NAME/RUN.json. The interval of one run alone is that of its examples.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks import record, table
from gpt_jax.runs import records, run_folder

SHARED = ('task', 'metric', 'source', 'split', 'temperature', 'beams', 'signature')  # by runs of one kind


def first_scores(result, metric=''):
  """{source: its first test row, of a metric or any, with a chance level that is not a control} of a run."""
  rows = [*result['numbers']['evaluations'], *result['evaluations_later']]
  is_score = lambda r: r['split'] == 'test' and 'chance' in r and not {'of', 'control'} & set(r)
  rows = [row for row in rows if metric in ('', row['metric'])]
  scores = {}
  for row in filter(is_score, rows):
    scores.setdefault(row['source'], row)
  return scores


def mean_interval(rows, key, interval):
  """The mean of a key of rows, one of each run, and its 95 % t interval.

  Of one run, or where all are equal, the interval of the first one's examples: no spread is no evidence.
  """
  values = [row[key] for row in rows]
  mean = float(np.mean(values))
  if len({*values}) == 1:
    return mean, rows[0][interval]
  half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
  return mean, [mean - half, mean + half]


def curve(workdir, metric):
  """The pairs [step, value] of a metric of a run."""
  return [[row['step'], row[metric]] for row in run_folder.read_metrics(workdir) if metric in row]


def merge_folds(results, before=(), metric=''):
  """Merge {run: its `record.run_summary`} into the content of one result file.

  before: summaries of the runs that they started from, in their order. metric: of each source, or '' for its
  first.
  """
  scores = {name: first_scores(result, metric) for name, result in results.items()}
  starts, means = [first_scores(summary, metric) for summary in before], []
  for source, first in next(iter(scores.values())).items():
    rows = {name: row[source] for name, row in scores.items()}
    values = [row['value'] for row in rows.values()]
    mean = {key: first[key] for key in SHARED if key in first}
    mean['value'], (low, high) = mean_interval([*rows.values()], 'value', 'interval')
    mean |= {
      'interval': [low, min(1.0, high) if max(values) <= 1 else high],
      'chance': float(np.mean([row['chance'] for row in rows.values()])),
      'n': sum(row['n'] for row in rows.values()),
      'runs': dict(zip(rows, values, strict=True)),
    }
    if 'difference' in first:
      mean |= {'baseline': float(np.mean([row['baseline'] for row in rows.values()]))}
      mean['baseline_of'] = first['baseline_of']
      gain, (low, high) = mean_interval([*rows.values()], 'difference', 'difference_interval')
      mean |= {'difference': gain, 'difference_interval': [low, min(1.0, high) if max(values) <= 1 else high]}
    if starts:
      values = [row[source]['value'] for row in starts]
      mean |= {'before': float(np.mean(values)), 'before_runs': dict(zip(rows, values, strict=True))}
    means.append(mean)
  result = next(iter(results.values()))
  return {
    **{key: result[key] for key in ('command', 'hardware', 'versions')},
    'started': min(r['started'] for r in results.values()),
    'finished': max(r['finished'] for r in results.values()),
    'minutes': sum(table.minutes(r) for r in results.values()),
    'numbers': {'evaluations': means},
    'evaluations_later': [],
    'examples': result.get('examples', []),
  }


def main():
  """Write the result files."""
  parser = argparse.ArgumentParser(description=__doc__)
  for name in ('workdirs', 'name', 'claim'):
    parser.add_argument(f'--{name}', required=True)
  parser.add_argument('--before', default='')
  parser.add_argument('--curve', default='')
  parser.add_argument('--metric', default='')
  arguments = parser.parse_args()
  workdirs = {Path(w).name: w for w in arguments.workdirs.split(',')}
  folder = record.RESULTS / arguments.name
  folder.mkdir(exist_ok=True, parents=True)
  results = {}
  for name, workdir in workdirs.items():
    path = folder / f'{name}.json'
    if Path(workdir).exists() or not path.exists():
      results[name] = record.run_summary(workdir)
      if arguments.curve:
        results[name]['curves'] = {arguments.curve: curve(workdir, arguments.curve)}
    else:
      results[name] = json.loads(path.read_text())
  before = [record.run_summary(workdir) for workdir in filter(None, arguments.before.split(','))]
  folds = {name: {'name': name, 'claim': arguments.claim} | result for name, result in results.items()}
  files = {folder / f'{name}.json': fold for name, fold in folds.items()}
  merged = merge_folds(results, before, arguments.metric)
  if arguments.curve:
    curves = {name: result['curves'][arguments.curve] for name, result in results.items()}
    merged['numbers']['curves'] = {arguments.curve: curves}
  files[record.RESULTS / f'{arguments.name}.json'] = {
    'name': arguments.name,
    'claim': arguments.claim,
    **merged,
  }
  for path, content in files.items():
    path.write_text(json.dumps(records.to_json(content), indent=1) + '\n')
    print(path)


if __name__ == '__main__':
  main()
