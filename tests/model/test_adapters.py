"""Adapters: against numpy, against merged weights, and what a step trains."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gpt_jax.model import adapters, gpt, layers, param_trees
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
