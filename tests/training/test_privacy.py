"""Differentially private training: the gradient, the accountant, resumption, refusals, the statement."""

import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from gpt_jax import data, step, tokenizers, train
from gpt_jax.ablation.execute import replicas
from gpt_jax.cluster import batches
from gpt_jax.data import poisson
from gpt_jax.jobs import private_training
from gpt_jax.model import adapters, layers, param_trees, tapped
from gpt_jax.plan import job_programs, plan
from gpt_jax.runs import run_folder
from gpt_jax.training.privacy import accountant, gradients, settings
from tests import models, tiny_runs

dp_accounting = pytest.importorskip('dp_accounting', reason="needs pip install -e '.[privacy]'")

PRIVATE = {'epsilon': 4.0, 'delta': 1e-3, 'clip': 0.5}


@pytest.fixture(scope='module')
def posts(tmp_path_factory):
  """Forty posts by ten users, as JSON lines."""
  path = tmp_path_factory.mktemp('posts') / 'posts.jsonl'
  record = lambda n: {'text': f'post {n} of many ' * (1 + n % 3), 'user': f'user{n % 10}'}
  path.write_text(''.join(json.dumps(record(n)) + '\n' for n in range(40)))
  return path


def experiment(path, privacy=(), data_=(), train_=(), source=(), **changes):
  """A tiny private run of 4 steps of 8 units on the records of a file."""
  mixture = {'posts': {'kind': 'jsonl', 'path': str(path), **dict(source)}}
  fields = {
    'data__mixture': mixture,
    'data': {'packing': 'document', 'valid_fraction': 0.0, **dict(data_)},
    'privacy': PRIVATE | dict(privacy),
    'train': {'steps': 4, 'batch_size': 8, 'accumulate': 2, 'eval_every': 0, 'sample_every': 0}
    | dict(train_),
    'checkpoint': {'every': 2},
  }
  return tiny_runs.experiment(**fields | changes)


# --------------------------------------------------------------------------------- the gradient


def programs(accumulate=1, rank=0, noise=0.0, clip=0.5, slots=8, way='ghost', model=(), **sizes):
  """A program with sgd whose update is the private gradient, its state and its model's config."""
  model_cfg, mesh = models.tiny(**dict(model)), models.mesh(**sizes)
  cfg = models.experiment(
    model_cfg,
    adapter=dict(rank=rank),
    train=dict(accumulate=accumulate),
    optim=dict(name='sgd', b1=0.0, lr=1.0, weight_decay=0.0, clip=0.0, schedule='constant'),
  )
  micro = slots // accumulate
  objective = gradients.private_objective(step.language_objective(), clip, noise, 4, micro, way)
  program = step.gpt_program(cfg, model_cfg, mesh, objective)
  trained, frozen = adapters.split(cfg.adapter, models.fill(model_cfg))
  if rank:
    draw = lambda path, p: jnp.asarray(0.3 * np.random.default_rng(7).standard_normal(p.shape), p.dtype)
    trained = param_trees.map_params(draw, trained)
  state = program.init()._replace(model=trained, frozen=frozen)
  state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), state, program.abstract)
  return program, state, mesh


