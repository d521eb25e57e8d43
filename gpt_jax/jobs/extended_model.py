"""Start from a model whose vocabulary lacks ids that the run needs.

New rows of the embedding and of the head begin at the mean of the old rows plus noise, so that a new id
is at first as likely as an average one (Hewitt 2021, "Initializing New Word Embeddings").
"""

import jax
import numpy as np

from gpt_jax.model import param_trees

NOISE = 0.1  # std of new rows around the mean, over the std of the old rows


def extend(stored, model, old, new):
  """Return the parameters of a run in the layout of `model`, with rows for the ids `old` to `new` - 1.

  stored: {path: array} of the run. model: a tree of new parameters, for those that the run lacks. Raises
  ValueError for another shape.
  """

  def fill(path, p):
    value = p.get_value()
    if path not in stored:
      return value
    array = np.asarray(stored[path])
    if p.axes[0] == 'V':
      array = _extend(array, old, new, len(value))
    if array.shape != value.shape:
      raise ValueError(
        f'train.init_from has {path} of shape {array.shape}, this model {value.shape}\n'
        'fix: take the model section from its config, as experiments/finetune.py does'
      )
    return jax.device_put(array.astype(value.dtype), value.sharding)

  return param_trees.map_params(fill, model)


def _extend(array_VD, old, new, rows):
  """Return a table of `rows` rows; those from `old` to `new` begin at the mean of those before."""
  table_VD = np.zeros((rows, array_VD.shape[1]), np.float32)
  common = min(len(array_VD), rows)
  table_VD[:common] = array_VD[:common]
  used_VD = table_VD[:old]
  noise_VD = np.random.default_rng(0).standard_normal((new - old, array_VD.shape[1]))
  table_VD[old:new] = used_VD.mean(0) + NOISE * used_VD.std(0) * noise_VD
  return table_VD
