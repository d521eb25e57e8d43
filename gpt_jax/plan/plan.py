"""Compile a run for hardware that is not here: memory, FLOPs, traffic, collectives, time estimates.

The programs are those that would run there: the train step of step.py and the decode step of sample.py,
for the mesh, kernels, dtypes and remat policy that `auto` means on that hardware. No data are read:
abstract_inputs.py derives shapes from the config. A plan is a dict that is printed as JSON as it is, or
by format.py as text.
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
from gpt_jax.cluster import batches, sharding_table
from gpt_jax.data import stages
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.jobs.base import trains_gpt
from gpt_jax.jobs.modality_objective import modality_objective
from gpt_jax.model import costs, gpt
from gpt_jax.model.kernels import choice
from gpt_jax.plan import abstract_inputs, program_costs, roofline, topologies
from gpt_jax.runs import hardware
from gpt_jax.sampling import decoding_layout, prompt_batch
from gpt_jax.sampling.prompt_batch import PromptBatch
from gpt_jax.sharding import MeshConfig
from gpt_jax.step import gpt_program
from gpt_jax.tokenizers import grammar
from gpt_jax.tokenizers.modality_tables import ModalityTables

UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class Target(NamedTuple):
  """Devices to compile for, and their peak."""

  topology: Any  # topologies.Topology
  devices: list
  peak: float  # bfloat16 FLOP/s of a device

  @classmethod
  def of(cls, name):
    """Target of a topology's name; ValueError if it is unknown or its compiler is not installed."""
    topology = topologies.parse(name)
    return cls(topology, list(topologies.devices(topology)), hardware.PEAK_FLOPS[topology.chip.kind])


def plan(cfg, target, price=0.0, decode=True):
  """The plan of a config.Config on a Target as a dict; price: dollars per device-hour."""
  cfg, notes = with_mesh(cfg, target)
  mesh = sharding.make_mesh(cfg.mesh, target.devices)
  with jax.set_mesh(mesh):
    toks, tokenizer_notes = tokenizers(cfg)
    model = language_model.resolve_model(cfg, toks)
    length = cfg.train.length or model.context
    batches.check_batch(cfg.train.batch_size // cfg.train.accumulate, length, mesh)
    step = train_step(cfg, toks, model, mesh, target)
    result = {
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
      result['decode'] = decode_step(cfg, model, mesh, target)
  programs = [result[name] for name in ('train', 'decode') if name in result]
  result['fits'] = all(program['memory']['fits'] for program in programs)
  rows = stages.describe(cfg.data.stages, cfg.data.mixture, cfg.train.batch_size, cfg.train.steps)
  result['notes'] = notes + tokenizer_notes + step.pop('notes') + ([rows] if rows else [])
  result['table'] = step.pop('table')
  collectives = step.get('collectives', ())
  if target.topology.slices > 1 and collectives and not any(c['network'] for c in collectives):
    result['notes'].append(
      'the compiled program does not show the traffic between slices: it is not counted, and a step takes '
      'longer than estimated'
    )
  if 'estimate' in step:
    tokens = cfg.train.steps * cfg.train.batch_size * length
    hours, dollars = roofline.budget(tokens, step['estimate']['tokens_per_second'], mesh.size, price)
    result['budget'] = {'tokens': tokens, 'hours': hours, 'dollars': dollars, 'price': price}
  return result


def with_chosen_mesh(cfg, target):
  """Return the config with its mesh in numbers, -1 replaced: one that a user typed is not exchanged."""
  sizes = cfg.mesh.sizes(target.topology.size, target.topology.slices)
  return dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, preset='', **sizes))


