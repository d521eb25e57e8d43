"""Pictures and sounds: read from every form that records have, and written."""

import io
import os
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gpt_jax.data import media_io
from gpt_jax.data.media_io import open_bytes, read_image, read_sound, tile, to_png, to_wav
from tests.data_helpers import two_lines


def encoded(picture, kind='PNG', **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


def sine(frequency, rate, seconds=0.5, level=0.4):
  return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype('f4')


# ---------------------------------------------------------------------------- pictures


@settings(max_examples=30, deadline=None)
@given(
  size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
  channels=st.sampled_from([1, 3]),
  seed=st.integers(0, 99),
)
def test_png_is_lossless(size, channels, seed):
  image = np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)
  back, note = read_image(to_png(image), image.shape)
  np.testing.assert_array_equal(back, image)
  assert back.dtype == np.uint8 and note == ''
  again, note = read_image(image, image.shape)
  np.testing.assert_array_equal(again, image)
  assert note == ''


def test_gray_arrays_need_no_channel():
  image = np.arange(12, dtype=np.uint8).reshape(3, 4)
  np.testing.assert_array_equal(read_image(image, (3, 4, 1))[0][..., 0], image)
  np.testing.assert_array_equal(read_image(to_png(image), (3, 4, 1))[0][..., 0], image)
  color, note = read_image(image, (3, 4, 3))
  assert note == 'gray converted to color' and (color == image[..., None]).all()


def test_every_pixel_is_a_square_of_scale():
  image = np.array([[0, 255], [255, 0]], np.uint8)
  large, _ = read_image(to_png(image, scale=3), (6, 6, 1))
  np.testing.assert_array_equal(large[..., 0], image.repeat(3, 0).repeat(3, 1))


def test_other_sizes_are_resized_and_the_note_says_so():
  image = np.full((72, 36, 3), 90, np.uint8)
  small, note = read_image(image, (28, 28, 3))
  assert small.shape == (28, 28, 3) and (small == 90).all()
  assert note == 'resized from 36x72'
  # Antialiased: fine stripes become their mean, not one of them.
  stripes = np.zeros((64, 64), np.uint8)
  stripes[:, ::2] = 200
  small, _ = read_image(stripes, (8, 8, 1))
  assert np.abs(small[2:-2, 2:-2].astype(int) - 100).max() < 10


def test_alpha_is_composited_over_white():
  image = np.zeros((4, 4, 4), np.uint8)
  image[:, :2] = (200, 0, 0, 255)
  for value in (image, to_png(image)):
    pixels, note = read_image(value, (4, 4, 3))
    assert (pixels[:, :2] == (200, 0, 0)).all() and (pixels[:, 2:] == 255).all()
    assert note == 'color with alpha composited over white'
  gray = np.zeros((2, 2, 2), np.uint8)
  assert (read_image(gray, (2, 2, 1))[0] == 255).all()


def test_transparent_pixels_do_not_bleed_when_resized():
  image = np.zeros((8, 8, 4), np.uint8)  # black, but invisible
  assert (read_image(image, (3, 3, 3))[0] == 255).all()


@pytest.mark.parametrize(
  ('mode', 'kind', 'note'),
  [
    ('P', 'PNG', ''),
    ('1', 'PNG', 'black and white converted to color'),
    ('CMYK', 'JPEG', 'CMYK converted to color'),
    ('L', 'PNG', 'gray converted to color'),
  ],
)
def test_modes_are_converted(mode, kind, note):
  picture = Image.new('RGB', (5, 5), (255, 255, 255)).convert(mode)
  pixels, actual = read_image(encoded(picture, kind), (5, 5, 3))
  assert (pixels >= 254).all() and actual == note


def test_sixteen_bits_are_reduced_not_clipped():
  values = np.array([[0, 32768], [65535, 257]], np.uint16)
  pixels, note = read_image(encoded(Image.fromarray(values)), (2, 2, 1))
  assert pixels[..., 0].tolist() == [[0, 128], [255, 1]]
  assert note == '16 bits reduced to 8'


