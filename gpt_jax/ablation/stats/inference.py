"""Is a difference real? Intervals, corrections and power for paired differences, on plain arrays.

An arm and the baseline are run with the same seeds; the differences seed by seed are judged, so that
effects of the seed on both cancel. Letters: N seeds. Sources: paired t (Student 1908), BCa bootstrap (Efron
1987), Holm (1979), equivalence by two one-sided tests (Schuirmann 1987), power of the t-tests by the
noncentral t (Cohen 1988; for equivalence the approximation of Phillips 1990).
"""

import bisect

import numpy as np

ALPHA = 0.05  # family-wise chance of a false verdict
POWER = 0.8  # power that 'needs n more seeds' is computed for
MAX_SEEDS = 1000  # beyond this no number of seeds is named


def paired_t(difference_N):
  """Two-sided paired t-test of N differences -> {n, mean, sd, se, interval (95 %), p}.

  With one seed sd, se, interval and p are None. Without any spread p is 0 or 1.
  """
  from scipy import stats

  difference_N = np.asarray(difference_N, float)
  n, mean = len(difference_N), float(difference_N.mean())
  if n < 2:
    return {'n': n, 'mean': mean, 'sd': None, 'se': None, 'interval': None, 'p': None}
  sd = float(difference_N.std(ddof=1))
  se = sd / n**0.5
  half = float(stats.t.isf(ALPHA / 2, n - 1)) * se
  p = float(2 * stats.t.sf(abs(mean) / se, n - 1)) if se else float(mean == 0)
  return {'n': n, 'mean': mean, 'sd': sd, 'se': se, 'interval': [mean - half, mean + half], 'p': p}


def bootstrap(difference_N, draws=2000, seed=0):
  """BCa bootstrap interval of the mean at 95 %, or None for fewer than three seeds.

  With about five seeds it is too narrow, so verdicts use the t interval.
  """
  from scipy import stats

  difference_N = np.asarray(difference_N, float)
  if len(difference_N) < 3:
    return None
  if difference_N.std() < 1e-12 * max(1.0, abs(difference_N.mean())):
    return [float(difference_N.mean())] * 2
  result = stats.bootstrap(
    (difference_N,), np.mean, n_resamples=draws, method='BCa', rng=np.random.default_rng(seed)
  )
  return [float(bound) for bound in result.confidence_interval]


def holm(p_values):
  """Adjust the p values of one family by Holm's method, in the same order: those <= ALPHA are rejected."""
  p_values = np.asarray(p_values, float)
  order = np.argsort(p_values, kind='stable')
  factors = np.arange(len(p_values), 0, -1)
  adjusted = np.empty_like(p_values)
  adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
  return adjusted.tolist()


def equivalence(difference_N, margin):
  """P value of 'the mean differs by more than margin', by two one-sided t-tests; None for one seed."""
  from scipy import stats

  test = paired_t(difference_N)
  if test['se'] is None:
    return None
  distance = margin - abs(test['mean'])
  if not test['se']:
    return float(distance < 0)
  return float(stats.t.sf(distance / test['se'], test['n'] - 1))


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


def seeds_needed(n, mean, sd, margin, alpha=ALPHA):
  """Estimate how many more seeds decide, if the true mean and sd are those of n seeds; None if too many.

  Decided means found to differ, or to differ by less than the margin, whichever comes first. The sd of
  few seeds is itself uncertain, so this is a rough number.
  """
  if not sd:
    return 1

  def enough(total):
    power = power_of_difference(total, mean / sd, alpha)
    if margin > abs(mean):
      power = max(power, power_of_equivalence(total, mean / sd, margin / sd, alpha))
    return bool(power >= POWER)

  totals = range(n + 1, MAX_SEEDS + 1)
  first = bisect.bisect_left(totals, True, key=enough)
  return totals[first] - n if first < len(totals) else None


# ------------------------------------------------------------------------------------- verdicts


