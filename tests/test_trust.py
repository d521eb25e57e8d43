"""The promises that users rely on: equal results however they are computed.

Resumed = uninterrupted is in test_resume.py, imported = the original's logits in test_interop.py.
"""

import dataclasses
import functools
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import losses, step
from gpt_jax.cluster import batches
from gpt_jax.model import gpt
from gpt_jax.sampling import decoding_layout
from tests import models

# -------------------------------------------------------------------------------- cached = uncached


@jax.jit
def advance(model, ids_BT, cache, start_B):
  """Run the next tokens of every row from its own position -> (logits, cache)."""
  out = decoding_layout.for_sampling(model, 'float32')(ids_BT, cache=cache, start_B=start_B)
  return out.logits_BTV, out.cache


ONE_BY_ONE = ('learned', 'alibi', 'pattern', 'yarn', 'experts')  # others advance four tokens at once only


@pytest.mark.parametrize('name', models.VARIANTS)
def test_cached_equals_uncached(name):
  """Prompts of 1 to 4 tokens in one batch with arbitrary padding, then the following tokens."""
  model, ids_BT = models.fill(models.tiny(**models.VARIANTS[name])), models.tokens()
  expected_BTV = np.asarray(models.logits(model, ids_BT))
  rows_B = np.arange(models.ROWS)
  lengths_B = (rows_B % 4 + 1).astype(np.int32)
  is_prompt_BP = np.arange(4)[None] < lengths_B[:, None]
  cache = gpt.init_cache(model.cfg, models.ROWS, 11, 'float32')
  prompts_BP = np.where(is_prompt_BP, ids_BT[:, :4], 7)
  logits_BPV, cache = advance(model, prompts_BP, cache, np.zeros_like(lengths_B))
  models.assert_close(logits_BPV[is_prompt_BP], expected_BTV[:, :4][is_prompt_BP])
  places_B4 = lengths_B[:, None] + np.arange(4)
  follow = lambda places: (ids_BT[rows_B[:, None], places], expected_BTV[rows_B[:, None], places])
  ids_B4, expected_B4V = follow(places_B4)
  models.assert_close(advance(model, ids_B4, cache, lengths_B)[0], expected_B4V)
  for n in range(4 if name in ONE_BY_ONE else 0):
    ids_B1, expected_B1V = follow(places_B4[:, n : n + 1])
    logits_B1V, cache = advance(model, ids_B1, cache, lengths_B + n)
    models.assert_close(logits_B1V, expected_B1V)


def test_sampling_drops_no_token_at_any_capacity_factor():
  ids_BT, start_B = models.tokens(), np.zeros(models.ROWS, np.int32)

  def logits(factor):
    cfg = models.tiny(experts=4, capacity_factor=factor)
    cache = gpt.init_cache(cfg, models.ROWS, models.LENGTH, 'float32')
    return advance(models.fill(cfg), ids_BT, cache, start_B)[0]

  models.assert_close(logits(0.25), logits(0.0))


@pytest.mark.parametrize('name', ['learned', 'pattern', 'softcap', 'experts'])
def test_scanned_layers_equal_unrolled_layers(name):
  cfg, ids_BT = models.tiny(**models.VARIANTS[name]), models.tokens()
  unrolled = models.logits(models.fill(dataclasses.replace(cfg, unroll='on')), ids_BT)
  models.assert_close(unrolled, models.logits(models.fill(cfg), ids_BT))


# -------------------------------------------------------------------------------- packed = unpacked


@jax.jit
def loss_and_grads(model, batch):
  weight = batch['loss_mask_BT'].sum()
  hyper = dict(moe_balance=jnp.float32(0.3), moe_z=jnp.float32(0.1), z_loss=jnp.float32(0.1))
  score = lambda model: step.loss_fn(model, batch, weight, hyper, None)[:2]
  (total, metrics), grads = jax.value_and_grad(score, has_aux=True)(model)
  return total, metrics, step.params_of(grads)


