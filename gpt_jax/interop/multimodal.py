"""Models of others that read pictures or sounds: encoder, projector, language model; both ways.

families_multimodal.py says what each model_type is. The language model is one of families.py. The weights
of the encoder are kept in the run folder as they are, so that an export is made of the same bytes.
"""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from gpt_jax.cluster import bootstrap, processes
from gpt_jax.interop import families, tensors, weight_files
from gpt_jax.interop.encoders import encoder, native
from gpt_jax.interop.encoders import families as encoders
from gpt_jax.interop.families_multimodal import MULTIMODAL, MultimodalFamily, code_token_ids
from gpt_jax.interop.family import unsupported
from gpt_jax.interop.tensors import Tensor
from gpt_jax.model import continuous, projectors
from gpt_jax.model.native_encoder import NativeSpec
from gpt_jax.runs import digests, records
from gpt_jax.runs.reading import check_types, reading
from gpt_jax.tokenizers import Tokenizers, base, code_reader, native_reader, readers
from gpt_jax.tokenizers.processors import Pixels

FOLDER = 'encoder'  # of a run
WHOLE = 'model.json'  # in it: the config.json of the imported model
# Files of the imported model that its export has again.
COPIED_FILES = (readers.PROCESSOR, readers.PROCESSORS, 'video_preprocessor_config.json')
COPIED_FILES += ('tokenizer_config.json', 'special_tokens_map.json')
FIX = 'restore config.json of the model'
ENCODERS = encoders.FAMILIES | native.FAMILIES  # {model_type: Family}


# ------------------------------------------------------------------------------------------ reading


def find(hf) -> MultimodalFamily | None:
  """Return the row of a config.json, None for a model of text alone, or with an encoder that is not known."""
  family = MULTIMODAL.get(hf.get('model_type'))
  if family is None or not isinstance(tower := hf.get(family.section), dict):
    return None
  return family if family.is_flat or tower.get('model_type', family.encoder) in ENCODERS else None


def rows_of(family: MultimodalFamily, hf) -> dict[str, Tensor]:
  """Return {path: Tensor} of the projector; biases that the files do not have are 0."""
  if hf.get('multimodal_projector_bias', True):
    return family.tensors
  return {path: Tensor('') if 'bias' in path else row for path, row in family.tensors.items()}


def stored_names(family: MultimodalFamily, names) -> dict[str, str]:
  """Return {name in the table: name in the files} of a projector's tensors."""
  plain = {re.sub(r'^model\.', '', name): name for name in names}
  known = {row.name for row in family.tensors.values()}
  of_projector = lambda name: name in known or name.startswith(f'{family.connector}.')
  return {name: stored for name, stored in plain.items() if of_projector(name)}


def copy_tower(family: MultimodalFamily, source: Path, folder: Path) -> None:
  """Write the encoder of an imported model as a folder of its own, with what an export needs."""
  folder.mkdir(parents=True, exist_ok=True)
  tower = {name: np.asarray(tensor.read()) for name, tensor in tower_tensors(family, source).items()}
  save_file(tower, folder / 'model.safetensors', {'format': 'pt'})
  hf = base.read_json(source / 'config.json', FIX, dict)
  hf = hf if family.is_flat else nested(family, hf)
  for name in COPIED_FILES:
    if (source / name).is_file():
      shutil.copy(source / name, folder / name)
  records.write_atomically(folder / 'config.json', json.dumps(hf[family.section], indent=2) + '\n')
  records.write_atomically(folder / WHOLE, json.dumps(hf, indent=2) + '\n')


def nested(family: MultimodalFamily, hf: dict) -> dict:
  """Return a config.json with the language model's settings in a text_config, as transformers 5 writes it."""
  if 'text_config' in hf:
    return hf
  own = (family.section, 'architectures', 'model_type', 'tie_word_embeddings')
  mine = lambda key: key in own or key.startswith(('image_', 'video_', 'vision_'))
  text = {key: value for key, value in hf.items() if not mine(key)}
  return {key: value for key, value in hf.items() if mine(key)} | {
    'text_config': text | {'model_type': f'{hf["model_type"]}_text'}
  }


def tower_tensors(family: MultimodalFamily, folder: Path) -> dict[str, Any]:
  """Return the StoredTensors of the encoder in an imported model's folder, or of what `copy_tower` wrote."""
  prefix = re.compile(rf'^(model\.)?{family.tower.removeprefix("model.")}\.')
  stored, is_tower = weight_files.open_folder(folder), (folder / WHOLE).exists()
  chosen = {name: tensor for name, tensor in stored.items() if is_tower or prefix.match(name)}
  return {prefix.sub('', name): tensor for name, tensor in chosen.items()}


def check_tower(family: MultimodalFamily, source: Path, reader) -> None:
  """Raise ValueError for a tensor of the encoder that the model's files lack or have in another shape."""
  if family.is_flat:
    encoder.check_shapes(source, tower_tensors(family, source), reader.shapes)
    return
  module = native if isinstance(reader.spec, NativeSpec) else encoder
  encoder.check(source, tower_tensors(family, source), *module.layout(reader.spec))


