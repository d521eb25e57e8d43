"""Tuned arms: the search, its rungs, and a verdict that is wrong untuned and right tuned."""

import json
import math

import numpy as np
import pytest

from gpt_jax import step
from gpt_jax.ablation import proof
from gpt_jax.ablation.design import Study
from gpt_jax.ablation.execute import runner, tuning
from gpt_jax.ablation.sweeps import Tuning, log_uniform
from gpt_jax.reports import study_report, study_results
from gpt_jax.runs import records
from tests import command_line
from tests.ablation.test_design import TINY
from tests.tiny_runs import assert_two_lines

BEST_RATE = 0.02  # of a model without multipliers
QUARTER = {'model.width': 32, 'lr_multipliers': ('.*=0.25',)}  # needs four times the rate
FAST = {
  'optim__lr': 0.125,
  'optim__ema': 0.0,
  'train__eval_every': 0,
  'train__sample_every': 0,
  'log__every': 6,
}
QUARTER_STUDY = """
from gpt_jax.ablation.design import Study
from gpt_jax.ablation.sweeps import Tuning

def get_study(arg=''):
  factors = {{'update': {{'base': {{}}, 'quarter': {{'lr_multipliers': ('.*=0.25',)}}}}}}
  tune = {{'optim.lr': [0.125, 0.5]}}
  return Study('{base}', factors, tune=tune, tuning=Tuning(seeds=3), seeds=3, tolerance=0.02)
"""
SCORED_ON = {'sources': {'text': {}}, 'tokenizer': 't', 'bytes': False}


@pytest.fixture
def base(tmp_path):
  (tmp_path / 'tiny.py').write_text(TINY)
  return str(tmp_path / 'tiny.py')


@pytest.fixture
def code():
  """Digests of the code that the runs depend on."""
  return {'evaluation code': 'e', 'train step': 't'}


@pytest.fixture
def planted(monkeypatch, code):
  """Runs with planted losses, and no proofs -> the configs that were proved and those that were trained."""
  proved, trained = [], []

  def prove(cfg, study, folder):
    proved.append(cfg)
    hyper = {name: float(value) for name, value in step.hyper_of(cfg).items()}
    inputs = {'hyperparameters': hyper, 'sizes': [cfg.model.width, cfg.train.steps], **code}
    numbers = dict(parameters=9, flops_per_token=1.0, steps=cfg.train.steps, tokens=9, seconds=1.0)
    texts = dict(program=str(cfg.model.width), data='d', fingerprint=proof.budget.hash_json(inputs))
    return proof.Proof(diff={}, shapes={}, scored_on=SCORED_ON, inputs=inputs, **numbers, **texts)

  def train_all(workdir, log_folder, tasks, *_):
    for task in tasks:
      trained.append(task)
      cfg, noise = task.config, np.random.default_rng([task.seed, len(task.arm)]).normal() * 1e-3
      is_wide = bool(cfg['optim']['lr_multipliers'])
      octaves = math.log2(cfg['optim']['lr'] / BEST_RATE) - 2 * is_wide
      loss = 2 + 0.1 * octaves**2 - 0.05 * is_wide + noise + 1 / cfg['train']['steps']
      task.folder.mkdir(parents=True)
      (task.folder / 'config.json').write_text(json.dumps(cfg))
      (task.folder / 'result.json').write_text(json.dumps({'valid_loss': loss}))
    return True

  monkeypatch.setattr(proof, 'compute_proof', prove)
  monkeypatch.setattr(runner, 'train_all', train_all)
  return proved, trained


def make_study(base, **given):
  factors = {'block': {'base': {}, 'wide': QUARTER}}
  given = {
    'tune': {'optim.lr': [0.01, 0.02, 0.04, 0.08, 0.16]},
    'seeds': 4,
    'tuning': Tuning(seeds=3),
  } | given
  return Study(base, factors, **given)


