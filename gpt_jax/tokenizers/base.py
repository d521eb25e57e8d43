"""The interface of tokenizers, their files with digests, and streaming.

A tokenizer is a value: `kind`, `fields()` and `files()` are all of its content, its hash is a digest
of them, and a saved folder that was altered is refused. No pickle anywhere: JSON, safetensors, and
SentencePiece's own format.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.runs import records
from gpt_jax.runs.reading import check_types, reading

KEYS = {'kind', 'fields', 'files', 'hash'}  # of the JSON file that describes a saved tokenizer
MODALITIES = ('image', 'audio')
FIX = 'name a folder with a saved tokenizer, and restore it if a file was altered'


class SavedTokenizer:
  """A tokenizer that can be hashed, compared and saved."""

  modality = ''  # text, image or audio; names its JSON file
  kind = ''  # a row of the table of its modality

  def fields(self) -> dict:
    """Return JSON-able settings; together with `files` all of the content."""
    raise NotImplementedError

  def files(self) -> dict[str, bytes]:
    """Return the content as file name -> bytes; equal tokenizers give equal bytes."""
    raise NotImplementedError

  @functools.cached_property
  def hash(self) -> str:
    """A hex digest of the content, equal for equal tokenizers in every process."""
    return _hash(self.modality, self.kind, self.fields(), _digests(self.files()))

  def __eq__(self, other):
    return isinstance(other, SavedTokenizer) and self.hash == other.hash

  def __hash__(self):
    return hash(self.hash)

  def save(self, folder) -> None:
    """Write the tokenizer into a folder that needs nothing else."""
    folder, files = pathlib.Path(folder), self.files()
    for name, content in files.items():
      write_file(folder / name, content)
    content = {'kind': self.kind, 'fields': self.fields(), 'files': _digests(files), 'hash': self.hash}
    write_file(folder / f'{self.modality}.json', to_json(content, indent=2))


class TokenizerKind(NamedTuple):
  """A row of a table of tokenizers: what makes one."""

  build: Callable[..., SavedTokenizer]  # (config, function that returns training data)
  restore: Callable[[dict, dict[str, bytes]], SavedTokenizer]  # (fields, files)
  from_model: Any = None  # of kinds that are trained: see the tables


def load_tokenizer(folder, modality: str, kinds: dict[str, TokenizerKind]) -> SavedTokenizer:
  """Read what `save` wrote. FileNotFoundError or ValueError, naming what differs, if it was altered."""
  path = pathlib.Path(folder).expanduser() / f'{modality}.json'
  saved = read_json(path, FIX)
  problem = lambda file, cause: ValueError(f'{file} {cause}\nfix: {FIX}')
  if not isinstance(saved, dict) or set(saved) != KEYS or saved['kind'] not in kinds:
    raise problem(path, f'does not describe a tokenizer of kind {", ".join(kinds)}')
  kind, fields, digests = saved['kind'], saved['fields'], saved['files']
  if _hash(modality, kind, fields, digests) != saved['hash']:
    content = f'kind={kind}, fields={fields} and its files do not give hash={saved["hash"]}'
    raise problem(path, f'was altered after it was saved: {content}')
  files = {name: read_file(path.parent / pathlib.Path(name).name, FIX) for name in digests}
  for name, actual in _digests(files).items():
    if actual != digests[name]:
      cause = f'was altered after it was saved: its sha256 is {actual}, not {digests[name]}'
      raise problem(path.with_name(name), cause)
  tokenizer = kinds[kind].restore(fields, files)
  if tokenizer.hash != saved['hash']:
    raise problem(path, f'is not restored as it was saved: hash={tokenizer.hash}')
  return tokenizer


def _digests(files):
  return {name: digest(content) for name, content in files.items()}


def _hash(modality, kind, fields, digests):
  """Return the digest of a tokenizer; the path of weights that stay in their folder is no part of it."""
  fields = {name: value for name, value in fields.items() if name != 'path'}
  return digest(to_json([modality, kind, fields, digests]))


class TextTokenizer(SavedTokenizer):
  """The interface of a text tokenizer. User text never becomes a special id."""

  modality = 'text'
  size = 0  # number of ids, 0 to size - 1
  specials: dict[str, int] = {}  # roles that its own ids play, as in {'eos': 50256}
  unparsed: tuple[str, ...] = ()  # spellings of special tokens that are encoded as plain text
  reserved: tuple[int, ...] = ()  # ids that its authors set aside for others to use
  chat_template = ''  # Jinja source of an imported tokenizer; '' = none

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text."""
    raise NotImplementedError

  def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
    """Return (ids, places int [T, 2]) of each text: the first character of a token, and the one after it."""
    raise NotImplementedError

  def token_bytes(self) -> list[bytes]:
    """Return the bytes that each id adds to a text; ValueError where a decoder rewrites its neighbors."""
    raise NotImplementedError

  def special_tokens(self) -> dict[str, str]:
    """Return the spellings of special tokens by their names in chat templates, as in bos_token."""
    return {}

  def _decode(self, ids):
    raise NotImplementedError

  def fields(self):
    """Return the size and the special ids."""
    return {'size': self.size, 'specials': self.specials}

  def encode(self, text: str) -> list[int]:
    """Return the token ids of one text; ValueError if the tokenizer cannot represent it."""
    return self.encode_batch([text])[0]

  def decode(self, ids) -> str:
    """Return the text of ids, a list or an integer array; incomplete UTF-8 becomes U+FFFD.

    Raises ValueError for an id that the tokenizer does not have.
    """
    return self._decode(checked_ids(ids, self.size))


