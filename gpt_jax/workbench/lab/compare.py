"""Curves of runs on shared axes, and their samples side by side."""

import math

import numpy as np

from gpt_jax.runs import history
from gpt_jax.workbench.lab import args
from gpt_jax.workbench.lab.tail import column

AXES = ('steps', 'tokens', 'FLOPs', 'hours')
DEFAULT = ('loss', 'valid_loss')  # metrics where none are chosen
MAX_METRICS, MAX_SAMPLES, MAX_CHARACTERS = 12, 24, 3000
MEDIA = {'.png': 'image/png', '.jpg': 'image/jpeg', '.wav': 'audio/wav', '.txt': 'text/plain; charset=utf-8'}


def curves(lab, query):
  """GET /api/curves?run=a&run=b&metric=loss&x=steps&smooth=0.02: thinned curves of runs.

  smooth: share of the points over which a curve is averaged; the curve as measured comes along as `raw`.
  Returns {x, runs: [{name, state, restarts}], known: metrics, charts: [{metric, title, lines: [{run, x, y,
  raw}]}], notes}.
  """
  from gpt_jax.runs import metric_names

  names, axis = args.runs(query), args.choice(query, 'x', AXES)
  smooth = args.number(query, 'smooth', 0.0, 0.0, 0.5)
  chosen = args.texts(query, 'metric')[:MAX_METRICS] or list(DEFAULT)
  folders = {name: lab.index.run(name) for name in names}
  rows = {name: lab.index.metrics(folder) for name, folder in folders.items()}
  known = sorted(set().union(*(row.keys() for each in rows.values() for row in each)) - {'step', 'time'})
  charts, notes, xs = [], [], {}
  for name, folder in folders.items():
    xs[name] = axis_values(axis, rows[name], lab.index.events(folder), lab.index.row(folder))
    if rows[name] and xs[name] is None:
      notes.append(f'{name} has no {axis}')
  for metric in chosen:
    lines = []
    for name in names:
      if xs[name] is not None and (line := curve(rows[name], xs[name], metric, smooth)):
        lines.append({'run': name} | line)
    charts.append({'metric': metric, 'title': metric_names.title(metric), 'lines': lines})
  states = [{'name': name, 'state': lab.index.state(folder)['state']} for name, folder in folders.items()]
  return {'x': axis, 'runs': states, 'known': known, 'charts': charts, 'notes': notes}


def axis_values(axis, rows, events, row):
  """Return the x of each record of metrics.jsonl, float array, or None where it is not known.

  row: of store.table_row, whose `flops` and `tokens` give the FLOPs of a token.
  """
  steps = np.array([record['step'] for record in rows], float)
  if axis == 'steps' or not len(steps):
    return steps
  if axis == 'hours':
    return working_seconds(rows, events) / 3600
  places, tokens = column(rows, 'tokens')
  if not places:
    return None
  x = np.interp(steps, np.append(0, steps[places]), np.append(0, tokens))
  if axis == 'tokens':
    return x
  flops, total = history.number(row.get('flops')), history.number(row.get('tokens'))
  return x * flops / total if flops > 0 and total > 0 else None


def working_seconds(rows, events):
  """Return the seconds of work before each record: without the pauses before a session that resumes."""
  times = np.array([history.number(record.get('time'), 0.0) for record in rows])
  starts = [history.unix_seconds(e.get('time')) for e in events if e['event'] in history.SESSION_STARTS]
  begin = starts[0] if starts and math.isfinite(starts[0]) else times[0]
  seconds = np.maximum(times - begin, 0.0)
  for start in starts[1:]:
    before = times[times < start]
    if len(before) and len(before) < len(times):
      seconds[len(before) :] -= start - before[-1]
  return np.maximum.accumulate(np.maximum(seconds, 0.0))


def curve(rows, x, metric, smooth):
  """Return {x, y} of one metric, thinned, and with smoothing raw: [x, y]; None where it was not measured."""
  from gpt_jax.reports import figures

  places, values = column(rows, metric)
  if not places:
    return None
  x, y = x[places], np.array(values)
  line = dict(zip(('x', 'y'), map(numbers, figures.thin(x, y)), strict=True))
  if smooth and len(y) > 40:
    smoothed = figures.thin(x, figures.smooth(y, smooth))
    line = dict(zip(('x', 'y'), map(numbers, smoothed), strict=True)) | {'raw': [line['x'], line['y']]}
  return line | {'points': len(y)}


def numbers(array):
  """Return floats for JSON with six digits; None for NaN and infinities."""
  return [float(f'{value:.6g}') if math.isfinite(value) else None for value in array.tolist()]


# -------------------------------------------------------------------------------------- samples


def samples(lab, query):
  """GET /api/samples?run=a&run=b&step=N: the samples of runs at their last step up to N, by name.

  Returns {steps: all, columns: [{run, step, samples: {NAME: {kind, file, text}}}], names}.
  """
  names, most = args.runs(query), args.number(query, 'step', 1 << 60, 0, 1 << 60)
  columns, steps = [], set()
  for name in names:
    by_step = list_samples(lab.index.run(name))
    steps |= by_step.keys()
    step = max((s for s in by_step if s <= most), default=None)
    files = {}
    for path in by_step.get(step, [])[:MAX_SAMPLES]:
      title = path.stem.split('_', 2)[2] if path.stem.count('_') > 1 else 'text'
      kind = MEDIA[path.suffix].partition('/')[0]
      text = ''
      if kind == 'text':
        with path.open(encoding='utf-8', errors='replace') as file:
          text = file.read(MAX_CHARACTERS)
      files[f'{title} ({kind})' if kind != 'text' else title] = {
        'kind': kind,
        'file': path.name,
        'text': text,
      }
    columns.append({'run': name, 'step': step, 'samples': files})
  titles = sorted({title for column in columns for title in column['samples']})
  return {'steps': sorted(steps), 'columns': columns, 'names': titles}


def list_samples(folder):
  """Return {step: [path]} of the samples of a run that can be shown."""
  from gpt_jax.reports import page

  steps = page.samples_by_step(folder / 'samples')
  return {step: [path for path in paths if path.suffix in MEDIA] for step, paths in steps.items()}


def sample_file(lab, query):
  """GET /file?run=NAME&file=NAME: (content, type) of one sample; only files that `samples` lists."""
  folder, wanted = lab.index.run(args.text(query, 'run')), args.text(query, 'file')
  for paths in list_samples(folder).values():
    for path in paths:
      if path.name == wanted:
        return path.read_bytes(), MEDIA[path.suffix]
  raise FileNotFoundError(f'there is no sample {wanted[:200]!r}\nfix: choose one of the list')
