"""Compile a run for hardware that is not there, and say what the compiler says of it.

The programs are those that would run there: the train step of step.py and the decode step of
sample.py, for the mesh, kernels, dtypes and remat policy that `auto` means on that hardware. No
data are read: stand_ins.py makes of the config what matters of them. What comes out is a dict that
goes to JSON as it is; wording.py has it in words.
"""

import dataclasses
import functools
import math
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from gpt_jax import data, sample, sharding
from gpt_jax.cluster import sharding_table
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.jobs.modality_objective import modality_objective
from gpt_jax.model import costs, gpt
from gpt_jax.model.kernels import choice
from gpt_jax.plan import abstract_inputs, format, hlo, roofline, topologies
from gpt_jax.runs import hardware
from gpt_jax.sampling import prompt_batch
from gpt_jax.sampling.prompt_batch import PromptBatch
from gpt_jax.sharding import MeshConfig
from gpt_jax.step import gpt_program
from gpt_jax.tokenizers import grammar
from gpt_jax.tokenizers.modality_tables import ModalityTables

UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class Target(NamedTuple):
  """Devices to compile for and what they can do."""

  topology: Any  # topologies.Topology
  devices: list
  peak: float  # bfloat16 FLOP/s of a device

  @classmethod
  def of(cls, name):
    """By the name of a topology; ValueError for what is unknown or can't be compiled for."""
    topology = topologies.parse(name)
    peak = hardware.PEAK_FLOPS[topology.chip.kind]
    return cls(topology, list(topologies.devices(topology)), peak)


def plan(cfg, target, price=0.0, decode=True):
  """The plan of a config.Config on a Target -> dict; price: dollars a device-hour."""
  cfg, notes = settled(cfg, target)
  mesh = sharding.make_mesh(cfg.mesh, target.devices)
  with jax.set_mesh(mesh):
    toks, more = tokenizers(cfg)
    model = language_model.resolve_model(cfg, toks)
    length = cfg.train.length or model.context
    sharding.check_batch(cfg.train.batch_size // cfg.train.accumulate, length, mesh)
    step = train_step(cfg, toks, model, mesh, target)
    found = {
      'topology': target.topology.name,
      'devices': mesh.size,
      'device': target.topology.chip.kind,
      'mesh': {axis: n for axis, n in mesh.shape.items() if n > 1},
      'batch_size': cfg.train.batch_size,
      'accumulate': cfg.train.accumulate,
      'length': length,
      'parameters': costs.count_params(model),
      'model': {key: getattr(model, key) for key in ('dtype', 'param_dtype', 'remat', 'unroll')},
      'train': step,
    }
    if decode:
      found['decode'] = decode_step(cfg, model, mesh, target)
  compiled = [found[kind] for kind in ('train', 'decode') if kind in found]
  found['fits'] = all(program['memory']['fits'] for program in compiled)
  found['notes'] = notes + more + step.pop('notes')
  found['table'] = step.pop('table')
  collectives = step.get('collectives', ())
  if target.topology.slices > 1 and collectives and not any(c['network'] for c in collectives):
    found['notes'].append(
      'what slices send each other does not show in the compiled program: it is not counted, and '
      'a step takes longer than estimated'
    )
  if 'estimate' in step:
    found['budget'] = budget(cfg, found, price)
  return found


def settled(cfg, target):
  """The config with a mesh for these devices where it names none -> (config, notes)."""
  if cfg.train.job != 'gpt':
    raise ValueError(
      f'train.job={cfg.train.job} is not planned, only gpt is\nfix: plan the experiment that reads its tokens'
    )
  cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, steps_per_call=1))
  if cfg.mesh != MeshConfig() or target.topology.size == 1:
    return cfg, []
  mesh = MeshConfig(data=target.topology.slices, fsdp=-1)
  flags = f'--config.mesh.data={mesh.data} --config.mesh.fsdp=-1'
  return dataclasses.replace(cfg, mesh=mesh), [f'the config names no mesh: train with {flags}']


def model_config(cfg):
  """The ModelConfig that would run on the mesh in force -> (it, notes)."""
  toks, notes = tokenizers(cfg)
  return language_model.resolve_model(cfg, toks), notes


def tokenizers(cfg):
  """Stand-ins for the run's tokenizers, checked as a run checks them -> (them, notes)."""
  run_tokenizers.check_modalities(cfg)
  toks, notes = abstract_inputs.tokenizers(cfg)
  run_tokenizers.check_use(cfg, toks)
  return toks, notes


# ------------------------------------------------------------------------------------ programs


def step_of(cfg, toks, model, mesh):
  """The program of a run with such tokenizers, and a batch -> (Program, ShapeDtypeStructs)."""
  tables = ModalityTables.build(toks, model.V) if len(toks.modalities) > 1 else None
  sources = len(data.source_names(cfg.data, 'train'))
  batch = abstract_inputs.batch(cfg, toks, cfg.train.length or model.context)
  placed = {name: with_sharding(x, sharding.batch_sharding(mesh, name)) for name, x in batch.items()}
  return gpt_program(cfg, model, mesh, modality_objective(cfg.loss, tables, sources)), placed


