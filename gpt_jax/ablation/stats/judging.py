"""Judge families of comparisons: which arm is better, worse or no different, all at 5 % together.

An arm and the baseline are run with the same seeds; the differences seed by seed are judged, so that
effects of the seed on both cancel. The tests are in inference.py. Letters: N seeds.
"""

from typing import NamedTuple

import numpy as np

from gpt_jax.ablation.stats import comparability, inference, sequential

MIN_FLIPS = 7  # seeds from which sign flips have three p values below ALPHA: fewer contradict t by chance


class Comparison(NamedTuple):
  """An arm and its baseline, before they are judged."""

  values: dict  # {seed: number} of the arm
  base_values: dict  # of the baseline
  diverged: int = 0  # runs of the arm that diverged
  base_diverged: int = 0  # of the baseline
  missing: int = 0  # seeds whose run is done on both sides, without a finite value on one
  reasons: tuple = ()  # why the values do not compare, as texts; () if they do
  by_example: dict | None = None  # {seed: differences [M] of the examples, whose mean is the seed's}


class Outcome(NamedTuple):
  """The comparisons of a study in one metric."""

  comparisons: list  # of Comparison
  better: str = 'lower'  # direction of the metric
  tolerance: float = 0.0  # the smallest difference that matters, in units of the metric; 0 = any
  examples: int = 0  # how many examples the values are shares of; 0 = they are not shares
  # The values are counts, such as parameters: a difference that is equal in two or more seeds is certain,
  # where for a score it would leave unknown how much seeds vary.
  exact: bool = False


def judge(comparisons, better='lower', tolerance=0.0, examples=0, exact=False, design=None):
  """`judge_outcomes` of one Outcome, whose comparisons may also be tuples -> a list of verdicts, in order."""
  comparisons = [Comparison(*comparison) for comparison in comparisons]
  return judge_outcomes([Outcome(comparisons, better, tolerance, examples, exact)], design)[0]


def judge_outcomes(outcomes, design=None):
  """Judge the comparisons of all outcomes as one family -> a list of verdicts for each outcome, in order.

  Args:
    outcomes: list of Outcome; the common seeds of a comparison are compared. The survivors of a side with
      diverged runs are biased in its favor: the verdict on such an arm is 'diverged', and against such a
      baseline it is 'better' or 'undecided'. With missing values it is 'undecided', with reasons 'not
      comparable', and no difference is computed.
    design: the sequential.Sequential that decides how many seeds an arm gets; p values and intervals are then
      valid at any number of seeds, and seeds_needed is the number still planned. Or the sequential.Extended
      of a study that got more seeds than planned.

  Returns:
    lists of {n, seeds, ties (seeds without a difference), difference (arm - base), interval, family_interval
    (95 % for all at once), p, p_holm, p_equivalence, p_sign_flip (of one arm; None where it cannot reach
    5 %), doubt (how sign flips contradict the verdict, or ''), verdict, seeds_needed (to add; 0 =
    decided, None = unknown or too many), se_paired, se_unpaired (standard error of the difference, were the
    seeds unrelated), se_examples (of having drawn the examples), pairing_gain (se_unpaired / se_paired; a
    gain of n replaces n^2 times the seeds), diverged, base_diverged, missing, reasons}.
    verdict: 'no difference' (shown to be smaller than the tolerance, though it may differ from 0), 'better',
    'worse', 'undecided', 'diverged' or 'not comparable'; the chance of any false 'better' or 'worse' in the
    family is at most 5 %.
  """
  rows = [
    (_compare(comparison, *outcome[2:], design), comparison, outcome)
    for outcome in outcomes
    for comparison in outcome.comparisons
  ]
  tested = [result for result, *_ in rows if result['p'] is not None]
  for key, adjusted in (('p', 'p_holm'), ('p_equivalence', 'p_equivalence')):
    for result, p in zip(tested, inference.holm([result[key] for result in tested]), strict=True):
      result[adjusted] = p
  for result in tested:  # Bonferroni: it also covers the one that is picked for its effect
    level = inference.ALPHA / len(tested)
    level = sequential.nominal_level(result['n'], level, design) if design else level
    half = inference.half_width(result['n'], result.pop('se'), result['se_examples'], level)
    result['family_interval'] = [result['difference'] - half, result['difference'] + half]
  alpha = inference.ALPHA / max(1, sum(result['p_holm'] > inference.ALPHA for result in tested))
  alpha *= (
    1 if isinstance(design, sequential.Sequential) else sequential.LATER
  )  # seeds to add are later looks
  for result, comparison, outcome in rows:
    sd, difference, needed = result.pop('sd'), result['difference'], None
    verdict = _verdict(result, comparison, outcome.better)
    biased = comparison.diverged or comparison.base_diverged or comparison.missing
    estimate = (result['n'], difference, sd, outcome.tolerance, alpha)
    if sd is not None and not biased:
      examples = outcome.examples, result['se_examples']
      needed = inference.seeds_needed(*estimate, *examples) if verdict == 'undecided' else 0
    if isinstance(design, sequential.Sequential) and verdict == 'undecided' and not biased:
      needed = sequential.seeds_left(*estimate, design) or None
    result |= {'verdict': verdict, 'seeds_needed': needed, 'reasons': list(comparison.reasons)}
    result['doubt'] = _doubt(verdict, result, result.pop('p_equivalence_flip'))
    result.pop('se', None)
    result |= {key: getattr(comparison, key) for key in ('diverged', 'base_diverged', 'missing')}
  results = iter([result for result, *_ in rows])
  return [[next(results) for _ in outcome.comparisons] for outcome in outcomes]


