"""Sources of tables, whose rows are records and whose columns are fields: CSV, Parquet, Hugging Face."""

import csv as csv_files
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from gpt_jax.data.files import candidates, find_files
from gpt_jax.data.media_io import MOST_BYTES
from gpt_jax.data.record_sources import file_corpus, text_lines, text_records
from gpt_jax.data.splits import Corpus, Record, fields_read
from gpt_jax.data.text_files import PACKED, check_unpacked
from gpt_jax.runs.reading import describe_cause, reading

BATCH = 256  # rows read at once
STREAM_END = b'\xff\xff\xff\xff\0\0\0\0'  # last bytes of an Arrow stream: a shorter one reads without error

HUB_FIXES = (  # words of an error of the hub -> what to do
  (
    'gated|authenticated',
    'ask for access at https://huggingface.co/datasets/{path}, then set HF_TOKEN, or: hf auth login',
  ),
  ('cannot be accessed', 'correct the id, or set HF_TOKEN if it is private'),
  ("Couldn't reach", 'check the network, or give a folder that Dataset.save_to_disk wrote elsewhere'),
  ('', 'give an id such as org/name and, where it has them, config, revision and train_split'),
)


def csv(source, split: str) -> Corpus:
  """Open CSV with a header, or tab-separated values (.tsv). Every field is text; media are paths."""
  csv_files.field_size_limit(MOST_BYTES)
  files = text_records(source, split, '.csv', '.tsv')
  corpus = file_corpus(source, files, lambda path: _csv_rows(path, source))
  # Equal bytes are other records where the name of the file says so.
  delimiters = ''.join(map(_delimiter, files)).replace('\t', 't')
  return Corpus(corpus.records, lambda: f'{corpus.content()}-{delimiters}')


def _delimiter(path: Path) -> str:
  name = path.stem if path.suffix in PACKED else path.name
  return '\t' if name.endswith('.tsv') else ','


def _csv_rows(path: Path, source) -> Iterator[tuple[str, dict | ValueError]]:
  """Yield (where, fields) of each row that is not blank; with bad_records, errors in place of fields."""
  delimiter = _delimiter(path)
  rows = csv_files.reader(text_lines(path), delimiter=delimiter, strict=True)
  header, first = None, 1
  while True:
    where = f'{path} line {first}'
    try:
      row = next(rows, None)
      if row is None:
        return
      if header is None:
        header = row
        _check_header(path, header, source)
      elif row:
        if len(row) != len(header):
          raise csv_files.Error(f'{len(row)} fields, and the header has {len(header)}')
        yield where, dict(zip(header, row, strict=True))
    except csv_files.Error as error:
      not_csv = ValueError(
        f'{where} is not a row of CSV: {error}\n'
        f'fix: quote fields that hold {delimiter!r}, a quote or a newline, and double the quotes in them'
      )
      # A quote that nobody closes swallows the rows after it, so they are no single bad record.
      if not source.bad_records or header is None or rows.line_num > first:
        raise not_csv from None
      yield where, not_csv
    first = rows.line_num + 1


def _check_header(path: Path, header: list[str], source) -> None:
  """Raise ValueError for a header without the columns that are read, or with two of one name."""
  twice = {name for name in header if name and header.count(name) > 1}
  if twice:
    raise ValueError(f'{path} has two columns {min(twice)!r}\nfix: rename one in the header')
  _check_columns(path, header, source)


def _check_columns(where, columns: list[str], source) -> None:
  """Raise ValueError where a field that the source reads is not in a column."""
  example = columns[0] if columns else 'NAME'
  for field in sorted(fields_read(source)):
    if not any(field == column or field.startswith(f'{column}.') for column in columns):
      raise ValueError(
        f'{where} has no column {field!r}, but {", ".join(map(repr, columns))}\n'
        f"fix: name its columns in the template, such as '{{{example}}}', and in keep "
        "(experiments/table.py:question=NAME,answer=NAME; `data`: --template='{NAME}')"
      )


def parquet(source, split: str) -> Corpus:
  """Open Parquet files. Media are bytes, paths, or structs of both as Hugging Face stores them."""
  _pyarrow(source)
  files = find_files(source.path_of(split), '.parquet')
  return file_corpus(source, files, lambda path: _parquet_rows(path, source))


def _parquet_rows(path: Path, source) -> Iterator[tuple[str, dict]]:
  files = _pyarrow(source).parquet
  with reading(path, 'a whole Parquet file', 'fetch it again'), files.ParquetFile(path) as file:
    groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
    check_unpacked(sum(group.total_byte_size for group in groups), path.stat().st_size)
    columns = _columns(path, file.schema_arrow, source)
    yield from _rows(file.iter_batches(BATCH, columns=columns), path)