def train_step(cfg, toks, model, mesh, target):
  """Compile the train step -> its measures; in force: `mesh`."""
  notes, length = [], cfg.train.length or model.context

  def lowered(model):
    program, batch = step_of(cfg, toks, model, mesh)
    kernel = choice.describe_choice(model, batch, length)
    return program.step.lower(program.abstract, batch), (program.abstract, batch), kernel

  try:
    program, arguments, kernel = lowered(model)
  except RuntimeError as error:
    if 'cuDNN' not in str(error):
      raise
    notes.append(
      f'no fused attention: {error} It is planned with model.kernel=blocks, which needs '
      'about as little memory; pip install nvidia-cudnn-cu13 for the real one'
    )
    program, arguments, kernel = lowered(dataclasses.replace(model, kernel='blocks'))
  measures = measured(program, arguments, mesh, target)
  tokens = cfg.train.batch_size * length
  if estimate := measures.pop('seconds', None):
    flops = costs.flops_per_token(model, length)
    rate, mfu = roofline.rates(estimate.bound, tokens, flops['full'], mesh.size, target.peak)
    slowest, least = roofline.rates(estimate.serial, tokens, flops['full'], mesh.size, target.peak)
    measures['estimate'] = shown_estimate(estimate) | {
      'tokens_per_second': rate,
      'mfu': mfu,
      'mfu_causal': mfu * flops['causal'] / flops['full'],
      'tokens_per_second_serial': slowest,
      'mfu_serial': least,
    }
    measures['model_flops'] = flops['causal'] * tokens / mesh.size
  table = sharding_table.table(arguments[0].model, mesh)
  return {'attention': kernel} | measures | {'notes': notes, 'table': table}


