"""Logits only where a row has targets: the head of a large vocabulary costs more than the layers.

Letters: B rows, T places of a row, N places with logits, D width.
"""

import jax.numpy as jnp

LARGE = 1 << 15  # ids of a vocabulary from which gathering pays


def choose_places(mask_BT, count):
  """Return (gather, scatter) between all places of a row and those with targets, at most `count` in a row.

  gather: x_BT.. -> x_BN.. with N = count; rows with fewer targets also give places without. scatter: x_BN ->
  x_BT, 0 elsewhere. Both return their argument where count is None.
  """
  if count is None:
    return (lambda x: x,) * 2
  places_BN = jnp.argsort(mask_BT == 0, axis=1, stable=True)[:, :count]

  def gather(x):
    return jnp.take_along_axis(x, places_BN.reshape(*places_BN.shape, *(1,) * (x.ndim - 2)), 1)

  def scatter(x_BN):
    rows_B1 = jnp.arange(len(mask_BT))[:, None]
    return jnp.zeros(mask_BT.shape, x_BN.dtype).at[rows_B1, places_BN].set(x_BN, unique_indices=True)

  return gather, scatter


def round_count(targets, length, vocab):
  """Return a static `count` for rows with up to this many targets; None: all places may as well have logits.

  It is a multiple of an eighth of a row, so that few programs are compiled.
  """
  eighths = -(-8 * targets // length)
  count = -(-eighths * length // 8)
  return count if vocab >= LARGE and 2 * count <= length else None
