"""The report of a study: one self-contained HTML page, and Markdown, CSV and LaTeX beside it.

Readers with ten seconds see the verdict. The rest follows in the order of their questions: how
large and how sure, along the way and not only at the end, what the models write, what exactly was
changed, at what cost, what went wrong, and how to repeat it.
"""

import collections
import math

import numpy as np

from gpt_jax.reports import page, study_figures, study_results
from gpt_jax.reports import study_tables as tables
from gpt_jax.runs import loggers, records

MAX_MEASURES = 8
MAX_CHARACTERS, MAX_SAMPLES, MAX_PATHS = 700, 12, 6


def write(workdir):
  """Writes report.html, .md, .csv and .tex into a study's folder -> path of the page.

  Raises:
    FileNotFoundError: the folder holds no study.
    ValueError: a file of the study cannot be read.
  """
  study = study_results.read_study(workdir)
  for suffix, text in (
    ('html', render(study)),
    ('md', tables.to_markdown(study)),
    ('csv', tables.to_csv(study)),
    ('tex', tables.to_latex(study)),
  ):
    records.write_atomically(study.folder / f'report.{suffix}', text)
  return study.folder / 'report.html'


def render(study):
  """The page of a StudyResults, as text."""
  parts = (header, *study_figures.EFFECTS, results, learning, measures)
  parts += (samples, differences, costs, failures, unhelpful_arms, design, reproduce)
  return page.document(f'{study.name} \u00b7 gpt_jax', *(part(study) for part in parts))


# --------------------------------------------------------------------------------------- header


def header(study):
  """The question, the answer, the verdict on each arm, alarms, key numbers."""
  dates = sorted(str(a['time'])[:10] for a in study.attempts if isinstance(a.get('time'), str))
  question = study.spec.get('question', '')
  unbroken = study.headline().replace(' to ', '\u00a0to\u00a0')
  return page.header(
    ['gpt_jax ablation', *dates[-1:]],
    study.name,
    page.element('p', page.escape(question), kind='question') if question else '',
    page.element('p', page.element('strong', page.escape(unbroken)), kind='verdict'),
    verdicts(study),
    alarms=alarms(study),
    tiles=key_numbers(study),
  )


def verdicts(study):
  """A line for each verdict, with its arms and their effects."""
  rows = []
  for verdict, arms in study.verdicts().items():
    if not arms:
      continue
    names = [
      page.element(
        'span',
        page.element('b', page.escape(arm['name'])),
        f' {page.escape(study.difference(study_results.number(arm, "difference")) or "not measured")}',
        page.element('i', page.escape(more_seeds(arm))) if verdict == 'undecided' else '',
      )
      for arm in arms
    ]
    title = page.element('dt', badge(verdict))
    rows.append(page.element('div', title, page.element('dd', *names)))
  return page.element('dl', *rows, kind='verdicts') if rows else ''


def badge(verdict):
  """The word of a verdict in its color."""
  kind = f'badge {verdict.replace(" ", "-")}'
  return page.element('span', page.escape(study_results.VERDICTS.get(verdict, verdict)), kind=kind)


def more_seeds(arm):
  """' needs 4 more seeds', or ''."""
  more = study_results.number(arm, 'seeds_needed', 0)
  return f' needs {more:.0f} more seed{"s" * (more != 1)}' if 0 < more < math.inf else ''


def alarms(study):
  """Yield what a reader must not overlook."""
  if lost := study.lost():
    names = [f'{r["arm"]} seed {r["seed"]} ({study_results.describe_status(r["status"])})' for r in lost]
    more = f' and {len(names) - 6} more' if len(names) > 6 else ''
    yield (
      f'{len(lost)} of {len(study.rows)} runs have no result: {", ".join(names[:6])}{more}. '
      'The verdicts rest on the others.'
    )
  if pending := study.pending():
    yield f'{len(pending)} of {len(study.rows)} runs are not done yet: the same command goes on.'
  for arm in study.others():
    for flag in arm.get('flags') or ():
      yield f'{arm["name"]}: {flag}'
  yield from (study.analysis.get('scaling') or {}).get('warnings') or ()


