"""Startup phases: seconds from the beginning of the process to a run's first event, by phase."""

import os
import time
from pathlib import Path

_seconds_by_phase = {}


def process_age():
  """Return the seconds since this process began; 0 where the system does not say (only Linux does)."""
  try:
    ticks = int(Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19])
  except OSError:
    return 0.0
  return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK')


_last_mark = time.perf_counter() - process_age()


def mark_phase(name):
  """Add the time since the last mark to the phase `name`."""
  global _last_mark
  now = time.perf_counter()
  _seconds_by_phase[name] = _seconds_by_phase.get(name, 0.0) + now - _last_mark
  _last_mark = now


def take_phases():
  """Return {phase: seconds} so far, and reset."""
  phases = {name: round(seconds, 3) for name, seconds in _seconds_by_phase.items()}
  reset()
  return phases


def reset():
  """Forget all phases and the time since the last mark: another run begins in this process."""
  global _last_mark
  _seconds_by_phase.clear()
  _last_mark = time.perf_counter()
