"""Sweeps: which combinations of factor levels a study trains.

A cell is a dict {factor: level}; a factor that it leaves out stays at the baseline's level. A study names
a row of SWEEPS, or gives its own list of cells, made with `levels`, `product`, `zip_`, `chain` and
`subsample`. Sources: two-level designs in cyclic form (Plackett & Burman 1946, Biometrika 33, p. 323); random
search (Bergstra & Bengio 2012).
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Range(NamedTuple):
  """A continuous factor, sampled by the random and optuna sweeps; or a setting to tune."""

  low: float
  high: float
  log: bool = False

  def grid(self, count):
    """List numbers from low to high, rounded to four digits."""
    space = np.geomspace if self.log else np.linspace
    return [round_to_4_digits(value) for value in space(self.low, self.high, count).tolist()]

  def draw(self, rng):
    """Draw a number between low and high, rounded to four digits so that the arm's name states it fully."""
    low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
    share = rng.uniform()
    value = low * (1 - share) + high * share
    return round_to_4_digits(math.exp(value) if self.log else value)


class Tuning(NamedTuple):
  """How each arm is tuned: with equally many values, seeds and steps."""

  points: int = 5  # values of a Range
  seeds: int = 2  # seeds of a value; the study is judged on others
  rungs: int = 1  # of successive halving: each trains the better third of the one before, three times as long
  rounds: int = 1  # of `points` values: those after the first are proposed by Optuna from the arm's scores


class Proposed(list):
  """Cells that optuna has proposed so far."""


def round_to_4_digits(value):
  """Round to four significant digits."""
  return float(f'{value:.4g}')


def uniform(low, high, log=False):
  """Sample uniformly between low and high."""
  if not low < high or (log and low <= 0):
    raise ValueError(f'low={low}, high={high} is not a range\nfix: use low < high, and low > 0 if log')
  return Range(low, high, log)


def log_uniform(low, high):
  """Sample log-uniformly between low > 0 and high."""
  return uniform(low, high, log=True)


# ---------------------------------------------------------------------------------- lists of cells


def levels(factor, *names):
  """One cell for each level of a factor."""
  return [{factor: name} for name in names]


def product(*lists):
  """Combine every cell of the first list with every cell of the second, and so on."""
  return [_merge(cells) for cells in itertools.product(*lists)]


def zip_(*lists):
  """Combine first with first, second with second; ValueError for lists of different lengths."""
  if len({len(cells) for cells in lists}) > 1:
    raise ValueError(
      f'zip_ got lists of {", ".join(str(len(cells)) for cells in lists)} cells\n'
      'fix: give lists of one length, or use product'
    )
  return [_merge(cells) for cells in zip(*lists, strict=True)]


def chain(*lists):
  """Concatenate lists of cells without duplicates."""
  unique = []
  for cell in itertools.chain(*lists):
    unique += [cell] if cell not in unique else []
  return unique


def subsample(cells, count, seed=0):
  """Draw `count` cells and keep their order; all if there are no more."""
  if count >= len(cells):
    return list(cells)
  chosen = np.random.default_rng(seed).permutation(len(cells))[:count]
  return [cells[i] for i in sorted(chosen)]


def _merge(cells):
  merged = {}
  for cell in cells:
    for factor, level in cell.items():
      if merged.setdefault(factor, level) != level:
        raise ValueError(
          f'factor {factor} is both {merged[factor]} and {level} in one cell\n'
          'fix: combine lists of different factors'
        )
  return merged


# ----------------------------------------------------------------------------------------- sweeps
#
# (levels, base, count, seed) -> cells. levels: {factor: list of levels or Range} in the order of the
# study; base: the baseline's cell.


def other_levels(levels, base):
  """{factor: its levels without the baseline's}."""
  return {f: [level for level in row if level != base[f]] for f, row in _listed(levels).items()}


def _listed(levels):
  """The levels, if all are lists; ValueError for a range."""
  for factor, row in levels.items():
    if isinstance(row, Range):
      raise ValueError(
        f"factor {factor} is a range, which only a random sweep samples\nfix: set sweep='random' and count, "
        'or list levels'
      )
  return levels


