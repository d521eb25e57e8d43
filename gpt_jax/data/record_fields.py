"""Fields of records: a value at a dotted path, as text, or as the right one of several options."""

import math
import re

import numpy as np

CHOICE = re.compile(r'(?P<options>[^\[\]]+)\[(?P<index>[^\[\]\d][^\[\]]*)\]')


def lookup(record: dict, field: str, where: str):
  """Return the value at a dotted path; `*` at its end joins a list of texts, `[index]` picks an option."""
  if match := CHOICE.fullmatch(field):
    options = lookup(record, match['options'], where)
    count = len(options) if isinstance(options, (list, tuple, np.ndarray)) else 0
    return options[option_index(record, match['index'], count, where, match['options'])]
  value, parts = record, field.split('.')
  while parts:
    # A key may have dots itself: the longest that the record has is meant.
    keys = ('.'.join(parts[:count]) for count in range(len(parts), 0, -1))
    part = next((key for key in keys if isinstance(value, dict) and key in value), parts[0])
    del parts[: part.count('.') + 1]
    if part == '*' and isinstance(value, list) and all(isinstance(v, str) for v in value):
      value = ' '.join(map(str.strip, value))
    elif isinstance(value, dict) and part in value:
      value = value[part]
    elif isinstance(value, (list, np.ndarray)) and part.isdecimal() and int(part) < len(value):
      value = value[int(part)]
    else:
      has = ', '.join(map(str, value)) if isinstance(value, dict) else f'{type(value).__name__} value'
      raise ValueError(
        f'{where} has no field {field!r}: at {part!r} it has {has}\n'
        'fix: name fields that every record has in the template'
      )
  return value


def option_labels(record: dict, options: str, count: int, where: str) -> list[str]:
  """Return the labels of options, as ARC has them: `choices.label` beside `choices.text`; [] without."""
  parent, _, last = options.rpartition('.')
  holder = lookup(record, parent, where) if parent and last == 'text' else {}
  labels = holder.get('label') if isinstance(holder, dict) else None
  listed = isinstance(labels, (list, tuple, np.ndarray)) and len(labels) == count
  return [str(label) for label in labels] if listed else []


def option_index(record: dict, field: str, count: int, where: str, options: str = '') -> int:
  """Return the place of the right one of `count` options: by its label, its number from 0 or letter from A.

  options: field of the list, whose labels are read if it has some.
  """
  if count < 2:
    raise ValueError(f'{where} has {count} options to choose from\nfix: give two or more, or leave it out')
  value = lookup(record, field, where)
  text = value if isinstance(value, str) else str(value)
  labels = option_labels(record, options, count, where)
  if labels and (text in labels or all(map(str.isdecimal, labels))):
    if labels.count(text) != 1:
      raise ValueError(
        f'{where} field {field!r} is {short(value)}, not one of the labels {", ".join(labels)}\n'
        'fix: give the label of the right option, each option a label of its own'
      )
    return labels.index(text)
  index = ord(text) - ord('A') if re.fullmatch('[A-Z]', text) else int(text) if text.isdecimal() else -1
  if not 0 <= index < count or isinstance(value, bool):
    raise ValueError(
      f'{where} field {field!r} is {short(value)}, not the number of one of {count} options\n'
      f'fix: number the options from 0 to {count - 1}, or with letters from A'
    )
  return index


def as_text(value, field: str, where: str) -> str:
  """Return a string, UTF-8 bytes or a number as text; ValueError for anything else."""
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, bytes):
    try:
      return value.decode('utf-8')
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{where} field {field!r} is not UTF-8 at byte {error.start}\nfix: name a text field in the template'
      ) from None
  if isinstance(value, bool):
    return str(value).lower()  # as in JSON
  if isinstance(value, (str, int, float)) and not (isinstance(value, float) and not math.isfinite(value)):
    return str(value)
  what = 'null' if value is None else str(value) if isinstance(value, float) else f'a {type(value).__name__}'
  raise ValueError(
    f'{where} field {field!r} is {what}, not text\n'
    'fix: name a text or number inside it, as in {answers.0}, or leave the record out'
  )


def short(value) -> str:
  """Return a value as one short line."""
  return ' '.join(f'{value!r:.60}'.split())
