"""The training processes of a study at work: who trains what next, and what became of it.

A run that raises or diverges is noted and not tried again in this call. One whose process is killed
tried again, from its last checkpoint; runs that were in one step are tried in halves, so that what
killed them hits only the one that it belongs to.
"""

import contextlib
import dataclasses
import datetime
import time
from pathlib import Path

from gpt_jax.ablation import store
from gpt_jax.ablation.execute import scheduler
from gpt_jax.ablation.execute.pool import STOPPED, Pool
from gpt_jax.runs import loggers, records, secrets

TRIES = 3  # of a run whose process is killed


@dataclasses.dataclass(frozen=True)
class Task:
  """One run of the study."""

  arm: str
  seed: int
  folder: Path
  config: dict
  program: str  # tasks with equal ones can train together
  about: dict = dataclasses.field(default_factory=dict)  # content of arm.json beside arm and seed

  @property
  def name(self):
    """How lines for the reader call it."""
    return f'{self.arm} seed {self.seed}'

  def describe(self):
    """Write arm.json into the run folder: what the run is, should it ever lie alone."""
    with contextlib.suppress(OSError):  # a full disk: the run itself will say so
      self.folder.mkdir(parents=True, exist_ok=True)
      about = {**self.about, 'arm': self.arm, 'seed': self.seed}
      records.write_json(self.folder / 'arm.json', about)


def utc_now():
  """The time now, as in events.jsonl."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
  return now.replace('+00:00', 'Z')


class Executor:
  """Works off a queue of tasks with a pool of training processes."""

  def __init__(self, workdir, left, schedule, say, check=lambda: None):
    """schedule: see calibrate.schedule. check: called when the first run is done, may raise."""
    self.workdir, self.schedule, self.say = workdir, schedule, say
    self.queue = group_by_program(left, schedule['replicas'])
    self.tries = dict.fromkeys((task.name for task in left), 0)
    self.total, self.ended = len(left), 0
    self.unwritten, self.full = [], False  # attempts that a full disk did not take
    self.stopped, self.start = [], time.monotonic()
    self.check, self.error = check, None

  def work(self, should_stop):
    """Train all -> whether it came to the end. Returns when the workers have saved and left.

    Raises what `check` did, also after that.
    """
    parts = scheduler.split_for(self.schedule, len(self.queue))
    with Pool(self.workdir, parts) as pool:
      while self.queue or pool.busy():
        if self.error or should_stop():
          pool.stop()
          if not pool.busy():
            break
        elif not pool.stopping:
          for worker in pool.idle(len(self.queue)):
            group = self.queue.pop(0)
            for task in group:
              task.describe()
            worker.give(
              {
                'configs': [task.config for task in group],
                'folders': [task.folder for task in group],
                'tasks': group,
              }
            )
        if event := pool.next():
          self.handle(pool, *event)
      now = utc_now()  # one time for all that a stop stops, later than what they did
      self.unwritten += [attempt | {'time': now} for attempt in self.stopped]
      self.write()
      if self.error:
        raise self.error
      return not self.queue and not pool.stopping

  def handle(self, pool, worker, answer):
    """Note what became of a worker's job, and put back what is worth another try."""
    job, seconds = worker.job, time.monotonic() - worker.began
    worker.job = None
    if answer is not None:
      outcomes = answer['outcomes']
    elif job is None:  # an idle worker has left
      return
    else:
      code = worker.process.returncode
      stopped = pool.stopping or code == STOPPED
      outcome = 'stopped' if stopped else 'killed' if code < 0 else 'failed'
      outcomes = [{'outcome': outcome, 'message': worker.cause(), 'code': code}] * len(job['tasks'])
    group, again = job['tasks'], []
    for task, outcome in zip(group, outcomes, strict=True):
      if self.record_outcome(task, outcome, seconds, len(group), pool.stopping):
        again.append(task)
    if not pool.stopping:
      # Half of them at once if the process was killed: there may be memory for these.
      half = max(len(group) // 2, 1) if outcomes[0]['outcome'] == 'killed' else 1
      self.queue += [again[k : k + half] for k in range(0, len(again), half)]

  def record_outcome(self, task, outcome, seconds, together, stopping):
    """Note one outcome -> whether to try again in this call."""
    kind, message = outcome['outcome'], outcome.get('message', '')
    if kind == 'done':  # memory may have let it train alone
      together = store.run_status(task.folder)[2].get('replicas', 1)
    how = 'replicas' if together > 1 else self.schedule['how'].replace('replicas', 'alone')
    attempt = {
      'time': utc_now(),
      'arm': task.arm,
      'seed': task.seed,
      'how': how,
      'outcome': kind,
      'code': outcome.get('code', 0),
      'message': secrets.redact(message),
      'seconds': round(seconds, 3),
    }
    if kind == 'stopped' and stopping:
      self.stopped.append(attempt)
      return True
    self.unwritten.append(attempt)
    self.write()
    if kind == 'stopped':  # somebody stopped that process alone
      return True
    self.tries[task.name] += together == 1
    if kind == 'killed' and self.tries[task.name] < TRIES:
      self.say(f'{task.name}: {message}; it is tried again')
      return True
    if kind == 'failed' and together > 1:
      self.say(f'{task.name} failed together with others ({message}); it is tried alone')
      return True
    self.ended += 1
    self.say(f'{self.ended} of {self.total}: {task.name} {self.shown(task, kind, message)}{self.eta()}')
    if kind == 'done':
      self.examine()
    return False

  def examine(self):
    """Ask `check`, once: what it raises ends the work when all is saved."""
    try:
      self.check()
    except ValueError as error:
      self.error = error
    self.check = lambda: None

  def shown(self, task, kind, message):
    """The end of a run in words."""
    if kind != 'done':
      return f'{kind}: {message}'
    loss = store.run_status(task.folder)[2].get('valid_loss')
    return 'is done' + (f', valid_loss {loss:.4f}' if isinstance(loss, float) else '')

  def eta(self):
    """How long the rest takes at the pace so far."""
    if self.ended == self.total:
      return ''
    seconds = (time.monotonic() - self.start) / self.ended * (self.total - self.ended)
    return f'; {loggers.duration(seconds)} to go'

  def write(self):
    """Write the attempts that are not written yet, if the disk takes them."""
    try:
      while self.unwritten:
        records.append_line(self.workdir / 'attempts.jsonl', self.unwritten[0])
        self.unwritten.pop(0)
      self.full = False
    except OSError as error:
      if not self.full:
        self.say(f'{self.workdir}/attempts.jsonl: {error.strerror}; going on without')
      self.full = True


def group_by_program(left, most):
  """Tasks as lists of at most `most` that share a program; all alone with most=1."""
  if most == 1:
    return [[task] for task in left]
  by_program = {}
  for task in left:
    by_program.setdefault(task.program, []).append(task)
  return [same[k : k + most] for same in by_program.values() for k in range(0, len(same), most)]
