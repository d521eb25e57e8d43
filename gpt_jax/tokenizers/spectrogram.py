"""The log-mel front end of audio tokenizers, and the way back to a waveform.

A clip of N samples has ceil(N / hop) frames, each centered on its own hop, so the inverse has a whole
number of hops. Clips of a batch do not depend on each other.

Letters: N samples, J frames, W window samples, M mel bands, U frequency bins.

Sources: HTK mel scale (Young et al., The HTK Book); ISTFT by least squares and phase estimation
(Griffin & Lim 1984); momentum (Perraudin, Balazs & Sondergaard 2013, "fast Griffin-Lim").
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

FLOOR = 1e-4  # the smallest magnitude under the logarithm
PEAK = 0.5  # the level of every clip: recordings differ by a factor of 16
SILENCE = 1e-3  # clips with a lower peak are noise: their gain is that of this peak
ITERATIONS = 32
MOMENTUM = 0.99


@dataclasses.dataclass(frozen=True)
class Spectrogram:
  """A short-time Fourier transform, its mel bands, and their inverses."""

  sample_rate: int = 8000  # Hz
  window: int = 256  # samples of the Hann window
  hop: int = 100  # samples from frame to frame
  mels: int = 40  # bands between 0 and sample_rate / 2

  def __post_init__(self):
    for name in ('sample_rate', 'window', 'hop', 'mels'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} is not positive\nfix: give 1 or more')
    if self.window < 2 * self.hop:
      raise ValueError(
        f'window={self.window} is less than twice hop={self.hop}, so frames hardly overlap\n'
        f'fix: give a window of {2 * self.hop} samples or more, or a smaller hop'
      )
    if empty := int((self.mel_MU.sum(1) <= 0).sum()):
      raise ValueError(
        f'mels={self.mels} leaves {empty} bands without a frequency bin at window={self.window} '
        f'and sample_rate={self.sample_rate}\nfix: give fewer mels or a longer window'
      )

  def frames(self, samples: int, stack: int = 1) -> int:
    """Return the frames of a clip of this many samples, a multiple of `stack`, at least `stack`."""
    return max(-(-samples // (self.hop * stack)), 1) * stack

  @functools.cached_property
  def window_W(self) -> np.ndarray:
    """The periodic Hann window, float32."""
    return np.square(np.sin(np.pi * np.arange(self.window) / self.window)).astype(np.float32)

  @functools.cached_property
  def mel_MU(self) -> np.ndarray:
    """The mel filterbank, float32."""
    return mel_filterbank(self.sample_rate, self.window, self.mels)[0].astype(np.float32)

  @functools.cached_property
  def inverse_UM(self) -> np.ndarray:
    """The pseudo-inverse of the mel bands, float32."""
    return np.linalg.pinv(self.mel_MU.astype(np.float64)).astype(np.float32)

  def stft(self, wave: np.ndarray, stack: int = 1) -> np.ndarray:
    """Transform float [..., N] to complex64 [..., J, U], with zeros outside the clip."""
    from scipy import fft

    wave = np.asarray(wave, np.float32)
    size = self.frames(wave.shape[-1], stack) * self.hop
    before = (self.window - self.hop) // 2
    after = size - wave.shape[-1] + self.window - self.hop - before
    padded = np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(before, after)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, self.window, axis=-1)
    return fft.rfft(windows[..., :: self.hop, :] * self.window_W, axis=-1)

  def istft(self, spectrum: np.ndarray) -> np.ndarray:
    """Return the waveform float32 [..., J * hop] whose STFT is nearest to complex [..., J, U]."""
    from scipy import fft

    frames = spectrum.shape[-2]
    before = (self.window - self.hop) // 2
    windows = fft.irfft(spectrum, self.window, axis=-1) * self.window_W
    padded = _overlap_add(windows, self.hop) / _coverage(self, frames)
    return padded[..., before : before + frames * self.hop]

  def log_mel(self, waves: Sequence[np.ndarray], stack: int = 1) -> list[np.ndarray]:
    """Return log-mel float32 [J, M] of each waveform float [N], J a multiple of `stack`.

    Clips are scaled to the same peak first.
    """
    spectra = [np.abs(self.stft(normalized(wave), stack)) for wave in waves]
    if not spectra:
      return []
    mels_JM = np.concatenate(spectra) @ self.mel_MU.T
    np.log(np.maximum(mels_JM, FLOOR, out=mels_JM), out=mels_JM)
    return np.split(mels_JM, np.cumsum([len(s) for s in spectra])[:-1])

  def to_waveforms(self, log_mels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return waveforms float32 [J * hop] of one peak for log-mels [J, M], deterministic.

    Magnitudes come from the pseudo-inverse of the mel bands, clipped at zero, phases from Griffin-Lim.
    Clips of one length run together.
    """
    waves: list = [None] * len(log_mels)
    lengths = np.array([len(mel) for mel in log_mels], int)
    for row in np.flatnonzero(lengths == 0):
      waves[row] = np.zeros(0, np.float32)
    for length in np.unique(lengths[lengths > 0]):
      rows = np.flatnonzero(lengths == length)
      mel_BJM = np.exp(np.stack([np.asarray(log_mels[row], np.float32) for row in rows]))
      magnitude_BJU = np.maximum(mel_BJM @ self.inverse_UM.T, 0)
      for row, wave in zip(rows, self.griffin_lim(magnitude_BJU), strict=True):
        waves[row] = normalized(wave)
    return waves

  def griffin_lim(self, magnitude_BJU: np.ndarray, iterations: int = ITERATIONS) -> np.ndarray:
    """Return waveforms [B, J * hop] whose STFT has about these magnitudes, by fast Griffin-Lim."""
    phases_JU = np.random.RandomState(0).uniform(-np.pi, np.pi, magnitude_BJU.shape[1:])
    spectrum_BJU = magnitude_BJU * np.exp(1j * phases_JU).astype(np.complex64)
    previous_BJU = np.zeros_like(spectrum_BJU)
    for _ in range(iterations):
      consistent_BJU = self.stft(self.istft(spectrum_BJU))
      spectrum_BJU = consistent_BJU + np.float32(MOMENTUM) * (consistent_BJU - previous_BJU)
      spectrum_BJU *= magnitude_BJU / np.maximum(np.abs(spectrum_BJU), np.float32(1e-12))
      previous_BJU = consistent_BJU
    return self.istft(spectrum_BJU)


