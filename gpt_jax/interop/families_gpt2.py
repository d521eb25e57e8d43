"""GPT-2 and its kin: LayerNorm, a plain MLP, biases; and StableLM, whose MLP is gated.

Source: transformers 5.23, `models/{gpt2,gpt_bigcode,gpt_neo,gpt_neox,starcoder2,stablelm}/`.
"""

from gpt_jax.interop import families_llama as llama
from gpt_jax.interop.family import Family, default_query_scale, shortest_period
from gpt_jax.interop.rope import unsupported
from gpt_jax.interop.tensors import Tensor, matrix, norm

PACKED, LAYER, ROOT = 'transformer.h.{l}.attn.c_attn', 'transformer.h.{l}', 'blocks/attention'
QKV = 'HK+GK+GK'
TENSORS = {
  'embed_VD': Tensor('transformer.wte.weight', 'V D'),
  'position_TD': Tensor('transformer.wpe.weight', 'T D'),
  f'{ROOT}/wq_DHK': Tensor(f'{PACKED}.weight', f'D {QKV}', 0),
  f'{ROOT}/wk_DGK': Tensor(f'{PACKED}.weight', f'D {QKV}', 1),
  f'{ROOT}/wv_DGK': Tensor(f'{PACKED}.weight', f'D {QKV}', 2),
  f'{ROOT}/q_bias_HK': Tensor(f'{PACKED}.bias', QKV, 0),
  f'{ROOT}/k_bias_GK': Tensor(f'{PACKED}.bias', QKV, 1),
  f'{ROOT}/v_bias_GK': Tensor(f'{PACKED}.bias', QKV, 2),
  f'{ROOT}/wo_HKD': Tensor(f'{LAYER}.attn.c_proj.weight', 'HK D'),
  f'{ROOT}/o_bias_D': Tensor(f'{LAYER}.attn.c_proj.bias', 'D'),
  'blocks/mlp/up_DF': Tensor(f'{LAYER}.mlp.c_fc.weight', 'D F'),
  'blocks/mlp/up_bias_F': Tensor(f'{LAYER}.mlp.c_fc.bias', 'F'),
  'blocks/mlp/down_FD': Tensor(f'{LAYER}.mlp.c_proj.weight', 'F D'),
  'blocks/mlp/down_bias_D': Tensor(f'{LAYER}.mlp.c_proj.bias', 'D'),
  **norm('blocks/attention_norm', f'{LAYER}.ln_1', bias=True),
  **norm('blocks/mlp_norm', f'{LAYER}.ln_2', bias=True),
  **norm('final_norm', 'transformer.ln_f', bias=True),
  'head_VD': Tensor('lm_head.weight', 'V D'),
}


def _packed(name, layout, bias):
  """Rows of queries, keys and values in one [out, in] tensor."""
  paths = (('wq_DHK', 'q_bias_HK'), ('wk_DGK', 'k_bias_GK'), ('wv_DGK', 'v_bias_GK'))
  rows = {}
  for part, (weight, its_bias) in enumerate(paths):
    its_layout = layout if part == 0 else layout.replace('HC', 'GC')
    rows |= matrix(f'{ROOT}/{weight}', name, its_layout, f'{ROOT}/{its_bias}' if bias else '', part)
  return rows


def _read_gpt2(hf, fields):
  return {} if hf['scale_attn_weights'] else default_query_scale(fields, 1.0)


def _write_gpt2(cfg):
  return {
    'n_ctx': cfg.context,  # by which llama.cpp's converter knows the context
    'scale_attn_weights': cfg.attention_scale == cfg.K**-0.5,
    'resid_pdrop': cfg.dropout,
    'embd_pdrop': cfg.dropout,
    'attn_pdrop': cfg.attention_dropout,
  }


def _vary_gpt2(cfg, hf):
  """Scores that shrink from layer to layer: smaller queries."""
  if not hf['scale_attn_by_inverse_layer_idx']:
    return {}
  factors = tuple(1 / (l + 1) for l in range(cfg.layers))
  return {path: TENSORS[path]._replace(factors=factors) for path in (f'{ROOT}/wq_DHK', f'{ROOT}/q_bias_HK')}


# As PLAIN, but the newer spelling of GELU's approximation is written.
NEW_PLAIN = dict.fromkeys(llama.TANH_GELUS, 'gelu') | llama.PLAIN
BIASED = {'norm': 'layernorm', 'attention_bias': True, 'mlp_bias': True}
GPT2 = Family(
  architecture='GPT2LMHeadModel',
  tensors=TENSORS,
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
    'scale_attn_weights': True,
    'scale_attn_by_inverse_layer_idx': False,
  },
  activations=llama.PLAIN,
  always=BIASED | {'positions': 'learned'},
  fixed={'add_cross_attention': (False, 'the layers would attend to an encoder')},
  read=_read_gpt2,
  write=_write_gpt2,
  vary=_vary_gpt2,
  prefix='transformer.',
  buffers=r'.*\.attn\.(masked_)?bias',
)


