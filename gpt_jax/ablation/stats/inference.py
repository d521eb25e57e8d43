"""Is a difference real? Intervals, corrections and power for paired differences, on plain arrays.

An arm and the baseline are run with the same seeds; the differences seed by seed are judged, so that
effects of the seed on both cancel. Letters: N seeds, M examples, X any axes.

Sources: paired t (Student 1908), Holm (1979), the least error of paired shares (McNemar 1947), sign flips
(Fisher 1935), equivalence by two one-sided tests (Schuirmann 1987), the best against the second without a
correction for having picked them (Gutmann and Maymin 1987; Hung and Fithian 2019), power of the t-tests by
the noncentral t (Cohen 1988; for equivalence the approximation of Phillips 1990).
"""

import bisect
from typing import NamedTuple

import numpy as np

from gpt_jax.ablation.stats import comparability, sequential

ALPHA = 0.05  # family-wise chance of a false verdict
POWER = 0.8  # power that 'needs n more seeds' is computed for
MAX_SEEDS = 1000  # beyond this no number of seeds is named
TIE = 1e-12  # relative spread of differences that rounding alone makes
LEVELS = 2000  # of a table from 1 to LEAST_P, from which a p value is read
LEAST_P = 1e-12  # in that table
EXACT_FLIPS = 16  # seeds up to which all sign flips are tried, beyond it as many random ones
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


def paired_test(difference_XN, examples=0, sampling_X=None):
  """Two-sided paired t-test of N differences, for any axes X -> (mean, sd, se, sampling, p), each [X].

  examples: how many examples the compared values are shares of; 0 = they are not shares. sampling_X: the
  error of having drawn these examples, by default the least that shares can have. Equal differences do not
  show how much seeds vary: other values than shares, or two seeds, have the p value NaN, unless all are 0.
  """
  from scipy import stats

  difference_XN = np.asarray(difference_XN, float)
  n = difference_XN.shape[-1]
  mean_X, has_spread_X = difference_XN.mean(-1), np.ptp(difference_XN, axis=-1) > 0
  sd_X = np.where(has_spread_X, difference_XN.std(-1, ddof=1), 0.0)
  resolution, least_X = example_errors(mean_X, examples)
  sampling_X = least_X if sampling_X is None else np.asarray(sampling_X, float)
  se_X = np.maximum(sd_X / n**0.5, resolution)
  with np.errstate(divide='ignore', invalid='ignore'):
    p_X = np.where(se_X > 0, 2 * stats.t.sf(abs(mean_X) / se_X, n - 1), 1.0)
  p_X = np.maximum(p_X, _two_level_p(mean_X, se_X, sampling_X, n)) if np.any(sampling_X) else p_X
  is_unknown_X = (mean_X != 0) & ~has_spread_X & (n == 2 or not examples)
  return mean_X, sd_X, se_X, sampling_X, np.where(is_unknown_X, np.nan, p_X)


def _two_level_p(mean_X, se_X, sampling_X, n):
  """P values [X] that belong to `half_width`: the level at which it is the mean itself, to 1 %."""
  from scipy import stats

  level_L = np.geomspace(1, LEAST_P, LEVELS)
  t_L, z_L = stats.t.isf(level_L / 2, n - 1), stats.norm.isf(level_L / 2)
  low_X, high_X = np.zeros(np.shape(mean_X), int), np.full(np.shape(mean_X), LEVELS - 1)
  while np.any(high_X - low_X > 1):
    middle_X = (low_X + high_X) // 2
    is_beyond_X = np.hypot(t_L[middle_X] * se_X, z_L[middle_X] * sampling_X) > abs(mean_X)
    low_X, high_X = np.where(is_beyond_X, low_X, middle_X), np.where(is_beyond_X, middle_X, high_X)
  return level_L[low_X]


def paired_t(difference_N, examples=0, sampling=None):
  """`paired_test` of one difference -> {n, mean, sd, se, sampling, interval (95 %), p}.

  With one seed, or where p is unknown, se, interval and p are None.
  """
  n = len(difference_N)
  if n < 2:
    unknown = dict.fromkeys(('sd', 'se', 'sampling', 'interval', 'p'))
    return {'n': n, 'mean': float(np.mean(difference_N)), **unknown}
  mean, sd, se, sampling, p = map(float, paired_test(difference_N, examples, sampling))
  if np.isnan(p):
    return {'n': n, 'mean': mean, 'sd': sd, 'se': None, 'sampling': sampling, 'interval': None, 'p': None}
  half = half_width(n, se, sampling)
  numbers = {'n': n, 'mean': mean, 'sd': sd, 'se': se, 'sampling': sampling}
  return numbers | {'interval': [mean - half, mean + half], 'p': p}


