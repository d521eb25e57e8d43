"""The command line of gpt_jax.

  launch.py train    [--config=FILE[:args]] [--workdir=DIR] [--config.key=value ...]
  launch.py sample   --workdir=DIR --prompt=TEXT [--temperature=X --top_k=K --stop=TEXT ...]
  launch.py evaluate --workdir=DIR [--tasks=perplexity --stride=N]
  launch.py import   --source=DIR-or-hub-id --workdir=DIR
  launch.py export   --workdir=DIR --out=DIR
  launch.py doctor

`train` resumes if DIR holds a run. `launch.py VERB --help` lists a verb's flags; --traceback shows
where an error came from. Exit codes: 0 done, 75 stopped and saved (the same command goes on),
1 error, 2 bad config or arguments.
"""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

VERBS = {}  # filled at the foot of this file
FLAGS = flags.FLAGS
BAD_ARGUMENTS, ERROR, STOPPED = 2, 1, 75

# glibc gives large blocks back to the kernel and faults them in again, step after step: keeping
# them makes CPU steps faster. It reads these at start only, so `main` starts the process anew.
ALLOCATOR = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': '100000000000'}


class Stop:
  """Turns the first SIGTERM or Ctrl-C into a request that the training loop honours."""

  def __init__(self):
    self.asked = False
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self)

  def __call__(self, number, frame):
    """Handle a signal."""
    if self.asked:
      os._exit(130)  # asked twice: leave at once; what was saved before is good
    self.asked = True
    print('stopping: will save after this step; again to leave at once', file=sys.stderr)


# ------------------------------------------------------------------------------------- verbs


def train_flags():
  """Flags of `train`. The config and its overrides are read by `config_from_arguments`."""
  flags.DEFINE_string('workdir', '', 'run folder; default: runs/NAME-DATE-TIME')


def train(argv):
  """Train an experiment, or go on with the one in --workdir."""
  from gpt_jax import config
  from gpt_jax.train import train as run

  cfg = config.build(config.Config, FLAGS.config)
  name = Path(flag_in(argv, 'config', 'experiments/demo.py').partition('.py')[0]).stem
  workdir = FLAGS.workdir or f'runs/{name}-{time.strftime("%Y%m%d-%H%M%S")}'
  print(f'run folder: {workdir}')
  stop = Stop()
  result = run(cfg, workdir, should_stop=lambda: stop.asked)
  return STOPPED if result is None else 0


def sample_flags():
  """Flags of `sample`: one for each field of SampleConfig, which default to the run's config."""
  from gpt_jax.sample import SampleConfig

  workdir_flag()
  flags.DEFINE_string('prompt', '', 'text to continue; empty: the start of a document')
  flags.DEFINE_multi_string('stop', [], 'end a text before this string; may be repeated')
  flags.DEFINE_enum('to', 'text', ['text'], 'what to make')
  flags.DEFINE_bool('stream', True, 'print a single text while it grows')
  flags.DEFINE_bool('log_probs', False, 'print the mean log-probability a token of each text')
  flags.DEFINE_string('out', '', 'file for the texts, one JSON object a line')
  define = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
  for field in dataclasses.fields(SampleConfig):
    define[field.type](field.name, None, 'of SampleConfig; default: as in the run')


def sample(argv):
  """Continue a prompt with a trained model."""
  from gpt_jax import records, trained
  from gpt_jax import sample as sampling

  run = trained.load(FLAGS.workdir)
  fields = [field.name for field in dataclasses.fields(sampling.SampleConfig)]
  chosen = {name: FLAGS[name].value for name in fields if FLAGS[name].value is not None}
  cfg = dataclasses.replace(run.cfg.sample, **chosen)
  prompt = sampling.prompt_ids(run.tokenizers, FLAGS.prompt, cfg.begin)
  if 'max_new_tokens' not in chosen:  # the run's default gives way to a long prompt
    room = max(1, run.model.cfg.context - len(prompt))
    cfg = dataclasses.replace(cfg, max_new_tokens=min(cfg.max_new_tokens, room))
  alone = cfg.num_samples == 1 and not (cfg.beams or FLAGS.out or FLAGS.log_probs)
  if FLAGS.stream and alone:
    pieces = sampling.stream_text(run.model, run.tokenizers, prompt, cfg, FLAGS.stop)
    print(FLAGS.prompt + next(pieces), end='', flush=True)
    for piece in pieces:
      print(piece, end='', flush=True)
    print()
    return 0
  [group] = sampling.complete(run.model, run.tokenizers, [prompt], cfg, FLAGS.stop)
  for i, (text, scores) in enumerate(group):
    record = {'prompt': FLAGS.prompt, 'text': text, 'log_probs': scores, 'seed': cfg.seed}
    if FLAGS.out:
      records.append_line(Path(FLAGS.out).expanduser(), record)
    score = ''
    if FLAGS.log_probs and cfg.beams:
      score = f'  length-penalised log-probability {scores:.3f}'
    elif FLAGS.log_probs:
      score = f'  mean log-probability {sum(scores) / max(len(scores), 1):.3f}'
    print(f'--- {i + 1} of {len(group)}{score}\n{FLAGS.prompt}{text}')
  return 0


