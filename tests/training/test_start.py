"""Branches of a run, and runs that are made longer."""

import jax
import numpy as np
import pytest

from gpt_jax import train
from gpt_jax.runs import records, run_folder
from gpt_jax.training import checkpoint, session
from tests import tiny_runs
from tests.tiny_runs import experiment

BARE = dict(train__eval_every=0, train__sample_every=0, train__sample_prompts=(), train__eval_tokens=64)
TIMED = ('time', 'tokens_per_second', 'mfu', 'mfu_causal', 'memory_gib', 'step_seconds')


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The tiny experiment, trained to the end: checkpoints 9 and 12. Do not change it."""
  return tiny_runs.finished(tmp_path_factory)


def untimed(workdir, after=0):
  """{step: metrics that the machine's speed has no part in}."""
  lines = records.read_lines(workdir / 'metrics.jsonl')
  return {
    line['step']: {name: value for name, value in line.items() if name not in TIMED}
    for line in lines
    if line['step'] > after
  }


def setup(cfg, workdir):
  """A Session that has been set up; nothing is written."""
  mesh = train.make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    return session.setup(cfg, workdir, mesh, train.JOBS[cfg.train.job])


def assert_same_arrays(one, other):
  actual, expected = tiny_runs.arrays(one), tiny_runs.arrays(other)
  assert actual.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_array_equal(actual[path], value, err_msg=path)


def test_a_branch_without_changes_is_bitwise_the_run(run, tmp_path):
  cfg = experiment(train__branch_from=f'{run}@9')
  result = train.train(cfg, tmp_path / 'branch')
  assert_same_arrays(tmp_path / 'branch', run)
  assert untimed(tmp_path / 'branch') == untimed(run, after=9)
  parent = run_folder.read_result(run)
  for key in ('steps', 'loss', 'valid_loss', 'tokens', 'targets', 'data', 'tokenizer', 'hyper'):
    assert result[key] == parent[key], key
  [entry] = result['parents']
  assert (entry['how'], entry['path'], entry['step']) == ('train.branch_from', str(run), 9)
  assert entry['diff'] == {} and entry['tokens'] == untimed(run)[9]['tokens']
  states = [
    checkpoint.Checkpoints(f / 'checkpoints').read_extra(12)['data'] for f in (run, tmp_path / 'branch')
  ]
  assert states[0] == states[1]