def private_batch(units_=5, slots=8, stride=1):
  """A batch whose sampled units stand in the slots as the loader puts them."""
  batch = models.batch(slots)
  batch['loss_mask_BT'][:, 0] = 1
  weight_B = np.zeros(slots, np.float32)
  weight_B[[slot for slot in range(slots) if slot % stride * (slots // stride) + slot // stride < units_]] = 1
  return batch | {'unit_weight_B': weight_B, 'noise_key_B2': np.full((slots, 2), 5, np.uint32)}


def private_gradient(batch, **options):
  """The gradient of one step, and its metrics: what sgd with a learning rate of 1 subtracts."""
  program, state, mesh = programs(**options)
  before = jax.tree.map(np.array, step.params_of(state.model))
  with jax.set_mesh(mesh):
    state, metrics = program.step(state, batches.to_devices(batch, mesh))
  after = step.params_of(state.model)
  return {path: before[path] - np.array(after[path]) for path in before}, metrics


@functools.cache
def unit_gradient(rank):
  """The jitted gradient of the mean loss of one row."""
  _, state, _ = programs(rank=rank)

  def loss(params, row):
    model = adapters.attach(state.frozen, step.with_params(state.model, params))
    return step.loss_fn(model, row, row['loss_mask_BT'].sum(), state.hyper, None)[0]

  return jax.jit(jax.grad(loss)), step.params_of(state.model)


@pytest.mark.parametrize(
  ('accumulate', 'rank', 'way'),
  [(1, 0, 'ghost'), (4, 0, 'vmap'), (2, 2, 'ghost'), pytest.param(1, 2, 'vmap', marks=pytest.mark.slow)],
)
def test_clipped_gradients_are_those_of_a_loop_over_units(accumulate, rank, way):
  batch, clip = private_batch(stride=accumulate), 0.5
  (gradient, params), total = unit_gradient(rank), 0
  names = ('token_ids_BT', 'target_ids_BT', 'loss_mask_BT')
  norms = []
  for slot in np.flatnonzero(batch['unit_weight_B']):
    grads = jax.device_get(gradient(params, {name: batch[name][slot : slot + 1] for name in names}))
    norms.append(np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in grads.values())))
    scaled = {path: g * min(1.0, clip / norms[-1]) for path, g in grads.items()}
    total = scaled if total == 0 else {path: total[path] + g for path, g in scaled.items()}
  assert len(norms) == 5 and max(norms) > clip  # some are clipped
  actual, metrics = private_gradient(batch, accumulate=accumulate, rank=rank, clip=clip, way=way)
  for path, expected in total.items():
    np.testing.assert_allclose(actual[path], expected / 4, rtol=1e-4, atol=1e-5, err_msg=path)
  assert float(metrics['units']) == 5
  assert float(metrics['clipped']) == pytest.approx(np.mean(np.array(norms) > clip))


SHAPES = {
  'biases and positions': models.VARIANTS['learned'],
  'sandwich norms, shared keys': models.VARIANTS['grouped'],
  'parallel branches, norms over all heads': models.VARIANTS['parallel'],
  'head of its own, rematerialized': dict(tied_head=False, remat='dots_no_batch'),
  'unrolled': dict(unroll='on', mlp='relu2'),
  'experts': models.VARIANTS['experts'],
}


@pytest.mark.slow
@pytest.mark.parametrize('shape', SHAPES)
def test_ghost_clipping_has_the_gradient_of_vmap(shape):
  batch = private_batch(4, slots=4)
  ghost, vmap = (private_gradient(batch, slots=4, way=way, model=SHAPES[shape]) for way in ('ghost', 'vmap'))
  assert float(ghost[1]['clipped']) == float(vmap[1]['clipped']) > 0
  for path, expected in vmap[0].items():
    np.testing.assert_allclose(ghost[0][path], expected, rtol=1e-4, atol=1e-5, err_msg=path)


def test_norms_are_those_of_the_product_by_either_way():
  rng = np.random.default_rng(0)
  for tokens, inputs, outputs in ((3, 40, 50), (60, 4, 5)):
    x, dy = rng.standard_normal((tokens, inputs)), rng.standard_normal((tokens, outputs))
    actual = tapped.squared_norm(jnp.asarray(x, jnp.float32), jnp.asarray(dy, jnp.float32))
    assert float(actual) == pytest.approx(np.square(x.T @ dy).sum(), rel=1e-5)


@pytest.mark.parametrize('bad', [0.5, np.inf])
def test_ghost_clipping_leaves_out_gradients_that_are_not_finite(bad):
  rng = np.random.default_rng(0)
  declare = lambda axes, *shape: nnx.Param(jnp.asarray(rng.standard_normal(shape), jnp.float32), axes=axes)
  model = {'w': declare('LDF', 1, 3, 2), 'b': declare('LF', 1, 2)}
  x_BTD = rng.standard_normal((4, 5, 3)).astype(np.float32)
  x_BTD[1, 2] = bad
  batch = {'x_BTD': x_BTD, 'unit_weight_B': np.array([1, 1, 1, 0], np.float32)}

  def loss(model, probe, number, row):
    leaves, treedef = jax.tree.flatten(model, is_leaf=param_trees.is_param)
    first = [nnx.Param(p[...][0], axes=p.axes[1:]) for p in leaves]
    layer = jax.tree.unflatten(treedef, first)
    y_BTF = layers.linear('BTD,DF->BTF', row['x_BTD'], layer['w'], layer['b'])
    return jnp.square(y_BTF).sum(), {'loss': y_BTF.sum()}

  def units(number, row):
    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(model, None, number, row)
    return metrics | {'objective': jnp.float32(0)}, step.params_of(grads)

  of = lambda way: jax.jit(
    lambda batch: gradients.sum_clipped(gradients.GRADIENTS[way](loss, units, model, 1.0), batch, 4)
  )(batch)
  (metrics, actual), (expected_metrics, expected) = of('ghost'), of('vmap')
  for path, value in expected.items():
    assert np.isfinite(value).all()
    np.testing.assert_allclose(actual[path], value, rtol=1e-4, atol=1e-5, err_msg=path)
  assert float(metrics['loss']) == pytest.approx(float(expected_metrics['loss']), rel=1e-5)
  assert float(metrics['units']) == 3


def test_the_mesh_does_not_change_the_gradient():
  batch = private_batch(stride=2)
  alone, _ = private_gradient(batch, accumulate=2)
  spread, _ = private_gradient(batch, accumulate=2, data=4)
  for path, expected in alone.items():
    np.testing.assert_allclose(spread[path], expected, rtol=1e-4, atol=1e-5, err_msg=path)


def test_padding_and_gradients_that_are_not_finite_add_nothing():
  calls = lambda number, row: ({'loss': row['x_BT'].sum()}, {'w': jnp.full(3, row['x_BT'].sum())})
  x_BT = np.array([[3.0], [jnp.inf], [0.5], [7.0]], np.float32)
  weight_B = np.array([1, 1, 1, 0], np.float32)
  clipped = gradients.by_vmap(None, calls, None, 1.0)
  of = lambda x_BT, weight_B, micro=4: jax.jit(lambda batch: gradients.sum_clipped(clipped, batch, micro))(
    {'x_BT': x_BT, 'unit_weight_B': weight_B}
  )
  metrics, grads = of(x_BT, weight_B)
  expected = 1 / np.sqrt(3) + 0.5  # the first is clipped to a norm of 1
  np.testing.assert_allclose(grads['w'], np.full(3, expected), rtol=1e-6)
  assert float(metrics['units']) == 3
  assert np.isfinite(float(metrics['loss']))
  changed = np.where(weight_B[:, None] > 0, x_BT, 1e6).astype(np.float32)
  again = of(changed, weight_B)
  jax.tree.map(np.testing.assert_array_equal, again, (metrics, grads))
  empty = of(x_BT, 0 * weight_B, 2)
  assert not np.any(empty[1]['w']) and float(empty[0]['loss']) == 0


def test_noise_has_the_promised_deviation_and_each_parameter_its_own():
  zeros = {'a': jnp.zeros(20_000), 'b': jnp.zeros(20_000)}
  key = jax.random.wrap_key_data(np.array([1, 2], np.uint32), impl='threefry2x32')
  noise = jax.device_get(gradients.add_noise(zeros, key, 1.5 * 0.4, 8))
  for values in noise.values():
    # Five standard errors of the deviation of 20,000 samples.
    assert values.std() == pytest.approx(1.5 * 0.4 / 8, rel=5 / np.sqrt(2 * 20_000))
    assert abs(values.mean()) < 5 * 1.5 * 0.4 / 8 / np.sqrt(20_000)
  assert abs(np.corrcoef(noise['a'], noise['b'])[0, 1]) < 5 / np.sqrt(20_000)


# --------------------------------------------------------------------------------- the accountant


SETTINGS = [(n, q, t) for n in (0.8, 1.0, 1.5, 3.0, 8.0) for q in (0.01, 0.2) for t in (10, 100)]


@pytest.mark.parametrize(('noise', 'rate', 'steps'), SETTINGS)
def test_epsilon_is_that_of_dp_accounting(noise, rate, steps):
  gaussian = dp_accounting.GaussianDpEvent(noise)
  sampled = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
  theirs = dp_accounting.pld.PLDAccountant()
  theirs.compose(dp_accounting.SelfComposedDpEvent(sampled, steps))
  assert accountant.epsilon(noise, rate, steps, 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-6)


def test_the_plan_spends_the_target_and_no_more():
  plan = accountant.plan(2.0, 1e-5, 0.05, 50)
  assert 0.99 * 2 < plan.epsilon <= 2
  spent = accountant.epsilon(plan.noise_multiplier, 0.05, 50, 1e-5 * (1 - accountant.SHARE))
  assert spent == plan.epsilon
  slots = accountant.slots(16, 50, 2.0, 1e-5, 4)
  assert slots % 4 == 0
  # The binomial tail itself, of any number of units.
  for count in (16, 50, 10_000):
    tail = stats.binom.sf(slots, count, 16 / count)
    assert 50 * tail * (1 + np.exp(2)) <= accountant.SHARE * 1e-5


# --------------------------------------------------------------------------------- units and batches


def loader(path, unit='document', seed=0, secret='', expected=8, slots=24, text=(), **fields):
  source = data.Source(kind='jsonl', path=str(path), **dict(text))
  cfg = data.DataConfig({'posts': source}, packing='document', valid_fraction=0.0)
  toks = tokenizers.Tokenizers.build(tokenizers.text.build(tokenizers.TokenizerConfig(), lambda: ()))
  options = dict(split='train', batch_size=slots, length=16, seed=seed, cache_dir=path.parent / 'cache')
  bits = poisson.RandomBits.of(seed, secret)
  return poisson.PoissonLoader(
    cfg, toks, unit=unit, expected=expected, stride=3, bits=bits, **options | fields
  )


def test_units_are_documents_or_the_values_of_a_field(posts):
  documents, users = loader(posts), loader(posts, 'user', expected=5)
  assert (documents.units, users.units) == (40, 10)
  for made, count in ((documents, 40), (users, 10)):
    rows = sorted(map(tuple, made.sampler.address_R2.tolist()))
    assert rows == [(0, row) for row in range(made.rows['posts'].count)]  # each row once
    assert len(made.sampler.offset_U) == count + 1
  document_N = users.rows['posts'].document_N
  for user in range(10):
    rows = users.sampler.address_R2[users.sampler.offset_U[user] : users.sampler.offset_U[user + 1], 1]
    assert {int(n) % 10 for n in document_N[rows]} == {user}


def test_units_are_sampled_alone_with_one_probability(posts):
  sampler = loader(posts).sampler
  times_R = np.zeros(len(sampler.address_R2))
  index = {tuple(address): n for n, address in enumerate(sampler.address_R2.tolist())}
  sizes = []
  for number in range(400):
    addresses = [index[tuple(a)] for a in sampler.sample(number).tolist()]
    times_R[addresses] += 1
    sizes.append(len(addresses))
  times_U = np.add.reduceat(times_R, sampler.offset_U[:-1])
  error = np.sqrt(400 * 0.2 * 0.8)
  assert np.abs(times_U - 400 * 0.2).max() < 4.5 * error
  assert np.var(sizes) == pytest.approx(40 * 0.2 * 0.8, rel=0.3)  # binomial, not of a fixed size


def test_batches_hold_the_sampled_units_in_the_first_micro_batches_and_padding(posts):
  made = loader(posts)
  taken = [next(made) for _ in range(3)]
  for number, batch in enumerate(taken):
    count = len(made.sampler.sample(number))
    assert batch['unit_weight_B'].sum() == count
    by_piece = batch['unit_weight_B'].reshape(8, 3).sum(0)
    assert by_piece.tolist() == [min(8, max(0, count - 8 * piece)) for piece in range(3)]
    padding_B = batch['unit_weight_B'] == 0
    assert not batch['loss_mask_BT'][padding_B].any() and not batch['segment_ids_BT'][padding_B].any()
    assert (batch['segment_ids_BT'].max(1)[~padding_B] == 1).all()  # one document a row
    assert (batch['noise_key_B2'] == batch['noise_key_B2'][0]).all()
  assert len({tuple(batch['noise_key_B2'][0]) for batch in taken}) == 3
  again = loader(posts)
  again.restore(made.state() | {'next_batch': 1})
  jax.tree.map(np.testing.assert_array_equal, next(again), taken[1])
  halves = [next(loader(posts, process_index=index, process_count=2)) for index in range(2)]
  joined = jax.tree.map(lambda *parts: np.concatenate(parts), *halves)
  jax.tree.map(np.testing.assert_array_equal, joined, taken[0])


def test_a_secret_takes_the_place_of_the_seed(posts, tmp_path):
  (tmp_path / 'a').write_bytes(bytes(range(32)))
  (tmp_path / 'b').write_bytes(bytes(range(1, 33)))
  a, same, b = (
    loader(posts, secret=str(tmp_path / name), seed=seed) for name, seed in (('a', 0), ('a', 0), ('b', 0))
  )
  key = lambda made: next(made)['noise_key_B2'][0].tolist()
  assert key(a) == key(same) != key(b)
  with pytest.raises(ValueError, match=r'the data differ .* key '):
    a.restore(b.state())
  # Equal noise in runs that differ would cancel in the difference of their weights.
  others = {'unit': 'user', 'expected': 5}, {'text': {'scrub': 'email'}}, {'seed': 1}
  keys = [key(a), *(key(loader(posts, secret=str(tmp_path / 'a'), **other)) for other in others)]
  assert len({tuple(words) for words in keys}) == 4
  with pytest.raises(
    ValueError, match=r'privacy.secret=.*none is not a file of 32 random bytes.*\nfix: head -c 32'
  ):
    loader(posts, secret=str(tmp_path / 'none'))
  (tmp_path / 'notes.txt').write_text('This file is no secret, and must not be overwritten.')
  with pytest.raises(ValueError, match=r'notes.txt is not a file of 32 random bytes.*\nfix: .* > NEW_FILE'):
    loader(posts, secret=str(tmp_path / 'notes.txt'))


# --------------------------------------------------------------------------------- runs


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(posts, tmp_path, tmp_path_factory):
  cfg = experiment(posts, {'unit': 'user'}, train_={'batch_size': 4})
  with tiny_runs.compiled_programs(tmp_path_factory):
    whole = train.train(cfg, tmp_path / 'whole')
    assert train.train(cfg, tmp_path / 'parts', tiny_runs.stop_before(2)) is None
    parts = train.train(cfg, tmp_path / 'parts')
    longer = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, schedule='constant'))
    assert train.train(longer, tmp_path / 'longer', tiny_runs.stop_before(2)) is None
    longer = dataclasses.replace(longer, train=dataclasses.replace(longer.train, steps=6))
    with pytest.raises(ValueError, match='train.steps=6 of a private run with the noise of 4 steps'):
      train.train(longer, tmp_path / 'longer')
  stated = whole['privacy']
  assert parts['privacy'] == stated
  arrays, others = tiny_runs.arrays(tmp_path / 'whole'), tiny_runs.arrays(tmp_path / 'parts')
  for path, value in arrays.items():
    np.testing.assert_array_equal(others[path], value, err_msg=path)
  spent = accountant.epsilon(stated['noise_multiplier'], 0.4, 4, 1e-3 * (1 - accountant.SHARE))
  assert stated['epsilon'] == spent <= 4
  assert (stated['unit'], stated['units'], stated['sampling_rate'], stated['delta']) == (
    'user',
    10,
    0.4,
    1e-3,
  )
  page = (tmp_path / 'whole' / 'report.html').read_text()
  assert '-differential privacy of the weights' in page and 'not covered: ' in page
  assert any('train.seed' in line for line in stated['not_covered'])
  log = run_folder.read_metrics(tmp_path / 'whole')
  assert {'units', 'clipped'} <= {name for line in log for name in line}


