"""Pool: long-lived training processes, each with its part of the machine, that take one job after another.

worker.py has the protocol: jobs, answers and heartbeats are lines of JSON. A worker's other output goes to
its log file. One without a heartbeat for train.hang_seconds is killed.
"""

import contextlib
import itertools
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

STOPPED = 75  # exit code: stopped and saved
FULL_DISK_BYTES = 1 << 20  # free bytes below which a disk counts as full
ABORT_SECONDS = 5.0  # for a hung process to write its stacks
COMMAND = (sys.executable, '-m', 'gpt_jax.ablation.execute.worker')


def cores():
  """The cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def split_machine(count, devices=0):
  """(cores, environment) for each of `count` workers: equal numbers of cores, and one of the devices each.

  devices: accelerators of this machine; 0 = none, training is on the cores.
  """
  all_cores = cores()
  each = max(len(all_cores) // count, 1)
  names = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(devices)))
  names = itertools.cycle(names.split(','))
  parts = []
  for k in range(count):
    first = k * each % len(all_cores)
    environment = {'CUDA_VISIBLE_DEVICES': next(names)} if devices and count > 1 else {}
    parts.append((all_cores[first : first + each], environment))
  return parts


@contextlib.contextmanager
def pinned(to):
  """Context in which child processes start on these cores only, from their first thread on."""
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
  """One training process. Answers are put into `answers` as (worker, dict), or None when it has ended."""

  def __init__(self, name, part, folder, answers):
    """part: (cores, environment). folder: for its log."""
    self.tasks, self.started, self.ended = None, 0.0, False
    self.heard, self.patience, self.hung = None, 0.0, False  # time of the last heartbeat; hang_seconds
    self.log = Path(folder) / 'logs' / f'{name}.log'
    self.log.parent.mkdir(parents=True, exist_ok=True)
    self.log_start = self.log.stat().st_size if self.log.exists() else 0
    worker_cores, visible_devices = part
    environment, threads = dict(os.environ), str(len(worker_cores))
    compilation_cache.enable_compilation_cache(environment, [folder])
    root = str(Path(__file__).resolve().parents[3])
    environment |= visible_devices | {
      'PYTHONPATH': os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')])),
      'PYTHONUNBUFFERED': '1',
      'OMP_NUM_THREADS': threads,
      'OPENBLAS_NUM_THREADS': threads,
      'GPT_JAX_PARENT': str(os.getpid()),  # this process may end before the worker can ask for its parent
    }
    # stderr is a file and not a pipe: if this process is killed, the worker can still log and save.
    with pinned(worker_cores), open(self.log, 'ab') as log:
      self.process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches this process alone, which stops the worker
      )
    threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

  def _listen(self, answers):
    with self.process.stdout as lines:
      for line in lines:
        message = None
        with contextlib.suppress(ValueError):
          message = json.loads(line)
        if not isinstance(message, dict):  # other output
          continue
        if 'outcomes' in message:
          self.heard = None
          answers.put((self, message))
        elif 'heartbeat' in message:
          self.heard = time.monotonic()
    self.process.wait()
    answers.put((self, None))

  def send(self, configs, folders, tasks):
    """Send a job; `tasks` marks the worker as busy until its answer."""
    self.tasks, self.started, self.heard = tasks, time.monotonic(), None
    limits = [config.get('train', {}).get('hang_seconds', 0.0) for config in configs]
    self.patience = max(limits) if all(limits) else 0.0
    job = {'configs': records.to_json(list(configs)), 'folders': [str(folder) for folder in folders]}
    with contextlib.suppress(BrokenPipeError):  # it died: `answers` will say so
      self.process.stdin.write(json.dumps(job).encode() + b'\n')
      self.process.stdin.flush()

  def kill_if_hung(self):
    """Kill the process if its last heartbeat is older than train.hang_seconds, like a plain run's watchdog.

    SIGABRT makes the worker write what each thread was doing to its log.
    """
    heard = self.heard
    if self.hung or not self.patience or heard is None or time.monotonic() - heard < self.patience:
      return
    self.hung = True
    self.process.send_signal(signal.SIGABRT)
    threading.Timer(ABORT_SECONDS, self.process.kill).start()

  def stop(self):
    """Ask it to save and leave."""
    with contextlib.suppress(ProcessLookupError):
      self.process.send_signal(signal.SIGTERM)

  def release(self):
    """Send no more jobs: it leaves when it is idle."""
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()

  def kill(self):
    """Kill it and wait until it has ended."""
    self.process.kill()
    self.process.wait()
    self.release()

  def exit_outcome(self, stopping):
    """The outcome of every run of a process that ended without an answer, with the cause in one line."""
    code = self.process.returncode
    if self.hung:
      message = (
        f'nothing was done for {self.patience:g} seconds (train.hang_seconds), so the training process was '
        f'killed; its log has the stack of each thread: {self.log}'
      )
      return {'outcome': 'hung', 'message': message, 'code': code}
    reason, outcome = f'exit code {code}', 'killed' if code < 0 else 'failed'
    if code < 0:
      names = {number.value: f' ({number.name})' for number in signal.Signals}
      reason = f'signal {-code}{names.get(-code, "")}'
    elif line := self._last_line():
      reason += f': {line[:200]}'
    if shutil.disk_usage(self.log.parent).free < FULL_DISK_BYTES:
      reason += '; no space left on the disk'
    memory = ', as when memory runs out' if code == -signal.SIGKILL else ''
    message = f'the training process ended by {reason}{memory}; its log: {self.log}'
    outcome = 'stopped' if stopping or code == STOPPED else outcome
    return {'outcome': outcome, 'message': message, 'code': code}

  def _last_line(self):
    with open(self.log, 'rb') as file:
      file.seek(max(self.log_start, self.log.stat().st_size - 4096))
      lines = file.read().decode('utf-8', 'replace').split('\n')
    return next((line.strip() for line in reversed(lines) if line.strip()), '')


class Pool:
  """Several workers and the queue of their answers."""

  def __init__(self, folder, parts):
    """parts: (cores, environment) for each worker, see `split_machine`. They start when needed."""
    self.folder, self.parts = folder, parts
    self.answers, self.stopping = queue.Queue(), False
    self.workers = [None] * len(parts)

  def idle(self, count):
    """At most `count` idle workers; starts a process where there is none, or it has ended."""
    idle = []
    for k, worker in enumerate(self.workers):
      if len(idle) == count:
        break
      if worker is None or worker.ended:
        if worker:
          worker.release()
        worker = self.workers[k] = Worker(f'worker{k}', self.parts[k], self.folder, self.answers)
      if worker.tasks is None:
        idle.append(worker)
    return idle

  def busy(self):
    """Workers with a job."""
    return [worker for worker in self.alive() if worker.tasks is not None]

  def alive(self):
    """Workers whose process has not ended, as far as `next_event` has returned it."""
    return [worker for worker in self.workers if worker is not None and not worker.ended]

  def next_event(self, seconds=0.5):
    """Wait for the next (worker, answer; None if it ended); None after `seconds`. Kills hung workers."""
    for worker in self.busy():
      worker.kill_if_hung()
    with contextlib.suppress(queue.Empty):
      worker, answer = self.answers.get(timeout=seconds)
      worker.ended = worker.ended or answer is None
      return worker, answer
    return None

  def stop(self):
    """Ask all to save and leave."""
    if not self.stopping:
      self.stopping = True
      for worker in self.alive():
        worker.stop()

  def kill(self):
    """Kill all."""
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
