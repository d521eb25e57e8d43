"""How a token knows where it stands: added to embeddings, turned into queries and keys, or biasing
scores.

Letters: B batch, T query length, S key length, D width, H heads, K head width, k pair of a head,
3 the time, row and column of a token. RoPE pairs dimension
i with i + K/2 (the half-split form of GPT-NeoX and of Hugging Face's Llama).

Sources: sinusoidal (Vaswani et al. 2017, section 3.5), RoPE (Su et al. 2021), time, rows and
columns (Qwen2-VL, Wang et al. 2024, section 2.1), ALiBi (Press et al. 2021, section 3), position
interpolation (Chen et al. 2023), NTK-aware scaling and YaRN (Peng et al. 2023, sections 3.1-3.4),
Llama 3.1's frequency bands (Hugging Face `modeling_rope_utils`, rope type llama3).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gpt_jax.model.layers import lookup


class Position(NamedTuple):
  """One scheme: any of three places to act; None means it does not act there."""

  embed: Callable | None = None  # (cfg, positions_BT, table_TD or None) -> what is added to embeddings
  rotate: Callable | None = None  # (cfg, x_BTHK, positions_BT) -> x_BTHK
  bias: Callable | None = None  # (cfg, t_BT, s_BS) -> what is added to scores, BHTS
  axes: int = 1  # numbers that say a place: 3 takes (time, row, column), positions_BT3


def sinusoidal(cfg, positions_BT, table_TD=None):
  """PE(pos, 2i) = sin(pos / 10000**(2i/D)), PE(pos, 2i+1) = cos(same), float32."""
  del table_TD
  frequencies = jnp.asarray(10000.0 ** (-np.arange(0, cfg.width, 2) / cfg.width), jnp.float32)
  angles = positions_BT[..., None].astype(jnp.float32) * frequencies[None, None]
  pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1)
  return pairs.reshape(*positions_BT.shape, -1)[..., : cfg.width]


def learned(cfg, positions_BT, table_TD):
  """A trained row for each position."""
  return lookup(table_TD, positions_BT).astype(jnp.float32)


def rope_frequencies(cfg):
  """Radians a position for each of the K/2 pairs, float64, after the configured scaling."""
  frequencies = cfg.rope_theta ** (-np.arange(0, cfg.K, 2, dtype=np.float64) / cfg.K)
  return ROPE_SCALINGS[cfg.rope_scaling](cfg, frequencies)


def rope(cfg, x_BTHK, positions_BT):
  """Rotate each pair (i, i + K/2) of a head by position times frequency, in float32."""
  return rotate(cfg, x_BTHK, positions_BT[..., None].astype(jnp.float32))


def mrope(cfg, x_BTHK, positions_BT3):
  """RoPE in which half of the pairs turn with time, a quarter with the row, a quarter with the
  column. With equal triples it is RoPE.

  The three take turns over the pairs, so that each has fast and slow ones.
  """
  axis_k = np.resize([0, 1, 0, 2], cfg.K // 2)
  return rotate(cfg, x_BTHK, positions_BT3[..., axis_k].astype(jnp.float32))


def rotate(cfg, x_BTHK, places_BTk):
  """Rotate pair k of each head by its place (one for all, or one a pair) times its frequency."""
  frequencies_k = jnp.asarray(rope_frequencies(cfg), jnp.float32)
  angles = places_BTk[:, :, None] * frequencies_k[None, None, None]
  scale = rope_attention_factor(cfg)
  cos, sin = jnp.cos(angles) * scale, jnp.sin(angles) * scale
  first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, -1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
  return rotated.astype(x_BTHK.dtype)


def rope_attention_factor(cfg):
  """YaRN's temperature on queries and keys: 0.1 ln(factor) + 1; 1 for every other scaling."""
  if cfg.rope_scaling != 'yarn':
    return 1.0
  return cfg.rope_attention_factor or 0.1 * math.log(cfg.rope_factor) + 1.0


def ntk(cfg, frequencies):
  """A larger base: the slowest pair is stretched by the factor, the fastest not at all."""
  theta = cfg.rope_theta * cfg.rope_factor ** (cfg.K / (cfg.K - 2))
  return theta ** (-np.arange(0, cfg.K, 2, dtype=np.float64) / cfg.K)


def yarn(cfg, frequencies):
  """Keep pairs that turn often in the original context, interpolate those that do not."""

  def pair_with(turns):
    """The (fractional) pair index that makes this many turns over the original context."""
    context = cfg.rope_original_context
    return cfg.K * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(cfg.rope_theta))

  low = max(math.floor(pair_with(cfg.rope_beta_fast)), 0)
  high = min(math.ceil(pair_with(cfg.rope_beta_slow)), cfg.K - 1)
  ramp = np.clip((np.arange(cfg.K // 2) - low) / max(high - low, 0.001), 0, 1)
  return frequencies / cfg.rope_factor * ramp + frequencies * (1 - ramp)


def llama3(cfg, frequencies):
  """Llama 3.1: long waves divided by the factor, short ones kept, a linear blend between."""
  wavelengths = 2 * math.pi / frequencies
  low, high = cfg.rope_low_frequency, cfg.rope_high_frequency
  blend = np.clip((cfg.rope_original_context / wavelengths - low) / (high - low), 0, 1)
  return (1 - blend) * frequencies / cfg.rope_factor + blend * frequencies


def alibi_slopes(heads):
  """A slope a head: powers of 2**(-8/n); for other n, every other one of the next power of two."""
  power = 2 ** math.floor(math.log2(heads))
  slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
  extra = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(0, 2 * (heads - power), 2)]
  return np.array(slopes + extra, np.float32)


def alibi(cfg, t_BT, s_BS):
  """-slope * distance to the key, BHTS."""
  # A bidirectional prefix also looks ahead: a key is as far after a query as before it.
  distance_BTS = jnp.abs(t_BT[:, :, None] - s_BS[:, None, :]).astype(jnp.float32)
  return -jnp.asarray(alibi_slopes(cfg.heads))[None, :, None, None] * distance_BTS[:, None]


ROPE_SCALINGS = {
  'none': lambda cfg, frequencies: frequencies,
  'linear': lambda cfg, frequencies: frequencies / cfg.rope_factor,
  'ntk': ntk,
  'yarn': yarn,
  'llama3': llama3,
}

POSITIONS = {
  'sinusoidal': Position(embed=sinusoidal),
  'learned': Position(embed=learned),
  'rope': Position(rotate=rope),
  'mrope': Position(rotate=mrope, axes=3),
  'alibi': Position(bias=alibi),
  'none': Position(),
}
