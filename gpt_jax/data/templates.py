"""Templates that make documents of records, such as '{image:image} -> {name}'.

`{name}` is text; `{x:image}` and `{x:audio}` become tokens, `{x:codes}` [P, Q] are ids of a codec;
`{x:patches}` and `{x:frames}` are continuous features of images and sounds, and `{x:vectors}` numbers
[N, W] of any kind, for input only; `{x:video}` is a clip, whose frames are patches in a row; `{x:parts}` is
a list of {"text": ..}, {"image": ..} and {"audio": ..}; `{x:chat}` is a list of messages with a role and a
content, of which the assistant's are learned. ' -> ' separates a condition from its target. `{a.b.0}` looks
up nested records and lists, `{a.*}` joins a list of texts by spaces, `{{` and `}}` are braces.
`{choices[gold]}` is the item of the list `choices` that the field `gold` numbers, from 0 or as a letter
from A; in `{choices.text[gold]}` a list `choices.label` holds the labels that `gold` may have: task choose
scores the others in its place. `{text:cloze}` at the end is a text whose last word task cloze scores. No
other part of Python's format language is accepted: a format could silently round a number.
"""

import functools
import json
import os
import string
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.data import clips
from gpt_jax.data.record_fields import CHOICE, as_text, lookup, short
from gpt_jax.model.continuous import KINDS
from gpt_jax.tokenizers import chat_template

ARROW = ' -> '
MODALITY = {'image': 'image', 'audio': 'audio', 'codes': 'audio'} | {
  name: kind.modality for name, kind in KINDS.items()
}
MAKERS = {  # what makes a kind: the setting that a config lacks
  'image': 'image.kind',
  'audio': 'audio.kind=frames, fsq or codec',
  'codes': 'audio.kind=codes or codec',
  'patches': 'encoder.image or image.kind',
  'frames': 'encoder.audio, or audio.kind=frames or fsq,',
  'vectors': 'train.init_from to a run that reads vectors',
}
ROLES = {'human': 'user', 'gpt': 'assistant', 'function': 'tool'}  # of ShareGPT
CHAT_ROLES = ('system', 'user', 'assistant', 'tool')
MESSAGE_KEYS = {'from': 'role', 'value': 'content'}  # of ShareGPT
PARTS = ('text', 'image', 'audio')  # what the objects of a list of parts hold
CLOZE = ':cloze}'
FIX = (
  'fix: write {field} for text, {field:image}, {field:audio}, {field:patches}, {field:frames}, '
  '{field:video}, {field:vectors}, {field:codes} or {field:parts} for media, {field:chat} for messages, '
  '{a.b} inside a record, {options[index]} for the right one of several, '
  '{{ and }} for braces'
)


class Samples(NamedTuple):
  """A sound as an array with its sample rate."""

  values: np.ndarray  # [N] or [N, channels]
  rate: int  # Hz


@dataclass(frozen=True)
class Piece:
  """A part of a document."""

  kind: str  # text, image, audio, a row of KINDS, arrow, or chat, which media in its messages follow
  # A string; messages as JSON, or their Rendering; media as a path, encoded bytes, an array, Samples, a Clip
  value: Any = ''


@functools.lru_cache(maxsize=64)
def parse(template: str) -> tuple[tuple[str, str], ...]:
  """Return pairs (kind, value): ('literal', text), ('arrow', ''), or (kind of a field, its name).

  Raises ValueError for a malformed template.
  """
  try:
    items = tuple(string.Formatter().parse(template))
  except ValueError as error:
    raise ValueError(f'template={template!r} is malformed: {error}\n{FIX}') from None
  slots = []
  for literal, field, spec, conversion in items:
    for number, text in enumerate(literal.split(ARROW)):
      slots += [('arrow', '')] * (number > 0) + [('literal', text)] * (text != '')
    if field is None:
      continue
    if spec and spec.split(',')[0] == clips.SPEC:
      field, spec = clips.parse(field, spec, template), clips.KIND
    is_name = '[' not in (field or '[') or CHOICE.fullmatch(field)
    if not is_name or conversion or spec not in ('', 'parts', 'chat', 'cloze', *MODALITY):
      raise ValueError(f'template={template!r} has a field that is not a plain name\n{FIX}')
    slots.append(('text' if spec in ('', 'cloze') else spec, field))
  if all(kind in ('literal', 'arrow') for kind, _ in slots):
    raise ValueError(f'template={template!r} names no field, so all documents would be equal\n{FIX}')
  _check_sides(template, slots)
  _check_benchmarks(template, slots)
  return tuple(slots)


