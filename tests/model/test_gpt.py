"""The whole Transformer against numpy; scan, unrolled and rematerialized layers against each other."""

import dataclasses
import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import sharding, step
from gpt_jax.model import gpt, param_trees
from tests import models

# ---------------------------------------------------------------------------- in numpy, float64


def norm(cfg, w, name, x):
  if cfg.norm == 'layernorm':
    x = x - x.mean(-1, keepdims=True)
  y = x / np.sqrt((x * x).mean(-1, keepdims=True) + cfg.norm_eps)
  y = y * (w[f'{name}/scale'] + (1 if cfg.norm == 'zero_centered_rmsnorm' else 0))
  return y + w.get(f'{name}/bias', 0.0)


def attend(cfg, w, x):
  """Full causal attention, heads apart, no positions."""
  y = np.zeros_like(x)
  for h in range(cfg.heads):
    q = x @ w['attention/wq_DHK'][:, h] + w.get('attention/q_bias_HK', np.zeros((9, 1)))[h]
    k = x @ w['attention/wk_DGK'][:, h] + w.get('attention/k_bias_GK', np.zeros((9, 1)))[h]
    v = x @ w['attention/wv_DGK'][:, h] + w.get('attention/v_bias_GK', np.zeros((9, 1)))[h]
    scores = q @ k.swapaxes(-1, -2) * (cfg.query_scale or cfg.K**-0.5)
    scores = np.where(np.tri(x.shape[1], dtype=bool), np.exp(scores), 0)
    y += scores / scores.sum(-1, keepdims=True) @ v @ w['attention/wo_HKD'][h]
  return y + w.get('attention/o_bias_D', 0.0)


def mlp(cfg, w, x):
  up = x @ w['mlp/up_DF'] + w.get('mlp/up_bias_F', 0.0)
  if cfg.mlp == 'swiglu':
    gate = x @ w['mlp/gate_DF']
    return up * gate / (1 + np.exp(-gate)) @ w['mlp/down_FD']
  hidden = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
  return hidden @ w['mlp/down_FD'] + w.get('mlp/down_bias_D', 0.0)


def forward(cfg, params, ids_BT):
  """Logits of the columns in use."""
  w = {path: value.astype(np.float64) for path, value in params.items()}
  x = w['embed_VD'][ids_BT] * (cfg.embed_scale or math.sqrt(cfg.width))
  if cfg.positions == 'learned':
    x = x + w['position_TD'][: ids_BT.shape[1]]
  for l in range(cfg.layers):
    block = {p.removeprefix('blocks/'): v[l] for p, v in w.items() if p.startswith('blocks/')}
    if cfg.norm_position == 'parallel':
      read = lambda name, x=x, block=block: norm(cfg, block, f'{name}_norm', x)
      x = x + attend(cfg, block, read('attention')) + mlp(cfg, block, read('mlp'))
      continue
    for name, branch in (('attention', attend), ('mlp', mlp)):
      before = functools.partial(norm, cfg, block, f'{name}_norm')
      if cfg.norm_position == 'pre':
        x = x + cfg.residual_scale * branch(cfg, block, before(x))
      if cfg.norm_position == 'post':
        x = before(x + cfg.residual_scale * branch(cfg, block, x))
      if cfg.norm_position == 'sandwich':
        after = functools.partial(norm, cfg, block, f'{name}_out_norm')
        x = x + cfg.residual_scale * after(branch(cfg, block, before(x)))
      if cfg.norm_position == 'output':
        x = x + norm(cfg, block, f'{name}_out_norm', branch(cfg, block, x))
  if cfg.norm_position != 'post':
    x = norm(cfg, w, 'final_norm', x)
  logits = cfg.logit_scale * x @ w['embed_VD' if cfg.tied_head else 'head_VD'].T
  cap = cfg.logit_softcap
  return (cap * np.tanh(logits / cap) if cap else logits)[..., : cfg.vocab]


