"""Where records come from: a `Source` of the config, and the table of its kinds.

A row of SOURCES opens a source and gives a `Corpus`: two functions, one streams (where, record),
one hashes all that the first can read. A record is a dict of fields, `where` names it in messages.
Relative paths are looked up in the current folder, then in the folder that GPT_JAX_DATA names.
"""

import codecs
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from gpt_jax.data import arrays, augment, media_sources, record_sources, splits, templates
from gpt_jax.data.files import find, hash_files, not_utf8
from gpt_jax.data.splits import Corpus

BLOCK = 1 << 20  # bytes read at a time
SYNTHETIC_WORDS, SYNTHETIC_CHOICES = 512, 8  # vocabulary and successors of the Markov chain


@dataclass(frozen=True)
class Source:
  """One member of a mixture. A field that its kind does not use must keep its default."""

  kind: str = 'builtin'  # row of SOURCES
  path: str = ''  # file, glob, folder, also gs:// or s3://; files: also .zip; tfds: a data set
  template: str = '{text}'  # what a document is, over the fields of a record
  weight: float = 1.0  # share of the rows, relative to the other sources
  separator: str = ''  # text: string between the documents of a file; '' = a file is a document
  valid_path: str = ''  # validation files; '' = a part of `path`
  test_path: str = ''  # test files; '' = none, or what test_keep selects of `path`
  train_split: str = 'train'  # tfds: split, as in 'train' or 'train[:90%]'
  valid_split: str = ''  # tfds: split for validation; '' = a part of train_split
  test_split: str = ''  # tfds: split for the test; '' = none
  keep: str = ''  # which records, as in 'speaker=theo|lucas,digit=3'; '' = all
  valid_keep: str = ''  # which records are for validation, and not for training
  test_keep: str = ''  # which records are for the test, and for nothing else
  names: tuple[str, ...] = ()  # adds the field name = names[label]
  root: str = ''  # jsonl: folder or .zip of the media that it names; '' = the folder of the file
  pattern: str = ''  # files: regular expression on a file's name; its named groups become fields
  captions: str = ''  # files: JSON lines with more fields of the file that file/image/audio names
  copies: int = 0  # changed copies of each training record beside itself
  augment: str = ''  # how their media are changed, as in 'speed=0.2,noise=0.01': augment.CHANGES
  bad_records: int = 0  # records that cannot be read and are skipped; one more is an error
  data_dir: str = ''  # tfds: folder of prepared data sets; '' = the library's own default
  rate: int = 0  # arrays, tfds: samples a second of sounds; 0 = what the data or tokenizer say
  documents: int = 1000  # keypad: sounds; stories; synthetic: documents of 256 words
  seed: int = 0  # stories, synthetic: seed of the generator

  def __post_init__(self):
    if self.kind not in SOURCES:
      raise ValueError(f'kind={self.kind} is no kind of source\nfix: use one of {", ".join(SOURCES)}')
    used = {'kind', 'template', 'weight', *FIELDS[self.kind]}
    for field in fields(self):
      value = getattr(self, field.name)
      if field.name not in used and value != field.default:
        raise ValueError(
          f'{field.name}={value!r} means nothing to a source of kind={self.kind}\n'
          f'fix: remove it; kind={self.kind} reads {", ".join(sorted(used))}'
        )
    if 'path' in used and not self.path:
      raise ValueError(f'path is empty for a source of kind={self.kind}\nfix: set path')
    if not 0 < self.weight < float('inf'):
      raise ValueError(f'weight={self.weight} is not positive\nfix: remove the source or raise it')
    if self.documents < 1:
      raise ValueError(f'documents={self.documents} is not positive\nfix: generate at least one')
    for name in ('bad_records', 'rate', 'copies'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}={getattr(self, name)} is negative\nfix: use 0 or more')
    for keep in (self.keep, self.valid_keep, self.test_keep):
      splits.parse(keep)
    media_sources.check_pattern(self.pattern)
    templates.parse(self.template)
    self._check_augment()

  def _check_augment(self):
    changed, shown = augment.modalities(self.augment), templates.modalities(self.template)
    if changed - shown:
      raise ValueError(
        f'augment={self.augment!r} changes {sorted(changed - set(shown))[0]}, and the template '
        f'{self.template!r} has none\nfix: leave it out of augment'
      )
    if bool(self.copies) != bool(self.augment):
      raise ValueError(
        f'copies={self.copies} with augment={self.augment!r}\n'
        'fix: give both: how many changed copies of a record, and how they are changed'
      )

  def is_apart(self, split: str) -> bool:
    """Whether `split` has files of its own."""
    return any(getattr(self, f'{split}_{what}') for what in ('path', 'split') if split != 'train')

  def has(self, split: str) -> bool:
    """Whether the data of `split` are named, so that nothing is cut from the training data."""
    return split != 'train' and bool(self.is_apart(split) or getattr(self, f'{split}_keep'))

  @property
  def has_valid(self) -> bool:
    """Whether the validation data are named."""
    return self.has('valid')

  def path_of(self, split: str) -> str:
    """The files of `split`."""
    return (split != 'train' and getattr(self, f'{split}_path')) or self.path


def open_source(source: Source, split: str) -> Corpus:
  """The records of `split` if the source names its data, else those of training."""
  own = split if source.has(split) else 'train'
  return splits.select(SOURCES[source.kind](source, own), source, own)


