"""Documents of imported models of several modalities: one text, encoded as their processors encode it.

Pictures and sounds stand in the text as the model's own tokens (tokenizers/processors.py), so that words
beside them get the ids that they get in transformers. An arrow adds no token: what follows it is learned.

Letters: T tokens of a document.
"""

import numpy as np

from gpt_jax.data.templates import Piece
from gpt_jax.model.continuous import KINDS
from gpt_jax.tokenizers.chat_template import PLACES, Rendering
from gpt_jax.tokenizers.processors import Places, expand


def encode(
  tokenizers, pieces: list[Piece], features: dict[str, list]
) -> tuple[np.ndarray, np.ndarray | None]:
  """Return (ids int32 [T], targets uint8 [T], or None for a text without an arrow, which is learned whole).

  pieces: of a document, or a Rendering and the media of its messages. features: {kind: the vectors of each of
  its items in order}. Raises ValueError where the marks in the text are not as many as the items.
  """
  places, text = tokenizers.places, tokenizers.text
  is_chat = bool(pieces) and pieces[0].kind == 'chat'
  segments = _of_chat(tokenizers, pieces) if is_chat else _of_pieces(tokenizers, pieces)
  tiles_of = {kind: tokenizers.readers[kind].tiles_of for kind in places}
  tiles = {kind: [tiles_of[kind](p.value) for p in pieces if p.kind == kind] for kind in places}
  items = {kind: iter(list(zip(map(len, features[kind]), tiles[kind], strict=True))) for kind in places}
  for place in places.values():
    if place.token != place.mark and any(place.token in part for part, _ in segments):
      raise _marked(place.token, 'a text')
  parts = [(expand(part, places, items), is_target) for part, is_target in segments]
  if left := [kind for kind, rest in items.items() if next(rest, None) is not None]:
    raise ValueError(
      f'a text has fewer {places[left[0]].mark} than it has media\nfix: write one for each, or none'
    )
  has_begin = not is_chat and not any(place.last for place in places.values())
  begin = text.begin() if has_begin else []
  [(ids, spans_T2)] = text.encode_with_offsets([''.join(part for part, _ in parts)])
  ids = np.array([*begin, *ids], np.int32)
  is_code = _put_codes(tokenizers, ids, features)
  if not is_chat and not any(is_target for _, is_target in parts):
    return ids, (~is_code).astype(np.uint8) if is_code.any() else None
  spans_T2 = np.concatenate([np.zeros((len(begin), 2), int), spans_T2])
  targets, start = np.zeros(len(ids), np.uint8), 0
  for part, is_target in parts:
    if is_target:  # a token that crosses the border is learned whole
      targets |= (spans_T2[:, 0] < start + len(part)) & (spans_T2[:, 1] > start)
    start += len(part)
  return ids, targets & ~is_code


def _put_codes(tokenizers, ids, features) -> np.ndarray:
  """Write the ids of pictures that are read as codes in their places; return where, bool [T]."""
  is_code = np.zeros(len(ids), bool)
  for kind, items in features.items():
    if items and tokenizers.readers[kind].token_ids:
      is_place = ids == tokenizers.vocabulary.special(KINDS[kind].place)
      ids[is_place] = np.concatenate(items)[:, 0]
      is_code |= is_place
  return is_code


def check_text(tokenizers, text: str, where: str) -> None:
  """Raise ValueError that begins with `where` for a text that holds what stands for media."""
  for place in tokenizers.places.values():
    for token in (place.mark, place.token):
      if token in text:
        raise _marked(token, where or 'the text')


def _marked(token: str, where: str) -> ValueError:
  return ValueError(
    f'{where} has {token} in its words, where only an image or a sound of the record may stand\n'
    'fix: remove it, and name the image or sound in the template'
  )


def _of_pieces(tokenizers, pieces):
  """Return [(text with marks, whether it is learned)] of a condition and a target, or of one text."""
  arrow = next((n for n, piece in enumerate(pieces) if piece.kind == 'arrow'), len(pieces))
  sides = [
    ''.join(_spell(tokenizers.places, piece) for piece in side)
    for side in (pieces[:arrow], pieces[arrow + 1 :])
  ]
  if arrow == len(pieces):
    return [(sides[0], False)]
  return [(_prompt(tokenizers, sides[0]), False), (sides[1], True)]


def _spell(places: dict[str, Places], piece: Piece) -> str:
  return places[piece.kind].mark if piece.kind in places else piece.value


def _prompt(tokenizers, text: str) -> str:
  """Return a prompt with what the model's processor puts behind its media and at its end."""
  for place in tokenizers.places.values():
    if place.last:
      at = text.rfind(place.mark) + len(place.mark) if place.mark in text else 0
      text = f'{text[:at]}{place.last}{text[at:]}'
    text += place.end
  return text


def _of_chat(tokenizers, pieces):
  """Return [(text with marks, whether it is learned)] of a conversation."""
  rendering: Rendering = pieces[0].value
  marks = {character: mark for mark, character in tokenizers.media_marks}
  borders = sorted({0, len(rendering.text), *(place for span in rendering.spans for place in span)})
  write = lambda text: PLACES.sub(lambda match: marks.get(match[0], match[0]), text)
  return [
    (write(rendering.text[first:end]), any(a <= first and end <= b for a, b in rendering.spans))
    for first, end in zip(borders, borders[1:], strict=False)
  ]
