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
start to the last record. A clock that was set back between two records, or differs between machines, gives an
interval below zero: it counts as zero, and `clock_faults` counts it.
"""

import dataclasses
import datetime
import functools
import itertools
import math
import pathlib
import re

import numpy as np

from gpt_jax.runs import provenance, records, run_folder
from gpt_jax.runs.reading import check_types

PHASES = ('steps', 'startup', 'compile', 'evaluate', 'checkpoint', 'lost', 'waiting', 'other')
SECONDS_KEYS = {'compile': 'seconds', 'evaluate': 'seconds', 'checkpoint': 'blocked_seconds'}
SESSION_STARTS = ('start', 'resume')
EVENT_TYPES = {
  'event': str,
  'step': int,
  'type': str,
  'file': str,
  'startup': dict,
  'versions': dict,
  'changed': dict,
}
CLEANED = {str: {'removed': {str: int}, 'replaced': {str: int}}}  # of event clean
PRIVACY = {  # of result.json
  'unit': str,
  'epsilon': int | float,
  'delta': int | float,
  'mechanism': str,
  'neighbors': str,
  'clip': int | float,
  'noise_multiplier': int | float,
  'sampling_rate': int | float,
  'units': int,
  'steps': int,
  'accountant': str,
  'not_covered': [str],
}
EVALUATION_TYPES = {'task': str, 'metric': str, 'value': int | float, 'interval': list}
SAMPLE_NAME = re.compile(r'[\w.-]{1,200}', re.ASCII)
CLOCK_TOLERANCE = 1.0  # seconds by which a record may be older than the one before: times are rounded


@dataclasses.dataclass
class Session:
  """The work of one process on a run; times in seconds since the run began, which never go back."""

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
  unreadable: int = 0  # records that were left out: of other types than above

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
    results = (self.result[name] for name in names if is_number(self.result.get(name)))
    measured = (self.column(name)[1][-1:] for name in names)
    return next(itertools.chain(results, *measured), math.nan)

  def typical(self, name):
    """Return the result's number, or the median of the metric, or NaN."""
    if is_number(self.result.get(name)):
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

  def cleaned(self):
    """Return {source: {'removed': counts, 'replaced': counts}} of what filters and scrubbing did, or {}."""
    return _of_types(
      next((e.get('sources') for e in self.events[::-1] if e['event'] == 'clean'), {}), CLEANED
    )

  def privacy(self):
    """Return the statement of private training, of types PRIVACY, or {}."""
    return _of_types(self.result.get('privacy') or {}, PRIVACY)

  @functools.cached_property
  def timeline(self):
    """Return (Sessions in order, intervals below zero in seconds), from the order of the records."""
    sessions, faults, now, last = [], [], 0.0, math.nan  # now: seconds of the run; last: Unix seconds
    rows = [(unix_seconds(event.get('time')), event) for event in self.events]
    measured = [(number(row.get('time')), row) for row in self.metrics]
    if not rows:
      rows = measured
    elif measured and measured[-1][0] > rows[-1][0]:  # metrics after the last event of a run that goes on
      rows = [*rows, measured[-1]]
    for second, row in rows:
      interval = number(second - last, 0.0)
      startup = sum(max(0.0, number(seconds, 0.0)) for seconds in dict(row.get('startup') or {}).values())
      if interval < -CLOCK_TOLERANCE:
        faults.append(interval)
      interval, last = max(interval, 0.0), second if math.isfinite(second) else last
      if row.get('event') in SESSION_STARTS or not sessions:
        begin = now + max(interval - startup, 0.0)
        now = begin + startup
        sessions.append(Session(begin, now, now, row.get('step', 0), []))
      else:
        now += interval
      sessions[-1].end = now
      if 'event' in row:
        sessions[-1].events.append((now, row))
    is_idle = lambda session: len(session.events) == 1 and session.step == self.result.get('steps')
    return [session for k, session in enumerate(sessions) if not (k and is_idle(session))], faults

  def sessions(self):
    """Return the Sessions, in order, without those that began after the run had finished."""
    return self.timeline[0]

  def clock_faults(self):
    """Return a sentence on intervals below zero, '' if there are none."""
    faults = self.timeline[1]
    if not faults:
      return ''
    count = f'{len(faults)} records are' if len(faults) > 1 else 'A record is'
    by = f'up to {-min(faults):,.0f} s' if len(faults) > 1 else f'{-faults[0]:,.0f} s'
    return (
      f'{count} {by} older than the record before: the clock was set back, or machines differ. Such '
      'intervals count as zero.'
    )

  def altered_files(self):
    """Return the names of samples and diffs that exist with other bytes than the run wrote."""
    expected = {}
    for event in self.events:
      if event['event'] == 'sample' and 'digest' in event and SAMPLE_NAME.fullmatch(event.get('file', '')):
        expected[f'samples/{event["file"]}'] = event['digest']
      if digest := event.get('versions', {}).get('uncommitted'):
        first = 'uncommitted.diff'
        expected[first if expected.get(first, digest) == digest else f'uncommitted-{digest}.diff'] = digest
    paths = {name: self.folder / name for name in expected}
    return [
      name
      for name, path in paths.items()
      if path.is_file() and provenance.short_hash(path.read_bytes()) != expected[name]
    ]

  def is_finished(self):
    """Whether the result is that of the whole training."""
    steps = self.config.get('train', {}).get('steps')
    return bool(self.result) and steps in (None, self.result.get('steps', steps))

  def wall_seconds(self):
    """Return the seconds from the first to the last record, less the pauses between sessions."""
    return sum(session.end - session.start for session in self.sessions())


