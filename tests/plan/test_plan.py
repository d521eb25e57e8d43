"""Plans for absent hardware: names, reading compiled programs, arithmetic, the command line."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax import config, data
from gpt_jax.cluster import batches, meshes
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.model import attention, costs
from gpt_jax.model.kernels import choice
from gpt_jax.plan import (
  abstract_inputs,
  format,
  hlo,
  job_programs,
  plan,
  program_costs,
  roofline,
  search,
  topologies,
)
from gpt_jax.sharding import MeshConfig, make_mesh
from tests import codecs, command_line, stand_ins, test_experiments, tiny_runs


@pytest.fixture
def call(capsys, monkeypatch):
  monkeypatch.setattr(topologies, 'ENVIRONMENT', {})
  return command_line.in_process(capsys, monkeypatch)


# --------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
  'name, kind, per_slice, slices',
  [
    ('v5e-256', 'TPU v5 lite', 256, 1),
    ('v5p-128', 'TPU v5', 64, 1),  # named by its cores
    ('v6e-256', 'TPU v6 lite', 256, 1),
    ('v4-32', 'TPU v4', 16, 1),
    ('2xv5e-256', 'TPU v5 lite', 256, 2),
    ('h200-8', 'H200', 8, 1),
    ('H100', 'H100', 1, 1),
    ('v4', 'TPU v4', 1, 1),
    ('4x8-h100', 'H100', 8, 4),
    ('4x8 h100', 'H100', 8, 4),
    ('4xh100-8', 'H100', 8, 4),
  ],
)
def test_topology_names(name, kind, per_slice, slices):
  actual = topologies.parse(name)
  assert (actual.chip.kind, actual.per_slice, actual.slices) == (kind, per_slice, slices)
  assert actual.size == per_slice * slices


@pytest.mark.parametrize(
  'name, hint',
  [
    ('v5-256', 'v5'),
    ('h20-8', 'h200-8'),
    ('v5e-100', 'v5e-64'),
    ('h100-16', '2xh100-8'),
    ('v5p-3', 'v5p-8'),
    ('4x16-h100', 'h100-8'),
    ('0xv5e-4', 'v5e-4'),
    ('', 'v5e-256'),
  ],
)
def test_unknown_topologies_suggest_near_names(name, hint):
  with pytest.raises(ValueError, match=r'--topology=') as error:
    topologies.parse(name)
  cause, fix = str(error.value).split('\n')
  assert name in cause and fix.startswith('fix: ') and hint in fix


@pytest.mark.parametrize(
  'chips, axes, shape',
  [
    (1, 2, (1, 1)),
    (8, 2, (2, 4)),
    (256, 2, (16, 16)),
    (1, 3, (1, 1, 1)),
    (4, 3, (2, 2, 1)),
    (16, 3, (2, 2, 4)),
    (64, 3, (4, 4, 4)),
    (4096, 3, (16, 16, 16)),
  ],
)
def test_slice_shapes(chips, axes, shape):
  assert topologies.torus(chips, axes) == shape


def test_every_chip_has_a_peak_and_a_faster_link_than_network():
  from gpt_jax.runs.hardware import PEAK_FLOPS

  for chip in topologies.CHIPS.values():
    assert PEAK_FLOPS[chip.kind] > chip.bandwidth > chip.link > chip.network


# ------------------------------------------------------------------------ reading what is compiled

PROGRAM = """HloModule jit_step

%body (p: (s32[], f32[4,8], f32[3,4,8])) -> (s32[], f32[4,8], f32[3,4,8]) {
  %p = (s32[], f32[4,8]{1,0}, f32[3,4,8]{2,1,0}) parameter(0)
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %w = bf16[8,8]{1,0} constant({...})
  %y = bf16[4,8]{1,0} convert(%x)
  %z = bf16[4,8]{1,0} dot(%y, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %g = bf16[16,8]{1,0} all-gather(%z), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %g.piece = bf16[16,8]{1,0} all-gather(%z), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[4,8]{1,0}, f32[3,4,8]{2,1,0}) tuple(%i, %x, %s)
}