def with_mesh(cfg, target):
  """Return (config with a mesh for these devices, notes); a mesh of the config's own stays."""
  if cfg.train.job != 'gpt':
    other = 'its model and rows with train.job=gpt' if trains_gpt(cfg.train.job) else 'what reads its tokens'
    raise ValueError(f'train.job={cfg.train.job} cannot be planned, only gpt\nfix: plan {other}')
  cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, steps_per_call=1))
  if cfg.mesh != MeshConfig() or target.topology.size == 1:
    return cfg, []
  mesh = MeshConfig(data=target.topology.slices, fsdp=-1)
  flags = f'--config.mesh.data={mesh.data} --config.mesh.fsdp=-1'
  return dataclasses.replace(cfg, mesh=mesh), [f'the config sets no mesh: train with {flags}']


def tokenizers(cfg):
  """Return (stand-ins for the run's tokenizers, notes), checked as a run checks them."""
  run_tokenizers.check_modalities(cfg)
  toks, notes = abstract_inputs.tokenizers(cfg)
  run_tokenizers.check_use(cfg, toks)
  return toks, notes


# ------------------------------------------------------------------------------------ programs


def step_of(cfg, toks, model, mesh):
  """Return (Program of a run with such tokenizers, batch of ShapeDtypeStructs)."""
  tables = ModalityTables.build(toks, model.V) if len(toks.modalities) > 1 else None
  sources = len(data.source_names(cfg.data, 'train'))
  batch = abstract_inputs.batch(cfg, toks, cfg.train.length or model.context)
  batch = {name: with_sharding(x, batches.batch_sharding(mesh, name)) for name, x in batch.items()}
  return gpt_program(cfg, model, mesh, modality_objective(cfg.loss, tables, sources)), batch


def train_step(cfg, toks, model, mesh, target):
  """Compile the train step on the mesh in force and measure it -> dict."""
  notes, length = [], cfg.train.length or model.context

  def lower(model):
    program, batch = step_of(cfg, toks, model, mesh)
    kernel = choice.describe_choice(model, batch, length)
    return program.step.lower(program.abstract, batch), (program.abstract, batch), kernel

  try:
    lowered, arguments, kernel = lower(model)
  except RuntimeError as error:
    if 'cuDNN' not in str(error):
      raise
    notes.append(
      f'no fused attention: {error} The plan uses model.kernel=blocks instead, which needs about as '
      'little memory; pip install nvidia-cudnn-cu13 for the real kernel'
    )
    lowered, arguments, kernel = lower(dataclasses.replace(model, kernel='blocks'))
  measures = measure(lowered, arguments, mesh, target)
  tokens = cfg.train.batch_size * length
  if estimate := measures.pop('seconds', None):
    flops = costs.flops_per_token(model, length, cfg.adapter)
    rate, mfu = roofline.rates(estimate.bound, tokens, flops['full'], mesh.size, target.peak)
    serial_rate, serial_mfu = roofline.rates(estimate.serial, tokens, flops['full'], mesh.size, target.peak)
    measures['estimate'] = estimate.as_dict() | {
      'tokens_per_second': rate,
      'mfu': mfu,
      'mfu_causal': mfu * flops['causal'] / flops['full'],
      'tokens_per_second_serial': serial_rate,
      'mfu_serial': serial_mfu,
    }
    measures['model_flops'] = flops['causal'] * tokens / mesh.size
  table = sharding_table.table(arguments[0].model, mesh)
  return {'attention': kernel} | measures | {'notes': notes, 'table': table}


