"""Is a difference real? Intervals, corrections and power for paired differences, on plain arrays.

An arm and the baseline are run with the same seeds; the differences seed by seed are judged, so that
effects of the seed on both cancel. Letters: N seeds. Sources: paired t (Student 1908), Holm (1979), the least
error of paired shares (McNemar 1947), equivalence by two one-sided tests (Schuirmann 1987), power of the
t-tests by the noncentral t (Cohen 1988; for equivalence the approximation of Phillips 1990).
"""

import bisect
from typing import NamedTuple

import numpy as np

from gpt_jax.ablation.stats import comparability

ALPHA = 0.05  # family-wise chance of a false verdict
POWER = 0.8  # power that 'needs n more seeds' is computed for
MAX_SEEDS = 1000  # beyond this no number of seeds is named
TIE = 1e-12  # relative spread of differences that rounding alone makes


class Comparison(NamedTuple):
  """An arm and its baseline, before they are judged."""

  values: dict  # {seed: number} of the arm
  base_values: dict  # of the baseline
  diverged: int = 0  # runs of the arm that diverged
  base_diverged: int = 0  # of the baseline
  missing: int = 0  # seeds whose run is done on both sides, without a finite value on one
  reasons: tuple = ()  # why the values do not compare, as texts; () if they do


def paired_t(difference_N, examples=0):
  """Two-sided paired t-test of N differences -> {n, mean, sd, se, interval (95 %), p}.

  examples: how many examples the compared values are shares of; 0 = they are not shares. With one seed sd,
  se, interval and p are None. Equal differences do not show how much seeds vary: other values than shares,
  or two seeds, then have no interval and no p, unless all are 0.
  """
  from scipy import stats

  difference_N = np.asarray(difference_N, float)
  n, mean = len(difference_N), float(difference_N.mean())
  unknown = {'n': n, 'mean': mean, 'sd': None, 'se': None, 'interval': None, 'p': None}
  if n < 2:
    return unknown
  has_spread = bool(np.ptp(difference_N))
  sd = float(difference_N.std(ddof=1)) if has_spread else 0.0
  if mean and not has_spread and (n == 2 or not examples):
    return unknown | {'sd': sd}
  resolution, sampling = example_errors(mean, examples)
  se = max(sd / n**0.5, resolution)
  half = half_width(n, se, sampling)
  p = float(2 * stats.t.sf(abs(mean) / se, n - 1)) if se else 1.0
  p = max(p, float(2 * stats.norm.sf(abs(mean) / sampling)) if sampling else 0.0)
  return {'n': n, 'mean': mean, 'sd': sd, 'se': se, 'interval': [mean - half, mean + half], 'p': p}


def half_width(n, se, sampling=0.0, alpha=ALPHA):
  """Half of the interval at 1 - alpha of a mean over n seeds; sampling: see example_errors."""
  from scipy import stats

  return max(float(stats.t.isf(alpha / 2, n - 1)) * se, float(stats.norm.isf(alpha / 2)) * sampling)


def example_errors(difference, examples):
  """The least errors of a difference between two shares of the same examples: (resolution, sampling).

  One example is the resolution. Shares that differ by d differ in at least d * examples of them; the error of
  having drawn these examples (McNemar) is the same for every seed. (0, 0) without examples.
  """
  if not examples:
    return 0.0, 0.0
  d = min(1.0, abs(difference))
  return 1 / examples, (d * (1 - d) / examples) ** 0.5


def holm(p_values):
  """Adjust the p values of one family by Holm's method, in the same order: those <= ALPHA are rejected."""
  p_values = np.asarray(p_values, float)
  order = np.argsort(p_values, kind='stable')
  factors = np.arange(len(p_values), 0, -1)
  adjusted = np.empty_like(p_values)
  adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
  return adjusted.tolist()


def equivalence(difference_N, margin, examples=0):
  """P value of 'the mean differs by more than margin', by two one-sided t-tests; None if unknown.

  examples: see `paired_t`.
  """
  from scipy import stats

  test = paired_t(difference_N, examples)
  distance, n = margin - abs(test['mean']), test['n']
  if test['se'] is None:
    return 1.0 if n > 1 and distance < 0 else None
  if not test['se']:
    return float(distance < 0)
  _, sampling = example_errors(test['mean'], examples)
  p = float(stats.t.sf(distance / test['se'], n - 1))
  return max(p, float(stats.norm.sf(distance / sampling)) if sampling else 0.0)


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


