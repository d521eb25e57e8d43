"""Documents as token ids: text, image and audio codes, and placeholders of continuous features.

A document is a list of pieces, and its ids are those of the pieces in order: text ids; boi, codes, eoi;
boa, codes, eoa; sep for the arrow. An image or sound that is input only, and an image without codes, has
`patch` or `frame` in place of each code, and features beside the ids; vectors have `vector`, and no borders.
Before a condition stands bos, if an imported tokenizer begins texts so. The token cache adds eos.

A conversation is one chat piece and the media of its messages, which its chat template puts in their places.

Letters: T tokens of a document, P positions of an item, Y X A rows, columns and channels of an
image, N samples.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator

import numpy as np

from gpt_jax.data import augment, clips, media_io, placed_documents, templates, vectors
from gpt_jax.data.bad_records import BadRecords
from gpt_jax.data.mixture import DataConfig, open_split, source_names
from gpt_jax.data.splits import SPLITS
from gpt_jax.data.templates import MODALITY, Piece, Samples
from gpt_jax.model.continuous import KINDS
from gpt_jax.tokenizers import chat_template
from gpt_jax.tokenizers.chat_template import ChatTemplate, Rendering

PLURALS = {'image': 'images', 'audio': 'sounds', 'vectors': 'vectors'}
MARKERS = {'image': ('boi', 'eoi', 'patch'), 'audio': ('boa', 'eoa', 'frame')}  # vectors have no borders


@dataclasses.dataclass(frozen=True)
class Encoded:
  """An encoded document."""

  ids: np.ndarray  # int32 [T]
  patches: np.ndarray | None = None  # float32 [places, features], in the order of the patch ids
  frames: np.ndarray | None = None  # the same for the frame ids
  vectors: np.ndarray | None = None  # the same for the vector ids
  targets: np.ndarray | None = None  # uint8 [T]: 1 for what the assistant wrote, or what follows an arrow

  def with_end(self, ids) -> 'Encoded':
    """Return the document with these ids behind it, which are learned."""
    learned = np.ones(len(ids), np.uint8)
    targets = None if self.targets is None else np.append(self.targets, learned)
    return dataclasses.replace(self, ids=np.append(self.ids, ids).astype(np.int32), targets=targets)


def examples(cfg: DataConfig, name: str, split: str) -> Iterator[tuple[str, list[Piece]]]:
  """Yield (where, pieces) of each document of `split` of one source, with media not yet decoded."""
  return open_split(cfg, name, split).examples()


def decode_media(tokenizers, pieces: list[Piece], where: str = '', notes=None) -> list[Piece]:
  """Return the pieces with images as uint8 [Y, X, A] and sounds as float32 [N] for the tokenizers.

  notes: a Counter of the conversions. Raises ValueError or FileNotFoundError that begins with `where`
  for media that cannot be read.
  """
  pieces = [Piece(piece.kind, value) for piece in pieces for value in clips.read(piece.value, where)]
  several = sum(MODALITY.get(piece.kind) == 'image' for piece in pieces) > 1
  forms, decoded = media_forms(tokenizers, several), []
  for piece in pieces:
    if modality := MODALITY.get(piece.kind):
      kind = tokenizers.kind_of(piece.kind)
      value, note = _decode(kind, piece.value, forms[kind], where)
      piece = Piece(kind, value)
      if note and notes is not None:
        notes.update(f'{PLURALS[modality]} {part}' for part in note.split(', '))
    elif piece.kind == 'text':
      placed_documents.check_text(tokenizers, piece.value, where)
    elif piece.kind == 'chat' and isinstance(piece.value, str):
      piece = Piece('chat', _render(tokenizers, pieces, where))
    decoded.append(piece)
  return decoded


def _render(tokenizers, pieces: list[Piece], where: str) -> Rendering:
  """Return the text of a conversation; ValueError that begins with `where` if its template refuses it."""
  try:
    template = ChatTemplate.of(tokenizers.text, tokenizers.media_marks)
    rendering = template.render_with_spans(json.loads(pieces[0].value))
  except ValueError as error:
    raise ValueError(f'{where}: {error}' if where else str(error)) from error
  check_places(rendering, pieces, where)
  return rendering


def check_places(rendering: Rendering, pieces: list[Piece], where: str) -> None:
  """Raise ValueError unless a rendering has a place for each of the media that follow it."""
  kinds = {mark: kind for kind, mark in chat_template.MEDIA.items()}
  places = [kinds[mark] for mark in chat_template.PLACES.findall(rendering.text) if mark in kinds]
  media = [piece.kind for piece in pieces[1:]]
  if places != media:
    raise ValueError(
      f'{where} has {len(media)} images and sounds, and the chat template shows {len(places)} of them\n'
      'fix: leave the record out, or put media into messages that the template shows'
    )


def media_forms(tokenizers, several: bool = False) -> dict[str, tuple]:
  """Return what each kind of piece is converted to, as far as the tokenizers know it.

  (Y, X, A) of images, (rate in Hz, most seconds) of sounds, (numbers of one,) of vectors, (codebooks,
  most positions) of codes. several: of documents with several pictures.
  """
  image, audio = tokenizers.image, tokenizers.audio
  forms = {}
  if image:
    forms |= dict.fromkeys(('image', 'patches'), tuple(image.shape))
  if audio:
    forms['codes'] = (audio.codebooks, audio.max_positions)
  if audio and audio.sample_rate:
    form = (audio.sample_rate, audio.max_positions / audio.codes_per_second)
    forms |= dict.fromkeys(('audio', 'frames'), form)
  name = 'form_of_several' if several else 'form'
  return forms | {kind: getattr(reader, name, reader.form) for kind, reader in tokenizers.readers.items()}


def _decode(kind: str, value, form: tuple, where: str) -> tuple[np.ndarray, str]:
  """Return (array, note of conversions) of raw media."""
  if kind == 'codes':
    return vectors.read_codes(value, *form, where), ''
  if kind == 'vectors':
    return vectors.read_vectors(value, form[0], where), ''
  if MODALITY[kind] == 'image':
    return media_io.read_image(value, form, where)
  value, rate = value if isinstance(value, Samples) else (value, 0)
  return media_io.read_sound(value, form[0], where, form[1], rate)


def _decode_all(kind: str, value, form: tuple, where: str) -> list[tuple[np.ndarray, str]]:
  """Return pairs of `_decode` of raw media: one, or the frames of a clip."""
  return [_decode(kind, frame, form, where) for frame in clips.read(value, where)]


def encode_batch(tokenizers, documents: list[list[Piece]]) -> list[Encoded]:
  """Encode documents, with one call of each tokenizer."""
  documents = [_as_patches(tokenizers, decode_media(tokenizers, pieces)) for pieces in documents]
  values = {kind: [] for kind in (*MODALITY, 'text', 'chat')}
  for piece in (piece for pieces in documents for piece in pieces if piece.kind != 'arrow'):
    values[piece.kind].append(piece.value)
  if tokenizers.places:
    return _encode_placed(tokenizers, documents, values)
  encoded = {kind: iter(ENCODERS[kind](tokenizers, items)) for kind, items in values.items() if items}
  is_chat = lambda pieces: bool(pieces) and pieces[0].kind == 'chat'
  return [(_assemble_chat if is_chat(p) else _assemble)(tokenizers, p, encoded) for p in documents]


def _encode_placed(tokenizers, documents, values) -> list[Encoded]:
  """Encode documents of an imported model of several modalities; values: the items of each kind."""
  rows = {kind: iter(ENCODERS[kind](tokenizers, values[kind])) for kind in KINDS if values[kind]}
  result = []
  for pieces in documents:
    features = {kind: [next(rows[kind]) for piece in pieces if piece.kind == kind] for kind in KINDS}
    ids, targets = placed_documents.encode(tokenizers, pieces, features)
    kinds = tokenizers.vector_kinds([kind for kind, items in features.items() if items])
    arrays = {kind: np.concatenate(features[kind]).astype(np.float32) for kind in kinds}
    result.append(Encoded(ids, **arrays, targets=targets))
  return result


def _as_patches(tokenizers, pieces: list[Piece]) -> list[Piece]:
  """Return the pieces with images as patches, where the tokenizers have no codes of them."""
  kind = lambda piece: 'patches' if piece.kind == 'image' and tokenizers.makes_patches else piece.kind
  return [Piece(kind(piece), piece.value) for piece in pieces]


def _encode_chats(tokenizers, renderings: list[Rendering]) -> list:
  """Return (ids, places int [T, 2]) of the texts between the media and specials of conversations."""
  parts = [part for r in renderings for part in chat_template.PLACES.split(r.text)[::2] if part]
  return tokenizers.text.encode_with_offsets(parts)


def _assemble_chat(tokenizers, pieces: list[Piece], encoded: dict[str, Iterator]) -> Encoded:
  """Build a conversation: its texts, our specials and media in the order of the rendered text."""
  special, rendering, media = tokenizers.vocabulary.special, pieces[0].value, iter(pieces[1:])
  names = {mark: name for name, mark in chat_template.SPECIALS.items()}
  ids, places, start, features = [], [], 0, {kind: [] for kind in KINDS}
  for number, part in enumerate(chat_template.PLACES.split(rendering.text)):
    if number % 2 == 0:
      content, places_T2 = next(encoded['chat']) if part else ([], np.zeros((0, 2), int))
    elif part in names:
      content, places_T2 = [special(names[part])], np.array([[0, 1]])
    else:
      kind = next(media).kind
      begin, end, _ = map(special, MARKERS[MODALITY[kind]])
      content = _ids_of(special, kind, next(encoded[kind]), features)
      content = np.concatenate([[begin], content, [end]])
      places_T2 = np.tile([0, 1], (len(content), 1))
    ids.append(np.asarray(content, np.int32))
    places.append(places_T2 + start)
    start += len(part)
  ids, places_T2 = np.concatenate(ids), np.concatenate(places)
  targets = np.zeros(len(ids), np.uint8)
  for first, end in rendering.spans:  # a token that crosses the border of a span is learned whole
    targets |= (places_T2[:, 0] < end) & (places_T2[:, 1] > first)
  return Encoded(ids, targets=targets, **_joined(features))


def _ids_of(special, kind: str, item, features: dict) -> np.ndarray:
  """Return the ids of an encoded item; continuous ones are appended to features[kind]."""
  if kind not in features:
    return item
  features[kind].append(np.asarray(item, np.float32))
  return np.full(len(item), special(KINDS[kind].place), np.int32)


def _joined(features: dict) -> dict:
  """Return the features of a document by kind, those that it has."""
  return {kind: np.concatenate(rows) for kind, rows in features.items() if rows}


def _assemble(tokenizers, pieces: list[Piece], encoded: dict[str, Iterator]) -> Encoded:
  """Build one document from the next encoded items of each kind."""
  special = tokenizers.vocabulary.special
  ids, features = [], {kind: [] for kind in KINDS}
  if any(piece.kind == 'arrow' for piece in pieces) and tokenizers.start == 'bos':
    ids.append([special('bos')])
  for piece in pieces:
    if piece.kind == 'arrow':
      ids.append([special('sep')])
      continue
    content = next(encoded[piece.kind])
    if piece.kind == 'text':
      ids.append(content)
      continue
    content = _ids_of(special, piece.kind, content, features)
    if (modality := MODALITY[piece.kind]) in MARKERS:
      begin, end, _ = map(special, MARKERS[modality])
      content = np.concatenate([[begin], content, [end]])
    ids.append(content)
  ids = [np.asarray(part, np.int32) for part in ids] or [np.zeros(0, np.int32)]
  return Encoded(np.concatenate(ids), **_joined(features))


def needed_specials(template: str, tokenizers) -> set[str]:
  """Return the names of the special tokens in documents of a template."""
  if tokenizers.places:  # documents have no tokens but the model's own
    return {'eos'}
  if templates.is_chat(template):
    return set() if tokenizers.text.chat_template else {*chat_template.SPECIALS}
  has_arrow = any(kind == 'arrow' for kind, _ in templates.parse(template))
  modalities = {MODALITY[kind] for kind in _media_of_template(template)}
  markers = {name for modality in modalities for name in MARKERS.get(modality, ('vector',))}
  return {'eos', *(['sep'] if has_arrow else ()), *markers}


def _media_of_template(template):
  """Return the kinds of media that a template names; those of parts are known only by their records."""
  return {kind for kind, _ in templates.parse(template) if kind in MODALITY}


def check_tokenizers(tokenizers, template: str, name: str) -> None:
  """Raise ValueError unless the tokenizers can encode documents of this template."""
  wanted = sorted(_media_of_template(template))
  if lacking := [kind for kind in wanted if tokenizers.reader(kind) is None]:
    needed = f'{lacking[0]} tokens' if lacking[0] in PLURALS else lacking[0]
    raise ValueError(
      f'data.mixture.{name}.template={template!r} needs {needed}, which the model does not have\n'
      f'fix: set {templates.MAKERS[lacking[0]]} in the config, or use another template'
    )
  if missing := sorted(needed_specials(template, tokenizers) - set(dict(tokenizers.vocabulary.specials))):
    raise ValueError(
      f'data.mixture.{name}.template={template!r} needs the special tokens {", ".join(missing)}, '
      'which are not in the vocabulary\n'
      'fix: use a model whose tokenizers were built with specials=SPECIALS, or text alone'
    )


def check_pieces(tokenizers, pieces: list[Piece], where: str) -> None:
  """Raise ValueError if a list of parts holds media that the tokenizers cannot encode."""
  for piece in pieces:
    if piece.kind in MODALITY and tokenizers.reader(piece.kind) is None:
      raise ValueError(
        f'{where} needs {MODALITY[piece.kind]} tokens, which the model does not have\n'
        f'fix: set {templates.MAKERS[piece.kind]} in the config, or leave the record out'
      )


def filter_readable(
  cfg: DataConfig, name: str, tokenizers, documents: Iterator
) -> Iterator[tuple[str, list[Piece]]]:
  """Yield those (where, pieces) of a source that can be read, as in its token cache."""
  for where, pieces in documents:
    try:
      if cfg.mixture[name].bad_records:
        decode_media(tokenizers, pieces, where)
    except (OSError, ValueError):  # reported where the tokens are made
      continue
    yield where, pieces


def load_images(cfg: DataConfig, shape: tuple[int, int, int], split: str = 'train') -> np.ndarray:
  """Load all images of `split` as uint8 [N, Y, X, A], resized to `shape` (Y, X, A)."""
  return np.stack(list(_load_media(cfg, 'image', split, tuple(shape))))


def load_waveforms(
  cfg: DataConfig, sample_rate: int, split: str = 'train', seconds: float = 60.0
) -> list[np.ndarray]:
  """Load all sounds of `split`, float32 [N] each, none longer than `seconds`."""
  return list(_load_media(cfg, 'audio', split, (sample_rate, seconds)))


def _load_media(cfg, modality, split, form) -> Iterator[np.ndarray]:
  """Yield decoded media of all sources, for training with augmented copies; ValueError for none."""
  empty = True
  for name in source_names(cfg, split):
    source = cfg.mixture[name]
    bad_records = BadRecords(name, source, split)
    items = enumerate(_media_of(cfg, name, modality, split, bad_records.skip))
    read = lambda item: _decode_all(modality, item[1][1], form, item[1][0])
    for (number, _), decoded in bad_records.readable(items, read):
      for array, note in decoded:
        bad_records.notes.update(f'{PLURALS[modality]} {part}' for part in note.split(', ') if part)
        empty = False
        yield array
        if split == 'train':
          for [copy] in augment.copies(source, number, [Piece(modality, array)], {modality: form}):
            yield copy.value
    bad_records.report()
  if empty:
    raise _no_media(cfg, modality, split)


def _no_media(cfg: DataConfig, modality: str, split: str) -> ValueError:
  """Return the error for a split without media; the fix depends on the other splits."""
  for name, other in ((n, s) for s in SPLITS for n in source_names(cfg, s) if s != split):
    if next(_media_of(cfg, name, modality, other), None):
      cut = not cfg.mixture[name].has(other)
      share = f', with data.valid_fraction={cfg.valid_fraction}' if cut else ''
      fix = 'set data.valid_fraction=0.0, or give more documents' if cut else 'give some that have it'
      return ValueError(
        f'data.mixture.{name} has {modality} data in its {other} documents only, and none in '
        f'{split} to learn a tokenizer from{share}\nfix: {fix}'
      )
  return ValueError(
    f'no source of data.mixture has {modality} data to learn a tokenizer from\n'
    f'fix: name a field as {{field:{modality}}} in a template, or leave {modality}.kind empty'
  )


def _media_of(cfg, name, modality, split, skip=None) -> Iterator[tuple[str, object]]:
  """Yield (where, raw value) of each item of one source."""
  if modality in templates.modalities(cfg.mixture[name].template):
    for where, pieces in open_split(cfg, name, split).examples(skip):
      yield from ((where, piece.value) for piece in pieces if teaches(piece.kind, modality))


def teaches(kind: str, modality: str) -> bool:
  """Return whether pieces of a kind hold images or sounds from which a tokenizer of the modality learns."""
  return MODALITY.get(kind) == modality and kind != 'codes'


def _to_ids(tokenizers, modality, items):
  """Return the ids of the codes of each image or sound."""
  return [tokenizers.encode_codes(modality, codes) for codes in getattr(tokenizers, modality).encode(items)]


def _to_features(kind, tokenizers, items):
  """Return the features [N, width] of each item."""
  is_batch = MODALITY[kind] == 'image' and not tokenizers.places  # else pictures may have several sizes
  return tokenizers.reader(kind).features(np.stack(items) if is_batch else items)


# Encoders of all items of a kind: text and codes become ids, the rows of KINDS become features.
ENCODERS = {
  'text': lambda tokenizers, texts: tokenizers.text.encode_batch(texts),
  'chat': _encode_chats,
  'image': lambda tokenizers, images: _to_ids(tokenizers, 'image', np.stack(images)),
  'audio': lambda tokenizers, waves: _to_ids(tokenizers, 'audio', waves),
  'codes': lambda tokenizers, codes: [tokenizers.encode_codes('audio', codes_PQ) for codes_PQ in codes],
  **{kind: functools.partial(_to_features, kind) for kind in KINDS},
}
