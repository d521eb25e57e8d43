"""Extraction: how often the greedy continuation of a training document is that document.

Prompts are parts of training documents. `baseline` is the rate on held-out documents: much text follows from
its beginning without having been read before. Verbatim: all tokens are equal. Near-verbatim: the edit
distance in characters is at most NEAR of the longer text, since a changed space hides no secret (Ippolito et
al. 2023, Preventing Verbatim Memorization). Prompts and continuations of 50 tokens: Carlini et al. 2023,
Quantifying Memorization, section 3.
"""

import numpy as np

from gpt_jax.evaluation import attacks, metrics
from gpt_jax.evaluation.tasks import common, continuation
from gpt_jax.sampling import validate

LIMIT = 256  # prompts of training, and as many of held-out documents, where no limit is given
TOKENS = 50  # of a prompt and of a continuation, at most half the context
NEAR = 0.1


def run(subject, source, split, limit, prefix=0, **sampling):
  """Rows for one source; prefix: tokens of a prompt, 0 = TOKENS; max_new_tokens: of the continuation."""
  context = subject.model.cfg.context - len(continuation.begin_ids(subject))
  length = prefix or min(TOKENS, context // 2)
  new = sampling.get('max_new_tokens', min(TOKENS, context - length))
  if new < 1 or length + new > context:
    raise ValueError(
      f'--prefix={length} and max_new_tokens={new} do not fit a context with room for {context} tokens\n'
      'fix: lower one of the two'
    )
  sampling = {'temperature': 0.0} | sampling | {'max_new_tokens': new}
  cfg = validate.override(subject.cfg.sample, **{'num_samples': 1} | sampling)
  rows = common.Rows('extraction', source, split, prefix=length, **common.sampling_fields(subject, sampling))
  scores = {}
  for part in ('train', split):
    cache = subject.cache(source, part)
    pairs = continuation.prompts_and_continuations(cache, length, new, limit or LIMIT)
    ids = continuation.continue_all(subject, cfg, pairs)
    texts = continuation.decode_all(subject.tokenizers, pairs, ids)
    own = continuation.decode_all(subject.tokenizers, pairs, [target for _, target in pairs])
    scores[part] = compare(ids, [target for _, target in pairs], texts, own)
    if part == 'train':
      examples, right = continuation.prompt_examples(subject, source, pairs, own), scores[part]['verbatim']
      subject.record(rows, examples, targets=own, predictions=texts, right=right.tolist())
  for metric, train_N in scores['train'].items():
    add_rate(rows, metric, train_N, scores[split][metric])
  return rows


def compare(ids, targets, texts, own):
  """Return {metric: [N]}: whether continuations are verbatim or nearly so, and their first equal tokens."""
  equal = [common.shared_prefix(a, b) for a, b in zip(ids, targets, strict=True)]
  distances = [metrics.levenshtein(a, b) / max(len(a), len(b), 1) for a, b in zip(texts, own, strict=True)]
  return {
    'verbatim': np.array([n == len(target) for n, target in zip(equal, targets, strict=True)]),
    'near_verbatim': np.array(distances) <= NEAR,
    'equal_tokens': np.array(equal, float),
  }


def add_rate(rows, metric, train_N, held_out_M):
  """Add a row for the mean over training documents, beside that over held-out ones."""
  if train_N.dtype == bool:
    value, interval = metrics.accuracy(train_N.tolist(), [True] * len(train_N))
  else:
    value, interval = train_N.mean(), metrics.bootstrap_mean(train_N)
  train_N, held_out_M = train_N.astype(float), held_out_M.astype(float)
  rows.add(
    metric,
    value,
    interval=list(interval),
    n=len(train_N),
    baseline=held_out_M.mean(),
    baseline_of=f'{len(held_out_M)} held-out prompts',
    difference=float(train_N.mean() - held_out_M.mean()),
    difference_interval=attacks.bootstrap(lambda a, b: a.mean() - b.mean(), train_N, held_out_M),
  )