def _vary_bigcode(cfg, hf):
  return {} if hf['multi_query'] else _packed(PACKED, 'HCK D', bias=True)


GPT_BIGCODE = GPT2._replace(
  architecture='GPTBigCodeForCausalLM',
  tensors=TENSORS
  | _packed(PACKED, f'{QKV} D', bias=True)
  | matrix(f'{ROOT}/wo_HKD', f'{LAYER}.attn.c_proj', 'D HK', f'{ROOT}/o_bias_D')
  | matrix('blocks/mlp/up_DF', f'{LAYER}.mlp.c_fc', 'F D', 'blocks/mlp/up_bias_F')
  | matrix('blocks/mlp/down_FD', f'{LAYER}.mlp.c_proj', 'D F', 'blocks/mlp/down_bias_D'),
  defaults=GPT2.defaults | {'activation_function': 'gelu_pytorch_tanh', 'multi_query': True},
  activations=NEW_PLAIN,
  read=lambda hf, fields: _read_gpt2(hf, fields) | ({'kv_heads': 1} if hf['multi_query'] else {}),
  write=lambda cfg: _write_gpt2(cfg) | {'multi_query': cfg.G == 1},
  vary=_vary_bigcode,
)


def _read_gpt_neo(hf, fields):
  kinds = [kind for group, times in hf['attention_types'] for _ in range(times) for kind in group]
  if len(kinds) != fields['layers'] or set(kinds) - {'global', 'local'}:
    raise unsupported(f'attention_types={hf["attention_types"]}', 'every layer must be global or local')
  pattern = shortest_period(''.join('S' if kind == 'local' else 'L' for kind in kinds))
  window = {'window': hf['window_size'], 'layer_pattern': pattern} if 'S' in pattern else {}
  return default_query_scale(fields, 1.0) | window


def _write_gpt_neo(cfg):
  kinds = ['local' if window else 'global' for window in cfg.windows()]
  return {'attention_types': [[kinds, 1]], 'window_size': cfg.window or 256}


NEO_ATTENTION = f'{LAYER}.attn.attention'
GPT_NEO = GPT2._replace(
  architecture='GPTNeoForCausalLM',
  tensors=GPT_BIGCODE.tensors
  | matrix(f'{ROOT}/wq_DHK', f'{NEO_ATTENTION}.q_proj', 'HK D')
  | matrix(f'{ROOT}/wk_DGK', f'{NEO_ATTENTION}.k_proj', 'GK D')
  | matrix(f'{ROOT}/wv_DGK', f'{NEO_ATTENTION}.v_proj', 'GK D')
  | matrix(f'{ROOT}/wo_HKD', f'{NEO_ATTENTION}.out_proj', 'D HK', f'{ROOT}/o_bias_D')
  | {f'{ROOT}/{name}': Tensor('') for name in ('q_bias_HK', 'k_bias_GK', 'v_bias_GK')},
  keys=GPT2.keys
  | {
    'layers': 'num_layers',
    'width': 'hidden_size',
    'heads': 'num_heads',
    'hidden': 'intermediate_size',
    'context': 'max_position_embeddings',
  },
  defaults=GPT2.defaults
  | {
    'max_position_embeddings': 2048,
    'intermediate_size': None,
    'attention_types': [[['global', 'local'], 12]],
    'window_size': 256,
  },
  fixed={},
  read=_read_gpt_neo,
  write=_write_gpt_neo,
  vary=lambda cfg, hf: {},
  buffers=r'.*\.attn\.attention\.(masked_)?bias',
)


# ------------------------------------------------------------- with RoPE


def _layer_norms(attention, mlp, final):
  return (
    norm('blocks/attention_norm', attention, bias=True)
    | norm('blocks/mlp_norm', mlp, bias=True)
    | norm('final_norm', final, bias=True)
  )


def _read_parallel(hf, fields):
  """Blocks whose branches stand abreast, where the config says so."""
  return {'norm_position': 'parallel'} if hf['use_parallel_residual'] else {}


def _write_parallel(cfg):
  return {'use_parallel_residual': cfg.norm_position == 'parallel'}


def _write_gpt_neox(cfg):
  about_rope = {'rotary_pct': cfg.rope_fraction, 'rotary_emb_base': cfg.rope_theta}
  return _write_parallel(cfg) | about_rope | {'hidden_dropout': cfg.dropout}


