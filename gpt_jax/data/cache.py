"""Token caches: one split of one source as memory-mapped token ids, written once and then shared.

The file name holds a hash of the content, the template, the split, the tokenizers and the versions of
media decoders, so a change of any of them makes a new cache. A cache is a JSON file and .npy files beside
it with its stem:
  .ids          [tokens] uint16 or uint32
  .offsets      [documents] int64, the first token of each document
  .frames      [places, width] float16, continuous features in the order of the stream; as .patches, .vectors
  .frames_at   [places] int64, the places of the features in the stream
  .targets      [tokens] uint8, of conversations and models of others: 1 for the tokens that carry loss
  .media_hashes [images and sounds] uint64, hashes that show what splits share; no augmented copies
The JSON file is written last and holds a sha256 of each of the others, compared when a process opens them.
"""

import array
import contextlib
import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt_jax.data import augment, templates
from gpt_jax.data.bad_records import BadRecords
from gpt_jax.data.decoders import DECODERS
from gpt_jax.data.documents import check_pieces, check_tokenizers, decode_media, encode_batch, media_forms
from gpt_jax.data.files import NpyWriter
from gpt_jax.data.mixture import DataConfig, SourceSplit, open_split
from gpt_jax.model.continuous import KINDS
from gpt_jax.runs import digests, records
from gpt_jax.runs.progress import Progress
from gpt_jax.runs.reading import check_types, reading
from gpt_jax.tokenizers.chat_template import ChatTemplate

BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 20, 1024  # per call of the text tokenizer
ENTRIES = {  # types of the JSON of a cache
  'bytes': int,
  'name': str,
  'entries': dict,
  'files': {str: dict},
  'media': {str: int},
  'notes': {str: int},
}
BATCH_MEDIA = 256  # images and sounds decoded at once
CONTEXT_FREE = ('bytes', 'chars')  # tokenizers for which cutting a long document changes no token

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenCache:
  """Token ids of one split of one source, memory-mapped. Pickles as its path.

  A worker process that unpickles it does not hash the files again.
  """

  path: Path  # of the JSON file
  ids: np.ndarray  # [tokens] uint16 or uint32
  offsets: np.ndarray  # [documents] int64: index of the first token of each document
  bytes: int  # UTF-8 bytes of the text, without eos
  name: str  # source and split, for messages
  entries: dict  # what the key hashes: content, template, tokenizer, ...
  media: dict = field(default_factory=dict)  # numbers of images, sounds and skipped records
  notes: dict = field(default_factory=dict)  # conversion -> number of items converted
  features: dict = field(default_factory=dict)  # kind -> (float16 [places, width], int64 [places])
  targets: np.ndarray | None = None  # uint8 [tokens]; None: the layout says which tokens carry loss
  media_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

  @property
  def start(self) -> int:
    """The id that is fed before the first token of each document, so that it is a target; -1 for none."""
    return self.entries.get('start', -1)

  def __reduce__(self):
    return read_cache, (self.path, False)


def token_cache(
  cfg: DataConfig, source_name: str, tokenizers, split: str, cache_dir: str | Path
) -> TokenCache:
  """Return the token cache of one source from `cfg.cache or cache_dir`, writing it if needed.

  Each document ends with `eos` where the vocabulary has it, except the only text of a source. Two
  processes may call this at once: both write, and the last replaces equal files.
  """
  source, part = cfg.mixture[source_name], open_split(cfg, source_name, split)
  if not part.is_plain:
    check_tokenizers(tokenizers, source.template, source_name)
  specials = dict(tokenizers.vocabulary.specials)
  ending = [specials['eos']] if 'eos' in specials and (part.has_many or not part.is_plain) else []
  is_chat = templates.is_chat(source.template)
  if is_chat:
    ending = []  # its template ends it
  entries = {**part.describe(), 'tokenizer': tokenizers.hash, 'eos': ending}
  for modality in sorted(templates.modalities(source.template)):
    entries[f'{modality}_decoder'] = DECODERS[modality]()
  if is_chat:
    entries['chat_template'] = ChatTemplate.of(tokenizers.text).source
  # The only text of a source has no token before it, unless the tokenizer puts one before every text.
  if part.is_plain and (ending or tokenizers.start == 'bos'):
    entries['start'] = specials[tokenizers.start]
  elif tokenizers.start == 'bos' and templates.signature(source.template)[0]:
    entries['condition_start'] = specials['bos']
  folder = Path(cfg.cache or cache_dir).expanduser()
  path = folder / f'{source_name}-{split}-{_key(entries)}.json'
  bad_records = BadRecords(source_name, source, split)
  if path.exists():
    try:
      cache = read_cache(path)
      bad_records.repeat_report(cache.notes, cache.media.get('skipped', 0))
      return cache
    except ValueError as error:
      log.warning('rewriting the token cache: %s', str(error).splitlines()[0])
  log.info('tokenizing %s of data.mixture.%s into %s', split, source_name, path)
  folder.mkdir(parents=True, exist_ok=True)
  meta = {'name': f'{source_name} ({split})', 'entries': entries}
  progress = Progress(f'tokenizing {meta["name"]}', 'documents')  # an encoder takes minutes
  if part.is_plain:
    texts = part.texts(bad_records.skip, bad_records.notes)
    items = _encode_texts(texts, tokenizers, bad_records.notes, progress)
  else:
    items = _encode_documents(part, tokenizers, bad_records, source if split == 'train' else None, progress)
  _write(path, items, tokenizers, ending, meta, bad_records)
  return read_cache(path)


