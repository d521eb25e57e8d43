"""Sections of a model card besides model and training: data, privacy, memorization, content, failures.

Each function returns Markdown of what a run folder records; what it does not record is said to be so. What
only people know stands in notes.md of the run folder: its headings (Intended use, Known failures, License, or
any other) become sections of the card.
"""

import json
import logging
import math
import re

import numpy as np

from gpt_jax.runs import digests, history, provenance
from gpt_jax.runs.reading import check_types, reading

log = logging.getLogger(__name__)

CACHE = {'bytes': int, 'entries': dict, 'media': {str: int}}  # of the JSON of a token cache
NOT_RECORDED, NOT_STATED = 'not recorded', 'not stated'
NOTES = 'notes.md'
MEMORIZATION = ('canaries', 'extraction', 'membership')
MEMORIZATION_METRICS = ('nearest_train_ratio', 'copies', 'nearer_to_train')  # of draw and speak
FILTERS = ('keep', 'unique', 'bad_records', 'copies', 'augment', 'clean', 'scrub', 'train_split')
WRITTEN = ('Intended use', 'Known failures')  # sections that every card has
HEADER = ('task', 'data', 'metric', 'value', '95% interval', 'chance', 'baseline', 'examples')


def table(rows, header):
  """Return a Markdown table."""
  clean = lambda cell: str(cell).replace('|', '\\|').replace('\n', ' ')
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(map(clean, line))} |' for line in lines)


# ------------------------------------------------------------------------------------------- data


def data(run, run_records, extra):
  """Return the section on the trained sources; extra: the JSON of the checkpoint."""
  fingerprint = extra.get('data', {}).get('fingerprint', {})
  cleaned = run_records.cleaned()
  rows = []
  for name, source in run.cfg.data.mixture.items():
    if source.weight:
      entries = _entries(fingerprint, name)
      counts = _read_cache(run, name, entries)
      where = ' '.join(filter(None, [source.kind, source.path.rstrip('/').rpartition('/')[2]]))
      filters = [f'{key}={value}' for key, value in source.changed.items() if key in FILTERS]
      done = cleaned.get(name, {})
      filters += [f'{verb} {k}: {n:,}' for verb, counts in done.items() for k, n in counts.items()]
      rows.append(
        (
          *(name, where, f'`{source.template}`', getattr(source, 'license', '') or NOT_STATED),
          counts or NOT_RECORDED,
          str(entries.get('content', NOT_RECORDED))[-16:],
          '<br>'.join(filters) or 'none',
        )
      )
  if not rows:
    return NOT_RECORDED
  header = (
    'source',
    'kind and path',
    'template',
    'license',
    'documents and tokens',
    'content hash',
    'filters',
  )
  held_out = f'data.valid_fraction={run.cfg.data.valid_fraction:g} where a source names no validation data.'
  return f'{table(rows, header)}\n\n{held_out}'


def _entries(fingerprint, name):
  """Return what the token cache of a source was made from, of the fingerprint of the data."""
  first, others = f'mixture.{name}.', ('weight', 'predict_start')
  pairs = {key.removeprefix(first): v for key, v in fingerprint.items() if key.startswith(first)}
  return {key: value for key, value in pairs.items() if key not in others}


def _read_cache(run, name, entries):
  """Return the counts of a source's token cache in a few words, '' where it is gone or damaged."""
  for path in sorted((run.workdir / 'cache').glob(f'{name}-train-????????????????.json')):
    try:
      with reading(path, 'a complete token cache', 'delete it'):
        meta = check_types(json.loads(path.read_bytes()), CACHE)
        size = lambda array, path=path: array_length(path.with_suffix(f'.{array}.npy'))
        counts = [f'{size("offsets"):,} documents', f'{size("ids"):,} tokens', f'{meta["bytes"]:,} bytes']
    except (ValueError, OSError) as error:
      log.warning('not in the card: %s', str(error).splitlines()[0])
      continue
    if not entries or meta['entries'] == entries:
      return ', '.join([*counts, *(f'{count:,} {kind}' for kind, count in meta['media'].items() if count)])
  return ''


def array_length(path):
  """Return the length of an array in a .npy file."""
  return len(np.load(path, mmap_mode='r'))


# ---------------------------------------------------------------------------------------- privacy


def privacy(run_records, rows):
  """Return the guarantee that was proved, and the lower bounds that attacks measured; rows: of `scores`."""
  stated, lines = run_records.privacy(), []
  if stated:
    proved = f'epsilon {stated["epsilon"]:.4g}, delta {stated["delta"]:g}'
    keys = [key for key in stated if key not in ('epsilon', 'delta', 'not_covered')]
    lines.append(f'Trained with differential privacy: ({proved}) for each {stated["unit"]}.')
    lines.append(table([(key.replace('_', ' '), stated[key]) for key in keys], ('', '')))
    lines.append('Not covered:\n\n' + '\n'.join(f'- {line}' for line in stated['not_covered']))
  elif run_records.result:
    lines.append('Trained without differential privacy: nothing bounds what the model reveals of its data.')
  else:
    lines.append(f'Differential privacy: {NOT_RECORDED}, as the training has not finished.')
  bounds = [row for row in rows if row['metric'] == 'epsilon_lower_bound']
  if bounds:
    other = f'not comparable: the guarantee is for each {stated["unit"]}' if stated else 'none'
    cells = [
      (
        row['task'],
        row['source'],
        f'{row["repeats"]} repeats' if 'repeats' in row else row.get('attack', ''),
        f'{row["value"]:.3g}',
        f'{stated["epsilon"]:.4g}' if stated and 'proved' in row else other,
      )
      for row in bounds
    ]
    lines.append(
      'Lower bounds on epsilon by attacks on this model, with 95 % confidence each. That of membership takes '
      'documents for independent, and held-out ones for of the same kind:'
    )
    lines.append(table(cells, ('task', 'source', 'attack', 'at least', 'proved')))
  else:
    lines.append(
      'Lower bound on epsilon by attacks: not measured (`--tasks=membership`, `--tasks=canaries`).'
    )
  return '\n\n'.join(lines)


