"""The log-mel spectrogram that Whisper's encoder reads, equal to transformers' WhisperFeatureExtractor.

Letters: B windows, N samples, W samples of a frame, J frames, U frequency bins, M mel bands.

Sources: Radford et al. 2022 (Whisper, section 2.2); Slaney 1998 (Auditory Toolbox: linear below 1 kHz,
logarithmic above, triangles of one area).
"""

import functools

import numpy as np

RATE, FRAME, HOP = 16_000, 400, 160  # Hz, samples, samples
TOP = 8_000.0  # Hz
KNEE, LINEAR, STEP = 1000.0, 3 / 200, np.log(6.4) / 27  # Hz; mels a Hz below the knee; log Hz a mel above it
RANGE = 8.0  # decades below the loudest entry of a window


def log_mel(waves_BN, mels: int) -> np.ndarray:
  """Windows float [B, N] at RATE, of whole hops, N > FRAME / 2 -> float32 [B, J, M], J = N / HOP."""
  waves_BN = np.asarray(waves_BN, np.float32)
  padded_BN = np.pad(waves_BN, ((0, 0), (FRAME // 2, FRAME // 2)), mode='reflect')
  frames_BJW = np.lib.stride_tricks.sliding_window_view(padded_BN, FRAME, axis=1)[:, ::HOP][:, :-1]
  window_W = np.square(np.sin(np.pi * np.arange(FRAME) / FRAME)).astype(np.float32)
  power_BJU = np.square(np.abs(np.fft.rfft(frames_BJW * window_W, axis=-1))).astype(np.float32)
  mels_BJM = np.log10(np.maximum(power_BJU @ filters(mels).T, 1e-10))
  floor_B11 = mels_BJM.max((1, 2), keepdims=True) - RANGE
  return ((np.maximum(mels_BJM, floor_B11) + 4) / 4).astype(np.float32)


@functools.lru_cache(maxsize=4)
def filters(mels: int) -> np.ndarray:
  """Return triangles float32 [M, U] at equal steps of Slaney's mel scale, each of the same area."""
  knee = KNEE * LINEAR
  corners = np.linspace(0, knee + np.log(TOP / KNEE) / STEP, mels + 2)
  corners = np.where(corners < knee, corners / LINEAR, KNEE * np.exp(STEP * (corners - knee)))
  low_M1, center_M1, high_M1 = (corners[i : i + mels, None] for i in range(3))
  bins_U = np.linspace(0, RATE / 2, FRAME // 2 + 1)
  rise_MU, fall_MU = (bins_U - low_M1) / (center_M1 - low_M1), (high_M1 - bins_U) / (high_M1 - center_M1)
  triangles_MU = np.maximum(0, np.minimum(rise_MU, fall_MU))
  return (triangles_MU * 2 / (high_M1 - low_M1)).astype(np.float32)
