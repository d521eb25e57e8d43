"""What a run has done and how fast: tokens, seconds, losses, over all sessions of the run.

Metrics of a step stay on the device until the next call of the step is under way, so that a fetch
never lets the device idle. Seconds are the run's share of the machine's time.
"""

import hashlib
import json
import math
import time

import jax
import numpy as np

from gpt_jax.runs import startup_timer

COUNTS = ('tokens', 'targets')  # metrics of a step that are added up
GUARDED = ('skipped', 'skipped_in_a_row', 'spike')  # that say whether a step was applied


class Meter:
  """Counts of one run; alone on the machine, or a lane of several."""

  mark_phase = staticmethod(startup_timer.lap)  # says what was done since the last call, or the start

  def __init__(self, unit, steps_per_call, replicas=1):
    """unit: what a token is called. replicas: how many runs share the machine."""
    self.unit, self.steps_per_call, self.replicas = unit, steps_per_call, replicas
    self.began = time.perf_counter()
    self.tokens = 0.0  # of documents (or images, clips) in its steps
    self.targets = 0.0  # those tokens that carried loss
    self.seconds = 0.0  # in steps; evaluation and saving left out
    self.earlier = 0.0  # seconds of the sessions before this one, everything included
    self.lane = ()  # index of this run in what the step returns
    self.pending = []  # (steps done, metrics on the device) of calls not fetched yet
    self.lap = 0.0  # seconds in steps since the last fetch
    self.latest = {}  # last fetched metrics

  def state(self):
    """What a checkpoint keeps."""
    return {
      'tokens': self.tokens,
      'targets': self.targets,
      'seconds': self.seconds,
      'wall': self.wall_seconds(),
      'latest': self.latest,
    }

  def restore(self, kept):
    """Go on from what `state` gave."""
    self.rewind(kept)
    self.earlier = kept.get('wall', self.seconds)

  def rewind(self, kept):
    """Count from there, but for the time, which goes on."""
    self.tokens, self.seconds = kept['tokens'], kept['seconds']
    self.targets = kept.get('targets', self.tokens)  # of runs that did not tell them apart
    self.latest = kept['latest']
    self.pending, self.lap = [], 0.0

  def add_step_time(self, seconds):
    """Add time in steps."""
    self.lap += seconds / self.replicas

  def block_until_ready(self, values):
    """Wait for the device, on the clock of the steps: what comes next is not charged for them."""
    start = time.perf_counter()
    jax.block_until_ready(values)
    self.add_step_time(time.perf_counter() - start)

  def add(self, step, metrics):
    """A call of the step that ended at `step` updates; its metrics are still on the device."""
    self.pending.append((step, metrics))

  def interval_is_complete(self, every):
    """Whether the calls not fetched yet fill an interval of so many steps."""
    first, last = self.pending[0][0] - self.steps_per_call, self.pending[-1][0]
    return last // every > first // every

  def fetch(self, scalars_of):
    """Fetch and count the pending calls -> (step, {name: number}, what skips.py looks at by step).

    scalars_of: {name: values by step} -> numbers of what is not one number a step.
    """
    start = time.perf_counter()
    fetched = jax.device_get([metrics for _, metrics in self.pending])
    self.add_step_time(time.perf_counter() - start)
    one = self.steps_per_call == 1
    stacked = (lambda x: np.asarray(x)[None]) if one else (lambda x: x)  # one axis of steps
    values = {k: np.concatenate([stacked(m[k][self.lane]) for m in fetched]) for k in fetched[0]}
    step, seconds = self.pending[-1][0], self.lap
    counts = {k: float(values.pop(k).sum(dtype=np.float64)) for k in COUNTS if k in values}
    self.pending, self.lap, tokens = [], 0.0, counts['tokens']
    self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
    self.targets += counts.get('targets', 0.0)
    skipped = values['skipped']
    means = {k: mean_of(values.pop(k), skipped == 0) for k in ('loss', 'objective')}
    means |= scalars_of(values)
    found = {k: values.pop(k) for k in GUARDED if k in values}
    scalars = {k: float(v[-1]) for k, v in values.items()} | means | self.counts()
    scalars |= {f'{self.unit}_per_second': tokens / seconds, 'step_seconds': seconds / len(skipped)}
    if skipped.any():
      scalars['skipped'] = float(skipped.sum())
    self.latest = scalars
    return step, scalars, found

  def counts(self):
    """What was trained on so far, by name."""
    return {self.unit: self.tokens} | ({'targets': self.targets} if self.targets else {})

  def wall_seconds(self):
    """Seconds of the machine's time that the run has taken, setting up and looking included."""
    return self.earlier + (time.perf_counter() - self.began) / self.replicas

  def totals(self):
    """The numbers of the whole run."""
    return {
      **self.counts(),
      'seconds': self.seconds,
      'goodput': self.seconds / self.wall_seconds(),
      'replicas': self.replicas,
      f'{self.unit}_per_second': self.tokens / self.seconds if self.seconds else None,
    }


def mean_of(value_S, accepted_S):
  """Mean over the steps that were not skipped: one NaN that changed nothing is no divergence."""
  return float(value_S[accepted_S].mean()) if accepted_S.any() else math.nan


def tail(lines, steps, unit='tokens'):
  """{metric: its mean over the lines of the last tenth of so many steps}; counts are left out."""
  last = [line for line in lines if line['step'] > 0.9 * steps]
  left_out = {'step', 'time', *COUNTS, unit}
  names = dict.fromkeys(name for line in last for name in line if name not in left_out)
  return {name: float(np.mean([line[name] for line in last if name in line])) for name in names}


def data_hash(fingerprint):
  """16 hex digits that are the same for runs on the same data, in whatever order."""
  content = {name: value for name, value in fingerprint.items() if name not in ('seed', 'order')}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
