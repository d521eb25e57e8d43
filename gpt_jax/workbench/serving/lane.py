"""A lane: the rows of one decode, whose texts follow the same grammar, and the jobs that sit in them.

Letters: B rows.
"""

import dataclasses

import jax
import numpy as np

from gpt_jax.sampling import prompt_batch
from gpt_jax.sampling.history import History
from gpt_jax.workbench.serving import rows
from gpt_jax.workbench.serving.jobs import Failure

OFF = rows.RowSettings(0.0, 0, 1.0, 0.0, 1.0, False)  # of an empty row
DTYPES = rows.RowSettings(np.float32, np.int32, np.float32, np.float32, np.float32, bool)


def settings_of(job):
  """Return the RowSettings of one job, as scalars."""
  cfg = job.cfg
  filters = (cfg.top_k, cfg.top_p, cfg.min_p, cfg.repetition_penalty)
  return rows.RowSettings(cfg.temperature, *filters, job.alternatives > 0)


class Lane:
  """A decode of up to `most_rows` jobs: one row for a job alone, else all of them.

  Prompts are prefilled one at a time, from where they differ from the one before: a system prompt that all
  conversations share is computed once.
  """

  def __init__(self, model, grammar, most_rows):
    self.model, self.grammar, self.most_rows = model, grammar, most_rows
    self.end_ids = frozenset(np.flatnonzero(grammar.ends_V).tolist())
    self.clear()

  def clear(self):
    """Empty all rows and free their memory."""
    self.jobs, self.state, self.history = [], None, History()

  @property
  def active(self):
    """The jobs in the rows."""
    return [job for job in self.jobs if job]

  @property
  def has_room(self):
    """Whether another job can join."""
    return len(self.active) < self.most_rows

  def admit(self, job, is_alone):
    """Prefill the job's prompt and put it into a row; is_alone: no other job waits."""
    cfg = dataclasses.replace(job.cfg, max_new_tokens=1, num_samples=1, guidance=1.0)
    row = self.history.start(self.model, [job.prompt], cfg, self.grammar, job.keys_B)
    # Keys of a condition that attends both ways are not those of the same ids before another text.
    self.history.state = None if job.prompt.prefix else row
    slots = prompt_batch.round_up_prompt(job.limit, self.model.cfg.context)
    if self.state is None:
      self.jobs = [None] * (1 if is_alone else self.most_rows)
      self.state = rows.jit_arrange(row, *self._places([], len(self.jobs)), slots)
    elif None not in self.jobs or slots > self.state.token_ids_BT.shape[1]:
      self._grow(self.most_rows if None not in self.jobs else len(self.jobs), slots)
    b = self.jobs.index(None)
    limit = np.int32(job.limit)
    self.state = rows.jit_insert(self.state, row, np.int32(b), limit, job.keys_B[0])
    self.jobs[b] = job

  def _grow(self, count, slots):
    slots = max(slots, self.state.token_ids_BT.shape[1])
    kept = list(range(len(self.jobs)))
    self.state = rows.jit_arrange(self.state, *self._places(kept, count), slots)
    self.jobs += [None] * (count - len(self.jobs))

  @staticmethod
  def _places(kept, count):
    """Return (index_B, alive_B) of `count` rows, the first of which are kept."""
    index_B = np.array(kept + [0] * (count - len(kept)), np.int32)
    return index_B, np.arange(count) < len(kept)

  def step(self):
    """Decode a few tokens for each row, and report them to the jobs -> the number of tokens."""
    for b, job in enumerate(self.jobs):
      if job and job.cancelled.is_set():
        self.jobs[b] = None
    if not self.active:
      self._leave()
      return 0
    columns = zip(*(settings_of(job) if job else OFF for job in self.jobs), strict=True)
    settings = rows.RowSettings(*(np.array(x, t) for x, t in zip(columns, DTYPES, strict=True)))
    alive_B = np.array([job is not None for job in self.jobs])
    self.state, new = rows.jit_decode(self.model, self.state, settings, alive_B, self.grammar)
    new, total = jax.device_get(new), 0
    for b, job in enumerate(self.jobs):
      if job:
        n = int(new.lengths_B[b]) - job.length - job.count
        total += n
        if self._push(job, new, b, n):
          self.jobs[b] = None
    if not self.active:
      self._leave()
    return total

  @staticmethod
  def _push(job, new, b, n):
    """Report n tokens of row b to its job -> whether it has ended."""
    tops = new.top_ids_BEK[b], new.top_log_probs_BEK[b]
    try:
      return job.push(new.ids_BE[b, :n].tolist(), new.log_probs_BE[b, :n].tolist(), tops, new.done_B[b])
    except Exception as error:  # a tokenizer that fails on these ids ends this text alone
      job.emit(Failure(error))
      return True

  def _leave(self):
    """Free the rows when the last job has left; the next one chooses their number and length."""
    self.jobs, self.state = [], None

  def fail(self, error):
    """End all jobs with an error; the rows may be lost."""
    for job in self.active:
      job.emit(Failure(error))
    self.clear()
