"""Every family against transformers: logits, greedy text, exported weights, and both round trips."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt_jax.interop import families, huggingface
from gpt_jax.model import layers
from gpt_jax.model.config import ModelConfig
from gpt_jax.step import params_of
from tests import models
from tests.interop.test_interop import assert_same_params, fails, hf, our_logits, their_logits, write

__all__ = ['hf']  # the fixture
VOCAB, ROWS, PROMPT, LENGTH = 97, 2, 8, 24
SHAPE = dict(hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=6)
SHAPE |= dict(num_key_value_heads=2, max_position_embeddings=32)
ODD = SHAPE | dict(hidden_size=30, intermediate_size=37, num_attention_heads=5, num_key_value_heads=1)
GPT2 = dict(n_embd=20, n_layer=3, n_head=5, n_positions=32, n_inner=28)
ROPE3 = dict(rope_type='llama3', rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
ROPE3 |= dict(original_max_position_embeddings=16)
YARN = dict(
  rope_type='yarn', rope_theta=100.0, factor=3.0, beta_fast=4.0, original_max_position_embeddings=64
)
DYNAMIC = dict(rope_type='dynamic', rope_theta=100.0, factor=4.0)
PARTIAL = dict(rope_type='default', rope_theta=100.0, partial_rotary_factor=0.5)
NEO = dict(hidden_size=20, num_layers=3, num_heads=5, intermediate_size=28, max_position_embeddings=32)
NEOX = dict(SHAPE, hidden_size=48, num_key_value_heads=6, rope_parameters=PARTIAL)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2)
LOCAL = {'full_attention': dict(rope_type='linear', factor=2.0, rope_theta=900.0)}
LOCAL |= {'sliding_attention': dict(rope_type='default', rope_theta=50.0)}
WINDOWS = dict(sliding_window=5, layer_types=['sliding_attention', 'full_attention', 'sliding_attention'])
# model_type -> {variant: fields of its config}.
VARIANTS = {
  'gpt2': {
    'plain': GPT2,
    'relu': GPT2 | dict(activation_function='relu', n_inner=None),
    'unscaled': GPT2
    | dict(scale_attn_weights=False, reorder_and_upcast_attn=True, tie_word_embeddings=False),
    'by_layer': GPT2 | dict(scale_attn_by_inverse_layer_idx=True, activation_function='gelu'),
  },
  'gpt_bigcode': {'multi_query': GPT2, 'multi_head': GPT2 | dict(multi_query=False)},
  'gpt_neo': {
    'windows': NEO | dict(window_size=5, attention_types=[[['global', 'local', 'local'], 1]]),
    'full': NEO | dict(attention_types=[[['global'], 3]], activation_function='relu'),
  },
  'qwen2': {
    'plain': SHAPE,
    'windows': SHAPE | dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    'all_windows': ODD | dict(use_sliding_window=True, sliding_window=3, max_window_layers=0),
    'beyond': ODD | dict(use_sliding_window=True, sliding_window=3, max_window_layers=28),
  },
  'llama': {
    'plain': SHAPE,
    'llama3': SHAPE
    | dict(head_dim=8, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_parameters=ROPE3),
    'yarn': SHAPE | dict(head_dim=16, rope_parameters=YARN),
    'mscale': SHAPE | dict(head_dim=16, rope_parameters=YARN | dict(mscale=2.0, mscale_all_dim=0.5)),
    'linear': SHAPE | dict(hidden_act='gelu_pytorch_tanh', rope_parameters=LOCAL['full_attention']),
    'dynamic': SHAPE | dict(head_dim=8, rope_parameters=DYNAMIC),
  },
  'mistral': {
    'windows': SHAPE | dict(sliding_window=5, head_dim=6),
    'full': SHAPE | dict(sliding_window=None),
  },
  'ministral': {'windows': SHAPE | WINDOWS | dict(head_dim=6)},
  'qwen3': {
    'windows': SHAPE
    | dict(hidden_size=20, head_dim=10, use_sliding_window=True, sliding_window=4, max_window_layers=1)
  },
  'phi3': {
    'partial': SHAPE | dict(hidden_size=48, rope_parameters=PARTIAL),
    'windows': SHAPE | dict(sliding_window=5, num_key_value_heads=6),
  },
  'arcee': {'plain': SHAPE | dict(head_dim=6, mlp_bias=True)},
  'smollm3': {
    'plain': SHAPE | dict(no_rope_layers=[1, 0, 1]),
    'windows': SHAPE | WINDOWS | dict(no_rope_layers=[1, 0, 1], use_sliding_window=True),
  },
  'olmo': {'plain': SHAPE},
  'olmo2': {'plain': SHAPE, 'bias': SHAPE | dict(attention_bias=True)},
  'olmo3': {'plain': SHAPE | WINDOWS, 'scaled': SHAPE | WINDOWS | dict(rope_parameters=LOCAL)},
  'granite': {
    'factors': SHAPE
    | dict(embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.3, logits_scaling=8.0)
  },
  'cohere': {'plain': SHAPE | dict(attention_bias=True)},
  'cohere2': {'windows': SHAPE | WINDOWS},
  'seed_oss': {
    'plain': SHAPE | dict(head_dim=6),
    'output_bias': SHAPE | dict(head_dim=6, attention_out_bias=True),
  },
  'helium': {'plain': SHAPE | dict(head_dim=4, attention_bias=True)},
  'ernie4_5': {'plain': SHAPE | dict(head_dim=6), 'bias': SHAPE | dict(head_dim=6, use_bias=True)},
  'gemma': {'plain': SHAPE | dict(head_dim=6), 'legacy': SHAPE | dict(head_dim=6, hidden_act='gelu')},
  'gemma2': {
    'plain': SHAPE | dict(head_dim=6, query_pre_attn_scalar=9, sliding_window=5, attn_logit_softcapping=2.0)
  },
  'gemma3_text': {
    'plain': SHAPE | dict(head_dim=6, sliding_window=5, query_pre_attn_scalar=6),
    'scaled': SHAPE | dict(WINDOWS, head_dim=6, rope_parameters=LOCAL, final_logit_softcapping=3.0),
    'full': SHAPE | dict(head_dim=6, layer_types=['full_attention'] * 3),
  },
  'starcoder2': {'plain': SHAPE | dict(sliding_window=5), 'no_bias': SHAPE | dict(use_bias=False)},
  'stablelm': {
    'plain': NEOX | dict(num_key_value_heads=2) | dict(use_qkv_bias=True),
    'parallel': NEOX | dict(use_parallel_residual=True),
  },
  'gpt_neox': {
    'parallel': NEOX,
    'plain': NEOX | dict(use_parallel_residual=False, hidden_act='gelu_new', tie_word_embeddings=True),
    'no_bias': NEOX | dict(attention_bias=False),
  },
  'mixtral': {'windows': SHAPE | dict(num_local_experts=4, sliding_window=5, head_dim=6)},
  'qwen3_moe': {
    'plain': SHAPE | EXPERTS | dict(head_dim=6, moe_intermediate_size=12),
    'renormalized': SHAPE | EXPERTS | dict(head_dim=6, moe_intermediate_size=12, norm_topk_prob=True),
  },
  'olmoe': {'plain': SHAPE | EXPERTS},
}
CASES = [  # the first of each family is fast
  pytest.param(name, variant, marks=[pytest.mark.slow] if i else [])
  for name, variants in VARIANTS.items()
  for i, variant in enumerate(variants)
]


def random_model(hf, name, variant):
  """A transformers model with every parameter random, norms and biases too, so that a missing term shows."""
  import torch

  special = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
  cfg = hf.AutoConfig.for_model(name, **dict(vocab_size=VOCAB) | special | VARIANTS[name][variant])
  model = hf.AutoModelForCausalLM.from_config(cfg)
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for p in model.parameters():
      p.add_(torch.randn(p.shape, generator=generator) * 0.3)
  return model.eval()


@pytest.mark.parametrize(('name', 'variant'), CASES)
def test_family_equals_transformers(name, variant, hf, tmp_path):
  import torch

  theirs = random_model(hf, name, variant)
  theirs.save_pretrained(tmp_path / 'theirs')
  cfg, ours, _ = huggingface.import_model(tmp_path / 'theirs')

  prompt = torch.tensor(models.tokens(ROWS, PROMPT, VOCAB), dtype=torch.long)
  greedy_BT = theirs.generate(prompt, max_new_tokens=LENGTH - PROMPT, do_sample=False, pad_token_id=0).numpy()
  expected, actual = their_logits(theirs, greedy_BT), our_logits(ours, greedy_BT)
  difference = np.abs(actual - expected).max()
  print(f'{name} {variant}: largest logit {np.abs(expected).max():.2f}, largest difference {difference:.1e}')
  assert difference < 1e-4
  np.testing.assert_array_equal(actual[:, PROMPT - 1 : -1].argmax(-1), greedy_BT[:, PROMPT:])

  assert huggingface.export_model(cfg, ours, None, tmp_path / 'ours', name) == name
  again, info = hf.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
  back, reimported, _ = huggingface.import_model(tmp_path / 'ours')
  assert_same_params(ours, reimported, VOCAB)
  if variant == 'by_layer':  # its factors went into the queries
    np.testing.assert_allclose(their_logits(again, greedy_BT), expected, atol=1e-4)
    return
  state, other = theirs.state_dict(), again.state_dict()
  extra = other.keys() - state.keys()
  assert state.keys() <= other.keys()
  assert not any(other[key].any() for key in extra), extra  # a bias of zeros, where a family may have one
  for key, value in state.items():
    np.testing.assert_array_equal(other[key].numpy(), value.numpy(), err_msg=key)
  np.testing.assert_array_equal(their_logits(again, greedy_BT), expected)


@pytest.mark.parametrize(('name', 'axis'), [('mixtral', 'expert'), ('olmo', 'fsdp'), ('phi3', 'tensor')])
def test_families_are_imported_onto_a_mesh(name, axis, tmp_path):
  """Each device reads the experts and the parts of packed or constant parameters that are its own."""
  sizes = dict(layers=2, width=24, heads=6, kv_heads=2, vocab=VOCAB, context=32, hidden=40, window=0)
  sizes |= dict(experts=4) if name == 'mixtral' else {}
  cfg = ModelConfig(**sizes | families.FAMILIES[name].always)
  model = models.fill(cfg.resolved())
  if name == 'olmo':  # its norms have no scales
    for norm in (model.blocks.attention_norm, model.blocks.mlp_norm, model.final_norm):
      norm.scale.set_value(norm.scale.get_value() * 0 + 1)
  assert huggingface.export_model(cfg, model, None, tmp_path / 'out', name) == name
  mesh = models.mesh(**{axis: 2})
  _, back, _ = huggingface.import_model(tmp_path / 'out', mesh)
  assert_same_params(model, back, VOCAB)
  assert any(not p.sharding.is_fully_replicated for p in params_of(back).values())


@pytest.mark.parametrize('window', [5, None])
@pytest.mark.parametrize('first', [0, 1, 3, 28])
@pytest.mark.parametrize('use', [True, False])
def test_windows_of_qwen2_are_those_of_transformers(use, first, window, hf):
  """By use_sliding_window and max_window_layers, as in config.json files that list no layer_types."""
  keys = SHAPE | dict(use_sliding_window=use, max_window_layers=first, sliding_window=window)
  theirs = hf.AutoConfig.for_model('qwen2', vocab_size=VOCAB, **keys)
  _, fields = families.read_config(keys | dict(model_type='qwen2', vocab_size=VOCAB))
  cfg = ModelConfig(**fields)
  windows = [theirs.sliding_window if kind == 'sliding_attention' else 0 for kind in theirs.layer_types]
  assert list(cfg.windows()) == windows
  written = families.write_config(cfg, only='qwen2')[1]
  assert written['layer_types'] == theirs.layer_types
  assert written['use_sliding_window'] is any(windows)


@pytest.mark.parametrize('name', ['gelu', 'relu', 'silu', 'swish', 'tanh', 'gelu_accurate', 'gelu_fast'])
def test_activations_equal_those_of_transformers(name, hf):
  import torch
  from transformers.activations import ACT2FN

  _, fields = families.read_config(dict(GPT2, model_type='gpt2', vocab_size=VOCAB, activation_function=name))
  x = np.linspace(-6, 6, 101, dtype=np.float32)
  expected = ACT2FN[name](torch.tensor(x)).numpy()
  np.testing.assert_allclose(layers.ACTIVATIONS[fields['mlp']](x, None), expected, atol=2e-6)
  cfg = ModelConfig(**fields)
  written = families.write_config(cfg, only='gpt2')[1]
  assert families.read_config(written)[1]['mlp'] == cfg.mlp


@pytest.mark.slow
@pytest.mark.parametrize(
  ('wrapper', 'name'), [('llava', 'llama'), ('llava_next', 'llama'), ('gemma3', 'gemma3_text')]
)
def test_text_decoder_of_several_modalities(wrapper, name, hf, tmp_path, capsys):
  text = hf.AutoConfig.for_model(name, vocab_size=VOCAB, **VARIANTS[name]['plain'])
  vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
  kind = 'siglip_vision_model' if wrapper == 'gemma3' else 'clip_vision_model'
  vision = hf.AutoConfig.for_model(kind, image_size=8, patch_size=4, **vision)
  cfg = hf.AutoConfig.for_model(wrapper, text_config=text, vision_config=vision, image_token_index=5)
  model = hf.AutoModelForImageTextToText.from_config(cfg).eval()
  model.save_pretrained(tmp_path)
  _, ours, _ = huggingface.import_model(tmp_path)
  assert f'only the text decoder ({name}) is imported' in capsys.readouterr().out  # no tokenizer is here
  ids_BT = models.tokens(ROWS, LENGTH, VOCAB - 50) + 50
  assert np.abs(our_logits(ours, ids_BT) - their_logits(model, ids_BT)).max() < 1e-4


def test_wrapped_names_of_text_decoders(tmp_path):
  """Both spellings, as of LLaVA and of Gemma 3, beside tensors of a vision tower."""
  _, model = write(tmp_path / 'plain', 'llama')
  content = json.loads((tmp_path / 'plain/config.json').read_text())
  for folder, prefix in (('old', 'language_model.'), ('new', 'model.language_model.')):
    (tmp_path / folder).mkdir()
    files = load_file(tmp_path / 'plain/model.safetensors')
    inner = lambda name, prefix=prefix: name if prefix == 'language_model.' else name.removeprefix('model.')
    wrapped = {(prefix + inner(k) if k[0] == 'm' else k): v for k, v in files.items()}
    save_file(wrapped | {'vision_tower.x': np.ones(3, 'f4')}, tmp_path / folder / 'model.safetensors')
    text = {'model_type': 'llava', 'text_config': content, 'tie_word_embeddings': False}
    (tmp_path / folder / 'config.json').write_text(json.dumps(text))
    _, back, _ = huggingface.import_model(tmp_path / folder)
    assert_same_params(model, back, model.cfg.vocab)


def test_families_that_lack_a_part_are_named_with_the_nearest():
  for name, (part, nearest) in families.LACKING.items():
    assert nearest in families.FAMILIES
    assert name not in families.FAMILIES
    with fails(f'model_type={name!r}', part):
      families.read_config({'model_type': name})


def test_every_family_has_a_battery_and_a_place_in_the_documentation():
  assert set(VARIANTS) == set(families.FAMILIES) - {*families.WHOLE}  # test_multimodal.py has theirs
  page = (Path(__file__).parents[2] / 'docs/reference.md').read_text()
  table = page.split('| families (`model_type`)')[1].split('\n\n')[0]
  names = [name.strip() for row in table.split('\n')[2:] for name in row.split('|')[1].split(',')]
  assert sorted(names) == sorted(families.FAMILIES)


@pytest.mark.parametrize('name', families.FAMILIES)
def test_absent_keys_take_transformers_defaults(name, hf):
  """As in config.json files that are older than many keys."""
  least = dict(hidden_size=96, num_hidden_layers=2, num_attention_heads=32, vocab_size=131)
  least |= dict(intermediate_size=40)
  if name in ('gpt2', 'gpt_bigcode'):
    least = dict(vocab_size=131, n_embd=24, n_layer=2, n_head=3)
  if name == 'gpt_neo':
    least = dict(vocab_size=131, hidden_size=24, num_layers=2, num_heads=3, attention_types=[[['local'], 2]])
  whole = json.loads(hf.AutoConfig.for_model(name, **least).to_json_string(use_diff=False))
  assert families.read_config(least | {'model_type': name}) == families.read_config(whole)