def test_an_arm_is_judged_at_its_own_best_rate(base, planted, tmp_path):
  """Untuned the wide block is worse; at four times the base's rate it is better, which is the truth."""
  folder, (proved, trained) = tmp_path / 'study', planted
  analysis = tuning.run(make_study(base), folder, say=lambda line: None)
  [arm] = [arm for arm in analysis['arms'] if not arm['is_baseline']]
  spec = records.read_json(folder / 'study.json')
  found = spec['search']['arms']
  assert [found[name]['best']['optim.lr'] for name in ('base', 'block=wide')] == [0.02, 0.08]
  assert found['block=wide']['untuned']['verdict'] == 'worse' and arm['verdict'] == 'better'
  assert arm['difference'] == pytest.approx(-0.05, abs=0.01)
  assert {task.seed for task in trained[:30]} == set(spec['search']['seeds'])
  assert not set(spec['search']['seeds']) & set(spec['seeds']) and len(trained) == 30 + 8
  assert len(proved) == 2  # rates are traced numbers: one program an arm
  assert len({task.program for task in trained if task.arm.startswith('base')}) == 1
  assert records.diff(trained[30].config, trained[31].config).keys() >= {'optim.lr'}
  assert not analysis['exploratory'] and spec['tune'] == {'optim.lr': [0.01, 0.02, 0.04, 0.08, 0.16]}
  report = study_results.read_study(folder)
  page, text = study_report.render_html(report), study_report.render_markdown(report)
  assert 'tuning wide' in page or 'optim.lr' in page
  assert '| block=wide | 0.08 | yes | 0.02 |' in text and 'Tuned arms' in text
  again = tuning.run(make_study(base), folder, say=lambda line: None)
  assert again['arms'] == analysis['arms'] and len(trained) == 38
  changed = tuning.run(make_study(base, tolerance=0.4), folder, say=lambda line: None)
  assert changed['exploratory'] == ['tolerance 0.01 -> 0.4 after 38 results']


def test_rungs_train_the_better_third_three_times_as_long(base, planted, tmp_path):
  study = make_study(
    base, tuning=Tuning(points=6, seeds=1, rungs=2), tune={'optim.lr': log_uniform(5e-3, 0.16)}
  )
  tuning.run(study, tmp_path / 'study', say=lambda line: None)
  steps = [
    (task.config['train']['steps'], task.config['optim']['warmup'])
    for task in planted[1]
    if task.seed >= 10_000
  ]
  assert steps == [(4, 1)] * 12 + [(12, 2)] * (
    2 + 3
  )  # the own rate of the wide block was not among the better
  curve = records.read_json(tmp_path / 'study' / 'study.json')['search']['arms']['block=wide']
  assert len(curve['scores']) == 3 and curve['untuned']['n'] == 1


@pytest.mark.parametrize('what', ['evaluation code', 'train step'])
@pytest.mark.parametrize('stopped', ['rung1', 'study'])
def test_rungs_of_other_code_are_refused_and_not_mixed(
  base, planted, code, tmp_path, monkeypatch, what, stopped
):
  """Code that changes between two rungs, or between the search and the judged runs."""
  study, folder, train_all = (
    make_study(base, tuning=Tuning(seeds=1, rungs=2)),
    tmp_path / 'study',
    runner.train_all,
  )
  run = lambda: tuning.run(study, folder, say=lambda line: None)
  stop = lambda workdir, *rest: workdir.name != stopped and train_all(workdir, *rest)
  monkeypatch.setattr(runner, 'train_all', stop)
  assert run() is None
  monkeypatch.setattr(runner, 'train_all', train_all)
  count, before = len(planted[1]), dict(code)
  assert count == {'rung1': 10, 'study': 10 + 5}[stopped]
  code[what] = 'changed'
  with pytest.raises(ValueError) as error:
    run()
  cause, fix = assert_two_lines(
    error.value, f'workdir={folder}/tuning/rung0: ', f'since this study began: {what}'
  )
  assert (f'report --workdir={folder}/tuning/rung0 --rescore' in fix) == (what == 'evaluation code')
  assert len(planted[1]) == count
  code.update(before)
  assert run()['arms'] and len(planted[1]) == 10 + 5 + 8


def test_the_dry_run_counts_the_search(base, planted):
  """Five values and the own one of an arm on the first of two rungs, a third of them and it on the second."""
  study = make_study(base, tuning=Tuning(seeds=2, rungs=2), tune={'optim.lr': [0.01, 0.03, 0.04, 0.08, 0.16]})
  last = tuning.dry_run(study)[-1]
  assert last.startswith(
    'before that each arm is tuned over 5 values of optim.lr and its own on 2 rungs, with 2 '
  )
  assert last.endswith('seeds: about 32 runs and 0:16 of steps')  # 2 arms x 2 s x (6 / 3 + 2)


