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


# ------------------------------------------------------------------- config.json -> ModelConfig


def read_config(hf):
  """Read a config.json -> (model_type, fields of ModelConfig).

  Raises ValueError for a model that a ModelConfig cannot reproduce exactly.
  """
  model_type, hf = text_config(hf)
  if model_type not in FAMILIES:
    raise ValueError(
      f'config.json: model_type={model_type!r} is not a family that can be imported\n'
      f'fix: import a model of {", ".join(FAMILIES)}'
    )
  return model_type, read_fields(FAMILIES[model_type], hf)


def text_config(hf):
  """Return the (model_type, config.json) of a model's text decoder."""
  return hf.get('model_type'), hf


def tensors_of(hf, cfg):
  """The tensors in the files of a config.json: {path of our parameter: Tensor}."""
  model_type, hf = text_config(hf)
  family = FAMILIES[model_type]
  return family.tensors | family.vary(cfg, complete(family, hf))


def stored_names(hf, names):
  """Return {the family's name: name in the files}, without buffers; a bare model's files lack the prefix."""
  family = FAMILIES[text_config(hf)[0]]
  has_prefix = any(name.startswith(family.prefix) for name in names)
  stored = {}
  for name in names:
    usual = name
    for pattern, alias in family.aliases.items():
      usual = re.sub(f'^{pattern}$', alias, usual)
    is_head = usual == family.tensors['head_VD'].name
    usual = usual if has_prefix or is_head else family.prefix + usual
    if not re.fullmatch(family.buffers, usual):
      stored[usual] = name
  return stored


# ------------------------------------------------------------------- ModelConfig -> config.json


def write_config(cfg, value_of=lambda path: None, only=None):
  """Return (the first model_type that computes the same, its config.json without special ids).

  value_of: path of a parameter -> its array or None, for families in which some are fixed or shared.
  only: the model_type to write; None: the first of FAMILIES.
  Raises ValueError that lists, for the families that come nearest, the settings that they do not have.
  """
  lacking = {}
  for name in [only] if only else FAMILIES:
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
