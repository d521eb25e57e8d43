"""Weights laid out for decoding: cast, split into layers, matrices transposed; once, outside the decode loop.

The trained layout stacks the layers. Both layouts together need twice the memory of the layers.
"""

import jax
import jax.numpy as jnp

from gpt_jax.cluster.meshes import platform
from gpt_jax.model import param_trees
from gpt_jax.model.kernels import fused


def prepare_model(model, donate=False):
  """Return the model that decodes, from parameters as trained, or itself if it is one.

  donate: free each parameter of a layer once it is converted, so that at most one is held twice; `model` is
  deleted thereby.
  """
  if param_trees.is_unstacked(model):
    return model

  def convert(p, dtype):
    layers = _jit_layers(p, dtype)
    if donate:
      p.get_value().delete()
    return layers

  return for_sampling(model, model.cfg.dtype, convert)


def for_sampling(model, dtype, convert=None):
  """The model cast, split into layers and laid out for decoding.

  convert: (stacked parameter, dtype) -> its layers; default: `layers_for_sampling`.
  """
  convert = convert or layers_for_sampling
  blocks = param_trees.unstack(model.blocks, lambda p: convert(p, dtype))
  return param_trees.cast(param_trees.with_blocks(model, blocks), jnp.dtype(dtype))


def layers_for_sampling(p, dtype):
  """The layers of a stacked parameter, cast and laid out for decoding."""
  layers = param_trees.split_layers(param_trees.cast(p, jnp.dtype(dtype)))
  return [fused.outputs_first(layer) for layer in layers] if platform() != 'tpu' else layers


_jit_layers = jax.jit(layers_for_sampling, static_argnums=1)
