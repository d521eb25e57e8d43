"""Sources of records with fields: JSON with media, parallel texts, synthetic stories and sums, TFDS."""

import codecs
import functools
import hashlib
import itertools
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt_jax.data import clips, templates
from gpt_jax.data.files import candidates, containing_file, find_files, hash_files, refuse_remote
from gpt_jax.data.splits import Corpus, Record, generated
from gpt_jax.data.synthetic import canaries, stories, sums
from gpt_jax.data.text_files import PACKED, not_utf8, read_chunks, suffixes, without_empty
from gpt_jax.runs.reading import reading

PIECE, MOST_ITEM = 1 << 16, 1 << 22  # of a JSON list: bytes read at once, characters of one item
OBJECTS = 'fix: write one JSON object per line, or one list of objects'
FIRST, NEXT = re.compile(r'\s*\[\s*(?=[^\s\]])'), re.compile(r'\s*,\s*(?=\S)')  # before an item
END, NEXT_END = re.compile(r'\s*\[\s*\]\s*'), re.compile(r'\s*\]\s*')  # of a list without items, and with

_media_paths: dict[tuple, set[str]] = {}  # by the digest of the records' files and what reads them


def jsonl(source, split: str) -> Corpus:
  """Open JSON lines, or files of one JSON list. Media lie beside the file, or in `root`."""
  files = text_records(source, split, '.jsonl')
  return file_corpus(source, files, lambda path: json_records(path, bool(source.bad_records)))


def text_records(source, split: str, *endings: str) -> list[Path]:
  """Return the text files of a source whose media are files beside them, not in a bucket."""
  path = source.path_of(split)
  if templates.modalities(source.template) and not source.root:
    refuse_remote(path)
  return without_empty(find_files(path, *(name for ending in endings for name in suffixes(ending))))


def file_corpus(source, files: list[Path], read: Callable[[Path], Iterator]) -> Corpus:
  """Return the corpus of files of records; paths of media start from `root`, or from the file's folder.

  read(path): yields (where, fields or, with bad_records, an error).
  """

  def records():
    for path in files:
      root = _media_root(source.root, path.parent)
      for where, fields in read(path):
        yield where, fields if isinstance(fields, ValueError) else Record(fields, root, source.rate)

  def content():
    if not templates.modalities(source.template):
      return hash_files(files)
    digest = hash_files(files)
    key = digest, *files, source.template, source.root, source.bad_records
    if key not in _media_paths:  # the splits of a source share its files, and reading media takes long
      _media_paths[key] = _find_media(source.template, records())
    return f'{digest}-{_hash_media(_media_paths[key])}'

  return Corpus(records, content)


def json_records(path: Path, tolerant: bool = False) -> Iterator[tuple[str, dict | ValueError]]:
  """Yield (where, object) of each line that is not blank, or of each item of a file that is one list.

  tolerant: yield errors in place of objects.
  """
  start = next(filter(None, (piece.strip() for piece in read_chunks(path, PIECE))), b'')
  for where, value in _list_items(path) if start.startswith(b'[') else _lines(path):
    if not isinstance(value, dict | ValueError):
      value = ValueError(f'{where} is a JSON {type(value).__name__}, not an object\n{OBJECTS}')
    if isinstance(value, ValueError) and not tolerant:
      raise value
    yield where, value


def _lines(path: Path) -> Iterator[tuple[str, object]]:
  """Yield (where, value or error) of each line that is not blank."""
  offset = 0
  for number, line in enumerate(read_chunks(path, 0), 1):
    if line.strip():
      yield f'{path} line {number}', _json_line(path, number, line, offset)
    offset += len(line)
  if not offset:
    raise ValueError(f'{path} is empty\nfix: remove it from path, or fill it')


def _json_line(path: Path, number: int, line: bytes, offset: int):
  """Return the value of a line, or the error."""
  where = f'{path} line {number}'
  try:
    return json.loads(line.decode('utf-8').rstrip('\r\n'))
  except UnicodeDecodeError as error:
    return not_utf8(path, offset + error.start)
  except json.JSONDecodeError as error:
    return ValueError(f'{where} is not JSON: {error.msg} at column {error.colno}\n{OBJECTS}')
  except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
    return ValueError(f'{where} cannot be read: {error}\nfix: leave that line out')


