"""Losses of preference pairs: functions of summed log-probabilities, one row of PREFERENCE_LOSSES each.

Letters: B pairs.
Sources: DPO (Rafailov et al. 2023, equation 7), with label smoothing (Mitchell 2023, "A note on DPO with
noisy preferences"); IPO (Azar et al. 2023, equation 17), with log-probabilities per token as in trl;
ORPO (Hong et al. 2024, equation 6); SimPO (Meng et al. 2024, equation 6); KTO (Ethayarajh et al. 2024,
section 4), where a pair is a desirable and an undesirable example, as in trl.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
  """The loss of train.job=dpo."""

  loss: str = 'dpo'  # row of PREFERENCE_LOSSES
  beta: float = 0.1  # dpo, simpo, kto: scale of rewards; ipo: its tau; orpo: weight of the odds ratio
  gamma: float = 0.5  # simpo: reward margin to reach
  label_smoothing: float = 0.0  # dpo, simpo: share of pairs whose labels are taken to be wrong
  desirable_weight: float = 1.0  # kto: of preferred answers, its lambda_D
  undesirable_weight: float = 1.0  # kto: of the others, its lambda_U
  chosen: str = 'chosen'  # field of the template that holds the preferred answer
  rejected: str = 'rejected'  # field of the record in its place for the other answer
  prompt: str = ''  # of conversations: field with the messages before both answers; '' = both have them

  def __post_init__(self):
    if self.loss not in PREFERENCE_LOSSES:
      rows = ', '.join(PREFERENCE_LOSSES)
      raise ValueError(f'preference.loss={self.loss!r} is not known\nfix: use one of {rows}')
    if not self.beta > 0:
      raise ValueError(f'preference.beta={self.beta} is not positive\nfix: use a number above 0, as 0.1')
    if not 0 <= self.label_smoothing < 0.5:
      raise ValueError(
        f'preference.label_smoothing={self.label_smoothing} is not in [0, 0.5)\nfix: use 0 <= p < 0.5'
      )
    for name in ('desirable_weight', 'undesirable_weight'):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(
          f'preference.{name}={getattr(self, name)} is not a weight\nfix: use a number above 0'
        )
    if self.label_smoothing and 'label_smoothing' not in PREFERENCE_LOSSES[self.loss].uses:
      raise ValueError(
        f'preference.label_smoothing={self.label_smoothing} is not defined for preference.loss={self.loss}\n'
        'fix: leave it at 0.0, or use preference.loss=dpo or simpo'
      )


class PairScores(NamedTuple):
  """Log-probabilities of the answers of pairs, summed over tokens, and their numbers of tokens."""

  chosen_B: Any
  rejected_B: Any
  chosen_tokens_B: Any
  rejected_tokens_B: Any
  reference_chosen_B: Any = 0.0  # under the initial model
  reference_rejected_B: Any = 0.0
  mismatched_B: Any = 0.0  # of prompts with an answer of another pair: kto
  reference_mismatched_B: Any = 0.0


def dpo(cfg, x):
  """Return (loss_B, chosen rewards, rejected rewards) of DPO."""
  chosen_B, rejected_B = (cfg.beta * reward_B for reward_B in log_ratios(x))
  return smoothed(cfg, chosen_B - rejected_B), chosen_B, rejected_B


def ipo(cfg, x):
  """Return (loss_B, chosen rewards, rejected rewards) of IPO: the margin regresses to 1 / (2 beta)."""
  chosen_B, rejected_B = log_ratios(x)
  chosen_B, rejected_B = chosen_B / x.chosen_tokens_B, rejected_B / x.rejected_tokens_B
  loss_B = jnp.square(chosen_B - rejected_B - 1 / (2 * cfg.beta))
  return loss_B, cfg.beta * chosen_B, cfg.beta * rejected_B


def orpo(cfg, x):
  """Return (loss_B, chosen rewards, rejected rewards) of ORPO: cross-entropy and log odds ratio."""
  chosen_B, rejected_B = x.chosen_B / x.chosen_tokens_B, x.rejected_B / x.rejected_tokens_B
  log_odds = lambda mean_B: mean_B - jnp.log(-jnp.expm1(jnp.minimum(mean_B, -1e-6)))
  ratio_B = log_odds(chosen_B) - log_odds(rejected_B)
  return -chosen_B - cfg.beta * jax.nn.log_sigmoid(ratio_B), cfg.beta * chosen_B, cfg.beta * rejected_B


def simpo(cfg, x):
  """Return (loss_B, chosen rewards, rejected rewards) of SimPO: mean log-probabilities are rewards."""
  chosen_B = cfg.beta * x.chosen_B / x.chosen_tokens_B
  rejected_B = cfg.beta * x.rejected_B / x.rejected_tokens_B
  return smoothed(cfg, chosen_B - rejected_B - cfg.gamma), chosen_B, rejected_B


def kto(cfg, x):
  """Return (loss_B, chosen rewards, rejected rewards) of KTO, the mean of a pair's two examples.

  Values are relative to the KL of mismatched answers, a mean over the pairs that carries no gradient.
  """
  kl = jax.lax.stop_gradient(jnp.maximum(0, jnp.mean(x.mismatched_B - x.reference_mismatched_B)))
  chosen_B, rejected_B = log_ratios(x)
  desirable_B = 1 - jax.nn.sigmoid(cfg.beta * (chosen_B - kl))
  undesirable_B = 1 - jax.nn.sigmoid(cfg.beta * (kl - rejected_B))
  loss_B = (cfg.desirable_weight * desirable_B + cfg.undesirable_weight * undesirable_B) / 2
  return loss_B, cfg.beta * chosen_B, cfg.beta * rejected_B


def log_ratios(x):
  """Return the log-ratios of policy to reference of chosen and rejected answers."""
  return x.chosen_B - x.reference_chosen_B, x.rejected_B - x.reference_rejected_B


def smoothed(cfg, margin_B):
  """Return the negative log-likelihood of preferences whose labels are wrong with label_smoothing."""
  share = cfg.label_smoothing
  return -(1 - share) * jax.nn.log_sigmoid(margin_B) - share * jax.nn.log_sigmoid(-margin_B)


class PreferenceLoss(NamedTuple):
  """A row of PREFERENCE_LOSSES."""

  compute: Callable  # (cfg, PairScores) -> (loss_B, chosen rewards, rejected rewards)
  needs_reference: bool
  uses: tuple[str, ...] = ()  # fields of PreferenceConfig that it reads besides beta
  needs_mismatched: bool = False

  @property
  def documents(self):
    """The documents of a pair in a row."""
    return 2 + self.needs_mismatched


PREFERENCE_LOSSES = {
  'dpo': PreferenceLoss(dpo, True, ('label_smoothing',)),
  'ipo': PreferenceLoss(ipo, True),
  'orpo': PreferenceLoss(orpo, False),
  'simpo': PreferenceLoss(simpo, False, ('gamma', 'label_smoothing')),
  'kto': PreferenceLoss(kto, True, ('desirable_weight', 'undesirable_weight'), needs_mismatched=True),
}
