"""Files: found, hashed, and written so that a reader sees all of one or nothing."""

import glob
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path


def roots() -> list[str]:
  """Folders in which relative paths are looked up: the current one, then GPT_JAX_DATA if set."""
  return ['.', *filter(None, [os.environ.get('GPT_JAX_DATA', '')])]


def find(path: str, suffix: str) -> list[Path]:
  """The files, at least one, that a name, a glob or a folder (all `suffix` in it) means, sorted."""
  for root in roots():
    full = os.path.join(root, os.path.expanduser(path))
    pattern = os.path.join(glob.escape(full), '**', f'*{suffix}') if os.path.isdir(full) else full
    names = [full] if os.path.isfile(full) else glob.glob(pattern, recursive=True)
    if files := sorted(Path(name) for name in names if os.path.isfile(name)):
      return files
  raise ValueError(
    f'path={path} matches no file (a folder is searched for *{suffix})\n'
    'fix: give an existing file, folder or glob, or set GPT_JAX_DATA to the folder that holds it'
  )


def hash_files(paths: list[Path]) -> str:
  """Hex digest over the bytes of files in this order; their names and times play no part."""
  total = hashlib.sha256()
  for path in paths:
    with open(path, 'rb') as file:
      total.update(hashlib.file_digest(file, 'sha256').digest())
  return total.hexdigest()


def write_atomically(path: Path, write: Callable) -> None:
  """Calls write(file) on a temporary file beside `path` and moves it there, or leaves nothing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex[:12]}.tmp')
  try:
    with open(temporary, 'wb') as file:
      write(file)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
