"""An encoder of pictures in their own sizes: the vision towers of Qwen2-VL and Qwen2.5-VL.

Patches turn with their row and column (RoPE over two axes) and stand square after square; a norm and an MLP
make one vector of the text model's width of each square. In Qwen2.5-VL most layers see a window of squares.
interop/encoders/native.py reads the settings and the weights of other people's files.

Letters: B = 1 picture, T patches, padded; D width, K head width, k pair of a head; N Y X A frames, rows,
columns and channels of a patch, P = Y X A; S squares, n patches on a side of one, J = I = n n D, O width of
an output.

Sources: Qwen2-VL (Wang et al. 2024, section 2.1); Qwen2.5-VL (Bai et al. 2025, section 2.1).
"""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt_jax.model import param_trees
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import Block
from gpt_jax.model.layers import Norm, linear, param
from gpt_jax.model.mask import Mask


class NativeSpec(NamedTuple):
  """One encoder: everything that its computation depends on but the weights."""

  family: str  # a row of interop/encoders/native.FAMILIES
  cfg: ModelConfig  # of the blocks
  sizes: tuple  # (letter, size) of the stem and of what follows the blocks
  square: int  # n
  theta: float  # base of the frequencies
  window: int = 0  # squares on a side of a window; 0 = all layers see the whole picture
  whole: tuple = ()  # the layers that see it nevertheless
  is_quick: bool = False  # whether the activation is quick GELU
  grid: tuple = (0, 0)  # every picture has its own
  modality: str = 'image'

  @property
  def side(self) -> int:
    """Pixels of a patch's side."""
    return dict(self.sizes)['Y']

  @property
  def out(self) -> int:
    """Numbers of an output."""
    return dict(self.sizes)['O']


class NativeEncoder(nnx.Module):
  """An encoder; abstract until it is filled with weights."""

  def __init__(self, spec: NativeSpec):
    sizes = types.SimpleNamespace(dims=spec.cfg.dims | dict(spec.sizes), param_dtype='float32')
    self.spec = spec
    self.patch_NYXAD = param(sizes, 'NYXAD')
    self.blocks = param_trees.stack(Block(spec.cfg), spec.cfg.layers)
    self.merger_norm = Norm(spec.cfg)
    self.merger_up_JI, self.merger_bias_I = param(sizes, 'JI'), param(sizes, 'I')
    self.merger_down_IO, self.merger_bias_O = param(sizes, 'IO'), param(sizes, 'O')

  def __call__(self, x_BTP, cells_BT2, groups_BT):
    """Patches of pixels -> vectors of squares BSO.

    cells_BT2: row and column of each patch. groups_BT: its window, 0 = padding.
    """
    spec, cfg = self.spec, self.spec.cfg
    frames = jnp.broadcast_to(x_BTP[:, :, None], (*x_BTP.shape[:2], dict(spec.sizes)['N'], x_BTP.shape[2]))
    x_BTNYXA = frames.reshape(*x_BTP.shape[:2], *self.patch_NYXAD.shape[:4])
    x_BTD = jnp.einsum('BTNYXA,NYXAD->BTD', x_BTNYXA, self.patch_NYXAD[...])
    order_1T, both_ways_1T = jnp.arange(x_BTD.shape[1])[None], jnp.ones((1, x_BTD.shape[1]), bool)
    positions_BT3 = jnp.pad(cells_BT2, ((0, 0), (0, 0), (1, 0)))
    half_k = spec.theta ** (-np.arange(0, cfg.K // 2, 2) / (cfg.K // 2))
    sees_all_L = np.array([not spec.window or l in spec.whole for l in range(cfg.layers)])
    real_BT = (groups_BT > 0).astype(jnp.int32)

    def run(x_BTD, layer):
      block, sees_all = layer
      segments_BT = jnp.where(sees_all, real_BT, groups_BT)
      mask = Mask(
        order_1T, order_1T, segments=(segments_BT, segments_BT), prefix=(both_ways_1T, both_ways_1T)
      )
      return block(x_BTD, mask, positions_BT3, frequencies_k=np.tile(half_k, 2))[0], None

    x_BTD, _ = jax.lax.scan(run, x_BTD, (self.blocks, jnp.asarray(sees_all_L)))
    x_BSJ = self.merger_norm(x_BTD).reshape(len(x_BTD), -1, spec.square**2 * cfg.width)
    h_BSI = linear('BSJ,JI->BSI', x_BSJ, self.merger_up_JI, self.merger_bias_I)
    h_BSI = jax.nn.gelu(h_BSI, approximate=False)
    return linear('BSI,IO->BSO', h_BSI, self.merger_down_IO, self.merger_bias_O)


def cut_patches(pixels: np.ndarray, spec: NativeSpec) -> tuple[np.ndarray, np.ndarray]:
  """Cut a picture [rows, columns, A] of whole squares -> (patches [T, P], their row and column int32 [T, 2]).

  Square after square in reading order, as its patches are.
  """
  n, side = spec.square, spec.side
  rows, columns = (size // side for size in pixels.shape[:2])
  by_square = lambda x: x.transpose(0, 3, 1, 4, 2, 5, 6)
  patches = by_square(pixels.reshape(rows // n, n, side, columns // n, n, side, -1))
  cells = np.stack(np.indices((rows, columns)), -1).reshape(rows // n, n, 1, columns // n, n, 1, 2)
  return patches.reshape(rows * columns, -1), by_square(cells).reshape(-1, 2).astype(np.int32)


def windows(cells_T2: np.ndarray, spec: NativeSpec) -> np.ndarray:
  """Return the number of the window of each patch, from 1, int32 [T]."""
  if not spec.window:
    return np.ones(len(cells_T2), np.int32)
  row_T, column_T = (cells_T2 // (spec.window * spec.square)).T
  return (1 + row_T * (column_T.max() + 1) + column_T).astype(np.int32)
