"""Text from anything: recognize, caption, answer; translate and summarize are rows of it.

Beside each figure stands what it takes without looking: `chance` answers with the commonest target
of training; the rows with control=shuffled ask with the condition of another example, which shows
whether the condition is used at all; `baseline` answers as the nearest training image does, copies
the text to translate, or takes the first sentence of the text to summarize.
"""

from gpt_jax.evaluation import metrics, text_metrics
from gpt_jax.evaluation.tasks import common


def fits(condition, target):
  """A condition of any kind, and text to make."""
  return bool(condition) and target == ('text',)


def fits_texts(condition, target):
  """Text to read, and text to make."""
  return condition == ('text',) and target == ('text',)


def run(
  subject, source, split, limit, task='answer', score=text_metrics.score_answers, without=None, **sampling
):
  """Rows of a task for one source, by default exact match, F1 and error rates.

  score: of text_metrics. without: makes a baseline of the text of the condition. Takes the
  likeliest token each time, unless a temperature or beams are given.
  """
  found = common.examples(subject, source, split, limit or common.LIMIT)
  template = subject.cfg.data.mixture[source].template
  wanted = [common.references(example, template) for example in found]
  if not sampling.get('beams', subject.cfg.sample.beams):
    sampling = {'temperature': 0.0} | sampling
  rows, add = common.rows(task, source, split, len(found), **common.drawn(subject, sampling))
  train = common.examples(subject, source, 'train', common.TRAIN_LIMIT)
  answers = [common.text(example.target) for example in train]
  guess = score([common.most_frequent(answers)] * len(found), wanted)
  rivals = {name: {'chance': row['value']} for name, row in guess.items()}
  if rival := baseline(subject, found, train, answers, without):
    for name, row in score(rival, wanted).items():
      rivals[name]['baseline'] = row['value']
  conditions = [example.condition for example in found]
  made = subject.generate(conditions, 'text', **sampling)
  for name, row in score(made, wanted).items():
    add(name, **row, **rivals[name])
  if len(found) > 1:
    other = common.derangement([some[0] for some in wanted])
    made = subject.generate([conditions[i] for i in other], 'text', **sampling)
    for name, row in score(made, wanted).items():
      add(name, **row, control='shuffled')
  return rows


def baseline(subject, found, train, answers, without):
  """The answers of whoever does not need a model, None if there are none to compare with."""
  if without:
    return [without(common.text(example.condition)) for example in found]
  if common.has(found[0].condition, common.IMAGES) and len(found[0].condition) == 1:
    return neighbors(subject, found, train, answers)
  return None


def neighbors(subject, found, train, answers, most=5000):
  """The answers of the nearest training images, in pixels."""
  flat = lambda some: common.pixels(subject, some).reshape(len(some), -1)
  index, _ = metrics.nearest_neighbors(flat(found), flat(train[:most]))
  return [answers[i] for i in index]
