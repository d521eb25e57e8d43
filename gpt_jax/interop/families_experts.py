"""Mixtures of experts among the kin of Llama; a file has one tensor for each expert.

Source: transformers 5.23, `models/{mixtral,qwen3_moe,olmoe}/`, `conversion_mapping.py`.
"""

from gpt_jax.interop.families_llama import LAYER, LLAMA, MISTRAL, MLP, NORM_OVER_ALL, TENSORS, without
from gpt_jax.interop.tensors import Tensor

MIXTRAL_EXPERTS = f'{LAYER}.block_sparse_moe'
EXPERTS = {
  'blocks/mlp/router_DE': Tensor(f'{MLP}.gate.weight', 'E D'),
  'blocks/mlp/gate_EDF': Tensor(f'{MLP}.experts.{{e}}.gate_proj.weight', 'F D'),
  'blocks/mlp/up_EDF': Tensor(f'{MLP}.experts.{{e}}.up_proj.weight', 'F D'),
  'blocks/mlp/down_EFD': Tensor(f'{MLP}.experts.{{e}}.down_proj.weight', 'D F'),
}
COUNTS = {'experts_per_token': 'num_experts_per_tok', 'router_renormalize': 'norm_topk_prob'}
MIXTRAL = MISTRAL._replace(
  architecture='MixtralForCausalLM',
  tensors=TENSORS
  | {
    'blocks/mlp/router_DE': Tensor(f'{MIXTRAL_EXPERTS}.gate.weight', 'E D'),
    'blocks/mlp/gate_EDF': Tensor(f'{MIXTRAL_EXPERTS}.experts.{{e}}.w1.weight', 'F D'),
    'blocks/mlp/down_EFD': Tensor(f'{MIXTRAL_EXPERTS}.experts.{{e}}.w2.weight', 'D F'),
    'blocks/mlp/up_EDF': Tensor(f'{MIXTRAL_EXPERTS}.experts.{{e}}.w3.weight', 'F D'),
  },
  keys=MISTRAL.keys | {'experts': 'num_local_experts', 'experts_per_token': 'num_experts_per_tok'},
  defaults=MISTRAL.defaults
  | {
    'num_local_experts': 8,
    'num_experts_per_tok': 2,
    'sliding_window': None,
    'rms_norm_eps': 1e-5,
    'rope_theta': 1000000.0,
  },
)
QWEN3_MOE = LLAMA._replace(
  architecture='Qwen3MoeForCausalLM',
  tensors=TENSORS | EXPERTS,
  keys=without(LLAMA.keys, 'mlp_bias')
  | COUNTS
  | {'hidden': 'moe_intermediate_size', 'experts': 'num_experts'},
  defaults=LLAMA.defaults
  | {
    'num_key_value_heads': 4,
    'max_position_embeddings': 32768,
    'use_sliding_window': False,
    'sliding_window': 4096,
    'moe_intermediate_size': 768,
    'num_experts': 128,
    'num_experts_per_tok': 8,
    'norm_topk_prob': False,
    'decoder_sparse_step': 1,
    'mlp_only_layers': None,
  },
  always=LLAMA.always | {'qk_norm': True},
  fixed={
    'decoder_sparse_step': (1, 'some layers would have experts and others not'),
    'mlp_only_layers': (None, 'some layers would have experts and others not'),
  },
  rules={},
  renamed={'num_local_experts': 'num_experts'},
)
OLMOE = LLAMA._replace(
  architecture='OlmoeForCausalLM',
  tensors=TENSORS | NORM_OVER_ALL | EXPERTS,
  keys=without(LLAMA.keys, 'mlp_bias', 'head_dim') | COUNTS | {'experts': 'num_experts'},
  defaults=LLAMA.defaults
  | {
    'max_position_embeddings': 4096,
    'rms_norm_eps': 1e-5,
    'num_experts': 64,
    'num_experts_per_tok': 8,
    'norm_topk_prob': False,
  },
  always=LLAMA.always | {'qk_norm': True, 'qk_norm_over': 'all'},
  fixed={'clip_qkv': (None, 'queries, keys and values would be clipped')},
  rules={},
)
