"""Count and log records that are skipped or converted, up to `bad_records` of a source.

A process logs each message once, however often it reads a source. Messages are warnings, which
Python prints even where logging is not configured.
"""

import logging
from collections import Counter

log = logging.getLogger(__name__)
LOGGED: set[tuple[str, str]] = set()  # (source, message key) that this process has logged


class BadRecords:
  """Counts of one pass over one source. `quiet`: log nothing; too many are still an error."""

  def __init__(self, name: str, source, quiet: bool = False):
    self.name, self.source, self.quiet = name, source, quiet
    self.skipped, self.notes = 0, Counter()

  def skip(self, error: Exception) -> None:
    """Count and log an unreadable record; ValueError if there are more than allowed."""
    cause, allowed = str(error).splitlines()[0], self.source.bad_records
    self.skipped += 1
    if self.skipped > allowed:
      count = f' has {self.skipped} unreadable records or more' if allowed else ''
      raise ValueError(
        f'data.mixture.{self.name}{count}: {cause}\n'
        f'fix: repair or remove it, or raise data.mixture.{self.name}.bad_records, the number '
        f'that may be skipped (now {allowed})'
      ) from None
    self._log(cause, f'skipped {self.skipped}: {cause}')

  def report(self) -> None:
    """Log the conversions and the number of skipped records."""
    for note, count in self.notes.most_common():
      self._log(note, f'{count} {note}')
    if self.skipped:
      count = f'{self.skipped} unreadable records skipped'
      self._log(count, count)

  def repeat_report(self, notes: dict[str, int], skipped: int) -> None:
    """Log the counts of the run that wrote a token cache."""
    self.notes, self.skipped = Counter(notes), skipped
    self.report()

  def _log(self, key: str, message: str) -> None:
    if not self.quiet and (repr(self.source), key) not in LOGGED:
      LOGGED.add((repr(self.source), key))
      log.warning('data.mixture.%s: %s', self.name, message)
