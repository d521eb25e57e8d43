"""Budgets: give all arms equal tokens, FLOPs, time or parameters, so that comparing them is fair.

A budget sets train.steps, and with it the schedule, or model.width. FLOPs are `costs.flops_per_token` with
attention over the whole row. Arms that share a program get one measured step time, so that an arm that
changes nothing gets equal steps.
"""

import bisect
import contextlib
import dataclasses
import hashlib
import json
import re
import time
from pathlib import Path

import jax

from gpt_jax import train
from gpt_jax.cluster.batches import to_devices
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.jobs.base import trains_gpt
from gpt_jax.model import costs
from gpt_jax.runs import records
from gpt_jax.sharding import MeshConfig, make_mesh
from gpt_jax.training import session

LENGTHS = ('tokens', 'flops', 'seconds')  # budgets that set train.steps
FLOAT_CONSTANT = r'dense<[^>]*>( : tensor<(?:\d+x)*b?f\d+>)'  # in the text of a lowered program


@dataclasses.dataclass(frozen=True)
class Budget:
  """What every arm gets; 0 = no such limit. Without limits each arm trains for its train.steps."""

  tokens: float = 0  # training tokens of a run, padding included
  flops: float = 0  # training FLOPs of a run, forward and backward
  seconds: float = 0  # time of a run's optimizer steps, on this machine
  parameters: float = 0  # of the model: model.width is solved for

  def __post_init__(self):
    limits = dataclasses.asdict(self)
    for name, value in limits.items():
      if not 0 <= value < float('inf'):
        raise ValueError(f'budget.{name}={value} is not an amount\nfix: use a number >= 0; 0 is none')
    lengths = ' and '.join(f'{name}={limits[name]:g}' for name in LENGTHS if limits[name])
    if ' and ' in lengths:
      raise ValueError(f'budget {lengths} both say how long to train\nfix: give one of {", ".join(LENGTHS)}')


class CostMeter:
  """Costs of configs. Measured times are stored in `folder`, so that a study resumes with equal steps."""

  def __init__(self, folder):
    self.folder = Path(folder)

  def cost(self, cfg):
    """-> (parameters, training FLOPs per token)."""
    if not trains_gpt(cfg.train.job):
      raise ValueError(
        f'train.job={cfg.train.job} has no count of FLOPs, and its size is not model.width\n'
        'fix: use Budget(tokens=...) or Budget(seconds=...)'
      )
    folder = planning_folder(cfg, self.folder)
    tokenizers = run_tokenizers.build(cfg, folder)
    if not (folder / 'tokenizer').exists():
      tokenizers.save(folder / 'tokenizer')
    model_cfg = language_model.resolve_model(cfg, tokenizers)
    flops = costs.flops_per_token(model_cfg, row_length(cfg), cfg.adapter)
    return costs.count_params(model_cfg), flops['full']

  def step_seconds(self, cfg):
    """Seconds of one optimizer step, measured once for each program."""
    path = self.folder / 'step_seconds.json'
    with open_job(cfg, self.folder) as (job, mesh):
      measured, key = records.read_json(path), program_hash(job, cfg.train.steps_per_call)
      if key not in measured:
        measured[key] = measure_step_seconds(job, mesh, cfg.train.steps_per_call)
        records.write_json(path, measured)
      return measured[key]


@contextlib.contextmanager
def open_job(cfg, folder):
  """Context of (job, mesh) of a config; arms share the token caches and tokenizers in `folder`."""
  cfg, job_folder = with_shared_cache(cfg, folder), planning_folder(cfg, folder)
  # Without a mesh of its own a run gets one device, so that as many runs train side by side.
  mesh = make_mesh(cfg.mesh, jax.devices()[:1] if cfg.mesh == MeshConfig() else None)
  with jax.set_mesh(mesh):
    job = train.JOBS[cfg.train.job](cfg, job_folder, mesh)
    try:
      if trains_gpt(cfg.train.job) and not (job_folder / 'tokenizer').exists():
        job.tokenizers.save(job_folder / 'tokenizer')
      yield job, mesh
    finally:
      job.loader.close()