def decode_step(cfg, model, mesh, target):
  """Compile one step of decoding, a row or more on each device that takes rows -> its measures."""
  shards = math.prod(mesh.shape[axis] for axis in sharding.ACTIVATION_RULES['B'])
  rows = shards * max(1, cfg.sample.num_samples // shards)
  slots = prompt_batch.round_up_prompt(model.context, model.context)
  rules = grammar.plain(np.ones(model.V, bool))
  abstract = jax.eval_shape(functools.partial(gpt.for_sampling, dtype=model.dtype), gpt.GPT(model))
  placed = gpt.shardings(abstract, mesh)
  weights = jax.tree.map(with_sharding, abstract, placed)
  zeros_B = np.zeros(rows, np.int32)
  prompts = PromptBatch(
    np.zeros((rows, 1), np.int32),
    zeros_B + 1,
    np.zeros((rows, 1), np.int32),
    {},
    None,
    grammar.GrammarState(zeros_B, zeros_B, zeros_B, zeros_B),
  )
  keys_B = jax.eval_shape(lambda: sample.row_keys(0, rows))
  state = jax.eval_shape(functools.partial(sample.prefill, slots=slots), abstract, prompts, keys_B)
  letters = lambda x: 'BGSK' if x.ndim == 4 else 'B' + 'T' * (x.ndim - 1)
  rules_of = sharding.ACTIVATION_RULES | {'T': None}
  spec = lambda x: sharding.spec(letters(x), rules_of, mesh.shape)
  state = jax.tree.map(lambda x: with_sharding(x, jax.sharding.NamedSharding(mesh, spec(x))), state)
  chosen = sample.static_config(cfg.sample)
  one = lambda weights, state, rules: sample.decode_step(weights, state, chosen, rules)
  program = jax.jit(one, donate_argnums=1).lower(weights, state, rules)
  measures = measured(program, (weights, state), mesh, target)
  if estimate := measures.pop('seconds', None):
    measures['estimate'] = shown_estimate(estimate) | {'tokens_per_second': rows / estimate.bound}
  return {'rows': rows, 'slots': slots} | measures


def with_sharding(x, placed):
  """A ShapeDtypeStruct there."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)


def shown_estimate(estimate):
  """An Estimate as numbers: seconds."""
  names = ('compute', 'memory', 'link', 'network', 'bound', 'serial', 'limit')
  return {name: getattr(estimate, name) for name in names}


def measured(program, arguments, mesh, target):
  """Compile what was lowered -> memory, and if it fits FLOPs, traffic, collectives and seconds."""
  held = sum(math.prod(x.sharding.shard_shape(x.shape)) * width(x) for x in jax.tree.leaves(arguments))
  start = time.perf_counter()
  try:
    compiled = program.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return {'memory': refused(str(error), held, target), 'compile_seconds': since(start)}
  memory = memory_of(compiled.memory_analysis(), held, target)
  made = hlo.costs(compiled.as_text(), dict(mesh.shape), crossing(mesh, target))
  return {
    'memory': memory,
    'compile_seconds': since(start),
    'flops': made.flops,
    'float32_flops': made.float32_flops,
    'traffic': made.traffic,
    'copies': made.copies,
    'kernels': {name: n for name, n in made.kernels.items() if name in hlo.KERNELS},
    'collectives': [c._asdict() | {'sent': roofline.sent(c)} for c in made.collectives],
    'seconds': roofline.estimate(made, target.topology.chip, target.peak),
  }


def since(start):
  """Seconds, rounded."""
  return round(time.perf_counter() - start, 1)


def width(x):
  """Bytes of a number; of a PRNG key, its two words."""
  return 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize


def memory_of(stats, held, target):
  """Bytes on each device by what they are for."""
  made = {
    'arguments': stats.argument_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
    'output': stats.output_size_in_bytes - stats.alias_size_in_bytes,
    'program': stats.generated_code_size_in_bytes,
  }
  total, available = sum(made.values()), target.topology.chip.memory
  return made | {
    'state_and_batch': held,
    'total': total,
    'available': available,
    'fits': total <= available,
    'compiler': '',
  }


def refused(message, held, target):
  """The same of a program that the compiler refused; temporaries as its message says."""
  needed = re.search(r'\(([\d.]+)([KMGT]?)\)', message)
  temporaries = float(needed[1]) * UNITS[needed[2]] if needed else 0.0
  return {
    'arguments': held,
    'temporaries': int(temporaries),
    'output': 0,
    'program': 0,
    'state_and_batch': held,
    'total': int(held + temporaries),
    'available': target.topology.chip.memory,
    'fits': False,
    'compiler': ' '.join(message.split())[:300],
  }


def crossing(mesh, target):
  """(place, place) in the mesh -> whether the slower network joins them."""
  name = 'slice_index' if target.topology.chip.platform == 'tpu' else 'process_index'
  at = [getattr(device, name, 0) for device in mesh.devices.flat]
  return lambda a, b: at[a] != at[b]


def budget(cfg, found, price):
  """Hours and dollars of the whole run at the bound: at least so much."""
  tokens = cfg.train.steps * cfg.train.batch_size * found['length']
  rate = found['train']['estimate']['tokens_per_second']
  hours, dollars = roofline.budget(tokens, rate, found['devices'], price)
  return {'tokens': tokens, 'hours': hours, 'dollars': dollars, 'price': price}


# ------------------------------------------------------------------------------------- search


def best(cfg, target, price=0.0, say=lambda line: None, most=24):
  """The best plan of several micro-batches, remat policies and meshes, with a `search` of all.

  Best: most tokens/s if nothing overlaps. A program that does not fit rules out its larger batches.
  Nothing is decoded. `say` is told a line of each; `most`: how many to compile.
  """
  plans = []
  is_unrolled = cfg.model.resolved(target.topology.chip.platform).unroll == 'on'
  for mesh in meshes(cfg, target):
    for remat in ('mlp_activations' if is_unrolled else 'none', 'dots_no_batch', 'full'):
      try:
        largest(cfg, target, mesh, remat, price, plans, say, most)
      except ValueError as error:  # the mesh does not divide this model
        say(str(error).replace('\n', '; '))
        break
  if not plans:
    raise ValueError('no mesh divides this model\nfix: name one, as --config.mesh.fsdp=8')
  found = max(plans, key=lambda p: p['fits'] and p['train']['estimate']['tokens_per_second_serial'])
  if found['fits']:
    found['notes'].append(f'the best of {len(plans)}: train with {found["flags"]}')
  found['search'] = [{'flags': p['flags'], 'fits': p['fits'], 'summary': format.summary(p)} for p in plans]
  return found


def largest(cfg, target, mesh, remat, price, plans, say, most):
  """Add plans of larger and larger micro-batches to `plans`, until one does not fit."""
  sizes = mesh.sizes(target.topology.size, target.topology.slices)
  shards = math.prod(sizes[axis] for axis in sharding.ACTIVATION_RULES['B'])
  for rows in (1, 2, 4, 8, 16, 32):
    if len(plans) == most:
      return
    plans.append(attempt(cfg, target, mesh, remat, rows * shards, price))
    say(format.summary(plans[-1]))
    if not plans[-1]['fits']:
      return


def meshes(cfg, target):
  """Meshes to try: the config's own if it names one, else weights spread, whole, or halved."""
  if cfg.mesh != MeshConfig() or target.topology.size == 1:
    return [cfg.mesh]
  slices = target.topology.slices
  tried = [MeshConfig(data=slices, fsdp=-1), MeshConfig(data=target.topology.size)]
  if cfg.model.heads % 2 == 0 and target.topology.per_slice > 2:
    tried.insert(1, MeshConfig(data=slices, fsdp=-1, tensor=2))
  return tried


def attempt(cfg, target, mesh, remat, batch_size, price):
  """One plan of a search, with the flags that make it."""
  model = dataclasses.replace(cfg.model, remat=remat)
  train = dataclasses.replace(cfg.train, batch_size=batch_size, accumulate=1)
  changed = dataclasses.replace(cfg, model=model, train=train, mesh=mesh)
  found = plan(changed, target, price, decode=False)
  chosen = {'train.batch_size': batch_size, 'train.accumulate': 1, 'model.remat': remat}
  chosen |= {f'mesh.{axis}': n for axis, n in found['mesh'].items()}
  found['flags'] = ' '.join(f'--config.{key}={value}' for key, value in chosen.items())
  return found
