"""The mixture of experts against one token at a time, and against einsums over all experts."""

import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.model import layers as nn
from gpt_jax.model import param_trees
from gpt_jax.model.kernels import grouped_matmul
from gpt_jax.model.moe import MoE
from tests import models

B, T = 3, 8
X_BTD = np.random.default_rng(0).standard_normal((B, T, 16)).astype(np.float32)


@jax.jit
def run(moe, x_BTD, real_BT=None):
  return moe(x_BTD, real_BT)


def expert_layer(**overrides):
  cfg = models.tiny(**(dict(experts=4) | overrides))
  moe = param_trees.unstack(models.fill(cfg).blocks)[0].mlp
  return cfg, moe, {path: np.asarray(p.get_value()) for path, p in param_trees.named_params(moe)}


def probabilities(w, x):
  logits = x @ w['router_DE']
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def expert(w, e, x_D):
  """One expert on one token; gated experts are SwiGLU here, others squared ReLU."""
  up = x_D @ w['up_EDF'][e]
  if 'gate_EDF' in w:
    gate = x_D @ w['gate_EDF'][e]
    hidden = up * gate / (1 + np.exp(-gate))
  else:
    hidden = np.maximum(up, 0) ** 2
  return hidden @ w['down_EFD'][e]


def reference(cfg, w, x_BTD, capacity, real_BT):
  """Early tokens of a row take their slots before late ones, whatever the order of choice."""
  k, y_BTD, dropped = cfg.experts_per_token, np.zeros(x_BTD.shape), 0
  for b in range(B):
    free = dict.fromkeys(range(cfg.experts), capacity)
    for t in np.flatnonzero(real_BT[b]):
      for choice in range(k):
        p_E = probabilities(w, x_BTD[b, t])
        best = np.argsort(-p_E)[:k]
        e = best[choice]
        if free[e] == 0:
          dropped += 1
          continue
        free[e] -= 1
        y_BTD[b, t] += p_E[e] / p_E[best].sum() * expert(w, e, x_BTD[b, t])
  return y_BTD, dropped / (real_BT.sum() * k)


ALL = np.ones((B, T), bool)
SOME = ALL & ~((np.arange(T) % 3 == 1) & (np.arange(B) > 0)[:, None])


@pytest.mark.parametrize(
  ('overrides', 'capacity', 'real_BT'),
  [
    (dict(), T, ALL),
    (dict(mlp='relu2', experts_per_token=1), T, ALL),
    (dict(capacity_factor=0.5), 2, ALL),
    (dict(capacity_factor=0.75, experts_per_token=3), 5, SOME),
  ],
  ids=['dropless', 'one choice, no gate', 'half the slots', 'few slots and padding'],
)
def test_tokens_go_through_their_best_experts(overrides, capacity, real_BT):
  cfg, moe, w = expert_layer(**overrides)
  assert moe.capacity(T) == capacity
  expected_BTD, dropped = reference(cfg, w, X_BTD, capacity, real_BT)
  y_BTD, aux = run(moe, X_BTD, real_BT)
  np.testing.assert_allclose(y_BTD, expected_BTD, atol=2e-5)
  assert float(aux['moe_dropped']) == pytest.approx(dropped, abs=1e-6)
  assert (dropped > 0) == (capacity < T)


