"""Main effects of plans that cross factors: what a level does on average over the other factors.

Arms that differ in more than the factor are never compared: their mean would hold the effects of
the rest. A fractional plan has no two arms that differ in one factor alone; there an additive model
is fitted, which the orthogonal columns make the difference of means while no run is missing.
"""

import collections

import numpy as np

from gpt_jax.ablation.stats import inference, size_laws

CROSSED = ('full', 'fractional', 'pairwise')  # plans in which a factor's levels meet many others


def main_effects(study, values, diverged=None):
  """Every factor's effects, judged as one family; [] in plans that cross nothing.

  Args:
    values: {arm: {seed: value}}.
    diverged: {arm: how many of its runs diverged}.

  Returns:
    list of {factor, level, against, arms (that have the level and were used), what inference.judge
    says}. against: the baseline's level, or where no two arms that are equal in all else have it,
    the first level of which there are such.
  """
  if study.get('plan') not in CROSSED:
    return []
  compare = _fitted if study['plan'] == 'fractional' else _matched
  found, pairs, lost, flattered = [], [], [], []
  scaled = size_laws.RESOURCES if 'size' in study['factors'] else ()
  for factor in (name for name in study['factors'] if name not in scaled):
    for level, against, names, pair in compare(study['arms'], factor, values):
      found.append({'factor': factor, 'level': level, 'against': against, 'arms': len(names)})
      pairs.append(pair)
      others = [arm['name'] for arm in study['arms'] if arm['levels'][factor] == against]
      for side, sums in ((names, lost), (others, flattered)):
        sums.append(sum((diverged or {}).get(name, 0) for name in side))
  judged = inference.judge(pairs, study['better'], float(study['tolerance']), lost, flattered)
  return [about | one for about, one in zip(found, judged, strict=True)]


def _levels(arms, factor):
  """The levels of a factor, the baseline's first."""
  ordered = sorted(arms, key=lambda arm: not arm['is_baseline'])
  return list(dict.fromkeys(arm['levels'][factor] for arm in ordered))


def _matched(arms, factor, values):
  """Yields (level, against, arms, (values, base values)): means over the twins of each seed."""
  cells = collections.defaultdict(dict)
  for arm in arms:
    others = tuple(level for name, level in arm['levels'].items() if name != factor)
    cells[others][arm['levels'][factor]] = arm['name']
  levels = _levels(arms, factor)
  twins = lambda one, other: [
    (cell[one], cell[other]) for cell in cells.values() if {one, other} <= cell.keys()
  ]
  against = max(levels, key=lambda level: any(twins(o, level) for o in levels if o != level))
  for level in levels:
    if level != against and (both := twins(level, against)):
      yield level, against, [one for one, _ in both], _means(both, values)


def _means(twins, values):
  """({seed: mean of the first of each pair}, the same of the second), where both finished."""
  sides = {}, {}
  for seed in sorted({seed for found in values.values() for seed in found}):
    pairs = [
      [values[name][seed] for name in pair]
      for pair in twins
      if all(seed in values.get(name, {}) for name in pair)
    ]
    for side, mean in zip(sides, np.mean(pairs, axis=0) if pairs else (), strict=False):
      side[seed] = float(mean)
  return sides


def _fitted(arms, factor, values):
  """As `_matched`, from an additive model of all factors in each seed that determines it."""
  factors = list(arms[0]['levels'])
  columns = [(name, level) for name in factors for level in _levels(arms, name)[1:]]
  sides = {column: ({}, {}) for column in columns}
  for seed in sorted({seed for found in values.values() for seed in found}):
    here = [arm for arm in arms if seed in values.get(arm['name'], {})]
    x = [[1.0, *(float(arm['levels'][f] == level) for f, level in columns)] for arm in here]
    terms, _, rank, _ = np.linalg.lstsq(x, [values[arm['name']][seed] for arm in here])
    if rank == 1 + len(columns):
      for column, term in zip(columns, terms[1:], strict=True):
        sides[column][0][seed], sides[column][1][seed] = float(terms[0] + term), float(terms[0])
  own, *levels = _levels(arms, factor)
  for level in levels:
    names = [arm['name'] for arm in arms if arm['levels'][factor] == level]
    yield level, own, names, sides[factor, level]
