"""Llama and its kin: RMSNorm, RoPE, a gated MLP, each matrix a tensor of its own.

Source: transformers 5.23, `models/{llama,mistral,ministral,qwen2,qwen3,phi3,arcee,seed_oss,helium}/`.
"""

from gpt_jax.interop.family import Family
from gpt_jax.interop.rope import FULL, SLIDING, unsupported
from gpt_jax.interop.tensors import Tensor, matrix, norm

# All spellings of the tanh approximation compute the same; the first is written.
TANH_GELUS = ('gelu_pytorch_tanh', 'gelu_new', 'gelu_python_tanh', 'gelu_fast', 'gelu_accurate')
GATED = {'silu': 'swiglu', 'swish': 'swiglu'} | dict.fromkeys(TANH_GELUS, 'geglu')
LAYER, ATTENTION, MLP = 'model.layers.{l}', 'model.layers.{l}.self_attn', 'model.layers.{l}.mlp'
TENSORS = {
  'embed_VD': Tensor('model.embed_tokens.weight', 'V D'),
  **matrix('blocks/attention/wq_DHK', f'{ATTENTION}.q_proj', 'HK D', 'blocks/attention/q_bias_HK'),
  **matrix('blocks/attention/wk_DGK', f'{ATTENTION}.k_proj', 'GK D', 'blocks/attention/k_bias_GK'),
  **matrix('blocks/attention/wv_DGK', f'{ATTENTION}.v_proj', 'GK D', 'blocks/attention/v_bias_GK'),
  **matrix('blocks/attention/wo_HKD', f'{ATTENTION}.o_proj', 'D HK', 'blocks/attention/o_bias_D'),
  **norm('blocks/attention/q_norm', f'{ATTENTION}.q_norm', axes='K'),
  **norm('blocks/attention/k_norm', f'{ATTENTION}.k_norm', axes='K'),
  **matrix('blocks/mlp/gate_DF', f'{MLP}.gate_proj', 'F D', 'blocks/mlp/gate_bias_F'),
  **matrix('blocks/mlp/up_DF', f'{MLP}.up_proj', 'F D', 'blocks/mlp/up_bias_F'),
  **matrix('blocks/mlp/down_FD', f'{MLP}.down_proj', 'D F', 'blocks/mlp/down_bias_D'),
  **norm('blocks/attention_norm', f'{LAYER}.input_layernorm'),
  **norm('blocks/mlp_norm', f'{LAYER}.post_attention_layernorm'),
  **norm('final_norm', 'model.norm'),
  'head_VD': Tensor('lm_head.weight', 'V D'),
}
ZERO_OUTPUT_BIAS = {'blocks/attention/o_bias_D': Tensor('')}
PLAIN = {'gelu_new': 'gelu', 'gelu': 'gelu_exact', 'relu': 'relu', 'relu2': 'relu2'}
PLAIN |= dict.fromkeys(TANH_GELUS, 'gelu') | {'gelu_python': 'gelu_exact'}
PLAIN |= {'silu': 'silu', 'swish': 'silu', 'tanh': 'tanh'}
INTERLEAVED = {  # RoPE turns pairs (2i, 2i + 1)
  **matrix('blocks/attention/wq_DHK', f'{ATTENTION}.q_proj', 'Hk D', 'blocks/attention/q_bias_HK'),
  **matrix('blocks/attention/wk_DGK', f'{ATTENTION}.k_proj', 'Gk D', 'blocks/attention/k_bias_GK'),
}
NORM_OVER_ALL = {  # one norm over all heads
  **norm('blocks/attention/q_norm', f'{ATTENTION}.q_norm', axes='HK'),
  **norm('blocks/attention/k_norm', f'{ATTENTION}.k_norm', axes='GK'),
}


def without(keys, *fields):
  """A copy of a dict without these keys."""
  return {key: value for key, value in keys.items() if key not in fields}


def divides(cfg):
  """Whether the heads divide the width, which some classes of transformers demand."""
  return cfg.width % cfg.heads == 0


def periodic_layer_types(hf):
  """One layer of every sliding_window_pattern sees all keys."""
  every = hf['sliding_window_pattern']
  return [SLIDING if (l + 1) % every else FULL for l in range(hf['num_hidden_layers'])]


LLAMA = Family(
  architecture='LlamaForCausalLM',
  tensors=TENSORS,
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
  activations=GATED,
  always={'init_projections': 'same'},
  fixed={'sliding_window': (None, 'Llama has no windows, yet its cache would drop old keys')},
  rules={'head_dim': divides},
)
MISTRAL = LLAMA._replace(
  architecture='MistralForCausalLM',
  keys=without(LLAMA.keys, 'attention_bias', 'mlp_bias'),
  defaults=LLAMA.defaults
  | {'num_key_value_heads': 8, 'max_position_embeddings': 131072, 'sliding_window': 4096},
  fixed={},
  rules={},
)
MINISTRAL = MISTRAL._replace(
  architecture='MinistralForCausalLM',
  defaults=MISTRAL.defaults | {'layer_types': None},
  layer_types=lambda hf: [SLIDING if hf['sliding_window'] else FULL] * hf['num_hidden_layers'],
)


