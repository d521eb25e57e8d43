"""Beam search over a cached model, compiled.

Letters: B prompts, W beams a prompt, T buffer length, V vocabulary.
Sources: length penalty ((5 + length) / 6) ** alpha (Wu et al. 2016, section 7).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import sample

IMPOSSIBLE = sample.NEVER / 1e3  # scores below this hold a token that must not be sampled


class Beams(NamedTuple):
  """A search under way: live beams, and the best ended ones."""

  step: jax.Array  # int32; new tokens so far
  live_ids_BWT: jax.Array  # int32
  live_scores_BW: jax.Array  # sum of log-probabilities
  done_ids_BWT: jax.Array  # int32
  done_scores_BW: jax.Array  # length-penalised, best first
  done_lengths_BW: jax.Array  # int32; tokens in the row, prompt included
  logits_BWV: jax.Array  # float32; for the next token of each live beam
  cache: list  # rows B W


def penalty(length, alpha):
  """What a sum of log-probabilities is divided by."""
  return ((5.0 + length) / 6.0) ** alpha


def search(model, state, steps, cfg, allowed_V, stop_ids):
  """Prefilled prompts -> Beams, after `steps` or when no live one can win any more."""
  B, T = state.token_ids_BT.shape
  W, V = cfg.beams, state.next_logits_BV.shape[-1]
  first_only_BW = jnp.where(jnp.arange(W) == 0, 0.0, sample.NEVER)[None] * jnp.ones((B, 1))
  to_beams = lambda x: jnp.repeat(x[:, None], W, 1)
  beams = Beams(
    step=jnp.int32(0),
    live_ids_BWT=to_beams(state.token_ids_BT),
    live_scores_BW=first_only_BW,
    done_ids_BWT=to_beams(state.token_ids_BT),
    done_scores_BW=jnp.full((B, W), sample.NEVER),
    done_lengths_BW=to_beams(state.lengths_B),
    logits_BWV=to_beams(state.next_logits_BV),
    cache=jax.tree.map(lambda x: jnp.repeat(x, W, 0), state.cache),
  )
  rows_B1 = jnp.arange(B)[:, None]
  is_stop_V = jnp.zeros(V, bool).at[jnp.asarray(stop_ids, jnp.int32)].set(True)
  X = min((1 + max(1, len(stop_ids))) * W, W * V)  # enough for W live ones whatever stops

  def promising(beams):
    best_live_B = beams.live_scores_BW[:, 0] / penalty(jnp.float32(steps), cfg.length_penalty)
    can_win = (best_live_B > beams.done_scores_BW[:, -1]).any()
    alive = (beams.live_scores_BW[:, 0] > IMPOSSIBLE).any()
    return (beams.step < steps) & alive & can_win

  def extend(beams):
    length_B = state.lengths_B + beams.step
    log_probs_BWV = jax.nn.log_softmax(
      jnp.where(allowed_V[None, None], beams.logits_BWV, sample.NEVER)
    )
    scores_BX = (beams.live_scores_BW[..., None] + log_probs_BWV).reshape(B, W * V)
    top_BX, flat_BX = jax.lax.top_k(scores_BX, X)
    from_BX, token_BX = flat_BX // V, (flat_BX % V).astype(jnp.int32)
    ids_BXT = beams.live_ids_BWT[rows_B1, from_BX]
    ids_BXT = ids_BXT.at[rows_B1, jnp.arange(X)[None], length_B[:, None]].set(token_BX, mode='drop')
    stops_BX = is_stop_V[token_BX] | (beams.step + 1 == steps)
    ended_BX = stops_BX & (top_BX > IMPOSSIBLE)

    new_BX = top_BX / penalty((beams.step + 1).astype(jnp.float32), cfg.length_penalty)
    done_BX = jnp.concatenate([beams.done_scores_BW, jnp.where(ended_BX, new_BX, sample.NEVER)], 1)
    all_ids = jnp.concatenate([beams.done_ids_BWT, ids_BXT], 1)
    lengths_BX = jnp.broadcast_to(length_B[:, None] + 1, (B, X))
    all_lengths = jnp.concatenate([beams.done_lengths_BW, lengths_BX], 1)
    done_scores_BW, keep_BW = jax.lax.top_k(done_BX, W)

    live_scores_BW, live_BW = jax.lax.top_k(jnp.where(stops_BX, sample.NEVER, top_BX), W)
    token_BW, from_BW = token_BX[rows_B1, live_BW], from_BX[rows_B1, live_BW]
    source_rows = (rows_B1 * W + from_BW).reshape(-1)
    cache = jax.tree.map(lambda x: x[source_rows], beams.cache)
    out = model(token_BW.reshape(-1, 1), cache=cache, start_B=jnp.repeat(length_B, W))
    return Beams(
      step=beams.step + 1,
      live_ids_BWT=ids_BXT[rows_B1, live_BW],
      live_scores_BW=live_scores_BW,
      done_ids_BWT=all_ids[rows_B1, keep_BW],
      done_scores_BW=done_scores_BW,
      done_lengths_BW=all_lengths[rows_B1, keep_BW],
      logits_BWV=out.logits_BTV.reshape(B, W, V),
      cache=out.cache,
    )

  return jax.lax.while_loop(promising, extend, beams)


_search = jax.jit(search, static_argnames=('steps', 'cfg', 'stop_ids'))


def beam_search(model, prompts, cfg, allowed_V, stop_ids=()):
  """The cfg.num_samples best continuations of each prompt.

  -> one list a prompt of (ids after the prompt, length-penalised score), best first; shorter than
  num_samples when fewer texts are possible.
  """
  state = sample.start(model, prompts, dataclasses.replace(cfg, num_samples=1))
  steps, rules = cfg.max_new_tokens, sample.choice_rules(cfg)
  beams = _search(model, state, steps, rules, np.asarray(allowed_V), tuple(stop_ids))
  ids_BWT, scores_BW, lengths_BW = jax.device_get(
    (beams.done_ids_BWT, beams.done_scores_BW, beams.done_lengths_BW)
  )
  return [
    [
      (ids_BWT[b, w, len(prompt) : lengths_BW[b, w]].tolist(), float(scores_BW[b, w]))
      for w in range(cfg.num_samples)
      if scores_BW[b, w] > IMPOSSIBLE
    ]
    for b, prompt in enumerate(prompts)
  ]
