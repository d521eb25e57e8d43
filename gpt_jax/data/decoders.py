"""Decode the files of pictures and sounds; what a file declares is checked before it is decoded.

Letters: N samples.
"""

import contextlib
import io
import math
import re

import numpy as np

from gpt_jax.data import formats
from gpt_jax.runs.reading import reading
from gpt_jax.tokenizers.audio import SAMPLE_RATES

MOST_PIXELS = 50_000_000  # a decoded picture of this size takes 150 to 200 MB
MOST_SAMPLES = 1 << 26  # of all channels of a sound, decoded: 268 MB
MOST_CHANNELS = 64  # of a file of sound
FILMS = ('GIF', 'PNG', 'WEBP', 'TIFF', 'AVIF')  # formats of Pillow whose frames make a clip
MODES = {  # of Pillow, as notes name them
  '1': 'black and white',
  'L': 'gray',
  'P': 'palette',
  'RGB': 'color',
  'LA': 'gray with alpha',
  'PA': 'palette with alpha',
  'RGBA': 'color with alpha',
}


class TooLarge(ValueError):
  """A picture, sound or file beyond a limit."""

  limit = ''  # what it exceeds, as in 'audio.seconds'
  size = 0.0  # to find the largest of those beyond one limit

  @classmethod
  def of(cls, limit: str, size: float, message: str) -> 'TooLarge':
    """Return the error of a size beyond a limit."""
    error = cls(message)
    error.limit, error.size = limit, size
    return error


@contextlib.contextmanager
def name_record(where: str):
  """Put the record in front of errors."""
  try:
    yield
  except (ValueError, FileNotFoundError) as error:
    if where:
      error.args = (f'{where}: {error}',)
    raise


class _Stream(io.BytesIO):
  """Bytes for libsndfile, which seeks to where a damaged header says, also before the start."""

  def seek(self, offset, whence=io.SEEK_SET):
    return super().seek(max(0, offset) if whence == io.SEEK_SET else offset, whence)


def decode_sound(content, name, most_seconds):
  """Return (float32 [N, channels], rate) of a file; what it declares is checked before decoding."""
  import soundfile

  with reading(name, 'a whole sound', 'repair or drop it'):
    try:
      file = soundfile.SoundFile(_Stream(content))
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
      reason = getattr(error, 'error_string', '') or 'libsndfile does not recognize it'
      raise _undecodable(name, content, 'audio', reason) from None
    with file, name_record(name):
      check_length(file.frames, file.samplerate, most_seconds)
      if file.channels > MOST_CHANNELS:
        raise ValueError(
          f'the sound has {file.channels} channels, more than {MOST_CHANNELS}\nfix: mix it down'
        )
      if file.frames * file.channels > MOST_SAMPLES:
        raise ValueError(
          f'the sound has {file.frames} samples in {file.channels} channels, more than {MOST_SAMPLES}\n'
          'fix: cut it, mix it down, or save it at a lower rate'
        )
      # libsndfile reads what there is of a file that was cut. Files that were streamed declare 0 or 2^32 - 1.
      cut = re.search(r'(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)', file.extra_info)
      if cut and int(cut[2]) < int(cut[1]) < 0xFFFF0000:
        raise ValueError(
          f'it ends after {cut[2]} of {cut[1]} bytes of sound\nfix: fetch it again, or drop it'
        )
      return file.read(file.frames, dtype='float32', always_2d=True), file.samplerate


def check_length(samples, rate, most_seconds):
  """Raise ValueError for an absurd rate, an empty sound or one that is too long."""
  if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
    raise ValueError(
      f'the sound has a rate of {rate} Hz, expected {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]}\n'
      'fix: correct the rate, or drop the record'
    )
  if not samples:
    raise ValueError('the sound has no samples\nfix: drop the record')
  if samples > most_seconds * rate:
    seconds = samples / rate
    message = f'the sound lasts {seconds:.4g} s, more than {most_seconds:g} s'
    fix = f'fix: raise audio.seconds to {math.ceil(100 * seconds) / 100:g}, or cut or drop it'
    raise TooLarge.of('audio.seconds', seconds, f'{message}\n{fix}')


def _undecodable(name, content, modality, error):
  """Return the error for a file that the library of its modality cannot open; it names what the file is."""
  what, own = formats.describe_content(content[: formats.HEAD])
  if not what:
    cause, fix = f'not a {formats.NAMES[modality]}: {error}', 'repair or drop it'
  elif own != modality:
    cause, fix = f'not a {formats.NAMES[modality]}: it is {what}', 'drop it, or give it to another source'
  else:
    cause = f'{what} that cannot be decoded: {error}'
    fix = f'repair it, drop it, or {formats.CONVERT[modality].format(name=name if "/" in name else "FILE")}'
  return ValueError(f'{name} is {cause}\nfix: {fix}')


def decode_image(content, name):
  """Return (Pillow image, notes) of a file; the size is checked before decoding."""
  with reading(name, 'a whole picture', 'repair or drop it'):
    picture = _open_image(content, name)
    frames = getattr(picture, 'n_frames', 1) if picture.format != 'PSD' else 1  # those are layers
    notes = [f'first of {frames} frames'] if frames > 1 else []
    return _decode_frame(picture, notes), notes


def count_frames(content, name) -> int:
  """Return the number of frames of a film; 1 for a picture."""
  with reading(name, 'a whole film', 'repair or drop it'):
    picture = _open_image(content, name)
    return getattr(picture, 'n_frames', 1) if picture.format in FILMS else 1


