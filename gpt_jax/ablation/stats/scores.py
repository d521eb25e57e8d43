"""Scores of a study's runs in its metric: values by arm and seed, and which of them are missing."""

import collections
import math
from typing import NamedTuple

import numpy as np

from gpt_jax.ablation.stats import comparability, judging
from gpt_jax.runs.metric_names import score_name


class Scores(NamedTuple):
  """What the runs of a study scored."""

  values: dict  # {arm: {seed: finite value}}
  missing: dict  # {arm: seeds of runs that are done, without a finite value}
  diverged: dict  # {arm: how many runs diverged}
  examples: int = 0  # how many examples all values are shares of; 0 = they are not shares
  by_example: dict = {}  # {arm: {seed: values of the examples, whose mean is the run's}}, where kept
  ways: dict = {}  # {arm: {seed: training_way}}

  def comparison(self, study, name, base):
    """The judging.Comparison of two arms by name."""
    arms = {arm['name']: arm for arm in study['arms']}
    missing = self.missing.get(name, set()) | self.missing.get(base, set())
    reasons = comparability.reasons(study, arms[name], arms[base])
    if comparability.metric_kind(study['metric']) == 'speed':
      ways, base_ways = (self.ways.get(arm, {}) for arm in (name, base))
      reasons += comparability.speed_reasons([(ways[s], base_ways[s]) for s in ways if s in base_ways])
    return judging.Comparison(
      *(self.values.get(arm, {}) for arm in (name, base)),
      *(self.diverged.get(arm, 0) for arm in (name, base)),
      len(missing),
      reasons,
      self._example_differences(name, base),
    )

  def _example_differences(self, name, base):
    """{seed: differences of the examples} of the seeds in which both runs scored as many."""
    ours, theirs = (self.by_example.get(arm, {}) for arm in (name, base))
    common = [seed for seed in ours if seed in theirs and len(ours[seed]) == len(theirs[seed])]
    return {seed: np.subtract(ours[seed], theirs[seed]) for seed in common}


def collect_scores(rows, metric):
  """The Scores of rows of store.read_runs.

  Raises ValueError if runs are done but none has the metric, or if it is ambiguous.
  """
  values, missing = collections.defaultdict(dict), collections.defaultdict(set)
  names, counts, done = set(), [], [row for row in rows if row['status'] == 'done']
  by_example, ways = collections.defaultdict(dict), collections.defaultdict(dict)
  for row in done:
    ways[row['arm']][row['seed']] = training_way(row)
    numbers = numeric_results(row['result'], metric)
    names |= set(numbers)
    value = numbers.get(metric, math.nan)
    if math.isfinite(value):
      values[row['arm']][row['seed']] = value
      counts.append(share_of(row['result'], metric, value))
      if row.get('examples'):
        by_example[row['arm']][row['seed']] = row['examples']
    else:
      missing[row['arm']].add(row['seed'])
  if done and metric not in names:
    raise ValueError(
      f'metric={metric!r} is in no result of this study\nfix: use one of {", ".join(sorted(names))}'
    )
  diverged = collections.Counter(row['arm'] for row in rows if row['status'] == 'diverged')
  count = min(counts, default=0)
  return Scores(dict(values), dict(missing), dict(diverged), count, dict(by_example), dict(ways))


def training_way(row):
  """What the speed of a run depends on beside its config: (how it was trained, runs at once, hardware)."""
  return row.get('how'), row['result'].get('replicas', 1), row['result'].get('hardware')


def numeric_results(result, metric=''):
  """The numbers of a result by name: its own, tail/METRIC and the scores of tasks.

  A metric TASK/METRIC is included if just one score of the task has it.
  """
  tail = {f'tail/{name}': value for name, value in (result.get('tail') or {}).items()}
  named = {score_name(row): row['value'] for row in result.get('evaluations') or ()} | tail | result
  if metric not in named and (row := find_score(result, metric)):
    named[metric] = row['value']
  is_number = lambda x: isinstance(x, int | float) and not isinstance(x, bool)
  return {name: float(value) for name, value in named.items() if is_number(value)}


def find_score(result, metric):
  """The task's score of a metric TASK/SOURCE/METRIC..., or of the shorter TASK/METRIC, or None.

  The shorter name does not count controls and reference scores; ValueError if several scores have it.
  """
  scores = result.get('evaluations') or ()
  exact = [row for row in scores if score_name(row) == metric]
  own = [row for row in scores if not {'of', 'control'} & set(row)]
  matches = exact[-1:] or [row for row in own if f'{row["task"]}/{row["metric"]}' == metric]
  if len(matches) > 1:
    raise ValueError(
      f'metric={metric!r} is the name of {len(matches)} scores\n'
      f'fix: use one of {", ".join(map(score_name, matches))}'
    )
  return matches[0] if matches else None


def share_of(result, metric, value):
  """How many examples a value is a share of, such as an accuracy; 0 if it is none."""
  row = None if metric in result else find_score(result, metric)
  count = (row or {}).get('n') or 0
  hits = value * count
  return int(count) if 0 <= value <= 1 and abs(hits - round(hits)) < 1e-6 * max(count, 1) else 0
