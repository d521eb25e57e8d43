"""Tasks on a model: the same functions during training and from a finished run folder."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax

from gpt_jax import data, sample
from gpt_jax.model import layers as nn
from gpt_jax.sharding import ACTIVATION_RULES
from gpt_jax.tasks import perplexity


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model under examination."""

  cfg: Any  # config.Config
  model: Any  # parameters as trained; cast within the compiled score
  tokenizers: Any
  mesh: Any
  cache_dir: Path  # of token caches
  batch_size: int  # rows that are scored at once, over all processes
  caches: dict = dataclasses.field(default_factory=dict)  # open token caches by (source, split)

  def cache(self, source, split):
    """The tokens of one source, opened once: opening reads and hashes the whole text."""
    if (source, split) not in self.caches:
      self.caches[source, split] = data.token_cache(
        self.cfg.data, source, self.tokenizers, split, self.cache_dir
      )
    return self.caches[source, split]

  @property
  def masks_documents(self):
    """Whether tokens see their own document only, as they did in training."""
    return self.cfg.data.mask_documents or self.cfg.data.packing == 'first_fit'

  @property
  def score(self):
    """Compiled: (model, batch) -> summed nats and weights."""
    return _score(self.model.cfg.dtype)


def rows_at_once(cfg, mesh):
  """Rows to score at once: a micro-batch of the training, rounded up to what the mesh divides."""
  shards = math.prod(mesh.shape[axis] for axis in ACTIVATION_RULES['B'])
  return -(-cfg.train.batch_size // cfg.train.accumulate // shards) * shards


@functools.cache
def _score(dtype):
  """One compiled function a dtype, shared by all evaluations of a process."""
  return jax.jit(lambda model, batch: sample.score(nn.cast(model, dtype), batch))


def run(subject, tasks, **options):
  """Run tasks by name -> list of result rows (dicts with task, metric, value).

  Raises ValueError for a name that is not in TASKS.
  """
  unknown = [task for task in tasks if task not in TASKS]
  if unknown:
    raise ValueError(f'--tasks={unknown[0]} is not a task\nfix: use one of {", ".join(TASKS)}')
  return [row for task in tasks for row in TASKS[task](subject, **options)]


TASKS = {'perplexity': perplexity.run}
