"""report.html: what came out of one run, on one page, made from its folder alone.

`gpt_jax.story` lists what may be in the folder; whatever is missing leaves no gap here.
"""

import math
import re

import numpy as np

from gpt_jax.reports import figures, page
from gpt_jax.reports.job_metrics import JOB_METRICS
from gpt_jax.runs import history, loggers, records

WIDE, NARROW, SMALL = (1000, 340), (360, 260), (310, 130)  # pixels
MOST_CHARACTERS, MOST_FILES = 1500, 24  # of a sample, of one kind of picture or sound
LINES = (figures.FIRST, figures.SECOND, figures.THIRD, figures.FOURTH, figures.FIFTH)  # of layers
QUIET = ('sample', 'checkpoint', 'evaluate', 'skipped')  # events that come by the dozen


def again(workdir):
  """Write the report of a run again -> what to tell: where it is, and where the time went."""
  return f'report: {write_report(workdir)}\n{history.describe_goodput(history.read_history(workdir))}'


def write_report(workdir):
  """Writes report.html into a run folder, finished or not, and returns its path.

  Raises:
    FileNotFoundError, ValueError: there is no run, or a file of it cannot be read.
  """
  run = history.read_history(workdir)
  parts = (header, losses, samples, evaluations, signals, inside, settings, timeline, reproduce)
  path = run.folder / 'report.html'
  title = f'{run.folder.name} \u00b7 gpt_jax'
  records.write_atomically(path, page.document(title, *(part(run) for part in parts)))
  return path


# --------------------------------------------------------------------------------------- header


def header(run):
  """Title, verdict, alarms and the key numbers."""
  when = [run.events[0]['time'][:10]] if run.events else []
  tiles = [
    page.element('div', page.element('dt', label), page.element('dd', page.escape(value)))
    for label, value in key_numbers(run)
  ]
  return page.element(
    'header',
    page.element('p', page.escape(' \u00b7 '.join(['gpt_jax run', *when])), kind='eyebrow'),
    page.element('h1', page.escape(run.folder.name)),
    page.element('p', page.escape(verdict(run)), kind='verdict'),
    *(page.element('p', page.escape(text), kind='alarm') for text in alarms(run)),
    page.element('dl', *tiles, kind='tiles') if tiles else '',
  )


def verdict(run):
  """One or two sentences: how good, after how much, on what, and whether that was all."""
  last = next((e for e in run.events[::-1] if e['event'] in ENDINGS), {'event': 'start'})
  ending = ENDINGS[last['event']].format(step=last.get('step', '?'), type=last.get('type', ''))
  if not run.metrics:
    return f'Nothing has been measured yet. {ending}'.strip()
  job, train = job_of(run), figures.smooth(run.column('loss')[1])[-1:]
  train = train[0] if len(train) else math.nan
  metric, words = job.headline
  how, valid = 'No finite loss', run.final(metric)
  if math.isfinite(valid):
    beside = f' (training {train:.3f})' if job.losses_comparable and math.isfinite(train) else ''
    how = f'{words.format(valid)}{beside}'
  elif math.isfinite(train):
    unit = f' {job.unit}' if job.losses_comparable else ''
    how = f'Training loss {train:.3f}{unit}, without validation,'
  items = run.final(job.items)
  much = f' and {loggers.human(items)} {job.items}' if math.isfinite(items) else ''
  where = f' on {run.hardware()}' if run.hardware() else ''
  time = spoken(run.wall_seconds())
  return f'{how} after {run.metrics[-1]["step"]:,} steps{much} in {time}{where}. {ending}'.strip()


def job_of(run):
  """Return the row of JOB_METRICS of a run; a GPT's by default."""
  return JOB_METRICS.get(run.config.get('train', {}).get('job'), JOB_METRICS['gpt'])


def spoken(seconds):
  """331 -> '5.5 minutes'."""
  for size, unit in ((86400, 'days'), (3600, 'hours'), (60, 'minutes')):
    if seconds >= 1.5 * size:
      return f'{seconds / size:.1f}'.removesuffix('.0') + f' {unit}'
  return f'{seconds:.0f} seconds'