def test_dropping_is_causal():
  _, moe, _ = expert_layer(capacity_factor=0.5)
  other_BTD = X_BTD.copy()
  other_BTD[:, T // 2 :] = 5.0
  (y_BTD, _), (z_BTD, _) = run(moe, X_BTD), run(moe, other_BTD)
  np.testing.assert_allclose(y_BTD[:, : T // 2], z_BTD[:, : T // 2], atol=1e-6)


def test_k_equal_to_all_experts_is_their_weighted_sum():
  _, moe, w = expert_layer(experts_per_token=4)
  p_BTE = probabilities(w, X_BTD)
  y_BTD, _ = run(moe, X_BTD)
  for b, t in np.ndindex(B, T):
    dense = sum(p_BTE[b, t, e] * expert(w, e, X_BTD[b, t]) for e in range(4))
    np.testing.assert_allclose(y_BTD[b, t], dense, atol=2e-5)


def test_balance_and_z_losses_equal_their_formulas():
  cfg, moe, w = expert_layer(experts_per_token=2)
  _, aux = run(moe, X_BTD, SOME)
  p_NE = probabilities(w, X_BTD)[SOME]
  chosen_NE = p_NE >= np.sort(p_NE)[:, [-2]]
  share_E = chosen_NE.mean(0) / 2
  assert float(aux['moe_balance']) == pytest.approx(4 * (share_E * p_NE.mean(0)).sum(), rel=1e-5)
  z_N = np.log(np.exp(X_BTD[SOME] @ w['router_DE']).sum(-1)) ** 2
  assert float(aux['moe_z']) == pytest.approx(z_N.mean(), rel=1e-4)


def test_balance_is_one_when_uniform_and_e_when_one_expert_has_all():
  _, moe, _ = expert_layer(experts_per_token=1)
  x_BTD = np.abs(X_BTD)
  router_DE = np.zeros((16, 4), np.float32)
  moe.router_DE.set_value(jnp.asarray(router_DE))
  assert float(run(moe, x_BTD)[1]['moe_balance']) == pytest.approx(1)
  router_DE[:, 2] = 50.0
  moe.router_DE.set_value(jnp.asarray(router_DE))
  assert float(run(moe, x_BTD)[1]['moe_balance']) == pytest.approx(4)


def test_padding_takes_no_capacity_and_no_part_in_losses():
  """Other contents of padding change nothing, though its tokens come first in the row."""
  cfg, moe, _ = expert_layer(capacity_factor=1.0, experts_per_token=1)
  real_BT = np.tile(np.arange(T) >= 4, (B, 1))
  other_BTD = X_BTD.copy()
  other_BTD[:, :4] = 5.0
  (y, aux), (z, other) = run(moe, X_BTD, real_BT), run(moe, other_BTD, real_BT)
  np.testing.assert_array_equal(y[:, 4:], z[:, 4:])
  np.testing.assert_array_equal(y[:, :4], 0)
  assert jax.tree.map(float, aux) == jax.tree.map(float, other)


@pytest.mark.parametrize(
  ('factor', 'length', 'slots'), [(0.0, 10, 10), (1.0, 10, 5), (1.25, 10, 7), (9.0, 10, 10)]
)
def test_capacity(factor, length, slots):
  moe = MoE(models.tiny(experts=4, experts_per_token=2, capacity_factor=factor))
  share = 2 * length / 4
  assert moe.capacity(length) == slots
  assert slots == (min(length, math.ceil(factor * share)) if factor else length)


def test_dropless_experts_are_causal():
  model = models.fill(models.tiny(**models.VARIANTS['experts']))
  ids_BT = models.tokens()
  other_BT = ids_BT.copy()
  other_BT[:, 4:] = (other_BT[:, 4:] + 1) % 50
  a_BTV, b_BTV = (np.asarray(models.logits(model, x)) for x in (ids_BT, other_BT))
  np.testing.assert_array_equal(a_BTV[:, :4], b_BTV[:, :4])
  assert (np.abs(a_BTV[:, 4:] - b_BTV[:, 4:]).max(-1) > 1e-4).all()


def test_gradients_reach_router_and_every_used_expert():
  cfg, moe, w = expert_layer(experts_per_token=2)
  grads = jax.jit(jax.grad(lambda m, x: jnp.sin(m(x)[0]).sum()))(moe, X_BTD)
  p_BTE = probabilities(w, X_BTD)
  used = (p_BTE >= np.sort(p_BTE)[..., [-2]]).any((0, 1))
  for path, p in param_trees.named_params(grads):
    g = np.abs(np.asarray(p.get_value()))
    assert (g.max((1, 2)) > 0).tolist() == used.tolist() if g.ndim == 3 else g.max() > 0, path


def dense_experts(moe, x_BTD, real_BT):
  """GShard's einsums with a slot for every token: every expert on every token."""
  probs_BTE = jax.nn.softmax(x_BTD @ moe.router_DE[...], -1)
  weights_BTk, index_BTk = jax.lax.top_k(probs_BTE, moe.cfg.experts_per_token)
  weights_BTk = weights_BTk / weights_BTk.sum(-1, keepdims=True)
  picks_BTkE = jax.nn.one_hot(index_BTk, moe.cfg.experts) * jnp.float32(real_BT)[..., None, None]
  up_BTEF, gate_BTEF = (jnp.einsum('BTD,EDF->BTEF', x_BTD, w[...]) for w in (moe.up_EDF, moe.gate_EDF))
  y_BTED = jnp.einsum('BTEF,EFD->BTED', nn.ACTIVATIONS['swiglu'](up_BTEF, gate_BTEF), moe.down_EFD[...])
  return jnp.einsum('BTED,BTkE,BTk->BTD', y_BTED, picks_BTkE, weights_BTk)


@pytest.mark.parametrize(('experts', 'block'), [(16, 1), (3, 3), (4, 128)])
def test_grouped_experts_equal_dense_einsums_forward_and_backward(monkeypatch, experts, block):
  """Also with padding, whose tokens get no output and give no gradient."""
  monkeypatch.setattr(grouped_matmul, 'BLOCK', block)
  _, moe, _ = expert_layer(experts=experts)
  score = lambda fn: jax.jit(jax.value_and_grad(lambda m, x: jnp.sin(fn(m, x, SOME)).sum(), (0, 1)))
  value, grads = score(lambda m, x, real_BT: m(x, real_BT)[0])(moe, X_BTD)
  expected, expected_grads = score(dense_experts)(moe, X_BTD)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  models.assert_close(grads, expected_grads, 2e-5)
  np.testing.assert_array_equal(grads[1][~SOME], 0)


def test_vmapped_experts_equal_each_alone():
  _, moe, _ = expert_layer()
  x_RBTD = jnp.stack([X_BTD, 2 * X_BTD, X_BTD[:, ::-1]])
  grad = jax.grad(lambda m, x: jnp.sin(m(x)[0]).sum(), (0, 1))
  together = jax.jit(jax.vmap(grad, (None, 0)))(moe, x_RBTD)
  for r, x_BTD in enumerate(x_RBTD):
    own = jax.tree.map(lambda x, r=r: x[r], together)
    models.assert_close(own, jax.jit(grad)(moe, x_BTD), 2e-5)


def multiplications(jaxpr):
  """Scalar multiplications of all matmuls of a jaxpr: of a scan times its length, of a cond its largest."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (contract, _), _ = eqn.params['dimension_numbers']
      total += math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[i] for i in contract)
    inner = [multiplications(x) for x in jax.extend.core.jaxprs_in_params(eqn.params)]
    total += max(inner, default=0) * eqn.params.get('length', 1)
  return total


@pytest.mark.parametrize('experts', [4, 16, 64])
def test_flops_grow_with_the_experts_of_a_token_not_with_all(experts):
  """At most a half-filled block of each group more than 3 N k D F multiplications."""
  T, D, F = 512, 16, 24
  cfg = models.tiny(experts=experts, experts_per_token=2)
  moe = param_trees.map_params(lambda path, p: p.get_value(), param_trees.stack(MoE(cfg), 1))
  moe = jax.eval_shape(lambda moe: param_trees.unstack(moe)[0], moe)
  jaxpr = jax.make_jaxpr(lambda m, x: m(x)[0])(moe, jax.ShapeDtypeStruct((1, T, D), jnp.float32)).jaxpr
  counted = 3 * T * 2 * D * F
  assert counted <= multiplications(jaxpr) - T * D * experts <= 1.6 * counted
