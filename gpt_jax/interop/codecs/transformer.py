"""The Transformer of Mimi, between the convolutions and the codebooks: causal, with a window.

Letters: B sounds, T S positions, D width, H heads, K width of a head, F feed-forward width.

Source: Defossez et al. 2024 (Moshi, section 3.3).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Transformer(NamedTuple):
  """Blocks with a norm before each branch and a learned scale after it."""

  name: str
  layers: int
  width: int
  heads: int
  kv_heads: int
  head_dim: int
  hidden: int
  window: int
  theta: float
  eps: float
  bias: bool

  @property
  def tensors(self):
    """The shapes of its tensors."""
    D, F, shapes = self.width, self.hidden, {}
    queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
    for n in range(self.layers):
      own = {f'self_attn.{x}_proj': (size, D) for x, size in (('q', queries), ('k', keys), ('v', keys))}
      own |= {'self_attn.o_proj': (D, queries)}
      biases = {f'{name}.bias': shape[:1] for name, shape in own.items()} if self.bias else {}
      own |= {'mlp.fc1': (F, D), 'mlp.fc2': (D, F)}
      own = {f'{name}.weight': shape for name, shape in own.items()} | biases
      norms = ('input_layernorm', 'post_attention_layernorm')
      own |= {f'{norm}.{part}': (D,) for norm in norms for part in ('weight', 'bias')}
      own |= {'self_attn_layer_scale.scale': (D,), 'mlp_layer_scale.scale': (D,)}
      shapes |= {f'{self.name}.layers.{n}.{name}': shape for name, shape in own.items()}
    return shapes

  def __call__(self, params, x_BTD, lengths_B):
    """Return (outputs, their lengths) of inputs and their lengths."""
    for n in range(self.layers):
      stem = f'{self.name}.layers.{n}.'
      own = {name.removeprefix(stem): params[name] for name in self.tensors if name.startswith(stem)}
      y_BTD = self.attend(own, normalize(x_BTD, own, 'input_layernorm', self.eps))
      x_BTD = x_BTD + own['self_attn_layer_scale.scale'][None, None] * y_BTD
      y_BTD = normalize(x_BTD, own, 'post_attention_layernorm', self.eps)
      y_BTD = jax.nn.gelu(y_BTD @ own['mlp.fc1.weight'].T, approximate=False) @ own['mlp.fc2.weight'].T
      x_BTD = x_BTD + own['mlp_layer_scale.scale'][None, None] * y_BTD
    return x_BTD, lengths_B

  def attend(self, own, x_BTD):
    """Each position to itself and those of the window before it."""
    B, T = x_BTD.shape[:2]

    def project(part, x):
      y = x @ own[f'self_attn.{part}_proj.weight'].T
      return y + own[f'self_attn.{part}_proj.bias'][None, None] if self.bias else y

    q_BTHK, k_BTHK, v_BTHK = (project(part, x_BTD).reshape(B, T, -1, self.head_dim) for part in 'qkv')
    share = self.heads // self.kv_heads
    k_BTHK, v_BTHK = (jnp.repeat(x, share, axis=2) for x in (rotate(k_BTHK, self.theta), v_BTHK))
    scores_BHTS = jnp.einsum('BTHK,BSHK->BHTS', rotate(q_BTHK, self.theta), k_BTHK) / math.sqrt(self.head_dim)
    distance_TS = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    seen_TS = (distance_TS >= 0) & (distance_TS < self.window)
    weights_BHTS = jax.nn.softmax(jnp.where(seen_TS[None, None], scores_BHTS, -jnp.inf), -1)
    return project('o', jnp.einsum('BHTS,BSHK->BTHK', weights_BHTS, v_BTHK).reshape(B, T, -1))


def normalize(x_BTD, own, name, eps):
  """Apply a LayerNorm."""
  x_BTD = x_BTD - x_BTD.mean(-1, keepdims=True)
  x_BTD = x_BTD * jax.lax.rsqrt(jnp.square(x_BTD).mean(-1, keepdims=True) + eps)
  return x_BTD * own[f'{name}.weight'][None, None] + own[f'{name}.bias'][None, None]


def rotate(x_BTHK, theta):
  """Apply RoPE; the pairs are (k, k + K / 2)."""
  T, K = x_BTHK.shape[1], x_BTHK.shape[3]
  angles = (
    jnp.arange(T, dtype=jnp.float32)[:, None] / theta ** (jnp.arange(0, K, 2, dtype=jnp.float32) / K)[None]
  )
  cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
  a, b = jnp.split(x_BTHK, 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
