"""The layout of weights for decoding: a copy, or in the place of the trained ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.sampling import decoding_layout
from tests import models


def test_for_sampling_casts_and_unstacks_a_copy():
  model = models.fill(models.tiny(qk_norm=True))
  ready = decoding_layout.for_sampling(model, 'bfloat16')
  assert len(ready.blocks) == 2
  assert ready.blocks[1].mlp.up_DF.get_value().dtype == jnp.bfloat16
  assert ready.blocks[1].attention.q_norm.scale.get_value().dtype == jnp.float32
  assert model.blocks.mlp.up_DF.get_value().dtype == jnp.float32


@pytest.mark.parametrize('donate', [False, True])
def test_a_prepared_model_computes_the_same_and_replaces_a_donated_one(donate):
  model = models.fill(models.tiny(experts=2, layers=3))
  ids_BT = models.tokens(2, 5, model.cfg.vocab)
  expected, router_LDE = models.logits(model, ids_BT), np.asarray(model.blocks.mlp.router_DE[...])
  ready = decoding_layout.prepare_model(model, donate)
  np.testing.assert_allclose(models.logits(ready, ids_BT), expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(ready.blocks[2].mlp.router_DE[...], router_LDE[2])
  assert model.blocks.attention.wq_DHK.get_value().is_deleted() is donate
  assert ready.embed_VD.get_value() is model.embed_VD.get_value()  # which decoding reads as it is
  assert decoding_layout.prepare_model(ready) is ready
