"""Projectors: from continuous inputs to the width of the model.

An input is `projector_parts` vectors side by side. None of them has a bias: an input of zeros, where a token
has none, adds zeros.

  linear     one matrix on all parts: concatenated frames
  mlp        two matrices with GELU between them (LLaVA 1.5)
  pool       the mean of the parts, then one matrix
  resampler  learned queries, one a head, attend to the parts (Perceiver; by windows, as in SALMONN)

Letters: B rows, T tokens, D width, F = D hidden numbers of the MLP, H heads, K head width, N parts, C numbers
of a part; A, M, U as in continuous.py, of which the code below writes A for any.

Sources: Liu et al. 2023 (LLaVA 1.5, section 3.3); Jaegle et al. 2021 (Perceiver); Tang et al. 2023 (SALMONN,
section 3.1, a window-level Q-Former).
"""

import types

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model.continuous import KINDS
from gpt_jax.model.layers import param


class MLP(nnx.Module):
  """Two matrices with GELU between them."""

  def __init__(self, cfg, letter):
    sizes = types.SimpleNamespace(dims=cfg.dims | {'F': cfg.width}, param_dtype=cfg.param_dtype)
    self.up_AF = param(sizes, f'{letter}F', cfg.init_std)
    self.down_FD = param(sizes, 'FD', cfg.init_std)

  def __call__(self, x_BTA):
    """The vectors that are added to the embeddings, BTD."""
    return _matmul('BTF,FD->BTD', jax.nn.gelu(_matmul('BTA,AF->BTF', x_BTA, self.up_AF)), self.down_FD)


class Pool(nnx.Module):
  """The mean of the parts, then one matrix."""

  def __init__(self, cfg, letter):
    self.parts = cfg.projector_parts
    self.out_CD = param(_sizes(cfg, letter), 'CD', cfg.init_std)

  def __call__(self, x_BTA):
    """The vectors that are added to the embeddings, BTD."""
    return _matmul('BTC,CD->BTD', _split(x_BTA, self.parts).mean(2), self.out_CD)


class Resampler(nnx.Module):
  """A learned query of each head attends to the parts; `place_NH` tells the parts apart."""

  def __init__(self, cfg, letter):
    sizes = _sizes(cfg, letter)
    self.parts = cfg.projector_parts
    self.query_CH = param(sizes, 'CH', cfg.init_std)
    self.place_NH = param(sizes, 'NH', cfg.init_std)
    self.value_CHK = param(sizes, 'CHK', cfg.init_std)
    self.out_HKD = param(sizes, 'HKD', cfg.init_std)

  def __call__(self, x_BTA):
    """The vectors that are added to the embeddings, BTD."""
    x_BTNC = _split(x_BTA, self.parts)
    scores_BTNH = _matmul('BTNC,CH->BTNH', x_BTNC, self.query_CH).astype(jnp.float32)
    scores_BTNH = scores_BTNH + self.place_NH[...].astype(jnp.float32)[None, None]
    weights_BTNH = jax.nn.softmax(scores_BTNH, 2).astype(x_BTA.dtype)
    mixed_BTHC = jnp.einsum('BTNH,BTNC->BTHC', weights_BTNH, x_BTNC)
    h_BTHK = _matmul('BTHC,CHK->BTHK', mixed_BTHC, self.value_CHK)
    return _matmul('BTHK,HKD->BTD', h_BTHK, self.out_HKD)


def _matmul(subscripts, x, w):
  """einsum with a parameter in the type of x: those without D are stored in float32."""
  return jnp.einsum(subscripts, x, w[...].astype(x.dtype))


def _sizes(cfg, letter):
  """Return cfg's dims with those of the parts, as layers.param takes them."""
  parts = {'N': cfg.projector_parts, 'C': cfg.dims[letter] // cfg.projector_parts}
  return types.SimpleNamespace(dims=cfg.dims | parts, param_dtype=cfg.param_dtype)


def _split(x_BTA, parts):
  """BTA -> BTNC."""
  return x_BTA.reshape(*x_BTA.shape[:2], parts, -1)


def declare(model, cfg):
  """Give a model a projector for each kind of continuous input that it reads.

  A linear one is a parameter such as `frame_MD`; others are modules such as `frame_projector`.
  """
  for kind in KINDS.values():
    if not getattr(cfg, kind.setting):
      continue
    if cfg.projector == 'linear':
      setattr(model, f'{kind.place}_{kind.letter}D', param(cfg, f'{kind.letter}D', cfg.init_std))
    else:
      setattr(model, f'{kind.place}_projector', PROJECTORS[cfg.projector](cfg, kind.letter))


def add(model, x_BTD, inputs):
  """Return the embeddings with projected inputs added. inputs: {argument: array or None}, as in KINDS.

  Raises TypeError for another argument. A kind that the model does not read is ignored.
  """
  for name in inputs.keys() - {kind.argument for kind in KINDS.values()}:
    raise TypeError(f'trunk() has no argument {name}')
  for kind in KINDS.values():
    x_BTA = inputs.get(kind.argument)
    if x_BTA is None or not getattr(model.cfg, kind.setting):
      continue
    x_BTA = x_BTA.astype(x_BTD.dtype)
    if model.cfg.projector == 'linear':
      x_BTD = x_BTD + _matmul('BTA,AD->BTD', x_BTA, getattr(model, f'{kind.place}_{kind.letter}D'))
    else:
      x_BTD = x_BTD + getattr(model, f'{kind.place}_projector')(x_BTA)
  return x_BTD


PROJECTORS = {'linear': None, 'mlp': MLP, 'pool': Pool, 'resampler': Resampler}
