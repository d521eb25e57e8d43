"""A mixture of experts in the place of an MLP: top-k routing with capacity.

Letters: B batch, T length, D width, F feed-forward width, E experts, C slots an expert has for one
row.

Dispatch is by one-hot einsums (Mesh-TensorFlow style): two extra matmuls, no sort, and the compiler
can shard it over E.
Sources: GShard (Lepikhin et al. 2020, algorithm 1), Switch (Fedus et al. 2021, equations 4-6),
router z-loss (ST-MoE, Zoph et al. 2022, equation 5).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model.layers import ACTIVATIONS, param
from gpt_jax.sharding import constrain


class MoE(nnx.Module):
  """E MLPs; a token goes through its best k, weighted by renormalized probabilities."""

  def __init__(self, cfg):
    self.cfg = cfg
    self.router_DE = param(cfg, 'DE', cfg.init_std / cfg.growth)  # an output, for muP
    self.up_EDF = param(cfg, 'EDF', cfg.matrix_std)
    self.gate_EDF = param(cfg, 'EDF', cfg.matrix_std) if cfg.gated else None
    self.down_EFD = param(cfg, 'EFD', cfg.projection_std)

  def capacity(self, T):
    """Slots an expert has for one row of T tokens; T when nothing may be dropped."""
    if not self.cfg.capacity_factor:
      return T
    share = self.cfg.experts_per_token * T / self.cfg.experts
    return min(T, math.ceil(share * self.cfg.capacity_factor))

  def __call__(self, x_BTD, real_BT=None, dropless=False):
    """-> (y_BTD, dict of scalars: balance loss, router z-loss, dropped share of assignments).

    `real_BT` marks tokens that are not padding: padding takes no slot and no part in the losses.
    dropless: a slot for everyone whatever capacity_factor says, as sampling needs it.
    """
    cfg = self.cfg
    real_BT1 = jnp.ones((*x_BTD.shape[:2], 1)) if real_BT is None else real_BT[..., None]
    real_BT1 = real_BT1.astype(jnp.float32)
    logits_BTE = jnp.einsum('BTD,DE->BTE', x_BTD.astype(jnp.float32), self.router_DE[...].astype(jnp.float32))
    probs_BTE = jax.nn.softmax(logits_BTE, -1)
    C = x_BTD.shape[1] if dropless else self.capacity(x_BTD.shape[1])
    dispatch_BTEC, combine_BTEC, chosen_BTE = self._route(probs_BTE, real_BT1, C)
    h_BECD = constrain(jnp.einsum('BTEC,BTD->BECD', dispatch_BTEC.astype(x_BTD.dtype), x_BTD), 'bECD')
    up_BECF = jnp.einsum('BECD,EDF->BECF', h_BECD, self.up_EDF[...])
    gate_BECF = up_BECF
    if self.gate_EDF is not None:
      gate_BECF = jnp.einsum('BECD,EDF->BECF', h_BECD, self.gate_EDF[...])
    y_BECD = jnp.einsum('BECF,EFD->BECD', ACTIVATIONS[cfg.mlp](up_BECF, gate_BECF), self.down_EFD[...])
    y_BTD = jnp.einsum('BTEC,BECD->BTD', combine_BTEC.astype(x_BTD.dtype), y_BECD)
    tokens = jnp.maximum(real_BT1.sum(), 1.0)
    share_E = (chosen_BTE * real_BT1).sum((0, 1)) / (tokens * cfg.experts_per_token)
    mean_prob_E = (probs_BTE * real_BT1).sum((0, 1)) / tokens
    z_BT = jnp.square(jax.nn.logsumexp(logits_BTE, -1)) * real_BT1[..., 0]
    aux = {
      'moe_balance': cfg.experts * (share_E * mean_prob_E).sum(),
      'moe_z': z_BT.sum() / tokens,
      'moe_dropped': 1 - dispatch_BTEC.sum() / (tokens * cfg.experts_per_token),
    }
    return y_BTD, aux

  def _route(self, probs_BTE, real_BT1, C):
    """A slot for each of a token's k experts, in row order, so that no token sees a later one.

    -> (dispatch_BTEC: 1 where the token has the slot, combine_BTEC: its weight, chosen_BTE).
    """
    weights_BTk, index_BTk = jax.lax.top_k(probs_BTE, self.cfg.experts_per_token)
    weights_BTk = weights_BTk / weights_BTk.sum(-1, keepdims=True)
    picks_BTkE = jax.nn.one_hot(index_BTk, self.cfg.experts) * real_BT1[..., None]
    chosen_BTE = picks_BTkE.sum(2)
    slot_BTE = (jnp.cumsum(chosen_BTE, 1) - chosen_BTE).astype(jnp.int32)
    dispatch_BTEC = chosen_BTE[..., None] * jax.nn.one_hot(slot_BTE, C)  # 0 beyond C: dropped
    weight_BTE = jnp.einsum('BTkE,BTk->BTE', picks_BTkE, weights_BTk)
    return dispatch_BTEC, dispatch_BTEC * weight_BTE[..., None], chosen_BTE
