"""How much noise a guarantee needs: privacy loss distributions of Poisson-sampled Gaussian mechanisms.

A step releases the sum of the clipped gradients of the sampled units plus Gaussian noise, of standard
deviation noise_multiplier * clip. Neighbors differ by one unit that is added or removed. dp-accounting
composes the steps (PLD, Koskela et al. 2020; Doroshenko et al. 2022), pessimistically rounded.

A batch has a fixed number of slots. More units than slots change the mechanism with probability
`overflow`, which costs (1 + e^epsilon) * overflow of delta.
"""

import functools
import math
from typing import NamedTuple

SHARE = 1e-3  # of delta, for batches of more units than slots
TOLERANCE = 1e-3  # relative, of the noise multiplier


class Plan(NamedTuple):
  """A mechanism that keeps a guarantee."""

  noise_multiplier: float  # standard deviation of the noise / clip
  epsilon: float  # spent after all steps, at most the target
  delta: float  # the target; slots take SHARE of it


def slots(expected, steps, epsilon, delta, multiple=1):
  """Return a number of slots, a multiple of `multiple`, so large that SHARE of delta covers an overflow.

  expected: mean number of units in a batch. Their number is binomial, whose tail above the mean is below that
  of Poisson's distribution (Anderson & Samuels 1967).
  """
  from scipy import stats

  allowed = SHARE * delta / (1 + math.exp(min(epsilon, 700.0))) / steps
  least = max(int(stats.poisson.isf(allowed, expected)) + 1, expected + 1)
  while stats.poisson.sf(least, expected) > allowed:
    least += 1
  return -(-least // multiple) * multiple


def epsilon(noise_multiplier, rate, steps, delta):
  """Return the epsilon of `steps` steps at `delta`; rate: probability of a unit to be in a batch."""
  return _distribution(noise_multiplier, rate, steps).get_epsilon_for_delta(delta)


def _distribution(noise_multiplier, rate, steps):
  pld = _library().pld.privacy_loss_distribution
  step = pld.from_gaussian_mechanism(noise_multiplier, sampling_prob=rate)
  return step.self_compose(steps)


@functools.cache
def plan(target, delta, rate, steps):
  """Return the Plan with the least noise, up to TOLERANCE, that spends at most (target, delta)."""
  spent = functools.cache(lambda noise: epsilon(noise, rate, steps, delta * (1 - SHARE)))
  low, high = 0.0, 1.0
  while spent(high) > target:
    low, high = high, 2 * high
  while high - low > TOLERANCE * high:
    middle = (low + high) / 2
    low, high = (low, middle) if middle > 0.05 and spent(middle) <= target else (middle, high)
  return Plan(high, spent(high), delta)


def version():
  """Return the version of dp-accounting."""
  import importlib.metadata

  _library()
  return importlib.metadata.version('dp-accounting')


def _library():
  try:
    import dp_accounting
  except ImportError:
    raise ValueError("privacy.epsilon needs dp-accounting\nfix: pip install -e '.[privacy]'") from None
  return dp_accounting
