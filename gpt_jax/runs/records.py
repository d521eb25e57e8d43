"""JSON on disk that survives a crash: whole files, lines of records, and the lock of a folder.

JSON has no NaN and no infinities: they are written as the strings "NaN", "Infinity", "-Infinity",
which is the proto3 JSON mapping (protobuf.dev/programming-guides/json), so that every file stays
valid JSON for any reader, `pandas.to_numeric` included. The readers here give the floats back.
"""

import bisect
import contextlib
import itertools
import json
import math
import os
import pathlib
import socket
import uuid

try:
  import fcntl
except ImportError:  # Windows: no flock, so nothing guards a folder there
  fcntl = None

NONFINITE = {'NaN': math.nan, 'Infinity': math.inf, '-Infinity': -math.inf}


def to_json(value):
  """The value in plain JSON types: tuples and arrays to lists, non-finite floats to strings."""
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
  """Inverse of `to_json` for the non-finite floats; lists stay lists."""
  if isinstance(value, dict):
    return {key: from_json(item) for key, item in value.items()}
  if isinstance(value, list):
    return [from_json(item) for item in value]
  return NONFINITE.get(value, value) if isinstance(value, str) else value


@contextlib.contextmanager
def _naming(path):
  """An OSError in here names the file; that of a write, as to a full disk, does not by itself."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or os.fspath(path)
    raise


@contextlib.contextmanager
def atomic(path):
  """A temporary file beside `path` that is moved there, or leaves nothing if there is an error.

  No two have one name: the processes of all containers may have the number 1.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}.tmp')
  try:
    with _naming(path), open(temporary, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_atomically(path, content):
  """Writes str or bytes so that a reader, or a crash, sees the old file or the new, never half."""
  if isinstance(content, str):  # byte-level models can sample lone surrogates
    content = content.encode('utf-8', 'backslashreplace')
  with atomic(path) as file:
    file.write(content)


def write_json(path, value):
  """Writes `value` as indented JSON, atomically."""
  write_atomically(path, json.dumps(to_json(value), indent=2, ensure_ascii=False) + '\n')


def read_json(path):
  """The JSON object of a file, or {} if there is no such file; a ValueError names a bad one."""
  fix = 'fix: restore that file, or give another --workdir'
  try:
    value = from_json(json.loads(path.read_text(encoding='utf-8')))
  except FileNotFoundError:
    return {}
  except (ValueError, OSError, RecursionError) as error:
    raise ValueError(f'{path} cannot be read: {" ".join(str(error).split())}\n{fix}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path} holds no JSON object\n{fix}')
  return value


def _line(record):
  text = json.dumps(to_json(record), ensure_ascii=False, allow_nan=False)
  return text.encode('utf-8', 'backslashreplace') + b'\n'


def _parse(line):
  """The record of one line, or None if the line was torn by a crash."""
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):
    return None
  return from_json(record) if isinstance(record, dict) else None


def read_lines(path):
  """Records of a .jsonl file, [] if there is none; skips a last line that is half-written."""
  lines = path.read_bytes().splitlines() if path.exists() else []
  records = [_parse(line) for line in lines]
  if None in records[:-1]:
    raise ValueError(
      f'{path} line {records.index(None) + 1} is not a JSON object\n'
      'fix: delete that line; resuming the run does it too'
    )
  return [record for record in records if record is not None]


def append_line(path, record):
  """Appends one record to a .jsonl file and forces it to disk."""
  with _naming(path), open(path, 'ab') as file:
    file.write(_line(record))
    file.flush()
    os.fsync(file.fileno())


def mend(path, keep=lambda record: True):
  """Rewrites a .jsonl file with its readable lines that `keep` accepts, atomically.

  Returns:
    The kept records, and how many lines were dropped: {'unreadable': n, 'rewound': n}.
  """
  content = path.read_bytes() if path.exists() else b''
  records = [_parse(line) for line in content.splitlines()]
  kept = [record for record in records if record is not None and keep(record)]
  mended = b''.join(_line(record) for record in kept)
  if mended != content:
    write_atomically(path, mended)
  unreadable = sum(record is None for record in records)
  return kept, {'unreadable': unreadable, 'rewound': len(records) - len(kept) - unreadable}


class StepLines:
  """A .jsonl file with one line a step, sorted, whatever the order in which steps are added.

  Evaluation and training report the same step separately, and training reports a step late, so a
  new record may have to join or precede the last lines. All lines from there on are written again
  in one call, which is as safe against a kill as appending one.
  """

  def __init__(self, path, last=math.inf):
    """Opens `path`, new or not, and drops what it has of steps later than `last`."""
    self.path = path
    kept, self.dropped = mend(path, lambda record: record.get('step', math.nan) <= last)
    self.steps = [record['step'] for record in kept]
    sizes = (len(_line(record)) for record in kept)
    self.offsets = [0, *itertools.accumulate(sizes)]  # of each line, and of the end
    path.touch()

  def add(self, record):
    """Adds one record; names that its step already has are replaced."""
    at = bisect.bisect_left(self.steps, record['step'])
    with _naming(self.path), open(self.path, 'r+b', buffering=0) as file:
      file.seek(self.offsets[at])
      later = file.read().splitlines(keepends=True)
      if self.steps[at : at + 1] == [record['step']]:
        record = json.loads(later.pop(0)) | record
      else:
        self.steps.insert(at, record['step'])
      lines = [_line(record), *later]
      self.offsets[at:] = itertools.accumulate(map(len, lines), initial=self.offsets[at])
      file.seek(self.offsets[at])
      content = b''.join(lines)
      while content:  # the last bytes of a disk take a part of it, without an error
        content = content[file.write(content) :]
      file.truncate()  # a merged line may be shorter by a digit

  def sync(self):
    """Forces the lines to disk."""
    with _naming(self.path), open(self.path, 'rb') as file:
      os.fsync(file.fileno())


def _flock(file):
  """Whether this process now has the lock, or the file system has no locks."""
  try:
    if fcntl:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:  # some network file systems
    return True
  return True


@contextlib.contextmanager
def locked(folder):
  """Holds `folder` for this process; a second holder gets a ValueError that names the first.

  The kernel drops the lock with its process, so kill -9 leaves nothing to clean up. Where there is
  no flock (Windows, some network file systems) nothing is locked.
  """
  with open(folder / '.lock', 'a+', encoding='utf-8') as file:
    file.seek(0)
    if not _flock(file):
      raise ValueError(
        f'workdir={folder} is being written by {file.read().strip() or "another process"}\n'
        'fix: wait for it, stop it, or give another --workdir'
      )
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    try:
      yield
    finally:
      if fcntl:  # closing alone would not do: a forked child shares the open file
        with contextlib.suppress(OSError):
          fcntl.flock(file, fcntl.LOCK_UN)
