"""Read images and sounds into arrays, and write arrays as files.

Readers take a path (also inside a zip archive: `recordings.zip/7_theo_3.wav`), the bytes of a file, or
an array. They return the array and a note of conversions, '' for none. Errors name the record.

Letters: Y rows, X columns, A channels, N samples.
"""

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
MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}
FULL_SCALE = 32768  # of 16-bit sound


def open_bytes(path, where: str = '') -> bytes:
  """Return the bytes of a file, or of a zip member as in `folder/archive.zip/member.wav`.

  Relative paths are looked up like those of sources. Raises FileNotFoundError.
  """
  path = Path(path).expanduser()
  for root in files.data_roots():
    full = Path(root) / path
    if full.is_file():
      return full.read_bytes()
    for parent in full.parents:
      if parent.suffix == '.zip' and parent.is_file():
        return _member(parent, full.relative_to(parent).as_posix(), where)
  raise FileNotFoundError(
    f'{_prefix(where)}there is no file {path}\n'
    'fix: give an existing file, or set GPT_JAX_DATA to the folder that holds it'
  )


def read_image(value, shape: tuple[int, int, int], where: str = '') -> tuple[np.ndarray, str]:
  """Read a path, the bytes of a file or an array -> (uint8 [Y, X, A] of this shape, note).

  Arrays are uint8 [Y, X] or [Y, X, A] with 1 to 4 channels: gray, gray and alpha, RGB, RGBA. Other
  sizes are resized to `shape` (bicubic with antialiasing; the aspect ratio may change), alpha is
  composited over white, and colors are converted. A is 1 or 3.
  """
  if shape[2] not in (1, 3):
    raise ValueError(f'images of {shape[2]} channels are not supported\nfix: give 1 or 3 channels')
  if isinstance(value, (str, Path, bytes, bytearray)):
    picture, notes = _decoded(value, where)
  else:
    array = _checked_pixels(value, where)
    if array.shape == shape or (array.shape == shape[:2] and shape[2] == 1):
      return array.reshape(shape), ''
    picture, notes = _picture(array), []
  picture = _flattened(picture, 'L' if shape[2] == 1 else 'RGB', notes)
  if picture.size != (shape[1], shape[0]):
    notes.insert(0, f'resized from {picture.width}x{picture.height}')
    picture = picture.resize((shape[1], shape[0]), _pillow().Resampling.BICUBIC)
  return np.asarray(picture, np.uint8).reshape(shape), ', '.join(notes)


def read_sound(
  value, sample_rate: int, where: str = '', most_seconds: float = 60.0, rate: int = 0
) -> tuple[np.ndarray, str]:
  """Read a path, the bytes of a file or an array -> (mono float32 [N] within -1 .. 1, note).

  Arrays are [N] or [N, channels]: integers are 16-bit samples of any width, as in TFDS, floats are
  within -1 .. 1; `rate` is their rate in Hz, 0 for `sample_rate`. Channels are averaged, and other
  rates resampled. Raises ValueError for empty, too long or broken sounds.
  """
  if isinstance(value, (str, Path, bytes, bytearray)):
    sound, rate = _decoded_sound(value, where, most_seconds)
  else:
    sound, rate = _checked_samples(value, where), rate or sample_rate
  _check_length(len(sound), rate, where, most_seconds)
  if not np.isfinite(sound).all():
    raise ValueError(f'{_prefix(where)}the sound has NaN or infinite samples\nfix: repair or drop the record')
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
  image = _checked_pixels(image, 'to_png')
  file = io.BytesIO()
  _picture(image.repeat(scale, 0).repeat(scale, 1)).save(file, 'PNG')
  return file.getvalue()


