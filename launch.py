"""The command line of gpt_jax.

  launch.py train    [--config=FILE[:args]] [--workdir=DIR] [--config.key=value ...]
  launch.py sample   --workdir=DIR [--prompt=TEXT] [--image=FILE] [--audio=FILE]
                     [--to=text|image|audio|any] [--source=NAME] [--out=PATH]
                     [--temperature=X --guidance=G ...]
  launch.py evaluate --workdir=DIR [--tasks=a,b|all --split=valid|test --limit=N --guidance=G ...]
  launch.py import   --source=DIR-or-hub-id --workdir=DIR
  launch.py export   --workdir=DIR --out=DIR
  launch.py ablate   --config=FILE[:args] [--workdir=DIR] [--seeds=N] [--workers=N] [--dry_run]
  launch.py report   --workdir=DIR [--where=CONDITION] [--columns=a,b] [--against=DIR]
  launch.py render   --to=slurm|jobset|skypilot|tpu-vm --config=FILE[:args] --workdir=DIR
                     [--nodes=N --accelerators=KIND:N --shares=N ...] [--out=FILE]
  launch.py plan     --topology=v5e-256|h200-8|4x8-h100|... [--config=FILE[:args]] [--json]
                     [--search] [--table] [--price=X] [--config.key=value ...]
  launch.py doctor

`train` resumes if DIR holds a run. `launch.py VERB --help` lists a verb's flags; --traceback shows
where an error came from. Exit codes: 0 done, 75 stopped and saved (the same command goes on),
1 error, 2 bad config or arguments.
"""

import collections
import dataclasses
import itertools
import json
import os
import sys
import time
import traceback
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from gpt_jax.cli.args import experiment, flag_in, overrides, told
from gpt_jax.cluster.guard import watcher
from gpt_jax.runs import compilation_cache

VERBS = {}  # filled at the foot of this file
FLAGS = flags.FLAGS
BAD_ARGUMENTS, ERROR, STOPPED = 2, 1, 75
DEFINE = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}

# glibc gives large blocks back to the kernel and faults them in again, step after step: keeping
# them makes CPU steps faster. It reads these at start only, so `main` starts the process anew.
ALLOCATOR = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': '100000000000'}


# ------------------------------------------------------------------------------------- verbs


def train_flags():
  """Flags of `train`. The config and its overrides are read by `words.experiment`."""
  flags.DEFINE_string('workdir', '', 'run folder; default: runs/NAME-DATE-TIME')
  job_flags()


def train(argv):
  """Train an experiment, or go on with the one in --workdir."""
  from gpt_jax import config
  from gpt_jax.cluster import bootstrap
  from gpt_jax.runs import startup_timer
  from gpt_jax.train import train as run

  cfg = config.build(config.Config, FLAGS.config)
  startup_timer.lap('import')
  join(agree=True)
  startup_timer.lap('join')
  name = Path(flag_in(argv, 'config', 'experiments/demo.py').partition('.py')[0]).stem
  workdir = FLAGS.workdir or f'runs/{name}-{time.strftime("%Y%m%d-%H%M%S", bootstrap.now())}'
  bootstrap.say(f'run folder: {workdir}')
  watcher().watch(cfg.train.hang_seconds, workdir)
  result = run(cfg, workdir, watcher().stop)
  return STOPPED if result is None else 0


def sample_flags():
  """Flags of `sample`: one for each field of SampleConfig, which default to the run's config."""
  from gpt_jax.tokenizers.grammar import END_MARKERS

  workdir_flag()
  job_flags()
  flags.DEFINE_string('prompt', '', 'text to continue or to make something of')
  flags.DEFINE_multi_string('image', [], 'picture file to read; may be repeated')
  flags.DEFINE_multi_string('audio', [], 'sound file to read; may be repeated')
  flags.DEFINE_string('source', '', 'of data.mixture: whose form to use, where several fit')
  flags.DEFINE_multi_string('stop', [], 'end a text before this string; may be repeated')
  flags.DEFINE_enum('to', 'text', list(END_MARKERS), 'what to make; any: text with pictures and sounds')
  flags.DEFINE_bool('stream', True, 'print a single text while it grows')
  flags.DEFINE_bool('log_probs', False, 'print the mean log-probability a token of each sample')
  flags.DEFINE_string(
    'out',
    '',
    'text: file that gets one JSON object a line; else a .png, .wav or .flac file or '
    'a folder, default <workdir>/samples',
  )
  sampling_flags()


