"""What one family of Hugging Face models is: config.json <-> ModelConfig, and the names of its tensors.

A family is a row: keys that are copied, settings that all its models have, and two functions for the rest.
An export is what the family writes, if reading that back gives a model that computes the same.

Dropout rates are not imported: they belong to the original training, and attention dropout rules out fused
kernels.

Source: transformers 5.23, `models/*/configuration_*.py`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

from gpt_jax.interop.rope import read_number, read_rope, unsupported, write_rope
from gpt_jax.model import positions
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.position_schemes import ROPE_SCALINGS


def _nothing(*_):
  return {}


class Family(NamedTuple):
  """One model_type."""

  architecture: str  # the class that transformers builds
  tensors: dict  # {path of our parameter: Tensor}
  keys: dict  # ModelConfig field -> key of config.json
  defaults: dict  # optional keys of config.json -> transformers' default
  activations: dict  # name in config.json -> model.mlp; the first name of a value is written
  always: dict = {}  # settings of all its models that are not ModelConfig's defaults
  fixed: dict = {}  # keys of config.json -> (the only value that can be imported, meaning of any other)
  read: Callable = _nothing  # (config.json with defaults, fields so far) -> fields of ModelConfig
  write: Callable = _nothing  # ModelConfig -> keys of config.json that `keys` does not copy
  layer_types: Callable | None = None  # config.json -> types of its layers where it does not list them
  vary: Callable = _nothing  # (ModelConfig, config.json with defaults) -> rows of `tensors` that differ
  rules: dict = {}  # ModelConfig field -> predicate of configs that transformers' own checks accept
  prefix: str = 'model.'  # of all tensor names but the head's; files of the bare model lack it
  buffers: str = r'.*rotary_emb\.inv_freq'  # regex of names that hold no parameter
  renamed: dict = {}  # keys of other versions -> key of `defaults`
  aliases: dict = {}  # regex of tensor names that other versions write -> name in `tensors`


# ------------------------------------------------------------------- config.json -> ModelConfig


def read_fields(family, hf):
  """Read a family's config.json -> fields of ModelConfig; ValueError for what none reproduces exactly."""
  full = complete(family, hf)
  for key, (value, meaning) in (FIXED | family.fixed).items():
    if (full.get(key, value) or None) != (value or None):  # null, false and [] are off
      raise unsupported(f'{key}={full[key]!r}', meaning)
  read = lambda key: full[key] if key in family.defaults else read_number(full, key)
  values = {field: read(key) for field, key in family.keys.items()}
  if 'mlp' in values:
    values['mlp'] = _activation(family.keys['mlp'], values['mlp'], family.activations)
  if 'hidden' in values:
    values['hidden'] = values['hidden'] or 0
  if 'kv_heads' in values:
    values['kv_heads'] = values['kv_heads'] or values['heads']
  if 'head_dim' in values:
    values['head_dim'] = values['head_dim'] or values['width'] // max(values['heads'], 1)
  fields = family.always | values
  if fields.get('positions', 'rope') == 'rope':
    fields |= read_rope(full, family.defaults)
  if 'sliding_window' in family.defaults:
    fields |= _read_windows(family, full, fields['layers'])
  return fields | family.read(full, fields)


def complete(family, hf):
  """A config.json with the family's defaults, and keys of other versions by their usual names."""
  others = {new: hf[old] for old, new in family.renamed.items() if hf.get(old) is not None}
  return family.defaults | others | hf


def _read_windows(family, hf, layers):
  """Return window and layer_pattern: one window for all layers, or by the types of the layers."""
  window = hf['sliding_window'] if hf.get('use_sliding_window', True) else None
  if 'layer_types' not in family.defaults:
    return {'window': window or 0}
  kinds = hf['layer_types'] or family.layer_types(hf)
  letters = {'full_attention': 'L', 'sliding_attention': 'S' if window else ''}
  pattern = ''.join(letters.get(kind, '') for kind in kinds)
  if len(pattern) != layers or len(kinds) != layers:
    raise unsupported(
      f'layer_types={kinds} with sliding_window={window or None} and {layers} layers',
      'every layer needs full_attention, or sliding_attention with a window',
    )
  if 'S' not in pattern:
    return {}
  return {'window': window, 'layer_pattern': shortest_period(pattern) if 'L' in pattern else ''}


def shortest_period(pattern):
  """The shortest text that, repeated and cut, gives the pattern."""
  fits = lambda n: (pattern[:n] * len(pattern))[: len(pattern)] == pattern
  return pattern[: next(n for n in range(1, len(pattern) + 1) if fits(n))]


def _activation(key, name, table):
  if name not in table:
    raise unsupported(f'{key}={name!r}', f'the MLP has only {", ".join(table)}')
  return table[name]


def default_query_scale(fields, scale):
  """`scale` as model.query_scale: 0.0 where it is 1/sqrt(head width)."""
  K = fields.get('head_dim') or fields['width'] // fields['heads']
  return {'query_scale': 0.0 if math.isclose(scale, K**-0.5) else scale}


