"""Low-rank adapters: small trained factors beside the frozen weights of a base model.

  W' = W + scale A B        A: inputs x r, B: r x outputs

A run with adapters trains a tree {path of a parameter of the base: its Adapter, or a Param that is trained
whole}. `split` declares it, `attach` puts it into the base for a step, `merge` for evaluation and export.
A step computes x W + scale (x A) B: it holds no gradient of a frozen weight, which W + A B would need.

With base_dtype, W is what the quantized base stands for: in a step, in the weights that evaluation, sampling
and export merge, and in a run that resumes, which quantizes the float base again, to the same bits.

Letters: r rank, L layers, E experts; the others as in layers.py.

Sources: LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023, section 3), DoRA (Liu et al. 2024, equation 5;
section 4.3: no gradient through the norm). Initial values and dropout as in PEFT.
"""

import dataclasses
import functools
import math
import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from gpt_jax.model import layers, quantized, towers
from gpt_jax.model.kernels import fused
from gpt_jax.model.param_trees import is_param, map_params, named_params


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """What a run trains of the model of train.init_from; by default all of it."""

  rank: int = 0  # r, columns of A and rows of B; 0 = no adapters
  kind: str = 'lora'  # a row of ADAPTERS
  targets: tuple[str, ...] = ('attention/w', 'mlp/(up|gate|down)_')  # regexes of paths with an adapter
  alpha: float = 16.0  # scale = alpha / rank (rslora: alpha / sqrt(rank))
  dropout: float = 0.0  # probability; of the inputs of A
  train: tuple[str, ...] = ()  # regexes of paths that are trained whole, such as embed_VD
  base_dtype: str = ''  # int8 or int4 for the frozen matrices of the blocks; '' = model.param_dtype

  def __post_init__(self):
    if not 0 <= self.rank < 2**31:
      raise ValueError(f'adapter.rank={self.rank} is not a rank\nfix: use 0 (no adapters) or more')
    if self.kind not in ADAPTERS:
      raise ValueError(f'adapter.kind={self.kind!r} is not known\nfix: use one of {", ".join(ADAPTERS)}')
    if not 0 < self.alpha < math.inf:
      raise ValueError(f'adapter.alpha={self.alpha} is not a scale\nfix: use a number > 0')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'adapter.dropout={self.dropout} is not a probability\nfix: use 0 <= p < 1')
    if self.base_dtype not in ('', *quantized.TYPES):
      raise ValueError(
        f'adapter.base_dtype={self.base_dtype!r} is not known\nfix: use {" or ".join(quantized.TYPES)}'
      )
    if self.base_dtype and not self.freezes:
      raise ValueError(
        f'adapter.base_dtype={self.base_dtype} needs a frozen base\nfix: set adapter.rank, or leave it out'
      )
    for key in ('targets', 'train'):
      for pattern in getattr(self, key):
        try:
          re.compile(pattern)
        except re.error as e:
          raise ValueError(f'adapter.{key} has {pattern!r}, not a regex ({e})\nfix: correct it') from e

  @property
  def freezes(self):
    """Whether the base model is frozen."""
    return bool(self.rank or self.train)


class Adapter(nnx.Module):
  """The trained factors of one weight, float32."""

  def __init__(self, cfg, p):
    """Declare them for a declared parameter."""
    stacked, self.inputs, self.outputs, self.letters = split_axes(p.axes)
    sizes = dict(zip(p.axes, p.get_value().shape, strict=True)) | {'r': cfg.rank}

    def declare(axes, std=0.0):
      shape = jax.ShapeDtypeStruct(tuple(sizes[a] for a in axes), jnp.float32)
      return nnx.Param(shape, axes=axes, std=std, mean=0.0)

    self.scale, self.dropout = ADAPTERS[cfg.kind].scale(cfg.alpha, cfg.rank), cfg.dropout
    fan_in = math.prod(sizes[a] for a in self.inputs)
    self.a = declare(f'{stacked}{self.inputs}r', (3 * fan_in) ** -0.5)
    self.b = declare(f'{stacked}r{self.outputs}')
    has_magnitude = ADAPTERS[cfg.kind].has_magnitude
    self.magnitude = declare(f'{stacked}{self.outputs}') if has_magnitude else None

  def add_to(self, weight):
    """W + scale A B, float32."""
    subscripts = f'...{self.inputs}r,...r{self.outputs}->...{self.letters}'
    a, b = (p[...].astype(jnp.float32) for p in (self.a, self.b))
    return weight.astype(jnp.float32) + self.scale * jnp.einsum(subscripts, a, b)

  def norm(self, weight):
    """The norm of a weight over its inputs, for each output."""
    weight = weight.astype(jnp.float32)
    return jnp.sqrt(jnp.einsum(f'...{self.letters},...{self.letters}->...{self.outputs}', weight, weight))

  def gain(self, weight):
    """DoRA's factor on each output: its magnitude over the norm, through which no gradient flows."""
    return self.magnitude[...].astype(jnp.float32) / jax.lax.stop_gradient(self.norm(self.add_to(weight)))

  def merge(self, weight):
    """W' in the type of W."""
    merged = self.add_to(weight)
    if self.magnitude is not None:
      gain = self.gain(weight)
      merged = jnp.einsum(f'...{self.letters},...{self.outputs}->...{self.letters}', merged, gain)
    return merged.astype(weight.dtype)


