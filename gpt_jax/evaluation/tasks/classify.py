"""Generative classification: which condition makes an image or a sound likeliest. Draws no samples.

argmax over c of log p(target | c) + log p(c), under the softmax over what the grammar allows. It
tests whether the model uses its condition; so does the information that the condition gives, the mean
of log p(x | c) - log sum over c' of p(c') p(x | c'), in bits a target. Where conditions are
descriptions instead of classes, the score is the rank of the true one among all of them.
"""

import collections

import numpy as np

from gpt_jax.data import Piece
from gpt_jax.evaluation import metrics
from gpt_jax.evaluation.tasks import common

MAX_CONDITIONS = 20  # that count as classes
LIMIT = 200  # examples where no limit is given: each is scored under every condition


def fits(condition, target):
  """A text to read, and an image, a sound or codes."""
  return condition == ('text',) and target in (('image',), ('audio',), ('codes',))


def run(subject, source, split, limit):
  """Rows for one source: of classes, or of retrieval where there are more than MAX_CONDITIONS."""
  examples, train = common.held_out_and_train(subject, source, split, limit or LIMIT)
  count = collections.Counter(common.text(example.condition) for example in train)
  names = [common.text(example.condition) for example in examples]
  rows = common.Rows('classify', source, split, n=len(examples))
  if not 2 <= len(count) <= MAX_CONDITIONS or set(names) - set(count):
    texts, log_p_NC = log_likelihoods(subject, examples, examples)
    if len(texts) > 1:
      truth_N = np.array([texts.index(name) for name in names])
      rows.add_retrieval(log_p_NC, truth_N)
      likeliest = [texts[i] for i in log_p_NC.argmax(1)]
      right = common.matches(likeliest, names)
      rank = metrics.ranks(log_p_NC, truth_N).tolist()
      subject.record(rows, examples, targets=names, predictions=likeliest, right=right, rank=rank)
    return rows
  texts, log_p_NC = log_likelihoods(subject, examples, train)
  prior_C = np.log([count[c] / len(train) for c in texts])
  joint_NC = log_p_NC + prior_C
  predictions = [texts[i] for i in joint_NC.argmax(1)]
  rows.add_judged(
    'accuracy', predictions, names, chance=common.chance(names, [common.text(x.condition) for x in train])
  )
  right = common.matches(predictions, names)
  subject.record(rows, examples, targets=names, predictions=predictions, right=right)
  marginal_N = np.logaddexp.reduce(joint_NC, axis=1)
  entropy = -float((np.exp(prior_C) * prior_C).sum()) / np.log(2)
  for control, labels in {'': names, 'shuffled': common.shuffled(names)}.items():
    if labels:  # a wrong condition costs bits
      log_p_N = log_p_NC[np.arange(len(examples)), [texts.index(name) for name in labels]]
      bits = float((log_p_N - marginal_N).mean() / np.log(2))
      fields = {'control': control} if control else {'chance': 0.0, 'baseline': entropy}
      rows.add('information', bits, **fields)
  return rows


def log_likelihoods(subject, examples, candidates):
  """The conditions of `candidates`, sorted, and log p of each target under each of them, [N, C]."""
  conditions = {common.text(example.condition): example.condition for example in candidates}
  texts, arrow = sorted(conditions), Piece('arrow')
  documents = [[*conditions[c], arrow, *x.target] for x in examples for c in texts]
  return texts, -subject.target_nats(documents).reshape(len(examples), len(texts))
