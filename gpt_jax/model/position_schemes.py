"""Rarer position encodings and the scalings of RoPE that stretch it to longer contexts.

Letters: B batch, T query length, S key length, D width, H heads, K head width, k pair of a head.

Sources: sinusoidal (Vaswani et al. 2017, section 3.5), ALiBi (Press et al. 2021, section 3), position
interpolation (Chen et al. 2023), NTK-aware scaling and YaRN (Peng et al. 2023, sections 3.1-3.4),
Llama 3.1's frequency bands (Hugging Face `modeling_rope_utils`, rope type llama3).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

# ------------------------------------------------------------------ added to embeddings or to scores


def sinusoidal(cfg, positions_BT, table_TD=None):
  """PE(pos, 2i) = sin(pos / 10000**(2i/D)), PE(pos, 2i+1) = cos(same); float32, BTD."""
  del table_TD
  frequencies = jnp.asarray(10000.0 ** (-np.arange(0, cfg.width, 2) / cfg.width), jnp.float32)
  angles = positions_BT[..., None].astype(jnp.float32) * frequencies[None, None]
  pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1)
  return pairs.reshape(*positions_BT.shape, -1)[..., : cfg.width]


def alibi(cfg, t_BT, s_BS):
  """-slope * distance between query and key, BHTS."""
  # The absolute distance: within a bidirectional prefix, keys also follow their query.
  distance_BTS = jnp.abs(t_BT[:, :, None] - s_BS[:, None, :]).astype(jnp.float32)
  return -jnp.asarray(alibi_slopes(cfg.heads))[None, :, None, None] * distance_BTS[:, None]


def alibi_slopes(heads):
  """One slope per head: powers of 2**(-8/n); for other n, every other one of the next power of two."""
  power = 2 ** math.floor(math.log2(heads))
  slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
  extra = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * (heads - power), 2)]
  return np.array(slopes + extra, np.float32)


# ----------------------------------------------------------------------------------- RoPE scalings


class RopeScaling(NamedTuple):
  """One way to stretch RoPE's frequencies from the original context to a longer one."""

  frequencies: Callable  # (cfg, frequencies_k) -> frequencies_k, float64
  magnitude: Callable = lambda cfg: 1.0  # factor on rotated queries and keys
  settings: tuple = ()  # the ModelConfig fields that only such scalings read


def linear(cfg, frequencies_k):
  """Position interpolation: every frequency is divided by the factor."""
  return frequencies_k / cfg.rope_factor


def ntk(cfg, frequencies_k):
  """NTK-aware: a larger base, which stretches the slowest pair by the factor, the fastest not at all."""
  theta = cfg.rope_theta * cfg.rope_factor ** (cfg.rotary_dim / (cfg.rotary_dim - 2))
  return theta ** (-np.arange(0, cfg.rotary_dim, 2, dtype=np.float64) / cfg.rotary_dim)


def yarn(cfg, frequencies_k):
  """YaRN: keep pairs that turn often in the original context, interpolate those that do not."""

  def pair_with(turns):
    """The (fractional) pair index that makes this many turns over the original context."""
    context = cfg.rope_original_context
    return cfg.rotary_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(cfg.rope_theta))

  low = max(math.floor(pair_with(cfg.rope_beta_fast)), 0)
  high = min(math.ceil(pair_with(cfg.rope_beta_slow)), cfg.rotary_dim - 1)
  ramp_k = np.clip((np.arange(cfg.rotary_dim // 2) - low) / max(high - low, 0.001), 0, 1)
  return frequencies_k / cfg.rope_factor * ramp_k + frequencies_k * (1 - ramp_k)


def yarn_magnitude(cfg):
  """YaRN's temperature on queries and keys: 0.1 ln(factor) + 1, unless the config sets it."""
  return cfg.rope_attention_factor or 0.1 * math.log(cfg.rope_factor) + 1.0


def llama3(cfg, frequencies_k):
  """Llama 3.1: divide long waves by the factor, keep short ones, blend linearly between."""
  wavelengths_k = 2 * math.pi / frequencies_k
  low, high = cfg.rope_low_frequency, cfg.rope_high_frequency
  blend_k = np.clip((cfg.rope_original_context / wavelengths_k - low) / (high - low), 0, 1)
  return (1 - blend_k) * frequencies_k / cfg.rope_factor + blend_k * frequencies_k


YARN_SETTINGS = ('rope_original_context', 'rope_beta_fast', 'rope_beta_slow', 'rope_attention_factor')
LLAMA3_SETTINGS = ('rope_original_context', 'rope_low_frequency', 'rope_high_frequency')
ROPE_SCALINGS = {
  'none': RopeScaling(lambda cfg, frequencies_k: frequencies_k),
  'linear': RopeScaling(linear),
  'ntk': RopeScaling(ntk),
  'yarn': RopeScaling(yarn, yarn_magnitude, YARN_SETTINGS),
  'llama3': RopeScaling(llama3, settings=LLAMA3_SETTINGS),
}
