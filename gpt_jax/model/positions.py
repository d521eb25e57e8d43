"""Position encodings: vectors added to embeddings, rotations of queries and keys, or score biases.

A new scheme is a function and a row of POSITIONS; rarer ones are in position_schemes.py.

Letters: B batch, T length, D width, H heads, K head width, k pair of a head, 3 the time, row and column
of a token. RoPE pairs dimension i with i + K/2 (the half-split form of GPT-NeoX and Hugging Face).

Sources: RoPE (Su et al. 2021), time, rows and columns (Qwen2-VL, Wang et al. 2024, section 2.1).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gpt_jax.model.kernels.fused import lookup
from gpt_jax.model.position_schemes import ROPE_SCALINGS, alibi, sinusoidal


class Position(NamedTuple):
  """One scheme: a function for each place where it acts; None where it does not act."""

  embed: Callable | None = None  # (cfg, positions_BT, table_TD or None) -> added to embeddings
  rotate: Callable | None = None  # (cfg, x_BTHK, positions_BT, frequencies_k) -> x_BTHK, of queries and keys
  bias: Callable | None = None  # (cfg, t_BT, s_BS) -> added to scores, BHTS
  axes: int = 1  # coordinates of a token: 3 = (time, row, column), in positions_BT3
  has_table: bool = False  # whether `embed` gets a trained table_TD
  settings: tuple = ()  # the ModelConfig fields that only such schemes read


def learned(cfg, positions_BT, table_TD):
  """A trained vector for each position."""
  return lookup(table_TD, positions_BT).astype(jnp.float32)


def rope(cfg, x_BTHK, positions_BT, frequencies_k=None):
  """Rotate each pair (i, i + K/2) of a head by position times frequency, in float32."""
  return rotate(cfg, x_BTHK, positions_BT[..., None].astype(jnp.float32), frequencies_k)


def mrope(cfg, x_BTHK, positions_BT3, frequencies_k=None):
  """RoPE over time (rope_sections, or half of the pairs), row and column; with equal triples, RoPE."""
  axis_k = np.resize([0, 1, 0, 2], cfg.rotary_dim // 2)  # alternating: each has fast and slow pairs
  if cfg.rope_sections:
    axis_k = np.repeat([0, 1, 2], cfg.rope_sections)
  return rotate(cfg, x_BTHK, positions_BT3[..., axis_k].astype(jnp.float32), frequencies_k)


def rotate(cfg, x_BTHK, positions_BTk, frequencies_k=None):
  """Rotate pair k of each head by its position (one for all, or one per pair) times its frequency."""
  frequencies_k = rope_frequencies(cfg) if frequencies_k is None else frequencies_k
  frequencies_k = jnp.asarray(frequencies_k, jnp.float32)
  angles_BTHk = positions_BTk[:, :, None] * frequencies_k[None, None, None]
  magnitude = ROPE_SCALINGS[cfg.rope_scaling].magnitude(cfg)
  cos, sin = jnp.cos(angles_BTHk) * magnitude, jnp.sin(angles_BTHk) * magnitude
  pairs = len(frequencies_k)
  first, second, rest = jnp.split(x_BTHK.astype(jnp.float32), [pairs, 2 * pairs], -1)
  rotated_BTHK = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], -1)
  return rotated_BTHK.astype(x_BTHK.dtype)


def rope_frequencies(cfg, letter='L'):
  """Radians per position for each pair, float64, in layers of this letter of layer_pattern."""
  is_local = letter == 'S' and cfg.rope_local_theta
  theta = cfg.rope_local_theta if is_local else cfg.rope_theta
  frequencies_k = theta ** (-np.arange(0, cfg.rotary_dim, 2, dtype=np.float64) / cfg.rotary_dim)
  if letter == 'N':
    return np.zeros_like(frequencies_k)
  return frequencies_k if is_local else ROPE_SCALINGS[cfg.rope_scaling].frequencies(cfg, frequencies_k)


POSITIONS = {
  'sinusoidal': Position(embed=sinusoidal),
  'learned': Position(embed=learned, has_table=True),
  'rope': Position(rotate=rope, settings=('rope_theta', 'rope_fraction')),
  'mrope': Position(rotate=mrope, axes=3, settings=('rope_theta', 'rope_fraction', 'rope_sections')),
  'alibi': Position(bias=alibi),
  'none': Position(),
}
