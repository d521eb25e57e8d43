"""Search for the fastest plan: micro-batches, remat policies and meshes."""

import dataclasses
import math

from gpt_jax import sharding
from gpt_jax.plan import format, plan
from gpt_jax.sharding import MeshConfig

ROWS = (1, 2, 4, 8, 16, 32)  # per device that takes rows


def best_plan(cfg, target, price=0.0, report=lambda line: None, limit=24):
  """Return the plan with the most tokens/s if nothing overlaps, with a `search` entry for each plan tried.

  A program that does not fit rules out its larger batches. No decode step is compiled. report: called
  with one line per plan. limit: plans to compile.
  """
  plans = []
  is_unrolled = cfg.model.resolved(target.topology.chip.platform).unroll == 'on'
  for mesh in candidate_meshes(cfg, target):
    for remat in ('mlp_activations' if is_unrolled else 'none', 'dots_no_batch', 'full'):
      try:
        try_batches(cfg, target, mesh, remat, price, plans, report, limit)
      except ValueError as error:  # the mesh does not divide this model
        report(str(error).replace('\n', '; '))
        break
  if not plans:
    raise ValueError('no mesh divides this model\nfix: choose one, such as --config.mesh.fsdp=8')
  best = max(plans, key=lambda p: p['fits'] and p['train']['estimate']['tokens_per_second_serial'])
  if best['fits']:
    best['notes'].append(f'the best of {len(plans)}: train with {best["flags"]}')
  best['search'] = [{'flags': p['flags'], 'fits': p['fits'], 'summary': format.summary(p)} for p in plans]
  return best


def try_batches(cfg, target, mesh, remat, price, plans, report, limit):
  """Append plans of growing micro-batches to `plans`, until one does not fit."""
  sizes = mesh.sizes(target.topology.size, target.topology.slices)
  shards = math.prod(sizes[axis] for axis in sharding.ACTIVATION_RULES['B'])
  for rows in ROWS:
    if len(plans) == limit:
      return
    if cfg.train.job == 'grpo' and rows * shards % cfg.grpo.group:
      continue
    plans.append(try_plan(cfg, target, mesh, remat, rows * shards, price))
    report(format.summary(plans[-1]))
    if not plans[-1]['fits']:
      return


def candidate_meshes(cfg, target):
  """Meshes to try: the config's own if it sets one, else FSDP, FSDP with tensor=2, and data parallel."""
  topology = target.topology
  if cfg.mesh != MeshConfig() or topology.size == 1:
    return [cfg.mesh]
  meshes = [MeshConfig(data=topology.slices, fsdp=-1), MeshConfig(data=topology.size)]
  if cfg.model.heads % 2 == 0 and topology.per_slice > 2:
    meshes.insert(1, MeshConfig(data=topology.slices, fsdp=-1, tensor=2))
  return meshes


def try_plan(cfg, target, mesh, remat, batch_size, price):
  """One plan of a search, with the command-line `flags` that give it."""
  model = dataclasses.replace(cfg.model, remat=remat)
  train = dataclasses.replace(cfg.train, batch_size=batch_size, accumulate=1)
  changed = dataclasses.replace(cfg, model=model, train=train, mesh=mesh)
  result = plan.plan(changed, target, price, decode=False)
  overrides = {'train.batch_size': batch_size, 'train.accumulate': 1, 'model.remat': remat}
  overrides |= {f'mesh.{axis}': n for axis, n in result['mesh'].items()}
  result['flags'] = ' '.join(f'--config.{key}={value}' for key, value in overrides.items())
  return result