def alarms(run):
  """What a reader must not overlook."""
  steps, loss = run.column('loss')
  bad = steps[~np.isfinite(loss)]
  if len(bad):
    count = f'{len(bad)} of {len(loss)} reports'
    yield f'The loss was not finite in {count}, first at step {bad[0]:,.0f}.'
  steps, valid = run.column('valid_loss')
  if np.isfinite(valid).any():
    best = np.nanargmin(valid)
    if valid[-1] > 1.01 * valid[best]:
      yield (
        f'The validation loss was lowest, {valid[best]:#.4g}, at step {steps[best]:,.0f} and has '
        f'risen by {valid[-1] / valid[best] - 1:.1%} since: the model overfits.'
      )


def key_numbers(run):
  """[(label, text)] of the tiles; what is not known has no tile."""
  job = job_of(run)
  numbers = (
    *((label, run.final(metric), show) for label, metric, show in job.tiles),
    (
      'bits per token',
      run.final('valid_loss') / math.log(2) if job.losses_comparable else math.nan,
      '{:.3f}'.format,
    ),
    ('bits per byte', run.final('bits_per_byte', 'valid_bits_per_byte'), '{:.3f}'.format),
    (f'{job.items} per second', run.typical(f'{job.items}_per_second'), loggers.human),
    ('MFU', run.typical('mfu'), '{:.1%}'.format),
    ('parameters', run.final('parameters'), loggers.human),
    (job.items, run.final(job.items), loggers.human),
    ('wall time', run.wall_seconds() or math.nan, loggers.duration),
    ('goodput', goodput_of(run), '{:.0%}'.format),
  )
  return [(label, show(value)) for label, value, show in numbers if math.isfinite(value)]


def goodput_of(run):
  """Which part of the time from the first start on went into steps that count, or NaN."""
  found = history.seconds_by_phase(run)
  return found['steps'] / sum(found.values()) if sum(found.values()) > 0 else math.nan


# --------------------------------------------------------------------------------------- charts


def losses(run):
  """The loss curves: the raw training loss, its smoothed line, the validation points.

  A validation loss of another unit is a chart of its own, among the signals.
  """
  (steps, raw), (valid_steps, valid) = run.column('loss'), run.column('valid_loss')
  series, note, job = [], '', job_of(run)
  valid = valid if job.losses_comparable else valid[:0]
  if len(raw) > 40:
    series.append(figures.Series(run.x(steps), raw, 'faint'))
    note = 'Training loss as measured (faint) and smoothed over 4 % of the run.'
  if len(raw):
    line = figures.smooth(raw)
    label = f'train {line[-1]:.3f}'
    series.append(figures.Series(run.x(steps), line, 'line', figures.FIRST, label))
  if len(valid):
    label = f'valid {valid[-1]:.3f}'
    series.append(figures.Series(run.x(valid_steps), valid, 'points', figures.SECOND, label))
  span, first = figures.limits(series), raw[np.isfinite(raw)][:1]
  if span and len(first) and first[0] > span[1]:
    note += f' The axis leaves out the first plunge, from {first[0]:.2f}.'
  if not np.isfinite(raw).all():
    note += ' Crosses: the loss was not finite.'
  resumed = [event['step'] for event in run.events if event['event'] == 'resume']
  said = dict(
    marks=[(run.x(step), 'restart') for step in resumed],
    units=(run.x_unit(), job.unit if job.losses_comparable else 'training objective'),
    room=92,
    label=f'Loss against {run.x_unit()}: ' + ', '.join(s.label for s in series if s.label),
  )
  drawn = [
    page.element('figure', svg, kind=kind)
    for kind, size in (('broad', WIDE), ('narrow', NARROW))
    if (svg := figures.chart(series, name=kind, size=size, **said))
  ]
  return page.section('Loss', *drawn, note=note)


