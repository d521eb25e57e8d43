"""The report of one run: report.html, made from the run folder alone.

`runs.history` lists the keys that it shows; sections without data are left out.
"""

import math
import pathlib

import numpy as np

from gpt_jax.reports import data_page, evaluation_part, figures, page
from gpt_jax.reports.evaluation_part import curves, evaluations
from gpt_jax.reports.job_metrics import is_mean_of_sources, metrics_of
from gpt_jax.reports.loss_part import losses, rise_since_best
from gpt_jax.reports.predictions_part import predictions
from gpt_jax.reports.privacy_part import privacy
from gpt_jax.reports.sections import Section, make_table
from gpt_jax.reports.text_diff_part import text_diff
from gpt_jax.runs import ancestry, history, loggers, metric_names, records
from gpt_jax.runs.metric_names import METRICS, Metric, human
from gpt_jax.runs.text_table import join_some

MAX_CHARACTERS, MAX_FILES = 1500, 24  # of a sample; of one kind of image or sound
GROUPED_EVENTS = ('sample', 'checkpoint', 'evaluate', 'skipped')  # one line a session
# the last of these events: end of the verdict
ENDINGS = {
  'start': 'It has not finished.',
  'resume': 'It has not finished.',
  'preempted': 'It was preempted at step {step} and can be resumed.',
  'error': 'It was stopped by {type}.',
  'done': '',
}


def rewrite_report(workdir):
  """Write the report of a run again and return lines with its path and the goodput."""
  path, run = write_report(workdir), history.read_history(workdir)
  lines = [
    f'report: {path}',
    rise_since_best(run),
    history.describe_goodput(run),
    run.clock_faults(),
    altered_files(run),
  ]
  lines += ancestry.format_table(run.folder, run.config, run.final('tokens'))
  return '\n'.join(filter(None, lines))


def describe_report(workdir, again):
  """Write the report of a run, see `write_report`; return its path and what its validation loss did."""
  path = write_report(workdir, again)
  return '\n'.join(filter(None, [str(path), rise_since_best(history.read_history(workdir))]))


def write_report(workdir, again=True):
  """Write report.html into a run folder, finished or not, and return its path.

  again: False leaves a page that was written after the run's result.
  Raises FileNotFoundError or ValueError: there is no run, or a file of it cannot be read.
  """
  folder = pathlib.Path(workdir).expanduser().resolve()
  path, result = folder / 'report.html', folder / 'result.json'
  if not again and path.exists() and path.stat().st_mtime >= result.stat().st_mtime:
    return path
  records.write_atomically(path, render_html(history.read_history(workdir)))
  return path


@np.errstate(all='ignore')  # records may hold any number
def render_html(run):
  """Return the page of a History, as text."""
  sections = (losses, curves, samples, evaluations, predictions, text_diff, signals, layer_sizes)
  sections += (privacy, ancestors, cleaned_data, settings, timeline, reproduce)
  return page.document(f'{run.folder.name} \u00b7 gpt_jax', header(run), [part(run) for part in sections])


# --------------------------------------------------------------------------------------- header


def header(run):
  """Return title, verdict, alarms and key numbers."""
  date = [str(event['time'])[:10] for event in run.events[:1] if 'time' in event]
  text = page.element('p', verdict(run), kind='verdict')
  return page.header(
    ['gpt_jax run', *date], run.folder.name, text, alarms=alarms(run), tiles=key_numbers(run)
  )


def verdict(run):
  """Return one or two sentences: how good, after how much, on what, and whether it has finished."""
  last = next((e for e in run.events[::-1] if e['event'] in ENDINGS), {'event': 'start'})
  if run.is_finished():  # a kill may come between the result and its event
    last = {'event': 'done'}
  ending = ENDINGS[last['event']].format(step=last.get('step', '?'), type=last.get('type', ''))
  if not run.metrics:
    return f'Nothing has been measured yet. {ending}'.strip()
  job = metrics_of(run)
  train, (metric, sentence) = [math.nan, *figures.smooth(run.column(job.curves[0])[1])][-1], job.headline
  score, valid = 'No finite loss', run.final(metric)
  if math.isfinite(valid):
    same_aggregate = job.losses_comparable and not is_mean_of_sources(run)
    is_loss = metric == 'valid_loss' and math.isfinite(train)
    beside = f' (training {train:.3f})' if same_aggregate and is_loss else ''
    if job.losses_comparable and not same_aggregate:
      beside = f', the mean of its sources ({of_each_source(run)}),'
    score = f'{sentence.format(valid)}{beside}'
  elif math.isfinite(train):
    unit = f' {job.unit}' if job.losses_comparable else ''
    score = f'Training {job.chart.lower()} {train:.3f}{unit}, without validation,'
  items = run.final(job.items)
  amount = f' and {human(items)} {job.items}' if math.isfinite(items) else ''
  place = f' on {run.hardware()}' if run.hardware() else ''
  steps, time = run.metrics[-1]['step'], duration_in_words(run.wall_seconds())
  return f'{score} after {steps:,} steps{amount} in {time}{place}. {ending}'.strip()


