"""The log-mel front end and its inverse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.tokenizers import spectrogram
from gpt_jax.tokenizers.spectrogram import FLOOR, PEAK, Spectrogram


def sine(frequency, seconds=0.5, rate=8000, level=0.3):
  return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype('f4')


def peak_of(wave, rate=8000):
  """The loudest frequency of a waveform in Hz."""
  power = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
  return np.argmax(power) * rate / len(wave)


@settings(max_examples=40, deadline=None)
@given(
  samples=st.integers(1, 3000),
  stack=st.integers(1, 5),
  hop=st.sampled_from([40, 64, 100, 128]),
  seed=st.integers(0, 99),
)
def test_istft_inverts_stft(samples, stack, hop, seed):
  front = Spectrogram(hop=hop)
  wave = np.random.default_rng(seed).normal(size=samples).astype(np.float32)
  spectrum = front.stft(wave, stack)
  assert spectrum.shape == (front.frames(samples, stack), 129)
  assert spectrum.dtype == np.complex64
  back = front.istft(spectrum)
  assert back.dtype == np.float32 and len(back) == len(spectrum) * hop >= samples
  np.testing.assert_allclose(back[:samples], wave, atol=1e-5)
  np.testing.assert_allclose(back[samples:], 0, atol=1e-5)


def test_a_frame_is_a_windowed_fourier_transform_centered_on_its_hop():
  front, wave = Spectrogram(), np.random.default_rng(0).normal(size=2000)
  begin = 7 * 100 + 50 - 128
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
  expected = np.fft.rfft(wave[begin : begin + 256] * window)
  np.testing.assert_allclose(front.stft(wave)[7], expected, atol=1e-4)


@given(samples=st.integers(1, 10**6), stack=st.integers(1, 8))
def test_frames_are_whole_positions_and_grow_with_the_clip(samples, stack):
  front = Spectrogram()
  frames = front.frames(samples, stack)
  assert frames % stack == 0 and (frames - stack) * 100 < samples <= frames * 100
  assert front.frames(samples + 1, stack) >= frames


def test_mel_bands_cover_the_spectrum_with_triangles():
  front = Spectrogram()
  assert front.mel_MU.shape == (40, 129) and front.mel_MU.dtype == np.float32
  assert (np.diff(front.mel_MU.argmax(1)) > 0).all()
  # Between the first and the last center neighbors share every bin: their weights add up to 1.
  inside = slice(front.mel_MU[0].argmax() + 1, front.mel_MU[-1].argmax())
  np.testing.assert_allclose(front.mel_MU.sum(0)[inside], 1, atol=1e-5)


def test_log_mel_of_a_clip_does_not_depend_on_its_batch():
  front, random = Spectrogram(), np.random.default_rng(1)
  waves = [random.normal(size=n).astype(np.float32) for n in (1, 399, 400, 401, 2000)]
  together = front.log_mel(waves, 4)
  assert [len(mel) for mel in together] == [4, 4, 4, 8, 20]
  for wave, mel in zip(waves, together, strict=True):
    np.testing.assert_allclose(front.log_mel([wave], 4)[0], mel, atol=1e-4)
  assert front.log_mel([]) == []


def test_log_mel_does_not_depend_on_the_level_and_ends_at_the_floor():
  front, wave = Spectrogram(), sine(1000)
  loud, soft = front.log_mel([wave, wave / 16])
  np.testing.assert_allclose(loud, soft, atol=1e-3)
  (silent,) = front.log_mel([np.zeros(800, np.float32)])
  np.testing.assert_allclose(silent, np.log(FLOOR), rtol=1e-6)
  assert np.abs(spectrogram.normalized(1e-5 * wave)).max() < 0.01 * PEAK


@pytest.mark.parametrize('frequency', [220, 440, 1000, 2500])
def test_pitch_survives_the_way_through_mel(frequency):
  front = Spectrogram()
  (back,) = front.to_waveforms(front.log_mel([sine(frequency)]))
  assert len(back) == 4000 and back.dtype == np.float32
  assert np.abs(back).max() == pytest.approx(PEAK, rel=1e-5)
  # A mel band is 65 Hz wide at 700 Hz and 185 Hz at 3 kHz: no pitch is known better.
  assert abs(peak_of(back) - frequency) < 40 + 0.03 * frequency


def test_to_waveforms_is_deterministic_and_independent_of_the_batch():
  front = Spectrogram()
  mels = front.log_mel([sine(300), sine(600), sine(900, 0.3)])
  first, again = front.to_waveforms(mels), front.to_waveforms(mels[::-1])[::-1]
  for a, b, mel in zip(first, again, mels, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
    np.testing.assert_allclose(front.to_waveforms([mel])[0], a, atol=1e-4)
  assert front.to_waveforms([]) == []
  assert [len(w) for w in front.to_waveforms([np.zeros((0, 40), np.float32)])] == [0]


def test_griffin_lim_comes_closer_with_iterations():
  front = Spectrogram()
  wave = sine(500) + sine(1300) * np.linspace(0, 1, 4000, dtype=np.float32)
  magnitude = np.abs(front.stft(wave))[None]
  errors = []
  for iterations in (0, 8, 32):
    actual = front.griffin_lim(magnitude, iterations)
    errors.append(float(np.abs(np.abs(front.stft(actual)) - magnitude).mean()))
  assert errors[0] > 2 * errors[1] > 2.2 * errors[2]


@pytest.mark.parametrize(
  ('settings_', 'cause'),
  [
    (dict(window=150), 'window=150 is less than twice hop=100'),
    (dict(mels=200), 'mels=200 leaves'),
    (dict(hop=0), 'hop=0 is not positive'),
  ],
)
def test_impossible_settings_are_refused(settings_, cause):
  with pytest.raises(ValueError, match=cause) as error:
    Spectrogram(**settings_)
  assert str(error.value).count('\nfix: ') == 1 and str(error.value).count('\n') == 1
