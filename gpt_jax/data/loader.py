"""Batches for one process: rows are shuffled, mixed, counted out to processes, and gathered.

Grain moves row numbers only, (source, row); a batch of them is gathered from the memory-mapped
tokens at once. Global batch i is a pure function of (config, seed, i), so the state of a loader is
the number of its next batch, and it may resume on another number of processes or workers. Grain
itself would accept the state of a different pipeline: a fingerprint guards against that.

Letters: B rows of this process's share of a batch.
"""

import hashlib
import json
import math
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from gpt_jax.data.cache import token_cache
from gpt_jax.data.mixture import DataConfig, source_names
from gpt_jax.data.packing import PACKING, Rows
from gpt_jax.data.row_fields import RowFields

FORMAT = 1  # of the order of rows; part of the fingerprint
CYCLE = 1 << 16  # rows over which the shares of a mixture come out, at most


class Loader:
  """An endless iterator over the batches of one process, whose arrays `packing` describes.

  `batch_size` N counts the rows of all P processes; process p gets rows [p N/P, (p+1) N/P) of each
  batch. A mixture of several sources adds source_ids_B (int32, position in `names`).
  """

  def __init__(
    self,
    cfg: DataConfig,
    tokenizers,
    *,
    split: str,
    batch_size: int,
    length: int,
    seed: int,
    cache_dir: str | Path,
    process_index: int = 0,
    process_count: int = 1,
  ):
    if batch_size < 1 or batch_size % process_count:
      raise ValueError(
        f'batch_size={batch_size} cannot be shared by {process_count} processes\n'
        f'fix: use a multiple of {process_count}'
      )
    self.names = source_names(cfg, split)
    if not self.names:
      raise ValueError(
        f'no source has {split} data with data.valid_fraction={cfg.valid_fraction}\n'
        f'fix: set {split}_path, {split}_keep or (tfds) {split}_split of a source, or, for '
        'validation, raise data.valid_fraction'
      )
    self.caches = {name: token_cache(cfg, name, tokenizers, split, cache_dir) for name in self.names}
    row_fields, pack = RowFields.of(cfg, tokenizers), PACKING[cfg.packing]
    fields = {name: row_fields.of_template(cfg.mixture[name].template) for name in self.names}
    self.rows = {
      name: pack(cache, length, _seed(seed, 'crop', name), cfg.mask_documents, fields[name])
      for name, cache in self.caches.items()
    }
    self._cfg, self._batch_size, self._seed = cfg, batch_size, seed
    self._process = process_index, process_count
    self._weights = [cfg.mixture[name].weight for name in self.names]
    self._next, self._iterator = 0, None
    self.fingerprint = {
      'format': FORMAT,
      'split': split,
      'batch_size': batch_size,
      'length': length,
      'seed': seed,
      'packing': cfg.packing,
      'mask_documents': cfg.mask_documents,
      'order': self._order(),
      # Only where they are used: runs that never heard of them resume.
      **{key: value for key in ('prefix', 'condition_dropout') if (value := getattr(cfg, key))},
      **{f'mixture.{name}.predict_start': True for name in self.names if fields[name].predict_start},
      **{
        f'mixture.{name}.{key}': value
        for name, cache in self.caches.items()
        for key, value in {'weight': cfg.mixture[name].weight, **cache.entries}.items()
      },
    }

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._iterator is None:
      self._iterator = iter(self._batches())
    batch = next(self._iterator)
    self._next += 1
    if self._cfg.workers:  # out of the shared memory, which the worker would use again
      batch = {key: np.array(rows) for key, rows in batch.items()}
    return batch

  def first(self) -> dict[str, np.ndarray]:
    """Batch 0 of this process, whichever is next: the same rows each time."""
    index, count = self._process
    size, addresses = self._batch_size // count, self._addresses()
    chosen = [addresses[n] for n in range(index * size, (index + 1) * size)]
    return gather_rows(tuple(self.rows.values()), chosen)

  def identify(self, number: int) -> dict[str, list[int]]:
    """{source: numbers of its rows} in global batch `number`, for all processes."""
    size, addresses, found = self._batch_size, self._addresses(), {}
    for place in range(number * size, (number + 1) * size):
      source, row = addresses[place]
      found.setdefault(self.names[source], []).append(int(row))
    return found

  def state(self) -> dict:
    """JSON-able: the number of the next batch and the fingerprint. The same on every process."""
    return {'next_batch': self._next, 'fingerprint': self.fingerprint}

  def restore(self, state: dict) -> list[str]:
    """Goes on at the batch that `state` names; [] if the data are those of the state.

    If they differ: ValueError that lists the entries; but with `reset` the new data start at batch
    0, and the list of differing entries is returned.
    """
    changed = differences(state['fingerprint'], self.fingerprint)
    if changed and not self._cfg.reset:
      raise ValueError(
        f'the data differ from those of the saved run: {"; ".join(changed)}\n'
        'fix: restore these settings, or set data.reset=True to start the new data from batch 0'
      )
    self.close()
    self._next = 0 if changed else int(state['next_batch'])
    return changed

  def close(self) -> None:
    """Ends threads and worker processes; the next batch starts them again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def _addresses(self):
    """Grain data set of (source number, row number), endless, the same on every process."""
    import grain

    rows = [
      grain.MapDataset.range(self.rows[name].count)
      .map_with_index(partial(_address, number))
      .shuffle(_seed(self._seed, 'shuffle', name))
      .repeat()
      for number, name in enumerate(self.names)
    ]
    if len(rows) == 1:
      return rows[0]

    class Selection(grain.transforms.DatasetSelectionMap):
      """Which row of which source is row k; endless."""

      def __init__(self, weights):
        self.turns = turns(weights)

      def __len__(self):
        return sys.maxsize

      def __getitem__(self, index):
        source_C, rank_C, counts = self.turns
        cycle, place = divmod(index, len(source_C))
        source = int(source_C[place])
        return source, cycle * counts[source] + int(rank_C[place])

    return grain.MapDataset.select_from_datasets(rows, Selection(self._weights))

  def _batches(self):
    """Grain data set of this process's batches from the next one on."""
    import grain

    index, count = self._process
    gather = partial(gather_rows, tuple(self.rows.values()))
    # Shuffled and mixed first, shared out after: batch i of process p is number i * count + p of
    # the small batches, whatever the number of processes.
    own = self._addresses().batch(self._batch_size // count, drop_remainder=True, batch_fn=gather)
    own = own[self._next * count + index :: count]
    ahead, workers = self._cfg.prefetch, self._cfg.workers
    threads = 0 if workers else min(1, ahead)
    batches = own.to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead if threads else 0)
    )
    if workers:
      _use_default_flags()
      options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=max(1, ahead))
      batches = batches.mp_prefetch(options)
    return batches

  def _order(self) -> str:
    """Hash of the first row numbers: it changes if Grain's shuffle or our mixing ever does."""
    addresses = self._addresses()
    return hashlib.sha256(str([addresses[n] for n in range(64)]).encode()).hexdigest()[:16]


