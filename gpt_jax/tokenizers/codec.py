"""Sounds as the codes of other people's codecs: of a folder of transformers, or arrays of codes alone.

A pretrained codec is frozen: its weights stay in their folder, whose path and sha256 a tokenizer keeps.

Letters: N samples, P positions of an item, Q codebooks.
"""

import functools
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from gpt_jax.runs import digests
from gpt_jax.tokenizers import base, readers
from gpt_jax.tokenizers.audio_codes import check_clip, settings
from gpt_jax.tokenizers.base import MediaTokenizer
from gpt_jax.tokenizers.spectrogram import Spectrogram


class CodeTokenizer(MediaTokenizer):
  """Codes as they are; `cfg` is an AudioConfig."""

  modality, kind = 'audio', 'codes'
  sample_rate = 0  # there is no sound

  def __init__(self, cfg):
    self.cfg, self.pattern = cfg, cfg.pattern
    self.codebooks, self.max_positions = (cfg.codes,) * cfg.books, cfg.longest

  def fields(self):
    """Return the settings."""
    return settings(self.cfg)

  def files(self):
    """Return none: the fields are all of the content."""
    return {}

  def encode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes [P, Q] -> int32 [P, Q] each; ValueError for another number of codebooks or range."""
    return [self.checked_codes(codes_PQ, None) for codes_PQ in codes]

  def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes [P, Q] -> int32 [P, Q] each; ValueError for codes out of range."""
    return [self.checked_codes(codes_PQ, None) for codes_PQ in codes]


class CodecTokenizer(MediaTokenizer):
  """A pretrained codec: EnCodec, DAC or Mimi."""

  modality, kind = 'audio', 'codec'

  def __init__(self, path: str, digest: str, config: dict, books: int, pattern: str, seconds: float):
    """digest: of the weights. config: the codec's config.json. books: of its codebooks, the first."""
    from gpt_jax.interop.codecs import families

    self.path, self.digest, self.config = path, digest, config
    self.books, self.pattern, self.seconds = books, pattern, seconds
    self.spec = families.read_spec(config)
    if books > self.spec.books:
      raise ValueError(
        f'audio.books={books}: the codec in audio.path={path} has {self.spec.books}\nfix: give at most that'
      )
    self.codebooks, self.sample_rate = (self.spec.codes,) * books, self.spec.rate
    self.samples_per_code = self.spec.hop
    longest = math.ceil(seconds * (self.spec.rate / self.spec.hop)) * self.spec.hop
    self.max_positions = self.positions(longest)
    # Rounded down, so that a sound of the longest duration, their quotient, is not too long.
    self.codes_per_second = math.nextafter(self.max_positions * self.spec.rate / longest, 0)

  @classmethod
  def open(cls, cfg) -> 'CodecTokenizer':
    """Read the folder that an AudioConfig names; ValueError or FileNotFoundError if it is not whole."""
    if not cfg.path:
      raise ValueError(
        "audio.path='' with audio.kind=codec, which reads a codec from a folder\n"
        'fix: set audio.path to a folder of transformers with config.json and model.safetensors'
      )
    folder = readers.find_folder(cfg.path)
    config = base.read_json(folder / readers.CONFIG, 'name the folder of a codec, with config.json', {})
    return cls(str(folder), digests.weights_digest(folder), config, cfg.books, cfg.pattern, cfg.seconds)

  def positions(self, samples: int) -> int:
    """Return the number of positions of a clip of this many samples."""
    from gpt_jax.interop.codecs import chunks

    return chunks.count_rows(self.spec, samples)

  def fields(self):
    """Return all that the codes depend on, and where the weights are."""
    names = ('path', 'digest', 'config', 'books', 'pattern', 'seconds')
    return {name: getattr(self, name) for name in names}

  def files(self):
    """Return none: the weights stay where they are."""
    return {}

  @functools.cached_property
  def codec(self):
    """The weights; ValueError or FileNotFoundError if they are not those that were read before."""
    from gpt_jax.interop.codecs import codec

    digests.check_weights(self.path, self.digest, 'codec')
    return codec.Codec.load(pathlib.Path(self.path), self.spec)

  def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Clips float [N] at `sample_rate` -> codes int32 [P, Q] each.

    Raises ValueError for a clip that is empty, longer than `seconds`, or not finite.
    """
    for number, wave in enumerate(waves):
      check_clip(np.asarray(wave), number, self.positions(len(wave)) <= self.max_positions, self)
    return self.codec.encode([np.asarray(wave, np.float32) for wave in waves], self.books)

  def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes [P, Q] of each clip -> clips float32 [N], deterministic; ValueError for codes out of range.

    The channels of a stereo codec are averaged.
    """
    waves = self.codec.decode([self.checked_codes(codes_PQ, None) for codes_PQ in codes])
    return [wave if wave.ndim == 1 else wave.mean(1) for wave in waves]

  def decode_mel(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes [P, Q] of each clip -> log-mel float32 [J, M] of its sound, to look at."""
    return Spectrogram(self.sample_rate, 256, 100, 40).log_mel(self.decode(codes), 1)