def evaluate_flags():
  """Flags of `evaluate`."""
  workdir_flag()
  flags.DEFINE_list('tasks', ['perplexity'], 'which tasks to run')
  flags.DEFINE_enum('split', 'valid', ['train', 'valid'], 'which part of the data')
  flags.DEFINE_integer('stride', 0, 'tokens between scored windows; 0: disjoint windows')


def evaluate(argv):
  """Run tasks on a trained model and add their rows to <workdir>/evaluations.jsonl."""
  from gpt_jax import evaluate as evaluation
  from gpt_jax import records, trained

  run = trained.load(FLAGS.workdir)
  rows = evaluation.run(run.subject(), FLAGS.tasks, split=FLAGS.split, stride=FLAGS.stride)
  for row in rows:
    records.append_line(run.workdir / 'evaluations.jsonl', row)
    about = f'{row["source"]} {row["split"]}, {row["tokens"]} tokens, stride {row["stride"]}'
    print(f'{row["task"]:12} {row["metric"]:16} {row["value"]:10.4f}   {about}')
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


def doctor_(argv):
  """Say what this installation and machine are, and whether a step runs."""
  from gpt_jax import doctor

  return doctor.examine()


# ------------------------------------------------------------------------------------ arguments


def workdir_flag():
  """--workdir, required."""
  flags.DEFINE_string('workdir', None, 'run folder')
  flags.mark_flag_as_required('workdir')


def require(name):
  """The value of a flag that must not be empty."""
  if not FLAGS[name].value:
    raise ValueError(f'--{name} is missing\nfix: add --{name}=...')
  return FLAGS[name].value


def flag_in(argv, name, default=''):
  """The value of --name=value or --name value before flags are parsed."""
  for i, word in enumerate(argv):
    if word in (f'--{name}', f'-{name}'):
      if i + 1 == len(argv):
        raise ValueError(f'--{name} has no value\nfix: write --{name}=...')
      return argv[i + 1]
    if word.startswith((f'--{name}=', f'-{name}=')):
      return word.partition('=')[2]
  return default


def without_flag(argv, name):
  """argv without --name and its value."""
  kept, skip = [], False
  for word in argv:
    if skip:
      skip = False
    elif word in (f'--{name}', f'-{name}'):
      skip = True
    elif not word.startswith((f'--{name}=', f'-{name}=')):
      kept.append(word)
  return kept


def config_from_arguments(argv):
  """Define --config.KEY flags from the experiment file, or from the run in --workdir.

  Returns argv without --config itself. The config of an existing run is its config.json, so that
  `train --workdir=DIR` alone resumes; a saved .py is never executed.
  """
  from gpt_jax import config

  workdir = os.path.expanduser(flag_in(argv, 'workdir'))
  spec = flag_in(argv, 'config')
  if not spec and workdir and (Path(workdir) / 'config.json').exists():
    section = config.overridable(config.section(config.of_run(workdir)))
  else:
    section = config.load_file(spec or 'experiments/demo.py')
  for word in argv:
    if word.startswith('--config.'):
      config.check_key(section, word.removeprefix('--config.').partition('=')[0])
  argv = without_flag(argv, 'config')
  config_flags.DEFINE_config_dict('config', section, sys_argv=argv)
  return argv


def parse(argv):
  """Flags of a verb -> FLAGS; prints help or raises ValueError with a fix."""
  verb = VERBS[argv[1]]
  flags.DEFINE_bool('traceback', False, 'show where an error came from')
  verb[1]()
  words = [argv[0], *argv[2:]]
  if '--help' in words or '-h' in words:
    print(f'{verb[0].__doc__}\n\n{FLAGS.main_module_help()}')
    sys.exit(0)
  try:
    if verb[0] is train:
      words = config_from_arguments(words)
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
    print(f'error: launch.py {argv[1]}: no such verb\nfix: use one of {", ".join(VERBS)}',
          file=sys.stderr)  # fmt: skip
    return BAD_ARGUMENTS
  if sys.platform == 'linux' and not ALLOCATOR.keys() & os.environ.keys():
    os.execve(sys.executable, [sys.executable, *argv], os.environ | ALLOCATOR)
  logging.set_verbosity(logging.ERROR)
  begun = False
  try:
    parse(argv)
    begun = True
    return VERBS[argv[1]][0](argv)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return ERROR
  except (ValueError, OSError, RuntimeError, FloatingPointError) as e:
    has_fix = '\nfix:' in str(e)
    if '--traceback' in argv or (begun and not has_fix and not isinstance(e, OSError)):
      raise
    fix = (
      '' if has_fix else '\nfix: mend this and run the same command again; what was saved is safe'
    )
    print(f'error: {e}{fix}', file=sys.stderr)
    return BAD_ARGUMENTS if isinstance(e, ValueError | OSError) else ERROR


VERBS |= {
  'train': (train, train_flags),
  'sample': (sample, sample_flags),
  'evaluate': (evaluate, evaluate_flags),
  'import': (import_, import_flags),
  'export': (export, export_flags),
  'doctor': (doctor_, lambda: None),
}

if __name__ == '__main__':
  sys.exit(main(sys.argv))
