"""The tones of a telephone keypad, and a decoder that is never in doubt.

Sound that needs no files and has an exact judge: a digit is the sum of two sines, and the decoder
measures which two. Every example is a function of its index alone, the same with every version of
numpy, since the noise is a hash and not a library's random stream.

Letters: N samples, J blocks, W samples of a block.

Sources: frequencies of ITU-T Recommendation Q.23; the power of one frequency by Goertzel (1958).
"""

import math
from collections.abc import Iterator

import numpy as np

from gpt_jax.data.synthetic.random_bits import mix

RATE = 8000  # Hz
ROWS = (697, 770, 852, 941)  # Hz
COLUMNS = (1209, 1336, 1477)  # Hz
KEYS = ('123', '456', '789', '*0#')
PAIRS = {
  key: (ROWS[row], COLUMNS[column])
  for row, keys in enumerate(KEYS)
  for column, key in enumerate(keys)
  if key.isdigit()
}
NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
SECONDS = (0.2, 0.3)  # shortest and longest example
LEAD = 4.0  # how much more power the row and the column need than any other of their kind
BLOCK = 0.032  # seconds of one measurement: frequencies 73 Hz apart are told apart
SHARE = 0.3  # how much of all power the two need: .5 after a vocoder, .02 in noise


def tone(digit: int | str, index: int = 0) -> np.ndarray:
  """The tone of a digit 0 to 9 as float32 [N] at 8 kHz, about .25 s; a variation for each index.

  Amplitudes, phases and length vary, and noise lies 34 to 40 dB below the peak.
  """
  if str(digit) not in PAIRS:
    raise ValueError(f'digit={digit!r} has no tone here\nfix: give a digit from 0 to 9')
  fractions = _hash(np.arange(8), index)
  length = int(RATE * (SECONDS[0] + (SECONDS[1] - SECONDS[0]) * fractions[0]))
  times_N = np.arange(length) / RATE
  sines_N = [
    amplitude * np.sin(2 * np.pi * (frequency * times_N + phase))
    for frequency, amplitude, phase in zip(
      PAIRS[str(digit)], 0.75 + 0.25 * fractions[1:3], fractions[3:5], strict=True
    )
  ]
  level = 0.2 + 0.25 * fractions[5]
  noise_N = (0.01 + 0.01 * fractions[6]) * (2 * _hash(np.arange(8, 8 + length), index) - 1)
  ramp_N = np.minimum(1, np.minimum(times_N, times_N[::-1]) / 0.01)  # 10 ms, against clicks
  return (level * ramp_N * (sum(sines_N) + noise_N)).astype(np.float32)


def decode(wave: np.ndarray, rate: int = RATE) -> str:
  """The digit whose tone a waveform [N] is, or '' for anything else.

  One row and one column frequency must each have 4 times the power of the others of their kind
  and together 30 % of all power. Power is summed over blocks of 32 ms, as in telephone exchanges,
  since a vocoder keeps the frequencies of a tone and not its phase.
  """
  wave_N = np.asarray(wave, np.float64)
  if wave_N.ndim != 1 or rate <= 2 * COLUMNS[-1]:
    raise ValueError(
      f'decode takes one row of samples at more than {2 * COLUMNS[-1]} Hz, not shape '
      f'{wave_N.shape} at {rate} Hz\nfix: average the channels, or resample'
    )
  blocks_JW = _blocks(wave_N, round(rate * BLOCK))
  total = float(np.square(blocks_JW).sum())
  if not math.isfinite(total) or total <= 0:
    return ''
  powers = np.array([_goertzel(blocks_JW, f / rate) for f in (*ROWS, *COLUMNS)]) / total
  row, row_power = _dominant(powers[: len(ROWS)])
  column, column_power = _dominant(powers[len(ROWS) :])
  if row < 0 or column < 0 or row_power + column_power < SHARE:
    return ''
  key = KEYS[row][column]
  return key if key.isdigit() else ''


def records(count: int) -> Iterator[tuple[str, dict]]:
  """Pairs (where, record) of the first `count` examples; the digits take turns.

  A record has `audio` (int16 [N] at 8 kHz), `label` (0 to 9) and `name` ('seven').
  """
  for index in range(count):
    digit = index % 10
    audio = np.round(tone(digit, index) * 32767).astype(np.int16)
    yield f'keypad tone {index}', {'audio': audio, 'label': digit, 'name': NAMES[digit]}


def _blocks(wave_N, size):
  """Half-overlapping Hann windows [J, W] over a waveform."""
  wave_N = np.pad(wave_N, (0, max(0, size - len(wave_N))))
  blocks_JW = np.lib.stride_tricks.sliding_window_view(wave_N, size)[:: size // 2]
  return blocks_JW * np.hanning(size)


def _goertzel(blocks_JW, frequency):
  """Power of Hann-windowed blocks [J, W] at a frequency in cycles a sample, summed over blocks.

  Scaled so that a sine alone gives the power of the blocks.
  """
  size = blocks_JW.shape[1]
  angles_W = 2 * np.pi * frequency * np.arange(size)
  real_J, imaginary_J = blocks_JW @ np.cos(angles_W), blocks_JW @ np.sin(angles_W)
  return float(np.square(real_J).sum() + np.square(imaginary_J).sum()) * 3 / size


def _dominant(powers):
  """(place, power) of the power that outdoes the others by LEAD, else (-1, 0)."""
  place = int(powers.argmax())
  second = np.delete(powers, place).max()
  return (place, float(powers[place])) if powers[place] >= LEAD * second else (-1, 0.0)


def _hash(counters, index):
  """Return numbers in 0 .. 1, float64, for counters [..] of an example."""
  x = np.asarray(counters, np.uint64) + np.uint64(((index << 32) + 1) & (2**64 - 1))
  return mix(x * np.uint64(0x9E3779B97F4A7C15)) / float(2**64)
