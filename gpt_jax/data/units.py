"""Privacy units of token rows: the documents, or the values of a field of their records, such as a user.

Letters: N documents of a source, U units, R rows of all sources.
"""

import difflib

import numpy as np

from gpt_jax.data import sources, templates
from gpt_jax.data.mixture import DataConfig, open_split

DOCUMENT = ('document', 'conversation')  # a conversation is a document


def unit_rows(cfg: DataConfig, rows: dict, unit: str) -> tuple[np.ndarray, np.ndarray]:
  """Return the rows of each unit: (source, row) by unit, int64 [R, 2], and the units' offsets, int64 [U + 1].

  rows: {source: packing.Documents of its training split}, in the order of their numbers. A unit may have rows
  of several sources; one without a target has none and is not counted.
  """
  addresses, labels = [], []
  for number, (name, source_rows) in enumerate(rows.items()):
    document_N = source_rows.document_N
    addresses.append(np.stack([np.full_like(document_N, number), np.arange(len(document_N))], axis=1))
    if unit in DOCUMENT:
      labels += [(number, document) for document in document_N.tolist()]
    else:
      values = field_values(cfg, name, unit, len(source_rows.cache.offsets))
      labels += [values[document] for document in document_N.tolist()]
  numbers = {label: index for index, label in enumerate(dict.fromkeys(labels))}
  unit_R = np.array([numbers[label] for label in labels])
  order = np.argsort(unit_R, kind='stable')
  counts = np.bincount(unit_R, minlength=len(numbers))
  return np.concatenate(addresses)[order], np.concatenate([[0], np.cumsum(counts)])


def field_values(cfg: DataConfig, name: str, field: str, count: int) -> list[str]:
  """Return a field of the record of each training document of a source, in their order.

  count: documents of its token cache. Raises ValueError for a field that a record lacks.
  """
  source, by_place = cfg.mixture[name], {}
  for where, record in sources.open_source(source, 'train').records():
    if isinstance(record, ValueError):
      raise record
    try:
      value = templates.text_of(record, field, where)
    except ValueError:
      near = difflib.get_close_matches(field, record, 1)
      fix = f'did you mean {near[0]}?' if near else f'use document, or one of {", ".join(record)}'
      raise ValueError(
        f'privacy.unit={field} is not a field of {where} (data.mixture.{name})\nfix: {fix}'
      ) from None
    if where in by_place:
      raise ValueError(
        f'privacy.unit={field}: two records of data.mixture.{name} are at {where}\n'
        'fix: use privacy.unit=document'
      )
    by_place[where] = value
  places = [where for where, _ in open_split(cfg, name, 'train').examples()]
  if len(places) != count:
    raise ValueError(
      f'privacy.unit={field}: data.mixture.{name} has {len(places)} records and {count} documents\n'
      'fix: leave out the records that cannot be read, and set bad_records=0'
    )
  return [by_place[where] for where in places]
