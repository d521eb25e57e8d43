"""A decode batch: slots that texts of one grammar take and free while it decodes (continuous batching).

Letters: B slots, the rows of the batch.

Source: Orca (Yu et al. 2022, section 4.1: batches change between iterations).
"""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import sample
from gpt_jax.sampling import prompt_batch
from gpt_jax.sampling.history import History
from gpt_jax.workbench.serving import rows
from gpt_jax.workbench.serving.jobs import Failure

SHORT = 32  # prompt tokens and one new token: below, a prompt is prefilled with others
TOGETHER = 3  # short prompts from which one call is faster than one for each
OFF = rows.RowSettings(0.0, 0, 1.0, 0.0, 1.0, False)  # of an empty slot
DTYPES = rows.RowSettings(np.float32, np.int32, np.float32, np.float32, np.float32, bool)


def settings_of(job):
  """Return the RowSettings of one job, as scalars."""
  cfg = job.cfg
  filters = (cfg.top_k, cfg.top_p, cfg.min_p, cfg.repetition_penalty)
  return rows.RowSettings(cfg.temperature, *filters, job.alternatives > 0)


class DecodeBatch:
  """A decode of up to `slots` jobs: one slot for a job alone, else all of them.

  Prompts are prefilled one at a time, from where they differ from the one before with the same adapter: a
  system prompt that all conversations share is computed once. Short texts are prefilled together: reading the
  weights takes longer than their tokens.
  """

  def __init__(self, model, grammar, slots, bank=None):
    """bank: AdapterBank of the jobs' adapters."""
    self.model, self.grammar, self.slots, self.bank = model, grammar, slots, bank
    self.end_ids = frozenset(np.flatnonzero(grammar.ends_V).tolist())
    self.clear()

  def clear(self):
    """Empty all slots and free their memory."""
    self.jobs, self.state, self.histories = [], None, collections.defaultdict(History)

  @property
  def active(self):
    """The jobs in the slots."""
    return [job for job in self.jobs if job]

  @property
  def free_slots(self):
    """The number of jobs that can join."""
    return self.slots - len(self.active)

  def cache_tokens(self):
    """Return (tokens in the KV cache, tokens that it has room for); called from other threads."""
    jobs, state = self.active, self.state
    used = sum(job.length + job.count for job in jobs)
    return used, 0 if state is None else state.token_ids_BT.size

  def group(self, jobs):
    """Return the jobs, no more than there are free slots, in the lists that `admit` takes."""
    short = [job for job in jobs if job.length < SHORT and is_text(job.prompt)]
    if len(short) < TOGETHER:
      return [[job] for job in jobs]
    return [short, *([job] for job in jobs if job not in short)]

  def admit(self, jobs, is_alone):
    """Prefill the prompts of a list of `group` and put them into slots; is_alone: no other job waits.

    Raises what a prompt is refused with, for all of them.
    """
    jobs = [job for job in jobs if job not in self.jobs]  # of a list that failed in its midst
    if not jobs:
      return
    prefilled = self._prefill(jobs) if len(jobs) > 1 else self._prefill_one(jobs[0])
    for n, job in enumerate(jobs):
      self._insert(job, prefilled, n, is_alone)

  def _prefill(self, jobs):
    """Return the state of a power of two of rows, the first of which are those of the jobs."""
    count = min(1 << (len(jobs) - 1).bit_length(), self.slots)  # few shapes, few compilations
    jobs = [*jobs, *jobs[:1] * (count - len(jobs))]
    arguments = [job.prompt for job in jobs], one_token(jobs[0].cfg), self.grammar
    keys_B = jnp.concatenate([job.keys_B for job in jobs])
    return sample.start(self._with_adapters(jobs), *arguments, keys_B)._replace(patches=None)

  def _prefill_one(self, job):
    """Return the state of one row; what it shares with the one before is not computed again."""
    history = self.histories[job.adapter]  # other weights, other keys
    arguments = [job.prompt], one_token(job.cfg), self.grammar, job.keys_B
    row = history.start(self._with_adapters([job]), *arguments)
    row = row._replace(patches=None)  # a text makes none
    # Keys of a condition that attends both ways are not those of the same ids before another text.
    history.state = row if job.prompt.mask == 'causal' else None
    return row

  def _insert(self, job, prefilled, n, is_alone):
    """Put row n of a state into a slot."""
    length = prompt_batch.round_up_prompt(job.limit, self.model.cfg.context)
    if self.state is None:
      self.jobs = [None] * (1 if is_alone else self.slots)
      self.state = rows.jit_arrange(prefilled, *row_index(0, len(self.jobs)), length)
    elif None not in self.jobs or length > self.state.token_ids_BT.shape[1]:
      self._grow(self.slots if None not in self.jobs else len(self.jobs), length)
    b = self.jobs.index(None)
    places = np.int32(n), np.int32(b), np.int32(job.limit)
    self.state = rows.jit_insert(self.state, prefilled, *places, job.keys_B[0])
    self.jobs[b] = job

  def _grow(self, count, length):
    """Make room for `count` jobs of up to `length` tokens."""
    length, before = max(length, self.state.token_ids_BT.shape[1]), len(self.jobs)
    self.state = rows.jit_arrange(self.state, *row_index(before, count), length)
    self.jobs += [None] * (count - before)

  def _with_adapters(self, jobs):
    """Return the model whose row b has the adapter of jobs[b]."""
    index = tuple(job.adapter if job else 0 for job in jobs)
    return self.model if self.bank is None else self.bank.attach(self.model, index)

  def step(self):
    """Decode a few tokens for each job, and report them -> the number of tokens."""
    for b, job in enumerate(self.jobs):
      if job and job.cancelled.is_set():
        self.jobs[b] = None
    if not self.active:
      self._free_memory()
      return 0
    columns = zip(*(settings_of(job) if job else OFF for job in self.jobs), strict=True)
    settings = rows.RowSettings(*(np.array(x, t) for x, t in zip(columns, DTYPES, strict=True)))
    alive_B = np.array([job is not None for job in self.jobs])
    model = self._with_adapters(self.jobs)
    self.state, new = rows.jit_decode(model, self.state, settings, alive_B, self.grammar)
    new, total = jax.device_get(new), 0
    for b, job in enumerate(self.jobs):
      if job:
        n = int(new.lengths_B[b]) - job.length - job.count
        total += n
        if push(job, new, b, n):
          self.jobs[b] = None
    if not self.active:
      self._free_memory()
    return total

  def _free_memory(self):
    """Drop the state when the last job has left; the next one chooses the number and length of rows."""
    self.jobs, self.state = [], None

  def fail(self, error):
    """End all jobs with an error; the state may be lost."""
    for job in self.active:
      job.emit(Failure(error))
    self.clear()


def is_text(prompt):
  """Whether a Prompt has ids alone: an encoder runs on each row of a batch that has pictures or sounds."""
  return prompt.patches is None and prompt.frames is None and prompt.vectors is None


def one_token(cfg):
  """Return the SampleConfig of a prefill: one row for a prompt, and room for a token."""
  return dataclasses.replace(cfg, max_new_tokens=1, num_samples=1, guidance=1.0)


def row_index(used, count):
  """Return (index_B, alive_B) of `count` rows, the first of which are those in use."""
  places_B = np.arange(count, dtype=np.int32)
  return np.where(places_B < used, places_B, 0), places_B < used


def push(job, new, b, n):
  """Report n tokens of row b to its job -> whether it has ended."""
  tops = new.top_ids_BEK[b], new.top_log_probs_BEK[b]
  try:
    return job.push(new.ids_BE[b, :n].tolist(), new.log_probs_BE[b, :n].tolist(), tops, new.done_B[b])
  except Exception as error:  # a tokenizer that fails on these ids ends this text alone
    job.emit(Failure(error))
    return True
