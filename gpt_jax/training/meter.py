"""Counts and throughput of a run over all of its sessions: tokens, seconds, losses.

The metrics of a step stay on the device until the next call of the step is running, so that fetching
them never leaves the device idle. Seconds are the run's share of the machine's time.
"""

import hashlib
import json
import math
import time

import jax
import numpy as np

from gpt_jax.runs import startup_timer
from gpt_jax.training import loss_guard

COUNTS = ('tokens', 'targets')  # metrics that are summed over steps
GUARDED = ('skipped', 'skipped_in_a_row', 'spike')  # whether a step was applied


class Meter:
  """Counts of one run, alone on the machine or one of several replicas."""

  mark_phase = staticmethod(startup_timer.mark_phase)

  def __init__(self, unit, steps_per_call, replicas=1):
    """unit: what the job calls its tokens. replicas: how many runs share the machine."""
    self.unit, self.steps_per_call, self.replicas = unit, steps_per_call, replicas
    self.began = time.perf_counter()
    self.tokens = 0.0  # of documents (or images, clips) in its steps
    self.targets = 0.0  # those tokens that carried loss
    self.seconds = 0.0  # in steps; evaluation and saving left out
    self.earlier = 0.0  # seconds of the sessions before this one, everything included
    self.streak = (0, 0)  # steps skipped since the last applied one: not finite, spikes
    self.replica = ()  # index of this run in the metrics of a step
    self.pending = []  # (steps done, metrics on the device) of calls that are not fetched yet
    self.interval_seconds = 0.0  # in steps since the last fetch
    self.latest = {}  # last fetched metrics

  def state(self):
    """Return the counts that a checkpoint stores."""
    fields = {name: getattr(self, name) for name in ('tokens', 'targets', 'seconds', 'streak', 'latest')}
    return fields | {'wall': self.wall_seconds()}

  def restore(self, saved):
    """Continue from the result of `state`."""
    self.rewind(saved)
    self.earlier = saved['wall']

  def rewind(self, saved):
    """Restore the counts but not the time of the whole run, which never runs backwards."""
    for name in ('tokens', 'targets', 'seconds', 'streak', 'latest'):
      setattr(self, name, saved[name])
    self.pending, self.interval_seconds = [], 0.0

  def add_step_time(self, seconds):
    """Add seconds of the machine that were spent in steps."""
    self.interval_seconds += seconds / self.replicas

  def block_until_ready(self, values):
    """Wait for the device, as time in steps: what follows is not counted as such."""
    start = time.perf_counter()
    jax.block_until_ready(values)
    self.add_step_time(time.perf_counter() - start)

  def add(self, step, metrics):
    """Add a call that ended after `step` steps; its metrics are still on the device."""
    self.pending.append((step, metrics))

  def interval_is_complete(self, every):
    """Whether the pending calls fill an interval of `every` steps."""
    first, last = self.pending[0][0] - self.steps_per_call, self.pending[-1][0]
    return last // every > first // every

  def fetch(self, pop_scalars):
    """Fetch and count the pending calls -> (step, {name: number}, skips as loss_guard reads them).

    pop_scalars: {name: values by step} -> numbers from those that are not one number a step.
    """
    start = time.perf_counter()
    fetched = jax.device_get([metrics for _, metrics in self.pending])
    self.add_step_time(time.perf_counter() - start)
    # One axis of steps in front.
    stack = (lambda x: np.asarray(x)[None]) if self.steps_per_call == 1 else (lambda x: x)
    values = {k: np.concatenate([stack(m[k][self.replica]) for m in fetched]) for k in fetched[0]}
    step, seconds = self.pending[-1][0], self.interval_seconds
    counts = {k: float(values.pop(k).sum(dtype=np.float64)) for k in COUNTS if k in values}
    self.pending, self.interval_seconds = [], 0.0
    self.tokens += counts['tokens']
    self.targets += counts.get('targets', 0.0)
    self.seconds += seconds
    skipped = values['skipped']
    # Over the applied steps: one skipped NaN is not divergence.
    applied = {k: values.pop(k)[skipped == 0] for k in ('loss', 'objective')}
    means = {k: float(x.mean()) if len(x) else math.nan for k, x in applied.items()} | pop_scalars(values)
    skips = {k: values.pop(k) for k in GUARDED if k in values}
    skips['streaks'] = loss_guard.count_streaks(skipped, skips.get('spike', 0 * skipped), self.streak)
    self.streak = tuple(skips['streaks'][-1].tolist())
    scalars = {k: float(v[-1]) for k, v in values.items()} | means | self.counts()
    scalars[f'{self.unit}_per_second'] = counts['tokens'] / seconds
    scalars['step_seconds'] = seconds / len(skipped)
    if skipped.any():
      scalars['skipped'] = float(skipped.sum())
    self.latest = scalars
    return step, scalars, skips

  def counts(self):
    """Return what the run has trained on so far, by name."""
    return {self.unit: self.tokens} | ({'targets': self.targets} if self.targets else {})

  def wall_seconds(self):
    """Return the seconds of the machine's time that the run took, setup and evaluation included."""
    return self.earlier + (time.perf_counter() - self.began) / self.replicas

  def totals(self):
    """Return the counts and the throughput of the whole run."""
    return {
      **self.counts(),
      'seconds': self.seconds,
      'goodput': self.seconds / self.wall_seconds(),
      'replicas': self.replicas,
      f'{self.unit}_per_second': self.tokens / self.seconds if self.seconds else None,
    }


def tail(lines, steps, unit='tokens'):
  """Return {metric: its mean over the lines of the last tenth of `steps`}, without counts."""
  last = [line for line in lines if line['step'] > 0.9 * steps]
  counts = {'step', 'time', *COUNTS, unit}
  names = dict.fromkeys(name for line in last for name in line if name not in counts)
  return {name: float(np.mean([line[name] for line in last if name in line])) for name in names}


def data_hash(fingerprint):
  """Return 16 hex digits that are equal for runs on the same data, in any order."""
  content = {name: value for name, value in fingerprint.items() if name not in ('seed', 'order')}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
