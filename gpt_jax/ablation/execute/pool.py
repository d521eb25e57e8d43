"""Training processes that stay: each has its share of the machine and takes one job after another.

A job is {configs, folders}: one run, or several that train together. A worker (worker.py) reads
jobs as lines of JSON and answers each with one. What else it prints goes to its log file.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from gpt_jax.runs import compilation_cache, records

STOPPED = 75
FULL_DISK_BYTES = 1 << 20  # bytes that are left of a disk that is as good as full
COMMAND = (sys.executable, '-m', 'gpt_jax.ablation.execute.worker')


def cores():
  """The cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def split_machine(count, devices=0):
  """(cores, environment) for each of `count` workers: equal shares, and one of the devices each.

  devices: accelerators of this machine; 0 = none, training is on the cores.
  """
  mine = cores()
  each = max(len(mine) // count, 1)
  visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
  names = visible.split(',') if visible else [str(n) for n in range(devices)]
  parts = []
  for k in range(count):
    first = k * each % len(mine)
    environment = {'CUDA_VISIBLE_DEVICES': names[k % len(names)]} if devices and count > 1 else {}
    parts.append((mine[first : first + each], environment))
  return parts


@contextlib.contextmanager
def pinned(to):
  """Children that start in this context may use only these cores, from their first thread on."""
  if not hasattr(os, 'sched_setaffinity'):
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, to)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


class Worker:
  """One training process. Answers appear in `answers` as (worker, dict), or None when it ended."""

  def __init__(self, name, share, folder, answers):
    """share: (cores, environment). folder: of the study; its log lies there."""
    self.name, self.job, self.began, self.gone = name, None, 0.0, False
    self.log = Path(folder) / 'logs' / f'{name}.log'
    self.log.parent.mkdir(parents=True, exist_ok=True)
    self.start = self.log.stat().st_size if self.log.exists() else 0
    to, environment = share
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, *filter(None, [os.environ.get('PYTHONPATH')])]
    cache = dict(os.environ)
    compilation_cache.enable_compilation_cache(cache, [folder])
    environment = {
      **cache,
      'PYTHONPATH': os.pathsep.join(paths),
      'PYTHONUNBUFFERED': '1',
      **environment,
      'OMP_NUM_THREADS': str(len(to)),
      'OPENBLAS_NUM_THREADS': str(len(to)),
      'GPT_JAX_PARENT': str(os.getpid()),  # we may be gone before it can ask who we are
    }
    # To a file, not to us: if we are killed, it can still say that it saves, and save.
    with pinned(to), open(self.log, 'ab') as log:
      self.process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches us, and we tell it
      )
    threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

  def _listen(self, answers):
    with self.process.stdout as lines:
      for line in lines:
        if answer := _answer(line):
          answers.put((self, answer))
    self.process.wait()
    answers.put((self, None))

  def give(self, job):
    """Hand it a job: {configs, folders, ...}; more keys are ours."""
    self.job, self.began = job, time.monotonic()
    asked = {key: [*map(_plain, job[key])] for key in ('configs', 'folders')}
    with contextlib.suppress(BrokenPipeError):  # it died: `answers` will say so
      self.process.stdin.write(json.dumps(asked).encode() + b'\n')
      self.process.stdin.flush()

  def stop(self):
    """Ask it to save and leave."""
    with contextlib.suppress(ProcessLookupError):
      self.process.send_signal(signal.SIGTERM)

  def release(self):
    """No more jobs: it leaves when it is idle."""
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()

  def kill(self):
    """End it at once and wait until it has."""
    self.process.kill()
    self.process.wait()
    self.release()

  def cause(self):
    """Why it ended, in a line: the signal or exit code, and the last line that it printed."""
    code = self.process.returncode
    what = f'exit code {code}'
    if code < 0:
      with contextlib.suppress(ValueError):
        what = f'signal {-code} ({signal.Signals(-code).name})'
    elif line := self._last_line():
      what += f': {line[:200]}'
    if shutil.disk_usage(self.log.parent).free < FULL_DISK_BYTES:
      what += '; no space left on the disk'
    memory = ', as when memory runs out' if code == -signal.SIGKILL else ''
    return f'the training process ended by {what}{memory}; its log: {self.log}'

  def _last_line(self):
    with open(self.log, 'rb') as file:
      file.seek(max(self.start, self.log.stat().st_size - 4096))
      lines = file.read().decode('utf-8', 'replace').split('\n')
    return next((line.strip() for line in reversed(lines) if line.strip()), '')


def _plain(value):
  return records.to_json(value) if isinstance(value, dict) else str(value)


def _answer(line):
  """The answer that a line holds, or None if it is something else."""
  try:
    answer = json.loads(line)
  except ValueError:
    return None
  return answer if isinstance(answer, dict) and 'outcomes' in answer else None


class Pool:
  """Several workers and the queue of their answers."""

  def __init__(self, folder, parts):
    """parts: (cores, environment) for each worker, see `shares`. They start when needed."""
    self.folder, self.parts = folder, parts
    self.answers, self.stopping = queue.Queue(), False
    self.workers = [None] * len(parts)

  def idle(self, wanted):
    """At most so many workers without a job; a new process where there is none, or it has ended."""
    found = []
    for k, worker in enumerate(self.workers):
      if len(found) == wanted:
        break
      if worker is not None and worker.gone:
        worker.release()
      if worker is None or worker.gone:
        worker = self.workers[k] = Worker(f'worker{k}', self.parts[k], self.folder, self.answers)
      if worker.job is None:
        found.append(worker)
    return found

  def busy(self):
    """Workers with a job."""
    return [worker for worker in self.alive() if worker.job is not None]

  def alive(self):
    """Workers whose process has not ended, as far as `next` has told."""
    return [worker for worker in self.workers if worker is not None and not worker.gone]

  def next(self, seconds=0.5):
    """The next (worker, answer or None), or None if there was none for so long."""
    try:
      worker, answer = self.answers.get(timeout=seconds)
    except queue.Empty:
      return None
    worker.gone = worker.gone or answer is None
    return worker, answer

  def stop(self):
    """Ask all to save and leave."""
    if not self.stopping:
      self.stopping = True
      for worker in self.alive():
        worker.stop()

  def kill(self):
    """End all at once."""
    for worker in self.alive():
      worker.kill()

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    for worker in self.alive():
      worker.release()
      if error is not None:
        worker.stop()
    for worker in filter(None, self.workers):
      with contextlib.suppress(subprocess.TimeoutExpired):
        worker.process.wait(timeout=60)
      worker.kill()
