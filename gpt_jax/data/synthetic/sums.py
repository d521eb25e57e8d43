"""Sums of two numbers of two digits: questions whose one right answer a rule knows."""

import random
import zlib
from collections.abc import Iterator


def records(count: int, seed: int = 0) -> Iterator[tuple[str, dict]]:
  """Yield pairs (where, {question, answer, part}) of so many sums.

  part: 0 to 9, the same for equal questions, to keep splits apart.
  """
  for number in range(count):
    rng = random.Random(f'{seed} {number}')
    first, second = rng.randint(10, 99), rng.randint(10, 99)
    question = f'{first}+{second}'
    part = zlib.crc32(question.encode()) % 10
    yield f'sum {number}', {'question': question, 'answer': str(first + second), 'part': part}
