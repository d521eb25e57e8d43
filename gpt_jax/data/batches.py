"""Numbered batches: sharded over processes, prefetched by Grain, resumed by number.

Global batch i is a pure function of (config, seed, i), so the state of a loader is the number of its
next batch, and it may resume on another number of processes or workers. Grain itself would accept the
state of a different pipeline: a fingerprint guards against that.
"""

import functools
import json
import sys
from collections.abc import Callable

import numpy as np

from gpt_jax.data.mixture import DataConfig


class BatchLoader:
  """The base class of endless iterators over one process's shard of numbered batches.

  `batch_size` N counts the rows of all P processes; process p gets rows [p N/P, (p+1) N/P) of each
  batch. A subclass sets `gather`, a function from row addresses to a batch (workers pickle it), and
  `fingerprint`, a JSON-able dict of everything that its batches depend on.
  """

  gather: Callable[[list], dict[str, np.ndarray]]
  fingerprint: dict

  def __init__(self, cfg: DataConfig, batch_size: int, process_index: int, process_count: int):
    if batch_size < 1 or batch_size % process_count:
      raise ValueError(
        f'batch_size={batch_size} cannot be shared by {process_count} processes\n'
        f'fix: use a multiple of {process_count}'
      )
    self._cfg, self._batch_size = cfg, batch_size
    self._process = process_index, process_count
    self._next, self._origin, self._iterator = 0, None, None

  def identify(self, number: int) -> dict[str, list[int]]:
    """Return {source: numbers of its rows} in global batch `number`, for all processes."""
    raise NotImplementedError

  def rows_before(self, number: int) -> dict[str, int]:
    """Return {source: number of its rows} in the batches before `number`, for all processes."""
    raise NotImplementedError

  def rows_identity(self, fingerprint: dict, name: str) -> dict:
    """Return the entries of a fingerprint on which the rows of a source and their order depend."""
    raise NotImplementedError

  def _addresses(self):
    """Return the Grain data set of row addresses: endless, the same on every process."""
    raise NotImplementedError

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._iterator is None:
      self._iterator = iter(self._batches())
    batch = next(self._iterator)
    self._next += 1
    if self._cfg.workers:  # copy out of shared memory, which the worker reuses
      batch = {key: np.array(rows) for key, rows in batch.items()}
    return batch

  def first(self) -> dict[str, np.ndarray]:
    """Return the first batch of this process's run, whichever is next."""
    index, count = self._process
    size, addresses = self._batch_size // count, self._addresses()
    place = (self._origin['batch'] if self._origin else 0) * self._batch_size + index * size
    chosen = [addresses[n] for n in range(place, place + size)]
    return self.gather(chosen)

  def state(self) -> dict:
    """Return the position in the data, JSON-able, equal on every process.

    next_batch: its number; rows: {source: its rows in the batches before}; fingerprint; and origin, where the
    run branched off onto other data: {batch: the first of its own, rows: as above, before that batch}.
    """
    origin = {'origin': self._origin} if self._origin else {}
    rows = self.rows_before(self._next)
    return {'next_batch': self._next, 'rows': rows, 'fingerprint': self.fingerprint} | origin

  def restore(self, state: dict, step: int = 0) -> list[str]:
    """Continue at the batch that `state` names; return [] if the data are those of the state.

    step: of the run; later than the batch if the data began again, and then stages are a ValueError.

    Stages of the mixture that did not begin yet may differ. If the data differ: ValueError listing the
    entries; with data.reset the new data start at batch 0, and the differing entries are returned.
    """
    if self.fingerprint.get('stages') and state['next_batch'] < step:
      raise ValueError(
        f'data.stages={self._cfg.stages!r} counts batches, and this run is at batch {state["next_batch"]} of '
        f'data that began again (data.reset) and at step {step}\n'
        'fix: leave out data.stages, or train in a new --workdir with train.init_from'
      )
    changed = self._changes(state)
    if changed and not self._cfg.reset:
      raise ValueError(
        f'the data differ from those of the saved run: {"; ".join(changed)}\n'
        'fix: restore these settings, or set data.reset=True to start the new data from batch 0'
      )
    self._move(0 if changed else int(state['next_batch']), None if changed else state.get('origin'))
    return changed

  def branch(self, state: dict, number: int) -> list[str]:
    """Continue from another run's `state`, whatever the data; return a line per source, [] for equal data.

    Equal data continue at the state's batch. Else batch `number` is next: a source with the same rows in the
    same order goes on after those that it has given, any other starts at its first row.
    """
    if not self._changes(state):
      return self.restore(state, number)
    old, new, lines = state['fingerprint'], self.fingerprint, []
    only_order = [key for key in old | new if old.get(key) != new.get(key)] == ['order']
    given, rows = state.get('rows', {}), {}
    for name in self.rows_before(0):
      own, its = self.rows_identity(new, name), self.rows_identity(old, name)
      changed = differences(its, own) or ['the shuffle'] * only_order
      rows[name] = 0 if changed or name not in given else int(given[name])
      cause = f' ({changed[0]})' if changed and name in given else ''
      place = f'continues after {rows[name]:,} rows' if rows[name] else f'starts at its first row{cause}'
      lines.append(f'{name} {place}')
    self._move(number, {'batch': number, 'rows': rows})
    return lines

  def _changes(self, state):
    """Return how the data differ from those of a state, in what has begun."""
    return differences(*(_begun(x, state['next_batch']) for x in (state['fingerprint'], self.fingerprint)))

  def _move(self, number, origin):
    """Continue at a batch of the data of an origin; see `state`."""
    self.close()
    self._next, self._origin = number, origin

  def close(self) -> None:
    """Stop threads and worker processes; the next batch starts them again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def _batches(self):
    """Return the Grain data set of this process's batches from the next one on."""
    import grain

    index, count = self._process
    # Rows are shuffled and mixed before they are sharded: batch i of process p is number i * count + p
    # of the small batches, for any number of processes.
    own = self._addresses().batch(self._batch_size // count, drop_remainder=True, batch_fn=self.gather)
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


class ItemLoader(BatchLoader):
  """Batches of whole items, such as images or crops of sound."""

  def __init__(self, cfg: DataConfig, gather, item_at, *, batch_size, share, fingerprint):
    """gather: list of item numbers -> batch. item_at: place of the endless order -> item number.

    share: (index, count) of the processes' parts of a batch. fingerprint: see BatchLoader.
    """
    super().__init__(cfg, batch_size, *share)
    self.gather, self._item_at, self.fingerprint = gather, item_at, fingerprint

  def identify(self, number: int) -> dict[str, list[int]]:
    """Return {'items': their numbers} of global batch `number`, for all processes."""
    size, addresses = self._batch_size, self._addresses()
    return {'items': [addresses[place] for place in range(number * size, (number + 1) * size)]}

  def rows_before(self, number: int) -> dict[str, int]:
    """Return {'items': how many} are in the batches before `number`, for all processes."""
    return {'items': number * self._batch_size + self._shift()}

  def rows_identity(self, fingerprint: dict, name: str) -> dict:
    """Return the entries of a fingerprint on which the items and their order depend."""
    return {key: value for key, value in fingerprint.items() if key != 'batch_size'}

  def _shift(self):
    """Return how far a branch's items are ahead of its batches."""
    origin = self._origin
    return origin['rows']['items'] - origin['batch'] * self._batch_size if origin else 0

  def _addresses(self):
    import grain

    shift = self._shift()
    return grain.MapDataset.source(Endless(lambda place: self._item_at(place + shift)))


class Endless:
  """A function of the place as the random access source that Grain reads."""

  def __init__(self, item_at):
    self._item_at = item_at

  def __len__(self):
    return sys.maxsize

  def __getitem__(self, place):
    return self._item_at(place)


def epoch_shuffle(seed: int, count: int) -> Callable[[int], int]:
  """Return place -> item number: each epoch has all `count` items once, in an order of its own."""

  @functools.lru_cache(2)
  def order(epoch):
    return np.random.default_rng([seed, epoch]).permutation(count)

  return lambda place: int(order(place // count)[place % count])


def _use_default_flags() -> None:
  """Mark Grain's absl flags as parsed: its worker processes read them, also outside absl programs."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    for name in flags.FLAGS:
      if name.startswith('grain_'):
        flags.FLAGS[name].present = 1


def _begun(fingerprint: dict, number: int) -> dict:
  """Return a fingerprint without the stages of the mixture that begin at batch `number` or later."""
  stages = [stage for stage in fingerprint.get('stages', ()) if not stage[0] or stage[0] < number]
  return {k: v for k, v in fingerprint.items() if k != 'stages'} | ({'stages': stages} if stages else {})


def differences(old: dict, new: dict) -> list[str]:
  """Return the entries that differ, as 'key old -> new'."""
  return [
    f'{key} {json.dumps(old.get(key, "nothing"))} -> {json.dumps(new.get(key, "nothing"))}'
    for key in dict.fromkeys([*old, *new])
    if old.get(key, 'nothing') != new.get(key, 'nothing')
  ]