def signals(run):
  """A small chart for every other metric, the known ones first."""
  names = {name for row in run.metrics for name in row}
  job = job_of(run)
  left_out = {'step', 'time', 'loss', job.items, 'targets', 'mfu_causal'}
  left_out |= {'valid_loss'} if job.losses_comparable else set()
  others = names - left_out - {*SIGNALS}
  charts = [small(run, name) for name in [*(n for n in SIGNALS if n in names), *sorted(others)]]
  return page.section('Signals', page.element('div', *charts, kind='multiples') if charts else '')


def small(run, name):
  """One small chart with its name and its last value."""
  job, show = job_of(run), '{:.4g}'.format
  if job.losses_comparable and name.startswith(('loss/', 'valid_loss')):
    show = lambda nats: f'{nats:.3f} nats, {nats / math.log(2):.3f} bits'
  title = job.unit if name == 'valid_loss' else name
  title, scale, show = SIGNALS.get(name, (title, 1, show))
  steps, y = run.column(name)
  line = figures.Series(run.x(steps), y * scale, 'line' if len(y) > 40 else 'points')
  last = line.y[np.isfinite(y)][-1:]
  value = page.element('span', show(last[0]) if len(last) else 'never finite')
  return page.element(
    'figure',
    page.element('figcaption', page.escape(title), value),
    figures.chart([line], name=f'small {name}', label=title, size=SMALL),
  )


def inside(run):
  """Small charts of what probes.jsonl has: sizes of activations, gradients and updates by layer."""
  rows = records.read_lines(run.folder / 'probes.jsonl')
  layers = {path.split('/')[1] for row in rows for path in row['layers'] if path[:7] == 'blocks/'}
  layers = sorted(layers, key=int)
  few = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), len(LINES))).astype(int))
  x, charts = run.x(np.array([row['step'] for row in rows], float)), []
  for kind in ('activation', 'gradient', 'update') if layers else ():
    sizes = [np.array([size_of(row['layers'], layers[l], kind) for row in rows]) for l in few]
    lines = [
      figures.Series(x, y, 'points', color, layers[l]) for l, y, color in zip(few, sizes, LINES, strict=False)
    ]
    svg = figures.chart(lines, name=f'probe {kind}', label=f'{kind} by layer', size=SMALL, room=28)
    caption = page.element('figcaption', kind, page.element('span', 'by layer'))
    charts += [page.element('figure', caption, svg)] if svg else []
  return page.section(
    'Inside the model',
    page.element('div', *charts, kind='multiples') if charts else '',
    note='Root mean squares of the entries: the activations that leave a layer, the gradients and '
    'the updates of its parameters.',
  )


def size_of(layers, layer, kind):
  """One size of a layer in a row of probes.jsonl; NaN where it has none."""
  if kind == 'activation':
    return layers.get(f'blocks/{layer}', {}).get(kind, math.nan)
  of_layer = (sizes for path, sizes in layers.items() if path.startswith(f'blocks/{layer}/'))
  sizes = np.array([sizes[kind] for sizes in of_layer if kind in sizes], float)
  return np.sqrt(np.square(sizes).mean()) if len(sizes) else math.nan


# -------------------------------------------------------------------------------------- samples


