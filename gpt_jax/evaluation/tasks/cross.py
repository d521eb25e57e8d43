"""Image to sound and sound to image, where no source of the mixture trained it.

Composes a prompt format that was never trained from one source that reads the first modality and one
that makes the second; both must have labels of one kind. Samples are drawn as the run's config says
and judged by judges of the second source.
"""

import numpy as np

from gpt_jax.data import templates
from gpt_jax.evaluation.tasks import common

KINDS = {'image': common.IMAGES, 'audio': common.SOUNDS}
WAYS = (('image', 'audio'), ('audio', 'image'))
JUDGES = {'image': 'image', 'audio': 'sound'}


def fits(condition, target):
  """An image or a sound on either side: `run` looks for the other."""
  return common.has_kind((*condition, *target), (*common.IMAGES, *common.SOUNDS))


def pairs(subject, split):
  """Yield (what is read, its source, what is made, its source) of each possible composition."""
  names = common.matching_sources(subject, fits, split)
  signatures = {name: templates.signature(subject.cfg.data.mixture[name].template) for name in names}
  for reads, makes in WAYS:
    readers = [name for name in names if common.has_kind(signatures[name][0], KINDS[reads])]
    makers = [name for name in names if common.has_kind(signatures[name][1], (makes,))]
    if readers and makers and not set(readers) & set(makers):  # else a source trained it
      yield reads, readers[0], makes, makers[0]


def run(subject, source, split, limit, **sampling):
  """Rows of each composition that reads media of `source`."""
  rows = []
  for reads, first, makes, second in pairs(subject, split):
    if first == source:
      rows += compose(subject, reads, first, makes, second, split, limit, sampling)
  return rows


def compose(subject, reads, first, makes, second, split, limit, sampling):
  """Rows of one composition; none where the two sources have no labels in common."""
  examples = common.examples(subject, first, split, limit or common.LIMIT)
  held_out, train = common.held_out_and_train(subject, second, split, limit)
  field = shared_field(examples, train)
  train_names = common.labels(train, field)
  examples = [x for x in examples if field and str(x.record[field]) in set(train_names)]
  if not examples or not common.are_classes(train_names):
    return []
  names = common.labels(examples, field)
  media_of = common.images_of if makes == 'image' else common.waves_of
  judge = common.judge(subject, JUDGES[makes], media_of(subject, train), train_names)
  conditions = [[next(p for p in x.condition if p.kind in KINDS[reads])] for x in examples]
  samples = subject.generate(conditions, makes, **sampling)
  fields = dict(n=len(examples), way=f'{reads} to {makes}', judged_by=second)
  rows = common.Rows('cross', first, split, **fields, **common.sampling_fields(subject, sampling))
  ceiling, _ = judge.accuracy(media_of(subject, held_out), common.labels(held_out, field))
  predictions = judge.predict(samples if makes == 'audio' else np.stack(samples))
  chance = common.chance(names, train_names)
  rows.add_judged('accuracy', predictions, names, chance=chance, baseline=ceiling)
  right = common.matches(predictions, names)
  subject.record(rows, examples, targets=names, predictions=predictions, right=right, media=samples)
  return rows


def shared_field(examples, others):
  """The first of LABELS that records of both have, with values in common; '' if there is none."""
  values = lambda group, field: {str(x.record.get(field, x.where)) for x in group}
  return next((f for f in common.LABELS if values(examples, f) & values(others, f)), '')
