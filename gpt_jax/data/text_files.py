"""Unpack files, read texts in UTF-8 or UTF-16, and say what files are that are not text."""

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Iterator
from pathlib import Path

from gpt_jax.data import formats
from gpt_jax.data.files import warn_once
from gpt_jax.runs.reading import reading

SAMPLE = 4096  # bytes around a bad one that tell what is wrong
PACKED = ('', '.gz', '.bz2', '.xz', '.zst')  # ends of names of text files
# Unpacked sizes up to ALWAYS bytes are accepted (MNIST's images are 47 MB), larger ones up to MOST_TIMES
# the packed size (4.7 times for MNIST, 1,000 times for zeros).
ALWAYS, MOST_TIMES = 1 << 26, 200
PIECE = 1 << 16  # bytes unpacked at once
MARKS = (  # byte order marks; that of UTF-32 begins with that of UTF-16
  (codecs.BOM_UTF8, 'utf-8-sig'),
  (codecs.BOM_UTF32_LE, 'utf-32'),
  (codecs.BOM_UTF32_BE, 'utf-32'),
  (codecs.BOM_UTF16_LE, 'utf-16'),
  (codecs.BOM_UTF16_BE, 'utf-16'),
)


def suffixes(suffix: str) -> tuple[str, ...]:
  """Return the suffixes of text files of a kind: '.txt', '.txt.gz', .."""
  return tuple(suffix + packed for packed in PACKED)


def without_empty(files: list[Path]) -> list[Path]:
  """Return the files that are not empty, and log the others; ValueError if all are empty."""
  empty = [file for file in files if not file.stat().st_size]
  if len(empty) == len(files):
    raise ValueError(f'{files[0]} is empty\nfix: remove it from path, or fill it')
  if empty:
    warn_once(f'{len(empty)} of {len(files)} files are empty and left out, the first {empty[0]}')
  return [file for file in files if file not in empty]


def read_chunks(path: Path, size: int) -> Iterator[bytes]:
  """Yield the content of a text file in UTF-8, `size` bytes at a time or by lines for 0, without its mark."""
  with reading(path, 'a readable file', 'fetch it again'), open_unpacked(path) as file:
    start = file.peek(4)
    mark, encoding = next(((mark, name) for mark, name in MARKS if start.startswith(mark)), (b'', ''))
    if encoding:
      warn_once(f'{path} has a byte order mark and is read as {encoding.removesuffix("-sig").upper()}')
    if encoding in ('', 'utf-8-sig'):
      file.read(len(mark))
    else:
      with reading(path, f'{encoding.upper()} text', 'save it as UTF-8'):
        file = io.BytesIO(file.read().decode(encoding).encode())
    yield from iter(lambda: file.read(size), b'') if size else file


def open_unpacked(path: Path) -> io.BufferedReader:
  """Open a file, unpacked, to read its bytes once; reading too many of them raises ValueError."""
  with open(path, 'rb') as file:
    head = file.read(formats.HEAD)
  unpack = UNPACK.get(formats.describe_content(head)[0])
  if unpack is None:
    return open(path, 'rb')
  return io.BufferedReader(_Unpacked(unpack(path, 'rb'), path.stat().st_size), PIECE)


class _Unpacked(io.RawIOBase):
  """The content of a packed file, up to a size that real data have."""

  def __init__(self, file, packed: int):
    self._file, self._packed, self._size = file, packed, 0

  def readable(self):
    return True

  def readinto(self, buffer):
    piece = self._file.read(len(buffer))
    buffer[: len(piece)] = piece
    self._size += len(piece)
    check_unpacked(self._size, self._packed, 'fetch it again; if it is right, unpack it')
    return len(piece)

  def close(self):
    self._file.close()
    super().close()


def check_unpacked(size: int, packed: int, fix: str = '') -> None:
  """Raise ValueError for a compression ratio that real data do not have."""
  if size > max(ALWAYS, MOST_TIMES * packed):
    cause = f'{packed} bytes unpack to {size} or more, over {MOST_TIMES} times as many'
    raise ValueError(f'{cause}\nfix: {fix}' if fix else cause)


def _open_zstandard(path: Path, mode: str):
  try:
    import pyarrow
  except ImportError as error:
    raise ValueError(
      f"a Zstandard file needs the package pyarrow: {error}\nfix: pip install 'gpt_jax[hf]', or unpack it"
    ) from None
  return pyarrow.input_stream(str(path), compression='zstd')


UNPACK = {
  'a gzip file': gzip.open,
  'a bzip2 file': bz2.open,
  'an xz file': lzma.open,
  'a Zstandard file': _open_zstandard,
}


def not_utf8(path: Path, offset: int) -> ValueError:
  """Return the error for a text file with a bad byte at this offset of its unpacked content."""
  with open(path, 'rb') as file:
    head = file.read(formats.HEAD)
    file.seek(max(0, offset - SAMPLE))
    sample = head + file.read(2 * SAMPLE)
  what = formats.describe_content(head)[0]
  packed = what in UNPACK
  if what and not packed:
    cause, fix = f'is {what}, not text', 'unpack it, convert it to UTF-8 text, or leave it out of path'
  elif packed or _is_end(path, offset):
    cause, fix = f'is not UTF-8: bad byte at offset {offset}', 'repair it, or fetch it again'
  else:
    cause, fix = f'is not UTF-8: bad byte at offset {offset}', _advice(path, sample)
  return ValueError(f'{path} {cause}\nfix: {fix}')


def _is_end(path, offset):
  """Whether a file ends within the character at this offset."""
  with open(path, 'rb') as file:
    file.seek(offset)
    rest = file.read(8)
  try:
    rest.decode('utf-8')
  except UnicodeDecodeError as error:
    return error.start == 0 and error.reason == 'unexpected end of data'
  return False


def _advice(path, sample):
  """Return how to convert a file, by a sample of its bytes."""
  controls = sum(byte < 32 and byte not in b'\t\n\f\r' for byte in sample)
  if sample.count(0) > len(sample) // 4:
    return f'convert it, as in: iconv -f utf-16le -t utf-8 {path}'
  if controls > len(sample) // 100:
    return 'it is not text: leave it out of path'
  if not sample.decode('utf-8', 'ignore').isascii():
    return 'other characters are UTF-8: repair or remove this one'
  return f'convert it, as in: iconv -f cp1252 -t utf-8 {path}'
