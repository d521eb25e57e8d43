"""Runs with adapters: trained, resumed, sampled and exported from their folders, on a base that stays."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from gpt_jax import config, train
from gpt_jax.ablation.execute import replicas
from gpt_jax.evaluation import trained
from gpt_jax.interop import peft_files
from gpt_jax.model import adapters, gpt
from gpt_jax.runs import digests, run_folder
from gpt_jax.training import checkpoint
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
    train.train(adapter_config(base, train__probe_every=2), run)
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


def test_probes_measure_adapters_and_activations(finished):
  rows = [json.loads(line) for line in (finished[1] / 'probes.jsonl').read_text().splitlines()]
  text = json.dumps(rows)
  assert 'blocks/0/attention/wq_DHK/a' in text
  assert '"blocks/0/mlp"' in text
  assert '"wq_DHK": ' not in text


def test_run_is_resumed_bitwise(finished, tmp_path, tmp_path_factory):
  base, run = finished
  with tiny_runs.compiled_programs(tmp_path_factory):
    cfg = adapter_config(base)
    assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(2)) is None
    train.train(cfg, tmp_path / 'run')
  whole, resumed = tiny_runs.arrays(run), tiny_runs.arrays(tmp_path / 'run')
  for path, array in whole.items():
    np.testing.assert_array_equal(resumed[path], array, err_msg=path)


def test_adapters_are_loaded_without_their_base(finished, tmp_path):
  folder, run = finished
  base = trained.load(folder)
  loaded, arrays = trained.load(run, base=base), tiny_runs.arrays(run)
  assert loaded.cfg.train.steps == 4 and loaded.model.keys() == {
    path.removeprefix('model/').rpartition('/')[0] for path in arrays if path.startswith('model/')
  }
  merged = models.params(adapters.merge(base.model, loaded.model))
  for path, array in models.params(trained.load(run).model).items():
    np.testing.assert_array_equal(merged[path], array, err_msg=path)
  copy = base._replace(workdir=shutil.copytree(folder, tmp_path / 'copy'))
  assert trained.load(run, base=copy).step == loaded.step
  windowed = gpt.GPT(dataclasses.replace(base.model.cfg, window=3))
  for wrong, base_run, cause in (
    (folder, base, 'has no adapters'),
    (run, base._replace(step=9), 'were trained on step 12'),
    (run, base._replace(model=windowed), 'has another model.window than its base'),
  ):
    with pytest.raises(ValueError) as error:
      trained.load(wrong, base=base_run)
    tiny_runs.assert_two_lines(error.value, cause)


@pytest.fixture(scope='module')
def quantized(finished, tmp_path_factory):
  """A run of adapters on the base in 4 bits."""
  run = tmp_path_factory.mktemp('quantized') / 'run'
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(adapter_config(finished[0], adapter={'base_dtype': 'int4'}), run)
  return run


def test_quantized_base_is_near_and_in_no_checkpoint(finished, quantized):
  base, run = finished
  assert tiny_runs.arrays(run).keys() == tiny_runs.arrays(quantized).keys()
  with pytest.raises(ValueError, match='has a base in int4\nfix: '):
    trained.load(quantized, base=trained.load(base))
  losses = [run_folder.read_result(folder)['valid_loss'] for folder in (run, quantized)]
  assert 0 < abs(losses[0] - losses[1]) < 0.05
  merged, plain = (models.params(trained.load(folder).model) for folder in (quantized, base))
  error = np.abs(merged['blocks/mlp/up_DF'] - plain['blocks/mlp/up_DF']).mean()
  assert 0.01 < error / np.abs(plain['blocks/mlp/up_DF']).mean() < 0.2
  np.testing.assert_array_equal(merged['embed_VD'], plain['embed_VD'])


@pytest.mark.slow
def test_run_on_a_quantized_base_is_resumed_bitwise(finished, quantized, tmp_path, tmp_path_factory):
  with tiny_runs.compiled_programs(tmp_path_factory):
    cfg = adapter_config(finished[0], adapter={'base_dtype': 'int4'})
    assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(2)) is None
    train.train(cfg, tmp_path / 'run')
  whole, resumed = tiny_runs.arrays(quantized), tiny_runs.arrays(tmp_path / 'run')
  for path, array in whole.items():
    np.testing.assert_array_equal(resumed[path], array, err_msg=path)


@pytest.mark.slow
def test_steps_of_one_call_equal_single_steps(finished, tmp_path, tmp_path_factory):
  base, run = finished
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(adapter_config(base, train__steps_per_call=2), tmp_path / 'run')
  models.assert_close(tiny_runs.arrays(tmp_path / 'run'), tiny_runs.arrays(run), 1e-5)


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


@pytest.mark.slow
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


def test_base_that_was_moved_or_changed_is_named(finished, tmp_path):
  base, run = finished
  copy, own = tmp_path / 'base', tmp_path / 'run'
  shutil.copytree(base, copy)
  shutil.copytree(run, own)
  edit_reference(own, path=str(copy), absolute=str(copy))
  assert trained.load(own).step == 4
  step = max(checkpoint.Checkpoints(copy / 'checkpoints').steps())
  manifest = copy / 'checkpoints' / 'digests' / f'{step}.json'
  edit_reference(own, digest='0' * 64)
  with pytest.raises(
    ValueError, match=r'another than these adapters were trained on\nfix: copy the base back'
  ):
    trained.load(own)
  manifest.unlink()
  with pytest.raises(ValueError, match=r'never finished\nfix: copy the base back'):
    trained.load(own)
  shutil.rmtree(copy)
  with pytest.raises(
    ValueError, match=r'base of these adapters, its checkpoint 12, is not there\nfix: .*ln -s'
  ):
    trained.load(own)


def edit_reference(run, **changes):
  """Change the reference to the base in a run's newest checkpoint, with new digests."""
  path = run / 'checkpoints' / '4' / 'extra' / 'metadata'
  content = json.loads(path.read_text())
  path.write_text(json.dumps(content | {'base': content['base'] | changes}))
  digests.write_manifest(run / 'checkpoints' / 'digests' / '4.json', run / 'checkpoints' / '4')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(adapter={'targets': ('norm',)}), r"adapter.targets has 'norm', which matches none"),
    (dict(adapter={'rank': 0, 'train': ('nothing',)}), r"adapter.train has 'nothing', which matches none"),
    (
      dict(train={'init_from': ''}),
      r'adapter.rank=2 and adapter.train=\(\) need a trained model\nfix: .*init_from',
    ),
    (dict(model={'mup_base': 8}), r'model.mup_base=8 has no rule for adapters\nfix: '),
  ],
)
def test_settings_that_cannot_be_are_refused(changes, message, finished, tmp_path):
  cfg = config.to_dict(adapter_config(finished[0]))
  for section, values in changes.items():
    cfg[section] |= values
  with pytest.raises(ValueError, match=message):
    train.train(config.build(config.Config, cfg), tmp_path / 'run')


def test_parameters_are_trained_whole_on_a_frozen_rest(finished, tmp_path, tmp_path_factory):
  base, _ = finished
  cfg = adapter_config(base, adapter={'rank': 0, 'train': ('embed_VD', 'final_norm')})
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(cfg, tmp_path / 'run')
  before, after = (models.params(trained.load(folder).model) for folder in (base, tmp_path / 'run'))
  changed = {path for path in before if not np.array_equal(before[path], after[path])}
  assert changed == {'embed_VD', 'final_norm/scale'}
  with pytest.raises(ValueError, match=r'trains .* whole\nfix: export merged weights'):
    peft_files.export_adapter(tmp_path / 'run', tmp_path / 'out')