def _use_default_flags() -> None:
  """Grain's worker processes read Grain's absl flags, which only an absl program has parsed."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    for name in flags.FLAGS:
      if name.startswith('grain_'):
        flags.FLAGS[name].present = 1


def _address(source: int, index: int, _) -> tuple[int, int]:
  return source, index


def gather_rows(sources: tuple[Rows, ...], addresses: list[tuple[int, int]]) -> dict[str, np.ndarray]:
  """A batch from (source number, row number) pairs, in their order."""
  source_B, index_B = np.asarray(addresses, np.int64).T
  if len(sources) == 1:
    return sources[0].gather(index_B)
  batch = {'source_ids_B': source_B.astype(np.int32)}
  for number in np.unique(source_B):
    own_B = source_B == number
    for key, rows in sources[number].gather(index_B[own_B]).items():
      batch.setdefault(key, np.zeros((len(source_B), *rows.shape[1:]), rows.dtype))[own_B] = rows
  return batch


def turns(weights: list[float]) -> tuple[np.ndarray, np.ndarray, list[int]]:
  """A cycle of C rows in which every source has its share, evenly spread.

  Returns the source of each row, its rank among the rows of that source, and the rows of each
  source in a cycle. Shares are exact where CYCLE rows can express them, else right to 1 / CYCLE.
  """
  shares = [Fraction(str(weight)) for weight in weights]
  shares = [share / sum(shares) for share in shares]
  cycle = min(math.lcm(*(share.denominator for share in shares)), CYCLE)
  counts = [max(1, round(share * cycle)) for share in shares]
  source_C = np.repeat(np.arange(len(counts)), counts)
  rank_C = np.concatenate([np.arange(count) for count in counts])
  order = np.lexsort((source_C, (rank_C + 0.5) / np.asarray(counts)[source_C]))
  return source_C[order].astype(np.int32), rank_C[order].astype(np.int32), counts


def differences(old: dict, new: dict) -> list[str]:
  """Entries that differ, as 'key old -> new'."""
  return [
    f'{key} {json.dumps(old.get(key, "nothing"))} -> {json.dumps(new.get(key, "nothing"))}'
    for key in dict.fromkeys([*old, *new])
    if old.get(key, 'nothing') != new.get(key, 'nothing')
  ]


def _seed(seed: int, *words: str) -> int:
  """32 bits for one use of a seed. Grain adds the epoch, so seeds 0 and 1 must lie far apart."""
  digest = hashlib.sha256('/'.join([str(seed), *words]).encode()).digest()
  return int.from_bytes(digest[:4], 'little')