# ------------------------------------------------------------------- ModelConfig -> config.json


def write_fields(family, cfg):
  """Write a config as a family's config.json; what the family does not have is left out."""
  resolved = {'hidden': cfg.F, 'kv_heads': cfg.G, 'head_dim': cfg.K}
  values = {key: resolved.get(field, getattr(cfg, field)) for field, key in family.keys.items()}
  if 'mlp' in family.keys:
    del values[family.keys['mlp']]
    names = [name for name, mlp in family.activations.items() if mlp == cfg.mlp]
    values |= dict.fromkeys([family.keys['mlp']], names[0]) if names else {}
  if family.always.get('positions', 'rope') == 'rope':
    values |= write_rope(cfg, family.defaults)
  if 'sliding_window' in family.defaults:
    values |= _write_windows(family, cfg)
  return values | {'attention_dropout': cfg.attention_dropout} | family.write(cfg)


def _write_windows(family, cfg):
  windows = cfg.windows()
  window = cfg.window if any(windows) else None
  if window is None and 'layer_types' in family.defaults and 'use_sliding_window' not in family.defaults:
    window = cfg.context  # transformers demands a number even where no layer has a window
  values = {'sliding_window': window}
  options = {
    'use_sliding_window': any(windows),
    'max_window_layers': next((l for l, w in enumerate(windows) if w), cfg.layers),
    'layer_types': ['sliding_attention' if w else 'full_attention' for w in windows],
  }
  return values | {key: value for key, value in options.items() if key in family.defaults}


def obstacles(family, cfg, hf):
  """The settings of a config that differ in the model of `hf`, which its family wrote of it."""
  try:
    back = ModelConfig(**{'vocab_multiple': cfg.vocab_multiple} | read_fields(family, hf))
  except ValueError as error:
    return [str(error).split('\n')[0].removeprefix('config.json: ')]
  ours, theirs = computed(cfg), computed(back)
  different = {field for field, value in ours.items() if not _same(value, theirs.get(field))}
  different |= {field for field, rule in family.rules.items() if not rule(cfg)}
  different = _culprits(cfg, different)
  return [f'model.{f.name}={getattr(cfg, f.name)}' for f in dataclasses.fields(cfg) if f.name in different]


def computed(cfg):
  """{field of ModelConfig: value} of all that changes logits, the same for equal spellings."""
  values = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name not in FREE}
  letters = cfg.layer_letters()
  has_rope = positions.POSITIONS[cfg.positions].rotate is not None
  values |= {
    'kv_heads': cfg.G,
    'head_dim': cfg.K,
    'hidden': cfg.F,
    'window': cfg.windows(),
    'layer_pattern': [has_rope and letter == 'N' for letter in letters],
    'embed_scale': cfg.embed_scale or cfg.width**0.5,
    'logit_scale': cfg.logit_scale / cfg.growth,
    'query_scale': cfg.attention_scale,
    'norm_bias': cfg.norm == 'layernorm' and cfg.norm_bias,
    'qk_norm_over': cfg.qk_norm and cfg.qk_norm_over,
    'experts_per_token': cfg.experts and cfg.experts_per_token,
    'router_renormalize': cfg.experts and cfg.router_renormalize,
  }
  if has_rope:
    frequencies = {letter: positions.rope_frequencies(cfg, letter).tolist() for letter in set(letters)}
    values['rope_fraction'] = cfg.rotary_dim
    values['rope_theta'] = [frequencies[letter] for letter in letters]
    values['rope_scaling'] = ROPE_SCALINGS[cfg.rope_scaling].magnitude(cfg)
  return values


def _same(a, b):
  if isinstance(a, list) and isinstance(b, list):
    return len(a) == len(b) and all(map(_same, a, b))
  return a == b or (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b))


def _culprits(cfg, different):
  """The names of different settings, where frequencies differ those that make them what they are."""
  if 'rope_theta' not in different:
    return different
  special = {f for f, off in (('rope_local_theta', 0.0), ('rope_scaling', 'none')) if getattr(cfg, f) != off}
  if special or different & {'rope_fraction', 'layer_pattern'}:
    different = different - {'rope_theta'}
  return different | special


FIXED = {'quantization_config': (None, 'the weights are quantized')}  # of every family
# All other fields of ModelConfig must compute the same after an export and an import. These change no logit,
# or belong to modalities, which no family has, or make RoPE's frequencies, which are compared. A capacity
# drops tokens only in training and evaluation: sampling ignores it, as every family does.
FREE = {'vocab_multiple', 'patch_values', 'frame_values', 'vector_values', 'projector', 'projector_parts'}
FREE |= {'init_projections', 'init_std', 'dropout', 'attention_dropout', 'capacity_factor', 'mup_base'}
FREE |= {'encoders', 'kernel', 'unroll', 'remat', 'dtype', 'param_dtype'}
FREE |= {f.name for f in dataclasses.fields(ModelConfig) if f.name.startswith('rope_')}
