"""JSON files of other people's models, checked: every key that is read has a type, wherever it is read.

A missing or null key is the reader's concern; one of another type is an error here.
"""

import math

from gpt_jax.runs.reading import check_types, reading
from gpt_jax.tokenizers import base

FIX = 'use the file that came with the weights, as save_pretrained writes it'
OPTIONAL_TEXT, OPTIONAL_BOOL = str | None, bool | None
INTEGER, NUMBER = int | None, int | float | None
ROPE = {
  'rope_type': OPTIONAL_TEXT,
  'type': OPTIONAL_TEXT,
  'truncate': OPTIONAL_BOOL,
  **dict.fromkeys(('original_max_position_embeddings', 'rope_theta', 'factor'), NUMBER),
  **dict.fromkeys(('low_freq_factor', 'high_freq_factor', 'beta_fast', 'beta_slow'), NUMBER),
  **dict.fromkeys(('attention_factor', 'mscale', 'mscale_all_dim', 'partial_rotary_factor'), NUMBER),
}
ROPE_TABLES = ('rope_scaling', 'rope_parameters')  # tables of ROPE, or {kind of layer: table}
INTEGERS = """
  vocab_size n_layer n_embd n_head n_positions n_ctx n_inner num_layers num_heads max_position_embeddings
  num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim
  sliding_window window_size max_window_layers sliding_window_pattern no_rope_layer_interval
  original_max_position_embeddings
  num_experts num_local_experts num_experts_per_tok moe_intermediate_size decoder_sparse_step
"""
NUMBERS = """
  layer_norm_epsilon layer_norm_eps rms_norm_eps norm_epsilon norm_eps initializer_range rope_theta
  rope_local_base_freq rotary_emb_base rotary_pct partial_rotary_factor query_pre_attn_scalar
  attn_logit_softcapping final_logit_softcapping embedding_multiplier residual_multiplier attention_multiplier
  logits_scaling clip_qkv
"""
BOOLS = """
  tie_word_embeddings attention_bias mlp_bias use_bias use_qkv_bias use_sliding_window scale_attn_weights
  scale_attn_by_inverse_layer_idx reorder_and_upcast_attn add_cross_attention multi_query
  use_parallel_residual qk_layernorm norm_topk_prob attention_out_bias use_bidirectional_attention
"""
TEXTS = 'model_type hidden_act hidden_activation activation_function'
TOKEN_ID = int | list | None  # transformers takes the first of a list, or all ends
CONFIG = {
  **dict.fromkeys(INTEGERS.split(), INTEGER),
  **dict.fromkeys(NUMBERS.split(), NUMBER),
  **dict.fromkeys(BOOLS.split(), OPTIONAL_BOOL),
  **dict.fromkeys(TEXTS.split(), OPTIONAL_TEXT),
  **dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'), TOKEN_ID),
  **dict.fromkeys(ROPE_TABLES, dict | None),
  **dict.fromkeys(('layer_types', 'no_rope_layers', 'attention_types', 'mlp_only_layers'), list | None),
  **dict.fromkeys(('text_config', 'quantization_config'), dict | None),
}
ITEMS = {'layer_types': str, 'no_rope_layers': int, 'mlp_only_layers': int}
ITEMS |= dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'), int)
GENERATION = {
  **dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'), TOKEN_ID),
  **dict.fromkeys(('temperature', 'top_p', 'min_p', 'repetition_penalty'), NUMBER),
  **dict.fromkeys(('top_k', 'num_beams', 'max_new_tokens'), INTEGER),
  'do_sample': OPTIONAL_BOOL,
}
TOKENIZER_CONFIG = {
  'tokenizer_class': OPTIONAL_TEXT,
  **dict.fromkeys(('add_bos_token', 'add_eos_token', 'add_prefix_space'), OPTIONAL_BOOL),
}


def read_config(path):
  """Return the content of a config.json."""
  content = read(path, CONFIG)
  check_config(content, path)
  return content


def check_config(content, path):
  """Raise ValueError for a key of another type, also in the tables of RoPE and in text_config."""
  check(content, CONFIG, path)
  for table in (content.get(key) or {} for key in ROPE_TABLES):
    for rope in (table, *(value for value in table.values() if isinstance(value, dict))):
      check(rope, ROPE, path)
  if content.get('text_config'):
    check_config(content['text_config'], path)


def read(path, types):
  """Return a JSON object whose keys have these types; FileNotFoundError or ValueError with the fix."""
  content = base.read_json(path, FIX, dict)
  check(content, types, path)
  return content


def check(content, types, path):
  """Raise ValueError for a key whose value is of another type, or not a finite number."""
  with reading(path, 'a file of a model', FIX):
    for key in content.keys() & types.keys():
      value = content[key]
      if isinstance(value, list) and key in ITEMS:
        check_types(value, [ITEMS[key]], key)
      check_types(value, types[key], key)
      if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{key} is {value}, expected a finite number')
