"""Time things side by side: each in its own process, in turns, on the same cores.

  rows = versus.compare([versus.Side('ours', 'benchmarks.train_step:ours', {'size': 'small'}), ...])

A side names a maker, 'module:function'. A new process calls it with the side's arguments; it returns
a function of no arguments that does one unit of work and blocks until it is done. All sides get the
same cores (CORES), the same number of threads and the same allocator settings. Setup (imports and the
maker) and the first unit are reported separately; compilation is in one of them. Then the sides
alternate: A B, B A, A B, ..., so that a disturbance of the machine affects all. The ratio is of
medians, with the least and largest ratio of a turn.

A maker that cannot run here raises `Missing(reason)`: the side is skipped and the result has the
reason. A maker may return (function, facts): the facts are copied into the result.
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

from gpt_jax.cli.entry import ALLOCATOR
from gpt_jax.runs import hardware, provenance, records

CORES = 2
SAMPLE_SECONDS = 0.7  # target duration of a sample, in whole units of work
PACKAGES = ('torch', 'transformers', 'ctranslate2')  # versions of peers, beside our own
ROOT = Path(__file__).parents[1]
ENVIRONMENT = (
  ALLOCATOR
  | {'JAX_PLATFORMS': 'cpu', 'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'}
  | {f'{library}_NUM_THREADS': str(CORES) for library in ('OMP', 'MKL', 'OPENBLAS')}
)


class Missing(Exception):
  """The reason why a side cannot run on this machine."""


class Side(NamedTuple):
  """One competitor of a comparison."""

  name: str
  maker: str  # module:function
  arguments: dict = {}
  environment: dict = {}  # beside ENVIRONMENT


class Process:
  """A side in its own process; times a sample on request."""

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
    self.facts = self.read_message()

  def read_message(self):
    """Read the next message of the process -> dict; {'missing': reason} if the process died."""
    line = self.popen.stdout.readline()
    if line:
      return json.loads(line)
    return {'missing': f'its process died with code {self.popen.wait()}'}

  def sample(self):
    """Time one sample -> {seconds: of a unit, memory_gib: peak resident memory}."""
    self.popen.stdin.write('\n')
    self.popen.stdin.flush()
    message = self.read_message()
    if 'missing' in message:
      raise RuntimeError(f'a side failed during timing: {message["missing"]}\nfix: run the side alone')
    return message

  def close(self):
    """End the process."""
    self.popen.stdin.close()
    self.popen.wait()
    self.popen.stdout.close()


def compare(sides, turns=7, save=lambda rows: None):
  """Time sides against each other -> {name: row}, in the order of `sides`.

  A row holds `seconds` of a unit (one number per turn), their `median`, `start_seconds` (imports and
  maker), `first_seconds` (first unit, with compilation), `memory_gib` (peak resident memory) and the
  maker's facts; or only `missing`, the reason. `save(rows)` is called after every turn.
  """
  rows, processes = {}, {}
  for side in sides:
    process = Process(side)
    rows[side.name] = process.facts
    if 'missing' in process.facts:
      print(f'  {side.name} is skipped: {process.facts["missing"]}', flush=True)
      process.close()
    else:
      processes[side.name] = process
      rows[side.name]['seconds'] = []
  for turn in range(turns):
    for name in list(processes)[:: -1 if turn % 2 else 1]:
      row, sample = rows[name], processes[name].sample()
      row['seconds'].append(sample['seconds'])
      row |= {'median': float(np.median(row['seconds'])), 'memory_gib': sample['memory_gib']}
    save(rows)
  for process in processes.values():
    process.close()
  return rows


def serve(maker, arguments):
  """Main loop of a side's process: set up, run once, then time a sample for each line of stdin."""
  pipe = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)  # libraries print to stderr instead
  send = lambda message: print(json.dumps(records.to_json(message)), file=pipe)
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
  module, _, function = maker.partition(':')
  start = time.perf_counter()
  try:
    product = getattr(importlib.import_module(module), function)(**arguments)
    run, facts = product if isinstance(product, tuple) else (product, {})
    start_seconds, first_seconds = time.perf_counter() - start, time_call(run)
  except Exception as reason:
    send({'missing': str(reason) if isinstance(reason, Missing) else repr(reason)})
    raise
  units = max(1, round(SAMPLE_SECONDS / time_call(run)))
  send({**facts, 'start_seconds': start_seconds, 'first_seconds': first_seconds, 'units': units})
  for _ in sys.stdin:
    run()  # warm up: memory and caches of a process that waited are cold
    seconds = sum(time_call(run) for _ in range(units)) / units
    send({'seconds': seconds, 'memory_gib': peak_gib()})


def peak_gib():
  """Return the peak resident memory of this process in GiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux: KiB


def time_call(run):
  """Time one call."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def ratio(rows, ours, peer):
  """Speed of `ours` over `peer` -> (ratio of medians, [least, largest] ratio of a turn).

  None if one of the two is missing.
  """
  if any('seconds' not in rows.get(name, {}) for name in (ours, peer)):
    return None
  a_N, b_N = (np.asarray(rows[name]['seconds']) for name in (ours, peer))
  turns_N = b_N / a_N
  return float(np.median(b_N) / np.median(a_N)), [float(turns_N.min()), float(turns_N.max())]


def read_rows(path):
  """Read the rows of a result file, each with its origin under `made`; {} without the file."""
  if not path.exists():
    return {}
  result = json.loads(path.read_text())
  git = result['versions'].get('git', '')
  return add_origin(result['rows'], result['command'], git, result['written'])


def add_origin(rows, command, git, written):
  """Add command, commit and date to every row that has none -> the rows."""
  for row in rows.values() if isinstance(rows, dict) else rows:
    row.setdefault('made', {'command': command, 'git': git, 'written': written})
  return rows


def result_content(name, claim, rows, **more):
  """Content of a result file: the rows, with command, hardware and versions of this run.

  Rows of an earlier run keep their own origin.
  """
  device = hardware.name()
  versions = provenance.versions(device)
  versions |= {package: version_of(package) for package in PACKAGES}
  now = datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds')
  add_origin(rows, versions['command'], versions.get('git', ''), now)
  about = {'name': name, 'claim': claim, 'command': versions.pop('command'), 'hardware': device}
  about |= {'threads': CORES, 'environment': ENVIRONMENT, 'versions': versions, 'written': now}
  return records.to_json(about | more | {'rows': rows})


def version_of(package):
  """Version of an installed package, without importing it."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'not installed'


if __name__ == '__main__':
  # Makers raise benchmarks.versus.Missing, which is not __main__.Missing.
  from benchmarks import versus

  versus.serve(sys.argv[1], json.loads(sys.argv[2]))
