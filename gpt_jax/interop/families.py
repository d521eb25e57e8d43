"""The families of Hugging Face models that can be imported and exported: read, write and name their files.

One row of FAMILIES is one model_type; families_*.py hold the rows, family.py says what a row is.
"""

import re

import numpy as np

from gpt_jax.interop import families_blocks as blocks
from gpt_jax.interop import families_experts as experts
from gpt_jax.interop import families_gemma as gemma
from gpt_jax.interop import families_gpt2 as gpt2
from gpt_jax.interop import families_llama as llama
from gpt_jax.interop.family import complete, obstacles, read_fields, write_fields

# In the order in which an export tries them: the first that has all settings of a model is written.
FAMILIES = {
  'gpt2': gpt2.GPT2,
  'gpt_bigcode': gpt2.GPT_BIGCODE,
  'gpt_neo': gpt2.GPT_NEO,
  'qwen2': llama.QWEN2,
  'llama': llama.LLAMA,
  'mistral': llama.MISTRAL,
  'ministral': llama.MINISTRAL,
  'qwen3': llama.QWEN3,
  'phi3': llama.PHI3,
  'arcee': llama.ARCEE,
  'smollm3': blocks.SMOLLM3,
  'olmo': blocks.OLMO,
  'olmo2': blocks.OLMO2,
  'olmo3': blocks.OLMO3,
  'granite': blocks.GRANITE,
  'cohere': blocks.COHERE,
  'cohere2': blocks.COHERE2,
  'chameleon': blocks.CHAMELEON,
  'seed_oss': llama.SEED_OSS,
  'helium': llama.HELIUM,
  'ernie4_5': llama.ERNIE,
  'gemma': gemma.GEMMA,
  'gemma2': gemma.GEMMA2,
  'gemma3_text': gemma.GEMMA3,
  'starcoder2': gpt2.STARCODER2,
  'stablelm': gpt2.STABLELM,
  'gpt_neox': gpt2.GPT_NEOX,
  'mixtral': experts.MIXTRAL,
  'qwen3_moe': experts.QWEN3_MOE,
  'olmoe': experts.OLMOE,
}

WHOLE = ('chameleon',)  # of which an export needs parts that only an import keeps
# Text decoders of models of several modalities -> the family that they are, for text alone.
TEXT_DECODERS = {
  'qwen2_vl': 'qwen2',
  'qwen2_vl_text': 'qwen2',
  'qwen2_5_vl': 'qwen2',
  'qwen2_5_vl_text': 'qwen2',
  'qwen3_vl_text': 'qwen3',
  'emu3_text_model': 'llama',
}
# Keys of text_config that multimodal.py reads.
READ_ELSEWHERE = {'paligemma': ('use_bidirectional_attention', 'num_image_tokens')}
# Sizes that files of models of several modalities leave out, where they are those of transformers' classes.
SIZES = {
  'llama': {
    'vocab_size': 32000,
    'hidden_size': 4096,
    'intermediate_size': 11008,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
  },
  'voxtral': {
    'vocab_size': 131072,
    'hidden_size': 3072,
    'intermediate_size': 8192,
    'num_hidden_layers': 30,
    'num_key_value_heads': 8,
    'max_position_embeddings': 131072,
    'rms_norm_eps': 1e-5,
    'rope_theta': 1e8,
    'head_dim': 128,
  },
  'gemma': {
    'vocab_size': 257216,
    'hidden_size': 2048,
    'intermediate_size': 16384,
    'num_hidden_layers': 18,
    'num_attention_heads': 8,
    'num_key_value_heads': 1,
  },
  'gemma2': {'num_attention_heads': 8, 'head_dim': 256},
  'qwen2': {
    'vocab_size': 151936,
    'hidden_size': 4096,
    'intermediate_size': 22016,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
  },
  **dict.fromkeys(
    ('qwen2_vl_text', 'qwen2_5_vl_text'),
    {'num_key_value_heads': 8, 'rms_norm_eps': 1e-5, 'rope_theta': 1e6, 'max_position_embeddings': 32768},
  ),
  'gemma3_text': {
    'vocab_size': 262208,
    'hidden_size': 2304,
    'intermediate_size': 9216,
    'num_hidden_layers': 26,
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'head_dim': 256,
  },
}
# model_type -> (the part that ModelConfig lacks, the family that comes nearest)
LACKING = {
  'openai-gpt': ('its positions and norms are named otherwise', 'gpt2'),
  'opt': ('its position table begins at row 2', 'gpt2'),
  'gptj': ('both branches of a block share one norm, and the head has a bias', 'gpt_neox'),
  'phi': ('both branches of a block share one norm, and the head has a bias', 'gpt_neox'),
  'falcon': ('both branches of a block share one norm, with heads packed by group', 'gpt_neox'),
  'bloom': ('embeddings pass a norm', 'gpt2'),
  'mpt': ('ALiBi with packed heads is not mapped', 'gpt2'),
  'nemotron': ('LayerNorm multiplies by 1 + scale', 'arcee'),
  'nanochat': ('embeddings pass a norm, and norms have no scales', 'arcee'),
  'glm': ('gates and inputs are packed, with a part of each head interleaved', 'phi3'),
  'glm4': ('gates and inputs are packed, with a part of each head interleaved', 'phi3'),
  'qwen2_moe': ('some experts are shared by all tokens', 'qwen3_moe'),
  'qwen3_next': ('some layers are recurrent', 'qwen3_moe'),
  'granitemoe': ('the experts of a layer are one tensor', 'mixtral'),
  'deepseek_v2': ('keys and values are projected from a latent vector', 'qwen3_moe'),
  'deepseek_v3': ('keys and values are projected from a latent vector', 'qwen3_moe'),
  'gpt_oss': ('attention has sinks', 'mixtral'),
  'llama4_text': ('some experts are shared by all tokens', 'mixtral'),
  'gemma3n_text': ('layers share keys and have embeddings of their own', 'gemma3_text'),
  'exaone4': ('it has norms after the branches and no RoPE in full layers', 'olmo2'),
  'mamba': ('its layers are recurrent', 'llama'),
  't5': ('it has an encoder', 'llama'),
  'whisper': ('its layers attend to an encoder', 'llama'),
  'bert': ('its tokens see those after them', 'gpt2'),
}


