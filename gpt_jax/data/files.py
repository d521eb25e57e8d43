"""Input files: find them here or in a bucket, hash them, and stream rows into .npy files."""

import glob
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt_jax.runs import records


def candidates(path: str, *folders: str | Path) -> list[str]:
  """Return the places of a path: below the folders, the current one and GPT_JAX_DATA, if set."""
  roots = [*folders, '.', *filter(None, [os.environ.get('GPT_JAX_DATA', '')])]
  return [os.path.join(root, os.path.expanduser(path)) for root in roots]


def find_files(path: str, suffix: str) -> list[Path]:
  """Return the sorted files, at least one, of a name, a glob or a folder (all `suffix` in it).

  Files of a bucket, as in gs://bucket/texts or s3://bucket/a*.jsonl, are copied here first.
  """
  if '://' in path:
    return fetched(path, suffix)
  for full in candidates(path):
    pattern = os.path.join(glob.escape(full), '**', f'*{suffix}') if os.path.isdir(full) else full
    names = [full] if os.path.isfile(full) else glob.glob(pattern, recursive=True)
    if files := sorted(Path(name) for name in names if os.path.isfile(name)):
      return files
  raise _no_files(path, suffix)


def _no_files(path: str, suffix: str) -> ValueError:
  return ValueError(
    f'path={path} matches no file (a folder is searched for *{suffix})\n'
    'fix: give an existing file, folder or glob, or set GPT_JAX_DATA to the folder that holds it'
  )


def _unreadable_remote(url: str, error: Exception) -> ValueError:
  package = FETCHERS.get(url.partition('://')[0], 'what fsspec asks for')
  reason = ' '.join(str(error).split())
  return ValueError(f'path={url} cannot be read: {reason}\nfix: pip install {package}, and log in there')


def fetched(url: str, suffix: str) -> list[Path]:
  """Return local copies of remote files, sorted by remote name; unchanged files are not copied again."""
  import fsspec

  folder = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'gpt_jax' / 'fetched'
  try:
    system, path = fsspec.core.url_to_fs(url)
    names = system.find(path) if system.isdir(path) else system.glob(path)
    chosen = [name for name in names if name.endswith(suffix) or not system.isdir(path)]
    copies = [_copy(system, name, folder) for name in sorted(chosen)]
  except (ImportError, ValueError, OSError) as error:
    raise _unreadable_remote(url, error) from error
  if not copies:
    raise _no_files(url, suffix)
  return copies


def refuse_remote(path: str) -> None:
  """Raise ValueError for media in a bucket."""
  if '://' in path:
    raise ValueError(
      f'path={path}: pictures and sounds are not read from a bucket\n'
      'fix: mount it, or copy it, and give the folder'
    )


def _copy(system, name: str, folder: Path) -> Path:
  """Return the local copy of one remote file in its present version, under its own name."""
  version = hashlib.sha256(f'{system.unstrip_protocol(name)} {system.ukey(name)}'.encode())
  copy = folder / version.hexdigest()[:32] / name.rpartition('/')[2]
  if not copy.exists():
    copy.parent.mkdir(parents=True, exist_ok=True)
    with records.open_atomic(copy) as file:
      system.get_file(name, file.name)
  return copy


def hash_files(paths: list[Path | str]) -> str:
  """Return a hex digest of the bytes of files in this order, without their names and times.

  URLs are given as text: Path would turn gs:// into gs:/.
  """
  total = hashlib.sha256()
  for path in paths:
    with _open(path) as file:
      total.update(hashlib.file_digest(file, 'sha256').digest())
  return total.hexdigest()


def _open(path: Path | str):
  """Open a local file or the URL of a bucket to read bytes."""
  if '://' not in str(path):
    return open(path, 'rb')
  import fsspec

  try:
    return fsspec.open(str(path), 'rb')
  except (ImportError, ValueError) as error:
    raise _unreadable_remote(str(path), error) from error


def not_utf8(path: Path, offset: int) -> ValueError:
  """Return the error for a text file that is not UTF-8."""
  return ValueError(
    f'{path} is not UTF-8: bad byte at offset {offset}\n'
    f'fix: convert it, as in: iconv -f latin1 -t utf-8 {path}'
  )


def containing_file(path: str) -> tuple[Path, str] | None:
  """Return (file, '') of a path, or (.zip, member) where a .zip holds it; None if there is none."""
  for full in map(Path, candidates(path)):
    if full.is_file():
      return full, ''
    for parent in full.parents:
      if parent.suffix == '.zip' and parent.is_file():
        return parent, full.relative_to(parent).as_posix()
  return None


class NpyWriter:
  """Stream rows into a .npy file whose length is not known in advance."""

  def __init__(self, file: BinaryIO, rows: np.ndarray):
    """rows [n, ...]: an array of the type and row shape to come, not written."""
    self._file, self._count = file, 0
    self._header = {'descr': rows.dtype.str, 'fortran_order': False}
    self._row_shape = rows.shape[1:]
    self._write_header()

  def write(self, rows: np.ndarray) -> None:
    """Append rows [n, ...]."""
    self._count += len(rows)
    self._file.write(np.ascontiguousarray(rows).tobytes())

  def finish(self) -> None:
    """Rewrite the header with the final length, for which numpy leaves room."""
    self._file.seek(0)
    self._write_header()
    self._file.seek(0, os.SEEK_END)

  def _write_header(self):
    header = {**self._header, 'shape': (self._count, *self._row_shape)}
    np.lib.format.write_array_header_1_0(self._file, header)


FETCHERS = {'gs': 'gcsfs', 'gcs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs', 'hf': 'huggingface_hub'}
