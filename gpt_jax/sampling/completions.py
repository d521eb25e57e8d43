"""Texts and token ids from prompts: the host side of sampling.

`sample.generate` works on device arrays; the functions here take and return lists of ids and strings.
"""

import bisect

import numpy as np

from gpt_jax import sample
from gpt_jax.cluster.processes import fetch
from gpt_jax.sampling import beam, block, decoding_layout, prompt_batch, validate
from gpt_jax.sampling.history import History
from gpt_jax.tokenizers import grammar as grammars


def generate_ids(model, tokenizers, prompts, cfg, to='text', keys_B=None, ends=()):
  """Continue prompts with `to`, a row of grammar.END_MARKERS.

  model: parameters as trained. ends: ids that end a text, too. Returns for each prompt a list of (new ids,
  their log-probabilities under the model); with cfg.beams (new ids, length-penalized score of the text).
  Raises ValueError as `sample.start` does, and for beams where `to` is not text.
  """
  model = decoding_layout.prepare_model(model)
  grammar = build_grammar(tokenizers, model.cfg.V, to, ends, cfg.block)
  if cfg.beams and to != 'text':
    raise ValueError(f'sample.beams={cfg.beams} cannot make to={to}\nfix: set beams=0, or --to=text')
  if cfg.beams:
    return beam.beam_search(model, prompts, cfg, grammar)
  state = sample.generate(model, prompts, cfg, grammar, keys_B)
  rows, n = new_tokens(state, prompts, cfg.num_samples), cfg.num_samples
  return [rows[i * n : (i + 1) * n] for i in range(len(prompts))]


def complete(model, tokenizers, prompts, cfg, stop=(), ends=(), keys_B=None):
  """Continue prompts (Prompt or lists of ids) as text.

  model: parameters as trained. stop: strings; a text ends before the first of them. ends: ids that
  end it. Returns for each prompt a list of (text, scores as in `generate_ids`); log-probabilities end with
  the tokens of the text, the score of a beam is that of its whole search.
  """
  check_stop(stop, cfg.block)
  texts = []
  groups = generate_ids(model, tokenizers, prompts, cfg, keys_B=keys_B, ends=ends)
  for prompt, group in zip(prompts, groups, strict=True):
    group = [(ids[: len(ids) - (ids[-1:] != [] and ids[-1] in ends)], scores) for ids, scores in group]
    before = prompt_batch.as_prompt(prompt).ids
    texts.append([_truncate_sample(tokenizers, before, ids, scores, stop) for ids, scores in group])
  return texts


def _truncate_sample(tokenizers, before, ids, scores, stop):
  """Return (text before the first stop string, log-probabilities of the tokens that it begins or ends in)."""
  text = decode_continuation(tokenizers, before, ids)
  truncated = truncate_at_stop(text, stop)
  if truncated == text or not isinstance(scores, list):
    return truncated, scores
  decode_first = lambda n: decode_continuation(tokenizers, before, ids[:n]).rstrip('\ufffd')
  count = bisect.bisect_left(range(len(ids)), len(truncated), key=lambda n: len(decode_first(n)))
  return truncated, scores[:count]


def stream(model, prompts, cfg, grammar, keys_B=None, every=16, history=None):
  """Yield the state of `sample.generate` after every few tokens; stop consuming to stop.

  history: of one prompt, a History whose tokens are not computed again; it gets those of this generation.
  """
  start, history = (history or sample).start, history or History()
  state, static = start(model, prompts, cfg, grammar, keys_B), validate.static_config(cfg)
  for _ in range(0, cfg.max_new_tokens, every):
    history.state = None  # donated
    state = history.state = sample.jit_decode(model, state, every, static, grammar)
    # A copy: the next call donates the state, and the caller may keep what it was given.
    yield fetch(state._replace(cache=None, next_logits_BV=None, null_logits_BV=None, keys_B=None))
    if state.done_B.all():
      return


def stream_text(model, tokenizers, prompt, cfg, stop=(), ends=(), history=None):
  """Continue one prompt and yield pieces of text, each as soon as no stop string can change it.

  ends: ids that end the text, too. history: see `stream`.
  """
  check_stop(stop, cfg.block)
  model = decoding_layout.prepare_model(model)
  grammar = build_grammar(tokenizers, model.cfg.V, ends=ends, blocked=cfg.block)
  prompt_ids = prompt_batch.as_prompt(prompt).ids
  text, length = TextStream(tokenizers, prompt_ids, stop, ends), len(prompt_ids)
  for state in stream(model, [prompt], cfg, grammar, history=history):
    yield text.push(state.token_ids_BT[0, length : state.lengths_B[0]])
    length = int(state.lengths_B[0])
    if text.is_stopped:
      return
  yield text.finish()


