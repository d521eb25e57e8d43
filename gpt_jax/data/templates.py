"""Records to text: a template such as 'Q: {question}\\nA: {answer}' over the fields of a record.

`{a.b.0}` goes into nested records and lists, `{{` and `}}` are braces. Nothing else of Python's
format language is accepted: a format that silently rounds a number or reads an attribute has no
place in training data.
"""

import functools
import string

import numpy as np


@functools.lru_cache(maxsize=64)
def parse(template: str) -> tuple[tuple[str, str], ...]:
  """Pairs (literal text, field after it or ''). ValueError where the template is malformed."""
  fix = 'fix: write {field} for a field, {a.b} inside a record, {{ and }} for braces'
  try:
    pieces = tuple(string.Formatter().parse(template))
  except ValueError as error:
    raise ValueError(f'template={template!r} is malformed: {error}\n{fix}') from None
  for _, field, spec, conversion in pieces:
    if field is not None and (not field or spec or conversion or '[' in field):
      raise ValueError(f'template={template!r} has a field that is not a plain name\n{fix}')
  if not any(field for _, field, _, _ in pieces):
    raise ValueError(
      f'template={template!r} names no field, so all documents would be equal\n{fix}'
    )
  return tuple((literal, field or '') for literal, field, _, _ in pieces)


def render(template: str, record: dict, where: str) -> str:
  """The text of one record. `where` (file and line) opens the message of any ValueError."""
  text = ''.join(
    literal + (_text(_lookup(record, field, where), field, where) if field else '')
    for literal, field in parse(template)
  )
  if not text.isascii():
    try:
      text.encode('utf-8')
    except UnicodeEncodeError as error:
      raise ValueError(
        f'{where} holds half a surrogate pair at character {error.start}: it is not text\n'
        'fix: repair the \\ud8xx escape in the record'
      ) from None
  return text


def _lookup(record: dict, field: str, where: str):
  """Follows a dotted path; the error names what is there instead."""
  value = record
  for part in field.split('.'):
    if isinstance(value, dict) and part in value:
      value = value[part]
    elif isinstance(value, (list, np.ndarray)) and part.isdecimal() and int(part) < len(value):
      value = value[int(part)]
    else:
      has = (
        ', '.join(map(str, value)) if isinstance(value, dict) else f'{type(value).__name__} value'
      )
      raise ValueError(
        f'{where} has no field {field!r}: at {part!r} it has {has}\n'
        'fix: name fields that every record has in the template'
      )
  return value


def _text(value, field: str, where: str) -> str:
  """A string, UTF-8 bytes or a number as text; anything else is an error."""
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, bytes):
    try:
      return value.decode('utf-8')
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{where} field {field!r} is not UTF-8 at byte {error.start}\n'
        'fix: name a text field in the template'
      ) from None
  if isinstance(value, (str, int, float)):
    return str(value)
  raise ValueError(
    f'{where} field {field!r} is a {type(value).__name__}, not text\n'
    'fix: name a text or number inside it, as in {answers.0}'
  )
