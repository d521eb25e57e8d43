"""Where records come from: built in text, text files, JSON lines, TFDS data sets, generated text.

A row of SOURCES opens a source and gives a `Corpus`: two functions, one streams (where, record),
one hashes all that the first can read. A record is a dict of fields, `where` names it in messages.
Relative paths are looked up in the current folder, then in the folder that GPT_JAX_DATA names.
"""

import codecs
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from gpt_jax.data import templates
from gpt_jax.data.files import find, hash_files, roots

BLOCK = 1 << 20  # bytes read at a time
SYNTHETIC_WORDS, SYNTHETIC_CHOICES = 512, 8  # vocabulary and successors of the Markov chain


@dataclass(frozen=True)
class Source:
  """One member of a mixture. A field that its kind does not use must keep its default."""

  kind: str = 'builtin'  # row of SOURCES
  path: str = ''  # file, glob or folder (text, jsonl); name of the data set (tfds)
  template: str = '{text}'  # text of a document, over the fields of a record
  weight: float = 1.0  # share of the rows, relative to the other sources
  separator: str = ''  # text: string between the documents of a file; '' = a file is a document
  valid_path: str = ''  # text, jsonl: validation files; '' = a part of `path`
  train_split: str = 'train'  # tfds: split, as in 'train' or 'train[:90%]'
  valid_split: str = ''  # tfds: split for validation; '' = a part of train_split
  data_dir: str = ''  # tfds: folder of prepared data sets; '' = the library's own default
  documents: int = 1000  # synthetic: documents of 256 words
  seed: int = 0  # synthetic: seed of the generator

  def __post_init__(self):
    if self.kind not in SOURCES:
      raise ValueError(
        f'kind={self.kind} is no kind of source\nfix: use one of {", ".join(SOURCES)}'
      )
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
    templates.parse(self.template)

  @property
  def has_valid(self) -> bool:
    """Whether the validation data are named, so that nothing is cut from the training data."""
    return bool(self.valid_path or self.valid_split)


@dataclass(frozen=True)
class Corpus:
  """An opened source."""

  records: Callable[[], Iterator[tuple[str, dict]]]  # (where it is, its fields), in a fixed order
  content: Callable[[], str]  # hash of everything that records() depends on outside the config


def open_source(source: Source, split: str) -> Corpus:
  """The records of `split` if the source names its validation data, else all of them."""
  return SOURCES[source.kind](source, split == 'valid' and source.has_valid)


def _builtin(source: Source, valid: bool) -> Corpus:
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


def _text(source: Source, valid: bool) -> Corpus:
  """UTF-8 files, byte for byte; each is one document, or many between separators."""
  files = find(source.valid_path if valid else source.path, '.txt')

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
        raise _not_utf8(path, offset - held + error.start) from None
      if not block:
        return
      offset += len(block)


def _not_utf8(path: Path, offset: int) -> ValueError:
  return ValueError(
    f'{path} is not UTF-8: bad byte at offset {offset}\n'
    f'fix: convert it, as in: iconv -f latin1 -t utf-8 {path}'
  )


def _jsonl(source: Source, valid: bool) -> Corpus:
  """A JSON object per line; blank lines are skipped."""
  files = find(source.valid_path if valid else source.path, '.jsonl')

  def records():
    for path in files:
      offset = 0
      with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
          if line.strip():
            yield f'{path} line {number}', _json_record(path, number, line, offset)
          offset += len(line)
      if not offset:
        raise ValueError(f'{path} is empty\nfix: remove it from path, or fill it')

  return Corpus(records, lambda: hash_files(files))


def _json_record(path: Path, number: int, line: bytes, offset: int) -> dict:
  try:
    record = json.loads(line.decode('utf-8'))
  except UnicodeDecodeError as error:
    raise _not_utf8(path, offset + error.start) from None
  except json.JSONDecodeError as error:
    raise ValueError(
      f'{path} line {number} is not JSON: {error.msg} at column {error.colno}\n'
      'fix: write one JSON object per line'
    ) from None
  if not isinstance(record, dict):
    raise ValueError(
      f'{path} line {number} is a JSON {type(record).__name__}, not an object\n'
      'fix: write one JSON object per line'
    )
  return record


def _tfds(source: Source, valid: bool) -> Corpus:
  """A prepared TFDS data set in array_record format, which is read without TensorFlow."""
  split = source.valid_split if valid else source.train_split
  builder = _tfds_builder(source)
  try:
    info = builder.info.splits[split]
  except (KeyError, ValueError):
    raise ValueError(
      f'split {split} of tfds path={source.path} does not exist\n'
      f'fix: train_split and valid_split can be made of {", ".join(builder.info.splits)}'
    ) from None

  def records():
    rows = builder.as_data_source(split=split)
    for start in range(0, len(rows), 256):
      numbers = range(start, min(start + 256, len(rows)))
      for number, record in zip(numbers, rows.__getitems__(numbers), strict=True):
        yield f'{builder.info.full_name} {split} record {number}', record

  def content():
    files = hash_files(sorted(map(Path, info.filepaths)))
    return f'{builder.info.full_name}-{split}-{files}'

  return Corpus(records, content)


def _tfds_builder(source: Source):
  """The builder of a prepared data set, or a ValueError that says how to prepare it."""
  import tensorflow_datasets as tfds

  options = {}
  if source.data_dir:
    paths = [os.path.join(root, os.path.expanduser(source.data_dir)) for root in roots()]
    options['data_dir'] = next(filter(os.path.isdir, paths), source.data_dir)
  try:
    builder = tfds.builder(source.path, **options)
  except (ImportError, ValueError) as error:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(
      f'path={source.path} is no TFDS data set that can be loaded: {reason}\n'
      'fix: give a name as in mnist, or name/config; data_dir is the folder that holds its folder'
    ) from None
  if not builder.is_prepared() or builder.info.file_format.value not in ('array_record', 'parquet'):
    arguments = ', '.join([repr(source.path), *(f'{k}={v!r}' for k, v in options.items())])
    raise ValueError(
      f'path={source.path} is not prepared as array_record in {builder.data_path}\n'
      'fix: python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder({arguments}, file_format='array_record').download_and_prepare()\""
    )
  return builder


def _synthetic(source: Source, valid: bool) -> Corpus:
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
  'jsonl': _jsonl,
  'tfds': _tfds,
  'synthetic': _synthetic,
}

# The fields that a kind reads besides kind, template and weight.
FIELDS = {
  'builtin': (),
  'text': ('path', 'separator', 'valid_path'),
  'jsonl': ('path', 'valid_path'),
  'tfds': ('path', 'train_split', 'valid_split', 'data_dir'),
  'synthetic': ('documents', 'seed'),
}
