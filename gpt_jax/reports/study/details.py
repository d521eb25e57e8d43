"""The lower half of a study's report: samples, changes, cost, failures, and how to repeat it."""

import collections
import math
import re

from gpt_jax.reports import page
from gpt_jax.reports.study import summary, tables

MOST_CHARACTERS, MOST_SAMPLES, MOST_PATHS = 700, 12, 6


def samples(told):
  """The last samples of each arm, of the first seed that has them, side by side."""
  shown = {'texts': [], 'media': []}
  for arm in told.arms()[:MOST_SAMPLES]:
    for row in told.runs_of(arm['name']):
      paths = last_samples(told.folder / row['folder'] / 'samples')
      for path in paths:
        kind = 'texts' if path.suffix == '.txt' else 'media'
        shown[kind].append(sample(told, arm, row, path))
      if paths:
        break
  rows = [page.element('div', *found, kind=kind) for kind, found in shown.items() if found]
  return page.section('Samples', *rows, note='The last of each arm, from the same first seed.')


def last_samples(folder, most=4):
  """Paths of the samples of the last step that has any, texts first."""
  steps = {}
  for path in sorted(folder.glob('step_*')):
    if found := re.match(r'step_(\d+)', path.name):
      steps.setdefault(int(found[1]), []).append(path)
  last = steps[max(steps)] if steps else []
  return sorted(last, key=lambda path: path.suffix != '.txt')[:most]


def sample(told, arm, row, path):
  """One sample under its arm, seed and result."""
  value = summary.number(row.get('result') or {}, told.study.get('metric', 'valid_loss'))
  words = [f'seed {row["seed"]}', *path.stem.split('_', 2)[2:]]
  words += [f'{told.metric} {told.value(value)}'] if math.isfinite(value) else []
  small = page.element('small', page.escape(' \u00b7 '.join(words)))
  title = page.element('h3', page.element('b', page.escape(summary.label(arm))), ' ', small)
  if path.suffix != '.txt':
    return page.element('article', title, page.media(path))
  text = path.read_text(encoding='utf-8', errors='replace')
  text = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + ' \u2026'
  return page.element('article', title, page.element('pre', '\n' + page.escape(text)))


# --------------------------------------------------------------------------------------- tables


def differences(told):
  """What each arm changes: config, parameters, program, and what looks suspicious."""
  rows = []
  for arm in told.others():
    keys = [page.element('div', page.escape(text)) for text in tables.changes(arm)]
    flags = [page.element('div', page.escape(flag), kind='flag') for flag in arm.get('flags') or ()]
    same = arm.get('shares_program_with_base')
    program = '' if same is None else 'the same' if same else 'another'
    config = ''.join([*keys, *flags]) or 'nothing'
    rows.append([page.escape(arm['name']), config, parameters(arm), program])
  head = ('arm', 'config', 'parameters', 'compiled step')
  note = f'Against the baseline {summary.base_name(told.baseline())}, proved before the first run.'
  table = page.table(*tables.trim(head, rows), kind='wide')
  return page.section('What the arms change', table, note=note)


def parameters(arm):
  """HTML of an arm's parameter-tree diff: so many more or fewer, and which."""
  found = arm.get('parameter_diff') or {}
  reshaped = [
    f'{path} {tables.literal(old)} \u2192 {tables.literal(new)}'
    for path, (old, new) in (found.get('reshaped') or {}).items()
  ]
  lines = []
  for sign, paths in (('+', found.get('added')), ('\u2212', found.get('removed')), ('', reshaped)):
    paths = list(paths or ())
    lines += [f'{sign}\u00a0{path}'.strip() for path in paths[:MOST_PATHS]]
    lines += [f'{sign} {len(paths) - MOST_PATHS} more'.strip()] if len(paths) > MOST_PATHS else []
  return ''.join(page.element('div', page.escape(line), kind='about') for line in lines)


def costs(told):
  """Parameters, FLOPs, time and the effective speedup of each arm."""
  rows = [list(map(page.escape, row)) for row in tables.costs(told)]
  note = (
    f'Budget: {told.budget()}. Effective speedup: the loss gained and the tokens per second, as '
    'one ratio of wall-clock time to the same loss; of means, without an interval, and only where '
    'both were trained in the same way.'
  )
  return page.section('Cost', page.table(*tables.trim(tables.COSTS_HEAD, rows), kind='wide'), note=note)


