"""From image to sound and from sound to image, where no source of the mixture trained it.

Prompts have a form that was never trained, composed of one source that reads or makes the one and
one that has the other; the labels of both must be of one kind. What is made is judged.
"""

import itertools

import numpy as np

from gpt_jax.data import templates
from gpt_jax.evaluation.tasks import common

WAYS = (('image', common.IMAGES, 'audio'), ('audio', common.SOUNDS, 'image'))
JUDGES = {'image': 'image', 'audio': 'sound'}


def fits(condition, target):
  """An image or a sound, on either side: `run` looks for the other."""
  return common.has((*condition, *target), (*common.IMAGES, *common.SOUNDS))


def pairs(subject, split):
  """(what is read, its source, what is made, its source) of each composition that is possible."""
  names = common.matching_sources(subject, fits, split)
  forms = {name: templates.signature(subject.cfg.data.mixture[name].template) for name in names}
  for reads, kinds, makes in WAYS:
    trained = any(common.has(c, kinds) and common.has(t, (makes,)) for c, t in forms.values())
    readers = [name for name in names if common.has(forms[name][0], kinds) and not trained]
    makers = [name for name in names if common.has(forms[name][1], (makes,))]
    for first, second in itertools.product(readers[:1], makers[:1]):
      yield reads, first, makes, second


def run(subject, source, split, limit, **sampling):
  """Rows of each composition that reads media of `source`."""
  rows = []
  for reads, first, makes, second in pairs(subject, split):
    if first == source:
      rows += compose(subject, reads, first, makes, second, split, limit, sampling)
  return rows


def compose(subject, reads, first, makes, second, split, limit, sampling):
  """Rows of one composition; none where the two sources have no labels in common."""
  found = common.examples(subject, first, split, limit or common.LIMIT)
  train = common.examples(subject, second, 'train', common.TRAIN_LIMIT)
  field = shared_field(found, train)
  known = common.labels(train, field)
  found = [x for x in found if field and str(x.record[field]) in set(known)]
  if not found or not common.are_classes(known):
    return []
  names = common.labels(found, field)
  raw = common.pixels if makes == 'image' else common.waves
  judge = common.judge(subject, JUDGES[makes], raw(subject, train), known)
  kinds = {way[0]: way[1] for way in WAYS}[reads]
  given = [[next(p for p in x.condition if p.kind in kinds)] for x in found]
  made = subject.generate(given, makes, **sampling)
  way = f'{reads} to {makes}'
  rows, add = common.rows(
    'cross', first, split, len(found), way=way, judged_by=second, **common.drawn(subject, sampling)
  )
  held = common.examples(subject, second, split, limit or common.LIMIT)
  ceiling, _ = judge.accuracy(raw(subject, held), common.labels(held, field))
  found = judge.predict(made if makes == 'audio' else np.stack(made))
  common.add_judged(add, 'accuracy', found, names, chance=common.chance(names), baseline=ceiling)
  return rows


def shared_field(some, others):
  """A field of LABELS that records of both have, with values in common."""
  for field in common.LABELS:
    values = [{str(x.record.get(field, x.where)) for x in found} for found in (some, others)]
    if values[0] & values[1]:
      return field
  return ''
