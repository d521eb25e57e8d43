"""Sources of arrays whose rows are records: .npz and MNIST's idx files, checked before unpacking."""

import math
import zipfile
from pathlib import Path

import numpy as np

from gpt_jax.data.files import find_files, hash_files
from gpt_jax.data.splits import Corpus, Record
from gpt_jax.data.text_files import check_unpacked, open_unpacked
from gpt_jax.runs.reading import reading

MOST_AXES = 8
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # that NumPy writes


def arrays(source, split: str) -> Corpus:
  """Open the rows of an .npz of equally long arrays, or of MNIST's idx files of images and labels."""
  files = find_files(source.path_of(split), '.npz')
  columns = _npz(files[0]) if files[0].suffix == '.npz' and len(files) == 1 else _idx(files)
  lengths = {name: len(column) for name, column in columns.items()}
  if len(set(lengths.values())) != 1:
    raise ValueError(
      f'path={source.path_of(split)} has arrays of different lengths: {lengths}\n'
      'fix: give arrays with one row for each record'
    )

  def records():
    for number in range(next(iter(lengths.values()))):
      fields = {name: column[number] for name, column in columns.items()}
      yield f'{files[0]} row {number}', Record(fields, rate=source.rate)

  return Corpus(records, lambda: hash_files(files))


def _npz(path: Path) -> dict[str, np.ndarray]:
  """Return the arrays of an .npz."""
  with reading(path, 'a readable .npz', 'write it with numpy.savez, without Python objects'):
    with zipfile.ZipFile(path) as archive:
      _check_members(archive, path.stat().st_size)
    with np.load(path) as file:
      columns = {name: file[name] for name in file.files}
  if not columns or not all(column.ndim for column in columns.values()):
    raise ValueError(
      f'{path} has no arrays, or some without rows: {list(columns)}\n'
      'fix: write arrays with one row for each record'
    )
  return columns


def _check_members(archive: zipfile.ZipFile, packed: int) -> None:
  """Raise ValueError unless each member is an array of the size in its header."""
  members = archive.infolist()
  check_unpacked(sum(member.file_size for member in members), packed)
  for member in members:
    name = member.filename
    if member.compress_type not in METHODS:
      raise ValueError(f'{name} is packed by method {member.compress_type}')
    with archive.open(member) as file:
      is_first = np.lib.format.read_magic(file) == (1, 0)
      read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
      shape, _, dtype = read(file)
      needed, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
      if needed != held and not dtype.hasobject:
        raise ValueError(f'{name} of shape {shape} needs {needed} bytes and holds {held}')


def _idx(files: list[Path]) -> dict[str, np.ndarray]:
  """Return the images [N, Y, X, 1] and labels [N] of idx files, told apart by their names."""
  columns = {}
  for path in files:
    fields = [f for word, f in (('image', 'image'), ('label', 'label')) if word in path.name]
    if len(fields) != 1 or fields[0] in columns:
      raise ValueError(
        f'{path} is neither the one .npz, nor the one idx file of images or of labels, in '
        f'{[file.name for file in files]}\n'
        "fix: give one .npz, or a glob such as 'mnist/train-*-ubyte.gz'"
      )
    columns[fields[0]] = _read_idx(path)
  if 'image' in columns and columns['image'].ndim == 3:
    columns['image'] = columns['image'][..., None]
  return columns


def _read_idx(path: Path) -> np.ndarray:
  """Read one idx file of bytes (yann.lecun.com/exdb/mnist); ValueError for another format."""
  with reading(path, 'a readable file', 'fetch it again'):
    with open_unpacked(path) as file:
      content = file.read()
  rank = content[3] if len(content) > 3 else 0
  start = 4 + 4 * rank
  known = content[:3] == b'\0\0\x08' and 0 < rank <= MOST_AXES and len(content) >= start
  shape = np.frombuffer(content[4:start], '>u4').tolist() if known else []
  if not known or len(content) != start + math.prod(shape):
    raise ValueError(
      f'{path} is not a complete idx file of unsigned bytes\nfix: fetch it again, or give an .npz'
    )
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
