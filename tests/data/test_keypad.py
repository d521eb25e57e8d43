"""Keypad tones and the decoder that judges them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data.synthetic import keypad
from gpt_jax.tokenizers.audio import AudioConfig, build


def test_every_example_is_decoded():
  for where, record in keypad.records(300):
    assert keypad.decode(record['audio'] / 32768) == str(record['label']), where


@settings(max_examples=50, deadline=None)
@given(digit=st.integers(0, 9), index=st.integers(0, 2**40), level=st.floats(0.01, 1))
def test_any_variation_at_any_level_is_decoded(digit, index, level):
  wave = keypad.tone(digit, index)
  assert wave.dtype == np.float32 and 1600 <= len(wave) <= 2400 and np.abs(wave).max() < 1
  assert keypad.decode(level * wave) == str(digit)


@pytest.mark.parametrize('rate', [6000, 11025, 16000, 44100])
def test_other_rates_are_decoded(rate):
  from scipy import signal

  for digit in range(10):
    wave = signal.resample_poly(keypad.tone(digit, digit), rate // 25, 8000 // 25)
    assert keypad.decode(wave, rate) == str(digit)


def test_other_sounds_decode_to_no_digit():
  times, random = np.arange(2000) / 8000, np.random.default_rng(0)
  sine = lambda frequency: np.sin(2 * np.pi * frequency * times)
  others = {
    'silence': np.zeros(2000),
    'nothing': np.zeros(0),
    'NaN': np.full(2000, np.nan),
    'noise': random.normal(size=2000),
    'one sine': sine(697),
    'two rows': sine(697) + sine(770),
    'two columns': sine(1209) + sine(1336),
    'star': sine(941) + sine(1209),
    'hash': sine(941) + sine(1477),
    'two digits at once': keypad.tone(1)[:1500] + keypad.tone(9)[:1500],
    'one digit after another': np.concatenate([keypad.tone(1), keypad.tone(9)]),
    'a tone in noise': sine(697) + sine(1209) + 3 * random.normal(size=2000),
    'beside the keys': sine(600) + sine(1000),
  }
  assert {name: keypad.decode(wave) for name, wave in others.items()} == dict.fromkeys(others, '')


def test_short_tones_are_enough():
  assert keypad.decode(keypad.tone(5)[200:400]) == '5'


def test_decode_refuses_channels_and_low_sample_rates():
  for wave, rate in ((np.zeros((2, 100)), 8000), (np.zeros(100), 2000)):
    with pytest.raises(ValueError, match='decode takes one row') as error:
      keypad.decode(wave, rate)
    assert str(error.value).count('\n') == 1


def test_speech_decodes_to_no_digit(data_dir):
  from gpt_jax.data import media_io

  archive = data_dir / 'fsdd' / 'recordings.zip'
  for digit, speaker in ((1, 'theo'), (3, 'lucas'), (7, 'jackson'), (9, 'george')):
    wave, _ = media_io.read_sound(f'{archive}/{digit}_{speaker}_4.wav', 8000)
    assert keypad.decode(wave) == ''


def test_records_are_functions_of_their_index():
  few, many = list(keypad.records(10)), list(keypad.records(25))
  for (where, record), (other, same) in zip(few, many, strict=False):
    assert where == other and record['label'] == same['label']
    np.testing.assert_array_equal(record['audio'], same['audio'])
  assert [record['label'] for _, record in many] == [i % 10 for i in range(25)]
  assert few[7][1]['name'] == 'seven' and few[7][1]['audio'].dtype == np.int16
  sounds = {record['audio'].tobytes() for _, record in many}
  assert len(sounds) == 25


def test_tones_are_pinned():
  """A change of a single sample changes every cache and result that was made from them."""
  audio = next(iter(keypad.records(1)))[1]['audio']
  assert (len(audio), audio[1000:1006].tolist()) == FIRST


def test_unknown_symbols_are_refused():
  with pytest.raises(ValueError, match="digit='A' has no tone here") as error:
    keypad.tone('A')
  assert str(error.value).count('\n') == 1


@pytest.mark.parametrize('codes', [32, 64])
def test_tones_are_decoded_after_k_means_tokens(codes):
  """Tokens, Griffin-Lim and back: what a model writes can be judged exactly."""
  waves = [record['audio'].astype(np.float32) / 32768 for _, record in keypad.records(300)]
  tokenizer = build(AudioConfig(kind='frames', codes=codes), lambda: waves[:200])
  codes = tokenizer.encode(waves[200:])
  assert {len(codes_PQ) for codes_PQ in codes} <= {4, 5, 6}
  heard = [keypad.decode(wave) for wave in tokenizer.decode(codes)]
  assert heard == [str(i % 10) for i in range(100)]


FIRST = (2306, [-173, -789, -4417, -6883, -3656, 4832])