def _list_items(path: Path) -> Iterator[tuple[str, object]]:
  """Yield (where, value) of each item of a JSON list, of which one is held at a time."""
  decode, text, number, wanted, cause = json.JSONDecoder().raw_decode, '', 0, 0, 'the list is cut off'
  for piece in _decoded(path):
    text += piece
    if piece and len(text) < wanted:
      continue
    at = 0
    while match := (NEXT if number else FIRST).match(text, at):
      where = f'{path} item {number + 1}'
      try:
        value, end = decode(text, match.end())
      except json.JSONDecodeError as error:
        cause = error.msg  # as of an item that goes on in the next piece
        break
      except (RecursionError, ValueError) as error:
        raise ValueError(f'{where} cannot be read: {error}\nfix: leave it out') from None
      if end == len(text) and piece:  # a number may go on
        break
      yield where, value
      number, at, cause = number + 1, end, 'expected a comma and an item, or the end of the list'
    text = text[at:]
    wanted = 2 * len(text)  # of a long item few beginnings are parsed
    if len(text) > MOST_ITEM:
      cause += f' within {MOST_ITEM} characters'
      break
  if not (NEXT_END if number else END).fullmatch(text):
    raise ValueError(f'{path} item {number + 1} is not JSON: {cause}\n{OBJECTS}')


def _decoded(path: Path) -> Iterator[str]:
  """Yield pieces of a UTF-8 file, and '' at its end."""
  decoder, size = codecs.getincrementaldecoder('utf-8')(), 0
  for piece in itertools.chain(read_chunks(path, PIECE), [b'']):
    size += len(piece)
    try:
      yield decoder.decode(piece, not piece)
    except UnicodeDecodeError as error:
      raise not_utf8(path, size - len(error.object) + error.start) from None


def _media_root(root: str, folder: Path) -> str:
  """Return the start of relative media paths: `folder`, or `root` below it or elsewhere."""
  if not root:
    return str(folder)
  for full in candidates(root, folder):
    if os.path.isdir(full) or zipfile.is_zipfile(full):
      return full
  raise ValueError(
    f'root={root} is not a folder or .zip, in {folder} or elsewhere\n'
    'fix: give the folder or .zip that the media paths of the records start from'
  )


def _find_media(template: str, records: Iterator[tuple[str, dict]]) -> set[str]:
  """Return the paths of media that records name."""
  paths = set()
  for where, record in records:
    try:
      pieces = [] if isinstance(record, ValueError) else templates.fill(template, record, where)
    except ValueError:  # reported where documents are made
      pieces = []
    files = (file for p in pieces if p.kind in templates.MODALITY for file in clips.files_of(p.value))
    paths |= {file for file in files if isinstance(file, str)}
  return paths


def _hash_media(paths: set[str]) -> str:
  """Return a hash of the files that hold media; a missing one counts by its name."""
  present, missing = set(), set()
  for path in paths:
    place = containing_file(path)
    missing.add(path) if place is None else present.add(place[0])
  lost = hashlib.sha256(json.dumps(sorted(missing)).encode()).hexdigest() if missing else ''
  return hash_files(sorted(present)) + lost


def parallel(source, split: str) -> Corpus:
  """Open aligned texts: line n of train.en.gz and train.de.gz is one record.

  Its fields are the suffixes of the files, here en and de; lines are stripped.
  """
  path = source.path_of(split)
  files = {file.with_suffix('') if file.suffix in PACKED else file: file for file in find_files(path, '')}
  names = {name.suffix.removeprefix('.'): file for name, file in files.items()}
  if len(names) < max(2, len(files)) or '' in names:
    raise ValueError(
      f'path={path} matches {", ".join(file.name for file in files.values())}, not one file of each '
      "language\nfix: give a glob such as 'multi30k/train.*.gz'"
    )

  def records():
    columns = [map(str.strip, text_lines(file)) for file in names.values()]
    for number, row in enumerate(itertools.zip_longest(*columns), 1):
      if None in row:
        short = [file.name for file, line in zip(names.values(), row, strict=True) if line is None]
        raise ValueError(
          f'{", ".join(short)} has {number - 1} lines and others of path={path} have more\n'
          'fix: give files whose lines belong together'
        )
      yield f'{path} line {number}', dict(zip(names, row, strict=True))

  return Corpus(records, lambda: hash_files(list(names.values())))


