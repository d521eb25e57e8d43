"""Parse files that this process did not write: every failure becomes a cause and a fix.

`reading` is the one boundary around libraries that parse files; what they raise is not documented, and
damaged files find errors that are not caught elsewhere. `check_types` checks parsed JSON.
"""

import contextlib
import fractions
import re
import reprlib
import typing

EXPONENT = re.compile(r'[+-]?\d{1,18}(\.\d{0,18}|\.?\d{0,18}[eE][+-]?\d{1,2})')  # 1.5, 2.0, 1e3, 2.5e4


@contextlib.contextmanager
def reading(path, expected, fix):
  """Turn whatever the block raises into a ValueError: `{path} is not {expected}: cause`, `fix: {fix}`.

  Put only the parsing of one file inside: with reading(path, 'a picture', 'repair or drop it'): ...
  An error that states its own fix keeps its text, with the path in front unless it names it, and a
  FileNotFoundError its type. The cause is chained: --traceback shows it. A lack of memory is no fault of the
  file, and the error says so. Errors of missing packages and signals pass.

  path: what errors call the file, '' if the block's own errors do. expected: noun phrase, as in 'a whole
  zip archive'.
  """
  try:
    yield
  except ImportError:
    raise
  except MemoryError as error:
    raise ValueError(
      f'{path} needs more memory than there is: {describe_cause(error)}\n'
      f'fix: free memory; if the file should be small, {fix}'
    ) from error
  except BaseException as error:
    # Rust libraries (tokenizers, safetensors) panic with a BaseException of this name.
    if not isinstance(error, Exception) and type(error).__name__ != 'PanicException':
      raise
    if '\nfix: ' not in str(error):
      raise ValueError(f'{path} is not {expected}: {describe_cause(error)}\nfix: {fix}') from error
    if str(path) in str(error):
      raise
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    raise kind(f'{path}: {error}') from error


def describe_cause(error):
  """Return an exception as one line: its message, with its type where the message alone says little."""
  message = ' '.join(str(getattr(error, 'strerror', None) or error).split())
  message = re.sub(r' ?<_?io\.[^>]*>', '', message)  # Pillow prints the stream's address
  if message and isinstance(error, ValueError | OSError | RuntimeError):
    return message
  return f'{type(error).__name__} {message}'.strip()


def parse_int(text):
  """Return the integer of a text such as 1000, 1e3 or 2.0; ValueError for another text."""
  number = fractions.Fraction(text) if EXPONENT.fullmatch(text) else int(text)
  if number.denominator != 1:
    raise ValueError(f'{text} is not an integer')
  return int(number)


def check_types(value, expected, name='it'):
  """Return a parsed JSON value; ValueError, naming the entry, if it is not of the expected types.

  expected: a type, or a union of types, where bool is not an int; [expected] for a list; {str: expected}
  for an object of any keys; {'key': expected, 'key?': expected} for an object with these keys, those with
  ? optional, and any others.
  """
  if isinstance(expected, (dict, list)):
    _check_kind(value, type(expected), name)
  if isinstance(expected, list):
    for number, item in enumerate(value):
      check_types(item, expected[0], f'{name}[{number}]')
  elif not isinstance(expected, dict):
    _check_kind(value, expected, name)
  elif str in expected:
    for key, item in value.items():
      check_types(item, expected[str], f'{name}[{key!r}]')
  else:
    for key, item in expected.items():
      key, is_optional = key.rstrip('?'), key.endswith('?')
      if key in value:
        check_types(value[key], item, f'{name}[{key!r}]')
      elif not is_optional:
        raise ValueError(f'{name} has no {key!r}')
  return value


def _check_kind(value, kind, name):
  kinds = typing.get_args(kind) or (kind,)  # of a union
  is_stray_bool = isinstance(value, bool) and not {bool, object} & {*kinds}  # a bool is an int to Python
  if is_stray_bool or not isinstance(value, kind):
    names = ' or '.join(NAMES.get(k, k.__name__) for k in kinds)
    raise ValueError(f'{name} is {reprlib.repr(value)}, expected {names}')


NAMES = {dict: 'a JSON object', list: 'a list', str: 'text', type(None): 'null'}