def open_reader(family: MultimodalFamily, files, tokenizer, workdir: Path | None) -> readers.EncoderReader:
  """Return the reader of the encoder of huggingface.ModelFiles, which a run (workdir) keeps as its own.

  Its weights are not there before `keep_encoder`. Raises ValueError for settings that cannot be reproduced.
  """
  names = {index: token for token, index in tokenizer.vocab().items()}
  tower = ({'model_type': family.encoder} if family.encoder else {}) | files.hf[family.section]
  defaults = {} if family.is_flat else ENCODERS[tower['model_type']].defaults
  part, pixels = family.read(files.hf, defaults | tower, names), []
  if family.is_flat:
    ids = {code_reader.TOKEN_IDS: code_token_ids(files.hf)}
    pixels = code_reader.picture_preparation(files.path, tower.get('resolution', code_reader.SIDE))
    return _reader(files, tower | ids, part, pixels, workdir)
  is_native = tower.get('model_type') in native.FAMILIES
  spec = native.read_spec(tower) if is_native else encoders.read_spec(tower, part.layer)
  if spec.modality == 'audio':
    readers.check_sounds(files.path, spec)
  elif is_native:
    pixels = native_reader.picture_preparation(files.path, spec)
  else:
    pixels = readers.picture_preparation(files.path, spec, is_exact=True)
  if (own := Pixels(*pixels).sizes if pixels else ()) != part.sizes:
    raise unsupported(
      f'image_grid_pinpoints={part.sizes}', f'the processor cuts pictures of {own or "no sizes"}'
    )
  return _reader(files, tower, part, pixels, workdir)


def _reader(files, config, part, pixels, workdir):
  """Return the reader of an encoder of this config."""
  return readers.encoder_reader(
    path=str((files.path if workdir is None else workdir / FOLDER).absolute()),
    digest='',
    config=config,
    layer=part.layer,
    stack=part.stack,
    seconds=0.0,
    pixels=pixels,
    pool=part.pool,
    has_class=part.has_class,
    places=dataclasses.asdict(part.places),
  )


def keep_encoder(family: MultimodalFamily, source: Path, reader, workdir: Path | None) -> None:
  """Copy the encoder's weights into the run (workdir), and tell the reader their digest.

  Raises ValueError for weights that are not complete.
  """
  check_tower(family, source, reader)
  folder = Path(reader.path)
  if workdir is not None:
    if bootstrap.is_primary():
      copy_tower(family, source, folder)
    processes.barrier('encoder')
  reader.digest = digests.weights_digest(folder)


def fields(family: MultimodalFamily, reader, hf: dict) -> dict[str, Any]:
  """Return the fields of ModelConfig that belong to a projector, and to the positions of pictures."""
  own = {continuous.KINDS[family.kind].setting: reader.feature_width, 'projector': family.projector}
  own = own if family.projector else {}
  return own | family.positions(families.text_config(hf)[1])


def with_reader(family: MultimodalFamily, toks: Tokenizers, reader) -> Tokenizers:
  """Return the tokenizers of an imported model that read its pictures or sounds."""
  text, place = toks.text, continuous.KINDS[family.kind].place
  text.specials = text.specials | {place: text.vocab()[reader.places.token]}
  return Tokenizers.build(text, specials=(), readers={family.kind: reader})


# ------------------------------------------------------------------------------------------ writing


class Export(NamedTuple):
  """What an export of a multimodal model takes from the imported one."""

  family: MultimodalFamily
  hf: dict  # its config.json
  folder: Path  # of the encoder

  @classmethod
  def of(cls, toks: Tokenizers) -> 'Export':
    """Read what the run keeps of the imported model."""
    [kind] = toks.places
    folder = Path(toks.readers[kind].path)
    where = folder / WHOLE if (folder / WHOLE).exists() else folder / 'config.json'
    hf = base.read_json(where, FIX, {'model_type': str})
    family = MULTIMODAL[hf['model_type']]
    with reading(where, 'the config of an imported model', FIX):
      check_types(hf, {} if family.is_flat else {'text_config': dict})
    return cls(family, hf, folder)

  @property
  def model_type(self) -> str:
    """Of the multimodal model."""
    return self.hf['model_type']

  @property
  def text_family(self) -> str:
    """The family of the language model."""
    return families.text_config(self.hf)[0]

  def language_model(self, cfg):
    """Return the ModelConfig of the language model alone, for the table of its family."""
    return dataclasses.replace(cfg, positions='rope', rope_sections=()) if cfg.rope_sections else cfg

  def config(self, text: dict) -> dict:
    """Return config.json with the language model's in its place."""
    if self.family.is_flat:
      return self.hf | text
    own = self.hf['text_config']
    text = self.family.write(own, {key: value for key, value in text.items() if key != 'architectures'})
    return self.hf | {'architectures': [self.family.architecture], 'text_config': own | text}

  def tensors(self, cfg, params, text: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return all tensors. params: {path: parameter} of the model. text: tensors of the language model.

    Raises ValueError for biases that the imported model does not have.
    """
    name_of = functools.partial(re.sub, *self.family.language)
    files = {name_of(name): value for name, value in text.items()}
    sizes = tensors.sizes_of(cfg) | projectors.own_sizes(cfg)
    for path, row in rows_of(self.family, self.hf).items():
      value = np.asarray(params[path].get_value())
      if row.name:
        prefix = 'model.' if self.family.tower.startswith('model.') else ''
        files[f'{prefix}{row.name}'] = tensors.to_tensor(value, row, params[path].axes, sizes)
      elif value.any():
        raise ValueError(
          f'{path} is not 0, and the projector of the imported model has no biases\n'
          'fix: leave the biases of the projector out of adapter.train'
        )
    tower = tower_tensors(self.family, self.folder).items()
    return files | {f'{self.family.tower}.{name}': np.asarray(tensor.read()) for name, tensor in tower}

  def copy_files(self, folder: Path) -> None:
    """Copy the settings of the processor and the tokenizer, which are those of the imported model."""
    for name in COPIED_FILES:
      if (self.folder / name).is_file():
        shutil.copy(self.folder / name, folder / name)
