"""Tensors of safetensors files, mapped from disk one at a time: only what is asked for is read.

`read_params` fills one parameter of a model after the other, shard by shard, in its sharding.
"""

import contextlib
import json
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from gpt_jax.interop import tensors
from gpt_jax.model import gpt, param_trees, projectors
from gpt_jax.runs.reading import check_types, reading
from gpt_jax.runs.text_table import join_some

INDEX = 'model.safetensors.index.json'
DTYPES = {'F32': np.dtype(np.float32), 'F16': np.dtype(np.float16), 'BF16': np.dtype(jnp.bfloat16)}
PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt')
BLOCK = 1 << 20  # bytes of a file that are copied at once: a block that is transposed stays in the cache


class StoredTensor(NamedTuple):
  """A tensor of a file; nothing of its content is in memory."""

  name: str  # as the file calls it
  shape: tuple
  dtype: str  # as the file calls it
  read: Callable  # () -> array mapped from the file


# ------------------------------------------------------------------------------------------ files


def weight_files(folder):
  """Return the safetensors files of a model: those of its index, or the only one."""
  index = folder / INDEX
  if index.is_file():
    with reading(index, 'an index of shards', 'download it again'):
      content = check_types(json.loads(index.read_text()), {'weight_map': {str: str}}, 'it')
    shards = sorted(set(content['weight_map'].values()))
    absent = [name for name in shards if Path(name).name != name or not (folder / name).is_file()]
    if absent or not shards:
      raise FileNotFoundError(
        f'{index} names {list_names(absent) if shards else "no files"}, not there\n'
        'fix: download all shards again'
      )
    return [folder / name for name in shards]
  files = sorted(folder.glob('*.safetensors'))
  whole = folder / 'model.safetensors'
  if whole in files or len(files) == 1:
    return [whole if whole in files else files[0]]
  pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
  if pickles and not files:
    raise ValueError(
      f'{folder} has its weights only as pickles, which can run code: {list_names(pickles)}\n'
      'fix: where you trust it, AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW), '
      'then import NEW'
    )
  raise FileNotFoundError(
    f'{folder} has {len(files)} safetensors files and no {INDEX}\n'
    'fix: give a folder with model.safetensors, or with all shards and their index'
  )


def open_safetensors(path):
  """Return {name: StoredTensor} of a file whose header fits its size."""
  with reading(path, 'a whole safetensors file', 'download or copy it again'):
    with safetensors.safe_open(path, 'numpy'):  # checks offsets, sizes and types
      pass
    with open(path, 'rb') as file:
      size = int.from_bytes(file.read(8), 'little')
      header = json.loads(file.read(size))
  header.pop('__metadata__', None)

  def stored(name, entry):
    shape, dtype = tuple(entry['shape']), entry['dtype']
    place = dict(offset=8 + size + entry['data_offsets'][0], shape=shape or (1,))

    def read():
      if 0 in shape:  # nothing can be mapped
        return np.zeros(shape, DTYPES[dtype])
      return np.asarray(np.memmap(path, DTYPES[dtype], 'r', **place)).reshape(shape)

    return StoredTensor(name, shape, dtype, read)

  return {name: stored(name, entry) for name, entry in header.items()}


def open_folder(folder):
  """Return {name: StoredTensor} of all safetensors files of a model."""
  return {name: t for path in weight_files(folder) for name, t in open_safetensors(path).items()}


# ---------------------------------------------------------------------------------------- tensors


def param_dtype(stored):
  """Return the smallest type that holds all tensors exactly, such as 'bfloat16'."""
  types = {DTYPES[t.dtype] for t in stored.values() if t.dtype in DTYPES}
  return str(types.pop() if len(types) == 1 else np.dtype(np.float32))


def check_shape(stored, shape):
  """Raise ValueError for another shape or type; reads nothing."""
  if stored.shape != shape or stored.dtype not in DTYPES:
    raise ValueError(
      f'tensor {stored.name} is {stored.dtype}{list(stored.shape)}, by config.json it should be '
      f'{"/".join(DTYPES)} {list(shape)}\n'
      'fix: use the config.json that came with these weights, and weights that are not quantized'
    )


def check_names(names, expected, source):
  """Raise ValueError that names tensors which are missing or have no place in the model."""
  if names != expected:
    raise ValueError(
      f'{source} does not hold the tensors of its config.json: missing {list_names(expected - names)}; '
      f'without a place in the model {list_names(names - expected)}\n'
      'fix: use the config.json that came with these weights'
    )