class MediaTokenizer(SavedTokenizer):
  """The interface of an image or audio tokenizer: an item becomes codes [P, Q].

  P: positions of one item, in reading order or in time. Q: codebooks.
  """

  codebooks: tuple[int, ...] = ()  # number of codes of each of the Q codebooks
  pattern = 'flat'  # the order of the codes of an item: a row of codebook_patterns.PATTERNS

  @property
  def ranges(self) -> tuple[tuple[str, int], ...]:
    """The id ranges that a vocabulary needs for it: (kind, count) of each codebook."""
    return tuple((f'{self.modality}{q}', count) for q, count in enumerate(self.codebooks))

  def checked_codes(self, codes, *axes: int | None) -> np.ndarray:
    """Return codes [*axes, Q] as int32; ValueError for another shape (None: any size), type or range."""
    codes, sizes = np.asarray(codes), (*axes, len(self.codebooks))
    if codes.ndim != len(sizes) or any(n not in (None, m) for n, m in zip(sizes, codes.shape, strict=True)):
      raise ValueError(
        f'codes of shape {codes.shape} are not {sizes}, where None is any size\n'
        'fix: give codes of `encode`, one column for each codebook'
      )
    if codes.size and not np.issubdtype(codes.dtype, np.integer):
      raise ValueError(f'codes are {codes.dtype}, not integers\nfix: give codes of `encode`')
    wrong = (codes < 0) | (codes >= np.array(self.codebooks))
    if wrong.any():
      raise ValueError(
        f'{self.modality} code {codes[wrong][0]} is outside the codebooks of {self.codebooks} codes\n'
        'fix: give codes of the tokenizer that made them, without the offset of the vocabulary'
      )
    return codes.astype(np.int32)


def pack_arrays(arrays) -> bytes:
  """Return arrays as the bytes of a safetensors file: equal arrays give equal bytes."""
  from safetensors.numpy import save

  return save({name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())})


def unpack_arrays(content: bytes) -> dict:
  """Invert `pack_arrays`."""
  from safetensors.numpy import load

  return load(content)


class StreamDecoder:
  """Decode text during generation: `push` takes one id and returns the text that it completes.

  `decode` maps a list of ids to text. An incomplete character decodes to U+FFFD, so U+FFFD at the end
  is held back until later ids complete it, or until 3 ids are held back, since a UTF-8 character has at
  most 4 bytes. All pushed text plus `flush()` equals `decode` of all ids, except with a tokenizer.json
  whose decoder rewrites earlier text.
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
    """Return the text that was held back, and start a new stream."""
    piece = self._decode(self._ids)[self._shown :]
    self._ids, self._shown, self._waiting = [], 0, 0
    return piece

  def _forget(self, text):
    """Keep the cost of a push constant: drop old ids if the rest decodes to the same text."""
    if len(self._ids) < 64:
      return
    recent = self._ids[-16:]
    context = self._decode(recent)
    if context and text.endswith(context):
      self._ids, self._shown = recent, len(context)


def checked_ids(ids, size: int) -> list[int]:
  """Return ids as a list of int; ValueError unless they are one row of integers in 0 .. size - 1."""
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
  """Return the text; ValueError if it has a lone surrogate, which no UTF-8 file can hold."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'the text has a lone surrogate U+{ord(text[error.start]):04X} at character {error.start}\n'
      "fix: read files with encoding='utf-8' and errors='replace'"
    ) from None
  return text


def digest(content: bytes) -> str:
  """Return the SHA-256 in hex."""
  return hashlib.sha256(content).hexdigest()


def to_json(content, indent: int = 0) -> bytes:
  """Return JSON in one fixed spelling, so that equal content gives equal bytes."""
  if indent:
    return json.dumps(content, sort_keys=True, indent=indent).encode() + b'\n'
  return json.dumps(content, sort_keys=True, separators=(',', ':')).encode()


def read_file(path, fix: str) -> bytes:
  """Return the bytes of a file; FileNotFoundError or ValueError if it is missing or empty."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path} does not exist or is not a file\nfix: {fix}')
  content = path.read_bytes()
  if not content:
    raise ValueError(f'{path} is empty\nfix: {fix}')
  return content


def read_json(path, fix: str, expected=object):
  """Return the content of a JSON file; FileNotFoundError or ValueError with the fix.

  expected: types that `reading.check_types` checks.
  """
  content = read_file(path, fix)
  with reading(path, 'JSON', fix):
    content = json.loads(content)
  with reading(path, 'what was saved', fix):
    return check_types(content, expected)


def write_file(path, content: bytes) -> None:
  """Write a file atomically, making its folder."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  records.write_atomically(path, content)
