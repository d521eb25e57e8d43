"""Every format of the table is read by a real source, is converted as it says, or is refused by name."""

import io
import logging
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpt_jax import data
from gpt_jax.data import DataConfig, Source, formats, media_io
from gpt_jax.data.sources import open_source
from tests.data_helpers import two_lines

soundfile = pytest.importorskip('soundfile')
RNG = np.random.default_rng(0)
GRAY = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)
COLOR = np.stack([GRAY, GRAY[::-1], 255 - GRAY], -1)
ALPHA = np.dstack([COLOR, np.where(GRAY > 99, 255, 0).astype(np.uint8)])
DEEP = GRAY.astype(np.uint16) * 257
WAVE = (0.5 * np.sin(np.arange(1600) / 9)).astype(np.float32)


def picture(array, kind, mode='', **options):
  """The bytes of a picture that Pillow writes."""
  file, image = io.BytesIO(), Image.fromarray(array)
  (image.convert(mode) if mode else image).save(file, kind, **options)
  return file.getvalue()


def deep_png(color, channels):
  """A PNG of 16 bits, which Pillow cannot write: the channels are GRAY, of full alpha."""
  planes = [*[DEEP] * (channels - (color in (4, 6))), *[np.full_like(DEEP, 65535)] * (color in (4, 6))]
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in np.stack(planes, -1))
  chunk = lambda kind, body: (
    struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
  )
  head = struct.pack('>IIBBBBB', 8, 6, 16, color, 0, 0, 0)
  start, end = chunk(b'IHDR', head), chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + start + chunk(b'IDAT', zlib.compress(rows)) + end


def tiff(bits, photometric=1):
  """A gray TIFF of this many bits, which are packed."""
  values = DEEP >> (16 - bits)
  flat = ''.join(f'{value:0{bits}b}' for value in values.ravel()) if bits < 16 else ''
  body = int(flat, 2).to_bytes(len(flat) // 8, 'big') if flat else values.astype('<u2').tobytes()
  tags = {256: 8, 257: 6, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 6, 279: len(body)}
  entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items())
  return (b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + entries + bytes(4)).ljust(122, b'\0') + body


def sound(kind, subtype=None, rate=8000, wave=WAVE, **options):
  file = io.BytesIO()
  soundfile.write(file, wave, rate, format=kind, subtype=subtype, **options)
  return file.getvalue()


def read(folder, name, content, template, **fields):
  """What a source of the folder makes of a file: an array, and the notes that a run logs."""
  (folder / name).write_bytes(content)
  source = Source('files', str(folder), template, **fields)
  cfg = DataConfig({'x': source}, packing='first_fit', valid_fraction=0.0)
  if 'image' in template:
    return data.load_images(cfg, (6, 8, 3 if 'color' in template else 1))[0]
  return data.load_waveforms(cfg, 8000)[0]


