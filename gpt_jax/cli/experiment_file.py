"""Load experiment files: 'x.py:args' -> the ConfigDict that its get_config('args') returns."""

import dataclasses
import difflib
import re
import sys
import types

import ml_collections

from gpt_jax import config
from gpt_jax.data import Source
from gpt_jax.runs import reading
from gpt_jax.runs.loggers import say
from gpt_jax.runs.user_code import describe_error, find_experiment, load_module
from gpt_jax.tokenizers import AudioConfig, ImageConfig, TokenizerConfig

KINDS = {'tokenizer': TokenizerConfig, 'image': ImageConfig, 'audio': AudioConfig}
ESCAPES = {'n': '\n', 't': '\t', '\\': '\\'}


def load_config(spec):
  """Return the locked ConfigDict of an experiment: 'x.py:size=small' -> get_config('size=small').

  Every key can be overridden. Raises FileNotFoundError or ValueError for an unknown file or argument.
  """
  section = call_function(spec, 'get_config', 'experiments/demo.py')[1]
  if not isinstance(section, ml_collections.ConfigDict):
    raise ValueError(
      f'--config={spec}: get_config returns a {type(section).__name__}\n'
      'fix: return the ConfigDict of gpt_jax.config.default(), with changes'
    )
  return complete_sources(section)


def call_function(spec, function, example):
  """Call a function of a file: 'x.py:args' -> (file name without .py, result of function('args')).

  A name that is no file here is that of a shipped experiment: demo, experiments/demo.py.
  example: the file that an error points to. Raises FileNotFoundError or ValueError for an unknown file,
  function, argument or config key.
  """
  path, _, argument = spec.partition('.py:')
  path = find_experiment(path)
  if not path.is_file():
    near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob('*.py')], 1)
    hint = f'did you mean {path.parent / near[0]}.py?' if near else f'try {example}'
    raise FileNotFoundError(f'--config={spec}: no file {path}\nfix: {hint}')
  try:
    module = load_module(path)
  except Exception as e:
    raise ValueError(f'--config={spec}: {describe_error(e, path)}\nfix: correct {path}') from e
  if not hasattr(module, function):
    raise ValueError(
      f'--config={spec}: {path} has no {function}\nfix: define {function}(arg=""), as {example} does'
    )
  try:
    return path.stem, getattr(module, function)(argument)
  except Exception as e:
    if isinstance(e, ValueError | OSError) and '\nfix:' in str(e):
      raise
    raise ValueError(f'--config={spec}: {describe_error(e, path)}\nfix: correct {path}') from e


def complete_sources(section):
  """Fill in the defaults of every source of the mixture, so that any of their keys can be overridden."""
  sources = dict(section.data.mixture.items())
  with section.unlocked():
    section.data.mixture = ml_collections.ConfigDict(
      {name: dataclasses.asdict(Source()) | dict(fields) for name, fields in sources.items()}
    )
  return section.lock()


def add_sources(section, overrides):
  """Add a source of weight 0 for each override `data.mixture.NAME.kind=...` of a new NAME."""
  for key in overrides:
    match = re.fullmatch(r'data\.mixture\.([\w-]+)\.kind=.*', key)
    if match and match[1] not in section.data.mixture:
      with section.unlocked():
        fields = dataclasses.asdict(Source()) | {'weight': 0.0}
        section.data.mixture[match[1]] = ml_collections.ConfigDict(fields)


NAMES = re.compile(r'[A-Za-z_][\w./]*(,[A-Za-z_][\w./]*)+')  # a list, such as answer,cloze
TEXTS = ('train.sample_prompts',)  # keys of texts that have commas of their own


def normalize_override(section, arg):
  """Return --config.KEY=VALUE as absl reads it: 1000 for 1e3 of an integer, ('a', 'b') for a,b of a list.

  --config.KEY alone is true. Raises ValueError for an unknown key, a number that is not an integer, and a
  key without a value that is no switch.
  """
  key, has_value, text = arg.removeprefix('--config.').partition('=')
  value = value_of(section, key)
  if not has_value:
    if not isinstance(value, bool):
      raise no_value(arg)
    return f'--config.{key}=true'
  if key.endswith('.separator'):
    text = unescape(arg, text)
  elif isinstance(value, tuple) and NAMES.fullmatch(text) and key not in TEXTS:
    text = str(tuple(text.split(',')))
  elif type(value) is int and reading.EXPONENT.fullmatch(text):
    try:
      text = str(reading.parse_int(text))
    except ValueError as error:
      raise ValueError(f'config.{key}={text} is not an integer\nfix: write one, such as {value}') from error
  return f'--config.{key}={text}'


def reset_unread(section, overrides):
  """Set to their defaults, and say so, the fields that a kind which overrides choose does not read.

  The experiment chose them for another kind. Fields that overrides name stay: they are errors later.
  """
  texts = dict(arg.removeprefix('--config.').partition('=')[::2] for arg in overrides)
  for key, kind in texts.items():
    path, _, name = key.rpartition('.')
    cls = KINDS.get(path) or (Source if path.startswith('data.mixture.') else None)
    if name != 'kind' or cls is None:
      continue
    node = value_of(section, path)
    own = {field: texts[f'{path}.{field}'] for field in node if f'{path}.{field}' in texts}
    try:
      fields_read = cls.fields_read.fget(types.SimpleNamespace(**dict(node.items()) | own))
    except KeyError:  # not a kind, which is an error later
      continue
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    for field in sorted({*node} - fields_read - own.keys() - {'kind'}):
      if node[field] != defaults[field]:
        note = f'{path}.{field}={node[field]!r} of the experiment has no use for kind={kind}'
        say(f'note: {note}', file=sys.stderr)
        node[field] = defaults[field]


def no_value(arg):
  """Return the error for --config.KEY without a value, which only a switch may be."""
  return ValueError(f'{arg} has no value\nfix: write {arg}=VALUE')


def unescape(name, text):
  """Return a text with its escapes (line break, tab, backslash) resolved, and say so: shells do not."""
  resolved = re.sub(r'\\([nt\\])', lambda match: ESCAPES[match[1]], text)
  if resolved != text:
    say(f'{name}: escapes are resolved, to {resolved!r}; \\\\ is a backslash', file=sys.stderr)
  return resolved


def value_of(section, path):
  """Return the value at a dotted path such as 'optim.lr' in a ConfigDict; ValueError if it is not a key."""
  node = section
  for name in path.split('.'):
    if not isinstance(node, ml_collections.ConfigDict):
      raise ValueError(f'config.{path}: nothing is below a value\nfix: leave out .{name}')
    if name not in node:
      raise ValueError(f'config.{path}: {name} is not a config key\nfix: {config.suggestion(name, node)}')
    node = node[name]
  return node
