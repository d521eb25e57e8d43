"""Stages of a mixture: which share of the rows each source has, from which step on.

Written as '8000: web=1, math=3; 9500: math=1': sources that a stage leaves out have no rows in it. Steps
are counted in batches. A stage goes on with the rows of a source where the one before it stopped.

Letters: C rows of a cycle of the mixture, N sources.
"""

import bisect
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

CYCLE = 1 << 16  # most rows of a cycle in which every source has its share


class Stage(NamedTuple):
  """The weights of the sources from one batch on."""

  first: int
  weights: dict[str, float]  # of the sources that have rows


def parse(stages: str) -> list[Stage]:
  """'8: a=1, b=3; 9: a=1' -> [Stage(8, {'a': 1.0, 'b': 3.0}), Stage(9, {'a': 1.0})], [] for ''."""
  parsed = []
  for part in stages.split(';') if stages else ():
    first, _, pairs = part.partition(':')
    weights = [pair.partition('=') for pair in pairs.split(',')]
    try:
      stage = Stage(int(first), {name.strip(): float(weight) for name, _, weight in weights})
    except ValueError:
      stage = Stage(-1, {})
    if stage.first < 0 or len(stage.weights) < len(weights):
      raise ValueError(
        f'data.stages={stages!r} has a stage {part.strip()!r}, which is not a step and its weights\n'
        "fix: write stages such as '8000: web=1, math=3; 9500: math=1'"
      )
    parsed.append(stage)
  return parsed


def of_mixture(stages: str, mixture: dict) -> list[Stage]:
  """Return all stages; before the first that is written sources have their own weights."""
  parsed = parse(stages)
  own = Stage(0, {name: source.weight for name, source in sorted(mixture.items()) if source.weight})
  return parsed if parsed and not parsed[0].first else [own, *parsed]


def check(stages: str, mixture: dict) -> None:
  """Raise ValueError for stages that are out of order or have no effect, and for sources without rows."""
  mixture = {name: source for name, source in mixture.items() if source.weight}  # others are not trained on
  plan = of_mixture(stages, mixture)
  subject = f'data.stages={stages!r}'
  if stages and len(mixture) == 1:
    raise ValueError(f'{subject} has no effect on one source\nfix: leave data.stages out, or add a source')
  for stage in plan:
    if unknown := sorted(stage.weights.keys() - mixture.keys()):
      raise ValueError(
        f'{subject} names {unknown[0]!r}\nfix: use sources of data.mixture: {", ".join(mixture)}'
      )
    if not all(0 < weight < math.inf for weight in stage.weights.values()):
      raise ValueError(
        f'{subject} has a weight that is not positive\nfix: leave a source out of a stage for no rows of it'
      )
  for before, stage in zip(plan, plan[1:], strict=False):
    if stage.first <= before.first:
      raise ValueError(f'{subject} has step {stage.first} after {before.first}\nfix: write stages in order')
    if _shares(stage.weights) == _shares(before.weights):
      raise ValueError(
        f'{subject} has no effect at step {stage.first}: the shares are those from step {before.first} on\n'
        'fix: change a weight, or leave the stage out'
      )
  weighted = [name for name, source in mixture.items() if source.weight != 1]
  if stages and weighted and not parse(stages)[0].first:
    raise ValueError(
      f'data.mixture.{weighted[0]}.weight={mixture[weighted[0]].weight} has no effect: {subject} '
      'begins at 0\nfix: leave weight out, or the stage of step 0'
    )
  if unused := [name for name in mixture if not any(name in stage.weights for stage in plan)]:
    raise ValueError(f'{subject} never uses {unused[0]}\nfix: name it in a stage, or remove the source')


def check_end(stages: str, steps: int) -> None:
  """Raise ValueError for a stage that a run of `steps` steps does not reach."""
  late = [stage.first for stage in parse(stages) if stage.first >= steps]
  if late:
    raise ValueError(
      f'data.stages={stages!r} has a stage from step {late[0]} on, which train.steps={steps} does not reach\n'
      'fix: leave that stage out, or raise train.steps'
    )


def _shares(weights: dict[str, float]) -> dict[str, Fraction]:
  exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
  return {name: weight / sum(exact.values()) for name, weight in exact.items()}


