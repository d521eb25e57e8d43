"""Read images and sounds into arrays, and write arrays as files.

Readers take a path (also inside a zip archive: `recordings.zip/7_theo_3.wav`), the bytes of a file, or
an array. They return the array and a note of conversions, '' for none. Errors name the record.

Letters: Y rows, X columns, A channels, N samples.
"""

import fractions
import functools
import io
import os
import wave as wave_files
import zipfile
from pathlib import Path

import numpy as np

from gpt_jax.data import files, picture_sizes
from gpt_jax.data.decoders import TooLarge, check_length, decode_image, decode_sound, flatten, name_record

MOST_BYTES = 1 << 27  # of a file, or of a member of an archive, unpacked
MOST_TERM = 1 << 15  # of the ratio of two sample rates: the filter has 20 times as many taps
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
  if member:
    return _member(file, member)
  check_bytes(file, file.stat().st_size)
  return file.read_bytes()


def check_bytes(name, size):
  """Raise TooLarge for a file, or a member of an archive, beyond MOST_BYTES."""
  if size > MOST_BYTES:
    message = f'{name} has {size} bytes (unpacked), more than {MOST_BYTES}\nfix: shrink, cut or drop it'
    raise TooLarge.of('bytes', size, message)


def read_image(value, form: tuple[int, ...], where: str = '') -> tuple[np.ndarray, str]:
  """Read a path, the bytes of a file or an array -> (uint8 [Y, X, A] of this shape, note).

  Arrays are uint8 [Y, X] or [Y, X, A] with 1 to 4 channels: gray, gray and alpha, RGB, RGBA. Other
  sizes are resized (bicubic with antialiasing; the aspect ratio may change), alpha is composited over
  white, and colors are converted. A is 1 or 3. form: (Y, X, A), or with more, which picture_sizes.fit takes.
  """
  shape, preparation = tuple(form[:3]), form[3:]
  if isinstance(value, picture_sizes.Prepared):
    return value, ''
  if shape[2] not in (1, 3):
    raise ValueError(f'images of {shape[2]} channels are not supported\nfix: give 1 or 3 channels')
  with name_record(where):
    if isinstance(value, (str, Path, bytes, bytearray)):
      picture, notes = decode_image(*read_content(value))
    else:
      array = _checked_pixels(value)
      has_size = not any(preparation[1:]) and array.shape[:2] == shape[:2]
      if has_size and (array.shape == shape or array.shape[2:] + shape[2:] == (1,)):
        return array.reshape(shape), ''
      picture, notes = _picture(array), []
    picture = flatten(picture, 'L' if shape[2] == 1 else 'RGB', notes)
    image, changes = picture_sizes.fit(picture, shape, *preparation)
    notes = [*changes[:1], *notes, *changes[1:]]
    return image.view(picture_sizes.Prepared) if any(preparation[1:]) else image, ', '.join(notes)


def read_sound(
  value, sample_rate: int, where: str = '', most_seconds: float = 60.0, rate: int = 0
) -> tuple[np.ndarray, str]:
  """Read a path, the bytes of a file or an array -> (mono float32 [N] within -1 .. 1, note).

  Arrays are [N] or [N, channels]: integers are 16-bit samples of any width, as in TFDS, floats are
  within -1 .. 1; `rate` is their rate in Hz, 0 for `sample_rate`. Channels are averaged, and other
  rates resampled, to within 31 millionths of the pitch. A sound beyond -1 .. 1 is scaled down to its
  peak. Raises ValueError for empty, too long or broken sounds.
  """
  with name_record(where):
    if isinstance(value, (str, Path, bytes, bytearray)):
      sound, rate = decode_sound(*read_content(value), most_seconds)
    else:
      sound, rate = _checked_samples(value), rate or sample_rate
    check_length(len(sound), rate, most_seconds)
    if not np.isfinite(sound).all():
      raise ValueError('the sound has NaN or infinite samples\nfix: repair or drop the record')
  notes = []
  if sound.ndim == 2:
    if sound.shape[1] > 1:
      notes.append(f'{sound.shape[1]} channels averaged')
    sound = sound.mean(1)
  if rate != sample_rate:
    notes.insert(0, f'resampled from {rate} Hz')
  peak = np.abs(sound).max()
  if peak > 1:
    notes.append(f'scaled down from a peak of {peak:.2g}')
    sound = sound / peak
  if rate != sample_rate:
    sound = _resample(sound, rate, sample_rate)
    sound = sound / max(1, np.abs(sound).max(initial=0))  # the filter overshoots
  return sound.astype(np.float32), ', '.join(notes)


def _resample(sound_N, rate, sample_rate):
  """Resample by a ratio whose terms, and so the filter's taps, are bounded."""
  from scipy import signal

  ratio = fractions.Fraction(sample_rate, rate)
  if ratio < 1:
    ratio = ratio.limit_denominator(MOST_TERM)
  else:
    ratio = 1 / (1 / ratio).limit_denominator(MOST_TERM)
  return signal.resample_poly(sound_N, ratio.numerator, ratio.denominator)


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


def to_npy(array: np.ndarray) -> bytes:
  """Encode an array as a .npy file."""
  file = io.BytesIO()
  np.save(file, array, allow_pickle=False)
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
    check_bytes(f'{archive}/{name}', opened.getinfo(name).file_size)
    with opened.open(name) as file:  # reads at most the bytes that were checked
      return b''.join(iter(functools.partial(file.read, PIECE), b''))
  except TooLarge:
    raise
  except KeyError:
    raise FileNotFoundError(f'{archive} has no member {name}\n{fix}') from None
  except Exception as error:  # every compression method has errors of its own
    raise ValueError(f'{archive} cannot be read: {error}\n{fix}') from None


@functools.lru_cache(maxsize=16)
def _archive(path, changed, process):
  """Return an open archive, one a process: a fork would share its file position."""
  return zipfile.ZipFile(path)


def read_content(value) -> tuple[bytes, str]:
  """Return (bytes of a file, or of a path, their name in errors); ValueError for an empty file."""
  if isinstance(value, (bytes, bytearray)):
    content, name = bytes(value), f'a file of {len(value)} bytes'
  else:
    content, name = open_bytes(value), str(value)
  if not content:
    raise ValueError(f'{name} is empty\nfix: fetch it again, or drop it')
  return content, name


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
