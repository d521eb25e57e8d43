"""A pretrained encoder: a stem, bidirectional blocks, a norm; and how its weights are read.

Letters: B items, T positions, D width, J frames, M mel bands, W width of a convolution, I = D its inputs; R C
rows and columns of patches, Y X A rows, columns and channels of a patch.

Sources: Whisper (Radford et al. 2022); ViT (Dosovitskiy et al. 2020); CLIP (Radford et al. 2021); SigLIP
(Zhai et al. 2023); DINOv2 (Oquab et al. 2023); Qwen2-Audio (Chu et al. 2024).
"""

import functools
import math
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt_jax.interop import tensors, weight_files
from gpt_jax.interop.encoders.families import FAMILIES, Spec, rename, tensor_rows
from gpt_jax.model import param_trees
from gpt_jax.model.gpt import Block
from gpt_jax.model.layers import Norm, broadcast_like, param
from gpt_jax.model.mask import Mask


class Encoder(nnx.Module):
  """An encoder; abstract until `load` fills it."""

  def __init__(self, spec: Spec):
    family, cfg = FAMILIES[spec.family], spec.cfg
    sizes = types.SimpleNamespace(dims=cfg.dims | dict(spec.sizes), param_dtype=cfg.param_dtype)
    self.spec = spec
    if spec.modality == 'audio':
      self.conv1_WMD, self.conv1_bias_D = param(sizes, 'WMD'), param(sizes, 'D')
      self.conv2_WID, self.conv2_bias_D = param(sizes, 'WID'), param(sizes, 'D')
    else:
      self.patch_YXAD, self.patch_bias_D = param(sizes, 'YXAD'), param(sizes, 'D')
      self.class_D = param(sizes, 'D') if family.has_class else None
    self.position_TD = param(sizes, 'TD')
    self.pre_norm = Norm(cfg) if family.has_pre_norm else None
    self.blocks = param_trees.stack(Block(cfg), cfg.layers)
    self.final_norm = Norm(cfg) if spec.has_final_norm else None

  def __call__(self, x, lengths_B=None):
    """Log-mel float32 [B, J, M], of at most 2 T frames, or pixels [B, rows, columns, A] -> BTD.

    Pictures have their class token first, if the family has one. lengths_B: positions of the sounds in their
    windows: no other is seen.
    """
    x_BTD = self._frames(x) if self.spec.modality == 'audio' else self._patches(x)
    x_BTD = x_BTD + self.position_TD[...][None, : x_BTD.shape[1]]
    if self.pre_norm is not None:
      x_BTD = self.pre_norm(x_BTD)
    order_1T = jnp.arange(x_BTD.shape[1])[None]
    both_ways_1T = jnp.ones_like(order_1T, bool)
    sounds = None if lengths_B is None else (order_1T < lengths_B[:, None]).astype(jnp.int32)
    segments = None if sounds is None else (sounds, sounds)
    mask = Mask(order_1T, order_1T, segments=segments, prefix=(both_ways_1T, both_ways_1T))
    x_BTD, _ = jax.lax.scan(lambda x_BTD, block: (block(x_BTD, mask, None)[0], None), x_BTD, self.blocks)
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
      y = jax.lax.conv_general_dilated(x_BJM, weight[...], (stride,), [(1, 1)], dimension_numbers=numbers)
      x_BJM = jax.nn.gelu(y + broadcast_like(bias, y), approximate=False)
    return x_BJM

  def _patches(self, x):
    """One matrix on each patch, in reading order; the class token first."""
    (R, C), side = self.spec.grid, self.spec.side
    x_BRYCXA = x[:, : R * side, : C * side].reshape(len(x), R, side, C, side, -1)
    x_BRCD = jnp.einsum('BRYCXA,YXAD->BRCD', x_BRYCXA, self.patch_YXAD[...])
    x_BTD = x_BRCD.reshape(len(x), R * C, -1)
    x_BTD = x_BTD + broadcast_like(self.patch_bias_D, x_BTD)
    if self.class_D is None:
      return x_BTD
    class_B1D = jnp.broadcast_to(self.class_D[...][None, None], (len(x), 1, x_BTD.shape[2]))
    return jnp.concatenate([class_B1D, x_BTD], 1)


def load(folder, spec: Spec) -> Encoder:
  """Return the encoder of a folder of safetensors, in float32.

  Raises ValueError or FileNotFoundError for tensors that are missing or of another shape.
  """
  family, rows, abstract = FAMILIES[spec.family], tensor_rows(spec), Encoder(spec)
  stored = weight_files.open_folder(pathlib.Path(folder))
  names = rename(family, stored)
  sizes = tensors.sizes_of(spec.cfg) | dict(spec.sizes)

  def read(name, shape):
    if name not in names:
      raise ValueError(f'{folder} has no tensor {name}\nfix: use the weights that came with config.json')
    tensor = stored[names[name]]
    if tensor.dtype not in weight_files.DTYPES or math.prod(tensor.shape) != math.prod(shape):
      raise ValueError(
        f'tensor {tensor.name} is {tensor.dtype}{list(tensor.shape)}, by config.json {list(shape)}\n'
        'fix: use the config.json that came with these weights'
      )
    return np.asarray(tensor.read(), np.float32).reshape(shape)

  def fill(path, p):
    row, value = rows[path], np.full(p.get_value().shape, rows[path].value, np.float32)
    axes = tensors.axes_of(row, p.axes)
    for index, name in tensors.places(row, sizes):
      array = tensors.to_parameter(read(name, tensors.shape_of(row, sizes)), row, axes, sizes, index)
      if path in family.scales:
        array = array * read(family.scales[path].format(l=index[0]), (spec.cfg.width,))
      value[index] = array
    return jnp.asarray(value)

  return param_trees.map_params(fill, abstract)


@functools.partial(jax.jit, static_argnames='precision')
def _run(encoder, x, lengths_B, precision):
  with jax.default_matmul_precision(precision):
    return encoder(x, lengths_B)


def run(encoder: Encoder, x: np.ndarray, lengths_B=None) -> np.ndarray:
  """Return the outputs of a batch, float32 [B, T, D]: on a GPU, too, with products in float32."""
  lengths_B = None if lengths_B is None else np.asarray(lengths_B, np.int32)
  return jax.device_get(_run(encoder, *jax.device_put((x, lengths_B)), 'float32'))
