"""The flow head: predicts the next patch of a picture as numbers, by flow matching on a small MLP.

A patch x1 of the data and noise x0 make x_t = (1 - t) x0 + t x1. The head learns the velocity x1 - x0 from
x_t, t and the Transformer's last hidden state; a sampled patch follows it from noise at t = 0 to t = 1.
The mean squared error of the velocity stands in the place of cross-entropy where a target is a patch
(ModelConfig.patch_id), so that text and pictures share a document and a step.

Letters: B rows, T tokens, R noise levels of a patch in a step, A numbers of a patch, D width, F hidden width
of the head, N time features.

Sources: a small MLP conditioned on a Transformer denoises each token (MAR, Li et al. 2024, section 3; its
adaptive norms and 4 noise levels a token), flow matching on straight paths (Lipman et al. 2023, Liu et al.
2023), continuous tokens beside text in one decoder (JetFormer, Tschannen et al. 2024).
"""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model import param_trees
from gpt_jax.model.layers import param, rmsnorm

LEVELS = 4  # R
FEATURES = 64  # N
EPS = 1e-6  # of the norms
NOISE = 2**31 - 2  # folded into the key of a micro-batch, which dropout splits


class Block(nnx.Module):
  """A residual MLP whose norm is shifted and scaled, and whose output is gated, by the condition."""

  def __init__(self, sizes):
    self.shift_FD, self.scale_FD, self.gate_FD = (param(sizes, 'FD') for _ in range(3))
    self.up_DF = param(sizes, 'DF', sizes.dims['D'] ** -0.5)
    self.down_FD = param(sizes, 'FD', sizes.dims['F'] ** -0.5)

  def __call__(self, h_BTRD, c_BTRF):
    """One block, BTRD."""
    shift, scale, gate = (_matmul(c_BTRF, w) for w in (self.shift_FD, self.scale_FD, self.gate_FD))
    x_BTRD = rmsnorm(h_BTRD, EPS).astype(h_BTRD.dtype) * (1 + scale) + shift
    return h_BTRD + gate * _matmul(jax.nn.silu(_matmul(x_BTRD, self.up_DF)), self.down_FD)


class FlowHead(nnx.Module):
  """The velocity of a patch at a time, given the hidden state that precedes it."""

  def __init__(self, cfg):
    hidden = cfg.flow_width or cfg.width
    dims = {'A': cfg.patch_values, 'D': cfg.width, 'F': hidden, 'N': FEATURES}
    sizes = types.SimpleNamespace(dims=dims, param_dtype=cfg.param_dtype)
    self.condition_DF = param(sizes, 'DF', cfg.width**-0.5)
    self.time_NF = param(sizes, 'NF', FEATURES**-0.5)
    self.in_AD = param(sizes, 'AD', cfg.patch_values**-0.5)
    self.blocks = param_trees.stack(Block(sizes), cfg.flow_layers)
    self.out_DA = param(sizes, 'DA')

  def __call__(self, x_BTRA, t_BTR, z_BTD):
    """The velocity, float32 BTRA. x_BTRA: noisy patches. t_BTR: 0 to 1. z_BTD: hidden states."""
    time_BTRF = _matmul(time_features(t_BTR).astype(z_BTD.dtype), self.time_NF)
    c_BTRF = jax.nn.silu(_matmul(z_BTD, self.condition_DF)[:, :, None] + time_BTRF)
    h_BTRD = _matmul(x_BTRA.astype(z_BTD.dtype), self.in_AD)
    for block in param_trees.unstack(self.blocks):
      h_BTRD = block(h_BTRD, c_BTRF)
    return _matmul(rmsnorm(h_BTRD, EPS).astype(h_BTRD.dtype), self.out_DA).astype(jnp.float32)


def _matmul(x, w):
  """The product over the last axis of x, in its dtype: parameters without D are stored in float32."""
  return jnp.einsum('...i,io->...o', x, w[...].astype(x.dtype))


