"""Where records come from: the `Source` section of a config, and the table of its kinds.

A new kind costs one function in a file of its own and one row of SOURCES. The function opens a
source as a `Corpus`: one function that streams (where, record), one that hashes everything the first
can read. A record is a dict of fields; `where` names it in messages. Relative paths are looked up in
the current folder, then in the folder that GPT_JAX_DATA names.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

from gpt_jax.data import (
  arrays,
  augment,
  media_sources,
  record_sources,
  shards,
  splits,
  tables,
  templates,
  text_sources,
)
from gpt_jax.data.clean import cleaning
from gpt_jax.data.splits import Corpus
from gpt_jax.data.synthetic import canaries
from gpt_jax.runs import plugins

COMMON = ('kind', 'template', 'weight', 'license', 'scrub', 'clean')  # fields that every kind reads
PATHS = ('path', 'valid_path', 'test_path')
FILTERS = ('keep', 'valid_keep', 'test_keep')
COPIES = ('copies', 'augment')
HUB = ('config', 'revision')
THREE_SPLITS = ('train_split', 'valid_split', 'test_split')
FILES = ('root', 'names', 'bad_records', *PATHS, *THREE_SPLITS, 'unique')
# Fields that say where records are or which of them a split takes: `Corpus.content` and
# `splits.selection` describe their effect.
LOCATIONS = (*PATHS, *THREE_SPLITS, *HUB, 'data_dir', 'root', 'captions')


@dataclass(frozen=True)
class Source:
  """One member of a mixture. A field that its kind does not use must keep its default."""

  kind: str = 'builtin'  # row of SOURCES
  path: str = ''  # file, glob, folder, also gs:// or s3://; files: also .zip; tfds, hf: a data set
  template: str = '{text}'  # what a document is, over the fields of a record
  scrub: str = (
    ''  # personal data to replace, as in 'email,phone': clean.patterns.PATTERNS; all = each pattern
  )
  clean: str = ''  # rules that remove documents, as in 'exact,near=0.8': clean.cleaning.RULES, in their order
  weight: float = 1.0  # share of the rows, relative to the other sources; 0 = only for evaluation
  separator: str = ''  # text: string between the documents of a file; '' = a file is a document
  valid_path: str = ''  # validation files; '' = a part of `path`
  test_path: str = ''  # test files; '' = none, or what test_keep selects of `path`
  train_split: str = 'train'  # tfds, hf: split, as in 'train' or 'train[:90%]'; jsonl, csv, parquet: in order
  valid_split: str = ''  # the same for validation; '' = a part of train_split
  test_split: str = ''  # the same for the test; '' = none
  unique: str = ''  # jsonl, csv, parquet: fields; of records with equal ones the first is taken; '' = all
  config: str = ''  # hf: configuration of a data set of the hub; '' = its default
  revision: str = ''  # hf: branch, tag or commit of a data set of the hub; '' = main
  keep: str = ''  # which records, as in 'speaker=theo|lucas,digit=3'; '' = all
  valid_keep: str = ''  # which records are for validation, and not for training
  test_keep: str = ''  # which records are for the test, and for nothing else
  names: tuple[str, ...] = ()  # adds the field name = names[label]
  root: str = ''  # jsonl, csv, parquet: folder or .zip of the media that it names; '' = that of the file
  pattern: str = ''  # files: regular expression on a file's name; its named groups become fields
  captions: str = ''  # files: JSON lines with more fields of the file that file/image/audio names
  copies: int = 0  # changed copies of each training record beside itself
  augment: str = ''  # how their media are changed, as in 'speed=0.2,noise=0.01': augment.CHANGES
  bad_records: int = 0  # records that cannot be read and are skipped; one more is an error
  data_dir: str = ''  # tfds: folder of prepared data sets; '' = the library's own default
  rate: int = 0  # arrays, tfds, parquet, hf: samples a second of sounds; 0 = what the data or tokenizer say
  documents: int = (
    1000  # keypad: sounds; stories; sums; canaries, for each of repeats; synthetic: of 256 words
  )
  seed: int = 0  # stories, sums, synthetic, canaries: seed of the generator
  repeats: tuple[int, ...] = (1, 4, 16, 64)  # canaries: how often a planted secret occurs
  digits: int = 4  # canaries: of a secret
  license: str = ''  # of the data, for the model card: 'cc-by-4.0'; '' = not stated

  def __post_init__(self):
    if self.kind not in SOURCES:
      raise ValueError(f'kind={self.kind} is not a kind of source\nfix: use one of {", ".join(SOURCES)}')
    for name, value in self.changed.items():
      if name not in self.fields_read:
        kinds = [kind for kind, row in SOURCES.items() if name in row.fields]
        raise ValueError(
          f'{name}={value!r} has no effect on a source of kind={self.kind}\n'
          f'fix: set kind={"|".join(kinds)}, which read it, or remove it; '
          f'kind={self.kind} reads {", ".join(sorted(self.fields_read))}'
        )
    if 'path' in self.fields_read and not self.path:
      raise ValueError(f'path is empty for a source of kind={self.kind}\nfix: set path')
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'seed={self.seed} is not a 32-bit number\nfix: use 0 to {2**32 - 1}')
    if not 0 <= self.weight < float('inf'):
      raise ValueError(f'weight={self.weight} is negative or infinite\nfix: use 0 or more')
    if self.documents < 1:
      raise ValueError(f'documents={self.documents} is not positive\nfix: generate at least one')
    for name in ('bad_records', 'rate', 'copies'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}={getattr(self, name)} is negative\nfix: use 0 or more')
    for keep in (self.keep, self.valid_keep, self.test_keep):
      splits.parse(keep)
    if 'unique' in self.fields_read:
      for name in THREE_SPLITS:
        splits.parse_part(getattr(self, name) or 'train')
    media_sources.check_pattern(self.pattern)
    templates.parse(self.template)
    cleaning.check(self)
    self._check_augment()
    if self.kind == 'canaries':
      canaries.check(self.documents, self.repeats, self.digits)

  def _check_augment(self):
    missing = augment.modalities(self.augment) - templates.modalities(self.template)
    if missing:
      raise ValueError(
        f'augment={self.augment!r} changes {min(missing)}, and the template {self.template!r} has none\n'
        'fix: leave it out of augment'
      )
    if bool(self.copies) != bool(self.augment):
      raise ValueError(
        f'copies={self.copies} with augment={self.augment!r}\n'
        'fix: give both: the number of changed copies of a record, and the changes'
      )

  @property
  def fields_read(self) -> set[str]:
    """The names of the fields that this kind reads."""
    return {*COMMON, *SOURCES[self.kind].fields}

  @property
  def changed(self) -> dict:
    """The fields that are not at their defaults."""
    pairs = ((field, getattr(self, field.name)) for field in fields(self))
    return {field.name: value for field, value in pairs if value != field.default}

  def describe(self, split: str) -> dict:
    """Return the settings that decide what documents of `split` hold, beside the records' content.

    `Cleaning.describe` has those of `scrub` and `clean`.
    """
    skipped = {'weight', 'license', 'scrub', 'clean', *LOCATIONS, *FILTERS}
    skipped |= {*COPIES} if split != 'train' else set()
    fixed = {'kind': self.kind, 'template': self.template}
    if plugin := plugins.owner('SOURCES', self.kind):  # another file of the plugin makes other records
      fixed['plugin'] = plugin
    return fixed | {name: value for name, value in self.changed.items() if name not in skipped}

  def is_apart(self, split: str) -> bool:
    """Whether `split` has files of its own."""
    return any(getattr(self, f'{split}_{what}') for what in ('path', 'split') if split != 'train')

  def has(self, split: str) -> bool:
    """Whether the data of `split` are named, so that nothing is cut from the training data."""
    return split != 'train' and bool(
      self.is_apart(split) or getattr(self, f'{split}_keep') or not self.weight
    )

  @property
  def is_planted(self) -> bool:
    """Whether all documents are for training: what was not planted is known to `canaries.draw` alone."""
    return self.kind == 'canaries'

  @property
  def is_benchmark(self) -> bool:
    """Whether the source is scored by its own task alone, and not trained on."""
    return not self.weight and bool(templates.benchmark(self.template))

  @property
  def is_one_text(self) -> bool:
    """Whether the source is one file that nothing cuts into documents, as far as its path tells."""
    names_file = os.path.splitext(self.path)[1][1:].isalpha() and not set(self.path) & set('*?[')
    return self.kind == 'text' and not self.separator and names_file

  def path_of(self, split: str) -> str:
    """The files of `split`."""
    return (split != 'train' and getattr(self, f'{split}_path')) or self.path


def open_source(source: Source, split: str) -> Corpus:
  """The records of `split` if the source names its data, else those of training."""
  own = split if source.has(split) else 'train'
  corpus = SOURCES[source.kind].open(source, own)
  if 'unique' in source.fields_read:
    corpus = splits.take_part(corpus, source, own)
  return splits.select(corpus, source, own)


class SourceKind(NamedTuple):
  """A kind of source: what opens it, and the fields that it reads besides COMMON."""

  open: Callable[[Source, str], Corpus]
  fields: tuple[str, ...]


SOURCES = {
  'builtin': SourceKind(text_sources.builtin, FILTERS),
  'text': SourceKind(text_sources.text, ('separator', *PATHS)),
  'synthetic': SourceKind(text_sources.synthetic, ('documents', 'seed')),
  'jsonl': SourceKind(record_sources.jsonl, (*FILES, *FILTERS, *COPIES)),
  'csv': SourceKind(tables.csv, (*FILES, *FILTERS, *COPIES)),
  'parquet': SourceKind(tables.parquet, ('rate', *FILES, *FILTERS, *COPIES)),
  'hf': SourceKind(
    tables.hf, ('path', *THREE_SPLITS, *HUB, 'rate', 'names', 'bad_records', *FILTERS, *COPIES)
  ),
  'webdataset': SourceKind(shards.webdataset, ('names', 'bad_records', *PATHS, *FILTERS, *COPIES)),
  'parallel': SourceKind(record_sources.parallel, (*PATHS, *FILTERS)),
  'stories': SourceKind(record_sources.synthetic_stories, ('documents', 'seed', *FILTERS)),
  'sums': SourceKind(record_sources.synthetic_sums, ('documents', 'seed', *FILTERS)),
  'canaries': SourceKind(record_sources.planted_canaries, ('documents', 'seed', 'repeats', 'digits')),
  'tfds': SourceKind(
    record_sources.tfds,
    ('path', *THREE_SPLITS, 'data_dir', 'rate', 'names', 'bad_records', *FILTERS, *COPIES),
  ),
  'digits': SourceKind(media_sources.digits, (*FILTERS, *COPIES)),
  'keypad': SourceKind(media_sources.keypad, ('documents', *FILTERS, *COPIES)),
  'arrays': SourceKind(arrays.arrays, ('rate', 'names', 'bad_records', *PATHS, *FILTERS, *COPIES)),
  'files': SourceKind(
    media_sources.files, ('pattern', 'captions', 'names', 'bad_records', *PATHS, *FILTERS, *COPIES)
  ),
}