class TextStream:
  """Text of the ids after a prompt, in pieces that no stop string can change."""

  def __init__(self, tokenizers, prompt_ids, stop=(), ends=()):
    self.decoder, self.stop, self.ends = tokenizers.stream_decoder(), stop, ends
    self.text, self.printed, self.is_stopped = '', 0, False
    self.hold = max(map(len, stop), default=1) - 1  # last characters, which may begin a stop string
    before = trailing_text_ids(tokenizers, prompt_ids)  # see `decode_continuation`
    # The decoder may hold back the prompt's last characters (U+FFFD): they are no part of the continuation.
    self.held = len(tokenizers.decode_text(before)) - sum(len(self.decoder.push(i)) for i in before)

  def push(self, ids):
    """Add ids -> the text that has become certain; is_stopped after a stop string, which ends the text."""
    self._add(''.join(self.decoder.push(i) for i in ids if i not in self.ends))
    return self._print(len(self.text) - (0 if self.is_stopped else self.hold))

  def finish(self):
    """Return the rest of a text that no stop string ended."""
    self._add(self.decoder.flush())
    return self._print(len(self.text))

  def _add(self, new):
    text, self.held = self.text + new[self.held :], max(0, self.held - len(new))
    self.text = truncate_at_stop(text, self.stop)
    self.is_stopped = self.text != text

  def _print(self, end):
    begin, self.printed = self.printed, max(self.printed, end)
    return self.text[begin : self.printed]


def encode_prompt(tokenizers, prompt, begin=''):
  """Return a prompt's ids after the special `begin`; an empty prompt is the start of a text."""
  first = [tokenizers.vocabulary.special(begin)] if begin else []
  return first + tokenizers.encode_text(prompt) or [tokenizers.vocabulary.special(tokenizers.start)]


def begin_special(cfg, tokenizers):
  """Return the special before a prompt: sample.begin, else that of texts where each row began with one."""
  starts = cfg.data.has_whole_documents and tokenizers.start in dict(tokenizers.vocabulary.specials)
  starts = starts and (tokenizers.start == 'bos' or cfg.data.has_start)  # as the token cache decides
  return cfg.sample.begin or (tokenizers.start if starts else '')


def build_grammar(tokenizers, columns, to='text', ends=(), blocked=()):
  """Build the grammar of these tokenizers for a model with logits of this many columns.

  ends: ids that end a row and are allowed in its text, beside those of the vocabulary. blocked: see
  SampleConfig.block.
  """
  grammar = grammars.build(tokenizers.vocabulary, tokenizers.layout, columns, to)
  for reader in tokenizers.readers.values():  # codes of pictures that are read
    grammar.table_NV[0, list(getattr(reader, 'token_ids', ()))] = False
  grammar.ends_V[list(ends)] = True
  grammar.table_NV[0, list(ends)] = True
  return block.add_block(grammar, tokenizers, blocked) if to in ('text', 'any') else grammar


def new_tokens(state, prompts, num_samples):
  """Return (ids, log-probabilities) of the tokens after each prompt, one pair a row of the state.

  Ids of a model with a flow head are a PatchIds.
  """
  ids_BT, log_probs_BT, lengths_B = fetch((state.token_ids_BT, state.log_probs_BT, state.lengths_B))
  starts = np.repeat([len(prompt_batch.as_prompt(p).ids) for p in prompts], num_samples)
  rows = [
    (ids_BT[b, start : lengths_B[b]].tolist(), log_probs_BT[b, start : lengths_B[b]].tolist())
    for b, start in enumerate(starts)
  ]
  if state.patches is None:
    return rows
  values_BTA = fetch(state.patches.values_BTA)
  ends = zip(values_BTA, lengths_B, strict=True)
  return [(PatchIds(ids, x_TA[:n]), scores) for (ids, scores), (x_TA, n) in zip(rows, ends, strict=True)]


class PatchIds(list):
  """The new ids of a row, and `values_TA`, the patches of the whole row in their places, prompt included."""

  def __init__(self, ids, values_TA):
    super().__init__(ids)
    self.values_TA = values_TA


def decode_continuation(tokenizers, prompt_ids, ids):
  """Decode ids after a prompt; some tokenizers drop the space before a text's first word."""
  before = trailing_text_ids(tokenizers, prompt_ids)
  return tokenizers.decode_text([*before, *ids])[len(tokenizers.decode_text(before)) :]


def trailing_text_ids(tokenizers, ids):
  """Return the text ids at the end of a prompt: a special, an image or a sound starts a new text."""
  specials = {index for _, index in tokenizers.vocabulary.specials}
  texts = tokenizers.vocabulary.count('text')
  ends = [n for n, i in enumerate(ids, 1) if i >= texts or i in specials]
  return ids[ends[-1] if ends else 0 :]


def check_stop(stop, blocked=()):
  """Raise ValueError for an empty stop string, or one that would end a text within a blocked word."""
  if not all(stop):
    raise ValueError(
      "--stop='' would end every text before its first character\nfix: leave it out, or name a string"
    )
  if blocked:
    block.check_stop(block.read_patterns(blocked), stop)


def truncate_at_stop(text, stop):
  """Cut a text before the first of the stop strings."""
  return text[: min((text.find(s) for s in stop if s in text), default=len(text))]