def seeds_needed(n, mean, sd, margin, alpha=ALPHA, examples=0):
  """Estimate how many more seeds decide, if the true mean and sd are those of n seeds; None if too many.

  Decided means found to differ, or to differ by less than the margin, whichever comes first. The sd of
  few seeds is itself uncertain, so this is a rough number.
  """
  least = max(example_errors(mean, examples))
  if not sd and not least:
    return 1

  def enough(total):
    spread = max(sd, least * total**0.5)
    power = power_of_difference(total, mean / spread, alpha)
    if margin > abs(mean):
      power = max(power, power_of_equivalence(total, mean / spread, margin / spread, alpha))
    return bool(power >= POWER)

  totals = range(n + 1, MAX_SEEDS + 1)
  first = bisect.bisect_left(totals, True, key=enough)
  return totals[first] - n if first < len(totals) else None


# ------------------------------------------------------------------------------------- verdicts


def judge(comparisons, better='lower', tolerance=0.0, examples=0, exact=False):
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

  Returns:
    list of {n, seeds, difference (arm - base), interval, family_interval (95 % for all at once), p, p_holm,
    p_equivalence, verdict, seeds_needed (more; 0 = decided, None = unknown or too many), se_paired,
    se_unpaired (standard error of the difference, were the seeds unrelated), pairing_gain (their ratio; a
    gain of n replaces n^2 times the seeds), diverged, base_diverged, missing, reasons}.
    verdict: 'no difference' (shown to be smaller than the tolerance, though it may differ from 0), 'better',
    'worse', 'undecided', 'diverged' or 'not comparable'; the chance of any false 'better' or 'worse' in the
    family is at most 5 %.
  """
  comparisons = [Comparison(*comparison) for comparison in comparisons]
  results = [_compare(comparison, tolerance, examples, exact) for comparison in comparisons]
  tested = [result for result in results if result['p'] is not None]
  for key, adjusted in (('p', 'p_holm'), ('p_equivalence', 'p_equivalence')):
    for result, p in zip(tested, holm([result[key] for result in tested]), strict=True):
      result[adjusted] = p
  for result in tested:  # Bonferroni: it also covers the one that is picked for its effect
    resolution, sampling = example_errors(result['difference'], examples)
    se = max(result['se_paired'], resolution)
    half = half_width(result['n'], se, sampling, ALPHA / len(tested))
    result['family_interval'] = [result['difference'] - half, result['difference'] + half]
  alpha = ALPHA / max(1, sum(result['p_holm'] > ALPHA for result in tested))
  for result, comparison in zip(results, comparisons, strict=True):
    sd, difference, needed = result.pop('sd'), result['difference'], None
    verdict = _verdict(result, comparison, better)
    biased = comparison.diverged or comparison.base_diverged or comparison.missing
    if sd is not None and not biased:
      estimate = (result['n'], difference, sd, tolerance, alpha, examples)
      needed = seeds_needed(*estimate) if verdict == 'undecided' else 0
    result |= {'verdict': verdict, 'seeds_needed': needed, 'reasons': list(comparison.reasons)}
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


def judge_arms(study, pairs, scores):
  """Judge pairs of names (arm, its baseline) as one family; see `judge`."""
  comparisons = [scores.comparison(study, name, base) for name, base in pairs]
  exact = comparability.metric_kind(study['metric']) == 'cost'
  return judge(comparisons, study['better'], float(study['tolerance']), scores.examples, exact)


def _compare(comparison, tolerance, examples, exact):
  """Compare an arm and its baseline on their common seeds, without correction or verdict."""
  values, base_values = comparison.values, comparison.base_values
  seeds = [] if comparison.reasons else sorted(set(values) & set(base_values))
  keys = ('difference', 'sd', 'interval', 'family_interval', 'p', 'p_holm', 'p_equivalence')
  result = {'n': len(seeds), 'seeds': seeds}
  result |= dict.fromkeys((*keys, 'se_paired', 'se_unpaired', 'pairing_gain'))
  if not seeds:
    return result
  value_N, base_N = (np.array([side[seed] for seed in seeds], float) for side in (values, base_values))
  difference_N = value_N - base_N
  if np.ptp(difference_N) <= TIE * max(abs(value_N).max(), abs(base_N).max()):
    difference_N[:] = difference_N.mean()  # equal but for rounding
  test = paired_t(difference_N, examples)
  result |= {key: test[key] for key in ('sd', 'interval', 'p')} | {'difference': test['mean']}
  result['p_equivalence'] = equivalence(difference_N, tolerance, examples)
  if exact and len(seeds) > 1 and test['mean'] and not np.ptp(difference_N):
    result |= {'p': 0.0, 'interval': [test['mean']] * 2}
    result['p_equivalence'] = float(abs(test['mean']) >= tolerance)
  if test['sd'] is not None:
    paired = test['sd'] / len(seeds) ** 0.5
    unpaired = float(np.sqrt((value_N.var(ddof=1) + base_N.var(ddof=1)) / len(seeds)))
    gain = unpaired / paired if paired else None
    result |= {'se_paired': paired, 'se_unpaired': unpaired, 'pairing_gain': gain}
  return result
