"""Walks over modules as trees of declared parameters: names, maps, casts, layers stacked and apart.

Letters: D width, E experts, L layers. Source of layer stacking: seqax.
"""

import jax
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


def unstack(module):
  """Split a stacked module into a list of one module per layer, whose parameters have no L."""
  layers = jax.tree.leaves(module)[0].shape[0]

  def slices(p):
    # One split, not a slice per layer: its gradient is one concatenation, theirs a sum of as many padded
    # arrays as there are layers, which a GPU computes at each element.
    pieces = jax.lax.split(p.get_value(), (1,) * layers)
    return [nnx.Param(x.reshape(x.shape[1:]), axes=p.axes[1:], std=p.std, mean=p.mean) for x in pieces]

  params, treedef = jax.tree.flatten(module, is_leaf=is_param)
  return [jax.tree.unflatten(treedef, layer) for layer in zip(*map(slices, params), strict=True)]


def named_params(model):
  """List of (path such as 'blocks/attention/wq_DHK', parameter) in a fixed order."""
  leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_param)[0]
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), p) for path, p in leaves]


def map_params(fn, model):
  """The model's tree with `fn(path, parameter)` in place of each parameter's array."""
  treedef = jax.tree.structure(model)
  return jax.tree.unflatten(treedef, [fn(path, p) for path, p in named_params(model)])


def cast(model, dtype):
  """The model with its matrices in the compute dtype; norm scales, biases and routers keep theirs."""

  def cast_matrix(path, p):
    is_matrix = 'D' in p.axes and len(p.axes.lstrip('L')) > 1 and not path.endswith('router_DE')
    return p.get_value().astype(dtype) if is_matrix else p.get_value()

  return map_params(cast_matrix, model)
