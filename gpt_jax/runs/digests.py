"""Digests of binary files, so that a run reads again only exactly what was written.

JSON holds its own digest (records.py). Binary files are listed in a JSON file: a checkpoint's folder and
`write_or_verify`'s files in a manifest, {"files": {path: {"bytes": n, "sha256": hex}}, "sha256": digest of
the files}, which is only trusted if its bytes are exactly those that its own content renders to. What can be
made again is made again, with a warning; anything else is refused. sha256 takes a second for 1.3 GB on one
core; several files are read at once.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib

from gpt_jax.runs import records

log = logging.getLogger(__name__)
SYSTEM_FILES = ('.DS_Store', '._*', '.nfs*', 'Thumbs.db', 'desktop.ini')  # file managers and NFS leave them
READERS = 4  # files that are read at once: hashing releases the interpreter's lock


class Corrupt(ValueError):
  """Files that are not what was written."""


def digest_files(folder, full=True, names=None):
  """Return {relative path: {'bytes': size and, if `full`, 'sha256': of the content}} of all files.

  names: relative paths of those to include; missing ones are left out. Default: all but SYSTEM_FILES.
  """
  every = (path for path in folder.rglob('*') if not is_system_file(path))
  paths = every if names is None else (folder / name for name in names)
  paths = sorted(path for path in paths if path.is_file())
  entries = {str(path.relative_to(folder)): {'bytes': path.stat().st_size} for path in paths}
  if full:
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
      for entry, digest in zip(entries.values(), pool.map(_sha256, paths), strict=True):
        entry['sha256'] = digest
  return entries


def check_weights(path: str, digest: str, name: str) -> None:
  """Raise FileNotFoundError or ValueError unless the weights of this digest are in the folder."""
  fix = f'put the folder of the {name} back, as it was when this run began'
  if not os.path.isdir(path):
    raise FileNotFoundError(f'the {name} is not in {path}\nfix: {fix}')
  if (actual := weights_digest(pathlib.Path(path))) != digest:
    raise ValueError(f'{path} has weights of sha256 {actual}, not {digest}\nfix: {fix}')


def weights_digest(folder: pathlib.Path) -> str:
  """Return the sha256 of the safetensors files of a folder; FileNotFoundError without one."""
  files = sorted(folder.glob('*.safetensors'))
  if not files:
    raise FileNotFoundError(
      f'{folder} has no safetensors\nfix: name a folder with config.json and model.safetensors'
    )
  total = hashlib.sha256()
  for path in files:
    with open(path, 'rb') as file:
      total.update(hashlib.file_digest(file, 'sha256').digest())
  return total.hexdigest()


def is_system_file(path):
  """Whether an operating system, rather than a run or a user, left a file."""
  return any(path.match(pattern) for pattern in SYSTEM_FILES)


def write_manifest(path, folder, names=None):
  """Write the manifest of a folder's files, or of these, as they are now, atomically."""
  records.write_atomically(path, _render(digest_files(folder, names=names)))


def read_manifest(path):
  """Return the entries of a manifest, as `digest_files` does; Corrupt if any bit was altered."""
  content = path.read_bytes()
  try:
    files = json.loads(content)['files']
    if content != _render(files):
      raise ValueError('altered')
  except Exception as error:
    raise Corrupt(f'file {path.parent.name}/{path.name} is changed') from error
  return files


def digest_of_manifest(path):
  """Return the sha256, in hex, of a manifest and so of all its files; Corrupt if any bit was altered."""
  read_manifest(path)
  return hashlib.sha256(path.read_bytes()).hexdigest()


def verify_folder(path, folder, full=True):
  """Raise Corrupt, naming a file, unless a folder's files match the manifest at `path`.

  full: compare content; else only names and sizes.
  """
  compare(read_manifest(path), digest_files(folder, full))


def write_or_verify(path, write):
  """Return the path of a file that can be made again: write(file) writes it unless its manifest matches."""
  try:
    verify_file(path)
  except (OSError, Corrupt) as error:
    if path.exists():
      log.warning('writing %s again: %s', path, str(error).splitlines()[0])
    write_file(path, write)
  return path


def write_file(path, write):
  """Write a file by write(file), and its manifest beside it, atomically each."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with records.open_atomic(path) as file:
    write(file)
  write_manifest(_manifest_of(path), path.parent, [path.name])


def verify_file(path):
  """Raise Corrupt, or OSError for a missing manifest, unless a file is as `write_file` wrote it."""
  compare(read_manifest(_manifest_of(path)), digest_files(path.parent, names=[path.name]))


def compare(expected, actual):
  """Raise Corrupt, naming a file, unless two results of `digest_files` agree in what `actual` has."""
  for name in sorted(actual.keys() | expected.keys()):
    if name not in actual or name not in expected:
      raise Corrupt(f'file {name} is {"foreign" if name in actual else "missing"}')
    if any(actual[name][key] != expected[name].get(key) for key in actual[name]):
      raise Corrupt(f'file {name} is changed')


def total_bytes(path):
  """Return the bytes of all files of a manifest; 0 if it is missing or corrupt."""
  try:
    return sum(entry['bytes'] for entry in read_manifest(path).values())
  except (OSError, Corrupt):
    return 0


def _manifest_of(path):
  return path.with_name(f'{path.name}.json')


def _render(files):
  text = json.dumps(files, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()
  return (json.dumps({'files': files, 'sha256': digest}, sort_keys=True, indent=1) + '\n').encode()


def _sha256(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
