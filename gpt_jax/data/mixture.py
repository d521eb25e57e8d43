"""The data section of a config, and the documents of its training, validation and test parts.

A single text is cut by characters at int((1 - f) * len), as in nanoGPT. Of many documents those with
the smallest keyed hashes are for validation: their order does not matter, and equal documents are
always on the same side, media by the bytes of their files.
"""

import array
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from gpt_jax.data import content, sources, stages, templates
from gpt_jax.data.bad_records import BadRecords
from gpt_jax.data.clean.cleaning import Cleaning
from gpt_jax.data.clean.rule import text_of
from gpt_jax.data.packing import PACKING
from gpt_jax.data.sources import Source
from gpt_jax.data.splits import SPLITS, selection
from gpt_jax.data.templates import Piece
from gpt_jax.model.continuous import KINDS


@dataclass(frozen=True)
class DataConfig:
  """What to train on and how documents become rows."""

  mixture: dict[str, Source] = field(default_factory=lambda: {'text': Source()})  # name -> source
  stages: str = ''  # other weights from a step on, as in '8000: web=1, math=3; 9500: math=1'
  packing: str = 'crop'  # row of PACKING; first_fit and document keep documents whole
  mask_documents: bool = False  # crop, split: no attention between documents; the others never have any
  valid_fraction: float = 0.1  # share kept for validation where a source does not name its own; 0 = none
  prefix: bool = False  # whole documents: bidirectional attention within a condition
  condition_dropout: float = 0.0  # whole documents: share of conditions replaced by null, for guidance
  cache: str = ''  # folder of token caches; '' = in the run folder
  workers: int = 0  # processes that make batches; 0 = threads of this one
  prefetch: int = 2  # batches made ahead, by each worker; 0 = none
  reset: bool = False  # start changed data from their first batch, where resuming would be an error

  def __post_init__(self):
    if not self.mixture:
      raise ValueError('data.mixture is empty\nfix: name at least one source')
    for name in self.mixture:
      if not re.fullmatch(r'[\w.-]+', name):
        raise ValueError(f'data.mixture has a source {name!r}\nfix: use letters, digits, _ . - only')
    stages.check(self.stages, self.mixture)
    if self.stages and self.reset:
      raise ValueError(
        f'data.reset=True would begin data.stages={self.stages!r} at its first step again\n'
        'fix: leave out data.reset, or data.stages'
      )
    if self.packing not in PACKING:
      raise ValueError(f'data.packing={self.packing} is unknown\nfix: use one of {", ".join(PACKING)}')
    for name in ('valid_fraction', 'condition_dropout'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f'data.{name}={getattr(self, name)} is not in [0, 1)\nfix: use 0 <= {name} < 1')
    for name in ('workers', 'prefetch'):
      if getattr(self, name) < 0:
        raise ValueError(f'data.{name}={getattr(self, name)} is negative\nfix: use 0 or more')
    self._check_conditions()

  def _check_conditions(self):
    """Refuse to cut documents with media or a condition, and options that need a condition."""
    for name, source in self.mixture.items():
      if not templates.is_plain(source.template) and not self.has_whole_documents:
        raise ValueError(
          f"data.mixture.{name}.template={source.template!r} has media, turns or ' -> ', and "
          f'data.packing={self.packing} would cut its documents\n'
          'fix: set data.packing=first_fit'
        )
    for name in ('prefix', 'condition_dropout'):
      if getattr(self, name) and not any(templates.signature(t)[0] for t in self._templates()):
        raise ValueError(
          f'data.{name}={getattr(self, name)} has no effect: no template has a condition\n'
          f"fix: write one such as '{{question}} -> {{answer}}', or leave data.{name} out"
        )

  def _templates(self):
    return [source.template for source in self.mixture.values()]

  @property
  def has_whole_documents(self) -> bool:
    """Whether rows hold whole documents, apart from each other, and not parts of a stream."""
    return self.packing in ('first_fit', 'document')

  @property
  def has_only_text(self) -> bool:
    """Whether every document is one text without a condition."""
    return all(map(templates.is_plain, self._templates()))

  @property
  def has_start(self) -> bool:
    """Whether a document of plain text may have a start token: the only text of a source has none."""
    return not all(source.is_one_text for source in self.mixture.values() if source.weight)

  @property
  def features(self) -> tuple[str, ...]:
    """The continuous inputs that documents may have: rows of KINDS."""
    used = {kind for template in self._templates() for kind, _ in templates.parse(template)}
    return tuple(kind for kind in KINDS if kind in used)


@dataclass(frozen=True)
class SourceSplit:
  """The documents of one source that belong to a split."""

  # examples(skip=None, notes=None) -> (where, pieces), in a fixed order. skip(error) is called for each
  # record that is left out; without it nothing is logged. ValueError for more than `bad_records`. notes: a
  # Counter of what `clean` and `scrub` did; of a part that is cut from training data it is counted there.
  examples: Callable[..., Iterator[tuple[str, list[Piece]]]]
  has_many: bool  # whether the source has more than one document
  is_plain: bool  # whether documents are one text each
  describe: Callable[[], dict]  # JSON-able; splits that differ in any document differ here

  def texts(self, skip: Callable | None = None, notes=None) -> Iterator[str]:
    """Yield the joined texts of each document; skip, notes: as in `examples`."""
    return (text_of(pieces) for _, pieces in self.examples(skip, notes))