def decode_frames(content, name, frames):
  """Yield frames of a film as uint8 [Y, X] or [Y, X, A]. frames: their numbers, ascending."""
  with reading(name, 'a whole film', 'repair or drop it'):
    picture = _open_image(content, name)
    for number in frames:
      picture.seek(number)
      _check_size(picture.width * picture.height, name)
      frame = _decode_frame(picture, [])
      if frame.mode not in ('L', 'LA', 'RGB', 'RGBA'):
        frame = frame.convert('RGBA' if frame.has_transparency_data else 'RGB')
      yield np.asarray(frame)


def _open_image(content, name):
  """Return the Pillow image of a file, whose size was checked and which is not decoded."""
  from PIL import Image

  try:
    Image.init()
    known = [name for name in formats.PICTURES if name in Image.OPEN]  # Pillow may be built without some
    picture = Image.open(io.BytesIO(content), formats=known)
    size = picture.width * picture.height
  except Image.UnidentifiedImageError:
    raise _undecodable(name, content, 'image', 'Pillow does not recognize it') from None
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    size = float(re.search(r'\d+', str(error))[0])
  _check_size(size, name)
  return picture


def _check_size(size, name):
  if size > MOST_PIXELS:
    fix = f'fix: shrink it below {MOST_PIXELS} pixels, or drop it'
    raise TooLarge.of('pixels', size, f'{name} is too large to decode: {size:.0f} pixels\n{fix}')


def _decode_frame(picture, notes):
  """Return the present frame of a Pillow image upright and with 8 bits, adding conversions to `notes`."""
  from PIL import ImageOps

  white, is_white_zero, is_deep = _depth(picture)
  picture.load()
  upright = ImageOps.exif_transpose(picture)
  if picture.getexif().get(0x0112, 1) != 1:
    notes.append('turned upright')
  if white:
    upright = _reduced(upright, white, is_white_zero, notes)
  elif is_deep:
    notes.append('16 bits reduced to 8')
  return upright


def _depth(picture) -> tuple[int, bool, bool]:
  """Return (value of white of a gray picture above 8 bits or 0, white is 0, Pillow drops bits of colors).

  Depth is what the format declares, never the brightest pixel: all frames of a camera have one scale.
  """
  tags = getattr(picture, 'tag_v2', {})
  if picture.mode.startswith('I;16'):
    bits = tags.get(258, (16,))
    return (1 << bits[0]) - 1, tags.get(262) == 0, False
  if picture.mode == 'I' and picture.format == 'PPM':  # Pillow scales its values
    return 65535, False, False
  if picture.mode in ('I', 'F', 'LAB'):
    names = {'I': '32-bit integers', 'F': 'floats', 'LAB': 'CIELAB colors'}
    raise ValueError(
      f'it has {names[picture.mode]} (mode {picture.mode}), whose black and white the file does not declare\n'
      'fix: save it with 8 or 16 bits a channel, as gray or RGB'
    )
  return 0, False, ';16' in str(picture.tile) or picture.format == 'PPM' and '65535' in str(picture.tile)


def _reduced(picture, white, is_white_zero, notes):
  """Return a gray picture of 9 to 16 bits in mode L; its transparent value becomes white."""
  from PIL import Image

  values = np.asarray(picture)
  notes.append(f'{white.bit_length()} bits reduced to 8')
  if isinstance(clear := picture.info.get('transparency'), int):
    notes.append('gray with transparency composited over white')
    values = np.where(values == clear, white, values)
  values = np.round(np.clip(values, 0, white) * (255 / white)).astype(np.uint8)
  return Image.fromarray(255 - values if is_white_zero else values)


def flatten(picture, mode, notes):
  """Return the picture in mode L or RGB, adding conversions to `notes`."""
  from PIL import Image

  name = MODES.get(picture.mode, picture.mode)
  if picture.has_transparency_data:
    notes.append(f'{name}{"" if "alpha" in name else " with transparency"} composited over white')
    picture = picture.convert('RGBA')
    white = Image.new('RGBA', picture.size, 'white')
    picture = Image.alpha_composite(white, picture).convert('RGB')
    if mode == 'RGB':
      return picture
  elif picture.mode != mode and (picture.mode, mode) != ('P', 'RGB'):
    notes.append(f'{name} converted to {MODES[mode]}')
  return picture.convert(mode)


def extent(path: str, modality: str) -> float:
  """Return the shorter side of a picture, or the seconds of a sound, by its header; 0 if it is broken."""
  if modality == 'audio':
    import soundfile as decoder
  else:
    from PIL import Image as decoder
  try:
    if modality == 'audio':
      return decoder.info(path).duration
    with decoder.open(path, formats=list(formats.PICTURES)) as picture:
      return min(picture.size)
  except Exception:  # whatever a damaged header makes of a decoder; training names the file
    return 0


def image_decoder() -> str:
  """Return the version of the library that decodes and resizes pictures: its pixels may change."""
  import PIL

  return f'pillow {PIL.__version__}'


def audio_decoder() -> str:
  """Return the versions of the libraries that decode and resample sounds."""
  import scipy

  try:
    import soundfile
  except (ImportError, OSError):  # arrays of samples do not need it
    return f'scipy {scipy.__version__}'
  return f'libsndfile {soundfile.__libsndfile_version__}, scipy {scipy.__version__}'


DECODERS = {'image': image_decoder, 'audio': audio_decoder, 'vectors': lambda: 'npy', 'codes': lambda: 'npy'}
