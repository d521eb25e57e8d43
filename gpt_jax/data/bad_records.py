"""Count and log records that are skipped or converted, up to `bad_records` of a source.

A process logs each message once, however often it reads a source. Messages are warnings, which
Python prints even where logging is not configured.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from gpt_jax.data.decoders import TooLarge
from gpt_jax.data.files import warn_once

SCAN_SECONDS = 10.0  # read on for so long after too many bad records, to report all of them at once
MOST_DETAILS = 3  # details of a conversion, as in the sizes that pictures had


class BadRecords:
  """Counts of one pass over one split of a source. `quiet`: log nothing; too many are still an error."""

  def __init__(self, name: str, source, split: str = '', quiet: bool = False):
    self.name, self.source, self.split, self.quiet = name, source, split, quiet
    self.title = f'data.mixture.{name}' + (f' ({split})' if split else '')
    self.notes, self.read = Counter(), 0
    self.skipped, self._first, self._largest, self._scanning = 0, None, None, False

  def skip(self, error: Exception) -> None:
    """Count and log an unreadable record; ValueError if there are more than allowed."""
    self.skipped += 1
    self._first = self._first or error
    if isinstance(error, TooLarge) and (self._largest is None or error.size > self._largest.size):
      self._largest = error
    if not self._is_over:
      self._log(f'skipped: {str(error).splitlines()[0]}')
    elif not self._scanning:
      raise self._too_many()

  def readable(self, items: Iterable, read: Callable) -> Iterator[tuple]:
    """Yield (item, read(item)) of each item that can be read.

    After too many that cannot, read on for SCAN_SECONDS, then raise ValueError with the largest of those
    beyond a limit and its fix.
    """
    self._scanning, end = not self.quiet, float('inf')
    for item in items:
      self.read += 1
      try:
        value = read(item)
      except (OSError, ValueError) as error:
        self.skip(error)
      else:
        if not self._is_over:
          yield item, value
      if self._is_over:
        end = min(end, time.monotonic() + SCAN_SECONDS)
        if time.monotonic() >= end:
          break
    if self._is_over:
      raise self._too_many()

  @property
  def _is_over(self) -> bool:
    return self.skipped > self.source.bad_records

  def _too_many(self) -> ValueError:
    """Return the error for more unreadable records than allowed, with the fix of the worst."""
    worst, allowed = self._largest or self._first, self.source.bad_records
    cause, _, fix = str(worst).partition('\nfix: ')
    which = 'the largest' if worst is self._largest else 'the first'
    count = f' has {self.skipped} unreadable records or more, {which}' if self.skipped > 1 else ''
    return ValueError(
      f'data.mixture.{self.name}{count}: {cause}\n'
      f'fix: {fix or "repair or remove it"}; or set data.mixture.{self.name}.bad_records={self.skipped} or '
      f'more, the number that may be skipped (now {allowed})'
    )

  def report(self) -> None:
    """Log the conversions, with their most frequent details, and the number of skipped records."""
    conversions = {}
    for note, count in self.notes.most_common():
      name, _, detail = note.partition(' from ')
      conversions.setdefault(name, {})[detail] = count
    for name, details in conversions.items():
      listed = [detail for detail in details if detail][:MOST_DETAILS]
      others = f' and {len(details) - MOST_DETAILS} others' if len(details) > MOST_DETAILS else ''
      self._log(f'{sum(details.values())} {name}' + (f' from {", ".join(listed)}{others}' if listed else ''))
    if self.skipped:
      self._log(f'{self.skipped} unreadable records skipped')

  def repeat_report(self, notes: dict[str, int], skipped: int) -> None:
    """Log the counts of the run that wrote a token cache."""
    self.notes, self.skipped = Counter(notes), skipped
    self.report()

  def _log(self, message: str) -> None:
    if not self.quiet:
      # Sources that read the same files with other templates would repeat it.
      files = {name: x for name, x in vars(self.source).items() if name not in ('template', 'weight')}
      warn_once(f'{self.title}: {message}', f'{self.split} {message} {files}')