def _verdict(result, comparison, better):
  """The verdict on one comparison, from its corrected p values."""
  if comparison.diverged:
    return 'diverged'
  if comparison.reasons:
    return 'not comparable'
  if result['p'] is None or comparison.missing:
    return 'undecided'
  if result['p_equivalence'] <= inference.ALPHA:
    return 'undecided' if comparison.base_diverged else 'no difference'
  if result['p_holm'] > inference.ALPHA:
    return 'undecided'
  if (result['difference'] < 0) == (better == 'lower'):
    return 'better'
  return 'undecided' if comparison.base_diverged else 'worse'


def _doubt(verdict, result, p_equivalence_flip):
  """How sign flips contradict a verdict, as text; '' if they do not, or are too few to tell.

  p values around 5 % differ by chance: they contradict if one is below it and the other twice as large.
  """
  p, p_flip = result['p'], result['p_sign_flip']
  if verdict == 'no difference':
    p, p_flip = result['p_equivalence'], p_equivalence_flip
  if p_flip is None or verdict not in ('better', 'worse', 'no difference', 'undecided'):
    return ''
  if verdict == 'undecided':  # an error of examples is not one of the seeds' signs
    contradicts = p_flip <= inference.ALPHA < p and p >= 2 * p_flip and not result['se_examples']
  else:
    contradicts = p_flip > inference.ALPHA and p_flip >= 2 * p
  about = lambda p: f'p {"< 0.001" if p < 0.001 else f"= {p:.2g}"}'
  return f'sign flips give {about(p_flip)}, t {about(p)}: skewed differences or an outlier' * contradicts


def best_against_second(study, scores, verdicts):
  """Judge the best arm against the second best -> {arms: (best, second), the keys of `judge`}.

  Two-sided at 5 % it needs no correction for having picked both. verdicts: {arm: its judgment against the
  baseline}. None unless an arm is better than the baseline and another one, not the baseline, comes second.
  """
  sign = 1 if study['better'] == 'lower' else -1
  usable = {
    name: sign * verdict['difference']
    for name, verdict in verdicts.items()
    if verdict['difference'] is not None and not verdict['diverged'] and not verdict['missing']
  }
  best = min(usable, key=usable.get, default=None)
  if best is None or verdicts[best]['verdict'] != 'better':
    return None
  second = min((name for name in usable if name != best), key=usable.get, default=None)
  if second is None or usable[second] >= 0:  # the baseline is second
    return None
  [judged] = judge_family(study, [scores.comparison(study, best, second)], scores.examples)
  return {'arms': [best, second]} | judged


def judge_family(study, comparisons, examples=0):
  """`judge_outcomes` by the metric, direction and tolerance of a study alone."""
  return judge_outcomes([outcome_of(study, comparisons, examples)], sequential_of(study))[0]


