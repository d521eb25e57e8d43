"""Readers: what makes continuous inputs of documents, beside the image and audio tokenizers.

A pretrained encoder reads pictures (patches) or sounds (frames): frozen, run once over the data, its outputs
kept in the token cache, whose key holds the hash of its weights. Arrays of the data (vectors) are taken as
they are. A reader is saved as a row of readers.json; the weights of an encoder stay where they are, those of
an imported model of several modalities in its run folder.

Letters: N vectors of an item, U numbers of one, P places, k vectors side by side in a place.
"""

import dataclasses
import functools
import hashlib
import math
import os
import pathlib

import numpy as np

from gpt_jax.model.continuous import KINDS
from gpt_jax.runs import digests
from gpt_jax.runs.reading import reading
from gpt_jax.tokenizers import base, in_step
from gpt_jax.tokenizers.processors import Pixels, Places, read_pixels
from gpt_jax.tokenizers.settings import check_fields

FILE = 'readers.json'
CONFIG, PROCESSOR = 'config.json', 'preprocessor_config.json'  # of an encoder's folder
PROCESSORS = 'processor_config.json'
BATCH = 8  # pictures, or windows of sound, that an encoder takes at a time
LONGEST = 600.0  # seconds of a sound
CACHE_BYTES = 1 << 28  # of outputs that a process keeps: sources may share their recordings
RATE = 16_000  # Hz, of sounds
PER_POSITION = 320  # samples of an output of Whisper's encoder: 50 a second


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Pretrained encoders of the data; '' = patches and frames of the image and audio tokenizers."""

  image: str = ''  # folder (config.json, safetensors) of the encoder that makes {field:patches}
  audio: str = ''  # of the one that makes {field:frames}
  train: str = 'cached'  # run once, outputs cached; or a part of the model: frozen, adapters or whole
  layer: int = 0  # outputs of this layer, without the final norm; 0 = of the last one, with it
  stack: int = 1  # outputs of a sound, or vectors, side by side in a place
  seconds: float = 0.0  # of the windows of a sound; 0 = the encoder's own: 30 for Whisper

  def __post_init__(self):
    trainings = ('cached', 'frozen', 'adapters', 'whole')
    rules = (
      ('train', self.train in trainings, f'use one of {", ".join(trainings)}'),
      ('layer', self.layer >= 0, 'give 0 or more'),
      ('stack', self.stack > 0, 'give 1 or more'),
      ('seconds', self.seconds == 0 or 0.1 <= self.seconds <= LONGEST, f'give 0, or 0.1 to {LONGEST:.0f}'),
    )
    check_fields('encoder', self, rules)

  @property
  def folders(self) -> dict[str, str]:
    """The folders of the encoders by kind of continuous input."""
    return {kind: path for kind, path in (('patches', self.image), ('frames', self.audio)) if path}


class VectorReader:
  """Arrays as they are."""

  def __init__(self, width: int, stack: int = 1):
    self.width, self.stack, self.form = width, stack, (width,)
    self.feature_width = width * stack

  def fields(self) -> dict:
    """Return all that the vectors depend on."""
    return {'width': self.width, 'stack': self.stack}

  @property
  def hash(self) -> str:
    """A hex digest of what decides the numbers."""
    return base.digest(base.to_json(self.fields()))

  def features(self, items) -> list[np.ndarray]:
    """Arrays [N, U] -> float32 [P, k U] each."""
    return [stacked(item_NU, self.stack) for item_NU in items]


class EncoderReader:
  """The outputs of a pretrained encoder: of patches of a picture, or of a sound in windows."""

  token_ids = ()  # of the codes that pictures are read as; () = they are vectors

  def __init__(
    self,
    path: str,
    digest: str,
    config: dict,
    layer: int,
    stack: int,
    seconds: float,
    pixels=(),
    pool: int = 1,
    has_class: bool = False,
    places: dict | None = None,
    in_step: bool = False,
  ):
    """digest: of the weights. config: the encoder's config.json. pixels: the fields of Pixels.

    Of an imported model: pool: outputs along a side, or in a row of a sound, whose mean is one vector;
    has_class: the class token is one, too; places: the fields of Places. in_step: the encoder is a part of
    the model (model/towers.py), and its inputs are the features.
    """
    self.path, self.digest, self.config = path, digest, config
    self.layer, self.stack, self.seconds, self.pixels = layer, stack, seconds, list(pixels)
    self.pool, self.has_class, self.in_step = pool, has_class, in_step
    self.places = Places(**places) if places else None
    self._cached = {}  # shape and digest of an item -> its outputs

  @classmethod
  def open(cls, path: str, cfg: EncoderConfig, kind: str) -> 'EncoderReader':
    """Read the configs of an encoder's folder. ValueError or FileNotFoundError for another modality, too."""
    from gpt_jax.interop.encoders import families

    fix = 'name the folder of an encoder, with config.json and model.safetensors'
    folder = find_folder(path)
    config = base.read_json(folder / CONFIG, fix, {})
    spec = families.read_spec(config, cfg.layer)
    modality = KINDS[kind].modality
    if spec.modality != modality:
      raise ValueError(
        f'encoder.{modality}={path} is an encoder of {spec.modality}\nfix: set encoder.{spec.modality} to it'
      )
    with reading(folder / PROCESSOR, 'the settings of an image processor', 'restore it, or remove it'):
      form = (cfg.stack, cfg.seconds) if modality == 'audio' else (1, 0.0, picture_preparation(folder, spec))
    reader = cls(str(folder), digests.weights_digest(folder), config, cfg.layer, *form)
    return reader if cfg.train == 'cached' else in_step.put_in_step(reader)

  def fields(self) -> dict:
    """Return all that the outputs depend on, and where the weights are."""
    fields = {name: getattr(self, name) for name in FIELDS} | ({'in_step': True} if self.in_step else {})
    if self.places is None:
      return fields
    places = dataclasses.asdict(self.places)
    return fields | {'pool': self.pool, 'has_class': self.has_class, 'places': places}

  @property
  def hash(self) -> str:
    """A hex digest of what decides the numbers: not of where the weights are."""
    return base.digest(base.to_json({**self.fields(), 'path': ''}))

  @functools.cached_property
  def spec(self):
    """The families.Spec of the encoder."""
    from gpt_jax.interop.encoders import families

    return families.read_spec(self.config, self.layer)

  @property
  def feature_width(self) -> int:
    """The numbers of a place."""
    return in_step.tower_of(self).input_width if self.in_step else self.spec.cfg.width * self.stack

  @property
  def grid(self) -> tuple[int, int]:
    """The rows and columns of patches."""
    return self.spec.grid

  @property
  def form(self) -> tuple:
    """(Y, X, A) of pictures and how they are resized, (rate in Hz, most seconds) of sounds."""
    if self.spec.modality == 'audio':
      return RATE, LONGEST if self.places is None else self.window / RATE
    pixels = Pixels(*self.pixels)
    return (*picture_size(self.spec), *_preparation(pixels))

  @property
  def window(self) -> int:
    """The samples of a window of sound."""
    longest = self.spec.cfg.context * PER_POSITION
    return min(math.ceil(self.seconds * RATE / PER_POSITION) * PER_POSITION or longest, longest)

  @property
  def positions(self) -> int:
    """The outputs of the encoder for a window of sound."""
    return self.window // PER_POSITION

  @functools.cached_property
  def encoder(self):
    """The weights; ValueError or FileNotFoundError if they are not those that were read before."""
    from gpt_jax.interop.encoders import encoder

    digests.check_weights(self.path, self.digest, 'encoder')
    return encoder.load(self.path, self.spec)

  def features(self, items) -> list[np.ndarray]:
    """Images uint8 [Y, X, A] or sounds float32 [samples] -> float32 [P, k U] each.

    A sound is read in windows, the last one filled with silence; outputs after its end are left out. In the
    step: the inputs of the encoder.
    """
    if self.in_step:
      return in_step.features(self, items)
    size = lambda item: (item.shape, getattr(item, 'size_before', ()))
    keys = [(*size(item), hashlib.blake2b(np.ascontiguousarray(item)).digest()) for item in items]
    new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._cached}
    outputs = dict(zip(new, self._encode([*new.values()]), strict=True))
    result = [outputs[key] if key in outputs else self._cached[key] for key in keys]
    if sum(output.nbytes for output in (*self._cached.values(), *outputs.values())) <= CACHE_BYTES:
      self._cached |= outputs
    return result

  def _encode(self, items):
    """Return the features of items that are not cached."""
    if self.spec.modality == 'image':
      return self._encode_pictures(items)
    size = self.window
    parts = [[wave[start : start + size] for start in range(0, max(1, len(wave)), size)] for wave in items]
    flat = [part for wave_parts in parts for part in wave_parts]
    outputs = self._outputs(flat, lambda part: np.pad(part, (0, size - len(part))))
    lengths = (max(1, -(-len(part) // PER_POSITION) // self.spec.pool) for part in flat)
    outputs = (output[:length] for output, length in zip(outputs, lengths, strict=True))
    return [stacked(np.concatenate([next(outputs) for _ in wave_parts]), self.stack) for wave_parts in parts]

  def tiles_of(self, picture) -> tuple[int, int]:
    """Return the rows and columns of the tiles of a prepared picture, (0, 0) for what is not cut."""
    if self.spec.modality == 'audio':
      return 0, 0
    height, width, _ = picture_size(self.spec)
    rows = picture.shape[0] // height - 1
    return (rows, picture.shape[1] // width) if rows else (0, 0)

  def _encode_pictures(self, pictures):
    """Return the vectors of pictures, of tile after tile."""
    tiles = [self.cut(picture) for picture in pictures]
    flat = [tile for own in tiles for tile in own]
    outputs = map(self._of_picture, self._outputs(flat, Pixels(*self.pixels).normalize))
    joined = []
    for picture, own in zip(pictures, tiles, strict=True):
      joined.append(self.join(picture, [next(outputs) for _ in own]))
    return joined

  def join(self, picture, tiles) -> np.ndarray:
    """Return the vectors [P, D] of a prepared picture; tiles: those [T, D] of each, the whole last."""
    return np.concatenate(tiles)

  def cut(self, picture) -> list[np.ndarray]:
    """Return the tiles of a prepared picture in reading order and then the whole, or the picture alone."""
    height, width, _ = picture_size(self.spec)
    rows, columns = self.tiles_of(picture)
    places = [(r, c) for r in range(rows) for c in range(columns)] + [(rows, 0)]
    return [picture[r * height :, c * width :][:height, :width] for r, c in places]

  def _of_picture(self, output_TD):
    """Return the vectors [P, k D] of a picture: without the class token, or with it; of squares."""
    if self.has_class:
      return output_TD
    (rows, columns), k = self.grid, self.pool
    output_TD = output_TD[-rows * columns :]
    side = math.isqrt(self.stack)  # of squares whose patches are side by side in a place; or k, of means
    if k == side == 1:
      return output_TD
    n = max(k, side)
    squares = output_TD.reshape(rows // n, n, columns // n, n, -1)
    squares = squares.mean((1, 3)) if k > 1 else squares.transpose(0, 2, 1, 3, 4)
    return squares.reshape(rows // n * (columns // n), -1)

  def _outputs(self, items, prepare):
    """Yield the outputs [T, D] of each item; prepare: item -> array of one shape.

    All batches have one size, so that it compiles once.
    """
    from gpt_jax.interop.encoders import encoder, log_mel

    for start in range(0, len(items), BATCH):
      part = items[start : start + BATCH]
      batch, lengths_B = np.stack([prepare(item) for item in part]), None
      batch = np.concatenate([batch, np.zeros((BATCH - len(batch), *batch.shape[1:]), batch.dtype)])
      if self.spec.pool > 1:
        lengths_B = [-(-len(item) // PER_POSITION) for item in part] + [0] * (BATCH - len(part))
      if self.spec.modality == 'audio':
        batch = log_mel.log_mel(batch, dict(self.spec.sizes)['M'])
      yield from encoder.run(self.encoder, batch, lengths_B)[: len(items) - start]


FIELDS = ('path', 'digest', 'config', 'layer', 'stack', 'seconds', 'pixels')


def picture_size(spec) -> tuple[int, int, int]:
  """Return (Y, X, A) of the pictures of an encoder."""
  rows, columns = spec.grid
  return rows * spec.side, columns * spec.side, dict(spec.sizes)['A']


def picture_preparation(folder: pathlib.Path, spec, is_exact: bool = False) -> list:
  """Return the fields of Pixels of the preprocessor_config.json of an encoder's folder, or of its family.

  is_exact: as processors.read_pixels takes it.
  """
  from gpt_jax.interop.encoders import families

  family = families.FAMILIES[spec.family]
  saved = read_processor(folder)
  *size, channels = picture_size(spec)
  pixels = Pixels(family.mean, family.deviation)
  if saved is not None:
    pixels = read_pixels(saved, folder / PROCESSOR, tuple(size), pixels, is_exact)
  return [[*pixels.mean[:channels]], [*pixels.deviation[:channels]], *_preparation(pixels)]


def read_processor(folder: pathlib.Path) -> dict | None:
  """Return the settings of the image processor in a folder, None without one."""
  fix = 'restore preprocessor_config.json'
  if (folder / PROCESSOR).exists():
    return base.read_json(folder / PROCESSOR, fix, {})
  if (folder / PROCESSORS).exists():  # of a whole model, as transformers 5 writes it
    return base.read_json(folder / PROCESSORS, fix, {'image_processor?': dict}).get('image_processor')
  return None


def _preparation(pixels: Pixels) -> tuple:
  """Return the fields of Pixels behind the deviation, () for the defaults."""
  fields = pixels[2:] if any(pixels[5:]) else pixels[2:5]
  return fields if fields != Pixels((), ())[2:5] else ()


def check_sounds(folder: pathlib.Path, spec) -> None:
  """Raise ValueError unless the feature extractor of an encoder's folder makes Whisper's log-mel bands."""
  saved, fix = {}, 'use a model whose sounds are prepared as those of Whisper'
  for name, key in ((PROCESSOR, ''), (PROCESSORS, 'feature_extractor')):
    if (folder / name).exists():
      content = base.read_json(folder / name, fix, dict)
      saved = content.get(key, saved) if key else content
  expected = {'sampling_rate': RATE, 'hop_length': 160, 'n_fft': 400}
  expected |= {'feature_size': dict(spec.sizes)['M'], 'n_samples': spec.cfg.context * PER_POSITION}
  for key, value in expected.items():
    if saved.get(key, value) != value:
      raise ValueError(f'{folder}: {key}={saved[key]} of the feature extractor is not {value}\nfix: {fix}')


def stacked(vectors_NU: np.ndarray, stack: int) -> np.ndarray:
  """Put `stack` vectors side by side: [N, U] -> float32 [ceil(N / k), k U], zeros after the last."""
  padded_NU = np.pad(vectors_NU, ((0, -len(vectors_NU) % stack), (0, 0)))
  return padded_NU.reshape(-1, stack * vectors_NU.shape[1]).astype(np.float32)


def find_folder(path: str) -> pathlib.Path:
  """Return the folder at a path, or below GPT_JAX_DATA, as for sources of data."""
  roots = ['.', *filter(None, [os.environ.get('GPT_JAX_DATA', '')])]
  places = [os.path.abspath(os.path.join(root, os.path.expanduser(path))) for root in roots]
  return pathlib.Path(next(filter(os.path.isdir, places), places[0]))


def save(readers: dict, folder) -> None:
  """Write {kind: reader} into a folder; the path of an encoder in the same run is relative to the run."""
  content, run = {kind: reader.fields() for kind, reader in readers.items()}, pathlib.Path(folder).parent
  for fields in content.values():
    if 'path' in fields and pathlib.Path(fields['path']).is_relative_to(run.absolute()):
      fields['path'] = str(pathlib.Path(fields['path']).relative_to(run.absolute()))
  base.write_file(pathlib.Path(folder) / FILE, base.to_json(content, indent=2))


def load(folder, run=None) -> dict:
  """Read what `save` wrote; {} where there is nothing. run: the run folder; None: that of the folder."""
  path = pathlib.Path(folder).expanduser() / FILE
  if not path.exists():
    return {}
  content = base.read_json(path, base.FIX, {str: dict})
  run = path.parent.parent if run is None else pathlib.Path(run)
  for fields in content.values():
    if 'path' in fields:
      fields['path'] = str(run.absolute() / fields['path'])
  return {kind: (VectorReader if kind == 'vectors' else encoder_reader)(**f) for kind, f in content.items()}


def encoder_reader(**fields) -> EncoderReader:
  """Return the reader of an encoder; fields: the arguments of EncoderReader."""
  from gpt_jax.tokenizers import code_reader, native_reader, tiles, window_reader  # import this module

  own = {'voxtral_encoder': window_reader.WindowReader}
  own |= dict.fromkeys(code_reader.families(), code_reader.CodeReader)
  own |= dict.fromkeys(native_reader.families(), native_reader.NativeReader)
  if Pixels(*fields.get('pixels') or ((), ())).sizes:
    return (tiles.OneVisionReader if (fields['places'] or {}).get('most') else tiles.NextReader)(**fields)
  return own.get(fields['config'].get('model_type'), EncoderReader)(**fields)
