"""The command line of gpt_jax: `python launch.py VERB` here, `gpt-jax VERB` where it is installed.

  train    [--config=FILE[:args]] [--workdir=DIR] [--config.key=value ...]
  sample   --workdir=DIR [--prompt=TEXT] [--image=FILE] [--audio=FILE] [--to=text|image|audio|any]
           [--source=NAME] [--out=PATH] [--temperature=X --guidance=G ...]
  chat     --workdir=DIR [--system=TEXT] [--temperature=X ...]
  evaluate --workdir=DIR [--tasks=a,b|all --split=valid|test --limit=N --guidance=G ...]
  data     --source=FILE [--scrub=all --clean=exact,near=0.8,...] | --config=FILE[:args]  [--out=DIR]
  import   --source=DIR-or-hub-id --workdir=DIR
  export   --workdir=DIR --out=DIR
  ablate   --config=FILE[:args] [--workdir=DIR] [--seeds=N] [--workers=N] [--dry_run] [--register]
  report   --workdir=DIR [--where=CONDITION] [--columns=a,b] [--against=DIR] [--rescore]
  lab      [--root=DIR] [--port=N]
  render   --to=slurm|jobset|skypilot|tpu-vm --config=FILE[:args] --workdir=DIR
           [--nodes=N --accelerators=KIND:N --shares=N ...] [--out=FILE]
  plan     --topology=v5e-256|h200-8|4x8-h100|... [--config=FILE[:args]] [--json] [--search]
           [--table] [--price=X] [--config.key=value ...]
  serve    --workdir=DIR [--port=N --host=ADDRESS --slots=N ...] [--temperature=X ...]
  doctor
  --version | --completion=bash|zsh

`train` resumes if DIR holds a run. VERB --help lists a verb's flags, VERB --config=FILE --help also
describes that file and its arguments; --traceback prints the traceback of
an error. Exit codes: 0 done, 75 preempted and saved (run the same command again), 1 error, 2 bad config
or arguments, 130 stopped at once by a second signal.
"""

import logging
import os
import sys
import traceback

import absl.logging
from absl import flags
from ml_collections import config_flags

from gpt_jax.cli import args, config_help, job, verbs
from gpt_jax.runs import compilation_cache, plugins, provenance
from gpt_jax.runs.loggers import ConsoleHandler, say

FLAGS = flags.FLAGS
EXPECTED = (ValueError, OSError, RuntimeError, FloatingPointError, MemoryError, ImportError)
WITH_OVERRIDES = ('train', 'evaluate', 'data', 'plan', 'render')  # verbs that take --config.key=value


def run():
  """Run the verb of sys.argv and exit with its code."""
  failure = None
  logging.basicConfig(handlers=[ConsoleHandler()], force=True)  # in the place of those of imported libraries
  if '--traceback' not in sys.argv:
    silence_leftovers()
  try:
    code = main(sys.argv)
  except Exception as error:
    say(traceback.format_exc(), file=sys.stderr, end='')
    code, failure = verbs.ERROR, error
  finally:
    say(end='', flush=True)  # here, not when Python ends, a reader that has left is no error
  if code in (verbs.ERROR, verbs.BAD_ARGUMENTS) and 'gpt_jax.cluster.bootstrap' in sys.modules:
    sys.modules['gpt_jax.cluster.bootstrap'].exit_failed(code, failure)
  sys.exit(code)


def silence_leftovers():
  """Silence what libraries abandoned (a coroutine of a half-written file): an error ends with its fix."""
  sys.unraisablehook = lambda _: None
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)


