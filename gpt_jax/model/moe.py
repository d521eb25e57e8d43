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
  """E MLPs; a token goes through its best k, weighted by renormalised probabilities."""

  def __init__(self, cfg):
    self.cfg = cfg
    self.router_DE = param(cfg, 'DE', cfg.init_std)
    self.up_EDF = param(cfg, 'EDF', cfg.init_std)
    self.gate_EDF = param(cfg, 'EDF', cfg.init_std) if cfg.gated else None
    self.down_EFD = param(cfg, 'EFD', cfg.projection_std)

  def capacity(self, T):
    """Slots an expert has for one row of T tokens; T when nothing may be dropped."""
    if not self.cfg.capacity_factor:
      return T
    share = self.cfg.experts_per_token * T / self.cfg.experts
    return min(T, math.ceil(share * self.cfg.capacity_factor))

  def __call__(self, x_BTD, real_BT=None):
    """-> (y_BTD, dict of scalars: balance loss, router z-loss, dropped share of assignments).

    `real_BT` marks tokens that are not padding: padding takes no slot and no part in the losses.
    """
    cfg = self.cfg
    real_BT1 = jnp.ones((*x_BTD.shape[:2], 1)) if real_BT is None else real_BT[..., None]
    real_BT1 = real_BT1.astype(jnp.float32)
    logits_BTE = jnp.einsum(
      'BTD,DE->BTE', x_BTD.astype(jnp.float32), self.router_DE[...].astype(jnp.float32)
    )
    probs_BTE = jax.nn.softmax(logits_BTE, -1)
    dispatch_BTEC, combine_BTEC, chosen_BTE = self._route(probs_BTE, real_BT1)
    h_BECD = constrain(
      jnp.einsum('BTEC,BTD->BECD', dispatch_BTEC.astype(x_BTD.dtype), x_BTD), 'BECD'
    )
    up_BECF = jnp.einsum('BECD,EDF->BECF', h_BECD, self.up_EDF[...])
    gate_BECF = up_BECF
    if self.gate_EDF is not None:
      gate_BECF = jnp.einsum('BECD,EDF->BECF', h_BECD, self.gate_EDF[...])
    y_BECD = jnp.einsum(
      'BECF,EFD->BECD', ACTIVATIONS[cfg.mlp](up_BECF, gate_BECF), self.down_EFD[...]
    )
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

  def _route(self, probs_BTE, real_BT1):
    """A slot for each of a token's k choices, first choices first; none when the expert is full."""
    cfg, C = self.cfg, self.capacity(probs_BTE.shape[1])
    top_BTk, index_BTk = jax.lax.top_k(probs_BTE, cfg.experts_per_token)
    top_BTk = top_BTk / top_BTk.sum(-1, keepdims=True)
    dispatch_BTEC = combine_BTEC = jnp.zeros((*probs_BTE.shape, C), jnp.float32)
    chosen_BTE = jnp.zeros_like(probs_BTE)
    used_B1E = jnp.zeros((probs_BTE.shape[0], 1, cfg.experts), jnp.float32)
    for choice in range(cfg.experts_per_token):
      pick_BTE = jax.nn.one_hot(index_BTk[..., choice], cfg.experts) * real_BT1
      slot_BTE = used_B1E + jnp.cumsum(pick_BTE, 1) - pick_BTE
      slot_BT = (slot_BTE * pick_BTE).sum(-1).astype(jnp.int32)
      placed_BTEC = pick_BTE[..., None] * jax.nn.one_hot(slot_BT, C)[:, :, None]  # 0 beyond C
      dispatch_BTEC += placed_BTEC
      combine_BTEC += placed_BTEC * top_BTk[..., choice, None, None]
      chosen_BTE += pick_BTE
      used_B1E += pick_BTE.sum(1, keepdims=True)
    return dispatch_BTEC, combine_BTEC, chosen_BTE