def outcome_of(study, comparisons, examples=0):
  """The Outcome of comparisons in the metric of a study."""
  exact = comparability.metric_kind(study['metric']) == 'cost'
  return Outcome(comparisons, study['better'], float(study['tolerance']), examples, exact)


def sequential_of(study):
  """The Sequential of study.json, the Extended where it got more seeds than it was planned with, or None."""
  if study.get('sequential'):
    return sequential.Sequential(**study['sequential'])
  planned, seeds = study.get('planned_seeds') or (), study.get('seeds') or ()
  is_more = planned and set(planned) < set(seeds) and max(planned) < min({*seeds} - {*planned})
  return sequential.Extended(len(planned)) if is_more and len(planned) > 1 else None


def _compare(comparison, tolerance, examples, exact, design=None):
  """Compare an arm and its baseline on their common seeds, without correction or verdict."""
  values, base_values = comparison.values, comparison.base_values
  seeds = [] if comparison.reasons else sorted(set(values) & set(base_values), key=_seed_order)
  keys = ('difference', 'sd', 'interval', 'family_interval', 'p', 'p_holm', 'p_equivalence', 'p_sign_flip')
  result = {'n': len(seeds), 'seeds': seeds, 'ties': 0}
  result |= dict.fromkeys((*keys, 'p_equivalence_flip'))
  result |= dict.fromkeys(('se_paired', 'se_unpaired', 'se_examples', 'pairing_gain'))
  if not seeds:
    return result
  value_N, base_N = (np.array([side[seed] for seed in seeds], float) for side in (values, base_values))
  difference_N = value_N - base_N
  rounding = inference.TIE * max(abs(value_N).max(), abs(base_N).max())
  if np.ptp(difference_N) <= rounding:
    difference_N[:] = difference_N.mean()  # equal but for rounding
  sampling = None
  if comparison.by_example and set(seeds) <= set(comparison.by_example):
    sampling = inference.example_sampling(np.array([comparison.by_example[seed] for seed in seeds]))
  test = inference.paired_t(difference_N, examples, sampling)
  result |= {key: test[key] for key in ('sd', 'se', 'interval', 'p')} | {'difference': test['mean']}
  result |= {'ties': int((abs(difference_N) <= rounding).sum()), 'se_examples': test['sampling']}
  result['p_equivalence'] = inference.equivalence(difference_N, tolerance, examples, sampling)
  if exact and len(seeds) > 1 and test['mean'] and not np.ptp(difference_N):
    result |= {'p': 0.0, 'interval': [test['mean']] * 2, 'se': 0.0}
    result['p_equivalence'] = float(abs(test['mean']) >= tolerance)
  elif design:
    tests = [
      (
        inference.paired_t(values_N, examples, sampling),
        inference.equivalence(values_N, tolerance, examples, sampling),
      )
      for values_N in (difference_N[:n] for n in design.looks_K if n <= len(seeds))
    ]
    result |= dict(zip(('p', 'p_equivalence'), sequential.whole_test(tests, design), strict=True))
    level = sequential.nominal_level(len(seeds), inference.ALPHA, design)
    half = inference.half_width(len(seeds), test['se'] or 0.0, test['sampling'] or 0.0, level)
    result['interval'] = None if result['p'] is None else [test['mean'] - half, test['mean'] + half]
  elif len(seeds) >= MIN_FLIPS and test['p'] is not None:
    result['p_sign_flip'] = inference.sign_flips(difference_N)
    sides = (inference.sign_flips(tolerance + sign * difference_N, one_sided=True) for sign in (-1, 1))
    result['p_equivalence_flip'] = max(sides)
  if test['sd'] is not None:
    paired = test['sd'] / len(seeds) ** 0.5
    unpaired = float(np.sqrt((value_N.var(ddof=1) + base_N.var(ddof=1)) / len(seeds)))
    gain = unpaired / paired if paired else None
    result |= {'se_paired': paired, 'se_unpaired': unpaired, 'pairing_gain': gain}
  return result


def _seed_order(seed):
  """Sort key of seeds, which are numbers or their texts."""
  return len(str(seed)), str(seed)
