"""Compare two runs: where their activations differ on one batch, and how activations grow by width.

Printed by `launch.py report --workdir=A --against=B`. B rows of a batch, T their length.
"""

import dataclasses
import math
from pathlib import Path

from gpt_jax import config, data
from gpt_jax.cluster.batches import to_devices
from gpt_jax.data.templates import is_plain
from gpt_jax.evaluation import trained
from gpt_jax.evaluation.tasks import common, perplexity
from gpt_jax.runs import records
from gpt_jax.runs.text_table import format_table, join_some
from gpt_jax.training import probes

ROWS = 4  # of the batch, at least: every activation of both models is kept at once


def runs_apart(workdir, against):
  """Compare the activations of two runs on one batch; return lines, append to <workdir>/against.jsonl.

  The batch is the first of the validation data of `workdir`. Raises ValueError if a folder is not a
  trained GPT, the tokenizers differ, or there are no validation data.
  """
  a, b = trained.load(workdir), trained.load(against)
  if a.tokenizers.hash != b.tokenizers.hash:
    raise ValueError(
      f'{workdir} and {against} have different tokenizers, so that no batch suits both\n'
      'fix: compare runs of one tokenizer'
    )
  source, batch = validation_batch(a, min(a.cfg.model.context, b.cfg.model.context))
  rows = probes.activation_diff(a, b, to_devices(batch, a.mesh))
  changed = records.diff(config.to_dict(a.cfg), config.to_dict(b.cfg))
  shape = list(batch['token_ids_BT'].shape)
  record = {'against': str(Path(against).expanduser().absolute()), 'steps': [a.step, b.step]}
  record |= {'source': source, 'batch': shape, 'config': changed}
  record['activations'] = [dict(zip(('path', 'largest', 'relative'), row, strict=True)) for row in rows]
  records.append_line(Path(workdir).expanduser() / 'against.jsonl', record)
  changes = join_some(f'{key} {old!r} -> {new!r}' for key, (old, new) in changed.items())
  return [
    f'{workdir} after {a.step} steps, {against} after {b.step}: {changes or "one config"}',
    f'activations on {shape[0]} validation rows of {shape[1]} tokens of {source}; relative: RMS of '
    f"the difference over that of {workdir}'s",
    *format_rows(rows),
  ]


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
  sizes = {key: getattr(run.model.cfg, key) for key in ('vocab', 'patch_values', 'frame_values')}
  models = [dataclasses.replace(run.cfg.model, width=width, **sizes).resolved() for width in widths]
  return probes.coordinate_check(run.cfg, models, batch, steps)