def one_at_a_time(levels, base, count, seed):
  """Change one factor at a time to each of its other levels."""
  return [{f: level} for f, row in other_levels(levels, base).items() for level in row]


def leave_one_out(levels, base, count, seed):
  """Set one factor at a time to its second level; the baseline has all factors at their first."""
  return [{f: second} for f, (_, second) in _listed(levels).items()]


def pairwise(levels, base, count, seed):
  """One at a time, then every two factors together, which shows their interactions."""
  singles = one_at_a_time(levels, base, count, seed)
  pairs = itertools.combinations(singles, 2)
  return singles + [a | b for a, b in pairs if a.keys() != b.keys()]


def full(levels, base, count, seed):
  """Every combination: a full factorial design."""
  return [dict(zip(levels, row, strict=True)) for row in itertools.product(*_listed(levels).values())]


def fractional(levels, base, count, seed):
  """Plackett-Burman design: two-level factors in the fewest runs that separate their main effects.

  N runs for up to N - 1 factors: any two columns are orthogonal. Main effects are confounded with two-factor
  interactions: confirm what matters with sweep='pairwise'.
  """
  others = other_levels(levels, base)
  for factor, row in others.items():
    if len(row) != 1:
      raise ValueError(
        f'factor {factor} has {len(row) + 1} levels, and a fractional sweep takes two\n'
        "fix: leave two, or use sweep='one_at_a_time' or sweep='full'"
      )
  size = next((n for n in PLACKETT_BURMAN_ROWS if n > len(others)), 0)
  if not size:
    raise ValueError(
      f'{len(others)} factors are more than the {max(PLACKETT_BURMAN_ROWS) - 1} of the largest design\n'
      'fix: split the study in two'
    )
  changes = [(factor, other) for factor, [other] in others.items()]
  return [dict(itertools.compress(changes, signs)) for signs in plackett_burman(size)]


def plackett_burman(size):
  """The design of `size` runs: size rows of size - 1 booleans, the last row all False."""
  first = np.array([sign == '+' for sign in PLACKETT_BURMAN_ROWS[size]])
  return [*(np.roll(first, k).tolist() for k in range(size - 1)), [False] * (size - 1)]


def random(levels, base, count, seed):
  """Draw all factors `count` times; a larger count begins with the same draws."""
  if count < 1:
    raise ValueError(f'a random sweep with count={count} draws nothing\nfix: set count of the Study')
  rng = np.random.default_rng(seed)
  draw = lambda row: row.draw(rng) if isinstance(row, Range) else row[int(rng.integers(len(row)))]
  return chain([{factor: draw(row) for factor, row in levels.items()} for _ in range(count)])


def optuna(levels, base, count, seed):
  """Raise ValueError: the cells are proposed in rounds, by execute/proposals.py."""
  raise ValueError(
    'the arms of an optuna sweep are proposed while it runs\n'
    'fix: use launch.py ablate without --share and --register'
  )


PLACKETT_BURMAN_ROWS = {
  4: '++-',
  8: '+++-+--',
  12: '++-+++---+-',
  16: '++++-+-++--+---',
  20: '++--++++-+-+----++-',
  24: '+++++-+-++--++--+-+----',
}


class Sweep(NamedTuple):
  """A row of SWEEPS."""

  cells: Callable  # (levels, base, count, seed) -> cells
  main_effects: str = ''  # how main effects are estimated, a row of main_effects.ESTIMATORS; '' = not crossed
  from_first_levels: bool = False  # the baseline has every factor at its first level
  note: str = ''  # what a reader of the verdicts must know


SWEEPS = {
  'one_at_a_time': Sweep(one_at_a_time),
  'leave_one_out': Sweep(leave_one_out, from_first_levels=True),
  'pairwise': Sweep(pairwise, main_effects='matched'),
  'full': Sweep(full, main_effects='matched'),
  'fractional': Sweep(fractional, main_effects='least_squares'),
  'random': Sweep(random),
  'optuna': Sweep(
    optuna,
    note='Optuna proposed arms by the scores of earlier ones on these seeds, which favors the best of them: '
    'confirm it on other seeds.',
  ),
}
