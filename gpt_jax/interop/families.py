"""Families of Hugging Face models: config.json <-> ModelConfig.

A model whose config.json a ModelConfig cannot reproduce exactly is an error that states why. Dropout rates
are not imported: they belong to the original training, and attention dropout rules out fused kernels.

Source: transformers 5.23, `models/{gpt2,llama,mistral,qwen2,qwen3}/`.
"""

from collections.abc import Callable
from typing import NamedTuple

from gpt_jax.interop.rope import need, read_rope, refusal, write_rope
from gpt_jax.interop.tensors import GPT2_TENSORS, LLAMA_TENSORS


class Family(NamedTuple):
  """One model_type."""

  architecture: str  # the class that transformers builds
  prefix: str  # of all names but the head's; files of the bare model lack it
  tensors: dict  # {path of our parameter: Tensor}
  buffers: str  # regex of names that hold no parameter
  defaults: dict  # config.json keys that may be absent -> what transformers then takes
  fixed: dict  # config.json keys -> (the only value that we compute, what another one would mean)
  read: Callable  # config.json, defaults filled in -> fields of ModelConfig
  write: Callable  # ModelConfig -> config.json
  expresses: dict  # ModelConfig keys -> values that the family has, or a predicate of the config
  zeros: tuple = ()  # paths that it lacks: zeros compute the same


# ---------------------------------------------------------------------------- config.json -> ours