def count_shared_media(cache: TokenCache, others: Iterable[TokenCache]) -> int:
  """Return the number of images and sounds of a cache that other caches hold too."""
  hashes = [other.media_hashes for other in others]
  return int(np.isin(cache.media_hashes, np.concatenate(hashes)).sum()) if hashes else 0


def read_cache(path: Path, full: bool = True) -> TokenCache:
  """Map the arrays of a cache. ValueError where one is missing, altered or of another cache.

  full: compare the content of all files; else only their names and sizes.
  """
  with reading(path, 'a complete token cache', 'delete it'):
    meta = check_types(records.parse_object(path.read_bytes()), ENTRIES)
    if not path.stem.endswith(_key(meta['entries'])):
      raise ValueError('the entries are not those of its name')
    files = {_beside(path, name).name: name for name in meta['files']}
    digests.compare(
      {file: meta['files'][name] for file, name in files.items()},
      digests.digest_files(path.parent, full, files),
    )
    arrays = {name: np.load(path.parent / file, mmap_mode='r') for file, name in files.items()}
    features = {kind: (arrays[kind], arrays[f'{kind}_at']) for kind in KINDS if kind in arrays}
    return TokenCache(
      path,
      arrays['ids'],
      arrays['offsets'],
      meta['bytes'],
      meta['name'],
      meta['entries'],
      meta['media'],
      meta['notes'],
      features,
      arrays.get('targets'),
      arrays['media_hashes'],
    )


def _key(entries: dict) -> str:
  return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]


def _beside(path: Path, name: str) -> Path:
  """Return the path of one array of a cache."""
  return path.with_suffix(f'.{name}.npy')


class _Item(NamedTuple):
  """A document, or a part of a long text."""

  ids: np.ndarray | list[int]
  bytes: int  # of its text
  is_first: bool = True  # it begins a document
  is_last: bool = True  # it ends one
  features: dict = {}  # kind -> float32 [places, width]
  media: dict = {}  # numbers of images and sounds
  targets: np.ndarray | None = None  # of a conversation
  hashes: tuple[int, ...] = ()  # of its images and sounds


def _write(
  path: Path, items: Iterator[_Item], tokenizers, ending: list[int], meta: dict, bad_records: BadRecords
) -> None:
  """Stream documents to the files; memory is bounded by a batch or the longest document."""
  dtype = np.dtype('<u2' if tokenizers.vocabulary.padded <= 1 << 16 else '<u4')
  offsets, hashes, tokens, size, media = array.array('q'), array.array('Q'), 0, 0, Counter()
  writers = {}
  with contextlib.ExitStack() as stack:

    def write(name: str, rows: np.ndarray) -> None:
      if name not in writers:
        writers[name] = NpyWriter(stack.enter_context(records.open_atomic(_beside(path, name))), rows)
      writers[name].write(rows)

    for item in items:
      if item.is_first:
        offsets.append(tokens)
      ids = np.asarray(item.ids, dtype)
      ids = np.append(ids, np.asarray(ending, dtype)) if item.is_last else ids
      write('ids', ids)
      for kind, rows in item.features.items():
        place = tokenizers.vocabulary.special(KINDS[kind].place)
        write(kind, to_float16(rows, meta['name']))
        write(f'{kind}_at', np.flatnonzero(ids == place) + tokens)
      if item.targets is not None:
        write('targets', np.append(item.targets, np.ones(len(ids) - len(item.ids), np.uint8)))
      media.update(item.media)
      hashes.extend(item.hashes)
      tokens, size = tokens + len(ids), size + item.bytes
    if not tokens:
      raise ValueError(f'data.mixture.{meta["name"]} has no tokens\nfix: check its path and template')
    write('offsets', np.asarray(offsets, '<i8'))
    write('media_hashes', np.asarray(hashes, '<u8'))
    for writer in writers.values():
      writer.finish()
  bad_records.report()
  media['skipped'] = bad_records.skipped
  entries = digests.digest_files(path.parent, names=[_beside(path, name).name for name in writers])
  files = {name: entries[_beside(path, name).name] for name in writers}
  meta = {**meta, 'bytes': size, 'media': media, 'notes': bad_records.notes, 'files': files}
  records.write_json(path, meta)