def _columns(where, schema, source) -> list[str]:
  """Return the columns to read: all but media that no template names."""
  _check_columns(where, schema.names, source)
  needed = {name for field in fields_read(source) for name in (field, field.partition('.')[0])}
  return [field.name for field in schema if field.name in needed or 'binary' not in str(field.type)]


def _rows(batches, where) -> Iterator[tuple[str, dict]]:
  """Yield (where, fields) of the rows of Arrow batches."""
  number = 0
  for batch in batches:
    batch.validate(full=True)  # a damaged offset would end the process
    for fields in batch.to_pylist():
      yield f'{where} row {number}', fields
      number += 1


def hf(source, split: str) -> Corpus:
  """Open a data set of the Hugging Face hub by its id, or a folder that `save_to_disk` wrote."""
  _pyarrow(source)
  name = (split != 'train' and getattr(source, f'{split}_split')) or source.train_split
  folder = next(filter(os.path.isdir, candidates(source.path)), '')
  if folder:
    files = _saved_files(Path(folder), name, source)
    return file_corpus(source, files, lambda path: _arrow_rows(path, source))
  return _hub_corpus(source, name)


def _saved_files(folder: Path, split: str, source) -> list[Path]:
  """Return the Arrow files of one split of a folder of `save_to_disk`, in order."""
  expected = 'a folder of save_to_disk'
  fix = 'give one, or use kind=parquet, csv, jsonl or files for the files in it'
  for name in ('config', 'revision'):
    if getattr(source, name):
      raise ValueError(
        f'{name}={getattr(source, name)!r} has no effect: path={source.path} is a folder\nfix: remove it'
      )
  with reading(folder, expected, fix):
    if (folder / 'dataset_dict.json').exists():
      splits = json.loads((folder / 'dataset_dict.json').read_text())['splits']
      if split not in splits:
        raise ValueError(f'{folder} has no split {split!r}\nfix: use {" or ".join(splits)}')
      folder = folder / split
    elif split != 'train':
      raise ValueError(f'{folder} has no split {split!r}: it is one data set\nfix: remove the split')
    state = json.loads((folder / 'state.json').read_text())
    return [folder / file['filename'] for file in state['_data_files']]


def _arrow_rows(path: Path, source) -> Iterator[tuple[str, dict]]:
  pyarrow = _pyarrow(source)
  with reading(path, 'a whole Arrow stream', 'save it again'), pyarrow.OSFile(str(path)) as file:
    file.seek(max(0, file.size() - len(STREAM_END)))
    if file.read() != STREAM_END:
      raise ValueError('it is cut short')
    file.seek(0)
    batches = pyarrow.ipc.open_stream(file)
    columns = _columns(path, batches.schema, source)
    yield from _rows((batch.select(columns) for batch in batches), path)


def _hub_corpus(source, split: str) -> Corpus:
  """Open a split of a data set of the hub: fetched once, known by its commit."""
  name = f'{source.path} {split}'
  if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?', source.path):
    raise ValueError(
      f'path={source.path} is neither a folder that exists nor the id of a data set of the hub\n'
      'fix: give a folder of save_to_disk, or an id such as org/name'
    )
  try:
    import datasets
  except ImportError as error:
    raise _missing('hf', 'datasets', error) from None
  try:
    builder = datasets.load_dataset_builder(
      source.path, source.config or None, revision=source.revision or None
    )
    builder.download_and_prepare()
    rows = builder.as_dataset(split).with_format('arrow')
  except Exception as error:  # of the hub, the network and parsers of many formats
    raise _hub_error(source, error) from error
  columns = _columns(name, rows.data.schema, source)
  rows = rows.select_columns(columns)

  def records():
    with reading(name, 'readable', 'delete it from the cache of datasets, which fetches it again'):
      for where, fields in _rows(rows.iter(BATCH), name):
        yield where, Record(fields, str(datasets.config.HF_CACHE_HOME), source.rate)

  return Corpus(records, lambda: f'{source.path}-{builder.config.name}-{builder.hash}-{split}')


def _hub_error(source, error: Exception) -> ValueError:
  cause = f'path={source.path} is not a folder, and not a data set of the hub that can be read'
  fix = next(fix for words, fix in HUB_FIXES if re.search(words, str(error))).format(path=source.path)
  return ValueError(f'{cause}: {describe_cause(error)}\nfix: {fix}')


def _pyarrow(source):
  """Return the package pyarrow; ValueError where it is missing."""
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise _missing(source.kind, 'pyarrow', error) from None
  return pyarrow


def _missing(kind: str, package: str, error: ImportError) -> ValueError:
  return ValueError(f"kind={kind} needs the package {package}: {error}\nfix: pip install 'gpt_jax[hf]'")