LLAMA_NORMS = _layer_norms(
  f'{llama.LAYER}.input_layernorm', f'{llama.LAYER}.post_attention_layernorm', 'model.norm'
)
NEOX = 'gpt_neox.layers.{l}'
GPT_NEOX = llama.LLAMA._replace(
  architecture='GPTNeoXForCausalLM',
  tensors={
    'embed_VD': Tensor('gpt_neox.embed_in.weight', 'V D'),
    **_packed(f'{NEOX}.attention.query_key_value', 'HCK D', bias=True),
    **matrix(f'{ROOT}/wo_HKD', f'{NEOX}.attention.dense', 'D HK', f'{ROOT}/o_bias_D'),
    **matrix('blocks/mlp/up_DF', f'{NEOX}.mlp.dense_h_to_4h', 'F D', 'blocks/mlp/up_bias_F'),
    **matrix('blocks/mlp/down_FD', f'{NEOX}.mlp.dense_4h_to_h', 'D F', 'blocks/mlp/down_bias_D'),
    **_layer_norms(
      f'{NEOX}.input_layernorm', f'{NEOX}.post_attention_layernorm', 'gpt_neox.final_layer_norm'
    ),
    'head_VD': Tensor('embed_out.weight', 'V D'),
  },
  keys=llama.without(llama.LLAMA.keys, 'kv_heads', 'head_dim', 'mlp_bias') | {'norm_eps': 'layer_norm_eps'},
  defaults=llama.LLAMA.defaults
  | {
    'layer_norm_eps': 1e-5,
    'hidden_act': 'gelu',
    'attention_bias': True,
    'use_parallel_residual': True,
    'partial_rotary_factor': 0.25,
  },
  activations=llama.PLAIN,
  always={'norm': 'layernorm', 'mlp_bias': True},
  fixed={},
  read=_read_parallel,
  write=_write_gpt_neox,
  prefix='gpt_neox.',
  buffers=r'.*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)',
  aliases={r'lm_head\.weight': 'embed_out.weight'},
  renamed={'rotary_pct': 'partial_rotary_factor', 'rotary_emb_base': 'rope_theta'},
)


STARCODER2 = llama.LLAMA._replace(
  architecture='Starcoder2ForCausalLM',
  tensors=llama.TENSORS
  | matrix('blocks/mlp/up_DF', f'{llama.MLP}.c_fc', 'F D', 'blocks/mlp/up_bias_F')
  | matrix('blocks/mlp/down_FD', f'{llama.MLP}.c_proj', 'D F', 'blocks/mlp/down_bias_D')
  | LLAMA_NORMS,
  keys=llama.without(llama.LLAMA.keys, 'attention_bias')
  | {'norm_eps': 'norm_epsilon', 'mlp_bias': 'use_bias'},
  defaults=llama.LLAMA.defaults
  | {
    'num_key_value_heads': 2,
    'hidden_act': 'gelu_pytorch_tanh',
    'max_position_embeddings': 4096,
    'norm_epsilon': 1e-5,
    'use_bias': True,
    'tie_word_embeddings': True,
    'initializer_range': 0.018042,
    'sliding_window': None,
  },
  activations=NEW_PLAIN,
  always={'norm': 'layernorm'},
  fixed={},
  read=lambda hf, fields: {'attention_bias': fields['mlp_bias']},
  rules={},
)


def _vary_stablelm(cfg, hf):
  """Parallel blocks have one norm for both branches."""
  norms = norm('blocks/mlp_norm', f'{llama.LAYER}.input_layernorm', bias=True)
  return llama.ZERO_OUTPUT_BIAS | (norms if cfg.norm_position == 'parallel' else {})


STABLELM = llama.LLAMA._replace(
  architecture='StableLmForCausalLM',
  tensors=llama.TENSORS | LLAMA_NORMS,
  keys=llama.without(llama.LLAMA.keys, 'head_dim', 'mlp_bias')
  | {'norm_eps': 'layer_norm_eps', 'attention_bias': 'use_qkv_bias'},
  defaults=llama.LLAMA.defaults
  | {
    'num_key_value_heads': 32,
    'max_position_embeddings': 4096,
    'layer_norm_eps': 1e-5,
    'use_qkv_bias': False,
    'use_parallel_residual': False,
    'partial_rotary_factor': 0.25,
  },
  always={'norm': 'layernorm'},
  fixed={'qk_layernorm': (False, 'queries and keys would have norms of each head on its own')},
  read=_read_parallel,
  write=_write_parallel,
  vary=_vary_stablelm,
  rules={},
)
