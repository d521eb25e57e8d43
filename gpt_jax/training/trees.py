"""Pytrees as nested dicts by path: the stored form of a state, and the comparison of two of them."""

import jax
import jax.numpy as jnp


def to_tree(state):
  """Return any pytree as nested dicts by path, PRNG keys as their data: the stored form."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  data = lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf
  return nest({'/'.join(_names(path)): data(leaf) for path, leaf in leaves})


def from_tree(tree, like):
  """Invert `to_tree`, into the structure of `like`."""

  def leaf_at(path, leaf):
    node = tree
    for name in _names(path):
      node = node[name]
    return jax.random.wrap_key_data(node) if _is_key(leaf) else node

  return jax.tree_util.tree_map_with_path(leaf_at, like)


def _names(path):
  names = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
  return names[:-1] if names[-1] == 'value' else names  # a flax Param holds its array as `value`


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


def flat(tree, prefix=''):
  """Return nested dicts as {'a/b': leaf}."""
  result = {}
  for name, node in tree.items():
    path = f'{prefix}{name}'
    result.update(flat(node, path + '/') if isinstance(node, dict) else {path: node})
  return result


def nest(paths):
  """Invert `flat`."""
  tree = {}
  for path, leaf in paths.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def mismatches(stored, wanted):
  """Return a line per path where two flat trees of arrays differ in presence, shape or dtype."""
  lines = [f'{path} is missing in the checkpoint' for path in wanted if path not in stored]
  lines += [f'{path} is only in the checkpoint' for path in stored if path not in wanted]
  for path in wanted:
    if path in stored:
      old, new = stored[path], wanted[path]
      if tuple(old.shape) != tuple(new.shape) or old.dtype != new.dtype:
        lines.append(f'{path}: checkpoint {_show(old)}, model {_show(new)}')
  return lines


def shortened(lines, most=20):
  """Join lines to one text, with the first `most` in full."""
  more = f'; and {len(lines) - most} more' if len(lines) > most else ''
  return '; '.join(lines[:most]) + more


def _show(array):
  return f'{array.dtype}{list(array.shape)}'