WHOLE = {
  'pre, as GPT-2': models.VARIANTS['learned'],
  'post': dict(positions='none', norm_position='post', embed_scale=0.0),
  'sandwich': dict(
    positions='none',
    norm_position='sandwich',
    tied_head=False,
    residual_scale=0.5,
    embed_scale=3.0,
    logit_softcap=2.0,
    norm='layernorm',
  ),
  'output, as OLMo 2': dict(positions='none', norm_position='output', query_scale=0.3, logit_scale=0.5),
  'parallel, as GPT-NeoX': dict(positions='none', norm_position='parallel', norm='zero_centered_rmsnorm'),
}


@pytest.mark.parametrize('name', WHOLE)
def test_logits_equal_numpy_in_float64(name):
  cfg = models.tiny(**WHOLE[name])
  model, ids_BT = models.fill(cfg), models.tokens()
  got_BTV = np.asarray(models.logits(model, ids_BT))
  expected = forward(cfg, models.params(model), ids_BT)
  np.testing.assert_allclose(got_BTV[..., :50], expected, rtol=1e-4, atol=1e-4)
  assert got_BTV.shape == (models.ROWS, models.LENGTH, 64)
  assert (got_BTV[..., 50:] == -1e30).all()  # never likely, and finite


# ----------------------------------------------------------------- ways of computing the same thing


SMALL = dict(positions='none', mlp='relu2')  # less to compile


@jax.jit
def loss_and_grads(model, batch):
  score = lambda model: step.loss_fn(model, batch, jnp.float32(30), {}, None)[:2]
  return jax.value_and_grad(score, has_aux=True)(model)


def grads_of(cfg):
  (loss, _), grads = loss_and_grads(models.fill(cfg), models.batch())
  return loss, step.params_of(grads)


@functools.cache
def plain_grads():
  return grads_of(models.tiny(remat='none', **SMALL))


@pytest.mark.parametrize('name', gpt.REMAT)
def test_remat_changes_no_gradient(name):
  cfg = models.tiny(remat=name, **SMALL)
  models.assert_close(grads_of(cfg), plain_grads())


def primitives(jaxpr):
  """Names of all primitives of a jaxpr and of the jaxprs within it."""
  for eqn in jaxpr.eqns:
    yield eqn.primitive.name
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from primitives(inner)


@pytest.mark.parametrize('unroll', ['on', 'off'])
def test_remat_none_checkpoints_nothing_and_every_other_policy_something(unroll):
  checkpoints = {}
  for name in gpt.REMAT:
    model = models.fill(models.tiny(remat=name, unroll=unroll, kernel='xla'))
    jaxpr = jax.make_jaxpr(lambda model: model(models.tokens()).logits_BTV)(model).jaxpr
    checkpoints[name] = sum(name in ('checkpoint', 'remat2') for name in primitives(jaxpr))
  each = 2 if unroll == 'on' else 1  # per layer, or in the scan's body
  assert checkpoints == dict.fromkeys(gpt.REMAT, each) | {'none': 0}


def test_scan_and_unrolled_layers_share_dropout_masks():
  """Each layer has its own key, whichever way it runs."""
  hidden = jax.jit(lambda m, key: m.trunk(models.tokens(), rate=jnp.float32(0.3), key=key)[0])
  run = lambda **overrides: hidden(models.fill(models.tiny(**overrides)), jax.random.key(0))
  scan, unrolled = (run(attention_dropout=0.2, unroll=unroll, **SMALL) for unroll in ('off', 'on'))
  np.testing.assert_allclose(unrolled, scan, rtol=1e-5, atol=1e-5)


def test_attention_weights_drop_by_their_own_rate():
  cfg = models.tiny(attention_dropout=0.5, **SMALL)
  model, key = models.fill(cfg), jax.random.key(0)
  hidden = jax.jit(lambda m, key: m.trunk(models.tokens(), rate=jnp.float32(0), key=key)[0])
  assert np.abs(hidden(model, key) - hidden(model, jax.random.key(1))).max() > 0.1


