"""Families of Hugging Face models: config.json <-> ModelConfig.

Dropout rates are not imported: they belong to the original training, and attention dropout rules out fused
kernels.

Source: transformers 5.23, `models/{gpt2,llama,mistral,qwen2,qwen3}/`.
"""

from collections.abc import Callable
from typing import NamedTuple

from gpt_jax.interop.rope import read_number, read_rope, unsupported, write_rope
from gpt_jax.interop.tensors import GPT2_TENSORS, LLAMA_TENSORS


class Family(NamedTuple):
  """One model_type."""

  architecture: str  # the class that transformers builds
  prefix: str  # of all tensor names but the head's; files of the bare model lack it
  tensors: dict  # {path of our parameter: Tensor}
  buffers: str  # regex of names that hold no parameter
  keys: dict  # ModelConfig field -> key of config.json
  defaults: dict  # optional keys of config.json -> transformers' default
  fixed: dict  # keys of config.json -> (the only value that can be imported, meaning of any other)
  read: Callable  # (values of `keys`, config.json with defaults) -> fields of ModelConfig
  write: Callable  # (ModelConfig, its values of `keys`) -> config.json
  expresses: dict  # ModelConfig field -> values that the family has, or a predicate of the config
  zeros: tuple = ()  # paths of parameters that it lacks: zeros compute the same


# ------------------------------------------------------------------- config.json -> ModelConfig


def read_config(hf):
  """Read a config.json -> (model_type, fields of ModelConfig).

  Raises ValueError for a model that a ModelConfig cannot reproduce exactly.
  """
  model_type = hf.get('model_type')
  if model_type not in FAMILIES:
    raise ValueError(
      f'config.json: model_type={model_type!r} is not a family that can be imported\n'
      f'fix: import a model of {", ".join(FAMILIES)}'
    )
  family = FAMILIES[model_type]
  for key, (value, meaning) in (FIXED | family.fixed).items():
    if hf.get(key, value) != value:
      raise unsupported(f'{key}={hf[key]!r}', meaning)
  full = family.defaults | hf
  read = lambda key: full[key] if key in family.defaults else read_number(full, key)
  values = {field: read(key) for field, key in family.keys.items()}
  return model_type, values | family.read(values, full)


def _read_gpt2(values, hf):
  return {
    'hidden': values['hidden'] or 0,
    'positions': 'learned',
    'norm': 'layernorm',
    'mlp': _activation(values['mlp'], PLAIN_ACTIVATIONS),
    'attention_bias': True,
    'mlp_bias': True,
  }


def _read_llama(values, hf):
  return {
    'kv_heads': values['kv_heads'] or values['heads'],
    'head_dim': values['head_dim'] or values['width'] // max(values['heads'], 1),
    'mlp': _activation(values['mlp'], GATED_ACTIVATIONS),
    'init_projections': 'same',
    **read_rope(hf),
  }


def _read_mistral(values, hf):
  return _read_llama(values, hf) | {'window': hf['sliding_window'] or 0}


def _read_qwen2(values, hf):
  return _read_llama(values, hf) | {'attention_bias': True} | _read_layer_types(hf)


def _read_qwen3(values, hf):
  return _read_llama(values, hf) | {'qk_norm': True} | _read_layer_types(hf)


def _read_layer_types(hf):
  """Return window and layer_pattern from the types of the layers."""
  layers, window = hf['num_hidden_layers'], hf['use_sliding_window'] and hf['sliding_window']
  first = hf['max_window_layers'] if window else layers
  kinds = hf['layer_types'] or ['full_attention' if l < first else 'sliding_attention' for l in range(layers)]
  letters = {'full_attention': 'L', 'sliding_attention': 'S' if window else ''}
  pattern = ''.join(letters.get(kind, '') for kind in kinds)
  if len(pattern) != layers or len(kinds) != layers:
    raise unsupported(
      f'layer_types={kinds} with sliding_window={window or None} and {layers} layers',
      'every layer needs full_attention, or sliding_attention with a window',
    )
  if 'S' not in pattern:
    return {}
  return {'window': window, 'layer_pattern': pattern if 'L' in pattern else ''}


def _activation(name, table):
  if name not in table:
    raise unsupported(f'activation {name!r}', f'the MLP has only {", ".join(table)}')
  return table[name]


# ------------------------------------------------------------------- ModelConfig -> config.json


