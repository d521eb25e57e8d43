"""Input files: find them here or in a bucket, hash them, and stream rows into .npy files."""

import fnmatch
import functools
import glob
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt_jax.runs import records

log = logging.getLogger(__name__)
_WARNED: set[str] = set()  # subjects
SETTLED_NS = 2_000_000_000  # age of a change from which a later one has another time


def warn_once(message: str, subject: str = '') -> None:
  """Log a warning, once in a process for each subject; '' is the message itself."""
  if (subject or message) not in _WARNED:
    _WARNED.add(subject or message)
    log.warning(message)


def candidates(path: str, *folders: str | Path) -> list[str]:
  """Return the places of a path: below the folders, the current one and GPT_JAX_DATA, if set."""
  roots = [*folders, '.', *filter(None, [os.environ.get('GPT_JAX_DATA', '')])]
  return [os.path.join(root, os.path.expanduser(path)) for root in roots]


def find_files(path: str, *suffixes: str) -> list[Path]:
  """Return the sorted files, at least one, of a name, a glob or a folder (all of these suffixes in it).

  Files of a bucket, as in gs://bucket/texts or s3://bucket/a*.jsonl, are copied here first.
  """
  if '://' in path:
    return fetched(path, suffixes)
  for full in candidates(path):
    if os.path.isdir(full):
      below = [name for name in walk(full) if name.endswith(suffixes)]
      present = set(below)
      twice = {
        name for name in below if not name.endswith(suffixes[0]) and os.path.splitext(name)[0] in present
      }
      if twice:
        warn_once(
          f'{full}: {len(twice)} packed files lie beside their content and are left out: {min(twice)}'
        )
      names = [os.path.join(full, name) for name in below if name not in twice]
    else:
      names = find_glob(full)
    if names:
      return sorted(map(Path, names))
  raise _no_files(path, suffixes)


def find_glob(pattern: str) -> list[str]:
  """Return the files of a name or a glob; ** is any number of folders, each of which is read once."""
  if os.path.isfile(pattern):
    return [pattern]
  parts = pattern.split('/')
  if '**' not in parts:
    return list(filter(os.path.isfile, glob.glob(pattern)))
  start = parts.index('**')
  folders = filter(os.path.isdir, glob.glob('/'.join(parts[:start]) or '/') if start else ['.'])
  return [
    os.path.join(folder, name) if start else name
    for folder in folders
    for name in walk(folder)
    if _matches(name.split('/'), parts[start:])
  ]


def _matches(names: list[str], patterns: list[str]) -> bool:
  """Whether the parts of a path match those of a glob."""
  if not patterns or not names:
    return not names and set(patterns) <= {'**'}
  if patterns[0] == '**':
    return _matches(names, patterns[1:]) or _matches(names[1:], patterns)
  return fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def walk(folder: str) -> list[str]:
  """Return the files below a folder, as sorted relative paths with /; names that begin with . are left out.

  Links are followed, but each folder is read once, under its own name if it lies below `folder`: links
  to folders may form circles. Raises ValueError for a folder that may not be read.
  """
  names, visited, links, again, broken = [], set(), [folder], [], []

  def refuse(error):
    raise ValueError(
      f'{error.filename} cannot be read: {error.strerror}\nfix: change its permissions, or leave it out'
    ) from error

  while links:
    top = links.pop(0)
    for root, folders, files in os.walk(top, onerror=refuse):
      status = os.stat(root)
      if (status.st_dev, status.st_ino) in visited:
        again.append(root)
        folders.clear()
        continue
      visited.add((status.st_dev, status.st_ino))
      folders[:] = sorted(name for name in folders if not name.startswith('.'))
      links += [path for path in (os.path.join(root, name) for name in folders) if os.path.islink(path)]
      paths = (os.path.join(root, name) for name in files if not name.startswith('.'))
      for path in paths:
        if os.path.isfile(path):
          names.append(os.path.relpath(path, folder))
        elif os.path.islink(path):
          broken.append(path)
  if again:
    warn_once(f'{folder}: {len(again)} links to folders that are read already are left out, as {again[0]}')
  if broken:
    warn_once(f'{folder}: {len(broken)} links to files that do not exist are left out, as {broken[0]}')
  return sorted(names)


def _no_files(path: str, suffixes: tuple[str, ...]) -> ValueError:
  searched = ' '.join(f'*{suffix}' for suffix in suffixes)
  return ValueError(
    f'path={path} matches no file (a folder is searched for {searched})\n'
    'fix: give an existing file, folder or glob, or set GPT_JAX_DATA to the folder that holds it'
  )


def _unreadable_remote(url: str, error: Exception) -> ValueError:
  package = FETCHERS.get(url.partition('://')[0], 'what fsspec asks for')
  reason = ' '.join(str(error).split())
  return ValueError(f'path={url} cannot be read: {reason}\nfix: pip install {package}, and log in there')


def fetched(url: str, suffixes: tuple[str, ...]) -> list[Path]:
  """Return local copies of remote files, sorted by remote name; unchanged files are not copied again."""
  import fsspec

  folder = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'gpt_jax' / 'fetched'
  try:
    system, path = fsspec.core.url_to_fs(url)
    names = system.find(path) if system.isdir(path) else system.glob(path)
    chosen = [name for name in names if name.endswith(suffixes) or not system.isdir(path)]
    copies = [_copy(system, name, folder) for name in sorted(chosen)]
  except (ImportError, ValueError, OSError) as error:
    raise _unreadable_remote(url, error) from error
  if not copies:
    raise _no_files(url, suffixes)
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
    total.update(_digest(path, _version(path)))
  return total.hexdigest()


@functools.lru_cache(1 << 17)
def _digest(path: Path | str, version) -> bytes:
  """Return the sha256 of a file: in one process the splits of a source share their files."""
  with _open(path) as file:
    return hashlib.file_digest(file, 'sha256').digest()


def _version(path: Path | str) -> object:
  """Return what changes with the content of a local file; for a URL or a recent change, a new object.

  Clocks of file systems are coarse: a second change soon after the first may have the same time.
  """
  if '://' in str(path):
    return object()
  status = os.stat(path)
  if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < SETTLED_NS:
    return object()
  return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _open(path: Path | str):
  """Open a local file or the URL of a bucket to read bytes."""
  if '://' not in str(path):
    return open(path, 'rb')
  import fsspec

  try:
    return fsspec.open(str(path), 'rb')
  except (ImportError, ValueError) as error:
    raise _unreadable_remote(str(path), error) from error


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
