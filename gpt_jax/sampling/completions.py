"""Text and token ids from prompts: the host side of sampling.

`sample.generate` works on device arrays; the functions here take and return lists of ids and strings.
"""

import numpy as np

from gpt_jax import sample
from gpt_jax.cluster.processes import fetch
from gpt_jax.sampling import beam
from gpt_jax.tokenizers import grammar as grammars


def generate_ids(model, tokenizers, prompts, cfg, to='text', keys_B=None):
  """Continue prompts with what `to` names (a row of grammar.END_MARKERS).

  model: parameters as trained. -> for each prompt a list of (ids after it, log-probability of each
  under the model); with cfg.beams the length-penalized score of the whole text stands in the place
  of log-probabilities. Raises ValueError as `start` does, and for beams of anything but text.
  """
  model = sample.prepare_model(model)
  grammar = build_grammar(tokenizers, model.cfg.V, to)
  if cfg.beams and to != 'text':
    raise ValueError(f'sample.beams={cfg.beams} cannot make to={to}\nfix: set beams=0, or --to=text')
  if cfg.beams:
    return beam.beam_search(model, prompts, cfg, grammar)
  state = sample.generate(model, prompts, cfg, grammar, keys_B)
  rows, n = new_tokens(state, prompts, cfg.num_samples), cfg.num_samples
  return [rows[i * n : (i + 1) * n] for i in range(len(prompts))]


def complete(model, tokenizers, prompts, cfg, stop=()):
  """Continue prompts (Prompt or lists of ids) as text.

  model: parameters as trained. stop: strings; a text ends before the first of them.
  -> for each prompt a list of (text, scores as of `generate_ids`).
  """
  found = generate_ids(model, tokenizers, prompts, cfg)
  return [
    [
      (truncate_at_stop(decode_continuation(tokenizers, sample.as_prompt(prompt).ids, ids), stop), p)
      for ids, p in group
    ]
    for prompt, group in zip(prompts, found, strict=True)
  ]


def stream_text(model, tokenizers, prompt, cfg, stop=()):
  """Continue one prompt and yield its text in pieces, as soon as each is certain."""
  model = sample.prepare_model(model)
  grammar = build_grammar(tokenizers, model.cfg.V)
  decoder, text, shown = tokenizers.stream_decoder(), '', 0
  hold = max(map(len, stop), default=1) - 1  # characters that a stop string may still begin with
  done = len(sample.as_prompt(prompt).ids)
  for i in trailing_text_ids(tokenizers, sample.as_prompt(prompt).ids):  # see `decode_continuation`
    decoder.push(i)
  for state in sample.stream(model, [prompt], cfg, grammar):
    ids = state.token_ids_BT[0, done : state.lengths_B[0]]
    text, done = text + ''.join(map(decoder.push, ids)), int(state.lengths_B[0])
    ended = truncate_at_stop(text, stop) != text
    certain = len(truncate_at_stop(text, stop)) if ended else max(shown, len(text) - hold)
    yield text[shown:certain]
    shown = certain
    if ended:
      return
  yield truncate_at_stop(text + decoder.flush(), stop)[shown:]


def encode_prompt(tokenizers, prompt, begin=''):
  """Ids of a prompt, after the special `begin`; an empty one is the end of the text before."""
  first = [tokenizers.vocabulary.special(begin)] if begin else []
  return first + tokenizers.encode_text(prompt) or [tokenizers.vocabulary.special('eos')]


def build_grammar(tokenizers, columns, to='text'):
  """The grammar of what these tokenizers can make, for a model of this many columns."""
  return grammars.build(tokenizers.vocabulary, tokenizers.layout, columns, to)


def new_tokens(state, prompts, num_samples):
  """-> list of (ids, log-probabilities), one a row: what was sampled after each prompt."""
  ids_BT, log_probs_BT, lengths_B = fetch((state.token_ids_BT, state.log_probs_BT, state.lengths_B))
  begins = np.repeat([len(sample.as_prompt(p).ids) for p in prompts], num_samples)
  return [
    (ids_BT[b, begin : lengths_B[b]].tolist(), log_probs_BT[b, begin : lengths_B[b]].tolist())
    for b, begin in enumerate(begins)
  ]


def decode_continuation(tokenizers, prompt, ids):
  """The text of ids after a prompt: some tokenizers drop the space of a word that stands first."""
  before = trailing_text_ids(tokenizers, prompt)
  return tokenizers.decode_text([*before, *ids])[len(tokenizers.decode_text(before)) :]


def trailing_text_ids(tokenizers, ids):
  """The text ids at the end of a prompt: after a special or a medium a new text begins."""
  specials = {index for _, index in tokenizers.vocabulary.specials}
  texts = tokenizers.vocabulary.count('text')
  others = [n for n, i in enumerate(ids, 1) if i >= texts or i in specials]
  return ids[others[-1] if others else 0 :]


def truncate_at_stop(text, stop):
  """The text up to the first of the stop strings."""
  return text[: min((text.find(s) for s in stop if s in text), default=len(text))]