def sample(argv):
  """Continue a prompt with a trained model, or make a text, a picture or a sound of one."""
  from gpt_jax.cluster.bootstrap import primary, say
  from gpt_jax.evaluation import trained
  from gpt_jax.sampling import completions, output_files, prompts, samplers

  join()
  run, to = trained.load(FLAGS.workdir), FLAGS.to
  chosen = chosen_sampling()
  cfg, notes = samplers.override(run.cfg.sample, **chosen), collections.Counter()
  prompt = prompts.build_prompt(
    run, FLAGS.prompt, FLAGS.image, FLAGS.audio, to, cfg.begin, FLAGS.source, notes
  )
  for note, count in notes.items():
    say(f'{count} {note}')
  cfg = prompts.resolve_max_new_tokens(run, [prompt], cfg, to, 'max_new_tokens' in chosen)
  if to != 'text':
    return sample_media(run, prompt, cfg)
  if FLAGS.out and primary():
    Path(FLAGS.out).expanduser().open('ab').close()  # now, not after the sampling
  shown = FLAGS.prompt if prompts.continues_text(run, prompt) else ''
  alone = cfg.num_samples == 1 and not (cfg.beams or FLAGS.out or FLAGS.log_probs)
  if FLAGS.stream and alone:
    pieces = completions.stream_text(run.model, run.tokenizers, prompt, cfg, FLAGS.stop)
    for piece in itertools.chain([shown + next(pieces)], pieces, ['\n']):
      say(piece, end='', flush=True)
    return 0
  [group] = completions.complete(run.model, run.tokenizers, [prompt], cfg, FLAGS.stop)
  for i, (text, scores) in enumerate(group if primary() else ()):
    print(output_files.format_sample(i, len(group), FLAGS.log_probs, scores, cfg, shown + text))
    if FLAGS.out:
      given = {name: FLAGS[name].value for name in ('image', 'audio') if FLAGS[name].value}
      output_files.append_sample(FLAGS.out, FLAGS.prompt, given, text, scores, cfg.seed)
  return 0


def sample_media(run, prompt, cfg):
  """Make pictures and sounds, write them, and print where they are."""
  from gpt_jax.cluster.bootstrap import primary
  from gpt_jax.sampling import completions, output_files, prompts

  if FLAGS.stop:
    raise ValueError(f'--stop ends texts and has no use with --to={FLAGS.to}\nfix: leave it out')
  files = output_files.OutputFiles(FLAGS.out, run.workdir / 'samples', FLAGS.to, cfg.num_samples)
  [group] = completions.generate_ids(run.model, run.tokenizers, [prompt], cfg, FLAGS.to)
  rate = getattr(run.tokenizers.audio, 'sample_rate', 0)
  for i, (ids, scores) in enumerate(group if primary() else ()):
    pieces = prompts.decode_pieces(run, ids, prompt.ids)
    lines = [p.value if p.kind == 'text' else str(files.write(p, rate)) for p in pieces]
    print(output_files.format_sample(i, len(group), FLAGS.log_probs, scores, cfg, '\n'.join(lines)))
  return 0


def evaluate_flags():
  """Flags of `evaluate`; those of SampleConfig default to the run's config."""
  from gpt_jax.data import SPLITS

  workdir_flag()
  job_flags()
  flags.DEFINE_list('tasks', ['perplexity'], 'which tasks to run; all: those that fit the data')
  flags.DEFINE_enum('split', 'valid', list(SPLITS), 'which part of the data')
  flags.DEFINE_integer(
    'limit',
    0,
    'examples of a source (perplexity: tokens); 0: all tokens, some hundred examples',
    lower_bound=0,
  )
  flags.DEFINE_integer('stride', 0, 'tokens between scored windows; 0: disjoint windows', lower_bound=0)
  flags.DEFINE_string('recognizer', '', 'speak: run folder of a model that makes text of sounds')
  sampling_flags(
    but=('num_samples', 'begin'), temperature='as in the run; tasks answer, translate and summarize: 0'
  )


