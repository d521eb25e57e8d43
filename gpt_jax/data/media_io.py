"""Read images and sounds into arrays, and write arrays as files.

Readers take a path (also inside a zip archive: `recordings.zip/7_theo_3.wav`), the bytes of a file, or
an array. They return the array and a note of conversions, '' for none. Errors name the record.

Letters: Y rows, X columns, A channels, N samples.
"""

import contextlib
import functools
import io
import math
import os
import wave as wave_files
import zipfile
from pathlib import Path

import numpy as np

from gpt_jax.data import files

MOST_PIXELS = 50_000_000  # a decoded picture of this size takes 150 to 200 MB
MOST_BYTES = 1 << 26  # of a member of an archive, unpacked: a minute of sound at 48 kHz takes 6 MB
PIECE = 4096  # bytes asked of an archive at once: with some methods, packed ones
FULL_SCALE = 32768  # of 16-bit sound


def open_bytes(path) -> bytes:
  """Return the bytes of a file, or of a zip member as in `folder/archive.zip/member.wav`.

  Relative paths are looked up like those of sources. Raises FileNotFoundError.
  """
  if (place := files.containing_file(path)) is None:
    raise FileNotFoundError(
      f'there is no file {path}\nfix: give an existing file, or set GPT_JAX_DATA to the folder that holds it'
    )
  file, member = place
  return _member(file, member) if member else file.read_bytes()


@contextlib.contextmanager
def _name_record(where: str):
  """Put the record in front of errors."""
  try:
    yield
  except (ValueError, FileNotFoundError) as error:
    raise type(error)(f'{where}: {error}' if where else str(error)) from None


def read_image(value, shape: tuple[int, int, int], where: str = '') -> tuple[np.ndarray, str]:
  """Read a path, the bytes of a file or an array -> (uint8 [Y, X, A] of this shape, note).

  Arrays are uint8 [Y, X] or [Y, X, A] with 1 to 4 channels: gray, gray and alpha, RGB, RGBA. Other
  sizes are resized to `shape` (bicubic with antialiasing; the aspect ratio may change), alpha is
  composited over white, and colors are converted. A is 1 or 3.
  """
  from PIL import Image

  if shape[2] not in (1, 3):
    raise ValueError(f'images of {shape[2]} channels are not supported\nfix: give 1 or 3 channels')
  with _name_record(where):
    if isinstance(value, (str, Path, bytes, bytearray)):
      picture, notes = _decode_image(value)
    else:
      array = _checked_pixels(value)
      if array.shape == shape or (array.shape == shape[:2] and shape[2] == 1):
        return array.reshape(shape), ''
      picture, notes = _picture(array), []
    picture = _flatten(picture, 'L' if shape[2] == 1 else 'RGB', notes)
    if picture.size != (shape[1], shape[0]):
      notes.insert(0, f'resized from {picture.width}x{picture.height}')
      picture = picture.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.uint8).reshape(shape), ', '.join(notes)


