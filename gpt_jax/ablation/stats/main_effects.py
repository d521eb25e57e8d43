"""Main effects and interactions of sweeps that cross factors.

A main effect is what a level does on average over the other factors; an interaction is what two levels do
together beyond the sum of what each does alone.

Arms that differ in more than the factor are never compared: their means would hold the effects of the
rest. A fractional design has no two arms that differ in one factor alone; there an additive model is
fitted, which the orthogonal columns make the difference of means while no run is missing.
"""

import collections

import numpy as np

from gpt_jax.ablation.stats import comparability, judging, size_laws
from gpt_jax.ablation.sweeps import SWEEPS


def crossed_effects(study, scored):
  """Main effects and interactions -> (effects, interactions, the comparison of each, in this order).

  scored: a scores.Scores. effects: list of {factor, level, against (the baseline's level, or the first one
  with matched arms), arms (how many have the level and were used)}. interactions: list of
  {levels: 'a=1 x b=2'}. None for sweeps that cross nothing.
  """
  sweep = SWEEPS.get(study.get('sweep'))
  if not sweep or not sweep.main_effects:
    return [], [], []
  effects, comparisons = [], []
  scaled = size_laws.RESOURCES if 'size' in study['factors'] else ()
  interactions = list(_interactions(study['arms'], scaled)) if sweep.main_effects == 'matched' else []
  for factor in (name for name in study['factors'] if name not in scaled):
    for level, against, pairs, sides in ESTIMATORS[sweep.main_effects](study['arms'], factor, scored.values):
      names = [arm['name'] for arm in study['arms'] if arm['levels'][factor] == level]
      used = [name for name in names if name in {first for first, _ in pairs}]
      others = [arm['name'] for arm in study['arms'] if arm['levels'][factor] == against]
      effects.append({'factor': factor, 'level': level, 'against': against, 'arms': len(used)})
      comparisons.append(judging.Comparison(*sides, *_judgment_inputs(study, scored, used, others, pairs)))
  for _, both, first, second, base in interactions:
    sides = (_sums(names, scored.values) for names in ((both, base), (first, second)))
    pairs = [(name, base) for name in (both, first, second)]
    inputs = _judgment_inputs(study, scored, (both, first, second), (base,), pairs)
    comparisons.append(judging.Comparison(*sides, *inputs))
  return effects, [{'levels': levels} for levels, *_ in interactions], comparisons


def _judgment_inputs(study, scored, used, others, pairs):
  """(diverged, base_diverged, missing, reasons) of an judging.Comparison of two groups of arms."""
  arms = {arm['name']: arm for arm in study['arms']}
  lost = (sum(scored.diverged.get(name, 0) for name in group) for group in (used, others))
  missing = set().union(*(scored.missing.get(name, set()) for name in {*used, *others}))
  reasons = [comparability.reasons(study, arms[name], arms[other]) for name, other in pairs]
  return *lost, len(missing), tuple(dict.fromkeys(sum(reasons, ())))


def _interactions(arms, scaled):
  """Yield (levels, the arm with both, the arm with each, the baseline) where all four arms exist."""
  by_levels = {tuple(arm['levels'].items()): arm['name'] for arm in arms}
  base = next(arm for arm in arms if arm['is_baseline'])
  for arm in arms:
    changed = {factor: level for factor, level in arm['levels'].items() if level != base['levels'][factor]}
    if len(changed) == 2 and not set(changed) & set(scaled):
      alone = [tuple((base['levels'] | {factor: level}).items()) for factor, level in changed.items()]
      if all(levels in by_levels for levels in alone):
        levels = ' \u00d7 '.join(f'{factor}={level}' for factor, level in changed.items())
        yield levels, arm['name'], *(by_levels[one] for one in alone), base['name']


def _sums(names, values):
  """{seed: sum of the values of these arms}, of the seeds that all of them finished."""
  sides = [values.get(name, {}) for name in names]
  return {seed: sum(side[seed] for side in sides) for seed in sorted(set.intersection(*map(set, sides)))}


def _levels(arms, factor):
  """The levels of a factor, the baseline's first."""
  ordered = sorted(arms, key=lambda arm: not arm['is_baseline'])
  return list(dict.fromkeys(arm['levels'][factor] for arm in ordered))


def _all_seeds(values):
  return sorted(set().union(*values.values()))


def _matched(arms, factor, values):
  """Yield (level, against, pairs, (values, base values)): means over pairs that differ in the factor alone.

  pairs: names of the arms that are compared.
  """
  cells = collections.defaultdict(dict)
  for arm in arms:
    others = tuple(level for name, level in arm['levels'].items() if name != factor)
    cells[others][arm['levels'][factor]] = arm['name']
  levels = _levels(arms, factor)
  pairs_of = lambda level, other: [
    (cell[level], cell[other]) for cell in cells.values() if {level, other} <= cell.keys()
  ]
  against = max(levels, key=lambda level: any(pairs_of(other, level) for other in levels if other != level))
  for level in levels:
    if level != against and (pairs := pairs_of(level, against)):
      yield level, against, pairs, _means(pairs, values)


def _means(pairs, values):
  """({seed: mean of the first of each pair}, the same of the second), of pairs that both finished."""
  sides = {}, {}
  for seed in _all_seeds(values):
    both = [[values.get(name, {}).get(seed) for name in pair] for pair in pairs]
    finished = [numbers for numbers in both if None not in numbers]
    for side, mean in zip(sides, np.mean(finished, axis=0) if finished else (), strict=False):
      side[seed] = float(mean)
  return sides


def _least_squares(arms, factor, values):
  """Like `_matched`, from an additive model of all factors in each seed that determines it."""
  columns = [(name, level) for name in arms[0]['levels'] for level in _levels(arms, name)[1:]]
  sides = {column: ({}, {}) for column in columns}
  for seed in _all_seeds(values):
    finished = [arm for arm in arms if seed in values.get(arm['name'], {})]
    x = [[1.0, *(float(arm['levels'][f] == level) for f, level in columns)] for arm in finished]
    terms, _, rank, _ = np.linalg.lstsq(x, [values[arm['name']][seed] for arm in finished])
    if rank == 1 + len(columns):
      for column, term in zip(columns, terms[1:], strict=True):
        sides[column][0][seed], sides[column][1][seed] = float(terms[0] + term), float(terms[0])
  base_level, *levels = _levels(arms, factor)
  base = next(arm for arm in arms if arm['is_baseline'])
  for level in levels:
    # The model takes all arms to be on one scale.
    pairs = [(arm['name'], base['name']) for arm in arms]
    yield level, base_level, pairs, sides[factor, level]


ESTIMATORS = {'matched': _matched, 'least_squares': _least_squares}
