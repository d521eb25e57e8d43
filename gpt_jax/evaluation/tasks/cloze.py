"""Cloze tests: guess the last word of a text, as LAMBADA asks (Paperno et al. 2016).

A template that ends in `{text:cloze}` marks such texts. The last word is what follows the last white space.
It is right if greedy decoding gives all its tokens. Perplexity is per word, whatever the tokenizer.
"""

import numpy as np

from gpt_jax.data import Piece
from gpt_jax.evaluation import likelihood, metrics
from gpt_jax.evaluation.tasks import common


def fits(condition, target):
  """A plain text."""
  return not condition and target == ('text',)


def run(subject, source, split, limit):
  """Rows for one source of the mixture."""
  examples = common.examples(subject, source, split, limit)
  pairs = [last_word(common.text(x.target), x.where) for x in examples]
  requests = [likelihood.encode_pair(subject, *pair) for pair in pairs]
  nats_N, greedy_N, truncated = likelihood.score_requests(subject, requests)
  rows = common.Rows('cloze', source, split, n=len(pairs), **({'truncated': truncated} if truncated else {}))
  rows.add_accuracy('accuracy', greedy_N.tolist(), [True] * len(pairs), chance=0.0)
  rows.add_centered(rows[0], 0.0)
  interval = [float(np.exp(nats)) for nats in metrics.bootstrap_mean(nats_N)]
  rows.add('word_perplexity', np.exp(nats_N.mean()), interval=interval)
  bits_N = nats_N / np.log(2) / [likelihood.count_bytes(*pair) for pair in pairs]
  rows.add('bits_per_byte', bits_N.mean(), interval=list(metrics.bootstrap_mean(bits_N)))
  inputs = [x._replace(condition=[Piece('text', text)]) for x, (text, _) in zip(examples, pairs, strict=True)]
  words = [word for _, word in pairs]
  subject.record(rows, inputs, targets=words, right=greedy_N.tolist(), bits=bits_N.tolist())
  return rows


def last_word(text, where):
  """Cut a text before its last word -> (context with its white space, word)."""
  words = text.split()
  if len(words) < 2:
    raise ValueError(
      f'{where} has {len(words)} words, and a cloze test needs one to guess and one before it\n'
      'fix: leave the record out, as in bad_records=1'
    )
  start = text.rindex(words[-1])
  return text[:start], words[-1]
