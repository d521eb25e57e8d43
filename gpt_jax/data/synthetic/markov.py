"""Text of an order-1 Markov chain over made-up words: learnable, endless, equal on every machine."""

from collections.abc import Iterator

import numpy as np

from gpt_jax.data.synthetic.random_bits import scramble

WORDS, CHOICES = 512, 8  # vocabulary and successors of each word
LENGTH = 256  # words of a document


def records(count: int, seed: int = 0) -> Iterator[tuple[str, dict]]:
  """Yield pairs (where, record) of the first `count` documents; a record has `text`."""
  words = [spell(n) for n in range(WORDS)]
  for number in range(count):
    draws = scramble(seed, np.arange(number * LENGTH, (number + 1) * LENGTH)).tolist()
    word, text = draws[0] % WORDS, []
    for draw in draws:
      # The minimum of two draws favors the first successors: 2.73 bits a word, where uniform has 3.
      choice = min(draw % CHOICES, (draw >> 32) % CHOICES)
      word = (word * 31 + choice * 97 + 7) % WORDS
      text.append(words[word])
    yield f'synthetic document {number}', {'text': ' '.join(text) + '.\n'}


def spell(number: int) -> str:
  """Return a pronounceable word for a number below 512 = 8^3; no two numbers share one."""
  onset, vowel, coda = number % 8, number // 8 % 8, number // 64
  return 'bdfklmst'[onset] + ('a', 'e', 'i', 'o', 'u', 'ai', 'ea', 'oo')[vowel] + 'lmnrstxz'[coda]
