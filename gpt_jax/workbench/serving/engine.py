"""The engine: one thread that owns the model and continues all requests, a few tokens of each in turn."""

import collections
import contextlib
import sys
import threading
import traceback

from gpt_jax.sampling import completions, prompts
from gpt_jax.workbench.serving.errors import RequestError
from gpt_jax.workbench.serving.jobs import Failure, MediaJob
from gpt_jax.workbench.serving.lane import Lane

EVERY = 16  # tokens of images and sounds between two turns of the texts


class Busy(RuntimeError):
  """The queue is full."""


class Engine:
  """Jobs in, events out: see jobs.py.

  run: a trained.TrainedRun whose model is laid out for decoding. Jobs start in the order in which they were
  submitted, but for those whose lane is full.
  """

  def __init__(self, run, metrics, most_rows=8, most_waiting=64):
    self.run, self.metrics, self.most_waiting = run, metrics, most_waiting
    lane = lambda ends: Lane(run.model, self._grammar('text', ends), most_rows)
    self.lanes = {'text': lane(())}
    with contextlib.suppress(ValueError):  # a run that knows no conversations
      prompts.chat_source(run)
      self.lanes['chat'] = lane(prompts.chat_ends(run)[0])
    self.waiting, self.changed = collections.deque(), threading.Condition()
    self.media = None  # (job, its generator) in progress
    self.is_stopping, self.thread = False, threading.Thread(target=self._work, daemon=True)

  def _grammar(self, to, ends=()):
    blocked = self.run.cfg.sample.block
    return completions.build_grammar(self.run.tokenizers, self.run.model.cfg.V, to, ends, blocked)

  def start(self):
    """Start the thread."""
    self.thread.start()

  def stop(self):
    """End the thread and all jobs."""
    with self.changed:
      self.is_stopping = True
      self.changed.notify()
    self.thread.join()

  def submit(self, jobs):
    """Queue jobs, all of them or none; Busy if they do not fit."""
    with self.changed:
      self.waiting = collections.deque(job for job in self.waiting if not job.cancelled.is_set())
      if self.is_stopping or len(self.waiting) + len(jobs) > self.most_waiting:
        cause = 'the server stops' if self.is_stopping else f'{len(self.waiting)} generations wait'
        raise Busy(f'{cause}\nfix: try again later')
      self.waiting.extend(jobs)
      self.changed.notify()

  def cancel(self, jobs):
    """End jobs that nobody waits for: their rows are free after the present step."""
    for job in jobs:
      job.cancelled.set()
    with self.changed:
      self.changed.notify()

  def counts(self):
    """Return (generations in progress, generations that wait)."""
    running = sum(len(lane.active) for lane in list(self.lanes.values()))
    return running + (self.media is not None), len(self.waiting)

  # ------------------------------------------------------------------------- in the engine's thread

  def _work(self):
    try:
      while self._has_work():
        self._turn()
    finally:  # also after an error of the engine itself: nobody waits for what will not come
      self._end(RequestError('the server stops\nfix: try again later', status=503))

  def _has_work(self):
    """Wait for jobs -> False where the engine is to stop."""
    with self.changed:
      self.changed.wait_for(lambda: self.is_stopping or self.waiting or any(self.counts()))
      return not self.is_stopping

  def _turn(self):
    """Start jobs, and continue each by a few tokens."""
    self._admit()
    for lane in self.lanes.values():
      if lane.jobs:
        with self._failing(lane.fail):
          self.metrics.count('generated_tokens', lane.step())
    self._continue_media()

  def _admit(self):
    """Start the jobs for which there is room."""
    with self.changed:
      jobs, self.waiting = [job for job in self.waiting if not job.cancelled.is_set()], collections.deque()
    left = collections.deque()
    for n, job in enumerate(jobs):
      if isinstance(job, MediaJob):
        has_room, start = self.media is None, self._start_media
      else:
        lane = self.lanes[job.kind]
        has_room = lane.has_room
        is_alone = not any(getattr(other, 'kind', '') == job.kind for other in jobs[n + 1 :])
        start = lambda job, lane=lane, is_alone=is_alone: lane.admit(job, is_alone)
      if not has_room:
        left.append(job)
        continue
      with self._failing(lambda error, job=job: job.emit(Failure(error))):
        self.metrics.count('prompt_tokens', job.length)
        start(job)
    with self.changed:
      self.waiting = left + self.waiting

  def _start_media(self, job):
    arguments = self.run.model, [job.prompt], job.cfg, self._grammar(job.to), job.keys_B, EVERY
    self.media = job, completions.stream(*arguments)

  def _continue_media(self):
    """Generate a few tokens of the images or sounds in progress."""
    if self.media is None:
      return
    job, states = self.media
    if job.cancelled.is_set():
      self.media = None
      return

    def fail(error):
      self.media = None
      job.emit(Failure(error))

    with self._failing(fail):
      state = next(states, None)
      if state is not None:
        job.state = state
      if state is None or state.done_B.all():
        self.media = None
        media = job.result(self.run, job.state)
        self.metrics.count('generated_tokens', media.counts[1])
        job.emit(media)

  def _end(self, error):
    self.is_stopping = True
    for lane in self.lanes.values():
      lane.fail(error)
    with self.changed:
      jobs, self.waiting = [*self.waiting, *([self.media[0]] if self.media else [])], collections.deque()
    for job in jobs:
      job.emit(Failure(error))

  @contextlib.contextmanager
  def _failing(self, fail):
    """Report an exception to `fail`; print those that no request can have caused."""
    try:
      yield
    except Exception as error:
      if '\nfix:' not in str(error):
        traceback.print_exc(file=sys.stderr)
      fail(error)
