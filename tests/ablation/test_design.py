"""Sweeps, the arms of a study, budgets, and the shipped studies."""

import dataclasses
import functools
import itertools
import math
import sys

import numpy as np
import pytest

from benchmarks import emoji_split
from gpt_jax import config, train
from gpt_jax.ablation import budget, design, proof, sweeps
from gpt_jax.ablation.design import Budget, Study
from gpt_jax.ablation.sweeps import SWEEPS, log_uniform, uniform
from gpt_jax.cli import experiment_file
from gpt_jax.model import costs
from tests import command_line, encoders, stand_ins, tiny_runs

SHIPPED = sorted((command_line.ROOT / 'experiments/ablations').glob('*.py'))
LEVELS = {'a': ['1', '2', '3'], 'b': ['x', 'y']}
BASE = {'a': '1', 'b': 'x'}
TINY = 'from tests import tiny_runs\ndef get_config(arg=""):\n  return tiny_runs.section()\n'


@pytest.fixture
def base(tmp_path):
  """An experiment file of the tiny config."""
  (tmp_path / 'tiny.py').write_text(TINY)
  return str(tmp_path / 'tiny.py')


@pytest.fixture
def make(base):
  """`make(factors, ...)` -> a study of the tiny config."""
  return lambda factors, **given: Study(base, factors, **given)


def names(study):
  """Of its arms."""
  return [arm.name for arm in design.make_arms(study)]


# ----------------------------------------------------------------------------------------- sweeps


def test_cells_of_each_sweep():
  two = {'a': ['1', '3'], 'b': ['x', 'y']}
  cells = lambda name, levels=LEVELS: SWEEPS[name].cells(levels, BASE, 0, 0)
  singles = [{'a': '2'}, {'a': '3'}, {'b': 'y'}]
  assert cells('one_at_a_time') == singles
  assert cells('leave_one_out', two) == [{'a': '3'}, {'b': 'y'}]
  assert cells('pairwise') == [*singles, {'a': '2', 'b': 'y'}, {'a': '3', 'b': 'y'}]
  assert cells('full') == [dict(a=a, b=b) for a in '123' for b in 'xy']
  assert cells('fractional', {'a': ['1', '2'], 'b': ['x', 'y']}) == [
    {'a': '2', 'b': 'y'},
    {'b': 'y'},
    {'a': '2'},
    {},
  ]


@pytest.mark.parametrize('size', sweeps.PLACKETT_BURMAN_ROWS)
def test_two_level_designs_are_orthogonal(size):
  signs = np.where(sweeps.plackett_burman(size), 1, -1)
  assert signs.shape == (size, size - 1)
  np.testing.assert_array_equal(signs.T @ signs, size * np.eye(size - 1))
  np.testing.assert_array_equal(signs.sum(0), 0)
  assert (signs[-1] == -1).all()  # the baseline


def test_random_draws():
  levels = {'lr': log_uniform(1e-4, 1e-1), 'clip': uniform(1, 3), 'mlp': ['gelu', 'relu2']}
  cells = sweeps.random(levels, {}, 400, seed=0)
  assert cells[:20] == sweeps.random(levels, {}, 20, seed=0)
  assert cells[:20] != sweeps.random(levels, {}, 20, seed=1)
  exponents = np.log10([cell['lr'] for cell in cells])
  clips = np.array([cell['clip'] for cell in cells])
  # Uniform: means within four standard errors, ends reached.
  assert abs(exponents.mean() + 2.5) < 4 * 3 / math.sqrt(12 * 400)
  assert abs(clips.mean() - 2) < 4 * 2 / math.sqrt(12 * 400)
  assert exponents.min() < -3.9 and exponents.max() > -1.1
  assert clips.min() >= 1 and clips.max() <= 3
  assert {cell['mlp'] for cell in cells} == {'gelu', 'relu2'}


def test_combining_lists_of_cells():
  a, b = sweeps.levels('a', 1, 2), sweeps.levels('b', 3, 4)
  assert sweeps.product(a, b) == [dict(a=x, b=y) for x, y in itertools.product((1, 2), (3, 4))]
  assert sweeps.zip_(a, b) == [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]
  assert sweeps.chain(a, b, a) == [*a, *b]
  many = sweeps.product(a, b, sweeps.levels('c', *range(10)))
  few = sweeps.subsample(many, 7, seed=3)
  assert len(few) == 7 and few == sweeps.subsample(many, 7, seed=3)
  assert [cell for cell in many if cell in few] == few
  assert sweeps.subsample(a, 5) == a


