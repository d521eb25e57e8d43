"""A mixture of experts in place of an MLP: top-k routing, with or without a capacity.

Tokens are sorted by expert and multiplied in groups (kernels/grouped_matmul.py): FLOPs and memory are
linear in the tokens, k experts per token. On a mesh each device gathers the tokens of its `expert` group and
computes those of its own experts; the results are summed and scattered back.

Letters: B batch, T length, D width, F feed-forward width, E experts, k experts per token, N tokens, A = N k
assignments of a token to an expert.

Sources: GShard (Lepikhin et al. 2020, algorithm 1), Switch (Fedus et al. 2021, equations 4-6), router z-loss
(ST-MoE, Zoph et al. 2022, equation 5), dropless experts (MegaBlocks, Gale et al. 2022).
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from gpt_jax.model.kernels.grouped_matmul import grouped_matmul
from gpt_jax.model.layers import ACTIVATIONS, param
from gpt_jax.sharding import activation_spec


class MoE(nnx.Module):
  """E MLPs; a token goes through its best k, weighted by their probabilities."""

  def __init__(self, cfg):
    self.cfg = cfg
    self.router_DE = param(cfg, 'DE', cfg.init_std / cfg.growth)  # an output, for muP
    self.up_EDF = param(cfg, 'EDF', cfg.matrix_std)
    self.gate_EDF = param(cfg, 'EDF', cfg.matrix_std) if cfg.gated else None
    self.down_EFD = param(cfg, 'EFD', cfg.projection_std)

  def capacity(self, T):
    """Tokens that an expert takes from one row of T; T when nothing may be dropped."""
    if not self.cfg.capacity_factor:
      return T
    share = self.cfg.experts_per_token * T / self.cfg.experts
    return min(T, math.ceil(share * self.cfg.capacity_factor))

  def __call__(self, x_BTD, real_BT=None, dropless=False):
    """-> (y_BTD, dict of scalars: balance loss, router z-loss, dropped share of assignments).

    real_BT: False for padding, which takes no capacity and no part in the losses, and whose y is 0.
    dropless: ignore the capacity, as sampling must.
    """
    cfg = self.cfg
    real_BT = jnp.ones(x_BTD.shape[:2], bool) if real_BT is None else real_BT
    real_BT1 = real_BT[..., None].astype(jnp.float32)
    logits_BTE = jnp.einsum('BTD,DE->BTE', x_BTD.astype(jnp.float32), self.router_DE[...].astype(jnp.float32))
    probs_BTE = jax.nn.softmax(logits_BTE, -1)
    weights_BTk, experts_BTk = jax.lax.top_k(probs_BTE, cfg.experts_per_token)
    if cfg.router_renormalize:
      weights_BTk = weights_BTk / weights_BTk.sum(-1, keepdims=True)
    chosen_BTE = jax.nn.one_hot(experts_BTk, cfg.experts).sum(2) * real_BT1
    # Early tokens of a row come first: no token sees whether a later one was dropped.
    rank_BTE = jnp.cumsum(chosen_BTE, 1) - chosen_BTE
    rank_BTk = jnp.take_along_axis(rank_BTE, experts_BTk, -1)
    C = x_BTD.shape[1] if dropless else self.capacity(x_BTD.shape[1])
    kept_BTk = (rank_BTk < C) & real_BT[..., None]
    experts_BTk = jnp.where(kept_BTk, experts_BTk, cfg.experts)
    y_BTD = self._mix(x_BTD, experts_BTk, weights_BTk.astype(x_BTD.dtype))
    tokens = jnp.maximum(real_BT1.sum(), 1.0)
    share_E = chosen_BTE.sum((0, 1)) / (tokens * cfg.experts_per_token)
    mean_prob_E = (probs_BTE * real_BT1).sum((0, 1)) / tokens
    z_BT = jnp.square(jax.nn.logsumexp(logits_BTE, -1)) * real_BT1[..., 0]
    aux = {
      'moe_balance': cfg.experts * (share_E * mean_prob_E).sum(),
      'moe_z': z_BT.sum() / tokens,
      'moe_dropped': 1 - kept_BTk.sum(dtype=jnp.float32) / (tokens * cfg.experts_per_token),
    }
    return y_BTD, aux

  def _mix(self, x_BTD, experts_BTk, weights_BTk):
    """The weighted sum of each token's experts, BTD; expert E stands for none."""
    gate_EDF = None if self.gate_EDF is None else self.gate_EDF[...]
    arguments = (x_BTD, experts_BTk, weights_BTk, self.up_EDF[...], gate_EDF, self.down_EFD[...])
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
      return mix_experts(self.cfg.mlp, *arguments)
    x_spec = activation_spec('BTD', x_BTD.shape)
    is_split = 'expert' in jax.tree.leaves(tuple(x_spec)) and mesh.shape['expert'] > 1
    up_spec, down_spec = PartitionSpec('expert', None, 'tensor'), PartitionSpec('expert', 'tensor', None)
    gate_spec = None if gate_EDF is None else up_spec
    return jax.shard_map(
      functools.partial(mix_local_experts, self.cfg.mlp, is_split),
      in_specs=(x_spec, x_spec, x_spec, up_spec, gate_spec, down_spec),
      out_specs=x_spec,
      check_vma=False,  # a batch that the mesh does not divide is computed by all devices
    )(*arguments)