def from_batch(plan: list[Stage], first: int) -> list[Stage]:
  """Return the stages of a run whose first batch has this number."""
  due = [stage for stage in plan if stage.first <= first][-1]
  return [due._replace(first=first), *(stage for stage in plan if stage.first > first)]


class Schedule:
  """The order of the rows of a mixture: source and row number of each place."""

  def __init__(
    self, plan: list[Stage], names: tuple[str, ...], batch_size: int, first: int = 0, first_N=None
  ):
    """names: those of the sources by number; others of the plan have no rows.

    first: the first batch, before which the sources have given `first_N` rows; default none.
    """
    self._parts = []
    before_N = np.zeros(len(names), np.int64) if first_N is None else first_N
    for stage in from_batch(plan, first):
      if self._parts:
        before_N = self.counts(stage.first * batch_size)
      numbers = np.asarray([n for n, name in enumerate(names) if name in stage.weights])
      source_C, rank_C, counts = mixture_cycle([stage.weights[names[n]] for n in numbers])
      counts_N = np.zeros(len(names), np.int64)
      counts_N[numbers] = counts
      self._parts.append((stage.first * batch_size, numbers[source_C], rank_C, counts_N, before_N))

  def __getitem__(self, place: int) -> tuple[int, int]:
    start, source_C, rank_C, counts_N, before_N = self._part(place)
    cycle, at = divmod(place - start, len(source_C))
    source = int(source_C[at])
    return source, int(before_N[source]) + cycle * int(counts_N[source]) + int(rank_C[at])

  def counts(self, rows: int) -> np.ndarray:
    """Return the number of rows of each source among the first `rows`, int64 [N]."""
    start, source_C, _, counts_N, before_N = self._part(max(rows - 1, 0))
    cycles, rest = divmod(rows - start, len(source_C))
    return before_N + cycles * counts_N + np.bincount(source_C[:rest], minlength=len(counts_N))

  def _part(self, place: int) -> tuple:
    return self._parts[max(0, bisect.bisect_right(self._parts, place, key=lambda part: part[0]) - 1)]


def mixture_cycle(weights: list[float]) -> tuple[np.ndarray, np.ndarray, list[int]]:
  """Spread the sources evenly over a cycle of C rows in which each has its share.

  Returns the source of each row int32 [C], its rank among the rows of that source int32 [C], and the
  number of rows of each source. Shares are exact if CYCLE rows can express them, else to 1 / CYCLE.
  """
  shares = [Fraction(str(weight)) for weight in weights]
  shares = [share / sum(shares) for share in shares]
  length = min(math.lcm(*(share.denominator for share in shares)), CYCLE)
  counts = [max(1, round(share * length)) for share in shares]
  source_C = np.repeat(np.arange(len(counts)), counts)
  rank_C = np.concatenate([np.arange(count) for count in counts])
  order = np.lexsort((source_C, (rank_C + 0.5) / np.asarray(counts)[source_C]))
  return source_C[order].astype(np.int32), rank_C[order].astype(np.int32), counts


def describe(stages: str, mixture: dict, batch_size: int, steps: int, origin: dict | None = None) -> str:
  """Return one line with the rows of each source in each stage of a run, '' for no stages.

  origin: where a branch begins on other data, as in BatchLoader.state.
  """
  plan, names = of_mixture(stages, mixture), tuple(sorted(mixture))
  if not stages:
    return ''
  origin, parts = origin or {'batch': 0, 'rows': {}}, []
  before_N = np.array([origin['rows'].get(name, 0) for name in names])
  plan = from_batch(plan, origin['batch'])
  schedule = Schedule(plan, names, batch_size, origin['batch'], before_N)
  for stage, end in zip(plan, [*(stage.first for stage in plan[1:]), steps], strict=True):
    rows_N = schedule.counts(end * batch_size) - schedule.counts(stage.first * batch_size)
    rows = ', '.join(f'{count:,} {name}' for name, count in zip(names, rows_N, strict=True) if count)
    parts.append(f'{stage.first} to {end}: {rows}')
  return f'rows in steps {"; ".join(parts)}'
