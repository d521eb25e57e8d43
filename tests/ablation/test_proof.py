"""Proofs that arms differ, before anything runs, and pairing by seeds."""

import functools
import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

from gpt_jax import step
from gpt_jax.ablation import budget, design, proof
from gpt_jax.ablation.design import Budget, Study
from gpt_jax.runs import records
from tests import tiny_runs
from tests.ablation.test_design import TINY

EXAMINE = proof.compute_proof


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where this file's studies keep their token caches; one device, equal configs traced once."""
  known = {}

  def examine(cfg, study, folder):
    key = repr(cfg), proof.evaluation_settings(cfg, study.metric), study.budget.seconds
    if key not in known:
      known[key] = EXAMINE(cfg, study, folder)
    return known[key]

  path = tmp_path_factory.mktemp('cache')
  (path / 'tiny.py').write_text(TINY)
  with tiny_runs.compiled_programs(tmp_path_factory), mock.patch.object(proof, 'compute_proof', examine):
    yield path


@pytest.fixture
def prove(folder):
  """`prove(factors, ...)` -> (study, arms, proofs)."""

  def run(factors, **given):
    study = Study(str(folder / 'tiny.py'), factors, **given)
    arms = design.make_arms(study, folder)
    return study, arms, proof.prove_arms(study, arms, folder)

  return run


def described(prove, factors, **given):
  """The arms of study.json by name."""
  study = proof.describe_study(*prove(factors, **given))
  return {arm['name']: arm for arm in study['arms']}


# --------------------------------------------------------------------- arms that change nothing


@pytest.mark.parametrize(
  ('factors', 'changes'),
  [
    ({'rope_theta': [10000.0, 500.0]}, {'positions': 'learned'}),  # no rotation to turn faster
    ({'norm_bias': [True, False]}, {}),  # RMSNorm has none
    ({'moe_balance': [0.01, 0.5]}, {}),  # no experts to balance
    ({'moe_balance': [0.01, 0.5]}, {'steps_per_call': 2, 'eval_every': 4}),
    ({'temperature': [1.0, 0.5]}, {}),
    ({'eps': [1e-3, 1e-4]}, {'optim.name': 'sgd'}),
  ],
)
def test_an_arm_without_effect_is_an_error(prove, factors, changes):
  with pytest.raises(ValueError) as error:
    prove(factors, changes=changes)
  [key] = factors
  tiny_runs.assert_two_lines(error.value, f'arm {key}=', 'those of arm base', key)


def test_noisy_step_times_do_not_hide_an_arm_without_effect(prove, monkeypatch):
  """Each measurement is slower than the last: an arm that changes nothing gets the same steps."""
  times = iter(range(1, 99))
  monkeypatch.setattr(budget, 'measure_step_seconds', lambda *_: next(times) / 100)
  limits, changes = Budget(seconds=1), {'positions': 'learned'}
  with pytest.raises(ValueError) as error:
    prove({'rope_theta': [10000.0, 499.0]}, changes=changes, budget=limits)
  tiny_runs.assert_two_lines(error.value, 'those of arm base', 'rope_theta')
  _, arms, proofs = prove({'b1': [0.9, 0.8], 'mlp': ['swiglu', 'gelu']}, budget=limits)
  base, beta, mlp = (p.steps for p in proofs.values())
  assert base == beta > mlp


def test_equal_arms_are_an_error_that_names_both(prove):
  twins = {
    'gelu': {'mlp': 'gelu'},
    'wide': {'mlp': 'gelu', 'hidden': 64},  # what hidden=0 means
  }
  with pytest.raises(ValueError) as error:
    prove({'mlp': twins})
  parts = ('arm mlp=wide', 'arm mlp=gelu', 'model.hidden 0 -> 64')
  tiny_runs.assert_two_lines(error.value, *parts)


def test_every_input_of_the_result_changes_the_fingerprint(prove):
  changes = {
    'nothing': {},
    'rope_theta': {'rope_theta': 500.0},  # a constant of the program
    'init_std': {'init_std': 0.03},  # initial values alone
    'init': {'init_projections': 'zero'},
    'lr': {'lr': 1e-3},  # a traced scalar
    'weight_decay': {'weight_decay': 0.0},  # another
    'steps': {'steps': 8},
    'ema': {'ema': 0.9},
    'data': {'data.mixture.text.documents': 50},
    'split': {'valid_fraction': 0.2},
    'context': {'context': 16},
    'optimizer': {'optim.name': 'lion'},
    'dropout': {'dropout': 0.1},  # a step without dropout draws nothing
  }
  study, arms, proofs = prove({'change': changes})
  assert len(arms) == len({p.fingerprint for p in proofs.values()}) == len(changes)
  description = proof.describe_study(study, arms, proofs)
  shares = {arm['levels']['change'] for arm in description['arms'] if arm['shares_program_with_base']}
  assert shares == {'nothing', 'init_std', 'init', 'lr', 'weight_decay', 'data', 'split'}