def _builtin(source: Source, split: str) -> Corpus:
  """The language reference that every CPython carries; its text differs between Python versions."""
  try:
    from pydoc_data.topics import topics
  except ImportError:
    raise ValueError(
      'kind=builtin needs pydoc_data, which this Python was packaged without\n'
      'fix: use kind=text with a file of your own, or a complete Python'
    ) from None
  names = sorted(topics)

  def content():
    digest = hashlib.sha256(json.dumps([[name, topics[name]] for name in names]).encode())
    return f'python{sys.version_info.major}.{sys.version_info.minor}-{digest.hexdigest()}'

  def records():
    return ((f'topic {name}', {'name': name, 'text': topics[name]}) for name in names)

  return Corpus(records, content)


def _text(source: Source, split: str) -> Corpus:
  """UTF-8 files, byte for byte; each is one document, or many between separators."""
  files = find(source.path_of(split), '.txt')

  def records():
    for path in files:
      pieces = _pieces(path, source.separator)
      for number, text in enumerate(pieces, 1):
        yield f'{path} document {number}', {'text': text}

  return Corpus(records, lambda: hash_files(files))


def _pieces(path: Path, separator: str) -> Iterator[str]:
  """The documents of one file, streamed if there is a separator; blank ones do not count."""
  if not os.path.getsize(path):
    raise ValueError(f'{path} is empty\nfix: remove it from path, or fill it')
  blocks = _decoded(path)
  if not separator:
    yield ''.join(blocks)
    return
  rest = ''
  for block in blocks:
    *done, rest = (rest + block).split(separator)
    yield from filter(str.strip, done)
  if rest.strip():
    yield rest


def _decoded(path: Path) -> Iterator[str]:
  """A file as text, block by block, without newline translation."""
  decoder = codecs.getincrementaldecoder('utf-8')()
  offset = 0
  with open(path, 'rb') as file:
    while True:
      block = file.read(BLOCK)
      held = len(decoder.getstate()[0])  # bytes of a character that the last block cut
      try:
        yield decoder.decode(block, final=not block)
      except UnicodeDecodeError as error:
        raise not_utf8(path, offset - held + error.start) from None
      if not block:
        return
      offset += len(block)


def _synthetic(source: Source, split: str) -> Corpus:
  """An order-1 Markov chain over made-up words: learnable, endless, the same on every machine."""

  def records():
    words = [_word(n) for n in range(SYNTHETIC_WORDS)]
    for number in range(source.documents):
      draws = scramble(source.seed, np.arange(number * 256, number * 256 + 256)).tolist()
      word, text = draws[0] % SYNTHETIC_WORDS, []
      for draw in draws:
        # Eight successors each, the low ones likelier: 2.73 bits a word, where uniform has 3.
        choice = min(draw % SYNTHETIC_CHOICES, (draw >> 32) % SYNTHETIC_CHOICES)
        word = (word * 31 + choice * 97 + 7) % SYNTHETIC_WORDS
        text.append(words[word])
      yield f'synthetic document {number}', {'text': ' '.join(text) + '.\n'}

  return Corpus(records, lambda: f'markov1-{source.documents}-{source.seed}')


def _word(number: int) -> str:
  """A pronounceable word for a number below 512 = 8^3; different numbers, different words."""
  onset, vowel, rest = number % 8, number // 8 % 8, number // 64
  return 'bdfklmst'[onset] + ('a', 'e', 'i', 'o', 'u', 'ai', 'ea', 'oo')[vowel] + 'lmnrstxz'[rest]


def scramble(seed: int, index: np.ndarray) -> np.ndarray:
  """64 pseudo-random bits for each index (SplitMix64), a pure function of the arguments."""
  start = int.from_bytes(hashlib.sha256(b'%d' % seed).digest()[:8], 'little')
  x = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


SOURCES = {
  'builtin': _builtin,
  'text': _text,
  'jsonl': record_sources.jsonl,
  'parallel': record_sources.parallel,
  'stories': record_sources.made_up_stories,
  'tfds': record_sources.tfds,
  'synthetic': _synthetic,
  'digits': media_sources.digits,
  'keypad': media_sources.keypad,
  'arrays': arrays.arrays,
  'files': media_sources.files,
}

# The fields that a kind reads besides kind, template and weight.
FILTERS = ('keep', 'valid_keep', 'test_keep')
COPIES = ('copies', 'augment')
PATHS = ('path', 'valid_path', 'test_path')
FIELDS = {
  'builtin': FILTERS,
  'text': ('separator', *PATHS),
  'jsonl': ('root', 'names', 'bad_records', *PATHS, *FILTERS, *COPIES),
  'tfds': (
    'path',
    'train_split',
    'valid_split',
    'test_split',
    'data_dir',
    'rate',
    'names',
    'bad_records',
    *FILTERS,
    *COPIES,
  ),
  'parallel': (*PATHS, *FILTERS),
  'stories': ('documents', 'seed', *FILTERS),
  'synthetic': ('documents', 'seed'),
  'digits': (*FILTERS, *COPIES),
  'keypad': ('documents', *FILTERS, *COPIES),
  'arrays': ('rate', 'names', 'bad_records', *PATHS, *FILTERS, *COPIES),
  'files': ('pattern', 'captions', 'names', 'bad_records', *PATHS, *FILTERS, *COPIES),
}
