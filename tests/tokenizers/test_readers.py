"""Readers: outputs of encoders in windows, stacked, saved without their weights."""

import numpy as np
import pytest

from gpt_jax.data import templates
from gpt_jax.data.documents import encode_batch, media_forms
from gpt_jax.interop.encoders import encoder, families, log_mel
from gpt_jax.tokenizers import EncoderConfig, TokenizerConfig, Tokenizers, audio, grammar, readers, text
from gpt_jax.tokenizers.image import ImageConfig
from gpt_jax.tokenizers.image import build as build_image
from tests import encoders, tiny_runs

RATE = 16_000


@pytest.fixture(scope='module')
def ear(tmp_path_factory):
  """The folder of a tiny Whisper, whose window is one second."""
  return encoders.write(tmp_path_factory.mktemp('ear'), encoders.WHISPER)


@pytest.fixture(scope='module')
def eye(tmp_path_factory):
  """The folder of a tiny CLIP: pictures of 8 x 8 gray pixels, four patches."""
  return encoders.write(tmp_path_factory.mktemp('eye'), encoders.CLIP)


def open_ear(ear, **settings):
  return readers.EncoderReader.open(str(ear), EncoderConfig(audio=str(ear), **settings), 'frames')


def wave_of(samples, seed=0):
  return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def test_a_sound_becomes_the_outputs_of_its_windows(ear):
  reader = open_ear(ear)
  assert reader.form == (RATE, readers.LONGEST) and reader.feature_width == 12
  wave = wave_of(RATE + 1000)
  first, whole, short = reader.features([wave[:RATE], wave, wave[RATE:]])
  assert first.shape == (50, 12) and short.shape == (4, 12)  # an output for each 320 samples begun
  np.testing.assert_allclose(whole, np.concatenate([first, short]), rtol=1e-5, atol=1e-5)
  x = log_mel.log_mel(wave[None, :RATE], 16)
  direct = encoder.run(encoder.load(ear, families.read_spec(encoders.WHISPER)), x)[0]
  np.testing.assert_allclose(first, direct, rtol=1e-5, atol=1e-5)


def test_shorter_windows_and_stacks(ear):
  reader = open_ear(ear, seconds=0.2, stack=4, layer=1)
  assert reader.window == 3200 and reader.feature_width == 48
  features = reader.features([wave_of(1700, seed) for seed in range(readers.BATCH + 1)])
  assert [f.shape for f in features] == [(2, 48)] * (readers.BATCH + 1)  # of six outputs, two empty
  assert not features[0][1, 24:].any() and features[0][1, :24].all()
  alone = reader.features([wave_of(1700, readers.BATCH)])[0]
  np.testing.assert_allclose(features[-1], alone, rtol=1e-5, atol=1e-5)


def test_an_item_is_encoded_once(ear, monkeypatch):
  reader, calls = open_ear(ear), []
  run = encoder.run
  monkeypatch.setattr(encoder, 'run', lambda *args: calls.append(1) or run(*args))
  waves = [wave_of(1000, seed) for seed in (0, 1, 0)]
  first, other, again = reader.features(waves)
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.01 and len(calls) == 1
  np.testing.assert_array_equal(reader.features([waves[1]])[0], other)
  assert len(calls) == 1
  monkeypatch.setattr(readers, 'CACHE_BYTES', 0)  # more than fits is encoded again
  reader._cached.clear()
  for _ in range(2):
    np.testing.assert_array_equal(reader.features([waves[1]])[0].shape, other.shape)
  assert len(calls) == 3


def test_pictures_become_their_patches(eye):
  reader = readers.EncoderReader.open(str(eye), EncoderConfig(image=str(eye), stack=2), 'patches')
  assert (reader.form, reader.grid, reader.feature_width) == ((8, 8, 1), (2, 2), 8)
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
  features = np.stack(reader.features(images))
  pixels = (images / np.float32(255) - np.float32(0.48145466)) / np.float32(0.26862954)
  spec = families.read_spec(encoders.CLIP)
  expected = encoder.run(encoder.load(eye, spec), pixels.astype(np.float32))[:, 1:]  # without the class token
  np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)


def test_tokenizers_keep_their_readers(ear, tmp_path):
  build = lambda **made: Tokenizers.build(text.build(TokenizerConfig('bytes')), readers=made)
  plain, hearing = build(), build(frames=open_ear(ear, stack=2), vectors=readers.VectorReader(5, 3))
  hearing.save(tmp_path / 'a')
  loaded = Tokenizers.load(tmp_path / 'a')
  assert loaded.hash == hearing.hash != plain.hash
  assert sum(path.stat().st_size for path in (tmp_path / 'a').iterdir()) < 10_000  # no weights
  wave = wave_of(2000)
  np.testing.assert_array_equal(
    loaded.reader('frames').features([wave]), hearing.reader('frames').features([wave])
  )
  assert loaded.reader('vectors').fields() == {'width': 5, 'stack': 3} and loaded.reader('patches') is None
  assert loaded.extend(readers={'vectors': readers.VectorReader(2)}).reader('frames').feature_width == 24