def to_float16(rows: np.ndarray, name: str) -> np.ndarray:
  """Return features as float16; ValueError for numbers beyond its range, which encoders may give."""
  with np.errstate(over='ignore'):
    halves = rows.astype(np.float16)
  if not np.isfinite(halves).all():
    raise ValueError(
      f'data.mixture.{name} has features up to {np.abs(rows).max():,.0f}, and token caches keep 16 bits\n'
      'fix: use an encoder, or an encoder.layer, with smaller outputs'
    )
  return halves


def _encode_texts(texts: Iterator[str], tokenizers, notes, progress: Progress) -> Iterator[_Item]:
  """Encode documents of one text each."""
  limit = BATCH_CHARACTERS if tokenizers.text.kind in CONTEXT_FREE else sys.maxsize
  for batch in _batches(_cut_texts(texts, limit), lambda part: (0, len(part[0])), progress):
    encoded = tokenizers.text.encode_batch([text for text, _, _ in batch])
    count_spellings(tokenizers.text, (text for text, _, _ in batch), notes)
    for (text, is_first, is_last), ids in zip(batch, encoded, strict=True):
      yield _Item(ids, len(text.encode()), is_first, is_last)


def _encode_documents(
  part: SourceSplit, tokenizers, bad_records: BadRecords, source, progress: Progress
) -> Iterator[_Item]:
  """Encode documents of several pieces, leaving out those whose media cannot be read.

  source: the source whose augmented copies are added, or None.
  """
  forms = media_forms(tokenizers)

  def read(item):
    where, pieces = item[1]
    count_spellings(
      tokenizers.text, (piece.value for piece in pieces if piece.kind == 'text'), bad_records.notes
    )
    return decode_media(tokenizers, pieces, where, bad_records.notes)

  def checked():
    for number, (where, pieces) in enumerate(part.examples(bad_records.skip, bad_records.notes)):
      check_pieces(tokenizers, pieces, where)
      yield number, (where, pieces)

  def decoded():
    for (number, _), pieces in bad_records.readable(checked(), read):
      yield pieces, tuple(hash_of(p.value) for p in pieces if p.kind in templates.MODALITY)
      if source is not None:
        for copy in augment.copies(source, number, pieces, forms):
          yield copy, ()

  def weigh(document):
    is_media = [piece.kind in templates.MODALITY for piece in document[0]]
    texts = [p.value.text if p.kind == 'chat' else p.value for p in document[0] if p.kind in ('text', 'chat')]
    return sum(is_media), sum(map(len, texts))

  for batch in _batches(decoded(), weigh, progress):
    encoded = encode_batch(tokenizers, [pieces for pieces, _ in batch])
    for (pieces, hashes), document in zip(batch, encoded, strict=True):
      kinds = [templates.MODALITY.get(piece.kind) for piece in pieces]
      media = {'images': kinds.count('image'), 'sounds': kinds.count('audio')}
      size = sum(len(piece.value.encode()) for piece in pieces if piece.kind == 'text')
      features = {kind: getattr(document, kind) for kind in KINDS}
      features = {kind: rows for kind, rows in features.items() if rows is not None}
      targets = document.targets
      yield _Item(document.ids, size, features=features, media=media, targets=targets, hashes=hashes)


def count_spellings(tokenizer, texts, notes) -> None:
  """Count special tokens that texts spell and that become plain text: the model never sees the token."""
  for text in texts:
    for token in tokenizer.unparsed:
      if count := text.count(token):
        notes[f'spellings of {token} encoded as plain text'] += count


def hash_of(value: np.ndarray) -> int:
  """Return 64 bits that equal images or sounds share."""
  content = repr((value.dtype.str, value.shape)).encode() + np.ascontiguousarray(value).tobytes()
  return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), 'little')


def _cut_texts(texts: Iterator[str], limit: int) -> Iterator[tuple[str, bool, bool]]:
  """Cut documents into parts of at most `limit` characters: (text, is the first, is the last)."""
  for text in texts:
    for start in range(0, max(1, len(text)), limit):
      yield text[start : start + limit], start == 0, start + limit >= len(text)


def _batches(documents: Iterator, weigh, progress: Progress) -> Iterator[list]:
  """Group documents until BATCH_MEDIA, BATCH_CHARACTERS or BATCH_DOCUMENTS is reached.

  weigh(document): its (number of media, number of characters). progress: reports after each full batch;
  parts of texts and changed copies count as documents.
  """
  batch, done, media, characters = [], 0, 0, 0
  for document in documents:
    batch.append(document)
    own = weigh(document)
    media, characters = media + own[0], characters + own[1]
    if media >= BATCH_MEDIA or characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
      yield batch
      done += len(batch)
      progress.report(done)
      batch, media, characters = [], 0, 0
  if batch:
    yield batch