@pytest.mark.parametrize(
  ('wrong', 'parts'),
  [
    (lambda: sweeps.zip_([{'a': 1}], []), ('1, 0 cells',)),
    (lambda: sweeps.product([{'a': 1}], [{'a': 2}]), ('factor a is both 1 and 2',)),
    (lambda: log_uniform(0, 1), ('low=0',)),
    (lambda: uniform(2, 1), ('low=2, high=1',)),
    (lambda: SWEEPS['fractional'].cells(LEVELS, BASE, 0, 0), ('factor a has 3 levels',)),
    (lambda: SWEEPS['full'].cells({'a': uniform(0, 1)}, {}, 0, 0), ('factor a is a range',)),
    (lambda: SWEEPS['random'].cells(LEVELS, BASE, 0, 0), ('count=0',)),
  ],
)
def test_invalid_sweeps_are_errors(wrong, parts):
  with pytest.raises(ValueError) as error:
    wrong()
  tiny_runs.assert_two_lines(error.value, *parts)


# ------------------------------------------------------------------------------------------ arms


def test_one_factor_at_a_time(make):
  study = make({'positions': ['rope', 'learned', 'none'], 'optim.lr': [2e-2, 1e-3]})
  arms = design.make_arms(study)
  assert [arm.name for arm in arms] == ['base', 'positions=learned', 'positions=none', 'optim.lr=0.001']
  assert [arm.is_baseline for arm in arms] == [True, False, False, False]
  assert arms[0].config == tiny_runs.experiment()
  assert arms[0].levels == {'positions': 'rope', 'optim.lr': '0.02'}
  assert arms[1].config.model == dataclasses.replace(arms[0].config.model, positions='learned')
  assert arms[3].config.optim.lr == 1e-3
  assert arms[1].keys == ('model.positions',) and not arms[1].functions


def test_the_baseline_is_first_in_a_sweep_that_lacks_it(make):
  study = make({'width': {'wide': {'model.width': 32}}, 'qk_norm': [True]}, sweep='full')
  arms = design.make_arms(study)
  assert [arm.name for arm in arms] == ['base', 'width=wide,qk_norm=true']
  assert arms[0].levels == {'width': 'base', 'qk_norm': 'base'}


def test_leave_one_out_starts_from_all_factors_at_their_first_level(make):
  study = make({'qk_norm': [True, False], 'tied_head': [False, True]}, sweep='leave_one_out')
  base, *arms = design.make_arms(study)
  assert base.config.model.qk_norm and not base.config.model.tied_head
  assert [arm.name for arm in arms] == ['qk_norm=false', 'tied_head=true']
  assert not arms[0].config.model.qk_norm and not arms[0].config.model.tied_head


def test_an_error_in_a_function_names_its_line(make):
  def broken(section):
    section.model.width = section.model.nothing.width

  with pytest.raises(ValueError) as error:
    names(make({'f': {'x': broken}}))
  line = broken.__code__.co_firstlineno + 1
  tiny_runs.assert_two_lines(error.value, "arm f=x: AttributeError: 'nothing'", f'{__file__}:{line}')
  assert str(error.value).endswith('fix: correct broken')
  with pytest.raises(ValueError, match=rf'{line}\)\nfix: correct broken$'):
    names(make({'f': {'x': functools.partial(broken)}}))

  class Broken:
    def __call__(self, section):
      section.model.nothing()

  with pytest.raises(ValueError, match='fix: correct Broken$'):
    names(make({'f': {'x': Broken()}}))


def test_levels_of_several_keys_and_functions(make):
  def deeper(made):
    made.model.layers *= 3

  study = make(
    {
      'mlp': {'relu2': {'mlp': 'relu2'}, 'gated': {'mlp': 'swiglu', 'hidden': 24}},
      'depth': {'plain': {}, 'deep': deeper},
      'documents': [30],  # a source's key is found by its last part too
    }
  )
  arms = {arm.name: arm for arm in design.make_arms(study)}
  assert list(arms) == ['base', 'mlp=relu2', 'mlp=gated', 'depth=deep', 'documents=30']
  assert arms['mlp=gated'].config.model.hidden == 24
  assert arms['mlp=gated'].keys == ('model.hidden', 'model.mlp')
  assert arms['depth=deep'].config.model.layers == 3
  assert arms['depth=deep'].keys == () and arms['depth=deep'].functions == ('depth',)
  assert arms['documents=30'].config.data.mixture['text'].documents == 30


def test_changes_apply_to_every_arm_before_levels_are_compared(make):
  study = make({'mlp': ['gelu', 'relu2']}, changes={'mlp': 'gelu', 'train.steps': 6})
  arms = design.make_arms(study)
  assert [arm.name for arm in arms] == ['base', 'mlp=relu2']
  assert [arm.config.train.steps for arm in arms] == [6, 6]


