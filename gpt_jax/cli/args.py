"""Pre-parse command-line arguments: an experiment file decides which --config flags absl must define."""

import ast
import difflib
import os
import re
from pathlib import Path

from gpt_jax.runs.user_code import find_experiment

OUT_OF_MEMORY = (  # of XLA, C++, the kernel, Python and the dynamic linker
  *('RESOURCE_EXHAUSTED', 'bad_alloc', 'Out of memory', 'Cannot allocate memory'),
  *("can't start new thread", 'failed to map segment'),
)
LEAST_ADDRESSES = 3 * 10**9  # bytes; a tiny run on two cores needs 2.2 GB, most of it for threads
NO_FIX = '\nfix: correct the cause above and run the same command again; everything saved is safe'
MAX_LINE = 1000  # characters of a line of an error: values may come from anywhere
VALUES = {  # what absl says of a wrong value: the kind that is expected, and an example
  'invalid literal for int()': ('an integer', '1'),
  'could not convert string to float': ('a number', '1'),
  "('Non-boolean argument": ('true or false', 'true'),
}
DEMO = str(find_experiment('experiments/demo.py'))


def format_error(error):
  """The two lines that a user reads of an error: cause and fix."""
  text = f'error: {error}' if '\nfix:' in str(error) else f'error: {error}{NO_FIX}'
  return '\n'.join(l if len(l) <= MAX_LINE else f'{l[:MAX_LINE]} ...' for l in text.split('\n'))


def format_flag_error(error, verb, defined, with_overrides):
  """Cause and fix of an error of absl's parser.

  defined: the flags of the verb, by name; with_overrides: the verbs that take --config.KEY=VALUE.
  """
  cause = ' '.join(str(part) for part in error.args).strip().replace('\n', ' ')
  if name := getattr(error, 'flagname', ''):
    near = [flag for flag in defined if flag.startswith(name)] or difflib.get_close_matches(
      name, list(defined), 1
    )
    fix = f'did you mean --{near[0]}?' if near else f'`{verb} --help` lists its flags'
    if name.startswith('config.'):
      fix = f'leave it out: only {", ".join(with_overrides)} take --config.KEY=VALUE'
    return f'--{name} is not a flag of {verb}\nfix: {fix}'
  if missing := re.fullmatch(r'flag --(\w+)=None: Flag --\w+ must have a value other than None\.', cause):
    return f'--{missing[1]} is missing\nfix: add --{missing[1]}=...'
  if missing := re.fullmatch(r'Missing value for flag --(\S+)', cause):
    return f'--{missing[1]} has no value\nfix: write --{missing[1]}=...'
  if one_of := re.fullmatch(r'flag (--.*): value should be one of <(.*)>', cause, re.S):
    return f'{one_of[1]} is not known\nfix: use one of {one_of[2].replace("|", ", ")}'
  for sign, (kind, example) in VALUES.items():
    if wrong := re.match(r'flag (--([^=]+)=.*): ' + re.escape(sign), cause, re.S):
      default = defined[wrong[2]].default if wrong[2] in defined else None
      if example.isdigit() and default is not None:
        example = default
      return f'{wrong[1]} is not {kind}\nfix: write --{wrong[2]}={example}'
  return f'{cause}\nfix: `{verb} --help` lists its flags'


def is_out_of_memory(error):
  """Whether an error says that memory ran out: of Python, of numpy, or of XLA on the host or a device."""
  has_sign = any(sign in str(error) for sign in OUT_OF_MEMORY)
  return isinstance(error, MemoryError) or (has_sign and '\nfix:' not in str(error))


def format_out_of_memory(error):
  """Cause and fix of an error that is_out_of_memory."""
  cause = str(error).split('\n')[0][:MAX_LINE] or type(error).__name__
  fix = address_limit_note() or (
    'use a smaller train.batch_size, more train.accumulate, model.remat=full or a smaller model; '
    '`launch.py plan` tells how much a run needs'
  )
  return f'error: out of memory: {cause}\nfix: {fix}'