def source_names(cfg: DataConfig, split: str) -> tuple[str, ...]:
  """Return the names of the sources with data for `split`, sorted."""
  if split not in SPLITS:
    raise ValueError(f'split={split} is unknown\nfix: use one of {", ".join(SPLITS)}')
  return tuple(
    name
    for name, source in sorted(cfg.mixture.items())
    if (source.weight and split == 'train')
    or source.has(split)
    or (split == 'valid' and cfg.valid_fraction and not source.is_planted)
  )


def documents(cfg: DataConfig, split: str) -> Iterator[tuple[str, str]]:
  """Yield (source name, text of a document) of `split`, source by source; media are left out."""
  for name in source_names(cfg, split):
    for text in open_split(cfg, name, split).texts():
      yield name, text


def open_split(cfg: DataConfig, name: str, split: str) -> SourceSplit:
  """Return the documents of one source that belong to `split`; reads at most two of them."""
  if name not in source_names(cfg, split):
    raise no_data(cfg, f'data.mixture.{name}', split)
  source = cfg.mixture[name]
  corpus = sources.open_source(source, split)

  examples = functools.partial(_examples, name, source, corpus)
  plain = templates.is_plain(source.template)
  count = len(list(itertools.islice(examples(), 2)))  # 2 stands for many
  if not count:
    raise ValueError(f'data.mixture.{name} has no {split} documents\nfix: check its path and its filters')
  keeps_all = source.has('valid') or source.is_planted
  whole = source.has(split) or (split == 'train' and keeps_all) or not cfg.valid_fraction
  if count == 1 and not plain and not whole:
    raise ValueError(
      f"data.mixture.{name} has one document, and one with media or ' -> ' cannot be cut in two\n"
      'fix: set data.valid_fraction=0.0, give more documents, or set valid_path'
    )

  filters = selection(source, split if source.has(split) else 'train')
  identity = lambda: {'content': corpus.content(), **source.describe(split), **filters}
  if cleaning := Cleaning(name, source, split):
    examples = functools.partial(cleaning.documents, examples, identity)

  def select_examples(skip=None, notes=None):
    if split != 'train' and not source.is_apart(split):
      skip = None  # bad records of shared files are counted once, in training
      notes = notes if source.has(split) else None
    options = {'skip': skip, 'notes': notes} if cleaning else {'skip': skip}
    if whole:
      yield from examples(**options)
      return
    select = _select if count > 1 else _cut
    example = None
    for example in select(examples, cfg, split, options):
      yield example
    if example is None:
      raise ValueError(
        f'data.mixture.{name} leaves nothing for {split} with '
        f'data.valid_fraction={cfg.valid_fraction}\n'
        'fix: change data.valid_fraction, give more text, or set valid_path'
      )

  def describe():
    cut = {} if whole else {'split': split, 'valid_fraction': cfg.valid_fraction}
    return {**identity(), **cleaning.described, **cut}

  return SourceSplit(select_examples, count > 1, plain, describe)


def unfiltered(cfg: DataConfig, name: str, split: str) -> Callable[..., Iterator]:
  """Return examples(skip=None) of all documents of a source, without clean, scrub and valid_fraction."""
  source = cfg.mixture[name]
  return functools.partial(_examples, name, source, sources.open_source(source, split))


def _examples(name, source, corpus, skip=None) -> Iterator[tuple[str, list[Piece]]]:
  """Yield (where, pieces) of each readable record of a corpus; see SourceSplit.examples."""
  skip = skip or BadRecords(name, source, quiet=True).skip
  for where, record in corpus.records():
    try:
      if isinstance(record, ValueError):
        raise record
      pieces = templates.fill(source.template, record, where)
    except ValueError as error:
      if not source.bad_records:
        raise
      skip(error)
      continue
    yield where, pieces


def no_data(cfg: DataConfig, subject: str, split: str) -> ValueError:
  """Return the error for a source, or a mixture, without data for `split`."""
  return ValueError(
    f'{subject} has no {split} data with data.valid_fraction={cfg.valid_fraction}\n'
    f'fix: set {split}_path, {split}_keep or (tfds) {split}_split of a source, or, for '
    'validation, raise data.valid_fraction'
  )


def _cut(examples: Callable, cfg: DataConfig, split: str, options) -> Iterator[tuple[str, list[Piece]]]:
  """Cut one text by characters."""
  for where, [piece] in examples(**options):
    cut = int((1 - cfg.valid_fraction) * len(piece.value))
    if part := piece.value[:cut] if split == 'train' else piece.value[cut:]:
      yield where, [Piece('text', part)]


def _select(examples: Callable, cfg: DataConfig, split: str, options) -> Iterator[tuple[str, list[Piece]]]:
  """Select documents by hash in two passes, holding eight bytes of each."""
  digests = np.frombuffer(array.array('Q', (content.digest(pieces) for _, pieces in examples())), np.uint64)
  if len(digests) < 2:
    return
  count = min(max(1, round(cfg.valid_fraction * len(digests))), len(digests) - 1)
  low = digests <= np.partition(digests, count - 1)[count - 1]
  for example, is_low in zip(examples(**options), low, strict=True):
    if is_low == (split == 'valid'):
      yield example
