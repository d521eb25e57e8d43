"""Loss terms against numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import losses

B, T, V, VOCAB = 2, 5, 8, 6
RNG = np.random.default_rng(0)
LOGITS_BTV = (RNG.standard_normal((B, T, V)) * 3).astype(np.float32)
LOGITS_BTV[..., VOCAB:] = -1e30  # as the model pads
TARGETS_BT = RNG.integers(0, VOCAB, (B, T), dtype=np.int32)
MASK_BT = np.array([[1, 1, 0, 0.5, 1], [0, 0, 0, 0, 2]], np.float32)


@jax.jit
def objective(logits_BTV, hyper):
  return losses.objective(logits_BTV, TARGETS_BT, MASK_BT, VOCAB, hyper)


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
  'weights',
  [dict(), dict(z_loss=0.1), dict(smoothing=0.2), dict(smoothing=0.3, z_loss=0.01)],
  ids=str,
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


def test_pieces_add_up_to_the_whole():
  rows = lambda b: losses.objective(
    LOGITS_BTV[b : b + 1], TARGETS_BT[b : b + 1], MASK_BT[b : b + 1], VOCAB, {}
  )
  whole = objective(LOGITS_BTV, {})
  np.testing.assert_allclose(np.add(rows(0), rows(1)), whole, rtol=1e-6)


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


def test_bits_per_byte():
  assert losses.bits(math.log(8)) == pytest.approx(3)
  # 10 tokens of 2 bits each over 5 bytes
  assert losses.bits_per_byte(10 * math.log(4), 5) == pytest.approx(4)
  assert math.isnan(losses.bits_per_byte(1.0, 0))


@pytest.mark.parametrize('key', ['z_loss', 'moe_balance', 'moe_z'])
def test_weights_are_not_negative(key):
  for wrong in (-0.1, math.nan):
    with pytest.raises(ValueError, match=f'loss.{key}={wrong} is negative\nfix: use a weight >= 0'):
      losses.LossConfig(**{key: wrong})


@pytest.mark.parametrize('smoothing', [-0.1, 1.0])
def test_label_smoothing_is_a_probability(smoothing):
  with pytest.raises(ValueError, match='loss.label_smoothing=.* is not a probability\nfix: '):
    losses.LossConfig(label_smoothing=smoothing)