def test_layers_drop_independently():
  """Two equal layers whose branches are all ones: the residual stream counts the kept branches."""
  cfg = models.tiny(norm_position='pre', positions='none', mlp='relu2', mlp_bias=True)
  model = models.fill(cfg)
  zero = param_trees.map_params(lambda path, p: jnp.zeros_like(p.get_value()), model)
  zero.blocks.mlp.down_bias_D.set_value(jnp.ones((2, 16)))
  zero.final_norm.scale.set_value(jnp.ones(16))
  spread = jax.jit(lambda m, k: m.trunk(models.tokens(64, 8), rate=jnp.float32(0.5), key=k)[0])
  x_BTD = np.asarray(spread(zero, jax.random.key(0)))
  # 0, 2 or 4 before the final norm, which only scales a row of 16: count the largest and the zeros.
  kept_once = np.isclose(x_BTD, x_BTD.max(-1, keepdims=True) / 2, rtol=1e-3).mean()
  kept_never = (x_BTD == 0).mean()
  assert abs(kept_never - 0.25) < 0.02
  assert abs(kept_once - 0.5) < 0.05


def test_no_dropout_without_a_key_and_other_keys_give_other_results():
  model = models.fill(models.tiny(**SMALL))
  run = jax.jit(lambda m, key: m(models.tokens(), rate=jnp.float32(0.5), key=key).logits_BTV)
  one, again, two = (run(model, jax.random.key(k)) for k in (1, 1, 2))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - two).max() > 1e-2
  np.testing.assert_allclose(run(model, None), models.logits(model, models.tokens()), rtol=1e-5, atol=1e-5)


def test_aux_is_the_mean_over_layers():
  cfg = models.tiny(**models.VARIANTS['experts'])
  model = models.fill(cfg)
  aux = jax.jit(lambda m, x: m(x).aux)(model, models.tokens())

  def by_hand(model, ids_BT):
    x_BTD, mask = model.embed_VD[...][ids_BT], gpt.Mask(order, order)
    auxes = []
    for block in param_trees.unstack(model.blocks):
      x_BTD, _, aux = block(x_BTD, mask, order)
      auxes.append(aux)
    return jax.tree.map(lambda *a: sum(a) / len(a), *auxes)

  order = jnp.arange(models.LENGTH, dtype=jnp.int32)[None]
  models.assert_close(aux, jax.jit(by_hand)(model, models.tokens()))
  assert set(aux) == {'moe_balance', 'moe_z', 'moe_dropped'}


# ----------------------------------------------------------------------------------- shapes, births


def test_every_variant_has_the_right_shapes_in_bfloat16():
  for overrides in models.VARIANTS.values():
    cfg = models.tiny(dtype='bfloat16', **overrides)
    abstract = param_trees.map_params(lambda path, p: p.get_value(), gpt.GPT(cfg))
    ids_BT = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    out = jax.eval_shape(lambda m, x: param_trees.cast(m, jnp.bfloat16)(x), abstract, ids_BT)
    assert out.logits_BTV == jax.ShapeDtypeStruct((2, 8, 64), jnp.float32)


@pytest.mark.parametrize('layers', [2, 3])
def test_xl_has_the_right_logits_shape(layers):
  cfg = dataclasses.replace(gpt_xl(), layers=layers)
  ids_BT = jax.ShapeDtypeStruct((2, 1024), jnp.int32)
  out = jax.eval_shape(lambda m, x: m(x), gpt.GPT(cfg), ids_BT)
  assert out.logits_BTV.shape == (2, 1024, 50304)


def gpt_xl():
  from gpt_jax.model.presets import gpt2

  return gpt2('xl').resolved('gpu')


def test_initial_values_are_born_sharded_and_the_same_on_any_mesh():
  cfg = models.tiny()
  make = lambda **sizes: models.create(cfg, jax.random.key(3), models.mesh(**sizes))
  alone, spread = make(), make(fsdp=2, tensor=4)
  for (path, p), (_, q) in zip(
    param_trees.named_params(alone), param_trees.named_params(spread), strict=True
  ):
    np.testing.assert_array_equal(p.get_value(), q.get_value(), err_msg=path)
  assert spread.blocks.attention.wq_DHK.get_value().addressable_shards[0].data.shape == (2, 8, 1, 4)
  assert spread.embed_VD.get_value().addressable_shards[0].data.shape == (16, 8)


def test_a_mesh_that_does_not_divide_the_model_is_refused():
  with pytest.raises(ValueError, match='blocks/attention/wk_DGK: dimension G=1') as error:
    gpt.shardings(gpt.GPT(models.tiny(kv_heads=1)), models.mesh(tensor=2))
  assert '\nfix: choose a mesh whose tensor divides 1' in str(error.value)