def samples(run):
  """First, middle and last of each kind of sample."""
  kinds = {}  # suffix: step: paths
  for path in sorted((run.folder / 'samples').glob('step_*')):
    if found := re.match(r'step_(\d+)', path.name):
      kinds.setdefault(path.suffix, {}).setdefault(int(found[1]), []).append(path)
  rows = []
  for suffix, steps in sorted(kinds.items(), key=lambda kind: kind[0] == '.txt'):
    known = sorted(steps)
    chosen = sorted({known[0], known[len(known) // 2], known[-1]})
    shown = [sample(run, step, path) for step in chosen for path in steps[step]][:MOST_FILES]
    rows.append(page.element('div', *shown, kind='texts' if suffix == '.txt' else 'media'))
  return page.section('Samples', *rows, note='From the beginning, the middle and the end.')


def sample(run, step, path):
  """One sample under its name, its step and the validation loss of that time."""
  words = [path.stem.split('_', 2)[2]] if path.stem.count('_') > 1 else []
  words += [f'step {step:,}']
  if path.suffix != '.txt':
    title = page.element('h3', page.escape(' \u00b7 '.join(words)))
    return page.element('article', title, page.media(path))
  steps, valid = run.column('valid_loss')
  words += [f'validation loss {value:.3f}' for value in valid[steps == step]]
  title = page.element('h3', page.escape(' \u00b7 '.join(words)))
  text = path.read_text(encoding='utf-8', errors='replace')
  more = len(text) - MOST_CHARACTERS
  rest = f'\n[{more:,} more characters in samples/{path.name}]' if more > 0 else ''
  # HTML drops a newline that follows <pre>.
  text = '\n' + page.escape(text[:MOST_CHARACTERS] + rest)
  return page.element('article', title, page.element('pre', text))


# --------------------------------------------------------------------------------------- tables


def evaluations(run):
  """What the tasks found, against chance or a baseline."""
  rows = []
  for row in run.evaluations:
    value, interval = row['value'], row.get('interval', ())
    rival, kind = next(((row[k], k) for k in ('baseline', 'chance') if k in row), (math.nan, ''))
    known = ('task', 'metric', 'value', 'interval', 'baseline', 'chance', 'sampling')
    about = [f'{k} {v:,}' if isinstance(v, int) else str(v) for k, v in row.items() if k not in known]
    rows.append(
      (
        page.escape(row['task']),
        page.element('span', page.escape(', '.join(about)), kind='about'),
        page.escape(row['metric'].replace('_', ' ')),
        page.element('strong', f'{value:.4g}'),
        ' to '.join(f'{bound:.4g}' for bound in interval),
        f'{rival:.4g} {kind}' if kind else '',
        meter(value, rival),
      )
    )
  head = ('task', 'on', 'metric', '>value', '>interval', '>against', '')
  used = [i for i in range(len(head)) if any(row[i] for row in rows)]
  rows = [[row[i] for i in used] for row in rows]
  return page.section('Evaluation', page.table([head[i] for i in used], rows, kind='wide'))


def meter(value, rival):
  """A bar for a value between 0 and 1, with a tick where chance or the baseline is."""
  if not (0 <= value <= 1 and 0 <= rival <= 1):
    return ''
  bar, tick = (page.element('i', style=f'width:{value:.1%}'), page.element('b', style=f'left:{rival:.1%}'))
  return page.element('div', bar, tick, kind='meter', title='the tick: chance or baseline')


def settings(run):
  """The whole config by section; what differs from the defaults stands out."""
  differs, groups = run.result.get('defaults_diff', {}), {}
  for key, value in records.flatten(run.config).items():
    group, _, name = key.rpartition('.')
    shown = page.escape(literal(value))
    if key in differs:
      default = page.escape(f'default {literal(differs[key])}')
      shown = page.element('span', shown, page.element('small', default), kind='changed')
    groups.setdefault(group, []).append([page.escape(name), shown])
  blocks = [
    page.element('div', page.element('h3', page.escape(group or 'run')), page.table((), rows))
    for group, rows in groups.items()
  ]
  note = 'Values in color differ from their defaults.' if differs else ''
  return page.section('Settings', page.element('div', *blocks, kind='settings'), note=note)


def literal(value):
  """A setting as one would write it on the command line, almost."""
  if isinstance(value, list):
    return f'({", ".join(map(literal, value))})'
  return repr(value) if value == '' or str(value) != str(value).strip() else str(value)


def timeline(run):
  """When processes worked on the run, and what happened."""
  sessions = run.sessions()
  if not sessions:
    return ''
  begin, end = sessions[0][0], max(last for _, last, _ in sessions)
  bars = [
    page.element(
      'i',
      style=f'left:{(first - begin) / (end - begin or 1):.2%};'
      f'width:{(last - first) / (end - begin or 1):.2%}',
      title=f'{loggers.duration(last - first)} from step {step}',
    )
    for first, last, step in sessions
  ]
  ends = page.element('span', '0:00'), page.element('span', loggers.duration(end - begin))
  rows = [
    (
      page.escape(loggers.duration(history.unix_seconds(event['time']) - begin)),
      page.escape(steps),
      page.element('span', page.escape(event['event']), kind=event['event']),
      page.escape(details),
    )
    for event, steps, details in told(run.events)
  ]
  count = f'{len(sessions)} sessions' if len(sessions) > 1 else 'One session'
  return page.section(
    'Events',
    page.element('div', *bars, kind='strip'),
    page.element('p', *ends, kind='ends'),
    page.table(('>time', '>step', 'event', ''), rows, kind='events wide'),
    note=f'{count}, {loggers.duration(run.wall_seconds())} of work. {history.describe_goodput(run)}',
  )


def told(events):
  """[(event, steps, details)] in order; a quiet name has one line in each session."""
  lines, quiet = [], {}
  for event in events:
    name = event['event']
    if name in ('start', 'resume'):
      quiet = {}
    if name in quiet:
      quiet[name].append(event)
      continue
    lines.append([event])
    if name in QUIET:
      quiet[name] = lines[-1]
  return [(line[0], steps_of(line), details_of(line)) for line in lines]


def steps_of(line):
  """'100', or '100 to 900' of several events."""
  steps = [f'{event["step"]:,}' for event in (line[0], line[-1]) if 'step' in event]
  return ' to '.join(dict.fromkeys(steps))


def details_of(line):
  """What an event says besides its time, name and step; of several, how many."""
  if len(line) > 1:
    return f'{len(line)} times'
  left_out = ('time', 'event', 'step', 'versions', 'rows')
  said = {k: v for k, v in line[0].items() if k not in left_out}
  changed = said.pop('changed', {})
  words = [f'{key} {literal(old)} \u2192 {literal(new)}' for key, (old, new) in changed.items()]
  for key, value in said.items():
    shown = f'{value:.4g}' if isinstance(value, float) else value
    words.append(f'{key.replace("_", " ")} {shown}')
  return ', '.join(words)


def reproduce(run):
  """The command line and all versions."""
  versions = dict(run.versions())
  command = versions.pop('command', '')
  rows = [[page.escape(name), page.escape(value)] for name, value in versions.items() if value]
  return page.section(
    'Reproduce',
    page.element('pre', page.escape(command)) if command else '',
    page.element('div', page.table((), rows), kind='versions') if rows else '',
  )


# last of these events: how the verdict ends
ENDINGS = {
  'start': 'It has not finished.',
  'resume': 'It has not finished.',
  'preempted': 'It was preempted at step {step} and can be resumed.',
  'error': 'It was stopped by {type}.',
  'done': '',
}
# metric: title of its chart, scale, how its last value is shown
SIGNALS = {
  'psnr': ('PSNR, dB', 1, '{:.2f}'.format),
  'log_mel_rmse': ('log-mel RMSE', 1, '{:.4f}'.format),
  'usage': ('codes in use, %', 100, '{:.1f}'.format),
  'perplexity': ('code perplexity', 1, '{:.1f}'.format),
  'lr': ('learning rate', 1, figures.compact),
  'grad_norm': ('gradient norm', 1, '{:.3g}'.format),
  'tokens_per_second': ('tokens per second', 1, loggers.human),
  'images_per_second': ('images per second', 1, loggers.human),
  'crops_per_second': ('crops per second', 1, loggers.human),
  'mfu': ('MFU, %', 100, '{:.1f}'.format),
  'memory_gib': ('memory, GiB', 1, '{:.1f}'.format),
  'step_seconds': ('seconds per step', 1, '{:.3g}'.format),
}
