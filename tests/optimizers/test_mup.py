"""muP: what it changes, that it changes nothing at its base, and what it is for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import optim, step
from gpt_jax.model import attention, gpt, mask, param_trees
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.kernels import splash
from gpt_jax.optim import OptimConfig, Optimizer
from gpt_jax.optimizers import mup
from gpt_jax.training import probes
from tests import models

# ------------------------------------------------------------------------------------ the model


def axes_of(cfg):
  return {path: p.axes for path, p in param_trees.named_params(gpt.GPT(cfg))}


def text(cfg):
  """The program of a step, lowered."""
  run = models.experiment(cfg)
  optimizer = Optimizer(run.optim, 10, axes_of(cfg), cfg.growth)
  objective = step.language_objective()
  fn = functools.partial(step.train_step, optimizer, objective, 1, 'float32')
  start = functools.partial(step.init_state, gpt.GPT(cfg), optimizer, seed=0)
  state = jax.eval_shape(start, step.hyper_of(run))
  draw = jax.jit(start).lower(step.hyper_of(run)).as_text()
  return draw + jax.jit(fn).lower(state, models.batch()).as_text()


def test_at_its_base_mup_changes_nothing():
  programs = {base: text(models.tiny(mup_base=base, experts=2)) for base in (0, 16, 8)}
  assert programs[0] == programs[16]
  assert programs[0] != programs[8]


@pytest.mark.parametrize('head_dim', [0, 4])
def test_queries_and_logits_are_scaled(head_dim):
  """1/K where the head's width grows with the model's, and logits over the growth."""
  cfg = models.tiny(positions='none', norm='layernorm', head_dim=head_dim, unroll='on')
  model, ids_BT = models.fill(cfg), models.tokens()
  expected_BTV = models.logits(model, ids_BT)
  wide = models.fill(dataclasses.replace(cfg, mup_base=4))  # growth 4
  if not head_dim:
    wide.blocks.attention.wq_DHK.set_value(wide.blocks.attention.wq_DHK.get_value() * 2)
  for p in (wide.final_norm.scale, wide.final_norm.bias):
    p.set_value(p.get_value() * 4)
  got_BTV = models.logits(wide, ids_BT)
  np.testing.assert_allclose(got_BTV, expected_BTV, rtol=1e-4, atol=1e-4)


def test_fused_kernels_scale_as_the_plain_one():
  cfg = models.tiny(width=16, heads=1, mup_base=4)
  rng = np.random.default_rng(0)
  draw = lambda: jnp.asarray(rng.standard_normal((1, 128, 1, 16)), jnp.float32)
  t_BT = jnp.arange(128)[None]
  run = lambda kernel: functools.partial(kernel, cfg, mask=mask.Mask(t_BT, t_BT))
  qkv = draw(), draw(), draw()
  plain, fused = (run(k)(*qkv) for k in (attention.xla_attention, splash.splash_attention))
  np.testing.assert_allclose(fused, plain, atol=1e-5)


# Of each letters: what it is to muP, and how its initial std depends on the growth.
ROLES = {
  'VD': ('input', 0),
  'TD': ('input', 0),
  'AD': ('input', 0),
  'MD': ('input', 0),
  'D': ('input', 0),
  'LD': ('input', 0),
  'LK': ('input', 0),
  'LF': ('input', 0),
  'LHK': ('input', 0),
  'LGK': ('input', 0),
  'LDHK': ('hidden', -0.5),
  'LDGK': ('hidden', -0.5),
  'LHKD': ('hidden', -0.5),
  'LDF': ('hidden', -0.5),
  'LFD': ('hidden', -0.5),
  'LEDF': ('hidden', -0.5),
  'LEFD': ('hidden', -0.5),
  'LDE': ('output', -1),
}


def test_every_parameter_has_its_role_and_initial_size():
  seen = set()
  extras = dict(patch_values=6, frame_values=5, tied_head=False)
  for variant in (models.VARIANTS['learned'] | extras, models.VARIANTS['experts'], dict(qk_norm=1)):
    plain, wide = (
      dict(param_trees.named_params(gpt.GPT(models.tiny(mup_base=b, **variant)))) for b in (0, 4)
    )
    for path, p in wide.items():
      role, power = ROLES[p.axes]
      assert mup.role(p.axes) == role, path
      assert p.std == pytest.approx(plain[path].std * 4.0**power), path
      seen.add(p.axes)
  assert seen == set(ROLES)


def test_what_mup_refuses():
  with pytest.raises(ValueError, match=r'embed_scale=0 grows.*mup_base=64.*\nfix: .*embed_scale=8'):
    ModelConfig(width=128, embed_scale=0.0, mup_base=64)
  with pytest.raises(ValueError, match='model.mup_base=-1 is too small\nfix: use at least 0'):
    ModelConfig(mup_base=-1)


# -------------------------------------------------------------------------------- the optimizer

AXES = {'embed_VD': 'VD', 'blocks/up_DF': 'LDF', 'blocks/router_DE': 'LDE', 'norm/scale': 'D'}
SIZES = dict(L=2, E=3, D=8, F=12, V=10)


def one_update(name, growth, **overrides):
  """The change of each parameter by an update at lr 1, from weights of 1."""
  rng = np.random.default_rng(0)
  shapes = {path: tuple(SIZES[a] for a in axes) for path, axes in AXES.items()}
  grads = {path: jnp.asarray(rng.standard_normal(s), jnp.float32) for path, s in shapes.items()}
  params = {path: jnp.ones(s, jnp.float32) for path, s in shapes.items()}
  plain = dict(schedule='constant', warmup=0, clip=0.0, weight_decay=0.0, decay='.*')
  cfg = OptimConfig(name=name, **(plain | overrides))
  optimizer = Optimizer(cfg, 10, AXES, growth)
  hyper = {'lr': jnp.float32(1), 'weight_decay': jnp.float32(cfg.weight_decay)}
  new, _, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params, hyper)
  return {path: np.asarray(new[path] - p) for path, p in params.items()}


POWERS = {  # embedding, hidden matrix, router, norm
  'adamw': (0, -1, -1, 0),
  'lion': (0, -1, -1, 0),
  'adafactor': (0, -1, -1, 0),
  'muon': (0, -0.5, -1, 0),
  'sgd': (1, 0, -1, 1),
}


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_updates_follow_the_table(name):
  plain, wide = one_update(name, 1.0), one_update(name, 16.0)
  for path, power in zip(AXES, POWERS[name], strict=True):
    np.testing.assert_allclose(wide[path], 16.0**power * plain[path], rtol=1e-4, atol=1e-6)


def test_weight_decay_is_the_same_at_every_width():
  for name in ('adamw', 'sgd'):
    with_decay, without = (one_update(name, 16.0, weight_decay=d) for d in (0.5, 0.0))
    for path in AXES:
      np.testing.assert_allclose(with_decay[path] - without[path], -0.5, rtol=1e-4)


def test_eps_shrinks_with_the_gradients():
  """Gradients of a model 16 times wider are 16 times smaller."""
  wide, small = (one_update('adamw', growth, eps=eps) for growth, eps in ((16.0, 1.6), (1.0, 0.1)))
  np.testing.assert_allclose(wide['embed_VD'], small['embed_VD'], rtol=1e-5)


def test_a_run_trains_with_the_growth_of_its_model():
  cfg = models.tiny(mup_base=4)
  program = step.gpt_program(models.experiment(cfg), cfg, models.mesh())
  assert program.optimizer.growth == 4


# ---------------------------------------------------------------------------- what it is good for


def sized(width, mup_base):
  return models.tiny(width=width, hidden=0, mlp='gelu', layers=1, mup_base=mup_base)


@functools.cache
def sizes(name, lr, width, mup_base):
  """{path: size of the activation after three steps}."""
  plain = dict(name=name, lr=lr, schedule='constant', eps=1e-8, clip=0.0)
  cfg = models.experiment(sized(32, 0), optim=plain)
  check = probes.coordinate_check(cfg, [sized(width, mup_base)], models.batch(length=16), steps=3)
  assert {'blocks/0/attention', 'blocks/0/mlp', 'blocks/0', 'logits'} <= set(check)
  assert all(len(rows[width]) == 4 for rows in check.values())
  return {path: rows[width][-1] for path, rows in check.items()}


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'lr'), [('adamw', 1e-2), ('muon', 3e-2)])
def test_coordinate_check(name, lr):
  small, wide = sizes(name, lr, 32, 32), sizes(name, lr, 128, 32)
  for path in small:
    assert 1 / 1.5 < wide[path] / small[path] < 1.5, path


@pytest.mark.slow
def test_without_mup_activations_grow():
  small, wide = sizes('adamw', 1e-2, 32, 32), sizes('adamw', 1e-2, 128, 0)
  assert max(wide[path] / small[path] for path in small) > 3


STEPS, RATES = 20, [2.0**-k for k in (3, 5, 7, 9)]


@functools.cache
def chain():
  """Batches of a Markov chain in which one of 50 ids follows another nine times of ten."""
  rng = np.random.default_rng(0)
  follows = rng.permutation(50)
  ids = rng.integers(0, 50, (STEPS, 16, 17), dtype=np.int32)
  for t in range(16):
    known = rng.random((STEPS, 16)) < 0.9
    ids[..., t + 1] = np.where(known, follows[ids[..., t]], ids[..., t + 1])
  return dict(
    token_ids_BT=ids[..., :-1],
    target_ids_BT=ids[..., 1:],
    loss_mask_BT=np.ones(ids[..., 1:].shape, np.float32),
  )


def losses_by_rate(cfg):
  """The last training losses with each of RATES: replicas of one compiled run."""
  optimizing = dict(schedule='linear', final_lr=0.0, eps=1e-8, weight_decay=0.0)
  run = models.experiment(cfg, optim=optimizing, train=dict(steps=STEPS))
  optimizer = Optimizer(run.optim, STEPS, axes_of(cfg), cfg.growth)
  objective = step.language_objective()
  advance = functools.partial(step.train_step, optimizer, objective, 1, 'float32')

  def train(lr):
    state = step.init_state(gpt.GPT(cfg), optimizer, step.hyper_of(run) | {'lr': lr}, 0)
    return jax.lax.scan(advance, state, chain())[1]['loss'][-5:].mean()

  return np.asarray(jax.jit(jax.vmap(train))(jnp.asarray(RATES, jnp.float32)))


@pytest.mark.slow
def test_the_best_learning_rate_stays_where_it_is():
  small = losses_by_rate(sized(32, 0))
  wide = losses_by_rate(sized(128, 0))
  mup = losses_by_rate(sized(128, 32))
  assert small.argmin() == mup.argmin()
  assert wide.argmin() > small.argmin()  # a lower rate
  assert mup.min() < small.min()  # and wider is better
