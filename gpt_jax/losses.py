"""The training objective: masked cross-entropy in float32, with its usual regularizers.

Letters: B batch, T length, V vocabulary (padded rows; columns >= vocab hold -1e30), M modalities.
Sources: label smoothing (Szegedy et al. 2016, section 7), z-loss (PaLM, Chowdhery et al. 2022, section 5).
"""

import dataclasses
import math

import jax.numpy as jnp

from gpt_jax.model.kernels.fused import token_losses
from gpt_jax.runs.plugins import parse_numbers

MODALITIES = ('text', 'image', 'audio')


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weights of the terms and of the modalities. They are traced: changing one does not recompile, unless it
  switches a term on or off (0; for modalities 1).

  Published choices: DALL-E balance='modality_mean' with text 1/8 and image 7/8 (Ramesh et al. 2021,
  section 2.2), Unified-IO 2 and LWM modality means, Chameleon and Emu3 every token alike.
  """

  z_loss: float = 0.0  # times log(Z)^2, keeps logits from drifting
  terms: str = ''  # other rows of TERMS, from plugins, as in 'name=weight,other=weight'
  label_smoothing: float = 0.0  # probability moved from the target to all ids alike
  moe_balance: float = 0.01  # times the experts' load-balance loss
  moe_z: float = 0.001  # times the router's z-loss
  text: float = 1.0  # weight of targets that are text
  image: float = 1.0  # weight of targets that are image codes
  audio: float = 1.0  # weight of targets that are audio codes
  balance: str = 'token'  # row of BALANCES: do weights count by token or by modality
  restrict: bool = False  # softmax over the ids that can stand in the target's place, instead of all

  def __post_init__(self):
    parse_numbers('loss.terms', self.terms, TERMS)
    for key in ('z_loss', 'moe_balance', 'moe_z', *MODALITIES):
      if not getattr(self, key) >= 0:
        raise ValueError(f'loss.{key}={getattr(self, key)} is negative\nfix: use a weight >= 0')
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(f'loss.label_smoothing={self.label_smoothing} is not a probability\nfix: use < 1')
    if self.label_smoothing and self.restrict:
      raise ValueError(
        f'loss.label_smoothing={self.label_smoothing} smooths over all ids, but loss.restrict=True '
        'leaves some out\nfix: use one of the two'
      )
    if self.balance not in BALANCES:
      raise ValueError(f'loss.balance={self.balance!r} is not known\nfix: use one of {", ".join(BALANCES)}')


def objective(logits_BTV, target_ids_BT, vocab, hyper):
  """Return (loss_BT to minimize, nats_BT of cross-entropy) of each target, float32.

  hyper: traced weights; a term whose weight is absent is not computed.
  """
  nats_BT, log_z_BT = token_losses(logits_BTV, target_ids_BT)
  loss_BT = nats_BT
  if 'label_smoothing' in hyper:
    is_id_V = (jnp.arange(logits_BTV.shape[-1]) < vocab).astype(jnp.float32)
    mean_logit_BT = jnp.einsum('BTV,V->BT', logits_BTV, is_id_V) / vocab
    smoothing = hyper['label_smoothing']
    loss_BT = (1 - smoothing) * nats_BT + smoothing * (log_z_BT - mean_logit_BT)
  for name in [name for name in TERMS if name in hyper]:
    loss_BT = loss_BT + hyper[name] * TERMS[name](logits_BTV, target_ids_BT, log_z_BT)
  return loss_BT, nats_BT


def bits(nats):
  """Convert nats to bits. Per UTF-8 byte of a text, they are comparable between tokenizers."""
  return nats / math.log(2)


def modality_mean(weight_M, targets_M):
  """Weigh each modality's mean, whatever its number of targets; an absent one does not count."""
  return weight_M * targets_M.sum() / jnp.maximum(targets_M, 1.0)


TERMS = {'z_loss': lambda logits_BTV, target_ids_BT, log_z_BT: jnp.square(log_z_BT)}
BALANCES = {'token': lambda weight_M, targets_M: weight_M, 'modality_mean': modality_mean}
