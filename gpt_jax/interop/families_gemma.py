"""Gemma: norms of 1 + scale, embeddings times sqrt(width), and from Gemma 2 on norms around each branch.

Source: transformers 5.23, `models/{gemma,gemma2,gemma3}/`.
"""

from gpt_jax.interop.families_llama import (
  FULL,
  LAYER,
  LLAMA,
  SLIDING,
  TANH_GELUS,
  TENSORS,
  divides,
  periodic_layer_types,
  without,
)
from gpt_jax.interop.family import default_query_scale
from gpt_jax.interop.tensors import norm

ALWAYS = LLAMA.always | {'norm': 'zero_centered_rmsnorm', 'embed_scale': 0.0}
CAUSAL = {'use_bidirectional_attention': (None, 'tokens would see those after them')}
GEMMA = LLAMA._replace(
  architecture='GemmaForCausalLM',
  keys=without(LLAMA.keys, 'mlp_bias'),
  defaults=LLAMA.defaults
  | {
    'num_key_value_heads': 16,
    'head_dim': 256,
    'hidden_act': 'gelu_pytorch_tanh',
    'max_position_embeddings': 8192,
    'tie_word_embeddings': True,
  },
  # gelu is the first releases' name of the approximation, as transformers reads it.
  activations=dict.fromkeys((*TANH_GELUS, 'gelu'), 'geglu') | {'silu': 'swiglu'},
  always=ALWAYS,
  fixed=CAUSAL,
  rules={},
)


def _read_gemma2(hf, fields):
  softcaps = {'attention_softcap': 'attn_logit_softcapping', 'logit_softcap': 'final_logit_softcapping'}
  values = {field: hf[key] or 0.0 for field, key in softcaps.items()}
  if not fields.get('window'):  # an empty pattern would stand for layers with a window
    values['layer_pattern'] = 'L'
  return values | default_query_scale(fields, hf['query_pre_attn_scalar'] ** -0.5)


def _write_gemma2(cfg):
  return {
    'attn_logit_softcapping': cfg.attention_softcap or None,
    'final_logit_softcapping': cfg.logit_softcap or None,
    'query_pre_attn_scalar': round(cfg.attention_scale**-2) or 1,  # an integer in transformers
  }


GEMMA2 = GEMMA._replace(
  architecture='Gemma2ForCausalLM',
  tensors=TENSORS
  | norm('blocks/attention_out_norm', f'{LAYER}.post_attention_layernorm')
  | norm('blocks/mlp_norm', f'{LAYER}.pre_feedforward_layernorm')
  | norm('blocks/mlp_out_norm', f'{LAYER}.post_feedforward_layernorm'),
  keys=GEMMA.keys | {'mlp': 'hidden_activation'},
  defaults=without(GEMMA.defaults, 'hidden_act')
  | {
    'num_key_value_heads': 4,
    'hidden_activation': 'gelu_pytorch_tanh',
    'sliding_window': 4096,
    'layer_types': None,
    'query_pre_attn_scalar': 256,
    'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0,
  },
  activations=LLAMA.activations,
  always=ALWAYS | {'norm_position': 'sandwich'},
  read=_read_gemma2,
  write=_write_gemma2,
  layer_types=lambda hf: [FULL if l % 2 else SLIDING for l in range(hf['num_hidden_layers'])],
  rules={'head_dim': divides},
)


GEMMA3 = GEMMA2._replace(
  architecture='Gemma3ForCausalLM',
  defaults=GEMMA2.defaults
  | {
    'max_position_embeddings': 131072,
    'vocab_size': 262208,
    'rope_theta': 1000000.0,
    'rope_local_base_freq': 10000.0,
    'sliding_window_pattern': 6,
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
  },
  always=GEMMA2.always | {'qk_norm': True},
  fixed={'use_bidirectional_attention': (False, 'tokens would see those after them')},
  layer_types=periodic_layer_types,
)