def write_config(cfg):
  """Return (the model_type that computes the same as a ModelConfig, its config.json without special ids).

  Raises ValueError listing every setting that neither GPT-2 nor the Llama family can express.
  """
  obstacles = {name: _obstacles(cfg, FAMILIES[name].expresses) for name in EXPORTS}
  for name, settings in obstacles.items():
    if not settings:
      family = FAMILIES[name]
      values = {key: getattr(cfg, RESOLVED.get(field, field)) for field, key in family.keys.items()}
      about = {'architectures': [family.architecture], 'model_type': name}
      return name, about | family.write(cfg, values)
  # Of GPT-2 and of those Llamas that come nearest.
  fewest = min(len(obstacles[name]) for name in EXPORTS[1:])
  nearest = [name for name in EXPORTS[1:] if len(obstacles[name]) == fewest]
  lacks = [f'{name} lacks {", ".join(obstacles[name])}' for name in ('gpt2', *nearest)]
  raise ValueError(
    f'no family has all these settings: {"; ".join(lacks)}\n'
    'fix: train with the presets gpt2 or llama, or without these settings, to export'
  )


def _obstacles(cfg, expresses):
  """The settings of a config that a family does not have."""
  has = lambda field, rule: rule(cfg) if callable(rule) else getattr(cfg, field) in rule
  return [f'model.{field}={getattr(cfg, field)}' for field, rule in expresses.items() if not has(field, rule)]


def _write_gpt2(cfg, values):
  return values | {
    'activation_function': WRITTEN_ACTIVATIONS[cfg.mlp],
    'resid_pdrop': cfg.dropout,
    'embd_pdrop': cfg.dropout,
    'attn_pdrop': cfg.attention_dropout,
  }


def _write_llama(cfg, values):
  activation = WRITTEN_ACTIVATIONS[cfg.mlp]
  return values | {'hidden_act': activation, 'attention_dropout': cfg.attention_dropout, **write_rope(cfg)}


def _write_mistral(cfg, values):
  content = _write_llama(cfg, values) | {'sliding_window': cfg.windows()[0] or None}
  return {key: value for key, value in content.items() if key not in ('attention_bias', 'mlp_bias')}


def _write_qwen3(cfg, values):
  content, windows = _write_llama(cfg, values), cfg.windows()
  del content['mlp_bias']
  return content | {
    'use_sliding_window': any(windows),
    'sliding_window': cfg.window or None,
    'max_window_layers': next((l for l, w in enumerate(windows) if w), cfg.layers),
    'layer_types': ['sliding_attention' if w else 'full_attention' for w in windows],
  }


# ------------------------------------------------------------------------------------------ tables

# All spellings of the tanh approximation compute the same.
TANH_GELUS = ('gelu_new', 'gelu_pytorch_tanh', 'gelu_python_tanh', 'gelu_fast')
PLAIN_ACTIVATIONS = dict.fromkeys(TANH_GELUS, 'gelu') | {'relu2': 'relu2'}
PLAIN_ACTIVATIONS |= {'gelu': 'gelu_exact', 'gelu_python': 'gelu_exact'}
GATED_ACTIVATIONS = {'silu': 'swiglu', 'swish': 'swiglu'} | dict.fromkeys(TANH_GELUS, 'geglu')
WRITTEN_ACTIVATIONS = dict(gelu='gelu_new', gelu_exact='gelu', relu2='relu2')
WRITTEN_ACTIVATIONS |= dict(swiglu='silu', geglu='gelu_pytorch_tanh')

FIXED = {'quantization_config': (None, 'the weights are quantized')}
RESOLVED = {'hidden': 'F', 'kv_heads': 'G', 'head_dim': 'K'}  # fields of which 0 stands for a default

