"""Hashes of all groups of N neighboring words of a text, and records of them on disk in shards.

Words are runs of letters, digits and underscores, in lower case. The hash of a group is a polynomial of its
words' hashes modulo 2^64, so that all groups of a text cost one cumulative sum, and then mixed (the finalizer
of splitmix64).

Letters: W words, G = W - N + 1 groups.
"""

import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WORD = re.compile(r'\w+')
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: it has an inverse modulo 2^64
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))
MOST_WORDS = 1 << 20  # hashes of words that are remembered
SHARDS, BUFFERED = 256, 1 << 20  # files of Shards; records held before they are written
RECORD = np.dtype([('key', '<u8'), ('number', '<i8')])


class _WordHashes(dict):
  """{word: 64 bits of it in lower case}, the same in every process."""

  def __missing__(self, word: str) -> int:
    if len(self) >= MOST_WORDS:
      self.clear()
    digest = hashlib.blake2b(word.lower().encode(), digest_size=8).digest()
    value = self[word] = int.from_bytes(digest, 'little')
    return value


_word_hashes = _WordHashes()
_powers = {}  # of BASE and INVERSE, by their count


def word_hashes(text: str) -> np.ndarray:
  """Return the hashes of the words of a text, uint64 [W]."""
  words = WORD.findall(text)
  return np.fromiter(map(_word_hashes.__getitem__, words), np.uint64, len(words))


def group_hashes(hash_W: np.ndarray, size: int) -> np.ndarray:
  """Return the hashes of all groups of `size` words, uint64 [G]; of a text with fewer words none."""
  groups = len(hash_W) - size + 1
  if groups < 1:
    return np.zeros(0, np.uint64)
  power_W, inverse_W = _power_tables(len(hash_W))
  sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hash_W * power_W)])
  return mix((sums[size:] - sums[:groups]) * inverse_W[:groups])


def mix(values: np.ndarray) -> np.ndarray:
  """Return 64 bits of which each depends on all bits of a value, uint64."""
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def _power_tables(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Return BASE ** n and BASE ** -n modulo 2^64 for n below `count`, uint64."""
  if len(_powers.get(0, ())) < count:
    size = 1 << max(12, (count - 1).bit_length())
    for number, base in enumerate((BASE, INVERSE)):
      _powers[number] = np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(size - 1, base)]))
  return _powers[0][:count], _powers[1][:count]


class Shards:
  """Records of a key and a number on disk, in files by the key; memory is bounded by one file."""

  def __init__(self):
    """The files are in a temporary folder (TMPDIR), removed by `close` or with this object."""
    self._folder = tempfile.TemporaryDirectory(prefix='gpt_jax_clean_')
    self._pending: list[np.ndarray] = []
    self._count = 0

  def add(self, keys: np.ndarray, numbers: np.ndarray) -> None:
    """Append records: keys uint64 [n], numbers int64 [n]."""
    records = np.empty(len(keys), RECORD)
    records['key'], records['number'] = keys, numbers
    self._pending.append(records)
    self._count += len(records)
    if self._count >= BUFFERED:
      self._write()

  def _write(self) -> None:
    records = np.concatenate(self._pending) if self._pending else np.empty(0, RECORD)
    self._pending, self._count = [], 0
    shard = (records['key'] % np.uint64(SHARDS)).astype(np.int64)
    order = np.argsort(shard, kind='stable')
    records, ends = records[order], np.cumsum(np.bincount(shard, minlength=SHARDS))
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
      if end > start:
        with open(Path(self._folder.name) / str(number), 'ab') as file:
          records[start:end].tofile(file)

  def sorted(self) -> Iterator[np.ndarray]:
    """Yield the records file by file, RECORD [n], sorted by key and then by number."""
    self._write()
    for path in sorted(Path(self._folder.name).iterdir()):
      records = np.fromfile(path, RECORD)
      yield records[np.lexsort((records['number'], records['key']))]

  def repeated(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (records, first bool), as `sorted`, of the keys that occur more than once; first: of its key."""
    for records in self.sorted():
      same = records['key'][1:] == records['key'][:-1]
      like_before, like_next = np.append(False, same), np.append(same, False)
      chosen = like_before | like_next
      yield records[chosen], ~like_before[chosen]

  def close(self) -> None:
    """Remove the files."""
    self._folder.cleanup()
