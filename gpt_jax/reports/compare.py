"""Compare two runs: their activations on one batch, their nats on texts, and how activations grow by width.

Printed by `launch.py report --workdir=A --against=B [--texts=FILE]`. B rows of a batch, T their length; N
documents.
"""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import jax
import numpy as np

from gpt_jax import config, data
from gpt_jax.ablation import store
from gpt_jax.cluster.batches import to_devices
from gpt_jax.data.templates import is_plain
from gpt_jax.evaluation import likelihood, trained
from gpt_jax.evaluation.tasks import common, perplexity
from gpt_jax.losses import bits, token_losses
from gpt_jax.model import continuous, gpt, param_trees
from gpt_jax.reports import text_diff_part, token_kinds
from gpt_jax.runs import records
from gpt_jax.runs.text_table import format_table, join_some
from gpt_jax.training import probes

WORD = re.compile(r'\s*\S{1,24}|\s+')  # a span whose nats are compared
SPANS, SHOWN = 5, 8  # spans of a document that are listed; documents whose text is kept
EXCERPT = 1200  # characters of a text that is kept, around its largest difference
BOOTSTRAPS = 1000
BATCHES, GRADIENTS = 16, 10  # of validation rows whose losses are compared; parameters that are listed
ROWS = 4  # of the batch, at least: every activation of both models is kept at once


def runs_apart(workdir, against):
  """Compare activations, losses and gradients of two runs; return lines, append to <workdir>/against.jsonl.

  The batch is the first of the validation data of `workdir`. Raises ValueError if a folder is not a
  trained GPT, the tokenizers differ, or there are no validation data.
  """
  a, b = trained.load(workdir), trained.load(against, key='--against')
  source, batch, rows = activations_apart(a, b)
  changed = records.diff(config.to_dict(a.cfg), config.to_dict(b.cfg))
  shape = list(batch['token_ids_BT'].shape)
  record = {'against': str(Path(against).expanduser().absolute()), 'steps': [a.step, b.step]}
  record |= {'source': source, 'batch': shape, 'config': changed}
  record['activations'] = [dict(zip(('path', 'largest', 'relative'), row, strict=True)) for row in rows]
  kinds, gradients = losses_apart(a, b, source), gradients_apart(a, b, batch)
  record |= {'losses': kinds}
  record['gradients'] = [dict(zip(('path', 'rms', 'other', 'ratio'), row, strict=True)) for row in gradients]
  records.append_line(Path(workdir).expanduser() / 'against.jsonl', record)
  changes = join_some(f'{key} {old!r} -> {new!r}' for key, (old, new) in changed.items())
  return [
    f'{workdir} after {a.step} steps, {against} after {b.step}: {changes or "one config"}',
    f'activations on {shape[0]} validation rows of {shape[1]} tokens of {source}; relative: RMS of '
    f"the difference over that of {workdir}'s",
    *format_rows(rows),
    f'nats of validation targets of {source} by kind, those that make the largest difference first; standard '
    'errors over rows; a target counts by its kind and by its pair',
    *format_table(
      token_kinds.format_kinds(kinds), ('kind', '>targets', '>own', '>other', '>difference', '>share')
    ),
    'gradients whose sizes (RMS) differ most',
    *format_table(
      [(path, *(f'{x:.3g}' for x in sizes)) for path, *sizes in gradients],
      ('parameter', '>own', '>other', '>ratio'),
    ),
  ]


def activations_apart(a, b):
  """Return (source, batch, rows of probes.activation_diff) of two runs on validation rows of the first."""
  if a.tokenizers.hash != b.tokenizers.hash:
    raise ValueError(
      f'{a.workdir} and {b.workdir} have different tokenizers, so that no batch suits both\n'
      'fix: compare runs of one tokenizer, or their scores of a text (--texts=FILE)'
    )
  source, batch = validation_batch(a, min(a.cfg.model.context, b.cfg.model.context))
  return source, batch, probes.activation_diff(a, b, to_devices(batch, a.mesh))


