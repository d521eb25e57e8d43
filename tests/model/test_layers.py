"""Norms, MLPs, dropout and initial values against numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gpt_jax import sharding
from gpt_jax.model import gpt, param_trees
from gpt_jax.model import layers as nn
from gpt_jax.model.kernels import fused
from gpt_jax.model.layers import INITS
from tests import models

X_BTD = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32) * 3 + 1

NORM_FORMULAS = {
  'layernorm': lambda x, eps: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps),
  'rmsnorm': lambda x, eps: x / np.sqrt((x**2).mean(-1, keepdims=True) + eps),
}
NORM_FORMULAS['zero_centered_rmsnorm'] = NORM_FORMULAS['rmsnorm']

erf = np.vectorize(math.erf)
sigmoid = lambda x: 1 / (1 + np.exp(-x))
gelu_tanh = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
ACTIVATION_FORMULAS = {
  'gelu': lambda up, gate: gelu_tanh(up),
  'gelu_exact': lambda up, gate: 0.5 * up * (1 + erf(up / math.sqrt(2))),
  'relu': lambda up, gate: np.maximum(up, 0),
  'relu2': lambda up, gate: np.maximum(up, 0) ** 2,
  'silu': lambda up, gate: up * sigmoid(up),
  'tanh': lambda up, gate: np.tanh(up),
  'swiglu': lambda up, gate: up * gate * sigmoid(gate),
  'geglu': lambda up, gate: up * gelu_tanh(gate),
}


def weights(module):
  return {path: np.asarray(p.get_value()) for path, p in param_trees.named_params(module)}


def first_block(cfg):
  return param_trees.unstack(models.fill(cfg).blocks)[0]


@pytest.mark.parametrize('name', nn.NORMS)
def test_norms(tiny, name):
  norm = first_block(tiny(norm=name, norm_eps=0.1)).mlp_norm
  w = weights(norm)
  assert ('bias' in w) == (name == 'layernorm')
  scale = w['scale'] + (1 if name == 'zero_centered_rmsnorm' else 0)
  expected = NORM_FORMULAS[name](X_BTD, 0.1) * scale + w.get('bias', 0.0)
  call = jax.jit(lambda m, x: m(x))
  np.testing.assert_allclose(call(norm, X_BTD), expected, atol=1e-5)
  in_bfloat16 = call(norm, jnp.asarray(X_BTD, jnp.bfloat16))
  assert in_bfloat16.dtype == jnp.bfloat16
  np.testing.assert_allclose(in_bfloat16.astype(jnp.float32), expected, atol=0.05)


def test_gradient_of_layernorm_equals_autodiff():
  x_BTD, weight_BTD = X_BTD, np.random.default_rng(1).standard_normal(X_BTD.shape, np.float32)

  def formula(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-5)

  grad = lambda norm: jax.jit(jax.grad(lambda x: (norm(x) * weight_BTD).sum()))(x_BTD)
  np.testing.assert_allclose(grad(lambda x: fused.layernorm(x, 1e-5)), grad(formula), atol=1e-5)
  _, pull = jax.vjp(lambda x: fused.layernorm(x, 1e-5), jnp.asarray(x_BTD, jnp.bfloat16))
  residuals = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= x_BTD.size]
  assert [leaf.dtype for leaf in residuals] == [jnp.bfloat16]  # twice as much otherwise, in each layer


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize('rows', [7, fused.ONE_HOT_ROWS + 1])
def test_gradient_of_lookup_is_summed_in_float32(monkeypatch, platform, rows):
  monkeypatch.setattr(fused, 'platform', lambda: platform)
  rng = np.random.default_rng(2)
  ids_BT = rng.integers(0, 5, (8, 64), np.int32)  # 100 a row: bfloat16 would lose what comes late
  weight_BTD = jnp.asarray(rng.standard_normal((8, 64, 4)), jnp.bfloat16)
  loss = lambda table_VD: (fused.lookup(table_VD, ids_BT) * weight_BTD).astype(jnp.float32).sum()
  found_VD = jax.jit(jax.grad(loss))(jnp.zeros((rows, 4), jnp.bfloat16))
  expected_VD = np.zeros((rows, 4))
  np.add.at(expected_VD, ids_BT, np.asarray(weight_BTD, np.float64))
  np.testing.assert_allclose(found_VD.astype(jnp.float32), expected_VD, rtol=2**-8, atol=1e-3)


def test_gradient_of_lookup_needs_no_all_gather_on_a_mesh():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, sequence=4))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data', 'sequence'))
  ids_BT = jax.ShapeDtypeStruct((8, 64), np.int32, sharding=rows)
  weight_BTD = jax.ShapeDtypeStruct((8, 64, 32), np.float32, sharding=rows)
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  table_VD = jax.ShapeDtypeStruct((4096, 32), np.float32, sharding=everywhere)
  loss = lambda table_VD, ids_BT, weight_BTD: (fused.lookup(table_VD, ids_BT) * weight_BTD).sum()
  program = jax.jit(jax.grad(loss), out_shardings=everywhere).lower(table_VD, ids_BT, weight_BTD)
  assert 'all-gather' not in program.compile().as_text()


@pytest.mark.parametrize('subscripts', ['BTr,rD->BTD', 'BTr,rHK->BTHK'])
def test_gradient_of_expand_equals_autodiff_and_copies_no_gradient(subscripts):
  sizes = dict(B=2, T=16, r=2, D=64, H=4, K=16)
  rng, plain = np.random.default_rng(3), functools.partial(jnp.einsum, subscripts)
  x, w, dy = (
    rng.standard_normal([sizes[letter] for letter in letters]).astype(np.float32)
    for letters in subscripts.replace('->', ',').split(',')
  )
  pull = lambda product: jax.jit(lambda x, w, dy: jax.vjp(product, x, w)[1](dy + 1.0))
  actual, expected = (pull(f) for f in (functools.partial(fused.expand, subscripts), plain))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), actual(x, w, dy), expected(x, w, dy))
  copies = f'[{",".join(map(str, dy.shape[2:] + dy.shape[:2]))}]'  # dy with its outputs in front
  texts = [f.lower(x, w, dy).compile().as_text() for f in (actual, expected)]
  assert [copies in text for text in texts] == [False, True]


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('vocab', [2 * fused.CHUNK, 2 * fused.CHUNK + 100])
def test_gradients_of_a_large_head_equal_autodiff(vocab, dtype):
  rng = np.random.default_rng(3)
  x, w, dy = (jnp.array(rng.standard_normal(s), dtype) for s in ((2, 20, 8), (vocab, 8), (2, 20, vocab)))
  pull = lambda f: jax.jit(lambda x, w, dy: jax.vjp(f, x, w)[1](dy))(x, w, dy)
  actual, expected = pull(fused.large_head), pull(lambda x, w: jnp.einsum('BTD,VD->BTV', x, w))
  rtol = 1e-4 if dtype == jnp.float32 else 2**-7
  for a, b in zip(actual, expected, strict=True):
    assert a.dtype == b.dtype
    a, b = (np.asarray(y, np.float32) for y in (a, b))
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize('devices, vocab, is_chunked', [(1, 400, True), (8, 400, False), (1, 200, False)])
def test_training_on_one_device_has_a_large_head(tiny, monkeypatch, devices, vocab, is_chunked):
  monkeypatch.setattr(fused, 'LARGE_VOCAB', 384)
  monkeypatch.setattr(fused, 'CHUNK', 128)
  model = models.fill(tiny(vocab=vocab))
  x_BTD = jnp.ones((4, 16, model.cfg.width))
  loss = lambda x_BTD, exact: model.logits(x_BTD, exact=exact).sum()
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=devices), jax.devices()[:devices])):
    text = lambda exact: jax.jit(jax.grad(loss), static_argnums=1).lower(x_BTD, exact).as_text()
    assert ('while' in text(exact=False)) == is_chunked
    assert 'while' not in text(exact=True)


def test_layernorm_without_bias(tiny):
  assert set(weights(first_block(tiny(norm='layernorm', norm_bias=False)).mlp_norm)) == {'scale'}


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('name', nn.ACTIVATIONS)
def test_mlps(tiny, name, bias):
  cfg = tiny(mlp=name, mlp_bias=bias)
  mlp = first_block(cfg).mlp
  w = weights(mlp)
  gated = name in ('swiglu', 'geglu')
  assert len(w) == (3 if gated else 2) * (2 if bias else 1)
  up = X_BTD @ w['up_DF'] + w.get('up_bias_F', 0.0)
  gate = X_BTD @ w['gate_DF'] + w.get('gate_bias_F', 0.0) if gated else None
  expected = ACTIVATION_FORMULAS[name](up, gate) @ w['down_FD'] + w.get('down_bias_D', 0.0)
  got = jax.jit(lambda m, x: m(x))(mlp, X_BTD)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------ dropout


def test_dropout_rate_scale_and_key():
  x = np.ones((100, 1000), np.float32)
  drop = jax.jit(lambda x, rate, key: nn.dropout(x, rate, key))
  for rate in (0.1, 0.5):
    y = np.asarray(drop(x, jnp.float32(rate), jax.random.key(0)))
    is_kept = y != 0
    np.testing.assert_allclose(y[is_kept], 1 / (1 - rate), rtol=1e-4)
    assert abs(is_kept.mean() - (1 - rate)) < 4 * math.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_array_equal(y, drop(x, jnp.float32(rate), jax.random.key(0)))
    assert (y != drop(x, jnp.float32(rate), jax.random.key(1))).mean() > rate * (1 - rate)
  np.testing.assert_array_equal(drop(x, jnp.float32(0), jax.random.key(0)), x)
  assert drop._cache_size() == 1  # the rate is traced


def test_no_key_no_dropout():
  assert nn.dropout(X_BTD, jnp.float32(0.5), None) is X_BTD


# -------------------------------------------------------------------------- initial values


@functools.cache
def initialized(**overrides):
  """{path: array} of a model with initial values."""
  make = jax.jit(functools.partial(nn.initialize, gpt.GPT(models.tiny(**overrides))))
  return models.params(make(jax.random.key(7)))


def test_initial_values_have_the_declared_mean_and_std(tiny):
  cfg = tiny(width=64, hidden=96, layers=8, attention_bias=True, norm='layernorm')
  make = jax.jit(functools.partial(nn.initialize, gpt.GPT(cfg)))
  for path, value in models.params(make(jax.random.key(0))).items():
    if path.endswith('scale'):
      assert (value == 1).all(), path
    elif 'bias' in path:
      assert (value == 0).all(), path
    else:
      into_residual = path.endswith(('wo_HKD', 'down_FD'))
      std = 0.02 / (math.sqrt(2 * 8) if into_residual else 1)
      assert abs(value.std() / std - 1) < 0.05, path
      assert abs(value.mean()) < 5 * std / math.sqrt(value.size), path


def test_a_new_parameter_leaves_other_initial_values_unchanged():
  plain, more = initialized(), initialized(qk_norm=True, tied_head=False, positions='learned')
  assert set(more) - set(plain) == {
    'position_TD',
    'head_VD',
    'blocks/attention/q_norm/scale',
    'blocks/attention/k_norm/scale',
  }
  for path, value in plain.items():
    np.testing.assert_array_equal(value, more[path], err_msg=path)


def test_more_layers_leave_the_first_layers_initial_values_unchanged():
  two, three = (initialized(layers=n, init_projections='same') for n in (2, 3))
  for path, value in two.items():
    np.testing.assert_array_equal(value, three[path][: len(value)], err_msg=path)


def test_no_two_parameters_or_layers_are_drawn_alike():
  values = initialized()
  matrices = {path: v for path, v in values.items() if v.ndim > 2}
  rows = [layer.ravel()[:64] for v in matrices.values() for layer in v] + [values['embed_VD'].ravel()[:64]]
  similar = np.abs(np.corrcoef(rows) - np.eye(len(rows))).max()
  assert len(rows) == 15
  assert similar < 0.6  # 64 numbers each: 5 standard errors


@pytest.mark.parametrize('name', INITS)
def test_projections_have_the_configured_initial_std(tiny, name):
  std = {'scaled': 0.1 / math.sqrt(2 * 2), 'same': 0.1, 'zero': 0.0}[name]
  cfg = tiny(init_projections=name, init_std=0.1)
  declared = {path: p.std for path, p in param_trees.named_params(gpt.GPT(cfg))}
  assert declared['blocks/attention/wo_HKD'] == declared['blocks/mlp/down_FD'] == pytest.approx(std)
  assert declared['blocks/attention/wq_DHK'] == declared['embed_VD'] == 0.1


# -------------------------------------------------------------------------- trees of layers


def test_unstack_gives_one_module_per_layer(tiny):
  model = models.fill(tiny(layers=3))
  layers = [weights(layer) for layer in param_trees.unstack(model.blocks)]
  assert len(layers) == 3
  for path, p in param_trees.named_params(model.blocks):
    assert p.axes[0] == 'L'
    for l in range(3):
      np.testing.assert_array_equal(layers[l][path], p.get_value()[l])
  axes = {path: p.axes for path, p in param_trees.named_params(param_trees.unstack(model.blocks)[0])}
  assert axes['attention/wq_DHK'] == 'DHK'


def test_names_shapes_and_axes_agree(tiny):
  cfg = tiny(kv_heads=2, qk_norm=True, attention_bias=True, mlp='gelu', mlp_bias=True)
  for path, p in param_trees.named_params(gpt.GPT(cfg)):
    sizes = dict(L=2, D=16, H=4, G=2, K=4, F=24, V=64, T=16)
    assert p.get_value().shape == tuple(sizes[a] for a in p.axes), path
    suffix = path.rpartition('_')[2]
    assert p.axes.lstrip('L') == suffix or suffix.endswith(('scale', 'bias')), path


def test_cast_changes_matrices_but_not_vectors_and_routers(tiny):
  cfg = tiny(experts=4, qk_norm=True, attention_bias=True)
  cast = param_trees.cast(models.fill(cfg), jnp.bfloat16)
  dtypes = {path: p.get_value().dtype for path, p in param_trees.named_params(cast)}
  full = {path for path, dtype in dtypes.items() if dtype == jnp.float32}
  assert all('norm' in path or 'bias' in path or 'router' in path for path in full)
  assert {p for p in dtypes if 'norm' in p or 'bias' in p or 'router' in p} == full
  assert dtypes['blocks/mlp/up_EDF'] == dtypes['embed_VD'] == jnp.bfloat16


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_a_model_in_half_precision_is_close_and_gives_float32_logits(tiny, dtype):
  overrides = models.VARIANTS['learned'] | dict(qk_norm=True)
  model = models.fill(tiny(**overrides))
  ids_BT = models.tokens()
  exact = np.asarray(models.logits(model, ids_BT))
  half = models.logits(param_trees.cast(model, jnp.dtype(dtype)), ids_BT)
  assert half.dtype == jnp.float32
  error = np.abs(np.asarray(half) - exact)[..., :50]
  assert 0 < error.mean() < 0.02 * exact[..., :50].std()


@pytest.mark.parametrize(
  ('subscripts', 'shape'),
  [
    ('BTD,DHK->BTHK', (4, 2, 3)),
    ('BTHK,HKD->BTD', (2, 3, 4)),
    ('BTD,DF->BTF', (4, 5)),
    ('BTF,FD->BTD', (5, 4)),
  ],
)
def test_products_with_outputs_first_weights_are_equal(subscripts, shape):
  sizes = dict(B=2, T=3, D=4, H=2, K=3, F=5)
  inputs, letters, _ = subscripts.replace('->', ',').split(',')
  rng = np.random.default_rng(0)
  x = rng.standard_normal([sizes[a] for a in inputs], np.float32)
  w = rng.standard_normal(shape, np.float32)
  transposed = fused.outputs_first(nnx.Param(jnp.asarray(w), axes=letters, std=0.0, mean=0.0))
  assert transposed.axes != letters
  for path in (nn.linear, fused.weights_left):
    y = path(subscripts, jnp.asarray(x), transposed)
    np.testing.assert_allclose(y, np.einsum(subscripts, x, w), rtol=1e-5, atol=1e-6)
