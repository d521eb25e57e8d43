"""SDC check: equal results change nothing, and one different bit stops a run."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax import train
from gpt_jax.runs import run_folder
from gpt_jax.training import sdc
from tests import models, tiny_runs
from tests.tiny_runs import assert_two_lines, experiment


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.mark.parametrize('dtype', [np.float32, np.int32, np.uint8, np.bool_, ml_dtypes.bfloat16])
def test_one_different_bit_is_found(dtype):
  one = np.zeros((3, 4), dtype)
  one[1] = 1
  assert not sdc.compare_bits({'a': one}, {'a': one.copy()})['a']
  if dtype == np.bool_:
    other = ~one
  else:
    other = one.copy()
    other.view(np.uint8)[2, -1] ^= 128
  assert sdc.compare_bits({'a': one}, {'a': other})['a']


def test_nan_equals_itself_and_zero_is_not_minus_zero():
  nan = jnp.array([jnp.nan, 0.0])
  assert not sdc.compare_bits({'a': nan}, {'a': nan + 0})['a']
  assert sdc.compare_bits({'a': nan}, {'a': nan * -1})['a']


def test_keys_are_compared_by_their_data():
  one, other = jax.random.key(0), jax.random.key(1)
  assert not sdc.compare_bits({'key': one}, {'key': jax.random.key(0)})['key']
  assert sdc.compare_bits({'key': one}, {'key': other})['key']


class Fault:
  """A compiled step that now and then gets one bit of an array wrong."""

  def __init__(self, step, call):
    self.step, self.call, self.calls = step, call, 0

  def __call__(self, state, batch):
    """Make the step."""
    state, metrics = self.step(state, batch)
    self.calls += 1
    if self.calls == self.call:
      weights = state.model.blocks.mlp.up_DF
      values = np.array(weights.get_value())
      values.view(np.uint32)[(0,) * values.ndim] ^= 1
      weights.set_value(jax.device_put(values, weights.get_value().sharding))
    return state, metrics


def with_fault(monkeypatch, call):
  steps = []

  class Faulty(sdc.ReplayedStep):
    def __init__(self, step, mesh):
      super().__init__(Fault(step, call), mesh)
      steps.append(self)

  monkeypatch.setattr(sdc, 'ReplayedStep', Faulty)
  return steps


def test_the_check_changes_nothing_on_a_sound_machine(tmp_path, tmp_path_factory, monkeypatch):
  steps = with_fault(monkeypatch, call=0)
  train.train(experiment(train__sdc_every=5), tmp_path / 'run')
  assert steps[0].step.calls == 4  # twice before step 6 and twice before step 11
  one, other = (
    tiny_runs.arrays(folder) for folder in (tmp_path / 'run', tiny_runs.finished(tmp_path_factory))
  )
  for path, array in one.items():
    np.testing.assert_array_equal(array, other[path], err_msg=path)


@pytest.mark.parametrize('call', [3, 4])
def test_one_wrong_bit_stops_the_run_before_it_is_saved(tmp_path, monkeypatch, call):
  with_fault(monkeypatch, call)
  cfg = experiment(train__sdc_every=5)
  with pytest.raises(sdc.ResultsDiffer) as error:
    train.train(cfg, tmp_path / 'run')
  assert_two_lines(error.value, 'step 11 ran twice', 'differs in 1 of', 'model/blocks/mlp/up_DF')
  assert run_folder.read_events(tmp_path / 'run')[-1]['event'] == 'error'
  assert [line['step'] for line in run_folder.read_metrics(tmp_path / 'run')][-1] <= 10
  assert max(map(int, (p.name for p in (tmp_path / 'run/checkpoints').glob('[0-9]*')))) == 9


def test_sdc_every_0_never_runs_a_step_twice(tmp_path, monkeypatch):
  monkeypatch.setattr(sdc.ReplayedStep, '__call__', lambda *_: pytest.fail('ran twice'))
  train.train(experiment(train__steps=3), tmp_path / 'run')


def test_sharded_states_keep_their_shardings():
  mesh = models.mesh(fsdp=4)
  spread = NamedSharding(mesh, PartitionSpec('fsdp'))
  whole = NamedSharding(mesh, PartitionSpec())
  state = {'w': jax.device_put(jnp.arange(8.0), spread), 'key': jax.random.key(0)}
  state['key'] = jax.device_put(state['key'], whole)
  step = jax.jit(
    lambda state, x: (state | {'w': state['w'] + x}, {}),
    donate_argnums=0,
    out_shardings=({'w': spread, 'key': whole}, {}),
  )
  x = jax.device_put(jnp.float32(2), whole)
  compiled = step.lower(state, x).compile()
  after, _ = sdc.ReplayedStep(compiled, mesh)(state, x)
  assert after['w'].sharding == spread
  np.testing.assert_array_equal(after['w'], np.arange(8.0) + 2)