@pytest.mark.parametrize(
  ('changes', 'cause'),
  [
    ({'privacy': {'delta': 0.0}}, 'privacy.epsilon=4.0 with privacy.delta=0.0'),
    ({'privacy': {'epsilon': -1.0}}, 'privacy.epsilon=-1.0'),
    ({'privacy': {'epsilon': float('inf')}}, 'privacy.epsilon=inf'),
    ({'privacy': {'clip': 0.0}}, 'privacy.clip=0.0'),
    ({'privacy': {'unit': ''}}, "privacy.unit=''"),
    ({'privacy': {'gradients': 'loop'}}, "privacy.gradients='loop'"),
    ({'privacy': {'unit': 'usr'}}, 'privacy.unit=usr is not a field .*\nfix: did you mean user'),
    ({'data_': {'packing': 'first_fit'}}, "data.packing='first_fit' .* documents of two units"),
    ({'data_': {'packing': 'crop'}}, "data.packing='crop' .* documents of two units"),
    ({'data_': {'valid_fraction': 0.1}}, 'data.valid_fraction=0.1 .* depends on all the others'),
    ({'data_': {'reset': True}}, 'data.reset=True'),
    ({'data_': {'stages': '2: posts=1'}}, "data.stages='2: posts=1'"),
    ({'train_': {'spike_sigma': 5.0}}, 'train.spike_sigma=5.0 .* without noise'),
    ({'train_': {'probe_every': 2}}, 'train.probe_every=2'),
    ({'train_': {'branch_from': 'runs/x'}}, "train.branch_from='runs/x'"),
    ({'train_': {'job': 'dpo'}}, "train.job='dpo' .* only train.job=gpt"),
    ({'train_': {'job': 'grpo'}}, "train.job='grpo'"),
    ({'train_': {'job': 'distil'}}, "train.job='distil'"),
    ({'train_': {'batch_size': 64}}, 'train.batch_size=64 is more than the 40 units'),
    ({'privacy': {'delta': 0.03}}, 'privacy.delta=0.03 with 40 units'),
    ({'source': {'weight': 2.0}}, 'data.mixture.posts.weight=2.0'),
    ({'source': {'clean': 'near=0.8'}}, 'near=0.8 .* depends on other records'),
    ({'source': {'clean': 'exact'}}, 'exact .* depends on other records'),
    ({'source': {'unique': 'user'}}, 'unique=user .* depends on other records'),
    ({'source': {'train_split': 'train[:50%]'}}, 'train_split=.* depends on other records'),
  ],
)
def test_what_would_break_the_guarantee_is_refused(posts, tmp_path, changes, cause):
  with pytest.raises(ValueError, match=f'(?s)^[^\n]*{cause}') as error:
    cfg = experiment(posts, **changes)
    language_model_jobs = train.JOBS[cfg.train.job]
    language_model_jobs(cfg, tmp_path, models.mesh())
  assert len(str(error.value).splitlines()) == 2 and '\nfix: ' in str(error.value)
  assert not (tmp_path / 'config.json').exists()