def test_levels_that_are_valid_only_together(make):
  study = make({'width': {'24': {'model.width': 24}}, 'heads': [2, 3]}, sweep='full')
  assert names(study) == ['base', 'width=24', 'width=24,heads=3']


def test_a_custom_list_of_cells(make):
  sweep = sweeps.zip_(sweeps.levels('lr', 1e-3, 1e-2), sweeps.levels('warmup', 1, 5))
  study = make({'lr': [1e-3, 1e-2], 'warmup': [1, 5]}, sweep=sweep)
  assert names(study) == ['base', 'lr=0.001,warmup=1', 'lr=0.01,warmup=5']


def test_a_random_sweep_draws_values(make):
  study = make({'lr': log_uniform(1e-4, 1e-1), 'mlp': ['swiglu', 'gelu']}, sweep='random', count=6)
  arms = design.make_arms(study)
  assert names(study) == [arm.name for arm in arms]
  for arm in arms[1:]:
    assert arm.levels['lr'] == f'{arm.config.optim.lr:.10g}'
    assert arm.config.model.mlp == arm.levels['mlp']


def test_count_keeps_some_arms_and_the_baseline(make):
  factors = {'mlp': ['swiglu', 'gelu', 'relu2'], 'norm': ['rmsnorm', 'layernorm']}
  every = names(make(factors, sweep='full'))
  some = names(make(factors, sweep='full', count=3))
  assert len(every) == 6 and len(some) == 4
  assert some[0] == 'base' and set(some) <= set(every)


def test_slugs_are_names_of_folders(make):
  study = make({'act': {'relu 2/x': {'mlp': 'relu2'}, 'relu-2-x': {'mlp': 'gelu'}}})
  slugs = [arm.slug for arm in design.make_arms(study)]
  assert len(set(slugs)) == 3
  assert all('/' not in slug and ' ' not in slug for slug in slugs)
  assert len(design.make_slug('x' * 300)) < 100


def test_runs_go_seed_after_seed(make):
  study = make({'mlp': ['gelu']}, seeds=(3, 7))
  actual = [(arm.name, seed, cfg.train.seed) for arm, seed, cfg in design.iterate_runs(study)]
  assert actual == [('base', 3, 3), ('mlp=gelu', 3, 3), ('base', 7, 7), ('mlp=gelu', 7, 7)]


def test_short_names_leave_out_the_keys_of_other_jobs():
  base = tiny_runs.experiment()
  names = {'dropout': 'model.dropout', 'label_smoothing': 'loss.label_smoothing', 'kl': 'grpo.kl'}
  assert {name: design.full_key(name, base) for name in names} == names
  adapted = dataclasses.replace(base, adapter=dataclasses.replace(base.adapter, rank=2))
  with pytest.raises(ValueError, match='dropout may be adapter.dropout, model.dropout'):
    design.full_key('dropout', adapted)


ONE_LEVEL = {'qk_norm': [True, False], 'mlp': {'plain': {}}}


@pytest.mark.parametrize(
  ('factors', 'given', 'parts'),
  [
    ({'psitions': ['rope']}, {}, ('psitions is not a config key',)),
    ({'width': [16, 32]}, {}, ('width may be', 'model.width')),
    ({'mlp': []}, {}, ('factor mlp has no levels',)),
    ({'mlp': ['gelu', 'gelu']}, {}, ('factor mlp has a level twice',)),
    ({'mlp': ['swiglu']}, {}, ('factor mlp has one level, swiglu',)),
    ({'mlp': ['nonsense']}, {}, ('arm mlp=nonsense', "model.mlp='nonsense' is not known")),
    ({'lr': ['fast']}, {}, ('arm lr=fast', 'optim.lr', 'str')),
    ({'f': {'a': {}, 'b': {'mlp': 'swiglu'}}}, {}, ('a and b both leave the base',)),
    ({'f': {'base': {'mlp': 'gelu'}}}, {}, ("level called 'base'",)),
    ({'f': {'x': 'gelu'}}, {}, ("a level is 'gelu'",)),
    ({'train.seed': [0, 1]}, {}, ('train.seed', 'study sets itself')),
    ({'layers': uniform(1, 3)}, {}, ('factor layers is a range',)),
    ({'mlp': ['gelu']}, {'sweep': [{'norm': 'x'}]}, ("factor 'norm'",)),
    ({'mlp': ['gelu']}, {'sweep': [{'mlp': 'x'}]}, ('level x of factor mlp',)),
    ({'mlp': ['swiglu', 'gelu', 'relu2']}, {'sweep': 'leave_one_out'}, ('mlp lists swiglu, gelu, relu2',)),
    ({'mlp': ['gelu']}, {'sweep': 'leave_one_out'}, ('factor mlp lists gelu',)),
    *[(ONE_LEVEL, {'sweep': s, 'count': 2}, ('factor mlp has one level, plain',)) for s in SWEEPS],
  ],
)
def test_invalid_factors_and_cells_are_errors(make, factors, given, parts):
  with pytest.raises(ValueError) as error:
    design.make_arms(make(factors, **given))
  tiny_runs.assert_two_lines(error.value, *parts)


