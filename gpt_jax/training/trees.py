"""Pytrees as nested dicts by path: the stored form of a state, and the comparison of two of them."""

import functools

import jax
import jax.numpy as jnp
from flax import traverse_util

flat = functools.partial(traverse_util.flatten_dict, sep='/')  # nested dicts -> {'a/b': leaf}
nest = functools.partial(traverse_util.unflatten_dict, sep='/')  # the inverse


def to_tree(state):
  """Return any pytree as nested dicts by path, PRNG keys as their data: the stored form.

  The frozen base of adapters is left out: another run holds it.
  """
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  named = [(_name(path), x) for path, x in leaves]
  return nest({n: jax.random.key_data(x) if _is_key(x) else x for n, x in named if not _is_frozen(n)})


def from_tree(tree, like):
  """Invert `to_tree`, into the structure of `like`, of which the frozen base is taken."""
  stored = flat(tree)

  def leaf_at(path, leaf):
    if _is_frozen(_name(path)):
      return leaf
    x = stored[_name(path)]
    return jax.random.wrap_key_data(x) if _is_key(leaf) else x

  return jax.tree_util.tree_map_with_path(leaf_at, like)


def _name(path):
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  return name.removesuffix('/value')  # a flax Param holds its array as `value`


def _is_frozen(name):
  return name.startswith('frozen/')


def _is_key(leaf):
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_abstract_tree(like):
  """Apply `to_tree` to ShapeDtypeStructs: a PRNG key becomes its data's shape."""

  def abstract(leaf):
    if not _is_key(leaf):
      return leaf
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)

  return to_tree(jax.tree.map(abstract, like))


def mismatches(stored, wanted):
  """Return {path: text} of where two flat trees of arrays differ in presence, shape or dtype."""
  show = lambda x: f'{jnp.dtype(x.dtype)}{list(x.shape)}'
  texts = {path: f'{path} is missing in the checkpoint' for path in wanted if path not in stored}
  texts |= {path: f'{path} is only in the checkpoint' for path in stored if path not in wanted}
  pairs = {path: (show(stored[path]), show(wanted[path])) for path in wanted if path in stored}
  changed = {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}
  return texts | {path: f'{path}: checkpoint {old}, model {new}' for path, (old, new) in changed.items()}
