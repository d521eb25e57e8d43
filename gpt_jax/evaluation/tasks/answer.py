"""Text from anything: recognize, caption, answer; translate and summarize are rows of it.

Decodes greedily (temperature 0), unless a temperature or beams are given. Each figure stands beside
those that need no model: `chance` answers with the commonest target of training; control=shuffled asks
with the condition of another example, which shows whether the condition is used at all; `baseline`
answers as the nearest training image or sound does, copies the text to translate, or takes the first sentence
of the text to summarize.
"""

from gpt_jax.evaluation import judges, metrics, text_metrics
from gpt_jax.evaluation.tasks import common

NEIGHBORS = 5000  # training images or sounds that the baseline compares with


def fits(condition, target):
  """Any condition, a text to make."""
  return bool(condition) and target == ('text',)


def fits_texts(condition, target):
  """A text to read, a text to make."""
  return condition == ('text',) and target == ('text',)


def run(
  subject, source, split, limit, task='answer', score=text_metrics.score_answers, baseline=None, **sampling
):
  """Rows of a task on one source, by default exact match, F1 and error rates.

  score: a score of text_metrics. baseline: makes an answer of the condition's text.
  """
  examples, train = common.held_out_and_train(subject, source, split, limit)
  template = subject.cfg.data.mixture[source].template
  references = [common.references(example, template) for example in examples]
  if not sampling.get('beams', subject.cfg.sample.beams):
    sampling = {'temperature': 0.0} | sampling
  rows = common.Rows(task, source, split, n=len(examples), **common.sampling_fields(subject, sampling))
  train_answers = [common.text(example.target) for example in train]
  guess, _ = common.most_frequent(train_answers)
  compared = {
    name: {'chance': row['value']} for name, row in score([guess] * len(examples), references).items()
  }
  if answers := baseline_answers(subject, examples, train, train_answers, baseline):
    for name, row in score(answers, references).items():
      compared[name]['baseline'] = row['value']
  conditions = [example.condition for example in examples]
  texts = subject.generate(conditions, 'text', **sampling)
  for name, row in score(texts, references).items():
    rows.add(name, **row, **compared[name])
  right, f1 = text_metrics.match_answers(texts, references)
  right = right if score is text_metrics.score_answers else None  # a translation need not equal its reference
  subject.record(rows, examples, targets=references, predictions=texts, right=right, token_f1=f1)
  if len(examples) > 1:
    other = common.derangement([group[0] for group in references])
    texts = subject.generate([conditions[i] for i in other], 'text', **sampling)
    for name, row in score(texts, references).items():
      rows.add(name, **row, control='shuffled')
  return rows


def baseline_answers(subject, examples, train, train_answers, baseline):
  """Answers that need no model: those of `baseline` or of the nearest training image or sound; else None."""
  if baseline:
    return [baseline(common.text(example.condition)) for example in examples]
  if common.has_kind(examples[0].condition, ('text',)) or len(examples[0].condition) > 1:
    return None
  train = train[:NEIGHBORS]
  if common.has_kind(examples[0].condition, common.IMAGES):
    pixels = lambda some: common.images_of(subject, some).reshape(len(some), -1)
    own, others = pixels(examples), pixels(train)
  elif common.has_kind(examples[0].condition, common.SOUNDS):
    rate = subject.tokenizers.audio.sample_rate
    others, weights = judges.standardized(common.waves_of(subject, train), rate)
    own = judges.SoundJudge((), weights).features(common.waves_of(subject, examples))
  else:
    return None
  index, _ = metrics.nearest_neighbors(own, others)
  return [train_answers[i] for i in index]