def test_a_micro_batch_counts_by_its_share_of_the_targets():
  """With half of the batch's targets every term is halved, the experts' losses too."""
  model, batch = models.fill(EXPERTS), models.batch(3)
  hyper = dict(moe_balance=jnp.float32(0.3), moe_z=jnp.float32(0.1))
  score = jax.jit(lambda weight: step.loss_fn(model, batch, weight, hyper, None)[:2])
  weight = batch['loss_mask_BT'].sum()
  whole, half = score(weight), score(2 * weight)
  models.assert_close(jax.tree.map(lambda x: 2 * x, half), whole)
  assert set(whole[1]) == {'loss', 'moe_balance', 'moe_z', 'moe_dropped'}


def rows_of(documents):
  """Make a batch of three rows of 8 from lists of documents, each a list of (id, target); pad the rest."""
  batch = {
    name: np.zeros((3, 8), np.float32 if name == 'loss_mask_BT' else np.int32)
    for name in ('token_ids_BT', 'target_ids_BT', 'loss_mask_BT', 'segment_ids_BT', 'positions_BT')
  }
  for b, row in enumerate(documents):
    place = 0
    for number, pairs in enumerate(row):
      for position, (token, target) in enumerate(pairs):
        values = (token, target, float(position > 0), number + 1, position)
        for value, array_BT in zip(values, batch.values(), strict=True):
          array_BT[b, place] = value
        place += 1
  return batch


PACKED = {
  'window pattern, learned positions, groups': dict(
    positions='learned', window=2, layer_pattern='SL', kv_heads=2
  ),
  'rope': dict(),
  'experts and alibi': dict(positions='alibi', experts=4),
}


@pytest.mark.parametrize('name', PACKED)
def test_packed_equals_unpacked_and_padding_has_no_weight(name):
  """Loss and gradients of three documents in two rows and an empty one equal those of one per row."""
  model = models.fill(models.tiny(**PACKED[name]))
  pairs = list(zip(models.tokens(1, 16)[0], models.tokens(1, 16, seed=5)[0], strict=True))
  a, b, c = pairs[:4], pairs[4:7], pairs[7:15]
  packed = loss_and_grads(model, rows_of([[a, b], [c], []]))
  models.assert_close(loss_and_grads(model, rows_of([[a], [b], [c]])), packed)
  mixed = rows_of([[a, b], [c], []])
  mixed['segment_ids_BT'] = (mixed['segment_ids_BT'] > 0).astype(np.int32)
  if name == 'rope':
    assert abs(float(loss_and_grads(model, mixed)[0] - packed[0])) > 1e-3  # the mask has an effect


# ------------------------------------------------------------------------------------- train steps

COMPILED = []  # one entry for each program that XLA compiles
jax.monitoring.register_event_duration_secs_listener(
  lambda event, seconds, **_: COMPILED.append(event) if 'backend_compile' in event else None
)


class Run(NamedTuple):
  """The outcome of three training steps."""

  program: step.Program
  mesh: jax.sharding.Mesh
  metrics: dict  # {name: list, one a step}
  params: dict
  ema: dict
  traces: int
  compiled: int  # programs compiled after the first step


def config_of(model_cfg, **train):
  train |= dict(eval_every=0, sample_every=0)
  return models.experiment(model_cfg, optim=dict(ema=0.9, weight_decay=0.1), train=train)


def first_state(cfg, program, seed=0):
  """A state with random parameters in the shardings of the program."""
  model = models.fill(cfg.model, seed)
  state = step.TrainState(
    step=jnp.int32(0),
    model=model,
    opt_state=jax.jit(program.optimizer.init)(step.params_of(model)),
    key=jax.random.key(seed),
    hyper=step.hyper_of(cfg),
  )
  put = lambda x, like: jax.device_put(x, like.sharding)
  return jax.tree.map(put, state, program.abstract)


