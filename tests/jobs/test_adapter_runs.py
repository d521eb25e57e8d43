"""Runs with adapters: trained, resumed, sampled and exported from their folders, on a base that stays."""

import dataclasses

import numpy as np
import pytest

from gpt_jax import config, train
from gpt_jax.ablation.execute import replicas
from gpt_jax.evaluation import trained
from gpt_jax.runs import run_folder
from tests import models, tiny_runs


def adapter_config(base, **changes):
  """A config of adapters on the tiny run."""
  cfg = tiny_runs.section(**changes)
  cfg.tokenizer = config.section(config.of_run(base).tokenizer)
  cfg.train.update(init_from=str(base), steps=4, eval_every=2, sample_every=0)
  cfg.adapter.update({'rank': 2, **changes.get('adapter', {})})
  cfg.checkpoint.every = 2
  return config.build(config.Config, cfg)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(base run folder, a run of adapters on it)."""
  base = tiny_runs.finished(tmp_path_factory)
  run = tmp_path_factory.mktemp('adapters') / 'run'
  before = tiny_runs.snapshot(base)
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(adapter_config(base), run)
  assert tiny_runs.snapshot(base) == before
  return base, run


def test_checkpoint_holds_adapters_alone(finished):
  base, run = finished
  arrays = tiny_runs.arrays(run)
  stored = {path for path in arrays if path.startswith('model/')}
  assert stored == {
    f'model/blocks/{name}/{factor}'
    for name in ('attention/wq_DHK', 'attention/wk_DGK', 'attention/wv_DGK', 'attention/wo_HKD')
    + ('mlp/up_DF', 'mlp/gate_DF', 'mlp/down_FD')
    for factor in 'ab'
  }
  moments = {path.partition('/mu/')[2] for path in arrays if '/mu/' in path}
  assert moments == {path.removeprefix('model/') for path in stored}
  assert not any('frozen' in path for path in arrays)
  assert np.abs(arrays['model/blocks/attention/wq_DHK/b']).max() > 0


def test_run_is_resumed_bitwise(finished, tmp_path, tmp_path_factory):
  base, run = finished
  with tiny_runs.compiled_programs(tmp_path_factory):
    cfg = adapter_config(base)
    assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(2)) is None
    train.train(cfg, tmp_path / 'run')
  whole, resumed = tiny_runs.arrays(run), tiny_runs.arrays(tmp_path / 'run')
  for path, array in whole.items():
    np.testing.assert_array_equal(resumed[path], array, err_msg=path)


def test_branch_is_bitwise_the_run_on_the_same_base(finished, tmp_path, tmp_path_factory):
  base, run = finished
  with tiny_runs.compiled_programs(tmp_path_factory):
    cfg = adapter_config(base)
    start = dataclasses.replace(cfg.train, init_from='', branch_from=f'{run}@2')
    result = train.train(dataclasses.replace(cfg, train=start), tmp_path / 'branch')
  whole, branch = tiny_runs.arrays(run), tiny_runs.arrays(tmp_path / 'branch')
  for path, array in whole.items():
    np.testing.assert_array_equal(branch[path], array, err_msg=path)
  [parent] = result['parents']
  [grandparent] = parent['parents']
  assert (parent['how'], grandparent['how']) == ('train.branch_from', 'train.init_from')
  assert parent['path'] == str(run) and grandparent['path'] == str(base)
  assert trained.load(tmp_path / 'branch').step == 4  # finds its base


def test_run_is_loaded_from_its_folder(finished):
  base, run = finished
  of_base, of_run = trained.load(base), trained.load(run)
  before, after = models.params(of_base.model), models.params(of_run.model)
  changed = {path for path in before if not np.array_equal(before[path], after[path])}
  assert changed == {path for path in before if '/w' in path or '_DF' in path or '_FD' in path}
  assert of_run.generate(['a'], max_new_tokens=3)
  valid = run_folder.read_result(run)['valid_loss']
  rows = [row for row in run_folder.read_result(run)['evaluations'] if row['metric'] == 'nats_per_token']
  assert valid == rows[0]['value'] < run_folder.read_result(base)['valid_loss'] + 0.5


def test_replicas_share_the_base_and_equal_single_runs(finished, tmp_path, tmp_path_factory):
  base, run = finished
  configs = [adapter_config(base, train__seed=seed) for seed in (0, 1)]
  folders = [tmp_path / 'a', tmp_path / 'b']
  with tiny_runs.compiled_programs(tmp_path_factory):
    group = replicas.Group(list(zip(configs, folders, strict=True)))
    first, second = (replica.session.state for replica in group.replicas)
    assert first.frozen is second.frozen
    outcomes = group.train(lambda: False)
  assert [outcome.outcome for outcome in outcomes] == ['done', 'done']
  alone, together = tiny_runs.arrays(run), tiny_runs.arrays(tmp_path / 'a')
  models.assert_close(together, alone)
  other = tiny_runs.arrays(tmp_path / 'b')['model/blocks/mlp/up_DF/b']
  assert np.abs(other - together['model/blocks/mlp/up_DF/b']).max() > 1e-4
  assert trained.load(tmp_path / 'b').step == 4
