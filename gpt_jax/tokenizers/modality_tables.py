"""Which ids are of which modality, and which ids compete for one place: constants of a compiled step.

Letters: B batch, T length, V vocabulary (padded rows), M modalities, N groups of ids that can stand in
the same places.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.losses import BALANCES


class ModalityTables(NamedTuple):
  """Lookup tables by token id."""

  names: tuple  # modalities; ('text',) for a text model
  modality_V: np.ndarray  # int32; index into names
  group_V: np.ndarray  # int32; ids of a group can stand in the same places
  allowed_NV: np.ndarray  # bool; ids that can stand where an id of group n stands

  @classmethod
  def build(cls, tokenizers, columns):
    """Build the tables of a bundle of tokenizers, for a model with this number of columns V."""
    arrays = (tokenizers.modality_V(), *tokenizers.groups())
    fit = lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, max(0, columns - x.shape[-1]))])
    return cls(tokenizers.modalities, *(fit(x)[..., :columns] for x in arrays))


def weigh_by_modality(loss_mask_BT, target_ids_BT, tables, balance, hyper):
  """Multiply the loss mask by the weight of each target's modality.

  balance: a row of losses.BALANCES. hyper: traced weights by modality; absent = 1. The mask must be of
  the whole batch: micro-batches are cut from the result.
  """
  modality_BT = jnp.asarray(tables.modality_V)[target_ids_BT]
  weight_M = jnp.stack([hyper.get(name, jnp.float32(1)) for name in tables.names])
  weight_M = BALANCES[balance](weight_M, sum_by_label(loss_mask_BT, modality_BT, len(tables.names)))
  return loss_mask_BT * weight_M[modality_BT]


def sum_by_label(values_BT, labels_BT, count):
  """Sum values by label; return float32 [count]."""
  one_hot_BTM = jax.nn.one_hot(labels_BT, count, dtype=jnp.float32)
  return jnp.einsum('BT,BTM->M', values_BT, one_hot_BTM)


def restrict_logits(logits_BTV, target_ids_BT, tables):
  """Set logits of ids that cannot stand in the target's place to -1e30."""
  allowed_BTV = jnp.asarray(tables.allowed_NV)[jnp.asarray(tables.group_V)[target_ids_BT]]
  return jnp.where(allowed_BTV, logits_BTV, jnp.asarray(-1e30, logits_BTV.dtype))
