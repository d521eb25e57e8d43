"""Token caches: a part of a source as one memory-mapped file of ids, made once and shared.

The name of the file holds a hash of the content, the template, the split and the tokenizers, so
that a change of any makes a new cache. Layout: ids (uint16 or uint32), padding to 8 bytes, the
start of each document (int64), meta data (JSON), its length (int64), MAGIC. The meta data come last
because documents are streamed: their number is known at the end.

Continuous features lie beside it, a row for each patch or frame id in the order of the stream, in
`.patches.npy` (float16 [places, width]); `.patches_at.npy` (int64 [places]) has the ids' places.
`.media.npy` (uint64) has a hash of each image and sound, changed copies left out, so that it can be
told whether splits share any.
"""

import array
import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt_jax.data import augment, templates
from gpt_jax.data.bad_records import BadRecords
from gpt_jax.data.documents import check_pieces, check_tokenizers, decode_media, encode_batch
from gpt_jax.data.files import NpyWriter, atomic, write_atomically
from gpt_jax.data.mixture import DataConfig, SourceSplit, open_split
from gpt_jax.data.row_fields import PLACES

MAGIC = b'GPTJAX01'
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 20, 1024  # what the tokenizer gets at once
BATCH_MEDIA = 256  # images and sounds that are decoded at once
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
  media: dict = field(default_factory=dict)  # how many images, sounds and skipped records, if any
  notes: dict = field(default_factory=dict)  # how many of them were converted, by how
  features: dict = field(default_factory=dict)  # kind -> (float16 [places, width], int64 [places])
  media_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))  # of the media

  def __reduce__(self):
    return read_cache, (self.path,)


def token_cache(
  cfg: DataConfig, source_name: str, tokenizers, split: str, cache_dir: str | Path
) -> TokenCache:
  """The tokens of one source, from `cfg.cache or cache_dir`, made if they are not there.

  `eos`, where the vocabulary has it, ends each document if the source has more than one, or with
  `append_eos`; it always ends documents with media or a condition. Two processes may call this at
  once: both write, the last replaces equal files.
  """
  part = open_split(cfg, source_name, split)
  specials = dict(tokenizers.vocabulary.specials)
  if cfg.append_eos and 'eos' not in specials:
    raise ValueError(
      'data.append_eos=True, but the vocabulary has no eos\n'
      'fix: set data.append_eos=False or use a tokenizer with eos'
    )
  template = cfg.mixture[source_name].template
  if not part.plain:
    check_tokenizers(tokenizers, template, source_name)
  ends = part.many or cfg.append_eos or not part.plain
  ending = [specials['eos']] if 'eos' in specials and ends else []
  entries = {**part.describe(), 'tokenizer': tokenizers.hash, 'eos': ending}
  key = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]
  path = Path(cfg.cache or cache_dir).expanduser() / f'{source_name}-{split}-{key}.tokens'
  bad_records = BadRecords(source_name, cfg.mixture[source_name])
  if path.exists():
    try:
      cache = read_cache(path)
      bad_records.recall(cache.notes, cache.media.get('skipped', 0))
      return cache
    except ValueError as error:
      log.warning('making the token cache again: %s', str(error).splitlines()[0])
  log.info('tokenizing %s of data.mixture.%s into %s', split, source_name, path)
  meta = {'name': f'{source_name} ({split})', 'entries': entries}
  if part.plain:
    items = _encoded_texts(part.texts(bad_records.skip), tokenizers)
    _write(path, items, tokenizers, ending, meta, bad_records)
  else:
    kinds = [kind for kind, _ in templates.parse(template) if kind in templates.CONTINUOUS]
    copied = cfg.mixture[source_name] if split == 'train' else None
    hashes = array.array('Q')
    items = _encoded_documents(part, tokenizers, bad_records, copied, hashes)
    _write(path, items, tokenizers, ending, meta, bad_records, dict.fromkeys(kinds), hashes)
  return read_cache(path)