def test_a_plan_compiles_the_step_of_a_run(posts, tmp_path):
  cfg, mesh = experiment(posts), models.mesh()
  with jax.set_mesh(mesh):
    job = train.JOBS['gpt'](cfg, tmp_path, mesh)
    run, _ = plan.run_of(cfg, mesh)
    program, batch = job_programs.step_of(run)
    form = lambda batch: {name: (x.shape, x.dtype) for name, x in batch.items()}
    assert form(batch) == form(job.example_batch())
    _, metrics = jax.eval_shape(program.step, program.abstract, batch)
  assert {'units', 'clipped'} <= metrics.keys()


def test_runs_with_one_secret_and_other_settings_share_no_noise(posts, tmp_path):
  (tmp_path / 'a').write_bytes(bytes(range(32)))
  secret = {'secret': str(tmp_path / 'a')}

  def key(**changes):
    cfg = experiment(posts, **{'privacy': secret} | changes)
    bits = poisson.RandomBits.of(cfg.train.seed, cfg.privacy.secret).of_run(settings.decisive(cfg))
    return bits.key

  assert key() == key() == key(log={'every': 7})
  others = {'privacy': secret | {'clip': 0.25}}, {'optim': {'lr': 1e-4}}, {'train_': {'seed': 3}}
  assert len({key(), *(key(**changes) for changes in others)}) == 4
  public = poisson.RandomBits.of(3, '')
  assert public.of_run({'lr': 1}) == public


