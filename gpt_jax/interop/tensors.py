"""Names and layouts of the tensors in Hugging Face files, for each parameter.

A layout has one word of letters for each dimension of a tensor: the rows of `HK D` run over heads and,
within a head, over its width. `HK+GK+GK` packs three parts one after another, C three within each head.

Letters: D width, H query heads, G key/value heads, K head width, k the same with RoPE's pairs side by side
(2i, 2i + 1), F feed-forward width, V vocabulary in use, T positions, E experts, C = 3: queries, keys, values;
A M numbers of a patch, of a frame, I = D hidden numbers of a projector.

RoPE's pairs are (i, i + K/2) here and in most families. GPT-2's matrices are [in, out], Llama's [out, in].

Source: transformers 5.23, `models/*/modeling_*.py`, `conversion_mapping.py`.
"""

import math
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
  """Name and layout of a parameter in a file."""

  name: str  # {l} is the layer, {e} the expert; '' = the file has none
  layout: str = ''  # a word of letters for each dimension
  part: int = 0  # which part of a word with + or C
  value: float = 0.0  # of every entry of a parameter that the file does not have
  factors: tuple = ()  # of each layer: the parameter is this times the tensor; () = 1


def places(tensor, sizes):
  """Return [(index in the parameter, name)] of a parameter's tensors: per layer, per expert, or one."""
  if not tensor.name:
    return []
  axes = [range(sizes[axis.upper()]) for axis in 'le' if f'{{{axis}}}' in tensor.name]
  indices = [()]
  for axis in axes:
    indices = [(*index, i) for index in indices for i in axis]
  fill = lambda index: tensor.name.format(**dict(zip('le', index, strict=False)))
  return [(index, fill(index)) for index in indices]


def axes_of(tensor, axes):
  """The axes of one tensor's part of a parameter: without L, and without E where experts are apart."""
  axes = axes.removeprefix('L')
  return axes.removeprefix('E') if '{e}' in tensor.name else axes


def sizes_of(cfg):
  """{letter: size in a file}, without padding rows of the vocabulary."""
  return cfg.dims | {'V': cfg.vocab, 'C': 3, 'k': cfg.K, 'R': cfg.rotary_dim, 'I': cfg.width}


def shape_of(tensor, sizes):
  """The shape of a tensor in the file."""
  size = lambda word: math.prod(sizes[a] for a in word)
  return tuple(sum(map(size, word.split('+'))) for word in tensor.layout.split())


def to_parameter(array, tensor, axes, sizes, index=()):
  """Convert a file's tensor to its part of the parameter, with these axes, without padding rows."""
  letters, slices = _part(tensor, sizes)
  array = array[slices].reshape([sizes[a] for a in letters])
  if 'C' in letters:
    array = array.take(tensor.part, letters.index('C'))
    letters = letters.replace('C', '')
  if 'k' in letters:
    array = array.take(_halves(sizes), letters.index('k'))
    letters = letters.replace('k', 'K')
  if tensor.factors:
    array = (array.astype(np.float32) * np.float32(tensor.factors[index[0]])).astype(array.dtype)
  return array.transpose([letters.index(a) for a in axes])


def to_tensor(array, tensor, axes, sizes, into=None):
  """Inverse of `to_parameter`; into: a packed tensor that holds earlier parts, or None."""
  letters, slices = _part(tensor, sizes)
  if axes[0] == 'V':
    array = array[: sizes['V']]
  plain = letters.replace('C', '').replace('k', 'K')
  array = array.transpose([axes.index(a) for a in plain])
  if 'k' in letters:
    array = array.take(np.argsort(_halves(sizes)), plain.index('K'))
  whole = np.zeros(shape_of(tensor, sizes), array.dtype) if into is None else into
  part = whole[slices].reshape([sizes[a] for a in letters])  # a copy where the slice is not contiguous
  if 'C' in letters:
    part[(slice(None),) * letters.index('C') + (tensor.part,)] = array
  else:
    part[...] = array
  whole[slices] = part.reshape(whole[slices].shape)
  return whole


def _part(tensor, sizes):
  """The letters of a tensor's part, and where in the tensor it lies."""
  letters, slices = '', []
  for word in tensor.layout.split():
    parts = word.split('+')
    chosen = tensor.part if len(parts) > 1 else 0
    lengths = [math.prod(sizes[a] for a in part) for part in parts]
    start = sum(lengths[:chosen])
    slices.append(slice(start, start + lengths[chosen]))
    letters += parts[chosen]
  return letters, tuple(slices)


def _halves(sizes):
  """For each of a head's dimensions (i, i + R/2 rotated together), its place among pairs side by side."""
  K, R = sizes['K'], sizes['R']
  return np.concatenate([np.arange(0, R, 2), np.arange(1, R, 2), np.arange(R, K)])


def norm(path, name, bias=False, axes='D'):
  """Rows of a norm: its scale, and its bias if the family has biases."""
  rows = {f'{path}/scale': Tensor(f'{name}.weight', axes)}
  return rows | ({f'{path}/bias': Tensor(f'{name}.bias', axes)} if bias else {})


def matrix(path, name, layout, bias='', part=0):
  """Rows of an [out, in] matrix and of its bias, the parameter at path `bias` ('' = it has none)."""
  rows = {path: Tensor(f'{name}.weight', layout, part)}
  return rows | ({bias: Tensor(f'{name}.bias', layout.split()[0], part)} if bias else {})
