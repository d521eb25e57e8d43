"""Pack a stream of tokens into rows of T inputs and T targets: cropped, split, first-fit, or by document.

A row of PACKING makes a `Rows` from a token cache: the number of rows of an epoch, and `gather`, which
makes any of them from their numbers, without a loop over tokens or rows.

Letters: B rows, T inputs of a row, W = T + 1 tokens of a row (targets are inputs one place on),
N pieces of documents, J tokens of the gathered pieces.
Where a cache has a `start`, each document begins with this id in the place of the token before it:
its first token is a target, and each token of the cache is one, in every packing.
Batches: token_ids_BT, target_ids_BT int32; loss_mask_BT float32; if documents are separate also
segment_ids_BT (1, 2, .. within a row, 0 = padding) and positions_BT (from 0 in each segment); and the
arrays of `RowFields` for documents with media or a condition.

Sources: random windows, nanoGPT; concatenate and split, GPT-2; packing with segments, T5X.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gpt_jax.data.row_fields import PLAIN, RowFields, spread
from gpt_jax.data.synthetic.random_bits import scramble
from gpt_jax.runs import digests

CHUNK = 1 << 16  # pieces packed together; bounds memory, wastes part of one row in thousands


@dataclass(frozen=True)
class Rows:
  """The interface of a packing. Row n of epoch e has number e * count + n."""

  cache: Any  # TokenCache, or an object with its ids, offsets, path and name
  length: int  # T
  seed: int = 0  # crop; first_fit: which conditions are dropped
  mask_documents: bool = False  # crop, split
  row_fields: RowFields = PLAIN  # first_fit

  def __post_init__(self):
    least = (self.length + 1 if isinstance(self, Crop) else 2) - has_start(self.cache)
    if len(self.cache.ids) < least:
      raise ValueError(
        f'data.mixture.{self.cache.name} has {len(self.cache.ids)} tokens, a row needs {least}\n'
        'fix: lower train.length, or use more text, another data.valid_fraction or data.packing=split'
      )

  def __reduce__(self):
    return type(self), (self.cache, self.length, self.seed, self.mask_documents, self.row_fields)

  def most_targets(self) -> int:
    """Return the largest number of targets in a row, after a look at all rows that have conditions."""
    if self.row_fields.layout is None:
      return self.length
    blocks = (np.arange(first, min(first + 256, self.count)) for first in range(0, self.count, 256))
    return max(int(self.gather(rows)['loss_mask_BT'].sum(1).max()) for rows in blocks)


class Crop(Rows):
  """Windows at random places, drawn with replacement: a pure function of (seed, row number)."""

  @property
  def count(self) -> int:
    """Rows of an epoch: each token is in one of them on average."""
    return max(1, len(self.cache.ids) // self.length)

  def gather(self, index_B: np.ndarray) -> dict[str, np.ndarray]:
    """Return rows by number."""
    places = np.uint64(len(self.cache.ids) - self.length + has_start(self.cache))
    start_B = (scramble(self.seed, index_B) % places).astype(np.int64) - has_start(self.cache)
    return windows(self.cache, start_B, self.length, self.mask_documents)


class Split(Rows):
  """The stream cut every T tokens: each token (but the first without a start) is a target once an epoch."""

  @property
  def count(self) -> int:
    """Rows of an epoch; the last one may be padded."""
    return -(-(len(self.cache.ids) - 1 + has_start(self.cache)) // self.length)

  def gather(self, index_B: np.ndarray) -> dict[str, np.ndarray]:
    """Return rows by number."""
    start_B = index_B % self.count * self.length - has_start(self.cache)
    return windows(self.cache, start_B, self.length, self.mask_documents)


class FirstFit(Rows):
  """Whole documents in rows of T + 1 tokens; positions restart and targets stay in their document.

  A longer document is cut in pieces that overlap by one token, so that no target is lost. A
  document of one token has no target and takes no space.
  """

  @cached_property
  def plan(self) -> np.ndarray:
    """First token, number of tokens and row of each piece, memory-mapped int64 [3, N] sorted by row."""
    self.row_fields.refuse_cuts(self.cache, self.length)
    return read_plan(self.cache, self.length)

  @property
  def count(self) -> int:
    """Rows of an epoch."""
    return int(self.plan[2, -1]) + 1

  def gather(self, index_B: np.ndarray) -> dict[str, np.ndarray]:
    """Return rows by number."""
    row_B = index_B % self.count
    start_P, size_P, row_P = np.asarray(self.plan)  # P: pieces of the whole plan
    first_B, last_B = (np.searchsorted(row_P, row_B, side) for side in ('left', 'right'))
    batch_N, rank_N = spread(last_B - first_B)
    piece_N = first_B[batch_N] + rank_N
    start_N, size_N = start_P[piece_N], size_P[piece_N]
    before_N = np.cumsum(size_N) - size_N
    column_N = before_N - before_N[rank_N == 0][batch_N]
    piece_J, offset_J = spread(size_N)
    slots = batch_N[piece_J], column_N[piece_J] + offset_J
    tokens_BW, segments_BW, positions_BW = np.zeros((3, len(index_B), self.length + 1), np.int32)
    place_J = start_N[piece_J] + offset_J
    tokens_BW[slots] = np.asarray(self.cache.ids)[place_J]
    if has_start(self.cache):
      begins_N = first_of(self.cache, start_N + 1) == start_N + 1
      tokens_BW[batch_N[begins_N], column_N[begins_N]] = self.cache.start
    segments_BW[slots] = rank_N[piece_J] + 1
    positions_BW[slots] = offset_J
    batch = _batch(tokens_BW, segments_BW > 0, segments_BW, positions_BW)
    if self.row_fields.layout is None:
      return batch
    place_BW = np.full_like(tokens_BW, -1, np.int64)
    place_BW[slots] = place_J
    dropped_BW = np.zeros_like(tokens_BW, bool)
    if self.row_fields.dropout:  # a function of the seed, the row of the epoch and the document
      bits_N = scramble(self.seed, scramble(self.seed, index_B)[batch_N] + start_N.astype(np.uint64))
      dropped_BW[slots] = (bits_N >> np.uint64(11))[piece_J] < self.row_fields.dropout * 2**53
    return batch | self.row_fields.add(batch, tokens_BW, segments_BW, dropped_BW, place_BW, self.cache)


class InOrder(FirstFit):
  """Pieces in the order of the documents, a new row where one does not fit: any few rows are typical."""

  @cached_property
  def plan(self) -> np.ndarray:
    """First token, number of tokens and row of each piece, int64 [3, N]."""
    _, start, size = cut_documents(
      self.cache.offsets, len(self.cache.ids), self.length, has_start(self.cache)
    )
    rows, last, room = [], -1, 0
    for tokens in size.tolist():
      last, room = (last, room - tokens) if tokens <= room else (last + 1, self.length + 1 - tokens)
      rows.append(last)
    return np.stack([start, size, np.array(rows)])


class Documents(FirstFit):
  """One document a row: the pieces of a longer one are rows of their own, and the rest is padding."""

  @cached_property
  def plan(self) -> np.ndarray:
    """First token, number of tokens and row of each piece, int64 [3, N]."""
    self.row_fields.refuse_cuts(self.cache, self.length)
    _, start, size = cut_documents(
      self.cache.offsets, len(self.cache.ids), self.length, has_start(self.cache)
    )
    return np.stack([start, size, np.arange(len(start))])

  @property
  def document_N(self) -> np.ndarray:
    """Number of the document of each row, int64."""
    return cut_documents(self.cache.offsets, len(self.cache.ids), self.length, has_start(self.cache))[0]


def read_plan(cache, length: int) -> np.ndarray:
  """Map the plan for T = `length` from the file beside the token cache, writing it if needed."""
  write = lambda file: np.save(file, make_plan(cache.offsets, len(cache.ids), length, has_start(cache)))
  return np.load(digests.write_or_verify(plan_path(cache, length), write), mmap_mode='r')


def plan_path(cache, length: int):
  """Return the path of the plan for T = `length`."""
  return cache.path.with_suffix(f'.first_fit-{length}{"-start" * has_start(cache)}.npy')


def make_plan(offsets: np.ndarray, tokens: int, length: int, before: int = 0) -> np.ndarray:
  """Return (start, size, row) of each piece, int64 [3, pieces] sorted by row.

  before: 1 where a start token is fed before each document, else 0.
  Full pieces have rows of their own; the others go in order into the first row with room.
  """
  _, start, size = cut_documents(offsets, tokens, length, before)
  row = np.zeros_like(start)
  short = np.flatnonzero(size <= length)
  rows = 0
  for chunk in np.split(short, range(CHUNK, len(short), CHUNK)):
    row[chunk] = rows + np.asarray(first_fit(size[chunk].tolist(), length + 1), np.int64)
    rows = row[chunk].max(initial=rows - 1) + 1
  full = np.flatnonzero(size > length)
  row[full] = rows + np.arange(len(full))
  order = np.argsort(row, kind='stable')
  return np.stack([start, size, row])[:, order]


def cut_documents(offsets: np.ndarray, tokens: int, length: int, before: int = 0):
  """Return (document, start, size) of each piece of at most `length` + 1 tokens, int64 [pieces] each.

  before: as in make_plan. ValueError where no document has two tokens.
  """
  ends, offsets = np.append(offsets[1:], tokens), offsets - before
  pieces = -(-np.maximum(ends - offsets - 1, 0) // length)
  document, rank = spread(pieces)
  start = offsets[document] + rank * length
  if not len(start):
    raise ValueError(
      'data.packing: no document of two tokens or more\n'
      'fix: use data.packing=split, or check the separator between documents'
    )
  return document, start, np.minimum(ends[document] - start, length + 1)


def first_fit(sizes: list[int], capacity: int) -> list[int]:
  """Return the bin of each item, the first with room for it, in O(n log n) by a tree of maxima."""
  leaves = 1 << max(len(sizes) - 1, 0).bit_length()
  room = [capacity] * (2 * leaves)  # room[k] = max(room[2k], room[2k + 1]); leaves are the bins
  bins = []
  for size in sizes:
    node = 1
    while node < leaves:
      node = 2 * node + (room[2 * node] < size)
    bins.append(node - leaves)
    room[node] -= size
    while node > 1:
      node //= 2
      best = max(room[2 * node], room[2 * node + 1])
      if room[node] == best:
        break
      room[node] = best
  return bins


def has_start(cache) -> bool:
  """Whether each document begins with a start token."""
  return getattr(cache, 'start', -1) >= 0


def first_of(cache, index: np.ndarray) -> np.ndarray:
  """Return the place of the first token of the document of each token."""
  return np.asarray(cache.offsets)[np.searchsorted(cache.offsets, index, 'right') - 1]


def windows(cache, start_B: np.ndarray, length: int, mask_documents: bool = False) -> dict[str, np.ndarray]:
  """Return the rows of the stream that begin at `start_B`, padded beyond its end; -1 is the start token."""
  index_BW = start_B[:, None] + np.arange(length + 1)
  real_BW = index_BW < len(cache.ids)
  index_BW = np.minimum(index_BW, len(cache.ids) - 1)
  tokens_BW = np.where(real_BW, np.asarray(cache.ids)[index_BW], 0).astype(np.int32)
  if has_start(cache):
    return _windows_with_start(cache, start_B, index_BW[:, 1:], real_BW[:, 1:], tokens_BW, mask_documents)
  if not mask_documents:
    return _batch(tokens_BW, real_BW)
  document_BW = np.searchsorted(cache.offsets, index_BW, 'right')
  segments_BW = np.where(real_BW, document_BW - document_BW[:, :1] + 1, 0)
  # The row may begin inside a document: positions count from the first token in the row.
  begin_BW = np.maximum(np.asarray(cache.offsets)[document_BW - 1], start_B[:, None])
  return _batch(tokens_BW, real_BW, segments_BW, np.where(real_BW, index_BW - begin_BW, 0))


def _windows_with_start(cache, start_B, target_BT, real_BT, tokens_BW, mask_documents):
  """Return rows whose inputs belong to the document of their target, of which the first is the start.

  target_BT: places of the targets in the stream.
  """
  first_BT = first_of(cache, target_BT)
  inputs_BT = np.where(target_BT == first_BT, cache.start, tokens_BW[:, :-1])
  batch = _batch(tokens_BW, np.pad(real_BT, ((0, 0), (1, 0))))
  batch['token_ids_BT'] = np.where(real_BT, inputs_BT, 0).astype(np.int32)
  if mask_documents:
    document_BT = np.searchsorted(cache.offsets, target_BT, 'right')
    segments_BT = np.where(real_BT, document_BT - document_BT[:, :1] + 1, 0)
    # The row may begin inside a document: positions count from the first token in the row.
    positions_BT = target_BT - 1 - np.maximum(first_BT - 1, start_B[:, None])
    batch['segment_ids_BT'] = segments_BT.astype(np.int32)
    batch['positions_BT'] = np.where(real_BT, positions_BT, 0).astype(np.int32)
  return batch


def _batch(tokens_BW, real_BW, segments_BW=None, positions_BW=None) -> dict[str, np.ndarray]:
  """Return inputs, targets and loss mask; a target outside the segment of its input is masked."""
  mask_BT = real_BW[:, 1:]
  batch = {
    'token_ids_BT': np.ascontiguousarray(tokens_BW[:, :-1]),
    'target_ids_BT': np.ascontiguousarray(tokens_BW[:, 1:]),
  }
  if segments_BW is not None:
    mask_BT = mask_BT & (segments_BW[:, 1:] == segments_BW[:, :-1])
    batch['segment_ids_BT'] = segments_BW[:, :-1].astype(np.int32)
    batch['positions_BT'] = positions_BW[:, :-1].astype(np.int32)
  return {**batch, 'loss_mask_BT': mask_BT.astype(np.float32)}


def eval_windows(
  cache,
  length: int,
  stride: int,
  batch_size: int,
  *,
  mask_documents: bool = False,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Yield batches that score a whole split: each token is a target exactly once.

  Windows of T = `length` inputs begin every `stride` tokens; after the first each scores its last
  `stride` targets, so each of these sees at least T - stride tokens before its input. Rows that
  fill the last batch have mask 0. `batch_size` counts the rows of all processes; each yields its
  own. Without a start token the first token is not scored, nor with mask_documents that of a document.
  """
  if not 1 <= stride <= length:
    raise ValueError(f'stride={stride} is not in 1 .. {length}\nfix: use a stride up to the length')
  before = has_start(cache)
  count = 1 + max(0, -(-(len(cache.ids) - 1 + before - length) // stride))

  def gather(row_B):
    batch = windows(cache, row_B * stride - before, length, mask_documents)
    batch['loss_mask_BT'][(row_B > 0)[:, None] & (np.arange(length) < length - stride)] = 0
    return batch

  return _eval_batches(count, gather, batch_size, process_index, process_count)


def eval_rows(
  cache,
  length: int,
  batch_size: int,
  *,
  row_fields: RowFields = PLAIN,
  in_order: bool = False,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Yield batches that score whole documents, each once, in the order of the first_fit plan, or their own.

  The arrays are as in training, but no condition is dropped. Rows that fill the last batch
  have mask 0. `batch_size` counts the rows of all processes; each yields its own.
  """
  packing = InOrder if in_order else FirstFit
  rows = packing(cache, length, row_fields=replace(row_fields, dropout=0.0))
  return _eval_batches(rows.count, rows.gather, batch_size, process_index, process_count)


def _eval_batches(count: int, gather, batch_size: int, process_index: int, process_count: int):
  """Yield one process's part of batches of the rows 0 .. count - 1; rows that fill the last have mask 0."""
  if batch_size % process_count:
    raise ValueError(
      f'batch_size={batch_size} is not a multiple of {process_count} processes\nfix: use a multiple'
    )
  own = batch_size // process_count
  for first in range(process_index * own, -(-count // batch_size) * batch_size, batch_size):
    row_B = np.arange(first, first + own)
    batch = gather(np.minimum(row_B, count - 1))
    batch['loss_mask_BT'][row_B >= count] = 0
    yield batch


PACKING = {'crop': Crop, 'split': Split, 'first_fit': FirstFit, 'document': Documents}