def test_a_sound_is_read_by_an_encoder_and_made_of_codes(ear):
  waves = [wave_of(4000, seed) for seed in range(8)]
  codes = audio.build(audio.AudioConfig(kind='frames', codes=4), lambda: waves)
  toks = Tokenizers.build(
    text.build(TokenizerConfig('bytes')), None, codes, readers={'frames': open_ear(ear)}
  )
  assert media_forms(toks)['frames'][0] == RATE and media_forms(toks)['audio'][0] == 8000
  sound = templates.Samples(waves[0], 8000)  # half a second
  pieces = [templates.Piece('frames', sound), templates.Piece('arrow'), templates.Piece('audio', sound)]
  [document] = encode_batch(toks, [pieces])
  special, made = toks.vocabulary.special, codes.encode([waves[0]])[0]
  read = [special('boa'), *[special('frame')] * 25, special('eoa'), special('sep')]
  written = [special('boa'), *toks.encode_codes('audio', made), special('eoa')]
  assert document.ids.tolist() == [*read, *written] and document.frames.shape == (25, 12)


def test_the_hash_is_that_of_the_weights(ear, tmp_path):
  same = encoders.write(tmp_path / 'same', encoders.WHISPER)
  other = encoders.write(tmp_path / 'other', encoders.WHISPER, seed=1)
  assert open_ear(same).hash == open_ear(ear).hash != open_ear(other).hash
  assert len({open_ear(ear, **s).hash for s in ({}, {'stack': 2}, {'layer': 1}, {'seconds': 0.5})}) == 4


def test_weights_that_are_gone_or_changed(ear, tmp_path):
  folder = encoders.write(tmp_path / 'moved', encoders.WHISPER)
  reader = open_ear(folder)
  encoders.write(folder, encoders.WHISPER, seed=2)
  with pytest.raises(ValueError) as error:
    reader.features([wave_of(400)])
  tiny_runs.assert_two_lines(error.value, 'has weights of sha256')
  folder.rename(tmp_path / 'elsewhere')
  with pytest.raises(FileNotFoundError) as error:
    reader.features([wave_of(400)])
  tiny_runs.assert_two_lines(error.value, 'is not in')


def test_folders_that_hold_no_such_encoder(ear, eye, tmp_path):
  for path, kind, words in (
    (ear, 'patches', 'is an encoder of audio'),
    (eye, 'frames', 'is an encoder of image'),
    (tmp_path / 'none', 'frames', 'config.json does not exist'),
  ):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
      readers.EncoderReader.open(str(path), EncoderConfig(), kind)
    tiny_runs.assert_two_lines(error.value, words)


def test_a_relative_folder_is_found_where_data_is(ear, tmp_path, monkeypatch):
  monkeypatch.setenv('GPT_JAX_DATA', str(ear.parent))
  monkeypatch.chdir(tmp_path)
  assert readers.EncoderReader.open(ear.name, EncoderConfig(), 'frames').path == str(ear)


def test_patches_without_codes_have_rows_and_columns(eye):
  reader = readers.EncoderReader.open(str(eye), EncoderConfig(), 'patches')
  toks = Tokenizers.build(text.build(TokenizerConfig('bytes')), readers={'patches': reader})
  special = toks.vocabulary.special
  ids = [65, special('boi'), *[special('patch')] * 4, special('eoi'), special('sep'), 66]
  rules = grammar.build(toks.vocabulary, toks.layout, toks.vocabulary.padded, 'text')
  state, positions_BP3 = grammar.read_prompts(rules, np.array([ids]), np.array([len(ids)]), np.array([5]))
  trained_BP3 = toks.layout.positions3(np.array([ids]), np.ones((1, len(ids)), int))
  np.testing.assert_array_equal(positions_BP3, trained_BP3)
  assert trained_BP3[0, 2:6].tolist() == [[2, 2, 2], [2, 2, 3], [2, 3, 2], [2, 3, 3]]
  allowed_V = np.asarray(grammar.allowed(rules, state))[0]
  assert allowed_V[66] and not allowed_V[special('boi')] and not allowed_V[special('patch')]
  with pytest.raises(ValueError, match='this model has no image tokens'):
    grammar.build(toks.vocabulary, toks.layout, toks.vocabulary.padded, 'image')


def test_codes_and_patches_have_one_grid(eye):
  reader = readers.EncoderReader.open(str(eye), EncoderConfig(), 'patches')
  codes = build_image(ImageConfig('pixels', '', 4, 4, 1, patch=1), tuple)
  with pytest.raises(ValueError) as error:
    Tokenizers.build(text.build(TokenizerConfig('bytes')), codes, readers={'patches': reader})
  tiny_runs.assert_two_lines(error.value, '(4, 4) codes and (2, 2) patches')


@pytest.mark.parametrize('settings', [{'stack': 0}, {'seconds': 0.01}, {'layer': -1}])
def test_impossible_settings(settings):
  [(name, value)] = settings.items()
  with pytest.raises(ValueError) as error:
    EncoderConfig(**settings)
  tiny_runs.assert_two_lines(error.value, f'encoder.{name}={value} is not possible')


def test_blank_pictures_of_equal_bytes_are_kept_by_their_shape():
  reader = readers.EncoderReader('', '', {}, 0, 1, 0.0)
  reader._encode = lambda items: [np.zeros((item.shape[0], 2), np.float32) for item in items]
  pictures = [np.zeros(shape, np.uint8) for shape in ((6, 4, 3), (4, 6, 3), (6, 4, 3))]
  assert [len(x_PU) for x_PU in reader.features(pictures)] == [6, 4, 6]
  assert [len(x_PU) for x_PU in reader.features(pictures)] == [6, 4, 6]