def evaluate(argv):
  """Run tasks on a trained model and add their rows to <workdir>/evaluations.jsonl."""
  from gpt_jax.cluster.bootstrap import primary
  from gpt_jax.evaluation import evaluate as evaluation
  from gpt_jax.evaluation import trained
  from gpt_jax.runs import records

  join()
  run = trained.load(FLAGS.workdir)
  recognizer = trained.load(FLAGS.recognizer).subject() if FLAGS.recognizer else None
  rows = evaluation.run_tasks(
    run.subject(),
    FLAGS.tasks,
    split=FLAGS.split,
    limit=FLAGS.limit,
    stride=FLAGS.stride,
    recognizer=recognizer,
    **chosen_sampling(),
  )
  if not rows:
    raise ValueError(
      f'--split={FLAGS.split} of the data has nothing for --tasks={",".join(FLAGS.tasks)}\n'
      'fix: choose another split or task, or let a source of data.mixture name such data'
    )
  for row in rows if primary() else ():
    records.append_line(run.workdir / 'evaluations.jsonl', row)
    print(evaluation.format_row(row))
  return 0


def import_flags():
  """Flags of `import`."""
  flags.DEFINE_string('source', '', 'folder with config.json and safetensors, or a hub id')
  workdir_flag()


def import_(argv):
  """Make a run folder of a Hugging Face model of the GPT-2 or Llama family."""
  from gpt_jax.interop import huggingface

  huggingface.import_run(require('source'), FLAGS.workdir)
  return 0


def export_flags():
  """Flags of `export`."""
  workdir_flag()
  flags.DEFINE_string('out', '', 'folder for config.json, model.safetensors and tokenizer files')


def export(argv):
  """Write a trained model as Hugging Face files."""
  from gpt_jax.interop import huggingface

  huggingface.export_run(FLAGS.workdir, require('out'))
  return 0


def ablate_flags():
  """Flags of `ablate`."""
  flags.DEFINE_string('config', '', 'study file, such as experiments/ablations/norms.py[:args]')
  flags.DEFINE_string('workdir', '', 'study folder; default: runs/ablate-NAME')
  flags.DEFINE_integer('seeds', 0, 'runs of each arm; 0: as the file says', lower_bound=0)
  flags.DEFINE_integer('workers', 0, 'training processes at once; 0: measure what is fastest', lower_bound=0)
  flags.DEFINE_string('share', '', 'I/N: train only the I-th, from 0, of N shares of the runs')
  flags.DEFINE_bool('dry_run', False, 'print the plan and what the arms differ in, train nothing')


def ablate(argv):
  """Compare the arms of a study: plan, prove that they differ, train, judge, report."""
  # Training processes get the accelerator's memory, not this one.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  from gpt_jax.cli import studies

  failed = studies.ablate(
    require('config'),
    FLAGS.workdir,
    seeds=FLAGS.seeds,
    share=FLAGS.share,
    dry_run=FLAGS.dry_run,
    workers=FLAGS.workers,
    should_stop=lambda: watcher().asked,
  )
  return STOPPED if failed is None else ERROR if failed else 0


def report_flags():
  """Flags of `report`."""
  workdir_flag()
  flags.DEFINE_string('where', '', 'which runs, in SQL: "optim.lr > 1e-3 and model.positions = \'rope\'"')
  flags.DEFINE_string('against', '', 'another run: where do the activations of the two part?')
  flags.DEFINE_list(
    'columns', [], 'keys of the config or of the result, or scores TASK/SOURCE/METRIC, to show'
  )


def report(argv):
  """Write the report of a study or a run again; show a table of runs, or where two of them part."""
  from gpt_jax.ablation.execute import runner
  from gpt_jax.cli import studies
  from gpt_jax.reports import compare
  from gpt_jax.reports import run_report as page

  workdir, asked = Path(FLAGS.workdir).expanduser(), FLAGS.where or FLAGS.columns
  if FLAGS.against:
    if asked:
      raise ValueError('--against compares two runs\nfix: leave out --where and --columns')
    print('\n'.join(compare.runs_apart(FLAGS.workdir, FLAGS.against)))
    return 0
  if not asked and (workdir / 'study.json').exists():
    runner.judge(workdir)
    return 0
  if not asked and (workdir / 'config.json').exists():
    print(page.again(workdir))
    return 0
  print('\n'.join(studies.table(workdir, FLAGS.where, FLAGS.columns)))
  return 0