class Adapted(nnx.Module):
  """A frozen weight with its adapter, in the place of a parameter of the GPT.

  `layers.linear` calls `project`; what indexes a parameter itself (experts, a router) gets W'.
  """

  def __init__(self, weight, adapter, seeds=None):
    """weight: Param or Quantized; seeds: Param of an integer per layer, for dropout; None = no dropout."""
    self.weight, self.adapter, self.seeds = weight, adapter, seeds

  @property
  def axes(self):
    """The letters of one layer's weight."""
    return self.adapter.letters

  def __getitem__(self, index):
    return self.adapter.merge(self.weight[...])[index]

  def project(self, subscripts, x, **options):
    """einsum(subscripts, x, W'), without W'."""
    adapter, left, out = self.adapter, subscripts.partition(',')[0], subscripts.partition('->')[2]
    hidden = ''.join(letter for letter in left if letter not in adapter.inputs) + 'r'
    inputs = x
    if self.seeds is not None:
      inputs = layers.dropout(x, jnp.float32(adapter.dropout), jax.random.key(self.seeds[...]))
    a, b = (p[...].astype(x.dtype) for p in (adapter.a, adapter.b))
    h = jnp.einsum(f'{left},{adapter.inputs}r->{hidden}', inputs, a)
    expand = functools.partial(jnp.einsum, **options) if options else fused.expand
    y = layers.linear(subscripts, x, self.weight, **options)
    y = y + adapter.scale * expand(f'{hidden},r{adapter.outputs}->{out}', h, b)
    y = checkpoint_name(y, fused.PRODUCT)
    if adapter.magnitude is not None:
      y = y * layers.broadcast_like(adapter.gain(self.weight[...]), y)
    return y


def split_axes(axes):
  """Return (letters of the stack, inputs, outputs, inputs and outputs in order): LEDF -> LE, D, F, DF."""
  letters = axes.lstrip('LE')
  stacked = axes[: len(axes) - len(letters)]
  if letters[0] == 'D' or letters == 'VD':  # VD: a head
    return stacked, 'D', letters.replace('D', ''), letters
  return stacked, letters[:-1], 'D', letters


# ----------------------------------------------------------------------------- trees of parameters


class QuantizedBase(NamedTuple):
  """A frozen base whose matrices are codes."""

  model: Any  # GPT
  scales: dict  # {path of a parameter of codes: Param of its scales}


def parts(frozen):
  """Return (GPT, {path: Param of scales}) of a frozen base."""
  return frozen if isinstance(frozen, QuantizedBase) else (frozen, {})


def is_quantizable(path, axes):
  """Whether adapter.base_dtype is the type of a parameter: matrices of the blocks but for routers."""
  return path.startswith('blocks/') and multiplies(path, axes) and axes != 'LDE'


def block_axis(axes):
  """Return the axis of the last input of a weight, counted from the end."""
  _, inputs, _, letters = split_axes(axes)
  return letters.index(inputs[-1]) - len(letters)


def weights_of(frozen, dtype=None):
  """Return {path: array} of a frozen base, in floating point; dtype: of quantized ones."""
  model, scales = parts(frozen)
  weights = {path: p.get_value() for path, p in named_params(model)}
  axes = {path: block_axis(p.axes) for path, p in named_params(model) if path in scales}
  dtype = jnp.dtype(dtype or model.cfg.param_dtype)
  restore = lambda path: quantized.dequantize(weights[path], scales[path].get_value(), axes[path], dtype)
  return weights | {path: restore(path) for path in scales}


