"""Text from anything: recognize, caption, answer; translate and summarize are rows of it.

Decodes greedily (temperature 0), unless a temperature or beams are given. Of several samples
(num_samples), drawn at the run's temperature, it takes the one most like the others. Each figure stands
beside those that need no model: `chance` answers with the commonest target of training; control=shuffled
asks with the condition of another example, which shows whether the condition is used at all; `baseline` is
the best of the task's baselines, which have rows of their own (`of`) if there are several. `difference` is
the model's score minus the baseline's on the same examples, with its interval.
"""

import numpy as np

from gpt_jax.evaluation import judges, metrics, text_baselines, text_metrics
from gpt_jax.evaluation.tasks import common

NEIGHBORS = 5000  # training examples that the baseline compares with


def fits(condition, target):
  """Any condition, a text to make."""
  return bool(condition) and target == ('text',)


def fits_texts(condition, target):
  """A text to read, a text to make."""
  return condition == ('text',) and target == ('text',)


def run(
  subject, source, split, limit, task='answer', measure=text_metrics.ANSWERS, baselines=None, **sampling
):
  """Rows of a task on one source, by default exact match, F1 and error rates.

  measure: a Measure of text_metrics. baselines: {name: function of text_baselines}.
  """
  examples, train = common.held_out_and_train(subject, source, split, limit)
  template = subject.cfg.data.mixture[source].template
  references = [common.references(example, template) for example in examples]
  is_several = sampling.get('num_samples', 1) > 1
  if is_several and sampling.get('beams'):
    raise ValueError(
      f'--num_samples={sampling["num_samples"]} samples, and --beams={sampling["beams"]} searches\n'
      'fix: leave one out'
    )
  if is_several:
    sampling = {'beams': 0} | sampling
  elif not sampling.get('beams', subject.cfg.sample.beams):
    sampling = {'temperature': 0.0} | sampling
  rows = common.Rows(task, source, split, n=len(examples), **common.sampling_fields(subject, sampling))
  guess, _ = common.most_frequent([common.text(example.target) for example in train])
  chance = measure.score([guess] * len(examples), references)
  key = 'baselines', task, source, split, limit
  if key not in subject.caches:  # a run is scored many times, and they read no weights
    chosen = BASELINES if baselines is None else baselines
    subject.caches[key] = baseline_answers(subject, examples, train, template, chosen)
  answers = subject.caches[key]
  scores = {name: measure.score(texts, references) for name, texts in answers.items()}
  conditions = [example.condition for example in examples]
  if is_several:
    sampling = sampling | {'choose': metrics.consensus}
  texts = subject.generate(conditions, 'text', **sampling)
  differences = {
    name: text_metrics.paired_differences(measure, texts, others, references)
    for name, others in answers.items()
  }
  for metric, row in measure.score(texts, references).items():
    fields = {'chance': chance[metric]['value']}
    if scores:
      sign = -1 if metric.endswith('error_rate') else 1
      best = max(scores, key=lambda name, metric=metric, sign=sign: sign * scores[name][metric]['value'])
      difference, interval = differences[best][metric]
      fields |= {'baseline': scores[best][metric]['value'], 'baseline_of': best}
      fields |= {'difference': difference, 'difference_interval': interval}
    rows.add(metric, **row, **fields)
  for name, of in scores.items() if len(scores) > 1 else ():
    for metric, row in of.items():
      rows.add(metric, **row, of=name)
  right, f1 = text_metrics.match_answers(texts, references)
  right = right if measure is text_metrics.ANSWERS else None  # a translation need not equal its reference
  judged = dict(targets=references, predictions=texts, right=right, token_f1=f1)
  if answers:
    judged['baseline'] = answers[rows[0]['baseline_of']]
  subject.record(rows, examples, **judged)
  if len(examples) > 1:
    other = common.derangement([group[0] for group in references])
    texts = subject.generate([conditions[i] for i in other], 'text', **sampling)
    for name, row in measure.score(texts, references).items():
      rows.add(name, **row, control='shuffled')
  return rows


def baseline_answers(subject, examples, train, template, baselines):
  """{name: answers} of the baselines that can read these examples."""
  if any(piece.kind != 'text' for piece in examples[0].condition):
    answers = neighbor_answers(subject, examples, train)
    return {'nearest neighbor': answers} if answers else {}
  answers = {name: baseline(examples, train, template) for name, baseline in baselines.items()}
  return {name: texts for name, texts in answers.items() if texts}


def neighbor_answers(subject, examples, train):
  """Return the answers of the nearest training images, sounds or vectors.

  None for a condition of several, for questions that differ, and for vectors of different numbers of places.
  """
  train = train[:NEIGHBORS]
  kinds = [piece.kind for piece in examples[0].condition if piece.kind != 'text']
  if len(kinds) > 1 or len({common.text(example.condition) for example in (*examples, *train)}) > 1:
    return None
  if common.has_kind(kinds, common.IMAGES):
    own, others = (common.images_of(subject, some).reshape(len(some), -1) for some in (examples, train))
  elif common.has_kind(kinds, common.SOUNDS):
    rate = common.rate_of(subject, train)
    others, weights = judges.standardized(common.waves_of(subject, train), rate)
    own = judges.SoundJudge((), weights).features(common.waves_of(subject, examples))
  elif kinds == ['vectors']:
    own, others = (common.vectors_of(subject, some) for some in (examples, train))
    if len({vectors_NU.shape for vectors_NU in (*own, *others)}) > 1:
      return None
    own, others = (np.stack(some).reshape(len(some), -1) for some in (own, others))
  else:
    return None
  index, _ = metrics.nearest_neighbors(own, others)
  return [common.text(train[i].target) for i in index]


BASELINES = {'window': text_baselines.window}
