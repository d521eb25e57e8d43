"""Presets, derived sizes, costs and validation of ModelConfig."""

import dataclasses

import numpy as np
import pytest

from gpt_jax.model import costs, gpt, param_trees, presets, validate
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.presets import GPT2_SIZES, LLAMA_SIZES, gpt2, llama, modern

# ------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize(
  ('size', 'parameters'),
  [('small', 124439808), ('medium', 354823168), ('large', 774030080), ('xl', 1557611200)],
)
def test_gpt2_has_the_published_parameters(size, parameters):
  assert costs.count_params(gpt2(size)) == parameters


def test_gpt2_is_gpt2():
  cfg = gpt2()
  assert (cfg.K, cfg.F, cfg.G, cfg.V, cfg.context) == (64, 3072, 12, 50304, 1024)
  assert cfg.projection_std == pytest.approx(0.02 / 24**0.5)
  names = {path for path, _ in param_trees.named_params(gpt.GPT(cfg))}
  assert 'head_VD' not in names
  assert {'position_TD', 'blocks/attention/q_bias_HK', 'blocks/mlp/down_bias_D'} <= names


@pytest.mark.parametrize(
  ('size', 'parameters'), [('7b', 6738415616), ('8b', None), ('1b', None), ('small', None)]
)
def test_llama_has_the_parameters_of_its_sizes(size, parameters):
  """Llama 1 and 2's 7B with 32000 ids: 6738415616, as published."""
  layers, width, heads, kv_heads, hidden = LLAMA_SIZES[size]
  per_layer = 2 * width * width + 2 * width * (width // heads * kv_heads) + 3 * width * hidden
  expected = layers * (per_layer + 2 * width) + width + 2 * 32000 * width
  assert costs.count_params(llama(size)) == expected == (parameters or expected)


def test_modern_starts_as_the_identity_and_caps_its_logits():
  cfg = modern('medium', window=128)
  assert (cfg.layers, cfg.width, cfg.window) == (24, 1024, 128)
  assert cfg.projection_std == 0
  assert cfg.logit_softcap == 15
  assert cfg.qk_norm


@pytest.mark.parametrize('name', presets.PRESETS)
def test_presets_build_in_all_sizes_and_take_overrides(name):
  sizes = LLAMA_SIZES if name == 'llama' else GPT2_SIZES
  for size in sizes:
    cfg = presets.PRESETS[name](size, context=64)
    assert cfg.context == 64
    assert costs.count_params(cfg) > 1e8 * 0.9
  with pytest.raises(ValueError, match='size=huge is not a size of this preset\nfix: use one of small'):
    presets.PRESETS[name]('huge')


# ------------------------------------------------------------------------------------ derived sizes


def test_derived_sizes(tiny):
  assert ModelConfig(width=128, mlp='swiglu').F == 384  # 8/3 of 128 = 341.3, rounded up to 64
  assert ModelConfig(width=768, mlp='geglu').F == 2048
  assert ModelConfig(width=128, mlp='relu2').F == 512
  assert ModelConfig(width=128, hidden=7).F == 7
  assert ModelConfig(width=128, heads=3, head_dim=10).K == 10
  assert ModelConfig(vocab=129).V == 256
  assert ModelConfig(vocab=128).V == 128
  assert ModelConfig(vocab=129, vocab_multiple=1).V == 129
  assert ModelConfig(heads=4).G == 4
  assert ModelConfig(layers=5, window=7, layer_pattern='SSL').windows() == [7, 7, 0, 7, 7]
  assert ModelConfig(layers=2, window=7).windows() == [7, 7]
  assert ModelConfig(layers=2).windows() == [0, 0]


def test_auto_is_decided_by_the_backend():
  chosen = {}
  for backend in ('cpu', 'gpu', 'tpu'):
    cfg = ModelConfig().resolved(backend)
    chosen[backend] = (cfg.unroll, cfg.remat, cfg.dtype, cfg.kernel)
  assert chosen == {
    'cpu': ('off', 'dots_no_batch', 'float32', 'auto'),
    'gpu': ('on', 'mlp_activations', 'bfloat16', 'auto'),
    'tpu': ('off', 'none', 'bfloat16', 'auto'),
  }
  explicit = ModelConfig(unroll='on', remat='full', dtype='bfloat16')
  assert explicit.resolved('cpu') == explicit


# ------------------------------------------------------------------------------------------- costs


def test_count_params_equals_the_sum_by_hand(tiny):
  cfg = tiny(experts=4, qk_norm=True, tied_head=False)
  attention_and_norms = 4 * 16 * 16 + 2 * 4 + 2 * 16
  experts = 16 * 4 + 4 * 3 * 16 * 24
  assert costs.count_params(cfg) == 2 * (attention_and_norms + experts) + 16 + 2 * 50 * 16


def test_flops_of_gpt2_are_the_formula():
  """6 N + 12 L H K T, N without the position table (nanoGPT's estimate_mfu, PaLM appendix B)."""
  flops = costs.flops_per_token(gpt2(), 1024)
  matmuls = 6 * (124439808 - 1024 * 768)
  assert flops['full'] == matmuls + 12 * 12 * 768 * 1024
  assert flops['causal'] == matmuls + 12 * 12 * 768 * (1024 + 1) / 2


def test_flops_count_windows_experts_and_untied_heads(tiny):
  cfg = tiny(window=3, layer_pattern='SL', experts=4, experts_per_token=2, tied_head=False)
  per_layer = 4 * 16 * 16 + 2 * 16 + 16 * 4 + 2 * 3 * 16 * 24  # two of four experts, the router
  matmuls = 6 * (2 * per_layer + 16 + 50 * 16)  # the head, and no embedding
  flops = costs.flops_per_token(cfg, 5)
  keys = np.mean([1, 2, 3, 3, 3]) + np.mean([1, 2, 3, 4, 5])
  assert flops['full'] == matmuls + 12 * 16 * 5 * 2
  assert flops['causal'] == pytest.approx(matmuls + 12 * 16 * keys)


def test_flops_of_experts_with_a_capacity_are_those_of_experts_without(tiny):
  """The dense counterpart that is counted keeps the capacity factor, which has no effect on it."""
  flops = [costs.flops_per_token(tiny(experts=4, capacity_factor=factor), 5) for factor in (0.0, 1.25)]
  assert flops[0] == flops[1]


# -------------------------------------------------------------------------------------- validation

INVALID = [
  (dict(context=1), 'model.context=1 is too small', 'use at least 2'),
  (dict(positions='polar'), "model.positions='polar' is not known", 'use one of sinusoidal, learned'),
  (dict(rope_scaling='x'), "model.rope_scaling='x' is not known", 'use one of none, linear'),
  (dict(norm='batch'), "model.norm='batch' is not known", 'use one of layernorm, rmsnorm'),
  (dict(norm_position='mid'), "model.norm_position='mid'", 'use one of pre, post, sandwich'),
  (dict(mlp='sine'), "model.mlp='sine' is not known", 'use one of gelu, gelu_exact, relu, relu2'),
  (dict(init_projections='x'), "model.init_projections='x'", 'use one of scaled, same, zero'),
  (dict(kernel='flash'), "model.kernel='flash'", 'use one of auto, xla, blocks, chunks, cudnn, splash'),
  (dict(unroll='yes'), "model.unroll='yes'", 'use one of auto, on, off'),
  (dict(remat='some'), "model.remat='some'", 'use one of auto, none, mlp_activations, full'),
  (dict(dtype='int8'), "model.dtype='int8'", 'use one of auto, float32, bfloat16'),
  (dict(param_dtype='float64'), "model.param_dtype='float64'", 'use one of float32, bfloat16, float16'),
  (dict(layers=0), 'model.layers=0 is too small', 'use at least 1'),
  (dict(width=0), 'model.width=0 is too small', 'use at least 1'),
  (dict(heads=0), 'model.heads=0 is too small', 'use at least 1'),
  (dict(context=0), 'model.context=0 is too small', 'use at least 2'),
  (dict(vocab_multiple=0), 'model.vocab_multiple=0 is too small', 'use at least 1'),
  (dict(kv_heads=-1), 'model.kv_heads=-1 is too small', 'use at least 0'),
  (dict(window=-1), 'model.window=-1 is too small', 'use at least 0'),
  (dict(init_std=float('nan')), 'model.init_std=nan is too small', 'use at least 0'),
  (dict(rope_theta=0.0), 'model.rope_theta=0.0 is too small', 'use at least 1e-12'),
  (dict(norm_eps=float('inf')), 'model.norm_eps=inf', 'use at least 1e-12'),
  (
    dict(width=8, heads=4, rope_scaling='ntk', rope_factor=2.0),
    'model.rope_scaling=ntk needs a head width of 4 or more',
    'choose fewer model.heads',
  ),
  (
    dict(rope_factor=2.0),
    'model.rope_factor=2.0 has no effect with model.rope_scaling=none',
    'choose a rope_scaling, or rope_factor=1',
  ),
  (
    dict(capacity_factor=1.0),
    'model.capacity_factor=1.0 has no effect with model.experts=0',
    'set model.experts, or capacity_factor=0',
  ),
  (dict(dropout=1.0), 'model.dropout=1.0 is not a probability', 'use 0 <= p < 1'),
  (dict(attention_dropout=-0.1), 'model.attention_dropout=-0.1', 'use 0 <= p < 1'),
  (
    dict(width=12, heads=5),
    'model.heads=5 does not divide model.width=12',
    'use one of 1, 2, 3, 4, 6, 12, or set model.head_dim',
  ),
  (dict(heads=4, kv_heads=3), 'model.kv_heads=3 does not divide model.heads=4', 'use one of 1, 2, 4'),
  (
    dict(width=12, heads=4),
    'model.positions=rope needs an even head width, and it is 3',
    'choose model.heads so that width / heads is even, or other positions',
  ),
  (
    dict(positions='alibi', rope_scaling='ntk'),
    'model.rope_scaling=ntk has no effect with model.positions=alibi',
    'set model.positions=rope, or model.rope_scaling=none',
  ),
  (
    dict(rope_scaling='yarn', rope_factor=2.0),
    'model.rope_scaling=yarn needs the context length of the original training',
    'set model.rope_original_context',
  ),
  (
    dict(layer_pattern='SL'),
    "model.layer_pattern='SL' with model.window=0 is not a pattern",
    'use letters S (window), L (all keys) and N (all keys, no RoPE), and set model.window > 0 for S',
  ),
  (dict(rope_fraction=0.01), 'model.rope_fraction=0.01 rotates no pair of a head', 'use 0.0625 to 1'),
  (
    dict(rope_local_theta=1e4, positions='none'),
    'model.positions=none has no RoPE',
    'set model.positions=rope',
  ),
  (
    dict(layer_pattern='LN', positions='learned'),
    'model.positions=learned has no RoPE',
    'set model.positions=rope',
  ),
  (
    dict(layer_pattern='SX', window=4),
    "model.layer_pattern='SX' with model.window=4 is not a pattern",
    'use letters S (window), L (all keys) and N (all keys, no RoPE), and set model.window > 0 for S',
  ),
  (
    dict(experts=4, experts_per_token=5),
    'model.experts_per_token=5 is not possible with model.experts',
    'use 1 to 4',
  ),
  (dict(experts=4, experts_per_token=0), 'model.experts_per_token=0', 'use 1 to 4'),
  (dict(experts=4, mlp_bias=True), 'model.mlp_bias=True is not supported', 'set model.mlp_bias=False'),
]


@pytest.mark.parametrize(('wrong', 'cause', 'fix'), INVALID, ids=lambda x: str(x)[:40])
def test_validation_errors_name_key_value_and_fix(wrong, cause, fix):
  with pytest.raises(ValueError, match='model.') as error:
    ModelConfig(**wrong).check_effective()
  first, second = str(error.value).split('\n')
  assert first.startswith(cause)
  assert second.startswith(f'fix: {fix}')


def test_choices_are_the_rows_of_the_tables():
  for key, rows in validate.CHOICES.items():
    for row in rows:
      allowed = dict(rope_original_context=64) if key == 'rope_scaling' else {}
      assert getattr(ModelConfig(**{key: row}, **allowed), key) == row


def test_configs_are_frozen_and_hashable():
  cfg = ModelConfig()
  with pytest.raises(dataclasses.FrozenInstanceError):
    cfg.width = 3
  assert hash(cfg) == hash(ModelConfig())
