"""The flow head: its definition, its sampler on a known velocity, and a distribution that it learns."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax import sample, step
from gpt_jax.cluster.batches import to_devices
from gpt_jax.model import costs, flow, gpt
from tests import models

PATCH = 4  # the id of a patch
SETTINGS = dict(flow_layers=2, flow_width=8, patch_values=3, patch_id=PATCH)


def silu(x):
  return x / (1 + np.exp(-x))


def norm(x):
  return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)


def velocity(p, x_BTRA, t_BTR, z_BTD):
  """flow.FlowHead in numpy."""
  angle = t_BTR[..., None] * 1000 ** (np.arange(32) / 31)
  time = np.concatenate([np.cos(angle), np.sin(angle)], -1) @ p['time_NF']
  c = silu((z_BTD @ p['condition_DF'])[:, :, None] + time)
  h = x_BTRA @ p['in_AD']
  for l in range(2):
    b = {name.removeprefix('blocks/'): value[l] for name, value in p.items() if name.startswith('blocks/')}
    x = norm(h) * (1 + c @ b['scale_FD']) + c @ b['shift_FD']
    h = h + (c @ b['gate_FD']) * (silu(x @ b['up_DF']) @ b['down_FD'])
  return norm(h) @ p['out_DA']


def test_the_head_equals_its_definition_and_errors_are_those_of_patches_alone():
  model, rng = models.fill(models.tiny(layers=1, **SETTINGS)), np.random.default_rng(0)
  batch = models.batch(2) | {'patches_BTA': rng.standard_normal((2, 8, 3)).astype(np.float32)}
  batch['target_ids_BT'][:, ::3] = PATCH
  z_BTD = rng.standard_normal((2, 8, 16)).astype(np.float32)
  given = []

  def head(x_BTRA, t_BTR, z_BTD):
    given.append((x_BTRA, t_BTR))
    return model.patch_head(x_BTRA, t_BTR, z_BTD)

  ones_BT = jnp.ones((2, 8))
  fake = types.SimpleNamespace(cfg=model.cfg, patch_head=head)
  scored = flow.score_patches(fake, (ones_BT, 2 * ones_BT), lambda x: x, z_BTD, batch, jax.random.key(1))
  x_BTRA, t_BTR = (np.asarray(x, np.float64) for x in given[0])
  assert t_BTR.min() >= 0 and t_BTR.max() <= 1
  np.testing.assert_allclose(np.diff(t_BTR, axis=2), 1 / flow.LEVELS, rtol=1e-5)
  p = {
    name.removeprefix('patch_head/'): x for name, x in models.params(model).items() if 'patch_head' in name
  }
  expected_BTRA = velocity(p, x_BTRA, t_BTR, z_BTD)
  np.testing.assert_allclose(model.patch_head(*given[0], z_BTD), expected_BTRA, rtol=1e-3, atol=5e-4)
  x1_BTRA = np.concatenate([batch['patches_BTA'][:, 1:], np.zeros((2, 1, 3))], 1)[:, :, None]
  x0_BTRA = (x_BTRA - t_BTR[..., None] * x1_BTRA) / (1 - t_BTR[..., None])
  of_dropout_BTRA = jax.random.normal(jax.random.split(jax.random.key(1))[1], x0_BTRA.shape)
  assert abs(np.corrcoef(x0_BTRA.ravel(), of_dropout_BTRA.ravel())[0, 1]) < 0.3
  errors_BT = np.square(expected_BTRA - (x1_BTRA - x0_BTRA)).mean((2, 3))
  for number, result_BT in enumerate(scored, 1):
    is_patch_BT = batch['target_ids_BT'] == PATCH
    np.testing.assert_allclose(result_BT, np.where(is_patch_BT, errors_BT, number), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('guidance', [None, 1.5])
def test_the_sampler_follows_a_velocity_to_the_distribution_that_has_it(guidance):
  """The velocity from noise to N(mean, 0.5^2) has a closed form, whose paths end at mean + 0.5 noise."""
  scale, rows = 0.5, 5

  def head(x_BTRA, t_BTR, z_BTD):
    t, mean = t_BTR[..., None], z_BTD[:, :, None]
    variance = (1 - t) ** 2 + (scale * t) ** 2
    return mean + (scale**2 * t - (1 - t)) / variance * (x_BTRA - t * mean)

  hidden_BD = np.random.default_rng(0).standard_normal((rows * (1 if guidance is None else 2), 2))
  hidden_BD = jnp.asarray(hidden_BD, jnp.float32)
  keys_B, cfg = sample.row_keys(0, rows), sample.SampleConfig(flow_steps=40, temperature=0.7)
  fake = types.SimpleNamespace(cfg=types.SimpleNamespace(patch_values=2), patch_head=head)
  scales_B = None if guidance is None else jnp.full(rows, guidance)
  patches_BA = flow.integrate(fake, hidden_BD, keys_B, cfg, scales_B)
  noise_BA = 0.7 * np.stack([jax.random.normal(key, (2,)) for key in keys_B])
  mean_BA = hidden_BD[:rows]
  if guidance is not None:  # the velocity is linear in the mean
    mean_BA = hidden_BD[rows:] + guidance * (hidden_BD[:rows] - hidden_BD[rows:])
  np.testing.assert_allclose(patches_BA, mean_BA + scale * noise_BA, atol=2e-3)


def test_flops_count_the_head_once_for_each_noise_level():
  plain, head = models.tiny(), models.tiny(**SETTINGS)
  per_level = 64 * 8 + 3 * 16 + 2 * (5 * 8 * 16) + 16 * 3
  expected = flow.LEVELS * per_level + 16 * 8 + 3 * 16  # the hidden state's matrix, and the input's
  assert costs.active_matmul_params(head) - costs.active_matmul_params(plain) == expected


def one_step(**sizes):
  """Parameters after one step on a mesh of these sizes."""
  cfg, mesh = models.experiment(models.tiny(layers=1, **SETTINGS)), models.mesh(**sizes)
  batch = models.batch() | {'patches_BTA': np.ones((8, 8, 3), np.float32)}
  batch['target_ids_BT'][:, 2:6] = PATCH
  program = step.gpt_program(cfg, cfg.model, mesh)
  with jax.set_mesh(mesh):
    model = jax.device_put(models.fill(cfg.model), gpt.shardings(gpt.GPT(cfg.model), mesh))
    state = program.init()._replace(model=model)
    state, metrics = program.step(state, to_devices(batch, mesh))
  return models.params(state.model), float(metrics['loss'])


@pytest.mark.slow
def test_a_step_on_a_mesh_equals_one_on_a_device():
  (alone, loss), (sharded, sharded_loss) = one_step(), one_step(data=2, fsdp=2, tensor=2)
  models.assert_close(sharded_loss, loss, 1e-4)
  models.assert_close(sharded, alone, 1e-3)
  before = models.params(models.fill(models.tiny(layers=1, **SETTINGS)))
  assert all((alone[path] != before[path]).any() for path in alone if 'patch' in path)


@pytest.mark.slow
def test_samples_have_the_mean_and_the_covariance_of_each_condition():
  """Points in the plane under two conditions: a narrow diagonal, and two spots that a mean would miss."""
  cfg = dataclasses.replace(models.tiny(width=32), flow_layers=2, patch_values=2, patch_id=PATCH)
  head = jax.tree.map(lambda x: x, models.nn.initialize(flow.FlowHead(cfg), jax.random.key(0)))
  z_2D = 3.0 * jnp.eye(2, 32)

  def points(key, c_B):
    normal_B2, spot_B = jax.random.normal(key, (len(c_B), 2)), jax.random.bernoulli(key, 0.5, (len(c_B),))
    diagonal_B2 = jnp.stack([normal_B2[:, 0] + 0.5, 0.8 * normal_B2[:, 0] + 0.2 * normal_B2[:, 1]], -1)
    spots_B2 = 0.1 * normal_B2 + jnp.where(spot_B, 1.0, -1.0)[:, None] * jnp.array([[1.0, -0.5]])
    return jnp.where(c_B[:, None] == 0, diagonal_B2, spots_B2)

  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 800))

  def train_step(carry, key):
    head, state = carry
    c_B = jnp.arange(128) % 2
    x_B2 = points(key, c_B)
    loss = lambda head: flow.errors(head, x_B2[:, None], z_2D[c_B][:, None], key).mean()
    value, grads = jax.value_and_grad(loss)(head)
    with jax.numpy_dtype_promotion('standard'):
      updates, state = optimizer.update(grads, state)
    return (jax.tree.map(jnp.add, head, updates), state), value

  run = jax.jit(lambda carry, keys: jax.lax.scan(train_step, carry, keys))
  (head, _), _ = run((head, optimizer.init(head)), jax.random.split(jax.random.key(1), 800))
  model, n = types.SimpleNamespace(cfg=cfg, patch_head=head), 4000
  draw = jax.jit(
    lambda hidden_BD: flow.integrate(model, hidden_BD, sample.row_keys(7, n), sample.SampleConfig())
  )
  real = points(jax.random.key(2), jnp.arange(2 * n) // n)
  for c in range(2):
    drawn_N2, real_N2 = np.asarray(draw(jnp.tile(z_2D[c], (n, 1)))), np.asarray(real[c * n : (c + 1) * n])
    np.testing.assert_allclose(drawn_N2.mean(0), real_N2.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn_N2.T), np.cov(real_N2.T), atol=0.12)
  assert (np.abs(drawn_N2[:, 0]) > 0.5).mean() > 0.9  # the two spots, and little between them