def freezes(cfg, model_cfg):
  """Whether a part of a model is frozen: the base of adapters, or an encoder in it."""
  return cfg.freezes or has_frozen_tower(model_cfg)


def has_frozen_tower(model_cfg):
  """Whether the weights of an encoder in the model are frozen."""
  return any(tower.training != 'whole' for tower in towers.towers(model_cfg))


def split(cfg, model):
  """Return (the tree that is trained, the frozen base), abstract; (model, None) if nothing is frozen.

  Of parameters that are trained whole the base has no entries. Patterns do not reach the parameters of a
  tower that is frozen or trained whole. Raises ValueError for a pattern that matches nothing.
  """
  if not freezes(cfg, model.cfg):
    return model, None
  if model.cfg.mup_base:
    raise ValueError(
      f'model.mup_base={model.cfg.mup_base} has no rule for adapters\nfix: set model.mup_base=0, or '
      'adapter.rank=0 and adapter.train=()'
    )
  params = dict(named_params(model))
  trainings = {path: getattr(towers.owner(model.cfg, path), 'training', 'adapters') for path in params}
  open_paths = {path: p for path, p in params.items() if trainings[path] == 'adapters'}
  whole = match(cfg.train, open_paths, 'train') if cfg.freezes else [*open_paths]
  matrices = {path: p for path, p in open_paths.items() if path not in whole and multiplies(path, p.axes)}
  targets = match(cfg.targets, matrices, 'targets') if cfg.rank else []
  whole = [path for path in params if path in whole or trainings[path] == 'whole']
  for path in targets:
    if cfg.dropout and set(params[path].axes) & set('EAM'):
      raise ValueError(
        f'adapter.dropout={cfg.dropout} cannot reach the inputs of {path}\n'
        'fix: set adapter.dropout=0, or leave it out of adapter.targets'
      )
  trained = {path: params[path] for path in whole} | {path: Adapter(cfg, params[path]) for path in targets}

  def without_whole(path, p):
    value = p.get_value()
    return jax.ShapeDtypeStruct((0,) * len(value.shape), value.dtype) if path in whole else value

  frozen = map_params(without_whole, model)
  if not cfg.base_dtype:
    return trained, frozen
  declare = lambda path, p: quantized.declare(p, block_axis(p.axes), cfg.base_dtype, path)
  some = {p: x for p, x in params.items() if is_quantizable(p, x.axes) and p not in whole}
  declared = {path: declare(path, p) for path, p in some.items()}
  codes = {path: codes.get_value() for path, (codes, _) in declared.items()}
  frozen = map_params(lambda path, p: codes.get(path, p.get_value()), frozen)
  return trained, QuantizedBase(frozen, {path: scales for path, (_, scales) in declared.items()})


def match(patterns, params, key):
  """Return the paths in which one of the patterns occurs; ValueError for a pattern in none."""
  for pattern in patterns:
    if not any(re.search(pattern, path) for path in params):
      raise ValueError(
        f'adapter.{key} has {pattern!r}, which matches none of the parameters\n'
        f'fix: use paths of {", ".join(params)}'
      )
  return [path for path in params if any(re.search(pattern, path) for pattern in patterns)]


def multiplies(path, axes):
  """Whether activations are multiplied with a parameter, in which an adapter fits."""
  return (
    'D' in axes and len(axes.lstrip('LE')) > 1 and path.rpartition('/')[2] not in ('embed_VD', 'position_TD')
  )