def time_features(t):
  """Cosines and sines of t at frequencies from 1 to 1,000, float32 [..., N]."""
  frequency_n = 1000 ** (jnp.arange(FEATURES // 2, dtype=jnp.float32) / (FEATURES // 2 - 1))
  angle = jnp.einsum('...,n->...n', t, frequency_n)
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def repeated_params(cfg):
  """Parameters of the head that multiply a token at each noise level but the first; 0 without a head."""
  if not cfg.flow_layers:
    return 0
  head = FlowHead(cfg)
  return (LEVELS - 1) * (param_trees.count(head) - param_trees.count(head.condition_DF))


# ------------------------------------------------------------------------------------- training


def errors(head, patches_BTA, z_BTD, key):
  """The mean squared error of the velocity of each patch over LEVELS noise levels, float32 BT.

  The levels are spread evenly over 0 to 1 from a random start, so that their mean varies less.
  """
  time_key, noise_key = jax.random.split(jax.random.fold_in(key, NOISE))
  start_BT1 = jax.random.uniform(time_key, (*patches_BTA.shape[:2], 1))
  t_BTR = (start_BT1 + jnp.arange(LEVELS, dtype=jnp.float32)[None, None]) / LEVELS
  x1_BTRA = patches_BTA.astype(jnp.float32)[:, :, None]
  x0_BTRA = jax.random.normal(noise_key, (*t_BTR.shape, patches_BTA.shape[-1]))
  t_BTR1 = t_BTR[..., None]
  velocity_BTRA = head((1 - t_BTR1) * x0_BTRA + t_BTR1 * x1_BTRA, t_BTR, z_BTD)
  return jnp.square(velocity_BTRA - (x1_BTRA - x0_BTRA)).mean((2, 3))


def score_patches(model, scored, gather, z_BTD, batch, key):
  """Return (loss_BN, nats_BN) with the errors of the flow head where the target is a patch.

  scored: both under cross-entropy. gather: see kernels/target_places.py. z_BTD: last hidden states. The next
  patch of a token is that of the next token: a row never ends inside a picture.
  """
  if not model.cfg.flow_layers:
    return scored
  next_BTA = jnp.pad(batch['patches_BTA'][:, 1:], ((0, 0), (0, 1), (0, 0)))
  error_BN = errors(model.patch_head, gather(next_BTA), gather(z_BTD), key)
  is_patch_BN = gather(batch['target_ids_BT']) == model.cfg.patch_id
  return tuple(jnp.where(is_patch_BN, error_BN, x_BN) for x_BN in scored)


# ------------------------------------------------------------------------------------- sampling


class Patches(NamedTuple):
  """What a generation keeps for the flow head."""

  hidden_BD: jax.Array  # last hidden states; 2 B rows with guidance
  values_BTA: jax.Array  # float32; the patches of each row, in their places


def begin(model, x_B1D, inputs, slots, rows):
  """Return the Patches after a prompt of these inputs of the trunk; None without a head. rows: B."""
  if not model.cfg.flow_layers:
    return None
  values_BTA = jnp.zeros((rows, slots, model.cfg.patch_values), jnp.float32)
  if 'patches_BTA' in inputs:
    values_BTA = jax.lax.dynamic_update_slice(values_BTA, inputs['patches_BTA'][:rows], (0, 0, 0))
  return Patches(x_B1D[:, 0], values_BTA)


def sample_patches(model, state, token_B, cfg):
  """Return {patches_BTA} of the tokens to come, [B, 1, A], zeros for those that are none.

  state: a sample.SampleState; {} where it has no patches: without a head, or for text alone. The temperature
  scales the noise at the start, 0 being one patch for each condition.
  """
  if state.patches is None:
    return {}
  is_patch_B = (token_B == model.cfg.patch_id) & ~state.done_B
  keys_B = jax.vmap(lambda key, length: jax.random.fold_in(jax.random.fold_in(key, length), 1))(
    state.keys_B, state.lengths_B
  )
  draw = lambda: integrate(model, state.patches.hidden_BD, keys_B, cfg, state.guidance_B)
  zeros = lambda: jnp.zeros((len(token_B), model.cfg.patch_values), jnp.float32)
  values_BA = jax.lax.cond(is_patch_B.any(), draw, zeros)
  return {'patches_BTA': jnp.where(is_patch_B[:, None], values_BA, 0.0)[:, None]}


def integrate(model, hidden_BD, keys_B, cfg, guidance_B=None):
  """Follow the velocity from noise to patches, float32 BA, by cfg.flow_steps steps of the midpoint method.

  guidance_B: the velocity is null + guidance (velocity - null), null by the lower half of hidden_BD.
  """
  B, A = len(keys_B), model.cfg.patch_values
  noise_BA = cfg.temperature * jax.vmap(lambda key: jax.random.normal(key, (A,)))(keys_B)

  def velocity(x_BA, t):
    rows = len(hidden_BD) // B
    x_B11A = jnp.tile(x_BA, (rows, 1))[:, None, None]
    v_BA = model.patch_head(x_B11A, jnp.full((rows * B, 1, 1), t), hidden_BD[:, None])[:, 0, 0]
    return v_BA if rows == 1 else v_BA[B:] + guidance_B[:, None] * (v_BA[:B] - v_BA[B:])

  def step(i, x_BA):
    t, dt = i.astype(jnp.float32) / cfg.flow_steps, 1 / cfg.flow_steps
    return x_BA + dt * velocity(x_BA + dt / 2 * velocity(x_BA, t), t + dt / 2)

  return jax.lax.fori_loop(0, cfg.flow_steps, step, noise_BA)


def advance(patches, x_BTD, slots_B, inputs):
  """Return the Patches after one more token of the trunk's `inputs` at each row's slot."""
  if patches is None:
    return None
  rows_B = jnp.arange(len(slots_B))
  new_BA = inputs['patches_BTA'][: len(slots_B), 0]
  values_BTA = patches.values_BTA.at[rows_B, slots_B].set(new_BA, mode='drop')
  return Patches(x_BTD[:, 0], values_BTA)
