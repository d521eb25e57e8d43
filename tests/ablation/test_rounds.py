"""Rounds of a sequential study: seeds go to undecided arms, and a stopped study resumes where it was.

Training processes are tests/fake_worker.py, whose losses are planted.
"""

import pathlib
import sys

import numpy as np
import pytest

from gpt_jax.ablation import store
from gpt_jax.ablation.design import Sequential, Study
from gpt_jax.ablation.execute import executor, pool, rounds, runner, scheduler
from gpt_jax.runs import records
from tests.ablation_study import arm
from tests.tiny_runs import assert_two_lines

DESIGN = Sequential(first=3, most=8)
EFFECTS = {'base': 0.0, 'learned': 0.5, 'alibi': -0.03, 'none': 0.02}


@pytest.fixture
def study(tmp_path, monkeypatch):
  """A study of planted losses whose arms need no proof; never measured."""
  script = pathlib.Path(__file__).parents[1] / 'fake_worker.py'
  monkeypatch.setattr(pool, 'COMMAND', (sys.executable, str(script)))
  monkeypatch.setattr(scheduler, 'accelerators', lambda: 0)
  arms = [arm('rope', base=True), *map(arm, list(EFFECTS)[1:])]
  noise = np.random.default_rng(0).normal(size=(len(arms), DESIGN.most)) * 0.01
  tasks = []
  for seed in range(DESIGN.most):
    for k, planned in enumerate(arms):
      loss = 1.5 + list(EFFECTS.values())[k] + noise[k, seed] + 0.1 * seed
      cfg = {'fake': 'done', 'valid_loss': loss, 'train': {'steps': 100}, 'mesh': {'preset': '', 'data': -1}}
      folder = store.run_path(tmp_path, planned['slug'], seed)
      tasks.append(executor.Task(planned['name'], seed, folder, cfg, f'p{k}'))
  description = {'name': 'n', 'base': 'x', 'arms': arms, 'seeds': list(range(DESIGN.most))}
  description |= {'metric': 'valid_loss', 'better': 'lower', 'tolerance': 0.0, 'factors': {}}
  description |= {'sequential': DESIGN._asdict()}
  monkeypatch.setattr(runner, 'prove_study', lambda *_: (arms, {}, description))
  monkeypatch.setattr(runner, 'make_tasks', lambda *_: tasks)
  monkeypatch.setattr(runner, 'check_same', lambda *_: None)
  monkeypatch.setattr(runner.study_report, 'write_report', lambda *_: None)
  return Study('x.py', {'positions': ['rope', 'learned']}, seeds=DESIGN)


def test_decided_arms_get_no_more_seeds_and_a_stopped_study_resumes(study, tmp_path):
  said, ended = [], []
  path = tmp_path / 'attempts.jsonl'
  stop_after = lambda count: lambda: path.exists() and len(path.read_text().splitlines()) >= count
  assert rounds.run(study, tmp_path, stop_after(10), 1, said.append) is None
  ended = len(store.read_attempts(tmp_path))
  analysis = rounds.run(study, tmp_path, workers=1, say=said.append)
  counts = {arm['name']: sum(arm['statuses'].values()) for arm in analysis['arms']}
  verdicts = {arm['name']: arm['verdict'] for arm in analysis['arms']}
  assert verdicts['positions=learned'] == 'worse'
  assert 3 <= counts['positions=learned'] < counts['positions=none'] <= 8
  assert counts['base'] == max(counts.values())
  attempts = store.read_attempts(tmp_path)
  assert ended < len(attempts) == sum(counts.values()) < 4 * DESIGN.most  # no run twice
  assert any('positions=learned is worse after' in line for line in said)
  assert 'at most 32 runs' in ' '.join(said)
  assert f'{sum(counts.values())} runs, where 8 seeds an arm are 32.' in ' '.join(analysis['notes'])
  spec = records.read_json(tmp_path / 'study.json')
  assert {name: len(seeds) for name, seeds in spec['seeds_of'].items()} == counts
  assert 'looks' not in spec and not analysis['exploratory']
  again = rounds.run(study, tmp_path, say=said.append)
  assert again['arms'] == analysis['arms'] and store.read_attempts(tmp_path) == attempts


@pytest.mark.parametrize(
  'change, cause',
  [
    ({'seeds': Sequential(1, 5)}, 'seeds=Sequential(first=1, most=5) are not looks'),
    ({'seeds': Sequential(6, 5)}, 'are not looks'),
    ({'sweep': 'full'}, 'leave out single arms'),
    ({'sweep': 'optuna', 'count': 3}, 'leave out single arms'),
  ],
)
def test_sequential_seeds_are_for_arms_that_are_judged_alone(change, cause):
  with pytest.raises(ValueError) as error:
    Study('x.py', {'positions': ['rope', 'learned']}, **({'seeds': DESIGN} | change))
  assert_two_lines(error.value, cause)
