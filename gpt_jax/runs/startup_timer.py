"""Clocks of a process: UTC that never goes back, and the startup phases of a run.

The system's clock may be set at any moment. Within one process all times are therefore the clock's at its
start plus the seconds since then.
"""

import datetime
import os
import time
from pathlib import Path

_seconds_by_phase = {}


def process_age():
  """Return the seconds since this process began; 0 where the system does not say (only Linux does)."""
  try:
    ticks = int(Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19])
  except (OSError, ValueError, IndexError):
    return 0.0
  return max(0.0, seconds_since_boot() - ticks / os.sysconf('SC_CLK_TCK'))


def seconds_since_boot():
  """Return seconds of a clock that nobody sets; on Linux it also counts while the machine sleeps."""
  return time.clock_gettime(getattr(time, 'CLOCK_BOOTTIME', time.CLOCK_MONOTONIC))


_boot = time.time() - seconds_since_boot()


def unix_time():
  """Return the Unix seconds of now, which never go back within a process."""
  return _boot + seconds_since_boot()


def utc_time():
  """Return `unix_time` in ISO 8601: '2026-01-31T12:00:00.000Z'."""
  now = datetime.datetime.fromtimestamp(unix_time(), datetime.UTC).isoformat(timespec='milliseconds')
  return now.replace('+00:00', 'Z')


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
