"""Generative classification: which of the conditions makes an image or a sound likeliest.

No new training: argmax over c of log p(target | c) + log p(c), under the softmax over what the
grammar allows. It tests whether the model uses its condition; so does the information that the
condition gives, the mean of log p(x | c) - log sum over c' of p(c') p(x | c'), in bits of a target.
Where conditions are descriptions instead of classes, the rank of the true one among all of them.
"""

import collections

import numpy as np

from gpt_jax.data import Piece
from gpt_jax.evaluation.tasks import common

MOST = 20  # conditions that count as classes
LIMIT = 200  # examples where no limit is given: each is scored under every condition


def fits(condition, target):
  """Text to read, and an image or a sound."""
  return condition == ('text',) and target in (('image',), ('audio',))


def run(subject, source, split, limit):
  """Rows for one source: of classes, or of retrieval where there are more than MOST conditions."""
  train = common.examples(subject, source, 'train', common.TRAIN_LIMIT)
  count = collections.Counter(common.text(example.condition) for example in train)
  found = common.examples(subject, source, split, limit or LIMIT)
  names = [common.text(example.condition) for example in found]
  rows, add = common.rows('classify', source, split, len(found))
  if not 2 <= len(count) <= MOST or set(names) - set(count):
    texts, log_p_NC = scored(subject, found, found)
    if len(texts) > 1:
      common.add_retrieval(add, log_p_NC, np.array([texts.index(name) for name in names]))
    return rows
  texts, log_p_NC = scored(subject, found, train)
  prior_C = np.log([count[c] / len(train) for c in texts])
  joint_NC = log_p_NC + prior_C
  guess = [texts[i] for i in joint_NC.argmax(1)]
  common.add_judged(add, 'accuracy', guess, names, chance=common.chance(names))
  top_N = joint_NC.max(1)
  marginal_N = top_N + np.log(np.exp(joint_NC - top_N[:, None]).sum(1))
  entropy = -float((np.exp(prior_C) * prior_C).sum()) / np.log(2)
  given = {'': names, 'shuffled': common.shuffled(names)}  # the wrong condition costs bits
  for control, labels in given.items():
    if labels:
      given_N = log_p_NC[np.arange(len(found)), [texts.index(name) for name in labels]]
      bits = float((given_N - marginal_N).mean() / np.log(2))
      rivals = {'control': control} if control else {'chance': 0.0, 'baseline': entropy}
      add('information', bits, unit='bits', **rivals)
  return rows


def scored(subject, found, given):
  """The conditions of `given`, sorted, and log p of each target under each of them, [N, C]."""
  conditions = {common.text(example.condition): example.condition for example in given}
  texts, arrow = sorted(conditions), Piece('arrow')
  documents = [[*conditions[c], arrow, *x.target] for x in found for c in texts]
  return texts, -subject.target_nats(documents).reshape(len(found), len(texts))