def _qwen_layer_types(hf):
  """Layers from max_window_layers on have the window."""
  layers = hf['num_hidden_layers']
  first = hf['max_window_layers'] if hf['use_sliding_window'] and hf['sliding_window'] else layers
  return [FULL if l < first else SLIDING for l in range(layers)]


QWEN2 = LLAMA._replace(
  architecture='Qwen2ForCausalLM',
  keys=without(LLAMA.keys, 'attention_bias', 'mlp_bias'),
  defaults=LLAMA.defaults
  | {
    'num_key_value_heads': 32,
    'max_position_embeddings': 32768,
    'use_sliding_window': False,
    'sliding_window': 4096,
    'max_window_layers': 28,
    'layer_types': None,
  },
  always={'init_projections': 'same', 'attention_bias': True},
  fixed={},
  layer_types=_qwen_layer_types,
  vary=lambda cfg, hf: ZERO_OUTPUT_BIAS,
  rules={},
)
QWEN3 = QWEN2._replace(
  architecture='Qwen3ForCausalLM',
  keys=without(LLAMA.keys, 'mlp_bias'),
  defaults=QWEN2.defaults | {'head_dim': 128},
  always={'init_projections': 'same', 'qk_norm': True},
  vary=LLAMA.vary,
)


def _read_phi3(hf, fields):
  if fields.get('rope_scaling') == 'yarn':
    raise unsupported("rope_type='yarn'", 'Phi-3 reads it as longrope, which changes with the length')
  return {}


def _read_seed_oss(hf, fields):
  if hf['attention_out_bias'] and not fields['attention_bias']:
    raise unsupported('attention_out_bias=True', 'the output has a bias, queries, keys and values have none')
  return {}


PHI3 = LLAMA._replace(
  architecture='Phi3ForCausalLM',
  tensors=TENSORS
  | {
    'blocks/attention/wq_DHK': Tensor(f'{ATTENTION}.qkv_proj.weight', 'HK+GK+GK D', 0),
    'blocks/attention/wk_DGK': Tensor(f'{ATTENTION}.qkv_proj.weight', 'HK+GK+GK D', 1),
    'blocks/attention/wv_DGK': Tensor(f'{ATTENTION}.qkv_proj.weight', 'HK+GK+GK D', 2),
    'blocks/mlp/gate_DF': Tensor(f'{MLP}.gate_up_proj.weight', 'F+F D', 0),
    'blocks/mlp/up_DF': Tensor(f'{MLP}.gate_up_proj.weight', 'F+F D', 1),
  },
  keys=without(LLAMA.keys, 'attention_bias', 'mlp_bias'),
  defaults=LLAMA.defaults
  | {
    'max_position_embeddings': 4096,
    'rms_norm_eps': 1e-5,
    'sliding_window': None,
    'partial_rotary_factor': 1.0,
  },
  fixed={},
  read=_read_phi3,
  rules={'rope_scaling': lambda cfg: cfg.rope_scaling != 'yarn'},
  write=lambda cfg: {'original_max_position_embeddings': cfg.rope_original_context or cfg.context},
)
ARCEE = LLAMA._replace(
  architecture='ArceeForCausalLM',
  defaults=LLAMA.defaults | {'hidden_act': 'relu2', 'max_position_embeddings': 4096, 'rms_norm_eps': 1e-5},
  activations=PLAIN,
  fixed={},
)
SEED_OSS = LLAMA._replace(
  architecture='SeedOssForCausalLM',
  defaults=LLAMA.defaults
  | {
    'head_dim': 128,
    'num_key_value_heads': 8,
    'max_position_embeddings': 524288,
    'attention_bias': True,
    'attention_out_bias': False,
  },
  fixed={},
  read=_read_seed_oss,
  write=lambda cfg: {'attention_out_bias': cfg.attention_bias},
  vary=lambda cfg, hf: {} if hf['attention_out_bias'] else ZERO_OUTPUT_BIAS,
  rules={},
)
HELIUM = LLAMA._replace(
  architecture='HeliumForCausalLM',
  tensors=TENSORS | INTERLEAVED,
  defaults=LLAMA.defaults
  | {
    'num_key_value_heads': 20,
    'head_dim': 128,
    'max_position_embeddings': 4096,
    'rms_norm_eps': 1e-8,
    'rope_theta': 100000.0,
  },
  fixed={},
  vary=lambda cfg, hf: ZERO_OUTPUT_BIAS,
  rules={'head_dim': lambda cfg: cfg.K * cfg.heads == cfg.width},
)
ERNIE = LLAMA._replace(
  architecture='Ernie4_5ForCausalLM',
  tensors=TENSORS | INTERLEAVED,
  keys=without(LLAMA.keys, 'attention_bias') | {'mlp_bias': 'use_bias'},
  defaults=LLAMA.defaults
  | {
    'num_key_value_heads': 2,
    'head_dim': 128,
    'max_position_embeddings': 131072,
    'rms_norm_eps': 1e-5,
    'rope_theta': 500000.0,
    'tie_word_embeddings': True,
    'use_bias': False,
  },
  fixed={},
  read=lambda hf, fields: {'attention_bias': fields['mlp_bias']},
  rules={},
)