def count_shared_media(held: TokenCache, others: Iterable[TokenCache]) -> int:
  """How many of the images and sounds of one cache are in others too, as far as caches know."""
  known = [other.media_hashes for other in others]
  return int(np.isin(held.media_hashes, np.concatenate(known)).sum()) if known else 0


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
      features = {kind: _read_features(path, kind, n) for kind, n in meta.get('places', {}).items()}
      known = 'hashes' in meta  # older caches have none
      hashes = np.load(_hashes_beside(path), mmap_mode='r') if known else np.zeros(0, np.uint64)
    except (ValueError, KeyError, TypeError, OSError, EOFError):
      raise broken from None
  starts = -(-tokens * dtype.itemsize // 8) * 8
  if size != starts + 8 * documents + length + 16:
    raise broken
  ids = np.memmap(path, dtype, 'r', shape=(tokens,))
  offsets = np.memmap(path, np.dtype('<i8'), 'r', offset=starts, shape=(documents,))
  return TokenCache(
    path,
    ids,
    offsets,
    meta['bytes'],
    meta['name'],
    meta['entries'],
    meta.get('media', {}),
    meta.get('notes', {}),
    features,
    hashes,
  )


def _read_features(path: Path, kind: str, places: int) -> tuple[np.ndarray, np.ndarray]:
  """Features and their places in the stream, memory-mapped; ValueError if they are not whole."""
  rows, at = (np.load(name, mmap_mode='r') for name in _beside(path, kind))
  if len(rows) != places or at.shape != (places,):
    raise ValueError(f'{path} has {places} {kind}, the files beside it {len(rows)}')
  return rows, at


def _beside(path: Path, kind: str) -> tuple[Path, Path]:
  """The files of features and of their places."""
  return path.with_suffix(f'.{kind}.npy'), path.with_suffix(f'.{kind}_at.npy')


def _hashes_beside(path: Path) -> Path:
  """The file of the hashes of images and sounds."""
  return path.with_suffix('.media.npy')


class _Item(NamedTuple):
  """A document, or a piece of a long text."""

  ids: np.ndarray | list[int]
  bytes: int  # of its text
  first: bool = True  # whether it begins a document
  last: bool = True  # whether it ends one
  features: dict = {}  # kind -> float32 [places, width]
  counts: dict = {}  # images and sounds


def _write(
  path: Path,
  items: Iterator[_Item],
  tokenizers,
  ending: list[int],
  meta: dict,
  bad_records: BadRecords,
  kinds: Iterable[str] | None = None,
  hashes=(),
) -> None:
  """Streams documents to the files; memory is bounded by a batch or the longest document."""
  dtype = np.dtype('<u2' if tokenizers.vocabulary.padded <= 1 << 16 else '<u4')
  end = np.asarray(ending, dtype).tobytes()
  offsets, tokens, size, media = array.array('q'), 0, 0, {}
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(atomic(path))  # takes its place last: with it the cache is whole
    writers = {
      kind: [NpyWriter(stack.enter_context(atomic(name))) for name in _beside(path, kind)]
      for kind in kinds or ()
    }
    for ids, count, first, last, features, counts in items:
      if first:
        offsets.append(tokens)
      ids = np.asarray(ids, dtype)
      file.write(ids.tobytes() + end * last)
      for kind, rows in features.items():
        place = tokenizers.vocabulary.special(PLACES[kind])
        writers[kind][0].write(rows.astype(np.float16))
        writers[kind][1].write(np.flatnonzero(ids == place) + tokens)
      for kind, number in counts.items():
        media[kind] = media.get(kind, 0) + number
      tokens += len(ids) + len(ending) * last
      size += count
    if not tokens:
      raise ValueError(f'data.mixture.{meta["name"]} has no tokens\nfix: check its path and template')
    places = {kind: [writer.finish() for writer in pair][0] for kind, pair in writers.items()}
    bad_records.report()
    if kinds is not None:
      meta |= {'media': {**media, 'skipped': bad_records.skipped}, 'places': places}
    elif bad_records.skipped:
      meta |= {'media': {'skipped': bad_records.skipped}}
    if bad_records.notes:
      meta |= {'notes': dict(bad_records.notes)}
    if hashes:
      found = np.frombuffer(hashes, np.uint64)
      write_atomically(_hashes_beside(path), lambda beside: np.save(beside, found))
      meta['hashes'] = len(hashes)
    file.write(bytes(-tokens * dtype.itemsize % 8))
    file.write(np.asarray(offsets, '<i8').tobytes())
    counts = {'dtype': dtype.str, 'tokens': tokens, 'documents': len(offsets), 'bytes': size}
    footer = json.dumps({**meta, **counts}).encode()
    file.write(footer + len(footer).to_bytes(8, 'little') + MAGIC)


def _encoded_texts(texts: Iterator[str], tokenizers) -> Iterator[_Item]:
  """Documents of one text each."""
  limit = BATCH_CHARACTERS if tokenizers.text.kind in CONTEXT_FREE else sys.maxsize
  for batch in _batches(_pieces(texts, limit)):
    encoded = tokenizers.text.encode_batch([text for text, _, _ in batch])
    for (text, first, last), ids in zip(batch, encoded, strict=True):
      yield _Item(ids, len(text.encode()), first, last)


def _encoded_documents(
  part: SourceSplit, tokenizers, bad_records: BadRecords, copied, hashes
) -> Iterator[_Item]:
  """Documents of several pieces; those whose media cannot be read are left out.

  copied: the source whose changed copies are wanted too, or None. hashes: an array that gets those
  of the media.
  """
  audio = tokenizers.audio
  sound = (audio.sample_rate, audio.max_positions / audio.codes_per_second) if audio else (0, 0.0)

  def decoded():
    for number, (where, pieces) in enumerate(part.examples(bad_records.skip)):
      check_pieces(tokenizers, pieces, where)
      try:
        whole = decode_media(tokenizers, pieces, where, bad_records.notes)
      except (OSError, ValueError) as error:
        bad_records.skip(error)
        continue
      hashes.extend(hash_of(p.value) for p in whole if p.kind in templates.MODALITY)
      yield whole
      if copied is not None:
        yield from augment.copies(copied, number, whole, *sound)

  for batch in _document_batches(decoded()):
    for pieces, encoded in zip(batch, encode_batch(tokenizers, batch), strict=True):
      kinds = [templates.MODALITY.get(piece.kind) for piece in pieces]
      counts = {'images': kinds.count('image'), 'sounds': kinds.count('audio')}
      size = sum(len(piece.value.encode()) for piece in pieces if piece.kind == 'text')
      features = {kind: getattr(encoded, kind) for kind in templates.CONTINUOUS}
      features = {kind: rows for kind, rows in features.items() if rows is not None}
      yield _Item(encoded.ids, size, features=features, counts=counts)


def hash_of(value: np.ndarray) -> int:
  """64 bits that equal images or sounds share."""
  content = repr((value.dtype.str, value.shape)).encode() + np.ascontiguousarray(value).tobytes()
  return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), 'little')


def _document_batches(documents: Iterator[list]) -> Iterator[list[list]]:
  """Lists of documents with about BATCH_MEDIA media or BATCH_CHARACTERS characters."""
  batch, media, characters = [], 0, 0
  for pieces in documents:
    batch.append(pieces)
    media += sum(piece.kind in templates.MODALITY for piece in pieces)
    characters += sum(len(piece.value) for piece in pieces if piece.kind == 'text')
    full = media >= BATCH_MEDIA or characters >= BATCH_CHARACTERS
    if full or len(batch) >= BATCH_DOCUMENTS:
      yield batch
      batch, media, characters = [], 0, 0
  if batch:
    yield batch


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
