"""Token caches: a part of a source as one memory-mapped file of ids, made once and shared.

The name of the file holds a hash of the text, the template, the split and the tokenizer, so that
a change of any makes a new cache. Layout: ids (uint16 or uint32), padding to 8 bytes, the start of
each document (int64), meta data (JSON), its length (int64), MAGIC. The meta data come last because
documents are streamed: their number is known at the end.
"""

import array
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt_jax.data.files import write_atomically
from gpt_jax.data.mixture import DataConfig, open_part

MAGIC = b'GPTJAX01'
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 20, 1024  # what the tokenizer gets at once
CONTEXT_FREE = ('bytes', 'chars')  # tokenizers that may be given a long document in pieces

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenCache:
  """Token ids of one split of one source, memory-mapped. Pickles as its path."""

  path: Path
  ids: np.ndarray  # [tokens] uint16 or uint32
  offsets: np.ndarray  # [documents] int64: index of the first token of each document
  bytes: int  # UTF-8 bytes of the text, without eos
  name: str  # source and split, for messages
  entries: dict  # what the key hashes: content, template, tokenizer, ...

  def __reduce__(self):
    return read_cache, (self.path,)


def token_cache(
  cfg: DataConfig, source_name: str, tokenizers, split: str, cache_dir: str | Path
) -> TokenCache:
  """The tokens of one source, from `cfg.cache or cache_dir`, made if they are not there.

  `eos`, where the vocabulary has it, ends each document if the source has more than one, or with
  `append_eos`. Two processes may call this at once: both write, the last replaces an equal file.
  """
  part = open_part(cfg, source_name, split)
  specials = dict(tokenizers.vocabulary.specials)
  if cfg.append_eos and 'eos' not in specials:
    raise ValueError(
      'data.append_eos=True, but the vocabulary has no eos\n'
      'fix: set data.append_eos=False or use a tokenizer with eos'
    )
  ending = [specials['eos']] if 'eos' in specials and (part.many or cfg.append_eos) else []
  entries = {**part.describe(), 'tokenizer': tokenizers.hash, 'eos': ending}
  key = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]
  path = Path(cfg.cache or cache_dir).expanduser() / f'{source_name}-{split}-{key}.tokens'
  if path.exists():
    try:
      return read_cache(path)
    except ValueError as error:
      log.warning('making the token cache again: %s', str(error).splitlines()[0])
  log.info('tokenising %s of data.mixture.%s into %s', split, source_name, path)
  meta = {'name': f'{source_name} ({split})', 'entries': entries}
  write_atomically(path, lambda file: _write(file, part.texts(), tokenizers, ending, meta))
  return read_cache(path)


def read_cache(path: Path) -> TokenCache:
  """Maps a cache file. ValueError where its size is not the one that its meta data give."""
  size = path.stat().st_size
  broken = ValueError(f'{path} is no complete token cache\nfix: delete it')
  with open(path, 'rb') as file:
    file.seek(max(0, size - 16))
    tail = file.read(16)
    length = int.from_bytes(tail[:8], 'little')
    if tail[8:] != MAGIC or length > size - 16:
      raise broken
    file.seek(size - 16 - length)
    try:
      meta = json.loads(file.read(length))
      dtype, tokens, documents = np.dtype(meta['dtype']), meta['tokens'], meta['documents']
    except (ValueError, KeyError, TypeError):
      raise broken from None
  starts = -(-tokens * dtype.itemsize // 8) * 8
  if size != starts + 8 * documents + length + 16:
    raise broken
  ids = np.memmap(path, dtype, 'r', shape=(tokens,))
  offsets = np.memmap(path, np.dtype('<i8'), 'r', offset=starts, shape=(documents,))
  return TokenCache(path, ids, offsets, meta['bytes'], meta['name'], meta['entries'])


def _write(file, texts: Iterator[str], tokenizers, ending: list[int], meta: dict) -> None:
  """Streams documents to the file; memory is bounded by a batch or the longest document."""
  dtype = np.dtype('<u2' if tokenizers.vocabulary.padded <= 1 << 16 else '<u4')
  end = np.asarray(ending, dtype).tobytes()
  offsets, tokens, size = array.array('q'), 0, 0
  limit = BATCH_CHARACTERS if tokenizers.text.kind in CONTEXT_FREE else sys.maxsize
  for batch in _batches(_pieces(texts, limit)):
    encoded = tokenizers.text.encode_batch([text for text, _, _ in batch])
    for (text, first, last), ids in zip(batch, encoded, strict=True):
      if first:
        offsets.append(tokens)
      file.write(np.asarray(ids, dtype).tobytes() + end * last)
      tokens += len(ids) + len(ending) * last
      size += len(text.encode())
  if not tokens:
    raise ValueError(f'data.mixture.{meta["name"]} has no tokens\nfix: check its path and template')
  file.write(bytes(-tokens * dtype.itemsize % 8))
  file.write(np.asarray(offsets, '<i8').tobytes())
  counts = {'dtype': dtype.str, 'tokens': tokens, 'documents': len(offsets), 'bytes': size}
  footer = json.dumps({**meta, **counts}).encode()
  file.write(footer + len(footer).to_bytes(8, 'little') + MAGIC)


def _pieces(texts: Iterator[str], limit: int) -> Iterator[tuple[str, bool, bool]]:
  """Documents in pieces of at most `limit` characters: (text, is the first, is the last)."""
  for text in texts:
    for start in range(0, max(1, len(text)), limit):
      yield text[start : start + limit], start == 0, start + limit >= len(text)


def _batches(pieces: Iterator[tuple[str, bool, bool]]) -> Iterator[list[tuple[str, bool, bool]]]:
  """Lists of pieces of BATCH_CHARACTERS or BATCH_DOCUMENTS, whichever comes first."""
  batch, characters = [], 0
  for piece in pieces:
    batch.append(piece)
    characters += len(piece[0])
    if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
      yield batch
      batch, characters = [], 0
  if batch:
    yield batch
