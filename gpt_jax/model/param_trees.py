"""Walks over modules as trees of declared parameters: names, maps, casts, layers stacked and apart.

Letters: D width, E experts, L layers. Source of layer stacking: seqax.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx


def is_param(x):
  """Whether a tree node is a declared parameter: the `is_leaf` of every walk over a model."""
  return isinstance(x, nnx.Variable)


def stack(module, layers):
  """Put a leading axis L on every parameter of an abstract module."""

  def add_axis(p):
    value = p.get_value()
    abstract = jax.ShapeDtypeStruct((layers, *value.shape), value.dtype)
    return nnx.Param(abstract, axes='L' + p.axes, std=p.std, mean=p.mean)

  return jax.tree.map(add_axis, module, is_leaf=is_param)


def unstack(module, split=None):
  """Split a stacked module into a list of one module per layer, whose parameters have no L.

  split: stacked parameter -> its layers; default: `split_layers`.
  """
  params, treedef = jax.tree.flatten(module, is_leaf=is_param)
  layers = zip(*map(split or split_layers, params), strict=True)
  return [jax.tree.unflatten(treedef, layer) for layer in layers]


def split_layers(p):
  """Split a stacked parameter into those of its layers."""
  # One split, not a slice per layer: its gradient is one concatenation, theirs a sum of as many padded
  # arrays as there are layers, which a GPU computes at each element.
  pieces = jax.lax.split(p.get_value(), (1,) * len(p.get_value()))
  return [nnx.Param(x.reshape(x.shape[1:]), axes=p.axes[1:], std=p.std, mean=p.mean) for x in pieces]


def is_unstacked(model):
  """Whether the blocks of a model are a list, as of `with_blocks`."""
  return isinstance(model.blocks, nnx.List)


def with_blocks(model, blocks):
  """A copy of a model that shares its parameters, with a list of blocks in the place of its own."""
  model = jax.tree.map(lambda p: p, model, is_leaf=is_param)
  model.blocks = nnx.List(blocks)
  return model


def named_params(model):
  """List of (path such as 'blocks/attention/wq_DHK', parameter) in a fixed order."""
  leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_param)[0]
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), p) for path, p in leaves]


def map_params(fn, model):
  """The model's tree with `fn(path, parameter)` in place of each parameter's array."""
  treedef = jax.tree.structure(model)
  return jax.tree.unflatten(treedef, [fn(path, p) for path, p in named_params(model)])


def count(model):
  """The number of entries of all parameters."""
  return sum(math.prod(p.get_value().shape) for _, p in named_params(model))


def cast(model, dtype):
  """The model with its matrices in the compute dtype.

  Norm scales, biases, routers (DE), and the codes and scales (g) of quantized weights keep theirs.
  """

  def cast_matrix(_, p):
    value, axes = p.get_value(), p.axes.removeprefix('L')
    is_matrix = 'D' in axes and len(axes) > 1 and axes != 'DE' and 'g' not in axes
    return value.astype(dtype) if is_matrix and jnp.issubdtype(value.dtype, jnp.floating) else value

  return map_params(cast_matrix, model)
