"""The benchmark of decay branches, at a tiny size."""

import pytest

from benchmarks import branches
from tests import tiny_runs


@pytest.mark.slow
def test_branches_equal_runs_from_scratch_and_take_fewer_steps(tmp_path, tmp_path_factory):
  quiet = dict(eval_every=0, sample_every=0, sample_prompts=())

  def get_config():
    section = tiny_runs.section()
    section.train.update(quiet)
    return section

  with tiny_runs.compiled_programs(tmp_path_factory):
    rows = [branches.train_seed(get_config, tmp_path, (10, 20), seed=0)]
    again = [branches.train_seed(get_config, tmp_path, (10, 20), seed=0)]  # all are done
  assert rows == again
  result = branches.compare(rows)
  assert result['largest_difference'] == 0
  assert result['share_of_scratch']['steps'] == (16 + 2 + 4) / 30
  assert [row['steps'] for row in rows[0]['branches']] == [2, 4]
  assert len({row['parent'] for row in rows[0]['branches']}) == 2
  with pytest.raises(SystemExit, match='not at multiples'):
    branches.train_seed(get_config, tmp_path / 'x', (10, 24), seed=0)
