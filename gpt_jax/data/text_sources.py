"""Sources of plain text: files, Python's own reference, and a Markov chain."""

import codecs
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpt_jax.data.files import find_files, hash_files, warn_once
from gpt_jax.data.splits import Corpus, generated
from gpt_jax.data.synthetic import markov
from gpt_jax.data.text_files import not_utf8, read_chunks, suffixes, without_empty

BLOCK = 1 << 20  # bytes read at a time


def builtin(source, split: str) -> Corpus:
  """Open the language reference that CPython carries; its text differs between Python versions."""
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


def text(source, split: str) -> Corpus:
  """Open UTF-8 files, read byte for byte; each is one document, or many between separators."""
  files = without_empty(find_files(source.path_of(split), *suffixes('.txt')))

  def records():
    most = 1  # documents of a file
    for path in files:
      blocks = _decode_blocks(path)
      documents = split_blocks(blocks, source.separator) if source.separator else [''.join(blocks)]
      for number, document in enumerate(documents, 1):
        most = max(most, number)
        yield f'{path} document {number}', {'text': document}
    if source.separator and most == 1:
      warn_once(
        f'separator={source.separator!r} does not occur in {source.path_of(split)}: a file is a document'
      )

  return Corpus(records, lambda: hash_files(files))


def split_blocks(blocks: Iterable[str], separator: str) -> Iterator[str]:
  """Split a text that comes in blocks, leaving out blank documents, in time linear in its length."""
  parts, tail = [], ''  # of the document so far; the tail could begin a separator
  for block in blocks:
    end, *others = (tail + block).split(separator)
    parts.append(end)
    for start in others:
      yield from filter(str.strip, [''.join(parts)])
      parts = [start]
    cut = max(0, len(parts[-1]) - len(separator) + 1)
    parts[-1], tail = parts[-1][:cut], parts[-1][cut:]
  yield from filter(str.strip, [''.join([*parts, tail])])


def _decode_blocks(path: Path) -> Iterator[str]:
  """Yield a file as text, block by block, without newline translation."""
  size = 0

  def counted():
    nonlocal size
    for block in read_chunks(path, BLOCK):
      size += len(block)
      yield block

  try:
    yield from codecs.iterdecode(counted(), 'utf-8')
  except UnicodeDecodeError as error:  # its object is the last block with the bytes pending before it
    raise not_utf8(path, size - len(error.object) + error.start) from None


def synthetic(source, split: str) -> Corpus:
  """Generate documents of a Markov chain."""
  return generated(source, markov.records, source.seed)