def test_orientation_is_applied_and_animations_give_their_first_frame():
  image = np.zeros((2, 4, 3), np.uint8)
  image[:, :2] = 255
  exif = Image.Exif()
  exif[0x0112] = 6
  picture = Image.fromarray(image)
  pixels, note = read_image(encoded(picture, exif=exif), (4, 2, 3))
  assert note == 'turned upright' and (pixels[:2] == 255).all() and (pixels[2:] == 0).all()
  film = encoded(picture, 'GIF', save_all=True, append_images=[Image.new('RGB', (4, 2))])
  assert 'first of 2 frames' in read_image(film, (2, 4, 3))[1]


@pytest.mark.parametrize(
  ('array', 'cause'),
  [
    (np.zeros((2, 2), np.float32), 'float32, not uint8'),
    (np.zeros((2, 2), bool), 'bool, not uint8'),
    (np.zeros((2, 2), np.int64), 'int64, not uint8'),
    (np.zeros((2, 2, 5), np.uint8), r'shape \(2, 2, 5\)'),
    (np.zeros(4, np.uint8), r'shape \(4,\)'),
    (np.zeros((0, 2), np.uint8), r'shape \(0, 2\)'),
  ],
)
def test_arrays_that_are_not_images_are_refused(array, cause):
  with two_lines(ValueError, match=f'^record 3: an image array .*{cause}'):
    read_image(array, (2, 2, 1), 'record 3')


def test_damaged_pictures_are_refused_by_name(tmp_path):
  whole = to_png(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8))
  path = tmp_path / 'cut.png'
  path.write_bytes(whole[: len(whole) // 2])
  with two_lines(ValueError, match=f'record 5: {path} is not a whole picture'):
    read_image(path, (50, 50, 3), 'record 5')
  with two_lines(ValueError, match='record 6: a file of 9 bytes is not a picture'):
    read_image(b'no image!', (2, 2, 3), 'record 6')


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_changed_byte_gives_a_picture_or_two_lines(place, byte):
  content = bytearray(to_png(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)))
  content[place % len(content)] = byte
  try:
    assert read_image(bytes(content), (4, 4, 3), 'record 7')[0].shape == (4, 4, 3)
  except ValueError as error:
    assert str(error).startswith('record 7: ') and str(error).count('\n') == 1


@pytest.mark.parametrize('side', [8000, 12000, 40000])
def test_huge_pictures_are_refused_before_they_are_decoded(side, tmp_path):
  content = bytearray(encoded(Image.new('1', (1, 1))))
  header = content[12:16] + side.to_bytes(4, 'big') * 2 + content[24:29]
  path = tmp_path / 'huge.png'
  path.write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4, 'big') + content[33:])
  with two_lines(ValueError, match=f'{path} is too large to decode: .*({side}x|{side**2} )'):
    read_image(path, (2, 2, 1))


def test_tiles_are_in_reading_order():
  images = [np.full((2, 3, 1), value, np.uint8) for value in (10, 20, 30)]
  picture = tile(images, 2)
  assert picture.shape == (5, 7, 1)
  assert picture[0, 0, 0] == 10 and picture[0, 6, 0] == 20 and picture[4, 0, 0] == 30
  assert (picture[2] == 255).all() and (picture[:, 3] == 255).all() and picture[4, 6, 0] == 255
  assert tile(images, 9).shape == (2, 11, 1)


# ---------------------------------------------------------------------------- sounds


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 500), seed=st.integers(0, 99))
def test_sixteen_bit_sound_survives_exactly(samples, seed):
  integers = np.random.default_rng(seed).integers(-32768, 32768, samples, np.int16)
  wave, note = read_sound(integers, 8000)
  assert note == '' and wave.dtype == np.float32
  np.testing.assert_array_equal(wave * 32768, integers)
  back, note = read_sound(to_wav(wave, 8000), 8000)
  np.testing.assert_array_equal(back, wave)
  np.testing.assert_array_equal(read_sound(integers.astype(np.int64), 8000)[0], wave)
  np.testing.assert_array_equal(read_sound(wave, 8000)[0], wave)


