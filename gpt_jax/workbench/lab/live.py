"""What a run is doing now: done, running, hung, stopped or failed, its last step, and the time that is left.

A training holds a lock on its folder (records.locked), which the system drops with the process. It is looked
up in /proc/locks: to try the lock could stop a training that starts at that moment. Of a run on another
machine, or where there is no /proc/locks, a recent record stands for the lock.
"""

import math
import pathlib
import socket
import time

from gpt_jax.runs import history
from gpt_jax.workbench.lab import args

PATIENCE = 600.0  # seconds without a record after which a training counts as hung, at least
USUAL = 20  # times the usual time between two records after which it does
PACE_ROWS = 30  # last rows of metrics from which the pace is taken
ENDED = {'done': 'done', 'diverged': 'failed', 'failed': 'failed', 'corrupt': 'failed'}
ENDED |= {'killed': 'failed', 'hung': 'failed'}  # store's status of a run that has ended: its state here


def locked_inodes():
  """Return the inodes that a process of this machine holds a lock of; None where the system does not say."""
  try:
    lines = pathlib.Path('/proc/locks').read_text().splitlines()
  except OSError:
    return None
  fields = [line.split() for line in lines]
  return {int(f[5].rpartition(':')[2]) for f in fields if len(f) > 5 and f[1] == 'FLOCK'}


def describe(folder, status, config, metrics, events, locks, now=None):
  """Return {state, step, steps, silence, eta, note} of a run; seconds; None for what is not known.

  status: of store.run_status. metrics, events: records. locks: of `locked_inodes`.
  """
  now = time.time() if now is None else now
  steps = args.section(config, 'train').get('steps')
  step = metrics[-1].get('step') if metrics else None
  facts = {'state': ENDED.get(status, ''), 'step': step, 'steps': steps, 'silence': None, 'eta': None}
  facts['note'] = ''
  if facts['state']:
    return facts
  facts['silence'] = max(0.0, now - last_record(folder))
  patience = seconds_of_patience(config, metrics)
  held = is_locked(folder, locks)
  alive = held if held is not None else facts['silence'] < patience
  last = (events or [{}])[-1]
  if not alive:
    at = f' after step {step}' if step is not None else ''
    notes = {'preempted': f'preempted at step {last.get("step")}', 'error': str(last.get('message', ''))}
    return facts | {'state': 'stopped', 'note': notes.get(last.get('event'), f'ended without a result{at}')}
  if facts['silence'] > patience:
    return facts | {'state': 'hung', 'note': f'no record for {facts["silence"]:.0f} s'}
  pace = seconds_per_step(metrics, events)
  if pace and isinstance(steps, int) and isinstance(step, int):
    facts['eta'] = max(0.0, pace * (steps - step) - facts['silence'])
  return facts | {'state': 'running'}


def is_locked(folder, locks):
  """Whether a process of this machine writes to a run; None if another machine may."""
  path = folder / '.lock'
  try:
    host = path.read_text(errors='replace').rpartition(' on ')[2].strip()
    inode = path.stat().st_ino
  except OSError:
    return False
  return inode in locks if locks is not None and host in ('', socket.gethostname()) else None


def last_record(folder):
  """Return the Unix seconds of the last change of a run's records."""
  seconds = [0.0]
  for name in ('config.json', 'metrics.jsonl', 'events.jsonl'):
    try:
      seconds.append((folder / name).stat().st_mtime)
    except OSError:
      continue
  return max(seconds)


def seconds_of_patience(config, metrics):
  """Return the silence after which a training counts as hung: train.hang_seconds, or many usual pauses."""
  chosen = history.number(args.section(config, 'train').get('hang_seconds'), 0.0)
  times = [history.number(row.get('time')) for row in metrics[-PACE_ROWS:]]
  pauses = sorted(b - a for a, b in zip(times, times[1:], strict=False) if b > a)
  return chosen or max(PATIENCE, USUAL * pauses[len(pauses) // 2] if pauses else 0.0)


def seconds_per_step(metrics, events):
  """Return the pace of the present session, evaluations included; None before its second record."""
  starts = [history.unix_seconds(e.get('time')) for e in events if e.get('event') in history.SESSION_STARTS]
  since = starts[-1] if starts else -math.inf
  rows = [(row.get('step'), history.number(row.get('time'))) for row in metrics[-PACE_ROWS:]]
  rows = [row for row in rows if row[1] >= since]
  if len(rows) < 2 or rows[-1][0] <= rows[0][0]:
    return None
  return (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0])
