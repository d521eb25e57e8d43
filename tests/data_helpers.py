"""Stand-ins that the tests of gpt_jax.data share."""

import dataclasses
import types

import numpy as np


class ByteText:
  """UTF-8 bytes as ids; remembers the sizes of what it was given."""

  kind = 'bytes'

  def __init__(self):
    self.calls = []

  def encode_batch(self, texts):
    self.calls.append([len(text) for text in texts])
    return [list(text.encode()) for text in texts]


def byte_tokenizers(eos=True, padded=384, name='bytes'):
  """What gpt_jax.data uses of a Tokenizers: 256 bytes, eos = 256."""
  specials = (('pad', 257), ('eos', 256)) if eos else ()
  vocabulary = types.SimpleNamespace(specials=specials, padded=padded)
  return types.SimpleNamespace(text=ByteText(), vocabulary=vocabulary, hash=name)


@dataclasses.dataclass(frozen=True)
class FakeCache:
  """Tokens in memory: ids 1, 2, .. so that each names its place in the stream."""

  path: object
  ids: np.ndarray
  offsets: np.ndarray
  name: str = 'fake (train)'

  @classmethod
  def of(cls, sizes, folder):
    tokens = np.arange(1, sum(sizes) + 1, dtype=np.uint32)
    key = '-'.join(map(str, sizes))[:60] + f'-{hash(tuple(sizes)) & 0xFFFFFFFF}'
    return cls(folder / f'{key}.tokens', tokens, np.cumsum([0, *sizes[:-1]], dtype=np.int64))


def text_of(ids, eos=256):
  """Bytes of ids without eos."""
  return bytes(int(i) for i in ids if i != eos).decode()