def unix_seconds(time):
  """Return the Unix seconds of an ISO 8601 time, NaN if it is none."""
  try:
    return datetime.datetime.fromisoformat(time).timestamp()
  except (TypeError, ValueError, OverflowError):
    return math.nan


def is_number(value):
  """Whether a value of a JSON file is a number, NaN included."""
  return isinstance(value, int | float) and not isinstance(value, bool)


def number(value, default=math.nan):
  """Return a finite number as it is, anything else as the default."""
  return value if is_number(value) and math.isfinite(value) else default


def read_history(workdir):
  """Return the History of a run folder, finished or not.

  Records that no version of this program writes are left out and counted.
  Raises FileNotFoundError or ValueError: there is no run, or a file of it cannot be read.
  """
  folder = pathlib.Path(workdir).expanduser().resolve()
  config, lines = run_folder.read_config(workdir), run_folder.read_metrics(workdir)
  result, events = run_folder.read_result(workdir), run_folder.read_events(workdir)
  evaluations = [*(result.get('evaluations') or ()), *records.read_lines(folder / 'evaluations.jsonl')]
  metrics = [{name: x for name, x in line.items() if is_number(x)} for line in lines]
  of_known_types = (
    [row for row in metrics if math.isfinite(row.get('step', math.nan))],
    [event for event in events if has_types(event, EVENT_TYPES, ('event',))],
    [row for row in evaluations if has_types(row, EVALUATION_TYPES, ('task', 'metric', 'value'))],
  )
  unreadable = sum(map(len, (lines, events, evaluations))) - sum(map(len, of_known_types))
  metrics, events, evaluations = of_known_types
  if metrics and number(result.get('steps'), math.inf) < metrics[-1]['step']:
    result = {}  # the result of a shorter training, which was extended since
  return History(folder, config, metrics, events, result, evaluations, unreadable)


def has_types(record, types, required):
  """Whether a record has the required keys, and values of these types where it has their keys."""
  if not isinstance(record, dict) or any(key not in record for key in required):
    return False
  return all(isinstance(record[key], kind) for key, kind in types.items() if key in record)


def _of_types(value, types):
  """Return a record of types that `check_types` checks, {} if it has others."""
  try:
    return check_types(value, types)
  except ValueError:
    return {}


# -------------------------------------------------------------------------------------- goodput


def seconds_by_phase(run):
  """Return {phase: seconds >= 0} of a History, in the order of PHASES; {} before the first event."""
  if not run.events:
    return {}
  sessions, phases = run.sessions(), dict.fromkeys(PHASES, 0.0)
  for session, following in itertools.zip_longest(sessions, sessions[1:]):
    add_session(phases, session, following)
    if following:
      phases['waiting'] += following.begin - session.end
  rows = [(row['step'], number(row.get('step_seconds'), 0.0)) for row in run.metrics if 'step_seconds' in row]
  # metrics.jsonl holds only steps that count; a branch begins at a step above 0.
  first_steps = [sessions[0].step if run.events[0]['event'] == 'start' else 0, *(step for step, _ in rows)]
  phases['steps'] = sum(
    seconds * (step - first) for (step, seconds), first in zip(rows, first_steps, strict=False)
  )
  phases = {name: max(0.0, seconds) for name, seconds in phases.items()}
  phases['other'] = max(0.0, sessions[-1].end - sessions[0].begin - sum(phases.values()))
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
      seconds = max(0.0, number(event.get(SECONDS_KEYS[name]), 0.0))
      phases[name] += seconds
      phases['lost'] -= seconds if is_lost(second) else 0.0


def lost_intervals(session, following):
  """Return [(from, to)] in seconds: work after the checkpoint from which the run was resumed."""
  ends = [(second, event.get('step')) for second, event in session.events if event['event'] == 'go_back']
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
