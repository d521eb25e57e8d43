"""Poisson-sampled batches for private training: each unit is in a batch with the same probability, alone.

A sampled unit gives one of its rows, drawn at random. Batches have a fixed number of slots; the others are
padding of weight 0. Batch i is a pure function of the key and i, so that a run resumes at any batch.

Letters: B slots of this process's part of a batch, U units, S sampled units.
Batches gain unit_weight_B float32 (1, or 0 for padding) and noise_key_B2 uint32 (the same in each row).

Source: Abadi et al. 2016 (arXiv:1607.00133), section 3.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gpt_jax.data.batches import Endless
from gpt_jax.data.loader import Loader, gather_rows
from gpt_jax.data.units import unit_rows

PADDING = -1  # the row of an empty slot


@dataclass(frozen=True)
class RandomBits:
  """Random words of numbered batches: SHAKE-256 of a key, which is as secret as the key is."""

  key: bytes  # 32
  is_secret: bool = False

  @classmethod
  def of(cls, seed: int, secret: str):
    """Return those of a file of 32 random bytes or more; '' for those of a seed, which is public."""
    if not secret:
      return cls(hashlib.sha256(f'seed {seed}'.encode()).digest())
    path = Path(secret).expanduser()
    content = path.read_bytes() if path.is_file() else b''
    is_text = b' ' in content and not re.search(rb'[^ -~\s]', content)  # a key in hexadecimals has no spaces
    if len(content) < 32 or is_text:
      name = 'NEW_FILE' if path.exists() else secret  # the fix overwrites nothing
      raise ValueError(
        f'privacy.secret={secret} is not a file of 32 random bytes or more\n'
        f'fix: head -c 32 /dev/urandom > {name}, outside of the run folder, and keep it secret'
      )
    return cls(hashlib.sha256(content).digest(), True)

  def of_run(self, settings: dict) -> 'RandomBits':
    """Return those of one run, JSON-able settings, if the key is secret; those of a seed stay paired.

    Two runs with equal noise and other settings would tell the gradients without it by their difference.
    """
    if not self.is_secret:
      return self
    text = json.dumps(settings, sort_keys=True)
    return RandomBits(hashlib.sha256(self.key + text.encode()).digest(), True)

  @property
  def digest(self) -> str:
    """A hash that tells keys apart and does not give them away."""
    return hashlib.sha256(b'digest' + self.key).hexdigest()[:16]

  def words(self, use: str, number: int, count: int, dtype=np.uint64) -> np.ndarray:
    """Return random words for one use in batch `number`."""
    content = hashlib.shake_256(self.key + f'{use} {number}'.encode())
    return np.frombuffer(content.digest(count * np.dtype(dtype).itemsize), dtype)


class UnitSampler:
  """Which row is in which slot: place n of the endless order is slot n % slots of batch n // slots."""

  def __init__(self, address_R2, offset_U, bits, *, expected, slots, stride):
    """address_R2, offset_U: of units.unit_rows. expected: mean number of units in a batch.

    stride: number of micro-batches. Sampled units fill the slots 0, stride, 2 stride, .. before 1, 1 +
    stride, ..: the first micro-batch before the second.
    """
    self.address_R2, self.offset_U, self.bits = address_R2, offset_U, bits
    self.units = len(offset_U) - 1
    self.rate, self.slots, self.stride = expected / self.units, slots, stride
    self._latest = -1, None

  def sample(self, number: int) -> np.ndarray:
    """Return (source, row) of each unit in batch `number`, int64 [S, 2], at most as many as slots."""
    known, address_S2 = self._latest
    if known != number:
      uniform_U = (self.bits.words('units', number, self.units) >> np.uint64(11)) * 2.0**-53
      unit_S = np.flatnonzero(uniform_U < self.rate)
      rows_S = np.diff(self.offset_U)[unit_S].astype(np.uint64)
      rank_S = (self.bits.words('rows', number, len(unit_S)) % rows_S).astype(np.int64)
      address_S2 = self.address_R2[self.offset_U[unit_S] + rank_S][: self.slots]
      self._latest = number, address_S2
    return address_S2

  def __call__(self, place: int) -> tuple[int, int, int]:
    """Return (batch number, source, row) of a place."""
    number, slot = divmod(place, self.slots)
    address_S2 = self.sample(number)
    index = slot % self.stride * (self.slots // self.stride) + slot // self.stride
    return number, *(address_S2[index].tolist() if index < len(address_S2) else (0, PADDING))


class PoissonLoader(Loader):
  """Batches of one row of each sampled unit."""

  def __init__(self, cfg, tokenizers, *, unit: str, expected: int, stride: int, bits: RandomBits, **fields):
    """fields: of Loader, with slots as batch_size. unit: see units.unit_rows; others: see UnitSampler."""
    super().__init__(cfg, tokenizers, **fields)
    bits = bits.of_run(self.fingerprint | {'unit': unit, 'expected': expected})
    address_R2, offset_U = unit_rows(cfg, self.rows, unit)
    self.units = len(offset_U) - 1
    if expected > self.units:
      raise ValueError(
        f'train.batch_size={expected} is more than the {self.units} units of privacy.unit={unit}\n'
        f'fix: set train.batch_size to at most {self.units}, or give more data, or (text) a separator '
        'between documents'
      )
    self.sampler = UnitSampler(
      address_R2, offset_U, bits, expected=expected, slots=self._batch_size, stride=stride
    )
    self.gather = partial(gather_units, tuple(self.rows.values()), bits)
    self.fingerprint |= {'unit': unit, 'expected': expected, 'stride': stride, 'key': bits.digest}

  def identify(self, number: int) -> dict[str, list[int]]:
    """Return {source: numbers of its rows} in global batch `number`, for all processes."""
    rows = {}
    for source, row in self.sampler.sample(number).tolist():
      rows.setdefault(self.names[source], []).append(row)
    return rows

  def rows_before(self, number: int) -> dict[str, int]:
    """Return {}: the rows of a batch follow from its number alone."""
    return {}

  def _order(self, schedule) -> str:
    return 'poisson'

  def _addresses(self, schedule=None):
    """Return an endless Grain dataset of (batch number, source, row), equal on every process."""
    import grain

    return grain.MapDataset.source(Endless(self.sampler))


def gather_units(sources, bits, addresses) -> dict[str, np.ndarray]:
  """Gather a batch from (batch number, source, row); padding is a row without targets and segments."""
  weight_B = np.array([row != PADDING for _, _, row in addresses], np.float32)
  # The batch is the epoch, which conditions dropped at random depend on.
  rows = [(source, max(row, 0) + number * sources[source].count) for number, source, row in addresses]
  batch = gather_rows(sources, rows)
  for name in ('loss_mask_BT', 'segment_ids_BT'):
    batch[name] = batch[name] * weight_B[:, None].astype(batch[name].dtype)
  keys = [bits.words('noise', number, 2, np.uint32) for number, _, _ in addresses]
  return batch | {'unit_weight_B': weight_B, 'noise_key_B2': np.stack(keys)}
