"""Text from anything: recognise, caption, translate, answer.

Beside each figure stands what it takes without looking: `chance` answers with the commonest target
of training; the rows with control=shuffled ask with the condition of another example, which shows
whether the condition is used at all; `baseline` answers as the nearest training image does.
"""

import numpy as np

from gpt_jax import metrics
from gpt_jax.tasks import common


def fits(condition, target):
  """A condition of any kind, and text to make."""
  return bool(condition) and target == ('text',)


def run(subject, source, split, limit, **sampling):
  """Rows of exact match, F1 of words, character and word error rate for one source.

  Takes the likeliest token each time, unless a temperature or beams are given.
  """
  found = common.examples(subject, source, split, limit or common.LIMIT)
  wanted = [common.text(example.target) for example in found]
  if not sampling.get('beams', subject.cfg.sample.beams):
    sampling = {'temperature': 0.0} | sampling
  rows, add = common.rows('answer', source, split, len(found), **common.drawn(subject, sampling))
  train = common.examples(subject, source, 'train', common.TRAIN_LIMIT)
  answers = [common.text(example.target) for example in train]
  guess = score([common.most_frequent(answers)] * len(found), wanted)
  rivals = {name: {'chance': value} for name, (value, _) in guess.items()}
  if common.has(found[0].condition, common.IMAGES) and len(found[0].condition) == 1:
    nearest = neighbours(subject, found, train, answers)
    for name, (value, _) in score(nearest, wanted).items():
      rivals[name]['baseline'] = value
  conditions = [example.condition for example in found]
  made = subject.generate(conditions, 'text', **sampling)
  for name, (value, interval) in score(made, wanted).items():
    add(name, value, **({'interval': interval} if interval else {}), **rivals[name])
  if len(found) > 1:
    other = derangement(wanted)
    made = subject.generate([conditions[i] for i in other], 'text', **sampling)
    for name, (value, interval) in score(made, wanted).items():
      add(name, value, **({'interval': interval} if interval else {}), control='shuffled')
  return rows


def score(made, wanted):
  """-> {metric: (value, interval or None)}."""
  same = [m.strip() == w.strip() for m, w in zip(made, wanted, strict=True)]
  f1 = [metrics.token_f1(m, w) for m, w in zip(made, wanted, strict=True)]
  exact, interval = metrics.accuracy(same, [True] * len(same))
  found = {'exact_match': (exact, list(interval))}
  found['token_f1'] = (float(np.mean(f1)), list(metrics.bootstrap(f1)))
  if any(wanted):
    found['character_error_rate'] = (metrics.cer(made, wanted), None)
  if any(text.split() for text in wanted):
    found['word_error_rate'] = (metrics.wer(made, wanted), None)
  return found


def neighbours(subject, found, train, answers, most=5000):
  """The answers of the nearest training images, in pixels."""
  flat = lambda some: common.pixels(subject, some).reshape(len(some), -1)
  index, _ = metrics.nearest(flat(found), flat(train[:most]))
  return [answers[i] for i in index]


def derangement(wanted):
  """For each example another one, with another answer where there is one."""
  n = len(wanted)
  order = np.argsort(np.array(wanted), kind='stable')
  largest = max(np.unique(np.array(wanted), return_counts=True)[1])
  shift = largest if largest < n else n // 2  # sorted by answer, this far on stands another answer
  other = np.empty(n, int)
  other[order] = np.roll(order, -shift)
  return other
