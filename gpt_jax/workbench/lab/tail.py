"""Read .jsonl files that grow: a second look parses only what is new.

A training appends records, and rewrites the last ones where an evaluation joins an earlier step
(records.StepLines). So the last OVERLAP records are read again each time, and the whole file where the first
of them has changed.
"""

import hashlib
import json
import os

from gpt_jax.runs.records import NONFINITE

OVERLAP = 64  # records that may still change


class Tail:
  """The records of one .jsonl file; unreadable and altered lines are left out."""

  def __init__(self, path):
    self.path, self.records = path, []
    self._signature = None  # of the file when it was read
    self._anchor = 0, 0, b''  # byte and record at which reading begins again, and the line that is there

  def read(self):
    """Return the list of records, [] without the file. Do not change it."""
    try:
      status = os.stat(self.path)
    except OSError:  # there is none yet, or no more
      self.records, self._signature, self._anchor = [], None, (0, 0, b'')
      return self.records
    signature = status.st_mtime_ns, status.st_size, status.st_ino
    if signature != self._signature:
      self._parse()
      self._signature = signature
    return self.records

  def _parse(self):
    offset, count, line = self._anchor
    with open(self.path, 'rb') as file:
      file.seek(offset)
      content = file.read()
      if not content.startswith(line):
        offset, count = 0, 0
        file.seek(0)
        content = file.read()
    lines = content[: content.rfind(b'\n') + 1].splitlines(keepends=True)  # a newline is written last
    split = max(0, len(lines) - OVERLAP)
    before = _parse_lines(lines[:split])
    records = [*self.records[:count], *before]
    count = len(records)
    self.records = [*records, *_parse_lines(lines[split:])]
    offset += sum(map(len, lines[:split]))
    self._anchor = offset, count, lines[split] if lines else b''


def _parse_lines(lines):
  return [record for record in map(_parse, lines) if record is not None]


def _parse(line):
  """Return the record of a line as `records.parse_object` does, but faster; None if it is unreadable."""
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):
    return None
  if not isinstance(record, dict):
    return None
  digest = record.pop('sha256', None)
  if digest is not None and hashlib.sha256(line[: line.rfind(b'"sha256"')]).hexdigest()[:16] != digest:
    return None
  return record


def column(rows, name):
  """Return the places in `rows` that have a number of this name, and the numbers; NaN is one, too."""
  places, values = [], []
  for place, row in enumerate(rows):
    value = row.get(name)
    if isinstance(value, str):
      value = NONFINITE.get(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
      places.append(place)
      values.append(float(value))
  return places, values
