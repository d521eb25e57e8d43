"""Sequential tests: judge after every seed, at an error rate that holds whenever one stops.

The p value of a look at n seeds is divided by its weight (n / most)^SHAPE. The smallest quotient so far is
the test statistic. Its null distribution is simulated once, with t-tests of normal differences at every look:
exact for few seeds, where the boundaries of Brownian motion are not (Lan-DeMets spending gives 5.9 % false
verdicts from 3 to 20 seeds). The sequential p value is valid at any look and under any rule of stopping
(Johari et al. 2022, Operations Research 70), so that Holm's correction applies to it as to one of a fixed
number of seeds.

A study of a fixed number of seeds that gets more after it was judged (`Extended`) has spent its error on the
planned ones. All later looks together add LATER of it, at any number of seeds and under any rule of adding.
Letters: D draws, K looks, N seeds.
"""

import functools
from typing import NamedTuple

import numpy as np

SHAPE = 1.5  # of the weights: 0 tests early looks as late ones, 2 keeps the error for the last ones
DRAWS = 100_000
GRID = np.geomspace(1e-9, 1.0, 300)  # of p values
TAIL = 100 / DRAWS  # p value below which too few draws remain
FUTILE = 0.1  # chance of a decision below which an arm gets no more seeds
LATER = 0.1  # error of all looks after the planned one, as a share of that one's
OPTIMISM = 1.5  # standard errors by which that chance is computed in favor of a decision


class Sequential(NamedTuple):
  """Seeds of a study that is judged after each: from the first look to the most that an arm may get."""

  first: int = 3
  most: int = 20

  @property
  def looks_K(self):
    """Numbers of seeds at which arms are judged."""
    return np.arange(self.first, self.most + 1)

  @property
  def weights_K(self):
    """Weight of each look."""
    return (self.looks_K / self.most) ** SHAPE


class Extended(NamedTuple):
  """Seeds of a study that was planned for a fixed number of them, and got more."""

  planned: int

  @property
  def later(self):
    """The Sequential of the looks after the planned one."""
    return Sequential(self.planned + 1, 4 * self.planned + 20)

  @property
  def looks_K(self):
    """Numbers of seeds at which arms may be judged."""
    return np.arange(self.planned, self.later.most + 1)


def p_values(difference_DN, design):
  """Two-sided p values of paired t-tests at each look [D, K], of N differences in the order of seeds."""
  from scipy import special

  n_N = np.arange(1, difference_DN.shape[1] + 1)
  mean_DN = np.cumsum(difference_DN, axis=1) / n_N
  squares_DN = np.cumsum(difference_DN**2, axis=1) - n_N * mean_DN**2
  p_DK = []
  for n in design.looks_K[design.looks_K <= len(n_N)]:
    t_D = np.abs(mean_DN[:, n - 1]) / np.sqrt(squares_DN[:, n - 1] / (n * (n - 1)))
    bounds = special.stdtrit(n - 1, 1 - GRID / 2)  # falls as the p value rises
    p_DK.append(np.exp(np.interp(-t_D, -bounds, np.log(GRID))))
  return np.stack(p_DK, axis=1)


@functools.cache
def null_quotients(design):
  """The smallest quotient of p value and weight in DRAWS comparisons without an effect, sorted."""
  difference_DN = np.random.default_rng(0).normal(size=(DRAWS, design.most))
  return np.sort((p_values(difference_DN, design) / design.weights_K).min(axis=1))


def sequential_p(p_K, design):
  """Return one p value of the whole test for those of its first looks: [..., K] -> [...]."""
  p_K = np.asarray(p_K, float)
  if isinstance(design, Extended):
    planned, later_K = p_K[..., 0], p_K[..., 1:]
    if not later_K.shape[-1]:
      return planned
    return np.minimum(planned, np.minimum(1.0, sequential_p(later_K, design.later) / LATER))
  quotient = (p_K / design.weights_K[: p_K.shape[-1]]).min(axis=-1)
  simulated = np.searchsorted(null_quotients(design), quotient, side='right') / DRAWS
  spent = quotient * design.weights_K.sum()  # an upper bound
  return np.minimum(1.0, np.where(simulated < TAIL, np.minimum(spent, TAIL), simulated))


def whole_test(tests, design):
  """Return (p value, p value of equivalence) of the whole test; None before its first look.

  tests: (inference.paired_t, one-sided p value of equivalence) at each look.
  """
  if not tests or tests[-1][0]['p'] is None:
    return None, None
  mean, equal_now = tests[-1][0]['mean'], tests[-1][1]
  known = lambda p: 1.0 if p is None else p
  # An earlier look is no evidence for what the mean of all seeds contradicts.
  p_K = [known(t['p']) if t['mean'] * mean > 0 else 1.0 for t, _ in tests]
  one_sided_K = [known(equal) if known(equal_now) < 0.5 else 1.0 for _, equal in tests]
  doubled_K = np.minimum(1.0, 2 * np.array(one_sided_K))
  return float(sequential_p(p_K, design)), float(sequential_p(doubled_K, design)) / 2


def nominal_level(n, alpha, design):
  """The two-sided level of a t-test of n seeds, and of their interval, in a test at alpha."""
  if isinstance(design, Extended):
    if n <= design.planned:
      return alpha
    return nominal_level(min(n, design.later.most), LATER * alpha, design.later)
  quotient = alpha / design.weights_K.sum()
  if alpha > TAIL:
    quotient = float(np.quantile(null_quotients(design), alpha))
  return min(1.0, quotient * (n / design.most) ** SHAPE)


def seeds_left(n, mean, sd, margin, alpha, design):
  """How many more seeds an undecided arm may get; 0 if they would hardly decide.

  The chance is that of the last look, were the true difference OPTIMISM standard errors closer to a decision
  than the mean of n seeds: a decision to differ, at alpha, or to differ by less than the margin.
  """
  from scipy import stats

  left = design.most - n
  if left <= 0 or n < design.first or not sd:
    return max(left, 0)
  level, error = nominal_level(design.most, alpha, design), sd / design.most**0.5
  drift = OPTIMISM * sd / n**0.5
  last = lambda true: (n * abs(mean) + left * true) / design.most  # the expected mean of all seeds
  scale = sd * left**0.5 / design.most
  differs = stats.norm.sf((stats.t.isf(level / 2, design.most - 1) * error - last(abs(mean) + drift)) / scale)
  least = max(abs(mean) - drift, 0.0)
  equal = stats.norm.cdf((margin - stats.t.isf(level, design.most - 1) * error - last(least)) / scale)
  return left if max(differs, equal) >= FUTILE else 0
