"""The autoencoder of images and sounds: shapes, neighborhoods, gradients, learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model import layers as nn
from gpt_jax.model import param_trees
from gpt_jax.tokenizers import patches
from gpt_jax.tokenizers.learned import autoencoder
from gpt_jax.tokenizers.learned.autoencoder import Autoencoder, AutoencoderConfig

SMALL = dict(width=16, hidden=16, blocks=1)
CONFIGS = {
  'gray fsq': AutoencoderConfig((8, 12, 1), 4, levels=(4, 3), **SMALL),
  'color vq': AutoencoderConfig((4, 4, 3), 2, 'vq', codes=8, code_width=4, **SMALL),
  'mel fsq': AutoencoderConfig((16, 5), 4, levels=(4, 3), **SMALL),
  'mel vq': AutoencoderConfig((16, 5), 4, 'vq', codes=8, code_width=4, **SMALL),
}
every = pytest.mark.parametrize('cfg', CONFIGS.values(), ids=list(CONFIGS))


@functools.cache
def born(cfg, seed=0):
  return jax.jit(functools.partial(nn.initialize, Autoencoder(cfg)))(jax.random.key(seed))


def params_of(model):
  return {path: p.get_value() for path, p in param_trees.named_params(model)}


def inputs(cfg, n=3, frames=0):
  shape = (frames, cfg.shape[1]) if frames else cfg.shape
  return np.random.default_rng(0).uniform(-1, 1, (n, *shape)).astype(np.float32)


@jax.jit
def through(model, x):
  z_BPZ = model.encode(x)
  values_BPZ, codes_BP = model.quantize(z_BPZ)
  return z_BPZ, values_BPZ, codes_BP, model.lookup(codes_BP), model.decode(values_BPZ)


@every
def test_encode_and_decode_shapes(cfg):
  x = inputs(cfg)
  z_BPZ, values_BPZ, codes_BP, again_BPZ, y = through(born(cfg), x)
  positions = cfg.grid[0] * cfg.grid[1]
  assert z_BPZ.shape == values_BPZ.shape == (3, positions, cfg.dims['Z'])
  assert codes_BP.shape == (3, positions) and codes_BP.dtype == jnp.int32
  assert y.shape == x.shape and y.dtype == jnp.float32
  assert 0 <= codes_BP.min() and codes_BP.max() < cfg.codebook
  np.testing.assert_allclose(again_BPZ, values_BPZ, atol=1e-6)


@pytest.mark.parametrize('name', ['mel fsq', 'mel vq'])
def test_a_sound_has_any_length(name):
  """Beyond the reach of the windows, the codes of a longer sound are those of its beginning."""
  cfg = CONFIGS[name]
  x = inputs(cfg, frames=32)
  codes_BP, y = through(born(cfg), x)[2::2]
  assert codes_BP.shape == (3, 8) and y.shape == x.shape
  short_BP = through(born(cfg), x[:, :16])[2]
  np.testing.assert_array_equal(codes_BP[:, :3], short_BP[:, :3])


def test_a_block_mixes_neighbors():
  """One block: a pixel moves the z of its patch and of the eight around it, and no others."""
  cfg = AutoencoderConfig((20, 20, 1), 4, **SMALL)
  model, x = born(cfg), inputs(cfg, 1)
  other = x.copy()
  other[0, 9, 9, 0] += 1  # in the patch in row 2, column 2
  moved = np.abs(through(model, x)[0] - through(model, other)[0]).max(-1).reshape(5, 5) > 0
  expected = np.zeros((5, 5), bool)
  expected[1:4, 1:4] = True
  np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize('arrays', [np, jnp])
def test_from_patches_inverts_to_patches(arrays):
  cfg = AutoencoderConfig((8, 12, 3), 4)
  x = arrays.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
  patches_NRSC = patches.to_patches(x, 4)
  assert patches_NRSC.shape == (2, *cfg.grid, cfg.dims['I'])
  np.testing.assert_array_equal(patches.from_patches(patches_NRSC, 4), x)
  np.testing.assert_array_equal(patches_NRSC[0, 0, 0], x[0, :4, :4].reshape(-1))


@functools.cache
def step(cfg):
  """One step of plain gradient descent."""

  @jax.jit
  def run(model, x, key):
    (loss, metrics), grads = jax.value_and_grad(autoencoder.loss, has_aux=True)(model, x)
    params, grads = params_of(model), params_of(grads)
    params = {path: p - 0.1 * grads[path] for path, p in params.items()}
    params = autoencoder.after_update(cfg, params, metrics['statistics'], key)
    return param_trees.map_params(lambda path, _: params[path], model), loss, metrics, grads

  return run


@every
def test_training_lowers_the_error_and_every_weight_takes_part(cfg):
  model, x, errors = born(cfg), inputs(cfg, 8), []
  for i in range(30):
    model, _, metrics, grads = step(cfg)(model, x, jax.random.key(i))
    errors.append(float(metrics['mse']))
  assert errors[-1] < 0.9 * errors[0]
  silent = {path for path, g in grads.items() if not np.abs(g).max() > 0}
  assert silent == {path for path in grads if path.startswith('codebook/')}


def test_a_codebook_learns_by_averages():
  cfg = CONFIGS['color vq']
  model, x = born(cfg), inputs(cfg, 16)
  before = params_of(model)
  model, _, metrics, _ = step(cfg)(model, x, jax.random.key(0))
  after = params_of(model)
  assert metrics['statistics']['counts_K'].sum() == 16 * 4
  assert np.abs(after['codebook/values_KZ'] - before['codebook/values_KZ']).max() > 0.1
  for i in range(20):
    model = step(cfg)(model, x, jax.random.key(i))[0]
  assert len(np.unique(through(model, x)[2])) == cfg.codes


def test_the_codebook_of_shards_is_that_of_the_batch():
  """Statistics are sums: accumulated micro-batches give the update of the whole batch."""
  cfg = CONFIGS['color vq']
  model, x = born(cfg), inputs(cfg, 16)
  actual = jax.jit(lambda model, x: autoencoder.loss(model, x)[1]['statistics'])
  parts = jax.tree.map(jnp.add, actual(model, x[:8]), actual(model, x[8:]))
  for name, value in actual(model, x).items():
    np.testing.assert_allclose(parts[name], value, rtol=1e-4, atol=1e-5)


def test_fsq_has_nothing_to_update():
  cfg = CONFIGS['gray fsq']
  params = params_of(born(cfg))
  assert autoencoder.after_update(cfg, params, {}, jax.random.key(0)) is params


@every
def test_the_loss_is_the_mean_squared_error_and_the_commitment(cfg):
  model, x = born(cfg), inputs(cfg, 8)
  _, loss, metrics, _ = step(cfg)(model, x, jax.random.key(0))
  z_BPZ, values_BPZ, _, _, y = through(model, x)
  expected = np.square(y - x).mean()
  np.testing.assert_allclose(metrics['mse'], expected, rtol=1e-5)
  if cfg.quantizer == 'vq':
    expected += 0.25 * np.square(z_BPZ - values_BPZ).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
  'wrong',
  [
    dict(shape=(28,)),
    dict(shape=(28, 30, 1)),
    dict(stride=0),
    dict(quantizer='lfq'),
    dict(levels=()),
    dict(levels=(8, 1)),
    dict(codes=0),
    dict(blocks=0),
  ],
  ids=str,
)
def test_impossible_configs_are_refused(wrong):
  with pytest.raises(ValueError, match=rf'autoencoder\.{next(iter(wrong))}=.*\nfix: '):
    AutoencoderConfig(**wrong)


def test_a_config_round_trips_through_json():
  import dataclasses
  import json

  cfg = AutoencoderConfig((16, 40), 4, levels=(8, 5, 5, 5))
  assert autoencoder.from_json(json.loads(json.dumps(dataclasses.asdict(cfg)))) == cfg