def main(argv):
  """Dispatch to a verb -> exit code; user errors print a cause line and a fix line."""
  if len(argv) < 2 or argv[1] in ('-h', '--help', 'help'):
    say(__doc__)
    return 0 if len(argv) > 1 else verbs.BAD_ARGUMENTS
  verb = argv[1]
  if verb == '--version':
    say(f'gpt_jax {provenance.versions()["gpt_jax"]}')
    return 0
  if verb.startswith('--completion'):
    return print_completion(verb.partition('=')[2])
  if verb not in verbs.VERBS:
    names = ', '.join(verbs.VERBS)
    say(f'error: {verb!r} is not a verb of the command line\nfix: use one of {names}', file=sys.stderr)
    return verbs.BAD_ARGUMENTS
  absl.logging.set_verbosity(absl.logging.ERROR)
  if note := args.address_limit_note():  # JAX aborts the process without a hint
    say(f'warning: {note}', file=sys.stderr)
  parsed = False
  try:
    compilation_cache.enable_compilation_cache(os.environ, [args.flag_value(argv, 'workdir')])
    parse(argv)
    parsed = True
    return verbs.VERBS[verb].run(argv)
  except Exception as error:
    if args.is_out_of_memory(error) and '--traceback' not in argv:
      say(args.format_out_of_memory(error), file=sys.stderr)
      return verbs.ERROR
    e = plugins.as_user_error(error)
    if not isinstance(e, EXPECTED):
      raise
    expected = '\nfix:' in str(e) or isinstance(e, OSError) or not parsed
    if '--traceback' in argv or not expected:
      raise
    say(args.format_error(e), file=sys.stderr)
    if not parsed and verb in job.VERBS:
      job.report_failure(argv, e)
    return verbs.BAD_ARGUMENTS if isinstance(e, ValueError | OSError) else verbs.ERROR


def print_completion(shell):
  """Print the completion script of a shell -> exit code."""
  from gpt_jax.cli import completion

  try:
    say(completion.script(shell, WITH_OVERRIDES), end='')
  except ValueError as error:
    say(args.format_error(error), file=sys.stderr)
    return verbs.BAD_ARGUMENTS
  return 0


def parse(argv):
  """Parse the flags of a verb into FLAGS; print its help and exit, or raise ValueError with a fix."""
  verb, rest = argv[1], [argv[0], *argv[2:]]
  flags_before = set(FLAGS)
  flags.DEFINE_bool('traceback', False, 'print the traceback of an error')
  flags.DEFINE_bool('trust_plugins', False, 'run the plugins of a run folder that another machine made')
  if '--trust_plugins' in argv:
    os.environ[plugins.CONSENT] = '1'
  verbs.VERBS[verb].define_flags()
  if '--help' in rest or '-h' in rest:
    say(f'{verbs.VERBS[verb].run.__doc__}\n{format_flags(set(FLAGS) - flags_before)}')
    if verb in WITH_OVERRIDES and verb != 'evaluate':  # which takes a few of them
      from gpt_jax import config  # imports jax

      say(f'\nConfig keys:\n{config_help.format_keys(config.Config)}')
    if docstring := args.experiment_docstring(rest):
      say(f'\n{args.flag_value(rest, "config")}:\n{docstring}')
    sys.exit(0)
  is_study = verb == 'render' and args.flag_value(argv, 'shares')
  names_file = is_study or (verb == 'data' and args.flag_value(argv, 'source'))
  if names_file:
    flags.DEFINE_string('config', '', 'study or experiment file')
  if verb == 'train' and (note := args.demo_note(rest)):
    say(f'note: {note}', file=sys.stderr)
  try:
    if verb in WITH_OVERRIDES and not names_file:
      section, rest = args.load_experiment(rest, adds_sources=verb == 'evaluate')
      config_flags.DEFINE_config_dict('config', section, sys_argv=rest)
    stray = FLAGS(rest)[1:]
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    if '\nfix:' in str(e):
      raise
    raise ValueError(args.format_flag_error(e, verb, FLAGS, WITH_OVERRIDES)) from e
  if stray:
    raise ValueError(f'argument {stray[0]!r} is not a flag\nfix: write --name=value')


def format_flags(names):
  """One line of help for each flag."""
  lines = []
  for flag in (FLAGS[name] for name in sorted(names)):
    prefix = '--[no]' if flag.boolean else '--'
    default = '' if flag.default in (None, '', []) else f' (default: {flag.default_as_str[1:-1]})'
    lines.append(f'  {prefix + flag.name:20} {flag.help}{default}')
  return '\n'.join(lines)
