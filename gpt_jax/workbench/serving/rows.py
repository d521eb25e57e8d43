"""A decode whose rows join and leave, each with its own sampler settings, key and length.

The state is a sample.SampleState: `arrange` makes room in it, `insert` puts a prefilled prompt into a row,
and `decode` continues all rows by sample.decode_step. A row that has ended costs its share of a step and
changes nothing.

Letters: B rows, T slots, V vocabulary, E tokens of a call, K alternatives of a token.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax import sample
from gpt_jax.sampling import samplers
from gpt_jax.sampling.samplers import NEG_INF
from gpt_jax.tokenizers import grammar as grammars

EVERY = 4  # tokens of a row in a call: with more, a call costs less and joining takes longer
ALTERNATIVES = 20  # most alternatives of a token
MOST_K = 1024  # greatest top_k of a row; the threshold is found among this many


class RowSettings(NamedTuple):
  """Sampler settings of each row, [B]; filters are off at the defaults of SampleConfig."""

  temperature_B: Any  # float32; 0 = greedy
  top_k_B: Any  # int32
  top_p_B: Any  # float32
  min_p_B: Any  # float32
  repetition_penalty_B: Any  # float32
  wants_alternatives_B: Any  # bool


class NewTokens(NamedTuple):
  """The tokens that a call added: row b has those from its former length to lengths_B[b]."""

  lengths_B: jax.Array  # int32
  done_B: jax.Array  # bool
  ids_BE: jax.Array  # int32
  log_probs_BE: jax.Array  # float32; under the model, before any filter
  top_ids_BEK: jax.Array  # int32; the likeliest ids, where a row wants alternatives
  top_log_probs_BEK: jax.Array  # float32


def decode(model, state, settings, alive_B, grammar):
  """Sample up to EVERY tokens for each row that has not ended -> (state, NewTokens)."""
  first_B, (B, T) = state.lengths_B, state.token_ids_BT.shape
  K = min(ALTERNATIVES, state.next_logits_BV.shape[1])
  tops = jnp.zeros((B, EVERY, K), jnp.int32), jnp.zeros((B, EVERY, K), jnp.float32)

  def more(carry):
    i, state, _ = carry
    return (i < EVERY) & ~state.done_B.all()

  def step(carry):
    i, state, tops = carry

    def record(tops):
      log_probs_BK, ids_BK = jax.lax.top_k(jax.nn.log_softmax(state.next_logits_BV), K)
      return tops[0].at[:, i].set(ids_BK), tops[1].at[:, i].set(log_probs_BK)

    tops = jax.lax.cond(settings.wants_alternatives_B.any(), record, lambda tops: tops, tops)
    return i + 1, sample.decode_step(model, state, settings, grammar, choose_token), tops

  state = state._replace(done_B=state.done_B | ~alive_B)
  _, state, (top_ids_BEK, top_log_probs_BEK) = jax.lax.while_loop(more, step, (0, state, tops))
  slots_BE = jnp.minimum(first_B[:, None] + jnp.arange(EVERY)[None], T - 1)
  new = lambda x_BT: jnp.take_along_axis(x_BT, slots_BE, 1)
  ids_BE, log_probs_BE = new(state.token_ids_BT), new(state.log_probs_BT)
  return state, NewTokens(state.lengths_B, state.done_B, ids_BE, log_probs_BE, top_ids_BEK, top_log_probs_BEK)


def choose_token(state, settings, grammar):
  """Return token_B, each as sample.choose_token would with the settings of its row."""
  column = lambda x_B: x_B[:, None]
  same = lambda logits_BV: logits_BV

  def penalize(logits_BV):
    penalty_B1 = column(settings.repetition_penalty_B)
    return samplers.penalize_repetition(logits_BV, state.token_ids_BT, state.lengths_B, penalty_B1)

  is_penalized = (settings.repetition_penalty_B != 1).any()
  logits_BV = jax.lax.cond(is_penalized, penalize, same, state.next_logits_BV)
  logits_BV = jnp.where(grammars.allowed(grammar, state.span), logits_BV, NEG_INF)

  def draw(logits_BV):
    temperature_B, is_greedy_B = settings.temperature_B, settings.temperature_B == 0
    free_BV = logits_BV / column(jnp.where(is_greedy_B, 1, temperature_B))
    free_BV = filter_rows(free_BV, settings.top_k_B > 0, top_k, column(settings.top_k_B))
    free_BV = filter_rows(free_BV, settings.top_p_B < 1, samplers.top_p, column(settings.top_p_B))
    free_BV = filter_rows(free_BV, settings.min_p_B > 0, samplers.min_p, column(settings.min_p_B))
    keys_B = jax.vmap(jax.random.fold_in)(state.keys_B, state.lengths_B)
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, free_BV.shape[1:]))(keys_B)
    return jnp.where(is_greedy_B, logits_BV.argmax(-1), (free_BV + noise_BV).argmax(-1))

  is_drawn = (settings.temperature_B > 0).any()
  return jax.lax.cond(is_drawn, draw, lambda x_BV: x_BV.argmax(-1), logits_BV).astype(jnp.int32)


def filter_rows(logits_BV, wants_B, keep, value_B1):
  """Apply a filter to the rows that want it; no row, no cost."""
  mask = lambda logits_BV: jnp.where(keep(logits_BV, value_B1) | ~wants_B[:, None], logits_BV, NEG_INF)
  return jax.lax.cond(wants_B.any(), mask, lambda logits_BV: logits_BV, logits_BV)


def top_k(logits_BV, k_B1):
  """True for the k likeliest tokens of each row, ties with the k-th included; k up to MOST_K."""
  top_BK = jax.lax.top_k(logits_BV, min(MOST_K, logits_BV.shape[-1]))[0]
  return logits_BV >= jnp.take_along_axis(top_BK, jnp.clip(k_B1, 1, top_BK.shape[1]) - 1, 1)


def insert(state, other, n, b, limit, key):
  """Put row n of another SampleState into row b; it ends at `limit` tokens and samples by `key`."""
  put = lambda old, new: old.at[b].set(fit(new[n], old.shape[1:]))
  merged = jax.tree.map(put, state._replace(keys_B=None), other._replace(keys_B=None))
  room_B = merged.span.room_B.at[b].set(limit - other.lengths_B[n])
  return merged._replace(
    keys_B=state.keys_B.at[b].set(key),
    limits_B=merged.limits_B.at[b].set(limit),
    span=merged.span._replace(room_B=room_B),
  )


def arrange(state, index_B, alive_B, slots):
  """Return the rows index_B of a state in a cache of this many slots; rows that are not alive have ended."""
  taken = jax.tree.map(lambda x: x[index_B], state)
  B = len(index_B)
  refit = lambda x: fit(x, (*x.shape[:2], slots, x.shape[3]))
  return taken._replace(
    token_ids_BT=fit(taken.token_ids_BT, (B, slots)),
    log_probs_BT=fit(taken.log_probs_BT, (B, slots)),
    done_B=taken.done_B | ~alive_B,
    cache=jax.tree.map(refit, taken.cache),
  )


def fit(x, shape):
  """Cut an array, or pad it with zeros, to a shape."""
  x = x[tuple(slice(0, n) for n in shape)]
  return (
    x if x.shape == tuple(shape) else jnp.pad(x, [(0, n - m) for n, m in zip(shape, x.shape, strict=True)])
  )


jit_decode = jax.jit(decode, donate_argnames='state')
jit_insert = jax.jit(insert, donate_argnames='state')
jit_arrange = jax.jit(arrange, static_argnames='slots')