def test_the_checkpoint_that_an_arm_branches_from_is_in_its_fingerprint(prove, tmp_path, tmp_path_factory):
  """Its digest, not its path: the same checkpoint elsewhere is the same arm."""
  run = tiny_runs.finished(tmp_path_factory)
  shutil.copytree(run, tmp_path / 'copy')
  model = {f'model.{key}': value for key, value in tiny_runs.TINY['model'].items()}
  arms = {'early': {'branch_from': f'{run}@9'}, 'late': {'branch_from': str(run)}}
  changes = model | {'steps': 20, 'schedule': 'wsd', 'data.mixture.text.documents': 60}
  _, _, proofs = prove({'start': arms}, changes=changes)
  _, early, late = (p.inputs for p in proofs.values())  # the first starts anew
  assert {key for key in early if early[key] != late[key]} == {'parents'}
  with pytest.raises(ValueError) as error:
    prove({'start': arms | {'moved': {'branch_from': f'{tmp_path}/copy@12'}}}, changes=changes)
  tiny_runs.assert_two_lines(error.value, 'arm start=moved changes nothing', 'those of arm start=late')


def test_steps_change_the_fingerprint_under_a_constant_schedule(prove):
  _, _, proofs = prove({'steps': [12, 8]}, changes={'schedule': 'constant'})
  base, short = proofs.values()
  assert base.program == short.program and base.fingerprint != short.fingerprint


def test_sampling_changes_the_fingerprint_for_a_task_metric(prove):
  prove({'temperature': [1.0, 0.5]}, metric='accuracy')


def test_a_fingerprint_is_the_same_every_time(prove, folder):
  study, [arm, _], proofs = prove({'mlp': ['gelu']})
  jax.clear_caches()
  again = EXAMINE(arm.config, study, folder)
  assert again.fingerprint == proofs['base'].fingerprint


def test_an_invalid_arm_is_an_error_that_names_it(prove):
  with pytest.raises(ValueError) as error:
    prove({'train.length': [32, 64]}, changes={'train.length': 32})
  tiny_runs.assert_two_lines(error.value, 'arm train.length=64', 'model.context=32')


# ---------------------------------------------------------------------------- in what arms differ


def test_differences_in_parameters_and_cost(prove):
  arms = described(
    prove,
    {
      'positions': ['learned'],
      'width': {'24': {'model.width': 24}},
      'norm': ['layernorm'],
      'tied_head': [False],
    },
  )
  assert arms['positions=learned']['parameter_diff'] == {
    'added': ['position_TD'],
    'removed': [],
    'reshaped': {},
  }
  wide = arms['width=24']['parameter_diff']
  assert wide['reshaped']['embed_VD'] == [(384, 16), (384, 24)]
  assert not wide['added'] and not wide['removed']
  assert all(path.endswith('bias') for path in arms['norm=layernorm']['parameter_diff']['added'])
  extra = arms['tied_head=false']['parameters'] - arms['base']['parameters']
  assert extra % 16 == 0 and extra > 16 * 256
  base = arms['base']
  assert base['tokens'] == 12 * 16 * 32
  assert base['flops'] == base['flops_per_token'] * base['tokens'] > 0
  assert base['seconds_estimate'] > 0