def of_each_source(run):
  """Return the last validation loss of each source, as in 'make 1.375, name 0.694'."""
  names = sorted({name for row in run.metrics for name in row if name.startswith('valid_loss/')})
  return join_some([f'{name.partition("/")[2]} {run.final(name):.3f}' for name in names], 5)


def duration_in_words(seconds):
  """Format seconds: 331 -> '5.5 minutes'."""
  for size, unit in ((86400, 'days'), (3600, 'hours'), (60, 'minutes')):
    if seconds >= 1.5 * size:
      return f'{seconds / size:.1f}'.removesuffix('.0') + f' {unit}'
  return f'{seconds:.0f} seconds'


def alarms(run):
  """Yield what a reader must not overlook."""
  if lost := lost_metrics(run):
    yield lost
  if run.unreadable:
    yield f'{run.unreadable} unreadable records of its files are left out.'
  yield from filter(None, (run.clock_faults(), altered_files(run)))
  steps, loss = run.column('loss')
  bad_steps = steps[~np.isfinite(loss)]
  if len(bad_steps):
    count = f'{len(bad_steps)} of {len(loss)} reports'
    yield f'The loss was not finite in {count}, first at step {bad_steps[0]:,.0f}.'
  if rise := rise_since_best(run):
    yield rise


def altered_files(run):
  """Return a sentence on samples and diffs that are not as the run wrote them, '' if all are."""
  names = run.altered_files()
  return f'Altered since the run wrote them: {join_some(names)}.' if names else ''


def lost_metrics(run):
  """Return a sentence where metrics.jsonl lacks what events say was measured, '' where nothing is lost."""
  evaluated = [event['step'] for event in run.events if event['event'] == 'evaluate' and 'step' in event]
  first = run.metrics[0]['step'] if run.metrics else math.inf
  if any(step < first for step in evaluated):
    begins = f'begins at step {first:,}' if run.metrics else 'is missing or empty'
    return f'metrics.jsonl {begins}, but the run was evaluated at step {min(evaluated):,}: lines are lost.'
  drops = [event.get('dropped_lines') for event in run.events]
  count = sum(history.number(drop.get('unreadable'), 0) for drop in drops if isinstance(drop, dict))
  return f'{count} unreadable lines of its records were dropped when the run resumed.' if count else ''


def key_numbers(run):
  """Return [(label, text)] of the tiles; unknown numbers have no tile."""
  job = metrics_of(run)
  bits = run.final('valid_loss') / math.log(2) if job.in_nats else math.nan
  phases = history.seconds_by_phase(run)
  total = sum(phases.values())
  of_sources = ', mean of sources' if is_mean_of_sources(run) else ''
  name_of = lambda name: job.title(name) + (of_sources if name == 'valid_loss' else '')
  first = [(name_of(name), run.final(name), METRICS[name].show) for name in job.tiles]
  numbers = (
    ('bits per token', bits, '{:.3f}'.format),
    ('bits per byte', run.final('bits_per_byte', 'valid_bits_per_byte'), '{:.3f}'.format),
    (f'{job.items} per second', run.typical(f'{job.items}_per_second'), human),
    ('MFU', math.nan if is_beyond_peak(run) else run.typical('mfu'), METRICS['mfu'].show),
    ('parameters', run.final('parameters'), human),
    (job.items, run.final(job.items), human),
    ('wall time', run.wall_seconds() or math.nan, loggers.duration),
    ('goodput', phases['steps'] / total if total > 0 else math.nan, '{:.0%}'.format),
  )
  known = lambda numbers: [(label, show(value)) for label, value, show in numbers if math.isfinite(value)]
  return [*known(first), *evaluation_part.tiles(run), *known(numbers)]


