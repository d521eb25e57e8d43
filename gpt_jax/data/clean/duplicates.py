"""Duplicates: equal documents, nearly equal documents, and long passages that occur before.

Of each group the first document stays. Sources: Lee et al. 2022 (Deduplicating Training Data Makes Language
Models Better, arXiv:2107.06499; documents by MinHash of groups of 5 words, passages of 50 tokens); Broder
1997 (MinHash). Memory holds a few bytes of each document; groups of words and signatures are on disk
(TMPDIR).

Letters: N documents, P = 128 permutations, W words.
"""

import array
import tempfile
from collections.abc import Iterator

import numpy as np

from gpt_jax.data.clean import ngrams
from gpt_jax.data.clean.rule import Document, Rule, number_between, refuse_value

PERMUTATIONS, GROUP = 128, 5  # of a signature; words of a group (Lee et al. 2022, appendix A)
FOUND = 0.99  # least probability that a pair at the threshold is compared
MARGIN = 2.0  # standard deviations of the estimate below the threshold at which a pair still counts
BATCH = 1 << 20  # groups of words whose signatures are computed at once
PLACE_BITS, LEAST_LEFT = 32, 5  # bits of a word's place in a record; words that a document must keep


class Exact(Rule):
  """exact: documents whose texts, and images and sounds by their bytes, occurred before."""

  learns, reads = True, 'any'

  def __init__(self, value: str):
    super().__init__(value)
    refuse_value('exact', value)

  def learn(self, documents: Iterator[tuple[int, Document]]) -> None:
    """Find the repeated digests."""
    numbers, digests = array.array('q'), array.array('Q')
    for number, document in documents:
      numbers.append(number)
      digests.append(document.digest())
    number_N, digest_N = np.frombuffer(numbers, np.int64), np.frombuffer(digests, np.uint64)
    firsts = np.unique(digest_N, return_index=True)[1]
    self.removed = set(np.delete(number_N, firsts).tolist())

  def check(self, number: int, document: Document) -> str | None:
    """Whether an equal document occurred before."""
    return '' if number in self.removed else None


class Near(Rule):
  """near=0.8: documents of which an earlier one that stays has this Jaccard similarity or more.

  Similarity is that of the sets of groups of 5 words. Pairs that share a band of their MinHash signatures are
  compared by the whole signatures; bands are chosen so that 99 % of the pairs at the threshold are compared.
  The estimate of a similarity s has a standard deviation of (s (1 - s) / 128)^0.5: a pair counts from two of
  them below the threshold on, which finds 97 % at the threshold itself.
  """

  learns = True

  def __init__(self, value: str):
    super().__init__(value)
    self.threshold = number_between('near', value, 0.5, 1)

  def describe(self) -> dict:
    """The version of the signatures; ValueError without the library that makes them."""
    try:
      import rensa
    except ImportError as error:
      raise ValueError(
        f"clean=near={self.value} needs the package rensa: {error}\nfix: pip install 'gpt_jax[clean]'"
      ) from None
    return {'signatures': rensa.RMinHash.ALGORITHM_VERSION}

  def learn(self, documents: Iterator[tuple[int, Document]]) -> None:
    """Find the documents that are near an earlier one that stays."""
    rows = band_rows(self.threshold)
    least = self.threshold - MARGIN * (self.threshold * (1 - self.threshold) / PERMUTATIONS) ** 0.5
    shards, numbers = ngrams.Shards(), array.array('q')
    with tempfile.TemporaryFile(prefix='gpt_jax_clean_') as file:
      for part, signature_NP in _signatures(documents):
        first = len(numbers)
        numbers.extend(part)
        signature_NP.tofile(file)
        places = np.arange(first, len(numbers))
        for band in range(PERMUTATIONS // rows):
          shards.add(_band_keys(signature_NP[:, band * rows : (band + 1) * rows], band), places)
      file.flush()
      shape = (len(numbers), PERMUTATIONS)
      signature_NP = np.memmap(file, np.uint32, 'r', shape=shape) if numbers else np.zeros(shape, np.uint32)
      edges = _similar_pairs(shards, signature_NP, least)
      shards.close()
      del signature_NP
    self.removed = {numbers[place] for place in _later_of(edges)}

  def check(self, number: int, document: Document) -> str | None:
    """Whether an earlier document is near."""
    return '' if number in self.removed else None


def band_rows(threshold: float) -> int:
  """Return the rows of a band: the most with which FOUND of the pairs at the threshold share a band."""
  found = lambda rows: 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows)
  return max(rows for rows in range(1, 33) if rows == 1 or found(rows) >= FOUND)


