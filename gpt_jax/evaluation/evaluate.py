"""Evaluate a model on tasks, during training and from a finished run folder."""

import functools
import logging

from gpt_jax import data
from gpt_jax.evaluation import label_judge, text_baselines, text_metrics
from gpt_jax.evaluation.subject import Subject
from gpt_jax.evaluation.tasks import (
  answer,
  canaries,
  choose,
  classify,
  cloze,
  common,
  continuation,
  cross,
  draw,
  extraction,
  membership,
  perplexity,
  reconstruct,
  speak,
  unsuitable,
)
from gpt_jax.sampling import validate

log = logging.getLogger(__name__)


def run_tasks(
  subject,
  tasks,
  split='valid',
  limit=0,
  stride=0,
  recognizer=None,
  shots=0,
  reference=None,
  prefix=0,
  classifier=None,
  **sampling,
):
  """Run tasks by name -> list of result rows (dicts with task, metric, value, source, split).

  tasks: names of TASKS, or 'all' for those that fit a source of the mixture, suit its texts and whose
  packages are installed. limit: examples of a source (perplexity: tokens), 0 = all for perplexity and a
  task's own default. stride: tokens, see perplexity. recognizer, reference: Subjects of other runs, see
  tasks/speak.py and membership.py. shots: answered examples before each question, see tasks/choose.py.
  prefix: tokens, see tasks/extraction.py. classifier: a label_judge.Judge, see tasks/unsuitable.py.
  sampling: fields of SampleConfig in the place of the run's own.

  Raises ValueError for an unknown task, one that fits no source, and options that no task takes.
  """
  names = check_tasks(subject, tasks, split, classifier)
  all_options = dict(stride=stride, recognizer=recognizer, shots=shots, reference=reference, prefix=prefix)
  all_options |= dict(classifier=classifier)
  _check_options(names, all_options, sampling)
  check_beams(subject, names, split, sampling.get('beams'))
  rows = []
  for name in names:
    task = TASKS[name]
    options = {option: all_options[option] for option in task.options if option in all_options}
    if 'sampling' in task.options:
      taken = {*sampling} if 'num_samples' in task.options else {*sampling} - {'num_samples'}
      options |= {key: sampling[key] for key in taken}
    for source in matching_sources(subject, name, split):
      if 'all' in tasks and not suits_texts(subject, name, source, split, limit):
        continue
      rows += task.run(subject, source, split, limit, **options)
  return [*rows, *common.centered_mean(rows)]


def check_tasks(subject, tasks, split='valid', classifier=None):
  """Return the names of the tasks to run; ValueError for an unknown one or one that fits no source.

  subject: a Subject, or anything with the `cfg` of a run. classifier: see run_tasks.
  """
  unknown = [task for task in tasks if task not in (*TASKS, 'all')]
  if unknown:
    raise ValueError(f'--tasks={unknown[0]} is not a task\nfix: use one of {", ".join(TASKS)}, or all')
  if 'all' in tasks:
    installed = [name for name in TASKS if text_metrics.is_installed(TASKS[name].package)]
    return [name for name in installed if TASKS[name].suits is not False]
  mixture = subject.cfg.data.mixture
  for name in tasks:
    text_metrics.require_package(TASKS[name].package, name)
    if 'classifier' in TASKS[name].options and classifier is None:
      raise ValueError(
        f'--tasks={name} needs a classifier, which training has not\n'
        'fix: evaluate the finished run with --classifier=RUN:UNSUITABLE LABEL|OTHER LABEL'
      )
    if name != 'perplexity' and not matching_sources(subject, name, split):
      check_training_documents(subject, name, split)
      sources = data.source_names(subject.cfg.data, split)
      has = ', '.join(f'{key} {mixture[key].template!r}' for key in sources) or 'nothing'
      raise ValueError(
        f'--tasks={name} needs a source such as {TASKS[name].example_template!r}; of {split} data the '
        f'mixture has {has}\n'
        'fix: choose another task or split, or give data.mixture a source with such a template'
      )
  return list(dict.fromkeys(tasks))


def check_training_documents(subject, task, split):
  """Raise ValueError where a task needs documents that the model was trained on, and there are none."""
  row = TASKS[task]
  if row.on_training and common.matching_sources(subject, row.fits, split):
    raise ValueError(
      f'--tasks={task} compares with training documents, and every source of {split} data that fits has '
      'weight=0\n'
      'fix: evaluate a run that was trained on such a source'
    )
  if row.kind:
    raise ValueError(
      f'--tasks={task} needs a source of kind={row.kind}, which data.mixture does not train on\n'
      f'fix: train with a source such as {{"kind": "{row.kind}", "documents": 64}}'
    )


def matching_sources(subject, task, split):
  """The sources with data for `split` that the task of this name scores."""
  row = TASKS[task]
  options = dict(kind=row.kind, on_training=row.on_training)
  fits = row.fits
  if row.needs_codes and subject.cfg.image.kind == 'continuous':
    fits = lambda *sides: row.fits(*sides) and not common.has_kind(sides[0] + sides[1], ('image',))
  return common.matching_sources(subject, fits, split, task if row.benchmark else '', **options)


