"""Adapters: against numpy, against merged weights, and what a step trains."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gpt_jax import step
from gpt_jax.cluster import batches
from gpt_jax.model import adapters, costs, gpt, layers, param_trees, quantized
from gpt_jax.model.adapters import AdapterConfig
from gpt_jax.step import params_of
from gpt_jax.training import checkpoint
from tests import models

KINDS = ('lora', 'rslora', 'dora')


def trained_tree(cfg, model, seed=0):
  """A trained tree and the frozen base, both of random values."""
  abstract, frozen = adapters.split(cfg, gpt.GPT(model.cfg))
  rng = np.random.default_rng(seed)
  draw = lambda path, p: jnp.asarray(0.3 * rng.standard_normal(p.get_value().shape), p.get_value().dtype)
  trained = param_trees.map_params(draw, abstract)
  return trained, adapters.take_base(model, checkpoint.with_shardings(frozen, models.mesh()))


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
  np.testing.assert_allclose(y_BTD, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(adapted[...].reshape(16, 16), w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('kind', 'variant'), [('lora', 'rope'), ('dora', 'learned'), ('rslora', 'experts'), ('lora', 'window')]
)
def test_attached_equals_merged(kind, variant):
  cfg = models.tiny(**models.VARIANTS[variant])
  heads = ('head_VD',) if variant == 'window' else ()
  targets = ('attention/w', '_E?(DF|FD)', *heads)
  # W' is about as large as W: a larger one multiplies float32's rounding in the softmax.
  settings = AdapterConfig(rank=2, kind=kind, alpha=4.0, targets=targets, train=('embed_VD', 'norm/scale'))
  trained, frozen = trained_tree(settings, models.fill(cfg))
  token_ids_BT = models.tokens()
  attached = models.logits(adapters.attach(frozen, trained), token_ids_BT)
  merged = adapters.merge(frozen, trained)
  np.testing.assert_allclose(attached, models.logits(merged, token_ids_BT), rtol=1e-5, atol=1e-5)
  assert np.abs(attached - models.logits(models.fill(cfg), token_ids_BT)).max() > 0.1
  path = 'position_TD' if variant == 'learned' else 'blocks/attention/wq_DHK'
  same = [params_of(model)[path] is params_of(frozen)[path] for model in (merged,)]
  assert same == [variant == 'learned']  # arrays that do not change are shared


@pytest.mark.parametrize(('remat', 'count'), [('dots_no_batch', 2), ('dots', 2), ('mlp_activations', 3)])
def test_sums_of_products_are_saved_instead_of_their_terms(remat, count):
  cfg = models.tiny(remat=remat, mlp='swiglu', hidden=40)
  trained, frozen = trained_tree(AdapterConfig(rank=2), models.fill(cfg))
  output = lambda trained: adapters.attach(frozen, trained).trunk(models.tokens())[0]
  saved = jax.tree.leaves(jax.eval_shape(lambda trained: jax.vjp(output, trained)[1], trained))
  hidden = [x for x in saved if x.shape == (cfg.layers, *models.tokens().shape, cfg.F)]
  assert len(hidden) == count  # of `up` and `gate`; mlp_activations saves the inputs of `down`, too


@functools.cache
def two_steps(kind='lora', dropout=0.0, unroll='off', accumulate=1, base_dtype='', **sizes):
  """Train adapters of random values for two steps -> (trained parameters, metrics of the second)."""
  model_cfg, mesh = models.tiny(unroll=unroll, kv_heads=2), models.mesh(**sizes)
  cfg = models.experiment(
    model_cfg,
    # A scale of 1: larger adapters multiply float32's rounding in the gradient.
    adapter=dict(rank=4, alpha=4.0, kind=kind, dropout=dropout, train=('final_norm',), base_dtype=base_dtype),
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
    pytest.param(dict(base_dtype='int4', data=2, fsdp=2, tensor=2), marks=pytest.mark.slow),
    pytest.param(dict(base_dtype='int8', unroll='on', accumulate=2, fsdp=2), marks=pytest.mark.slow),
  ],
)
def test_meshes_and_micro_batches_change_nothing(options):
  same = {name: options[name] for name in options.keys() & {'kind', 'base_dtype'}}
  models.assert_close(two_steps(**options), two_steps(**same), 1e-5)


# --------------------------------------------------------------------------------- a quantized base


@pytest.mark.parametrize(
  ('dtype', 'axes', 'shape'),
  [
    ('int8', 'DHK', (96, 2, 4)),
    ('int4', 'DHK', (96, 2, 4)),
    ('int4', 'LHKD', (2, 3, 4, 5)),
    ('int4', 'LEFD', (2, 2, 6, 4)),
  ],
)
def test_codes_equal_numpy(dtype, axes, shape):
  w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  w[..., 0] = 0  # blocks without scale
  axis = adapters.block_axis(axes)
  letter = {'DHK': 0, 'LHKD': 2, 'LEFD': 2}[axes]
  assert axis == letter - len(axes)
  codes, scales = quantized.quantize(jnp.asarray(w), axis, quantized.TYPES[dtype])
  largest, size = {'int8': 127, 'int4': 7}[dtype], {96: 48, 4: 4, 6: 6}[shape[letter]]
  blocks = np.moveaxis(w, letter, -1).reshape(*np.delete(shape, letter), -1, size)
  expected = np.abs(blocks).max(-1, keepdims=True) / largest
  np.testing.assert_allclose(np.moveaxis(scales, letter, -1), expected[..., 0], rtol=1e-6)
  rounded = np.round(blocks / np.where(expected == 0, 1, expected)) * expected
  result = quantized.dequantize(codes, scales, axis, jnp.float32)
  actual = np.moveaxis(np.asarray(result), letter, -1).reshape(blocks.shape)
  np.testing.assert_allclose(actual, rounded, rtol=1e-6, atol=1e-7)
  assert codes.nbytes == w.size * (1 if dtype == 'int8' else 0.5)


def base_bytes(frozen):
  """Bytes of the matrices of blocks."""
  model, scales = adapters.parts(frozen)
  matrices = [p for path, p in param_trees.named_params(model) if adapters.is_quantizable(path, p.axes)]
  return sum(p.get_value().nbytes for p in [*matrices, *scales.values()])


@pytest.mark.parametrize(
  ('dtype', 'kind', 'variant', 'distance'),
  [('int8', 'lora', 'rope', 0.03), ('int4', 'lora', 'rope', 0.4), ('int4', 'dora', 'experts', 0.3)],
)
def test_quantized_base_attached_equals_merged_and_is_near_the_float_base(dtype, kind, variant, distance):
  cfg = models.tiny(**models.VARIANTS[variant])
  # The other matrices of blocks are quantized without adapters.
  settings = AdapterConfig(rank=2, kind=kind, targets=('attention/wq',), base_dtype=dtype)
  trained, frozen = trained_tree(settings, models.fill(cfg))
  _, plain = trained_tree(dataclasses.replace(settings, base_dtype=''), models.fill(cfg))
  scales = 1 / 4  # of blocks of 4 (K of wo_HKD) to 24 weights
  assert base_bytes(frozen) / base_bytes(plain) < {'int8': 1 / 4, 'int4': 1 / 8}[dtype] + scales
  ids_BT = models.tokens()
  attached, merged = (
    models.logits(join(frozen, trained), ids_BT) for join in (adapters.attach, adapters.merge)
  )
  np.testing.assert_allclose(attached, merged, rtol=1e-5, atol=1e-5)
  expected = models.logits(adapters.merge(plain, trained), ids_BT)
  actual, expected = (np.asarray(x)[..., : cfg.vocab] for x in (merged, expected))
  error = np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean())
  assert 1e-4 < error < distance


def test_gradients_through_codes_equal_those_through_their_weights():
  cfg, ids_BT = models.tiny(kv_heads=2), models.tokens()
  trained, frozen = trained_tree(AdapterConfig(rank=2, base_dtype='int4'), models.fill(cfg))
  weights = adapters.weights_of(frozen)
  plain = param_trees.map_params(lambda path, _: weights[path], gpt.GPT(cfg))
  loss = lambda trained, frozen: jnp.square(adapters.attach(frozen, trained).trunk(ids_BT)[0]).mean()
  codes, floats = (jax.jit(jax.grad(loss))(trained, base) for base in (frozen, plain))
  models.assert_close(models.params(codes), models.params(floats), 1e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(rank=2, base_dtype='nf4'), r"adapter.base_dtype='nf4' is not known\nfix: use int8 or int4"),
    (dict(base_dtype='int8'), r'adapter.base_dtype=int8 needs a frozen base\nfix: set adapter.rank'),
  ],
)
def test_what_cannot_be_quantized_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    AdapterConfig(**fields)
  settings = AdapterConfig(rank=1, targets=('up_DF',), base_dtype='int4')
  with pytest.raises(ValueError, match=r'wk_DGK has 15 inputs\nfix: use adapter.base_dtype=int8'):
    adapters.split(settings, gpt.GPT(models.tiny(width=15, heads=3, head_dim=4)))


def test_flops_are_those_of_a_frozen_base():
  cfg, rest = models.tiny(positions='none'), AdapterConfig(rank=2, targets=('wq',))
  full, lora = costs.flops_per_token(cfg, 8), costs.flops_per_token(cfg, 8, rest)
  adapter = 2 * (16 * 2 + 2 * 16)  # two layers of A and B
  assert full['full'] - lora['full'] == 2 * costs.active_matmul_params(cfg) - 6 * adapter
  assert costs.flops_per_token(cfg, 8, AdapterConfig()) == full


@pytest.mark.parametrize('train', [(), ('^embed_VD',)])
def test_flops_of_a_head_are_those_of_the_places_with_targets(train):
  cfg = models.tiny(positions='none')
  head, passes = cfg.vocab * cfg.width, 6 if train else 4
  count = lambda adapter, places: costs.flops_per_token(cfg, 8, adapter, places)['full']
  assert count(None, None) - count(None, 2) == 6 * head * 6 / 8
  settings = AdapterConfig(rank=2, targets=('wq',), train=train)
  assert count(settings, None) - count(settings, 2) == passes * head * 6 / 8


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