@pytest.mark.parametrize(
  ('given', 'part'),
  [
    (dict(factors={}), 'no factors'),
    (dict(better='up'), "better='up'"),
    (dict(sweep='best'), "sweep='best'"),
    (dict(seeds=0), 'seeds=0'),
    (dict(seeds=(1, 1)), 'seeds=(1, 1)'),
    (dict(tolerance=-1), 'tolerance=-1'),
    (dict(count=-1), 'count=-1'),
    (dict(keeps_parameters=('lr',)), "'lr'"),
    (dict(budget=dict(tokens=1, flops=1)), 'tokens=1 and flops=1'),
    (dict(budget=dict(seconds=-1)), 'seconds=-1'),
  ],
)
def test_invalid_studies_and_budgets_are_errors(given, part):
  with pytest.raises(ValueError) as error:
    limits = Budget(**given.get('budget', {}))
    Study(**(dict(base='x.py', factors={'mlp': ['gelu']}) | given | dict(budget=limits)))
  tiny_runs.assert_two_lines(error.value, part)


# --------------------------------------------------------------------------------------- budgets


class Costs:
  """A fake CostMeter."""

  def cost(self, cfg):
    return 12 * cfg.model.layers * cfg.model.width**2, 6.0 * cfg.model.width**2

  def step_seconds(self, cfg):
    return 1e-3 * cfg.model.width


@pytest.mark.parametrize(
  ('limits', 'steps'),
  [
    (Budget(), 12),
    (Budget(tokens=10_000), 20),  # 16 rows of 32 tokens a step
    (Budget(flops=6 * 16**2 * 512 * 33.4), 33),
    (Budget(seconds=0.8), 50),
    (Budget(tokens=1), 1),
  ],
)
def test_budgets_set_the_steps(limits, steps):
  cfg = tiny_runs.experiment()
  made = budget.apply_budget(cfg, limits, Costs())
  train_cfg = dataclasses.replace(cfg.train, steps=steps)
  assert made == dataclasses.replace(cfg, train=train_cfg)


def test_steps_fill_whole_calls():
  cfg = tiny_runs.experiment(train={'steps': 12, 'steps_per_call': 4, 'eval_every': 4, 'batch_size': 16})
  assert budget.apply_budget(cfg, Budget(tokens=10_000), Costs()).train.steps % 4 == 0


def test_equal_flops_of_unequal_models(make):
  study = make({'layers': [1, 2]}, budget=Budget(flops=3e9))
  spent = []
  for arm in design.make_arms(study):
    cfg = arm.config
    model = dataclasses.replace(cfg.model, vocab=256).resolved()
    per_step = costs.flops_per_token(model, 32)['full'] * 16 * 32
    spent.append(per_step * cfg.train.steps)
    assert abs(spent[-1] - 3e9) < 0.05 * 3e9, arm.name
  assert design.make_arms(study)[0].config.train.steps > design.make_arms(study)[1].config.train.steps


def test_equal_parameters_by_width():
  cfg = tiny_runs.experiment(model__width=64, model__layers=2)
  count = lambda cfg: Costs().cost(cfg)[0]
  for wanted in (3.4e3, 5e4, 1e6):
    made = budget.apply_budget(cfg, Budget(parameters=wanted), Costs())
    width = made.model.width
    assert width % 4 == 0  # two heads of even width
    nearest = min(range(4, 4096, 4), key=lambda w: abs(24 * w**2 - wanted))
    assert width == nearest, (wanted, count(made))
  with pytest.raises(ValueError) as error:
    budget.apply_budget(cfg, Budget(parameters=700), Costs())
  tiny_runs.assert_two_lines(error.value, 'parameters=700', 'model.width=4')