def tile(images, columns: int, gap: int = 1) -> np.ndarray:
  """Tile images uint8 [Y, X, A] of one shape into one image, row by row, with white gaps."""
  images_NYXA = np.stack([np.asarray(image) for image in images])
  count, height, width, channels = images_NYXA.shape
  columns = min(columns, count)
  rows = -(-count // columns)
  size = (rows * (height + gap), columns * (width + gap), channels)
  picture = np.full(size, 255, np.uint8)
  for n, image in enumerate(images_NYXA):
    top, left = (height + gap) * (n // columns), (width + gap) * (n % columns)
    picture[top : top + height, left : left + width] = image
  return picture[: size[0] - gap, : size[1] - gap]


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


def _prefix(where):
  return f'{where}: ' if where else ''


def _pillow():
  from PIL import Image

  return Image


def _member(archive, name, where):
  """Read a member of a zip archive, which stays open: opening one reads its whole directory."""
  fix = 'fix: give a member of the archive; `python -m zipfile -l` lists them'
  stat = archive.stat()
  try:
    opened = _archive(archive, stat.st_mtime_ns, os.getpid())
    size = opened.getinfo(name).file_size
    if size <= MOST_BYTES:
      with opened.open(name) as file:  # reads at most `size` bytes
        return b''.join(iter(functools.partial(file.read, PIECE), b''))
  except KeyError:
    raise FileNotFoundError(f'{_prefix(where)}{archive} has no member {name}\n{fix}') from None
  except Exception as error:  # every compression method has errors of its own
    raise ValueError(f'{_prefix(where)}{archive} cannot be read: {error}\n{fix}') from None
  raise ValueError(
    f'{_prefix(where)}{archive}/{name} unpacks to {size} bytes, more than {MOST_BYTES}\n'
    'fix: unpack the archive, or drop the record'
  )


@functools.lru_cache(maxsize=16)
def _archive(path, changed, process):
  """Return an open archive, one a process: a fork would share its file position."""
  return zipfile.ZipFile(path)


def _content(value, where):
  """Return (bytes, their name in errors)."""
  if isinstance(value, (bytes, bytearray)):
    return bytes(value), f'{_prefix(where)}a file of {len(value)} bytes'
  return open_bytes(value, where), f'{_prefix(where)}{value}'


def _decoded(value, where):
  """Return (Pillow image, notes) of a file; the size is checked before decoding."""
  from PIL import Image, ImageOps

  content, name = _content(value, where)
  bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
  try:
    picture = Image.open(io.BytesIO(content))
  except bombs as error:
    raise _too_large(name, str(error)) from None
  except Exception as error:  # Pillow's readers raise many kinds on damaged files
    raise _unreadable(name, 'a picture', error) from None
  if picture.width * picture.height > MOST_PIXELS:
    raise _too_large(name, f'{picture.width}x{picture.height} pixels')
  notes = [f'first of {frames} frames'] if (frames := getattr(picture, 'n_frames', 1)) > 1 else []
  try:
    picture.load()
    upright = ImageOps.exif_transpose(picture)
  except Exception as error:
    raise _unreadable(name, 'a whole picture', error) from None
  if picture.getexif().get(0x0112, 1) != 1:
    notes.append('turned upright')
  return upright, notes


def _flattened(picture, mode, notes):
  """Return the picture in mode L or RGB, adding conversions to `notes`."""
  image = _pillow()
  if picture.mode[0] in 'IF':
    values = np.asarray(picture)
    top = max(255, float(values.max()))
    depth = 65535 if top > 255 else 255
    if picture.mode == 'F' or values.min() < 0 or top > 65535:
      raise ValueError(
        f'a picture of mode {picture.mode} has values from {values.min()} to {values.max()}\n'
        'fix: save it with 8 or 16 bits a channel'
      )
    picture = image.fromarray(np.round(values * (255 / depth)).astype(np.uint8))
    notes.append('16 bits reduced to 8')
  if picture.has_transparency_data:
    name = picture.mode if picture.mode in ('RGBA', 'LA') else f'transparent {picture.mode}'
    notes.append(f'{name} composited over white')
    picture = picture.convert('RGBA')
    white = image.new('RGBA', picture.size, 'white')
    picture = image.alpha_composite(white, picture).convert('RGB')
    if mode == 'RGB':
      return picture
  elif picture.mode != mode and (picture.mode, mode) != ('P', 'RGB'):
    notes.append(f'{picture.mode} converted to {mode}')
  return picture.convert(mode)


def _checked_pixels(value, where):
  """Return the array; ValueError unless it is uint8 [Y, X] or [Y, X, A], and not empty."""
  array = np.asarray(value)
  if array.dtype != np.uint8:
    raise ValueError(
      f'{_prefix(where)}an image array is {array.dtype}, not uint8\n'
      'fix: scale its values to 0 .. 255 and convert them to uint8'
    )
  if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in MODES):
    raise ValueError(
      f'{_prefix(where)}an image array has the shape {array.shape}\n'
      'fix: give [rows, columns] or [rows, columns, channels] with 1 to 4 channels'
    )
  return array


def _picture(array):
  """Return a Pillow image of uint8 [Y, X] or [Y, X, A]."""
  channels = 1 if array.ndim == 2 else array.shape[2]
  array = array.reshape(array.shape[:2]) if channels == 1 else array
  size = (array.shape[1], array.shape[0])
  return _pillow().frombytes(MODES[channels], size, np.ascontiguousarray(array).tobytes())


def _decoded_sound(value, where, most_seconds):
  """Return (float32 [N, channels], rate) of a file; the length is checked before decoding."""
  import soundfile

  content, name = _content(value, where)
  try:
    with soundfile.SoundFile(io.BytesIO(content)) as file:
      _check_length(file.frames, file.samplerate, name, most_seconds)
      return file.read(dtype='float32', always_2d=True), file.samplerate
  except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
    raise _unreadable(name, 'a sound', error) from None


def _checked_samples(value, where):
  """Return an array of samples as float32 [N] or [N, channels]."""
  array = np.asarray(value)
  integer = np.issubdtype(array.dtype, np.signedinteger) and array.dtype.itemsize > 1
  if not integer and not np.issubdtype(array.dtype, np.floating):
    raise ValueError(
      f'{_prefix(where)}a sound array is {array.dtype}, not 16-bit samples or float\n'
      'fix: give int16 samples, or floats within -1 .. 1'
    )
  if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > 8):
    raise ValueError(
      f'{_prefix(where)}a sound array has the shape {array.shape}\nfix: give [samples] or [samples, channels]'
    )
  limit = FULL_SCALE if integer else 1
  if array.size and (array.max() > limit or array.min() < -limit):
    raise ValueError(
      f'{_prefix(where)}a sound array of {array.dtype} has samples from {array.min()} to '
      f'{array.max()}, not within -{limit} .. {limit}\nfix: scale it down'
    )
  return (array / np.float32(limit)).astype(np.float32)


def _check_length(samples, rate, where, most_seconds):
  if not samples:
    raise ValueError(f'{_prefix(where)}the sound has no samples\nfix: drop the record')
  if samples > most_seconds * rate:
    raise ValueError(
      f'{_prefix(where)}the sound lasts {samples / rate:.4g} s, more than {most_seconds:g} s\n'
      'fix: cut it, or raise the limit (audio.seconds)'
    )


def _too_large(name, size):
  return ValueError(
    f'{name} is too large to decode: {size}\nfix: shrink it below {MOST_PIXELS} pixels, or drop it'
  )


def _unreadable(name, what, error):
  reason = ' '.join(str(error).split()).partition(' <_io')[0] or type(error).__name__
  return ValueError(f'{name} is not {what}: {reason}\nfix: repair or drop the record')