def read_sound(
  value, sample_rate: int, where: str = '', most_seconds: float = 60.0, rate: int = 0
) -> tuple[np.ndarray, str]:
  """Read a path, the bytes of a file or an array -> (mono float32 [N] within -1 .. 1, note).

  Arrays are [N] or [N, channels]: integers are 16-bit samples of any width, as in TFDS, floats are
  within -1 .. 1; `rate` is their rate in Hz, 0 for `sample_rate`. Channels are averaged, and other
  rates resampled. Raises ValueError for empty, too long or broken sounds.
  """
  with _name_record(where):
    if isinstance(value, (str, Path, bytes, bytearray)):
      sound, rate = _decode_sound(value, most_seconds)
    else:
      sound, rate = _checked_samples(value), rate or sample_rate
    _check_length(len(sound), rate, most_seconds)
    if not np.isfinite(sound).all():
      raise ValueError('the sound has NaN or infinite samples\nfix: repair or drop the record')
  notes = []
  if sound.ndim == 2:
    if sound.shape[1] > 1:
      notes.append(f'{sound.shape[1]} channels averaged')
    sound = sound.mean(1)
  if rate != sample_rate:
    from scipy import signal

    notes.insert(0, f'resampled from {rate} Hz')
    shared = math.gcd(rate, sample_rate)
    sound = signal.resample_poly(sound, sample_rate // shared, rate // shared)
  return np.clip(sound, -1, 1).astype(np.float32), ', '.join(notes)


def to_png(image: np.ndarray, scale: int = 1) -> bytes:
  """Encode uint8 [Y, X, A] or [Y, X] as PNG, each pixel as a square of `scale` pixels."""
  image = _checked_pixels(image)
  file = io.BytesIO()
  _picture(image.repeat(scale, 0).repeat(scale, 1)).save(file, 'PNG')
  return file.getvalue()


def tile(images, columns: int, gap: int = 1) -> np.ndarray:
  """Tile images uint8 [Y, X, A] of one shape into one image, row by row, with white gaps."""
  columns = min(columns, len(images))
  padding = [(0, -len(images) % columns), (0, gap), (0, gap), (0, 0)]
  images_NYXA = np.pad(np.stack(images), padding, constant_values=255)
  _, height, width, channels = images_NYXA.shape
  rows = images_NYXA.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
  picture = rows.reshape(-1, columns * width, channels)
  return picture[: len(picture) - gap, : columns * width - gap]


def to_wav(wave: np.ndarray, rate: int) -> bytes:
  """Encode a waveform float [N] as 16-bit WAV, scaled down if it exceeds -1 .. 1."""
  samples, file = _integers(wave), io.BytesIO()
  with wave_files.open(file, 'wb') as out:
    out.setnchannels(1)
    out.setsampwidth(2)
    out.setframerate(rate)
    out.writeframes(samples.astype('<i2').tobytes())
  return file.getvalue()


def to_flac(wave: np.ndarray, rate: int) -> bytes:
  """Encode the samples of `to_wav` as FLAC.

  Raises ValueError where soundfile cannot be loaded, and for a rate that FLAC does not support.
  """
  try:
    import soundfile
  except (ImportError, OSError) as error:
    raise ValueError(
      f'FLAC needs the package soundfile: {error}\nfix: pip install soundfile, or write .wav'
    ) from error
  file = io.BytesIO()
  try:
    soundfile.write(file, _integers(wave).astype(np.int16), rate, format='FLAC', subtype='PCM_16')
  except soundfile.SoundFileError as error:
    raise ValueError(f'FLAC cannot hold {rate} Hz: {error}\nfix: write .wav') from error
  return file.getvalue()


def _integers(wave):
  """Convert a waveform float [N] to 16-bit samples; ValueError unless it is one finite row."""
  wave = np.asarray(wave, np.float64)
  if wave.ndim != 1 or not np.isfinite(wave).all():
    raise ValueError(
      f'a sound is one row of finite samples, not {wave.dtype} of shape {wave.shape}\n'
      'fix: average the channels, and find out where NaN came from'
    )
  loudest = max(1.0, np.abs(wave).max(initial=0))
  return np.clip(np.round(wave / loudest * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)


def _member(archive, name):
  """Read a member of a zip archive, which stays open: opening one reads its whole directory."""
  fix = 'fix: give a member of the archive; `python -m zipfile -l` lists them'
  try:
    opened = _archive(archive, archive.stat().st_mtime_ns, os.getpid())
    size = opened.getinfo(name).file_size
    if size <= MOST_BYTES:
      with opened.open(name) as file:  # reads at most `size` bytes
        return b''.join(iter(functools.partial(file.read, PIECE), b''))
  except KeyError:
    raise FileNotFoundError(f'{archive} has no member {name}\n{fix}') from None
  except Exception as error:  # every compression method has errors of its own
    raise ValueError(f'{archive} cannot be read: {error}\n{fix}') from None
  raise ValueError(
    f'{archive}/{name} unpacks to {size} bytes, more than {MOST_BYTES}\n'
    'fix: unpack the archive, or drop the record'
  )


@functools.lru_cache(maxsize=16)
def _archive(path, changed, process):
  """Return an open archive, one a process: a fork would share its file position."""
  return zipfile.ZipFile(path)


def _content(value):
  """Return (bytes, their name in errors)."""
  if isinstance(value, (bytes, bytearray)):
    return bytes(value), f'a file of {len(value)} bytes'
  return open_bytes(value), str(value)


def _decode_image(value):
  """Return (Pillow image, notes) of a file; the size is checked before decoding."""
  from PIL import Image, ImageOps

  content, name = _content(value)
  bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
  expected = 'a picture'
  try:
    picture = Image.open(io.BytesIO(content))
    if picture.width * picture.height > MOST_PIXELS:
      raise Image.DecompressionBombError(f'{picture.width}x{picture.height} pixels')
    expected = 'a whole picture'
    notes = [f'first of {frames} frames'] if (frames := getattr(picture, 'n_frames', 1)) > 1 else []
    picture.load()
    upright = ImageOps.exif_transpose(picture)
  except bombs as error:
    fix = f'fix: shrink it below {MOST_PIXELS} pixels, or drop it'
    raise ValueError(f'{name} is too large to decode: {error}\n{fix}') from None
  except Exception as error:  # Pillow's readers raise many kinds on damaged files
    raise _unreadable(name, expected, error) from None
  if picture.getexif().get(0x0112, 1) != 1:
    notes.append('turned upright')
  return upright, notes


def _flatten(picture, mode, notes):
  """Return the picture in mode L or RGB, adding conversions to `notes`."""
  from PIL import Image

  if picture.mode[0] in 'IF':
    values = np.asarray(picture)
    top = max(255, float(values.max()))
    if picture.mode == 'F' or values.min() < 0 or top > 65535:
      raise ValueError(
        f'a picture of mode {picture.mode} has values from {values.min()} to {values.max()}\n'
        'fix: save it with 8 or 16 bits a channel'
      )
    depth = 65535 if top > 255 else 255
    picture = Image.fromarray(np.round(values * (255 / depth)).astype(np.uint8))
    notes.append('16 bits reduced to 8')
  if picture.has_transparency_data:
    name = picture.mode if picture.mode in ('RGBA', 'LA') else f'transparent {picture.mode}'
    notes.append(f'{name} composited over white')
    picture = picture.convert('RGBA')
    white = Image.new('RGBA', picture.size, 'white')
    picture = Image.alpha_composite(white, picture).convert('RGB')
    if mode == 'RGB':
      return picture
  elif picture.mode != mode and (picture.mode, mode) != ('P', 'RGB'):
    notes.append(f'{picture.mode} converted to {mode}')
  return picture.convert(mode)


def _checked_pixels(value):
  """Return the array; ValueError unless it is uint8 [Y, X] or [Y, X, A], and not empty."""
  array = np.asarray(value)
  if array.dtype != np.uint8:
    raise ValueError(
      f'an image array is {array.dtype}, not uint8\n'
      'fix: scale its values to 0 .. 255 and convert them to uint8'
    )
  if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
    raise ValueError(
      f'an image array has the shape {array.shape}\n'
      'fix: give [rows, columns] or [rows, columns, channels] with 1 to 4 channels'
    )
  return array


def _picture(array):
  """Return a Pillow image of uint8 [Y, X] or [Y, X, A]."""
  from PIL import Image

  return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _decode_sound(value, most_seconds):
  """Return (float32 [N, channels], rate) of a file; the length is checked before decoding."""
  import soundfile

  content, name = _content(value)
  try:
    with soundfile.SoundFile(io.BytesIO(content)) as file:
      with _name_record(name):
        _check_length(file.frames, file.samplerate, most_seconds)
      return file.read(dtype='float32', always_2d=True), file.samplerate
  except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
    raise _unreadable(name, 'a sound', error) from None


def _checked_samples(value):
  """Return an array of samples as float32 [N] or [N, channels]."""
  array = np.asarray(value)
  integer = np.issubdtype(array.dtype, np.signedinteger) and array.dtype.itemsize > 1
  if not integer and not np.issubdtype(array.dtype, np.floating):
    raise ValueError(
      f'a sound array is {array.dtype}, not 16-bit samples or float\n'
      'fix: give int16 samples, or floats within -1 .. 1'
    )
  if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > 8):
    raise ValueError(f'a sound array has the shape {array.shape}\nfix: give [samples] or [samples, channels]')
  limit = FULL_SCALE if integer else 1
  if array.size and (array.max() > limit or array.min() < -limit):
    raise ValueError(
      f'a sound array of {array.dtype} has samples from {array.min()} to '
      f'{array.max()}, not within -{limit} .. {limit}\nfix: scale it down'
    )
  return (array / np.float32(limit)).astype(np.float32)


def _check_length(samples, rate, most_seconds):
  if not samples:
    raise ValueError('the sound has no samples\nfix: drop the record')
  if samples > most_seconds * rate:
    raise ValueError(
      f'the sound lasts {samples / rate:.4g} s, more than {most_seconds:g} s\n'
      'fix: cut it, or raise the limit (audio.seconds)'
    )


def _unreadable(name, what, error):
  reason = ' '.join(str(error).split()).partition(' <_io')[0] or type(error).__name__
  return ValueError(f'{name} is not {what}: {reason}\nfix: repair or drop the record')
