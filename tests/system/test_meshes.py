"""One device and every way to share eight between five axes: the same loss and the same gradients.

In float32 to 1e-5, for models of the demo's and of GPT-2's shape and one of experts, of rows that
hold one document and rows that are packed. All 35 meshes are slow; one for each model is not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import step
from gpt_jax.cluster.batches import to_devices
from gpt_jax.model import gpt
from tests import models

ROWS, LENGTH = 8, 16  # 8 devices on `sequence` have two chunks of one token each
SIZES = dict(width=16, heads=8, hidden=16, experts=0)
MODELS = {
  'demo': models.tiny(**SIZES, head_dim=8, positions='mrope', mlp='relu2', qk_norm=True),
  'gpt2': models.tiny(**SIZES, positions='learned', **models.GPT2),
  'experts': models.tiny(**SIZES | dict(experts=8, kv_heads=8), experts_per_token=2),
}
AXES = ('data', 'fsdp', 'sequence', 'expert', 'tensor')


def factorizations(n, axes):
  """Every way to give each axis a size so that their product is n."""
  if len(axes) == 1:
    return [{axes[0]: n}]
  return [
    {axes[0]: size} | rest
    for size in range(1, n + 1)
    if n % size == 0
    for rest in factorizations(n // size, axes[1:])
  ]


ALL = [{axis: n for axis, n in sizes.items() if n > 1} for sizes in factorizations(8, AXES)]


@functools.cache
def batches(name):
  """{unpacked, packed}: rows of one document each, and of three with padding after them."""
  rng, plain = np.random.default_rng(7), models.batch(ROWS, LENGTH)
  segments_BT = np.sort(rng.integers(1, 4, (ROWS, LENGTH))).astype(np.int32)
  segments_BT[:, 14:] = 0
  starts_BT = np.zeros((ROWS, LENGTH), np.int32)
  first_BT = np.diff(segments_BT, prepend=-1) != 0
  starts_BT[first_BT] = np.nonzero(first_BT)[1]
  positions_BT = np.arange(LENGTH, dtype=np.int32)[None] - np.maximum.accumulate(starts_BT, 1)
  packed = plain | dict(segment_ids_BT=segments_BT)
  packed['loss_mask_BT'] = plain['loss_mask_BT'] * (segments_BT > 0)
  if MODELS[name].positions == 'mrope':
    columns = rng.integers(0, 5, (ROWS, LENGTH, 2), dtype=np.int32)
    packed['positions_BT3'] = np.concatenate([positions_BT[..., None], columns], -1)
  else:
    packed['positions_BT'] = positions_BT
  return dict(unpacked=plain, packed=packed)


@functools.cache
def found(name, **sizes):
  """{unpacked, packed: (loss, gradients)} on a mesh of these sizes; none = one device."""
  cfg, mesh = MODELS[name], models.mesh(**sizes)
  hyper = dict(moe_balance=jnp.float32(0.3), moe_z=jnp.float32(0.1), z_loss=jnp.float32(0.1))

  def loss(model, batch):
    return step.loss_fn(model, batch, batch['loss_mask_BT'].sum(), hyper, None)[0]

  def both(model, batches):
    return {kind: jax.value_and_grad(loss)(model, batch) for kind, batch in batches.items()}

  with jax.set_mesh(mesh):
    model = jax.device_put(models.fill(cfg), gpt.shardings(gpt.GPT(cfg), mesh))
    placed = {kind: to_devices(batch, mesh) for kind, batch in batches(name).items()}
    results = jax.device_get(jax.jit(both)(model, placed))
  return {kind: (value, step.params_of(grads)) for kind, (value, grads) in results.items()}


def check(name, sizes):
  alone, spread = found(name), found(name, **sizes)
  models.assert_close(spread, alone)
  assert abs(alone['packed'][0] - alone['unpacked'][0]) > 1e-3
  grads = {path: np.abs(grad).max() for path, grad in alone['packed'][1].items()}
  grads.pop('blocks/attention/k_bias_GK', 0)  # adds the same to all scores of a query
  assert min(grads.values()) > 1e-6


def test_there_are_35_meshes():
  assert len(ALL) == 35
  assert all(np.prod(list(sizes.values())) == 8 for sizes in ALL)


@pytest.mark.slow
def test_one_mesh_is_one_device():
  check('demo', dict(fsdp=2, sequence=2, tensor=2))


@pytest.mark.slow
@pytest.mark.parametrize('sizes', ALL, ids=str)
@pytest.mark.parametrize('name', MODELS)
def test_every_mesh_is_one_device(name, sizes):
  check(name, sizes)
