"""Kin of Llama with other blocks: norms after branches, shared or fixed, layers without positions, factors.

Source: transformers 5.23, `models/{olmo,olmo2,olmo3,smollm3,granite,cohere,cohere2,chameleon}/`.
"""

from gpt_jax.interop.families_llama import (
  ATTENTION,
  FULL,
  INTERLEAVED,
  LAYER,
  LLAMA,
  NORM_OVER_ALL,
  SLIDING,
  TENSORS,
  periodic_layer_types,
  without,
)
from gpt_jax.interop.family import default_query_scale
from gpt_jax.interop.rope import unsupported
from gpt_jax.interop.tensors import Tensor, norm

NORMS = ('blocks/attention_norm', 'blocks/mlp_norm', 'final_norm')
OLMO = LLAMA._replace(
  architecture='OlmoForCausalLM',
  tensors=TENSORS | {f'{name}/scale': Tensor('', value=1.0) for name in NORMS},
  keys=without(LLAMA.keys, 'mlp_bias', 'norm_eps'),
  always=LLAMA.always | {'norm': 'layernorm', 'norm_bias': False, 'norm_eps': 1e-5},
  fixed={'clip_qkv': (None, 'queries, keys and values would be clipped')},
  rules={},
)
OLMO2 = LLAMA._replace(
  architecture='Olmo2ForCausalLM',
  tensors=TENSORS
  | NORM_OVER_ALL
  | norm('blocks/attention_out_norm', f'{LAYER}.post_attention_layernorm')
  | norm('blocks/mlp_out_norm', f'{LAYER}.post_feedforward_layernorm'),
  keys=without(LLAMA.keys, 'mlp_bias'),
  defaults=LLAMA.defaults | {'rms_norm_eps': 1e-5},
  always={'init_projections': 'same', 'norm_position': 'output', 'qk_norm': True, 'qk_norm_over': 'all'},
  fixed={},
  rules={},
)
OLMO3 = OLMO2._replace(
  architecture='Olmo3ForCausalLM',
  defaults=OLMO2.defaults
  | {'rope_theta': 500000.0, 'rope_local_base_freq': None, 'sliding_window': 4096, 'layer_types': None},
  layer_types=lambda hf: [FULL if l % 4 == 3 else SLIDING for l in range(hf['num_hidden_layers'])],
)


def _smollm3_positions(hf):
  """1 for each layer with RoPE, 0 for each without."""
  every, layers = hf['no_rope_layer_interval'], range(hf['num_hidden_layers'])
  return hf['no_rope_layers'] or [int((l + 1) % every != 0) for l in layers]


def _smollm3_layer_types(hf):
  """With windows, those layers have one that have no positions."""
  is_on = hf['use_sliding_window'] and hf['sliding_window']
  return [SLIDING if is_on and not rope else FULL for rope in _smollm3_positions(hf)]


def _read_smollm3(hf, fields):
  kinds = hf['layer_types'] or _smollm3_layer_types(hf)
  letters = {(FULL, True): 'L', (FULL, False): 'N', (SLIDING, True): 'S' if fields.get('window') else 'L'}
  rope = _smollm3_positions(hf)
  layers = [letters.get((kind, bool(on)), '') for kind, on in zip(kinds, rope, strict=False)]
  if not all(layers) or len(rope) != fields['layers']:
    raise unsupported(
      f'no_rope_layers={rope} with layer_types={kinds}', 'a layer without positions has no window'
    )
  return {'layer_pattern': ''.join(layers)}


SMOLLM3 = LLAMA._replace(
  architecture='SmolLM3ForCausalLM',
  defaults=LLAMA.defaults
  | {
    'num_key_value_heads': 4,
    'max_position_embeddings': 32768,
    'tie_word_embeddings': True,
    'rope_theta': 2000000.0,
    'use_sliding_window': False,
    'sliding_window': None,
    'no_rope_layers': None,
    'no_rope_layer_interval': 4,
    'layer_types': None,
  },
  fixed={},
  layer_types=_smollm3_layer_types,
  read=_read_smollm3,
  write=lambda cfg: {'no_rope_layers': [int(letter != 'N') for letter in cfg.layer_letters()]},
  rules={},
)


