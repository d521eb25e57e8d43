"""Whole models of others that read pictures or sounds: encoder, projector, language model; both ways.

A row of WHOLES is one model_type of transformers: which outputs of the encoder are taken, the projector and
its tensors, and how pictures or sounds stand in a text. The language model is one of families.py. The weights
of the encoder are kept in the run folder as they are, so that an export is made of the same bytes.

Letters: A, M numbers of a patch, of a frame; I = D hidden numbers of a projector.

Source: transformers 5.23, `models/{llava,paligemma,gemma3,qwen2_audio,idefics3}/`.
"""

import dataclasses
import functools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from gpt_jax.cluster import bootstrap, processes
from gpt_jax.interop import families, tensors, weight_files
from gpt_jax.interop.encoders import families as encoders
from gpt_jax.interop.family import unsupported
from gpt_jax.interop.tensors import Tensor
from gpt_jax.model import continuous
from gpt_jax.runs import records
from gpt_jax.tokenizers import Tokenizers, base, readers
from gpt_jax.tokenizers.processors import Places

FOLDER = 'encoder'  # of a run
WHOLE = 'model.json'  # in it: the config.json of the imported model
PROJECTOR = 'multi_modal_projector'
# Files of the imported model that its export has again.
COPIED_FILES = (readers.PROCESSOR, readers.PROCESSORS, 'tokenizer_config.json', 'special_tokens_map.json')
FIX = 'restore config.json of the model'


class Part(NamedTuple):
  """What a model takes from its encoder, and where it stands."""

  places: Places
  layer: int = 0  # of the encoder, without its final norm; 0 = the last one, with it
  pool: int = 1  # outputs along a side, or in a row, whose mean is one vector
  has_class: bool = False  # the class token is one, too
  stack: int = 1  # patches of a square side by side in a place


class Whole(NamedTuple):
  """One model_type."""

  architecture: str  # the class that transformers builds
  projector: str  # a row of PROJECTORS
  tensors: dict  # {path of a parameter of the projector: Tensor}
  read: Callable  # (config.json, config.json of the encoder, {id: token}) -> Part
  tower: str = 'vision_tower'  # prefix of the encoder's tensors
  section: str = 'vision_config'  # of config.json
  kind: str = 'patches'  # a row of continuous.KINDS
  connector: str = PROJECTOR  # prefix of the projector's tensors
  language: tuple = ('^', 'language_model.')  # regex, replacement: name in a text model -> in this one


# --------------------------------------------------------------------------------------------- rows


def token_of(hf, names, key, default):
  """Return the token whose id a config.json gives; ValueError if the tokenizer has none."""
  index = hf.get(key, default)
  if index not in names:
    raise unsupported(f'{key}={index}', 'the tokenizer has no token of this id')
  return names[index]


def _read_llava(hf, tower, names):
  layer, layers = hf.get('vision_feature_layer', -2), tower['num_hidden_layers']
  if not isinstance(layer, int) or not 0 < layer % (layers + 1) <= layers:
    raise unsupported(f'vision_feature_layer={layer}', 'one layer of the encoder is read')
  layer = layer % (layers + 1)
  if layer == layers and encoders.FAMILIES[tower['model_type']].has_final_norm:
    raise unsupported(f'vision_feature_layer={layer}', 'the last layer of this encoder has a norm behind it')
  if (activation := hf.get('projector_hidden_act', 'gelu')) != 'gelu':
    raise unsupported(f'projector_hidden_act={activation!r}', 'the projector has exact GELU')
  has_class = hf.get('vision_feature_select_strategy', 'default') == 'full'
  return Part(Places(token_of(hf, names, 'image_token_index', 32000)), layer, has_class=has_class)


def _read_paligemma(hf, tower, names):
  text = hf['text_config']
  if text.get('use_bidirectional_attention') is False:
    raise unsupported('use_bidirectional_attention=false', 'prompts are read in both directions')
  bos = token_of(text, names, 'bos_token_id', 2)
  token = token_of(hf, names, 'image_token_index', 256000)
  return Part(Places(token, last=bos, end='\n', mask='prefix'))


