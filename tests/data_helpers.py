"""Fake tokenizers and caches for the tests of gpt_jax.data."""

import contextlib
import dataclasses
import types

import numpy as np
import pytest

from gpt_jax.data import media_io
from gpt_jax.tokenizers import MediaTokenizer, TokenizerConfig, Tokenizers, text


@contextlib.contextmanager
def two_lines(kind, *words, match=None):
  """The block raises an error of a cause line, which holds the words, and a fix line."""
  with pytest.raises(kind, match=match) as error:
    yield
  cause, fix = str(error.value).split('\n')
  assert fix.startswith('fix: ') and len(fix) > 10
  for word in words:
    assert str(word) in cause


class ByteText:
  """UTF-8 bytes as ids; records the lengths of the texts of each call."""

  kind, unparsed = 'bytes', ()

  def __init__(self):
    self.calls = []

  def encode_batch(self, texts):
    self.calls.append([len(text) for text in texts])
    return [list(text.encode()) for text in texts]


def byte_tokenizers(eos=True, padded=384, name='bytes'):
  """The parts of a Tokenizers that gpt_jax.data uses: 256 bytes, eos = 256."""
  specials = (('pad', 257), ('eos', 256)) if eos else ()
  vocabulary = types.SimpleNamespace(specials=specials, padded=padded)
  return types.SimpleNamespace(text=ByteText(), vocabulary=vocabulary, hash=name, start='eos')


@dataclasses.dataclass(frozen=True)
class FakeCache:
  """Tokens in memory: ids 1, 2, ..., each its position in the stream."""

  path: object
  ids: np.ndarray
  offsets: np.ndarray
  name: str = 'fake (train)'
  start: int = -1

  @classmethod
  def of(cls, sizes, folder):
    tokens = np.arange(1, sum(sizes) + 1, dtype=np.uint32)
    key = '-'.join(map(str, sizes))[:60] + f'-{hash(tuple(sizes)) & 0xFFFFFFFF}'
    return cls(folder / f'{key}.json', tokens, np.cumsum([0, *sizes[:-1]], dtype=np.int64))


def text_of(ids, eos=256):
  """Bytes of ids without eos."""
  return bytes(int(i) for i in ids if i != eos).decode()


class TinyImages(MediaTokenizer):
  """Images 4x4x1 as 2x2 positions: the mean of each block in 16 levels, by Q codebooks."""

  modality, kind = 'image', 'tiny'
  shape, grid, positions, feature_width = (4, 4, 1), (2, 2), 4, 4

  def __init__(self, books=1):
    self.codebooks = (16, 8)[:books]
    self.length = self.positions * books
    self.calls = []

  def fields(self):
    return {'books': len(self.codebooks)}

  def files(self):
    return {}

  def _blocks(self, images):
    assert images.dtype == np.uint8 and images.shape[1:] == self.shape
    blocks = images.reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(-1, 4, 4).astype(np.float32)

  def encode(self, images):
    self.calls.append(len(images))
    means = self._blocks(images).mean(-1)
    codes = np.stack([means // 16, means // 32], -1).astype(np.int32)
    return codes[..., : len(self.codebooks)]

  def features(self, images):
    return self._blocks(images) / 127.5 - 1


class TinySounds(MediaTokenizer):
  """Sounds of 100 Hz as 10 positions per second: the level of ten samples, in two codebooks."""

  modality, kind = 'audio', 'tiny'
  sample_rate, codes_per_second, max_positions, feature_width = 100, 10, 30, 3
  codebooks = (8, 4)

  def fields(self):
    return {}

  def files(self):
    return {}

  def _levels(self, wave):
    assert wave.dtype == np.float32 and wave.ndim == 1
    padded = np.pad(wave, (0, -len(wave) % 10)).reshape(-1, 10)
    return np.abs(padded).mean(1).clip(0, 0.999)

  def encode(self, waves):
    levels = [self._levels(wave) for wave in waves]
    return [np.stack([v * 8, v * 4], -1).astype(np.int32) for v in levels]

  def features(self, waves):
    return [np.stack([v, 2 * v, -v], -1).astype(np.float32) for v in map(self._levels, waves)]


def media_tokenizers(books=1, image=True, audio=True):
  """Real Tokenizers of bytes, TinyImages and TinySounds."""
  return Tokenizers.build(
    text.build(TokenizerConfig('bytes')),
    TinyImages(books) if image else None,
    TinySounds() if audio else None,
  )


def write_classes(folder):
  """Two folders of gray pictures, named like their classes."""
  for label, value in (('dark', 40), ('light', 200)):
    (folder / label).mkdir(parents=True)
    for number in range(30):
      picture = media_io.to_png(np.full((20, 24, 3), value + number, np.uint8))
      (folder / label / f'{number}.png').write_bytes(picture)