def mix_local_experts(activation, is_split, x_BTD, experts_BTk, weights_BTk, up_EDF, gate_EDF, down_EFD):
  """One device's part of `mix_experts`; is_split: the batch is split over the mesh axis `expert`."""
  if is_split:
    gather = lambda x_BT: jax.lax.all_gather(x_BT, 'expert', axis=0, tiled=True)
    x_BTD, experts_BTk, weights_BTk = map(gather, (x_BTD, experts_BTk, weights_BTk))
  E = len(up_EDF)
  experts_BTk = experts_BTk - jax.lax.axis_index('expert') * E
  experts_BTk = jnp.where((experts_BTk >= 0) & (experts_BTk < E), experts_BTk, E)
  y_BTD = mix_experts(activation, x_BTD, experts_BTk, weights_BTk, up_EDF, gate_EDF, down_EFD)
  y_BTD = jax.lax.psum(y_BTD, 'tensor')
  if is_split:
    return jax.lax.psum_scatter(y_BTD, 'expert', scatter_dimension=0, tiled=True)
  return jax.lax.psum(y_BTD, 'expert')


def mix_experts(activation, x_BTD, experts_BTk, weights_BTk, up_EDF, gate_EDF, down_EFD):
  """Sort tokens by expert, multiply in groups, unsort and sum with weights -> y_BTD.

  experts_BTk: 0 to E - 1, or E for none.
  """
  (B, T, D), k, E = x_BTD.shape, experts_BTk.shape[-1], len(up_EDF)
  experts_A = experts_BTk.reshape(-1)
  order_A = jnp.argsort(experts_A)
  inverse_A = jnp.argsort(order_A)
  sizes_E = (experts_A[:, None] == jnp.arange(E)[None]).sum(0, dtype=jnp.int32)
  x_AD = permute_rows(jnp.repeat(x_BTD.reshape(-1, D), k, 0), order_A, inverse_A)
  up_AF = grouped_matmul(x_AD, up_EDF, sizes_E)
  gate_AF = None if gate_EDF is None else grouped_matmul(x_AD, gate_EDF, sizes_E)
  y_AD = grouped_matmul(ACTIVATIONS[activation](up_AF, gate_AF), down_EFD, sizes_E)
  y_BTkD = permute_rows(y_AD, inverse_A, order_A).reshape(B, T, k, D)
  return jnp.einsum('BTkD,BTk->BTD', y_BTkD, weights_BTk)


def experts_loss(aux, hyper):
  """Return the weighted losses that balance experts, 0.0 where there are none."""
  return sum(hyper[name] * aux[name] for name in ('moe_balance', 'moe_z') if name in aux and name in hyper)


@jax.custom_vjp
def permute_rows(x_AD, order_A, inverse_A):
  """x_AD[order_A]; the gradient is a gather by the inverse permutation, not a scatter."""
  return x_AD[order_A]


permute_rows.defvjp(
  lambda x_AD, order_A, inverse_A: (x_AD[order_A], inverse_A),
  lambda inverse_A, dy_AD: (dy_AD[inverse_A], None, None),
)
