"""Is a difference real? Intervals, corrections and power for paired differences, on plain arrays.

Letters: N seeds, M examples, X any axes; C comparisons of a family.

Sources: paired t (Student 1908), Holm (1979), the least error of paired shares (McNemar 1947), sign flips
(Fisher 1935), equivalence by two one-sided tests (Schuirmann 1987), the best against the second without a
correction for having picked them (Gutmann and Maymin 1987; Hung and Fithian 2019), power of the t-tests by
the noncentral t (Cohen 1988; for equivalence the approximation of Phillips 1990).
"""

import bisect

import numpy as np

ALPHA = 0.05  # family-wise chance of a false verdict
POWER = 0.8  # power that 'needs n more seeds' is computed for
MAX_SEEDS = 1000  # beyond this no number of seeds is named
TIE = 1e-12  # relative spread of differences that rounding alone makes
LEVELS = 2000  # of a table from 1 to LEAST_P, from which a p value is read
LEAST_P = 1e-12  # in that table
EXACT_FLIPS = 16  # seeds up to which all sign flips are tried, beyond it as many random ones


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
