"""Names and layouts of the tensors in Hugging Face files, for each parameter.

A layout has one word of letters for each dimension of a tensor: the rows of `HK D` run over heads and,
within a head, over its width. Letters: D width, H query heads, G key/value
heads, K head width, F feed-forward width, V vocabulary in use, T positions, C = 3: queries, keys
and values packed into one tensor.

RoPE's pairs are (i, i + K/2) in both: nothing is permuted. GPT-2's matrices are [in, out],
Llama's [out, in].

Source: transformers 5.23, `models/gpt2/modeling_gpt2.py` and `models/llama/modeling_llama.py`.
"""

import math
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
  """Name and layout of a parameter in a file."""

  name: str  # {l} is the layer
  layout: str  # a word of letters for each dimension
  part: int = 0  # which of the three, where the layout has a C


def names(tensor, layers):
  """Names of a parameter's tensors: one for each layer, or a single one."""
  name = tensor.name
  return [name.format(l=l) for l in range(layers)] if '{l}' in name else [name]


def sizes_of(cfg):
  """{letter: size in a file}, without padding rows of the vocabulary."""
  return cfg.dims | {'V': cfg.vocab, 'C': 3}


def shape_of(tensor, sizes):
  """The shape of a tensor in the file."""
  return tuple(math.prod(sizes[a] for a in word) for word in tensor.layout.split())


def _letters(tensor):
  return tensor.layout.replace(' ', '')


def to_parameter(array, tensor, axes, sizes):
  """Convert a file's tensor to the parameter of one layer with these axes, without padding rows."""
  letters = _letters(tensor)
  array = array.reshape([sizes[a] for a in letters])
  if 'C' in letters:
    array = array.take(tensor.part, letters.index('C'))
    letters = letters.replace('C', '')
  return array.transpose([letters.index(a) for a in axes])


def to_tensor(array, tensor, axes, sizes, into=None):
  """Inverse of `to_parameter`; into: a packed tensor that holds earlier parts, or None."""
  letters = _letters(tensor)
  if axes[0] == 'V':
    array = array[: sizes['V']]
  plain = letters.replace('C', '')
  array = array.transpose([axes.index(a) for a in plain])
  if 'C' in letters:
    shape = [sizes[a] for a in letters]
    whole = np.zeros(shape, array.dtype) if into is None else into.reshape(shape)
    whole[(slice(None),) * letters.index('C') + (tensor.part,)] = array
    array = whole
  return np.ascontiguousarray(array.reshape(shape_of(tensor, sizes)))


def _norms(path, name, bias):
  """Rows of a norm: its scale, and its bias if the family has biases."""
  rows = {f'{path}/scale': Tensor(f'{name}.weight', 'D')}
  return rows | ({f'{path}/bias': Tensor(f'{name}.bias', 'D')} if bias else {})


GPT2_TENSORS = {
  'embed_VD': Tensor('transformer.wte.weight', 'V D'),
  'position_TD': Tensor('transformer.wpe.weight', 'T D'),
  'blocks/attention/wq_DHK': Tensor('transformer.h.{l}.attn.c_attn.weight', 'D CHK', 0),
  'blocks/attention/wk_DGK': Tensor('transformer.h.{l}.attn.c_attn.weight', 'D CGK', 1),
  'blocks/attention/wv_DGK': Tensor('transformer.h.{l}.attn.c_attn.weight', 'D CGK', 2),
  'blocks/attention/q_bias_HK': Tensor('transformer.h.{l}.attn.c_attn.bias', 'CHK', 0),
  'blocks/attention/k_bias_GK': Tensor('transformer.h.{l}.attn.c_attn.bias', 'CGK', 1),
  'blocks/attention/v_bias_GK': Tensor('transformer.h.{l}.attn.c_attn.bias', 'CGK', 2),
  'blocks/attention/wo_HKD': Tensor('transformer.h.{l}.attn.c_proj.weight', 'HK D'),
  'blocks/attention/o_bias_D': Tensor('transformer.h.{l}.attn.c_proj.bias', 'D'),
  'blocks/mlp/up_DF': Tensor('transformer.h.{l}.mlp.c_fc.weight', 'D F'),
  'blocks/mlp/up_bias_F': Tensor('transformer.h.{l}.mlp.c_fc.bias', 'F'),
  'blocks/mlp/down_FD': Tensor('transformer.h.{l}.mlp.c_proj.weight', 'F D'),
  'blocks/mlp/down_bias_D': Tensor('transformer.h.{l}.mlp.c_proj.bias', 'D'),
  **_norms('blocks/attention_norm', 'transformer.h.{l}.ln_1', bias=True),
  **_norms('blocks/mlp_norm', 'transformer.h.{l}.ln_2', bias=True),
  **_norms('final_norm', 'transformer.ln_f', bias=True),
  'head_VD': Tensor('lm_head.weight', 'V D'),
}

LLAMA_TENSORS = {
  'embed_VD': Tensor('model.embed_tokens.weight', 'V D'),
  'blocks/attention/wq_DHK': Tensor('model.layers.{l}.self_attn.q_proj.weight', 'HK D'),
  'blocks/attention/wk_DGK': Tensor('model.layers.{l}.self_attn.k_proj.weight', 'GK D'),
  'blocks/attention/wv_DGK': Tensor('model.layers.{l}.self_attn.v_proj.weight', 'GK D'),
  'blocks/attention/wo_HKD': Tensor('model.layers.{l}.self_attn.o_proj.weight', 'D HK'),
  'blocks/attention/q_bias_HK': Tensor('model.layers.{l}.self_attn.q_proj.bias', 'HK'),
  'blocks/attention/k_bias_GK': Tensor('model.layers.{l}.self_attn.k_proj.bias', 'GK'),
  'blocks/attention/v_bias_GK': Tensor('model.layers.{l}.self_attn.v_proj.bias', 'GK'),
  'blocks/attention/o_bias_D': Tensor('model.layers.{l}.self_attn.o_proj.bias', 'D'),
  'blocks/attention/q_norm/scale': Tensor('model.layers.{l}.self_attn.q_norm.weight', 'K'),
  'blocks/attention/k_norm/scale': Tensor('model.layers.{l}.self_attn.k_norm.weight', 'K'),
  'blocks/mlp/up_DF': Tensor('model.layers.{l}.mlp.up_proj.weight', 'F D'),
  'blocks/mlp/gate_DF': Tensor('model.layers.{l}.mlp.gate_proj.weight', 'F D'),
  'blocks/mlp/down_FD': Tensor('model.layers.{l}.mlp.down_proj.weight', 'D F'),
  'blocks/mlp/up_bias_F': Tensor('model.layers.{l}.mlp.up_proj.bias', 'F'),
  'blocks/mlp/gate_bias_F': Tensor('model.layers.{l}.mlp.gate_proj.bias', 'F'),
  'blocks/mlp/down_bias_D': Tensor('model.layers.{l}.mlp.down_proj.bias', 'D'),
  **_norms('blocks/attention_norm', 'model.layers.{l}.input_layernorm', bias=False),
  **_norms('blocks/mlp_norm', 'model.layers.{l}.post_attention_layernorm', bias=False),
  **_norms('final_norm', 'model.norm', bias=False),
  'head_VD': Tensor('lm_head.weight', 'V D'),
}