def _signatures(documents) -> Iterator[tuple[list[int], np.ndarray]]:
  """Yield (numbers, MinHash signatures uint32 [n, P]) of documents with words, some at a time."""
  import rensa

  def make():
    ends = np.cumsum([0, *map(len, groups)])
    args = np.concatenate(groups), ends.astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(*args, num_perm=PERMUTATIONS, seed=1)
    return list(numbers), np.asarray(matrix.to_rows(), np.uint32)

  numbers, groups, total = [], [], 0
  for number, document in documents:
    hash_W = ngrams.word_hashes(document.text)
    own = np.unique(ngrams.group_hashes(hash_W, min(GROUP, max(1, len(hash_W)))))
    if not len(own):
      continue
    numbers.append(number)
    groups.append(own)
    total += len(own)
    if total >= BATCH:
      yield make()
      numbers, groups, total = [], [], 0
  if numbers:
    yield make()


def _band_keys(rows_NR: np.ndarray, band: int) -> np.ndarray:
  """Return one hash of each document for one band, uint64 [N]."""
  key_N = np.full(len(rows_NR), band + 1, np.uint64)
  for column_N in rows_NR.T:
    key_N = ngrams.mix(key_N ^ column_N.astype(np.uint64)) + ngrams.BASE
  return ngrams.mix(key_N)


def _similar_pairs(shards: ngrams.Shards, signature_NP: np.ndarray, least: float) -> np.ndarray:
  """Return pairs of similar documents, int64 [pairs, 2], the earlier first.

  Each document of a bucket is compared with the first and with the one before it.
  """
  kept = [np.zeros((0, 2), np.int64)]
  for records, first in shards.repeated():
    place_N, start_N = records['number'], np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    later = ~first
    pairs = [np.stack([place_N[start_N[later]], place_N[later]], 1)]
    pairs.append(np.stack([place_N[np.flatnonzero(later) - 1], place_N[later]], 1))
    pairs = np.unique(np.concatenate(pairs), axis=0)
    for start in range(0, len(pairs), 1 << 14):
      some = pairs[start : start + (1 << 14)]
      equal = (signature_NP[some[:, 0]] == signature_NP[some[:, 1]]).mean(1)
      kept.append(some[equal >= least])
  return np.unique(np.concatenate(kept), axis=0)


def _later_of(edges: np.ndarray) -> set[int]:
  """Return the documents of which a similar earlier one stays."""
  removed: set[int] = set()
  for earlier, later in edges[np.lexsort((edges[:, 0], edges[:, 1]))].tolist():
    if earlier not in removed:
      removed.add(later)
  return removed


class Passages(Rule):
  """passages=50: cuts passages of this many words or more that occurred before, in any document.

  A passage of 50 words and more is what Lee et al. remove (section 4.1), there by a suffix array over tokens.
  The first place stays. A document with fewer than 5 words left is removed.
  """

  learns, edits = True, True

  def __init__(self, value: str):
    super().__init__(value)
    self.size = int(number_between('passages', value, 10, 1000))

  def learn(self, documents: Iterator[tuple[int, Document]]) -> None:
    """Find the passages that occurred before: span_S3 int64 [S, 3], document, first word and end."""
    groups, repeats = ngrams.Shards(), ngrams.Shards()
    for number, document in documents:
      hash_G = ngrams.group_hashes(ngrams.word_hashes(document.text), self.size)
      groups.add(hash_G, (number << PLACE_BITS) + np.arange(len(hash_G)))
    for records, first in groups.repeated():
      later = records['number'][~first]
      repeats.add((later >> PLACE_BITS).astype(np.uint64), later)
    groups.close()
    spans = [np.zeros((0, 3), np.int64)]
    for records in repeats.sorted():
      number, place = records['number'] >> PLACE_BITS, records['number'] & ((1 << PLACE_BITS) - 1)
      same = (number[1:] == number[:-1]) & (place[1:] <= place[:-1] + self.size)  # they touch
      starts, ends = np.append(True, ~same), np.append(~same, True)
      spans.append(np.stack([number[starts], place[starts], place[ends] + self.size], 1))
    repeats.close()
    self.span_S3 = np.concatenate(spans)
    self.span_S3 = self.span_S3[np.lexsort(self.span_S3.T[1::-1])]

  def edit(self, number: int, text: str, notes) -> str:
    """Cut the passages that occurred before."""
    spans = self._spans(number)
    if not len(spans):
      return text
    words, parts, done = [match.span() for match in ngrams.WORD.finditer(text)], [], 0
    for _, start, after in spans.tolist():
      parts.append(text[done : words[start][0]])
      done = words[after - 1][1]
    notes['passages cut by passages'] += len(spans)
    return ''.join([*parts, text[done:]])

  def check(self, number: int, document: Document) -> str | None:
    """Whether almost nothing is left."""
    few = len(document.text.split()) < LEAST_LEFT
    return 'nothing left' if few and len(self._spans(number)) else None

  def _spans(self, number: int) -> np.ndarray:
    return self.span_S3[slice(*np.searchsorted(self.span_S3[:, 0], [number, number + 1]))]
