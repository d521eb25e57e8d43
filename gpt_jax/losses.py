"""The training objective: masked cross-entropy in float32, with its usual regularisers.

Letters: B batch, T length, V vocabulary (padded rows; columns >= vocab hold -1e30).
Sources: label smoothing (Szegedy et al. 2016, section 7), z-loss (PaLM, Chowdhery et al. 2022,
section 5).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weights of the terms beside the cross-entropy; all are traced, so an ablation may vary them."""

  z_loss: float = 0.0  # times log(Z)^2, keeps logits from drifting
  label_smoothing: float = (
    0.0  # probability moved from the target to a uniform choice over the vocabulary
  )
  moe_balance: float = 0.01  # times the experts' load-balance loss
  moe_z: float = 0.001  # times the router's z-loss

  def __post_init__(self):
    for key in ('z_loss', 'moe_balance', 'moe_z'):
      if not getattr(self, key) >= 0:
        raise ValueError(f'loss.{key}={getattr(self, key)} is negative\nfix: use a weight >= 0')
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f'loss.label_smoothing={self.label_smoothing} is not a probability\nfix: use 0 <= p < 1'
      )


def token_losses(logits_BTV, target_ids_BT):
  """-> (nats_BT, log_z_BT), float32: each target's cross-entropy, log of its normaliser."""
  logits_BTV = logits_BTV.astype(jnp.float32)
  log_z_BT = jax.nn.logsumexp(logits_BTV, -1)
  target_logits_BT = jnp.take_along_axis(logits_BTV, target_ids_BT[..., None], -1)[..., 0]
  return log_z_BT - target_logits_BT, log_z_BT


def objective(logits_BTV, target_ids_BT, loss_mask_BT, vocab, hyper):
  """Sums over real targets -> (what to minimise, cross-entropy in nats).

  loss_mask_BT weighs each target (0 = ignored). hyper: traced weights; a term whose weight is
  absent is not computed. Divide both sums by the weight of the whole batch: then its pieces add up
  to it, however unequal they are.
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
  return (loss_BT * loss_mask_BT).sum(), (nats_BT * loss_mask_BT).sum()


def bits(nats):
  """Nats -> bits."""
  return nats / math.log(2)


def bits_per_byte(nats, num_bytes):
  """Total nats of a text and its UTF-8 length -> bits a byte, comparable between tokenisers."""
  return bits(nats) / num_bytes if num_bytes else math.nan