def address_limit_note():
  """Return what to do about a limit of the address space with which JAX aborts, '' if there is none."""
  import resource  # absent on Windows

  limit = resource.getrlimit(resource.RLIMIT_AS)[0]
  if limit in (-1, resource.RLIM_INFINITY) or limit >= LEAST_ADDRESSES:
    return ''
  needed = f'{LEAST_ADDRESSES / 1e9:g} GB'
  return f'`ulimit -v` allows {limit / 1e9:.1f} GB of address space: raise it to {needed} or more'


def experiment_docstring(argv):
  """Return the docstring of the file in --config=FILE[:args], without running it; '' without such a file."""
  path = find_experiment(flag_value(argv, 'config').partition('.py:')[0])
  try:
    return ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
  except (OSError, ValueError, SyntaxError):
    return ''


def flag_value(argv, name, default=''):
  """The value of --name=value or --name value."""
  for i, arg in enumerate(argv):
    if arg in (f'--{name}', f'-{name}'):
      if i + 1 == len(argv):
        raise ValueError(f'--{name} has no value\nfix: write --{name}=...')
      return argv[i + 1]
    if arg.startswith((f'--{name}=', f'-{name}=')):
      return arg.partition('=')[2]
  return default


def remove_flag(argv, name):
  """argv without --name and its value."""
  rest, skip = [], False
  for arg in argv:
    if skip:
      skip = False
    elif arg in (f'--{name}', f'-{name}'):
      skip = True
    elif not arg.startswith((f'--{name}=', f'-{name}=')):
      rest.append(arg)
  return rest


def join_overrides(argv):
  """argv with each --config.KEY VALUE as --config.KEY=VALUE; a key before another flag is left alone."""
  joined, rest = [], list(argv)
  while rest:
    arg = rest.pop(0)
    if arg.startswith('--config.') and '=' not in arg and rest and not rest[0].startswith('--'):
      arg = f'{arg}={rest.pop(0)}'
    joined.append(arg)
  return joined


def config_overrides(argv):
  """The overrides in argv, as --config.key=value or --config.key."""
  return [arg for arg in join_overrides(argv) if arg.startswith('--config.')]


def demo_note(argv):
  """Return a note if a folder is named in which there is no run to resume, and no experiment; else ''."""
  workdir, argv = flag_value(argv, 'workdir'), join_overrides(argv)
  names_config = flag_value(argv, 'config') or flag_value(argv, 'config.train.branch_from')
  if not workdir or names_config or (Path(workdir).expanduser() / 'config.json').exists():
    return ''
  return f'{workdir} has no run to resume, and there is no --config: this trains experiments/demo.py'


def load_experiment(argv, adds_sources=False):
  """Return (ConfigDict of the experiment in argv, argv without --config itself).

  adds_sources: an override of the kind of an unknown source adds it, only for evaluation.

  Without --config it is the config.json of the run in --workdir, so that `train --workdir=DIR` resumes, or
  of the run in --config.train.branch_from, else the demo. A saved .py file is never executed. Raises
  ValueError for an override of an unknown key.
  """
  from gpt_jax import config
  from gpt_jax.cli import experiment_file
  from gpt_jax.runs import ancestry

  workdir = os.path.expanduser(flag_value(argv, 'workdir'))
  spec = flag_value(argv, 'config')
  parent = flag_value(join_overrides(argv), 'config.train.branch_from')
  if not spec and workdir and (Path(workdir) / 'config.json').exists():
    section = experiment_file.complete_sources(config.section(config.of_run(workdir)))
  elif not spec and parent:
    section = experiment_file.complete_sources(
      config.section(config.of_run(ancestry.parse_run(parent)[0], 'train.branch_from'))
    )
    section.train.init_from = ''  # the weights are the branch's
  else:
    section = experiment_file.load_config(spec or DEMO)
  if adds_sources:
    experiment_file.add_sources(section, [arg.removeprefix('--config.') for arg in config_overrides(argv)])
  argv = [
    experiment_file.normalize_override(section, arg) if arg.startswith('--config.') else arg
    for arg in join_overrides(argv)
  ]
  experiment_file.reset_unread(section, config_overrides(argv))
  return section, remove_flag(argv, 'config')
