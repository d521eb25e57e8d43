"""The words of a command line before its flags are defined, which an experiment file decides."""

import os
from pathlib import Path

NO_FIX = '\nfix: mend this and run the same command again; what was saved is safe'
MOST = 1000  # characters of a line of an error: values may come from anywhere


def brief(text):
  """The text with long lines cut."""
  return '\n'.join(l if len(l) <= MOST else f'{l[:MOST]} ...' for l in text.split('\n'))


def told(error):
  """What a user reads of an error: a cause line and a fix line."""
  fix = '' if '\nfix:' in str(error) else NO_FIX
  return brief(f'error: {error}{fix}')


def flag_in(argv, name, default=''):
  """The value of --name=value or --name value."""
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


def overrides(argv):
  """The --config.key=value words of argv; one whose value is a word of its own is joined to it."""
  found = []
  for word, after in zip(argv, [*argv[1:], '--'], strict=True):
    if word.startswith('--config.'):
      found.append(word if '=' in word or after.startswith('-') else f'{word}={after}')
  return found


def experiment(argv):
  """-> (ConfigDict of the experiment that argv names, argv without --config itself).

  Without --config it is that of the run in --workdir, its config.json, so that `train
  --workdir=DIR` alone resumes: a saved .py is never executed. ValueError: an override names no key.
  """
  from gpt_jax import config
  from gpt_jax.cli import experiment_file

  workdir = os.path.expanduser(flag_in(argv, 'workdir'))
  spec = flag_in(argv, 'config')
  if not spec and workdir and (Path(workdir) / 'config.json').exists():
    section = experiment_file.complete_sources(config.section(config.of_run(workdir)))
  else:
    section = experiment_file.load_config(spec or 'experiments/demo.py')
  for word in argv:
    if word.startswith('--config.'):
      experiment_file.check_key(section, word.removeprefix('--config.').partition('=')[0])
  return section, without_flag(argv, 'config')
