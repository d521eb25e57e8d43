"""Documents as token ids: text, image and audio codes, and places for continuous features.

A document is a list of pieces and its ids are theirs in a row: text ids; boi, codes, eoi; boa,
codes, eoa; sep for the arrow. An image or sound that is only read has `patch` or `frame` in the
place of each code, and features beside the ids. The cache adds the end of the document, eos.

Letters: T tokens of a document, P positions of an item, Y X A rows, columns and channels of an
image, N samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpt_jax.data import augment, media_io, templates
from gpt_jax.data.bad_records import BadRecords
from gpt_jax.data.mixture import DataConfig, open_split, source_names
from gpt_jax.data.splits import SPLITS
from gpt_jax.data.templates import MODALITY, Piece, Samples

MARKERS = {'image': ('boi', 'eoi', 'patch'), 'audio': ('boa', 'eoa', 'frame')}


@dataclass(frozen=True)
class Encoded:
  """A document for the model."""

  ids: np.ndarray  # int32 [T]
  patches: np.ndarray | None = None  # float32 [places, features], in the order of the patch ids
  frames: np.ndarray | None = None  # the same for the frame ids


def examples(cfg: DataConfig, name: str, split: str) -> Iterator[tuple[str, list[Piece]]]:
  """(where, pieces) of each document of `split` of one source; media are not decoded yet."""
  return open_split(cfg, name, split).examples()


def decode_media(tokenizers, pieces: list[Piece], where: str = '', notes=None) -> list[Piece]:
  """The pieces with images as uint8 [Y, X, A] and sounds as float32 [N], as the tokenizers want.

  `notes`, a Counter, gets what was converted. ValueError or FileNotFoundError that begins with
  `where` for media that cannot be read.
  """
  decoded = []
  for piece in pieces:
    modality = MODALITY.get(piece.kind)
    if modality == 'image':
      value, note = media_io.read_image(piece.value, tuple(tokenizers.image.shape), where)
    elif modality == 'audio':
      audio = tokenizers.audio
      seconds = audio.max_positions / audio.codes_per_second
      value, note = _read_sound(piece.value, audio.sample_rate, where, seconds)
    else:
      decoded.append(piece)
      continue
    decoded.append(Piece(piece.kind, value))
    if note and notes is not None:
      notes[f'{"images" if modality == "image" else "sounds"} {note}'] += 1
  return decoded


def encode(tokenizers, pieces: list[Piece]) -> Encoded:
  """One document."""
  return encode_batch(tokenizers, [pieces])[0]


def encode_batch(tokenizers, documents: list[list[Piece]]) -> list[Encoded]:
  """Many documents; each tokenizer is called once for all that it has to do."""
  documents = [decode_media(tokenizers, pieces) for pieces in documents]
  values = {kind: [] for kind in (*MODALITY, 'text')}
  for piece in (piece for pieces in documents for piece in pieces if piece.kind != 'arrow'):
    values[piece.kind].append(piece.value)
  made = {kind: iter(ENCODERS[kind](tokenizers, of)) for kind, of in values.items() if of}
  return [_assemble(tokenizers, pieces, made) for pieces in documents]


def _assemble(tokenizers, pieces: list[Piece], made: dict[str, Iterator]) -> Encoded:
  """One document of the next encoded items of each kind."""
  special = tokenizers.vocabulary.special
  ids, features = [], {kind: [] for kind in templates.CONTINUOUS}
  for piece in pieces:
    if piece.kind == 'arrow':
      ids.append([special('sep')])
      continue
    content = next(made[piece.kind])
    if piece.kind == 'text':
      ids.append(content)
      continue
    begin, end, place = map(special, MARKERS[MODALITY[piece.kind]])
    if piece.kind in features:
      features[piece.kind].append(np.asarray(content, np.float32))
      content = np.full(len(content), place, np.int32)
    ids.append(np.concatenate([[begin], content, [end]]))
  found = {kind: np.concatenate(rows) for kind, rows in features.items() if rows}
  whole = np.concatenate([np.asarray(part, np.int32) for part in ids]) if ids else []
  return Encoded(np.asarray(whole, np.int32), **found)


def check_tokenizers(tokenizers, template: str, name: str) -> None:
  """ValueError unless the tokenizers can encode what this template asks for."""
  kinds = {kind for kind, _ in templates.parse(template)}
  wanted = sorted({MODALITY[kind] for kind in kinds & set(MODALITY)})
  if lacking := [modality for modality in wanted if getattr(tokenizers, modality) is None]:
    raise ValueError(
      f'data.mixture.{name}.template={template!r} needs {lacking[0]} tokens, which the model has '
      f'not\nfix: set {lacking[0]}.kind in the config, or use another template'
    )
  needed = {'eos', *(['sep'] if 'arrow' in kinds else ()), *(m for w in wanted for m in MARKERS[w])}
  if missing := sorted(needed - set(dict(tokenizers.vocabulary.specials))):
    raise ValueError(
      f'data.mixture.{name}.template={template!r} needs the special tokens {", ".join(missing)}, '
      'which the vocabulary has not\n'
      'fix: use a model whose tokenizers were built with specials=SPECIALS, or text alone'
    )


def check_pieces(tokenizers, pieces: list[Piece], where: str) -> None:
  """ValueError if a list of parts holds media that the tokenizers cannot encode."""
  for piece in pieces:
    modality = MODALITY.get(piece.kind)
    if modality and getattr(tokenizers, modality) is None:
      raise ValueError(
        f'{where} needs {modality} tokens, which the model has not\n'
        f'fix: set {modality}.kind in the config, or leave the record out'
      )


def filter_readable(
  cfg: DataConfig, name: str, tokenizers, found: Iterator
) -> Iterator[tuple[str, list[Piece]]]:
  """Those (where, pieces) of a source that its token cache has, if it tolerates unreadable ones."""
  for where, pieces in found:
    try:
      if cfg.mixture[name].bad_records:
        decode_media(tokenizers, pieces, where)
    except (OSError, ValueError):  # counted and named where the tokens are made
      continue
    yield where, pieces


def load_images(cfg: DataConfig, shape: tuple[int, int, int], split: str = 'train') -> np.ndarray:
  """All images of `split` as uint8 [N, Y, X, A] of this shape (Y, X, A)."""
  read = lambda value, where: media_io.read_image(value, tuple(shape), where)
  return np.stack(list(_read_all(cfg, 'image', split, read, ())))


def load_waveforms(
  cfg: DataConfig, sample_rate: int, split: str = 'train', seconds: float = 60.0
) -> list[np.ndarray]:
  """All sounds of `split`, float32 [N] each, none longer than `seconds`."""
  read = lambda value, where: _read_sound(value, sample_rate, where, seconds)
  return list(_read_all(cfg, 'audio', split, read, (sample_rate, seconds)))


def _read_all(cfg, modality, split, read, sound) -> Iterator[np.ndarray]:
  """Decoded media of all sources, in training with changed copies; ValueError for none."""
  empty = True
  for name in source_names(cfg, split):
    bad_records = BadRecords(name, cfg.mixture[name])
    copied = cfg.mixture[name] if split == 'train' else None
    found = _media_of(cfg, name, modality, split, bad_records.skip)
    for number, (where, plural, value) in enumerate(found):
      try:
        array, note = read(value, where)
      except (OSError, ValueError) as error:
        bad_records.skip(error)
        continue
      bad_records.notes.update([f'{plural} {note}'] if note else [])
      empty = False
      yield array
      if copied is not None:
        pieces = [Piece(modality, array)]
        yield from (c.value for [c] in augment.copies(copied, number, pieces, *sound))
    bad_records.report()
  if empty:
    raise _nothing_to_learn_from(cfg, modality, split)


def _nothing_to_learn_from(cfg: DataConfig, modality: str, split: str) -> ValueError:
  """The error for no media in `split`: whether the other documents have some decides the fix."""
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


def _media_of(cfg, name, modality, split, skip=None) -> Iterator[tuple[str, str, object]]:
  """(where, 'images' or 'sounds', raw value) of the items of one source."""
  if modality not in templates.modalities(cfg.mixture[name].template):
    return
  plural = 'images' if modality == 'image' else 'sounds'
  for where, pieces in open_split(cfg, name, split).examples(skip):
    for piece in pieces:
      if MODALITY.get(piece.kind) == modality:
        yield where, plural, piece.value


def _read_sound(value, sample_rate: int, where: str, seconds: float) -> tuple[np.ndarray, str]:
  rate = 0
  if isinstance(value, Samples):
    value, rate = value
  return media_io.read_sound(value, sample_rate, where, seconds, rate)


def _image_codes(tokenizers, images):
  return [
    tokenizers.encode_codes('image', codes_PQ) for codes_PQ in tokenizers.image.encode(np.stack(images))
  ]


def _audio_codes(tokenizers, waves):
  return [tokenizers.encode_codes('audio', codes_PQ) for codes_PQ in tokenizers.audio.encode(waves)]


# What encodes all items of a kind: text and codes give ids, patches and frames give features.
ENCODERS = {
  'text': lambda tokenizers, texts: tokenizers.text.encode_batch(texts),
  'image': _image_codes,
  'audio': _audio_codes,
  'patches': lambda tokenizers, images: tokenizers.image.features(np.stack(images)),
  'frames': lambda tokenizers, waves: tokenizers.audio.features(waves),
}