def test_flags(prove):
  def sneaky(made):
    made.model.mlp = 'gelu'
    made.optim.lr = 1e-3

  factors = {
    'mlp': {'swiglu': {}, 'gelu': sneaky},
    'optimizer': {'adamw': {}, 'lion': {'optim.name': 'lion', 'positions': 'learned'}},
    'tied_head': [False],
    'documents': [50],
    'norm,a=b': {'rms': {}, 'x,tied_head=y': {'norm': 'layernorm'}},  # names are not parsed
  }
  arms = described(prove, factors, keeps_parameters=('optimizer', 'norm,a=b'))
  flags = {name: ' '.join(arm['flags']) for name, arm in arms.items()}
  assert flags['base'] == ''
  assert 'a function sets mlp; it changes model.mlp, optim.lr' in flags['mlp=gelu']
  assert 'optimizer changes parameters' in flags['optimizer=lion']
  assert '% parameters' in flags['tied_head=false']
  assert 'should not' not in flags['tied_head=false']
  assert 'data are not' in flags['documents=50']
  assert flags['norm,a=b=x,tied_head=y'].startswith('norm,a=b changes parameters')


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'tokenizer.kind': 'chars'}, 'per token, and it has another tokenizer (use valid_bits_per_byte)'),
    ({'train.length': 16}, 'per token, and it has another row length (use valid_bits_per_byte)'),
    ({'valid_fraction': 0.2}, 'other validation data (data)'),
    ({'lr': 1e-3}, ''),
    ({'positions': 'learned'}, ''),
  ],
)
def test_losses_that_do_not_compare_are_flagged(prove, change, said):
  given = dict(factors={'change': {'base': {}, 'other': change}}, budget=Budget(tokens=12 * 16 * 32))
  arms = described(prove, metric='valid_loss', **given)
  flags = [flag for flag in arms['change=other']['flags'] if 'not comparable' in flag]
  assert [said in flag for flag in flags] == [True] * bool(said)
  arms = described(prove, metric='valid_bits_per_byte', **given)
  flags = [flag for flag in arms['change=other']['flags'] if 'not comparable' in flag]
  assert len(flags) == ('valid_fraction' in change)


def test_a_study_of_tokenizers_is_judged_in_bits_per_byte(prove):
  study = proof.describe_study(*prove({'tokenizer.kind': ['bytes', 'chars']}))
  assert study['metric'] == 'valid_bits_per_byte'
  assert 'as tokenizers differ' in '\n'.join(proof.format_study(study))
  assert 'not comparable' not in str(study['arms'])
  study = proof.describe_study(*prove({'lr': [2e-2, 1e-3]}))
  assert (study['metric'], study['metric_reason']) == ('valid_loss', '')


@pytest.mark.parametrize('change', [{'batch_size': 32}, {'train.steps': 4}, {'train.length': 16}])
def test_unequal_training_tokens_do_not_compare(prove, change):
  factors = {'change': {'base': {}, 'other': change}}
  flags = lambda **given: ' '.join(described(prove, factors, **given)['change=other']['flags'])
  assert 'not comparable: it trains on' in flags()
  if 'train.steps' not in change:  # which the budget sets
    assert 'not comparable: it trains on' not in flags(budget=Budget(tokens=12 * 16 * 32))
  declared = flags(unequal_tokens=True)
  assert 'it trains on' not in declared and 'times the tokens, as unequal_tokens declares' in declared


@pytest.mark.parametrize(
  ('metric', 'cause', 'fix'),
  [
    ('valid_los', 'in no result', 'did you mean valid_loss?'),
    ('answer/text/exact_match', 'task answer', "'train.tasks': ('answer',)"),
    ('nonsense/x', 'in no result', 'TASK/SOURCE/METRIC'),
    ('tail/nonsense', 'in no result', 'fix: '),
    ('tail/valid_los', 'in no result', 'did you mean tail/valid_loss?'),
    ('tail/valid_loss/nonsense', 'in no result', 'fix: '),
  ],
)
def test_a_metric_that_no_run_gives_is_refused_before_the_first(prove, metric, cause, fix):
  with pytest.raises(ValueError) as error:
    described(prove, {'lr': [2e-2, 1e-3]}, metric=metric)
  tiny_runs.assert_two_lines(error.value, cause)
  assert fix in str(error.value)


def test_only_the_target_of_a_template_is_scored(folder, tmp_path):
  """Codes or patches before the arrow: both are scored on the name."""
  (tmp_path / 'read.py').write_text(
    'from tests import tiny_runs\ndef get_config(arg=""):\n'
    "  mixture = {'read': {'kind': 'digits', 'template': '{image:image} -> {name}'}}\n"
    '  return tiny_runs.media(data__mixture=mixture, audio={"kind": ""})\n'
  )
  forms = {
    'codes': '{image:image} -> {name}',
    'patches': '{image:patches} -> {name}',
    'is': '{image:image} -> is {name}',
  }
  levels = {name: {'data.mixture.read.template': form} for name, form in forms.items()}
  study = Study(str(tmp_path / 'read.py'), {'input': levels})
  arms = design.make_arms(study, folder)
  told = proof.describe_study(study, arms, proof.prove_arms(study, arms, folder))
  _, patches, other = (' '.join(arm['flags']) for arm in told['arms'])
  assert 'template' not in patches
  assert 'other validation data (template)' in other


