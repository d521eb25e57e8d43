"""The part of a run's report on texts that two models scored: totals, and documents in color.

Reads text_diff.jsonl, which `launch.py report --against=RUN --texts=FILE` writes: totals in the first
line, then one a document, those with the largest differences first.
"""

import itertools

from gpt_jax.reports import page
from gpt_jax.reports.sections import Section, make_table
from gpt_jax.runs import history, records
from gpt_jax.runs.text_table import format_table

FILE = 'text_diff.jsonl'
LISTED = 8  # documents of a table
FULL = 2.0  # nats a character at which the color is full
LEVELS = 8  # shades of a color
TOTAL = {'against': str, 'documents': int, 'bytes': int, 'bits_per_byte': list, 'difference': int | float}
DOCUMENT = {'document': int, 'bytes': int, 'nats': list, 'difference': int | float, 'spans': list}
HEADER = ('>document', '>bytes', '>nats', '>other', '>difference', 'largest in')


def text_diff(run):
  """Where this model and another one differ on the same bytes."""
  lines = records.read_lines(run.folder / FILE, skip_unreadable=True)
  if not lines or not history.has_types(lines[0], TOTAL, TOTAL):
    return Section('Texts', ())
  total, documents = lines[0], [line for line in lines[1:] if history.has_types(line, DOCUMENT, DOCUMENT)]
  parts = [
    page.element('p', describe_total('this model', total)),
    make_table(HEADER, list(map(document_cells, documents[:LISTED]))),
  ]
  for line in documents:
    if history.has_types(line, {'characters': list, 'first': int}, ('characters', 'first')):
      title = f'document {line["document"]}, from byte {line["first"]:,}: {line["difference"]:+.1f} nats'
      parts += [page.element('h3', title, kind='spaced'), page.element('pre', *color(line), kind='diff')]
  note = (
    'Blue: this model is better there; orange: the other. Full color: 2 nats. A token\u2019s nats '
    'are spread over its bytes.'
  )
  return Section('Texts', parts, note)


def color(line):
  """Yield the characters of a document; neighbors of one shade share an element."""
  cells = [cell for cell in line['characters'] if is_cell(cell)]
  shade = lambda cell: round(max(-1, min(1, (cell[1] - cell[2]) / FULL)) * LEVELS)
  for level, group in itertools.groupby(cells, shade):
    group = list(group)
    text = ''.join(cell[0] for cell in group)
    if not level:
      yield text
      continue
    sums = [sum(cell[i] for cell in group) for i in (1, 2)]
    share = f'--share:{abs(level) / LEVELS:.0%}'
    kind = 'hit' if level < 0 else 'miss'
    yield page.element('span', text, kind=kind, style=share, title='{:.2f} against {:.2f} nats'.format(*sums))


def is_cell(cell):
  """Whether an item is [character, nats, nats]."""
  return (
    isinstance(cell, list)
    and len(cell) == 3
    and isinstance(cell[0], str)
    and all(map(history.is_number, cell[1:]))
  )


def describe_total(name, total):
  """Return a sentence on both models over all documents."""
  one, other = total['bits_per_byte']
  low_high = total.get('interval') or ()
  interval = ' ({:+.4f} to {:+.4f})'.format(*low_high) if len(low_high) == 2 else ''
  return (
    f'{name} {one:.4f} bits per byte, {total["against"]} {other:.4f}: {total["difference"]:+.4f}{interval} '
    f'on {total["documents"]:,} documents of {total["bytes"]:,} bytes'
  )


def document_cells(line):
  """Return the cells of HEADER."""
  spans = [
    f'{" ".join(span["text"].split())!r:.24} {span["nats"][0] - span["nats"][1]:+.1f}'
    for span in line['spans'][:3]
  ]
  nats = [f'{x:,.1f}' for x in line['nats']]
  return str(line['document']), f'{line["bytes"]:,}', *nats, f'{line["difference"]:+.1f}', ', '.join(spans)


def format_lines(workdir, total, documents):
  """Return the totals and the documents that differ most as lines."""
  header = [name.lstrip('>') for name in HEADER]
  table = format_table(list(map(document_cells, documents[:LISTED])), header)
  return [describe_total(workdir, total), *table, f'all documents: {workdir}/{FILE}']
