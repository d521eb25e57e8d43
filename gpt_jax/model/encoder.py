"""A pretrained encoder of pictures or sounds: a stem, bidirectional blocks, a norm.

The blocks are those of our GPT. interop/encoders reads the settings and the weights of other people's files;
towers.py makes an encoder a part of a GPT.

Letters: B items, T positions, D width, J frames, M mel bands, W width of a convolution, I = D its inputs; Y X
A rows, columns and channels of a patch, P = Y X A, R C rows and columns of patches.

Sources: Whisper (Radford et al. 2022); ViT (Dosovitskiy et al. 2020); CLIP (Radford et al. 2021); SigLIP
(Zhai et al. 2023); DINOv2 (Oquab et al. 2023); Qwen2-Audio (Chu et al. 2024).
"""

import functools
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gpt_jax.model import param_trees
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import Block
from gpt_jax.model.kernels.remat import REMAT
from gpt_jax.model.layers import Norm, broadcast_like, param
from gpt_jax.model.mask import Mask


class Spec(NamedTuple):
  """One encoder: everything that its computation depends on but the weights. Numbers, texts and tuples."""

  family: str  # a row of interop/encoders/families.FAMILIES
  blocks: tuple  # (field of ModelConfig, value); context: positions
  sizes: tuple  # (letter, size) of the stem
  grid: tuple = ()  # rows and columns of patches; () = a sound
  has_class: bool = False  # a class token stands before the patches
  has_pre_norm: bool = False  # a norm stands before the blocks
  has_final_norm: bool = True
  is_quick: bool = False  # whether the activation is quick GELU
  pool: int = 1  # outputs in a row whose mean goes to the final norm; then silence behind a sound is masked
  has_patch_bias: bool = True  # of pictures: on the matrix of a patch

  @property
  def cfg(self) -> ModelConfig:
    """The settings of the blocks."""
    return _blocks_config(self.blocks)

  @property
  def modality(self) -> str:
    """image or audio."""
    return 'image' if self.grid else 'audio'

  @property
  def side(self) -> int:
    """Pixels of a patch's side."""
    return dict(self.sizes)['Y']


@functools.lru_cache(maxsize=16)
def _blocks_config(fields):
  fixed = dict(norm='layernorm', attention_bias=True, mlp_bias=True, positions='none', vocab=1)
  auto = dict(kernel='xla', dtype='float32', remat='none', unroll='off')
  return ModelConfig(**dict(fields), **fixed, **auto)


class Encoder(nnx.Module):
  """An encoder; abstract until it is filled with weights."""

  def __init__(self, spec: Spec):
    cfg = spec.cfg
    sizes = types.SimpleNamespace(dims=cfg.dims | dict(spec.sizes), param_dtype=cfg.param_dtype)
    self.spec = spec
    if spec.modality == 'audio':
      self.conv1_WMD, self.conv1_bias_D = param(sizes, 'WMD'), param(sizes, 'D')
      self.conv2_WID, self.conv2_bias_D = param(sizes, 'WID'), param(sizes, 'D')
    else:
      self.patch_YXAD = param(sizes, 'YXAD')
      self.patch_bias_D = param(sizes, 'D') if spec.has_patch_bias else None
      self.class_D = param(sizes, 'D') if spec.has_class else None
    self.position_TD = param(sizes, 'TD')
    self.pre_norm = Norm(cfg) if spec.has_pre_norm else None
    self.blocks = param_trees.stack(Block(cfg), cfg.layers)
    self.final_norm = Norm(cfg) if spec.has_final_norm else None

  def __call__(self, x, lengths_B=None, remat='none'):
    """Log-mel [B, J, M], of at most 2 T frames, or patches of pixels [B, T, Y X A] in reading order -> BTD.

    Pictures have their class token first, if the family has one. lengths_B: positions of the sounds in their
    windows: no other is seen. remat: a row of REMAT.
    """
    x_BTD = self._frames(x) if self.spec.modality == 'audio' else self._patches(x)
    x_BTD = x_BTD + self.position_TD[...][None, : x_BTD.shape[1]].astype(x_BTD.dtype)
    if self.pre_norm is not None:
      x_BTD = self.pre_norm(x_BTD)
    order_1T = jnp.arange(x_BTD.shape[1])[None]
    both_ways_1T = jnp.ones_like(order_1T, bool)
    sounds = None if lengths_B is None else (order_1T < lengths_B[:, None]).astype(jnp.int32)
    segments = None if sounds is None else (sounds, sounds)
    mask = Mask(order_1T, order_1T, segments=segments, prefix=(both_ways_1T, both_ways_1T))
    run = REMAT[remat](lambda block, x_BTD: block(x_BTD, mask, None)[0], prevent_cse=False)
    x_BTD, _ = jax.lax.scan(lambda x_BTD, block: (run(block, x_BTD), None), x_BTD, self.blocks)
    if (k := self.spec.pool) > 1:
      x_BTD = x_BTD[:, : x_BTD.shape[1] // k * k].reshape(len(x_BTD), -1, k, x_BTD.shape[2]).mean(2)
    return x_BTD if self.final_norm is None else self.final_norm(x_BTD)

  def _frames(self, x_BJM):
    """Two convolutions, the second with a stride of 2."""
    for weight, bias, stride in (
      (self.conv1_WMD, self.conv1_bias_D, 1),
      (self.conv2_WID, self.conv2_bias_D, 2),
    ):
      numbers = ('NWC', 'WIO', 'NWC')
      y = jax.lax.conv_general_dilated(
        x_BJM, weight[...].astype(x_BJM.dtype), (stride,), [(1, 1)], dimension_numbers=numbers
      )
      x_BJM = jax.nn.gelu(y + broadcast_like(bias, y), approximate=False)
    return x_BJM

  def _patches(self, x_BTP):
    """One matrix on each patch; the class token first."""
    y_BTYXA = x_BTP.reshape(*x_BTP.shape[:2], *self.patch_YXAD.shape[:3])
    x_BTD = jnp.einsum('BTYXA,YXAD->BTD', y_BTYXA, self.patch_YXAD[...].astype(x_BTP.dtype))
    if self.patch_bias_D is not None:
      x_BTD = x_BTD + broadcast_like(self.patch_bias_D, x_BTD)
    if self.class_D is None:
      return x_BTD
    class_B1D = jnp.broadcast_to(broadcast_like(self.class_D, x_BTD), (len(x_BTD), 1, x_BTD.shape[2]))
    return jnp.concatenate([class_B1D, x_BTD], 1)


def cut_patches(x_BYXA, spec):
  """Cut pictures into patches in reading order: [B, rows, columns, A] -> [B, T, Y X A]."""
  (R, C), side = spec.grid, spec.side
  x_BRYCXA = x_BYXA[:, : R * side, : C * side].reshape(len(x_BYXA), R, side, C, side, -1)
  return x_BRYCXA.swapaxes(2, 3).reshape(len(x_BYXA), R * C, -1)
