"""The data section of a config, and the documents of its training and validation parts.

A single document is cut by characters at int((1 - f) * len), as nanoGPT cuts its corpora. Of many
documents those with the smallest keyed hashes are for validation: their order plays no part, and
equal documents are always on the same side.
"""

import array
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from gpt_jax.data import sources, templates
from gpt_jax.data.packing import PACKING
from gpt_jax.data.sources import Source

SPLITS = ('train', 'valid')


@dataclass(frozen=True)
class DataConfig:
  """What to train on and how documents become rows."""

  mixture: dict[str, Source] = field(default_factory=lambda: {'text': Source()})  # name -> source
  packing: str = 'crop'  # row of PACKING
  mask_documents: bool = False  # crop, split: a document sees only itself; first_fit always does so
  valid_fraction: float = (
    0.1  # share kept for validation where a source does not name its own; 0 = none
  )
  split_seed: int = 0  # which documents are for validation
  append_eos: bool = False  # end even a single document with eos; many documents always end with it
  cache: str = ''  # folder of token caches; '' = in the run folder
  workers: int = 0  # processes that make batches; 0 = threads of this one
  prefetch: int = 2  # batches made ahead, by each worker; 0 = none
  reset: bool = False  # start changed data from their first batch, where resuming would be an error

  def __post_init__(self):
    if not self.mixture:
      raise ValueError('data.mixture is empty\nfix: name at least one source')
    for name in self.mixture:
      if not re.fullmatch(r'[\w.-]+', name):
        raise ValueError(
          f'data.mixture has a source {name!r}\nfix: use letters, digits, _ . - only'
        )
    if self.packing not in PACKING:
      raise ValueError(
        f'data.packing={self.packing} is unknown\nfix: use one of {", ".join(PACKING)}'
      )
    if not 0 <= self.valid_fraction < 1:
      raise ValueError(
        f'data.valid_fraction={self.valid_fraction} is no share\nfix: use 0 <= valid_fraction < 1'
      )
    for name in ('workers', 'prefetch'):
      if getattr(self, name) < 0:
        raise ValueError(f'data.{name}={getattr(self, name)} is negative\nfix: use 0 or more')


@dataclass(frozen=True)
class Part:
  """The training or the validation documents of one source."""

  texts: Callable[[], Iterator[str]]  # documents, in a fixed order
  many: bool  # whether the source has more than one document
  describe: Callable[[], dict]  # JSON-able; parts that differ in any document differ here


def source_names(cfg: DataConfig, split: str) -> tuple[str, ...]:
  """Names of the sources with data for `split`, sorted; () if nothing is kept for validation."""
  if split not in SPLITS:
    raise ValueError(f'split={split} is unknown\nfix: use one of {", ".join(SPLITS)}')
  return tuple(
    name
    for name, source in sorted(cfg.mixture.items())
    if split == 'train' or source.has_valid or cfg.valid_fraction
  )


def documents(cfg: DataConfig, split: str) -> Iterator[tuple[str, str]]:
  """All (source name, text of a document) of `split`, source after source."""
  for name in source_names(cfg, split):
    for text in open_part(cfg, name, split).texts():
      yield name, text


def open_part(cfg: DataConfig, name: str, split: str) -> Part:
  """The documents of one source that belong to `split`; reads at most two of them."""
  if name not in source_names(cfg, split):
    raise ValueError(
      f'data.mixture.{name} has no {split} data with data.valid_fraction={cfg.valid_fraction}\n'
      'fix: raise data.valid_fraction, or set valid_path (tfds: valid_split) of the source'
    )
  source = cfg.mixture[name]
  corpus = sources.open_source(source, split)

  def texts():
    for where, record in corpus.records():
      yield templates.render(source.template, record, where)

  first = len(list(itertools.islice(texts(), 2)))
  if not first:
    raise ValueError(f'data.mixture.{name} has no {split} documents\nfix: check its path')
  whole = source.has_valid or not cfg.valid_fraction

  def chosen():
    if whole:
      yield from texts()
      return
    select = _select if first > 1 else _cut
    empty = True
    for text in select(texts, cfg, split):
      empty = False
      yield text
    if empty:
      raise ValueError(
        f'data.mixture.{name} leaves nothing for {split} with '
        f'data.valid_fraction={cfg.valid_fraction}\n'
        'fix: change data.valid_fraction, give more text, or set valid_path'
      )

  def describe():
    cut = {} if whole else {'split': split, **_pick(cfg, ('valid_fraction', 'split_seed'))}
    return {'content': corpus.content(), **_pick(source, ('kind', 'template', 'separator')), **cut}

  return Part(chosen, first > 1, describe)


def _pick(instance, names: tuple[str, ...]) -> dict:
  return {name: value for name, value in dataclasses.asdict(instance).items() if name in names}


def _cut(texts: Callable[[], Iterator[str]], cfg: DataConfig, split: str) -> Iterator[str]:
  """One document, cut by characters."""
  for text in texts():
    cut = int((1 - cfg.valid_fraction) * len(text))
    if part := text[:cut] if split == 'train' else text[cut:]:
      yield part


def _select(texts: Callable[[], Iterator[str]], cfg: DataConfig, split: str) -> Iterator[str]:
  """Many documents, in two passes: eight bytes each are held, never their text."""
  key = b'%d' % cfg.split_seed

  def digest(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest())

  digests = np.frombuffer(array.array('Q', map(digest, texts())), np.uint64)
  count = min(max(1, round(cfg.valid_fraction * len(digests))), len(digests) - 1)
  limit = int(np.partition(digests, count - 1)[count - 1])
  for text in texts():
    if (digest(text) <= limit) == (split == 'valid'):
      yield text