@pytest.mark.parametrize('rate', [4000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize('form', ['file', 'array'])
def test_resampling_keeps_pitch_and_length(rate, form):
  wave = sine(440, rate)
  value = to_wav(wave, rate) if form == 'file' else wave
  actual, note = read_sound(value, 8000, rate=0 if form == 'file' else rate)
  assert note == f'resampled from {rate} Hz' and abs(len(actual) - 4000) <= 1
  middle = slice(200, 3800)
  np.testing.assert_allclose(actual[:4000][middle], sine(440, 8000)[middle], atol=0.02)


def test_channels_are_averaged():
  import soundfile

  stereo = np.stack([sine(300, 8000), sine(500, 8000)], 1)
  file = io.BytesIO()
  soundfile.write(file, stereo, 8000, format='FLAC')
  for value in (file.getvalue(), stereo):
    wave, note = read_sound(value, 8000)
    assert note == '2 channels averaged'
    np.testing.assert_allclose(wave, stereo.mean(1), atol=1e-4)
  assert read_sound(stereo[:, :1], 8000)[1] == ''


@pytest.mark.parametrize(
  ('value', 'cause'),
  [
    (np.zeros(0, np.int16), 'the sound has no samples'),
    (np.zeros(8001, np.int16), 'lasts 1 s, more than 1 s'),
    (np.array([0.0, np.nan]), 'NaN or infinite'),
    (np.array([0.0, np.inf]), 'from 0.0 to inf'),
    (np.array([0.0, 3.0]), 'from 0.0 to 3.0'),
    (np.array([70000]), 'from 70000 to 70000'),
    (np.zeros(9, np.uint8), 'uint8, not 16-bit'),
    (np.zeros((2, 9)), r'shape \(2, 9\)'),
    (b'RIFFnothing', 'a file of 11 bytes is not a sound'),
    (to_wav(np.zeros(9000), 8000), 'more than 1 s'),
    (to_wav(np.zeros(0), 8000), 'no samples'),
  ],
)
def test_unusable_sounds_are_refused(value, cause):
  with two_lines(ValueError, match=f'^record 4: .*{cause}'):
    read_sound(value, 8000, 'record 4', most_seconds=1.0)


def test_a_wav_that_would_clip_is_scaled_down():
  back, _ = read_sound(to_wav(np.array([0.0, 2.0, -4.0]), 8000), 8000)
  np.testing.assert_allclose(back, [0, 0.5, -1], atol=1e-4)
  with two_lines(ValueError, match='one row of finite samples'):
    to_wav(np.array([np.nan]), 8000)


# ---------------------------------------------------------------------------- files


def test_members_of_archives_are_files(tmp_path, monkeypatch):
  wave = to_wav(sine(440, 8000), 8000)
  with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
    archive.writestr('deep/one.wav', wave)
  (tmp_path / 'two.wav').write_bytes(wave)
  monkeypatch.setenv('GPT_JAX_DATA', str(tmp_path))
  for path in ('all.zip/deep/one.wav', tmp_path / 'all.zip' / 'deep' / 'one.wav', 'two.wav'):
    assert open_bytes(path) == wave
    assert len(read_sound(path, 8000)[0]) == 4000
  for path in ('all.zip/one.wav', 'none.wav', 'none.zip/one.wav'):
    with two_lines(FileNotFoundError, match='^record 1: .*(no member|no file)'):
      read_sound(path, 8000, 'record 1')
  (tmp_path / 'broken.zip').write_bytes(b'PK no archive')
  with two_lines(ValueError, match='broken.zip cannot be read'):
    open_bytes('broken.zip/one.wav')


def test_a_replaced_archive_is_read_anew(tmp_path):
  path = tmp_path / 'all.zip'
  for content in (b'old', b'newer'):
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('file', content)
    os.utime(path, ns=(len(content), len(content)))
    assert open_bytes(path / 'file') == content


def test_a_process_has_its_own_archive(tmp_path, monkeypatch):
  with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
    archive.writestr('file', b'content')
  opened = []
  real = zipfile.ZipFile
  monkeypatch.setattr(media_io.zipfile, 'ZipFile', lambda path: opened.append(path) or real(path))
  media_io._archive.cache_clear()
  for process in (1, 1, 2):
    monkeypatch.setattr(media_io.os, 'getpid', lambda process=process: process)
    assert open_bytes(tmp_path / 'all.zip' / 'file') == b'content'
  assert len(opened) == 2
  media_io._archive.cache_clear()


def test_fsdd_is_read_from_its_archive(data_dir):
  path = data_dir / 'fsdd' / 'recordings.zip' / '7_jackson_3.wav'
  wave, note = read_sound(path, 8000)
  assert note == '' and 0.2 < len(wave) / 8000 < 1 and np.abs(wave).max() > 0.1
