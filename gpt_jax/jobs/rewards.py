"""Rewards of completions, one row of REWARDS each, and the settings of training on them.

Letters: B completions, T tokens of a row.
Sources: GRPO (Shao et al. 2024, DeepSeekMath); without the standard deviation and with a constant in the
place of the length: Dr. GRPO (Liu et al. 2025); the clipped ratio: PPO (Schulman et al. 2017, section 3),
with a higher upper bound: DAPO (Yu et al. 2025, section 3.1), of whole completions: GSPO (Zheng et al. 2025,
section 4); the estimate k3 of the KL divergence (Schulman 2020).
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
  updates: int = 1  # optimizer steps on each batch of completions; more are cheaper and off-policy
  ratio: str = 'token'  # row of RATIOS: whose probability ratio to the sampled policy is clipped; updates > 1
  clip_low: float = 0.2  # the ratio stops counting below 1 - clip_low; updates > 1
  clip_high: float = 0.2  # and above 1 + clip_high; updates > 1
  kl: float = 0.0  # weight of the KL divergence from the initial model; 0 = off
  max_new_tokens: int = 32  # longest completion
  temperature: float = 1.0  # of the samples, and of the policy that learns

  def __post_init__(self):
    tables = {'reward': REWARDS, 'advantage': ADVANTAGES, 'normalize': NORMALIZERS, 'ratio': RATIOS}
    for key, rows in tables.items():
      value, is_file = getattr(self, key), key == 'reward' and reward_files.NAME.fullmatch(self.reward)
      if value not in rows and not is_file:
        other = ', or FILE.py:FUNCTION' if key == 'reward' else ''
        raise ValueError(f'grpo.{key}={value!r} is not known\nfix: use one of {", ".join(rows)}{other}')
    if self.group < 2:
      raise ValueError(
        f'grpo.group={self.group} has no other completion to compare with\nfix: use 2 or more, as 8'
      )
    for key in ('max_new_tokens', 'updates'):
      if getattr(self, key) < 1:
        raise ValueError(f'grpo.{key}={getattr(self, key)} is out of range\nfix: use 1 or more')
    for key, allowed in (('temperature', 'above 0'), ('kl', 'of 0 or more'), ('clip_high', 'of 0 or more')):
      value = getattr(self, key)
      if not (0 < value < np.inf or (value == 0 and key != 'temperature')):
        raise ValueError(f'grpo.{key}={value} is out of range\nfix: use a number {allowed}')
    if not 0 <= self.clip_low <= 1:
      raise ValueError(f'grpo.clip_low={self.clip_low} is out of range\nfix: use a number from 0 to 1')
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


def clipped(cfg, ratio, advantage):
  """Return the smaller of ratio x advantage and of the same with the ratio within the bounds of `cfg`."""
  bounded = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
  return jnp.minimum(ratio * advantage, bounded * advantage)


def mean_over_completion(log_ratio_BT, mask_BT):
  """Return the mean log-ratio of a completion's tokens in the place of each of them."""
  tokens_B1 = jnp.maximum(mask_BT.sum(1, keepdims=True), 1)
  return jnp.broadcast_to((log_ratio_BT * mask_BT).sum(1, keepdims=True) / tokens_B1, log_ratio_BT.shape)


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
RATIOS = {  # (log-ratio of each token, mask) -> log of the ratio that is clipped
  'token': lambda log_ratio_BT, mask_BT: log_ratio_BT,
  'sequence': mean_over_completion,
}
