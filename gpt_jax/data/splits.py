"""Opened sources, and the records that belong to a split.

A filter such as 'speaker=theo|lucas,digit=3' keeps the records whose fields, as text, have one of
the values, for each field that it names.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gpt_jax.data import templates

SPLITS = ('train', 'valid', 'test')
PART = re.compile(r'train(\[(?P<first>\d+%?)?:(?P<end>\d+%?)?\])?')  # of the records of files, as TFDS has it


class Record(dict):
  """The fields of a record, and how to read its media.

  root: folder or .zip below which relative paths lie. rate: sample rate of sounds that are arrays in
  Hz; 0 = unknown.
  """

  def __init__(self, fields, root: str = '', rate: int = 0):
    super().__init__(fields)
    self.root, self.rate = root, rate


@dataclass(frozen=True)
class Corpus:
  """An opened source."""

  # (location, fields) in a fixed order; with `bad_records`, an error in place of the fields
  records: Callable[[], Iterator[tuple[str, dict | ValueError]]]
  content: Callable[[], str]  # hash of everything that records() depends on outside the config


def generated(source, records: Callable, *settings) -> Corpus:
  """Open the generated `records(count, *settings)`; the first ten tell versions of the generator apart."""

  def content():
    values = [value for _, fields in records(10, *settings) for value in fields.values()]
    digest = hashlib.sha256(b''.join(np.asarray(value).tobytes() for value in values)).hexdigest()
    return '-'.join(map(str, [source.kind, source.documents, *settings, digest]))

  return Corpus(lambda: records(source.documents, *settings), content)


def select(corpus: Corpus, source, split: str) -> Corpus:
  """Return the records of a corpus that belong to `split`, with `name` if the source has names."""
  chosen = selection(source, split)
  if not chosen and not source.names:
    return corpus
  keep, without = chosen.get('keep', ''), chosen.get('without', ())

  def belongs(record, where):
    if source.names:
      record['name'] = _name(source.names, record, where)
    chosen = matches(keep, record, where)
    return chosen and not any(matches(other, record, where) for other in without)

  def records():
    for where, record in corpus.records():
      try:
        if not isinstance(record, ValueError) and not belongs(record, where):
          continue
      except ValueError as error:
        if not source.bad_records:
          raise
        record = error
      yield where, record

  return Corpus(records, corpus.content)


def take_part(corpus: Corpus, source, split: str) -> Corpus:
  """Return the records of files that `unique` and the slice of `split` leave, in this order."""
  part = getattr(source, f'{split}_split')
  if split != 'train' and not part and not getattr(source, f'{split}_path'):
    part = source.train_split
  bounds, fields = parse_part(part or 'train'), [name.strip() for name in source.unique.split(',') if name]
  if not fields and bounds == ('', ''):
    return corpus

  def first_ones():
    seen = set()
    for where, record in corpus.records():
      try:
        values = (
          [] if isinstance(record, ValueError) else [templates.text_of(record, f, where) for f in fields]
        )
      except ValueError as error:
        if not source.bad_records:
          raise
        values, record = [], error
      key = hashlib.blake2b(json.dumps(values).encode(), digest_size=16).digest()
      if values and key in seen:
        continue
      seen.add(key)
      yield where, record

  count = functools.cache(lambda: sum(1 for _ in first_ones()))

  def place(bound: str) -> int | None:
    return round(int(bound[:-1]) * count() / 100) if bound.endswith('%') else int(bound) if bound else None

  def records():
    yield from itertools.islice(first_ones(), *map(place, bounds))

  return Corpus(records, lambda: f'{corpus.content()}-{part}')


def parse_part(part: str) -> tuple[str, str]:
  """'train[:85%]' -> ('', '85%'); ValueError for another form."""
  match = PART.fullmatch(part)
  if not match:
    raise ValueError(
      f"{part!r} is not a part of a file's records\n"
      'fix: write train, train[:85%], train[85%:95%] or train[1000:]'
    )
  return match['first'] or '', match['end'] or ''


def selection(source, split: str) -> dict:
  """Return the filters of `split`, {} for none.

  A split without a filter of its own has that of training. Records of the training data that
  `test_keep` selects are in no other split; those that `valid_keep` selects are not in training.
  """
  own = getattr(source, f'{split}_keep', '') or source.keep
  rest = SPLITS[SPLITS.index(split) + 1 :] if not source.is_apart(split) else ()
  others = [name for name in rest if not source.is_apart(name)]
  without = [keep for name in others if (keep := getattr(source, f'{name}_keep'))]
  return {**({'keep': own} if own else {}), **({'without': without} if without else {})}


def fields_read(source) -> set[str]:
  """Return the fields of a record that its template, its filters and its names read."""
  slots = templates.parse(source.template)
  named = [value for kind, value in slots if kind not in ('literal', 'arrow')]
  fields = {field for value in named for field in templates.fields_of(value)}
  for keep in (source.keep, source.valid_keep, source.test_keep):
    fields |= {field for field, _ in parse(keep)}
  return fields - {'name'} | {'label'} if source.names else fields


@functools.lru_cache(maxsize=64)
def parse(keep: str) -> tuple[tuple[str, frozenset[str]], ...]:
  """'a=1|2,b=x' -> (('a', {'1', '2'}), ('b', {'x'})); ValueError for another form."""
  pairs = [item.partition('=') for item in keep.split(',')] if keep else []
  if not all(field.strip() and sign for field, sign, _ in pairs):
    raise ValueError(
      f"keep={keep!r} is not a filter of records\nfix: write keep='field=value|other value,other_field=value'"
    )
  return tuple((field.strip(), frozenset(values.split('|'))) for field, _, values in pairs)


def matches(keep: str, record: dict, where: str) -> bool:
  """Return whether a record passes a filter; ValueError if it lacks a field of it."""
  return all(templates.text_of(record, field, where) in values for field, values in parse(keep))


def _name(names: tuple[str, ...], record: dict, where: str) -> str:
  """Return names[label], the class name of a record."""
  label = templates.text_of(record, 'label', where)
  if not label.isdecimal() or int(label) >= len(names):
    raise ValueError(
      f'{where} has label={label}, but names has {len(names)} entries\n'
      'fix: give names one entry for each label 0, 1, .., or leave it empty'
    )
  return names[int(label)]