def trace_step(job, steps_per_call):
  """Trace the train step of a job for its batch shapes."""
  leading = () if steps_per_call == 1 else (steps_per_call,)
  batch = {key: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype) for key, x in job.example_batch().items()}
  return job.program.step.trace(job.program.abstract, batch)


def program_hash(job, steps_per_call):
  """Hash of a step's lowered text without the values of float constants, which do not change its time."""
  text = trace_step(job, steps_per_call).lower().as_text()
  return hash_json(re.sub(FLOAT_CONSTANT, r'\1', text))


def planning_folder(cfg, folder):
  """A folder for the tokenizers of this config, shared by arms with equal data and tokenizers."""
  sections = {name: getattr(cfg, name) for name in ('data', 'tokenizer', 'image', 'audio')}
  sections = {name: dataclasses.asdict(section) for name, section in sections.items()}
  path = (
    Path(folder)
    / 'planning'
    / hash_json(sections | {key: getattr(cfg.train, key) for key in ('init_from', 'branch_from')})
  )
  path.mkdir(parents=True, exist_ok=True)
  return path


def hash_json(value):
  """A short hash of a JSON-able value."""
  text = json.dumps(records.to_json(value), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def row_length(cfg):
  """Tokens of a document's row; of a tokenizer's training 1, an image or a clip."""
  return (cfg.train.length or cfg.model.context) if trains_gpt(cfg.train.job) else 1


def tokens_per_step(cfg):
  """Tokens of a step, padding included."""
  return cfg.train.batch_size * train.JOBS[cfg.train.job].documents_per_row(cfg) * row_length(cfg)


def with_shared_cache(cfg, folder):
  """The config with token caches in `folder`, unless it names another place."""
  return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, cache=cfg.data.cache or str(folder)))


def apply_budget(cfg, budget, meter):
  """The config with the width and the number of steps that use up the budget.

  meter: a CostMeter. Raises ValueError if no width fits.
  """
  if budget.parameters:
    cfg = solve_width(cfg, budget.parameters, lambda cfg: meter.cost(cfg)[0])
  if budget.tokens:
    steps = budget.tokens / tokens_per_step(cfg)
  elif budget.flops:
    steps = budget.flops / (meter.cost(cfg)[1] * tokens_per_step(cfg))
  elif budget.seconds:
    steps = budget.seconds / meter.step_seconds(cfg)
  else:
    return cfg
  n = cfg.train.steps_per_call
  steps = max(n, round(steps / n) * n)
  return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, steps=steps))


def solve_width(cfg, target, count, widest=1 << 16):
  """The config whose model.width makes count(cfg) nearest to `target` parameters.

  The number of heads stays; their width stays even, for rotary positions. Raises ValueError if the nearest
  count is more than a tenth off.
  """
  unit = 2 if cfg.model.head_dim else 2 * cfg.model.heads
  with_width = lambda k: dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, width=k * unit))
  units = range(4 if cfg.model.positions == 'mrope' and not cfg.model.head_dim else 1, widest // unit + 1)
  i = bisect.bisect_left(units, target, key=lambda k: count(with_width(k)))  # the narrowest with the target
  best = min(units[max(i - 1, 0) : i + 1], key=lambda k: abs(count(with_width(k)) - target))
  nearest = count(with_width(best))
  if abs(nearest - target) > 0.1 * target:
    raise ValueError(
      f'budget.parameters={target:,.0f}: the nearest is {nearest:,} with model.width={best * unit}\n'
      'fix: change model.layers or model.heads, or the budget'
    )
  return with_width(best)


def measure_step_seconds(job, mesh, steps_per_call, calls=8):
  """Seconds of the fastest of some steps, as other load on the machine only adds time.

  Trains a temporary state; the first call, which compiles, does not count.
  """
  state, seconds = job.program.init(), []
  for _ in range(calls + 1):
    start = time.perf_counter()
    batch = to_devices(session.next_batches(job.loader, steps_per_call), mesh, stacked=steps_per_call > 1)
    batch = job.prepare_batch(batch, state)
    state, metrics = job.program.step(state, batch)
    jax.block_until_ready((state, metrics))
    seconds.append((time.perf_counter() - start) / steps_per_call)
  return min(seconds[1:])