def half_width(n, se, sampling=0.0, alpha=ALPHA):
  """Half of the interval at 1 - alpha of a mean over n seeds and, independently, over examples.

  sampling: see example_errors. The squares of both halves add up: a t of few degrees of freedom for both
  together would be too narrow with two seeds that agree by chance.
  """
  from scipy import stats

  return float(np.hypot(stats.t.isf(alpha / 2, n - 1) * se, stats.norm.isf(alpha / 2) * sampling))


def example_errors(difference_X, examples):
  """The least errors of differences between two shares of the same examples: (resolution, sampling [X]).

  One example is the resolution. Shares that differ by d differ in at least d * examples of them; the error of
  having drawn these examples (McNemar) is the same for every seed. 0 without examples.
  """
  if not examples:
    return 0.0, np.zeros(np.shape(difference_X))
  d_X = np.minimum(1.0, np.abs(difference_X))
  return 1 / examples, np.sqrt(d_X * (1 - d_X) / examples)


def example_sampling(difference_NM):
  """The error of a mean over N seeds that comes from having drawn these M examples, from differences of both.

  The part of the examples in two crossed random effects: what differs from seed to seed is in the error
  over seeds.
  """
  n, m = difference_NM.shape
  of_example_M, of_seed_N = difference_NM.mean(0), difference_NM.mean(1)
  total = of_example_M.var(ddof=1) / m
  if n < 2:
    return float(np.sqrt(total))
  rest_NM = difference_NM - of_example_M - of_seed_N[:, None] + difference_NM.mean()
  return float(np.sqrt(max(0.0, total - (rest_NM**2).sum() / ((n - 1) * (m - 1)) / (n * m))))


def holm(p_values):
  """Adjust the p values of families (the last axis) by Holm's method: those <= ALPHA are rejected.

  NaN is not in the family. Returns lists in the order given.
  """
  p_XC = np.asarray(p_values, float)
  order_XC = np.argsort(p_XC, axis=-1, kind='stable')  # NaN last
  left_XC = np.isfinite(p_XC).sum(-1, keepdims=True) - np.arange(p_XC.shape[-1])
  sorted_XC = np.take_along_axis(p_XC, order_XC, -1)
  adjusted_XC = np.empty_like(p_XC)
  raised_XC = np.minimum(1, np.maximum.accumulate(sorted_XC * left_XC, axis=-1))
  np.put_along_axis(adjusted_XC, order_XC, raised_XC, -1)
  return adjusted_XC.tolist()


def equivalence(difference_N, margin, examples=0, sampling=None):
  """P value of 'the mean differs by more than margin', by two one-sided t-tests; None if unknown.

  examples, sampling: see `paired_test`.
  """
  from scipy import stats

  test = paired_t(difference_N, examples, sampling)
  distance, n = margin - abs(test['mean']), test['n']
  if test['se'] is None:
    return 1.0 if n > 1 and distance < 0 else None
  if not test['se'] and not test['sampling']:
    return float(distance < 0)
  if test['sampling']:
    p = float(_two_level_p(distance, test['se'], test['sampling'], n)) / 2
    return p if distance > 0 else 1 - p
  return float(stats.t.sf(distance / test['se'], n - 1))


def sign_flips(difference_N, one_sided=False):
  """P value of a mean by flipping signs, which needs symmetric differences and no normal ones.

  Two-sided, or one-sided for a mean above 0. Exact up to EXACT_FLIPS seeds.
  """
  difference_N = np.asarray(difference_N, float)
  n = len(difference_N)
  if n <= EXACT_FLIPS:
    bits_FN = np.arange(2**n)[:, None] >> np.arange(n) & 1
  else:
    bits_FN = np.random.default_rng(0).integers(0, 2, (2**EXACT_FLIPS, n))
    bits_FN[0] = 0  # as measured
  sums_F = (1 - 2 * bits_FN) @ difference_N
  actual, error = difference_N.sum(), TIE * np.abs(difference_N).sum()
  return float(np.mean(sums_F >= actual - error if one_sided else abs(sums_F) >= abs(actual) - error))


