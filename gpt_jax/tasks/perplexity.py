"""How well a model predicts a held-out text: every token of it scored exactly once.

Windows of the training length start every `stride` tokens and score only what is new, so that a
target has at least length - stride tokens of context. stride = length scores disjoint rows.
"""

import jax

from gpt_jax import data
from gpt_jax.losses import bits, bits_per_byte
from gpt_jax.sharding import to_devices


def run(subject, split='valid', stride=0, limit=0):
  """Score `split` of each source of the mixture -> list of result rows.

  subject: evaluate.Subject. stride: tokens, 0 = disjoint rows. limit: about how many tokens of each
  source, 0 = all.
  Rows: dict(task, metric, value, source, tokens, stride); bits per byte only when all is scored.
  """
  cfg = subject.cfg
  length = cfg.train.length or cfg.model.context
  stride = stride or length
  rows = []
  for source in data.source_names(cfg.data, split):
    cache = subject.cache(source, split)
    batches = data.eval_windows(
      cache, length, stride, subject.batch_size, mask_documents=subject.masks_documents,
      process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    nats = tokens = 0.0
    whole = True
    for batch in batches:
      if limit and tokens >= limit:
        whole = False
        break
      batch_nats, batch_tokens = jax.device_get(
        subject.score(subject.model, to_devices(batch, subject.mesh))
      )
      nats, tokens = nats + float(batch_nats), tokens + float(batch_tokens)
    if not tokens:
      raise ValueError(
        f'data.mixture.{source} has no {split} token with another before it to score\n'
        'fix: raise data.valid_fraction, or give more text'
      )
    values = {'nats_per_token': nats / tokens, 'bits_per_token': bits(nats / tokens)}
    if whole and not subject.masks_documents:  # else first tokens are not scored, but are bytes
      values['bits_per_byte'] = bits_per_byte(nats, cache.bytes)
    about = dict(task='perplexity', source=source, split=split, tokens=int(tokens), stride=stride)
    rows += [dict(about, metric=metric, value=value) for metric, value in values.items()]
  return rows
