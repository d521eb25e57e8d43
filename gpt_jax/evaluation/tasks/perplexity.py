"""Perplexity on held-out data: every target is scored exactly once. Draws no samples.

Text is one stream: windows of the training length start every `stride` tokens and score only new targets,
so that a target has at least length - stride tokens of context; stride = length scores disjoint rows. Where
training keeps documents whole (data.packing) and no stride is given, rows hold whole documents, too.
Documents with media or a condition stay whole, and only their targets count, as in training: also by
modality. Patches of a flow head have no likelihood: their error is a row of its own. Bits per byte leave out
the end of a document, which spells no byte, as lm-eval's and every other task's do; nats per token count it.
Bits a dimension (van den Oord et al. 2016) are given where image codes are lossless, under the softmax over
what the grammar allows.
"""

import collections
import itertools
import logging

import jax
import numpy as np

from gpt_jax import data
from gpt_jax.cluster.batches import data_shard
from gpt_jax.cluster.processes import fetch
from gpt_jax.data.mixture import open_split
from gpt_jax.data.templates import is_chat, is_plain
from gpt_jax.evaluation.metrics import bits_per_dim
from gpt_jax.evaluation.tasks import common
from gpt_jax.losses import bits
from gpt_jax.runs.progress import Progress
from gpt_jax.sampling.prompt_batch import round_up_prompt

log = logging.getLogger(__name__)


def fits(condition, target):
  """Any document."""
  return True


def run(subject, source, split, limit, stride=0):
  """Score `split` of one source of the mixture -> result rows.

  stride: tokens, 0 = disjoint rows. limit: about how many tokens, 0 = all. Rows have tokens and, for
  windows of text, stride; for documents modality. Bits per byte are given only when all is scored.
  """
  if is_stream(subject, source):
    return score_text(subject, source, split, limit, stride)
  if stride:
    raise ValueError(
      f'stride={stride} has no use for data.mixture.{source}, whose documents are scored whole\n'
      'fix: leave stride at 0'
    )
  return score_documents(subject, source, split, limit)


def is_stream(subject, source):
  """Whether a source is scored as a stream of text, as in training, rather than by documents."""
  plain = is_plain(subject.cfg.data.mixture[source].template)
  return subject.row_fields.layout is None or (plain and not subject.cfg.loss.restrict)


def check_targets(subject, source, split):
  """Raise ValueError for a split without a target to score, before anything is trained or compiled."""
  batches = eval_batches(subject, source, split, all_rows=True)
  if any(batch['loss_mask_BT'].any() for batch in batches):
    return
  if is_chat(subject.cfg.data.mixture[source].template):
    raise ValueError(
      f'data.mixture.{source} has no {split} conversation with a reply of the assistant to score\n'
      'fix: give conversations with messages of the role assistant'
    )
  raise no_targets(source, split)


def no_targets(source, split):
  """The ValueError for a split that has nothing to score."""
  return ValueError(
    f'data.mixture.{source} has no {split} token with another before it to score\n'
    'fix: give more text, raise data.valid_fraction, or train without validation (no valid_path, and '
    'data.valid_fraction=0.0)'
  )


def eval_batches(subject, source, split, stride=0, length=0, all_rows=False):
  """This process's rows of the batches that score a split, or all; length: of rows, 0 = as in training."""
  cfg = subject.cfg
  length = length or cfg.train.length or cfg.model.context
  part, parts = (0, 1) if all_rows else data_shard(subject.mesh)
  rows = dict(batch_size=subject.batch_size, process_index=part, process_count=parts)
  cache = subject.cache(source, split)
  length = max(
    min(stride, length), round_up_prompt(len(cache.ids) + 1, length)
  )  # no longer than a short text
  is_text = is_stream(subject, source)
  if is_text and (stride or not cfg.data.has_whole_documents):
    masked = subject.masks_documents
    return data.eval_windows(cache, length, stride or length, mask_documents=masked, **rows)
  fields = subject.row_fields.of_template(cfg.data.mixture[source].template)
  return data.eval_rows(cache, length, row_fields=fields, in_order=is_text, **rows)


def score_text(subject, source, split, limit, stride):
  """Rows for a stream of text."""
  batches = eval_batches(subject, source, split, stride)
  sums, is_whole = sum_batches(subject, subject.score, batches, limit, source, split)
  nats, tokens = sums['nats'], sums['targets']
  if not stride and not subject.cfg.data.has_whole_documents:
    stride = subject.cfg.train.length or subject.cfg.model.context
  fields = {'stride': stride} if stride else {}
  rows = common.Rows('perplexity', source, split, tokens=int(tokens), **fields)
  rows.add('nats_per_token', nats / tokens)
  rows.add('bits_per_token', bits(nats / tokens))
  cache = subject.cache(source, split)
  if is_whole and counts_bytes(subject, source, split) and (count := decoded_bytes(subject, source, split)):
    lost = {'bytes_lost': round(1 - count / cache.bytes, 4)} if count < cache.bytes else {}
    rows.add('bits_per_byte', bits(sums['text_nats']) / count, **lost)
  return rows


