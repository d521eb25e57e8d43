"""What filters and scrubbing did to sources: a page of counts, sizes and samples, and a part of reports."""

import numpy as np

from gpt_jax.reports import figures, page
from gpt_jax.reports.sections import Section, make_table

BINS = 24  # of the sizes of documents


def render(surveys):
  """Return the page of `launch.py data` as HTML; surveys: data.clean.survey.Survey as dicts."""
  total = lambda key: sum(survey[key] for survey in surveys)
  tiles = [(name, f'{total(key):,}') for name, key in (('documents', 'documents'), ('left', 'left'))]
  tiles += [('bytes', f'{total("bytes"):,}'), ('bytes left', f'{total("bytes_left"):,}')]
  top = page.header(['gpt_jax data'], 'Data before and after', alarms=(), tiles=tiles)
  counts = {
    survey['name']: {k: survey[k] for k in ('documents', 'removed', 'replaced')} for survey in surveys
  }
  parts = [counts_section(counts)]
  for survey in surveys:
    rows = [(rule, where, before, after) for rule, where, before, after in survey['samples']]
    notes = make_table(('change', '>count'), [(k, f'{n:,}') for k, n in survey['changed'].items()])
    table = make_table(('rule', 'place', 'before', 'after'), rows)
    parts.append(Section(survey['name'], [*_sizes(survey), notes, table], 'Bytes of the documents.'))
  return page.document('gpt_jax data', top, parts)


def counts_section(sources):
  """Return the Section of {source: {removed: {reason: n}, replaced: {row: n}}}; `documents`: for shares."""
  rows = []
  for name, counts in sources.items():
    for reason, n in counts['removed'].items():
      share = f'{n / counts["documents"]:.2%} of documents' if 'documents' in counts else ''
      rows.append((name, f'removed: {reason}', f'{n:,}', share))
    rows += [(name, f'replaced: {row}', f'{n:,}', '') for row, n in counts['replaced'].items()]
  note = 'Documents removed by clean, and personal data replaced by scrub.' if rows else ''
  table = [make_table(('source', 'what', '>count', '>share'), rows)] if rows else []
  return Section('Cleaned data', table, note)


def _sizes(survey):
  """Return the figures of how many documents have which size, before and after."""
  before, after = (np.maximum(1, np.asarray(sizes, float)) for sizes in survey['sizes'])
  if not len(before):
    return []
  edges = np.geomspace(before.min(), max(before.max(), before.min() + 1), BINS + 1)
  middle = np.sqrt(edges[1:] * edges[:-1])
  lines = []
  for label, sizes, color in (('before', before, figures.FIRST), ('after', after, figures.SECOND)):
    count = np.histogram(sizes, edges)[0].astype(float)
    lines.append(figures.Series(middle, count, 'line', color, label))
  name = survey['name']
  draw = lambda kind, size: figures.chart(
    lines,
    name=f'{kind} {name}',
    label=f'documents of {name} by size',
    size=size,
    units=('bytes', 'documents'),
    room=60,
    x_scale='log',
  )
  return page.figure_pair(draw)
