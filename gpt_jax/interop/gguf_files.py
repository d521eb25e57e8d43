"""GGUF files (llama.cpp): metadata as a config.json, tensors by the names of a Hugging Face family.

Tensors are dequantized when they are read. The `gguf` package knows the block formats and the names; the
header is read here, since the package takes half a minute for a large vocabulary.

Source: ggml's docs/gguf.md; llama.cpp's convert_hf_to_gguf.py, whose changes to weights are undone.
"""

import math
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt_jax.interop.weight_files import StoredTensor
from gpt_jax.runs.reading import reading

FIX = 'download or copy it again'
ARRAY, STRING = 9, 8
SCALARS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd'}
ROWS = 512  # of a matrix that are dequantized at once
TYPES = ('F32', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'Q4_K', 'Q5_K', 'Q6_K')
LLAMA3_CONTEXT, LLAMA3_LOW, LLAMA3_HIGH = 8192, 1.0, 4.0  # as all Llama 3.1 to 3.3 were published


class Architecture(NamedTuple):
  """A row: how one general.architecture becomes a Hugging Face family."""

  model_type: str
  config: Callable = lambda get, hf: {}  # (metadata by key, config.json so far) -> more of it
  keys: dict = {}  # key of config.json -> another name in this family
  restore: Callable = lambda name, array, hf: array  # undo what the converter did to a tensor


class GGUF(NamedTuple):
  """The header of a file."""

  path: Path
  metadata: dict
  tensors: dict  # {name: StoredTensor}, dequantized by `read`

  def get(self, key):
    """Return a value of this architecture's metadata, None if it is absent."""
    return self.metadata.get(f'{self.metadata.get("general.architecture")}.{key}')


# ------------------------------------------------------------------------------------------- header


class Cursor:
  """A place in a file; reading beyond its end raises ValueError."""

  def __init__(self, content):
    self.content, self.place = content, 0

  def take(self, size):
    """Return the next bytes."""
    if size > len(self.content) - self.place:
      raise ValueError(f'it ends at byte {len(self.content):,}, inside its header')
    self.place += size
    return self.content[self.place - size : self.place]

  def number(self, code):
    """Return the next number of a struct code."""
    return struct.unpack(f'<{code}', self.take(struct.calcsize(code)))[0]

  def text(self):
    """Return the next string; a token may be a part of a character."""
    return self.take(self.number('Q')).decode(errors='surrogateescape')

  def value(self, kind):
    """Return the next value of a GGUF type."""
    if kind == STRING:
      return self.text()
    if kind != ARRAY:
      return self.number(SCALARS[kind])
    kind, count = self.number('I'), self.number('Q')
    if kind == STRING:
      return [self.text() for _ in range(count)]
    code = SCALARS[kind]
    return list(struct.unpack(f'<{count}{code}', self.take(count * struct.calcsize(code))))


