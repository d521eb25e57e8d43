"""Metrics of sounds: log-mel spectrograms, distances after alignment, pitch; pure functions of numpy.

Letters: N samples, J frames, F mel bands, K frames of another sound; N M frames in `dtw_mean_cost`.

Sources: mel-cepstral distortion (Kubichek 1993), its alignment (Sakoe and Chiba 1978), pitch by
autocorrelation (Rabiner 1977).
"""

import numpy as np

from gpt_jax.evaluation.metrics import squared_distances
from gpt_jax.tokenizers.spectrogram import mel_filterbank


def log_mel(wave_N, rate, bands=40, window=0.032, hop=0.0125, floor=1e-4):
  """Log-mel spectrogram [J, F] of a wave scaled to a peak of 0.5, bands from 0 to rate / 2.

  No tokenizer uses this front end, so that none is judged by its own measure. window, hop: seconds.
  """
  wave_N = np.asarray(wave_N, np.float64)
  wave_N = wave_N * (0.5 / max(np.abs(wave_N).max(initial=0), 1e-9))
  size, step = round(window * rate), round(hop * rate)
  padded = np.pad(wave_N, (size // 2, size))
  starts = np.arange(0, max(len(wave_N), 1), step)
  frames = padded[starts[:, None] + np.arange(size)] * np.hanning(size + 1)[:-1]
  magnitude = np.abs(np.fft.rfft(frames, axis=1))
  return np.log(magnitude @ mel_filters(rate, size, bands).T + floor)


def mel_filters(rate, size, bands):
  """The mel filterbank [F, size // 2 + 1], each triangle scaled to sum to 1."""
  weights, center = mel_filterbank(rate, size, bands)
  empty = weights.sum(1) == 0  # a band between two bins of the transform takes the nearest
  hertz = np.fft.rfftfreq(size, 1 / rate)
  weights[empty, np.abs(hertz - center[empty, None]).argmin(1)] = 1
  return weights / weights.sum(1, keepdims=True)


def mel_rmse(a_JF, b_JF):
  """Root mean squared difference of two log-mel spectrograms over the frames that both have."""
  n = min(len(a_JF), len(b_JF))
  return float(np.sqrt(((np.asarray(a_JF)[:n] - np.asarray(b_JF)[:n]) ** 2).mean()))


def mcd_dtw(a_JF, b_JF, coefficients=13):
  """Mel-cepstral distortion in dB of two log-mel spectrograms, aligned by dynamic time warping.

  10 / ln 10 * sqrt(2 * sum over cosine coefficients 1 .. 13 of squared differences), averaged over
  the cheapest path. Values depend on the front end: report copy-synthesis beside them.
  """
  from scipy.fft import dct

  a, b = (dct(x, norm='ortho', axis=1)[:, 1 : coefficients + 1] for x in (a_JF, b_JF))
  return dtw_mean_cost(10 / np.log(10) * np.sqrt(2 * squared_distances(a, b)))


def pitch(wave_N, rate, low=60.0, high=400.0, hop=0.01, voiced=0.5):
  """Fundamental frequency in Hz of each frame [J], 0 in unvoiced frames.

  The first high peak of the normalized autocorrelation from `low` to `high` Hz, if it is above
  `voiced` and the frame's amplitude above a hundredth of the loudest.
  """
  size, step = 2 * round(rate / low), round(hop * rate)
  padded = np.pad(np.asarray(wave_N, np.float64), (0, size))
  starts = np.arange(0, max(len(wave_N), 1), step)
  frames = padded[starts[:, None] + np.arange(size)]
  frames = frames - frames.mean(1, keepdims=True)
  spectrum = np.abs(np.fft.rfft(frames, 2 * size, axis=1)) ** 2
  power_JN = np.fft.irfft(spectrum, axis=1)[:, : size // 2 + 1]
  energy_J = power_JN[:, 0]
  # A longer lag overlaps less of the frame: compare means, not sums.
  share_JN = power_JN / np.maximum(energy_J, 1e-12)[:, None] / (1 - np.arange(size // 2 + 1) / size)
  first = int(rate / high)
  share_JN[:, :first] = 0
  highest_J = share_JN[:, :-1].max(1)
  is_peak_JN = (share_JN[:, 1:-1] >= share_JN[:, :-2]) & (share_JN[:, 1:-1] >= share_JN[:, 2:])
  # Twice the period has as high a peak: take the first that is nearly the highest.
  lag_J = 1 + (is_peak_JN & (share_JN[:, 1:-1] > 0.85 * highest_J[:, None])).argmax(1)
  height_J = np.where(lag_J > 1, highest_J, 0)
  is_voiced_J = (height_J > voiced) & (energy_J > 1e-4 * energy_J.max(initial=0))
  return np.where(is_voiced_J, rate / lag_J, 0.0)


def pitch_error(a_J, b_K):
  """(semitones between the median pitches, NaN without voice; difference of voiced shares)."""
  share = abs(float((a_J > 0).mean() - (b_K > 0).mean()))
  if not (a_J.any() and b_K.any()):
    return float('nan'), share
  medians = [np.median(x[x > 0]) for x in (a_J, b_K)]
  return float(abs(12 * np.log2(medians[0] / medians[1]))), share


def dtw_mean_cost(cost_NM):
  """Mean cost along the cheapest path from corner to corner by steps (1,0), (0,1) and (1,1).

  Vectorized over diagonals, whose cells do not depend on each other.
  """
  n, m = cost_NM.shape
  total, steps = np.full((2, n + 1, m + 1), np.inf)
  total[0, 0] = steps[0, 0] = 0
  for diagonal in range(2, n + m + 1):
    i = np.arange(max(1, diagonal - m), min(n, diagonal - 1) + 1)
    j = diagonal - i
    before = np.stack([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]])
    counts = np.stack([steps[i - 1, j - 1], steps[i - 1, j], steps[i, j - 1]])
    best = before.argmin(0)
    total[i, j] = cost_NM[i - 1, j - 1] + before[best, np.arange(len(i))]
    steps[i, j] = counts[best, np.arange(len(i))] + 1
  return float(total[n, m] / steps[n, m])
