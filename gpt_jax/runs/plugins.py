"""Plugins: Python files from outside the package that add rows to its tables of functions.

A plugin ends as a file of the package does, with dicts of new rows under the names of TABLES:

  POSITIONS = {'mine': Position(bias=mine)}

`plugins` of a config names files. A built config names them by content, 'mine.py@DIGEST', and a run folder
keeps copies in plugins/. Code runs only from the store, a folder that only its owner can write
(~/.cache/gpt_jax/plugins, or GPT_JAX_PLUGINS). A file that a config names by path enters it. One of a run
folder enters it only after consent (--trust_plugins, or GPT_JAX_TRUST_PLUGINS=1), unless it is there already.
"""

import atexit
import difflib
import hashlib
import importlib
import os
import re
import shutil
import stat
import tempfile
import traceback
from pathlib import Path

from gpt_jax.runs import records, secrets
from gpt_jax.runs.plugin_checks import guard
from gpt_jax.runs.user_code import describe_error, load_module

MOST_BYTES = 1 << 20  # of a plugin
ENTRY = re.compile(r'(\w[\w.-]*)\.py@([0-9a-f]{24})')  # a plugin by content
STORE, CONSENT = 'GPT_JAX_PLUGINS', 'GPT_JAX_TRUST_PLUGINS'
HYPERPARAMETERS = (  # traced beside the weights of terms
  *('lr', 'weight_decay', 'dropout', 'spike_sigma', 'label_smoothing', 'moe_balance', 'moe_z'),
  *('text', 'image', 'audio'),
)
SHARED = stat.S_IWGRP | stat.S_IWOTH
_loaded = {}  # {entry: content} of the plugins whose rows are in the tables
_owners = {}  # {(table, row): entry}


def load(section, workdir=None):
  """Add the rows of a config's plugins to the tables; return its section with the plugins named by content.

  section: nested dict of a config.Config. workdir: run folder that holds it, whose copies need consent.
  Raises ValueError or FileNotFoundError for a plugin that is missing, broken, too large or not consented to,
  and for a setting that names a row of a plugin which the config does not have.
  """
  names = section.get('plugins', ())
  if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
    entries = tuple(
      _load_entry(name, workdir) if ENTRY.fullmatch(name) else _load_path(name) for name in names
    )
    section = {**section, 'plugins': entries} if entries else section
    for key, row, entry in used_rows(section):
      if entry not in entries:
        raise ValueError(
          f'{key}={row!r} is a row of the plugin {entry.partition("@")[0]}, which this config does not have\n'
          'fix: add the file to plugins'
        )
  return section


def used_rows(section):
  """Return [(config key, row, entry of its plugin)] of the rows of plugins that a config chooses."""
  if not _owners:
    return []
  chosen = [
    (key, table, name)
    for table, (_, keys) in TABLES.items()
    for pattern in keys
    for key, value in _values(section, pattern.split('.'))
    for name in _names(value)
  ]
  return [(key, name, _owners[table, name]) for key, table, name in chosen if (table, name) in _owners]


def owner(table, row):
  """Return the entry of the plugin that a row is of, '' for one of the package."""
  return _owners.get((table, row), '')


def used_digests(section):
  """Return {name of a plugin: digest} of those whose rows a config chooses."""
  return dict(entry.split('@') for _, _, entry in used_rows(section))


def write_copies(section, folder):
  """Write a config's plugins to plugins/ of its run folder, unless they are there."""
  for entry in section.get('plugins', ()):
    path = _copy_of(folder, entry)
    if not path.exists():
      path.parent.mkdir(exist_ok=True)
      records.write_atomically(path, _loaded[entry])


def check_exportable(section, workdir):
  """Raise ValueError for a model that is built of a plugin's rows, which other systems do not have."""
  for key, row, entry in used_rows(section):
    if key.startswith('model.'):
      raise ValueError(
        f'workdir={workdir} cannot be exported: {key}={row!r} is a row of the plugin '
        f'{entry.partition("@")[0]}, which other systems do not have\n'
        'fix: use it here (sample, evaluate, chat), or train with a row of the package'
      )


def parse_numbers(key, text, table):
  """Return {row of a table: number} of 'name=0.9,other=1'; ValueError, which names the key, for others."""
  numbers = {}
  for item in filter(None, text.split(',')):
    name, _, number = item.partition('=')
    if name not in table:
      raise ValueError(f'{key}={text!r}: {name!r} is not known\nfix: use one of {", ".join(table)}')
    try:
      numbers[name] = float(number)
    except ValueError:
      raise ValueError(f'{key}={text!r}: {item!r} has no number\nfix: write {name}=0.5') from None
  return numbers