def test_changes_by_the_budget_are_not_flagged(prove):
  arms = described(prove, {'layers': [2]}, budget=Budget(flops=2e8))
  assert arms['layers=2']['steps'] < arms['base']['steps']
  assert 'train.steps' in arms['layers=2']['diff'] and not arms['layers=2']['flags']
  wide = described(prove, {'tied_head': [False]}, budget=Budget(parameters=20e3))
  assert 'model.width' in wide['tied_head=false']['diff']
  for arm in wide.values():
    assert abs(arm['parameters'] - 20e3) < 2e3
  assert not any('changes' in flag for flag in wide['tied_head=false']['flags'])


def test_a_learned_tokenizer_can_be_studied(folder, tmp_path):
  (tmp_path / 'codec.py').write_text(
    'from tests import tiny_runs\ndef get_config(arg=""):\n  return tiny_runs.codec_section("image")\n'
  )
  study = Study(str(tmp_path / 'codec.py'), {'network_blocks': {'2': {'image.network_blocks': 2}}})
  arms = design.make_arms(study, folder)
  proofs = proof.prove_arms(study, arms, folder)
  assert len({p.fingerprint for p in proofs.values()}) == 2
  assert proof.describe_study(study, arms, proofs)['arms'][0]['flops'] == 0


# ------------------------------------------------------------------------------------ description


def test_the_description_is_json_and_the_table_has_every_arm(prove, tmp_path):
  study, arms, proofs = prove(
    {'positions': ['rope', 'learned'], 'lr': [2e-2, 1e-3]}, sweep='full', question='Why?'
  )
  told = proof.describe_study(study, arms, proofs)
  records.write_json(tmp_path / 'study.json', told)
  read = records.read_json(tmp_path / 'study.json')
  assert read == json.loads(json.dumps(records.to_json(told)))
  assert read['factors'] == {'positions': ['rope', 'learned'], 'lr': ['0.02', '0.001']}
  assert read['seeds'] == [0, 1, 2, 3, 4]
  assert read['arms'][-1]['diff'] == {'model.positions': ['rope', 'learned'], 'optim.lr': [0.02, 0.001]}
  lines = '\n'.join(proof.format_study(read))
  assert lines.startswith('Why?') and 'in all 20 runs' in lines
  for arm in arms:
    assert arm.name in lines
  assert 'model.positions "rope" -> "learned"' in lines and 'added position_TD' in lines


# ---------------------------------------------------------------------------------- paired seeds


@pytest.fixture(scope='module')
def starts(folder):
  """`starts(seed, **changes)` -> ({path: initial value}, first two batches)."""

  @functools.cache
  def run(seed, **changes):
    cfg = budget.with_shared_cache(tiny_runs.experiment(train__seed=seed, **changes), folder)
    with budget.open_job(cfg, folder) as (job, _):
      batches = [next(job.loader) for _ in range(2)]
      return jax.device_get(step.params_of(job.program.init().model)), batches

  return run


@pytest.mark.parametrize(
  'changes',
  [
    dict(model__positions='learned', model__mlp='gelu', optim__name='lion'),
    dict(model__norm_position='sandwich', model__tied_head=False),
  ],
)
def test_equal_seeds_give_arms_equal_initial_values_and_data(starts, changes):
  (params, batches), (other, other_batches) = starts(3), starts(3, **changes)
  shared = [path for path in params if path in other and params[path].shape == other[path].shape]
  assert len(shared) >= len(params) - 3
  for path in shared:
    np.testing.assert_array_equal(params[path], other[path], err_msg=path)
  for ours, theirs in zip(batches, other_batches, strict=True):
    np.testing.assert_array_equal(ours['token_ids_BT'], theirs['token_ids_BT'])


def test_different_seeds_give_different_initial_values_and_data(starts):
  (params, batches), (other, other_batches) = starts(3), starts(4)
  assert (params['embed_VD'] != other['embed_VD']).any()
  assert (batches[0]['token_ids_BT'] != other_batches[0]['token_ids_BT']).any()
