"""Projectors: from continuous inputs to the width of the model.

An input is `projector_parts` vectors side by side. None of the first four has a bias: an input of zeros,
where a token has none, adds zeros. Those of imported models replace the embedding where it is not zeros.

  linear     one matrix on all parts: concatenated frames
  mlp        two matrices with GELU between them
  pool       the mean of the parts, then one matrix
  resampler  learned queries, one a head, attend to the parts (Perceiver; by windows, as in SALMONN)
  llava      two matrices with biases and exact GELU (LLaVA 1.5)
  llava_next the same, and a learned vector in the place of an input of ones: a line ends (LLaVA-NeXT)
  llava_onevision  that of a mean of four inputs, weighted before the second matrix (LLaVA-OneVision)
  paligemma  one matrix with a bias (PaliGemma, Qwen2-Audio, Idefics3)
  gemma3     a norm, then one matrix (Gemma 3)
  cells      no parameters: vectors of the width, without the row and column behind them (Qwen2-VL)

Letters: B rows, T tokens, D width, F = I = D hidden numbers of an MLP, H heads, K head width, N parts, C
numbers of a part; A, M, U as in continuous.py, of which the code below writes A for any.

Sources: Liu et al. 2023 (LLaVA 1.5, section 3.3); Li et al. 2024 (LLaVA-OneVision, section 3.1); Jaegle et
al. 2021 (Perceiver); Tang et al. 2023 (SALMONN, section 3.1, a window-level Q-Former); Beyer et al. 2024
(PaliGemma, section 3.1); Gemma 3 (2025, section 2).
"""

import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model import flow, towers
from gpt_jax.model.continuous import KINDS, MIXED
from gpt_jax.model.layers import broadcast_like, param, rmsnorm


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


class Llava(nnx.Module):
  """Two matrices with biases and exact GELU between them."""

  def __init__(self, cfg, letter):
    sizes = types.SimpleNamespace(dims=cfg.dims | {'I': cfg.width}, param_dtype=cfg.param_dtype)
    self.up_AI, self.up_bias_I = param(sizes, f'{letter}I', cfg.init_std), param(sizes, 'I')
    self.down_ID, self.down_bias_D = param(sizes, 'ID', cfg.init_std), param(sizes, 'D')

  def __call__(self, x_BTA):
    """The vectors in the place of the embeddings, BTD."""
    y_BTD = _matmul('BTI,ID->BTD', self.hidden(x_BTA), self.down_ID)
    return y_BTD + broadcast_like(self.down_bias_D, y_BTD)

  def hidden(self, x_BTA):
    """The inputs of the second matrix, BTI."""
    h_BTI = _matmul('BTA,AI->BTI', x_BTA, self.up_AI)
    return jax.nn.gelu(h_BTI + broadcast_like(self.up_bias_I, h_BTI), approximate=False)


class LlavaNext(Llava):
  """Llava, and a learned vector at the end of each line of a picture."""

  def __init__(self, cfg, letter):
    super().__init__(cfg, letter)
    self.newline_D = param(cfg, 'D', cfg.init_std)

  def __call__(self, x_BTA):
    """The vectors in the place of the embeddings, BTD."""
    y_BTD = super().__call__(x_BTA)
    return jnp.where((x_BTA == 1).all(-1, keepdims=True), broadcast_like(self.newline_D, y_BTD), y_BTD)


class LlavaOneVision(LlavaNext):
  """LlavaNext of `MIXED` inputs side by side, each with its weight behind it.

  A picture with too many vectors is resized bilinearly behind the projector. What follows the GELU is linear,
  so that the mean of the hidden numbers gives the same.
  """

  def __init__(self, cfg, letter):
    if (numbers := cfg.dims[letter]) % MIXED or numbers == MIXED:
      raise ValueError(
        f'model.projector=llava_onevision takes {MIXED} vectors with a weight each, not {numbers} numbers\n'
        'fix: choose another model.projector'
      )
    settings = {name: getattr(cfg, name) for name in ('width', 'param_dtype', 'init_std')}
    super().__init__(types.SimpleNamespace(dims=cfg.dims | own_sizes(cfg), **settings), letter)

  def hidden(self, x_BTA):
    """The inputs of the second matrix, BTI."""
    x_BTNA = _split(x_BTA, MIXED)
    vectors_BTA = x_BTNA[..., :-1].reshape(len(x_BTA), -1, x_BTNA.shape[-1] - 1)
    h_BTNI = super().hidden(vectors_BTA).reshape(*x_BTNA.shape[:3], -1)
    return jnp.einsum('BTNI,BTN->BTI', h_BTNI, x_BTNA[..., -1])


