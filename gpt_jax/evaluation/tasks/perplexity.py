"""How well a model predicts held-out data: every target scored exactly once.

Texts are one stream: windows of the training length start every `stride` tokens and score only what
is new, so that a target has at least length - stride tokens of context; stride = length scores
disjoint rows. Documents with media or a condition stay whole, and only what the model had to make
counts, as in training: also apart by modality. Bits a dimension (van den Oord et al. 2016) are
given where image codes lose nothing, under the softmax over what the grammar allows.
"""

import itertools

import numpy as np

from gpt_jax import data
from gpt_jax.cluster.processes import fetch
from gpt_jax.data.templates import is_plain
from gpt_jax.evaluation.metrics import bits_per_dim
from gpt_jax.losses import bits, bits_per_byte
from gpt_jax.sharding import data_shard, to_devices


def fits(condition, target):
  """Anything."""
  return True


def run(subject, source, split, limit, stride=0):
  """Score `split` of one source of the mixture -> list of result rows.

  subject: evaluate.Subject. stride: tokens, 0 = disjoint rows. limit: about how many tokens, 0 =
  all. Rows: dict(task, metric, value, source, tokens, stride), for documents documents and
  modality; bits per byte only when all is scored.
  """
  plain = is_plain(subject.cfg.data.mixture[source].template)
  if subject.row_fields.layout is None or (plain and not subject.cfg.loss.restrict):
    return of_text(subject, source, split, limit, stride)
  if stride:
    raise ValueError(
      f'stride={stride} has no use for data.mixture.{source}, whose documents are scored whole\n'
      'fix: leave stride at 0'
    )
  return of_documents(subject, source, split, limit)


def of_text(subject, source, split, limit, stride):
  """Rows for a stream of text."""
  length = subject.cfg.train.length or subject.cfg.model.context
  stride = stride or length
  cache = subject.cache(source, split)
  part, parts = data_shard(subject.mesh)
  batches = data.eval_windows(
    cache,
    length,
    stride,
    subject.batch_size,
    mask_documents=subject.masks_documents,
    process_index=part,
    process_count=parts,
  )
  nats = tokens = 0.0
  whole = True
  for batch in batches:
    if limit and tokens >= limit:
      whole = False
      break
    batch_nats, batch_tokens = fetch(subject.score(subject.model, to_devices(batch, subject.mesh)))
    nats, tokens = nats + float(batch_nats), tokens + float(batch_tokens)
    subject.raise_if_preempted()
  _check(tokens, source, split)
  values = {'nats_per_token': nats / tokens, 'bits_per_token': bits(nats / tokens)}
  if whole and not subject.masks_documents:  # else first tokens are not scored, but are bytes
    values['bits_per_byte'] = bits_per_byte(nats, cache.bytes)
  about = dict(task='perplexity', source=source, split=split, tokens=int(tokens), stride=stride)
  return [dict(about, metric=metric, value=value) for metric, value in values.items()]


def of_documents(subject, source, split, limit):
  """Rows for whole documents: of all targets, and of each modality among them if there are two."""
  length = subject.cfg.train.length or subject.cfg.model.context
  cache, template = subject.cache(source, split), subject.cfg.data.mixture[source].template
  part, parts = data_shard(subject.mesh)
  batches = data.eval_rows(
    cache,
    length,
    subject.batch_size,
    row_fields=subject.row_fields.of_template(template),
    process_index=part,
    process_count=parts,
  )
  names = subject.tokenizers.modalities
  nats_M, restricted_M, targets_M = np.zeros((3, len(names)))
  for batch in batches:
    if limit and targets_M.sum() >= limit:
      break
    sums = fetch({k: v for k, v in subject.score_by_modality(batch).items() if k.endswith('_M')})
    nats_M += sums['nats_M']
    restricted_M += sums['restricted_M']
    targets_M += sums['targets_M']
    subject.raise_if_preempted()
  _check(targets_M.sum(), source, split)
  if subject.cfg.loss.restrict:
    nats_M = restricted_M
  rows = []

  def add(metric, value, tokens, **more):
    row = dict(task='perplexity', metric=metric, value=float(value), source=source, split=split)
    rows.append({**row, 'tokens': int(tokens), **more})

  present = [m for m in range(len(names)) if targets_M[m]]
  parts = [(nats_M[m], targets_M[m], {'modality': names[m]}) for m in present]
  whole = (nats_M.sum(), targets_M.sum(), {})
  for nats, targets, which in [whole, *(parts if len(parts) > 1 else [])]:
    add('nats_per_token', nats / targets, targets, **which)
    add('bits_per_token', bits(nats / targets), targets, **which)
  if 'image' in names and targets_M[names.index('image')] and is_lossless(subject, source, split):
    m, image = names.index('image'), subject.tokenizers.image
    images = targets_M[m] / (image.length + 1)  # the end of an image counts, and is certain
    value = bits_per_dim(restricted_M[m], images * np.prod(image.shape))
    add('bits_per_dim', value, targets_M[m], modality='image')
  return rows


def is_lossless(subject, source, split, most=64):
  """Whether images of this source come back from their codes as they were."""
  key = 'lossless', source, split
  if subject.tokenizers.image.kind != 'pixels':
    return False
  if key not in subject.caches:
    every = data.examples(subject.cfg.data, source, split)
    whole = data.filter_readable(subject.cfg.data, source, subject.tokenizers, every)
    documents = itertools.islice(whole, most)
    decoded = [data.decode_media(subject.tokenizers, pieces, where) for where, pieces in documents]
    real = np.stack([p.value for pieces in decoded for p in pieces if p.kind == 'image'])
    image = subject.tokenizers.image
    subject.caches[key] = bool((image.decode(image.encode(real)) == real).all())
  return subject.caches[key]


def _check(tokens, source, split):
  if not tokens:
    raise ValueError(
      f'data.mixture.{source} has no {split} token with another before it to score\n'
      'fix: raise data.valid_fraction, or give more text'
    )