def is_beyond_peak(run):
  """Return whether a run was faster than its hardware's peak, which was then measured beside other work."""
  return run.typical('mfu') > 1


# --------------------------------------------------------------------------------------- charts


def signals(run):
  """A small chart for every other metric, the known ones first."""
  names, job = {name for row in run.metrics for name in row}, metrics_of(run)
  names -= {'step', 'time', 'loss', job.curves[0], job.items, 'targets', 'mfu_causal'}
  names -= {*evaluation_part.curve_chances(run), *(['mfu'] if is_beyond_peak(run) else ())}
  names -= {job.curves[1]} if job.losses_comparable and not is_mean_of_sources(run) else set()
  names = [*(name for name in METRICS if name in names), *sorted(names - {*METRICS})]
  return Section('Signals', [page.multiples([signal(run, name) for name in names])])


def signal(run, name):
  """Return one small chart with its name and its last value."""
  job, title = metrics_of(run), metric_names.title(name)
  show = METRICS.get(name, Metric()).show
  if job.in_nats and name.startswith(('loss/', 'valid_loss')):
    show = lambda nats: f'{nats:.3f} nats, {nats / math.log(2):.3f} bits'
  if name == 'valid_loss':
    title = 'valid_loss, mean of sources' if job.losses_comparable else job.unit
  steps, y = run.column(name)
  line = figures.Series(run.x(steps), y, 'line' if len(y) > 40 else 'points')
  last = line.y[np.isfinite(y)][-1:]
  svg = figures.chart([line], name=f'small {name}', label=title, size=page.SMALL)
  return page.small_figure(title, show(last[0]) if len(last) else 'never finite', svg)


def layer_sizes(run):
  """Small charts from probes.jsonl: sizes of activations, gradients and updates by layer."""
  rows = records.read_lines(run.folder / 'probes.jsonl')
  layers = {path.split('/')[1] for row in rows for path in row['layers'] if path.startswith('blocks/')}
  layers, colors = sorted(layers, key=int), figures.LINE_COLORS
  chosen = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), len(colors))).astype(int))
  x, charts = run.x(np.array([row['step'] for row in rows], float)), []
  for kind in ('activation', 'gradient', 'update') if layers else ():
    lines = []
    for layer, color in zip((layers[i] for i in chosen), colors, strict=False):
      sizes = np.array([size_of(row['layers'], layer, kind) for row in rows])
      lines.append(figures.Series(x, sizes, 'points', color, layer))
    label = f'{kind} by layer'
    if svg := figures.chart(lines, name=f'probe {kind}', label=label, size=page.SMALL, room=28):
      charts.append(page.small_figure(kind, 'by layer', svg))
  note = (
    'Root mean squares of the entries: the activations that leave a layer, the gradients and the updates of '
    'its parameters.'
  )
  return Section('Inside the model', [page.multiples(charts)], note)


def size_of(layers, layer, kind):
  """Return one size of a layer in a row of probes.jsonl; NaN where it has none."""
  if kind == 'activation':
    return layers.get(f'blocks/{layer}', {}).get(kind, math.nan)
  of_layer = (sizes for path, sizes in layers.items() if path.startswith(f'blocks/{layer}/'))
  sizes = np.array([sizes[kind] for sizes in of_layer if kind in sizes], float)
  return np.sqrt(np.square(sizes).mean()) if len(sizes) else math.nan