LAB = io.BytesIO()
Image.merge('LAB', [Image.fromarray(GRAY)] * 3).save(LAB, 'TIFF')
UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 3
TO_GRAY = 'color converted to gray'
CLEAR = 'palette with transparency composited over white'
PICTURES = [  # name, content, tolerance, notes
  ('1.png', picture(GRAY, 'PNG', '1'), 255, ['black and white converted to gray']),
  ('2.png', picture(GRAY // 64, 'PNG', 'P', bits=2), 255, ['palette converted to gray']),
  ('4.png', picture(GRAY // 16, 'PNG', 'P', bits=4), 255, ['palette converted to gray']),
  ('8.png', picture(GRAY, 'PNG'), 0, []),
  ('16.png', deep_png(0, 1), 0, ['16 bits reduced to 8']),
  ('la.png', picture(GRAY, 'PNG', 'LA'), 0, ['gray with alpha composited over white']),
  ('p.png', picture(GRAY, 'PNG', 'P'), 0, ['palette converted to gray']),
  ('tp.png', picture(GRAY, 'PNG', 'P', transparency=0), 255, [CLEAR]),
  ('rgb.png', picture(GRAY, 'PNG', 'RGB'), 0, [TO_GRAY]),
  ('rgba.png', picture(GRAY, 'PNG', 'RGBA'), 0, ['color with alpha composited over white']),
  ('rgb16.png', deep_png(2, 3), 0, ['16 bits reduced to 8', TO_GRAY]),
  ('la16.png', deep_png(4, 2), 0, ['16 bits reduced to 8', 'color with alpha composited over white']),
  (
    'film.apng',
    picture(GRAY, 'PNG', save_all=True, append_images=[Image.fromarray(255 - GRAY)]),
    0,
    ['first of 2 frames'],
  ),
  ('gray.jpg', picture(GRAY, 'JPEG', quality=100), 3, []),
  ('rgb.jpeg', picture(GRAY, 'JPEG', 'RGB', quality=100), 3, [TO_GRAY]),
  ('cmyk.jpg', picture(GRAY, 'JPEG', 'CMYK', quality=100), 9, ['CMYK converted to gray']),
  ('turned.jpg', picture(GRAY[::-1, ::-1], 'JPEG', quality=100, exif=UPRIGHT), 3, ['turned upright']),
  ('x.webp', picture(GRAY, 'WEBP', lossless=True), 2, [TO_GRAY]),
  ('x.gif', picture(GRAY, 'GIF'), 0, ['palette converted to gray']),
  (
    'film.gif',
    picture(GRAY, 'GIF', save_all=True, append_images=[Image.fromarray(255 - GRAY)]),
    0,
    ['first of 2 frames', 'palette converted to gray'],
  ),
  ('x.bmp', picture(GRAY, 'BMP'), 0, []),
  ('x.tif', picture(GRAY, 'TIFF'), 0, []),
  ('16.tiff', tiff(16), 0, ['16 bits reduced to 8']),
  ('12.tiff', tiff(12), 0, ['12 bits reduced to 8']),
  (
    'pages.tiff',
    picture(GRAY, 'TIFF', save_all=True, append_images=[Image.fromarray(GRAY)]),
    0,
    ['first of 2 frames'],
  ),
  ('cmyk.tiff', picture(GRAY, 'TIFF', 'CMYK'), 2, ['CMYK converted to gray']),
  ('ycbcr.tiff', picture(GRAY, 'TIFF', 'YCbCr'), 2, ['YCbCr converted to gray']),
  ('x.ico', picture(GRAY, 'ICO', sizes=[(8, 6)]), 0, []),
  ('x.ppm', picture(GRAY, 'PPM', 'RGB'), 0, [TO_GRAY]),
  ('x.pgm', picture(GRAY, 'PPM'), 0, []),
  ('x.pbm', picture(GRAY, 'PPM', '1'), 255, ['black and white converted to gray']),
  ('16.pgm', b'P5 8 6 65535\n' + DEEP.astype('>u2').tobytes(), 0, ['16 bits reduced to 8']),
  ('12.pgm', b'P5 8 6 4095\n' + (DEEP >> 4).astype('>u2').tobytes(), 0, ['16 bits reduced to 8']),
  (
    '16.ppm',
    b'P6 8 6 65535\n' + np.stack([DEEP] * 3, -1).astype('>u2').tobytes(),
    0,
    ['16 bits reduced to 8', TO_GRAY],
  ),
  ('x.jp2', picture(GRAY, 'JPEG2000'), 0, []),
  ('16.jp2', picture(DEEP, 'JPEG2000'), 0, ['16 bits reduced to 8']),
  ('x.qoi', picture(GRAY, 'QOI', 'RGB'), 0, [TO_GRAY]),
  ('x.sgi', picture(GRAY, 'SGI'), 0, []),
  ('x.dds', picture(GRAY, 'DDS'), 0, []),
  ('x.pcx', picture(GRAY, 'PCX'), 0, []),
  ('x.tga', picture(GRAY, 'TGA'), 0, []),
  ('wrong.jpg', picture(GRAY, 'PNG'), 0, []),
]


@pytest.mark.parametrize(('name', 'content', 'tolerance', 'notes'), PICTURES, ids=[p[0] for p in PICTURES])
def test_pictures(tmp_path, caplog, name, content, tolerance, notes):
  with caplog.at_level(logging.WARNING):
    pixels = read(tmp_path, name, content, '{image:image}')
  assert np.abs(pixels[..., 0].astype(int) - GRAY).max() <= tolerance
  said = [record.getMessage() for record in caplog.records]
  assert [line for line in said if 'resized' in line] == []
  assert sorted(line.partition('1 images ')[2] for line in said) == sorted(notes)


def test_avif(tmp_path):
  from PIL import features

  if not features.check('avif'):
    pytest.skip('this Pillow was built without AVIF')
  pixels = read(tmp_path, 'x.avif', picture(GRAY, 'AVIF', quality=100), '{image:image}')
  assert np.abs(pixels[..., 0].astype(int) - GRAY).max() <= 3


def test_a_photoshop_file_gives_its_composite(tmp_path):
  head = b'8BPS\0\1' + bytes(6) + struct.pack('>HIIHH', 1, 6, 8, 8, 1)
  pixels = read(tmp_path, 'x.psd', head + bytes(12) + bytes(2) + GRAY.tobytes(), '{image:image}')
  np.testing.assert_array_equal(pixels[..., 0], GRAY)


def test_one_scale_for_all_frames_of_a_camera():
  """A dark frame stays dark: white is what the format says, not its brightest pixel."""
  for top in (200, 300, 65535):
    values = np.full((2, 2), top, np.uint16)
    for kind in ('PNG', 'TIFF', 'JPEG2000', 'PPM'):
      pixels, _ = media_io.read_image(picture(values, kind), (2, 2, 1))
      assert pixels[0, 0, 0] == round(top / 257), (top, kind)
  inverted, _ = media_io.read_image(tiff(16, photometric=0), (6, 8, 1))
  np.testing.assert_array_equal(inverted[..., 0], 255 - GRAY)


SOUNDS = [  # name, format, subtype, tolerance
  ('u8.wav', 'WAV', 'PCM_U8', 0.01),
  ('16.wav', 'WAV', 'PCM_16', 1e-4),
  ('24.wav', 'WAV', 'PCM_24', 1e-6),
  ('32.wav', 'WAV', 'PCM_32', 1e-6),
  ('float.wav', 'WAV', 'FLOAT', 0),
  ('double.wav', 'WAV', 'DOUBLE', 0),
  ('mulaw.wav', 'WAV', 'ULAW', 0.02),
  ('alaw.wav', 'WAV', 'ALAW', 0.02),
  ('ima.wav', 'WAV', 'IMA_ADPCM', 0.3),
  ('ms.wav', 'WAV', 'MS_ADPCM', 0.05),
  ('gsm.wav', 'WAV', 'GSM610', 0.5),
  ('extensible.wav', 'WAVEX', 'PCM_24', 1e-6),
  ('x.flac', 'FLAC', 'PCM_16', 1e-4),
  ('24.flac', 'FLAC', 'PCM_24', 1e-6),
  ('x.ogg', 'OGG', 'VORBIS', 0.05),
  ('x.oga', 'OGG', 'VORBIS', 0.05),
  ('x.opus', 'OGG', 'OPUS', 0.1),
  ('x.mp3', 'MP3', 'MPEG_LAYER_III', 0.05),
  ('x.aiff', 'AIFF', 'PCM_16', 1e-4),
  ('x.aif', 'AIFF', 'PCM_24', 1e-6),
  ('x.aifc', 'AIFF', 'FLOAT', 0),
  ('x.au', 'AU', 'PCM_16', 1e-4),
  ('x.snd', 'AU', 'ULAW', 0.02),
  ('x.caf', 'CAF', 'ALAC_16', 1e-4),
  ('x.w64', 'W64', 'PCM_16', 1e-4),
  ('x.rf64', 'RF64', 'PCM_16', 1e-4),
  ('x.voc', 'VOC', 'PCM_16', 1e-4),
  ('x.sph', 'NIST', 'PCM_16', 1e-4),
  ('wrong.mp3', 'FLAC', 'PCM_16', 1e-4),
]


@pytest.mark.parametrize(('name', 'kind', 'subtype', 'tolerance'), SOUNDS, ids=[s[0] for s in SOUNDS])
def test_sounds(tmp_path, name, kind, subtype, tolerance):
  wave = read(tmp_path, name, sound(kind, subtype), '{audio:audio}')
  assert len(WAVE) <= len(wave) <= len(WAVE) + 700  # ADPCM fills its last block
  assert np.abs(wave[: len(WAVE)] - WAVE).max() <= tolerance


@pytest.mark.parametrize('channels', [2, 6])
@pytest.mark.parametrize('rate', [7919, 44101, 192_000])
def test_channels_and_odd_rates(tmp_path, caplog, channels, rate):
  times = np.arange(rate // 5) / rate
  wave = np.tile(0.5 * np.sin(2 * np.pi * 440 * times)[:, None], (1, channels))
  with caplog.at_level(logging.WARNING):
    actual = read(tmp_path, 'x.wav', sound('WAV', 'FLOAT', rate, wave), '{audio:audio}')
  assert abs(len(actual) - 1600) <= 1
  expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1600) / 8000)
  np.testing.assert_allclose(actual[200:1400], expected[200:1400], atol=0.01)
  assert f'1 sounds resampled from {rate} Hz' in caplog.text
  assert f'1 sounds {channels} channels averaged' in caplog.text


WAV = sound('WAV', 'PCM_16')
FTYP = b'\0\0\0\x18ftyp'
REFUSED = [  # template, name, content, cause, fix
  ('image', 'x.png', b'', 'x.png is empty', 'fetch it again'),
  ('image', 'x.png', picture(COLOR, 'PNG')[:60], 'x.png is not a whole picture: ', 'repair or drop it'),
  (
    'image',
    'x.gif',
    picture(GRAY, 'GIF', save_all=True, append_images=[Image.fromarray(COLOR)])[:200],
    'x.gif is a GIF picture that cannot be decoded: ',
    'repair',
  ),
  (
    'image',
    'x.tif',
    picture(GRAY, 'TIFF', save_all=True, append_images=[Image.fromarray(COLOR)])[:-150],
    'x.tif is not a whole picture: ',
    'repair or drop it',
  ),
  ('image', 'x.png', WAV, 'x.png is not a picture: it is a WAV sound', 'drop it'),
  ('image', 'x.jpg', b'<!DOCTYPE html><html>', 'x.jpg is not a picture: it is a web page', 'drop it'),
  ('image', 'x.jpg', b'version https://git-lfs.github.com/spec/v1', 'a Git LFS pointer', 'drop it'),
  ('image', 'x.jpg', FTYP + b'heic', 'x.jpg is a HEIC picture that cannot be decoded', 'convert it to .png'),
  (
    'image',
    'x.png',
    b'<svg xmlns="">',
    'x.png is an SVG drawing that cannot be decoded',
    'convert it to .png',
  ),
  ('image', 'x.png', b'%!PS-Adobe-3.0 EPSF-3.0\n', 'x.png is a PostScript drawing', 'convert it to .png'),
  (
    'image',
    'x.tif',
    picture(GRAY.astype(np.float32), 'TIFF'),
    'x.tif: it has floats (mode F)',
    'save it with 8',
  ),
  (
    'image',
    'x.tif',
    picture(GRAY.astype(np.int32), 'TIFF'),
    'x.tif: it has 32-bit integers',
    'save it with 8',
  ),
  ('image', 'x.tif', LAB.getvalue(), 'x.tif: it has CIELAB colors', 'save it'),
  ('audio', 'x.wav', b'', 'x.wav is empty', 'fetch it again'),
  ('audio', 'x.wav', WAV[:-600], 'x.wav: it ends after 2600 of 3200 bytes of sound', 'fetch it again'),
  ('audio', 'x.wav', WAV[:44], 'x.wav: the sound has no samples', 'drop'),
  ('audio', 'x.flac', sound('FLAC')[:-600], 'x.flac is not a whole sound: ', 'repair or drop it'),
  ('audio', 'x.wav', picture(GRAY, 'PNG'), 'x.wav is not a sound: it is a PNG picture', 'drop it'),
  ('audio', 'x.mp3', FTYP + b'M4A ', 'x.mp3 is an MPEG-4 sound or video (AAC) that cannot', 'ffmpeg -i'),
  ('audio', 'x.mp3', b'\xff\xf1' + bytes(99), 'x.mp3 is an AAC sound that cannot be decoded', 'ffmpeg -i'),
  ('audio', 'x.wav', b'\x30\x26\xb2\x75\x8e\x66\xcf\x11' + bytes(99), '(WMA) that cannot', 'ffmpeg -i'),
  (
    'audio',
    'x.wav',
    WAV[:24] + struct.pack('<I', 2**31 - 1) + WAV[28:],
    'x.wav: the sound has a rate of 2147483647 Hz, expected 50 to 768000',
    'correct the rate',
  ),
  (
    'audio',
    'x.wav',
    sound('WAV', wave=np.zeros((9, 65))),
    'the sound has 65 channels, more than 64',
    'mix it',
  ),
]


@pytest.mark.parametrize(('kind', 'name', 'content', 'cause', 'fix'), REFUSED)
def test_refused_by_name(tmp_path, kind, name, content, cause, fix):
  with pytest.raises(ValueError) as error:
    read(tmp_path, name, content, f'{{x:{kind}}}'.replace('x', kind))
  first, second = str(error.value).split('\n')
  assert str(tmp_path / name) in first and cause in first and '<_io' not in first
  assert second.startswith('fix: ') and fix in second and 'data.mixture.x.bad_records=1' in second


@pytest.mark.parametrize('rate', [44_101, 131_071, 767_999])
def test_the_filter_of_an_odd_rate_is_bounded(monkeypatch, rate):
  from scipy import signal

  terms, real = [], signal.resample_poly
  monkeypatch.setattr(
    signal, 'resample_poly', lambda x, up, down: terms.append((up, down)) or real(x, up, down)
  )
  media_io.read_sound(np.zeros(100), 16_000, rate=rate)
  [(up, down)] = terms
  assert max(up, down) <= media_io.MOST_TERM and abs(up / down * rate / 16_000 - 1) < 31e-6


def test_large_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(media_io, 'MOST_BYTES', 100)
  (tmp_path / 'x.png').write_bytes(bytes(101))
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('x.png', bytes(101))
  monkeypatch.setattr(Path, 'read_bytes', None)
  for path in ('x.png', 'x.zip/x.png'):
    with two_lines(ValueError, f'{path} has 101 bytes (unpacked), more than 100'):
      media_io.open_bytes(tmp_path / path)


def test_damaged_files_give_media_or_two_lines():
  rng = np.random.default_rng(0)
  cases = [(media_io.read_image, (6, 8, 1), content) for _, content, *_ in PICTURES]
  cases += [(media_io.read_sound, 8000, sound(kind, subtype)) for _, kind, subtype, _ in SOUNDS]
  for reader, form, whole in cases * 8:
    content = bytearray(whole[: rng.integers(1, len(whole) + 1) if rng.random() < 0.3 else None])
    for place in rng.integers(0, min(len(content), 400), 3):
      content[place] = rng.integers(256)
    try:
      reader(bytes(content), form)
    except ValueError as error:
      assert str(error).count('\n') == str(error).count('\nfix: ') == 1


@pytest.mark.parametrize('kind', ['GIF', 'TIFF'])
def test_a_cut_film_gives_its_first_frame_or_two_lines(kind):
  content = picture(GRAY, kind, save_all=True, append_images=[Image.fromarray(255 - GRAY)])
  with two_lines(ValueError, 'a file of 30 bytes is'):
    media_io.read_image(content[:30], (6, 8, 1))
  for size in range(31, len(content), 11):
    try:
      media_io.read_image(content[:size], (6, 8, 1))
    except ValueError as error:
      assert any(cause in str(error) for cause in ('not a whole picture: ', 'cannot be decoded: '))
      assert str(error).count('\n') == 1


def test_a_loud_sound_is_scaled_and_not_clipped():
  wave, note = media_io.read_sound(sound('WAV', 'FLOAT', wave=3 * WAVE), 8000)
  np.testing.assert_allclose(wave, WAVE / np.abs(WAVE).max(), atol=1e-6)
  assert note == 'scaled down from a peak of 1.5'


# --------------------------------------------------------------------------- folders


def names(source):
  return [record['file'] for _, record in open_source(source, 'train').records()]


@pytest.mark.parametrize('form', ['folder', 'zip'])
def test_only_media_of_the_template_are_taken(tmp_path, caplog, form):
  folder = tmp_path / 'media'
  (folder / 'x.png').mkdir(parents=True)
  wanted = ['a.PNG', 'b.tif', 'x.png/c.jpg']
  hidden = ['._a.png', '.DS_Store', 'Thumbs.db', '__MACOSX/._1.png', '.git/z.png', 'notes.txt', 'cover.wav']
  for name in (*wanted, *hidden, 'phone.heic', 'phone2.HEIC'):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b'content')
  path = str(folder)
  if form == 'zip':
    path = f'{folder}.zip'
    with zipfile.ZipFile(path, 'w') as archive:
      for file in sorted(folder.rglob('*')):
        archive.write(file, file.relative_to(folder))
  with caplog.at_level(logging.WARNING):
    assert names(Source('files', path, '{image:image}')) == wanted
  assert '2 files of formats that are not read are left out, as phone.heic' in caplog.text
  assert names(Source('files', path, '{audio:audio}')) == ['cover.wav']


def test_a_folder_of_unreadable_formats_says_so(tmp_path):
  (tmp_path / 'a.m4a').touch()
  with two_lines(ValueError, 'no file of a format that is read, but a.m4a'):
    open_source(Source('files', str(tmp_path), '{audio:audio}'), 'train')


def test_circles_of_links_are_read_once(tmp_path, caplog):
  folder, other = tmp_path / 'folder', tmp_path / 'other'
  for place in (folder / 'in', other):
    place.mkdir(parents=True)
    (place / 'x.png').write_bytes(b'content')
    (place / 'x.txt').write_bytes(b'content')
  os.symlink(folder, folder / 'again')
  os.symlink(folder / 'in', folder / 'a')
  os.symlink(other, folder / 'elsewhere')
  os.symlink(folder, other / 'back')
  with caplog.at_level(logging.WARNING):
    assert names(Source('files', str(folder), '{image:image}')) == ['elsewhere/x.png', 'in/x.png']
  assert 'links to folders that are read already are left out' in caplog.text
  for path in (folder, f'{folder}/**/*.txt', f'{tmp_path}/f*/**', f'{folder}/**/x.t*'):
    source = Source('text', str(path))
    assert len(list(open_source(source, 'train').records())) == (4 if str(path).endswith('**') else 2)


def test_a_damaged_archive_is_two_lines(tmp_path):
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
    archive.writestr('a.png', b'content')
  content = (tmp_path / 'a.zip').read_bytes()
  (tmp_path / 'a.zip').write_bytes(content.replace(b'PK\1\2', b'PK\1\0'))
  with two_lines(ValueError, 'a.zip is not a whole zip archive'):
    open_source(Source('files', str(tmp_path / 'a.zip'), '{image:image}'), 'train')


# --------------------------------------------------------------------------- documentation


def test_the_documentation_lists_the_table():
  lines = (Path(__file__).parents[2] / 'docs/data.md').read_text().splitlines()
  cells = [line.replace('`', '').split('|') for line in lines if line.startswith('| ')]
  rows = {cell[1].strip(): cell[2].split() for cell in cells if len(cell) > 2}
  assert rows['images'] == list(formats.SUFFIXES['image'])
  assert rows['sounds'] == list(formats.SUFFIXES['audio'])
  tested = {os.path.splitext(case[0])[1] for case in (*PICTURES, *SOUNDS)} | {'.avif', '.psd'}
  same = {'.jpe', '.jfif', '.mpo', '.j2k', '.pnm'}  # other names of tested ones
  assert {*formats.SUFFIXES['image'], *formats.SUFFIXES['audio']} == tested | same
