"""Losses and gradients are those of all logits, wherever the targets of a row are."""

import jax
import numpy as np
import pytest

from gpt_jax import step
from gpt_jax.model.kernels import target_places
from tests import models

LENGTH, MOST = 16, 5


def scattered_batch():
  """Rows with no target, with a few, and with the most, at random places; every row has padding."""
  batch, rng = models.batch(rows=4, length=LENGTH), np.random.default_rng(0)
  batch['loss_mask_BT'] = np.zeros((4, LENGTH), np.float32)
  for row, targets in enumerate((0, 2, MOST, 1)):
    batch['loss_mask_BT'][row, rng.permutation(LENGTH - 1)[:targets]] = 0.5 + row
  return batch


@pytest.mark.parametrize('places', [MOST, LENGTH])
def test_loss_and_gradients_are_those_of_all_logits(places):
  model, batch = models.fill(models.tiny()), scattered_batch()

  @jax.jit
  def both(model):
    def scored(model, places):
      weight = batch['loss_mask_BT'].sum()
      total, metrics, nats_BT = step.loss_fn(model, batch, weight, {'z_loss': 0.1}, None, places=places)
      return total, (metrics, nats_BT * batch['loss_mask_BT'])

    return [jax.value_and_grad(scored, has_aux=True)(model, count) for count in (None, places)]

  expected, actual = both(model)
  models.assert_close(actual, expected)


def test_places_with_a_target_of_weight_zero_still_have_nats():
  """A modality whose weight is 0 is measured, too."""
  model, batch = models.fill(models.tiny()), scattered_batch()
  batch['targets_BT'] = (batch['loss_mask_BT'] > 0).astype(np.float32)
  batch['loss_mask_BT'] = np.zeros_like(batch['loss_mask_BT'])
  all_BT, some_BT = (
    step.loss_fn(model, batch, np.float32(1), {}, None, places=places)[2] for places in (None, MOST)
  )
  models.assert_close(some_BT * batch['targets_BT'], all_BT * batch['targets_BT'])


@pytest.mark.parametrize(
  'targets, length, vocab, expected',
  [(1, 640, 262_144, 80), (154, 640, 262_144, 160), (320, 640, 262_144, 320), (321, 640, 262_144, None)]
  + [(1, 640, 4096, None), (3, 12, 262_144, 3), (640, 640, 262_144, None)],
)
def test_counts_are_eighths_of_a_row_where_the_head_is_large(targets, length, vocab, expected):
  count = target_places.round_count(targets, length, vocab)
  assert count == expected
  assert count is None or targets <= count <= length // 2