%condition (p.1: (s32[], f32[4,8], f32[3,4,8])) -> pred[] {
  %p.1 = (s32[], f32[4,8]{1,0}, f32[3,4,8]{2,1,0}) parameter(0)
  %c = s32[] constant(3)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i.1, %c), direction=LT
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %loop = (s32[], f32[4,8]{1,0}, f32[3,4,8]{2,1,0}) while(%t0), condition=%condition, body=%body
  %k = bf16[32,4,8]{2,1,0} parameter(1)
  %v = bf16[2048,4,1]{2,1,0} parameter(2)
  %q = bf16[2048,32,8] convolution(%v, %k), window={size=32 pad=31_31}, dim_labels=bf0_0io->b0f
  %r = f32[1,8] reduce-scatter(%a), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}
  ROOT %s = f32[4,8] all-reduce(%a),replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}
}
"""


def test_loop_bodies_count_once_per_iteration():
  made = program_costs.count_costs(PROGRAM, {'data': 2, 'fsdp': 4}, lambda a, b: a // 4 != b // 4)
  by_kind = {c.kind: c for c in made.collectives}
  gather, reduce = by_kind['all-gather'], by_kind['all-reduce']
  assert (gather.count, gather.devices, gather.axes, gather.network) == (3, 4, 'fsdp', False)
  assert gather.bytes == 3 * 16 * 8 * 2 and gather.dtype == 'bf16'
  assert (reduce.count, reduce.devices, reduce.bytes) == (1, 2, 4 * 8 * 4)
  assert by_kind['reduce-scatter'].axes == 'data' and by_kind['reduce-scatter'].network
  products = 3 * (2 * 4 * 8 * 8) + 2 * 2048 * 4 * 8 * 32  # no product with padding
  assert made.flops == products and made.float32_flops == 0


RING = """HloModule jit_step

%body (p: (u32[], bf16[4,8], u32[])) -> (u32[], bf16[4,8], u32[]) {
  %p = (u32[], bf16[4,8]{1,0}, u32[]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %step = u32[] get-tuple-element(%p), index=2
  %y = bf16[4,8]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %next = u32[] add(%i, %step)
  ROOT %t = (u32[], bf16[4,8]{1,0}, u32[]) tuple(%next, %y, %step)
}

%condition (p.1: (u32[], bf16[4,8], u32[])) -> pred[] {
  %p.1 = (u32[], bf16[4,8]{1,0}, u32[]) parameter(0)
  %bound = u32[] constant(8)
  %i.1 = u32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i.1, %bound), direction=LT
}

