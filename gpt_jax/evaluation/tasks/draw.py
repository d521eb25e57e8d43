"""Images from text, judged by classifiers of real images and compared with them as a set.

Read each figure against those beside it: accuracy against the judge's own on real images and on
what the tokenizer makes of them, the Frechet distance against that of real to real images.
"""

import numpy as np

from gpt_jax.evaluation import judges, metrics
from gpt_jax.evaluation.tasks import common


def fits(condition, target):
  """Text and nothing else to read, one image to make."""
  return condition == ('text',) and target == ('image',)


def run(subject, source, split, limit, **sampling):
  """Rows for one source: of the judges if labels are classes, else of retrieval; then of sets."""
  found = common.examples(subject, source, split, limit or common.LIMIT)
  train = common.examples(subject, source, 'train', common.TRAIN_LIMIT)
  field = common.label_field(train)
  names, train_names = common.labels(found, field), common.labels(train, field)
  real, train_images = common.pixels(subject, found), common.pixels(subject, train)
  made = np.stack(subject.generate([x.condition for x in found], 'image', **sampling))
  decoded = subject.tokenizers.image.decode(subject.tokenizers.image.encode(real))
  rows, add = common.rows('draw', source, split, len(found), **common.drawn(subject, sampling))
  features = lambda images: images.reshape(len(images), -1).astype(np.float32) / 255
  if common.are_classes(train_names):
    features = judged(subject, add, (train_images, train_names), names, made, real, decoded)
    value = metrics.diversity(features_of(made), names, features_of(real), names)
    if np.isfinite(value):
      add('diversity', value, baseline=1.0)
  else:
    scores = -metrics.squared_distances(features_of(made), features_of(real))
    common.add_retrieval(add, scores, np.arange(len(found)))
  sets(add, features, made, real, decoded, train_images)
  common.add_memorization(add, features_of(made), features_of(real), features_of(train_images))
  return rows


def features_of(images):
  """Raw pixels as rows."""
  return images.reshape(len(images), -1).astype(np.float32)


def judged(subject, add, train, names, made, real, decoded):
  """Rows of two judges and of a classifier that learned from what was made -> features to use."""
  chance = common.chance(names)
  for kind, suffix in (('image', ''), ('pixels', '_by_pixels')):
    judge = common.judge(subject, kind, *train)
    ceiling, _ = judge.accuracy(real, names)
    common.add_judged(add, f'accuracy{suffix}', judge.predict(made), names, chance=chance, baseline=ceiling)
    common.add_accuracy(
      add, f'accuracy{suffix}', judge.predict(decoded), names, chance=chance, of='reconstructions'
    )
  if common.are_classes(names):
    ours = judges.JUDGES['image'].fit(made, names)
    some = np.random.default_rng(0).permutation(len(train[1]))[: len(names)]
    some_names, rival = [train[1][i] for i in some], {}
    if common.are_classes(some_names):
      theirs = common.judge(subject, 'image', train[0][some], some_names)
      rival['baseline'], _ = theirs.accuracy(real, names)
    common.add_accuracy(
      add, 'classification_accuracy_score', ours.predict(real), names, chance=chance, **rival
    )
  return common.judge(subject, 'image', *train).features


def sets(add, features, made, real, decoded, train_images):
  """Rows that compare what was made with as many training images: distances, precision, recall."""
  n = min(len(made), len(train_images))
  if n < common.FEWEST:
    return
  chosen = common.some_of(train_images, n)
  ref, made, real, decoded = (features(x[:n]) for x in (chosen, made, real, decoded))
  scale = max(float(ref.std(0).mean()), 1e-9)  # so that distances do not depend on that of features
  ref, made, real, decoded = (x / scale for x in (ref, made, real, decoded))
  common.add_frechet(add, ref, real, {'': made, 'reconstructions': decoded})
  kernel = lambda x: metrics.kernel_distance(ref, x, subsets=20)[0]
  add('kernel_distance', kernel(made), baseline=kernel(real))
  names = ('precision', 'recall')
  for name, value, rival in zip(
    names, metrics.precision_recall(ref, made), metrics.precision_recall(ref, real), strict=True
  ):
    add(name, value, baseline=rival)
