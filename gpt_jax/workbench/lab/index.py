"""The runs and studies below a folder, and their records, each file read once until it changes.

A run's name is its folder relative to the root. Only names that a walk of the root has found are served, so
that no request can name another file.
"""

import math
import os
import pathlib
import threading
import time

from gpt_jax.ablation import store
from gpt_jax.runs import ancestry, history, run_folder
from gpt_jax.workbench.lab import live
from gpt_jax.workbench.lab.tail import Tail

WALK_SECONDS = 3.0  # between two walks of the root
ROW_FILES = ('config.json', 'result.json', 'evaluations.jsonl', 'events.jsonl')  # on which a row depends


class Index:
  """All that the lab knows of a root folder; safe to use from several threads."""

  def __init__(self, root):
    self.root_text, self.root = str(root), pathlib.Path(root).expanduser().resolve()
    self._lock = threading.RLock()
    self._walked, self._runs, self._studies = -WALK_SECONDS, {}, {}
    self._rows, self._configs, self._tails = {}, {}, {}  # by folder: (signature, value); by path: Tail

  def runs(self):
    """Return {name: folder} of all runs, sorted by name."""
    self._walk()
    return self._runs

  def studies(self):
    """Return {name: folder} of all studies."""
    self._walk()
    return self._studies

  def run(self, name):
    """Return the folder of a run; FileNotFoundError for a name that no run has."""
    return _known(self.runs(), name, 'run')

  def study(self, name):
    """Return the folder of a study; FileNotFoundError for a name that no study has."""
    return _known(self.studies(), name, 'study')

  def name_of(self, path):
    """Return the name of the run with this folder, from parents.json; '' if none has it."""
    for base in (pathlib.Path(), self.root.parent, self.root):
      folder = (base / pathlib.Path(path).expanduser()).resolve()
      if folder.is_relative_to(self.root) and (name := _name(folder, self.root)) in self.runs():
        return name
    return ''

  def _walk(self):
    with self._lock:
      if time.monotonic() - self._walked < WALK_SECONDS:
        return
      runs, studies = {}, {}
      for path, files in store.walk(self.root):
        for names, file in ((runs, 'config.json'), (studies, 'study.json')):
          if file in files:
            names[_name(path, self.root)] = path
      self._runs, self._studies, self._walked = dict(sorted(runs.items())), studies, time.monotonic()

  # ---------------------------------------------------------------------------------- records

  def metrics(self, folder):
    """Return the records of metrics.jsonl that have a step."""
    has_step = lambda row: math.isfinite(history.number(row.get('step')))
    return [row for row in self._tail(folder / 'metrics.jsonl') if has_step(row)]

  def events(self, folder):
    """Return the records of events.jsonl."""
    return [row for row in self._tail(folder / 'events.jsonl') if isinstance(row.get('event'), str)]

  def _tail(self, path):
    with self._lock:
      return self._tails.setdefault(path, Tail(path)).read()

  def config(self, folder):
    """Return the config of a run, {} if it cannot be read."""
    return self._cached(self._configs, folder, ('config.json',), _read_config)

  def row(self, folder):
    """Return store.table_row of a run. Do not change it."""
    return self._cached(self._rows, folder, ROW_FILES, lambda folder: store.table_row(folder, self.root))

  def _cached(self, values, folder, files, read):
    signature = [_signature(folder / name) for name in files]
    with self._lock:
      known, value = values.get(folder, (None, None))
      if known != signature:
        value = read(folder)
        values[folder] = signature, value
      return value

  def states(self):
    """Return {name: live.describe} of all runs."""
    locks = live.locked_inodes()
    return {name: self.state(folder, locks) for name, folder in self.runs().items()}

  def state(self, folder, locks=None):
    """Return live.describe of one run; of a finished run without a look at its metrics."""
    row = self.row(folder)
    if row['status'] == 'done':
      facts = live.describe(folder, 'done', self.config(folder), [], [], set())
      return facts | {'step': row.get('steps', facts['steps'])}
    locks = live.locked_inodes() if locks is None else locks
    metrics, events = self.metrics(folder), self.events(folder)
    facts = live.describe(folder, row['status'], self.config(folder), metrics, events, locks)
    if not events and any(parent['how'] == 'import' for parent in self.parents(folder)):
      return facts | {'state': 'imported', 'note': 'a model from elsewhere', 'steps': None}
    return facts

  def parents(self, folder):
    """Return the PARENT entries of a run, [] if they cannot be read."""
    try:
      return ancestry.read_parents(folder)
    except (ValueError, OSError):
      return []


def _known(folders, name, what):
  if name not in folders:
    raise FileNotFoundError(f'there is no {what} {str(name)[:200]!r}\nfix: choose one of the list')
  return folders[name]


def _name(path, root):
  return os.path.relpath(path, root)


def _signature(path):
  try:
    status = path.stat()
  except OSError:
    return None
  return status.st_mtime_ns, status.st_size, status.st_ino


def _read_config(folder):
  try:
    return run_folder.read_config(folder)
  except (ValueError, OSError):
    return {}
