"""Optuna sweeps: rounds, kills, invalid proposals. Nothing trains."""

import dataclasses
import math
import sys
import types

import pytest

from gpt_jax.ablation import design, proof, store, sweeps
from gpt_jax.ablation.design import Study
from gpt_jax.ablation.execute import proposals, runner
from gpt_jax.ablation.sweeps import log_uniform
from gpt_jax.runs import records
from tests import command_line
from tests.tiny_runs import assert_two_lines


@pytest.fixture
def optuna():
  return pytest.importorskip('optuna', reason="optuna is not installed: pip install '.[optuna]'")


@pytest.fixture
def study(tmp_path):
  """Arms that differ in a rate, with and without positions."""
  factors = {'optim.lr': log_uniform(1e-3, 1e-1), 'positions': ['rope', 'none']}
  more = {'sweep': 'optuna', 'count': 7, 'batch': 3, 'seeds': 2, 'name': 's'}
  return Study(str(command_line.experiment(tmp_path)), factors, **more)


class Runner:
  """Stands in for runner.run: each run scores how far its learning rate is from 0.01."""

  def __init__(self):
    self.rounds, self.kill, self.fail = [], 0, ()

  def run(self, study, workdir, should_stop, workers, say, without):
    arms = design.make_arms(study)
    self.rounds.append([arm.name for arm in arms])
    if len(self.rounds) == self.kill:
      return None
    known = [{'name': arm.name, 'slug': arm.slug} for arm in arms]
    planned = {'metric': 'valid_loss', 'seeds': study.seed_list, 'arms': known}
    records.write_json(workdir / 'study.json', planned | {'sweep': proof.sweep_name(study.sweep)})
    for arm, seed, cfg in design.iterate_runs(study, arms):
      folder = store.run_path(workdir, arm.slug, seed)
      folder.mkdir(parents=True, exist_ok=True)
      records.write_json(folder / 'config.json', {'a': 1})
      loss = abs(math.log10(cfg.optim.lr) + 2) + 0.01 * seed
      if arm.name not in self.fail:
        records.write_json(folder / 'result.json', {'valid_loss': loss})
    return 'judged'


@pytest.fixture
def fake(monkeypatch):
  """What computes the same is what differs in the learning rate alone or without positions."""
  fake = Runner()
  monkeypatch.setattr(proposals.runner, 'run', fake.run)
  print_of = lambda cfg: (cfg.optim.lr, cfg.model.heads)
  examine = lambda cfg, *_: types.SimpleNamespace(fingerprint=print_of(cfg))
  monkeypatch.setattr(proposals.proof, 'compute_proof', examine)
  return fake


def told(optuna, workdir):
  """[(params, state, value)] of the journal."""
  backend = optuna.storages.journal.JournalFileBackend(str(workdir / proposals.JOURNAL))
  asked = optuna.load_study(storage=optuna.storages.JournalStorage(backend), study_name='s')
  return [(trial.params, trial.state.name, trial.value) for trial in asked.get_trials()]


def test_rounds_after_a_kill_equal_uninterrupted_ones(optuna, study, fake, tmp_path):
  assert proposals.run(study, tmp_path / 'whole') == 'judged'
  assert [len(arms) for arms in fake.rounds] == [4, 7, 8]
  assert all(arms[0] == 'base' for arms in fake.rounds) and fake.rounds[2][:7] == fake.rounds[1]
  actual = told(optuna, tmp_path / 'whole')
  assert [state for _, state, _ in actual] == ['COMPLETE'] * 7
  for params, _, value in actual:  # the mean of two seeds, of a rate of four digits
    assert value == pytest.approx(abs(math.log10(params['optim.lr']) + 2) + 0.005, abs=1e-3)
  rounds, fake.rounds = fake.rounds, []
  fake.kill = 2
  assert proposals.run(study, tmp_path / 'cut') is None
  path = tmp_path / 'cut' / proposals.JOURNAL
  path.write_bytes(path.read_bytes() + b'{"op_code": 4, "wor')  # killed while it wrote
  fake.kill = 0
  assert proposals.run(study, tmp_path / 'cut') == 'judged'
  assert fake.rounds == [rounds[0], rounds[1], rounds[1], rounds[2]]
  assert told(optuna, tmp_path / 'cut') == actual
  assert proposals.run(study, tmp_path / 'cut') == 'judged'  # nothing is left to ask
  assert told(optuna, tmp_path / 'cut') == actual
  more = dataclasses.replace(study, count=8)
  assert proposals.run(more, tmp_path / 'cut') == 'judged' and len(fake.rounds[-1]) == 9


def test_invalid_and_duplicate_proposals_are_not_trained(optuna, study, fake, tmp_path):
  said, factors = [], {'positions': ['rope', 'none'], 'model.heads': [2, 3, 4]}
  small = dataclasses.replace(study, factors=factors, count=20, batch=10)
  assert proposals.run(small, tmp_path / 'x', say=said.append) == 'judged'
  assert len(fake.rounds[-1]) == 2 and 'heads=4' in fake.rounds[-1][1]
  assert any('is not an arm: ' in line and 'heads=3' in line for line in said)
  states = {params['model.heads']: state for params, state, _ in told(optuna, tmp_path / 'x')}
  assert states == {'2': 'COMPLETE', '3': 'FAIL', '4': 'COMPLETE'}
  small = dataclasses.replace(small, factors=factors | {'model.heads': [2, 3]})
  with pytest.raises(ValueError) as error:
    proposals.run(small, tmp_path / 'y')
  assert_two_lines(error.value, 'none of 20 proposals')


def test_an_arm_without_a_result_is_told_as_failed(optuna, study, fake, tmp_path):
  small = dataclasses.replace(study, count=2, batch=2)
  proposals.run(small, tmp_path / 'a')
  fake.fail = fake.rounds[0][1]
  proposals.run(small, tmp_path / 'b')
  assert [state for _, state, _ in told(optuna, tmp_path / 'b')] == ['FAIL', 'COMPLETE']
  assert records.read_json(tmp_path / 'b/study.json')['sweep'] == 'optuna'


def test_invalid_optuna_studies_are_errors(optuna, study, fake, tmp_path):
  proposals.run(study, tmp_path / 'a')
  other = {'factors': study.factors | {'positions': ['rope', 'alibi']}}
  for change, cause, place in (
    (other, 'has proposals for positions=', 'a'),
    ({'metric': 'loss'}, 'metric=valid_loss, not loss', 'a'),
    ({'count': 0}, 'count=0', 'b'),
    ({'sampler': 'TPSampler'}, "sampler='TPSampler'", 'b'),
  ):
    with pytest.raises(ValueError) as error:
      proposals.run(dataclasses.replace(study, **change), tmp_path / place)
    assert_two_lines(error.value, cause)


def test_missing_optuna_is_an_error_with_the_install_command(study, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'optuna', None)
  with pytest.raises(ValueError) as error:
    proposals.run(study, tmp_path / 'new')
  assert_two_lines(error.value, "sweep='optuna' needs the package optuna")
  assert not (tmp_path / 'new').exists()
  lines = proposals.dry_run(study)
  assert '7 arms' in lines[0] and lines[1:] == [
    '  optim.lr: 0.001 to 0.1, logarithmic',
    '  positions: rope, none',
  ]
  with pytest.raises(ValueError) as error:  # as a share of an array would
    runner.prove_study(study, tmp_path)
  assert_two_lines(error.value, 'proposed while it runs')
  assert 'confirm it on other seeds' in sweeps.SWEEPS['optuna'].note
