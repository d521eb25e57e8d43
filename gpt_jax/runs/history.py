"""What a run folder says, as numbers: read once, asked by the reports.

Known, all optional:
  metrics.jsonl       loss valid_loss grad_norm lr tokens tokens_per_second mfu memory_gib
                      step_seconds, loss/MODALITY, loss/source/NAME, gradient_share/ of the same,
                      valid_loss/SOURCE and any other name; the loss in loggers.JOBS' units,
                      fractions, seconds. Older runs have loss/NAME for sources.
  events.jsonl        as gpt_jax.runs writes them; start and resume may carry `versions`
  result.json         the same names and parameters, bits_per_byte or valid_bits_per_byte, hardware:
                      they outrank metrics.jsonl; defaults_diff: {dotted key: its default};
                      evaluations: [{task, metric, value, ...}]
  evaluations.jsonl   later evaluations, one a line
"""

import dataclasses
import datetime
import itertools
import math
import pathlib

import numpy as np

from gpt_jax.runs import records, run_folder


@dataclasses.dataclass(frozen=True)
class Story:
  """All that a run folder holds but its samples and checkpoints."""

  folder: pathlib.Path
  config: dict
  metrics: list  # of {step, time, name: number}
  events: list  # of {time, event, ...}
  result: dict
  evaluations: list  # of {task, metric, value, ...}

  def column(self, name):
    """(steps, values) of a metric, float arrays, where it was measured."""
    rows = [(row['step'], row[name]) for row in self.metrics if name in row]
    return tuple(np.array(rows, float).reshape(-1, 2).T)

  def x(self, steps):
    """Tokens seen after these steps; the steps themselves where tokens were not counted."""
    known, tokens = self.column('tokens')
    return np.interp(steps, np.append(0, known), np.append(0, tokens)) if len(known) else steps

  def unit(self):
    """Of `x`."""
    return 'tokens' if len(self.column('tokens')[0]) else 'steps'

  def last_step(self):
    """The last step that was measured, or 0."""
    return self.metrics[-1]['step'] if self.metrics else 0

  def final(self, *names):
    """The number that result has under one of these names, or the last in metrics, or NaN."""
    found = (self.result[name] for name in names if self.result.get(name) is not None)
    measured = (self.column(name)[1][-1:] for name in names)
    return next(itertools.chain(found, *measured), math.nan)

  def typical(self, name):
    """The number that result has, or the median of the metric, or NaN."""
    values = self.column(name)[1]
    values = values[np.isfinite(values)]
    if self.result.get(name) is not None:
      return self.result[name]
    return float(np.median(values)) if len(values) else math.nan

  def versions(self):
    """Versions that the last start or resume recorded."""
    return next((event['versions'] for event in self.events[::-1] if 'versions' in event), {})

  def hardware(self):
    """Number and kind of devices, or ''."""
    return self.result.get('hardware') or self.versions().get('device', '')

  def sessions(self):
    """[(first second, last second, first step)] of each process that worked on the run."""
    moments = [(seconds(event['time']), event) for event in self.events]
    moments += [(row['time'], row) for row in self.metrics if 'time' in row]
    found = []
    for moment, row in sorted(moments, key=lambda pair: pair[0]):
      if row.get('event') in ('start', 'resume') or not found:
        found.append([moment, moment, row.get('step', 0)])
      found[-1][1] = moment
    return found

  def wall_seconds(self):
    """Time from the first to the last sign of life, less the pauses between sessions."""
    return sum(last - first for first, last, _ in self.sessions())


def seconds(moment):
  """Unix seconds of an ISO 8601 time."""
  return datetime.datetime.fromisoformat(moment).timestamp()


def read(workdir):
  """The Story of a run folder, finished or not.

  Raises:
    FileNotFoundError, ValueError: there is no run, or a file of it cannot be read.
  """
  folder = pathlib.Path(workdir).expanduser().resolve()
  config, metrics, result = (
    reader(workdir) for reader in (run_folder.read_config, run_folder.read_metrics, run_folder.read_result)
  )
  later = records.read_lines(folder / 'evaluations.jsonl')
  evaluations = [*result.get('evaluations', ()), *later]
  if metrics and result.get('steps', math.inf) < metrics[-1]['step']:
    result = {}  # of a shorter training, which has since been extended
  return Story(folder, config, metrics, run_folder.read_events(workdir), result, evaluations)