def test_replicas_of_private_runs_are_trained_one_by_one(posts, tmp_path, monkeypatch):
  alone = []
  done = lambda cfg, folder, stop: alone.append(cfg) or replicas.Outcome('done')
  monkeypatch.setattr(replicas, 'train_alone', done)
  configs = [experiment(posts, train_={'seed': seed}) for seed in (0, 1)]
  outcomes = replicas.train_together(configs, [tmp_path / 'a', tmp_path / 'b'])
  assert alone == configs and [outcome.outcome for outcome in outcomes] == ['done', 'done']


def test_a_judge_is_named_as_not_covered(posts):
  source = data.Source(kind='jsonl', path=str(posts), clean='gopher,score=runs/judge:good|bad<0.5')
  cfg = data.DataConfig({'posts': source, 'text': data.Source()})
  [line] = private_training.judges(cfg)
  assert 'data.mixture.posts.clean=score=runs/judge' in line and 'its own guarantee' in line


def test_copies_and_tokenizers_are_refused(tmp_path):
  mixture = {'draw': {'kind': 'digits', 'template': '{image:image}', 'copies': 1, 'augment': 'shift=1'}}
  cfg = experiment('', data__mixture=mixture)
  with pytest.raises(ValueError, match=r'copies=1 .* units of their own\nfix: '):
    settings.check(cfg)
  codec = tiny_runs.codec('image', privacy=PRIVATE)
  with pytest.raises(
    ValueError, match=r'privacy.epsilon=4.0 has no effect with train.job=image_tokenizer\nfix: '
  ):
    train.JOBS['image_tokenizer'](codec, tmp_path, models.mesh())


def test_a_tokenizer_made_from_private_documents_is_warned_of(posts):
  notes = settings.notes(experiment(posts, tokenizer={'kind': 'chars'}, privacy={'secret': 'file'}))
  assert len(notes) == 1 and 'tokenizer.kind=chars' in notes[0] and 'tokenizer.kind=bytes' in notes[0]
  assert settings.notes(experiment(posts, privacy={'secret': 'file'})) == []
  assert settings.notes(tiny_runs.experiment()) == []


def test_without_the_library_the_error_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'dp_accounting', None)
  with pytest.raises(ValueError, match=r"needs dp-accounting\nfix: pip install -e '.\[privacy\]'"):
    accountant.epsilon(1.0, 0.1, 2, 1e-5)