def list_names(names):
  """Return the first of some names, sorted; 'none' without one."""
  return join_some(sorted(names)) or 'none'


def drop_tied_head(stored, rows, cfg, sizes):
  """Return the tensors with a tied head counted once, under either name; ValueError if the two differ."""
  head, embedding = rows['head_VD'].name, rows['embed_VD'].name
  if not cfg.tied_head or head not in stored:
    return stored
  others = {name: tensor for name, tensor in stored.items() if name != head}
  if embedding not in stored:
    return others | {embedding: stored[head]}
  for name in (head, embedding):
    check_shape(stored[name], (sizes['V'], sizes['D']))
  ours, theirs = stored[head].read(), stored[embedding].read()
  if not all(np.array_equal(ours[rows], theirs[rows]) for rows in in_blocks(ours)):
    raise ValueError(
      f'tie_word_embeddings is true, but {head} differs from {embedding}\n'
      'fix: set tie_word_embeddings to false in config.json if the head was trained on its own'
    )
  return others


# ------------------------------------------------------------------------------------- parameters


def read_params(stored, rows, cfg, source, mesh=None):
  """Return the GPT of a family's tensors, on the default device or sharded on a mesh.

  rows: of families.tensors_of. At any time the host holds one shard of one parameter and one tensor, besides
  what the devices hold. source: what errors call the files. Raises ValueError for tensors that do not fit the
  config.
  """
  sizes, abstract = tensors.sizes_of(cfg) | projectors.own_sizes(cfg), gpt.GPT(cfg.resolved())
  places = {path: tensors.places(rows[path], sizes) for path, _ in param_trees.named_params(abstract)}
  stored = drop_tied_head(stored, rows, cfg, sizes)
  check_names(stored.keys(), {name for tensor in places.values() for _, name in tensor}, source)
  for path, names in places.items():  # all of them before any is read
    for _, name in names:
      check_shape(stored[name], tensors.shape_of(rows[path], sizes))
  single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shardings = {} if mesh is None else dict(param_trees.named_params(gpt.shardings(abstract, mesh)))

  def fill(path, p):
    tensor, value = rows[path], p.get_value()
    axes = tensors.axes_of(tensor, p.axes)
    sharding = shardings[path].get_value() if mesh is not None else single

    def read_shard(index):
      ranges = [range(n)[part] for n, part in zip(value.shape, index, strict=True)]
      shard = aligned_zeros(list(map(len, ranges)), value)
      if tensor.value:
        shard[...] = tensor.value
      for place, name in places[path]:  # of a layer, of an expert
        if all(i in within for i, within in zip(place, ranges, strict=False)):
          part = tensors.to_parameter(stored[name].read(), tensor, axes, sizes, place)[index[len(place) :]]
          into = shard[tuple(i - within.start for i, within in zip(place, ranges, strict=False))]
          copy_mapped(
            into[tuple(map(slice, part.shape))], part
          )  # the rest are padding rows of the vocabulary
      return shard

    return jax.make_array_from_callback(value.shape, sharding, read_shard)

  return param_trees.map_params(fill, abstract)


def aligned_zeros(shape, like):
  """Return zeros of a shape and like's dtype that a CPU device takes without a copy.

  In large pages, where the kernel has them: first writes to small ones take as long as reading a file.
  """
  size = math.prod(shape) * like.dtype.itemsize
  content = mmap.mmap(-1, max(size, 1))  # a page is aligned to more than the 64 bytes that a CPU needs
  with contextlib.suppress(AttributeError, OSError):
    content.madvise(mmap.MADV_HUGEPAGE)
  return np.frombuffer(content, np.uint8, size).view(like.dtype).reshape(shape)


def copy_mapped(into, array):
  """Copy an array that may be mapped from a file, in blocks along the file's slowest axis."""
  axis = int(np.argmax(array.strides))
  into, array = np.moveaxis(into, axis, 0), np.moveaxis(array, axis, 0)
  for rows in in_blocks(array):
    into[rows] = array[rows]


def in_blocks(array):
  """Yield slices of the first axis; the pages of a mapped file leave memory after each."""
  mapping, rows = array, max(1, BLOCK * len(array) // max(array.nbytes, 1))
  while isinstance(mapping, np.ndarray):
    mapping = mapping.base
  for start in range(0, len(array), rows):
    yield slice(start, start + rows)
    if isinstance(mapping, mmap.mmap):
      with contextlib.suppress(AttributeError):
        mapping.madvise(mmap.MADV_DONTNEED)