def render_flags():
  """Flags of `render`: one for each field of render.Job, and where the file goes."""
  from gpt_jax.cluster import render as job_files

  flags.DEFINE_enum('to', None, list(job_files.TARGETS), 'which scheduler')
  flags.DEFINE_string('name', '', 'of the job; default: that of the experiment file')
  flags.DEFINE_string('out', '', 'file to write; default: print it')
  for field in dataclasses.fields(job_files.Job):
    if field.name not in ('words', 'name'):
      default = '' if field.default is dataclasses.MISSING else field.default
      DEFINE[field.type](field.name, default, job_files.HELP[field.name])


def render(argv):
  """Print the job file that trains an experiment on a cluster, or a study with --shares."""
  from gpt_jax import config
  from gpt_jax.ablation import design
  from gpt_jax.cluster import render as job_files

  spec = flag_in(argv, 'config', 'experiments/demo.py')
  if FLAGS.shares:
    design.load_study(require('config'))
  else:
    config.build(config.Config, FLAGS.config)
  given = {name: FLAGS[name].value for name in ('name', *job_files.HELP)}
  text = job_files.render(require('to'), job_files.job(spec, overrides(argv), **given))
  sys.stdout.write(text) if not FLAGS.out else Path(FLAGS.out).expanduser().write_text(text)
  return 0


def plan_flags():
  """Flags of `plan`. The config and its overrides are read by `words.experiment`."""
  from gpt_jax.plan import topologies

  os.environ.update(topologies.ENVIRONMENT)  # before jax is imported
  flags.DEFINE_string('topology', '', f'what to compile for, such as {", ".join(topologies.EXAMPLES)}')
  flags.DEFINE_float('price', 0.0, 'dollars a device-hour; 0: say no cost', lower_bound=0.0)
  flags.DEFINE_bool('search', False, 'try micro-batches, remat policies and meshes')
  flags.DEFINE_bool('decode', True, 'compile the decode step, too')
  flags.DEFINE_bool('table', False, 'say where each parameter lies, and its bytes on each device')
  flags.DEFINE_bool('json', False, 'print one JSON object')


def plan(argv):
  """Compile a run for hardware that is not there: does it fit, and what can it reach?

  Exit code 2 if it does not fit.
  """
  from gpt_jax import config
  from gpt_jax.plan import format
  from gpt_jax.plan import plan as planning

  target = planning.Target.of(require('topology'))
  cfg = config.build(config.Config, FLAGS.config)
  if FLAGS.search:
    found = planning.best(cfg, target, FLAGS.price, (lambda _: None) if FLAGS.json else print)
  else:
    found = planning.plan(cfg, target, FLAGS.price, FLAGS.decode)
  if not FLAGS.table:
    found.pop('table', None)
  print(json.dumps(found, indent=1) if FLAGS.json else '\n'.join(format.lines(found)))
  return 0 if found['fits'] else BAD_ARGUMENTS


def doctor_(argv):
  """Say what this installation and machine are, and whether a step runs."""
  from gpt_jax.cli import doctor

  return doctor.examine()


# ------------------------------------------------------------------------------------ arguments


def job_flags():
  """Which process of which job this one is; schedulers say it by environment variables."""
  flags.DEFINE_string('coordinator', '', 'HOST:PORT of process 0; default: as a scheduler says')
  flags.DEFINE_integer('processes', 0, 'in this job; 1: this one alone; default: as above')
  flags.DEFINE_integer('process', -1, 'number of this one, from 0; default: as above')


def join(agree=False):
  """Join the job that this process belongs to; agree: on when to stop, by the watcher."""
  from gpt_jax.cluster import bootstrap

  job = bootstrap.find(os.environ, FLAGS.coordinator, FLAGS.processes, FLAGS.process)
  bootstrap.join(job, agree)
  if agree:
    watcher().joined()