# ------------------------------------------------------------------- config.json -> ModelConfig


def read_config(hf):
  """Read a config.json -> (model_type, fields of ModelConfig).

  Raises ValueError for a model that a ModelConfig cannot reproduce exactly.
  """
  model_type, hf = text_config(hf)
  if model_type not in FAMILIES:
    part, nearest = LACKING.get(model_type, ('it is not a known family', None))
    raise ValueError(
      f'config.json: model_type={model_type!r} cannot be imported: {part}\n'
      f'fix: import a model of {nearest or ", ".join(FAMILIES)}'
    )
  return model_type, read_fields(FAMILIES[model_type], hf)


def text_config(hf):
  """Return the (model_type, config.json) of the text decoder, which multimodal models hold inside theirs."""
  name, text = hf.get('model_type'), hf.get('text_config')
  if name not in FAMILIES and isinstance(text, dict) and 'model_type' in text:
    shared = {key: hf[key] for key in ('tie_word_embeddings', 'quantization_config') if key in hf}
    sizes = SIZES.get(text['model_type'], {}) | SIZES.get(name, {})
    other = READ_ELSEWHERE.get(name, ())
    hf = sizes | {key: value for key, value in text.items() if key not in other} | shared
    name = text['model_type']
  return TEXT_DECODERS.get(name, name), hf


def tensors_of(hf, cfg):
  """The tensors in the files of a config.json: {path of our parameter: Tensor}."""
  model_type, hf = text_config(hf)
  family = FAMILIES[model_type]
  return family.tensors | family.vary(cfg, complete(family, hf))


def stored_names(hf, names):
  """Return {the family's name: name in the files}, without buffers; a bare model's files lack the prefix."""
  model_type = text_config(hf)[0]
  family, is_whole = FAMILIES[model_type], hf.get('model_type') == model_type
  has_prefix = not is_whole or any(name.startswith(family.prefix) for name in names)
  stored = {}
  for name in names:
    usual = name if is_whole else _within_decoder(name)
    if usual is None:  # of another modality
      continue
    for pattern, alias in family.aliases.items():
      usual = re.sub(f'^{pattern}$', alias, usual)
    is_head = usual == family.tensors['head_VD'].name
    usual = usual if has_prefix or is_head else family.prefix + usual
    if not re.fullmatch(family.buffers, usual):
      stored[usual] = name
  return stored


def _within_decoder(name):
  """The name that a tensor would have if its text decoder were the whole model; None for other parts."""
  name = re.sub(r'^(model\.)?(language_model|text_model)\.(model\.)?', 'model.', name)
  name = name.removeprefix('model.') if name.startswith('model.lm_head.') else name
  return name if re.match(r'(model\.(layers|embed_tokens|norm)|lm_head)\.', name) else None


# ------------------------------------------------------------------- ModelConfig -> config.json


def write_config(cfg, value_of=lambda path: None, only=None):
  """Return (the first model_type that computes the same, its config.json without special ids).

  value_of: path of a parameter -> its array or None, for families in which some are fixed or shared.
  only: the model_type to write; None: the first of FAMILIES.
  Raises ValueError that lists, for the families that come nearest, the settings that they do not have.
  """
  lacking = {}
  for name in [only] if only else [name for name in FAMILIES if name not in WHOLE]:
    family = FAMILIES[name]
    about = {'architectures': [family.architecture], 'model_type': name}
    hf = about | write_fields(family, cfg)
    lacking[name] = obstacles(family, cfg, hf)
    if not lacking[name]:
      lacking[name] = _weight_obstacles(tensors_of(hf, cfg), value_of)
    if not lacking[name]:
      return name, hf
  fewest = min(map(len, lacking.values()))
  nearest = [name for name in lacking if len(lacking[name]) == fewest][:3]
  said = '; '.join(f'{name} lacks {", ".join(lacking[name])}' for name in nearest)
  raise ValueError(
    f'no family has all these settings: {said}\n'
    'fix: train with the presets gpt2 or llama, or without these settings, to export'
  )


def _weight_obstacles(tensors, value_of):
  """Parameters with other values than a family fixes, or that differ where it has one tensor for both."""
  owners, differ = {}, []
  for path, tensor in tensors.items():
    if (value := value_of(path)) is None:
      continue
    if tensor.name:
      owner = owners.setdefault((tensor.name, tensor.part), path)
      if owner != path and not np.array_equal(value_of(owner), value):
        differ.append(f'{path} other than {owner}')
    elif (value != tensor.value).any():
      differ.append(f'{path} other than {tensor.value:g}')
  return differ
