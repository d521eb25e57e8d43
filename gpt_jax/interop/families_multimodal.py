"""Families of models that read pictures or sounds: what each model_type is.

A row of MULTIMODAL is one model_type of transformers: which outputs of the encoder are taken, the projector
and its tensors, and how pictures or sounds stand in a text. multimodal.py reads and writes them.

Letters: A, M numbers of a patch, of a frame; I = D hidden numbers of a projector.

Source: transformers 5.23, `models/{llava,llava_next,llava_onevision,paligemma,gemma3,qwen2_audio}/` etc.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt_jax.interop import families
from gpt_jax.interop.encoders import families as encoders
from gpt_jax.interop.encoders import native
from gpt_jax.interop.family import unsupported
from gpt_jax.interop.tensors import Tensor
from gpt_jax.tokenizers.processors import Places

PROJECTOR = 'multi_modal_projector'
ANY_SIZES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # of LLaVA-NeXT
SIDES = range(384, 2305, 384)  # of LLaVA-OneVision
ONE_VISION = {  # its config.json, where it leaves these out
  'vision_feature_layer': -1,
  'vision_feature_select_strategy': 'full',
  'image_token_index': 151_646,
  'image_grid_pinpoints': [[height, width] for height in SIDES for width in SIDES],
  'vision_aspect_ratio': 'anyres_max_9',
}
WITHOUT_NORM = ('siglip_vision_model',)  # the outputs of its last layer are those before the norm


class Part(NamedTuple):
  """What a model takes from its encoder, and where it stands."""

  places: Places
  layer: int = 0  # of the encoder, without its final norm; 0 = the last one, with it
  pool: int = 1  # outputs along a side, or in a row, whose mean is one vector
  has_class: bool = False  # the class token is one, too
  stack: int = 1  # patches of a square side by side in a place
  sizes: tuple = ()  # (Y, X) of pictures before they are cut in tiles, as Pixels has them


def _as_it_is(own, text):
  return text


class MultimodalFamily(NamedTuple):
  """One model_type."""

  architecture: str  # the class that transformers builds
  projector: str  # a row of PROJECTORS
  tensors: dict  # {path of a parameter of the projector: Tensor}
  read: Callable  # (config.json, config.json of the encoder, {id: token}) -> Part
  tower: str = 'vision_tower'  # prefix of the encoder's tensors
  section: str = 'vision_config'  # of config.json
  encoder: str = ''  # model_type of the encoder where its section has none, as in older files
  kind: str = 'patches'  # a row of continuous.KINDS
  connector: str = PROJECTOR  # prefix of the projector's tensors
  language: tuple = ('^', 'language_model.')  # regex, replacement: name in a text model -> in this one
  positions: Callable = lambda text: {}  # text_config -> fields of ModelConfig
  is_flat: bool = False  # whether config.json has the language model's settings beside the encoder's
  write: Callable = _as_it_is  # (text_config of the imported model, that of a text model) -> to write


# --------------------------------------------------------------------------------------------- rows


def token_of(hf, names, key, default):
  """Return the token whose id a config.json gives; ValueError if the tokenizer has none."""
  index = hf.get(key, default)
  if index not in names:
    raise unsupported(f'{key}={index}', 'the tokenizer has no token of this id')
  return names[index]


def _read_llava(hf, tower, names):
  has_norm = encoders.FAMILIES[tower['model_type']].has_final_norm and tower['model_type'] not in WITHOUT_NORM
  layer, layers = hf.get('vision_feature_layer', -2), tower['num_hidden_layers']
  if not isinstance(layer, int) or not 0 < layer % (layers + 1) <= layers:
    raise unsupported(f'vision_feature_layer={layer}', 'one layer of the encoder is read')
  layer = layer % (layers + 1)
  if layer == layers and has_norm:
    raise unsupported(f'vision_feature_layer={layer}', 'the last layer of this encoder has a norm behind it')
  if (activation := hf.get('projector_hidden_act', 'gelu')) != 'gelu':
    raise unsupported(f'projector_hidden_act={activation!r}', 'the projector has exact GELU')
  has_class = hf.get('vision_feature_select_strategy', 'default') == 'full'
  return Part(Places(token_of(hf, names, 'image_token_index', 32000)), layer, has_class=has_class)


def _read_llava_next(hf, tower, names):
  part, side = _read_llava(hf, tower, names), tower['image_size']
  if part.has_class == encoders.FAMILIES[tower['model_type']].has_class:
    strategy = hf.get('vision_feature_select_strategy', 'default')
    raise unsupported(
      f'vision_feature_select_strategy={strategy!r}', 'a tile gives its patches and no others'
    )
  sizes = hf.get('image_grid_pinpoints') or ANY_SIZES
  if odd := [size for size in sizes if size[0] % side or size[1] % side]:
    raise unsupported(f'image_grid_pinpoints={odd[0]}', f'it is not made of tiles of {side}x{side}')
  return part._replace(has_class=False, sizes=tuple(map(tuple, sizes)))


def _read_llava_onevision(hf, tower, names):
  hf = ONE_VISION | {key: value for key, value in hf.items() if value is not None}
  part, ratio = _read_llava_next(hf, tower, names), hf['vision_aspect_ratio']
  if not (match := re.fullmatch(r'anyres_max_([1-9]\d*)', str(ratio))):
    raise unsupported(f'vision_aspect_ratio={ratio!r}', 'pictures are read in tiles, as anyres_max_9 says')
  return part._replace(places=dataclasses.replace(part.places, most=int(match[1])))


def _read_paligemma(hf, tower, names):
  text = hf['text_config']
  if text.get('use_bidirectional_attention') is False:
    raise unsupported('use_bidirectional_attention=false', 'prompts are read in both directions')
  bos = token_of(text, names, 'bos_token_id', 2)
  token = token_of(hf, names, 'image_token_index', 256000)
  return Part(Places(token, last=bos, end='\n', mask='prefix'))


def _read_gemma3(hf, tower, names):
  eps, text_eps = tower['layer_norm_eps'], hf['text_config'].get('rms_norm_eps', 1e-6)
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


def _read_voxtral(hf, tower, names):
  spec = encoders.read_spec(tower)
  stack, rest = divmod(spec.cfg.F, spec.cfg.width)
  if rest or spec.cfg.context % stack:
    raise unsupported(f'intermediate_size={spec.cfg.F}', 'outputs side by side are as many in each window')
  if (activation := hf.get('projector_hidden_act', 'gelu')) != 'gelu':
    raise unsupported(f'projector_hidden_act={activation!r}', 'the projector has exact GELU')
  return Part(Places(token_of(hf, names, 'audio_token_id', 24)), stack=stack)


def _read_idefics3(hf, tower, names):
  side = tower['image_size'] // tower['patch_size']
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


def _read_qwen2_vl(hf, tower, names):
  width, out = families.text_config(hf)[1]['hidden_size'], native.read_spec(tower).out
  if out != width:
    raise unsupported(f'an encoder whose outputs have {out} numbers', f'the text model has {width}')
  return Part(Places(token_of(hf, names, 'image_token_id', 151_655)))


def _read_chameleon(hf, tower, names):
  image, start, stop = '<image>', '<racm3:break>', '<eoss>'
  ids = hf.get('vocabulary_map') or {}
  if lacking := {image, start, stop} - set(names.values()):
    raise unsupported(f'a tokenizer without {min(lacking)}', 'it stands for pictures or beside them')
  if names.get(ids.get(image)) != image:
    raise unsupported(f'vocabulary_map with {image}={ids.get(image)}', 'the tokenizer has another id')
  code_token_ids(hf)  # is complete
  end = '<reserved08706>'  # behind prompts
  return Part(Places(image, before=start, after=stop, end=end if end in names.values() else ''))


def code_token_ids(hf) -> list[int]:
  """Return the id of each code of a picture, by the names in Chameleon's vocabulary: A to J are digits."""
  digits, ids = str.maketrans('ABCDEFGHIJ', '0123456789'), {}
  for name, index in hf['vocabulary_map'].items():
    if match := re.fullmatch('IMGIMG([A-J]+)Z', name):
      ids[int(match[1].translate(digits))] = index
  count = hf['vq_config'].get('num_embeddings', 8192)
  if sorted(ids) != list(range(count)):
    raise unsupported(f'vocabulary_map with {len(ids)} codes', f'the picture tokenizer has {count}')
  return [ids[code] for code in range(count)]


