"""Skipped steps change nothing and are recorded; too many end a run or rewind it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import step, train
from gpt_jax.cluster.batches import to_devices
from gpt_jax.runs import run_folder
from gpt_jax.training import loss_guard, meter, session
from tests import models, tiny_runs
from tests.tiny_runs import assert_two_lines, experiment

W = 8


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


# ------------------------------------------------------------------------------------------ spikes


def test_a_spike_is_far_above_the_median_by_the_median_deviation():
  rng = np.random.default_rng(0)
  recent_SW = rng.normal([[3.0], [1.0]], [[0.1], [0.2]], (2, 101)).astype(np.float32)
  median_S = np.median(recent_SW, axis=1)
  deviation_S = 1.4826 * np.median(np.abs(recent_SW - median_S[:, None]), axis=1)
  assert deviation_S == pytest.approx([0.1, 0.2], rel=0.3)
  for series in (0, 1):
    for sigmas in (-50, 0, 5.9, 6.1):
      value_S = median_S.copy()
      value_S[series] += sigmas * deviation_S[series]
      assert bool(loss_guard.is_spike(recent_SW, value_S, 6.0)) == (sigmas > 6), (series, sigmas)


def test_nothing_is_a_spike_before_the_window_is_full():
  recent_SW, value_S = loss_guard.empty_window(W), jnp.array([1e9, 1e9])
  for i in range(W):
    assert not loss_guard.is_spike(recent_SW, value_S, 3.0)
    recent_SW = loss_guard.update_window(recent_SW, jnp.array([2.0 + i / 100, 1.0]), i)
  assert loss_guard.is_spike(recent_SW, value_S, 3.0)


def test_constant_values_have_some_deviation():
  recent_SW = jnp.full((2, W), 2.0)
  assert not loss_guard.is_spike(recent_SW, jnp.array([2.05, 2.0]), 3.0)
  assert loss_guard.is_spike(recent_SW, jnp.array([2.07, 2.0]), 3.0)


def test_the_window_forgets_the_oldest():
  recent_SW = loss_guard.empty_window(3)
  for i in range(5):
    recent_SW = loss_guard.update_window(recent_SW, jnp.array([i, 10.0 * i]), i)
  assert sorted(recent_SW[0].tolist()) == [2, 3, 4]
  assert sorted(recent_SW[1].tolist()) == [20, 30, 40]


# ----------------------------------------------------------------------------------------- one step


@functools.cache
def program(sigma=0.0):
  """A tiny GPT; hyper `harm` is added to the loss, and no gradient of it is."""
  cfg = models.experiment(models.tiny(), train=dict(spike_sigma=sigma, spike_window=W), optim=dict(ema=0.9))
  objective = step.language_objective()

  def loss(model, probe, batch, weight, hyper, key):
    total, metrics = objective.loss(model, probe, batch, weight, hyper, key)
    return total + jax.lax.stop_gradient(hyper['harm']), metrics

  harmed = objective._replace(loss=loss)
  made = step.build_program(cfg, step.gpt.GPT(cfg.model), harmed, 'float32', models.mesh())
  return cfg, made, jax.jit(made.pure)


def trained(batches, sigma=0.0, harm=()):
  """-> (state, metrics by step) after these batches; `harm`: {step: added to its loss}."""
  cfg, made, train_step = program(sigma)
  state, metrics_by_step = made.init(), []
  for i, batch in enumerate(batches):
    harm_now = jnp.float32(dict(harm).get(i, 0.0))
    state = state._replace(hyper=step.hyper_of(cfg) | {'harm': harm_now})
    with jax.set_mesh(models.mesh()):
      state, metrics = train_step(state, to_devices(batch, models.mesh()))
    metrics_by_step.append(jax.device_get(metrics))
  return state._replace(hyper={}), metrics_by_step


@pytest.fixture
def batches():
  return [models.batch(seed=i) for i in range(10)]


def poison(batch, value=math.nan):
  """The batch with a loss that is not finite, nor are its gradients."""
  mask_BT = batch['loss_mask_BT'].copy()
  mask_BT[0, 0] = value
  return batch | {'loss_mask_BT': mask_BT}


def assert_same(state, other, skipped=0):
  """Equal bits but for the number of batches consumed."""
  assert int(state.step) - int(other.step) == skipped
  same = other.opt_state._replace(skipped=state.opt_state.skipped)
  for x, y in zip(
    jax.tree.leaves((state.model, state.opt_state, state.recent_SW)),
    jax.tree.leaves((other.model, same, other.recent_SW)),
    strict=True,
  ):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('sigma', [0.0, 1e6], ids=['', 'spike guard'])
@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('places', [{0}, {4}, {9}, {0, 1, 5}, {2, 3, 4, 5, 6, 7}])
def test_steps_that_are_not_finite_change_nothing(batches, places, value, sigma):
  """Nor the average, the schedule or the window: the other steps train as without them."""
  harmed = [poison(b, value) if i in places else b for i, b in enumerate(batches)]
  state, actual = trained(harmed, sigma)
  assert {i for i, metrics in enumerate(actual) if metrics['skipped']} == places
  assert {i for i, metrics in enumerate(actual) if not np.isfinite(metrics['loss'])} == places
  others = [b for i, b in enumerate(batches) if i not in places]
  assert_same(state, trained(others, sigma)[0], len(places))
  assert sum(metrics.get('spike', 0) for metrics in actual) == 0


def test_a_loss_that_is_not_finite_skips_the_step(batches):
  """Its gradient is: here an infinity is added without one."""
  state, actual = trained(batches, harm={3: math.inf, 4: math.nan})
  assert [i for i, metrics in enumerate(actual) if metrics['skipped']] == [3, 4]
  assert all(np.isfinite(metrics['grad_norm']) for metrics in actual)
  assert_same(state, trained(batches[:3] + batches[5:])[0], 2)


def test_an_inf_in_one_gradient_skips_the_step(batches):
  """Clipping first would make NaN of all."""
  _, made, _ = program()
  state = made.init()
  params = step.params_of(state.model)
  grads = jax.tree.map(jnp.ones_like, params)
  path = sorted(grads)[0]
  grads[path] = grads[path].at[(0,) * grads[path].ndim].set(jnp.inf)
  metrics = {'loss': jnp.float32(1), 'objective': jnp.float32(1)}
  update = jax.jit(functools.partial(step.guarded_update, made.optimizer))
  after, new, scalars = update(grads, state, metrics)
  assert scalars['skipped'] == 1
  jax.tree.map(np.testing.assert_array_equal, new, params)
  assert_same(after, state)


@pytest.mark.parametrize(('losses', 'mean'), [((2.0, math.nan, 4.0), 3.0), ((math.nan,), math.nan)])
def test_logged_losses_are_means_of_the_applied_steps(losses, mean):
  counts = meter.Meter('tokens', 1)
  for n, loss in enumerate(losses):
    actual = dict(loss=loss, objective=loss, skipped=float(math.isnan(loss)), tokens=8.0)
    counts.add_step_time(0.1)
    counts.add(n + 1, {name: jnp.float32(value) for name, value in actual.items()})
  _, scalars, _ = counts.fetch(lambda values: {})
  np.testing.assert_equal(scalars['loss'], mean)
  assert scalars['skipped'] == 1 and scalars['tokens'] == 8 * len(losses)


def far_off(batch):
  """A batch that is learned from others: its loss and gradient are far above theirs."""
  return batch | {'target_ids_BT': np.full_like(batch['target_ids_BT'], 49)}


def test_a_spike_is_skipped_and_never_enters_the_window():
  usual = [models.batch(seed=0)] * 14
  steps, spikes = usual[:10] + [far_off(usual[0])] * 2 + usual[10:], [10, 11]
  state, actual = trained(steps, sigma=8.0)
  assert [i for i, metrics in enumerate(actual) if metrics['skipped']] == spikes
  assert [i for i, metrics in enumerate(actual) if metrics['spike']] == spikes
  assert_same(state, trained(usual, sigma=8.0)[0], 2)
  assert state.recent_SW.shape == (2, W)
  assert not trained(steps)[1][10]['skipped']  # off: it is applied


# ------------------------------------------------------------------------------------- host side


class NumberedRows:
  """A loader whose batch n has the rows 2 n and 2 n + 1."""

  def identify(self, number):
    """Name the rows of a batch."""
    return {'text': [2 * number, 2 * number + 1]}


def skips_of(kinds, before=(0, 0)):
  """What a meter reports of steps: '.' applied, 'n' not finite, 's' a spike."""
  skipped = np.array([kind != '.' for kind in kinds], np.float32)
  spike = np.array([kind == 's' for kind in kinds], np.float32)
  streaks = loss_guard.count_streaks(skipped, spike, before)
  return {'skipped': skipped, 'streaks': streaks} | ({'spike': spike} if 's' in kinds else {})


def test_skips_are_described_by_batch_and_row():
  assert loss_guard.describe_skips(skips_of('.nn.'), 20, NumberedRows(), offset=100) == {
    'updates': 2,
    'batches': [117, 118],
    'rows': {117: {'text': [234, 235]}, 118: {'text': [236, 237]}},
  }
  assert loss_guard.describe_skips(skips_of('s'), 1, NumberedRows(), 0)['spikes'] == 1


def test_each_kind_of_skip_counts_since_the_last_applied_step():
  streaks = skips_of('nsn.ss', before=(2, 1))['streaks']
  assert streaks.tolist() == [[3, 1], [3, 2], [4, 2], [0, 0], [0, 1], [0, 2]]


def test_too_many_skips_without_a_spike_guard_end_the_run():
  """Also when good steps came after them, before anybody looked."""
  cfg = train.TrainConfig(max_skipped=3)
  loss_guard.raise_if_too_many(skips_of('nn.nn'), 50, cfg)
  with pytest.raises(FloatingPointError) as error:
    loss_guard.raise_if_too_many(skips_of('.nnn.'), 50, cfg)
  assert_two_lines(error.value, 'not finite in 3 steps in a row, up to step 49', 'train.max_skipped=3')
  assert not isinstance(error.value, loss_guard.GoBack)


@pytest.mark.parametrize(
  ('kinds', 'last', 'length', 'key'),
  [
    ('s.s.s', None, None, None),
    ('s.sss', 49, 2, 'spike_patience=2'),
    ('nnnn', None, None, None),  # train.max_skipped counts these, not train.spike_patience
    ('.nnnnn', 50, 5, 'max_skipped=5'),
    ('nsnn', None, None, None),
    ('nnsns', 50, 5, 'spike_patience=2'),  # each kind by itself, until a step is applied
    ('snnnnn', 50, 6, 'max_skipped=5'),
  ],
)
def test_spikes_and_steps_that_are_not_finite_have_limits_of_their_own(kinds, last, length, key):
  cfg = train.TrainConfig(spike_sigma=6.0, spike_patience=2, max_skipped=5)
  if last is None:
    loss_guard.raise_if_too_many(skips_of(kinds), 50, cfg)
    return
  with pytest.raises(loss_guard.GoBack) as error:
    loss_guard.raise_if_too_many(skips_of(kinds), 50, cfg)
  assert (error.value.before, error.value.step) == (last - length, last)
  assert_two_lines(error.value, f'{length} steps in a row, up to step {last}', f'train.{key}')


def harming(monkeypatch, harm, numbers):
  """Harm batches with these numbers."""
  original = session.next_batches

  def next_batches(loader, n):
    number = loader.state()['next_batch']
    batch = original(loader, n)
    return harm(batch) if number in numbers else batch

  monkeypatch.setattr(session, 'next_batches', next_batches)


def events(workdir, name):
  return [event for event in run_folder.read_events(workdir) if event['event'] == name]


@pytest.mark.parametrize('every', [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_run_records_the_skipped_rows_and_ends_after_too_many(tmp_path, monkeypatch, every):
  harming(monkeypatch, poison, {0, 5, 6, 8, 9, 10})
  cfg = experiment(train__max_skipped=3, log__every=every, train__batch_size=8)
  with pytest.raises(FloatingPointError) as error:
    train.train(cfg, tmp_path / 'run')
  assert_two_lines(error.value, '3 steps in a row, up to step 11')
  skips = events(tmp_path / 'run', 'skipped')
  assert sum(event['updates'] for event in skips) == 6
  assert [n for event in skips for n in event['batches']] == [0, 5, 6, 8, 9, 10]
  rows = {int(n): rows['text'] for event in skips for n, rows in event['rows'].items()}
  loader = session.setup(cfg, tmp_path / 'run', models.mesh(), train.JOBS['gpt']).job.loader
  batches = [next(loader) for _ in range(9)]  # of step 9 on, where the newest checkpoint is
  loader.close()
  assert batches[0]['token_ids_BT'].shape[0] == len(rows[9]) == 8
  gathered = loader.rows['text'].gather(np.array(rows[10]))
  np.testing.assert_array_equal(gathered['token_ids_BT'], batches[1]['token_ids_BT'])
  assert not (tmp_path / 'run/checkpoints/12').exists()


SPIKES = dict(
  train__steps=36,
  train__spike_sigma=8.0,
  train__spike_window=W,
  train__eval_every=0,
  train__sample_every=0,
  checkpoint__every=3,
)


def last_id(batch):
  """Targets that were never seen."""
  return batch | {'target_ids_BT': np.full_like(batch['target_ids_BT'], 255)}


@pytest.mark.slow
def test_spikes_in_a_row_rewind_a_run_and_skip_their_data(tmp_path, monkeypatch):
  """The same whenever they are noticed, and for a run that was stopped between them."""
  harming(monkeypatch, last_id, {18, 20, 24, 25, 26, 29})
  at_once, late = (experiment(**SPIKES, log__every=every) for every in (1, 36))
  result = train.train(at_once, tmp_path / 'at_once')
  assert result['steps'] == 36 and result['tokens'] == 36 * 16 * 32
  [rewind] = events(tmp_path / 'at_once', 'go_back')
  assert (rewind['step'], rewind['after'], rewind['next_batch']) == (24, 27, 27)
  assert train.train(late, tmp_path / 'late', lambda step: step == 26) is None
  train.train(late, tmp_path / 'late')
  [rewind] = events(tmp_path / 'late', 'go_back')
  assert (rewind['step'], rewind['after'], rewind['next_batch']) == (24, 27, 27)
  one, other = (tiny_runs.arrays(tmp_path / name) for name in ('at_once', 'late'))
  assert one.keys() == other.keys()
  for path, array in one.items():
    np.testing.assert_array_equal(array, other[path], err_msg=path)
  steps = [line['step'] for line in run_folder.read_metrics(tmp_path / 'at_once')]
  assert steps == list(range(1, 37))


@pytest.mark.slow
def test_a_run_ends_if_rewinding_does_not_help(tmp_path, monkeypatch):
  harming(monkeypatch, last_id, set(range(20, 90)))
  with pytest.raises(FloatingPointError) as error:
    train.train(experiment(**SPIKES), tmp_path / 'run')
  assert_two_lines(error.value, '3 steps in a row', '3 spikes; train.spike_patience=3')
  assert len(events(tmp_path / 'run', 'go_back')) == 1


@pytest.mark.parametrize(
  'wrong',
  [
    dict(spike_sigma=-1.0),
    dict(spike_window=0),
    dict(spike_patience=0),
    dict(sdc_every=-1),
    dict(sdc_every=5, steps_per_call=2, steps=4, eval_every=0, sample_every=0),
  ],
)
def test_impossible_settings(wrong):
  with pytest.raises(ValueError) as error:
    train.TrainConfig(**wrong)
  assert_two_lines(error.value, f'train.{next(iter(wrong))}')