class PaliGemma(nnx.Module):
  """One matrix with a bias."""

  def __init__(self, cfg, letter):
    self.out_AD, self.out_bias_D = param(cfg, f'{letter}D', cfg.init_std), param(cfg, 'D')

  def __call__(self, x_BTA):
    """The vectors in the place of the embeddings, BTD."""
    y_BTD = _matmul('BTA,AD->BTD', x_BTA, self.out_AD)
    return y_BTD + broadcast_like(self.out_bias_D, y_BTD)


class Gemma3(nnx.Module):
  """A norm without a bias, whose scale is 1 + its parameter, then one matrix."""

  def __init__(self, cfg, letter):
    self.eps = cfg.norm_eps
    self.scale_A, self.out_AD = param(cfg, letter), param(cfg, f'{letter}D', cfg.init_std)

  def __call__(self, x_BTA):
    """The vectors in the place of the embeddings, BTD."""
    normed_BTA = rmsnorm(x_BTA, self.eps)
    normed_BTA = normed_BTA * (1.0 + broadcast_like(self.scale_A, normed_BTA))
    return _matmul('BTA,AD->BTD', normed_BTA.astype(x_BTA.dtype), self.out_AD)


class Cells(nnx.Module):
  """Vectors of the width of the model, with the row and column of a patch behind them, which are left out."""

  def __init__(self, cfg, letter):
    if (numbers := cfg.dims[letter]) != cfg.width + 2:
      raise ValueError(
        f'model.projector=cells takes inputs of model.width + 2 = {cfg.width + 2} numbers, not {numbers}\n'
        'fix: choose another model.projector'
      )

  def __call__(self, x_BTA):
    """The vectors in the place of the embeddings, BTD."""
    return x_BTA[..., :-2]


def own_sizes(cfg):
  """Return {letter: numbers of one vector} where an input is several vectors with a weight each."""
  if cfg.projector != 'llava_onevision':
    return {}
  sizes = {kind.letter: getattr(cfg, kind.setting) for kind in KINDS.values()}
  return {letter: size // MIXED - 1 for letter, size in sizes.items() if size}


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
  """Give a model a projector for each kind of continuous input that it reads, its towers and its flow head.

  A linear one is a parameter such as `frame_MD`; others are modules such as `frame_projector`.
  """
  towers.declare(model, cfg)
  if cfg.flow_layers:
    model.patch_head = flow.FlowHead(cfg)
  for kind in KINDS.values():
    if not getattr(cfg, kind.setting):
      continue
    if cfg.projector == 'linear':
      setattr(model, f'{kind.place}_{kind.letter}D', param(cfg, f'{kind.letter}D', cfg.init_std))
    else:
      setattr(model, f'{kind.place}_projector', PROJECTORS[cfg.projector].build(cfg, kind.letter))


def add(model, x_BTD, inputs):
  """Return the embeddings with projected inputs added, or in their place where an input is not all zeros.

  inputs: {argument: array or None}, as in KINDS. A kind that the model does not read is ignored.
  Raises TypeError for another argument.
  """
  for name in inputs.keys() - {kind.argument for kind in KINDS.values()}:
    raise TypeError(f'trunk() has no argument {name}')
  for name, kind in KINDS.items():
    x_BTA = inputs.get(kind.argument)
    if x_BTA is None or not getattr(model.cfg, kind.setting):
      continue
    x_BTA = towers.encode(model, name, x_BTA, x_BTD.dtype)
    if model.cfg.projector == 'linear':
      x_BTD = x_BTD + _matmul('BTA,AD->BTD', x_BTA, getattr(model, f'{kind.place}_{kind.letter}D'))
      continue
    y_BTD = getattr(model, f'{kind.place}_projector')(x_BTA)
    if PROJECTORS[model.cfg.projector].replaces:
      x_BTD = jnp.where((x_BTA != 0).any(-1, keepdims=True), y_BTD, x_BTD)
    else:
      x_BTD = x_BTD + y_BTD
  return x_BTD


class Projector(NamedTuple):
  """A row of PROJECTORS."""

  build: Callable | None  # (cfg, letter of the width) -> module; None: one matrix of the model itself
  has_cells: bool = False  # the last two numbers of an input are the row and column of a patch
  replaces: bool = False  # its vectors replace the embeddings instead of being added to them


PROJECTORS = {
  'linear': Projector(None),
  'mlp': Projector(MLP),
  'pool': Projector(Pool),
  'resampler': Projector(Resampler),
  'llava': Projector(Llava, replaces=True),
  'llava_next': Projector(LlavaNext, replaces=True),
  'llava_onevision': Projector(LlavaOneVision, replaces=True),
  'paligemma': Projector(PaliGemma, replaces=True),
  'gemma3': Projector(Gemma3, replaces=True),
  'cells': Projector(Cells, has_cells=True, replaces=True),
}
