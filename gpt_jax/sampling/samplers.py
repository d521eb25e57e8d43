"""Logits processors: guidance, repetition penalty and filters.

Letters: B rows, T buffer length, V vocabulary.

Sources: nucleus (Holtzman et al. 2020), min-p (Nguyen et al. 2024), repetition penalty (CTRL,
Keskar et al. 2019, section 4.1), classifier-free guidance (Ho and Salimans 2022; for tokens Gafni
et al. 2022, section 3.4).
"""

import jax
import jax.numpy as jnp

from gpt_jax.runs.plugins import parse_numbers

NEG_INF = -1e30  # the logit of a token that must not be sampled


def apply_guidance(logits_BV, null_BV, scale_B, allowed_BV, paced_V):
  """Classifier-free guidance: null + scale (logits - null).

  Where a token of `paced_V` (the end of a sound) is allowed, it keeps its conditional probability
  among the allowed tokens, and guidance shares out the rest: raised to a power at each step, the
  small probability of an end would make sounds that never end.
  """
  guided_BV = null_BV + scale_B[:, None] * (logits_BV - null_BV)
  ends_BV = allowed_BV & paced_V[None]
  others_BV = allowed_BV & ~ends_BV
  own_BV = jax.nn.log_softmax(jnp.where(allowed_BV, logits_BV, NEG_INF))
  rest_B1 = jax.nn.logsumexp(jnp.where(others_BV, own_BV, NEG_INF), -1, keepdims=True)
  shared_BV = jax.nn.log_softmax(jnp.where(others_BV, guided_BV, NEG_INF)) + rest_B1
  paced_BV = jnp.where(ends_BV, own_BV, shared_BV)
  return jnp.where(ends_BV.any(-1, keepdims=True), paced_BV, guided_BV)


def penalize_repetition(logits_BV, token_ids_BT, lengths_B, penalty):
  """Divide positive logits of tokens already in the row by the penalty, multiply negative ones."""
  B, T = token_ids_BT.shape
  in_row_BT = jnp.arange(T)[None] < lengths_B[:, None]
  seen_BV = jnp.zeros(logits_BV.shape, bool)
  seen_BV = seen_BV.at[jnp.arange(B)[:, None], token_ids_BT].max(in_row_BT)
  penalized_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
  return jnp.where(seen_BV, penalized_BV, logits_BV)


def top_k(logits_BV, k):
  """True for the k likeliest tokens, ties with the k-th included."""
  # min() and not [-1]: XLA turns a slice of the last value into a sort of the vocabulary, 50 times slower.
  top_BK = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0]
  return logits_BV >= top_BK.min(-1, keepdims=True)


def top_p(logits_BV, p):
  """True for the smallest set of likeliest tokens with probability >= p, never empty.

  Of equally likely tokens at its end those with the lowest ids are in it, only as many as it needs.
  """
  sorted_BV = -jnp.sort(-logits_BV, -1)
  probs_BV = jax.nn.softmax(sorted_BV, -1)
  before_BV = jnp.cumsum(probs_BV, -1) - probs_BV
  count_B1 = jnp.maximum((before_BV < p).sum(-1, keepdims=True), 1)
  last_B1 = jnp.take_along_axis(sorted_BV, count_B1 - 1, -1)
  above_BV, equal_BV = logits_BV > last_B1, logits_BV == last_B1
  ties_B1 = count_B1 - above_BV.sum(-1, keepdims=True)
  return above_BV | (equal_BV & (jnp.cumsum(equal_BV, -1) <= ties_B1))


def min_p(logits_BV, p):
  """True where the probability is >= p times that of the likeliest token."""
  return logits_BV >= logits_BV.max(-1, keepdims=True) + jnp.log(p)


def active_filters(cfg):
  """Return [(filter, value)] of a SampleConfig: of the fields that are not off, then of `filters`."""
  own = [(keep, getattr(cfg, name), off) for name, (off, keep) in FILTERS.items() if hasattr(cfg, name)]
  more = parse_numbers('sample.filters', cfg.filters, FILTERS)
  return [(keep, value) for keep, value, off in own if value != off] + [
    (FILTERS[name][1], value) for name, value in more.items() if value != FILTERS[name][0]
  ]


FILTERS = {'top_k': (0, top_k), 'top_p': (1.0, top_p), 'min_p': (0.0, min_p)}  # name: (off, filter)