def power_of_difference(n, effect, alpha=ALPHA):
  """Power of n seeds to find a mean difference of `effect` standard deviations (of differences)."""
  from scipy import stats

  n = np.asarray(n)
  critical, shift = stats.t.isf(alpha / 2, n - 1), abs(effect) * np.sqrt(n)
  upper, lower = stats.nct.sf(critical, n - 1, shift), stats.nct.cdf(-critical, n - 1, shift)
  # Far from the null, scipy 1.17 gives NaN instead of 1 above and 0 below.
  return np.nan_to_num(upper, nan=1.0) + np.nan_to_num(lower, nan=0.0)


def power_of_equivalence(n, effect, margin, alpha=ALPHA):
  """Power of n seeds to show that a difference of `effect` is below `margin`, both in sd."""
  from scipy import stats

  n = np.asarray(n)
  critical = stats.t.isf(alpha, n - 1)
  low, high = ((margin + sign * effect) * np.sqrt(n) - critical for sign in (-1, 1))
  return np.maximum(0, stats.t.cdf(low, n - 1) + stats.t.cdf(high, n - 1) - 1)


def seeds_needed(n, mean, sd, margin, alpha=ALPHA, examples=0, sampling=0.0):
  """Estimate how many more seeds decide, if the true mean and sd are those of n seeds; None if too many.

  Decided means found to differ, or to differ by less than the margin, whichever comes first. The sd of
  few seeds is itself uncertain, so this is a rough number. examples, sampling: see `paired_test`; more seeds
  do not make these errors smaller.
  """
  resolution, _ = example_errors(mean, examples)
  if not sd and not resolution:
    return 1

  def enough(total):
    spread = np.hypot(max(sd, resolution * total**0.5), sampling * total**0.5)
    power = power_of_difference(total, mean / spread, alpha)
    if margin > abs(mean):
      power = max(power, power_of_equivalence(total, mean / spread, margin / spread, alpha))
    return bool(power >= POWER)

  totals = range(n + 1, MAX_SEEDS + 1)
  first = bisect.bisect_left(totals, True, key=enough)
  return totals[first] - n if first < len(totals) else None


# ------------------------------------------------------------------------------------- verdicts


def judge(comparisons, better='lower', tolerance=0.0, examples=0, exact=False, design=None):
  """Judge one family of comparisons -> a list of verdicts, in order.

  Args:
    comparisons: list of Comparison, or of tuples of its fields; the common seeds are compared. The survivors
      of a side with diverged runs are biased in its favor: the verdict on such an arm is 'diverged', and
      against such a baseline it is 'better' or 'undecided'. With missing values it is 'undecided', with
      reasons 'not comparable', and no difference is computed.
    tolerance: the smallest difference that matters, in units of the metric; 0 = any.
    examples: how many examples the values are shares of; 0 = they are not shares.
    exact: the values are counts, such as parameters: a difference that is equal in two or more seeds is
      certain, where for a score it would leave unknown how much seeds vary.
    design: the sequential.Sequential that decides how many seeds an arm gets; p values and intervals are then
      valid at any number of seeds, and seeds_needed is the number still planned.

  Returns:
    list of {n, seeds, ties (seeds without a difference), difference (arm - base), interval, family_interval
    (95 % for all at once), p, p_holm, p_equivalence, p_sign_flip (of one arm; None where it cannot reach
    5 %), doubt (how sign flips contradict the verdict, or ''), verdict, seeds_needed (more; 0 = decided,
    None = unknown or too many), se_paired, se_unpaired (standard error of the difference, were the seeds
    unrelated), se_examples (of having drawn the examples), pairing_gain (se_unpaired / se_paired; a gain of n
    replaces n^2 times the seeds), diverged, base_diverged, missing, reasons}.
    verdict: 'no difference' (shown to be smaller than the tolerance, though it may differ from 0), 'better',
    'worse', 'undecided', 'diverged' or 'not comparable'; the chance of any false 'better' or 'worse' in the
    family is at most 5 %.
  """
  comparisons = [Comparison(*comparison) for comparison in comparisons]
  results = [_compare(comparison, tolerance, examples, exact, design) for comparison in comparisons]
  tested = [result for result in results if result['p'] is not None]
  for key, adjusted in (('p', 'p_holm'), ('p_equivalence', 'p_equivalence')):
    for result, p in zip(tested, holm([result[key] for result in tested]), strict=True):
      result[adjusted] = p
  for result in tested:  # Bonferroni: it also covers the one that is picked for its effect
    level = ALPHA / len(tested)
    level = sequential.nominal_level(result['n'], level, design) if design else level
    half = half_width(result['n'], result.pop('se'), result['se_examples'], level)
    result['family_interval'] = [result['difference'] - half, result['difference'] + half]
  alpha = ALPHA / max(1, sum(result['p_holm'] > ALPHA for result in tested))
  for result, comparison in zip(results, comparisons, strict=True):
    sd, difference, needed = result.pop('sd'), result['difference'], None
    verdict = _verdict(result, comparison, better)
    biased = comparison.diverged or comparison.base_diverged or comparison.missing
    if sd is not None and not biased:
      estimate = (result['n'], difference, sd, tolerance, alpha, examples, result['se_examples'])
      needed = seeds_needed(*estimate) if verdict == 'undecided' else 0
    if design and verdict == 'undecided' and not biased:
      estimate = (result['n'], difference, sd, tolerance, alpha)
      needed = sequential.seeds_left(*estimate, design) or None
    result |= {'verdict': verdict, 'seeds_needed': needed, 'reasons': list(comparison.reasons)}
    result['doubt'] = _doubt(verdict, result, result.pop('p_equivalence_flip'))
    result.pop('se', None)
    result |= {key: getattr(comparison, key) for key in ('diverged', 'base_diverged', 'missing')}
  return results