def train_three_steps(program, mesh, state):
  """Train three steps from a state -> Run."""
  metrics, compiled = [], []
  with jax.set_mesh(mesh), mock.patch.object(losses, 'objective', wraps=losses.objective) as traced:
    for i in range(3):
      state, scalars = program.step(state, batches.to_devices(models.batch(seed=i), mesh))
      metrics.append(jax.device_get(scalars))
      compiled.append(len(COMPILED))
  by_name = {name: [m[name] for m in metrics] for name in metrics[0]}
  ema = {path: np.asarray(value) for path, value in state.opt_state.ema.items()}
  params, recompiled = models.params(state.model), compiled[-1] - compiled[0]
  return Run(program, mesh, by_name, params, ema, traced.call_count, recompiled)


@functools.cache
def trained(model_cfg, accumulate=1, **sizes):
  """Train three steps from the same random parameters on a mesh of these sizes; default: one device."""
  cfg, mesh = config_of(model_cfg, accumulate=accumulate), models.mesh(**sizes)
  program = step.gpt_program(cfg, model_cfg, mesh)
  return train_three_steps(program, mesh, first_state(cfg, program))


DENSE = models.tiny(positions='learned', mlp='relu2')
EXPERTS = models.tiny(experts=4, experts_per_token=1, mlp='relu2', positions='none', tied_head=False)
MESHES = {
  'data': (DENSE, dict(data=8)),
  'fsdp': (DENSE, dict(fsdp=8)),
  'tensor': (DENSE, dict(data=2, tensor=4)),
  'three axes': (DENSE, dict(data=2, fsdp=2, tensor=2)),
  'expert, sequence': (EXPERTS, dict(data=2, expert=2, sequence=2)),
}


def assert_same(run, expected):
  models.assert_close(run.metrics, expected.metrics)
  models.assert_close(run.params, expected.params)
  models.assert_close(run.ema, expected.ema)


# The slow set of tests/system/test_meshes.py has 35 factorizations for three models.
@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=[pytest.mark.slow] * ('expert' in name)) for name in MESHES]
)
def test_eight_devices_equal_one_device(name):
  """Metrics, parameters and their moving average are equal after three steps of one compilation."""
  model_cfg, sizes = MESHES[name]
  run = trained(model_cfg, **sizes)
  assert_same(run, trained(model_cfg))
  assert (run.traces, run.compiled) == (1, 0)


def test_dropout_is_the_same_on_any_mesh():
  """A run may resume on other devices."""
  model, ids_BT = models.fill(models.tiny(attention_dropout=0.2)), models.tokens(8)
  drop = lambda: jax.jit(lambda m, x: m.trunk(x, rate=jnp.float32(0.2), key=jax.random.key(0))[0])
  alone = drop()(model, ids_BT)
  mesh = models.mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    placed = jax.device_put(model, gpt.shardings(gpt.GPT(model.cfg), mesh))
    spread = drop()(placed, batches.to_devices(dict(token_ids_BT=ids_BT), mesh)['token_ids_BT'])
  models.assert_close(spread, alone)


def test_steps_are_traced_and_compiled_once_and_train_everything():
  run, before = trained(DENSE), models.params(models.fill(DENSE))
  assert (run.traces, run.compiled) == (1, 0)
  assert run.program.step._cache_size() == 1
  assert all(np.abs(run.params[path] - before[path]).max() > 1e-3 for path in before)
  targets = [models.batch(seed=i)['loss_mask_BT'].sum() for i in range(3)]
  assert run.metrics['targets'] == targets


