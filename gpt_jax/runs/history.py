"""Read a run folder for reports: metrics, sessions, and goodput over all sessions.

Keys that the reports know, all optional:
  metrics.jsonl       loss valid_loss grad_norm lr tokens tokens_per_second mfu memory_gib
                      step_seconds, loss/MODALITY, loss/source/NAME, gradient_share/ of the same,
                      valid_loss/SOURCE and any other name; losses in the job's units (reports'
                      JOB_METRICS), fractions, seconds
  events.jsonl        see run_folder; start and resume may carry `versions`
  result.json         the same names and parameters, bits_per_byte or valid_bits_per_byte, hardware,
                      which outrank metrics.jsonl; defaults_diff: {dotted key: its default};
                      evaluations: [{task, metric, value, ...}]
  evaluations.jsonl   later evaluations, one a line

Goodput is the share of a run's time in steps that count. A session is the work of one process, from
`startup` seconds before its start or resume event to its last record. Lost is the time between a checkpoint
and the kill or rewind after which training continued from it. The phases add up to the time from the first
start to the last record.
"""

import dataclasses
import datetime
import itertools
import math
import pathlib

import numpy as np

from gpt_jax.runs import records, run_folder

PHASES = ('steps', 'startup', 'compile', 'evaluate', 'checkpoint', 'lost', 'waiting', 'other')
SECONDS_KEYS = {'compile': 'seconds', 'evaluate': 'seconds', 'checkpoint': 'blocked_seconds'}
SESSION_STARTS = ('start', 'resume')


@dataclasses.dataclass
class Session:
  """The work of one process on a run; times in Unix seconds."""

  begin: float  # of the process: `startup` seconds before its first record
  start: float  # first record
  end: float  # last record
  step: int  # updates made before
  events: list  # [(second, event)]


@dataclasses.dataclass(frozen=True)
class History:
  """All records of a run folder except samples and checkpoints."""

  folder: pathlib.Path
  config: dict
  metrics: list  # of {step, time, name: number}
  events: list  # of {time, event, ...}
  result: dict
  evaluations: list  # of {task, metric, value, ...}

  def column(self, name):
    """Return (steps, values) of a metric, float arrays, where it was measured."""
    rows = [(row['step'], row[name]) for row in self.metrics if name in row]
    return tuple(np.array(rows, float).reshape(-1, 2).T)

  def x(self, steps):
    """Return the tokens seen after these steps, or the steps where tokens were not counted."""
    token_steps, tokens = self.column('tokens')
    return np.interp(steps, np.append(0, token_steps), np.append(0, tokens)) if len(tokens) else steps

  def x_unit(self):
    """Return the unit of `x`: tokens or steps."""
    return 'tokens' if len(self.column('tokens')[0]) else 'steps'

  def final(self, *names):
    """Return the result's number under one of these names, or the last measured one, or NaN."""
    results = (self.result[name] for name in names if self.result.get(name) is not None)
    measured = (self.column(name)[1][-1:] for name in names)
    return next(itertools.chain(results, *measured), math.nan)

  def typical(self, name):
    """Return the result's number, or the median of the metric, or NaN."""
    if self.result.get(name) is not None:
      return self.result[name]
    values = self.column(name)[1]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else math.nan

  def versions(self):
    """Return the versions that the last start or resume recorded."""
    return next((event['versions'] for event in self.events[::-1] if 'versions' in event), {})

  def hardware(self):
    """Return the number and kind of devices, or ''."""
    return self.result.get('hardware') or self.versions().get('device', '')

  def sessions(self):
    """Return the Sessions, in order."""
    rows = [(unix_seconds(event['time']), event) for event in self.events]
    rows += [(row['time'], row) for row in self.metrics if 'time' in row]
    sessions = []
    for second, row in sorted(rows, key=lambda pair: pair[0]):
      if row.get('event') in SESSION_STARTS or not sessions:
        begin = second - sum(row.get('startup', {}).values())
        sessions.append(Session(begin, second, second, row.get('step', 0), []))
      sessions[-1].end = second
      if 'event' in row:
        sessions[-1].events.append((second, row))
    return sessions

  def wall_seconds(self):
    """Return the seconds from the first to the last record, less the pauses between sessions."""
    return sum(session.end - session.start for session in self.sessions())


def unix_seconds(time):
  """Return the Unix seconds of an ISO 8601 time."""
  return datetime.datetime.fromisoformat(time).timestamp()


def read_history(workdir):
  """Return the History of a run folder, finished or not.

  Raises FileNotFoundError or ValueError: there is no run, or a file of it cannot be read.
  """
  folder = pathlib.Path(workdir).expanduser().resolve()
  config, metrics = run_folder.read_config(workdir), run_folder.read_metrics(workdir)
  result, events = run_folder.read_result(workdir), run_folder.read_events(workdir)
  later = records.read_lines(folder / 'evaluations.jsonl')
  evaluations = [*result.get('evaluations', ()), *later]
  if metrics and result.get('steps', math.inf) < metrics[-1]['step']:
    result = {}  # the result of a shorter training, which was extended since
  return History(folder, config, metrics, events, result, evaluations)


# -------------------------------------------------------------------------------------- goodput


def seconds_by_phase(run):
  """Return {phase: seconds} of a History, in the order of PHASES; {} before the first event."""
  if not run.events:
    return {}
  sessions, phases = run.sessions(), dict.fromkeys(PHASES, 0.0)
  for session, following in itertools.zip_longest(sessions, sessions[1:]):
    add_session(phases, session, following)
    if following:
      phases['waiting'] += max(0.0, following.begin - session.end)
  rows = [(row['step'], row['step_seconds']) for row in run.metrics if 'step_seconds' in row]
  first_steps = [0, *(step for step, _ in rows)]  # metrics.jsonl holds only steps that count
  phases['steps'] = sum(
    seconds * (step - first) for (step, seconds), first in zip(rows, first_steps, strict=False)
  )
  phases['other'] = sessions[-1].end - sessions[0].begin - sum(phases.values())
  return phases


def add_session(phases, session, following):
  """Add the seconds that one Session's events record; `following`: the next Session or None."""
  intervals = lost_intervals(session, following)
  is_lost = lambda second: any(first < second <= last for first, last in intervals)
  phases['startup'] += session.start - session.begin
  phases['lost'] += sum(last - first for first, last in intervals)
  for second, event in session.events:
    name = event['event']
    if name in SECONDS_KEYS and (name == 'compile' or not is_lost(second)):
      seconds = event.get(SECONDS_KEYS[name], 0.0)
      phases[name] += seconds
      phases['lost'] -= seconds if is_lost(second) else 0.0


def lost_intervals(session, following):
  """Return [(from, to)] in seconds: work after the checkpoint from which the run was resumed."""
  ends = [(second, event['step']) for second, event in session.events if event['event'] == 'go_back']
  if following and not any(event['event'] in ('preempted', 'done') for _, event in session.events):
    ends.append((session.end, following.step))
  intervals = []
  for end, step in ends:
    saves = [
      second
      for second, event in session.events
      if second < end and event['event'] == 'checkpoint' and event.get('step') == step
    ]
    intervals.append((max([session.start, *saves, *(last for _, last in intervals)]), end))
  return intervals


def describe_goodput(run):
  """Return one line on a History's goodput, '' before the first event."""
  phases = seconds_by_phase(run)
  total = sum(phases.values())
  if total <= 0:
    return ''
  shares = ', '.join(f'{name} {s / total:.1%}' for name, s in phases.items() if s / total >= 0.0005)
  return f'goodput {phases["steps"] / total:.1%} of {total:.1f} s: {shares}'
