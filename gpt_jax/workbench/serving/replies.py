"""Answers in the form of OpenAI's API: completions and chat completions, whole and in chunks.

Source: https://platform.openai.com/docs/api-reference, completions and chat.
"""

import secrets
import time

from gpt_jax.workbench.serving.errors import to_json


class Reply:
  """The envelope of one answer; `form` is a row of FORMS."""

  def __init__(self, form, model):
    self.form = form
    self.head = {'id': f'{form.prefix}-{secrets.token_hex(12)}', 'created': int(time.time()), 'model': model}

  def whole(self, choices, usage):
    """Return the answer; choices: (text, tokens or None, finish) of each."""
    rows = [
      self.form.choice(text, tokens) | {'index': i, 'finish_reason': finish}
      for i, (text, tokens, finish) in enumerate(choices)
    ]
    return self.head | {'object': self.form.name, 'choices': rows, 'usage': usage}

  def chunk(self, index, piece, wants_tokens, is_first):
    """Return one event of a stream, for a piece of choice `index`."""
    tokens = piece.tokens if wants_tokens else None
    row = self.form.delta(piece.text, tokens, is_first)
    choices = [row | {'index': index, 'finish_reason': piece.finish or None}]
    return self.head | {'object': self.form.chunk_name, 'choices': choices}

  def last(self, usage):
    """Return the event that reports the usage of a stream."""
    return self.head | {'object': self.form.chunk_name, 'choices': [], 'usage': usage}


class Completion:
  """POST /v1/completions."""

  prefix, name, chunk_name = 'cmpl', 'text_completion', 'text_completion'

  @staticmethod
  def choice(text, tokens):
    """A text, and its tokens if they are wanted."""
    if tokens is None:
      return {'text': text, 'logprobs': None}
    tops = [dict([*token.alternatives[::-1], (token.text, token.log_prob)]) for token in tokens]
    return {
      'text': text,
      'logprobs': {
        'tokens': [token.text for token in tokens],
        'token_logprobs': [token.log_prob for token in tokens],
        'top_logprobs': tops if any(token.alternatives for token in tokens) else None,
        'text_offset': [token.offset for token in tokens],
      },
    }

  @classmethod
  def delta(cls, text, tokens, is_first):
    """A piece of a text."""
    return cls.choice(text, tokens)


class Chat:
  """POST /v1/chat/completions."""

  prefix, name, chunk_name = 'chatcmpl', 'chat.completion', 'chat.completion.chunk'

  @classmethod
  def choice(cls, text, tokens):
    """A message, and its tokens if they are wanted."""
    message = {'role': 'assistant', 'content': text, 'refusal': None}
    return {'message': message, 'logprobs': cls.log_probs(tokens)}

  @classmethod
  def delta(cls, text, tokens, is_first):
    """A piece of a message; the first one has its role."""
    role = {'role': 'assistant'} if is_first else {}
    return {'delta': role | {'content': text}, 'logprobs': cls.log_probs(tokens)}

  @staticmethod
  def log_probs(tokens):
    """The tokens with their alternatives; None if they are not wanted."""
    row = lambda text, value: {'token': text, 'logprob': value, 'bytes': list(text.encode())}
    if tokens is None:
      return None
    return {
      'content': [
        row(token.text, token.log_prob) | {'top_logprobs': [row(*pair) for pair in token.alternatives]}
        for token in tokens
      ],
      'refusal': None,
    }


def usage(counts):
  """Return the usage of (tokens of the prompt, sampled tokens, whether the prompt counts) of each text."""
  prompt = sum(tokens for tokens, _, is_counted in counts if is_counted)
  sampled = sum(tokens for _, tokens, _ in counts)
  return {'prompt_tokens': prompt, 'completion_tokens': sampled, 'total_tokens': prompt + sampled}


def event(value):
  """Return an object as a server-sent event."""
  return b'data: ' + to_json(value) + b'\n\n'


DONE = b'data: [DONE]\n\n'