def _read_gemma3(hf, tower, names):
  eps, text_eps = tower.get('layer_norm_eps', 1e-6), hf['text_config'].get('rms_norm_eps', 1e-6)
  if eps != text_eps:
    raise unsupported(f'layer_norm_eps={eps}', f'the norm of the projector has the rms_norm_eps={text_eps}')
  side = tower['image_size'] // tower['patch_size']
  tokens = math.isqrt(hf.get('mm_tokens_per_image', 256))
  if tokens**2 != hf.get('mm_tokens_per_image', 256) or side % tokens:
    raise unsupported(f'mm_tokens_per_image={tokens**2}', f'squares of {side}x{side} patches do not give it')
  begin, end = (
    token_of(hf, names, key, index)
    for key, index in (('boi_token_index', 255_999), ('eoi_token_index', 256_000))
  )
  token = token_of(hf, names, 'image_token_index', 262_144)
  places = Places(token, slot=begin, before=f'\n\n{begin}', after=f'{end}\n\n', mask='items')
  return Part(places, pool=side // tokens)


def _read_qwen2_audio(hf, tower, names):
  return Part(Places(token_of(hf, names, 'audio_token_index', 151_646)))


def _read_idefics3(hf, tower, names):
  side = tower.get('image_size', 224) // tower.get('patch_size', 32)
  fractions = np.arange(side, dtype=np.float32) * (np.float32(1) / np.float32(side))
  borders = np.arange(1 / side, 1.0, 1 / side).astype(np.float32)
  if not np.array_equal(np.searchsorted(borders, fractions, 'right'), np.arange(side)):
    raise unsupported(f'a grid of {side}x{side} patches', 'rounding gives some of them the same position')
  scale, known = hf.get('scale_factor', 2), set(names.values())
  token = token_of(hf, names, 'image_token_id', 128_257)
  around, whole = '<fake_token_around_image>', '<global-img>'
  if lacking := {around, whole} - known:
    raise unsupported(f'a tokenizer without {min(lacking)}', 'it stands beside pictures')
  if side % scale:
    raise unsupported(f'scale_factor={scale}', f'it does not divide the grid of {side}x{side} patches')
  tile = f'{around}<row_{{row}}_col_{{column}}>'
  return Part(Places(token, before=f'{around}{whole}', after=around, tile=tile), stack=scale**2)


def _of_projector(path, name, layout, place='patch'):
  return {f'{place}_projector/{path}': Tensor(f'{PROJECTOR}.{name}', layout)}


LLAVA = Whole(
  architecture='LlavaForConditionalGeneration',
  projector='llava',
  tensors=_of_projector('up_AI', 'linear_1.weight', 'I A')
  | _of_projector('up_bias_I', 'linear_1.bias', 'I')
  | _of_projector('down_ID', 'linear_2.weight', 'D I')
  | _of_projector('down_bias_D', 'linear_2.bias', 'D'),
  read=_read_llava,
)
PALIGEMMA = Whole(
  architecture='PaliGemmaForConditionalGeneration',
  projector='paligemma',
  tensors=_of_projector('out_AD', 'linear.weight', 'D A') | _of_projector('out_bias_D', 'linear.bias', 'D'),
  read=_read_paligemma,
)
GEMMA3 = Whole(
  architecture='Gemma3ForConditionalGeneration',
  projector='gemma3',
  tensors=_of_projector('out_AD', 'mm_input_projection_weight', 'A D')
  | _of_projector('scale_A', 'mm_soft_emb_norm.weight', 'A'),
  read=_read_gemma3,
)
QWEN2_AUDIO = Whole(
  architecture='Qwen2AudioForConditionalGeneration',
  projector='paligemma',
  tensors=_of_projector('out_AD', 'linear.weight', 'D M', 'frame')
  | _of_projector('out_bias_D', 'linear.bias', 'D', 'frame'),
  read=_read_qwen2_audio,
  tower='audio_tower',
  section='audio_config',
  kind='frames',
)
IDEFICS3 = Whole(
  architecture='Idefics3ForConditionalGeneration',
  projector='paligemma',
  tensors={
    'patch_projector/out_AD': Tensor('connector.modality_projection.proj.weight', 'D A'),
    'patch_projector/out_bias_D': Tensor(''),
  },
  read=_read_idefics3,
  tower='model.vision_model',
  connector='connector',
  language=(r'^model\.', 'model.text_model.'),
)
SMOLVLM = IDEFICS3._replace(architecture='SmolVLMForConditionalGeneration')
WHOLES = {
  'idefics3': IDEFICS3,
  'smolvlm': SMOLVLM,
  'llava': LLAVA,
  'paligemma': PALIGEMMA,
  'gemma3': GEMMA3,
  'qwen2_audio': QWEN2_AUDIO,
}


# ------------------------------------------------------------------------------------------ reading


def find(hf) -> Whole | None:
  """Return the row of a config.json, None for a model of text alone."""
  whole = WHOLES.get(hf.get('model_type'))
  return whole if whole and isinstance(hf.get(whole.section), dict) else None


def rows_of(whole: Whole, hf) -> dict[str, Tensor]:
  """Return {path: Tensor} of the projector; biases that the files do not have are 0."""
  if hf.get('multimodal_projector_bias', True):
    return whole.tensors
  return {path: Tensor('') if 'bias' in path else row for path, row in whole.tensors.items()}


def stored_names(whole: Whole, names) -> dict[str, str]:
  """Return {name in the table: name in the files} of a projector's tensors."""
  plain = {re.sub(r'^model\.', '', name): name for name in names}
  return {name: stored for name, stored in plain.items() if name.startswith(f'{whole.connector}.')}


def copy_tower(whole: Whole, source: Path, folder: Path) -> None:
  """Write the encoder of an imported model as a folder of its own, with what an export needs."""
  folder.mkdir(parents=True, exist_ok=True)
  save_file(tower_tensors(whole, source), folder / 'model.safetensors', {'format': 'pt'})
  hf = base.read_json(source / 'config.json', FIX, dict)
  for name in COPIED_FILES:
    if (source / name).is_file():
      shutil.copy(source / name, folder / name)
  records.write_atomically(folder / 'config.json', json.dumps(hf[whole.section], indent=2) + '\n')
  records.write_atomically(folder / WHOLE, json.dumps(hf, indent=2) + '\n')


def tower_tensors(whole: Whole, folder: Path) -> dict[str, np.ndarray]:
  """Return the encoder's tensors of an imported model's folder, or of what `copy_tower` wrote."""
  prefix = re.compile(rf'^(model\.)?{whole.tower.removeprefix("model.")}\.')
  stored, is_tower = weight_files.open_folder(folder), (folder / WHOLE).exists()
  chosen = {name: tensor for name, tensor in stored.items() if is_tower or prefix.match(name)}
  return {prefix.sub('', name): np.asarray(tensor.read()) for name, tensor in chosen.items()}


def open_reader(whole: Whole, files, tokenizer, workdir: Path | None) -> readers.EncoderReader:
  """Return the reader of the encoder of huggingface.ModelFiles, which a run (workdir) keeps as its own.

  Raises ValueError for settings that cannot be reproduced, before anything is written.
  """
  names = {index: token for token, index in tokenizer.vocab().items()}
  tower = dict(files.hf[whole.section])
  part = whole.read(files.hf, tower, names)
  spec = encoders.read_spec(tower, part.layer)
  is_sound = spec.modality == 'audio'
  pixels = [] if is_sound else readers.picture_preparation(files.path, spec, is_exact=True)
  if is_sound:
    readers.check_sounds(files.path, spec)
  folder = files.path
  if workdir is not None:
    folder = workdir / FOLDER
    if bootstrap.is_primary():
      copy_tower(whole, files.path, folder)
    processes.barrier('encoder')
  path, digest = str(folder.absolute()), readers.weights_digest(folder)
  places = dataclasses.asdict(part.places)
  return readers.EncoderReader(
    path, digest, tower, part.layer, part.stack, 0.0, pixels, part.pool, part.has_class, places
  )


def fields(whole: Whole, reader) -> dict[str, Any]:
  """Return the fields of ModelConfig that belong to a projector."""
  return {continuous.KINDS[whole.kind].setting: reader.feature_width, 'projector': whole.projector}


def with_reader(whole: Whole, toks: Tokenizers, reader) -> Tokenizers:
  """Return the tokenizers of an imported model that read its pictures or sounds."""
  text, place = toks.text, continuous.KINDS[whole.kind].place
  text.specials = text.specials | {place: text.vocab()[reader.places.token]}
  return Tokenizers.build(text, specials=(), readers={whole.kind: reader})


# ------------------------------------------------------------------------------------------ writing


class Export(NamedTuple):
  """What an export of a whole model takes from the imported one."""

  whole: Whole
  hf: dict  # its config.json
  folder: Path  # of the encoder

  @classmethod
  def of(cls, toks: Tokenizers) -> 'Export':
    """Read what the run keeps of the imported model."""
    [kind] = toks.places
    folder = Path(toks.readers[kind].path)
    where = folder / WHOLE if (folder / WHOLE).exists() else folder / 'config.json'
    hf = base.read_json(where, FIX, {'model_type': str, 'text_config': dict})
    return cls(WHOLES[hf['model_type']], hf, folder)

  @property
  def model_type(self) -> str:
    """Of the whole model."""
    return self.hf['model_type']

  @property
  def text_family(self) -> str:
    """The family of the language model."""
    return families.text_config(self.hf)[0]

  def config(self, text: dict) -> dict:
    """Return config.json with the language model's in its place."""
    text = {key: value for key, value in text.items() if key != 'architectures'}
    return self.hf | {
      'architectures': [self.whole.architecture],
      'text_config': self.hf['text_config'] | text,
    }

  def tensors(self, cfg, params, text: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return all tensors. params: {path: parameter} of the model. text: tensors of the language model.

    Raises ValueError for biases that the imported model does not have.
    """
    name_of = functools.partial(re.sub, *self.whole.language)
    files, sizes = {name_of(name): value for name, value in text.items()}, tensors.sizes_of(cfg)
    for path, row in rows_of(self.whole, self.hf).items():
      value = np.asarray(params[path].get_value())
      if row.name:
        prefix = 'model.' if self.whole.tower.startswith('model.') else ''
        files[f'{prefix}{row.name}'] = tensors.to_tensor(value, row, params[path].axes, sizes)
      elif value.any():
        raise ValueError(
          f'{path} is not 0, and the projector of the imported model has no biases\n'
          'fix: leave the biases of the projector out of adapter.train'
        )
    tower = tower_tensors(self.whole, self.folder).items()
    return files | {f'{self.whole.tower}.{name}': value for name, value in tower}

  def copy_files(self, folder: Path) -> None:
    """Copy the settings of the processor and the tokenizer, which are those of the imported model."""
    for name in COPIED_FILES:
      if (self.folder / name).is_file():
        shutil.copy(self.folder / name, folder / name)
