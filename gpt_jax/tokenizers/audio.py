"""The table of audio tokenizers.

All work on log-mel frames (`spectrogram`), standardized by band, `stack` of them to a position:
20 positions a second with the defaults. frames is k-means on stacked frames, with further codebooks
for the remainder of the first. fsq is an autoencoder with finite scalar quantization, trained by a
run of its own (`train.job=audio_tokenizer`). codec is a pretrained one (EnCodec, DAC, Mimi) of a
folder, which works on samples; codes are ids of any codec in the data (`{field:codes}`).

Letters: N samples, J frames, M mel bands.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from gpt_jax.tokenizers import kmeans
from gpt_jax.tokenizers.audio_codes import FILE, AudioTokenizer, FrameTokenizer, LearnedAudioTokenizer
from gpt_jax.tokenizers.base import TokenizerKind, load_tokenizer, unpack_arrays
from gpt_jax.tokenizers.codebook_patterns import PATTERNS
from gpt_jax.tokenizers.codec import CodecTokenizer, CodeTokenizer
from gpt_jax.tokenizers.settings import changed_fields, check_effective, check_fields, load_own, not_trained
from gpt_jax.tokenizers.spectrogram import Spectrogram

SAMPLE_RATES = (50, 768_000)  # Hz, lowest and highest of sounds


@dataclasses.dataclass(frozen=True)
class AudioConfig:
  """The kind of audio tokenizer, and its front end."""

  kind: str = ''  # a row of AUDIO_TOKENIZERS; '' = no sound
  path: str = ''  # a saved tokenizer, or the run that trained one; '' makes one; codec: its folder
  sample_rate: int = 8000  # Hz; clips of other rates are resampled
  window: int = 256  # samples of a frame's Hann window
  hop: int = 100  # samples from frame to frame
  mels: int = 40  # bands of a frame
  stack: int = 4  # frames of a position
  codes: int = 1024  # frames, codes: entries of each codebook
  books: int = 1  # frames, codes, codec: codebooks, each for the remainder of those before it
  pattern: str = 'flat'  # order of the codes of several codebooks: a row of PATTERNS
  longest: int = 1500  # codes: positions of the longest item
  levels: tuple[int, ...] = (8, 5, 5, 5)  # fsq: levels of each number of a code
  seconds: float = 3.0  # the longest clip
  network_width: int = 128  # fsq: of the vectors of positions
  network_blocks: int = 2  # fsq: of the encoder; as many of the decoder

  def __post_init__(self):
    if not self.kind:
      check_effective('audio', self, self.fields_read)
      return
    least = {'stack': 1, 'codes': 2, 'books': 1, 'longest': 1, 'network_width': 1, 'network_blocks': 1}
    rules = (
      (
        'kind',
        self.kind in AUDIO_TOKENIZERS,
        f"give one of {', '.join(AUDIO_TOKENIZERS)}, or '' for no sound",
      ),
      *((name, getattr(self, name) >= number, f'give {number} or more') for name, number in least.items()),
      ('pattern', self.pattern in PATTERNS, f'give one of {", ".join(PATTERNS)}'),
      ('sample_rate', self.sample_rate <= SAMPLE_RATES[1], f'give at most {SAMPLE_RATES[1]}'),
      ('seconds', 0 < self.seconds < math.inf, 'give a duration above 0'),
      ('levels', min(self.levels, default=0) > 1, 'give at least one, each 2 or more, as in (8, 5, 5, 5)'),
    )
    check_fields('audio', self, rules)
    check_effective('audio', self, self.fields_read)
    try:
      _ = self.spectrogram
    except ValueError as error:
      raise ValueError(f'audio.{error}') from None

  @property
  def fields_read(self) -> set[str]:
    """The names of the fields that this kind reads."""
    return {*FIELDS_READ[self.kind]} if self.kind else set()

  @property
  def spectrogram(self) -> Spectrogram:
    """The front end."""
    return Spectrogram(self.sample_rate, self.window, self.hop, self.mels)


def fit_statistics(cfg: AudioConfig, waves: Sequence[np.ndarray]) -> np.ndarray:
  """Return the mean and standard deviation of each band over clips, float32 [2, M]."""
  if not len(waves):
    raise ValueError(
      f'audio.kind={cfg.kind} is made from training clips, and there are none\n'
      'fix: add a source with {name:audio} to the data, or set audio.path to a saved tokenizer'
    )
  mel_JM = np.concatenate(cfg.spectrogram.log_mel(waves, cfg.stack)).astype(np.float64)
  return np.stack([mel_JM.mean(0), np.maximum(mel_JM.std(0), 1e-3)]).astype(np.float32)


def build(cfg: AudioConfig, waves: Callable[[], Sequence[np.ndarray]] = tuple) -> AudioTokenizer:
  """Make the tokenizer that a config describes.

  `waves` returns the training clips, float [N] at cfg.sample_rate; it is called only if they are
  needed. Raises FileNotFoundError or ValueError for missing or invalid files.
  """
  if not cfg.kind:
    raise ValueError('audio.kind is empty\nfix: give one of ' + ', '.join(AUDIO_TOKENIZERS))
  return _load_own(cfg) if cfg.path and cfg.kind != 'codec' else AUDIO_TOKENIZERS[cfg.kind].build(cfg, waves)


def load(folder) -> AudioTokenizer:
  """Read what `save` wrote; ValueError if any of it was altered."""
  return load_tokenizer(folder, 'audio', AUDIO_TOKENIZERS)


def _build_frames(cfg, waves):
  clips = waves()
  statistics = fit_statistics(cfg, clips)
  empty = np.zeros((cfg.books, cfg.codes, cfg.stack * cfg.mels), np.float32)
  rest_NC = np.concatenate(FrameTokenizer(cfg, statistics, empty).features(clips))
  centroids = []
  for _ in range(cfg.books):
    centroids.append(kmeans.fit(rest_NC, cfg.codes))
    rest_NC = rest_NC - centroids[-1][kmeans.assign(rest_NC, centroids[-1])]
  return FrameTokenizer(cfg, statistics, np.stack(centroids))


def _load_own(cfg):
  tokenizer = load_own('audio', cfg, load)
  for name in changed_fields(cfg):
    if name != 'path' and getattr(cfg, name) != getattr(tokenizer.cfg, name):
      raise ValueError(
        f'audio.{name}={getattr(cfg, name)}, but the tokenizer in audio.path={cfg.path} has '
        f'{getattr(tokenizer.cfg, name)}\nfix: leave audio.{name} out: its settings are stored with it'
      )
  return tokenizer


def _restore_frames(fields, files):
  arrays = unpack_arrays(files[FILE])
  return FrameTokenizer(_config('frames', fields), arrays['statistics'], arrays['centroids'])


def _restore_learned(fields, files):
  from gpt_jax.tokenizers.learned.autoencoder import from_json

  fields = dict(fields)
  codec_cfg, arrays = from_json(fields.pop('autoencoder')), unpack_arrays(files[FILE])
  return LearnedAudioTokenizer(_config('fsq', fields), arrays.pop('statistics'), codec_cfg, arrays)


def _config(kind, fields):
  return AudioConfig(kind=kind, **fields | {'levels': tuple(fields['levels'])})


def autoencoder_config(cfg: AudioConfig, positions: int = 16):
  """Return the config of the autoencoder of kind fsq, trained on crops of this many positions.

  Crops must have silence between clips (`AudioTokenizer.join_with_silence`), as around encoded clips.
  """
  from gpt_jax.tokenizers.learned.autoencoder import AutoencoderConfig

  return AutoencoderConfig(
    shape=(positions * cfg.stack, cfg.mels),
    stride=cfg.stack,
    levels=cfg.levels,
    width=cfg.network_width,
    hidden=2 * cfg.network_width,
    blocks=cfg.network_blocks,
  )


def baseline_config(cfg: AudioConfig) -> AudioConfig:
  """Return the config of k-means with as many codes and positions as a learned tokenizer."""
  same = {name: getattr(cfg, name) for name in ('sample_rate', 'window', 'hop', 'mels', 'stack')}
  return AudioConfig(kind='frames', codes=math.prod(cfg.levels), seconds=cfg.seconds, **same)


def _build_learned(cfg, _):
  raise not_trained('audio', cfg)


AUDIO_TOKENIZERS = {
  'codes': TokenizerKind(lambda cfg, _: CodeTokenizer(cfg), lambda f, _: CodeTokenizer(_config('codes', f))),
  'codec': TokenizerKind(lambda cfg, _: CodecTokenizer.open(cfg), lambda fields, _: CodecTokenizer(**fields)),
  'frames': TokenizerKind(_build_frames, _restore_frames),
  # from_model: (AudioConfig, statistics, AutoencoderConfig, {path: array})
  'fsq': TokenizerKind(_build_learned, _restore_learned, LearnedAudioTokenizer),
}
FRONT_END = ('path', 'sample_rate', 'window', 'hop', 'mels', 'stack', 'seconds')
FIELDS_READ = {
  'codes': ('codes', 'books', 'pattern', 'longest'),
  'codec': ('path', 'books', 'pattern', 'seconds'),
  'frames': (*FRONT_END, 'codes', 'books', 'pattern'),
  'fsq': (*FRONT_END, 'levels', 'network_width', 'network_blocks'),
}