def arms_apart(workdir):
  """Compare each arm of a study with its baseline, by a run of the same seed; return lines.

  Each arm's run keeps the comparison in its against.jsonl, from which the study's report is made.
  """
  study, lines = store.read_study(workdir), []
  base = next(arm for arm in study['arms'] if arm['is_baseline'])
  for arm in (arm for arm in study['arms'] if arm is not base):
    for seed in study['seeds']:
      folders = [store.run_path(workdir, each['slug'], seed) for each in (arm, base)]
      if all(store.run_status(folder)[0] == 'done' for folder in folders):
        try:
          lines += [*runs_apart(*folders), '']
        except ValueError as error:
          lines.append(f'{arm["name"]}: {str(error).splitlines()[0]}')
        break
  return lines


def losses_apart(a, b, source):
  """Return token_kinds.compare_kinds of two runs on validation rows of a source of the first."""
  length = min(run.cfg.train.length or run.cfg.model.context for run in (a, b))
  nats, others, masks, inputs, targets = [], [], [], [], []
  batches = perplexity.eval_batches(a.subject(), source, 'valid', length=length, all_rows=True)
  for batch in itertools.islice(batches, BATCHES):
    for run, arrays in ((a, nats), (b, others)):
      arrays.append(np.asarray(target_nats(run.model, to_devices(batch, run.mesh))))
    masks.append(batch['loss_mask_BT'])
    inputs.append(batch['token_ids_BT'])
    targets.append(batch['target_ids_BT'])
  kinds = token_kinds.label_tokens(np.concatenate(inputs), np.concatenate(targets), a.tokenizers)
  return token_kinds.compare_kinds(*(np.concatenate(x) for x in (nats, others, masks)), kinds)


@jax.jit
def target_nats(model, batch):
  """Return the nats of each target of a batch, BT."""
  model = param_trees.cast(model, model.cfg.dtype)
  out = model(batch['token_ids_BT'], **gpt.inputs(model.cfg, batch))
  return token_losses(out.logits_BTV, batch['target_ids_BT'])[0]


def gradients_apart(a, b, batch):
  """Return [(parameter, RMS of its gradient in a, in b, b's over a's)], the GRADIENTS largest ratios.

  Parameters that both have, each layer for itself.
  """
  sizes = [probes.gradient_sizes(run.model, to_devices(batch, run.mesh)) for run in (a, b)]
  both = [(path, *(of[path] for of in sizes)) for path in sizes[0] if path in sizes[1]]
  rows = [(path, one, other, other / one) for path, one, other in both if one and other]
  return sorted(rows, key=lambda row: -abs(math.log(row[3])))[:GRADIENTS]


def texts_apart(workdir, against, path):
  """Score the bytes of texts by two runs; write <workdir>/text_diff.jsonl and return lines.

  path: JSON lines with the field `text`, or a text whose documents empty lines separate. The tokenizers may
  differ. A difference is the nats of `workdir` less those of `against`.
  """
  kind = {'kind': 'jsonl'} if '.jsonl' in Path(path).suffixes else {'kind': 'text', 'separator': '\n\n'}
  section = data.DataConfig(mixture={'texts': data.Source(path=str(path), **kind)}, valid_fraction=0.0)
  texts = [text for _, text in data.documents(section, 'train') if text]
  folders = {'workdir': workdir, '--against': against}
  steps, nats = zip(*(score_bytes(*named, texts, path) for named in folders.items()), strict=True)
  sizes_N = np.array([len(text.encode()) for text in texts])
  sums_2N = np.array([[array.sum() for array in arrays] for arrays in nats])
  total = {'against': str(Path(against).expanduser().absolute()), 'steps': list(steps), 'texts': str(path)}
  total |= {'documents': len(texts), 'bytes': int(sizes_N.sum()), 'nats': sums_2N.sum(1).tolist()}
  total['bits_per_byte'] = [bits(x) / total['bytes'] for x in total['nats']]
  total['difference'] = total['bits_per_byte'][0] - total['bits_per_byte'][1]
  total['interval'] = paired_interval(sums_2N[0] - sums_2N[1], sizes_N)
  order = np.argsort(-np.abs(sums_2N[0] - sums_2N[1]), kind='stable').tolist()
  documents = [
    describe_text(n, texts[n], nats[0][n], nats[1][n], is_shown=rank < SHOWN) for rank, n in enumerate(order)
  ]
  lines = b''.join(map(records.format_object, [total, *documents]))
  records.write_atomically(Path(workdir).expanduser() / text_diff_part.FILE, lines)
  return text_diff_part.format_lines(workdir, total, documents)