def _check_sides(template: str, slots: list[tuple[str, str]]) -> None:
  """ValueError where the arrow, continuous media or parts stand where they cannot."""
  sides = _sides(slots)
  if len(sides) > 2 or not all(sides):
    raise ValueError(
      f"template={template!r} has {len(sides) - 1} arrows, or nothing on one side of ' -> '\n"
      "fix: write ' -> ' at most once, between a condition and its target"
    )
  for kind, field in sides[1] if len(sides) == 2 else ():
    if kind in KINDS:
      others = '' if MODALITY[kind] == kind else f', or write {{{field}:{MODALITY[kind]}}}'
      raise ValueError(
        f'template={template!r} asks for {field!r} as {kind}, which can be read but not made\n'
        f"fix: put it before ' -> '{others}"
      )
  if any(kind == 'chat' for kind, _ in slots) and len(slots) > 1:
    raise ValueError(
      f'template={template!r} has something beside a conversation\n'
      'fix: let {field:chat} stand alone; put a system message into the list'
    )
  if any(kind == 'parts' and len(side) > 1 for side in sides for kind, _ in side):
    raise ValueError(
      f'template={template!r} has something beside a list of parts\n'
      "fix: let {field:parts} stand alone or alone on a side of ' -> '; put text into the list"
    )


def _check_benchmarks(template: str, slots: list[tuple[str, str]]) -> None:
  """ValueError for several lists of options, and for a last word that is not the end of a plain text."""
  if sum('[' in field for kind, field in slots if kind not in ('literal', 'arrow')) > 1:
    raise ValueError(f'template={template!r} has two {{options[index]}}\nfix: write one')
  kinds = {kind for kind, _ in slots}
  if CLOZE in template and (
    template.index(CLOZE) + len(CLOZE) < len(template) or kinds - {'text', 'literal'}
  ):
    raise ValueError(
      f'template={template!r} asks for a last word that is not the end of a text alone\n'
      "fix: end the template with {field:cloze}, and leave out ' -> ' and media"
    )


def _sides(slots) -> list[list]:
  """The slots (or pieces) on the sides of the arrows."""
  sides = [[]]
  for slot in slots:
    if slot[0] == 'arrow':
      sides.append([])
    else:
      sides[-1].append(slot)
  return sides


