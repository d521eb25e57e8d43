"""The table of text tokenizers.

bytes needs no files and encodes every text; chars is nanoGPT's alphabet of the corpus; bpe is trained
on the corpus; gpt2, huggingface and sentencepiece read the files of existing models.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from gpt_jax.tokenizers import base, bpe, subword
from gpt_jax.tokenizers.base import TokenizerKind
from gpt_jax.tokenizers.settings import check_effective, check_fields, load_own

MOST_LISTED = 100  # characters of an alphabet in an error


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """The kind of text tokenizer, and its files or size."""

  kind: str = 'bytes'  # a row of TOKENIZERS
  path: str = ''  # folder or file of an existing tokenizer; '' makes one from the documents
  vocab: int = 4096  # most ids of a trained bpe, 256 of them bytes; a small text fills fewer

  def __post_init__(self):
    rules = (
      ('kind', self.kind in TOKENIZERS, f'give one of {", ".join(TOKENIZERS)}'),
      ('vocab', self.vocab >= 256, 'give 256 or more, since every byte is a token'),
    )
    check_fields('tokenizer', self, rules)
    if not self.path and self.kind in ('gpt2', 'huggingface', 'sentencepiece'):
      raise ValueError(
        f'tokenizer.kind={self.kind} needs the files of a tokenizer, but tokenizer.path is empty\n'
        'fix: set tokenizer.path to their folder, or train one with tokenizer.kind=bpe'
      )
    check_effective('tokenizer', self, self.fields_read)

  @property
  def fields_read(self) -> set[str]:
    """The names of the fields that this kind reads."""
    names = {'path'} if self.kind != 'bytes' else set()
    return names | {'vocab'} if self.kind == 'bpe' and not self.path else names


class ByteTokenizer(base.TextTokenizer):
  """The 256 bytes of UTF-8: id = byte."""

  kind = 'bytes'
  size = 256

  def encode_batch(self, texts):
    """Return the UTF-8 bytes of each text."""
    return [list(base.checked_text(text).encode()) for text in texts]

  def encode_with_offsets(self, texts):
    """Return the bytes of each text with the characters that they belong to."""
    sizes = [[len(character.encode()) for character in text] for text in texts]
    first = [np.repeat(np.arange(len(size)), size) for size in sizes]
    return [(ids, np.stack([f, f + 1], 1)) for ids, f in zip(self.encode_batch(texts), first, strict=True)]

  def token_bytes(self):
    """Return each byte."""
    return [bytes([index]) for index in range(self.size)]

  def _decode(self, ids):
    return bytes(ids).decode(errors='replace')

  def files(self):
    """Return none: there is no content."""
    return {}


class UnknownCharacter(ValueError):
  """A text has a character that is not in the alphabet."""


class CharTokenizer(base.TextTokenizer):
  """The distinct characters of a corpus, in sorted order: id = position."""

  kind = 'chars'

  def __init__(self, characters: str):
    if not characters or sorted(set(characters)) != list(characters):
      raise ValueError(
        f'characters={characters[:50]!r} are empty, or not sorted and distinct\n'
        'fix: give training and validation documents to collect the alphabet from'
      )
    self.size = len(characters)
    self._characters = base.checked_text(characters)
    self._codepoints = np.array([ord(character) for character in characters], np.uint32)

  def encode_batch(self, texts):
    """Return the ids of each text; ValueError for a character that is not in the alphabet."""
    return [self._encode(base.checked_text(text)).tolist() for text in texts]

  def encode_with_offsets(self, texts):
    """Return the ids of each text with the place of its characters."""
    first = [np.arange(len(text)) for text in texts]
    return [(ids, np.stack([f, f + 1], 1)) for ids, f in zip(self.encode_batch(texts), first, strict=True)]

  def _encode(self, text):
    codepoints = np.frombuffer(text.encode('utf-32-le'), '<u4')
    ids = np.searchsorted(self._codepoints, codepoints).clip(max=self.size - 1)
    unknown = np.flatnonzero(self._codepoints[ids] != codepoints)
    if unknown.size:
      character = text[unknown[0]]
      raise UnknownCharacter(
        f'character {character!r} (U+{ord(character):04X}) is not among the {self.size} '
        f'characters of this tokenizer: {self._characters[:MOST_LISTED]!r}\n'
        'fix: leave it out of the text, train on documents that hold it, or set '
        'tokenizer.kind=bytes'
      )
    return ids

  def token_bytes(self):
    """Return each character in UTF-8."""
    return [character.encode() for character in self._characters]

  def _decode(self, ids):
    return self._codepoints[ids].astype('<u4').tobytes().decode('utf-32-le')

  def files(self):
    """Return the alphabet as one JSON string."""
    return {'characters.json': base.to_json(self._characters)}


def build(cfg: TokenizerConfig, documents: Callable[[], Iterable[str]] = tuple) -> base.TextTokenizer:
  """Make the tokenizer that a config describes.

  `documents` returns the documents of the corpus; only chars (which needs all splits) and bpe without a
  path call it. Raises FileNotFoundError or ValueError for missing or invalid files.
  """
  return TOKENIZERS[cfg.kind].build(cfg, documents)


def load(folder) -> base.TextTokenizer:
  """Read what `save` wrote; ValueError, naming what differs, if any of it was altered."""
  return base.load_tokenizer(folder, 'text', TOKENIZERS)


def _build_chars(cfg, documents):
  if cfg.path:
    return load_own('tokenizer', cfg, load)
  characters = set()
  for document in documents():
    characters.update(document)
  return CharTokenizer(''.join(sorted(characters)))


def _build_bpe(cfg, documents):
  if cfg.path:
    return load_own('tokenizer', cfg, load)
  model = bpe.train(documents, cfg.vocab)
  return subword.LibraryTokenizer('bpe', model, {}, 'the trained bpe')


def _build_gpt2(cfg, _):
  model = bpe.read_gpt2(_path(cfg))
  added = model['added_tokens']
  specials = {'eos': added[0]['id']} if added else {}
  return subword.LibraryTokenizer('gpt2', model, specials, cfg.path)


def _restore_library(kind):
  def restore(fields, files):
    model = json.loads(files['tokenizer.json'])
    template = files.get('chat_template.jinja', b'')
    parse = fields.get('parse_specials', False)
    return subword.LibraryTokenizer(kind, model, fields['specials'], 'tokenizer.json', parse, template)

  return restore


def _path(cfg):
  return pathlib.Path(cfg.path).expanduser()


TOKENIZERS = {
  'bytes': TokenizerKind(lambda *_: ByteTokenizer(), lambda *_: ByteTokenizer()),
  'chars': TokenizerKind(_build_chars, lambda _, files: CharTokenizer(json.loads(files['characters.json']))),
  'bpe': TokenizerKind(_build_bpe, _restore_library('bpe')),
  'gpt2': TokenizerKind(_build_gpt2, _restore_library('gpt2')),
  'huggingface': TokenizerKind(
    lambda cfg, _: subword.read_huggingface(_path(cfg)), _restore_library('huggingface')
  ),
  'sentencepiece': TokenizerKind(
    lambda cfg, _: subword.read_sentencepiece(_path(cfg)),
    lambda fields, files: subword.SentencePieceTokenizer(files['tokenizer.model'], 'tokenizer.model', fields),
  ),
}
