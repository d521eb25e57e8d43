"""The part of a run's report on what evaluations judged: confusions, wrong examples, texts side by side.

Reads predictions.jsonl and the folders that evaluation/predictions.py describes.
"""

import collections
import random

from gpt_jax.reports import page
from gpt_jax.reports.sections import Section, make_table
from gpt_jax.runs import digests, history, records

TYPES = {'task': str, 'source': str, 'split': str, 'index': int, 'input': str, 'target': str | list}
CONFUSION = {'true': [str], 'predicted': [str], 'counts': [[int]]}
NAMES = ('task', 'source', 'split', 'way', 'modality')  # keys that name one evaluation
MAX_CLASSES, MAX_CONFUSIONS = 16, 6  # columns of a matrix; confusions that are listed
MAX_WRONG, MAX_RIGHT, MAX_CHARACTERS = 12, 4, 160  # examples of an evaluation; of one of their texts
MAX_TEXTS, MAX_SOURCE = 20, 600  # worst and random texts of an evaluation; characters of one


def predictions(run):
  """What evaluations judged: counts, confusion matrix, worst confusions, and examples."""
  groups = collections.defaultdict(list)
  for line in records.read_lines(run.folder / 'predictions.jsonl', skip_unreadable=True):
    if history.has_types(line, TYPES, TYPES):
      groups[tuple(str(v) for k, v in line.items() if k in NAMES or '.' in k)].append(line)
  parts = []
  for name, lines in groups.items():
    judged = [line['right'] for line in lines if isinstance(line.get('right'), bool)]
    count = f' {sum(judged):,} of {len(judged):,} right' if judged else f' {len(lines):,} examples'
    parts.append(page.element('h3', page.element('b', ' \u00b7 '.join(name)), count, kind='spaced'))
    folder = run.folder / 'predictions' / '-'.join(name).replace(' ', '-')
    is_whole = verify(run, folder)
    if is_whole:
      parts += confusion_parts(records.read_json(folder / 'confusion.json', CONFUSION))
    if tables := compare_texts(lines):
      parts += tables
      continue
    parts.append(page.element('div', *map_examples(lines, folder if is_whole else None), kind='examples'))
  note = (
    'Rows of a matrix are true classes, columns predictions. A judge names generated images and sounds. '
    'All examples: predictions.jsonl.'
  )
  return Section('Predictions', parts, note if parts else '')


def compare_texts(lines):
  """Return tables of the worst texts by word F1 and of random ones; [] for media and labels."""
  is_text = lambda line: isinstance(line.get('prediction'), str) and history.is_number(line.get('token_f1'))
  if not all(is_text(line) and 'input_media' not in line for line in lines):
    return []
  worst = sorted(lines, key=lambda line: (line['token_f1'], line['index']))[:MAX_TEXTS]
  tables = {'worst by word F1': worst}
  if len(lines) > MAX_TEXTS:
    tables['random'] = random.Random(0).sample(lines, MAX_TEXTS)
  return [
    part
    for name, chosen in tables.items()
    for part in (page.element('h4', f'{len(chosen)} {name}'), page.render_part(text_table(chosen)))
  ]


def text_table(lines):
  """Return the Table of source, reference, baseline and generated text of some examples."""
  header = ('>example', 'source', 'reference', 'baseline', 'generated', '>F1')
  rows = [
    (
      str(line['index']),
      *(
        shorten(text, MAX_SOURCE)
        for text in (line['input'], target_text(line), str(line.get('baseline', '')))
      ),
      page.strong(shorten(line['prediction'], MAX_SOURCE) or '(empty)'),
      f'{line["token_f1"]:.2f}',
    )
    for line in lines
  ]
  return make_table(header, rows, 'wide compared')


def target_text(line):
  """Return the right answers of an example as one text."""
  return line['target'] if isinstance(line['target'], str) else ' / '.join(map(str, line['target']))


def verify(run, folder):
  """Whether a folder of predictions is one of this run, and as it was written."""
  try:
    digests.verify_folder(folder.with_name(f'{folder.name}.json'), folder)
    return folder.resolve().is_relative_to(run.folder.resolve())
  except (OSError, ValueError):
    return False


def confusion_parts(confusion):
  """Return the matrix, where it is small enough, and the worst confusions as a list; [] without classes."""
  if not confusion:
    return []
  rows, parts = list(zip(confusion['true'], confusion['counts'], strict=False)), []
  columns = confusion['predicted']
  if len(columns) <= MAX_CLASSES:
    cells = [
      (label, *(count_cell(label, *pair, sum(counts)) for pair in zip(columns, counts, strict=False)))
      for label, counts in rows
    ]
    parts.append(make_table(('', *(f'>{column}' for column in columns)), cells, 'confusion'))
  wrong = [
    (count, f'{label} predicted as {column}: {count:,} of {sum(counts):,}')
    for label, counts in rows
    for column, count in zip(columns, counts, strict=False)
    if count and column != label
  ]
  return [*parts, [text for _, text in sorted(wrong, key=lambda pair: -pair[0])[:MAX_CONFUSIONS]]]


def count_cell(label, column, count, total):
  """Return a count whose background shows its share of the row."""
  share = f'--share:{count / max(total, 1):.0%}'
  return page.element(
    'span', f'{count:,}' if count else '\u00b7', style=share, kind='hit' if label == column else 'miss'
  )


def map_examples(lines, folder):
  """Yield figures of the first wrong examples and of some right ones, with media before those without."""
  by_media = sorted(lines, key=lambda line: media_path(line, folder) is None)
  wrong = [line for line in by_media if line.get('right') is False][:MAX_WRONG]
  right = [line for line in by_media if line.get('right') is not False]
  for line in [*wrong, *right[: MAX_RIGHT if wrong else MAX_WRONG]]:
    path = media_path(line, folder)
    yield page.element(
      'figure', page.media(path) if path else '', page.element('figcaption', *captions(line))
    )


def captions(line):
  """Yield the texts below an example: what was given, what was predicted, and the target if they differ."""
  target = target_text(line)
  given, prediction = line['input'], line.get('prediction')
  if given not in (target, '') and not (given.startswith('[') and given.endswith(']')):
    yield page.element('div', shorten(given), kind='about')
  yield page.element('b', shorten(target if prediction is None else str(prediction)) or '(empty)')
  if line.get('right') is False or (prediction is not None and line.get('right') is None):
    yield page.element('div', f'not {shorten(target)}' if 'right' in line else shorten(target), kind='about')


def shorten(text, most=MAX_CHARACTERS):
  """Return a text up to `most` characters."""
  return text if len(text) <= most else text[: most - 1] + '\u2026'


def media_path(line, folder):
  """Return the file that shows an example best: what was generated, else its input; None without one."""
  for key in ('media', 'input_media', 'target_media'):
    if folder and isinstance(name := line.get(key), str):
      path = folder / name.rpartition('/')[2]
      return path if path.name and path.is_file() else None
  return None
