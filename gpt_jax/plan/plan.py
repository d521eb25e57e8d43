"""Compile a run for hardware that is not here: memory, FLOPs, traffic, collectives, time estimates.

The programs are those that would run there: the train step of step.py, what its job runs before it
(job_programs.py) and the decode step of sample.py, for the mesh, kernels, dtypes and remat policy that `auto`
means on that hardware. No data are read: abstract_inputs.py derives shapes from the config. A plan is a dict
that is printed as JSON as it is, or by format.py as text.
"""

import dataclasses
import math
import re
import time
from typing import Any, NamedTuple

import jax

from gpt_jax import sharding
from gpt_jax.cluster import batches, sharding_table
from gpt_jax.data import stages
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.model import costs
from gpt_jax.model.kernels import choice
from gpt_jax.plan import abstract_inputs, job_programs, program_costs, roofline, sampling_programs, topologies
from gpt_jax.runs import hardware
from gpt_jax.sampling import prompt_batch
from gpt_jax.sharding import MeshConfig

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
    run, tokenizer_notes = run_of(cfg, mesh)
    model = run.model
    batches.check_batch(cfg.train.batch_size // cfg.train.accumulate, run.length, mesh)
    step = train_step(run, target)
    result = {
      'topology': target.topology.name,
      'devices': mesh.size,
      'device': target.topology.chip.kind,
      'mesh': {axis: n for axis, n in mesh.shape.items() if n > 1},
      'batch_size': cfg.train.batch_size,
      'rows': tokens_of_step(run) // run.length,
      'accumulate': cfg.train.accumulate,
      'length': run.length,
      'parameters': costs.count_params(model),
      'model': {key: getattr(model, key) for key in ('dtype', 'param_dtype', 'remat', 'unroll')},
      'before': step.pop('before'),
      'train': step,
    }
    if decode:
      result['decode'] = decode_step(cfg, model, mesh, target)
  programs = [step, *result['before'].values(), *([result['decode']] if decode else [])]
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
    tokens = cfg.train.steps * tokens_of_step(run)
    hours, dollars = roofline.budget(tokens, step['estimate']['tokens_per_second'], mesh.size, price)
    result['budget'] = {'tokens': tokens, 'hours': hours, 'dollars': dollars, 'price': price}
  return result


def with_chosen_mesh(cfg, target):
  """Return the config with its mesh in numbers, -1 replaced: one that a user typed is not exchanged."""
  sizes = cfg.mesh.sizes(target.topology.size, target.topology.slices)
  return dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, preset='', **sizes))


def with_mesh(cfg, target):
  """Return (config with a mesh for these devices, notes); a mesh of the config's own stays."""
  job_programs.check_job(cfg)
  cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, steps_per_call=1))
  if cfg.mesh != MeshConfig() or target.topology.size == 1:
    return cfg, []
  mesh = MeshConfig(data=target.topology.slices, fsdp=-1)
  flags = f'--config.mesh.data={mesh.data} --config.mesh.fsdp=-1'
  return dataclasses.replace(cfg, mesh=mesh), [f'the config sets no mesh: train with {flags}']


def run_of(cfg, mesh):
  """Return (job_programs.Run, notes) of a config on the mesh in force."""
  toks, notes = tokenizers(cfg)
  return job_programs.Run(cfg, toks, language_model.resolve_model(cfg, toks), mesh), notes


def tokenizers(cfg):
  """Return (tokenizers, notes), checked as a run checks them: those of its parent, else stand-ins."""
  if run_tokenizers.parent_of(cfg):
    toks, notes = run_tokenizers.of_parent(cfg, abstract_inputs.media), []
  else:
    run_tokenizers.check_modalities(cfg)
    toks, notes = abstract_inputs.tokenizers(cfg)
  run_tokenizers.check_use(cfg, toks)
  return toks, notes


# ------------------------------------------------------------------------------------ programs