def as_user_error(error):
  """Return the ValueError of two lines for an error that a plugin's code raised; any other error as it is."""
  if '\nfix:' in str(error) or isinstance(error, FloatingPointError):
    return error
  names = {str(_store() / _file_name(entry)): entry.partition('@')[0] for entry in _loaded}
  frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in names]
  if not frames:
    return error
  path, function = frames[-1].filename, frames[-1].name
  name = names[path]
  cause = describe_error(error, path).replace(path, name).removesuffix(')')
  return ValueError(f'plugins={name}: {cause}, in {function})\nfix: correct {function} in {name}')


# ------------------------------------------------------------------------------------ content


def _load_path(name):
  """Load the plugin at a path -> its entry. Relative paths: here, then below GPT_JAX_DATA."""
  places = [Path(name).expanduser(), Path(os.environ.get('GPT_JAX_DATA', '.')) / name]
  path = next((place for place in places if place.is_file()), None)
  if path is None:
    raise FileNotFoundError(f'plugins={name} is not a file\nfix: give the path of a Python file')
  content = _read(path)
  entry = f'{path.name}@{_digest(content)}'
  if not ENTRY.fullmatch(entry):
    raise ValueError(f'plugins={name} is not the name of a Python file\nfix: name it letters_and_digits.py')
  text = content.decode('utf-8', 'replace')
  if found := secrets.find_secrets(text, code=True):
    raise ValueError(
      f'plugins={name} holds a secret ({found[0][2]}), and the file is copied to the run folder\n'
      'fix: take it out; read tokens from the environment'
    )
  return _add(entry, content)


def _load_entry(entry, workdir):
  """Load a plugin by content, from the store or from a run folder -> its entry."""
  if entry in _loaded:
    return entry
  name, digest = entry.split('@')
  stored = _store() / _file_name(entry)
  if stored.is_file() and _digest(content := _read(stored)) == digest:
    return _add(entry, content)
  copy = None if workdir is None else _copy_of(workdir, entry)
  if copy is None or not copy.is_file():
    raise FileNotFoundError(
      f'plugins={entry}: this machine has no file of this content\n'
      f'fix: name the file by its path, or restore {copy or "it"}'
    )
  content = _read(copy)
  if _digest(content) != digest:
    raise ValueError(f'{copy} was altered after it was written\nfix: restore it')
  if os.environ.get(CONSENT, '') in ('', '0'):
    raise ValueError(
      f'workdir={workdir} holds code that this machine has not run: plugin {name}, sha256 {digest}...\n'
      f'fix: read {copy}; if you trust it, add --trust_plugins or set {CONSENT}=1'
    )
  return _add(entry, content)


def _read(path):
  with open(path, 'rb') as file:
    content = file.read(MOST_BYTES + 1)
  if len(content) > MOST_BYTES:
    raise ValueError(f'{path} has more than {MOST_BYTES} bytes\nfix: name the Python file of a plugin')
  return content


def _digest(content):
  return hashlib.sha256(content).hexdigest()[:24]


def _file_name(entry):
  """Return mine-DIGEST.py of mine.py@DIGEST."""
  return '{}-{}.py'.format(*ENTRY.fullmatch(entry).groups())


def _copy_of(workdir, entry):
  return Path(workdir).expanduser() / 'plugins' / _file_name(entry)


def _store():
  """Return the folder of code that may run; a temporary one where the chosen one is not private."""
  home = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
  folder = Path(os.environ.get(STORE) or home / 'gpt_jax' / 'plugins').expanduser().absolute()
  try:
    for place in reversed([folder, *folder.parents]):
      place.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid == os.getuid() and not status.st_mode & SHARED and os.access(folder, os.W_OK):
      return folder
  except OSError:
    pass
  folder = os.environ[STORE] = tempfile.mkdtemp(prefix='gpt_jax_plugins_')  # processes that we start find it
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return Path(folder)


# --------------------------------------------------------------------------------------- rows