def open_gguf(path):
  """Return the GGUF of a file whose tensors all lie inside it."""
  path = Path(path)
  quants = _library(path)
  with reading(path, 'a whole GGUF file', FIX):
    with open(path, 'rb') as file:
      content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = Cursor(content)
    if cursor.take(4) != b'GGUF' or cursor.number('I') not in (2, 3):
      raise ValueError('it does not begin as GGUF version 2 or 3, little endian')
    count, pairs = cursor.number('Q'), cursor.number('Q')
    metadata = {}
    for _ in range(pairs):
      key = cursor.text()
      metadata[key] = cursor.value(cursor.number('I'))
    entries = {}
    for _ in range(count):
      name, rank = cursor.text(), cursor.number('I')
      shape = tuple(cursor.number('Q') for _ in range(rank))[::-1]
      entries[name] = (shape, cursor.number('I'), cursor.number('Q'))
    if metadata.get('split.count', 0) > 1:
      raise ValueError(f'{path} is one part of several\nfix: join them with llama-gguf-split --merge')
    alignment = metadata.get('general.alignment', 32)
    start = -(-cursor.place // alignment) * alignment
    tensors = {}
    for name, (shape, kind, offset) in entries.items():
      tensors[name] = _stored(path, quants, name, shape, kind, start + offset, len(content))
  return GGUF(path, metadata, tensors)


def _library(path):
  try:
    import gguf
  except ImportError as error:
    raise ValueError(
      f'--source={path} is GGUF, and the gguf package, which decodes it, is not installed\n'
      "fix: pip install 'gpt_jax[gguf]'"
    ) from error
  return gguf


def _stored(path, gguf, name, shape, kind, offset, end):
  """Return the StoredTensor of an entry; ValueError for an unknown type or a place beyond the end."""
  kinds = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
  if kinds.get(kind) not in TYPES:
    raise ValueError(
      f'tensor {name} has the type {kinds.get(kind, kind)}, which is not decoded\n'
      f'fix: choose a file of {", ".join(TYPES)}'
    )
  quantization = gguf.GGMLQuantizationType(kind)
  block, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
  if not shape or shape[-1] % block:
    raise ValueError(f'tensor {name} has the shape {list(shape)}, and blocks of {block} values')
  packed = (math.prod(shape[:-1]), shape[-1] // block * block_bytes)
  if offset + math.prod(packed) > end:
    raise ValueError(f'tensor {name} ends at byte {offset + math.prod(packed):,}, the file at {end:,}')

  def read():
    if quantization.name in ('F32', 'F16'):
      return np.memmap(path, f'<f{block_bytes}', 'r', offset, shape)
    rows, array = np.memmap(path, np.uint8, 'r', offset, packed), np.empty((packed[0], shape[-1]), np.float32)
    for first in range(0, len(rows), ROWS):
      some = rows[first : first + ROWS]
      values = gguf.quants.dequantize(some.reshape(1, -1), quantization)  # of many rows it would make a loop
      array[first : first + ROWS] = values.reshape(len(some), -1)
    return array.reshape(shape)

  dtype = quantization.name if quantization.name in ('F32', 'F16', 'BF16') else 'F32'
  return StoredTensor(name, shape, dtype, read)


# ------------------------------------------------------------------------------------ config.json


def read_config(file):
  """Return the config.json that a file's metadata stand for; ValueError for an unknown architecture."""
  name = file.metadata.get('general.architecture')
  if name not in ARCHITECTURES:
    raise ValueError(
      f'{file.path}: general.architecture={name!r} cannot be imported\n'
      f'fix: choose a model of {", ".join(ARCHITECTURES)}'
    )
  if file.get('expert_count'):
    raise ValueError(
      f'{file.path}: {name}.expert_count={file.get("expert_count")}: experts are not read from GGUF\n'
      'fix: import its Hugging Face folder'
    )
  row = ARCHITECTURES[name]
  values = {key: file.get(place) for key, place in KEYS.items()}
  if (embedding := file.tensors.get('token_embd.weight')) is not None:
    values['vocab_size'] = embedding.shape[0]
  hf = {row.keys.get(key, key): value for key, value in values.items() if value is not None}
  hf |= {'model_type': row.model_type, 'tie_word_embeddings': 'output.weight' not in file.tensors}
  special = lambda name: file.metadata.get(f'tokenizer.ggml.{name}_token_id')
  hf |= {'bos_token_id': special('bos'), 'pad_token_id': special('padding')}
  ends = [special(name) for name in ('eos', 'eot', 'eom')]
  hf['eos_token_id'] = list(dict.fromkeys(i for i in ends if i is not None)) or None
  hf |= _rope(file)
  hf |= row.config(file.get, hf)  # Gemma 3 moves the scaling of RoPE
  _check_rest(file, hf)
  return hf


def _check_rest(file, hf):
  """Raise ValueError for a setting of which config.json has no key here, unless it is the usual one."""
  head_dim = file.get('attention.key_length')
  if head_dim is None and file.get('embedding_length') and file.get('attention.head_count'):
    head_dim = file.get('embedding_length') // file.get('attention.head_count')
  usual = dict(YARN)
  if head_dim:
    rotated = head_dim * hf.get('partial_rotary_factor', 1)
    usual |= {'rope.dimension_count': rotated, 'attention.value_length': head_dim}
    usual['attention.scale'] = (hf.get('query_pre_attn_scalar') or head_dim) ** -0.5
  for key, value in usual.items():
    stored = file.get(key)
    if stored is not None and not math.isclose(stored, value, rel_tol=1e-5):
      raise ValueError(
        f'{file.path}: {key}={stored} cannot be imported from GGUF, only {value:.6g}\n'
        'fix: import its Hugging Face folder'
      )


def _rope(file):
  """Return rope_scaling of config.json; Llama 3's is stored as a divisor of each frequency."""
  kind, factor = file.get('rope.scaling.type'), file.get('rope.scaling.factor')
  if 'rope_freqs.weight' in file.tensors:
    divisors = np.asarray(file.tensors['rope_freqs.weight'].read(), np.float64)
    factor = float(divisors.max())
    if not np.allclose(divisors, _llama3_divisors(file, 2 * len(divisors), factor), rtol=1e-4):
      raise ValueError(
        f'{file.path}: rope_freqs.weight is not the RoPE scaling of Llama 3\n'
        'fix: import its Hugging Face folder'
      )
    bands = {'low_freq_factor': LLAMA3_LOW, 'high_freq_factor': LLAMA3_HIGH}
    scaling = {'rope_type': 'llama3', 'factor': factor, **bands}
    return {'rope_scaling': scaling | {'original_max_position_embeddings': LLAMA3_CONTEXT}}
  if kind in (None, 'none'):
    return {}
  original = file.get('rope.scaling.original_context_length')
  scaling = {'rope_type': kind, 'factor': factor, 'original_max_position_embeddings': original}
  return {'rope_scaling': {key: value for key, value in scaling.items() if value is not None}}


def _llama3_divisors(file, width, factor):
  theta = file.get('rope.freq_base') or 10000.0
  turns = LLAMA3_CONTEXT * theta ** (-np.arange(0, width, 2) / width) / (2 * math.pi)
  smooth = np.clip((turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW), 0, 1)
  return 1 / ((1 - smooth) / factor + smooth)


# ---------------------------------------------------------------------------------------- tensors


def named_tensors(file, names, hf):
  """Return {name: StoredTensor} for names of a family, restored; others keep the name of the file."""
  gguf = _library(file.path)
  arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == file.metadata['general.architecture'])
  table = gguf.get_tensor_name_map(arch, file.get('block_count') or 0)
  row = ARCHITECTURES[file.metadata['general.architecture']]
  stored = {name: tensor for name, tensor in file.tensors.items() if name != 'rope_freqs.weight'}

  def restored(tensor):
    is_turned = row.restore is _turned and tensor.name.startswith('blk.')
    shape = tensor.shape[::-1] if is_turned else tensor.shape
    return tensor._replace(read=lambda: row.restore(tensor.name, tensor.read(), hf), shape=shape)

  for name in names:
    own = table.get_name(name, try_suffixes=('.weight', '.bias'))
    if own in stored:
      tensor = stored.pop(own)
      stored[name] = restored(tensor)
  return stored


def _unpermuted(name, array, hf):
  """Undo the order of RoPE's pairs: the converter puts (i, i + K/2) of a head side by side."""
  heads = {'attn_q': hf['num_attention_heads'], 'attn_k': hf.get('num_key_value_heads')}
  kind = name.split('.')[-2]
  if kind not in heads:
    return array
  count = heads[kind] or hf['num_attention_heads']
  pairs = array.reshape(count, -1, 2, *array.shape[1:])
  return pairs.swapaxes(1, 2).reshape(array.shape)


def _uncentered(name, array, hf):
  """Undo the 1 that the converter adds to the scales of norms."""
  return array - np.float32(1) if name.endswith('norm.weight') else array


def _turned(name, array, hf):
  """Undo the transposition of a layer's matrices."""
  return array.T if name.startswith('blk.') else array


def _gemma(get, hf):
  return {'hidden_activation': 'gelu_pytorch_tanh', 'hidden_act': 'gelu_pytorch_tanh'}


def _phi3(get, hf):
  """A part of each head may be rotated."""
  head_dim = hf.get('head_dim') or hf['hidden_size'] // hf['num_attention_heads']
  return {'partial_rotary_factor': (get('rope.dimension_count') or head_dim) / head_dim}


def _gemma2(get, hf):
  layers, width = hf['num_hidden_layers'], hf['hidden_size']
  is_27b = layers == 46  # the only one whose queries are scaled by another width, as llama.cpp knows too
  return _gemma(get, hf) | {
    'query_pre_attn_scalar': width // hf['num_attention_heads'] if is_27b else hf['head_dim'],
    'attn_logit_softcapping': get('attn_logit_softcapping'),
    'final_logit_softcapping': get('final_logit_softcapping'),
    'layer_types': [('sliding_attention', 'full_attention')[l % 2] for l in range(layers)],
  }


def _gemma3(get, hf):
  layers = hf['num_hidden_layers']
  scaling = hf.get('rope_scaling') or {'rope_type': 'default'}
  local = {'rope_type': 'default', 'rope_theta': get('rope.freq_base_swa') or 10000.0}
  is_27b = layers == 62
  return _gemma(get, hf) | {
    'query_pre_attn_scalar': hf['hidden_size'] // hf['num_attention_heads'] if is_27b else hf['head_dim'],
    'layer_types': ['sliding_attention' if (l + 1) % 6 else 'full_attention' for l in range(layers)],
    'rope_scaling': None,
    'rope_parameters': {
      'full_attention': scaling | {'rope_theta': hf.get('rope_theta', 1e6)},
      'sliding_attention': local,
    },
  }


KEYS = {  # key of config.json -> key of the metadata, after the architecture
  'vocab_size': 'vocab_size',
  'max_position_embeddings': 'context_length',
  'num_hidden_layers': 'block_count',
  'hidden_size': 'embedding_length',
  'intermediate_size': 'feed_forward_length',
  'num_attention_heads': 'attention.head_count',
  'num_key_value_heads': 'attention.head_count_kv',
  'head_dim': 'attention.key_length',
  'rms_norm_eps': 'attention.layer_norm_rms_epsilon',
  'norm_epsilon': 'attention.layer_norm_epsilon',
  'rope_theta': 'rope.freq_base',
  'sliding_window': 'attention.sliding_window',
}
YARN = {  # key of the metadata -> what llama.cpp and transformers take where it is absent
  'rope.scaling.attn_factor': 1.0,
  'rope.scaling.yarn_ext_factor': 1.0,
  'rope.scaling.yarn_attn_factor': 1.0,
  'rope.scaling.yarn_beta_fast': 32.0,
  'rope.scaling.yarn_beta_slow': 1.0,
}
GPT2_KEYS = {
  'max_position_embeddings': 'n_positions',
  'num_hidden_layers': 'n_layer',
  'hidden_size': 'n_embd',
  'intermediate_size': 'n_inner',
  'num_attention_heads': 'n_head',
  'norm_epsilon': 'layer_norm_epsilon',
}
ARCHITECTURES = {
  'llama': Architecture('llama', restore=_unpermuted),  # Mistral 7B, too
  'qwen2': Architecture('qwen2'),
  'qwen3': Architecture('qwen3'),
  'gemma': Architecture('gemma', _gemma, restore=_uncentered),
  'gemma2': Architecture('gemma2', _gemma2, restore=_uncentered),
  'gemma3': Architecture('gemma3_text', _gemma3, restore=_uncentered),
  'gpt2': Architecture('gpt2', keys=GPT2_KEYS, restore=_turned),
  'phi3': Architecture('phi3', _phi3),
  'starcoder2': Architecture('starcoder2'),
}
