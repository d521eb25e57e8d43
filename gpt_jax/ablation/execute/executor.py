"""Executor: hand runs to training processes, record their attempts, and retry what was killed.

A run that raises or diverges is not retried in this call. A run whose process is killed or hangs is retried
from its last checkpoint; a group of runs in one step is retried in halves, to isolate the run that kills it.
"""

import contextlib
import dataclasses
import time
from pathlib import Path

from gpt_jax.ablation import store
from gpt_jax.ablation.execute import scheduler
from gpt_jax.ablation.execute.pool import Pool
from gpt_jax.ablation.stats import scores
from gpt_jax.runs import loggers, records, secrets
from gpt_jax.runs.startup_timer import utc_time

MAX_TRIES = 3  # of a run whose process is killed or hangs
RETRIED = ('killed', 'hung')


@dataclasses.dataclass(frozen=True)
class Task:
  """One run of the study."""

  arm: str
  seed: int
  folder: Path
  config: dict
  program: str  # tasks with equal programs can train together
  about: dict = dataclasses.field(default_factory=dict)  # content of arm.json beside arm and seed

  @property
  def name(self):
    """Name in log lines."""
    return f'{self.arm} seed {self.seed}'

  def write_description(self):
    """Write arm.json into the run folder, so that a run copied elsewhere says what it is."""
    with contextlib.suppress(OSError):  # a full disk: the run itself reports it
      self.folder.mkdir(parents=True, exist_ok=True)
      about = {**self.about, 'arm': self.arm, 'seed': self.seed}
      records.write_json(self.folder / 'arm.json', about)

  def attempt(self, outcome, how='', code=0, message='', seconds=0.0):
    """A record of attempts.jsonl."""
    about = {'time': utc_time(), 'arm': self.arm, 'seed': self.seed, 'how': how, 'outcome': outcome}
    return about | {'code': code, 'message': secrets.redact(message), 'seconds': round(seconds, 3)}


class Executor:
  """Trains a queue of tasks with a pool of training processes."""

  def __init__(self, workdir, tasks, schedule, say, check=lambda: None, metric='valid_loss', refill=list):
    """schedule: see scheduler.choose_schedule. check: called after the first finished run, may raise.

    metric: of the progress lines. refill: more tasks, asked for when all are done.
    """
    self.metric, self.refill = metric, refill
    self.workdir, self.schedule, self.say, self.check = workdir, schedule, say, check
    self.queue, self.tries, self.total = [], {}, 0
    self.add_tasks(tasks)
    self.ended, self.start = 0, time.monotonic()
    self.unwritten, self.disk_full = [], False  # attempts that a full disk refused
    self.stopped, self.error = [], None

  def run(self, should_stop):
    """Train all tasks -> whether all ended; raises the error of `check`. First all workers save and leave."""
    with Pool(self.workdir, scheduler.split_for(self.schedule, len(self.queue))) as pool:
      while self.queue or pool.busy() or not (pool.stopping or self.error) and self.add_tasks(self.refill()):
        if self.error or should_stop():
          pool.stop()
          if not pool.busy():
            break
        elif not pool.stopping:
          self.start_tasks(pool)
        if event := pool.next_event():
          self.handle(pool, *event)
      now = utc_time()  # one time for all runs of one stop, later than their own records
      self.unwritten += [attempt | {'time': now} for attempt in self.stopped]
      self.write_attempts()
      if self.error:
        raise self.error
      return not self.queue and not pool.stopping

  def add_tasks(self, tasks):
    """Queue more tasks -> whether there were any."""
    self.queue += group_by_program(tasks, self.schedule['replicas'])
    self.tries |= dict.fromkeys((task.name for task in tasks), 0)
    self.total += len(tasks)
    return bool(tasks)

  def start_tasks(self, pool):
    """Send a group of tasks to each idle worker."""
    for worker in pool.idle(len(self.queue)):
      group = self.queue.pop(0)
      for task in group:
        task.write_description()
      worker.send([task.config for task in group], [task.folder for task in group], group)

  def handle(self, pool, worker, answer):
    """Record the outcomes of a worker's group and queue what is to be retried."""
    group, seconds = worker.tasks, time.monotonic() - worker.started
    worker.tasks = None
    if group is None:  # an idle worker has ended
      return
    outcomes = answer['outcomes'] if answer else [worker.exit_outcome(pool.stopping)] * len(group)
    retry = [
      task
      for task, outcome in zip(group, outcomes, strict=True)
      if self.record_outcome(task, outcome, seconds, len(group), pool.stopping)
    ]
    if not pool.stopping:
      # In halves if the process was killed, perhaps for want of memory.
      size = max(len(group) // 2, 1) if outcomes[0]['outcome'] in RETRIED else 1
      self.queue += [retry[k : k + size] for k in range(0, len(retry), size)]

  def record_outcome(self, task, outcome, seconds, group_size, stopping):
    """Record one outcome -> whether to retry the task in this call."""
    kind, message = outcome['outcome'], outcome.get('message', '')
    text = f'{kind}: {message}'
    if kind == 'done':
      result = store.run_status(task.folder)[2]
      group_size = result.get('replicas', 1)  # for want of memory it may have trained alone
      text = 'is done'
      with contextlib.suppress(ValueError, KeyError):  # without the metric: `check` says so
        text += f', {self.metric} {scores.numeric_results(result, self.metric)[self.metric]:.4f}'
    how = 'replicas' if group_size > 1 else self.schedule['how'].replace('replicas', 'alone')
    attempt = task.attempt(kind, how, outcome.get('code', 0), message, seconds)
    if kind == 'stopped' and stopping:
      self.stopped.append(attempt)
      return True
    self.unwritten.append(attempt)
    self.write_attempts()
    if kind == 'stopped':  # that process alone was stopped from outside
      return True
    self.tries[task.name] += group_size == 1
    if kind in RETRIED and self.tries[task.name] < MAX_TRIES:
      self.say(f'{task.name}: {message}; it is retried')
      return True
    if kind == 'failed' and group_size > 1:
      self.say(f'{task.name} failed together with others ({message}); it is retried alone')
      return True
    self.ended += 1
    left = self.total - self.ended
    seconds = (time.monotonic() - self.start) / self.ended * left
    eta = f'; {loggers.duration(seconds)} to go' if left else ''
    self.say(f'{self.ended} of {self.total}: {task.name} {text}{eta}')
    if kind == 'done':
      check, self.check = self.check, lambda: None
      try:
        check()
      except ValueError as error:  # ends the work when all is saved
        self.error = error
    return False

  def write_attempts(self):
    """Append the unwritten attempts to attempts.jsonl, as far as the disk takes them."""
    try:
      while self.unwritten:
        records.append_line(self.workdir / 'attempts.jsonl', self.unwritten[0])
        self.unwritten.pop(0)
      self.disk_full = False
    except OSError as error:
      if not self.disk_full:
        self.say(f'{self.workdir}/attempts.jsonl: {error.strerror}; continuing without it')
      self.disk_full = True


def group_by_program(tasks, max_size):
  """Lists of at most `max_size` tasks that share a program; single tasks with max_size=1."""
  by_program = {}
  for number, task in enumerate(tasks):
    by_program.setdefault(number if max_size == 1 else task.program, []).append(task)
  return [same[k : k + max_size] for same in by_program.values() for k in range(0, len(same), max_size)]
