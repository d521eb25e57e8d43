"""Arguments of requests: {name: [texts]} of an address, or a JSON object; errors name the argument."""

MAX_RUNS, MAX_CHARACTERS = 12, 20_000


def texts(query, name):
  """Return the texts of a name, [] without any."""
  values = query.get(name, [])
  values = values if isinstance(values, list) else [values]
  if not all(isinstance(value, str) and len(value) <= MAX_CHARACTERS for value in values):
    raise ValueError(f'{name} is not a text of up to {MAX_CHARACTERS:,} characters\nfix: send a text')
  return values


def text(query, name, default=''):
  """Return the last text of a name."""
  return (texts(query, name) or [default])[-1]


def number(query, name, default, low, high):
  """Return a number of a name, of the type of the default; ValueError outside of low to high."""
  value = query.get(name, default)
  value = value[-1] if isinstance(value, list) and value else value
  try:
    value = type(default)(value)
  except (TypeError, ValueError):
    value = None
  if value is None or not low <= value <= high:
    raise ValueError(f'{name} is not a number from {low:g} to {high:g}\nfix: send one')
  return value


def choice(query, name, choices):
  """Return the text of a name, one of the choices; the first of them without one."""
  value = text(query, name, next(iter(choices)))
  if value not in choices:
    raise ValueError(f'{name}={value[:80]!r} is unknown\nfix: use one of {", ".join(choices)}')
  return value


def section(config, name):
  """Return a section of a config, {} where a file that anyone may have written holds something else."""
  value = config.get(name)
  return value if isinstance(value, dict) else {}


def runs(query):
  """Return the names of several runs, each once."""
  names = list(dict.fromkeys(texts(query, 'run')))
  if not 0 < len(names) <= MAX_RUNS:
    raise ValueError(f'{len(names)} runs are chosen\nfix: choose 1 to {MAX_RUNS}')
  return names
