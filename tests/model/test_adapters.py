"""Adapters: against numpy, against merged weights, and what a step trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gpt_jax import step
from gpt_jax.cluster import batches
from gpt_jax.model import adapters, costs, gpt, layers, param_trees
from gpt_jax.model.adapters import AdapterConfig
from gpt_jax.step import params_of
from tests import models

KINDS = ('lora', 'rslora', 'dora')


def trained_tree(cfg, model, seed=0):
  """A trained tree and the frozen base, both of random values."""
  abstract, frozen = adapters.split(cfg, gpt.GPT(model.cfg))
  rng = np.random.default_rng(seed)
  draw = lambda path, p: jnp.asarray(0.3 * rng.standard_normal(p.get_value().shape), p.get_value().dtype)
  trained = param_trees.map_params(draw, abstract)
  arrays = dict(param_trees.named_params(model))
  fill = lambda path, p: (
    jnp.zeros(p.get_value().shape) if 0 in p.get_value().shape else arrays[path].get_value()
  )
  return trained, param_trees.map_params(fill, frozen)


@pytest.mark.parametrize('kind', KINDS)
def test_product_is_that_of_numpy(kind):
  cfg = models.tiny(kv_heads=2)
  adapter = adapters.Adapter(AdapterConfig(rank=3, kind=kind, alpha=5.0), layers.param(cfg, 'HKD'))
  rng = np.random.default_rng(0)
  draw = lambda path, p: jnp.asarray(rng.standard_normal(p.get_value().shape), jnp.float32)
  adapter = param_trees.map_params(draw, adapter)
  w_HKD, x_BTHK = (rng.standard_normal(s).astype(np.float32) for s in ((4, 4, 16), (2, 3, 4, 4)))
  adapted = adapters.Adapted(nnx.Param(jnp.asarray(w_HKD), axes='HKD'), adapter)
  scale = 5 / 3**0.5 if kind == 'rslora' else 5 / 3
  w = w_HKD.reshape(16, 16) + scale * np.asarray(adapter.a[...]).reshape(16, 3) @ np.asarray(adapter.b[...])
  if kind == 'dora':
    w = w * np.asarray(adapter.magnitude[...]) / np.linalg.norm(w, axis=0)
  expected = x_BTHK.reshape(2, 3, 16) @ w
  y_BTD = layers.linear('BTHK,HKD->BTD', jnp.asarray(x_BTHK), adapted)
  np.testing.assert_allclose(y_BTD, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(adapted[...].reshape(16, 16), w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('kind', 'variant'), [('lora', 'rope'), ('dora', 'learned'), ('rslora', 'experts'), ('lora', 'window')]
)
def test_attached_equals_merged(kind, variant):
  cfg = models.tiny(**models.VARIANTS[variant])
  heads = ('head_VD',) if variant == 'window' else ()
  targets = ('attention/w', '_E?(DF|FD)', *heads)
  settings = AdapterConfig(rank=2, kind=kind, targets=targets, train=('embed_VD', 'norm/scale'))
  trained, frozen = trained_tree(settings, models.fill(cfg))
  token_ids_BT = models.tokens()
  attached = models.logits(adapters.attach(frozen, trained), token_ids_BT)
  merged = adapters.merge(frozen, trained)
  np.testing.assert_allclose(attached, models.logits(merged, token_ids_BT), rtol=1e-4, atol=1e-4)
  assert np.abs(attached - models.logits(models.fill(cfg), token_ids_BT)).max() > 0.1
  path = 'position_TD' if variant == 'learned' else 'blocks/attention/wq_DHK'
  same = [params_of(model)[path] is params_of(frozen)[path] for model in (merged,)]
  assert same == [variant == 'learned']  # arrays that do not change are shared


@functools.cache
def two_steps(kind='lora', dropout=0.0, unroll='off', accumulate=1, **sizes):
  """Train adapters of random values for two steps -> (trained parameters, metrics of the second)."""
  model_cfg, mesh = models.tiny(unroll=unroll, kv_heads=2), models.mesh(**sizes)
  cfg = models.experiment(
    model_cfg,
    adapter=dict(rank=4, kind=kind, dropout=dropout, train=('final_norm',)),
    train=dict(accumulate=accumulate, steps=12, batch_size=8),
    optim=dict(ema=0.5),
  )
  program = step.gpt_program(cfg, model_cfg, mesh)
  trained, frozen = trained_tree(cfg.adapter, models.fill(model_cfg))
  state = program.init()._replace(model=trained, frozen=frozen)
  base = jax.tree.map(np.array, frozen)
  state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, program.abstract)
  with jax.set_mesh(mesh):
    for i in range(2):
      state, metrics = program.step(state, batches.to_devices(models.batch(seed=i), mesh))
  jax.tree.map(np.testing.assert_array_equal, state.frozen, base)  # bitwise
  assert jax.tree.structure(state.opt_state.direction.mu) == jax.tree.structure(params_of(state.model))
  assert jax.tree.map(np.shape, state.opt_state.ema) == jax.tree.map(np.shape, params_of(state.model))
  return models.params(state.model), {name: float(x) for name, x in metrics.items()}


@pytest.mark.parametrize(
  'options',
  [
    pytest.param(dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
    dict(kind='dora', data=2, fsdp=2, tensor=2),
    pytest.param(dict(data=2, sequence=4), marks=pytest.mark.slow),
    pytest.param(dict(accumulate=2), marks=pytest.mark.slow),
    pytest.param(dict(unroll='on'), marks=pytest.mark.slow),
    pytest.param(dict(unroll='on', kind='dora', accumulate=2, fsdp=8), marks=pytest.mark.slow),
  ],
)
def test_meshes_and_micro_batches_change_nothing(options):
  models.assert_close(two_steps(**options), two_steps(options.get('kind', 'lora')), 1e-4)


def test_flops_are_those_of_a_frozen_base():
  cfg, rest = models.tiny(positions='none'), AdapterConfig(rank=2, targets=('wq',))
  full, lora = costs.flops_per_token(cfg, 8), costs.flops_per_token(cfg, 8, rest)
  adapter = 2 * (16 * 2 + 2 * 16)  # two layers of A and B
  assert full['full'] - lora['full'] == 2 * costs.active_matmul_params(cfg) - 6 * adapter
  assert costs.flops_per_token(cfg, 8, AdapterConfig()) == full


def test_dropout_is_of_the_inputs_of_a():
  settings = AdapterConfig(rank=2, dropout=0.5)
  cfg = models.tiny()
  trained, frozen = trained_tree(settings, models.fill(cfg))
  trunk = jax.jit(lambda key: adapters.attach(frozen, trained, key).trunk(models.tokens())[0])
  one, other = trunk(jax.random.key(0)), trunk(jax.random.key(1))
  assert np.abs(one - other).max() > 1e-2
  np.testing.assert_array_equal(one, trunk(jax.random.key(0)))
  x_BD, w_DF = (
    jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    for shape in ((1, 1, 16), (16, 24))
  )
  adapter = adapters.Adapter(settings, layers.param(cfg, 'DF'))
  adapter = param_trees.map_params(lambda path, p: jnp.ones(p.get_value().shape), adapter)
  seed = nnx.Param(jnp.uint32(3), axes='')
  adapted = adapters.Adapted(nnx.Param(w_DF, axes='DF'), adapter, seed)
  y = layers.linear('BTD,DF->BTF', x_BD, adapted) - jnp.einsum('BTD,DF->BTF', x_BD, w_DF)
  kept = layers.dropout(x_BD, jnp.float32(0.5), jax.random.key(3))
  assert (kept == 0).any() and (kept != 0).any()
  np.testing.assert_allclose(y, jnp.broadcast_to(8 * 2 * kept.sum(), y.shape), rtol=1e-4)