def test_rounds_propose_values_between_those_of_the_grid(base, planted, tmp_path, monkeypatch):
  """A grid that misses the best rates; a stop between the rounds changes no proposal."""
  pytest.importorskip('optuna', reason="optuna is not installed: pip install '.[optuna]'")
  tune = {'optim.lr': log_uniform(2e-3, 0.5)}
  study = make_study(base, tuning=Tuning(points=3, seeds=1, rounds=4), tune=tune)
  assert ' its own and 9 that Optuna proposes' in tuning.dry_run(study)[-1]
  tuning.run(study, tmp_path / 'whole', say=lambda line: None)
  whole = records.read_json(tmp_path / 'whole/study.json')['search']['arms']
  assert len(planted[1]) == 2 * 13 + 8  # a grid of 3 and the own rate, three rounds of 3; 4 seeds
  for name, best in {'base': BEST_RATE, 'block=wide': 4 * BEST_RATE}.items():  # base: also its own
    rates = [cell[0] for cell, _ in whole[name]['scores']]
    assert rates[:3] == [0.002, 0.03162, 0.5] and len({*rates}) == 13
    octaves = lambda rate, best=best: abs(math.log2(rate / best))
    assert octaves(whole[name]['best']['optim.lr']) < min(map(octaves, rates[:3]))
  with monkeypatch.context() as patch:
    train_all = runner.train_all
    patch.setattr(runner, 'train_all', lambda path, *rest: path.name != 'rung2' and train_all(path, *rest))
    assert tuning.run(study, tmp_path / 'cut', say=lambda line: None) is None
  tuning.run(study, tmp_path / 'cut', say=lambda line: None)
  assert records.read_json(tmp_path / 'cut/study.json')['search']['arms'] == whole


@pytest.mark.parametrize(
  ('tuning_of', 'tune', 'cause'),
  [
    (Tuning(rungs=2, rounds=2), {'optim.lr': log_uniform(1e-3, 1.0)}, 'has rungs and rounds'),
    (Tuning(rounds=2), {'optim.lr': [0.1, 0.2]}, 'without a range'),
  ],
)
def test_rounds_that_cannot_be_searched_are_refused(base, tuning_of, tune, cause):
  with pytest.raises(ValueError) as error:
    make_study(base, tuning=tuning_of, tune=tune)
  assert_two_lines(error.value, cause)


def test_optuna_proposes_no_arms_that_are_tuned(base):
  with pytest.raises(ValueError) as error:
    make_study(base, sweep='optuna', count=4)
  cause, fix = assert_two_lines(error.value, 'tune= with an optuna sweep')
  assert fix == 'fix: make the key a factor'


def test_a_best_value_at_the_edge_is_noted(base, planted, tmp_path):
  study = make_study(base, tune={'optim.lr': [0.01, 0.02, 0.04]})
  analysis = tuning.run(study, tmp_path / 'study', say=lambda line: None)
  notes = ' '.join(analysis['notes'])
  assert 'block=wide: its best optim.lr=0.04 is at the edge of what was tried' in notes
  assert 'base: its best' not in notes
  assert 'Each arm has its best optim.lr of 3 values, by the mean of 3 other seeds.' in notes


def test_the_protocol_is_frozen_before_the_search(base, planted, tmp_path):
  tuning.register(make_study(base), tmp_path / 'study', say=lambda line: None)
  fixed = json.loads((tmp_path / 'study' / 'protocol.json').read_text())
  assert fixed['tune'] == {'optim.lr': [0.01, 0.02, 0.04, 0.08, 0.16]} and fixed['tuning']['seeds'] == 3
  assert set(fixed['arms']) == {'base', 'block=wide'} and not planted[1]
  assert 'optim.lr' not in fixed['arms']['block=wide']


@pytest.mark.parametrize(
  'change, cause',
  [
    ({'tune': {'model.width': [8, 32]}}, 'tune names model.width, which arm block=wide sets'),
    ({'tuning': Tuning(seeds=0)}, 'seeds=0'),
    ({'seeds': (0, 10_001)}, 'are those of the search'),
    ({'tune': {'optim.rate': [0.1]}}, 'optim.rate is not a config key'),
  ],
)
def test_mistakes_of_a_tuned_study(base, planted, tmp_path, change, cause):
  with pytest.raises(ValueError) as error:
    tuning.run(make_study(base, **change), tmp_path / 'study', say=lambda line: None)
  assert_two_lines(error.value, cause)


@pytest.mark.slow
def test_a_verdict_that_is_wrong_untuned_and_right_tuned_end_to_end(tmp_path):
  """A model with quartered updates learns as well at four times the rate."""
  folder, study = tmp_path / 'study', tmp_path / 'quarter.py'
  (tmp_path / 'tiny.py').write_text(TINY.replace('section()', f'section(**{FAST})'))
  study.write_text(QUARTER_STUDY.format(base=tmp_path / 'tiny.py'))
  words = ('ablate', f'--config={study}', f'--workdir={folder}')
  code, output = command_line.launch(*words, '--workers=2', folder=tmp_path, env={'PYTHONPATH': '.'})
  assert code == 0, output
  spec, analysis = (records.read_json(folder / f'{name}.json') for name in ('study', 'analysis'))
  [arm] = [arm for arm in analysis['arms'] if not arm['is_baseline']]
  found = spec['search']['arms']
  assert found['update=quarter']['best']['optim.lr'] == 4 * found['base']['best']['optim.lr'] == 0.5
  assert found['update=quarter']['untuned']['verdict'] == 'worse' and arm['verdict'] == 'no difference'