def read_config(hf):
  """A config.json -> (model_type, fields of ModelConfig).

  Raises ValueError for a model that we could not compute exactly.
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
      raise refusal(f'{key}={hf[key]!r}', meaning)
  known = COMMON_DEFAULTS | family.defaults | {k: v for k, v in hf.items() if k != 'model_type'}
  return model_type, {'vocab': need(known, 'vocab_size'), **family.read(known)}


def _read_gpt2(hf):
  return {
    'layers': need(hf, 'n_layer'),
    'width': need(hf, 'n_embd'),
    'heads': need(hf, 'n_head'),
    'hidden': hf['n_inner'] or 0,
    'context': hf['n_positions'],
    'positions': 'learned',
    'norm': 'layernorm',
    'norm_eps': hf['layer_norm_epsilon'],
    'mlp': _activation(hf['activation_function'], PLAIN_ACTIVATIONS),
    'attention_bias': True,
    'mlp_bias': True,
    'tied_head': hf['tie_word_embeddings'],
    'init_std': hf['initializer_range'],
  }


def _read_llama(hf):
  width, heads = need(hf, 'hidden_size'), need(hf, 'num_attention_heads')
  return {
    'layers': need(hf, 'num_hidden_layers'),
    'width': width,
    'heads': heads,
    'kv_heads': hf['num_key_value_heads'] or heads,
    'head_dim': hf['head_dim'] or width // max(heads, 1),
    'hidden': need(hf, 'intermediate_size'),
    'context': hf['max_position_embeddings'],
    'norm_eps': hf['rms_norm_eps'],
    'mlp': _activation(hf['hidden_act'], GATED_ACTIVATIONS),
    'attention_bias': hf['attention_bias'],
    'mlp_bias': hf['mlp_bias'],
    'tied_head': hf['tie_word_embeddings'],
    'init_std': hf['initializer_range'],
    'init_projections': 'same',
    **read_rope(hf),
  }


def _read_mistral(hf):
  return _read_llama(hf) | {'window': hf['sliding_window'] or 0}


def _read_qwen2(hf):
  return _read_llama(hf) | {'attention_bias': True} | _read_layer_types(hf)


def _read_qwen3(hf):
  return _read_llama(hf) | {'qk_norm': True} | _read_layer_types(hf)


def _read_layer_types(hf):
  """Which layers have a window -> window and window_pattern."""
  layers, window = hf['num_hidden_layers'], hf['use_sliding_window'] and hf['sliding_window']
  first = hf['max_window_layers'] if window else layers
  kinds = hf['layer_types'] or ['full_attention' if l < first else 'sliding_attention' for l in range(layers)]
  letters = {'full_attention': 'L', 'sliding_attention': 'S' if window else ''}
  pattern = ''.join(letters.get(kind, '') for kind in kinds)
  if len(pattern) != layers or len(kinds) != layers:
    raise refusal(
      f'layer_types={kinds} with sliding_window={window or None} and {layers} layers',
      'every layer needs full_attention, or sliding_attention with a window',
    )
  if 'S' not in pattern:
    return {}
  return {'window': window, 'window_pattern': pattern if 'L' in pattern else ''}


def _activation(name, table):
  if name not in table:
    raise refusal(f'activation {name!r}', f'the MLP has only {", ".join(table)}')
  return table[name]


# ---------------------------------------------------------------------------- ours -> config.json


def write_config(cfg):
  """A ModelConfig -> (the model_type that computes the same, its config.json without special ids).

  Raises ValueError listing every setting that neither GPT-2 nor the Llama family can express.
  """
  obstacles = {name: _obstacles(cfg, FAMILIES[name].expresses) for name in EXPORTS}
  for name, unsupported in obstacles.items():
    if not unsupported:
      family = FAMILIES[name]
      about = {'architectures': [family.architecture], 'model_type': name}
      # Both spellings of the dtype: transformers 5 reads the first, older ones the second.
      return name, about | family.write(cfg) | {'dtype': 'float32', 'torch_dtype': 'float32'}
  # Of GPT-2 and of those Llamas that come nearest.
  fewest = min(len(obstacles[name]) for name in EXPORTS[1:])
  nearest = [name for name in EXPORTS[1:] if len(obstacles[name]) == fewest]
  lacks = [f'{name} lacks {", ".join(obstacles[name])}' for name in ('gpt2', *nearest)]
  raise ValueError(
    f'no family has all these settings: {"; ".join(lacks)}\n'
    'fix: train with the presets gpt2 or llama, or without these settings, to export'
  )


def _obstacles(cfg, expresses):
  can = lambda key, rule: rule(cfg) if callable(rule) else getattr(cfg, key) in rule
  return [f'model.{key}={getattr(cfg, key)}' for key, rule in expresses.items() if not can(key, rule)]


def _write_gpt2(cfg):
  return {
    'vocab_size': cfg.vocab,
    'n_positions': cfg.context,
    'n_embd': cfg.width,
    'n_layer': cfg.layers,
    'n_head': cfg.heads,
    'n_inner': cfg.F,
    'activation_function': {'gelu': 'gelu_new', 'gelu_exact': 'gelu', 'relu2': 'relu2'}[cfg.mlp],
    'layer_norm_epsilon': cfg.norm_eps,
    'initializer_range': cfg.init_std,
    'resid_pdrop': cfg.dropout,
    'embd_pdrop': cfg.dropout,
    'attn_pdrop': cfg.attention_dropout,
    'tie_word_embeddings': cfg.tied_head,
  }


def _write_llama(cfg):
  return {
    'vocab_size': cfg.vocab,
    'hidden_size': cfg.width,
    'intermediate_size': cfg.F,
    'num_hidden_layers': cfg.layers,
    'num_attention_heads': cfg.heads,
    'num_key_value_heads': cfg.G,
    'head_dim': cfg.K,
    'hidden_act': {'swiglu': 'silu', 'geglu': 'gelu_pytorch_tanh'}[cfg.mlp],
    'max_position_embeddings': cfg.context,
    'rms_norm_eps': cfg.norm_eps,
    'initializer_range': cfg.init_std,
    'attention_bias': cfg.attention_bias,
    'mlp_bias': cfg.mlp_bias,
    'attention_dropout': cfg.attention_dropout,
    'tie_word_embeddings': cfg.tied_head,
    **write_rope(cfg),
  }


def _write_mistral(cfg):
  no_bias = {'attention_bias', 'mlp_bias'}
  rest = {key: value for key, value in _write_llama(cfg).items() if key not in no_bias}
  return rest | {'sliding_window': cfg.windows()[0] or None}


def _write_qwen3(cfg):
  rest = {key: value for key, value in _write_llama(cfg).items() if key != 'mlp_bias'}
  windows = cfg.windows()
  return rest | {
    'use_sliding_window': any(windows),
    'sliding_window': cfg.window or None,
    'max_window_layers': next((l for l, w in enumerate(windows) if w), cfg.layers),
    'layer_types': ['sliding_attention' if w else 'full_attention' for w in windows],
  }


# ------------------------------------------------------------------------------------------ tables

# All spellings of the tanh approximation compute the same.
TANH_GELUS = ('gelu_new', 'gelu_pytorch_tanh', 'gelu_python_tanh', 'gelu_fast')
PLAIN_ACTIVATIONS = dict.fromkeys(TANH_GELUS, 'gelu') | {
  'gelu': 'gelu_exact',
  'gelu_python': 'gelu_exact',
  'relu2': 'relu2',
}
GATED_ACTIVATIONS = {'silu': 'swiglu', 'swish': 'swiglu'} | dict.fromkeys(TANH_GELUS, 'geglu')

FIXED = {'quantization_config': (None, 'the weights are quantized')}
GPT2_FIXED = {
  'scale_attn_weights': (True, 'scores would not be divided by the root of the head width'),
  'scale_attn_by_inverse_layer_idx': (False, 'scores would shrink from layer to layer'),
  'reorder_and_upcast_attn': (False, 'scores would be computed in another order and precision'),
  'add_cross_attention': (False, 'the layers would attend to an encoder'),
}
LLAMA_FIXED = {'sliding_window': (None, 'Llama has no windows, yet its cache would drop old keys')}

COMMON_DEFAULTS = {'initializer_range': 0.02}
GPT2_DEFAULTS = {
  'n_positions': 1024,
  'n_inner': None,
  'activation_function': 'gelu_new',
  'layer_norm_epsilon': 1e-5,
  'tie_word_embeddings': True,
}
LLAMA_DEFAULTS = {
  'num_key_value_heads': None,
  'head_dim': None,
  'hidden_act': 'silu',
  'max_position_embeddings': 2048,
  'rms_norm_eps': 1e-6,
  'attention_bias': False,
  'mlp_bias': False,
  'tie_word_embeddings': False,
}
MISTRAL_DEFAULTS = LLAMA_DEFAULTS | {
  'num_key_value_heads': 8,
  'max_position_embeddings': 131072,
  'sliding_window': 4096,
}
QWEN_DEFAULTS = LLAMA_DEFAULTS | {
  'num_key_value_heads': 32,
  'max_position_embeddings': 32768,
  'use_sliding_window': False,
  'sliding_window': 4096,
  'max_window_layers': 28,
  'layer_types': None,
}
QWEN3_DEFAULTS = QWEN_DEFAULTS | {'head_dim': 128}

# What a family has. A setting not named here is free, or says how to train, not what to compute.
PLAIN = {
  'norm_position': ('pre',),
  'attention_softcap': (0.0,),
  'logit_softcap': (0.0,),
  'embed_scale': (1.0,),
  'residual_scale': (1.0,),
  'experts': (0,),
  'mup_base': lambda cfg: cfg.growth == 1,
}
GPT2_EXPRESSES = PLAIN | {
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
}
LLAMA_EXPRESSES = PLAIN | {
  'positions': ('rope',),
  'norm': ('rmsnorm',),
  'mlp': ('swiglu', 'geglu'),
  'qk_norm': (False,),
  'window': (0,),
  'head_dim': lambda cfg: cfg.width % cfg.heads == 0,
}
MISTRAL_EXPRESSES = LLAMA_EXPRESSES | {
  'attention_bias': (False,),
  'mlp_bias': (False,),
  'window': lambda cfg: len(set(cfg.windows())) == 1,
  'head_dim': lambda cfg: True,
}
QWEN3_EXPRESSES = LLAMA_EXPRESSES | {
  'mlp_bias': (False,),
  'qk_norm': (True,),
  'window': lambda cfg: True,
  'head_dim': lambda cfg: True,
}

GPT2 = Family(
  architecture='GPT2LMHeadModel',
  prefix='transformer.',
  tensors=GPT2_TENSORS,
  buffers=r'.*\.attn\.(masked_)?bias',
  defaults=GPT2_DEFAULTS,
  fixed=GPT2_FIXED,
  read=_read_gpt2,
  write=_write_gpt2,
  expresses=GPT2_EXPRESSES,
)
LLAMA = Family(
  architecture='LlamaForCausalLM',
  prefix='model.',
  tensors=LLAMA_TENSORS,
  buffers=r'.*rotary_emb\.inv_freq',
  defaults=LLAMA_DEFAULTS,
  fixed=LLAMA_FIXED,
  read=_read_llama,
  write=_write_llama,
  expresses=LLAMA_EXPRESSES,
)
LLAMA_LIKE = LLAMA._replace(fixed={})  # the same tensors under the same names
FAMILIES = {
  'gpt2': GPT2,
  'llama': LLAMA,
  'mistral': LLAMA_LIKE._replace(
    architecture='MistralForCausalLM',
    defaults=MISTRAL_DEFAULTS,
    read=_read_mistral,
    write=_write_mistral,
    expresses=MISTRAL_EXPRESSES,
  ),
  'qwen2': LLAMA_LIKE._replace(
    architecture='Qwen2ForCausalLM',
    defaults=QWEN_DEFAULTS,
    read=_read_qwen2,
    expresses={},
    zeros=('blocks/attention/o_bias_D',),
  ),
  'qwen3': LLAMA_LIKE._replace(
    architecture='Qwen3ForCausalLM',
    defaults=QWEN3_DEFAULTS,
    read=_read_qwen3,
    write=_write_qwen3,
    expresses=QWEN3_EXPRESSES,
  ),
}
EXPORTS = ('gpt2', 'llama', 'mistral', 'qwen3')  # in the order in which they are tried
