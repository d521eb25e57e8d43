"""Batches of token rows for one process: rows are shuffled, mixed and gathered.

Grain moves only addresses (source, row); a batch is gathered from the memory-mapped tokens at once.
batches.py shards batches over processes and resumes.

Letters: B rows of this process's part of a batch.
"""

import hashlib
import sys
from functools import partial
from pathlib import Path

import numpy as np

from gpt_jax.data import stages
from gpt_jax.data.batches import BatchLoader
from gpt_jax.data.cache import token_cache
from gpt_jax.data.mixture import DataConfig, no_data, source_names
from gpt_jax.data.packing import PACKING, Rows
from gpt_jax.data.row_fields import RowFields

FORMAT = 1  # of the order of rows; part of the fingerprint
# Entries of the fingerprint on which the rows of every source depend, beside its own.
ROW_KEYS = ('format', 'split', 'length', 'seed', 'packing')


class Loader(BatchLoader):
  """Batches of token rows, whose arrays `packing` describes.

  A mixture of several sources adds source_ids_B (int32, position in `names`).
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
    super().__init__(cfg, batch_size, process_index, process_count)
    self.names = source_names(cfg, split)
    if not self.names:
      raise no_data(cfg, 'data.mixture', split)
    self.caches = {name: token_cache(cfg, name, tokenizers, split, cache_dir) for name in self.names}
    row_fields, pack = RowFields.of(cfg, tokenizers), PACKING[cfg.packing]
    fields = {name: row_fields.of_template(cfg.mixture[name].template) for name in self.names}
    self.rows = {
      name: pack(cache, length, seed_of(seed, 'crop', name), cfg.mask_documents, fields[name])
      for name, cache in self.caches.items()
    }
    self.gather = partial(gather_rows, tuple(self.rows.values()))
    self._seed = seed
    # Stages are of training: other splits have the weights of their sources.
    written = cfg.stages if split == 'train' else ''
    self._plan = stages.of_mixture(written, cfg.mixture)
    first = stages.Schedule(self._plan[:1], self.names, batch_size)  # later stages may change
    self.fingerprint = {
      'format': FORMAT,
      'split': split,
      'batch_size': batch_size,
      'length': length,
      'seed': seed,
      'packing': cfg.packing,
      'mask_documents': cfg.mask_documents,
      'order': self._order(first),
      'prefix': cfg.prefix,
      'condition_dropout': cfg.condition_dropout,
      **({'stages': [list(stage) for stage in stages.parse(written)]} if written else {}),
      **{f'mixture.{name}.predict_start': fields[name].predict_start for name in self.names},
      **{f'mixture.{name}.weight': cfg.mixture[name].weight for name in self.names},
      **{f'mixture.{name}.{key}': v for name, c in self.caches.items() for key, v in c.entries.items()},
    }

  def identify(self, number: int) -> dict[str, list[int]]:
    """Return {source: row numbers} of global batch `number`, over all processes."""
    size, addresses, rows = self._batch_size, self._addresses(), {}
    for place in range(number * size, (number + 1) * size):
      source, row = addresses[place]
      rows.setdefault(self.names[source], []).append(int(row))
    return rows

  def rows_before(self, number: int) -> dict[str, int]:
    """Return {source: number of its rows} in the batches before `number`, over all processes."""
    rows_N = self._schedule().counts(number * self._batch_size)
    return dict(zip(self.names, rows_N.tolist(), strict=True))

  def rows_identity(self, fingerprint: dict, name: str) -> dict:
    """Return the entries of a fingerprint on which the rows of a source and their order depend."""
    of_source = f'mixture.{name}.'
    is_own = lambda key: key.startswith(of_source) and key != f'{of_source}weight'
    return {key: value for key, value in fingerprint.items() if key in ROW_KEYS or is_own(key)}

  def most_targets(self) -> int:
    """Return the largest number of targets in a row; its length where a source is plain text."""
    return max(rows.most_targets() for rows in self.rows.values())

  def _schedule(self):
    """Return the order of the rows of the mixture."""
    if not self._origin:
      return stages.Schedule(self._plan, self.names, self._batch_size)
    before_N = np.array([self._origin['rows'][name] for name in self.names])
    return stages.Schedule(self._plan, self.names, self._batch_size, self._origin['batch'], before_N)

  def _addresses(self, schedule=None):
    """Return an endless Grain dataset of (source number, row number), equal on every process."""
    import grain

    rows = [
      grain.MapDataset.range(self.rows[name].count)
      .map_with_index(partial(_address, number))
      .shuffle(seed_of(self._seed, 'shuffle', name))
      .repeat()
      for number, name in enumerate(self.names)
    ]
    if len(rows) == 1 and not self._origin:
      return rows[0]

    class Selection(grain.transforms.DatasetSelectionMap):
      """Map row k of the mixture to (source, row)."""

      def __init__(self, schedule):
        self.schedule = schedule

      def __len__(self):
        return sys.maxsize

      def __getitem__(self, index):
        return self.schedule[index]

    return grain.MapDataset.select_from_datasets(rows, Selection(schedule or self._schedule()))

  def _order(self, schedule) -> str:
    """Return a hash of the first addresses: it changes if Grain's shuffle or our mixing does."""
    addresses = self._addresses(schedule)
    return hashlib.sha256(str([addresses[n] for n in range(64)]).encode()).hexdigest()[:16]


def _address(source: int, index: int, _) -> tuple[int, int]:
  return source, index


def gather_rows(sources: tuple[Rows, ...], addresses: list[tuple[int, int]]) -> dict[str, np.ndarray]:
  """Gather a batch from (source number, row number) pairs, in their order."""
  source_B, index_B = np.asarray(addresses, np.int64).T
  if len(sources) == 1:
    return sources[0].gather(index_B)
  batch = {'source_ids_B': source_B.astype(np.int32)}
  for number in np.unique(source_B):
    own_B = source_B == number
    for key, rows in sources[number].gather(index_B[own_B]).items():
      batch.setdefault(key, np.zeros((len(source_B), *rows.shape[1:]), rows.dtype))[own_B] = rows
  return batch


def seed_of(seed: int, *words: str) -> int:
  """Return 32 bits for one use of a seed. Grain adds the epoch, so seeds 0 and 1 must lie far apart."""
  digest = hashlib.sha256('/'.join([str(seed), *words]).encode()).digest()
  return int.from_bytes(digest[:4], 'little')
