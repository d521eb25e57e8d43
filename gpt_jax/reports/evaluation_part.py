"""The part of a run's report on evaluation tasks: the scores that matter, then every row by task."""

import math

import numpy as np

from gpt_jax.reports import figures, page
from gpt_jax.reports.sections import Section, make_table
from gpt_jax.runs.history import is_number
from gpt_jax.runs.metric_names import headlines as first_scores
from gpt_jax.runs.metric_names import score_name

TILES = 6  # scores among the key numbers at the top of a page
NAMES = ('task', 'source', 'split')  # keys that name one evaluation
COLUMNS = (*NAMES, 'metric', 'value', 'interval', 'chance', 'baseline', 'unit', 'sampling')
COLUMNS += ('difference', 'difference_interval')
# Color and label of a score during training, and of checkpoints that were scored later.
STYLES = ((figures.FIRST, 'training'), (figures.SECOND, 'evaluate'))
HEADER = ('metric', 'of', '>value', '>interval', '>chance', '>baseline', '')


def headlines(run):
  """Return {(task, source, split): row}: the last of the first metric with a chance level of each task.

  Without controls, reconstructions, and rows of other data than the run's own.
  """
  rows, metrics = {}, {}
  for row in run.evaluations:
    is_own = not {'of', 'control', 'step'} & set(row) and not any(key.startswith('data.') for key in row)
    if 'chance' in row and is_own and row['metric'] == metrics.setdefault(evaluation_of(row), row['metric']):
      rows[evaluation_of(row)] = row
  return rows


def evaluation_of(row):
  """Return (task, source, split) of a row, '' for what it does not name."""
  return tuple(str(row.get(key, '')) for key in NAMES)


def tiles(run):
  """Return [(label, text)] of the headlines."""
  chosen = list(headlines(run).items())[:TILES]
  return [
    (f'{tile_name(*name)}: {words(row["metric"])}, chance {percent(row["chance"])}', percent(row['value']))
    for name, row in chosen
  ]


def tile_name(task, source, split):
  """Return the name of an evaluation; validation is the usual split."""
  return ' '.join(dict.fromkeys(filter(None, (task, source, '' if split == 'valid' else split))))


def percent(value):
  """Format a share: 0.95 -> '95.0%'; another number as it is."""
  return f'{value:.1%}' if 0 <= value <= 1 else f'{value:.4g}'


def words(name):
  """Return a metric's name as words."""
  return name.replace('_', ' ')


def join(*texts):
  """Join the texts that are not empty."""
  return ' \u00b7 '.join(filter(None, texts))


def curve_chances(run):
  """Return {TASK/SOURCE/METRIC: chance} of the scores that the run measured at train.tasks_every."""
  events = [event['chances'] for event in run.events if isinstance(event.get('chances'), dict)]
  return {name: chance for name, chance in (events[-1] if events else {}).items() if is_number(chance)}


def checkpoint_rows(run):
  """Return the rows of `launch.py evaluate --step` and `--watch` on the run's own validation data."""
  is_own = lambda row: (
    row.get('split', 'valid') == 'valid' and not any(key.startswith('data.') for key in row)
  )
  return [row for row in run.evaluations if is_number(row.get('step')) and is_own(row) and 'shots' not in row]