def _read_granite(hf, fields):
  return {'logit_scale': 1 / hf['logits_scaling']} | default_query_scale(fields, hf['attention_multiplier'])


def write_granite(cfg):
  """Granite's factors of a config; muP's are among them."""
  return {'attention_multiplier': cfg.attention_scale, 'logits_scaling': cfg.growth / cfg.logit_scale}


GRANITE = LLAMA._replace(
  architecture='GraniteForCausalLM',
  keys=LLAMA.keys | {'embed_scale': 'embedding_multiplier', 'residual_scale': 'residual_multiplier'},
  defaults=LLAMA.defaults
  | dict.fromkeys(
    ('embedding_multiplier', 'residual_multiplier', 'attention_multiplier', 'logits_scaling'), 1.0
  ),
  fixed={},
  read=_read_granite,
  write=write_granite,
  rules={},
)

ONE_NORM = norm('blocks/mlp_norm', f'{LAYER}.input_layernorm')  # for both branches
COHERE = LLAMA._replace(
  architecture='CohereForCausalLM',
  tensors=TENSORS | INTERLEAVED | ONE_NORM,
  keys=without(LLAMA.keys, 'mlp_bias') | {'norm_eps': 'layer_norm_eps', 'logit_scale': 'logit_scale'},
  defaults=LLAMA.defaults
  | {
    'max_position_embeddings': 8192,
    'layer_norm_eps': 1e-5,
    'logit_scale': 0.0625,
    'tie_word_embeddings': True,
    'rope_theta': 500000.0,
  },
  always=LLAMA.always | {'norm': 'layernorm', 'norm_bias': False, 'norm_position': 'parallel'},
  fixed={'use_qk_norm': (False, 'queries and keys would have norms of each head on its own')},
  write=lambda cfg: {'logit_scale': cfg.logit_scale / cfg.growth},
  rules={},
)


def _read_cohere2(hf, fields):
  """Layers without a window have no positions."""
  pattern = fields.get('layer_pattern') or ('S' if fields.get('window') else 'L')
  return {'layer_pattern': pattern.replace('L', 'N')}


COHERE2 = COHERE._replace(
  architecture='Cohere2ForCausalLM',
  keys=without(COHERE.keys, 'head_dim'),
  defaults=without(COHERE.defaults, 'rope_theta')
  | {'sliding_window': 4096, 'sliding_window_pattern': 4, 'layer_types': None},
  fixed={},
  layer_types=periodic_layer_types,
  read=_read_cohere2,
)


def _chameleon_norms(cfg, hf):
  """The same norms stand before branches or behind them."""
  if cfg.norm_position != 'output':
    return {}
  return norm('blocks/attention_out_norm', f'{LAYER}.input_layernorm') | norm(
    'blocks/mlp_out_norm', f'{LAYER}.post_attention_layernorm'
  )


CHAMELEON = LLAMA._replace(
  architecture='ChameleonForConditionalGeneration',
  tensors=TENSORS
  | norm('blocks/attention/q_norm', f'{ATTENTION}.q_norm', bias=True, axes='H K')
  | norm('blocks/attention/k_norm', f'{ATTENTION}.k_norm', bias=True, axes='G K'),
  keys=without(LLAMA.keys, 'head_dim'),
  defaults=LLAMA.defaults
  | {'num_key_value_heads': 32, 'max_position_embeddings': 4096, 'rms_norm_eps': 1e-5, 'swin_norm': False},
  always=LLAMA.always | {'qk_norm': True, 'qk_norm_over': 'each'},
  fixed={'rms_norm_eps': (1e-5, 'the norms of queries and keys have 1e-5')},
  read=lambda hf, fields: {'norm_position': 'output'} if hf['swin_norm'] else {},
  write=lambda cfg: {'swin_norm': cfg.norm_position == 'output'},
  vary=_chameleon_norms,
  buffers=r'.*rotary_emb\.inv_freq|model\.vqmodel\..*',  # and the picture tokenizer
)