# ------------------------------------------------------------------------------------- evaluation


def scores(run_records, step):
  """Return the result rows of a step, the latest of equal ones."""
  rows = {}
  for row in run_records.evaluations:
    own = row.get('step', run_records.result.get('steps', 0))
    if own == step and math.isfinite(history.number(row['value'])):
      rows[tuple(str(row.get(key, '')) for key in ('task', 'source', 'split', *IDENTITY))] = row
  return list(rows.values())


IDENTITY = ('metric', 'modality', 'way', 'of', 'control', 'codebook', 'repeats', 'attack')
IDENTITY += ('prompts', 'judge', 'block')


def is_memorization(row):
  """Whether a row says what the model remembers of its training data."""
  return row['task'] in MEMORIZATION or row['metric'] in MEMORIZATION_METRICS


def score_table(rows):
  """Return a table of result rows."""
  number = lambda row, key: f'{row[key]:.4g}' if history.is_number(row.get(key)) else ''
  cells = []
  for row in rows:
    detail = [f'{key} {row[key]}' for key in IDENTITY[1:] if row.get(key) not in (None, '')]
    interval = ' to '.join(f'{b:.4g}' for b in row.get('interval', ()) if history.is_number(b))
    data_name = ' '.join(str(row[key]) for key in ('source', 'split') if key in row)
    metric = ', '.join([row['metric'], *detail])
    cells.append(
      (row['task'], data_name, metric, number(row, 'value'), interval)
      + (number(row, 'chance'), number(row, 'baseline'), str(row.get('n', '')))
    )
  return table(cells, HEADER)


def measured(rows, tasks):
  """Return a table of rows, or how to measure them."""
  return score_table(rows) if rows else f'Not measured: `launch.py evaluate --tasks={tasks}`.'


def weak_scores(rows):
  """Return lines on scores that do not exceed chance by their interval."""
  lines = []
  for row in rows:
    interval = row.get('interval', ())
    if 'chance' not in row or len(interval) != 2 or {'of', 'control'} & set(row) or is_memorization(row):
      continue
    if interval[0] <= row['chance'] <= interval[1]:
      name = f'{row["task"]} on {row.get("source", "")} {row.get("split", "")}'
      lines.append(
        f'{name}: {row["metric"]} {row["value"]:.4g} does not differ from chance ({row["chance"]:.4g})'
      )
  return lines


def events(run_records):
  """Return lines on what went wrong in training."""
  counts = {}
  for event in run_records.events:
    if event['event'] in ('skipped', 'go_back', 'error'):
      counts[event['event']] = counts.get(event['event'], 0) + 1
  words = {
    'skipped': 'log intervals with skipped updates (spikes or non-finite gradients)',
    'go_back': 'rewinds to an earlier checkpoint',
    'error': 'sessions that ended with an error',
  }
  return [f'Training had {count} {words[name]}.' for name, count in counts.items()]


# ------------------------------------------------------------------------------- notes, provenance


def notes(workdir):
  """Return {heading: Markdown} of the sections of notes.md, {} where there is none."""
  path = workdir / NOTES
  if not path.exists():
    return {}
  with reading(path, 'text in UTF-8', 'write it anew, or delete it'):
    parts = re.split(r'(?m)^#+ +(.+?) *$', path.read_text(encoding='utf-8'))
  if parts[0].strip():
    raise ValueError(
      f'{path} begins without a heading: {parts[0].strip()[:40]!r}\n'
      'fix: write sections such as ## Intended use'
    )
  return {heading: text.strip() for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


def sources_of_run(run, run_records):
  """Return a table of what makes the run: code, data, checkpoint, dates."""
  versions = run_records.versions() | run_records.result.get('versions', {})
  times = [event['time'] for event in run_records.events if 'time' in event]
  manifest = run.workdir / 'checkpoints' / 'digests' / f'{run.step}.json'
  packages = ('python', 'jax', 'jaxlib', 'flax', 'optax', 'gpt_jax')
  rows = [
    ('commit', versions.get('git', NOT_RECORDED)),
    ('uncommitted changes', versions.get('uncommitted', 'none') if versions else NOT_RECORDED),
    ('versions', ', '.join(f'{k} {versions[k]}' for k in packages if k in versions) or NOT_RECORDED),
    ('began, ended', f'{times[0]}, {times[-1]}' if times else NOT_RECORDED),
    ('config', provenance.short_hash(json.dumps(run_records.config, sort_keys=True).encode())),
    ('data', run_records.result.get('data', NOT_RECORDED)),
    ('tokenizer', run.tokenizers.hash[:16]),
    ('checkpoint', digests.digest_of_manifest(manifest)[:12] if manifest.exists() else NOT_RECORDED),
  ]
  return table(rows, ('', ''))
