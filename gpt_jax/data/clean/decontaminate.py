"""Remove documents that share 13 words in a row with an item of a benchmark.

`decontaminate=FILE|FILE`: JSON lines or lists (an item is a record, all of its texts are looked for), or text
(an item is a line). Source: Brown et al. 2020 (GPT-3, arXiv:2005.14165), appendix C: 13 words, of short items
all of them, at least 8. There the surroundings of an overlap are cut; here the document is removed.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt_jax.data import text_files
from gpt_jax.data.clean import ngrams
from gpt_jax.data.clean.rule import Document, Rule
from gpt_jax.data.files import find_files, hash_files

WORDS, LEAST = 13, 8  # in a row that count; of an item that can be looked for
LOW_BITS = np.uint64((1 << 20) - 1)  # of a hash, by which most are told apart at once
FORMATS = ('.jsonl', '.json', '.txt')


class Decontaminate(Rule):
  """decontaminate=FILE|FILE: documents that share 13 words in a row with an item of a benchmark."""

  def __init__(self, value: str):
    super().__init__(value)
    if not value:
      raise ValueError(
        'clean=decontaminate names no benchmark\nfix: write decontaminate=FILE, or FILE|FILE for several'
      )
    self._index = None

  @property
  def files(self) -> list[Path]:
    """The benchmark files."""
    suffixes = [name for ending in FORMATS for name in text_files.suffixes(ending)]
    return [file for path in self.value.split('|') for file in find_files(path.strip(), *suffixes)]

  def describe(self) -> dict:
    """The content of the benchmark files."""
    return {'benchmarks': hash_files(self.files)}

  def check(self, number: int, document: Document) -> str | None:
    """Whether it shares words with an item; counts each such item once for each document."""
    items = self.items_of(document.text)
    self.overlaps.update(self.index.names[item] for item in items)
    return '' if len(items) else None

  def items_of(self, text: str) -> np.ndarray:
    """Return the numbers of the items that share words with a text."""
    hash_W = ngrams.word_hashes(text)
    items = [np.zeros(0, np.int64)]
    for size, (key_K, item_K, seen) in self.index.by_size.items():
      hash_G = ngrams.group_hashes(hash_W, size)
      hash_G = hash_G[seen[(hash_G & LOW_BITS).astype(np.int64)]]  # few are left to be searched
      starts, ends = (np.searchsorted(key_K, hash_G, side) for side in ('left', 'right'))
      hits = np.flatnonzero(ends > starts)
      items += [item_K[start:end] for start, end in zip(starts[hits], ends[hits], strict=True)]
    return np.unique(np.concatenate(items))

  @property
  def index(self) -> 'Index':
    """The groups of words of the items, read once."""
    if self._index is None:
      self._index = Index(self.files)
    return self._index


class Index:
  """The groups of words of all items of benchmark files."""

  def __init__(self, files: list[Path]):
    self.names: list[str] = []  # of each item: file and line
    self.short: list[str] = []  # items of fewer than LEAST words, which are not looked for
    groups: dict[int, list] = {}
    for file in files:
      for where, texts in _items(file):
        name = f'{file.name}{where.removeprefix(str(file))}'
        if not (own := _groups(texts)):
          self.short.append(name)
          continue
        for size, hash_G in own:
          groups.setdefault(size, []).append((hash_G, np.full(len(hash_G), len(self.names))))
        self.names.append(name)
    if not self.names:
      raise ValueError(
        f'clean=decontaminate={files[0]} has no item of {LEAST} words or more\n'
        'fix: give the benchmark as JSON lines with its texts, or as text with an item a line'
      )
    self.by_size = {}  # words: (sorted hashes uint64, their items, whether one has these LOW_BITS)
    for size, parts in sorted(groups.items()):
      hash_K, item_K = (np.concatenate(column) for column in zip(*parts, strict=True))
      order = np.argsort(hash_K, kind='stable')
      seen = np.zeros(int(LOW_BITS) + 1, bool)
      seen[(hash_K & LOW_BITS).astype(np.int64)] = True
      self.by_size[size] = hash_K[order], item_K[order], seen


def _groups(texts: list[str]) -> list[tuple[int, np.ndarray]]:
  """Return (words, hashes) of the groups of an item: of each text, and of all of them in their order."""
  texts = [*texts, ' '.join(texts)] if len(texts) > 1 else texts
  groups = []
  for hash_W in map(ngrams.word_hashes, texts):
    if len(hash_W) >= LEAST:
      size = min(WORDS, len(hash_W))
      groups.append((size, ngrams.group_hashes(hash_W, size)))
  return groups


def _items(file: Path) -> Iterator[tuple[str, list[str]]]:
  """Yield (where, texts) of the items of a benchmark file."""
  from gpt_jax.data.record_sources import json_records, text_lines

  if '.json' in file.name:
    for where, record in json_records(file):
      yield where, list(_texts(record))
  else:
    for number, line in enumerate(text_lines(file), 1):
      if line.strip():
        yield f'{file} line {number}', [line]


def _texts(value) -> Iterator[str]:
  """Yield the texts in a record."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict | list):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _texts(item)
