"""The fields of a request, read with their types and limits; what is left over is refused.

Nothing that a client asked for is ignored: a field of OpenAI's that this server does not support may be
absent or have the value that changes nothing.
"""

import base64
import binascii
import difflib
import json
import re

from gpt_jax.workbench.serving.errors import RequestError

NEUTRAL = {  # field without support here: values that change nothing
  'frequency_penalty': (0,),
  'presence_penalty': (0,),
  'best_of': (1,),
  'echo': (False,),
  'suffix': ('',),
  'logit_bias': ({},),
  'store': (False,),
  'tools': ([],),
  'tool_choice': ('none', 'auto'),
  'response_format': ({'type': 'text'},),
  'modalities': (['text'],),
  'quality': ('auto', 'standard'),
  'style': (),
  'background': ('auto',),
  'moderation': ('auto',),
  'speed': (1,),
  'stream_format': ('audio',),
  'instructions': ('',),
  'language': (),
  'chunking_strategy': ('auto',),
  'timestamp_granularities[]': (),
}
UNREAD = ('user', 'metadata', 'safety_identifier', 'service_tier')  # about the client, not the answer
MOST_MEDIA = 16  # pictures and sounds of a conversation
SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'seed')
TYPES = {
  bool: 'true or false',
  int: 'an integer',
  float: 'a number',
  str: 'a text',
  list: 'a list',
  dict: 'an object',
}
DATA_URL = re.compile(r'data:[\w.+-]+/[\w.+-]+;base64,')


class Fields:
  """The fields of one request; `take` each, then `refuse_rest`."""

  def __init__(self, values):
    self.values = {name: value for name, value in values.items() if value is not None}

  @classmethod
  def of_json(cls, body):
    """Read the bytes of a JSON object; RequestError for anything else."""
    try:
      values = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
      raise RequestError(f'the body is not JSON: {str(error)[:200]}\nfix: send a JSON object') from None
    if not isinstance(values, dict):
      raise RequestError(f'the body is {type(values).__name__}, not an object\nfix: send a JSON object')
    return cls(values)

  def take(self, name, kind, default=None, low=None, high=None):
    """Return a field of type `kind` (float: also an integer) within low .. high; default if it is absent."""
    if name not in self.values:
      return default
    value = self.values.pop(name)
    is_right = isinstance(value, (int, float) if kind is float else kind)
    if not is_right or (isinstance(value, bool) and kind is not bool):
      raise invalid(name, value, f'is not {TYPES[kind]}', f'give {TYPES[kind]}')
    if (low is not None and value < low) or (high is not None and value > high):
      raise invalid(name, value, 'is out of range', f'use {low} to {high}')
    return value

  def require(self, name, kind):
    """Return a field that must be there."""
    if name not in self.values:
      raise RequestError(f'{name} is missing\nfix: give {TYPES[kind]}', param=name)
    return self.take(name, kind)

  def refuse_rest(self, *known):
    """Raise RequestError for a field that nobody took; known: names to suggest."""
    for name, value in self.values.items():
      if name in UNREAD or value in NEUTRAL.get(name, ()):
        continue
      if name in NEUTRAL:
        raise invalid(name, value, 'is not supported', 'leave it out')
      near = difflib.get_close_matches(str(name), known, 1)
      fix = f'did you mean {near[0]}?' if near else 'leave it out'
      raise RequestError(
        f'{str(name)[:100]} is not a field of this endpoint\nfix: {fix}', param=str(name)[:100]
      )


def invalid(name, value, cause, fix):
  """Return the RequestError of a field."""
  return RequestError(f'{name}={abbreviate(value)} {cause}\nfix: {fix}', param=name)


def abbreviate(value):
  """Return the beginning of a value for an error."""
  text = json.dumps(value, default=str)
  return text if len(text) <= 100 else f'{text[:100]} ...'


def _refuse_constant(name):
  raise ValueError(f'{name} is not a number of JSON')


