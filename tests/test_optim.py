"""Every optimizer against optax, schedules at their corners, and what an update must not do."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax import optim
from gpt_jax.optim import OptimConfig, Optimizer
from gpt_jax.optimizers import mup, param_groups

AXES = {
  'embed_VD': 'VD',
  'blocks/attention/wq_DHK': 'LDHK',
  'blocks/attention/wo_HKD': 'LHKD',
  'blocks/mlp/down_FD': 'LFD',
  'blocks/mlp/up_EDF': 'LEDF',
  'blocks/norm/scale': 'LD',
  'blocks/mlp/router_DE': 'LDE',
  'window_WD': 'WD',
  'bias_F': 'F',
}
SIZES = dict(L=2, E=3, D=8, H=2, K=4, F=12, V=10, W=3)
MATRICES = {path for path, axes in AXES.items() if path not in ('blocks/norm/scale', 'bias_F')}


def random(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  shape = lambda axes: tuple(SIZES[a] for a in axes)
  draw = lambda axes: (scale * rng.standard_normal(shape(axes))).astype(np.float32)
  return {path: jnp.asarray(draw(axes)) for path, axes in AXES.items()}


def make(steps=100, **overrides):
  plain = dict(schedule='constant', warmup=0, clip=0.0, weight_decay=0.0, lr=0.1)
  return Optimizer(OptimConfig(**(plain | overrides)), steps, AXES)


def hyper_of(optimizer, **changes):
  cfg = optimizer.cfg
  values = dict(lr=cfg.lr, weight_decay=cfg.weight_decay) | changes
  return {name: jnp.float32(value) for name, value in values.items()}


def run(count=3, grads=random, **overrides):
  """`count` updates with random gradients -> (first params, last params, state, scalars)."""
  optimizer = make(**overrides)
  update = jax.jit(optimizer.update)
  first = params = random(0)
  state = optimizer.init(params)
  for i in range(count):
    params, state, scalars = update(grads(i + 1), state, params, hyper_of(optimizer))
  return first, params, state, scalars


def assert_close(a, b, tolerance=1e-5):
  for path in AXES:
    np.testing.assert_allclose(a[path], b[path], rtol=tolerance, atol=tolerance, err_msg=path)


# ------------------------------------------------------------------------------------- directions

OPTAX = {
  'adamw': lambda lr, wd, mask: optax.adamw(lr, 0.8, 0.9, 1e-3, weight_decay=wd, mask=mask),
  'lion': lambda lr, wd, mask: optax.lion(lr, 0.8, 0.9, weight_decay=wd, mask=mask),
  'sgd': lambda lr, wd, mask: optax.chain(
    optax.trace(0.8), optax.add_decayed_weights(wd, mask), optax.scale(-lr)
  ),
  'adafactor': lambda lr, wd, mask: optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.add_decayed_weights(wd, mask),
    optax.scale(-lr),
  ),
}


@pytest.mark.parametrize('name', OPTAX)
def test_updates_are_those_of_optax(name):
  """Three steps, weight decay on matrices alone."""
  first, got, _, _ = run(name=name, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.5)
  reference = OPTAX[name](0.1, 0.5, {path: path in MATRICES for path in AXES})

  @jax.jit
  def step(grads, state, params):
    with jax.numpy_dtype_promotion('standard'):
      updates, state = reference.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  params, state = first, reference.init(first)
  for i in range(3):
    params, state = step(random(i + 1), state, params)
  assert_close(got, params)
  assert all(np.abs(got[path] - first[path]).max() > 1e-3 for path in AXES)


def test_muon_orthogonalizes_each_layers_matrix_and_leaves_the_rest_to_adamw():
  first, muon, _, _ = run(1, name='muon', b1=0.8)
  _, adamw, _, _ = run(1, name='adamw', b1=0.8)
  flat = {  # every matrix of every layer and expert as inputs x outputs
    'blocks/attention/wq_DHK': (2, 8, 8),
    'blocks/attention/wo_HKD': (2, 8, 8),
    'blocks/mlp/down_FD': (2, 12, 8),
    'blocks/mlp/up_EDF': (6, 8, 12),
  }
  for path in AXES:
    step = np.asarray(first[path] - muon[path]) / 0.1
    if path not in flat:
      np.testing.assert_allclose(muon[path], adamw[path], rtol=1e-6, err_msg=path)
      continue
    gradients = np.asarray(random(1)[path]).reshape(flat[path])
    for matrix, gradient in zip(step.reshape(flat[path]), gradients, strict=True):
      singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * math.sqrt(max(matrix.shape)))
      assert (0.6 < singular).all() and (singular < 1.3).all(), path  # five Newton-Schulz steps
      u, _, v = np.linalg.svd(gradient, full_matrices=False)
      assert (matrix * (u @ v)).sum() > 0.9 * np.linalg.norm(matrix) * np.linalg.norm(u @ v)
    assert abs(np.sqrt((step**2).mean()) / 0.2 - 1) < 0.25  # AdamW's size


def test_matrix_axes():
  assert mup.matrix_axes('LDHK') == ((1,), (2, 3))
  assert mup.matrix_axes('LHKD') == ((1, 2), (3,))
  assert mup.matrix_axes('LEFD') == ((2,), (3,))
  assert mup.matrix_axes('DF') == ((0,), (1,))
  for axes in ('VD', 'TD', 'LD', 'LHK', 'D', 'LF'):
    assert mup.matrix_axes(axes) is None, axes
  assert [mup.is_matrix(a) for a in ('VD', 'TD', 'LDE', 'LD', 'LHK', 'K', 'LEDF')] == [
    True,
    True,
    True,
    False,
    False,
    False,
    True,
  ]


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_every_optimizer_finds_the_bottom_of_a_bowl(name):
  """And can be scanned, with a state that stays finite."""
  lr = 0.3 if name == 'muon' else 0.05  # the RMS of Muon's step is 0.2 lr
  optimizer = make(150, name=name, schedule='linear', final_lr=0.0, lr=lr, b1=0.9)
  target = random(9)
  loss = lambda params: sum(jnp.square(params[path] - target[path]).sum() for path in AXES)

  def step(carry, _):
    params, state = carry
    grads = jax.grad(loss)(params)
    params, state, _ = optimizer.update(grads, state, params, hyper_of(optimizer))
    return (params, state), None

  start = random(0)
  train = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), None, 150)[0])
  params, state = train(start)
  assert loss(params) < 0.02 * loss(start)
  assert int(state.updates) == 150
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


# -------------------------------------------------------------------------------------- schedules

CORNERS = {  # {update: share of the peak}, of 100 updates: 10 warm-up, ends at 0.1
  'cosine': {
    0: 0.1,
    4: 0.5,
    9: 1.0,
    10: 1.0,
    55: 0.55,
    100: 0.1,
    130: 0.1,
    30: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 20 / 90)),
  },
  'linear': {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.55, 100: 0.1, 130: 0.1},
  'wsd': {0: 0.1, 9: 1.0, 50: 1.0, 80: 1.0, 90: 0.55, 100: 0.1, 130: 0.1},
  'constant': {0: 0.1, 4: 0.5, 9: 1.0, 50: 1.0, 130: 1.0},
}


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_schedules_at_their_corners(name):
  cfg = OptimConfig(schedule=name, warmup=10, final_lr=0.1, cooldown=0.2)
  schedule = jax.jit(lambda step: optim.SCHEDULES[name](cfg, step, 100))
  for step, share in CORNERS[name].items():
    assert float(schedule(jnp.int32(step))) == pytest.approx(share, abs=1e-6), step
  values = [float(schedule(jnp.int32(s))) for s in range(100)]
  assert all(a <= b for a, b in zip(values[:10], values[1:11], strict=True))
  assert all(a >= b for a, b in zip(values[10:], values[11:], strict=False))
  assert values[-1] > cfg.final_lr, 'the last update is one before final_lr is reached'


def test_no_warmup_starts_at_the_peak():
  cfg = OptimConfig(schedule='cosine', warmup=0)
  assert float(optim.cosine(cfg, jnp.int32(0), 100)) == 1.0


def test_the_schedule_counts_updates_and_scales_the_step():
  first, params, state, scalars = run(2, name='sgd', b1=0.0, warmup=4, grads=lambda i: random(1))
  assert float(scalars['lr']) == pytest.approx(0.1 * 2 / 4)
  expected = {p: first[p] - (0.1 / 4 + 0.1 * 2 / 4) * random(1)[p] for p in AXES}
  assert_close(params, expected)


# ------------------------------------------------------------------------------------ the update


def test_weight_decay_is_decoupled_and_takes_what_decay_says():
  zeros = lambda i: jax.tree.map(jnp.zeros_like, random(0))
  first, params, _, _ = run(1, zeros, name='sgd', weight_decay=0.5)
  for path in AXES:
    factor = 1 - 0.1 * 0.5 if path in MATRICES else 1.0
    np.testing.assert_allclose(params[path], factor * first[path], rtol=1e-6, err_msg=path)
  first, params, _, _ = run(1, zeros, name='sgd', weight_decay=0.5, decay='.*(norm|bias).*')
  for path in AXES:
    factor = 1.0 if path in MATRICES else 1 - 0.1 * 0.5
    np.testing.assert_allclose(params[path], factor * first[path], rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(('scale', 'clipped'), [(1.0, True), (1e-3, False)])
def test_clipping_bounds_the_global_norm(scale, clipped):
  grads = random(1, scale)
  norm = math.sqrt(sum(float(jnp.square(g).sum()) for g in grads.values()))
  first, params, _, scalars = run(1, lambda i: grads, name='sgd', clip=2.0)
  factor = 2.0 / norm if clipped else 1.0
  assert (norm > 2.0) == clipped
  assert float(scalars['grad_norm']) == pytest.approx(norm, rel=1e-5)
  assert_close(params, {p: first[p] - 0.1 * factor * grads[p] for p in AXES})


@pytest.mark.parametrize('bad', [math.inf, -math.inf, math.nan, 1e30])  # 1e30 squared is inf
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_count(bad):
  optimizer, update = adamw_with_everything()
  params = random(0)
  state = optimizer.init(params)
  params, state, _ = update(random(1), state, params, hyper_of(optimizer))
  poisoned = random(2)
  poisoned['blocks/norm/scale'] = poisoned['blocks/norm/scale'].at[1, 3].set(bad)
  after, skipped_state = params, state
  for count in (1, 2):
    after, skipped_state, scalars = update(poisoned, skipped_state, after, hyper_of(optimizer))
    assert (float(scalars['skipped']), int(scalars['skipped_in_a_row'])) == (1.0, count)
  unskipped = skipped_state._replace(skipped=state.skipped)
  jax.tree.map(np.testing.assert_array_equal, (after, unskipped), (params, state))
  after, final, scalars = update(random(3), skipped_state, after, hyper_of(optimizer))
  expected, _, _ = update(random(3), state, params, hyper_of(optimizer))
  assert_close(after, expected, 0)
  assert (int(final.updates), int(final.skipped), float(scalars['skipped'])) == (2, 0, 0.0)


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_every_optimizer_keeps_its_state_where_an_update_is_skipped(name):
  optimizer = make(name=name, ema=0.9)
  params = random(0)
  update = jax.jit(optimizer.update)
  params, state, _ = update(random(1), optimizer.init(params), params, hyper_of(optimizer))
  poisoned = jax.tree.map(lambda g: g * math.nan, random(2))
  after, skipped, _ = update(poisoned, state, params, hyper_of(optimizer))
  unskipped = skipped._replace(skipped=state.skipped)
  jax.tree.map(np.testing.assert_array_equal, (after, unskipped), (params, state))
  changed, _, _ = update(random(2), state, params, hyper_of(optimizer))
  assert any((changed[path] != params[path]).any() for path in AXES)


def test_adamw_is_optax_adam():
  ours = optim.adamw(optim.OptimConfig(b1=0.8, b2=0.9), AXES)
  theirs = optax.scale_by_adam(0.8, 0.9, 1e-8)
  a = b = theirs.init(random(0))
  with jax.numpy_dtype_promotion('standard'):  # as Optimizer.update does
    for i in range(3):
      u, a = ours.update(random(i), a, accepted=jnp.bool_(True))
      v, b = theirs.update(random(i), b)
      jax.tree.map(np.testing.assert_array_equal, (u, a), (v, b))


@functools.cache
def adamw_with_everything():
  """An optimizer with clipping, decay, warm-up and averages, compiled once."""
  optimizer = make(name='adamw', clip=1.0, weight_decay=0.1, warmup=5, ema=0.9)
  return optimizer, jax.jit(optimizer.update)


def test_lr_and_weight_decay_are_traced():
  optimizer, update = adamw_with_everything()
  params = random(0)
  state = optimizer.init(params)
  sizes = []
  for lr in (0.1, 0.2):
    hyper = hyper_of(optimizer, lr=lr, weight_decay=lr)
    after, _, scalars = update(random(1), state, params, hyper)
    assert float(scalars['lr']) == pytest.approx(lr / 5)
    sizes.append(float(jnp.abs(after['bias_F'] - params['bias_F']).max()))
  assert sizes[1] == pytest.approx(2 * sizes[0], rel=1e-3)
  assert update._cache_size() == 1


def test_ema_is_the_average_of_the_weights():
  optimizer, update = adamw_with_everything()
  params = random(0)
  state = optimizer.init(params)
  average = {path: np.asarray(p) for path, p in params.items()}
  for i in range(3):
    params, state, _ = update(random(i + 1), state, params, hyper_of(optimizer))
    decay = min(0.9, (1 + i) / (10 + i))  # a young average forgets faster
    average = {k: decay * average[k] + (1 - decay) * np.asarray(params[k]) for k in AXES}
  assert_close(state.ema, average)
  assert run(1)[2].ema is None


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_weights_in_bfloat16_have_moments_and_averages_in_float32(name):
  """And a step leaves every dtype as it was: nothing is compiled twice."""
  optimizer = make(name=name, ema=0.9, weight_decay=0.1, clip=1.0)
  params = {path: p.astype(jnp.bfloat16) for path, p in random(0).items()}
  state = jax.eval_shape(optimizer.init, params)
  update = jax.eval_shape(optimizer.update, random(1), state, params, hyper_of(optimizer))
  dtypes = lambda tree: jax.tree.map(lambda x: x.dtype.name, tree)
  assert dtypes(update[:2]) == (dtypes(params), dtypes(state))
  assert set(jax.tree.leaves(dtypes(state))) == {'float32', 'int32'}


def test_weights_in_bfloat16_follow_updates_that_are_smaller_than_their_rounding():
  """Rounded to the nearest, weights of 0.02 would stay where they are for ever."""
  optimizer = make(name='adamw', lr=3e-5)
  ones = lambda x, dtype: {path: jnp.full_like(p, x, dtype) for path, p in random(0).items()}
  params, state, moved = ones(0.02, jnp.bfloat16), optimizer.init(ones(0.02, jnp.float32)), []
  update = jax.jit(optimizer.update)
  for _ in range(100):
    params, state, _ = update(ones(1.0, jnp.float32), state, params, hyper_of(optimizer))
    moved.append(np.mean([np.float32(p).mean() for p in params.values()]) - 0.02)
  assert moved[-1] == pytest.approx(-100 * 3e-5, rel=0.1)
  assert moved[49] == pytest.approx(-50 * 3e-5, rel=0.15)
  assert len({float(x) for x in np.ravel(params['embed_VD'])}) > 3  # each by a chance of its own


# -------------------------------------------------------------------------------- lr_multipliers


def test_multipliers_scale_steps_and_zero_freezes_bit_for_bit():
  rules = ('embed_VD=0', 'blocks/attention/.*=0.5', '.*=1')
  options = dict(name='adamw', weight_decay=0.1, ema=0.5)
  first, got, state, _ = run(1, lr_multipliers=rules, **options)
  _, plain, _, _ = run(1, **options)
  np.testing.assert_array_equal(got['embed_VD'], first['embed_VD'])
  for path in AXES.keys() - {'embed_VD'}:
    factor = 0.5 if 'attention' in path else 1.0
    step = factor * (plain[path] - first[path])
    np.testing.assert_allclose(got[path] - first[path], step, rtol=1e-3, atol=1e-6, err_msg=path)


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_frozen_parameters_have_no_part_in_norm_or_finiteness(name):
  bad = random(1)
  bad['bias_F'] = bad['bias_F'].at[0].set(jnp.nan)
  rules = ('bias_F=0', '.*=1')
  first, got, state, scalars = run(
    1, lambda i: bad, name=name, lr_multipliers=rules, weight_decay=0.1, clip=1.0
  )
  np.testing.assert_array_equal(got['bias_F'], first['bias_F'])
  assert float(scalars['skipped']) == 0
  alive = sum(float(jnp.square(g).sum()) for path, g in bad.items() if path != 'bias_F')
  assert float(scalars['grad_norm']) == pytest.approx(math.sqrt(alive), rel=1e-5)
  assert (np.abs(got['embed_VD'] - first['embed_VD']) > 0).all()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_decay_that_matches_nothing_is_refused():
  with pytest.raises(ValueError, match="optim.decay='emb' matches no parameter\nfix: use paths"):
    make(decay='emb')


def test_first_match_counts():
  rules = ('.*wq.*=0.25', 'blocks/.*=0.5', '.*=2')
  actual = param_groups.match_multipliers(rules, AXES)
  assert actual['blocks/attention/wq_DHK'] == 0.25
  assert actual['blocks/attention/wo_HKD'] == 0.5
  assert actual['embed_VD'] == 2
  assert set(param_groups.match_multipliers((), AXES).values()) == {1.0}


@pytest.mark.parametrize(
  ('rules', 'cause', 'fix'),
  [
    (('embed_VD=0.1',), 'matches nothing for blocks/attention/wq_DHK, ', 'add the entry ".*=1"'),
    (('embed=0.1', '.*=1'), "entry 'embed=0.1' is the first match of no parameter", 'remove it'),
    (('.*=1', 'embed_VD=0'), "entry 'embed_VD=0' is the first match of no", 'remove it'),
  ],
)
def test_rules_that_miss_are_refused(rules, cause, fix):
  with pytest.raises(ValueError, match='optim.lr_multipliers') as error:
    make(lr_multipliers=rules)
  first, second = str(error.value).split('\n')
  assert cause in first
  assert second.startswith(f'fix: {fix}')


@pytest.mark.parametrize('entry', ['(=1', 'embed_VD', 'embed_VD=fast', '=', '.*=-1', '.*=nan', '.*=inf'])
def test_entries_that_are_no_rules_are_refused(entry):
  with pytest.raises(ValueError, match='optim.lr_multipliers entry') as error:
    OptimConfig(lr_multipliers=(entry,))
  assert repr(entry) in str(error.value)
  assert '\nfix: write e.g.' in str(error.value)


@pytest.mark.parametrize(
  ('wrong', 'cause'),
  [
    (dict(name='adam'), "optim.name='adam' is not known\nfix: use one of adamw, lion"),
    (dict(schedule='step'), "optim.schedule='step' is not known\nfix: use one of cosine, linear"),
    (dict(lr=-1.0), 'optim.lr=-1.0 is negative\nfix: use a number >= 0'),
    (dict(lr=math.nan), 'optim.lr=nan is negative'),
    (dict(weight_decay=-0.1), 'optim.weight_decay=-0.1 is negative'),
    (dict(clip=-1.0), 'optim.clip=-1.0 is negative'),
    (dict(warmup=-1), 'optim.warmup=-1 is negative'),
    (dict(eps=-1.0), 'optim.eps=-1.0 is negative'),
    (dict(b1=1.0), 'optim.b1=1.0 is not a decay rate\nfix: use 0 <= x < 1'),
    (dict(b2=-0.5), 'optim.b2=-0.5 is not a decay rate'),
    (dict(ema=1.5), 'optim.ema=1.5 is not a decay rate'),
    (dict(final_lr=1.5), 'optim.final_lr=1.5 is not a fraction\nfix: use 0 to 1'),
    (dict(cooldown=-0.1), 'optim.cooldown=-0.1 is not a fraction'),
    (dict(decay='(x'), "optim.decay='(x' is not a regex"),
  ],
  ids=str,
)
def test_config_refuses(wrong, cause):
  with pytest.raises(ValueError, match='optim') as error:
    OptimConfig(**wrong)
  assert str(error.value).startswith(cause)


def test_a_new_optimizer_costs_one_function_and_one_row(monkeypatch):
  """No second table: config, muP, and the update rule all read the row."""
  signs = lambda cfg, axes: optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(),
    lambda grads, state, params=None, *, accepted: (jax.tree.map(jnp.sign, grads), state),
  )
  monkeypatch.setitem(optim.OPTIMIZERS, 'signs', optim.OptimizerRow(signs))
  cfg = OptimConfig(name='signs', lr=0.5, weight_decay=0.0, clip=0.0, warmup=0, schedule='constant')
  optimizer = Optimizer(cfg, 10, {'w_DF': 'DF', 'b_F': 'F'}, growth=4.0)
  params = {'w_DF': jnp.ones((2, 2)), 'b_F': jnp.ones(2)}
  grads = {'w_DF': jnp.full((2, 2), 3.0), 'b_F': jnp.full(2, -3.0)}
  new, _, _ = optimizer.update(grads, optimizer.init(params), params, {'lr': 0.5, 'weight_decay': 0.0})
  np.testing.assert_allclose(new['w_DF'], 1 - 0.5 / 4)  # muP: a hidden matrix of a 4 x wider model
  np.testing.assert_allclose(new['b_F'], 1 + 0.5)
  monkeypatch.undo()
  with pytest.raises(ValueError, match="optim.name='signs' is not known"):
    OptimConfig(name='signs')
