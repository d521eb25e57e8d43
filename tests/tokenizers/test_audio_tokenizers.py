"""Audio tokenizers: round trips, what they keep, how they are saved, what they refuse."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data.synthetic import keypad
from gpt_jax.model import layers as nn
from gpt_jax.model import param_trees
from gpt_jax.tokenizers import audio
from gpt_jax.tokenizers.audio import AUDIO_TOKENIZERS, AudioConfig, build, load
from gpt_jax.tokenizers.learned import autoencoder
from tests.data_helpers import two_lines


@functools.cache
def clips():
  return [record['audio'].astype(np.float32) / 32768 for _, record in keypad.records(40)]


@functools.cache
def learned(cfg=None):
  """A tokenizer of an autoencoder as it is born."""
  cfg = cfg or AudioConfig(kind='fsq', seconds=0.5, network_width=16, network_blocks=1)
  codec_cfg = audio.autoencoder_config(cfg)
  model = nn.initialize(autoencoder.Autoencoder(codec_cfg), jax.random.key(0))
  params = {path: np.asarray(p.get_value()) for path, p in param_trees.named_params(model)}
  statistics = audio.fit_statistics(cfg, clips())
  return AUDIO_TOKENIZERS['fsq'].from_model(cfg, statistics, codec_cfg, params)


MAKERS = {
  'frames': lambda: build(AudioConfig(kind='frames', codes=32, seconds=0.5), clips),
  'residual': lambda: build(AudioConfig(kind='frames', codes=16, books=3, seconds=0.5), clips),
  'fsq': learned,
}


@functools.cache
def made(name):
  return MAKERS[name]()


every_row = pytest.mark.parametrize('name', MAKERS)


def test_every_row_is_tested():  # codecs have tests of their own
  assert {made(name).kind for name in MAKERS} == set(AUDIO_TOKENIZERS) - {'codes', 'codec'}


@every_row
def test_codes_have_the_documented_shape_and_range(name):
  tokenizer = made(name)
  codes = tokenizer.encode(clips()[:7])
  for codes_PQ, wave in zip(codes, clips(), strict=False):
    assert codes_PQ.dtype == np.int32
    assert codes_PQ.shape == (tokenizer.positions(len(wave)), len(tokenizer.codebooks))
    assert (codes_PQ >= 0).all() and (codes_PQ < np.array(tokenizer.codebooks)).all()
  assert tokenizer.codes_per_second == 20 and tokenizer.max_positions == 10
  assert tokenizer.ranges == tuple((f'audio{q}', n) for q, n in enumerate(tokenizer.codebooks))


@every_row
def test_decoding_gives_whole_positions_of_sound(name):
  tokenizer = made(name)
  codes = tokenizer.encode(clips()[:5])
  for wave, again, codes_PQ in zip(tokenizer.decode(codes), tokenizer.decode(codes), codes, strict=True):
    assert wave.dtype == np.float32 and wave.shape == (400 * len(codes_PQ),)
    assert np.abs(wave).max() <= 1 and np.isfinite(wave).all()
    np.testing.assert_array_equal(wave, again)


@every_row
def test_a_clip_does_not_depend_on_its_batch(name):
  tokenizer = made(name)
  codes = tokenizer.encode(clips())
  mels = tokenizer.decode_mel(codes)
  for number in (0, 11, 39):
    (alone,) = tokenizer.encode(clips()[number : number + 1])
    np.testing.assert_array_equal(alone, codes[number])
    (mel,) = tokenizer.decode_mel([alone])
    np.testing.assert_allclose(mel, mels[number], atol=1e-4)


@every_row
def test_empty_lists_are_encoded_and_decoded(name):
  tokenizer = made(name)
  assert tokenizer.encode([]) == [] and tokenizer.decode([]) == []
  empty = np.zeros((0, len(tokenizer.codebooks)), np.int32)
  wave, other = tokenizer.decode([empty, np.zeros((2, empty.shape[1]), np.int32)])
  assert len(wave) == 0 and len(other) == 800
  long = np.zeros((30, empty.shape[1]), np.int32)  # more than any clip that is encoded has
  assert [len(w) for w in tokenizer.decode([empty, long])] == [0, 12000]


@every_row
def test_features_are_standardized_frames(name):
  tokenizer = made(name)
  features = np.concatenate(tokenizer.features(clips()))
  assert features.dtype == np.float32 and features.shape[1] == tokenizer.feature_width == 160
  bands = features.reshape(-1, 40)
  np.testing.assert_allclose(bands.mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(bands.std(0), 1, atol=1e-4)


@every_row
def test_a_saved_tokenizer_is_equal_and_makes_the_same_codes(name, tmp_path):
  tokenizer = made(name)
  tokenizer.save(tmp_path)
  actual = load(tmp_path)
  assert actual == tokenizer and actual.hash == tokenizer.hash and type(actual) is type(tokenizer)
  assert actual.files() == tokenizer.files() and actual.fields() == tokenizer.fields()
  codes = tokenizer.encode(clips()[:3])
  for a, b in zip(codes, actual.encode(clips()[:3]), strict=True):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(tokenizer.decode(codes), actual.decode(codes), strict=True):
    np.testing.assert_array_equal(a, b)


@every_row
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_changed_byte_makes_another_tokenizer(name, data, tmp_path_factory):
  tokenizer = made(name)
  folder = tmp_path_factory.mktemp('tampered')
  tokenizer.save(folder)
  path = data.draw(st.sampled_from(sorted(folder.iterdir())))
  content = bytearray(path.read_bytes())
  place = data.draw(st.integers(0, len(content) - 1))
  content[place] ^= data.draw(st.integers(1, 255))
  path.write_bytes(content)
  try:
    assert load(folder) == tokenizer  # such as white space for white space
  except (ValueError, FileNotFoundError) as error:
    assert str(error).count('\n') == 1 and '\nfix: ' in str(error)


@pytest.mark.parametrize(
  ('wave', 'cause'),
  [
    (np.zeros(0, np.float32), 'clip 1 is float32 of shape'),
    (np.zeros(100, np.int16), 'clip 1 is int16 of shape'),
    (np.zeros((2, 100), np.float32), 'clip 1 is float32 of shape'),
    (np.full(100, np.nan, np.float32), 'clip 1 has NaN'),
    (np.zeros(4001, np.float32), 'clip 1 lasts 0.5001 s, longer than audio.seconds=0.5'),
  ],
)
def test_clips_that_cannot_be_encoded_are_refused(wave, cause):
  with two_lines(ValueError, match=cause):
    made('frames').encode([clips()[0], wave])


@every_row
def test_codes_out_of_range_are_refused(name):
  tokenizer = made(name)
  good = tokenizer.encode(clips()[:1])[0]
  wrong = {
    'codes of shape': good[:, 0],
    'audio code -1 is outside': good * 0 - 1,
    f'audio code {tokenizer.codebooks[0]} is outside': good * 0 + tokenizer.codebooks[0],
    'codes are float64': good.astype(np.float64),
  }
  for cause, codes in wrong.items():
    with two_lines(ValueError, match=cause):
      tokenizer.decode([codes])


# ---------------------------------------------------------------------- what is kept of sound


def error_of(tokenizer, waves):
  """Root mean square error of the log-mel frames."""
  real = np.concatenate(tokenizer.spectrogram.log_mel(waves, tokenizer.cfg.stack))
  actual = np.concatenate(tokenizer.decode_mel(tokenizer.encode(waves)))
  return float(np.sqrt(np.square(actual - real).mean()))


def test_more_codes_and_more_codebooks_keep_more():
  errors = [
    error_of(build(AudioConfig(kind='frames', codes=codes, books=books), clips), clips())
    for codes, books in ((2, 1), (16, 1), (16, 2), (16, 3))
  ]
  assert errors == sorted(errors, reverse=True) and errors[-1] < 0.7 * errors[0]


def test_as_many_codes_as_positions_lose_nothing():
  tokenizer = build(AudioConfig(kind='frames', codes=8), lambda: clips()[:2])
  count = len(np.unique(np.concatenate(tokenizer.features(clips()[:2])), axis=0))
  tokenizer = build(AudioConfig(kind='frames', codes=count), lambda: clips()[:2])
  assert error_of(tokenizer, clips()[:2]) < 1e-3


def test_codes_do_not_depend_on_the_level():
  tokenizer = made('frames')
  for loud, soft in zip(
    tokenizer.encode(clips()[:5]), tokenizer.encode([w / 16 for w in clips()[:5]]), strict=True
  ):
    assert (loud == soft).mean() == 1


def test_the_learned_tokenizer_is_its_autoencoder():
  """Codes and frames inside a clip are those of the model, applied directly."""
  tokenizer = made('fsq')
  model = param_trees.map_params(
    lambda path, _: tokenizer.params[path], autoencoder.Autoencoder(tokenizer.codec_cfg)
  )
  (features_PC,) = tokenizer.features(clips()[3:4])
  silence_PC = np.tile(tokenizer.silence_C, (4, 1))
  x_BJM = np.concatenate([silence_PC, features_PC, silence_PC]).reshape(1, -1, 40)
  values, codes_BP = model.quantize(model.encode(x_BJM))
  (codes_PQ,) = tokenizer.encode(clips()[3:4])
  np.testing.assert_array_equal(codes_PQ[:, 0], codes_BP[0, 4:-4])
  mean_M, deviation_M = tokenizer.statistics
  expected_JM = np.asarray(model.decode(values))[0, 16:-16] * deviation_M + mean_M
  (found_JM,) = tokenizer.decode_mel([codes_PQ])
  # Decoded alone, the ends of a clip have the code of silence beside them.
  inside = slice(4, -4)
  np.testing.assert_allclose(found_JM[inside], np.maximum(expected_JM, np.log(1e-4))[inside], atol=1e-3)


def test_a_training_run_is_named_as_a_path(tmp_path):
  made('fsq').save(tmp_path / 'codec')
  assert build(AudioConfig(kind='fsq', path=str(tmp_path))) == made('fsq')
  assert build(AudioConfig(kind='fsq', path=str(tmp_path / 'codec'), seconds=0.5)) == made('fsq')
  for change, cause in (
    (dict(kind='frames'), 'holds a fsq tokenizer, not frames'),
    (dict(levels=(5, 5)), r'audio.levels=\(5, 5\), but the tokenizer in audio.path'),
  ):
    with two_lines(ValueError, match=cause):
      build(AudioConfig(**{'kind': 'fsq', 'path': str(tmp_path)} | change))


def test_the_baseline_has_as_many_codes_and_positions():
  cfg = AudioConfig(kind='fsq', hop=80, window=240, levels=(4, 4), network_width=64)
  floor = audio.baseline_config(cfg)
  assert (floor.kind, floor.codes, floor.hop, floor.stack) == ('frames', 16, 80, 4)


def test_clips_are_joined_by_silence():
  tokenizer = made('frames')
  joined_PC = tokenizer.join_with_silence(clips()[:3]).reshape(-1, 160)
  place = 0
  for f_PC in tokenizer.features(clips()[:3]):
    np.testing.assert_array_equal(joined_PC[place : place + 2], np.tile(tokenizer.silence_C, (2, 1)))
    np.testing.assert_allclose(joined_PC[place + 2 : place + 2 + len(f_PC)], f_PC, atol=1e-4)
    place += 2 + len(f_PC)
  assert place == len(joined_PC)


def test_silence_is_a_position_like_any_other():
  tokenizer = made('fsq')
  (features,) = tokenizer.features([np.zeros(1600, np.float32)])
  np.testing.assert_allclose(features, np.tile(tokenizer.silence_C, (4, 1)), atol=1e-4)


# ---------------------------------------------------------------------- configs


@pytest.mark.parametrize(
  ('fields', 'cause'),
  [
    (dict(kind='mp3'), 'audio.kind=mp3 is not possible'),
    (dict(codes=5), "audio.codes=5 has no effect with audio.kind=''"),
    (dict(kind='frames', levels=(5, 5)), r'audio.levels=\(5, 5\) has no effect'),
    (dict(kind='fsq', codes=5), 'audio.codes=5 has no effect'),
    (dict(kind='fsq', books=2), 'audio.books=2 has no effect'),
    (dict(kind='frames', stack=0), 'audio.stack=0 is not possible'),
    (dict(kind='frames', codes=1), 'audio.codes=1 is not possible'),
    (dict(kind='frames', seconds=0.0), 'audio.seconds=0.0 is not possible\nfix: give a duration above 0'),
    (dict(kind='fsq', levels=(8, 1)), r'audio.levels=\(8, 1\) is not possible'),
    (dict(kind='frames', window=120), 'audio.window=120 is less than twice'),
    (dict(kind='frames', mels=300), 'audio.mels=300 leaves'),
  ],
)
def test_configs_that_cannot_be_honored_are_refused(fields, cause):
  with two_lines(ValueError, match=cause):
    AudioConfig(**fields)


def test_tokenizers_that_cannot_be_built_are_refused():
  for cfg, waves, cause in (
    (AudioConfig(), clips, 'audio.kind is empty'),
    (AudioConfig(kind='fsq'), clips, "audio.path='' with audio.kind=fsq"),
    (AudioConfig(kind='frames'), tuple, 'there are none'),
    (AudioConfig(kind='frames'), lambda: clips()[:2], 'codes=1024, but only'),
  ):
    with two_lines(ValueError, match=cause):
      build(cfg, waves)
  with two_lines(ValueError, match='the autoencoder has levels'):
    tokenizer = made('fsq')
    cfg = dataclasses.replace(tokenizer.cfg, levels=(4, 4))
    type(tokenizer)(cfg, tokenizer.statistics, tokenizer.codec_cfg, tokenizer.params)