def take_stop(fields, most=16, longest=200):
  """Return the stop strings of a request, a tuple."""
  value = fields.values.pop('stop', [])
  texts = [value] if isinstance(value, str) else value
  if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
    raise invalid('stop', value, 'is not a text or a list of texts', 'give texts that are not empty')
  if len(texts) > most or any(len(text) > longest for text in texts):
    raise invalid('stop', value, 'is too much', f'give at most {most} texts of at most {longest} characters')
  return tuple(texts)


def take_sampling(fields):
  """Return the fields of SampleConfig that a request sets; greedy decoding needs none of the others."""
  overrides = {
    'temperature': fields.take('temperature', float, low=0, high=100),
    'top_k': fields.take('top_k', int, low=0, high=1024),
    'top_p': fields.take('top_p', float, low=1e-6, high=1),
    'min_p': fields.take('min_p', float, low=0, high=1),
    'repetition_penalty': fields.take('repetition_penalty', float, low=0.01, high=100),
    'seed': fields.take('seed', int, low=0, high=2**32 - 1),
  }
  if overrides['temperature'] == 0:
    overrides = {name: overrides[name] for name in ('temperature', 'repetition_penalty')}
  return {name: value for name, value in overrides.items() if value is not None}


def read_messages(messages):
  """Return messages as prompts.build_chat takes them: media are bytes, never a path or an address."""
  if not isinstance(messages, list) or not messages:
    raise invalid('messages', messages, 'is not a list of messages', 'give at least one')
  check_media_count(messages)
  read = []
  for number, message in enumerate(messages):
    name = f'messages[{number}]'
    if not isinstance(message, dict) or not isinstance(message.get('role'), str):
      raise invalid(name, message, 'is not a message', 'give an object with role and content')
    fields = {key: value for key, value in message.items() if value is not None}
    if unknown := fields.keys() - {'role', 'content', 'name'}:
      raise invalid(f'{name}.{min(unknown)}', fields[min(unknown)], 'is not supported', 'leave it out')
    role = 'system' if message['role'] == 'developer' else message['role']
    content = fields.get('content', '')
    if isinstance(content, list):
      content = [_part(part, f'{name}.content[{i}]') for i, part in enumerate(content)]
    elif not isinstance(content, str):
      raise invalid(f'{name}.content', content, 'is not a text or a list of parts', 'give one of them')
    read.append(fields | {'role': role, 'content': content})
  return read


def check_media_count(messages):
  """Raise RequestError for more than MOST_MEDIA pictures and sounds, before any is decoded."""
  contents = [message.get('content') for message in messages if isinstance(message, dict)]
  parts = [part for content in contents if isinstance(content, list) for part in content]
  count = sum(not isinstance(part, dict) or part.get('type') != 'text' for part in parts)
  if count > MOST_MEDIA:
    raise RequestError(
      f'messages have {count} pictures and sounds, more than {MOST_MEDIA}\nfix: send fewer', param='messages'
    )


def _part(part, name):
  """Return one part of a content: {'text': str}, {'image': bytes} or {'audio': bytes}."""
  kind = part.get('type') if isinstance(part, dict) else None
  value = part.get(kind) if isinstance(kind, str) else None
  if kind == 'text' and isinstance(value, str):
    return {'text': value}
  if kind == 'image_url' and isinstance(value, dict) and isinstance(value.get('url'), str):
    if not (head := DATA_URL.match(value['url'][:200])):
      raise invalid(name, value['url'], 'is an address', 'send the picture: data:image/png;base64,...')
    return {'image': decode_base64(value['url'][head.end() :], name)}
  if kind == 'input_audio' and isinstance(value, dict) and isinstance(value.get('data'), str):
    return {'audio': decode_base64(value['data'], name)}
  raise invalid(name, part, 'is not a part', 'give a part of type text, image_url or input_audio')


def decode_base64(text, name):
  """Return the bytes of a text in base64, which are not empty."""
  try:
    content = base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:
    raise RequestError(f'{name} is not base64: {error}\nfix: encode the file', param=name) from None
  if not content:
    raise RequestError(f'{name} is empty\nfix: send the file', param=name)
  return content
