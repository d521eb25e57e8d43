"""A user's Python files, such as experiments: loaded from content, with errors that name their line."""

import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sysconfig
import traceback

# Beside the package in a checkout; else where pip puts data, for all users or for one.
SHIPPED = [
  pathlib.Path(__file__).parents[2],
  pathlib.Path(sysconfig.get_path('data')) / 'share' / 'gpt_jax',
  pathlib.Path(sysconfig.get_path('data', sysconfig.get_preferred_scheme('user'))) / 'share' / 'gpt_jax',
]


def find_experiment(path):
  """Return the path of a file, or that of a shipped experiment of this name: experiments/demo.py, demo.

  A path that is neither is returned with the suffix .py.
  """
  path = pathlib.Path(path if str(path).endswith('.py') else f'{path}.py')
  if path.is_file() or path.is_absolute():
    return path
  name = path.relative_to('experiments') if path.parts[0] == 'experiments' else path
  shipped = (root / 'experiments' / folder / name for root in SHIPPED for folder in ('', 'ablations'))
  return next((file for file in shipped if '..' not in path.parts and file.is_file()), path)


class ContentLoader(importlib.abc.InspectLoader):
  """Load a module from bytes; unlike a path, they are what was hashed, and no bytecode is written."""

  def __init__(self, content, path):
    self.content, self.path = content, str(path)

  def get_source(self, fullname):
    """Return the text of the module."""
    return importlib.util.decode_source(self.content)

  def get_code(self, fullname):
    """Return the compiled module, whose tracebacks name the path."""
    return self.source_to_code(self.content, self.path)


def load_module(path, content=None):
  """Return the module of a file, or of its `content` where that was read before; raises what it raises."""
  path = pathlib.Path(path)
  loader = ContentLoader(path.read_bytes() if content is None else content, path)
  module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(path.stem, loader))
  module.__file__ = str(path)
  loader.exec_module(module)
  return module


def describe_error(error, path):
  """Return 'TypeError: cause (x.py:12)': an error of a user's code, and its last line there, if any."""
  cause = ' '.join(str(error.args[0] if error.args else error).split()).strip(
    '"'
  )  # ConfigDict names the nearest key
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename) == pathlib.Path(path)]
  line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
  return f'{type(error).__name__}: {cause} ({path}{f":{line}" if line else ""})'
