"""The weights of a pretrained encoder, read from a folder of safetensors; and its outputs for data.

Letters: B items, T positions, D width, J frames, M mel bands, A channels.
"""

import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.interop import tensors, weight_files
from gpt_jax.interop.encoders.families import FAMILIES, rename, tensor_rows
from gpt_jax.model import param_trees
from gpt_jax.model.encoder import Encoder, Spec, cut_patches


def load(folder, spec: Spec) -> Encoder:
  """Return the encoder of a folder of safetensors, in float32.

  Raises ValueError or FileNotFoundError for tensors that are missing or of another shape.
  """
  return fill(folder, *layout(spec), Encoder(spec))


def layout(spec: Spec) -> tuple:
  """Return what `check` and `fill` take: (family, {path: Tensor}, {letter: size})."""
  return FAMILIES[spec.family], tensor_rows(spec), tensors.sizes_of(spec.cfg) | dict(spec.sizes)


def check(where, stored, family, rows, sizes) -> dict[str, Any]:
  """Return {name in the family's table: StoredTensor}; stored: {name: StoredTensor} of a file.

  Raises ValueError for a tensor that is missing or has another shape.
  """
  names, shapes = rename(family, stored), {}
  for path, row in rows.items():
    for index, name in tensors.places(row, sizes):
      shapes[name] = tensors.shape_of(row, sizes)
      if path in family.scales:
        shapes[family.scales[path].format(l=index[0])] = (sizes['D'],)
  return check_shapes(where, {name: stored[own] for name, own in names.items()}, shapes)


def check_shapes(where, stored, shapes) -> dict[str, Any]:
  """Return the StoredTensors of these shapes by name; ValueError as of `check`."""
  for name, shape in shapes.items():
    if name not in stored:
      raise ValueError(f'{where} has no tensor {name}\nfix: use the weights that came with config.json')
    tensor = stored[name]
    if tensor.dtype not in weight_files.DTYPES or math.prod(tensor.shape) != math.prod(shape):
      raise ValueError(
        f'tensor {tensor.name} is {tensor.dtype}{list(tensor.shape)}, by config.json {list(shape)}\n'
        'fix: use the config.json that came with these weights'
      )
  return {name: stored[name] for name in shapes}


def fill(folder, family, rows, sizes, abstract):
  """Fill an abstract encoder with the tensors of a folder, as `load` does; errors as of `check`."""
  stored = check(folder, weight_files.open_folder(pathlib.Path(folder)), family, rows, sizes)

  def read(name, shape):
    return np.asarray(stored[name].read(), np.float32).reshape(shape)

  def fill_one(path, p):
    row, value = rows[path], np.full(p.get_value().shape, rows[path].value, np.float32)
    axes = tensors.axes_of(row, p.axes)
    for index, name in tensors.places(row, sizes):
      array = tensors.to_parameter(read(name, tensors.shape_of(row, sizes)), row, axes, sizes, index)
      if path in family.scales:
        array = array * read(family.scales[path].format(l=index[0]), (sizes['D'],))
      value[index] = array
    return jnp.asarray(value)

  return param_trees.map_params(fill_one, abstract)


@functools.partial(jax.jit, static_argnames='precision')
def _run(encoder, x, lengths_B, precision):
  x = x if encoder.spec.modality == 'audio' else cut_patches(x, encoder.spec)
  with jax.default_matmul_precision(precision):
    return encoder(x, lengths_B)


def run(encoder: Encoder, x: np.ndarray, lengths_B=None) -> np.ndarray:
  """Return the outputs of a batch, float32 [B, T, D]: on a GPU, too, with products in float32.

  x: log-mel frames [B, J, M] or pixels [B, rows, columns, A]; lengths_B: see model/encoder.py.
  """
  lengths_B = None if lengths_B is None else np.asarray(lengths_B, np.int32)
  return jax.device_get(_run(encoder, *jax.device_put((x, lengths_B)), 'float32'))
