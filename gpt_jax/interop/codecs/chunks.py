"""Sounds in chunks that overlap, each divided by its loudness: how EnCodec at 48 kHz reads them.

Codes do not hold the loudness of a chunk, so a row of codes is written before it: in the first codebook the
level in decibels, from QUIETEST over RANGE (in steps of 0.1 with 1,024 codes), zeros in the others. A chunk
that is not the last has all its positions, so that rows alone say where chunks begin.

Letters: those of codec.py.

Source: Defossez et al. 2022 (EnCodec, section 3.1 and appendix A); transformers 5, `models/encodec/`.
"""

import numpy as np

QUIETEST, RANGE = -100.0, 102.3  # dB
SILENCE = np.float32(1e-8)  # is added to every loudness


def positions(spec) -> int:
  """Return the positions of a whole chunk, 0 for a codec without chunks."""
  return -(-spec.chunk // spec.hop)


def starts(spec, samples: int) -> range:
  """Return the first samples of the chunks of a sound."""
  return range(0, samples, spec.stride) if spec.chunk else range(1)


def fill(spec, samples: int) -> int:
  """Return to how many samples a sound is filled with zeros: only its last chunk has fewer positions."""
  if spec.fills_hop:
    return samples + -samples % spec.hop
  begins = starts(spec, samples)
  return max(samples, begins[-2] + (positions(spec) - 1) * spec.hop + 1) if len(begins) > 1 else samples


def count_rows(spec, samples: int) -> int:
  """Return the rows of codes of a sound."""
  samples = fill(spec, samples)
  ends = (min(samples, start + (spec.chunk or samples)) - start for start in starts(spec, samples))
  return sum(-(-end // spec.hop) + spec.normalizes for end in ends)


def filled(spec, wave) -> np.ndarray:
  """Return a sound [N] or [N, C] as `fill` says."""
  return np.pad(wave, [(0, fill(spec, len(wave)) - len(wave)), *[(0, 0)] * (wave.ndim - 1)])


def cut(spec, wave) -> list[np.ndarray]:
  """Return the chunks [N, C] of a sound [N] or [N, C]; one channel stands in for all."""
  wave_NC = np.broadcast_to(wave.reshape(len(wave), -1), (len(wave), spec.channels))
  return [wave_NC[start : start + (spec.chunk or len(wave_NC))] for start in starts(spec, len(wave_NC))]


def loudness(spec, parts) -> np.ndarray:
  """Return the root mean squares of chunks, float32; ones if the codec does not normalize."""
  if not spec.normalizes:
    return np.ones(len(parts), np.float32)
  mono = (part.sum(1) / np.float32(spec.channels) for part in parts)
  squares = [np.mean(np.square(m_N), dtype=np.float64) for m_N in mono]
  return np.sqrt(np.array(squares, np.float32)) + SILENCE


def join(spec, parts) -> np.ndarray:
  """Return the sound [N], or [N, C] of several channels, of its chunks, faded into each other.

  Of no chunks it is a position of silence.
  """
  parts = parts or [np.zeros((spec.hop, spec.channels), np.float32)]
  if len(parts) > 1:
    weight_N = 0.5 - np.abs(np.linspace(0, 1, len(parts[0]) + 2, dtype=np.float32)[1:-1] - np.float32(0.5))
    size = max(number * spec.stride + len(part) for number, part in enumerate(parts))
    sound_NC, weights_N1 = np.zeros((size, spec.channels), np.float32), np.zeros((size, 1), np.float32)
    for number, part in enumerate(parts):
      place, own_N1 = slice(start := number * spec.stride, start + len(part)), weight_N[: len(part), None]
      sound_NC[place] += own_N1 * part
      weights_N1[place] += own_N1
    parts = [sound_NC / weights_N1]
  return parts[0][:, 0] if spec.channels == 1 else parts[0]


def to_rows(spec, codes, scales) -> np.ndarray:
  """Return the codes of chunks in one array, their levels before them."""
  rows = []
  for codes_PQ, scale in zip(codes, scales, strict=True):
    if spec.normalizes:
      level = (20 * np.log10(scale) - QUIETEST) * (spec.codes - 1) / RANGE
      rows.append(np.zeros((1, codes_PQ.shape[1]), np.int32))
      rows[-1][0, 0] = np.clip(np.round(level), 0, spec.codes - 1)
    rows.append(codes_PQ)
  return np.concatenate(rows)


def from_rows(spec, rows_PQ) -> tuple[list[np.ndarray], np.ndarray]:
  """Return (codes of chunks, their loudness float32) of what `to_rows` gives, or of any rows."""
  lead = int(spec.normalizes)
  size = positions(spec) + lead if spec.chunk else len(rows_PQ)
  parts = [rows_PQ[start : start + size] for start in range(0, len(rows_PQ), size)]
  parts = [part for part in parts if len(part) > lead]
  levels = np.array([part[0, 0] for part in parts], np.float64) * RANGE / (spec.codes - 1) + QUIETEST
  scales = 10 ** (levels / 20) if spec.normalizes else np.ones(len(parts))
  return [part[lead:] for part in parts], scales.astype(np.float32)