def key_numbers(study):
  """[(label, text)] of the tiles; what is not known has no tile."""
  base, pairing = study.baseline(), study.analysis.get('pairing') or {}
  gains = [study_results.number(arm, 'pairing_gain') for arm in study.others()]
  gains = [gain for gain in gains if math.isfinite(gain)]
  gain = study_results.number(pairing, 'gain', float(np.median(gains)) if gains else math.nan)
  numbers = (
    ('runs with a result', f'{len(study.done())} of {len(study.rows)}'),
    ('arms', str(len(study.spec.get('arms', ())))),
    ('seeds an arm', str(len(study.spec.get('seeds', ())))),
    ('parameters, baseline', human(study_results.number(base, 'parameters'))),
    ('tokens a run', human(study_results.number(base, 'tokens'))),
    ('time of all runs', loggers.duration(study.seconds()) if study.seconds() else ''),
    ('smaller error by pairing', study_results.times(gain)),
  )
  return [(label, text) for label, text in numbers if text]


def human(value):
  """As loggers.human, '' for NaN."""
  return '' if math.isnan(value) else loggers.human(value)


# --------------------------------------------------------------------------------------- results


def results(study):
  """The table with differences and intervals, and what the statistics remarked."""
  rows = []
  for *first, difference, interval, bootstrap, p, verdict in tables.results(study):
    word = badge(verdict) if verdict in study_results.VERDICTS else page.escape(verdict)
    strong = difference and page.element('strong', page.escape(difference))
    others = map(page.escape, (interval, bootstrap, p))
    rows.append([*map(page.escape, first), strong, *others, word])
  notes = [page.element('li', page.escape(note)) for note in study.analysis.get('notes', ())]
  notes = page.element('ul', *notes, kind='note') if notes else ''
  table = page.table(*page.drop_empty_columns(tables.results_head(study), rows), kind='wide')
  return page.section('Results', table, notes, note=study.protocol())


def learning(study):
  """Curves of all arms, the paired difference of each, and a table of it along the budget."""
  drawn = study_figures.overview(study)
  charts = study_figures.differences(study)
  fractions = [
    (arm, {f'{row[0]:.0%}': row[1:] for row in arm.get('at_fractions') or ()}) for arm in study.others()
  ]
  columns = list(dict.fromkeys(key for _, found in fractions for key in found))
  rows = [
    [page.escape(arm['name']), *(along(study, found.get(key)) for key in columns)]
    for arm, found in fractions
    if found
  ]
  head = ('difference at', *(f'>{key} of the budget' for key in columns))
  return page.section(
    'Learning curves',
    *drawn,
    page.element('div', *charts, kind='multiples') if charts else '',
    page.element('div', page.table(head, rows), kind='spaced along') if rows else '',
    note=f'{study.metric.capitalize()}, mean over seeds; bands from the lowest seed to the highest. '
    'Small charts: the difference from the baseline of the same seed, each on its own scale.',
  )


def along(study, found):
  """HTML of a difference at a part of the budget, with its interval."""
  if not found:
    return ''
  difference, *interval = found
  shown = page.escape(study.difference(study_results.as_number(difference)))
  return shown + page.element('small', page.escape(study.interval(interval)))


def measures(study):
  """Means of what else was measured: per source and task, without a verdict."""
  found = {study_results.label(arm): study_figures.other_measures(study, arm['name']) for arm in study.arms()}
  names = list(dict.fromkeys(name for values in found.values() for name in values))
  names = [name for name in names if name != study.spec.get('metric')][:MAX_MEASURES]
  if not names:
    return ''
  rows = [
    [page.escape(arm), *(page.escape(spread(values.get(name, ()))) for name in names)]
    for arm, values in found.items()
  ]
  head = ('arm', *(f'>{name.replace("_", " ")}' for name in names))
  note = 'Mean \u00b1 standard deviation over seeds. None of these was tested.'
  return page.section('Other measures', page.table(head, rows, kind='wide'), note=note)