def counts_bytes(subject, source, split):
  """Whether all bytes of a split are targets, so that bits per byte are defined.

  Of masked documents without a start token the first tokens are bytes, but not targets.
  """
  if not is_stream(subject, source):
    return False
  return not subject.masks_documents or subject.cache(source, split).start >= 0


def why_no_bytes(subject, source, split, limit):
  """Return why a source of plain text has no bits per byte, '' for other sources."""
  if not is_stream(subject, source):
    return ''
  if not counts_bytes(subject, source, split):
    return 'its documents are masked and have no start token, so their first bytes are not scored'
  return f'they need the whole split, and limit={limit} scores a part' if limit else ''


def decoded_bytes(subject, source, split):
  """UTF-8 bytes of the texts that their tokens give back: fewer than they have where a tokenizer is lossy.

  A tokenizer that drops case or spaces predicts less, and must not look better for it.
  """
  key, cache = ('decoded bytes', source, split), subject.cache(source, split)
  if key not in subject.caches:
    ends = [*cache.offsets[1:].tolist(), len(cache.ids)]
    documents = (cache.ids[start:end] for start, end in zip(cache.offsets.tolist(), ends, strict=True))
    decoded = map(subject.tokenizers.decode_text, documents)
    texts = open_split(subject.cfg.data, source, split).texts()
    count = sum(itertools.starmap(shared_bytes, zip(texts, decoded, strict=True)))
    if count < cache.bytes:
      log.warning(
        'data.mixture.%s: its tokens give back %.3g%% of its bytes; bits per byte count only those',
        source,
        100 * count / cache.bytes,
      )
    subject.caches[key] = count
  return subject.caches[key]


def shared_bytes(text, decoded):
  """UTF-8 bytes of the characters of a text that a decoded text has as well, each as often."""
  shared = {text: 1} if text == decoded else collections.Counter(text) & collections.Counter(decoded)
  return sum(len(characters.encode()) * count for characters, count in shared.items())


def score_documents(subject, source, split, limit):
  """Rows for whole documents: all targets, and each modality if there are two or more."""
  batches = eval_batches(subject, source, split)
  sums, _ = sum_batches(subject, subject.score_rows, batches, limit, source, split)
  restricted_M, targets_M = sums['restricted'], sums['targets']
  nats_M = restricted_M if subject.cfg.loss.restrict else sums['nats']
  names = subject.tokenizers.modalities
  rows = common.Rows('perplexity', source, split)
  parts = [(nats_M[m], targets_M[m], {'modality': name}) for m, name in enumerate(names) if targets_M[m]]
  for nats, targets, fields in [(nats_M.sum(), targets_M.sum(), {}), *(parts if len(parts) > 1 else [])]:
    rows.add('nats_per_token', nats / targets, tokens=int(targets), **fields)
    rows.add('bits_per_token', bits(nats / targets), tokens=int(targets), **fields)
  if 'patches' in sums and (patches := sums['patches'].sum()):
    errors, count = sums['errors'].sum(), targets_M.sum() + patches
    rows.add('flow_error', errors / patches, tokens=int(patches))
    rows.add('loss_per_target', (nats_M.sum() + errors) / count, tokens=int(count))
  if 'image' in names and targets_M[names.index('image')] and is_lossless(subject, source, split):
    m, image = names.index('image'), subject.tokenizers.image
    images = targets_M[m] / (image.length + 1)  # the end of an image is a target, too, and certain
    value = bits_per_dim(restricted_M[m], images * np.prod(image.shape))
    rows.add('bits_per_dim', value, tokens=int(targets_M[m]), modality='image')
  return rows


def sum_batches(subject, score, batches, limit, source, split):
  """Sum score(batch) until `limit` targets are scored -> ({name: float64}, whether all were).

  Raises ValueError if there was nothing to score.
  """
  cache = subject.cache(source, split)
  total = len(cache.ids) if is_stream(subject, source) else 0  # elsewhere, not all are targets
  totals, count, progress = {}, 0, Progress(f'perplexity of {source}', 'tokens', min(total, limit or total))
  for batch in batches:
    if limit and totals and count >= limit:
      return totals, False
    sums = jax.tree.map(np.float64, fetch(score(batch)))
    totals = {name: totals.get(name, 0) + value for name, value in sums.items()}
    count = (totals['targets'] + totals.get('patches', 0)).sum()
    progress.report(int(count))
    subject.raise_if_preempted()
  if not totals or not totals['targets'].sum():
    raise no_targets(source, split)
  return totals, True


def is_lossless(subject, source, split, most=64):
  """Whether the first images of a source come back from their codes unchanged."""
  key, image = ('lossless', source, split), subject.tokenizers.image
  if image.kind != 'pixels':
    return False
  if key not in subject.caches:
    examples = data.examples(subject.cfg.data, source, split)
    readable = data.filter_readable(subject.cfg.data, source, subject.tokenizers, examples)
    documents = itertools.islice(readable, most)
    decoded = [data.decode_media(subject.tokenizers, pieces, where) for where, pieces in documents]
    real = np.stack([p.value for pieces in decoded for p in pieces if p.kind == 'image'])
    subject.caches[key] = bool((image.decode(image.encode(real)) == real).all())
  return subject.caches[key]
