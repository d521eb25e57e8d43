"""Images from text, judged by classifiers of real images and compared with them as a set.

Samples are drawn as the run's config says. Read an accuracy against the judge's own on real images
and on the tokenizer's reconstructions, and a Frechet distance against that of real to real images.
"""

import numpy as np

from gpt_jax.evaluation import judges, metrics
from gpt_jax.evaluation.tasks import common


def fits(condition, target):
  """Text alone to read, one image to make."""
  return condition == ('text',) and target == ('image',)


def run(subject, source, split, limit, **sampling):
  """Rows for one source: of judges if labels are classes, else of retrieval; then of sets."""
  examples, train = common.held_out_and_train(subject, source, split, limit)
  field = common.label_field(train)
  names, train_names = common.labels(examples, field), common.labels(train, field)
  real, train_images = common.images_of(subject, examples), common.images_of(subject, train)
  samples = np.stack(subject.generate([x.condition for x in examples], 'image', **sampling))
  decoded = subject.tokenizers.image.reconstruct(real)
  rows = common.Rows('draw', source, split, n=len(examples), **common.sampling_fields(subject, sampling))
  features = lambda images: pixels(images) / 255
  if common.are_classes(train_names):
    features, judged = add_judgments(
      rows, subject, (train_images, train_names), names, samples, real, decoded
    )
    right = common.matches(judged, names)
    subject.record(rows, examples, targets=names, predictions=judged, right=right, media=samples)
    value = metrics.diversity(pixels(samples), names, pixels(real), names)
    if np.isfinite(value):
      rows.add('diversity', value, baseline=1.0)
  else:
    scores_NN, truth_N = -metrics.squared_distances(pixels(samples), pixels(real)), np.arange(len(examples))
    rows.add_retrieval(scores_NN, truth_N)
    rank = metrics.ranks(scores_NN, truth_N).tolist()
    subject.record(rows, examples, targets=names, media=samples, rank=rank)
  add_set_distances(rows, features, samples, real, decoded, train_images)
  rows.add_memorization(pixels(samples), pixels(decoded), pixels(train_images), pixels(real))
  return rows


def pixels(images):
  """Raw pixels as rows, float32 [N, D]."""
  return images.reshape(len(images), -1).astype(np.float32)


def add_judgments(rows, subject, train, names, samples, real, decoded):
  """Add rows of two judges and of a classifier trained on the samples.

  Returns the first judge's features, and its labels of the samples.
  """
  chance, labels = common.chance(names, train[1]), {}
  for kind, suffix in (('image', ''), ('pixels', '_by_pixels')):
    judge = common.judge(subject, kind, *train)
    ceiling, _ = judge.accuracy(real, names)
    metric = f'accuracy{suffix}'
    labels[kind] = judge.predict(samples)
    rows.add_judged(metric, labels[kind], names, chance=chance, baseline=ceiling)
    rows.add_accuracy(metric, judge.predict(decoded), names, chance=chance, of='reconstructions')
  if common.are_classes(names):
    classifier = judges.JUDGES['image'].fit(samples, names)
    chosen = np.random.default_rng(0).permutation(len(train[1]))[: len(names)]
    chosen_names, baseline = [train[1][i] for i in chosen], {}
    if common.are_classes(chosen_names):
      real_classifier = common.judge(subject, 'image', train[0][chosen], chosen_names)
      baseline['baseline'], _ = real_classifier.accuracy(real, names)
    predictions = classifier.predict(real)
    rows.add_accuracy('classification_accuracy_score', predictions, names, chance=chance, **baseline)
  return common.judge(subject, 'image', *train).features, labels['image']


def add_set_distances(rows, features, samples, real, decoded, train_images):
  """Add rows that compare samples with as many training images: distances, precision, recall."""
  n = min(len(samples), len(train_images))
  if n < common.MIN_SET:
    return
  subset = common.random_subset(train_images, n)
  train, samples, real, decoded = (features(x[:n]) for x in (subset, samples, real, decoded))
  scale = max(float(train.std(0).mean()), 1e-9)  # so that distances do not depend on the features' scale
  train, samples, real, decoded = (x / scale for x in (train, samples, real, decoded))
  rows.add_frechet(train, real, {'': samples, 'reconstructions': decoded})
  kernel = lambda x: metrics.kernel_distance(train, x, subsets=20)[0]
  rows.add('kernel_distance', kernel(samples), baseline=kernel(real))
  values, baselines = metrics.precision_recall(train, samples), metrics.precision_recall(train, real)
  for name, value, baseline in zip(('precision', 'recall'), values, baselines, strict=True):
    rows.add(name, value, baseline=baseline)
