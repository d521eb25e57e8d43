"""Canaries: made-up secrets in training data, by which memorization and privacy are measured.

A secret is planted with probability 1/2, by a fair coin of its own, and then occurs `repeats` times. Those
that are not planted are the reference: the same distribution, never trained on. Every canary is a function
of its number and the seed alone.

Sources: canaries in a template with random digits (Carlini et al. 2019, The Secret Sharer, section 4.1);
independent coins (Steinke et al. 2023, Privacy Auditing with One (1) Training Run, algorithm 1).
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from gpt_jax.data.synthetic import markov

NAMES = markov.WORDS**2  # of two words
MAX_DIGITS = 18


class Canary(NamedTuple):
  """A secret."""

  name: str  # whose secret it is; no two canaries share one
  digits: str
  repeats: int  # times that it occurs where it is planted
  planted: bool


def draw(count: int, seed: int, repeats: tuple[int, ...], digits: int) -> list[Canary]:
  """Return `count` canaries for each number of repeats, planted or not."""
  numbers = range(count * len(repeats))
  return [_canary(number, seed, repeats[number % len(repeats)], digits) for number in numbers]


def _canary(number: int, seed: int, repeats: int, digits: int) -> Canary:
  rng = random.Random(f'canary {seed} {number}')
  first, last = divmod((40503 * number + 7919 * seed) % NAMES, markov.WORDS)  # 40503 is odd: no name twice
  name = f'{markov.spell(first)} {markov.spell(last)}'.title()
  return Canary(name, f'{rng.randrange(10**digits):0{digits}}', repeats, rng.random() < 0.5)


def fields(name: str, digits: str) -> dict:
  """Return the record of a secret, true or not: {name, digits, user, text}; its copies are of one user."""
  return {'name': name, 'digits': digits, 'user': name, 'text': f'The code of {name} is {digits}.'}


def records(count: int, seed: int, repeats: tuple[int, ...], digits: int) -> Iterator[tuple[str, dict]]:
  """Yield pairs (where, record) of each occurrence of what is planted, in random order."""
  canaries = enumerate(draw(count, seed, repeats, digits))
  copies = [(n, k, canary) for n, canary in canaries if canary.planted for k in range(canary.repeats)]
  random.Random(f'canaries {seed}').shuffle(copies)
  for n, k, canary in copies:
    yield f'canary {n} copy {k}', fields(canary.name, canary.digits)


def check(count: int, repeats: tuple[int, ...], digits: int) -> None:
  """Raise ValueError for numbers of secrets, repeats or digits that cannot be drawn."""
  if not repeats or min(repeats) < 1 or len(set(repeats)) < len(repeats):
    raise ValueError(
      f'repeats={repeats} are not different numbers of occurrences\nfix: use such as (1, 4, 16, 64)'
    )
  if not 1 <= digits <= MAX_DIGITS:
    raise ValueError(f'digits={digits} is not in 1 to {MAX_DIGITS}\nfix: use 4 for an exact rank')
  if count * len(repeats) > NAMES:
    raise ValueError(
      f'documents={count} canaries for each of {len(repeats)} repeats need more than {NAMES:,} names\n'
      f'fix: use at most {NAMES // len(repeats)}'
    )