def mel_filterbank(sample_rate: int, window: int, mels: int) -> tuple[np.ndarray, np.ndarray]:
  """Return triangles [M, U] of height 1 at equal steps of the HTK mel scale, and their centers [M] in Hz.

  window: samples of the Fourier transform, U = window // 2 + 1. float64.
  """
  bins_U = np.fft.rfftfreq(window, 1 / sample_rate)
  top = 2595 * np.log10(1 + sample_rate / 2 / 700)
  corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
  low_M1, center_M1, high_M1 = (corners[i : i + mels, None] for i in range(3))
  rise_MU = (bins_U - low_M1) / (center_M1 - low_M1)
  fall_MU = (high_M1 - bins_U) / (high_M1 - center_M1)
  return np.maximum(0, np.minimum(rise_MU, fall_MU)), center_M1[:, 0]


def _overlap_add(frames: np.ndarray, hop: int) -> np.ndarray:
  """Sum frames [..., J, W], each hop samples after the last, to [..., (J - 1) * hop + W]."""
  *batch, count, window = frames.shape
  parts = -(-window // hop)
  total = np.zeros((*batch, count + parts - 1, hop), np.float32)
  for part in range(parts):
    piece = frames[..., part * hop : (part + 1) * hop]
    total[..., part : part + count, : piece.shape[-1]] += piece
  return total.reshape(*batch, -1)[..., : (count - 1) * hop + window]


@functools.lru_cache(maxsize=64)
def _coverage(spectrogram, frames):
  """Return the sum of squared windows, by which the inverse divides."""
  squared = np.broadcast_to(np.square(spectrogram.window_W), (frames, spectrogram.window))
  return np.maximum(_overlap_add(squared, spectrogram.hop), np.float32(1e-6))


def normalized(wave: np.ndarray) -> np.ndarray:
  """Scale a waveform [N] to PEAK; clips below SILENCE get no more gain than SILENCE."""
  wave = np.asarray(wave, np.float32)
  peak = np.abs(wave).max(initial=0)
  return wave * np.float32(PEAK / max(float(peak), SILENCE))
