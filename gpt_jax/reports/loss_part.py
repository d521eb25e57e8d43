"""The part of a run's report on its losses, or the accuracy of a job without a telling loss: the curves."""

import numpy as np

from gpt_jax.reports import figures, page
from gpt_jax.reports.job_metrics import is_mean_of_sources, metrics_of
from gpt_jax.reports.sections import Section

WIDE, NARROW = (1000, 340), (360, 260)  # pixels of the curves
RISE = 1.01  # of the lowest validation loss, beyond which a later one is said


def rise_since_best(run):
  """Return a sentence where the last validation loss is above the lowest, '' elsewhere."""
  steps, valid = run.column('valid_loss')
  if not np.isfinite(valid).any():
    return ''
  best = np.nanargmin(valid)
  if not valid[-1] > RISE * valid[best]:
    return ''
  return (
    f'The validation loss was lowest, {valid[best]:#.4g}, at step {steps[best]:,.0f}; at step '
    f'{steps[-1]:,.0f} it is {valid[-1]:#.4g} ({valid[-1] / valid[best] - 1:+.1%}).'
  )


def losses(run):
  """The loss curves: the raw training loss, its smoothed line, the validation points.

  A validation loss of another unit has a chart of its own, among the signals; one of several sources a chart
  of theirs, since training weighs sources by their tokens.
  """
  series, note, job = [], '', metrics_of(run)
  (steps, raw), (valid_steps, valid) = map(run.column, job.curves)
  if len(raw) > 40:
    series.append(figures.Series(run.x(steps), raw, 'faint'))
    note = f'Training {job.chart.lower()} as measured (faint) and smoothed over 4 % of the run.'
  if len(raw):
    line = figures.smooth(raw)
    series.append(figures.Series(run.x(steps), line, 'line', figures.FIRST, f'train {line[-1]:.3f}'))
  if len(valid) and job.losses_comparable and not is_mean_of_sources(run):
    label = f'valid {valid[-1]:.3f}'
    series.append(figures.Series(run.x(valid_steps), valid, 'points', figures.SECOND, label))
  y_limits, first = figures.limits(series), raw[np.isfinite(raw)][:1]
  if y_limits and len(first) and first[0] > y_limits[1]:
    note += f' The axis leaves out the first plunge, from {first[0]:.2f}.'
  if not np.isfinite(raw).all():
    note += ' Crosses: the loss was not finite.'
  restarts = [event['step'] for event in run.events if event['event'] == 'resume' and 'step' in event]
  options = dict(
    marks=[(run.x(step), 'restart') for step in restarts],
    units=(run.x_unit(), job.unit if job.losses_comparable else 'training objective'),
    room=92,
    label=f'{job.chart} against {run.x_unit()}: ' + ', '.join(s.label for s in series if s.label),
  )
  parts = pair('loss', series, options)
  if is_mean_of_sources(run) and job.losses_comparable and (of_sources := source_series(run)):
    note += ' Below: each source, training as a line and validation as points.'
    labels = ', '.join(line.label for line in of_sources if line.label)
    label = f'Loss of each source against {run.x_unit()}: {labels}'
    parts += pair('sources', of_sources, options | {'label': label})
  return Section(job.chart, parts, note.strip())


def pair(name, series, options):
  """Return one chart at two sizes."""
  draw = lambda width, size: figures.chart(series, name=f'{name} {width}', size=size, **options)
  return page.figure_pair(draw, WIDE, NARROW)


def source_series(run):
  """Return the curves of the first sources, in one color each: training a line, validation points."""
  names, series = sorted({name for row in run.metrics for name in row if name.startswith('valid_loss/')}), []
  for name, color in zip(names, figures.LINE_COLORS, strict=False):
    source = name.partition('/')[2]
    (steps, train), (valid_steps, valid) = run.column(f'loss/source/{source}'), run.column(name)
    if len(train):
      series.append(figures.Series(run.x(steps), figures.smooth(train), 'line', color))
    label = f'{source} {valid[-1]:.3f}'
    series.append(figures.Series(run.x(valid_steps), valid, 'points', color, label))
  return series
