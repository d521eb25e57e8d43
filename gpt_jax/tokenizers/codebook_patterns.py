"""The order of the codes of a sound with several codebooks, and the grammar that it gives.

A pattern orders the cells (position, codebook) of a sound, one token a cell: flat goes position by position;
delay puts codebook q of a position q steps later, so that a step holds codebook 0 of one position, 1 of the
position before, and so on. The number of positions is known when the first codebook ends: what follows, the
tail, has one legal order.

Letters: P positions, Q codebooks, S states of a sound: the number of its codes so far, then of its tails.

Source: Copet et al. 2023 (MusicGen, section 2.2).
"""

from typing import NamedTuple

import numpy as np


def flat(positions: int, books: int) -> np.ndarray:
  """Return the cells (position, codebook) in order, int [P Q, 2]: p0q0 p0q1 .. p1q0 .."""
  return np.stack(np.divmod(np.arange(positions * books), books), 1)


def delay(positions: int, books: int) -> np.ndarray:
  """Return the cells by step, position + codebook: p0q0, p1q0 p0q1, p2q0 p1q1 p0q2, ..; int [P Q, 2]."""
  cells = flat(positions, books)
  return cells[np.lexsort((cells[:, 1], cells.sum(1)))]


PATTERNS = {'flat': flat, 'delay': delay}


class SoundTable(NamedTuple):
  """The states of a sound. At a choice a new position may begin, or the tail, else the end marker."""

  book_S: np.ndarray  # int32; the codebook of the next code
  exit_S: np.ndarray  # int32; the state after the first code of the tail instead
  least_S: np.ndarray  # int32; fewest codes to come
  most_S: np.ndarray  # int32; most codes to come
  row_S: np.ndarray  # int32; next: q = codebook q, Q = a choice, Q + 1 = the tail or the end, Q + 2 = the end


def tail_book(pattern: str, books: int) -> int:
  """Return the codebook with which a tail begins, -1 where sounds of the pattern have no tail."""
  cells = PATTERNS[pattern](books + 1, books)
  begin = _begins(cells)[1]
  rest = PATTERNS[pattern](1, books)[begin:]
  return int(rest[0, 1]) if len(rest) else -1


def most_after_begin(pattern: str, books: int) -> int:
  """Return the most codes from the beginning of a last position to the end, over all lengths."""
  begins = _begins(PATTERNS[pattern](books + 1, books))
  return max((n + 1) * books - int(begin) for n, begin in enumerate(begins[:books]))


def sound_table(pattern: str, positions: int, books: int) -> SoundTable:
  """Return the states of sounds of 1 to `positions` positions."""
  head = PATTERNS[pattern](positions + 1, books)
  begins = _begins(head)
  head = head[: begins[positions]]
  started = np.cumsum(head[:, 1] == 0)
  count = np.arange(len(head) + 1)
  least = np.maximum(np.concatenate([[0], started]), 1) * books - count
  states = [np.append(head[:, 1], 0), np.zeros_like(count), least, positions * books - count]
  rows = np.append(head[:, 1], books + 1)
  rows[begins[1:positions]] = books
  states, end = [*states, rows], len(count)
  for n in range(1, min(books, positions) + 1):  # longer sounds have the tail of `books` positions
    tail = PATTERNS[pattern](n, books)[begins[n] :, 1]
    if not len(tail):
      continue
    choices = begins[n:] if n == books else begins[n : n + 1]
    states[1][choices[choices < len(states[1])]] = end
    left = np.arange(len(tail) - 1, -1, -1)
    following = np.append(tail[1:], 0)
    new = [following, np.zeros_like(left), left, left, np.where(left, following, books + 2)]
    states = [np.concatenate(pair) for pair in zip(states, new, strict=True)]
    end += len(tail)
  return SoundTable(*(array.astype(np.int32) for array in states))


def _begins(cells: np.ndarray) -> np.ndarray:
  """Return the places of codebook 0 of each position, in order."""
  return np.flatnonzero(cells[:, 1] == 0)