def split(pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
  """(condition, target) of a document; no condition where there is no arrow."""
  arrows = [n for n, piece in enumerate(pieces) if piece.kind == 'arrow']
  return (pieces[: arrows[0]], pieces[arrows[0] + 1 :]) if arrows else ([], pieces)


def signature(template: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Return the kinds of the condition and of the target, as in (('image',), ('text',)); () for none.

  Neighboring texts count once; white space between media does not count.
  """
  sides = []
  for side in _sides(parse(template)):
    kinds = []
    for kind, value in side:
      name = 'text' if kind == 'literal' else kind
      if kinds[-1:] != [name] and (kind != 'literal' or value.strip()):
        kinds.append(name)
    sides.append(tuple(kinds))
  return (sides[0], sides[1]) if len(sides) == 2 else ((), sides[0])


def is_plain(template: str) -> bool:
  """Return whether documents are text without a condition: a stream that may be cut anywhere."""
  return signature(template) == ((), ('text',))


def is_chat(template: str) -> bool:
  """Return whether documents are conversations."""
  return signature(template) == ((), ('chat',))


def benchmark(template: str) -> str:
  """Return 'choose' for a template with options, 'cloze' for one whose last word is asked, else ''."""
  return 'choose' if options_of(template) else 'cloze' if template.endswith(CLOZE) else ''


def options_of(template: str) -> tuple[str, str] | None:
  """Return (field with the list of options, field with the index of the right one), or None."""
  fields = [field for kind, field in parse(template) if kind not in ('literal', 'arrow')]
  matches = [match for field in fields if (match := CHOICE.fullmatch(field))]
  return (matches[0]['options'], matches[0]['index']) if matches else None


def fields_of(field: str) -> tuple[str, ...]:
  """Return the fields of a record that a field of a template reads: two for `options[index]`."""
  return CHOICE.fullmatch(field).groups() if CHOICE.fullmatch(field) else (field,)


def modalities(template: str) -> set[str]:
  """Return the modalities, of 'image', 'audio' and 'vectors', that documents may hold, and 'codes'."""
  kinds = {kind for kind, _ in parse(template)}
  parts = {'image', 'audio'} if kinds & {'parts', 'chat'} else set()
  modality = {**MODALITY, 'codes': 'codes'}
  return {modality[kind] for kind in kinds if kind in MODALITY} | parts


def fill(template: str, record: dict, where: str) -> list[Piece]:
  """Return the document of one record; neighboring texts are joined, empty ones dropped.

  Relative paths of media are looked up below `record.root`, and arrays of samples have `record.rate`,
  if the record has these. Every ValueError begins with `where` (file and line).
  """
  document = []
  for kind, value in parse(template):
    if kind in ('literal', 'arrow'):
      document.append(Piece('text' if kind == 'literal' else kind, value))
      continue
    content = lookup(record, value, where)
    if kind == 'text':
      document.append(Piece('text', as_text(content, value, where)))
    elif kind == 'parts':
      document += _parts(content, value, where, record)
    elif kind == 'chat':
      document += chat_pieces(content, value, where, record)
    else:
      document.append(
        (_clip if isinstance(value, clips.Field) else _media)(kind, content, value, where, record)
      )
  merged = []
  for piece in document:
    if piece.kind == 'text' and merged and merged[-1].kind == 'text':
      merged[-1] = Piece('text', merged[-1].value + piece.value)
    else:
      merged.append(piece)
  for piece in merged:
    if piece.kind == 'text':
      _check_text(piece.value, where)
  return [p for p in merged if p.kind != 'text' or p.value] if len(merged) > 1 else merged


def text_of(record: dict, field: str, where: str) -> str:
  """Return one field of a record as text."""
  return as_text(lookup(record, field, where), field, where)


def chat_pieces(messages, field: str, where: str, record=None) -> list[Piece]:
  """Return the messages as one piece of JSON, and then the media in their places.

  messages: dicts of role (or from) and content (or value), a text or a list of parts; or, as in Alpaca, the
  text of the field instruction beside output.
  """
  if field == 'instruction' and isinstance(messages, str) and 'output' in record:
    question = filter(None, (messages, record.get('input')))
    messages = [
      {'role': 'user', 'content': '\n'.join(question)},
      {'role': 'assistant', 'content': record['output']},
    ]
  if not isinstance(messages, (list, tuple)) or not messages:
    raise ValueError(
      f'{where} field {field!r} is {type(messages).__name__} {short(messages)}, not a list of messages\n'
      'fix: write a list such as [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]'
    )
  pairs = [_message(message, f'{field}.{number}', where, record) for number, message in enumerate(messages)]
  try:
    text = json.dumps([message for message, _ in pairs], ensure_ascii=False)
  except TypeError as error:
    raise ValueError(f'{where} field {field!r} is not JSON: {error}\nfix: leave the record out') from None
  _check_text(text, where)
  return [Piece('chat', text), *(piece for _, media in pairs for piece in media)]


def _message(message, name: str, where: str, record) -> tuple[dict, list[Piece]]:
  """Return one message with a text as its content, and the media whose places are marked in it."""
  items = message.items() if isinstance(message, dict) else ()
  fields = {MESSAGE_KEYS.get(key, key): value for key, value in items if value is not None}
  role = ROLES.get(str(fields.get('role')), fields.get('role'))
  if role not in CHAT_ROLES:
    raise ValueError(
      f'{where} field {name!r} is {short(message)}, not a message of a known role\n'
      f'fix: write {{"role": ..., "content": ...}} with one of the roles {", ".join(CHAT_ROLES)}'
    )
  if 'content' not in fields:  # it calls a tool
    return fields | {'role': role}, []
  content, parts = fields['content'], []
  if isinstance(content, (list, tuple)):
    is_part = lambda part: isinstance(part, dict)
    parts = [{k: v for k, v in part.items() if k != 'type'} if is_part(part) else part for part in content]
    parts = _parts(parts, f'{name}.content', where, record)
  texts = [p.value for p in parts if p.kind == 'text'] if parts else [as_text(content, name, where)]
  if any(chat_template.RESERVED.search(text) for text in texts):
    raise ValueError(f'{where} field {name!r} has a noncharacter of U+FDD0 to U+FDD7\nfix: remove it')
  text = ''.join(chat_template.MEDIA.get(p.kind, p.value) for p in parts) if parts else texts[0]
  return fields | {'role': role, 'content': text}, [p for p in parts if p.kind != 'text']


def chat_text(piece: Piece) -> str:
  """Return the characters that a chat piece has in our own template, for learning a text tokenizer."""
  lines = (f'{message["role"]}\n{message.get("content", "")}' for message in json.loads(piece.value))
  return chat_template.RESERVED.sub('', ''.join(lines))


def _parts(value, field: str, where: str, record: dict) -> list[Piece]:
  """Return the pieces of a list of parts."""
  if not isinstance(value, (list, tuple)) or not len(value):
    raise ValueError(
      f'{where} field {field!r} is {type(value).__name__} {short(value)}, not a list of parts\n'
      'fix: write a list such as [{"text": "A cat:"}, {"image": "cat.png"}]'
    )
  document = []
  for number, part in enumerate(value):
    if isinstance(part, dict) and len(part) > 1:  # the structs of a table have all keys
      part = {key: content for key, content in part.items() if content is not None}
    if not isinstance(part, dict) or len(part) != 1 or next(iter(part)) not in PARTS:
      raise ValueError(
        f'{where} field {field!r} has a part {number} that is not one of '
        f'{", ".join(PARTS)}: {short(part)}\n'
        'fix: write each part as an object with one key, as in {"text": "A cat:"}'
      )
    [(kind, content)] = part.items()
    name = f'{field}.{number}.{kind}'
    if kind == 'text':
      document.append(Piece(kind, as_text(content, name, where)))
    else:
      document.append(_media(kind, content, name, where, record))
  return document


def _clip(kind: str, value, field, where: str, record: dict) -> Piece:
  """Return a clip that is not decoded as one piece."""
  try:
    files = clips.split(value) or ['']
  except ValueError as error:
    raise ValueError(f'{where} field {str(field)!r}: {error}') from None
  values = tuple(_media(kind, file, str(field), where, record).value for file in files)
  return Piece(kind, clips.Clip(values, field.frames, field.every))


def _media(kind: str, value, field: str, where: str, record: dict) -> Piece:
  """Return media as a path below the root of the record, encoded bytes or an array."""
  root, rate = getattr(record, 'root', ''), getattr(record, 'rate', 0)
  if isinstance(value, dict) and {'bytes', 'path'} >= value.keys():  # as Hugging Face stores media
    value = value.get('bytes') or value.get('path')
  if isinstance(value, str) and value:
    return Piece(kind, _media_path(value, root, field, where))
  if isinstance(value, bytes) and value:
    return Piece(kind, value)
  if isinstance(value, (list, np.ndarray)) and len(value):
    array = np.asarray(value)
    is_sound = MODALITY[kind] == 'audio' and kind != 'codes' and rate
    return Piece(kind, Samples(array, rate) if is_sound else array)
  raise ValueError(
    f'{where} field {field!r} is {short(value)}, not a path or the content of media\n'
    'fix: name a field with a path, with encoded bytes or with an array in the template'
  )


def _media_path(path: str, root: str, field: str, where: str) -> str:
  """Return a path of a record, below its root if it has one: untrusted data must not name other files."""
  if not root:
    return path
  full = os.path.normpath(os.path.join(root, os.path.expanduser(path)))
  top = os.path.normpath(root)
  if os.path.commonpath([os.path.abspath(top), os.path.abspath(full)]) != os.path.abspath(top):
    raise ValueError(
      f'{where} field {field!r} is {short(path)}, which is not below {top}\n'
      f'fix: set root of the source to a folder that holds it, as in root={os.path.dirname(full)}'
    )
  return full


def _check_text(text: str, where: str) -> None:
  if text.isascii():
    return
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{where} holds half a surrogate pair at character {error.start}: it is not text\n'
      'fix: repair the \\ud8xx escape in the record'
    ) from None