def sampling_flags(but=(), **defaults):
  """A flag for each field of SampleConfig but these; defaults: help where it is not the run's value."""
  from gpt_jax.sample import SampleConfig

  for field in dataclasses.fields(SampleConfig):
    if field.name not in but:
      default = defaults.get(field.name, 'as in the run')
      DEFINE[field.type](field.name, None, f'of SampleConfig; default: {default}')


def chosen_sampling():
  """{field of SampleConfig: its value} of the flags that were given."""
  from gpt_jax.sample import SampleConfig

  names = [field.name for field in dataclasses.fields(SampleConfig) if field.name in FLAGS]
  return {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}


def workdir_flag():
  """--workdir, required."""
  flags.DEFINE_string('workdir', None, 'run folder')
  flags.mark_flag_as_required('workdir')


def require(name):
  """The value of a flag that must not be empty."""
  if not FLAGS[name].value:
    raise ValueError(f'--{name} is missing\nfix: add --{name}=...')
  return FLAGS[name].value


def parse(argv):
  """Flags of a verb -> FLAGS; prints help or raises ValueError with a fix."""
  verb = VERBS[argv[1]]
  flags.DEFINE_bool('traceback', False, 'show where an error came from')
  verb[1]()
  if verb[0] is render and flag_in(argv, 'shares'):
    flags.DEFINE_string('config', '', 'study file')
  words = [argv[0], *argv[2:]]
  if '--help' in words or '-h' in words:
    print(f'{verb[0].__doc__}\n\n{FLAGS.main_module_help()}')
    sys.exit(0)
  try:
    if verb[0] in (train, plan) or (verb[0] is render and not flag_in(words, 'shares')):
      section, words = experiment(words)
      config_flags.DEFINE_config_dict('config', section, sys_argv=words)
    rest = FLAGS(words)[1:]
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    if '\nfix:' in str(e):
      raise
    cause = ' '.join(str(part) for part in e.args).strip().replace('\n', ' ')
    raise ValueError(f'{cause}\nfix: see launch.py {argv[1]} --help, or an experiment file') from e
  if rest:
    raise ValueError(f'argument {rest[0]!r} is not a flag\nfix: write --name=value')


def main(argv):
  """Dispatch to a verb; user errors are a cause line and a fix line."""
  if len(argv) < 2 or argv[1] in ('-h', '--help', 'help'):
    print(__doc__)
    return 0 if len(argv) > 1 else BAD_ARGUMENTS
  if argv[1] not in VERBS:
    print(f'error: launch.py {argv[1]}: no such verb\nfix: use one of {", ".join(VERBS)}', file=sys.stderr)
    return BAD_ARGUMENTS
  if sys.platform == 'linux' and not ALLOCATOR.keys() & os.environ.keys():
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR)
  logging.set_verbosity(logging.ERROR)
  if VERBS[argv[1]][0] in (train, ablate) and '--dry_run' not in argv:  # that has nothing to save
    watcher()  # before anything slow: from now on a signal means to save and leave
  begun = False
  try:
    compilation_cache.keep(os.environ, [flag_in(argv, 'workdir')])
    parse(argv)
    begun = True
    return VERBS[argv[1]][0](argv)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return ERROR
  except (ValueError, OSError, RuntimeError, FloatingPointError) as e:
    expected = '\nfix:' in str(e) or isinstance(e, OSError) or not begun
    if '--traceback' in argv or not expected:
      raise
    print(told(e), file=sys.stderr)
    return BAD_ARGUMENTS if isinstance(e, ValueError | OSError) else ERROR


VERBS |= {
  'train': (train, train_flags),
  'sample': (sample, sample_flags),
  'evaluate': (evaluate, evaluate_flags),
  'import': (import_, import_flags),
  'export': (export, export_flags),
  'ablate': (ablate, ablate_flags),
  'report': (report, report_flags),
  'render': (render, render_flags),
  'plan': (plan, plan_flags),
  'doctor': (doctor_, lambda: None),
}

if __name__ == '__main__':
  failure = None
  try:
    code = main(sys.argv)
  except Exception as error:
    traceback.print_exc()
    code, failure = ERROR, error
  if code in (ERROR, BAD_ARGUMENTS) and 'gpt_jax.cluster.bootstrap' in sys.modules:
    sys.modules['gpt_jax.cluster.bootstrap'].leave(code, failure)
  sys.exit(code)
