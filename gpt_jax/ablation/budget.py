"""What arms have in common so that comparing them is fair: tokens, FLOPs, time or parameters.

A budget decides train.steps, and with it the schedule, or model.width. FLOPs count as in
`costs.flops_per_token`, attention over the whole row included; tokens are rows times their length.
Arms of one program get one step time, measured once: an arm that changes nothing stays one.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import time
from pathlib import Path

import jax

from gpt_jax import train
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.model import costs
from gpt_jax.runs import records
from gpt_jax.sharding import MeshConfig, make_mesh, to_devices
from gpt_jax.training import session


@dataclasses.dataclass(frozen=True)
class Budget:
  """What every arm gets; 0 = no such limit. With none, each arm trains for its train.steps."""

  tokens: float = 0  # a run's training tokens, padding included
  flops: float = 0  # a run's training FLOPs, forward and backward
  seconds: float = 0  # a run's time in optimizer steps, on this machine
  parameters: float = 0  # of the model: model.width is solved for

  def __post_init__(self):
    given = dataclasses.asdict(self)
    for name, value in given.items():
      if not 0 <= value < float('inf'):
        raise ValueError(f'budget.{name}={value} is no amount\nfix: use a number >= 0; 0 is none')
    lengths = [f'{name}={given[name]:g}' for name in LENGTHS if given[name]]
    if len(lengths) > 1:
      raise ValueError(
        f'budget {" and ".join(lengths)} both say how long to train\nfix: give one of {", ".join(LENGTHS)}'
      )


LENGTHS = ('tokens', 'flops', 'seconds')
FRACTIONS = r'dense<[^>]*>( : tensor<(?:\d+x)*b?f\d+>)'  # a constant, in the text of a program


class Measures:
  """What a config costs; measurements are kept in `folder`, so that a study resumes as it was."""

  def __init__(self, folder):
    self.folder = Path(folder)

  def cost(self, cfg):
    """-> (parameters, training FLOPs a token)."""
    if cfg.train.job != 'gpt':
      raise ValueError(
        f'train.job={cfg.train.job} has no count of FLOPs, and its size is not model.width\n'
        'fix: use Budget(tokens=...) or Budget(seconds=...)'
      )
    folder = scratch(cfg, self.folder)
    tokenizers = run_tokenizers.build(cfg, folder)
    if not (folder / 'tokenizer').exists():
      tokenizers.save(folder / 'tokenizer')
    model_cfg = language_model.resolve_model(cfg, tokenizers)
    flops = costs.flops_per_token(model_cfg, row_length(cfg))['full']
    return costs.count_params(model_cfg), flops

  def step_seconds(self, cfg):
    """Seconds of one optimizer step, measured here once."""
    path = self.folder / 'step_seconds.json'
    with opened(cfg, self.folder) as (job, mesh):
      known, key = records.read_json(path), work(job, cfg.train.steps_per_call)
      if key not in known:
        known[key] = measured_step_seconds(job, mesh, cfg.train.steps_per_call)
        records.write_json(path, known)
      return known[key]


@contextlib.contextmanager
def opened(cfg, folder):
  """(job, mesh) of a config; `folder` has the token caches and tokenizers that arms share."""
  cfg, place = shared_caches(cfg, folder), scratch(cfg, folder)
  # A run that asks for no mesh gets one device, so that as many runs train side by side.
  mesh = make_mesh(cfg.mesh, jax.devices()[:1] if cfg.mesh == MeshConfig() else None)
  with jax.set_mesh(mesh):
    job = train.JOBS[cfg.train.job](cfg, place, mesh)
    try:
      if cfg.train.job == 'gpt' and not (place / 'tokenizer').exists():
        job.tokenizers.save(place / 'tokenizer')
      yield job, mesh
    finally:
      job.loader.close()


def traced(job, steps_per_call):
  """The train step of a job, traced for its batches."""
  front = () if steps_per_call == 1 else (steps_per_call,)
  batch = {key: jax.ShapeDtypeStruct((*front, *x.shape), x.dtype) for key, x in job.example_batch().items()}
  return job.program.step.trace(job.program.abstract, batch)


def work(job, steps_per_call):
  """Hash of what a step computes: its lowered text without the values of fractions.

  They decide what comes out, and not how long it takes.
  """
  text = traced(job, steps_per_call).lower().as_text()
  return hashlib.sha256(re.sub(FRACTIONS, r'\1', text).encode()).hexdigest()[:16]


def scratch(cfg, folder):
  """A folder that has the tokenizers of this config, for arms that share them."""
  sections = {name: getattr(cfg, name) for name in ('data', 'tokenizer', 'image', 'audio')}
  sections = {name: dataclasses.asdict(section) for name, section in sections.items()}
  text = json.dumps(records.to_json(sections | {'init_from': cfg.train.init_from}), sort_keys=True)
  path = Path(folder) / 'planning' / hashlib.sha256(text.encode()).hexdigest()[:16]
  path.mkdir(parents=True, exist_ok=True)
  return path


def row_length(cfg):
  """Tokens of a row; an image or a clip counts as one."""
  return (cfg.train.length or cfg.model.context) if cfg.train.job == 'gpt' else 1


def tokens_per_step(cfg):
  """Tokens of a step, padding included."""
  return cfg.train.batch_size * row_length(cfg)


def apply(cfg, budget, measures):
  """The config with the width and the number of steps that use up the budget.

  measures: a Measures. Raises ValueError where nothing can.
  """
  if budget.parameters:
    cfg = of_parameters(cfg, budget.parameters, lambda cfg: measures.cost(cfg)[0])
  if budget.tokens:
    steps = budget.tokens / tokens_per_step(cfg)
  elif budget.flops:
    steps = budget.flops / (measures.cost(cfg)[1] * tokens_per_step(cfg))
  elif budget.seconds:
    steps = budget.seconds / measures.step_seconds(cfg)
  else:
    return cfg
  n = cfg.train.steps_per_call
  steps = max(n, round(steps / n) * n)
  return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, steps=steps))


def of_parameters(cfg, wanted, count, widest=1 << 16):
  """The config whose model.width makes count(cfg) nearest to `wanted`.

  Heads stay as many; their width stays even, as rotations need it. Raises ValueError where the
  nearest is a tenth off or more.
  """
  unit = 2 if cfg.model.head_dim else 2 * cfg.model.heads
  sized = lambda k: dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, width=k * unit))
  low = 4 if cfg.model.positions == 'mrope' and not cfg.model.head_dim else 1
  first, high = low, widest // unit
  while low < high:  # the narrowest with at least so many
    middle = (low + high) // 2
    low, high = (low, middle) if count(sized(middle)) >= wanted else (middle + 1, high)
  best = min((k for k in (low - 1, low) if k >= first), key=lambda k: abs(count(sized(k)) - wanted))
  found = count(sized(best))
  if abs(found - wanted) > 0.1 * wanted:
    raise ValueError(
      f'budget.parameters={wanted:,.0f}: the nearest is {found:,} with model.width={best * unit}\n'
      'fix: change model.layers or model.heads, or the budget'
    )
  return sized(best)


def measured_step_seconds(job, mesh, n, calls=8):
  """Seconds of the fastest step of some: what else the machine does only slows them.

  A throw-away state is trained for a moment, n steps a call; its first call, which compiles, is
  left out.
  """
  state, seconds = job.program.init(), []
  for _ in range(calls + 1):
    start = time.perf_counter()
    batch = to_devices(session.next_batches(job.loader, n), mesh, stacked=n > 1)
    state, metrics = job.program.step(state, batch)
    jax.block_until_ready((state, metrics))
    seconds.append((time.perf_counter() - start) / n)
  return min(seconds[1:])


def shared_caches(cfg, folder):
  """The config with the token caches that all arms share, unless it names others."""
  data = dataclasses.replace(cfg.data, cache=cfg.data.cache or str(Path(folder)))
  return dataclasses.replace(cfg, data=data)
