"""JSON files that survive a crash: atomic whole files, lines of records, and a folder's lock.

JSON has no NaN and no infinities: they are written as the strings "NaN", "Infinity", "-Infinity",
the proto3 JSON mapping (protobuf.dev/programming-guides/json), so that every file is valid JSON for
any reader, `pandas.to_numeric` included. The readers here return floats again.

The last entry of each object, "sha256", holds 16 hex digits of the digest of the bytes before it. Readers
refuse an object that does not match its digest, remove the entry, and accept an object without one.
"""

import bisect
import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import socket
import tempfile
import uuid

from gpt_jax.runs.reading import check_types, reading

try:
  import fcntl
except ImportError:  # Windows has no flock: nothing guards a folder there
  fcntl = None

NONFINITE = {'NaN': math.nan, 'Infinity': math.inf, '-Infinity': -math.inf}
DIGEST_ENTRY = re.compile(rb'"sha256": "([0-9a-f]{16})"\s*\}\s*\Z')  # the end of an object
ALTERED = (
  'was altered after it was written\n'
  'fix: restore it; or, to use it as it is, delete its last entry, "sha256", and the comma before'
)


# --------------------------------------------------------------------------------------- values


def to_json(value):
  """Convert to plain JSON types: tuples and arrays to lists, non-finite floats to strings."""
  if isinstance(value, dict):
    return {str(key): to_json(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
  if value is None or isinstance(value, (str, bool, int, float)):
    return value
  if hasattr(value, 'tolist'):  # numpy and jax, scalars too
    return to_json(value.tolist())
  return os.fspath(value)


def from_json(value):
  """Invert `to_json` for the non-finite floats; lists stay lists."""
  if isinstance(value, dict):
    return {key: from_json(item) for key, item in value.items()}
  if isinstance(value, list):
    return [from_json(item) for item in value]
  return NONFINITE.get(value, value) if isinstance(value, str) else value


def flatten(tree, prefix=''):
  """Flatten nested dicts: {'a': {'b': 1}} -> {'a.b': 1}; an empty dict is a leaf."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def diff(old, new):
  """Return {dotted key: (old value, new value)} where two configs differ; None for a missing key."""
  old, new = (flatten(to_json(config)) for config in (old, new))
  pairs = {key: (old.get(key), new.get(key)) for key in old | new}
  return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def format_object(value, indent=None):
  """Return a dict as the bytes of a JSON object that ends with its digest, and a newline."""
  assert 'sha256' not in value, 'the digest has this name'
  text = json.dumps(to_json(value) | {'sha256': ''}, indent=indent, ensure_ascii=False, allow_nan=False)
  text = to_bytes(text)
  start, end = text[: text.rindex(b'"sha256"')], b'\n}\n' if indent else b'}\n'
  return start + f'"sha256": "{_digest(start)}"'.encode() + end


def parse_object(content):
  """Return the dict of a JSON object without its digest; ValueError if it is not one or was altered."""
  value = check_types(json.loads(content, parse_int=_parse_int), dict)
  if value.pop('sha256', None) is not None:
    entry = DIGEST_ENTRY.search(content)
    if not entry or _digest(content[: entry.start()]) != entry[1].decode():
      raise ValueError(ALTERED)
  return from_json(value)


def has_digest(path):
  """Return whether a file ends as `format_object` ends it; an edit that is to be accepted removes that."""
  return bool(DIGEST_ENTRY.search(pathlib.Path(path).read_bytes()[-64:]))


def _parse_int(text):
  if len(text) > 300:  # a float overflows
    raise ValueError(f'a number has {len(text)} digits')
  return int(text)


def _digest(content):
  return hashlib.sha256(content).hexdigest()[:16]


# ---------------------------------------------------------------------------------- whole files


@contextlib.contextmanager
def _name_in_errors(path):
  """Add the file's name to an OSError; a failed write, as to a full disk, lacks it."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or os.fspath(path)
    raise


@contextlib.contextmanager
def open_atomic(path):
  """Open a temporary file that replaces `path` at the end, or leaves nothing after an error.

  Its name is unique: process numbers repeat between containers.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}.tmp')
  try:
    with _name_in_errors(path), open(temporary, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def to_bytes(content):
  """Encode a str; bytes stay as they are."""
  # Byte-level models can sample lone surrogates.
  return content.encode('utf-8', 'backslashreplace') if isinstance(content, str) else content


def check_writable(name, folder):
  """Raise ValueError if a folder cannot be made or written; nothing is made. name: for the error."""
  if not folder:
    return
  path = pathlib.Path(folder).expanduser().absolute()
  try:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    tempfile.TemporaryFile(dir=existing).close()
  except OSError as error:
    raise ValueError(f'{name} cannot be written: {error}\nfix: give another file or folder') from None


def write_atomically(path, content):
  """Write str or bytes so that a reader, or a crash, sees the old file or the new, never half."""
  with open_atomic(path) as file:
    file.write(to_bytes(content))


def write_json(path, value):
  """Write a dict as indented JSON, atomically."""
  write_atomically(path, format_object(value, indent=2))


def read_json(path, expected=dict):
  """Return the JSON object of a file, or {} if there is no such file.

  expected: types that `check_types` checks. Raises ValueError, which names the file, for anything else and
  for a file that was altered.
  """
  with reading(path, 'readable', 'restore that file, or give another --workdir'):
    try:
      content = path.read_bytes()
    except FileNotFoundError:
      return {}
    return check_types(parse_object(content), expected)


# --------------------------------------------------------------------------------- record lines


def _parse_line(line, expected=dict):
  """Return the record of a line, or None if it is not a JSON object of these types, or was altered."""
  try:
    return check_types(parse_object(line), expected)
  except (ValueError, RecursionError):
    return None


def read_lines(path, skip_unreadable=False, expected=dict):
  """Return the records of a .jsonl file, [] if there is none; a half-written last line is skipped.

  skip_unreadable: skip unreadable and altered lines anywhere, instead of a ValueError. expected: types of
  each record that `check_types` checks.
  """
  content, rows = path.read_bytes() if path.exists() else b'', []
  for number, line in enumerate(content.splitlines(keepends=True), 1):
    if skip_unreadable or not line.endswith(b'\n'):  # a newline is written last
      rows += [record for record in [_parse_line(line, expected)] if record is not None]
    else:
      fix = 'delete that line; resuming the run does it too'
      with reading(f'{path} line {number}', 'a record', fix):
        rows.append(check_types(parse_object(line), expected))
  return rows


def append_line(path, record):
  """Append one record to a .jsonl file and force it to disk; a line that a kill has torn is dropped first."""
  with _name_in_errors(path), open(path, 'a+b') as file:
    _end_last_line(file)
    file.write(format_object(record))
    file.flush()
    os.fsync(file.fileno())


def _end_last_line(file):
  """Drop half a record that a kill has torn; add the newline to any other last line without one."""
  size = file.seek(0, os.SEEK_END)
  file.seek(max(0, size - 1))
  if file.read() in (b'', b'\n'):
    return
  file.seek(0)
  last = file.read().rpartition(b'\n')[2]
  if last.startswith(b'{') and _parse_line(last) is None:  # else a user's own text, as of sample --out
    file.truncate(size - len(last))
  else:
    file.write(b'\n')


def repair_lines(path, last_step=None, expected=dict):
  """Rewrite a .jsonl file without unreadable or altered lines and, if given, lines after `last_step`.

  expected: types of a record, as in `read_lines`.
  Returns the remaining records and how many lines were dropped: {'unreadable': n, 'rewound': n}.
  """
  content = path.read_bytes() if path.exists() else b''
  lines = [_parse_line(line, expected) for line in content.splitlines()]
  readable = [record for record in lines if record is not None]
  remaining = [r for r in readable if last_step is None or r.get('step', math.nan) <= last_step]
  repaired = b''.join(format_object(record) for record in remaining)
  if repaired != content:
    write_atomically(path, repaired)
  dropped = {'unreadable': len(lines) - len(readable), 'rewound': len(readable) - len(remaining)}
  return remaining, dropped


class StepLines:
  """A .jsonl file with one line a step, sorted, whatever the order in which steps are added.

  Evaluation and training report the same step separately, and training reports a step late, so a
  new record may join or precede the last lines. All lines from there on are rewritten in one call,
  which is as safe against a kill as appending one.
  """

  def __init__(self, path, last_step=math.inf):
    """Open `path`, new or not, and drop its lines after `last_step`."""
    self.path = path
    remaining, self.dropped = repair_lines(path, last_step, {'step': int})
    self.steps = [record['step'] for record in remaining]
    sizes = (len(format_object(record)) for record in remaining)
    self.offsets = [0, *itertools.accumulate(sizes)]  # of each line, and of the end
    path.touch()

  def add(self, record):
    """Add one record; names that its step already has are replaced."""
    at = bisect.bisect_left(self.steps, record['step'])
    with _name_in_errors(self.path), open(self.path, 'r+b', buffering=0) as file:
      file.seek(self.offsets[at])
      later = file.read().splitlines(keepends=True)
      if self.steps[at : at + 1] == [record['step']]:
        record = (_parse_line(later.pop(0)) or {}) | record
      else:
        self.steps.insert(at, record['step'])
      lines = [format_object(record), *later]
      self.offsets[at:] = itertools.accumulate(map(len, lines), initial=self.offsets[at])
      file.seek(self.offsets[at])
      content = b''.join(lines)
      while content:  # a nearly full disk takes a part of it, without an error
        content = content[file.write(content) :]
      file.truncate()  # a merged line may be shorter by a digit

  def sync(self):
    """Force the lines to disk."""
    with _name_in_errors(self.path), open(self.path, 'rb') as file:
      os.fsync(file.fileno())


# ----------------------------------------------------------------------------------------- lock


@contextlib.contextmanager
def locked(folder):
  """Lock `folder` for this process; a second process gets a ValueError that names the first.

  The kernel drops the lock with its process, so kill -9 leaves nothing to clean up. Without flock
  (Windows, some network file systems) nothing is locked.
  """
  with open(folder / '.lock', 'a+', encoding='utf-8') as file:
    file.seek(0)
    try:
      if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f'workdir={folder} is being written by {file.read().strip() or "another process"}\n'
        'fix: wait for it, stop it, or give another --workdir'
      ) from error
    except OSError:  # some network file systems have no locks
      pass
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    try:
      yield
    finally:
      if fcntl:  # closing is not enough: a forked child shares the open file
        with contextlib.suppress(OSError):
          fcntl.flock(file, fcntl.LOCK_UN)
