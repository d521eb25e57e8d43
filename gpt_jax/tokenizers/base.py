"""What every text tokenizer shares: the interface, files and their digests, streaming.

A tokenizer is a value: its `files()` are all of its content, its hash is a digest of them, and a
saved folder that was altered is refused. No pickle anywhere: JSON, and SentencePiece's own format.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from gpt_jax.runs import records

DESCRIPTION = 'text.json'  # kind, size, specials and digests; the content lies beside it


class TextTokenizer:
  """The interface of a text tokenizer. A row of TOKENIZERS makes one.

  `kind` is the row's name, `size` the number of ids (0 to size - 1), `specials` the roles that
  its own ids play ({'eos': 50256}). User text never becomes a special id.
  """

  kind = ''
  size = 0
  specials: dict[str, int] = {}

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text."""
    raise NotImplementedError

  def files(self) -> dict[str, bytes]:
    """The content, as file name -> bytes; equal tokenizers give equal bytes."""
    raise NotImplementedError

  def _decode(self, ids):
    raise NotImplementedError

  def encode(self, text: str) -> list[int]:
    """Token ids of one text; ValueError if the tokenizer cannot represent it."""
    return self.encode_batch([text])[0]

  def decode(self, ids) -> str:
    """The text of ids, a list or an integer array; incomplete UTF-8 becomes U+FFFD.

    Raises ValueError for an id that the tokenizer does not have.
    """
    return self._decode(checked_ids(ids, self.size))

  @functools.cached_property
  def hash(self) -> str:
    """Hex digest of the content: equal tokenizers have equal hashes, in every process."""
    return fingerprint(self.kind, self.specials, self.files())

  def __eq__(self, other):
    return isinstance(other, TextTokenizer) and self.hash == other.hash

  def __hash__(self):
    return hash(self.hash)

  def save(self, folder) -> None:
    """Write the tokenizer into a folder that needs nothing else; `load` reads it back."""
    files = self.files()
    for name, content in files.items():
      write_file(pathlib.Path(folder) / name, content)
    description = {
      'kind': self.kind,
      'size': self.size,
      'specials': self.specials,
      'hash': self.hash,
      'files': {name: digest(content) for name, content in files.items()},
    }
    write_file(pathlib.Path(folder) / DESCRIPTION, to_json(description, indent=2))


class StreamDecoder:
  """Text as it is generated: `push` takes one id and returns the text that is now complete.

  `decode` maps a list of ids to text. An incomplete character decodes to U+FFFD, so U+FFFD at the
  end is held back until later ids complete it, or show that nothing will: a UTF-8 character has at
  most 4 bytes, so 3 ids can be waiting. All pushed text plus `flush()` equals `decode` of all ids
  (a tokenizer.json whose decoder rewrites text that is already out is the exception).
  """

  def __init__(self, decode: Callable[[list[int]], str]):
    self._decode = decode
    self._ids, self._shown, self._waiting = [], 0, 0

  def push(self, index: int) -> str:
    """Add one id and return the newly complete text, often ''."""
    self._ids.append(int(index))
    self._waiting += 1
    text = self._decode(self._ids)
    stable = len(text.rstrip('\ufffd'))
    if self._waiting > 3:
      stable = max(stable, len(text) - 3)
    piece = text[self._shown : stable]
    self._shown = max(self._shown, stable)
    if stable == len(text):
      self._waiting = 0
      self._forget(text)
    return piece

  def flush(self) -> str:
    """End the stream: return what was held back, and start anew."""
    piece = self._decode(self._ids)[self._shown :]
    self._ids, self._shown, self._waiting = [], 0, 0
    return piece

  def _forget(self, text):
    """Keep the cost of a push constant: drop old ids, if the rest decodes to the same text."""
    if len(self._ids) < 64:
      return
    recent = self._ids[-16:]
    context = self._decode(recent)
    if context and text.endswith(context):
      self._ids, self._shown = recent, len(context)


def checked_ids(ids, size: int) -> list[int]:
  """Ids as a list of int; ValueError unless they are one-dimensional integers in 0 .. size - 1."""
  array = np.asarray(ids)
  if not array.size:
    return []
  if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
    raise ValueError(
      f'decode takes one row of integer ids, not {array.dtype} of shape {array.shape}\n'
      'fix: decode one row at a time'
    )
  wrong = array[(array < 0) | (array >= size)]
  if wrong.size:
    raise ValueError(
      f'token id {wrong[0]} is outside the tokenizer of {size} ids\n'
      f'fix: give ids 0 to {size - 1}, from the tokenizer that made them'
    )
  return array.tolist()


def checked_text(text: str) -> str:
  """The text itself; ValueError if it has a lone surrogate, which no UTF-8 file can hold."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'the text has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}\n'
      "fix: read files with encoding='utf-8' and errors='replace'"
    ) from None
  return text


def fingerprint(kind: str, specials: dict[str, int], files: dict[str, bytes]) -> str:
  """Hex digest of everything that decides what a text tokenizer does."""
  digests = {name: digest(content) for name, content in files.items()}
  return digest(to_json({'kind': kind, 'specials': specials, 'files': digests}))


def digest(content: bytes) -> str:
  """SHA-256 in hex."""
  return hashlib.sha256(content).hexdigest()


def to_json(content, indent: int = 0) -> bytes:
  """JSON in one fixed spelling, so that equal content gives equal bytes."""
  if indent:
    return json.dumps(content, sort_keys=True, indent=indent).encode() + b'\n'
  return json.dumps(content, sort_keys=True, separators=(',', ':')).encode()


def read_file(path, fix: str) -> bytes:
  """The bytes of a file; FileNotFoundError or ValueError if it is missing or empty."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path} does not exist or is no file\nfix: {fix}')
  content = path.read_bytes()
  if not content:
    raise ValueError(f'{path} is empty\nfix: {fix}')
  return content


def read_json(path, fix: str):
  """The content of a JSON file; FileNotFoundError or ValueError with the cause and the fix."""
  content = read_file(path, fix)
  try:
    return json.loads(content)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is not JSON: {error}\nfix: {fix}') from None


def write_file(path, content: bytes) -> None:
  """Write a file whole or not at all, making its folder."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  records.write_atomically(path, content)
