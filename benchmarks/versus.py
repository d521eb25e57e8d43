"""Time things side by side: each in its own process, in turns, on the same cores.

  rows = versus.compare([versus.Side('ours', 'benchmarks.train_step:ours', {'size': 'small'}), ...])

A side is named by a maker, 'module:function', that is called in a new process with the side's
arguments and gives a function of no arguments: one unit of work, which returns when it is done. All
sides get the same cores (CORES), as many threads and the same allocator settings. Importing and
making, and the first unit, are reported apart; one of the two compiles. Then the sides take turns,
A B, B A, A B, ...: what disturbs the machine disturbs both. A ratio is of medians; beside it stand
the least and the largest of the turns' own ratios, each of what ran together.

A maker that cannot work here raises `Missing(reason)`: the side is skipped, and the result says
why. A maker may give a pair, (function, facts): facts go into the result as they are.
`python -m benchmarks.versus MAKER ARGUMENTS-AS-JSON` runs one side alone, with its traceback.
"""

import datetime
import importlib
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt_jax.cli.main import ALLOCATOR
from gpt_jax.runs import hardware, provenance, records

CORES = 2
SAMPLE_SECONDS = 0.7  # a sample is as many units as take about this long
PACKAGES = ('torch', 'transformers', 'ctranslate2')  # versions of peers, beside our own
ROOT = Path(__file__).parents[1]
ENVIRONMENT = (
  ALLOCATOR
  | {'JAX_PLATFORMS': 'cpu', 'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'}
  | {f'{library}_NUM_THREADS': str(CORES) for library in ('OMP', 'MKL', 'OPENBLAS')}
)


class Missing(Exception):
  """Why a side can't run on this machine."""


class Side(NamedTuple):
  """One of those that are compared."""

  name: str
  maker: str  # module:function
  arguments: dict = {}
  environment: dict = {}  # beside ENVIRONMENT


class Process:
  """A side in its own process, which times a sample whenever it is asked."""

  def __init__(self, side):
    self.popen = subprocess.Popen(
      [sys.executable, '-m', 'benchmarks.versus', side.maker, json.dumps(side.arguments)],
      cwd=ROOT,
      env=os.environ | ENVIRONMENT | side.environment,
      text=True,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
    )
    self.facts = self.hear()

  def hear(self):
    """The next message of the process -> dict; of one that died {'missing': why}."""
    line = self.popen.stdout.readline()
    if line:
      return json.loads(line)
    return {'missing': f'its process died with code {self.popen.wait()}'}

  def sample(self):
    """Time a sample -> dict of seconds (of a unit) and memory_gib (resident peak until now)."""
    self.popen.stdin.write('\n')
    self.popen.stdin.flush()
    said = self.hear()
    if 'missing' in said:
      raise RuntimeError(f'a side broke while it was timed\nfix: mend it: {said["missing"]}')
    return said

  def close(self):
    """End the process."""
    self.popen.stdin.close()
    self.popen.wait()
    self.popen.stdout.close()


def compare(sides, turns=7, keep=lambda rows: None):
  """Time sides against each other -> {name: row}, in the order of `sides`.

  A row holds `seconds` of a unit (one number a turn), their `median`, `start_seconds` (imports and
  making), `first_seconds` (the first unit, compilation included), `memory_gib` (resident peak) and
  the maker's facts; or only `missing`, a reason. keep(rows) is called after every turn.
  """
  rows, processes = {}, {}
  for side in sides:
    process = Process(side)
    rows[side.name] = process.facts
    if 'missing' in process.facts:
      print(f'  {side.name} is left out: {process.facts["missing"]}', flush=True)
      process.close()
    else:
      processes[side.name] = process
      rows[side.name]['seconds'] = []
  for turn in range(turns):
    for name in list(processes)[:: -1 if turn % 2 else 1]:
      row, sample = rows[name], processes[name].sample()
      row['seconds'].append(sample['seconds'])
      row |= {'median': float(np.median(row['seconds'])), 'memory_gib': sample['memory_gib']}
    keep(rows)
  for process in processes.values():
    process.close()
  return rows


def work(maker, arguments):
  """What a side's process does: make, run once, then time a sample for every line that it reads."""
  speak = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)  # what libraries print is no message
  tell = lambda message: print(json.dumps(records.to_json(message)), file=speak)
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
  module, _, function = maker.partition(':')
  start = time.perf_counter()
  try:
    made = getattr(importlib.import_module(module), function)(**arguments)
    run, facts = made if isinstance(made, tuple) else (made, {})
    start_seconds, first_seconds = time.perf_counter() - start, seconds_of(run)
  except Exception as reason:
    tell({'missing': str(reason) if isinstance(reason, Missing) else repr(reason)})
    raise
  units = max(1, round(SAMPLE_SECONDS / seconds_of(run)))
  tell({**facts, 'start_seconds': start_seconds, 'first_seconds': first_seconds, 'units': units})
  for _ in sys.stdin:
    run()  # memory and caches of a process that waited for its turn are cold
    seconds = sum(seconds_of(run) for _ in range(units)) / units
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux: KiB
    tell({'seconds': seconds, 'memory_gib': peak_gib})


def seconds_of(run):
  """How long a call takes."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def ratio(rows, ours, peer):
  """How many times as fast as `peer` we are -> (ratio of medians, [least, largest] of the turns).

  None where one of the two is missing.
  """
  if any('seconds' not in rows.get(name, {}) for name in (ours, peer)):
    return None
  a_N, b_N = (np.asarray(rows[name]['seconds']) for name in (ours, peer))
  turns_N = b_N / a_N
  return float(np.median(b_N) / np.median(a_N)), [float(turns_N.min()), float(turns_N.max())]


def known(path):
  """The rows of a result file, each with what it was `made` by; {} where there is none."""
  if not path.exists():
    return {}
  told = json.loads(path.read_text())
  return stamped(told['rows'], told['command'], told['versions'].get('git', ''), told['written'])


def stamped(rows, command, git, written):
  """The rows; one that does not say yet what it was made by, when, from which code, does now."""
  for row in rows.values() if isinstance(rows, dict) else rows:
    row.setdefault('made', {'command': command, 'git': git, 'written': written})
  return rows


def content(name, claim, rows, **more):
  """A result file's content: the rows, and what a reader needs to repeat them.

  Rows that an earlier run made keep what they say of it; all else is of this run.
  """
  device = hardware.name()
  versions = provenance.versions(device)
  versions |= {package: version_of(package) for package in PACKAGES}
  now = datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds')
  stamped(rows, versions['command'], versions.get('git', ''), now)
  about = {'name': name, 'claim': claim, 'command': versions.pop('command'), 'hardware': device}
  about |= {'threads': CORES, 'environment': ENVIRONMENT, 'versions': versions, 'written': now}
  return records.to_json(about | more | {'rows': rows})


def version_of(package):
  """The version of an installed package, found without importing it."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'not installed'


if __name__ == '__main__':
  # Makers import this file by its name: their Missing must be the one that is caught here.
  from benchmarks import versus

  versus.work(sys.argv[1], json.loads(sys.argv[2]))
