"""Rewards by a user's file: what is called, kept, hashed and refused."""

import pytest

from gpt_jax.jobs.reward_files import RewardFile
from tests.tiny_runs import assert_two_lines

SCORE = 'def score(question, completion, answer):\n  '


def reward_file(folder, body):
  """Return the RewardFile of a function with this body."""
  (folder / 'mine.py').write_text(SCORE + body + '\n')
  return RewardFile(f'{folder / "mine.py"}:score', folder / 'run')


def test_a_reward_file_is_called_with_question_completion_and_answer(tmp_path):
  reward = reward_file(tmp_path, "return (question, completion, answer) == ('1+2', '3', '4')")
  assert [reward(None, '1+2', '3', '4'), reward(None, '1+2', '4', '4')] == [1.0, 0.0]
  assert [path.name for path in tmp_path.iterdir()] == ['mine.py']  # no bytecode


def test_the_copy_in_the_run_folder_is_used_and_a_changed_copy_refused(tmp_path, caplog):
  reward = reward_file(tmp_path, 'return 1')
  reward.write_copy(tmp_path / 'run')
  again = reward_file(tmp_path, 'return 2')
  assert again(None, '', '', '') == 1 and again.digest == reward.digest
  assert 'mine.py has changed' in caplog.text
  (tmp_path / 'mine.py').unlink()
  name = f'{tmp_path / "mine.py"}:score'
  assert RewardFile(name, tmp_path / 'run').digest == reward.digest
  (tmp_path / 'run' / 'reward.py').write_text(SCORE + 'return 3\n')
  with pytest.raises(ValueError) as error:
    RewardFile(name, tmp_path / 'run')
  assert_two_lines(error.value, 'reward.py', 'is not as the run wrote it')


@pytest.mark.parametrize(
  'body, cause',
  [
    ('return answer + 1', 'mine.py:2'),
    ('return "good"', "is 'good'"),
    ('return float("nan")', 'is nan'),
    ('return None', 'is None'),
  ],
)
def test_a_reward_that_fails_or_is_no_number_is_an_error(body, cause, tmp_path):
  with pytest.raises(ValueError) as error:
    reward_file(tmp_path, body)(None, '1+2', '3', '4')
  assert_two_lines(error.value, 'grpo.reward=', "'1+2', '3', '4'", cause)


@pytest.mark.parametrize(
  'name, cause',
  [('none.py:score', 'cannot be read'), ('mine.py:other', 'mine.py)'), ('bad.py:score', 'bad.py:1')],
)
def test_a_reward_file_that_cannot_be_loaded_is_an_error(name, cause, tmp_path):
  (tmp_path / 'mine.py').write_text(SCORE + 'return 1\n')
  (tmp_path / 'bad.py').write_text('def score(\n')
  with pytest.raises(ValueError) as error:
    RewardFile(str(tmp_path / name), tmp_path / 'run')
  assert_two_lines(error.value, 'grpo.reward=', cause)