def spread(values):
  """'0.912 ± 0.004' of some numbers."""
  if not len(values):
    return ''
  mean = loggers.decimals(float(np.mean(values)))
  return f'{mean} \u00b1 {np.std(values, ddof=1):.2g}' if len(values) > 1 else mean


# ----------------------------------------------------------------------- samples, changes, cost


def samples(study):
  """The last samples of each arm, of the first seed that has them, side by side."""
  shown = {'texts': [], 'media': []}
  metric = study.spec.get('metric', 'valid_loss')
  for arm in study.arms()[:MAX_SAMPLES]:
    for row in study.runs_of(arm['name']):
      paths = last_samples(study.folder / row['folder'] / 'samples')
      value = study_results.number(row.get('result') or {}, metric)
      score = [f'{study.metric} {study.value(value)}'] if math.isfinite(value) else []
      for path in paths:
        words = ' \u00b7 '.join([f'seed {row["seed"]}', *page.sample_name(path), *score])
        name = page.element('b', page.escape(study_results.label(arm)))
        title = f'{name} {page.element("small", page.escape(words))}'
        kind = 'texts' if path.suffix == '.txt' else 'media'
        shown[kind].append(page.sample(path, title, MAX_CHARACTERS))
      if paths:
        break
  rows = [page.element('div', *articles, kind=kind) for kind, articles in shown.items() if articles]
  return page.section('Samples', *rows, note='The last of each arm, from the same first seed.')


def last_samples(folder, most=4):
  """Return the sample files of the last step that has any, texts first."""
  steps = page.samples_by_step(folder)
  return sorted(steps[max(steps)], key=lambda path: path.suffix != '.txt')[:most] if steps else []


# --------------------------------------------------------------------------------------- tables


def differences(study):
  """What each arm changes: config, parameters, program, and what looks suspicious."""
  rows = []
  for arm in study.others():
    keys = [page.element('div', page.escape(text)) for text in tables.changes(arm)]
    flags = [page.element('div', page.escape(flag), kind='flag') for flag in arm.get('flags') or ()]
    same = arm.get('shares_program_with_base')
    program = '' if same is None else 'the same' if same else 'another'
    config = ''.join([*keys, *flags]) or 'nothing'
    rows.append([page.escape(arm['name']), config, parameters(arm), program])
  head = ('arm', 'config', 'parameters', 'compiled step')
  note = f'Against the baseline {study_results.base_name(study.baseline())}, proved before the first run.'
  table = page.table(*page.drop_empty_columns(head, rows), kind='wide')
  return page.section('What the arms change', table, note=note)


def parameters(arm):
  """HTML of an arm's parameter-tree diff: so many more or fewer, and which."""
  found = arm.get('parameter_diff') or {}
  reshaped = [
    f'{path} {page.literal(old)} \u2192 {page.literal(new)}'
    for path, (old, new) in (found.get('reshaped') or {}).items()
  ]
  lines = []
  for sign, paths in (('+', found.get('added')), ('\u2212', found.get('removed')), ('', reshaped)):
    paths = list(paths or ())
    lines += [f'{sign}\u00a0{path}'.strip() for path in paths[:MAX_PATHS]]
    lines += [f'{sign} {len(paths) - MAX_PATHS} more'.strip()] if len(paths) > MAX_PATHS else []
  return ''.join(page.element('div', page.escape(line), kind='about') for line in lines)


