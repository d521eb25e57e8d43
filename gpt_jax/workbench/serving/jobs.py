"""Jobs of the engine: a text, or the images or sounds of a request; and the events that they report."""

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from gpt_jax.sampling import completions


class Token(NamedTuple):
  """A sampled token."""

  text: str  # that it completes
  offset: int  # of its first character in the text
  log_prob: float  # under the model, before any filter
  alternatives: list  # (text, log-probability) of the likeliest tokens, where they are wanted


class Piece(NamedTuple):
  """An event: the next piece of a text, with the tokens that end in it."""

  text: str = ''
  tokens: tuple = ()
  finish: str = ''  # stop or length in the last event of a text, which has `counts`
  counts: tuple = ()  # tokens of the prompt, sampled tokens


class Media(NamedTuple):
  """An event: all images (uint8 [Y, X, A]) or sounds (float32 [N]) of a request."""

  values: list
  counts: tuple


class Failure(NamedTuple):
  """An event: the job ended with an exception."""

  error: Exception


@dataclasses.dataclass(eq=False)
class Job:
  """A generation that waits or runs. The engine calls `emit` in its own thread."""

  prompt: Any  # prompt_batch.Prompt
  cfg: Any  # SampleConfig
  emit: Callable  # takes Piece, Media or Failure
  keys_B: Any = None  # one PRNG key a sample
  model: str = ''  # its name in requests
  adapter: int = 0  # its number in an AdapterBank; 0 = the model without one
  submitted: float = dataclasses.field(default_factory=time.monotonic)
  cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)

  @property
  def length(self):
    """Tokens of the prompt."""
    return len(self.prompt.ids)

  @property
  def limit(self):
    """Most tokens of prompt and text."""
    return self.length + self.cfg.max_new_tokens


@dataclasses.dataclass(eq=False)
class TextJob(Job):
  """One text: a slot of a decode batch."""

  tokenizers: Any = None
  kind: str = 'text'  # a key of engine.batches: text or chat
  stop: tuple = ()  # strings
  ends: tuple = ()  # ids that are no part of the text
  end_ids: frozenset = frozenset()  # all ids that end the row
  alternatives: int = 0  # likeliest tokens to report of each token
  wants_tokens: bool = False

  def __post_init__(self):
    self.stream = completions.TextStream(self.tokenizers, self.prompt.ids, self.stop, self.ends)
    self.count, self.previous = 0, self.prompt.ids[-1]
    self.pending = []  # (first character, end, Token) of tokens whose text is not yet certain

  def push(self, ids, log_probs, tops, has_ended):
    """Take new tokens -> whether the text has ended; tops: (ids [E, K], log-probabilities [E, K])."""
    text, is_end = '', False
    for n, index in enumerate(ids):
      begin = len(self.stream.text)
      text += self.stream.push([index])
      self.count += 1
      is_end = index in self.end_ids
      if self.wants_tokens and not is_end:
        token = self._token(log_probs[n], [top[n] for top in tops], begin)
        self.pending.append((begin, len(self.stream.text), token))
      self.previous = index
      if self.stream.is_stopped:
        break
    if not (has_ended or self.stream.is_stopped):
      printed = self.stream.printed
      # The last token stays: the end of the text may add to it what the decoder holds back.
      ready = [token for _, end, token in self.pending[:-1] if end <= printed]
      self.pending = self.pending[len(ready) :]
      if text or ready:
        self.emit(Piece(text, tuple(ready)))
      return False
    if not self.stream.is_stopped:
      text += self.stream.finish()
    if not self.stream.is_stopped:
      for begin, end, token in self.pending[-1:]:
        whole = token._replace(text=token.text + self.stream.text[end:])
        self.pending[-1] = begin, len(self.stream.text), whole
    # A stop string takes the tokens with it that begin after the text.
    size, is_cut = len(self.stream.text), self.stream.is_stopped
    ready = [token for begin, _, token in self.pending if not is_cut or begin < size]
    finish = 'stop' if is_cut or is_end else 'length'
    self.emit(Piece(text, tuple(ready), finish, (self.length, self.count)))
    return True

  def _token(self, log_prob, tops, begin):
    pairs = list(zip(*(top[: self.alternatives].tolist() for top in tops), strict=True))
    return Token(
      self.stream.text[begin:], begin, float(log_prob), [(self._name(i), value) for i, value in pairs]
    )

  def _name(self, index):
    """Return the text of an id after the previous one; specials and codes have names such as <eos>."""
    vocabulary = self.tokenizers.vocabulary
    special = next((name for name, i in vocabulary.specials if i == index), '')
    if special or index >= vocabulary.count('text'):
      return f'<{special or index}>'
    return completions.decode_continuation(self.tokenizers, [self.previous], [index])


@dataclasses.dataclass(eq=False)
class MediaJob(Job):
  """All images or sounds of a request, generated together beside the texts."""

  to: str = 'image'
  state: Any = None  # the last one of its generation

  def result(self, run, state):
    """Return the Media of the state in which the generation ended."""
    rows = completions.new_tokens(state, [self.prompt], self.cfg.num_samples)
    values = [run.pieces(self.prompt, ids)[-1].value for ids, _ in rows]
    return Media(values, (self.length, sum(len(ids) for ids, _ in rows)))
