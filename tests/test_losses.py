"""Loss terms against numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import losses
from gpt_jax.tokenizers import modality_tables

B, T, V, VOCAB = 2, 5, 8, 6
RNG = np.random.default_rng(0)
LOGITS_BTV = (RNG.standard_normal((B, T, V)) * 3).astype(np.float32)
LOGITS_BTV[..., VOCAB:] = -1e30  # as the model pads
TARGETS_BT = RNG.integers(0, VOCAB, (B, T), dtype=np.int32)
MASK_BT = np.array([[1, 1, 0, 0.5, 1], [0, 0, 0, 0, 2]], np.float32)


@jax.jit
def objective(logits_BTV, hyper):
  return [(x * MASK_BT).sum() for x in losses.objective(logits_BTV, TARGETS_BT, VOCAB, hyper)]


def reference(smoothing=0.0, z_loss=0.0):
  """(objective, cross-entropy), summed over weighted targets."""
  total = nats = 0.0
  for b, t in np.ndindex(B, T):
    logits = LOGITS_BTV[b, t, :VOCAB].astype(np.float64)
    log_z = math.log(np.exp(logits).sum())
    wanted = np.full(VOCAB, smoothing / VOCAB)
    wanted[TARGETS_BT[b, t]] += 1 - smoothing
    cross_entropy = -(wanted * (logits - log_z)).sum()
    total += MASK_BT[b, t] * (cross_entropy + z_loss * log_z**2)
    nats += MASK_BT[b, t] * (log_z - logits[TARGETS_BT[b, t]])
  return total, nats


@pytest.mark.parametrize(
  'weights', [dict(), dict(z_loss=0.1), dict(smoothing=0.2), dict(smoothing=0.3, z_loss=0.01)], ids=str
)
def test_objective_is_the_formula(weights):
  names = {'smoothing': 'label_smoothing', 'z_loss': 'z_loss'}
  hyper = {names[k]: jnp.float32(v) for k, v in weights.items()}
  np.testing.assert_allclose(objective(LOGITS_BTV, hyper), reference(**weights), rtol=1e-5)


def test_gradient_is_finite_and_zero_in_padding_columns_and_where_masked():
  hyper = {'label_smoothing': jnp.float32(0.2), 'z_loss': jnp.float32(0.1)}
  grad = np.asarray(jax.jit(jax.grad(lambda x: objective(x, hyper)[0]))(LOGITS_BTV))
  assert np.isfinite(grad).all()
  assert (grad[..., VOCAB:] == 0).all()
  assert (grad[MASK_BT == 0] == 0).all()
  assert (np.abs(grad[MASK_BT > 0][:, :VOCAB]) > 0).all()


def test_gradient_of_the_cross_entropy_is_that_of_the_formula():
  def formula(logits_BTV):
    log_z_BT = jax.nn.logsumexp(logits_BTV, -1)
    return log_z_BT - jnp.take_along_axis(logits_BTV, TARGETS_BT[..., None], -1)[..., 0], log_z_BT

  weigh = lambda fn: (
    lambda x: sum((out * MASK_BT).sum() * w for out, w in zip(fn(x), (2.0, 0.3), strict=True))
  )
  ours = weigh(lambda x: losses.token_losses(x, jnp.asarray(TARGETS_BT)))
  actual = jax.jit(jax.grad(ours))(LOGITS_BTV)
  np.testing.assert_allclose(actual, jax.jit(jax.grad(weigh(formula)))(LOGITS_BTV), atol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
  logits = jnp.asarray(LOGITS_BTV[..., :VOCAB], jnp.bfloat16)
  nats_BT, log_z_BT = jax.jit(losses.token_losses)(logits, TARGETS_BT)
  exact_BT, _ = jax.jit(losses.token_losses)(logits.astype(jnp.float32), TARGETS_BT)
  assert nats_BT.dtype == log_z_BT.dtype == jnp.float32
  np.testing.assert_allclose(nats_BT, exact_BT, rtol=1e-6)


def test_uniform_logits_cost_the_log_of_the_vocabulary():
  logits = jnp.zeros((B, T, V)).at[..., VOCAB:].set(-1e30)
  nats_BT, _ = losses.token_losses(logits, jnp.asarray(TARGETS_BT))
  np.testing.assert_allclose(nats_BT, math.log(VOCAB), rtol=1e-6)


def test_bits():
  """Ten times log(4) nats over five bytes are four bits a byte."""
  assert losses.bits(10 * math.log(4)) / 5 == pytest.approx(4)


@pytest.mark.parametrize('key', ['z_loss', 'moe_balance', 'moe_z'])
def test_weights_are_not_negative(key):
  for wrong in (-0.1, math.nan):
    with pytest.raises(ValueError, match=f'loss.{key}={wrong} is negative\nfix: use a weight >= 0'):
      losses.LossConfig(**{key: wrong})


@pytest.mark.parametrize('smoothing', [-0.1, 1.0])
def test_label_smoothing_is_a_probability(smoothing):
  with pytest.raises(ValueError, match='loss.label_smoothing=.* is not a probability\nfix: '):
    losses.LossConfig(label_smoothing=smoothing)


# ------------------------------------------------------------------------------------ modalities

# ids 0, 1 text; 2 the end of an image; 3, 4 image codes; 5 an audio code
KINDS = modality_tables.ModalityTables(
  names=('text', 'image', 'audio'),
  modality_V=np.array([0, 0, 1, 1, 1, 2, 0, 0], np.int32),
  group_V=np.array([0, 0, 2, 1, 1, 3, 0, 0], np.int32),
  allowed_NV=np.array(
    [[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0]],
    bool,
  ),
)
IDS_BT = np.array([[0, 3, 4, 4, 2], [1, 0, 5, 5, 0]], np.int32)


def weights_by_modality(balance, mask_BT=MASK_BT, **hyper):
  hyper = {name: jnp.float32(value) for name, value in hyper.items()}
  weighed_BT = modality_tables.weigh_by_modality(mask_BT, IDS_BT, KINDS, balance, hyper)
  modality_BT = KINDS.modality_V[IDS_BT]
  return modality_tables.sum_by_label(weighed_BT, modality_BT, 3), modality_tables.sum_by_label(
    mask_BT, modality_BT, 3
  )


def test_weights_by_token_scale_what_a_modality_has():
  weighed_M, plain_M = weights_by_modality('token', image=0.25, audio=0.0)
  np.testing.assert_allclose(weighed_M, plain_M * np.array([1, 0.25, 0], np.float32))
  np.testing.assert_allclose(plain_M, [3, 2.5, 0])


def test_modality_means_count_by_their_weight_however_many_targets_each_has():
  mask_BT = np.ones((B, T), np.float32)
  weighed_M, _ = weights_by_modality('modality_mean', mask_BT, text=0.125, image=0.875)
  np.testing.assert_allclose(weighed_M / weighed_M.sum(), [0.0625, 0.4375, 0.5], rtol=1e-6)
  absent_M, _ = weights_by_modality('modality_mean', image=1.0)
  np.testing.assert_allclose(absent_M / absent_M.sum(), [0.5, 0.5, 0], rtol=1e-6)


def test_a_restricted_softmax_is_over_the_ids_of_the_targets_group():
  logits_BTV = modality_tables.restrict_logits(jnp.asarray(LOGITS_BTV), jnp.asarray(IDS_BT), KINDS)
  nats_BT, _ = losses.token_losses(logits_BTV, jnp.asarray(IDS_BT))
  groups = {0: (0, 1), 1: (3, 4), 2: (2,), 3: (5,)}
  for b, t in np.ndindex(B, T):
    logits = LOGITS_BTV[b, t].astype(np.float64)
    allowed = list(groups[KINDS.group_V[IDS_BT[b, t]]])
    expected = math.log(np.exp(logits[allowed]).sum()) - logits[IDS_BT[b, t]]
    assert abs(nats_BT[b, t] - expected) < 1e-5
  full_BT, _ = losses.token_losses(jnp.asarray(LOGITS_BTV), jnp.asarray(IDS_BT))
  assert (np.asarray(full_BT) >= np.asarray(nats_BT) - 1e-6).all()


@pytest.mark.parametrize(
  'wrong', [dict(image=-1.0), dict(balance='mean'), dict(restrict=True, label_smoothing=0.1)]
)
def test_what_makes_no_sense_is_refused(wrong):
  with pytest.raises(ValueError, match='loss.*\nfix: '):
    losses.LossConfig(**wrong)