def samples(run):
  """The first, middle and last samples of each kind; texts come last."""
  steps_by_kind = {}  # suffix: step: paths
  for step, paths in page.samples_by_step(run.folder / 'samples').items():
    for path in paths:
      steps_by_kind.setdefault(path.suffix, {}).setdefault(step, []).append(path)
  rows, (valid_steps, valid) = [], run.column('valid_loss')
  for suffix, paths in sorted(steps_by_kind.items(), key=lambda pair: pair[0] == '.txt'):
    known, articles = sorted(paths), []
    chosen = sorted({known[0], known[len(known) // 2], known[-1]})
    for step, path in [(s, path) for s in chosen for path in paths[s]][:MAX_FILES]:
      losses = [f'validation loss {v:.3f}' for v in valid[valid_steps == step] if suffix == '.txt']
      title = page.sample_title(path, f'step {step:,}', *losses)
      articles.append(page.sample(path, title, MAX_CHARACTERS))
    rows.append(page.element('div', *articles, kind='texts' if suffix == '.txt' else 'media'))
  return Section(
    'Samples',
    rows,
    'First, middle and last; conditions, below images in their order, are a fixed random choice.',
  )


# --------------------------------------------------------------------------------------- tables


def ancestors(run):
  """The runs and imported models that this run comes from or learned from, oldest first."""
  rows = ancestry.ancestor_rows(run.folder, run.config, run.final('tokens'))
  note = 'Oldest first. Tokens are counted up to the checkpoint that the next run has taken.'
  return Section('Ancestors', [make_table(ancestry.HEADER, rows)] if rows else [], note)


def cleaned_data(run):
  """What filters and scrubbing did to the training data."""
  return data_page.counts_section(run.cleaned())


def settings(run):
  """The whole config by section; values that differ from the defaults stand out."""
  defaults, groups = run.result.get('defaults_diff', {}), {}
  for key, value in records.flatten(run.config).items():
    group, _, name = key.rpartition('.')
    cell = page.literal(value)
    if key in defaults:
      default = page.element('small', f'default {page.literal(defaults[key])}')
      cell = page.element('span', cell, default, kind='changed')
    groups.setdefault(group or 'run', []).append((name, cell))
  blocks = [
    page.element('div', page.element('h3', group), page.render_table(make_table((), rows, '')))
    for group, rows in groups.items()
  ]
  note = 'Values in color differ from their defaults.' if defaults else ''
  return Section('Settings', [page.element_unless_empty('div', *blocks, kind='settings')], note)


def timeline(run):
  """The sessions as a strip, and a table of events."""
  sessions = run.sessions()
  if not sessions:
    return Section('Events', ())
  begin, end = sessions[0].start, sessions[-1].end
  seconds = {id(event): second for session in sessions for second, event in session.events}
  percent = lambda seconds: f'{seconds / (end - begin or 1):.2%}'
  bars = [
    page.element(
      'i',
      style=f'left:{percent(s.start - begin)};width:{percent(s.end - s.start)}',
      title=f'{loggers.duration(s.end - s.start)} from step {s.step}',
    )
    for s in sessions
  ]
  ends = page.element('span', '0:00'), page.element('span', loggers.duration(end - begin))
  rows = [
    (
      loggers.duration(max(0.0, seconds.get(id(group[0]), end) - begin)),
      ' to '.join(dict.fromkeys(f'{e["step"]:,}' for e in (group[0], group[-1]) if 'step' in e)),
      page.element('span', group[0]['event'], kind=group[0]['event']),
      f'{len(group)} times' if len(group) > 1 else event_details(group[0]),
    )
    for group in group_events(run.events)
  ]
  count = f'{len(sessions)} sessions' if len(sessions) > 1 else 'One session'
  return Section(
    'Events',
    [
      page.element('div', *bars, kind='strip'),
      page.element('p', *ends, kind='ends'),
      make_table(('>time', '>step', 'event', 'details'), rows, 'events wide'),
    ],
    f'{count}, {loggers.duration(run.wall_seconds())} of work. {history.describe_goodput(run)}',
  )


def group_events(events):
  """Return the events in order as lists: GROUPED_EVENTS of a session in one list, others alone."""
  groups, open_groups = [], {}
  for event in events:
    name = event['event']
    if name in history.SESSION_STARTS:
      open_groups = {}
    if name in open_groups:
      open_groups[name].append(event)
      continue
    groups.append([event])
    if name in GROUPED_EVENTS:
      open_groups[name] = groups[-1]
  return groups


def event_details(event):
  """Return all of an event besides its time, name, step and versions, as text."""
  parts = page.changes(event.get('changed'))
  for key, value in event.items():
    if key not in ('time', 'event', 'step', 'versions', 'rows', 'changed', 'chances', 'sources'):
      text = f'{value:.4g}' if isinstance(value, float) else value
      parts.append(f'{key.replace("_", " ")} {text}')
  return ', '.join(parts)


def reproduce(run):
  """The command line and all versions."""
  versions = run.versions()
  return page.reproduce(versions.get('command', ''), versions)