def costs(study):
  """Parameters, FLOPs, time and the effective speedup of each arm."""
  rows = [list(map(page.escape, row)) for row in tables.costs(study)]
  note = (
    f'Budget: {study.budget()}. Effective speedup: the loss gained and the tokens per second, as '
    'one ratio of wall-clock time to the same loss; of means, without an interval, and only where '
    'both were trained in the same way.'
  )
  return page.section(
    'Cost', page.table(*page.drop_empty_columns(tables.COSTS_HEAD, rows), kind='wide'), note=note
  )


def failures(study):
  """Runs that failed, and those that were tried again."""
  found = study.failures()
  rows = [[page.escape(cell) for cell in row] for row in found]
  stops = study.interruptions()
  often = {1: 'once', 2: 'twice'}.get(stops, f'{stops} times')
  stopped = f'The study was stopped {often} on its way and went on. ' if stops else ''
  lines = page.element('p', page.escape(stopped), kind='note') if stopped else ''
  head = ('arm', '>seed', 'outcome', 'why')
  return page.section('What went wrong', lines, page.table(head, rows, kind='wide'))


def unhelpful_arms(study):
  """Arms that did not help."""
  lines = [page.element('li', page.escape(study.sentence(arm))) for arm in study.unhelpful_arms()]
  return page.section('What did not help', page.element('ul', *lines) if lines else '')


def design(study):
  """Plan, budget, seeds, factors, data."""
  spec = study.spec
  levels = {
    f'factor {name}': ', '.join(map(str, levels)) for name, levels in (spec.get('factors') or {}).items()
  }
  about = {
    'base': spec.get('base', ''),
    'sweep': str(spec.get('sweep', '')).replace('_', ' '),
    **levels,
    'judged by': f'{study.metric}, {spec.get("better", "lower")} is better',
    'no difference': f'less than {study.tolerance:g}' if study.tolerance else 'not tested',
    'budget': study.budget(),
    'seeds': ', '.join(map(str, spec.get('seeds', ()))),
    'data': fingerprints(study, 'data'),
    'tokenizer': fingerprints(study, 'tokenizer'),
    'trained': schedule(spec.get('schedule') or {}),
    'at once': runs_together(study),
    'hardware': ', '.join(sorted(distinct_values(study, 'hardware'))),
  }
  return page.section('Plan', page.facts(about))


def schedule(found):
  """Describe how the runs were scheduled, with the measured rates of the alternatives."""
  rates = found.get('runs_per_hour') or {}
  how = {'process': 'in parallel processes', 'alone': 'one after another'}
  how |= {'replicas': 'as replicas in one compiled step'}
  measured = ', '.join(f'{name} {rate:.4g}' for name, rate in rates.items())
  said = how.get(found.get('how'), '')
  return f'{said} (runs an hour: {measured})' if said and measured else said


def runs_together(study):
  """How many runs shared a compiled step: '25 runs 5 together, 5 runs alone'."""
  counts = collections.Counter((row['result'] or {}).get('replicas', 1) for row in study.done())
  return ', '.join(
    f'{n} run{"s" * (n != 1)} {f"{size} together" if size > 1 else "alone"}'
    for size, n in sorted(counts.items(), reverse=True)
  )


def distinct_values(study, key):
  """Return the distinct values of a key in the results."""
  values = ((row.get('result') or {}).get(key) for row in study.rows)
  return {str(value) for value in values if value}


def fingerprints(study, key):
  """The one fingerprint of all runs, or how many there are."""
  found = sorted(distinct_values(study, key))
  if len(found) > 1:
    return f'{len(found)} different fingerprints: ' + ', '.join(text[:12] for text in found[:6])
  return f'{found[0][:16]}, the same in all runs' if found else ''


def reproduce(study):
  """The command line and all versions."""
  versions = study.spec.get('versions') or {}
  command = study.spec.get('command') or versions.get('command', '')
  note = (
    'The same command goes on with what is missing, or writes this report again. '
    'report.md, report.csv and report.tex lie beside this page.'
  )
  return page.reproduce(command, versions, note)
