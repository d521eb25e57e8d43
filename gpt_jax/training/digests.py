"""Digests of a folder's files: what was written is what is read, or it is not trusted.

A manifest is JSON, {"files": {path: {"bytes": n, "sha256": hex}}, "sha256": digest of the files},
and is itself only trusted where it is, byte for byte, what its own content gives. sha256 takes a
second for 1.3 GB on one core; several files are read at once.
"""

import concurrent.futures
import hashlib
import json

from gpt_jax.runs import records

READERS = 4  # files that are read at once: hashing leaves the interpreter's lock


class Corrupt(ValueError):
  """Files that are not what was written."""


def digest_files(folder, full=True):
  """{relative path: {'bytes': its size, 'sha256': of its content, if `full`}} of all files."""
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  found = {str(path.relative_to(folder)): {'bytes': path.stat().st_size} for path in files}
  if full:
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
      for entry, digest in zip(found.values(), pool.map(_sha256, files), strict=True):
        entry['sha256'] = digest
  return found


def write_manifest(path, folder):
  """Write the manifest of a folder's files as they are now, atomically."""
  records.write_atomically(path, _render(digest_files(folder)))


def read_manifest(path):
  """The files that a manifest names, as `digest_files` gives them; Corrupt if it was altered."""
  content = path.read_bytes()
  try:
    manifest = json.loads(content)
    if 'files' not in manifest and all(isinstance(entry, str) for entry in manifest.values()):
      return {name: {'sha256': entry} for name, entry in manifest.items()}  # as before sizes
    if content != _render(manifest['files']):
      raise ValueError('it is not what was written')
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise Corrupt(f'file {path.parent.name}/{path.name} is changed') from error
  return manifest['files']


def verify_folder(path, folder, full=True):
  """Raise Corrupt, naming a file, unless a folder's files are those of its manifest.

  full: compare what they hold; else only which there are and their sizes.
  """
  written = read_manifest(path)
  told = all('bytes' in entry for entry in written.values())  # not in manifests of before sizes
  found = digest_files(folder, full or not told)
  for name in sorted(found.keys() | written.keys()):
    if name not in found or name not in written:
      raise Corrupt(f'file {name} is {"foreign" if name in found else "missing"}')
    for key in found[name].keys() & written[name].keys():
      if found[name][key] != written[name][key]:
        raise Corrupt(f'file {name} is changed')


def total_bytes(path):
  """Bytes of all files of a manifest; 0 where there is none, or it tells no sizes."""
  try:
    return sum(entry.get('bytes', 0) for entry in read_manifest(path).values())
  except (OSError, Corrupt):
    return 0


def _render(files):
  text = json.dumps(files, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()
  return (json.dumps({'files': files, 'sha256': digest}, sort_keys=True, indent=1) + '\n').encode()


def _sha256(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
