"""Where the seconds of a start go: laps from the beginning of the process to the first event."""

import os
import time
from pathlib import Path

_laps = {}


def age():
  """Seconds that this process has lived; 0 where the system does not say, as only Linux does."""
  try:
    ticks = int(Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19])
  except OSError:
    return 0.0
  return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK')


_last = time.perf_counter() - age()


def lap(name):
  """What was done since the last lap is called so."""
  global _last
  now = time.perf_counter()
  _laps[name] = _laps.get(name, 0.0) + now - _last
  _last = now


def take():
  """The laps so far, {name: seconds}; others begin."""
  taken = {name: round(seconds, 3) for name, seconds in _laps.items()}
  restart()
  return taken


def restart():
  """Forget the time since the last lap: another run begins in this process."""
  global _last
  _laps.clear()
  _last = time.perf_counter()
