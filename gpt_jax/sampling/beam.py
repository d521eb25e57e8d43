"""Beam search over a cached model, compiled.

Letters: B prompts, W beams a prompt, T buffer length, V vocabulary.
Sources: length penalty ((5 + length) / 6) ** alpha (Wu et al. 2016, section 7).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax import sample
from gpt_jax.cluster.processes import fetch
from gpt_jax.sampling import prompt_batch, validate
from gpt_jax.sampling.samplers import NEG_INF
from gpt_jax.tokenizers import grammar as grammars

MIN_SCORE = NEG_INF / 1e3  # a lower score contains a token that must not be sampled


class Beams(NamedTuple):
  """The state of a search: live beams, and the best ended ones."""

  step: jax.Array  # int32; new tokens so far
  live_ids_BWT: jax.Array  # int32
  live_scores_BW: jax.Array  # sum of log-probabilities
  done_ids_BWT: jax.Array  # int32
  done_scores_BW: jax.Array  # length-penalized, best first
  done_lengths_BW: jax.Array  # int32; tokens in the row, prompt included
  logits_BWV: jax.Array  # float32; for the next token of each live beam
  span: grammars.GrammarState  # rows B W; grammar state of each live beam
  cache: list  # rows B W


def length_penalty(length, alpha):
  """The divisor of a sum of log-probabilities."""
  return ((5.0 + length) / 6.0) ** alpha


def init_beams(state, W):
  """Copy each prefilled prompt to W beams, of which only the first is live at the start -> Beams."""
  B = state.lengths_B.shape[0]
  first_only_BW = jnp.where(jnp.arange(W) == 0, 0.0, NEG_INF)[None] * jnp.ones((B, 1))
  to_beams = lambda x: jnp.repeat(x[:, None], W, 1)
  to_rows = lambda x: jnp.repeat(x, W, 0)
  return Beams(
    step=jnp.int32(0),
    live_ids_BWT=to_beams(state.token_ids_BT),
    live_scores_BW=first_only_BW,
    done_ids_BWT=to_beams(state.token_ids_BT),
    done_scores_BW=jnp.full((B, W), NEG_INF),
    done_lengths_BW=to_beams(state.lengths_B),
    logits_BWV=to_beams(state.next_logits_BV),
    span=jax.tree.map(to_rows, state.span),
    cache=jax.tree.map(to_rows, state.cache),
  )


def search(model, state, steps, cfg, grammar, stops):
  """Search from prefilled prompts until no live beam can win, at most `steps` tokens -> Beams.

  stops: number of ids that end a text.
  """
  B, W, V = state.lengths_B.shape[0], cfg.beams, state.next_logits_BV.shape[-1]
  rows_B1 = jnp.arange(B)[:, None]
  X = min((1 + max(1, stops)) * W, W * V)  # at least W of them do not stop

  def can_improve(beams):
    best_live_B = beams.live_scores_BW[:, 0] / length_penalty(jnp.float32(steps), cfg.length_penalty)
    can_win = (best_live_B > beams.done_scores_BW[:, -1]).any()
    is_alive = (beams.live_scores_BW[:, 0] > MIN_SCORE).any()
    return (beams.step < steps) & is_alive & can_win

  def extend(beams):
    length_B = state.lengths_B + beams.step
    allowed_BWV = grammars.allowed(grammar, beams.span).reshape(B, W, V)
    log_probs_BWV = jax.nn.log_softmax(jnp.where(allowed_BWV, beams.logits_BWV, NEG_INF))
    scores_BX = (beams.live_scores_BW[..., None] + log_probs_BWV).reshape(B, W * V)
    top_BX, flat_BX = jax.lax.top_k(scores_BX, X)
    from_BX, token_BX = flat_BX // V, (flat_BX % V).astype(jnp.int32)
    ids_BXT = beams.live_ids_BWT[rows_B1, from_BX]
    ids_BXT = ids_BXT.at[rows_B1, jnp.arange(X)[None], length_B[:, None]].set(token_BX, mode='drop')
    stops_BX = grammar.ends_V[token_BX] | (beams.step + 1 == steps)
    ended_BX = stops_BX & (top_BX > MIN_SCORE)

    new_BX = top_BX / length_penalty((beams.step + 1).astype(jnp.float32), cfg.length_penalty)
    new = (jnp.where(ended_BX, new_BX, NEG_INF), ids_BXT, jnp.broadcast_to(length_B[:, None] + 1, (B, X)))
    done = (beams.done_scores_BW, beams.done_ids_BWT, beams.done_lengths_BW)
    done_BX, all_ids, all_lengths = (jnp.concatenate(x, 1) for x in zip(done, new, strict=True))
    done_scores_BW, keep_BW = jax.lax.top_k(done_BX, W)

    live_scores_BW, live_BW = jax.lax.top_k(jnp.where(stops_BX, NEG_INF, top_BX), W)
    token_BW, from_BW = token_BX[rows_B1, live_BW], from_BX[rows_B1, live_BW]
    source_rows = (rows_B1 * W + from_BW).reshape(-1)
    span, cache = jax.tree.map(lambda x: x[source_rows], (beams.span, beams.cache))
    new_ids = token_BW.reshape(-1)
    where = sample.next_positions(model.cfg, grammar, span, new_ids)
    out = model(new_ids[:, None], cache=cache, start_B=jnp.repeat(length_B, W), **where)
    return Beams(
      step=beams.step + 1,
      live_ids_BWT=ids_BXT[rows_B1, live_BW],
      live_scores_BW=live_scores_BW,
      done_ids_BWT=all_ids[rows_B1, keep_BW],
      done_scores_BW=done_scores_BW,
      done_lengths_BW=all_lengths[rows_B1, keep_BW],
      logits_BWV=out.logits_BTV.reshape(B, W, V),
      span=grammars.advance(grammar, span, new_ids),
      cache=out.cache,
    )

  return jax.lax.while_loop(can_improve, extend, init_beams(state, W))


_search = jax.jit(search, static_argnames=('steps', 'cfg', 'stops'))


def beam_search(model, prompts, cfg, grammar):
  """Return the cfg.num_samples best continuations of each prompt.

  A list for each prompt of (new ids, length-penalized score), best first; shorter than num_samples
  where fewer texts are possible.
  """
  state = sample.start(model, prompts, dataclasses.replace(cfg, num_samples=1), grammar)
  steps, rules = cfg.max_new_tokens, validate.static_config(cfg)
  beams = _search(model, state, steps, rules, grammar, int(grammar.ends_V.sum()))
  ids_BWT, scores_BW, lengths_BW = fetch((beams.done_ids_BWT, beams.done_scores_BW, beams.done_lengths_BW))
  starts = [len(prompt_batch.as_prompt(prompt).ids) for prompt in prompts]
  return [
    [
      (ids_BWT[b, w, start : lengths_BW[b, w]].tolist(), float(scores_BW[b, w]))
      for w in range(cfg.num_samples)
      if scores_BW[b, w] > MIN_SCORE
    ]
    for b, start in enumerate(starts)
  ]