def _verdict(result, comparison, better):
  """The verdict on one comparison, from its corrected p values."""
  if comparison.diverged:
    return 'diverged'
  if comparison.reasons:
    return 'not comparable'
  if result['p'] is None or comparison.missing:
    return 'undecided'
  if result['p_equivalence'] <= ALPHA:
    return 'undecided' if comparison.base_diverged else 'no difference'
  if result['p_holm'] > ALPHA:
    return 'undecided'
  if (result['difference'] < 0) == (better == 'lower'):
    return 'better'
  return 'undecided' if comparison.base_diverged else 'worse'


def _doubt(verdict, result, p_equivalence_flip):
  """How sign flips contradict a verdict, as text; '' if they do not, or are too few to tell.

  p values around ALPHA differ by chance: they contradict if one is below it and the other twice as large.
  """
  p, p_flip = result['p'], result['p_sign_flip']
  if verdict == 'no difference':
    p, p_flip = result['p_equivalence'], p_equivalence_flip
  if p_flip is None or verdict not in ('better', 'worse', 'no difference', 'undecided'):
    return ''
  if verdict == 'undecided':  # an error of examples is not one of the seeds' signs
    contradicts = p_flip <= ALPHA < p and p >= 2 * p_flip and not result['se_examples']
  else:
    contradicts = p_flip > ALPHA and p_flip >= 2 * p
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
  """`judge` by the metric, direction and tolerance of a study."""
  exact = comparability.metric_kind(study['metric']) == 'cost'
  design = sequential.Sequential(**study['sequential']) if study.get('sequential') else None
  return judge(comparisons, study['better'], float(study['tolerance']), examples, exact, design)


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
  rounding = TIE * max(abs(value_N).max(), abs(base_N).max())
  if np.ptp(difference_N) <= rounding:
    difference_N[:] = difference_N.mean()  # equal but for rounding
  sampling = None
  if comparison.by_example and set(seeds) <= set(comparison.by_example):
    sampling = example_sampling(np.array([comparison.by_example[seed] for seed in seeds]))
  test = paired_t(difference_N, examples, sampling)
  result |= {key: test[key] for key in ('sd', 'se', 'interval', 'p')} | {'difference': test['mean']}
  result |= {'ties': int((abs(difference_N) <= rounding).sum()), 'se_examples': test['sampling']}
  result['p_equivalence'] = equivalence(difference_N, tolerance, examples, sampling)
  if exact and len(seeds) > 1 and test['mean'] and not np.ptp(difference_N):
    result |= {'p': 0.0, 'interval': [test['mean']] * 2, 'se': 0.0}
    result['p_equivalence'] = float(abs(test['mean']) >= tolerance)
  elif design:
    tests = [
      (paired_t(values_N, examples, sampling), equivalence(values_N, tolerance, examples, sampling))
      for values_N in (difference_N[:n] for n in design.looks_K if n <= len(seeds))
    ]
    result |= dict(zip(('p', 'p_equivalence'), sequential.whole_test(tests, design), strict=True))
    level = sequential.nominal_level(len(seeds), ALPHA, design)
    half = half_width(len(seeds), test['se'] or 0.0, test['sampling'] or 0.0, level)
    result['interval'] = None if result['p'] is None else [test['mean'] - half, test['mean'] + half]
  elif len(seeds) >= MIN_FLIPS and test['p'] is not None:
    result['p_sign_flip'] = sign_flips(difference_N)
    sides = (sign_flips(tolerance + sign * difference_N, one_sided=True) for sign in (-1, 1))
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