def _add(entry, content):
  """Store and run a plugin, and add its rows, all or none -> its entry."""
  if entry in _loaded:
    return entry
  name, path = entry.split('@')[0], _store() / _file_name(entry)
  if not path.is_file() or path.read_bytes() != content:
    records.write_atomically(path, content)
  try:
    module = load_module(path, content)
  except Exception as error:
    cause = describe_error(error, path).replace(str(path), name)
    raise ValueError(f'plugins={name}: {cause}\nfix: correct {name}') from error
  rows = _rows_of(module, name)
  for table, row, value in rows:
    _owners[table, row] = entry
    value = _table(table)[row] = guard(table, row, value, f'plugins={name}')
    if table == 'GATED':  # rows of both
      _owners['ACTIVATIONS', row] = entry
      _table('ACTIVATIONS')[row] = value
  _loaded[entry] = content
  return entry


def _rows_of(module, name):
  """Return [(table, row, value)] of a plugin; ValueError for rows that its tables cannot have."""
  rows = []
  for table, values in vars(module).items():
    if not isinstance(values, dict) or not table.isupper():
      continue
    if table not in TABLES:
      if near := difflib.get_close_matches(table, TABLES, 1, 0.8):
        raise ValueError(f'plugins={name}: {table} is not a table\nfix: did you mean {near[0]}?')
    elif values is not _table(table):  # a plugin may import a table to use its rows
      rows += [(table, row, value) for row, value in values.items()]
  for table, row, value in rows:
    known = _table('ACTIVATIONS' if table == 'GATED' else table)  # which has the rows of both
    where = f'plugins={name}: {table}[{row!r}]'
    if row in known:
      owner = _owners.get((table, row), 'the package').partition('@')[0]
      raise ValueError(f'{where} exists already, in {owner}\nfix: give the row another name')
    if not isinstance(row, str) or not re.fullmatch(r'[A-Za-z]\w*', row):
      raise ValueError(f'{where} is not a name\nfix: use letters, digits and _')
    if table == 'TERMS' and row in HYPERPARAMETERS:
      raise ValueError(f'{where} is the name of a setting\nfix: give the row another name')
    example = next(iter(known.values()))
    if not (callable(value) if callable(example) else isinstance(value, type(example))):
      kind = 'a function' if callable(example) else f'a {type(example).__name__}'
      raise ValueError(
        f'{where} is a {type(value).__name__}, expected {kind}\n'
        f'fix: see the rows of {table} in {TABLES[table][0]}'
      )
  if not rows:
    raise ValueError(f'plugins={name} adds no row\nfix: end it with a dict of rows: {", ".join(TABLES)}')
  return rows


def _table(name):
  """Return the table of this name: the dict that the package reads."""
  return getattr(importlib.import_module(f'gpt_jax.{TABLES[name][0]}'), name)


def _values(section, parts):
  """Yield (dotted key, value) of the values at a path, where * is any key."""
  if not parts:
    yield '', section
    return
  first, *rest = parts
  keys = list(section.keys()) if hasattr(section, 'keys') else []
  for key in keys if first == '*' else [key for key in keys if key == first]:
    for below, value in _values(section[key], rest):
      yield f'{key}.{below}'.rstrip('.'), value


def _names(value):
  """Return the names in a value: 'mine', 'mine=0.9,other=1' or a tuple of such."""
  texts = value.split(',') if isinstance(value, str) else value if isinstance(value, list | tuple) else ()
  return [text.partition('=')[0] for text in texts if isinstance(text, str)]


_model = lambda module, key: (f'model.{module}', (f'model.{key}',))
TABLES = {  # name: (module, config keys that choose a row)
  'POSITIONS': _model('positions', 'positions'),
  'ROPE_SCALINGS': _model('position_schemes', 'rope_scaling'),
  'FUSED_KERNELS': _model('kernels.choice', 'kernel'),
  'NORMS': _model('layers', 'norm'),
  'ACTIVATIONS': _model('layers', 'mlp'),
  'GATED': _model('layers', 'mlp'),
  'INITS': _model('layers', 'init_projections'),
  'OPTIMIZERS': ('optim', ('optim.name',)),
  'SCHEDULES': ('optim', ('optim.schedule',)),
  'TERMS': ('losses', ('loss.terms',)),
  'BALANCES': ('losses', ('loss.balance',)),
  'PREFERENCE_LOSSES': ('jobs.preference_losses', ('preference.loss',)),
  'DISTIL_LOSSES': ('jobs.distillation_losses', ('distil.loss',)),
  'REWARDS': ('jobs.rewards', ('grpo.reward',)),
  'FILTERS': ('sampling.samplers', ('sample.filters',)),
  'SOURCES': ('data.sources', ('data.mixture.*.kind',)),
  'TASKS': ('evaluation.evaluate', ('train.tasks',)),
  'METRICS': ('runs.metric_names', ()),
}
