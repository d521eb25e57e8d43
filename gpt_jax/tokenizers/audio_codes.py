"""Audio tokenizers: stacked log-mel frames <-> codes.

Decoded sounds have one peak level and phases by Griffin-Lim: level and phase are not encoded.

Letters: N samples or vectors, J frames, M mel bands, P positions of a clip, Q codebooks, K codes of
one, C = stack * M entries of a position, B clips of a batch, Z numbers of a learned code.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from gpt_jax.tokenizers import kmeans
from gpt_jax.tokenizers.base import MediaTokenizer, pack_arrays
from gpt_jax.tokenizers.spectrogram import FLOOR

FILE = 'audio.safetensors'
BATCH = 32  # clips that a learned tokenizer takes at a time


class AudioTokenizer(MediaTokenizer):
  """Standardized stacked log-mel frames; a subclass adds the quantizer.

  `cfg` is an AudioConfig; `statistics` are the mean and standard deviation of each band over the
  training clips, float32 [2, M].
  """

  modality = 'audio'

  def __init__(self, cfg, statistics: np.ndarray):
    self.cfg = dataclasses.replace(cfg, path='')
    self.statistics = checked(statistics, (2, cfg.mels))
    self.spectrogram = cfg.spectrogram
    self.sample_rate, self.seconds, self.pattern = cfg.sample_rate, cfg.seconds, cfg.pattern
    self.samples_per_code = cfg.hop * cfg.stack
    self.codes_per_second = cfg.sample_rate / self.samples_per_code
    self.max_positions = self.positions(round(cfg.seconds * cfg.sample_rate))
    self.feature_width = cfg.stack * cfg.mels

  def positions(self, samples: int) -> int:
    """Return the number of positions of a clip of this many samples."""
    return self.spectrogram.frames(samples, self.cfg.stack) // self.cfg.stack

  def features(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Clips float [N] -> stacked log-mel float32 [P, C] each, of mean 0 and deviation 1 by band."""
    for number, wave in enumerate(waves):
      check_clip(np.asarray(wave), number, self.positions(len(wave)) <= self.max_positions, self)
    mean_M, deviation_M = self.statistics
    return [
      ((mel_JM - mean_M) / deviation_M).reshape(-1, self.feature_width)
      for mel_JM in self.spectrogram.log_mel(waves, self.cfg.stack)
    ]

  def encode(self, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Clips float [N] at `sample_rate` -> codes int32 [P, Q] each.

    Raises ValueError for a clip that is empty, longer than `seconds`, or not finite.
    """
    return self._quantize(self.features(waves)) if len(waves) else []

  def decode(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes [P, Q] of each clip -> clips float32 [P * hop * stack], deterministic."""
    return self.spectrogram.to_waveforms(self.decode_mel(codes))

  def decode_mel(self, codes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Codes [P, Q] of each clip -> log-mel float32 [J, M]; ValueError for codes out of range."""
    checked = [self.checked_codes(codes_PQ, None) for codes_PQ in codes]
    mean_M, deviation_M = self.statistics
    frames = (values.reshape(-1, self.cfg.mels) for values in self._values(checked))
    return [np.maximum(f_JM * deviation_M + mean_M, np.float32(math.log(FLOOR))) for f_JM in frames]

  @functools.cached_property
  def silence_C(self) -> np.ndarray:
    """The features of a position of silence, float32."""
    mean_M, deviation_M = self.statistics
    return np.tile((np.float32(math.log(FLOOR)) - mean_M) / deviation_M, self.cfg.stack)

  def join_with_silence(self, waves: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Return standardized frames float32 [J, M] of all clips, `gap` positions of silence before each.

    Autoencoders are trained on crops of it.
    """
    silence_PC = np.tile(self.silence_C, (gap, 1))
    parts = [part_PC for f_PC in self.features(waves) for part_PC in (silence_PC, f_PC)]
    return np.concatenate(parts).reshape(-1, self.cfg.mels)

  def fields(self):
    """Return the settings; the arrays are in `files`."""
    return settings(self.cfg)

  def files(self):
    """Return all arrays in one file."""
    return {FILE: pack_arrays(self.arrays())}

  def arrays(self) -> dict[str, np.ndarray]:
    """Return the arrays in `files`."""
    return {'statistics': self.statistics}

  def _quantize(self, features):
    raise NotImplementedError

  def _values(self, codes):
    raise NotImplementedError


class FrameTokenizer(AudioTokenizer):
  """The nearest of K stacked frames, then the nearest of K remainders for each further codebook.

  `centroids` are float32 [Q, K, C].
  """

  kind = 'frames'

  def __init__(self, cfg, statistics: np.ndarray, centroids: np.ndarray):
    super().__init__(cfg, statistics)
    self.codebooks = (cfg.codes,) * cfg.books
    self.centroids = checked(centroids, (cfg.books, cfg.codes, self.feature_width))

  def arrays(self):
    """Return the statistics and centroids."""
    return {**super().arrays(), 'centroids': self.centroids}

  def _quantize(self, features):
    rest_NC = np.concatenate(features)
    columns = []
    for centroids_KC in self.centroids:
      columns.append(kmeans.assign(rest_NC, centroids_KC))
      rest_NC = rest_NC - centroids_KC[columns[-1]]
    codes_NQ = np.stack(columns, 1).astype(np.int32)
    return np.split(codes_NQ, np.cumsum([len(f) for f in features])[:-1])

  def _values(self, codes):
    books_Q = np.arange(len(self.codebooks))
    return [self.centroids[books_Q, codes_PQ].sum(1) for codes_PQ in codes]


class LearnedAudioTokenizer(AudioTokenizer):
  """An autoencoder with finite scalar quantization, of parameters {path: array}.

  Every clip runs with silence on both sides, as in training, padded to one length: it compiles once,
  and no clip depends on others.
  """

  kind = 'fsq'

  def __init__(self, cfg, statistics: np.ndarray, codec_cfg, params: dict):
    super().__init__(cfg, statistics)
    described = (codec_cfg.levels, codec_cfg.stride, codec_cfg.shape[1:])
    if described != (cfg.levels, cfg.stack, (cfg.mels,)):
      raise ValueError(
        f'the autoencoder has levels, stride and bands {described}, not '
        f'{(cfg.levels, cfg.stack, (cfg.mels,))}\nfix: make it with audio.autoencoder_config'
      )
    self.codebooks = (math.prod(cfg.levels),)
    self.codec_cfg = codec_cfg
    self.params = {path: np.asarray(value, np.float32) for path, value in sorted(params.items())}
    self.lead = codec_cfg.blocks  # positions that a code sees on each side
    self.length = self.max_positions + 3 * self.lead

  def fields(self):
    """Return the settings, with those of the autoencoder."""
    return {**super().fields(), 'autoencoder': dataclasses.asdict(self.codec_cfg)}

  def arrays(self):
    """Return the statistics and the parameters."""
    return {**super().arrays(), **self.params}

  @functools.cached_property
  def _coder(self):
    from gpt_jax.tokenizers.learned.coder import Coder

    return Coder(self.codec_cfg, self.params, BATCH)

  def _quantize(self, features):
    return [codes_P[:, None] for codes_P in self._encode(features)]

  def _values(self, codes):
    decode = lambda codes_NP: self._coder.decode(codes_NP).reshape(*codes_NP.shape, self.feature_width)
    return self._run(decode, [codes_PQ[:, 0] for codes_PQ in codes], self._silent_code)

  def _encode(self, features):
    frames = lambda x_NPC: x_NPC.reshape(len(x_NPC), -1, self.cfg.mels)
    return self._run(lambda x_NPC: self._coder.encode(frames(x_NPC)), features, self.silence_C)

  @functools.cached_property
  def _silent_code(self):
    """The code of silence with silence around it."""
    silence_PC = np.tile(self.silence_C, (self.max_positions, 1))
    return self._encode([silence_PC])[0][self.max_positions // 2]

  def _run(self, function, clips, padding):
    """Call a function of [N, P, ...] on clips [P, ...] with `padding` around them; cut to the clips."""
    length = max([self.length, *(len(clip) + 2 * self.lead for clip in clips)])
    padding = np.asarray(padding)
    silence = lambda count: np.broadcast_to(padding, (count, *padding.shape))
    padded = [
      np.concatenate([silence(self.lead), clip, silence(length - self.lead - len(clip))]) for clip in clips
    ]
    rows = function(np.stack(padded)) if padded else []
    return [row[self.lead : self.lead + len(clip)] for row, clip in zip(rows, clips, strict=True)]


def check_clip(wave: np.ndarray, number: int, fits: bool, tokenizer) -> None:
  """Raise ValueError unless a clip is a row of finite float samples that fits into audio.seconds."""
  if wave.ndim != 1 or not len(wave) or not np.issubdtype(wave.dtype, np.floating):
    raise ValueError(
      f'clip {number} is {wave.dtype} of shape {wave.shape}, not a row of float samples\n'
      'fix: give what gpt_jax.data.media_io.read_sound returns'
    )
  if not fits:
    raise ValueError(
      f'clip {number} lasts {len(wave) / tokenizer.sample_rate:.4g} s, longer than '
      f'audio.seconds={tokenizer.seconds}\nfix: raise audio.seconds, or cut or drop the clip'
    )
  if not np.isfinite(wave).all():
    raise ValueError(f'clip {number} has NaN or infinite samples\nfix: repair or drop it')


def settings(cfg) -> dict:
  """Return the fields of an AudioConfig that a tokenizer saves; newer ones only where they are set."""
  fields = dataclasses.asdict(cfg)
  newer = {name for name in ('pattern', 'longest') if fields[name] == getattr(type(cfg), name)}
  return {name: value for name, value in fields.items() if name not in ('kind', 'path', *newer)}


def checked(array, shape: tuple[int, ...]) -> np.ndarray:
  """Return the array as float32; ValueError unless it is finite and of this shape."""
  array = np.asarray(array, np.float32)
  if array.shape != shape or not np.isfinite(array).all():
    raise ValueError(
      f'an array of an audio tokenizer has shape {array.shape} (expected {shape}) or is not finite\n'
      'fix: make the tokenizer again'
    )
  return array