def troubles(told):
  """Runs that failed, and those that were tried again."""
  found = told.troubles()
  rows = [[page.escape(cell) for cell in row] for row in found]
  stops = told.stops()
  often = {1: 'once', 2: 'twice'}.get(stops, f'{stops} times')
  stopped = f'The study was stopped {often} on its way and went on. ' if stops else ''
  lines = page.element('p', page.escape(stopped), kind='note') if stopped else ''
  head = ('arm', '>seed', 'outcome', 'why')
  return page.section('What went wrong', lines, page.table(head, rows, kind='wide'))


def negatives(told):
  """What was tried and did not help, so that nobody needs to try it again."""
  lines = [page.element('li', page.escape(told.sentence(arm))) for arm in told.negatives()]
  return page.section('What did not help', page.element('ul', *lines) if lines else '')


def design(told):
  """Plan, budget, seeds, factors, data."""
  study = told.study
  levels = {
    f'factor {name}': ', '.join(map(str, levels)) for name, levels in (study.get('factors') or {}).items()
  }
  about = {
    'base': study.get('base', ''),
    'sweep': str(study.get('sweep', '')).replace('_', ' '),
    **levels,
    'judged by': f'{told.metric}, {study.get("better", "lower")} is better',
    'no difference': f'less than {told.tolerance:g}' if told.tolerance else 'not tested',
    'budget': told.budget(),
    'seeds': ', '.join(map(str, study.get('seeds', ()))),
    'data': fingerprints(told, 'data'),
    'tokenizer': fingerprints(told, 'tokenizer'),
    'trained': schedule(study.get('schedule') or {}),
    'at once': together(told),
    'hardware': ', '.join(sorted(same(told, 'hardware'))),
  }
  rows = [[page.escape(name), page.escape(text)] for name, text in about.items() if text]
  return page.section('Plan', page.element('div', page.table((), rows), kind='versions'))


def schedule(found):
  """How the runs were put on the machine, and what the alternatives measured."""
  rates = found.get('runs_per_hour') or {}
  how = {'process': 'in parallel processes', 'alone': 'one after another'}
  how |= {'replicas': 'as replicas in one compiled step'}
  measured = ', '.join(f'{name} {rate:.4g}' for name, rate in rates.items())
  said = how.get(found.get('how'), '')
  return f'{said} (runs an hour: {measured})' if said and measured else said


def together(told):
  """How many runs shared a compiled step: '25 runs 5 together, 5 runs alone'."""
  counts = collections.Counter((row['result'] or {}).get('replicas', 1) for row in told.done())
  return ', '.join(
    f'{n} run{"s" * (n != 1)} {f"{size} together" if size > 1 else "alone"}'
    for size, n in sorted(counts.items(), reverse=True)
  )


def same(told, key):
  """The set of what the results say under a key."""
  values = ((row.get('result') or {}).get(key) for row in told.rows)
  return {str(value) for value in values if value}


def fingerprints(told, key):
  """The one fingerprint of all runs, or how many there are."""
  found = sorted(same(told, key))
  if len(found) > 1:
    return f'{len(found)} different fingerprints: ' + ', '.join(text[:12] for text in found[:6])
  return f'{found[0][:16]}, the same in all runs' if found else ''


def reproduce(told):
  """The command line and all versions."""
  versions, command = dict(told.study.get('versions') or {}), told.study.get('command', '')
  command = command or versions.get('command', '')
  versions.pop('command', '')
  rows = [[page.escape(name), page.escape(value)] for name, value in versions.items() if value]
  return page.section(
    'Reproduce',
    page.element('pre', page.escape(command)) if command else '',
    page.element('div', page.table((), rows), kind='versions') if rows else '',
    note='The same command goes on with what is missing, or writes this report again. '
    'report.md, report.csv and report.tex lie beside this page.',
  )


PARTS = (samples, differences, costs, troubles, negatives, design, reproduce)
