"""The words of a command line before its flags are defined, which an experiment file decides."""

MOST = 1000  # characters of a line of an error: values may come from anywhere


def brief(text):
  """The text with long lines cut."""
  return '\n'.join(l if len(l) <= MOST else f'{l[:MOST]} ...' for l in text.split('\n'))


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
