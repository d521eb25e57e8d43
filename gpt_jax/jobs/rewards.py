"""Rewards of completions, one row of REWARDS each, and the settings of training on them.

Letters: B completions.
Sources: GRPO (Shao et al. 2024, DeepSeekMath); without the standard deviation and with a constant in the
place of the length: Dr. GRPO (Liu et al. 2025); the estimate k3 of the KL divergence (Schulman 2020).
"""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np

from gpt_jax.jobs import reward_files

EPSILON = 1e-4  # added to the standard deviation of a group, as in trl


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
  """How train.job=grpo samples completions, scores them, and learns from the scores."""

  group: int = 8  # completions of each prompt; train.batch_size is a multiple of it
  reward: str = 'exact'  # row of REWARDS, or FILE.py:FUNCTION: see reward_files.py
  pattern: str = ''  # reward=format: regular expression that the whole completion matches
  advantage: str = 'std'  # row of ADVANTAGES: what the rewards of a group become
  normalize: str = 'sequence'  # row of NORMALIZERS: what the loss of a completion's tokens is divided by
  kl: float = 0.0  # weight of the KL divergence from the initial model; 0 = off
  max_new_tokens: int = 32  # longest completion
  temperature: float = 1.0  # of the samples, and of the policy that learns

  def __post_init__(self):
    for key, rows in (('reward', REWARDS), ('advantage', ADVANTAGES), ('normalize', NORMALIZERS)):
      value, is_file = getattr(self, key), key == 'reward' and reward_files.NAME.fullmatch(self.reward)
      if value not in rows and not is_file:
        other = ', or FILE.py:FUNCTION' if key == 'reward' else ''
        raise ValueError(f'grpo.{key}={value!r} is not known\nfix: use one of {", ".join(rows)}{other}')
    if self.group < 2:
      raise ValueError(
        f'grpo.group={self.group} has no other completion to compare with\nfix: use 2 or more, as 8'
      )
    if self.max_new_tokens < 1:
      raise ValueError(f'grpo.max_new_tokens={self.max_new_tokens} is out of range\nfix: use 1 or more')
    for key, least in (('temperature', 'above 0'), ('kl', 'of 0 or more')):
      value = getattr(self, key)
      if not (0 < value < np.inf or (value == 0 and key == 'kl')):
        raise ValueError(f'grpo.{key}={value} is out of range\nfix: use a number {least}')
    if (self.reward == 'format') != bool(self.pattern):
      raise ValueError(
        f'grpo.reward={self.reward} and grpo.pattern={self.pattern!r} do not belong together\n'
        "fix: use reward='format' with a pattern, or neither"
      )
    try:
      re.compile(self.pattern)
    except re.error as error:
      raise ValueError(
        f'grpo.pattern={self.pattern!r} is not a regular expression: {error}\nfix: correct it'
      ) from None


def exact(cfg, question, completion, answer):
  """Return 1 for the right answer, else 0."""
  return float(completion.strip() == answer.strip())


def matches_pattern(cfg, question, completion, answer):
  """Return 1 for a completion that grpo.pattern describes, else 0."""
  return float(re.fullmatch(cfg.pattern, completion.strip()) is not None)


def length(cfg, question, completion, answer):
  """Return minus the difference in characters from the right answer's length."""
  return -float(abs(len(completion.strip()) - len(answer.strip())))


def center(rewards_PG):
  """Return rewards minus the mean of their group."""
  return rewards_PG - rewards_PG.mean(1, keepdims=True)


def standardize(rewards_PG):
  """Return `center` over the standard deviation of the group; 0 where all rewards are equal."""
  return center(rewards_PG) / (rewards_PG.std(1, keepdims=True) + EPSILON)


def k3(log_ratio):
  """Return the estimate of a KL divergence from log(reference / policy) of samples of the policy.

  It is never negative and has no bias.
  """
  return jnp.exp(log_ratio) - log_ratio - 1


REWARDS = {  # (cfg, question, completion, answer) -> number
  'exact': exact,
  'format': matches_pattern,
  'length': length,
}
ADVANTAGES = {'std': standardize, 'mean': center}
NORMALIZERS = {  # (cfg, tokens of each completion) -> divisor
  'sequence': lambda cfg, tokens_B: tokens_B,
  'constant': lambda cfg, tokens_B: float(cfg.max_new_tokens),
}
