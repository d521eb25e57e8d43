"""Which combinations of levels a study tries: plans, and an algebra of lists of cells.

A cell is a dict {factor: level}; a factor that it leaves out stays at the baseline's level. A row
of PLANS maps (levels, base, count, seed) to cells: levels are {factor: list of levels or Range} in
the order of the file, base is the baseline's cell. A study may also give its own list, made with
`levels`, `product`, `zip_`, `chain` and `subsample`.

Sources: two-level designs in cyclic form (Plackett & Burman 1946, "The design of optimum
multifactorial experiments", Biometrika 33, p. 323); random search (Bergstra & Bengio 2012).
"""

import itertools
import math
from typing import NamedTuple

import numpy as np


class Range(NamedTuple):
  """A continuous factor, to draw from with plan='random'."""

  low: float
  high: float
  log: bool = False

  def draw(self, rng):
    """A number between low and high, to four digits, so that its name says all of it."""
    share = rng.uniform()
    if self.log:
      value = math.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)
    else:
      value = self.low * (1 - share) + self.high * share
    return rounded(value)


class Proposed(list):
  """Cells that optuna has proposed so far."""


def rounded(value):
  """A number to four digits."""
  return float(f'{value:.4g}')


def uniform(low, high):
  """A number between low and high, every one as likely."""
  return _checked(Range(low, high))


def log_uniform(low, high):
  """A number between low and high > 0, every factor of it as likely."""
  return _checked(Range(low, high, log=True))


def _checked(given):
  if not given.low < given.high or (given.log and given.low <= 0):
    raise ValueError(
      f'low={given.low}, high={given.high} is no range\nfix: use low < high, and low > 0 if log'
    )
  return given


# --------------------------------------------------------------------------------------- algebra


def levels(factor, *names):
  """One cell for each level of a factor."""
  return [{factor: name} for name in names]


def product(*lists):
  """Every cell of the first list with every cell of the second, and so on."""
  return [_merged(cells) for cells in itertools.product(*lists)]


def zip_(*lists):
  """First with first, second with second; ValueError for lists of different lengths."""
  if len({len(cells) for cells in lists}) > 1:
    raise ValueError(
      f'zip_ got lists of {", ".join(str(len(cells)) for cells in lists)} cells\n'
      'fix: give lists of one length, or use product'
    )
  return [_merged(cells) for cells in zip(*lists, strict=True)]


def chain(*lists):
  """One list after the other; a cell that came before is left out."""
  kept = []
  for cell in itertools.chain(*lists):
    if cell not in kept:
      kept.append(cell)
  return kept


def subsample(cells, count, seed=0):
  """So many cells drawn without replacement, in their old order; all if there are no more."""
  if count >= len(cells):
    return list(cells)
  chosen = np.random.default_rng(seed).permutation(len(cells))[:count]
  return [cells[i] for i in sorted(chosen)]


def _merged(cells):
  """Several cells as one; ValueError where they say two things about one factor."""
  merged = {}
  for cell in cells:
    for factor, level in cell.items():
      if merged.setdefault(factor, level) != level:
        raise ValueError(
          f'factor {factor} is both {merged[factor]} and {level} in one cell\n'
          'fix: combine lists of different factors'
        )
  return merged


# ----------------------------------------------------------------------------------------- plans


def others(levels, base):
  """{factor: its levels without the baseline's}."""
  return {f: [level for level in row if level != base[f]] for f, row in listed(levels).items()}


def listed(levels):
  """The levels, all of them lists; ValueError for a range."""
  for factor, row in levels.items():
    if isinstance(row, Range):
      raise ValueError(
        f"factor {factor} is a range, which only a random plan draws from\nfix: set plan='random' "
        'and count, or list levels'
      )
  return levels


def one_at_a_time(levels, base, count, seed):
  """Every other level of every factor, the other factors as in the baseline."""
  return [{f: level} for f, row in others(levels, base).items() for level in row]


def leave_one_out(levels, base, count, seed):
  """Baseline: all factors at the first of their two levels. Each arm sets one to its second."""
  return [{f: second} for f, (_, second) in listed(levels).items()]


def pairwise(levels, base, count, seed):
  """One at a time, then every two factors changed together: what shows their interactions."""
  singles = one_at_a_time(levels, base, count, seed)
  pairs = itertools.combinations(singles, 2)
  return singles + [a | b for a, b in pairs if a.keys() != b.keys()]


def full(levels, base, count, seed):
  """Every combination."""
  return [dict(zip(levels, row, strict=True)) for row in itertools.product(*listed(levels).values())]


def fractional(levels, base, count, seed):
  """Two-level factors in the fewest runs that tell their main effects apart.

  Plackett and Burman's N runs for up to N - 1 factors: any two columns are orthogonal. Main effects
  are mixed up with interactions of two factors: confirm what matters with plan='pairwise'.
  """
  changed = others(levels, base)
  for factor, row in changed.items():
    if len(row) != 1:
      raise ValueError(
        f'factor {factor} has {len(row) + 1} levels, and a fractional plan takes two\n'
        "fix: leave two, or use plan='one_at_a_time' or plan='full'"
      )
  size = next((n for n in FIRST_ROWS if n > len(changed)), 0)
  if not size:
    raise ValueError(
      f'{len(changed)} factors are more than the {max(FIRST_ROWS) - 1} of the largest design\n'
      'fix: split the study in two'
    )
  return [
    {factor: row[0] for (factor, row), high in zip(changed.items(), signs, strict=False) if high}
    for signs in plackett_burman(size)
  ]


def plackett_burman(size):
  """The design of so many runs: `size` rows of size - 1 booleans, the last all False."""
  first = [sign == '+' for sign in FIRST_ROWS[size]]
  shifted = [first[-k:] + first[:-k] for k in range(size - 1)]
  return [*shifted, [False] * (size - 1)]


def random(levels, base, count, seed):
  """`count` draws of all factors; more draws begin with the same ones."""
  if count < 1:
    raise ValueError(f'a random plan with count={count} draws nothing\nfix: set count of the Study')
  rng = np.random.default_rng(seed)
  draw = lambda row: row.draw(rng) if isinstance(row, Range) else row[int(rng.integers(len(row)))]
  return chain([{factor: draw(row) for factor, row in levels.items()} for _ in range(count)])


def optuna(levels, base, count, seed):
  """Not known at once: proposals.py runs such a plan in rounds."""
  raise ValueError(
    'the arms of an optuna plan are proposed while it runs\nfix: use launch.py ablate without --share'
  )


FIRST_ROWS = {
  4: '++-',
  8: '+++-+--',
  12: '++-+++---+-',
  16: '++++-+-++--+---',
  20: '++--++++-+-+----++-',
  24: '+++++-+-++--++--+-+----',
}
PLANS = {
  'one_at_a_time': one_at_a_time,
  'leave_one_out': leave_one_out,
  'pairwise': pairwise,
  'full': full,
  'fractional': fractional,
  'random': random,
  'optuna': optuna,
}
