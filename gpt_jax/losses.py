"""The training objective: masked cross-entropy in float32, with its usual regularizers.

Letters: B batch, T length, V vocabulary (padded rows; columns >= vocab hold -1e30), M modalities, N
groups of ids that can stand in the same places.
Sources: label smoothing (Szegedy et al. 2016, section 7), z-loss (PaLM, Chowdhery et al. 2022,
section 5).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MODALITIES = ('text', 'image', 'audio')


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weights of the terms and of the modalities; the numbers are traced: an ablation may vary them.

  How others weigh: DALL-E balance='modality_mean' with text 1/8 and image 7/8 (Ramesh et al. 2021,
  section 2.2), Unified-IO 2 and LWM modality means, Chameleon and Emu3 every token alike.
  """

  z_loss: float = 0.0  # times log(Z)^2, keeps logits from drifting
  label_smoothing: float = 0.0  # probability moved from the target to a uniform choice over the vocabulary
  moe_balance: float = 0.01  # times the experts' load-balance loss
  moe_z: float = 0.001  # times the router's z-loss
  text: float = 1.0  # weight of targets that are text
  image: float = 1.0  # weight of targets that are image codes
  audio: float = 1.0  # weight of targets that are audio codes
  balance: str = 'token'  # row of BALANCES: do weights count by token or by modality
  restrict: bool = False  # a softmax over the ids that can stand there, instead of over all

  def __post_init__(self):
    for key in ('z_loss', 'moe_balance', 'moe_z', *MODALITIES):
      if not getattr(self, key) >= 0:
        raise ValueError(f'loss.{key}={getattr(self, key)} is negative\nfix: use a weight >= 0')
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f'loss.label_smoothing={self.label_smoothing} is not a probability\nfix: use 0 <= p < 1'
      )
    if self.label_smoothing and self.restrict:
      raise ValueError(
        f'loss.label_smoothing={self.label_smoothing} smooths over all ids, and loss.restrict=True '
        'leaves some out\nfix: use one of the two'
      )
    if self.balance not in BALANCES:
      raise ValueError(f'loss.balance={self.balance!r} is not known\nfix: use one of {", ".join(BALANCES)}')


class Kinds(NamedTuple):
  """What the ids of a vocabulary are, as constants of a compiled step."""

  names: tuple  # modalities; ('text',) for a text model
  modality_V: np.ndarray  # int32; place in names
  group_V: np.ndarray  # int32; ids of a group can stand in the same places
  allowed_NV: np.ndarray  # bool; what may stand where an id of group n stands

  @classmethod
  def of(cls, tokenizers, columns):
    """The kinds of a bundle of tokenizers, for a model with so many columns V."""
    arrays = (tokenizers.modality_V(), *tokenizers.groups())
    fit = lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, max(0, columns - x.shape[-1]))])
    return cls(tokenizers.modalities, *(fit(x)[..., :columns] for x in arrays))


def weigh(loss_mask_BT, target_ids_BT, kinds, balance, hyper):
  """The loss mask times the weight of each target's modality.

  Sums over the mask must be of the whole batch: micro-batches are cut from what this returns.
  """
  modality_BT = jnp.asarray(kinds.modality_V)[target_ids_BT]
  one = jnp.float32(1)
  weight_M = jnp.stack([hyper.get(name, one) for name in kinds.names])
  weight_M = BALANCES[balance](weight_M, sum_by(loss_mask_BT, modality_BT, len(kinds.names)))
  return loss_mask_BT * weight_M[modality_BT]


def sum_by(values_BT, labels_BT, count):
  """Sums of values by label -> float32 [count]."""
  one_hot_BTM = jax.nn.one_hot(labels_BT, count, dtype=jnp.float32)
  return jnp.einsum('BT,BTM->M', values_BT, one_hot_BTM)


def restrict(logits_BTV, target_ids_BT, kinds):
  """Logits of the ids that can stand where each target stands; the others at -1e30."""
  allowed_BTV = jnp.asarray(kinds.allowed_NV)[jnp.asarray(kinds.group_V)[target_ids_BT]]
  return jnp.where(allowed_BTV, logits_BTV, jnp.asarray(-1e30, logits_BTV.dtype))


@jax.custom_vjp
def token_losses(logits_BTV, target_ids_BT):
  """-> (nats_BT, log_z_BT), float32: each target's cross-entropy, log of its normalizer.

  Its gradient, softmax less one-hot, is written down: of a gather, differentiated, comes a scatter
  into float32 zeros of the logits' size, three more passes over what is the largest array of all.
  """
  logits_BTV = logits_BTV.astype(jnp.float32)
  log_z_BT = jax.nn.logsumexp(logits_BTV, -1)
  target_logits_BT = jnp.take_along_axis(logits_BTV, target_ids_BT[..., None], -1)[..., 0]
  return log_z_BT - target_logits_BT, log_z_BT


def _token_losses_forward(logits_BTV, target_ids_BT):
  nats_BT, log_z_BT = token_losses(logits_BTV, target_ids_BT)
  return (nats_BT, log_z_BT), (logits_BTV, target_ids_BT, log_z_BT)


def _token_losses_backward(kept, grads):
  logits_BTV, target_ids_BT, log_z_BT = kept
  nats_grad_BT, log_z_grad_BT = grads
  is_target_BTV = target_ids_BT[..., None] == jnp.arange(logits_BTV.shape[-1])[None, None]
  probs_BTV = jnp.exp(logits_BTV.astype(jnp.float32) - log_z_BT[..., None])
  pull_BTV = jnp.where(is_target_BTV, nats_grad_BT[..., None], 0.0)
  grad_BTV = probs_BTV * (nats_grad_BT + log_z_grad_BT)[..., None] - pull_BTV
  return grad_BTV.astype(logits_BTV.dtype), None


token_losses.defvjp(_token_losses_forward, _token_losses_backward)


def objective(logits_BTV, target_ids_BT, vocab, hyper):
  """Of each target: (what to minimize, cross-entropy in nats), loss_BT and nats_BT float32.

  hyper: traced weights; a term whose weight is absent is not computed.
  """
  nats_BT, log_z_BT = token_losses(logits_BTV, target_ids_BT)
  loss_BT = nats_BT
  if 'label_smoothing' in hyper:
    in_use_V = (jnp.arange(logits_BTV.shape[-1]) < vocab).astype(jnp.float32)
    mean_logit_BT = jnp.einsum('BTV,V->BT', logits_BTV, in_use_V) / vocab
    smoothing = hyper['label_smoothing']
    loss_BT = (1 - smoothing) * nats_BT + smoothing * (log_z_BT - mean_logit_BT)
  if 'z_loss' in hyper:
    loss_BT = loss_BT + hyper['z_loss'] * jnp.square(log_z_BT)
  return loss_BT, nats_BT


def bits(nats):
  """Nats -> bits."""
  return nats / math.log(2)


def bits_per_byte(nats, num_bytes):
  """Total nats of a text and its UTF-8 length -> bits a byte, comparable between tokenizers."""
  return bits(nats) / num_bytes if num_bytes else math.nan


def modality_mean(weight_M, targets_M):
  """Each modality's mean counts by its weight; one that is absent does not count."""
  return weight_M * targets_M.sum() / jnp.maximum(targets_M, 1.0)


BALANCES = {'token': lambda weight_M, targets_M: weight_M, 'modality_mean': modality_mean}
