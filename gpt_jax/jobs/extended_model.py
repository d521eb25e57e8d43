"""Start from a model whose vocabulary lacks ids that the run needs.

New rows of the embedding and of the head begin at the mean of the old rows plus noise, so that a new id
is at first as likely as an average one (Hewitt 2021, "Initializing New Word Embeddings").
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.model import adapters, param_trees

log = logging.getLogger(__name__)
NOISE = 0.1  # std of new rows around the mean, over the std of the old rows


def extend(stored, model, old, new, frozen=None):
  """Return the parameters of a run in the layout of `model`, with rows for the ids `old` to `new` - 1.

  stored: {path: array} of the run, on the same devices as `model`: a tree of new parameters, for those that
  the run lacks. frozen: the base of adapters, as adapters.take_base returns it. A warning names the stored
  parameters that are neither in it nor in `model`. Raises ValueError for another shape.
  """
  trees = model, adapters.parts(frozen)[0]
  used_paths = {path for tree in trees for path, _ in param_trees.named_params(tree)}
  if unused := sorted({path.partition('/')[0] for path in stored.keys() - used_paths}):
    log.warning('train.init_from has %s, which this run leaves out', ', '.join(unused))

  def fill(path, p):
    value = p.get_value()
    if path not in stored:
      return value
    array = stored[path]
    is_table = p.axes[0] == 'V'
    if array.shape[is_table:] != value.shape[is_table:]:
      raise ValueError(
        f'train.init_from has {path} of shape {array.shape}, this model {value.shape}\n'
        'fix: take the model section from its config, as experiments/finetune.py does'
      )
    if not is_table:
      return jax.device_put(array.astype(value.dtype), value.sharding)
    # Compiled on the table's shards: no host holds it whole, and no process those of others.
    extend_rows = jax.jit(_extend, static_argnums=(2, 3, 4), out_shardings=value.sharding)
    return extend_rows(array, _noise(new - old, value.shape[1]), old, len(value), value.dtype)

  return param_trees.map_params(fill, model)


def _extend(array_VD, noise_VD, old, rows, dtype):
  """Return a table of `rows` rows; those of noise, from `old` on, begin at the mean of those before."""
  used_VD = array_VD[:old].astype(jnp.float32)
  new_VD = used_VD.mean(0, keepdims=True) + NOISE * used_VD.std(0, keepdims=True) * noise_VD
  table_VD = jnp.concatenate([used_VD, new_VD, array_VD[old + len(noise_VD) :].astype(jnp.float32)])[:rows]
  return jnp.pad(table_VD, ((0, rows - len(table_VD)), (0, 0))).astype(dtype)


def _noise(rows, width):
  return np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