def suits_texts(subject, task, source, split, limit=0):
  """Whether the texts of a source are as long as a task expects; logs why not."""
  suits = TASKS[task].suits
  if suits is None:
    return True
  before, after = common.median_words(common.examples(subject, source, split, limit or common.LIMIT))
  if not suits(before, after):
    log.warning(
      '--tasks=all leaves out %s for data.mixture.%s, which has %g words before -> and %g after (median); '
      '--tasks=%s scores it',
      *(task, source, before, after, task),
    )
  return suits(before, after)


def check_beams(subject, names, split='valid', beams=None):
  """Raise ValueError for a beam search (beams: default sample.beams) in tasks that make images or sounds."""
  beams = subject.cfg.sample.beams if beams is None else beams
  if not beams:
    return
  sources_of = {name: common.matching_sources(subject, TASKS[name].fits, split) for name in ('draw', 'speak')}
  sources_of['cross'] = list(cross.pairs(subject, split))
  for name in names:
    if sources_of.get(name):
      raise ValueError(
        f'sample.beams={beams} cannot make the images or sounds of --tasks={name}\n'
        'fix: set sample.beams=0, or leave the task out'
      )


def _check_options(names, options, sampling):
  """Raise ValueError for an option that no task takes, and for a recognizer that reads no sounds."""
  taken = {option for name in names for option in TASKS[name].options}
  if options['recognizer'] is not None:
    speak.recognizer_template(options['recognizer'])  # fails now, not after the sampling
  given = {name if name == 'stride' else f'--{name}': x for name, x in options.items() if x} | sampling
  kinds = dict.fromkeys(sampling, 'sampling') | dict.fromkeys(('judge', *validate.JUDGED), 'judge')
  kinds |= {'num_samples': 'num_samples'}
  for name, value in given.items():
    if kinds.get(name, name.lstrip('-')) not in taken:
      value = value.cache_dir.parent if isinstance(value, Subject) else value
      value = value.run.workdir if isinstance(value, label_judge.Judge) else value
      raise ValueError(
        f'{name}={value} has no effect on --tasks={",".join(names)}\n'
        'fix: leave it out, or choose a task that takes it'
      )


ANSWER_OPTIONS = ('sampling', 'num_samples')  # options of tasks that can choose among several samples
TASKS = {
  'perplexity': common.Task(perplexity.run, perplexity.fits, '{text}', options=('stride',)),
  'answer': common.Task(answer.run, answer.fits, '{image:image} -> {name}', ANSWER_OPTIONS),
  'translate': common.Task(
    functools.partial(
      answer.run,
      task='translate',
      measure=text_metrics.TRANSLATIONS,
      baselines={'copy': text_baselines.copy_source, 'dictionary': text_baselines.dictionary},
    ),
    answer.fits_texts,
    '{en} -> {de}',
    ANSWER_OPTIONS,
    package='sacrebleu',
    suits=lambda before, after: after >= 4 and before / 2 <= after <= 2 * before,
  ),
  'summarize': common.Task(
    functools.partial(
      answer.run,
      task='summarize',
      measure=text_metrics.SUMMARIES,
      baselines={
        'first sentence': text_baselines.first_sentence,
        'random sentence': text_baselines.random_sentence,
      },
    ),
    answer.fits_texts,
    '{text} -> {summary}',
    ANSWER_OPTIONS,
    package='rouge_score',
    suits=lambda before, after: 4 <= after < before / 2,
  ),
  'continue': common.Task(continuation.run, continuation.fits, '{text}', suits=False),
  'canaries': common.Task(canaries.run, canaries.fits, '{text}', (), suits=False, kind='canaries'),
  'extraction': common.Task(
    extraction.run, continuation.fits, '{text}', ('sampling', 'prefix'), suits=False, on_training=True
  ),
  'membership': common.Task(
    membership.run, membership.fits, '{text}', ('reference',), suits=False, on_training=True
  ),
  'unsuitable': common.Task(
    unsuitable.run, continuation.fits, '{text}', ('sampling', 'judge', 'classifier'), suits=False
  ),
  'draw': common.Task(draw.run, draw.fits, '{name} -> {image:image}'),
  'speak': common.Task(speak.run, speak.fits, '{name} -> {audio:audio}', options=('sampling', 'recognizer')),
  'classify': common.Task(
    classify.run, classify.fits, '{name} -> {image:image}', options=(), needs_codes=True
  ),
  'choose': common.Task(choose.run, choose.fits, '{question} {options[answer]}', ('shots',), benchmark=True),
  'cloze': common.Task(cloze.run, cloze.fits, '{text:cloze}', (), benchmark=True),
  'reconstruct': common.Task(
    reconstruct.run, reconstruct.fits, '{image:image}', options=(), needs_codes=True
  ),
  'cross': common.Task(cross.run, cross.fits, '{image:image} -> {name}'),
}
