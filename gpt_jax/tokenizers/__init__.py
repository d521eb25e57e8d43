"""Everything <-> ids: the vocabulary, and the tokenizers that fill its ranges.

Light to import: the tokenizer libraries are loaded when a tokenizer that needs one is made.
"""

import dataclasses
import functools
import pathlib

import numpy as np

from gpt_jax.tokenizers import base, text
from gpt_jax.tokenizers.base import StreamDecoder, TextTokenizer
from gpt_jax.tokenizers.text import TOKENIZERS, TokenizerConfig
from gpt_jax.tokenizers.vocabulary import SPECIALS, Vocabulary

__all__ = [
  'SPECIALS',
  'TOKENIZERS',
  'StreamDecoder',
  'TextTokenizer',
  'TokenizerConfig',
  'Tokenizers',
  'Vocabulary',
]


@dataclasses.dataclass(frozen=True)
class Tokenizers:
  """The tokenizers of a model and the vocabulary that they share.

  Text ids are the text tokenizer's own ids: the text range starts at 0.
  """

  vocabulary: Vocabulary
  text: TextTokenizer

  def __post_init__(self):
    if self.vocabulary.start('text') or self.vocabulary.count('text') != self.text.size:
      raise ValueError(
        f'the vocabulary has {self.vocabulary.count("text")} text ids, but the {self.text.kind} '
        f'tokenizer has {self.text.size}\n'
        'fix: use Tokenizers.build, or load both from one folder'
      )

  @classmethod
  def build(
    cls, tokenizer: TextTokenizer, specials: tuple[str, ...] = SPECIALS, multiple: int = 128
  ) -> 'Tokenizers':
    """Put text first and the specials after it.

    A special that the tokenizer has already keeps that id. An imported model takes no new ones:
    `specials=()`. `multiple` is what the embedding's columns are rounded up to.
    """
    own = dict(tokenizer.specials)
    new = [name for name in specials if name not in own]
    ids = {**own, **{name: tokenizer.size + i for i, name in enumerate(new)}}
    names = (*specials, *(name for name in own if name not in specials))
    ranges = (('text', tokenizer.size), ('special', len(new)))[: 2 if new else 1]
    return cls(Vocabulary(ranges, tuple((name, ids[name]) for name in names), multiple), tokenizer)

  def encode_text(self, string: str) -> list[int]:
    """Token ids of a text, without any special."""
    return self.text.encode(string)

  def decode_text(self, ids) -> str:
    """The text of ids [T], leaving specials out; ValueError for ids of another modality."""
    ids = np.array(base.checked_ids(ids, self.vocabulary.size), np.int32)
    special = np.isin(ids, [index for _, index in self.vocabulary.specials])
    return self.text.decode(self.vocabulary.decode('text', ids[~special]))

  def stream_decoder(self) -> StreamDecoder:
    """Text as it is generated: push ids one by one, complete text comes out."""
    return StreamDecoder(self.decode_text)

  @functools.cached_property
  def hash(self) -> str:
    """Hex digest of everything that decides what an id means."""
    return base.digest(base.to_json([self.vocabulary.hash(), self.text.hash]))

  def save(self, folder) -> None:
    """Write vocabulary.json and the files of the tokenizers into a folder."""
    self.text.save(folder)
    content = {**self.vocabulary.to_dict(), 'hash': self.vocabulary.hash()}
    base.write_file(pathlib.Path(folder) / 'vocabulary.json', base.to_json(content, indent=2))

  @classmethod
  def load(cls, folder) -> 'Tokenizers':
    """Read what `save` wrote; FileNotFoundError or ValueError if it is not as it was saved."""
    fix = 'name a folder that Tokenizers.save wrote, and restore it if a file was altered'
    path = pathlib.Path(folder).expanduser() / 'vocabulary.json'
    saved = base.read_json(path, fix)
    fields = dict(saved) if isinstance(saved, dict) else {}
    digest = fields.pop('hash', '')
    vocabulary = Vocabulary.from_dict(fields)
    if vocabulary.hash() != digest:
      raise ValueError(
        f'{path} was altered after it was saved: its hash is {vocabulary.hash()}, '
        f'saved was {digest!r}\nfix: {fix}'
      )
    return cls(vocabulary, text.load(folder))