def score_bytes(key, folder, texts, path):
  """Return (step, nats of each byte of each text) of a run, whose model is freed on return."""
  run = trained.load(folder, key=key)
  try:
    return run.step, likelihood.byte_nats(run.subject(), texts)
  except ValueError as error:
    raise ValueError(f'--texts={path} by {folder}: {error}') from error


def paired_interval(differences_N, sizes_N, seed=0):
  """Return the 95 % interval of bits per byte: documents are drawn again with both of their scores.

  [] for a single document.
  """
  if len(sizes_N) < 2:
    return []
  draws_DN = np.random.default_rng(seed).integers(len(sizes_N), size=(BOOTSTRAPS, len(sizes_N)))
  ratios_D = bits(differences_N[draws_DN].sum(1) / sizes_N[draws_DN].sum(1))
  return np.percentile(ratios_D, (2.5, 97.5)).tolist()


def describe_text(number, text, one_N, other_N, is_shown):
  """Return the line of a document: sums, the spans that differ most, and with is_shown its characters' nats.

  one_N, other_N: nats of its bytes. characters: [[text, nats, nats]] of the excerpt.
  """
  ends = np.cumsum([0, *(len(character.encode()) for character in text)])
  sums = [np.append(0, np.cumsum(array)) for array in (one_N, other_N)]
  nats = lambda start, end: [float(total[ends[end]] - total[ends[start]]) for total in sums]
  words = [(match.start(), match.end()) for match in WORD.finditer(text)]
  gaps = [np.subtract(*nats(*word)) for word in words]
  largest = [words[i] for i in np.argsort(-np.abs(gaps), kind='stable')]
  span = lambda start, end: {'start': int(ends[start]), 'text': text[start:end], 'nats': nats(start, end)}
  line = {'document': number, 'bytes': int(ends[-1]), 'nats': nats(0, len(text))}
  line |= {'difference': float(np.subtract(*line['nats'])), 'spans': [span(*w) for w in largest[:SPANS]]}
  if is_shown:
    first = max(0, min(largest[0][0] - EXCERPT // 2, len(text) - EXCERPT))
    places = range(first, min(first + EXCERPT, len(text)))
    rounded = lambda i: [round(x, 4) for x in nats(i, i + 1)]
    line |= {'first': int(ends[first]), 'characters': [[text[i], *rounded(i)] for i in places]}
  return line


def format_rows(rows):
  """Return rows of probes.activation_diff as lines of a table."""
  show = lambda x: '-' if math.isnan(x) else f'{x:.3g}'
  cells = [(path, show(relative), show(largest)) for path, largest, relative in rows]
  lines = format_table(cells, ('activation', 'relative', 'largest'))
  if any(math.isnan(relative) for *_, relative in rows):
    lines.append('-: missing in one of the runs, or of another shape')
  return lines


def validation_batch(run, max_tokens):
  """Return (source, {name: array BT...}) of the first validation rows, each of at most max_tokens."""
  subject, cfg = run.subject(), run.cfg
  sources = common.matching_sources(subject, perplexity.fits, 'valid')
  if not sources:
    raise ValueError(
      f'{run.workdir} has no validation data\nfix: set data.valid_fraction, or give another --workdir'
    )
  count = run.mesh.size * math.ceil(ROWS / run.mesh.size)  # a multiple of the devices
  length, cache = min(cfg.train.length or max_tokens, max_tokens), subject.cache(sources[0], 'valid')
  template = cfg.data.mixture[sources[0]].template
  if subject.row_fields.layout is None or (is_plain(template) and not cfg.loss.restrict):
    batches = data.eval_windows(cache, length, length, count, mask_documents=subject.masks_documents)
  else:
    batches = data.eval_rows(cache, length, count, row_fields=subject.row_fields.of_template(template))
  return sources[0], next(iter(batches))


def coordinate_check(workdir, widths, steps=4):
  """Return probes.coordinate_check of a run's config at other widths, on its first validation rows.

  Returns {path: {width: [RMS before each step, and after]}}. The number of heads is kept; learning rates
  and initial values follow the width by model.mup_base.
  """
  run = trained.load(workdir)
  _, batch = validation_batch(run, run.cfg.model.context)
  sizes = {key: getattr(run.model.cfg, key) for key in ('vocab', 'encoders', *continuous.SETTINGS)}
  models = [dataclasses.replace(run.cfg.model, width=width, **sizes).resolved() for width in widths]
  return probes.coordinate_check(run.cfg, models, batch, steps)
