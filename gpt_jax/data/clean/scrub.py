"""Replace personal data by typed placeholders: `scrub='email,phone'` of a source, or 'all' patterns.

Equal values of a document have the same placeholder, such as <EMAIL_1>. Numbers are compared without spaces
and signs, the others without case.
"""

import bisect
import importlib.metadata
import json
from collections.abc import Iterator
from typing import NamedTuple

from gpt_jax.data.clean import patterns
from gpt_jax.data.clean.patterns import PATTERNS
from gpt_jax.data.splits import Record
from gpt_jax.data.templates import Piece

VERSION = 4  # raise it when equal texts are scrubbed in another way
ALL = tuple(name for name in PATTERNS if name != 'names')  # which needs a package and knows only English
LABELS = {'names': 'NAME'}


class Span(NamedTuple):
  """A value in a text."""

  start: int
  end: int
  row: str  # of PATTERNS


def parse(scrub: str) -> tuple[str, ...]:
  """'email,ip' -> ('email', 'ip') in the order of PATTERNS; ValueError for an unknown or repeated row."""
  rows = [row.strip() for row in scrub.split(',')] if scrub else []
  if unknown := [row for row in rows if row not in (*PATTERNS, 'all')]:
    raise ValueError(
      f'scrub={scrub!r} has {unknown[0]!r}, not personal data that it knows\n'
      f'fix: use some of {", ".join(PATTERNS)}, or all (without names)'
    )
  rows = [name for row in rows for name in (ALL if row == 'all' else (row,))]
  if len(set(rows)) < len(rows):
    twice = next(row for row in rows if rows.count(row) > 1)
    raise ValueError(f'scrub={scrub!r} has {twice} twice\nfix: name each row once; all has every pattern')
  return tuple(name for name in PATTERNS if name in rows)


def describe(rows: tuple[str, ...]) -> dict:
  """Return what changes when equal texts would be scrubbed in another way; ValueError without a package."""
  version = {'version': VERSION}
  if 'names' in rows:
    try:
      version['presidio'] = importlib.metadata.version('presidio-analyzer')
    except importlib.metadata.PackageNotFoundError:
      raise ValueError(
        "scrub=names needs the package presidio-analyzer\nfix: pip install 'gpt_jax[names]'"
      ) from None
  return version


def find(text: str, rows: tuple[str, ...]) -> list[Span]:
  """Return separate spans of personal data, in order.

  Overlapping ones of a row are one, such as a key within a header. Of two rows that of the first row counts;
  the letters and digits of the other outside of it are spans of their own.
  """
  taken: list[Span] = []
  parts = patterns.regions(text)
  for row in rows:
    own = parts if row in patterns.WITH_DIGIT else [()]
    spans = [Span(*span, row) for part in own for span in PATTERNS[row](text, *part)]
    if spans:
      taken = _add_row(text, taken, sorted(spans))
  return taken


def _add_row(text: str, taken: list[Span], spans: list[Span]) -> list[Span]:
  """Return separate spans in order: `taken`, and of those of one row what lies outside of `taken`."""
  joined = spans[:1]
  for span in spans[1:]:
    last = joined[-1]
    if span.start < last.end:
      joined[-1] = last._replace(end=max(last.end, span.end))
    else:
      joined.append(span)
  ends = [other.end for other in taken]
  added = []
  for span in joined:
    first = bisect.bisect_right(ends, span.start)  # of `taken`, that ends later
    start = span.start
    while start < span.end:
      other = taken[first] if first < len(taken) else Span(span.end, span.end, '')
      stop = min(other.start, span.end)
      if any(map(str.isalnum, text[start:stop])):
        added.append(Span(start, stop, span.row))
      start, first = other.end, first + 1
  return sorted([*taken, *added])


class Scrubber:
  """Placeholders of one document."""

  def __init__(self, rows: tuple[str, ...]):
    self.rows = rows
    self.numbers: dict[str, dict[str, int]] = {row: {} for row in rows}  # row: {value: number}
    self.counts = dict.fromkeys(rows, 0)  # values replaced

  def replace(self, text: str, spans: list[Span] | None = None) -> str:
    """Return the text with placeholders; spans: those of `find`."""
    parts, done = [], 0
    for start, end, row in find(text, self.rows) if spans is None else spans:
      value = text[start:end].lower()
      if row not in ('email', 'url', 'key', 'names'):
        value = ''.join(filter(str.isalnum, value))
      known = self.numbers[row]
      number = known.setdefault(value, len(known) + 1)
      parts += [text[done:start], f'<{LABELS.get(row, row.upper())}_{number}>']
      self.counts[row] += 1
      done = end
    return ''.join([*parts, text[done:]])

  def pieces(self, pieces: list[Piece]) -> list[Piece]:
    """Return the pieces of a document with placeholders in texts and messages."""
    replaced = []
    for piece in pieces:
      if piece.kind == 'text':
        piece = Piece('text', self.replace(piece.value))
      elif piece.kind == 'chat':
        messages = [self._nested(message) for message in json.loads(piece.value)]
        piece = Piece('chat', json.dumps(messages, ensure_ascii=False))
      replaced.append(piece)
    return replaced

  def record(self, record: Record) -> Record:
    """Return a record with placeholders in all of its texts."""
    return Record(self._nested(dict(record)), record.root, record.rate)

  def _nested(self, value, key=''):
    """Return a message with placeholders in all of its texts and numbers, also in the arguments of tools."""
    if isinstance(value, dict):
      return {name: self._nested(item, name) for name, item in value.items()}
    if isinstance(value, list):
      return [self._nested(item, key) for item in value]
    if _is_number(value):
      replaced = self.replace(str(value))
      return value if replaced == str(value) else replaced
    return self.replace(value) if isinstance(value, str) and key != 'role' else value


def _is_number(value) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)  # a digit string without quotes


def mask(text: str, spans: list[Span]) -> str:
  """Return the text with a bullet in the place of each letter and digit of personal data."""
  characters = list(text)
  for start, end, _ in spans:
    characters[start:end] = ['\u2022' if c.isalnum() else c for c in characters[start:end]]
  return ''.join(characters)


def texts(pieces: list[Piece]) -> Iterator[str]:
  """Yield the texts of a document that `Scrubber.pieces` reads."""
  for piece in pieces:
    if piece.kind == 'text':
      yield piece.value
    elif piece.kind == 'chat':
      yield from _strings(json.loads(piece.value))


def _strings(value) -> Iterator[str]:
  items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  if isinstance(value, str) or _is_number(value):
    yield str(value)
  for item in items:
    yield from _strings(item)