def take_base(base, frozen, pretrained=None):
  """Return the frozen tree, filled with a base's arrays, quantized where it has codes.

  base: GPT; None if `pretrained` has all of them: {path: array} of encoders that the base lacks.
  Rows of a table that the base lacks, of ids that nothing reads, are the mean of the others. Raises
  ValueError for a parameter that the base lacks or has in another shape.
  """
  stored = {path: p.get_value() for path, p in named_params(base)} | (pretrained or {})
  model, scales = parts(frozen)
  axes = {path: block_axis(p.axes) for path, p in named_params(model) if path in scales}

  def fill(path, p):
    wanted = p.get_value()
    if 0 in wanted.shape:  # trained whole
      return jnp.zeros(wanted.shape, wanted.dtype, device=wanted.sharding)
    shape = stored[path].shape if path in stored else 'no such parameter'
    expected = quantized.unpacked_shape(wanted, axes[path]) if path in axes else wanted.shape
    if p.axes == 'VD' and path in stored and shape[0] < expected[0] and shape[1:] == expected[1:]:
      return jax.jit(add_mean_rows, static_argnums=1, out_shardings=wanted.sharding)(
        stored[path], expected[0]
      )
    if shape != expected:
      raise ValueError(
        f'{path}: this model has {expected}, the base of train.init_from {shape}\n'
        f"fix: train it whole with adapter.train={path}, or take the model section of the base's config"
      )
    return stored[path] if path not in (pretrained or {}) else jax.device_put(stored[path], wanted.sharding)

  filled = map_params(fill, model)
  if not scales:
    return filled
  codes = {path: p.get_value() for path, p in named_params(model) if path in scales}
  layouts = {path: (codes[path].sharding, p.get_value().sharding) for path, p in scales.items()}

  def compute(weights):
    return {path: quantized.quantize(w, axes[path], codes[path].dtype) for path, w in weights.items()}

  pairs = jax.jit(compute, out_shardings=layouts)({path: stored[path] for path in scales})
  take = lambda path, p: pairs[path][0] if path in pairs else p.get_value()
  return QuantizedBase(map_params(take, filled), map_params(lambda path, _: pairs[path][1], scales))


def add_mean_rows(table_VD, rows):
  """Return a table of this many rows; those that it lacks are the mean of the others."""
  mean_VD = table_VD.astype(jnp.float32).mean(0, keepdims=True).astype(table_VD.dtype)
  return jnp.concatenate([table_VD, jnp.repeat(mean_VD, rows - len(table_VD), 0)])


def initialize_magnitudes(frozen, trained):
  """Return the trained tree with DoRA's magnitudes at the norms of the base's weights."""
  if all(is_param(entry) or entry.magnitude is None for entry in trained.values()):
    return trained
  weights = weights_of(frozen)

  def start(path, entry):
    if is_param(entry) or entry.magnitude is None:
      return entry
    norm = entry.norm(weights[path])
    return map_params(lambda name, p: norm if name == 'magnitude' else p.get_value(), entry)

  return {path: start(path, entry) for path, entry in trained.items()}


def attach(frozen, trained, key=None):
  """Return the GPT of a base and a trained tree, without computing anything; `trained` if frozen is None.

  key: of dropout; None = none.
  """
  if frozen is None:
    return trained

  def seeds(path, adapter):
    if key is None or not adapter.dropout:
      return None
    stacked = adapter.a.axes.startswith('L')
    shape = adapter.a[...].shape[:stacked]
    bits = jax.random.bits(jax.random.fold_in(key, zlib.crc32(path.encode())), shape, jnp.uint32)
    return nnx.Param(bits, axes='L' if stacked else '', std=0.0, mean=0.0)

  model, scales = parts(frozen)

  def leaf(path, p):
    if path in scales:
      p = quantized.Quantized(p, scales[path], block_axis(p.axes), model.cfg.dtype)
    entry = trained.get(path, p)
    return Adapted(p, entry, seeds(path, entry)) if isinstance(entry, Adapter) else entry

  treedef = jax.tree.structure(model, is_leaf=is_param)
  return jax.tree.unflatten(treedef, [leaf(path, p) for path, p in named_params(model)])


def merge(frozen, trained):
  """Return a plain GPT: the base with W' in place of W; unchanged arrays are shared with the base."""
  if frozen is None:
    return trained
  model, scales = parts(frozen)
  factors = {path: entry for path, entry in trained.items() if not is_param(entry)}
  whole = {path: entry.get_value() for path, entry in trained.items() if is_param(entry)}
  kept = {path: p.get_value() for path, p in named_params(model)}
  shardings = {path: kept[path].sharding for path in {**scales, **factors}}

  def merge_weights(frozen, factors):
    weights = weights_of(frozen)
    merge = lambda path, w: factors[path].merge(w) if path in factors else w
    return {path: merge(path, weights[path]) for path in shardings}

  merged = jax.jit(merge_weights, out_shardings=shardings)(frozen, factors)
  return map_params(lambda path, p: (kept | merged | whole)[path], model)


class AdapterRow(NamedTuple):
  """One kind of adapter."""

  scale: Callable  # (alpha, rank) -> factor on A B
  has_magnitude: bool = False  # DoRA: outputs have trained norms


ADAPTERS = {
  'lora': AdapterRow(lambda alpha, rank: alpha / rank),
  'rslora': AdapterRow(lambda alpha, rank: alpha / math.sqrt(rank)),
  'dora': AdapterRow(lambda alpha, rank: alpha / rank, has_magnitude=True),
}