def curves(run):
  """A chart of the first score of each task and source against training, with its chance level."""
  charts, later = [], checkpoint_rows(run)
  chances = {score_name(row): row['chance'] for row in first_scores(later)} | curve_chances(run)
  for name, chance in chances.items():
    points = {row['step']: row['value'] for row in later if score_name(row) == name}
    lines = [run.column(name), np.array(sorted(points.items()), float).reshape(-1, 2).T]
    lines = [(run.x(steps), y, *style) for (steps, y), style in zip(lines, STYLES, strict=True) if len(y)]
    ends = np.array([min(x[0] for x, *_ in lines), max(x[-1] for x, *_ in lines)])
    series = [figures.Series(ends, np.full(2, float(chance)), 'line', figures.MUTED, 'chance')]
    series += [figures.Series(x, y, 'points', color, label) for x, y, color, label in lines]
    task, source, metric = name.split('/')[:3]
    label = f'{task} {source}: {words(metric)} against {run.x_unit()}'
    svg = figures.chart(series, name=f'curve {name}', label=label, size=page.SMALL, room=76)
    if svg:
      value = percent(lines[-1][1][-1])
      charts.append(page.small_figure(f'{join(task, source)}: {words(metric)}', value, svg))
  limit = run.config.get('train', {}).get('tasks_limit')
  note = 'During training' + (f' on {limit:,} validation examples of each source' if limit else '')
  note += '; checkpoints as launch.py evaluate scored them later.' if later else '.'
  return Section('Tasks', [page.multiples(charts)], note)


def evaluations(run):
  """The results of evaluation tasks, each once, against chance and a baseline; perplexity comes last."""
  groups = {}
  for row in {repr(sorted(row.items())): row for row in run.evaluations}.values():
    groups.setdefault(evaluation_of(row), []).append(row)
  top = [
    (*name[:2], *score_cells(row, row_details(row, {}))[:1], *score_cells(row, '')[2:])
    for name, row in headlines(run).items()
  ]
  parts = [make_table(('task', 'source', *HEADER[:1], *HEADER[2:]), top, 'wide scores')] if top else []
  for name, rows in sorted(groups.items(), key=lambda group: group[0][0] == 'perplexity'):
    shared = {k: v for k, v in rows[0].items() if all(row.get(k) == v for row in rows)} if rows[1:] else {}
    title = page.element('b', join(*name)), page.element('small', ' ' + row_details(shared, {}))
    table = make_table(HEADER, [score_cells(row, row_details(row, shared)) for row in rows], 'wide scores')
    parts += [page.element('h3', *title, kind='spaced'), table]
  note = 'Bars: scores from 0 to 1, with a gray tick at chance and a dark one at the baseline.'
  return Section('Evaluation', parts, note if top else '')


def row_details(row, shared):
  """Return what a row says beside its scores, without what all rows of its table share."""
  others = {k: v for k, v in row.items() if k not in COLUMNS and k not in shared}
  return ', '.join(f'{k} {v:,}' if isinstance(v, int | float) else str(v) for k, v in others.items())


def score_cells(row, details):
  """Return the cells of HEADER."""
  number = lambda key: f'{row[key]:.4g}' if is_number(row.get(key)) else ''
  return (
    ', '.join(filter(None, [words(row['metric']), str(row.get('unit', ''))])),
    page.element_unless_empty('span', details, kind='about'),
    page.strong(number('value')),
    ' to '.join(f'{bound:.4g}' for bound in row.get('interval', ()) if is_number(bound)),
    number('chance'),
    number('baseline') + difference(row),
    meter(row),
  )


def difference(row):
  """Return a second line of the baseline's cell: what the value exceeds it by, with its interval."""
  interval = row.get('difference_interval')
  if not (isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval))):
    return ''
  return f'\n{row["difference"]:+.3g} ({interval[0]:+.3g} to {interval[1]:+.3g})'


def meter(row):
  """Return a bar for a value from 0 to 1, with ticks at chance and at the baseline; '' without either."""
  levels = {key: row[key] for key in ('chance', 'baseline') if is_number(row.get(key))}
  if not levels or not all(0 <= x <= 1 for x in (row['value'], *levels.values()) if math.isfinite(x)):
    return ''
  if not math.isfinite(row['value']):
    return ''
  ticks = [page.element('b', style=f'left:min({x:.1%}, 100% - 2px)', kind=key) for key, x in levels.items()]
  bar = page.element('i', style=f'width:{row["value"]:.1%}')
  return page.element(
    'div', bar, *ticks, kind='meter', title=', '.join(f'{k} {x:.4g}' for k, x in levels.items())
  )