def train_step(run, target):
  """Compile the train step of a job_programs.Run on the mesh in force and what runs before it -> dict."""
  notes = job_programs.notes(run)

  def lower(run):
    program, batch = job_programs.step_of(run)
    kernel = choice.describe_choice(run.model, batch, run.length)
    before, beside = job_programs.JOBS[run.cfg.train.job].before(run, program.abstract, batch)
    return program.step.lower(program.abstract, batch), (program.abstract, batch), kernel, before, beside

  try:
    lowered, arguments, kernel, before, beside = lower(run)
  except RuntimeError as error:
    if 'cuDNN' not in str(error):
      raise
    notes.append(
      f'no fused attention: {error} The plan uses model.kernel=blocks instead, which needs about as '
      'little memory; pip install nvidia-cudnn-cu13 for the real kernel'
    )
    run = run._replace(model=dataclasses.replace(run.model, kernel='blocks'))
    lowered, arguments, kernel, before, beside = lower(run)
  state, batch = arguments
  held = {'trained parameters': state.model, 'optimizer': state.opt_state, 'frozen base': state.frozen}
  held = {name: job_programs.total(tree) for name, tree in (held | {'batch': batch}).items()} | beside
  measures = measure(lowered, arguments, run.mesh, target, sum(beside.values()))
  measures['held'] = {name: size for name, size in held.items() if size}
  measures['before'] = {
    name: {'calls': b.calls} | measure(b.lowered, b.arguments, run.mesh, target, b.beside)
    for name, b in before.items()
  }
  add_estimates(run, measures, target)
  table = sharding_table.table(state.model, run.mesh)
  return {'attention': kernel} | measures | {'notes': notes, 'table': table}


def tokens_of_step(run):
  """Tokens of all rows of a step, padding included."""
  documents = job_programs.JOBS[run.cfg.train.job].job.documents_per_row(run.cfg)
  return run.cfg.train.batch_size * documents * run.length


def add_estimates(run, measures, target):
  """Put the `estimate` of each program in the place of its `seconds`; rates are those of whole steps."""
  bound = serial = 0.0
  programs = [(1, measures), *((b['calls'], b) for b in measures['before'].values())]
  for calls, program in programs:
    if 'seconds' in program:
      seconds = program.pop('seconds')
      program['estimate'] = seconds.as_dict()
      bound, serial = bound + calls * seconds.bound, serial + calls * seconds.serial
  if not all('estimate' in program for _, program in programs):
    measures.pop('estimate', None)
    return
  tokens, size = tokens_of_step(run), run.mesh.size
  flops = costs.flops_per_token(run.model, run.length, run.cfg.adapter)
  rate, mfu = roofline.rates(bound, tokens, flops['full'], size, target.peak)
  serial_rate, serial_mfu = roofline.rates(serial, tokens, flops['full'], size, target.peak)
  measures['estimate'] |= {
    'step': bound,
    'step_serial': serial,
    'tokens_per_second': rate,
    'mfu': mfu,
    'mfu_causal': mfu * flops['causal'] / flops['full'],
    'tokens_per_second_serial': serial_rate,
    'mfu_serial': serial_mfu,
  }
  measures['model_flops'] = flops['causal'] * tokens / size


def decode_step(cfg, model, mesh, target):
  """Compile one decode step, with a row or more per device that takes rows, and measure it -> dict."""
  shards = math.prod(mesh.shape[axis] for axis in sharding.ACTIVATION_RULES['B'])
  rows = shards * max(1, cfg.sample.num_samples // shards)
  slots = prompt_batch.round_up_prompt(model.context, model.context)
  measures = measure(*sampling_programs.lower_decode(model, mesh, rows, slots, cfg.sample), mesh, target)
  if estimate := measures.pop('seconds', None):
    measures['estimate'] = estimate.as_dict() | {'tokens_per_second': rows / estimate.bound}
  return {'rows': rows, 'slots': slots} | measures


def measure(lowered, arguments, mesh, target, beside=0):
  """Compile a lowered program -> memory and, if it fits, FLOPs, traffic, collectives and `seconds`.

  beside: bytes of a device that are none of its arguments and stay in memory while it runs.
  """
  held = job_programs.total(arguments)
  start = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    seconds = round(time.perf_counter() - start, 1)
    return {'memory': refused_memory(str(error), held, target, beside), 'compile_seconds': seconds}
  stats = compiled.memory_analysis()
  parts = {
    'arguments': stats.argument_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
    'output': stats.output_size_in_bytes - stats.alias_size_in_bytes,
    'program': stats.generated_code_size_in_bytes,
    'beside': beside,
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


def refused_memory(message, held, target, beside=0):
  """memory_of a program that the compiler refused; temporaries from its message."""
  needed = re.search(r'\(([\d.]+)([KMGT]?)\)', message)
  temporaries = int(float(needed[1]) * UNITS[needed[2]]) if needed else 0
  parts = {'arguments': held, 'temporaries': temporaries, 'output': 0, 'program': 0, 'beside': beside}
  return memory_of(parts, held, target) | {'fits': False, 'compiler': ' '.join(message.split())[:300]}


def network_test(mesh, target):
  """(place, place) in the mesh -> whether the slower network joins them."""
  name = 'slice_index' if target.topology.chip.platform == 'tpu' else 'process_index'
  hosts = [getattr(device, name, 0) for device in mesh.devices.flat]
  return lambda a, b: hosts[a] != hosts[b]
