"""The verb `evaluate`: score a trained model on tasks, keep its predictions and rewrite the report."""

import dataclasses
from pathlib import Path

from absl import flags

from gpt_jax.cli.flags import (
  data_overrides,
  define_distributed,
  define_sampling,
  define_workdir,
  sampling_overrides,
)
from gpt_jax.cli.job import join
from gpt_jax.runs.loggers import say

FLAGS = flags.FLAGS
HELD_OUT = ('.valid_path', '.valid_split', '.test_path', '.test_split')  # ends of keys of held-out data


def evaluate_flags():
  """Flags of `evaluate`."""
  from gpt_jax.data import SPLITS

  define_workdir()
  define_distributed()
  flags.DEFINE_list('tasks', ['perplexity'], 'tasks to run; all: those that fit the data')
  flags.DEFINE_enum('split', 'valid', list(SPLITS), 'split of the data')
  flags.DEFINE_integer(
    'limit',
    0,
    'examples per source (perplexity: tokens); 0: all tokens, some hundred examples',
    lower_bound=0,
  )
  flags.DEFINE_integer(
    'stride', 0, 'tokens between scored windows; 0: disjoint ones, or rows as in training', lower_bound=0
  )
  flags.DEFINE_string(
    'out',
    '',
    'folder for predictions.jsonl, images and sounds; default: the run folder, whose report shows them',
  )
  flags.DEFINE_string('recognizer', '', 'speak: run folder of a model that transcribes sounds')
  flags.DEFINE_string(
    'reference', '', 'membership: run folder of a model with this tokenizer to compare with'
  )
  flags.DEFINE_string(
    'classifier',
    '',
    'unsuitable: RUN:LABEL|LABEL, a run that labels texts; the first label is that of unsuitable ones',
  )
  flags.DEFINE_integer('prefix', 0, 'extraction: tokens of a prompt; 0: 50', lower_bound=0)
  flags.DEFINE_string('step', '', 'checkpoint: its step, or all that are kept; default: the newest')
  flags.DEFINE_bool('watch', False, 'score each checkpoint of a training, until it ends')
  flags.DEFINE_list('harness', [], 'tasks of lm-eval, such as hellaswag,arc_easy')
  flags.DEFINE_string('harness_files', '', 'folder of task files (YAML) of lm-eval; only those you trust')
  flags.DEFINE_integer(
    'shots', None, "harness and choose: examples in the prompt; default: the task's own, 0", lower_bound=0
  )
  define_sampling(
    but=('begin',),
    temperature='from the run; tasks answer, translate and summarize: 0 unless num_samples > 1',
    num_samples='1. Tasks answer, translate and summarize take the text most like the others',
  )


def evaluate(argv):
  """Evaluate a trained model on tasks and append the rows to WORKDIR/evaluations.jsonl.

  --config.data.KEY=VALUE   score other data, such as --config.data.mixture.NAME.valid_path=other.txt
  """
  from gpt_jax import config
  from gpt_jax.cluster.bootstrap import is_primary
  from gpt_jax.cluster.processes import barrier
  from gpt_jax.evaluation import format, predictions, trained
  from gpt_jax.runs import records, run_folder

  overrides = data_overrides(argv)
  join('evaluate', lambda: run_folder.read_config(FLAGS.workdir), overrides=overrides)
  records.check_writable(f'--out={FLAGS.out}', FLAGS.out)
  others = {name: FLAGS[name].value for name in ('recognizer', 'reference')}
  load = lambda name, workdir: trained.load(workdir, key=f'--{name}').subject()
  others = {name: load(name, workdir) for name, workdir in others.items() if workdir}
  if FLAGS.classifier:
    others['classifier'] = trained.load_judge(FLAGS.classifier, '--classifier')
  caches = {}  # of all checkpoints: they share their data
  for run in chosen_runs():
    check_training_data(run, overrides)
    if overrides:
      chosen = config.build(config.Config, FLAGS.config)
      if 'data.packing' in overrides and chosen.data.has_only_text:
        raise ValueError(
          f'--config.data.packing={chosen.data.packing} would show plain text otherwise than in training\n'
          'fix: leave it out'
        )
      run = run._replace(cfg=dataclasses.replace(run.cfg, data=chosen.data))
    if run.imported and (not FLAGS.harness or FLAGS['tasks'].present):
      run = with_given_data(run, overrides)
    fields = overrides | ({'step': run.step} if FLAGS.step or FLAGS.watch else {})
    files = None
    if is_primary() and (FLAGS.out or not fields):  # the run folder has those of its own data and newest step
      is_one = FLAGS.step.isdecimal() or 'step' not in fields
      out = Path(FLAGS.out or run.workdir) / ('' if is_one else f'step_{run.step}')
      files = predictions.PredictionFiles(out, run.step, fields)
    rows = run_tasks(run.subject(predictions=files, caches=caches), others)
    for row in rows if is_primary() else ():
      records.append_line(run.workdir / 'evaluations.jsonl', row | fields)
      say(format.format_row(row | fields))
    if files:
      say(files.describe(), end='')
  if is_primary():
    from gpt_jax.reports import run_report  # matplotlib takes a second to import

    say(f'report: {run_report.write_report(Path(FLAGS.workdir).expanduser())}')
  barrier('report written')  # a process that leaves would end the job
  return 0