def decode_step(cfg, model, mesh, target):
  """Compile one decode step, with a row or more per device that takes rows, and measure it -> dict."""
  shards = math.prod(mesh.shape[axis] for axis in sharding.ACTIVATION_RULES['B'])
  rows = shards * max(1, cfg.sample.num_samples // shards)
  slots = prompt_batch.round_up_prompt(model.context, model.context)
  rules = grammar.plain(np.ones(model.V, bool))
  abstract = jax.eval_shape(
    functools.partial(decoding_layout.for_sampling, dtype=model.dtype), gpt.GPT(model)
  )
  weights = jax.tree.map(with_sharding, abstract, gpt.shardings(abstract, mesh))
  zeros_B, ids_BP = np.zeros(rows, np.int32), np.zeros((rows, 1), np.int32)
  grammar_state = grammar.GrammarState(zeros_B, zeros_B, zeros_B, zeros_B)
  prompts = PromptBatch(ids_BP, zeros_B + 1, ids_BP, {}, None, grammar_state)
  keys_B = jax.eval_shape(lambda: sample.row_keys(0, rows))
  state = jax.eval_shape(functools.partial(sample.prefill, slots=slots), abstract, prompts, keys_B)
  letters = lambda x: 'BGSK' if x.ndim == 4 else 'B' + 'T' * (x.ndim - 1)
  activation_rules = sharding.ACTIVATION_RULES | {'T': None}
  spec = lambda x: sharding.spec(letters(x), activation_rules, mesh.shape)
  state = jax.tree.map(lambda x: with_sharding(x, jax.sharding.NamedSharding(mesh, spec(x))), state)
  choices = sample.static_config(cfg.sample)
  decode = lambda weights, state, rules: sample.decode_step(weights, state, choices, rules)
  lowered = jax.jit(decode, donate_argnums=1).lower(weights, state, rules)
  measures = measure(lowered, (weights, state), mesh, target)
  if estimate := measures.pop('seconds', None):
    measures['estimate'] = estimate.as_dict() | {'tokens_per_second': rows / estimate.bound}
  return {'rows': rows, 'slots': slots} | measures


def with_sharding(x, sharding):
  """A ShapeDtypeStruct with this sharding."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def measure(lowered, arguments, mesh, target):
  """Compile a lowered program -> memory and, if it fits, FLOPs, traffic, collectives and `seconds`."""
  held = sum(math.prod(x.sharding.shard_shape(x.shape)) * width(x) for x in jax.tree.leaves(arguments))
  start = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    seconds = round(time.perf_counter() - start, 1)
    return {'memory': refused_memory(str(error), held, target), 'compile_seconds': seconds}
  stats = compiled.memory_analysis()
  parts = {
    'arguments': stats.argument_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
    'output': stats.output_size_in_bytes - stats.alias_size_in_bytes,
    'program': stats.generated_code_size_in_bytes,
  }
  work = program_costs.count_costs(compiled.as_text(), dict(mesh.shape), network_test(mesh, target))
  return {
    'memory': memory_of(parts, held, target),
    'compile_seconds': round(time.perf_counter() - start, 1),
    'flops': work.flops,
    'float32_flops': work.float32_flops,
    'traffic': work.traffic,
    'copies': work.copies,
    'kernels': {name: n for name, n in work.kernels.items() if name in program_costs.KERNELS},
    'collectives': [c._asdict() | {'sent': roofline.sent(c)} for c in work.collectives],
    'seconds': roofline.estimate(work, target.topology.chip, target.peak),
  }


def width(x):
  """Bytes of a number; of a PRNG key, its two words."""
  return 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize


def memory_of(parts, held, target):
  """Bytes per device by purpose; held: of state and batch, from their shapes."""
  total, available = sum(parts.values()), target.topology.chip.memory
  return parts | {
    'state_and_batch': held,
    'total': total,
    'available': available,
    'fits': total <= available,
    'compiler': '',
  }


def refused_memory(message, held, target):
  """memory_of a program that the compiler refused; temporaries from its message."""
  needed = re.search(r'\(([\d.]+)([KMGT]?)\)', message)
  temporaries = int(float(needed[1]) * UNITS[needed[2]]) if needed else 0
  parts = {'arguments': held, 'temporaries': temporaries, 'output': 0, 'program': 0}
  return memory_of(parts, held, target) | {'fits': False, 'compiler': ' '.join(message.split())[:300]}


def network_test(mesh, target):
  """(place, place) in the mesh -> whether the slower network joins them."""
  name = 'slice_index' if target.topology.chip.platform == 'tpu' else 'process_index'
  hosts = [getattr(device, name, 0) for device in mesh.devices.flat]
  return lambda a, b: hosts[a] != hosts[b]
