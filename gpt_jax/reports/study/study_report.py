"""The report of a study: one self-contained HTML page, and Markdown, CSV and LaTeX beside it.

Readers with ten seconds see the verdict. The rest follows in the order of their questions: how
large and how sure, along the way and not only at the end, what the models write, what exactly was
changed, at what cost, what went wrong, and how to repeat it.
"""

import math

import numpy as np

from gpt_jax.reports import page
from gpt_jax.reports.study import curves, details, effects, summary, tables
from gpt_jax.runs import loggers, records

WIDE, NARROW = 1000, 360  # pixels
MOST_MEASURES = 8


def write(workdir):
  """Writes report.html, .md, .csv and .tex into a study's folder -> path of the page.

  Raises:
    FileNotFoundError: the folder holds no study.
    ValueError: a file of the study cannot be read.
  """
  told = summary.read(workdir)
  for suffix, text in (
    ('html', render(told)),
    ('md', tables.markdown(told)),
    ('csv', tables.comma_separated(told)),
    ('tex', tables.latex(told)),
  ):
    records.write_atomically(told.folder / f'report.{suffix}', text)
  return told.folder / 'report.html'


def render(told):
  """The page of a Summary, as text."""
  parts = (header, *effects.PARTS, results, learning, measures, *details.PARTS)
  return page.document(f'{told.name} \u00b7 gpt_jax', *(part(told) for part in parts))


# --------------------------------------------------------------------------------------- header


def header(told):
  """Question, answer, the verdict on each arm, alarms, key numbers."""
  tiles = [
    page.element('div', page.element('dt', label), page.element('dd', page.escape(value)))
    for label, value in key_numbers(told)
  ]
  when = sorted(str(a['time'])[:10] for a in told.attempts if isinstance(a.get('time'), str))
  words = ['gpt_jax ablation', *when[-1:]]
  question = told.study.get('question', '')
  unbroken = told.headline().replace(' to ', '\u00a0to\u00a0')
  return page.element(
    'header',
    page.element('p', page.escape(' \u00b7 '.join(words)), kind='eyebrow'),
    page.element('h1', page.escape(told.name)),
    page.element('p', page.escape(question), kind='question') if question else '',
    page.element('p', page.element('strong', page.escape(unbroken)), kind='verdict'),
    verdicts(told),
    *(page.element('p', page.escape(text), kind='alarm') for text in alarms(told)),
    page.element('dl', *tiles, kind='tiles'),
  )


def verdicts(told):
  """A line for each verdict, with its arms and their effects."""
  rows = []
  for verdict, arms in told.verdicts().items():
    if not arms:
      continue
    names = [
      page.element(
        'span',
        page.element('b', page.escape(arm['name'])),
        f' {page.escape(told.difference(summary.number(arm, "difference")) or "not measured")}',
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
  return page.element('span', page.escape(summary.VERDICTS.get(verdict, verdict)), kind=kind)


def more_seeds(arm):
  """' needs 4 more seeds', or ''."""
  more = summary.number(arm, 'seeds_needed', 0)
  return f' needs {more:.0f} more seed{"s" * (more != 1)}' if 0 < more < math.inf else ''


def alarms(told):
  """What a reader must not overlook."""
  if lost := told.lost():
    names = [f'{r["arm"]} seed {r["seed"]} ({summary.state(r["status"])})' for r in lost]
    more = f' and {len(names) - 6} more' if len(names) > 6 else ''
    yield (
      f'{len(lost)} of {len(told.rows)} runs have no result: {", ".join(names[:6])}{more}. '
      'The verdicts rest on the others.'
    )
  if pending := told.pending():
    yield f'{len(pending)} of {len(told.rows)} runs are not done yet: the same command goes on.'
  for arm in told.others():
    for flag in arm.get('flags') or ():
      yield f'{arm["name"]}: {flag}'
  yield from (told.analysis.get('scaling') or {}).get('warnings') or ()


def key_numbers(told):
  """[(label, text)] of the tiles; what is not known has no tile."""
  base, pairing = told.baseline(), told.analysis.get('pairing') or {}
  gains = [summary.number(arm, 'pairing_gain') for arm in told.others()]
  gains = [gain for gain in gains if math.isfinite(gain)]
  gain = summary.number(pairing, 'gain', float(np.median(gains)) if gains else math.nan)
  numbers = (
    ('runs with a result', f'{len(told.done())} of {len(told.rows)}'),
    ('arms', str(len(told.study.get('arms', ())))),
    ('seeds an arm', str(len(told.study.get('seeds', ())))),
    ('parameters, baseline', human(summary.number(base, 'parameters'))),
    ('tokens a run', human(summary.number(base, 'tokens'))),
    ('time of all runs', loggers.duration(told.seconds()) if told.seconds() else ''),
    ('smaller error by pairing', summary.times(gain)),
  )
  return [(label, text) for label, text in numbers if text]


def human(value):
  """As loggers.human, '' for NaN."""
  return '' if math.isnan(value) else loggers.human(value)


# --------------------------------------------------------------------------------------- results


def results(told):
  """The table with differences and intervals, and what the statistics remarked."""
  rows = []
  for *first, difference, interval, bootstrap, p, verdict in tables.results(told):
    word = badge(verdict) if verdict in summary.VERDICTS else page.escape(verdict)
    strong = difference and page.element('strong', page.escape(difference))
    others = map(page.escape, (interval, bootstrap, p))
    rows.append([*map(page.escape, first), strong, *others, word])
  notes = [page.element('li', page.escape(note)) for note in told.analysis.get('notes', ())]
  notes = page.element('ul', *notes, kind='note') if notes else ''
  table = page.table(*tables.trim(tables.results_head(told), rows), kind='wide')
  return page.section('Results', table, notes, note=told.protocol())


def learning(told):
  """Curves of all arms, the paired difference of each, and a table of it along the budget."""
  drawn = curves.overview(told, WIDE, NARROW)
  charts = curves.differences(told)
  fractions = [
    (arm, {f'{row[0]:.0%}': row[1:] for row in arm.get('at_fractions') or ()}) for arm in told.others()
  ]
  columns = list(dict.fromkeys(key for _, found in fractions for key in found))
  rows = [
    [page.escape(arm['name']), *(along(told, found.get(key)) for key in columns)]
    for arm, found in fractions
    if found
  ]
  head = ('difference at', *(f'>{key} of the budget' for key in columns))
  return page.section(
    'Learning curves',
    *drawn,
    page.element('div', *charts, kind='multiples') if charts else '',
    page.element('div', page.table(head, rows), kind='spaced along') if rows else '',
    note=f'{told.metric.capitalize()}, mean over seeds; bands from the lowest seed to the highest. '
    'Small charts: the difference from the baseline of the same seed, each on its own scale.',
  )


def along(told, found):
  """HTML of a difference at a part of the budget, with its interval."""
  if not found:
    return ''
  difference, *interval = found
  shown = page.escape(told.difference(summary.as_number(difference)))
  return shown + page.element('small', page.escape(told.interval(interval)))


def measures(told):
  """Means of what else was measured: per source and task, without a verdict."""
  found = {summary.label(arm): curves.measured(told, arm['name']) for arm in told.arms()}
  names = list(dict.fromkeys(name for values in found.values() for name in values))
  names = [name for name in names if name != told.study.get('metric')][:MOST_MEASURES]
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