def synthetic_stories(source, split: str) -> Corpus:
  """Generate stories with a question; `facts` is the number of sentences that the answer needs."""
  return generated(source, stories.records, source.seed)


def synthetic_sums(source, split: str) -> Corpus:
  """Generate sums of two numbers of two digits."""
  return generated(source, sums.records, source.seed)


def planted_canaries(source, split: str) -> Corpus:
  """Generate secrets, each of which occurs a number of times, or was drawn and left out."""
  return generated(source, canaries.records, source.seed, source.repeats, source.digits)


def text_lines(path: Path) -> Iterator[str]:
  """Yield the lines of a UTF-8 file, compressed or not, with their ends."""
  offset = 0
  for line in read_chunks(path, 0):
    try:
      yield line.decode('utf-8')
    except UnicodeDecodeError as error:
      raise not_utf8(path, offset + error.start) from None
    offset += len(line)


def tfds(source, split: str) -> Corpus:
  """Open a prepared TFDS data set in array_record format, without TensorFlow."""
  own = '' if split == 'train' else getattr(source, f'{split}_split')
  split = own or source.train_split
  builder = _tfds_builder(source)
  try:
    info = builder.info.splits[split]
  except (KeyError, ValueError):
    raise ValueError(
      f'split {split} of tfds path={source.path} does not exist\n'
      f'fix: train_split and valid_split can be made of {", ".join(builder.info.splits)}'
    ) from None

  rate = source.rate or _sample_rate(builder.info.features)

  whole = functools.partial(
    reading, f'{builder.info.full_name} {split}', 'readable', 'prepare the data set again'
  )

  def records():
    with whole():
      rows = builder.as_data_source(split=split)
      count = len(rows)
    for start in range(0, count, 256):
      numbers = range(start, min(start + 256, count))
      with whole():
        batch = rows.__getitems__(numbers)
      for number, fields in zip(numbers, batch, strict=True):
        yield f'{builder.info.full_name} {split} record {number}', Record(fields, rate=rate)

  def content():
    with whole():
      paths = sorted(map(os.fspath, info.filepaths))  # text: they may be URLs
    files = hash_files(paths)
    return f'{builder.info.full_name}-{split}-{files}'

  return Corpus(records, content)


def _sample_rate(features) -> int:
  """Return the sample rate of the first sound among the features that has one, else 0."""
  rates = (getattr(feature, 'sample_rate', 0) for _, feature in sorted(features.items()))
  return int(next(filter(None, rates), 0))


def _tfds_builder(source):
  """Return the builder of a prepared data set; ValueError with the command that prepares it."""
  import tensorflow_datasets as tfds

  options = {}
  if source.data_dir:
    options['data_dir'] = next(filter(os.path.isdir, candidates(source.data_dir)), source.data_dir)
  try:
    builder = tfds.builder(source.path, **options)
  except Exception as error:  # libraries parse what was prepared
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if getattr(error, 'name', '') == 'tensorflow':
      raise ValueError(
        f'path={source.path} has a feature that TFDS reads with TensorFlow only: {reason}\n'
        'fix: install tensorflow, or store sounds as Tensor(shape=(None,), dtype=np.int16)'
      ) from None
    raise ValueError(
      f'path={source.path} is not a TFDS data set that can be loaded: {reason}\n'
      'fix: give a name as in mnist, or name/config; data_dir is the folder that holds its folder'
    ) from None
  if not builder.is_prepared() or builder.info.file_format.value not in ('array_record', 'parquet'):
    arguments = ', '.join([repr(source.path), *(f'{k}={v!r}' for k, v in options.items())])
    raise ValueError(
      f'path={source.path} is not prepared as array_record in {builder.data_path}\n'
      'fix: python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder({arguments}, file_format='array_record').download_and_prepare()\""
    )
  return builder
