"""Generative classification: which of the conditions makes an image or a sound likeliest.

No new training: argmax over c of log p(target | c) + log p(c), under the softmax over what the
grammar allows. It tests whether the model uses its condition; so does the information that the
condition gives, the mean of log p(x | c) - log sum over c' of p(c') p(x | c'), in bits of a target.
"""

import collections

import numpy as np

from gpt_jax.data import Piece
from gpt_jax.tasks import common

MOST = 20  # conditions that are compared
LIMIT = 200  # examples where no limit is given: each is scored under every condition


def fits(condition, target):
  """Text to read, and an image or a sound."""
  return condition == ('text',) and target in (('image',), ('audio',))


def run(subject, source, split, limit):
  """Rows for one source; none where it has more than MOST different conditions."""
  train = common.examples(subject, source, 'train', common.TRAIN_LIMIT)
  count = collections.Counter(common.text(example.condition) for example in train)
  found = common.examples(subject, source, split, limit or LIMIT)
  names = [common.text(example.condition) for example in found]
  if not 2 <= len(count) <= MOST or set(names) - set(count):
    return []
  conditions = {common.text(example.condition): example.condition for example in train}
  arrow = Piece('arrow')
  texts = sorted(conditions)
  documents = [[*conditions[c], arrow, *x.target] for x in found for c in texts]
  log_p_NC = -subject.target_nats(documents).reshape(len(found), len(texts))
  prior_C = np.log([count[c] / len(train) for c in texts])
  joint_NC = log_p_NC + prior_C
  rows, add = common.rows('classify', source, split, len(found))
  guess = [texts[i] for i in joint_NC.argmax(1)]
  common.add_accuracy(add, 'accuracy', guess, names, chance=common.chance(names))
  top_N = joint_NC.max(1)
  marginal_N = top_N + np.log(np.exp(joint_NC - top_N[:, None]).sum(1))
  true_N = log_p_NC[np.arange(len(found)), [texts.index(name) for name in names]]
  entropy = -float((np.exp(prior_C) * prior_C).sum()) / np.log(2)
  bits = float((true_N - marginal_N).mean() / np.log(2))
  add('information', bits, chance=0.0, baseline=entropy, unit='bits')
  return rows