@pytest.mark.parametrize('param_dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_step_preserves_every_dtype_and_shape(dtype, param_dtype):
  """A change would compile the second step again."""
  variety = dict(attention_bias=True, qk_norm=True, norm='layernorm', experts=4, dropout=0.1)
  model_cfg = models.tiny(dtype=dtype, param_dtype=param_dtype, **variety)
  program = step.gpt_program(config_of(model_cfg), model_cfg, models.mesh())
  state, metrics = jax.eval_shape(program.step, program.abstract, models.batch())
  plain = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
  assert plain(state) == plain(program.abstract)
  assert metrics['loss'].dtype == jnp.float32
  weights = {value.dtype.name for value in step.params_of(state.model).values()}
  assert weights == {param_dtype}


def test_parameters_and_moments_are_sharded():
  program = step.gpt_program(config_of(DENSE), DENSE, models.mesh(fsdp=4, tensor=2))
  path = 'blocks/attention/wq_DHK'
  leaves = [
    program.abstract.model.blocks.attention.wq_DHK.get_value(),
    program.abstract.opt_state.direction.mu[path],
    program.abstract.opt_state.ema[path],
  ]
  for leaf in leaves:
    assert leaf.sharding.shard_shape(leaf.shape) == (2, 4, 2, 4)


def test_initial_states_are_equal_on_any_mesh_and_may_be_donated():
  runs = [trained(DENSE), trained(DENSE, **MESHES['three axes'][1])]
  runs = [train_three_steps(run.program, run.mesh, run.program.init()) for run in runs]
  assert_same(runs[1], runs[0])
  assert [run.traces for run in runs] == [0, 0]


def test_accumulation_equals_the_big_batch_with_unequal_counts():
  assert_same(trained(DENSE, accumulate=4), trained(DENSE))
  counts = models.batch()['loss_mask_BT'].sum(1).reshape(2, 4).sum(0)
  assert len(set(counts.tolist())) > 1  # a mean of means would differ


def test_steps_in_one_call_equal_single_calls():
  cfg, mesh = config_of(DENSE, steps_per_call=3), models.mesh()
  program = step.gpt_program(cfg, DENSE, mesh)
  three = [models.batch(seed=i) for i in range(3)]
  stacked = {name: np.stack([batch[name] for batch in three]) for name in three[0]}
  placed = batches.to_devices(stacked, mesh, stacked=True)
  state, metrics = program.step(first_state(cfg, program), placed)
  models.assert_close({name: list(v) for name, v in metrics.items()}, trained(DENSE).metrics)
  models.assert_close(models.params(state.model), trained(DENSE).params)
  assert int(state.step) == 3


def test_vmapped_replicas_equal_single_runs():
  """Two learning rates and two seeds in one vmapped step."""
  cfg, program, mesh = config_of(DENSE), trained(DENSE).program, trained(DENSE).mesh

  def start(seed, lr):
    state = first_state(cfg, program, seed)
    lr = jax.device_put(np.float32(lr), state.hyper['lr'].sharding)
    return state._replace(hyper=state.hyper | {'lr': lr})

  settings = ((0, cfg.optim.lr), (1, 3e-2))
  objective = step.language_objective()
  one_step = functools.partial(step.train_step, program.optimizer, objective, 1, 'float32')
  vmapped_step = jax.jit(jax.vmap(one_step, in_axes=(0, None)))
  stack = jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states))
  states, history = stack(*(start(*setting) for setting in settings)), []
  for i in range(3):
    states, metrics = vmapped_step(states, models.batch(seed=i))
    history.append(jax.device_get(metrics))
  for r, setting in enumerate(settings):
    alone = train_three_steps(program, mesh, start(*setting))
    models.assert_close({name: [m[name][r] for m in history] for name in metrics}, alone.metrics)
    models.assert_close({p: v[r] for p, v in models.params(states.model).items()}, alone.params)
  assert abs(history[-1]['loss'][0] - history[-1]['loss'][1]) > 1e-3


def test_evaluation_uses_the_moving_average():
  run = trained(DENSE)
  opt_state = mock.Mock(ema={path: jnp.asarray(value) for path, value in run.ema.items()})
  state = mock.Mock(model=models.fill(DENSE), opt_state=opt_state, frozen=None)
  models.assert_close(models.params(step.eval_model(state)), run.ema, 0)
  without = mock.Mock(model='as trained', opt_state=mock.Mock(ema=None), frozen=None)
  assert step.eval_model(without) == 'as trained'
