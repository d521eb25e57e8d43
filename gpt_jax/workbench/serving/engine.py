"""The engine: one thread that owns the model and continues all requests, a few tokens of each in turn."""

import collections
import contextlib
import sys
import threading
import traceback

from gpt_jax.sampling import completions, prompts
from gpt_jax.workbench.serving.decode_batch import DecodeBatch
from gpt_jax.workbench.serving.errors import RequestError
from gpt_jax.workbench.serving.forms import knows_chat
from gpt_jax.workbench.serving.jobs import Failure, MediaJob

GATHER = 0.01  # seconds without a new job after which an idle engine starts: others may have come with it
EVERY = 16  # tokens of images and sounds between two turns of the texts


class Busy(RuntimeError):
  """The queue is full."""


class Engine:
  """Jobs in, events out: see jobs.py.

  runs: a trained.TrainedRun whose model is laid out for decoding, then those of the adapters in `bank`
  (AdapterBank or None). Jobs of one batch start in the order in which they were submitted, when it has a free
  slot; those that start in one turn begin with the short ones.
  """

  def __init__(self, runs, metrics, slots=8, queue=64, bank=None):
    self.run, self.metrics, self.slots, self.queue, self.bank = runs[0], metrics, slots, queue, bank
    batch = lambda ends: DecodeBatch(self.run.model, self._grammar('text', ends), slots, bank)
    self.batches = {'text': batch(())}
    if any(map(knows_chat, runs)):
      self.batches['chat'] = batch(prompts.chat_ends(self.run)[0])
    self.waiting, self.changed = collections.deque(), threading.Condition()
    self.media = None  # (job, its generator) in progress
    self.starting = 0  # jobs that are being prefilled
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
    """Queue the jobs of a request; Busy if the queue is full. An idle server takes any request."""
    with self.changed:
      self._filter_queue(lambda job: not job.cancelled.is_set())
      if self.is_stopping or len(self.waiting) >= self.queue:
        cause = 'the server stops' if self.is_stopping else f'{len(self.waiting)} generations wait'
        raise Busy(f'{cause}\nfix: try again later')
      self.waiting.extend(jobs)
      self.changed.notify()

  def cancel(self, jobs):
    """End jobs that nobody waits for: their slots are free after the present step."""
    for job in jobs:
      job.cancelled.set()
    with self.changed:
      self.changed.notify()

  def counts(self):
    """Return (generations in progress, generations that wait)."""
    running = sum(len(batch.active) for batch in list(self.batches.values()))
    return running + (self.media is not None), len(self.waiting) + self.starting

  def cache_tokens(self):
    """Return (tokens in the KV caches of texts, tokens that these have room for)."""
    return tuple(map(sum, zip(*(batch.cache_tokens() for batch in self.batches.values()), strict=True)))

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
      is_idle, known = not self.counts()[0], 0
      while is_idle and known < len(self.waiting) < min(self.slots, self.queue):
        known = len(self.waiting)
        self.changed.wait(GATHER)
      return not self.is_stopping

  def _turn(self):
    """Start jobs, and continue each by a few tokens."""
    self._admit()
    for batch in self.batches.values():
      if batch.jobs:
        with self._failing(batch.fail):
          self.metrics.count('generated_tokens', batch.step())
    self._continue_media()

  def _admit(self):
    """Start the jobs for which there is room; the others stay in the queue."""
    starting = {kind: [] for kind in self.batches}
    for job in self._filter_queue(lambda job: not job.cancelled.is_set()):
      if not isinstance(job, MediaJob):
        if len(starting[job.kind]) < self.batches[job.kind].free_slots:
          starting[job.kind].append(job)
      elif self.media is None:
        self._start([job], lambda jobs: self._start_media(*jobs))
    for kind, jobs in starting.items():
      batch, is_alone = self.batches[kind], len(jobs) == 1
      for group in batch.group(jobs):
        self._start(group, lambda group, batch=batch, is_alone=is_alone: batch.admit(group, is_alone))

  def _start(self, jobs, start):
    """Take jobs out of the queue and start them; those that fail together, each alone."""
    self._filter_queue(lambda job: job not in jobs)
    self.starting = len(jobs)

    def fail(error):
      for job in jobs:
        if len(jobs) > 1:
          self._start([job], start)
        else:
          job.emit(Failure(error))

    with self._failing(fail):
      start(jobs)
      self.metrics.count('prompt_tokens', sum(job.length for job in jobs))
    self.starting = 0

  def _filter_queue(self, is_waiting):
    """Keep the jobs of the queue that still wait -> a list of them."""
    with self.changed:
      self.waiting = collections.deque(filter(is_waiting, self.waiting))
      return list(self.waiting)

  def _start_media(self, job):
    model = self.run.model if self.bank is None else self.bank.attach(self.run.model, (job.adapter,))
    arguments = [job.prompt], job.cfg, self._grammar(job.to), job.keys_B, EVERY
    self.media = job, completions.stream(model, *arguments)

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
    for batch in self.batches.values():
      batch.fail(error)
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