ENTRY %main (a: bf16[4,8], w: bf16[8,8]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %w = bf16[8,8]{1,0} parameter(1)
  %start = u32[] constant(START)
  %two = u32[] constant(2)
  %carried = u32[] copy(%two)
  %t0 = (u32[], bf16[4,8]{1,0}, u32[]) tuple(%start, %a, %carried)
  %loop = (u32[], bf16[4,8]{1,0}, u32[]) while(%t0), condition=%condition, body=%body
  ROOT %r = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


ASYNCHRONOUS = """HloModule jit_step

ENTRY %main (a: bf16[16,8], b: bf16[16,8]) -> bf16[2,8] {
  %a = bf16[16,8]{1,0} parameter(0)
  %b = bf16[16,8]{1,0} parameter(1)
  %s = ((bf16[16,8]{1,0}, bf16[16,8]{1,0}), (bf16[2,8]{1,0}, bf16[2,8]{1,0})) reduce-scatter-start(%a, %b), channel_id=1, replica_groups=[1,8]<=[8]
  ROOT %d = (bf16[2,8]{1,0}, bf16[2,8]{1,0}) reduce-scatter-done(%s)
}
"""  # noqa: E501


def test_asynchronous_reduce_scatter_counts_its_operands_once():
  (scatter,) = program_costs.count_costs(ASYNCHRONOUS, {'fsdp': 8}).collectives
  assert (scatter.kind, scatter.count, scatter.bytes) == ('reduce-scatter', 1, 2 * 16 * 8 * 2)


@pytest.mark.parametrize('start, iterations', [(0, 4), (1, 4), (2, 3)])
def test_loops_whose_counter_steps_by_two_run_half_as_often(start, iterations):
  costs = program_costs.count_costs(RING.replace('START', str(start)))
  assert costs.flops == iterations * 2 * 4 * 8 * 8


COPIED = """HloModule jit_step

%turned (p: f32[4,8]) -> f32[8,4] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %t = f32[8,4]{1,0} transpose(%p), dimensions={1,0}
}

%doubled (p.1: f32[4,8]) -> f32[8,4] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  %t.1 = f32[8,4]{1,0} transpose(%p.1), dimensions={1,0}
  ROOT %d = f32[8,4]{1,0} add(%t.1, %t.1)
}

ENTRY %main (a: f32[4,8]) -> f32[8,4] {
  %a = f32[4,8]{1,0} parameter(0)
  %c = f32[4,8]{0,1} copy(%a)
  %near = f32[4,8]{1,0:S(1)} copy(%a)
  %far = f32[4,8]{1,0} copy(%near)
  %begun = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]) copy-start(%b)
  %b = bf16[4,8]{1,0} parameter(1)
  %done = bf16[4,8]{1,0} copy-done(%begun)
  %f = f32[8,4]{1,0} fusion(%c), kind=kInput, calls=%turned
  ROOT %g = f32[8,4]{1,0} fusion(%c), kind=kLoop, calls=%doubled
}
"""


def test_copies_compute_nothing_and_stay_in_memory():
  made = program_costs.count_costs(COPIED)
  assert made.copies == (32 + 32) * 4 + 32 * 2  # %c, %f and %begun
  assert program_costs.count_costs(PROGRAM).copies == 0


SCATTERED = """HloModule jit_step

%all-reduce-scatter.1 (input: bf16[16,8]) -> bf16[4,8] {
  %input = bf16[16,8]{1,0} parameter(0)
  %whole = bf16[16,8]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}
  ROOT %piece = bf16[4,8]{1,0} dynamic-slice(%whole, %i, %j), dynamic_slice_sizes={4,8}
}

ENTRY %main (a: bf16[16,8]) -> bf16[4,8] {
  %a = bf16[16,8]{1,0} parameter(0)
  ROOT %f = bf16[4,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_fused_all_reduce_and_slice_is_a_reduce_scatter():
  (actual,) = program_costs.count_costs(SCATTERED, {'fsdp': 4}).collectives
  assert (actual.kind, actual.bytes, actual.axes) == ('reduce-scatter', 16 * 8 * 2, 'fsdp')


@pytest.mark.parametrize(
  'text, group',
  [
    ('replica_groups={{0,2},{1,3}}', [0, 2]),
    ('replica_groups=[2,4]<=[8]', [0, 1, 2, 3]),
    ('replica_groups=[2,4]<=[4,2]T(1,0)', [0, 2, 4, 6]),
    ("replica_groups=mesh['x'=2,'y'=4] {'x'}", [0, 4]),
    ("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}", [0, 1, 2, 3]),
    ("replica_groups=mesh['x'=8] {'x':(2)2}", [0, 2]),
    ('source_target_pairs={{0,1},{1,2}}', [0, 1]),
    ('replica_groups={}', list(range(8))),
  ],
)
def test_groups_of_devices(text, group):
  assert hlo.first_group(text, 8) == group


def test_mesh_axes_of_compiled_collectives():
  """A gather over fsdp and a reduction over all, in whatever notation this XLA writes."""
  mesh = make_mesh(MeshConfig(data=2, fsdp=4))
  placed = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))

  def loss(w, x):
    w = jax.lax.with_sharding_constraint(w, placed())
    return (x @ w).sum()

  shapes = ((16, 16), placed('fsdp')), ((64, 16), placed(('data', 'fsdp')))
  w, x = (jax.ShapeDtypeStruct(s, jnp.float32, sharding=p) for s, p in shapes)
  grad = jax.jit(jax.grad(loss), out_shardings=placed('fsdp'))
  made = program_costs.count_costs(grad.lower(w, x).compile().as_text(), dict(mesh.shape))
  assert {c.axes for c in made.collectives} <= {'fsdp', 'data', 'data x fsdp'}
  assert any(c.kind in ('all-reduce', 'reduce-scatter') for c in made.collectives)


# ------------------------------------------------------------------------------------ arithmetic


def test_estimates_by_hand():
  chip = topologies.CHIPS['h100']._replace(bandwidth=1e12, link=1e11, network=1e10)
  collective = lambda kind, n, network: program_costs.Collective(kind, n, 'fsdp', network, 'bf16', 1, 1e9)
  costs = program_costs.ProgramCosts(flops=1e12, traffic=1e9)
  costs.collectives = [collective('all-gather', 4, False), collective('all-reduce', 2, True)]
  actual = roofline.estimate(costs, chip, 1e15)
  np.testing.assert_allclose(
    [actual.compute, actual.memory, actual.link, actual.network], [1e-3, 1e-3, 7.5e-3, 0.1]
  )
  assert actual.limit == 'network' and actual.bound == 0.1
  assert (
    roofline.estimate(program_costs.ProgramCosts(flops=1e12, float32_flops=1e12), chip, 1e15).compute == 2e-3
  )
  assert roofline.rates(0.5, 1000, 1e9, 2, 1e12) == (2000.0, 1.0)
  assert roofline.budget(7200, 1.0, 4, 3.0) == (2.0, 24.0)
  assert roofline.budget(7200, 1.0, 4, 0.0) == (2.0, None)


# ------------------------------------------------------------------- plans, of the devices here


def tiny_config(**model):
  cfg = config.default()
  cfg.model.update(layers=2, width=32, heads=2, context=32, remat='none', dtype='float32', **model)
  cfg.train.update(batch_size=8, accumulate=1)
  return config.build(config.Config, cfg)


def here(monkeypatch, memory=2**34):
  """The eight CPU devices, as if they were something for sale."""
  chip = topologies.CHIPS['h200']._replace(memory=memory)
  topology = topologies.Topology('here-8', chip, 8)
  target = plan.Target(topology, jax.devices(), 1e12)
  monkeypatch.setattr(plan.Target, 'of', classmethod(lambda cls, name: target))
  return target


@pytest.mark.slow
def test_memory_and_work_agree_with_compiler_and_arithmetic(monkeypatch):
  target = here(monkeypatch)
  scanned, unrolled = (
    plan.plan(tiny_config(unroll=unroll), target, price=2.0, decode=unroll == 'off')
    for unroll in ('off', 'on')
  )
  memory = scanned['train']['memory']
  assert memory['fits'] and scanned['mesh'] == {'fsdp': 8}
  # Predicted from shapes and shardings; the compiler pads small arrays.
  assert abs(memory['state_and_batch'] / memory['arguments'] - 1) < 0.02
  assert scanned['train']['flops'] == pytest.approx(unrolled['train']['flops'], rel=1e-6)
  model = language_model.resolve_model(tiny_config(), plan.tokenizers(tiny_config())[0])
  flops = costs.flops_per_token(model, 32)['full']
  assert scanned['train']['flops'] == pytest.approx(flops * 32, rel=0.1)  # a row each device
  assert scanned['train']['collectives'] and scanned['decode']['rows'] == 8
  assert scanned['budget']['dollars'] == pytest.approx(scanned['budget']['hours'] * 16)
  text = '\n'.join(format.lines(scanned))
  assert 'fits:' in text and 'not measured' in text and 'dollars' in text


def test_command_line(monkeypatch, call, tmp_path):
  here(monkeypatch)
  words = [
    'plan',
    f'--config={command_line.experiment(tmp_path)}',
    '--topology=here',
    '--nodecode',
    '--config.train.batch_size=8',
    '--config.train.steps=4',
    "--config.data.mixture={'a': {'kind': 'synthetic'}, 'b': {'kind': 'synthetic'}}",
    '--config.data.stages=1: b=1',
    '--json',
  ]
  code, out, err = call(*words)
  assert code == 0, err
  assert json.loads(out)['fits'] is True and 'table' not in json.loads(out)
  assert json.loads(out)['notes'][-1] == 'rows in steps 0 to 1: 4 a, 4 b; 1 to 4: 24 b'
  here(monkeypatch, memory=1000)
  code, out, err = call(*words)
  assert code == 2 and json.loads(out)['fits'] is False


@pytest.mark.parametrize('changes', [dict(), dict(data=-1, fsdp=1), dict(preset='laptop')], ids=str)
def test_a_typed_mesh_is_planned_even_if_it_is_the_default(changes):
  target = plan.Target(topologies.parse('2xv5e-16'), [], 1.0)
  cfg = config.Config(mesh=MeshConfig(**changes))
  kept, notes = plan.with_mesh(plan.with_chosen_mesh(cfg, target), target)
  assert kept.mesh == MeshConfig(data=32) and not notes
  if not changes:
    assert plan.with_mesh(cfg, target)[0].mesh == MeshConfig(data=2, fsdp=-1)


def test_text_names_the_kernel_and_table_on_demand(monkeypatch, call, tmp_path):
  """The kernel and, on demand, where each parameter lies."""
  here(monkeypatch)
  words = [
    'plan',
    f'--config={command_line.experiment(tmp_path)}',
    '--topology=here',
    '--nodecode',
    '--config.train.batch_size=8',
  ]
  compile_ = lambda *_: {'memory': plan.refused_memory('(1G)', 0, plan.Target.of(''))}
  monkeypatch.setattr(plan, 'measure', compile_)
  code, out, err = call(*words)
  assert code == 2, err
  assert ', attention xla (chunks cannot honor a mesh of 8 devices)\n' in out
  assert 'embed_VD' not in out
  code, out, err = call(*words, '--table')
  [line] = [line.split() for line in out.splitlines() if line.startswith('embed_VD')]
  assert line == ['embed_VD', '384', 'x', '16', 'float32', '-,', 'fsdp', f'{384 * 16 // 8 * 4:,}']


@pytest.mark.slow
def test_search_finds_a_plan_that_fits(monkeypatch):
  target = here(monkeypatch)
  lines = []
  actual = search.best_plan(tiny_config(), target, report=lines.append, limit=2)
  assert actual['fits'] and len(actual['search']) == len(lines) == 2
  assert '--config.train.batch_size=' in actual['notes'][-1]


def test_search_grows_batches_until_one_does_not_fit(monkeypatch):
  """Whatever it compiles: eight rows a device fit without remat, all that is tried with it."""
  target, lines = here(monkeypatch), []

  def planned(cfg, target, mesh, remat, batch_size, price):
    if mesh.tensor == 2:
      raise ValueError('tensor: does not divide\nfix: none')
    fits = remat != 'none' or batch_size <= 64
    estimate = {'tokens_per_second_serial': batch_size, 'tokens_per_second': 2 * batch_size}
    memory = {'fits': fits, 'total': batch_size, 'available': 64}
    return {
      'fits': fits,
      'mesh': {'data': mesh.data},
      'model': {'remat': remat},
      'notes': [],
      'batch_size': batch_size,
      'flags': f'{remat} {batch_size}',
      'train': {'memory': memory, 'estimate': estimate},
    }

  monkeypatch.setattr(search, 'try_plan', planned)
  actual = search.best_plan(tiny_config(unroll='off'), target, report=lines.append, limit=100)
  rows = lambda remat: [p['flags'] for p in actual['search'] if p['flags'].startswith(remat)]
  assert rows('none') == 2 * [f'none {8 * n}' for n in (1, 2, 4, 8, 16)]
  assert len(rows('full')) == 2 * 6 and actual['flags'] == 'dots_no_batch 256'
  assert sum('does not fit' in line for line in lines) == 2
  assert sum('does not divide' in line for line in lines) == 1
  assert actual['notes'] == [f'the best of {len(actual["search"])}: train with dots_no_batch 256']


@pytest.mark.parametrize('name, package', [('v5e-8', 'libtpu'), ('h200-8', 'jax-cuda13-plugin')])
def test_missing_compilers_are_named(monkeypatch, call, name, package):
  monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda module: None)
  fix = command_line.assert_user_error(call('plan', f'--topology={name}'), package)
  assert "'.[plan]'" in fix


def test_unplannable_configs_fail(monkeypatch, call):
  here(monkeypatch)
  arguments = ('plan', '--config=experiments/tokenizers/mnist_fsq.py', '--topology=here')
  command_line.assert_user_error(call(*arguments), 'train.job=image_tokenizer')
  command_line.assert_user_error(call('plan'), '--topology is missing')
  assert meshes.PRESETS['v5e-256'] == dict(data=1, fsdp=-1)


# ------------------------------------------------------------------------- what a run would read


@pytest.fixture(scope='module')
def corpora(tmp_path_factory):
  """Small ones in the place of those that experiments name."""
  folder = tmp_path_factory.mktemp('corpora')
  for name in ('mnist', 'fsdd', 'tinyshakespeare'):
    (folder / name).mkdir()
  stand_ins.write_mnist(folder / 'mnist')
  stand_ins.write_recordings(folder / 'fsdd/recordings.zip')
  words = 'First Citizen: Before we proceed, hear me speak.\n\nYou are all resolved to die\n\n'
  (folder / 'tinyshakespeare/input.txt').write_text(60 * words)
  return folder


@pytest.mark.parametrize(
  'name, chosen, entries',
  [
    ('demo', {}, 'positions_BT3 source_ids_B'),
    ('mnist', dict(task='read', continuous='true'), 'patches_BTA positions_BT3 prefix_BT'),
    ('multimodal', {}, 'positions_BT3 source_ids_B'),
    ('digits_speech', dict(continuous='true', task='recognize'), 'frames_BTM'),
    ('gpt2', dict(text='tinyshakespeare/input.txt'), ''),
  ],
)
def test_planned_batch_equals_a_loader_batch(name, chosen, entries, corpora, tmp_path, monkeypatch):
  monkeypatch.setenv('GPT_JAX_DATA', str(corpora))
  cfg = test_experiments.small(command_line.ROOT / f'experiments/{name}.py', None, **chosen)
  few = lambda source: dataclasses.replace(
    source, documents=60, kind=source.kind.replace('builtin', 'synthetic')
  )
  if name == 'demo':  # whose text and sounds take seconds to read
    mixture = {key: few(x) if x.kind != 'digits' else x for key, x in cfg.data.mixture.items()}
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, mixture=mixture))
  toks = run_tokenizers.build(cfg, tmp_path)
  length = cfg.model.context
  loader = data.Loader(
    cfg.data, toks, split='train', batch_size=cfg.train.batch_size, length=length, seed=0, cache_dir=tmp_path
  )
  of = lambda batch: {key: (x.shape, np.dtype(x.dtype).name) for key, x in batch.items()}
  planned, notes = abstract_inputs.tokenizers(cfg)
  made = of(abstract_inputs.batch(cfg, planned, length))
  assert made == of(loader.first())
  assert set(entries.split()) <= set(made)
  ids = lambda toks: [pair for pair in toks.vocabulary.ranges if pair[0] != 'text']
  assert ids(planned) == ids(toks) and 'vocabulary of' in notes[0]


READ = {
  'read': {'kind': 'digits', 'template': '{image:patches} -> {name}'},
  'draw': {'kind': 'digits', 'template': '{name} -> {image:image}'},
  'listen': {'kind': 'keypad', 'template': '{audio:frames} -> {name}', 'documents': 60},
}


def test_planned_step_equals_the_step_of_a_run(tmp_path, monkeypatch):
  """Letter by letter: modalities, sources, a prefix, continuous inputs, a restricted softmax."""
  cfg = config.build(
    config.Config,
    tiny_runs.media(
      data__mixture=READ, data={'packing': 'first_fit', 'prefix': True}, loss={'restrict': True}
    ),
  )
  mesh = make_mesh(cfg.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    job = language_model.LanguageModelJob(cfg, tmp_path, mesh)
    batch = batches.to_devices(job.example_batch(), mesh)
    real = job.program.step.lower(job.program.abstract, batch).as_text()
    run, _ = plan.run_of(cfg, mesh)
    taken, choose = set(), choice.choose_kernel
    note = lambda *args: taken.add(choose(*args)) or choose(*args)
    monkeypatch.setattr(attention, 'choose_kernel', note)
    program, batch = job_programs.step_of(run)
    assert program.step.lower(program.abstract, batch).as_text() == real
    monkeypatch.undo()
    assert taken == {choice.describe_choice(job.model_cfg, batch, job.length)}


def test_model_vocab_bounds_the_text_tokenizer():
  """A corpus has fewer characters than the 256 that are planned, GPT-2 has just its own ids."""
  toks, notes = abstract_inputs.tokenizers(tiny_config(vocab=100))
  assert toks.vocabulary.size == 256 + 16  # of bytes, and refused
  with pytest.raises(ValueError, match='model.vocab=100'):
    language_model.resolve_model(tiny_config(vocab=100), plan.tokenizers(tiny_config(vocab=100))[0])
  made = config.default()
  made.tokenizer.kind, made.model.vocab = 'chars', 100
  made.image.update(kind='fsq', levels=(8, 6, 5), height=8, width=8)
  made.audio.update(kind='fsq', path='runs/none-such')
  toks, notes = abstract_inputs.tokenizers(config.build(config.Config, made))
  assert toks.vocabulary.count('image0') == 240 and toks.vocabulary.count('audio0') == 1000
  assert notes == [abstract_inputs.NOT_HERE.format('runs/none-such')]
  made.audio.update(kind='', path='')
  made.model.vocab = 300
  toks, notes = abstract_inputs.tokenizers(config.build(config.Config, made))
  assert toks.vocabulary.size == 300 and not notes


def test_a_codec_is_read_where_training_finds_it(tmp_path, monkeypatch):
  codecs.write(tmp_path / 'encodec', codecs.ENCODEC)
  made = config.default()
  made.audio.update(kind='codec', path='encodec', books=2)
  toks, notes = abstract_inputs.tokenizers(config.build(config.Config, made))
  assert toks.vocabulary.count('audio0') == 1024 and notes[1:] == [abstract_inputs.NO_CODEC.format('encodec')]
  monkeypatch.setenv('GPT_JAX_DATA', str(tmp_path))
  toks, notes = abstract_inputs.tokenizers(config.build(config.Config, made))
  assert toks.vocabulary.count('audio0') == 8 and not notes[1:]


# --------------------------------------------------------------------- compilers of absent hardware


def planned(tmp_path, topology, *words):
  """launch.py plan --json of a small model -> (exit code, the plan)."""
  missing = topologies.missing(topologies.parse(topology))
  if missing:
    pytest.skip(f'{", ".join(missing)} is not installed: pip install -e ".[plan]"')
  sizes = {'width': 256, 'heads': 4, 'context': 256, 'dropout': 0.0}
  code, out = command_line.launch(
    'plan',
    f'--config={command_line.experiment(tmp_path)}',
    f'--topology={topology}',
    '--json',
    *[f'--config.model.{key}={value}' for key, value in sizes.items()],
    *words,
    folder=tmp_path,
    env={'JAX_DISABLE_MOST_OPTIMIZATIONS': '0', 'XLA_FLAGS': ''},  # a plan is of the optimized program
  )
  begin = out.find('{\n "topology"')  # what libtpu says may come before and after it
  return code, json.JSONDecoder().raw_decode(out[begin:])[0] if begin >= 0 else out


@pytest.mark.slow
def test_splash_attention_compiles_for_a_tpu(tmp_path):
  code, actual = planned(
    tmp_path, 'v5e-8', '--config.model.kernel=splash', '--config.train.batch_size=8', '--nodecode'
  )
  assert code == 0, actual
  step = actual['train']
  assert step['kernels'] == {'splash_mha_fwd': 2, 'splash_mha_dkv': 2}
  assert actual['model']['dtype'] == 'bfloat16' and step['float32_flops'] == 0
  kinds = {c['kind'] for c in step['collectives'] if c['bytes'] > 10_000}
  assert kinds <= {'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all'}
  assert all(c['axes'] == 'fsdp' and not c['network'] for c in step['collectives'])
  residual_stream = actual['batch_size'] * actual['length'] * 256 * 2 / actual['devices']
  assert step['copies'] < 0.01 * residual_stream  # a few scalars


@pytest.mark.slow
def test_program_too_large_for_a_tpu_does_not_fit(tmp_path):
  code, actual = planned(
    tmp_path, 'v5e-1', '--config.model.kernel=xla', '--config.train.batch_size=65536', '--nodecode'
  )
  assert code == 2, actual
  assert not actual['fits'] and 'memory' in actual['train']['memory']['compiler'].lower()


@pytest.mark.slow
def test_gpu_program_has_fused_attention(tmp_path):
  code, actual = planned(tmp_path, '2x4-h100', '--config.train.batch_size=8')
  assert code == 0, actual
  step = actual['train']
  if not actual['notes'][-1].startswith('no fused attention'):  # cuDNN's library is there
    assert step['kernels'] == {'__cudnn$fmhaSoftmax': 2, '__cudnn$fmhaSoftmaxBackward': 2}
    # Before they are kept, some weights, and moments like them, are turned back: 1.41 times all.
    assert step['copies'] < 1.5 * 4 * actual['parameters'] / actual['mesh']['fsdp']
  assert actual['mesh'] == {'data': 2, 'fsdp': 4}
  assert step['float32_flops'] < 1e-3 * step['flops']
  assert actual['decode']['copies'] < 0.07 * actual['decode']['traffic']  # 0.060
  across = {c['axes'] for c in step['collectives'] if c['network'] and c['bytes'] > 100_000}
  assert all('data' in axes for axes in across)