def test_constrain_acts_only_under_a_mesh():
  x_BTD = jnp.zeros((8, 2, 4))
  assert sharding.constrain(x_BTD, 'BTD') is x_BTD
  with jax.set_mesh(models.mesh(data=2, tensor=2)):
    placed = jax.jit(lambda x: sharding.constrain(x, 'BTH'))(x_BTD)
  assert placed.addressable_shards[0].data.shape == (4, 2, 2)


def test_a_model_without_vocabulary_is_refused():
  with pytest.raises(ValueError, match='model.vocab=0') as error:
    gpt.GPT(models.tiny(vocab=0))
  assert '\nfix: set model.vocab' in str(error.value)


def test_cache_holds_a_slot_for_each_token_and_head():
  cache = gpt.init_cache(models.tiny(kv_heads=2), 3, 5, 'bfloat16')
  assert len(cache) == 2
  for layer in cache:
    assert {(k, v.shape, v.dtype.name) for k, v in layer.items()} == {
      (name, (3, 2, 5, 4), 'bfloat16') for name in ('k_BGSK', 'v_BGSK')
    }


# ------------------------------------------------------------------------------ continuous inputs

CONTINUOUS = dict(patch_values=3, frame_values=5)


@jax.jit
def read(model, ids_BT, patches_BTA, frames_BTM, prefix_BT):
  inputs = dict(patches_BTA=patches_BTA, frames_BTM=frames_BTM, prefix_BT=prefix_BT)
  return model(ids_BT, **inputs).logits_BTV


def test_continuous_inputs_change_logits_from_their_position_on():
  model, ids_BT = models.fill(models.tiny(**SMALL, **CONTINUOUS)), models.tokens()
  patches_BTA = np.zeros((*ids_BT.shape, 3), np.float32)
  frames_BTM = np.zeros((*ids_BT.shape, 5), np.float32)
  alone = np.zeros(ids_BT.shape, bool)
  nothing = read(model, ids_BT, patches_BTA, frames_BTM, alone)
  plain = models.logits(models.fill(models.tiny(**SMALL)), ids_BT)
  models.assert_close(nothing, plain)
  patches_BTA[0, 2] = 1
  frames_BTM[1, 3] = 1
  moved = np.abs(np.asarray(read(model, ids_BT, patches_BTA, frames_BTM, alone) - nothing)).max(-1)
  assert (moved[0] > 1e-4).tolist() == [t >= 2 for t in range(models.LENGTH)]
  assert (moved[1] > 1e-4).tolist() == [t >= 3 for t in range(models.LENGTH)]
  assert moved[2:].max() == 0


def test_a_cached_prefix_equals_the_uncached_model():
  """Bidirectional prompts of 4 tokens, then one token a call, against the uncached model."""
  cfg = models.tiny(**SMALL)
  model, ids_BT = models.fill(cfg), models.tokens()
  prefix_BT = np.zeros(ids_BT.shape, bool)
  prefix_BT[:, :4] = True
  expected = models.logits(model, ids_BT, prefix_BT=prefix_BT)
  cache = gpt.init_cache(cfg, models.ROWS, models.LENGTH, 'float32')
  fill = jax.jit(lambda *args: model(args[0], cache=args[1], start_B=args[2], prefix_BT=args[3]))
  step_once = jax.jit(lambda *args: model(args[0], cache=args[1], start_B=args[2]))
  start_B = np.zeros(models.ROWS, np.int32)
  out = fill(ids_BT[:, :4], cache, start_B, prefix_BT[:, :4])
  logits = [out.logits_BTV]
  for t in range(4, models.LENGTH):
    out = step_once(ids_BT[:, t : t + 1], out.cache, start_B + t)
    logits.append(out.logits_BTV)
  models.assert_close(np.concatenate(logits, 1), np.asarray(expected))
  causal = np.asarray(models.logits(model, ids_BT))
  assert np.abs(causal[:, 0] - np.asarray(expected)[:, 0])[:, : cfg.vocab].max() > 1e-3
