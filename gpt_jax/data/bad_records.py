"""What was wrong with the records of a source: left out up to a number, or converted; and said.

Each is said once a process, however often a source is read: to learn a tokenizer from, to make
tokens, in each split. It is a warning, since Python shows no less where logging is not set up.
"""

import logging
from collections import Counter

log = logging.getLogger(__name__)
SAID: set[tuple[str, str]] = set()  # (source, what) that this process has said


class BadRecords:
  """Counts for one pass over one source. `quiet`: nothing is said, too many are still an error."""

  def __init__(self, name: str, source, quiet: bool = False):
    self.name, self.source, self.quiet = name, source, quiet
    self.skipped, self.notes = 0, Counter()

  def skip(self, error: Exception) -> None:
    """Counts and names an unreadable record; ValueError if there are more than are allowed."""
    cause, allowed = str(error).splitlines()[0], self.source.bad_records
    self.skipped += 1
    if self.skipped > allowed:
      count = f' has {self.skipped} unreadable records or more' if allowed else ''
      raise ValueError(
        f'data.mixture.{self.name}{count}: {cause}\n'
        f'fix: repair or remove it, or let data.mixture.{self.name}.bad_records say how many '
        f'may be skipped (now {allowed})'
      ) from None
    self._say(cause, f'skipped {self.skipped}: {cause}')

  def report(self) -> None:
    """Says what was converted, and how many records were left out."""
    for note, count in self.notes.most_common():
      self._say(note, f'{count} {note}')
    if self.skipped:
      count = f'{self.skipped} unreadable records skipped'
      self._say(count, count)

  def repeat_report(self, notes: dict[str, int], skipped: int) -> None:
    """Says what was found when the tokens were made, which are not made again."""
    self.notes, self.skipped = Counter(notes), skipped
    self.report()

  def _say(self, what: str, message: str) -> None:
    if not self.quiet and (key := (repr(self.source), what)) not in SAID:
      SAID.add(key)
      log.warning('data.mixture.%s: %s', self.name, message)
