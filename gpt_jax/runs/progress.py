"""Say how far a long loop is."""

import sys
import time

from gpt_jax.runs import loggers

SECONDS = 10.0  # between two lines


class Progress:
  """Print a line on stderr every SECONDS of a loop, in the first process; a short loop prints none."""

  def __init__(self, what, unit, total=0):
    """what: the loop, as in 'perplexity of text'. unit: what it counts. total: 0 where it is not known."""
    self.what, self.unit, self.total = what, unit, total
    self.start = self.last = time.monotonic()

  def report(self, done):
    """Say that `done` units are finished, if it is time."""
    now = time.monotonic()
    if now - self.last < SECONDS:
      return
    import jax

    self.last = now
    of = f' of {self.total:,}' if self.total else ''
    if jax.process_index() == 0:
      line = f'{self.what}: {done:,}{of} {self.unit} in {loggers.duration(now - self.start)}'
      loggers.say(line, file=sys.stderr, flush=True)