# Settings of a family. A field that is not named is free, or concerns only training.
COMMON = {
  'norm_position': ('pre',),
  'attention_softcap': (0.0,),
  'logit_softcap': (0.0,),
  'embed_scale': (1.0,),
  'residual_scale': (1.0,),
  'logit_scale': (1.0,),
  'query_scale': (0.0,),
  'qk_norm_over': lambda cfg: not cfg.qk_norm or cfg.qk_norm_over == 'head',
  'rope_fraction': (1.0,),
  'rope_local_theta': (0.0,),
  'layer_pattern': lambda cfg: 'N' not in cfg.layer_pattern,
  'experts': (0,),
  'mup_base': lambda cfg: cfg.growth == 1,
}
GPT2 = Family(
  architecture='GPT2LMHeadModel',
  prefix='transformer.',
  tensors=GPT2_TENSORS,
  buffers=r'.*\.attn\.(masked_)?bias',
  keys={
    'vocab': 'vocab_size',
    'layers': 'n_layer',
    'width': 'n_embd',
    'heads': 'n_head',
    'hidden': 'n_inner',
    'context': 'n_positions',
    'mlp': 'activation_function',
    'norm_eps': 'layer_norm_epsilon',
    'tied_head': 'tie_word_embeddings',
    'init_std': 'initializer_range',
  },
  defaults={
    'n_positions': 1024,
    'n_inner': None,
    'activation_function': 'gelu_new',
    'layer_norm_epsilon': 1e-5,
    'tie_word_embeddings': True,
    'initializer_range': 0.02,
  },
  fixed={
    'scale_attn_weights': (True, 'scores would not be divided by the root of the head width'),
    'scale_attn_by_inverse_layer_idx': (False, 'scores would shrink from layer to layer'),
    'reorder_and_upcast_attn': (False, 'scores would be computed in another order and precision'),
    'add_cross_attention': (False, 'the layers would attend to an encoder'),
  },
  read=_read_gpt2,
  write=_write_gpt2,
  expresses=COMMON
  | {
    'positions': ('learned',),
    'norm': ('layernorm',),
    'norm_bias': (True,),
    'mlp': ('gelu', 'gelu_exact', 'relu2'),
    'attention_bias': (True,),
    'mlp_bias': (True,),
    'qk_norm': (False,),
    'window': (0,),
    'kv_heads': lambda cfg: cfg.G == cfg.heads,
    'head_dim': lambda cfg: cfg.K * cfg.heads == cfg.width,
  },
)
LLAMA = Family(
  architecture='LlamaForCausalLM',
  prefix='model.',
  tensors=LLAMA_TENSORS,
  buffers=r'.*rotary_emb\.inv_freq',
  keys={
    'vocab': 'vocab_size',
    'layers': 'num_hidden_layers',
    'width': 'hidden_size',
    'heads': 'num_attention_heads',
    'kv_heads': 'num_key_value_heads',
    'head_dim': 'head_dim',
    'hidden': 'intermediate_size',
    'context': 'max_position_embeddings',
    'norm_eps': 'rms_norm_eps',
    'mlp': 'hidden_act',
    'attention_bias': 'attention_bias',
    'mlp_bias': 'mlp_bias',
    'tied_head': 'tie_word_embeddings',
    'init_std': 'initializer_range',
  },
  defaults={
    'num_key_value_heads': None,
    'head_dim': None,
    'hidden_act': 'silu',
    'max_position_embeddings': 2048,
    'rms_norm_eps': 1e-6,
    'attention_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': False,
    'initializer_range': 0.02,
  },
  fixed={'sliding_window': (None, 'Llama has no windows, yet its cache would drop old keys')},
  read=_read_llama,
  write=_write_llama,
  expresses=COMMON
  | {
    'positions': ('rope',),
    'norm': ('rmsnorm',),
    'mlp': ('swiglu', 'geglu'),
    'qk_norm': (False,),
    'window': (0,),
    'head_dim': lambda cfg: cfg.width % cfg.heads == 0,
  },
)
MISTRAL = LLAMA._replace(
  architecture='MistralForCausalLM',
  defaults=LLAMA.defaults
  | {'num_key_value_heads': 8, 'max_position_embeddings': 131072, 'sliding_window': 4096},
  fixed={},
  read=_read_mistral,
  write=_write_mistral,
  expresses=LLAMA.expresses
  | {
    'attention_bias': (False,),
    'mlp_bias': (False,),
    'window': lambda cfg: len(set(cfg.windows())) == 1,
    'head_dim': lambda cfg: True,
  },
)
QWEN2 = LLAMA._replace(
  architecture='Qwen2ForCausalLM',
  defaults=LLAMA.defaults
  | {
    'num_key_value_heads': 32,
    'max_position_embeddings': 32768,
    'use_sliding_window': False,
    'sliding_window': 4096,
    'max_window_layers': 28,
    'layer_types': None,
  },
  fixed={},
  read=_read_qwen2,
  expresses={},
  zeros=('blocks/attention/o_bias_D',),
)
QWEN3 = QWEN2._replace(
  architecture='Qwen3ForCausalLM',
  defaults=QWEN2.defaults | {'head_dim': 128},
  read=_read_qwen3,
  write=_write_qwen3,
  expresses=LLAMA.expresses
  | {'mlp_bias': (False,), 'qk_norm': (True,), 'window': lambda cfg: True, 'head_dim': lambda cfg: True},
  zeros=(),
)
FAMILIES = {'gpt2': GPT2, 'llama': LLAMA, 'mistral': MISTRAL, 'qwen2': QWEN2, 'qwen3': QWEN3}
EXPORTS = ('gpt2', 'llama', 'mistral', 'qwen3')  # in the order in which they are tried