def judge(comparisons, better='lower', tolerance=0.0):
  """Judge one family of comparisons -> a list of verdicts, in order.

  Args:
    comparisons: list of (values, base_values, diverged, base_diverged): values as {seed: number}, of which
      the common seeds are compared, and how many runs of the arm and of the baseline diverged. The
      survivors of a side with diverged runs are biased in its favor: the verdict on such an arm is
      'diverged', and against such a baseline it is 'better' or 'undecided'.
    tolerance: the smallest difference that matters, in units of the metric; 0 = any.

  Returns:
    list of {n, seeds, difference (arm - base), interval, bootstrap, p, p_holm, p_equivalence, verdict,
    seeds_needed (more; 0 = decided, None = unknown or too many), se_paired, se_unpaired (standard error of
    the difference, were the seeds unrelated), pairing_gain (their ratio; a gain of n replaces n^2 times the
    seeds), diverged, base_diverged}. verdict: 'no difference' (shown to be smaller than the tolerance, though
    it may differ from 0), 'better', 'worse', 'undecided' or 'diverged'; the chance of any false 'better' or
    'worse' in the family is at most 5 %.
  """
  results = [_compare(values, base_values, tolerance) for values, base_values, _, _ in comparisons]
  tested = [result for result in results if result['p'] is not None]
  for key, adjusted in (('p', 'p_holm'), ('p_equivalence', 'p_equivalence')):
    for result, p in zip(tested, holm([result[key] for result in tested]), strict=True):
      result[adjusted] = p
  alpha = ALPHA / max(1, sum(result['p_holm'] > ALPHA for result in tested))
  for result, (_, _, lost, base_lost) in zip(results, comparisons, strict=True):
    if lost:
      verdict = 'diverged'
    elif result['p'] is not None and result['p_equivalence'] <= ALPHA:
      verdict = 'undecided' if base_lost else 'no difference'
    elif result['p'] is None or result['p_holm'] > ALPHA:
      verdict = 'undecided'
    elif (result['difference'] < 0) == (better == 'lower'):
      verdict = 'better'
    else:
      verdict = 'undecided' if base_lost else 'worse'
    sd, needed = result.pop('sd'), None
    if result['p'] is not None and not lost and not base_lost:
      estimate = (result['n'], result['difference'], sd, tolerance, alpha)
      needed = seeds_needed(*estimate) if verdict == 'undecided' else 0
    result |= {'verdict': verdict, 'diverged': lost, 'base_diverged': base_lost, 'seeds_needed': needed}
  return results


def judge_arms(study, pairs, values, diverged):
  """Judge pairs of names (arm, its baseline) as one family; see `judge`.

  values: {arm: {seed: value}}. diverged: {arm: how many of its runs diverged}.
  """
  comparisons = [
    (*(values.get(name, {}) for name in pair), *(diverged.get(name, 0) for name in pair)) for pair in pairs
  ]
  return judge(comparisons, study['better'], float(study['tolerance']))


def _compare(values, base_values, tolerance):
  """Compare an arm and its baseline on their common seeds, without correction or verdict."""
  seeds = sorted(set(values) & set(base_values))
  keys = ('difference', 'sd', 'interval', 'bootstrap', 'p', 'p_holm', 'p_equivalence')
  result = {'n': len(seeds), 'seeds': seeds}
  result |= dict.fromkeys((*keys, 'se_paired', 'se_unpaired', 'pairing_gain'))
  if not seeds:
    return result
  value_N, base_N = (np.array([side[seed] for seed in seeds], float) for side in (values, base_values))
  test = paired_t(value_N - base_N)
  result |= {key: test[key] for key in ('sd', 'interval', 'p')} | {'difference': test['mean']}
  result['bootstrap'] = bootstrap(value_N - base_N)
  result['p_equivalence'] = equivalence(value_N - base_N, tolerance)
  if test['se'] is not None:
    unpaired = float(np.sqrt((value_N.var(ddof=1) + base_N.var(ddof=1)) / len(seeds)))
    gain = unpaired / test['se'] if test['se'] else None
    result |= {'se_paired': test['se'], 'se_unpaired': unpaired, 'pairing_gain': gain}
  return result