def test_step_times_are_measured_once_for_equal_work(tmp_path, tmp_path_factory, monkeypatch):
  of = lambda **changes: budget.CostMeter(tmp_path).step_seconds(tiny_runs.experiment(**changes))
  with tiny_runs.compiled_programs(tmp_path_factory):
    seconds = of()
    assert 1e-5 < seconds < 10
    monkeypatch.setattr(budget, 'measure_step_seconds', lambda *_: 99.0)
    assert of(model__init_std=0.5, optim__b2=0.93) == seconds
    assert of(model__mlp='gelu') == 99
    # Eight devices here: a run that asks for no mesh gets one, and 3 rows need not be spread.
    assert of(train__batch_size=3) == 99


def test_a_parameter_budget_is_an_error_for_tokenizers():
  with pytest.raises(ValueError) as error:
    budget.CostMeter('.').cost(tiny_runs.codec('image'))
  tiny_runs.assert_two_lines(error.value, 'image_tokenizer')


# --------------------------------------------------------------------------------------- loading


def test_studies_are_loaded_with_their_arguments(tmp_path, base):
  path = tmp_path / 'norms.py'
  path.write_text(
    'from gpt_jax.ablation.design import Study\n'
    f'def get_study(arg=""):\n  return Study({base!r}, {{"mlp": ["gelu"]}}, question=arg)\n'
  )
  study = design.load_study(f'{path}:why')
  assert (study.name, study.question) == ('norms', 'why')
  path.write_text('def get_study(arg=""):\n  return 3\n')
  for spec, part in ((path, 'returns a int'), (base, 'no get_study')):
    with pytest.raises(ValueError) as error:
      design.load_study(str(spec))
    tiny_runs.assert_two_lines(error.value, part)
  with pytest.raises(FileNotFoundError) as error:
    design.load_study(str(tmp_path / 'nroms.py'))
  assert 'norms.py' in tiny_runs.assert_two_lines(error.value, 'nroms.py')[1]


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies(path, tmp_path, monkeypatch):
  if path.stem == 'heads':  # its budget of FLOPs asks for the vocabulary
    (tmp_path / 'mnist').mkdir()
    stand_ins.write_mnist(tmp_path / 'mnist')
    monkeypatch.setenv('GPT_JAX_DATA', str(tmp_path))
  study = design.load_study(str(path))
  arms = design.make_arms(study)
  assert study.question and len(arms) >= 4
  assert len({arm.slug for arm in arms}) == len(arms)
  assert all(arm.config.train.steps <= 500 for arm in arms)
  text = path.read_text()
  assert f'--config=experiments/ablations/{path.name}' in text and 'Minutes: ' in text


@pytest.mark.slow
@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_every_arm_of_a_shipped_study_changes_something(path, data_dir, tmp_path, monkeypatch):
  monkeypatch.setenv('GPT_JAX_DATA', str(data_dir))
  arguments = ''
  if path.stem == 'distil':  # its teacher
    small = experiment_file.load_config(f'{command_line.ROOT}/experiments/shakespeare_char.py:small')
    small.train.update(steps=1, eval_every=0)
    train.train(config.build(config.Config, small), tmp_path / 'teacher')
    arguments = f':teacher={tmp_path}/teacher'
  if path.stem == 'hearing':
    arguments = f':encoder={encoders.write(tmp_path / "ear", encoders.WHISPER)}'
  if path.stem == 'encoder_training':
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['emoji_split', f'--out={tmp_path}/runs/emoji.jsonl'])
    emoji_split.main()
    arguments = f':encoder={encoders.write(tmp_path / "eye", encoders.CLIP)}'
  study = design.load_study(f'{path}{arguments}')
  arms = design.make_arms(study, tmp_path / 'study')
  proofs = proof.prove_arms(study, arms, tmp_path / 'study')
  for arm in proof.describe_study(study, arms, proofs)['arms']:
    assert not any('should not' in flag or 'other' in flag for flag in arm['flags']), arm['name']
    assert path.stem != 'distil' or not arm['flags']


def test_optimizers_are_tuned_in_units_of_their_own_without_decay():
  study = design.load_study(str(command_line.ROOT / 'experiments/ablations/optimizers.py'))
  arms = design.make_arms(study)
  assert len({arm.config.optim.name for arm in arms}) == len(arms) == 5
  assert {arm.config.optim.weight_decay for arm in arms} == {0.0}
  assert {arm.config.optim.lr for arm in arms} <= set(study.tune['optim.lr'])
  units = {arm.config.optim.name: arm.config.optim.lr_multipliers for arm in arms}
  assert (units['lion'], units['sgd'], units['adamw']) == (('.*=0.1',), ('.*=30',), ())
  timed = design.load_study(str(command_line.ROOT / 'experiments/ablations/optimizers.py:seconds=20'))
  assert timed.budget == Budget(seconds=20) and '20 seconds' in timed.question