def with_given_data(run, overrides):
  """Return an imported run with the sources that overrides name alone; ValueError where they name none."""
  given = {key.split('.')[2] for key in overrides if key.startswith('data.mixture.')}
  if not given:
    raise ValueError(
      f'workdir={run.workdir} is imported from {run.imported} and has no data to score\n'
      'fix: add --config.data.mixture.text.kind=text --config.data.mixture.text.path=FILE.txt, or choose '
      '--harness=TASKS'
    )
  mixture = {name: source for name, source in run.cfg.data.mixture.items() if name in given}
  return run._replace(
    cfg=dataclasses.replace(run.cfg, data=dataclasses.replace(run.cfg.data, mixture=mixture))
  )


def chosen_runs():
  """Yield a TrainedRun for each checkpoint that --step or --watch names; ValueError for both or neither."""
  from gpt_jax.evaluation import trained

  if FLAGS.watch and FLAGS.step:
    raise ValueError(
      f'--watch scores every checkpoint, old and new, and --step={FLAGS.step}\nfix: give one of the two'
    )
  if FLAGS.watch:
    yield from trained.watch(FLAGS.workdir)
  elif FLAGS.step == 'all':
    steps = trained.good_steps(FLAGS.workdir)
    yield from (trained.load(FLAGS.workdir, step) for step in steps or [None])
  elif FLAGS.step and not FLAGS.step.isdecimal():
    raise ValueError(f'--step={FLAGS.step} is not a step\nfix: use a number, or all')
  else:
    yield trained.load(FLAGS.workdir, int(FLAGS.step) if FLAGS.step else None)


def check_training_data(run, overrides):
  """Raise ValueError where a task would take documents for trained on that this run never read."""
  from gpt_jax.evaluation import evaluate as evaluation

  needs = [name for name in FLAGS.tasks if name in evaluation.TASKS and evaluation.TASKS[name].on_training]
  other = [key for key in overrides if not key.endswith(HELD_OUT)]
  if needs and (other or run.imported):
    cause = f'--config.{other[0]} names others' if other else f'{run.workdir} is imported from {run.imported}'
    raise ValueError(
      f'--tasks={needs[0]} compares with the documents that the run was trained on, and {cause}\n'
      'fix: evaluate the data of the training; valid_path, test_path and their splits alone may change'
    )


def run_tasks(subject, others):
  """The rows of --harness and --tasks; ValueError where there is nothing to score.

  others: {recognizer or reference: Subject of another run, classifier: label_judge.Judge}.
  """
  from gpt_jax.evaluation import evaluate as evaluation

  rows = run_harness(subject)
  if not FLAGS.harness or FLAGS['tasks'].present:
    takes_shots = not FLAGS.harness or {'choose', 'all'} & {*FLAGS.tasks}
    rows += evaluation.run_tasks(
      subject,
      FLAGS.tasks,
      split=FLAGS.split,
      limit=FLAGS.limit,
      stride=FLAGS.stride,
      prefix=FLAGS.prefix,
      shots=(FLAGS.shots or 0) if takes_shots else 0,  # those of the harness alone
      **others,
      **sampling_overrides(),
    )
  note_missing_bytes(subject, rows)
  if not rows:
    raise ValueError(
      f'--split={FLAGS.split} of the data has nothing for --tasks={",".join(FLAGS.tasks)}\n'
      'fix: choose another split or task, or add such data to a source of data.mixture'
    )
  return rows


def note_missing_bytes(subject, rows):
  """Say why a source of plain text has no bits per byte."""
  from gpt_jax.cluster.bootstrap import print_once
  from gpt_jax.evaluation.tasks import perplexity

  metrics = {}
  for row in rows:
    if row['task'] == 'perplexity':
      metrics.setdefault(row['source'], set()).add(row['metric'])
  for source in (source for source, names in metrics.items() if 'bits_per_byte' not in names):
    if reason := perplexity.why_no_bytes(subject, source, FLAGS.split, FLAGS.limit):
      print_once(f'note: no bits per byte of {source}: {reason}')


def run_harness(subject):
  """The rows of --harness, [] without it; ValueError for its options without it."""
  from gpt_jax.evaluation import harness

  if FLAGS.harness_files and not FLAGS.harness:
    raise ValueError(
      f'--harness_files={FLAGS.harness_files} has no effect without --harness\nfix: leave it out'
    )
  for name in ('split', 'stride', 'recognizer', 'reference', 'classifier', 'prefix', *sampling_overrides()):
    if FLAGS.harness and not FLAGS['tasks'].present and FLAGS[name].present:
      raise ValueError(
        f'--{name}={FLAGS[name].value} has no effect on --harness\nfix: leave it out, or add --tasks'
      )
  if not FLAGS.harness:
    return []
  files = Path(FLAGS.harness_files).expanduser() if FLAGS.harness_files else ''
  return harness.run(subject, FLAGS.harness, files, FLAGS.shots, FLAGS.limit)