def _mrope(text):
  """Return the fields of positions with rows and columns."""
  rope = text.get('rope_scaling') or text.get('rope_parameters') or {}
  return {'positions': 'mrope', 'rope_sections': tuple(rope.get('mrope_section', (16, 24, 24)))}


def _write_mrope(own, text):
  """Return a text_config with the sections of the imported one."""
  rope = text['rope_parameters'] | {'mrope_section': list(_mrope(own)['rope_sections'])}
  kept = {'model_type': own['model_type'], 'rope_parameters': rope, 'rope_scaling': rope}
  return text | kept


def _of_projector(path, name, layout, place='patch'):
  return {f'{place}_projector/{path}': Tensor(f'{PROJECTOR}.{name}', layout)}


LLAVA = MultimodalFamily(
  architecture='LlavaForConditionalGeneration',
  projector='llava',
  tensors=_of_projector('up_AI', 'linear_1.weight', 'I A')
  | _of_projector('up_bias_I', 'linear_1.bias', 'I')
  | _of_projector('down_ID', 'linear_2.weight', 'D I')
  | _of_projector('down_bias_D', 'linear_2.bias', 'D'),
  read=_read_llava,
)
LLAVA_NEXT = LLAVA._replace(
  architecture='LlavaNextForConditionalGeneration',
  projector='llava_next',
  tensors=LLAVA.tensors | {'patch_projector/newline_D': Tensor('image_newline', 'D')},
  read=_read_llava_next,
)
LLAVA_ONEVISION = LLAVA_NEXT._replace(
  architecture='LlavaOnevisionForConditionalGeneration',
  projector='llava_onevision',
  read=_read_llava_onevision,
)
PALIGEMMA = MultimodalFamily(
  architecture='PaliGemmaForConditionalGeneration',
  projector='paligemma',
  tensors=_of_projector('out_AD', 'linear.weight', 'D A') | _of_projector('out_bias_D', 'linear.bias', 'D'),
  read=_read_paligemma,
)
GEMMA3 = MultimodalFamily(
  architecture='Gemma3ForConditionalGeneration',
  projector='gemma3',
  tensors=_of_projector('out_AD', 'mm_input_projection_weight', 'A D')
  | _of_projector('scale_A', 'mm_soft_emb_norm.weight', 'A'),
  read=_read_gemma3,
)
QWEN2_AUDIO = MultimodalFamily(
  architecture='Qwen2AudioForConditionalGeneration',
  projector='paligemma',
  tensors=_of_projector('out_AD', 'linear.weight', 'D M', 'frame')
  | _of_projector('out_bias_D', 'linear.bias', 'D', 'frame'),
  read=_read_qwen2_audio,
  tower='audio_tower',
  section='audio_config',
  kind='frames',
)
VOXTRAL = QWEN2_AUDIO._replace(
  architecture='VoxtralForConditionalGeneration',
  projector='llava',
  tensors=_of_projector('up_AI', 'linear_1.weight', 'I M', 'frame')
  | _of_projector('down_ID', 'linear_2.weight', 'D I', 'frame')
  | {'frame_projector/up_bias_I': Tensor(''), 'frame_projector/down_bias_D': Tensor('')},
  read=_read_voxtral,
)
IDEFICS3 = MultimodalFamily(
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
QWEN2_VL = MultimodalFamily(
  architecture='Qwen2VLForConditionalGeneration',
  projector='cells',
  tensors={},
  read=_read_qwen2_vl,
  tower='visual',
  encoder='qwen2_vl_vision',
  language=('^', ''),
  positions=_mrope,
  write=_write_mrope,
)
QWEN2_5_VL = QWEN2_VL._replace(architecture='Qwen2_5_VLForConditionalGeneration', encoder='qwen2_5_vl_vision')
CHAMELEON = MultimodalFamily(
  architecture='ChameleonForConditionalGeneration',
  projector='',
  tensors={},
  read=_read_chameleon,
  tower='model.vqmodel',
  section='vq_config',
  encoder='chameleon_vqgan',
  language=('^', ''),
  is_flat=True,
)
MULTIMODAL = {
  'chameleon': CHAMELEON,
  'idefics3': IDEFICS3,
  'smolvlm': SMOLVLM,
  'llava': LLAVA,
  'llava_next': LLAVA_NEXT,
  'llava_onevision': LLAVA_ONEVISION,
  'qwen2_vl': QWEN2_VL,
  'qwen2_5_vl': QWEN2_5_VL,
  'paligemma': PALIGEMMA,
  'gemma3': GEMMA3,
  'qwen2_audio': QWEN2_AUDIO,
  'voxtral': VOXTRAL,
}
