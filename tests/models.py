"""Tiny models and batches for the tests of the Transformer.

Compilation dominates the cost: `fill` draws parameters with numpy, and every test gets logits from the one
jitted `logits` with rows of shape (ROWS, LENGTH), so that each config compiles once.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config, sharding, step
from gpt_jax.model import gpt, param_trees
from gpt_jax.model import layers as nn
from gpt_jax.model.config import ModelConfig

ROWS, LENGTH = 9, 8  # LENGTH + 1 rows: the original, and one with each position perturbed

GPT2 = dict(norm='layernorm', mlp='gelu', attention_bias=True, mlp_bias=True)
# Every row of POSITIONS, every variant of attention, both norms, and experts.
VARIANTS = {
  'rope': dict(),
  'sinusoidal': dict(positions='sinusoidal', mlp='geglu'),
  'learned': dict(positions='learned', **GPT2),
  'alibi': dict(positions='alibi', mlp='gelu_exact'),
  'none': dict(positions='none', norm='layernorm', norm_bias=False),
  'grouped': dict(kv_heads=2, norm_position='sandwich', qk_norm=True, qk_norm_over='each'),
  'multi_query': dict(kv_heads=1, positions='alibi', norm_position='post'),
  'window': dict(window=3, mlp='relu2', tied_head=False),
  'pattern': dict(window=2, layer_pattern='SL', kv_heads=2, positions='none'),
  'softcap': dict(attention_softcap=2.0, logit_softcap=3.0, qk_norm=True, embed_scale=0.0),
  'yarn': dict(rope_scaling='yarn', rope_factor=4.0, rope_original_context=8, residual_scale=0.5),
  'experts': dict(experts=4, experts_per_token=2),
  'mrope': dict(positions='mrope', qk_norm=True, head_dim=8),
  'gemma': dict(
    norm='zero_centered_rmsnorm',
    norm_position='sandwich',
    qk_norm=True,
    query_scale=0.3,
    window=3,
    layer_pattern='SL',
    rope_local_theta=100.0,
  ),
  'parallel': dict(
    norm_position='parallel',
    head_dim=8,
    rope_fraction=0.5,
    layer_pattern='LN',
    qk_norm=True,
    qk_norm_over='all',
  ),
}


def tiny(**overrides):
  """A resolved ModelConfig of 2 layers, width 16, 4 heads, 50 ids, context 16."""
  sizes = dict(layers=2, width=16, heads=4, hidden=24, vocab=50, vocab_multiple=64, context=16)
  return ModelConfig(**(sizes | dict(remat='none') | overrides)).resolved()


def fill(cfg, seed=0):
  """A model with all parameters random, norm scales and biases too, so that a missing term shows."""

  def draw(path, p):
    value = p.get_value()
    noise = np.random.default_rng([seed, zlib.crc32(path.encode())]).standard_normal(value.shape)
    return jnp.asarray(p.mean + 0.3 * noise, value.dtype)

  return param_trees.map_params(draw, gpt.GPT(cfg))


def create(cfg, key, mesh):
  """A model with initial values, created sharded on the mesh."""
  abstract = gpt.GPT(cfg)
  initialize = functools.partial(nn.initialize, abstract)
  return jax.jit(initialize, out_shardings=gpt.shardings(abstract, mesh))(key)


@jax.jit
def logits(model, token_ids_BT, positions_BT=None, segment_ids_BT=None, prefix_BT=None):
  """Logits of the uncached model."""
  return model(
    token_ids_BT, positions_BT=positions_BT, segment_ids_BT=segment_ids_BT, prefix_BT=prefix_BT
  ).logits_BTV


def tokens(rows=ROWS, length=LENGTH, vocab=50, seed=0):
  """Random ids."""
  return np.random.default_rng(seed).integers(0, vocab, (rows, length), dtype=np.int32)


def batch(rows=8, length=LENGTH, vocab=50, seed=0):
  """A training batch whose rows have different numbers of targets, one of them zero."""
  rng = np.random.default_rng(seed)
  targets_B1 = rng.permutation(np.linspace(0, length, rows).round())[:, None]
  return dict(
    token_ids_BT=tokens(rows, length, vocab, seed),
    target_ids_BT=tokens(rows, length, vocab, seed + 1000),
    loss_mask_BT=(np.arange(length)[None] < targets_B1).astype(np.float32),
  )


def experiment(model_cfg, **sections):
  """A Config with this model; `sections`: dicts of changes to the defaults."""
  chosen = dict(optim=dict(warmup=0, eps=1e-3, lr=1e-2), train=dict(steps=12, batch_size=8))
  for name, values in sections.items():
    chosen[name] = chosen.get(name, {}) | values
  cfg = dataclasses.replace(config.Config(), model=model_cfg)
  parts = {name: dataclasses.replace(getattr(cfg, name), **v) for name, v in chosen.items()}
  return dataclasses.replace(cfg, **parts)


def mesh(**sizes):
  """A mesh of these sizes on fake devices."""
  count = int(np.prod(list(sizes.values()) or [1]))
  return sharding.make_mesh(sharding.MeshConfig(**({'data': 1} | sizes)), jax.devices()[:count])


def params(model):
  """{path: numpy array}."""
  return {path: np.asarray(value) for path, value in step.params_of(model).items()}


def assert_close(actual, expected, tolerance=1e-5):
  """Two trees of arrays agree to `tolerance`, relative and absolute."""
  check = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
  jax.tree.map(check, actual, expected)
