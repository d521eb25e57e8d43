"""Blocked texts at work: an automaton over bytes, and the ids that each of its states allows.

Only UTF-8 is allowed, so that every decoder makes the same text of the bytes. sampling/block.py builds it.

Letters: B rows, P prompt length, V vocabulary, S states, R tokens that still fit (the last: as many or more),
N different rows of allowed ids, W bytes of a row, U code points, K classes of characters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DEAD, START = 0, 1


class BlockTable(NamedTuple):
  """The automaton as arrays; those of each decode step are on the device."""

  next_SY: Any  # int32 [S, 256]; the state after a byte
  row_RS: Any  # int32; the row of allowed_NW
  allowed_NW: Any  # uint8; a bit for each id, the lowest first
  bytes_N: np.ndarray  # uint8; of all ids in a row
  first_V: np.ndarray  # int32; the place of an id in bytes_N
  count_V: np.ndarray  # int32; its bytes; -1: it begins a new text
  class_U: np.ndarray  # int32; see patterns.Automaton
  drop_SK: np.ndarray  # int32; on the host, for prompts
  calm_S: np.ndarray  # int32; on the host, for prompts


def allowed(table, state_B, room_B, V):
  """Return the ids after which a text without a match can still end in time, bool [B, V]."""
  level_B = jnp.clip(room_B, 1, len(table.row_RS)) - 1
  packed_BW = jnp.asarray(table.allowed_NW)[jnp.asarray(table.row_RS)[level_B, state_B]]
  bits_BWb = packed_BW[..., None] >> jnp.arange(8, dtype=jnp.uint8)[None, None] & jnp.uint8(1)
  return bits_BWb.reshape(len(packed_BW), -1)[:, :V].astype(bool)


def advance(table, state_B, token_B):
  """Return the state of each text after one more token, int32 [B]; numpy for numpy."""
  if not isinstance(token_B, jax.Array):
    return state_B
  first_B, count_B = (jnp.asarray(x)[token_B] for x in (table.first_V, table.count_V))
  next_SY, bytes_N = jnp.asarray(table.next_SY), jnp.asarray(table.bytes_N)

  def read(i, state_B):
    return jnp.where(i < count_B, next_SY[state_B, bytes_N[first_B + i].astype(jnp.int32)], state_B)

  return jax.lax.fori_loop(0, count_B.max(), read, jnp.where(count_B < 0, START, state_B))


def read_prompts(table, ids_BP, lengths_B):
  """Return the state after each prompt, int32 [B]; numpy. What a prompt itself contains is not blocked."""
  states = [_read(table, ids_P[:length]) for ids_P, length in zip(ids_BP, lengths_B, strict=True)]
  return np.array(states, np.int32)


def _read(table, ids_P):
  breaks = np.flatnonzero(table.count_V[ids_P] < 0)
  ids = ids_P[breaks[-1] + 1 if len(breaks) else 0 :]
  spans = [slice(table.first_V[i], table.first_V[i] + table.count_V[i]) for i in ids]
  text = b''.join(table.bytes_N[span].tobytes() for span in spans).decode(errors='replace')
  state = START
  for character in text:
    state = int(table.drop_SK[state, table.class_U[ord(character)]])
  return int(table.calm_S[state])
