"""Hugging Face models: the same logits, bit-equal round trips, and no silent difference."""

import contextlib
import dataclasses
import json
import struct
import typing

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gpt_jax import config, sample, step
from gpt_jax import train as training
from gpt_jax.evaluation import evaluate, trained
from gpt_jax.interop import families, huggingface, json_files, tokenizer_files, weight_files
from gpt_jax.interop.family import FREE, computed, obstacles, write_fields
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.model import costs, gpt, position_schemes, positions
from gpt_jax.model.config import ModelConfig
from gpt_jax.runs import ancestry, run_folder
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import completions, decoding_layout
from gpt_jax.step import params_of
from gpt_jax.tokenizers import SPECIALS, TokenizerConfig, Tokenizers, grammar, text
from gpt_jax.training import checkpoint
from tests import command_line, models
from tests.tokenizers.test_tokenizers import CORPUS, make, write_gpt2

SIZES = dict(layers=2, width=24, heads=4, vocab=131, context=32, hidden=40)
GPT2 = dict(norm='layernorm', positions='learned', mlp='gelu', attention_bias=True, mlp_bias=True)
BANDS = dict(rope_scaling='llama3', rope_factor=4.0, rope_original_context=16, rope_theta=500.0)
YARN = dict(rope_scaling='yarn', rope_factor=3.0, rope_original_context=64, rope_beta_fast=4.0)
# What we can express, family by family; each row is exported, read by transformers, imported again.
OURS = {
  'gpt2': ('gpt2', GPT2),
  'gpt2_untied': ('gpt2', GPT2 | dict(mlp='gelu_exact', tied_head=False, hidden=0)),
  'gpt2_relu2': ('gpt2', GPT2 | dict(mlp='relu2', heads=3, norm_eps=1e-3)),
  'llama': ('llama', dict(kv_heads=2, tied_head=False)),
  'llama3': ('llama', BANDS | dict(head_dim=8, kv_heads=1, attention_bias=True, mlp_bias=True)),
  'yarn': ('llama', YARN | dict(head_dim=16, rope_theta=100.0, norm_eps=1e-6)),
  'yarn_factor': ('llama', YARN | dict(head_dim=16, rope_attention_factor=1.5)),
  'linear': ('llama', dict(rope_scaling='linear', rope_factor=4.0, mlp='geglu')),
  'ntk': ('llama', dict(rope_scaling='ntk', rope_factor=4.0)),
  'mistral': ('mistral', dict(window=5, kv_heads=2, heads=6, head_dim=6)),
  'odd_heads': ('mistral', dict(heads=5, kv_heads=1, head_dim=4)),
  'qwen3': ('qwen3', dict(qk_norm=True, head_dim=10, attention_bias=True)),
  'qwen3_windows': ('qwen3', dict(qk_norm=True, window=3, layer_pattern='LS')),
}


def model_config(name):
  return dataclasses.replace(ModelConfig(**(SIZES | OURS[name][1])), norm_bias=True)


def write(folder, name='llama', toks=None, seed=0, **fields):
  """An exported random model of OURS, with other fields -> (its config, its GPT)."""
  cfg = dataclasses.replace(model_config(name), **fields)
  if toks is not None:
    cfg = dataclasses.replace(cfg, vocab=toks.vocabulary.size)
  model = models.fill(cfg.resolved(), seed)
  huggingface.export_model(cfg, model, toks, folder)
  return cfg, model


def edit(folder, remove=(), **changes):
  """Change config.json."""
  path = folder / 'config.json'
  content = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in content.items() if k not in remove}))


def retensor(folder, change, name='model.safetensors'):
  """Rewrite the weights through `change(dict of arrays)`."""
  files = load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  save_file(change(dict(files)), folder / name)


@contextlib.contextmanager
def fails(*words):
  """Expect an error of two lines, cause and fix, whose cause has these words."""
  with pytest.raises((ValueError, OSError)) as error:
    yield error
  cause, fix = str(error.value).split('\n')
  assert fix.startswith('fix: ')
  for word in words:
    assert word in cause


def assert_same_params(model, other, vocab):
  """Bit-equal, rows of padding apart, which are zero after an import."""
  params, others = models.params(model), models.params(other)
  assert params.keys() == others.keys()
  for path, array in params.items():
    if path.endswith('_VD'):
      assert not others[path][vocab:].any()
      array, others[path] = array[:vocab], others[path][:vocab]
    np.testing.assert_array_equal(array, others[path], err_msg=path)


def rows(vocab, length=24):
  return models.tokens(2, length, vocab)


def our_logits(model, ids_BT):
  logits_BTV = np.asarray(models.logits(model, jnp.asarray(ids_BT)))
  assert (logits_BTV[..., model.cfg.vocab :] == -1e30).all()
  return logits_BTV[..., : model.cfg.vocab]


# ------------------------------------------------------------------------- against transformers


@pytest.fixture(scope='module')
def hf():
  """transformers, quiet, on one thread."""
  torch = pytest.importorskip('torch', reason='torch is not installed: pip install .[interop]')
  hf = pytest.importorskip('transformers', reason='transformers is not installed')
  torch.set_num_threads(1)
  hf.logging.set_verbosity_error()
  hf.logging.disable_progress_bar()
  return hf


def their_logits(model, ids_BT):
  import torch

  with torch.no_grad():
    return model.eval()(torch.tensor(ids_BT, dtype=torch.long)).logits.numpy()


@pytest.mark.parametrize('name', OURS)
def test_transformers_logits_of_exports_equal_ours(name, hf, tmp_path):
  _, model = write(tmp_path, name)
  theirs, info = hf.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
  assert theirs.config.model_type == OURS[name][0]
  ids_BT = rows(131)
  difference = np.abs(our_logits(model, ids_BT) - their_logits(theirs, ids_BT)).max()
  print(f'{name}: largest difference {difference:.1e}')
  assert difference < 1e-4


@pytest.mark.parametrize('specials', [(), SPECIALS], ids=['own', 'ours'])
@pytest.mark.parametrize('kind', ['bytes', 'chars', 'bpe', 'gpt2', 'huggingface'])
def test_auto_tokenizer_equals_our_tokenizer(kind, specials, hf, tmp_path):
  toks = Tokenizers.build(make(kind), specials=specials)
  for family in ('gpt2', 'llama'):
    write(tmp_path / family, family, toks)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path / family)
    string = CORPUS[:180].replace('<|endoftext|>', '  ')
    ids = toks.encode_text(string)
    assert theirs(string, add_special_tokens=False)['input_ids'] == ids
    assert theirs.decode(ids) == toks.decode_text(ids)
    assert len(theirs) == toks.vocabulary.size
    roles = {role: getattr(theirs, f'{role}_token_id') for role in ('pad', 'bos', 'eos')}
    assert roles == {role: dict(toks.vocabulary.specials).get(role) for role in roles}
    if 'eos' in specials:  # what a model ends a text with is not shown
      eos = toks.vocabulary.special('eos')
      assert theirs.decode([*ids, eos], skip_special_tokens=True) == toks.decode_text(ids)
      model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / family)
      assert model.generation_config.eos_token_id == eos


# ---------------------------------------------------------------------------- round trips


def meaning(cfg):
  """What a config computes, sizes of 0 and equal spellings resolved."""
  fields = dataclasses.asdict(cfg) | cfg.dims | {'windows': cfg.windows()}
  if cfg.positions == 'rope':
    fields['frequencies'] = positions.rope_frequencies(cfg).tolist()
    fields['attention'] = position_schemes.ROPE_SCALINGS[cfg.rope_scaling].magnitude(cfg)
  spellings = ('kv_heads', 'head_dim', 'hidden', 'layer_pattern', 'init_projections')
  return {k: v for k, v in fields.items() if k not in spellings and not k.startswith('rope_')}


@pytest.mark.parametrize('name', OURS)
def test_export_then_import_is_bit_equal(name, tmp_path):
  cfg, model = write(tmp_path, name)
  back, again, toks = huggingface.import_model(tmp_path)
  assert_same_params(model, again, cfg.vocab)
  assert meaning(back) == meaning(cfg)
  assert toks is None
  assert json.loads((tmp_path / 'config.json').read_text())['model_type'] == OURS[name][0]


def test_exported_layouts_index_by_index(tmp_path):
  """Index by index, without any library: out of heads and head widths, row-major."""
  cfg, model = write(tmp_path / 'gpt2', 'gpt2')
  files, p = load_file(tmp_path / 'gpt2/model.safetensors'), models.params(model)
  D, H, K = cfg.width, cfg.heads, cfg.K
  packed = files['transformer.h.1.attn.c_attn.weight']
  for part, name in enumerate(('wq_DHK', 'wk_DGK', 'wv_DGK')):
    w_DHK = p[f'blocks/attention/{name}'][1]
    assert all(
      packed[d, part * D + h * K + k] == w_DHK[d, h, k] for d in range(D) for h in range(H) for k in range(K)
    )
  cfg, model = write(tmp_path / 'llama', 'llama')
  files, p = load_file(tmp_path / 'llama/model.safetensors'), models.params(model)
  wk_GKD = files['model.layers.0.self_attn.k_proj.weight'].reshape(cfg.G, cfg.K, cfg.width)
  np.testing.assert_array_equal(wk_GKD[1, 2], p['blocks/attention/wk_DGK'][0, :, 1, 2])
  np.testing.assert_array_equal(files['model.layers.1.mlp.gate_proj.weight'].T, p['blocks/mlp/gate_DF'][1])


def test_old_and_new_rope_keys_are_equal():
  _, hf = families.write_config(model_config('llama3'))
  new = families.read_config({k: v for k, v in hf.items() if k not in ('rope_theta', 'rope_scaling')})
  old = families.read_config({k: v for k, v in hf.items() if k != 'rope_parameters'})
  older = dict(hf['rope_scaling'])
  older['type'] = older.pop('rope_type')
  oldest = families.read_config({**hf, 'rope_parameters': None, 'rope_scaling': older})
  assert new == old == oldest
  assert new[1]['rope_scaling'] == 'llama3'
  assert new[1]['rope_theta'] == 500.0


def test_qwen2_output_bias_is_zero(tmp_path):
  """It computes the same; a model whose output bias was trained is exported as a Llama."""
  cfg = dataclasses.replace(model_config('llama'), attention_bias=True)
  model = models.fill(cfg.resolved())
  bias = model.blocks.attention.o_bias_D
  assert huggingface.export_model(cfg, model, None, tmp_path / 'a') == 'llama'
  bias.set_value(bias.get_value() * 0)
  assert huggingface.export_model(cfg, model, None, tmp_path / 'b') == 'qwen2'
  assert not [name for name in load_file(tmp_path / 'b/model.safetensors') if 'o_proj.bias' in name]
  _, back, _ = huggingface.import_model(tmp_path / 'b')
  assert_same_params(model, back, cfg.vocab)


@pytest.mark.parametrize(
  ('name', 'changes', 'words'),
  [
    ('gpt2', dict(model_type='bert'), ['model_type', 'bert']),
    ('gpt2', dict(add_cross_attention=True), ['add_cross_attention']),
    ('gpt2', dict(activation_function='quick_gelu'), ["activation_function='quick_gelu'"]),
    ('gpt2', dict(quantization_config={'bits': 4}), ['quantization_config']),
    ('gpt2', dict(n_embd=None), ['n_embd']),
    ('gpt2', dict(n_layer='two'), ['n_layer']),
    ('gpt2', dict(layer_norm_epsilon='x'), ['layer_norm_epsilon', "'x'", 'float']),
    ('llama', dict(hidden_act='gelu'), ["hidden_act='gelu'", 'MLP']),
    ('llama', dict(rope_scaling={'type': 'longrope', 'factor': 2.0}), ['longrope']),
    ('llama', dict(rope_scaling={'type': 'linear'}), ['factor']),
    ('llama', dict(rope_scaling='linear'), ['linear']),
    ('llama', dict(rope_scaling={'full_attention': {}}), ['full_attention']),
    ('llama', dict(partial_rotary_factor=0.5), ['partial_rotary_factor=0.5']),
    ('llama', dict(sliding_window=4), ['sliding_window=4']),
    ('yarn', dict(rope_scaling={'rope_type': 'yarn', 'truncate': False}), ['truncate']),
    ('qwen3_windows', dict(layer_types=['sliding_attention']), ['layer_types', '2 layers']),
    ('qwen3_windows', dict(use_sliding_window=False), ['layer_types', 'sliding_window=None']),
    ('qwen3_windows', dict(layer_types=['chunked_attention'] * 2), ['chunked_attention']),
    ('llama', dict(num_key_value_heads=3), ['kv_heads=3']),
    ('llama', dict(model_type='granite', logits_scaling=None), ['granite', 'TypeError']),
    ('llama', dict(model_type='olmoe', clip_qkv=8.0), ['clip_qkv=8.0', 'clipped']),
    ('llama', dict(model_type='qwen3_moe', mlp_only_layers=[0]), ['mlp_only_layers', 'experts']),
    ('llama', dict(model_type='stablelm', qk_layernorm=True), ['qk_layernorm', 'each head']),
    ('llama', dict(model_type='phi3', rope_scaling={'type': 'yarn', 'factor': 2.0}), ['longrope']),
    ('llama', dict(model_type='gemma', use_bidirectional_attention=True), ['after them']),
  ],
)
def test_unsupported_configs_fail(name, changes, words, tmp_path):
  write(tmp_path, name)
  edit(tmp_path, **changes)
  with fails(*words):
    huggingface.import_model(tmp_path)


WRONG = (True, -1, 1.5, float('inf'), 'x', '', [], [None], {}, {'a': 1}, 'null')  # 'null' stands for None


@pytest.mark.parametrize('name', ['gpt2', 'yarn', 'qwen3_windows'])
def test_keys_of_another_type_fail_in_two_lines(name, tmp_path):
  """Each key that is read, in each file: its type, or an error with cause and fix, never a traceback."""
  write(tmp_path, name, Tokenizers.build(make('bytes')))
  (tmp_path / 'model.safetensors').unlink()  # what passes ends here
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [1], "temperature": 0.5}')
  types = {'config.json': json_files.CONFIG, 'generation_config.json': json_files.GENERATION}
  types['tokenizer_config.json'] = json_files.TOKENIZER_CONFIG | {'eos_token': str | dict | None}
  for file, known in types.items():
    original = json.loads((tmp_path / file).read_text())
    for key in sorted(original.keys() & known.keys()):
      for value in WRONG:
        (tmp_path / file).write_text(json.dumps(original | {key: None if value == 'null' else value}))
        with pytest.raises((ValueError, OSError)) as error:
          huggingface.import_model(tmp_path)
        cause, fix = str(error.value).split('\n')
        assert fix.startswith('fix: ')
        is_read = 'safetensors files' in cause
        assert not (is_read and isinstance(value, float) and value == float('inf')), (key, value)
        assert not is_read or value in ('null', -1) or isinstance(value, typing.get_args(known[key])), key
    (tmp_path / file).write_text(json.dumps(original))


@pytest.mark.parametrize(
  ('file', 'content', 'words'),
  [
    ('config.json', {'layer_types': 3}, ['layer_types is 3', 'a list']),
    ('config.json', {'hidden_act': ['silu']}, ['hidden_act', "['silu']"]),
    ('config.json', {'model_type': ['llama']}, ['model_type']),
    ('config.json', {'rope_parameters': {'factor': '4'}}, ['factor']),
    ('config.json', {'bos_token_id': ['1']}, ['bos_token_id[0]']),
    ('generation_config.json', {'eos_token_id': [1, 'x']}, ['eos_token_id[1]']),
    ('generation_config.json', {'temperature': 'hot'}, ['temperature']),
    ('generation_config.json', [], ['JSON object']),
    ('tokenizer_config.json', {'eos_token': {'text': 'x'}}, ['eos_token', 'content']),
    ('tokenizer_config.json', {'chat_template': [{'name': 'a'}]}, ['chat_template[0]', 'template']),
    ('tokenizer_config.json', {'chat_template': 7}, ['chat_template', '7']),
    ('tokenizer.json', {'model': {}, 'added_tokens': [{'id': 0}]}, ['added_tokens', 'content']),
    ('tokenizer.json', {'model': [], 'added_tokens': []}, ['model', 'JSON object']),
    ('tokenizer.json', {'model': {'type': 'BPE', 'vocab': 7}}, ['tokenizer.json']),
    ('chat_template.jinja', b'\xff\xfe', ['chat_template.jinja', 'UTF-8']),
  ],
)
def test_wrong_types_are_named(file, content, words, tmp_path):
  write(tmp_path, 'llama', Tokenizers.build(make('bytes')))
  if isinstance(content, dict) and file in ('config.json', 'tokenizer_config.json'):
    content = json.loads((tmp_path / file).read_text()) | content
  path = tmp_path / file
  path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
  with fails(str(path), *words):
    huggingface.import_model(tmp_path)


@pytest.mark.parametrize(
  ('name', 'fields', 'lacks'),
  [
    ('gpt2', dict(qk_norm=True), dict(gpt2='qk_norm=True')),
    ('gpt2', dict(attention_bias=False), dict(gpt2='attention_bias=False')),
    ('gpt2', dict(kv_heads=2), dict(gpt2='kv_heads=2', gpt_bigcode='kv_heads=2')),
    ('llama', dict(mlp='relu2', logit_softcap=15.0), dict(arcee='logit_softcap=15.0')),
    (
      'llama',
      dict(logit_softcap=9.0, norm_position='post'),
      dict(llama='lacks model.norm_position=post, model.logit_softcap=9.0'),
    ),
    ('llama', dict(embed_scale=0.0, qk_norm=True), dict(qwen3='embed_scale=0.0')),
    ('llama', dict(experts=2, mlp_bias=False, residual_scale=0.5), dict(mixtral='model.residual_scale=0.5')),
    ('llama', dict(positions='alibi'), dict(llama='positions=alibi')),
    ('qwen3_windows', dict(rope_local_theta=100.0), dict(qwen3='rope_local_theta=100.0')),
    ('qwen3', dict(mlp_bias=True), dict(qwen3='lacks model.mlp_bias=True')),
  ],
)
def test_unexportable_settings_are_listed(name, fields, lacks, tmp_path):
  cfg = dataclasses.replace(model_config(name), **fields)
  with fails('no family has all these settings') as error:
    huggingface.export_model(cfg, models.fill(cfg.resolved()), None, tmp_path / 'out')
  parts = str(error.value).split('\n')[0].split(': ')[1].split('; ')
  said = {part.split()[0]: part for part in parts}
  for family, words in lacks.items():
    assert words in said[family]
  assert not (tmp_path / 'out').exists()


# Settings that Llama does not have, each beside what it needs to change logits.
NOT_LLAMA = dict(positions='alibi', rope_local_theta=9.0, rope_fraction=0.5, norm='layernorm', mlp='relu2')
NOT_LLAMA |= dict(norm_position='post', qk_norm=True, query_scale=0.3, attention_softcap=2.0, window=3)
NOT_LLAMA |= dict(logit_softcap=2.0, layer_pattern='LN', embed_scale=0.0, residual_scale=0.5, logit_scale=0.5)
NOT_LLAMA |= dict(experts=3, patch_id=3, flow_layers=2, flow_width=8)
CONDITIONAL = {'norm_bias', 'qk_norm_over', 'experts_per_token', 'router_renormalize'}


def test_settings_that_a_family_lacks_stand_in_the_way():
  """A new field of ModelConfig must be one of these, or a model that uses it exports other logits."""
  llama = families.FAMILIES['llama']
  base = ModelConfig(**SIZES)
  for field, value in NOT_LLAMA.items():
    cfg = dataclasses.replace(base, **{field: value} | ({'window': 3} if field == 'rope_local_theta' else {}))
    lacking = obstacles(llama, cfg, write_fields(llama, cfg))
    assert f'model.{field}={value}' in lacking, field
  fields = {f.name for f in dataclasses.fields(ModelConfig)}
  assert fields == llama.keys.keys() | NOT_LLAMA.keys() | CONDITIONAL | FREE
  assert CONDITIONAL <= computed(base).keys()


# ------------------------------------------------------------------------------------- files


def test_sharded_weights_are_read_by_index(tmp_path):
  cfg, model = write(tmp_path)
  files = load_file(tmp_path / 'model.safetensors')
  (tmp_path / 'model.safetensors').unlink()
  names = sorted(files)
  parts = {'model-1-of-2.safetensors': names[::2], 'model-2-of-2.safetensors': names[1::2]}
  for part, members in parts.items():
    save_file({name: files[name] for name in members}, tmp_path / part)
  with fails('2 safetensors files', weight_files.INDEX):
    huggingface.import_model(tmp_path)
  index = {'weight_map': {name: part for part, members in parts.items() for name in members}}
  (tmp_path / weight_files.INDEX).write_text(json.dumps(index))
  _, back, _ = huggingface.import_model(tmp_path)
  assert_same_params(model, back, cfg.vocab)
  (tmp_path / 'model-2-of-2.safetensors').rename(tmp_path / 'elsewhere')
  with fails('model-2-of-2.safetensors'):
    huggingface.import_model(tmp_path)


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_kept(dtype, tmp_path):
  toks = Tokenizers.build(make('bytes'))
  _, model = write(tmp_path / 'source', 'llama', toks)
  retensor(tmp_path / 'source', lambda files: {name: array.astype(dtype) for name, array in files.items()})
  huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  run = trained.load(tmp_path / 'run')
  assert ancestry.read_parents(tmp_path / 'run') == [{'how': 'import', 'path': str(tmp_path / 'source')}]
  assert run.model.cfg.param_dtype == run.cfg.model.param_dtype == np.dtype(dtype).name
  for path, array in params_of(model).items():
    stored = np.asarray(params_of(run.model)[path])
    assert stored.dtype == dtype
    rows = slice(toks.vocabulary.size if path.endswith('_VD') else None)
    np.testing.assert_array_equal(stored[rows], np.asarray(array)[rows].astype(dtype))
  huggingface.export_run(tmp_path / 'run', tmp_path / 'out')
  source, out = (load_file(tmp_path / name / 'model.safetensors') for name in ('source', 'out'))
  assert source.keys() == out.keys()
  assert all(out[name].dtype == dtype and (out[name] == source[name]).all() for name in source)
  assert json.loads((tmp_path / 'out/config.json').read_text())['dtype'] == np.dtype(dtype).name
  # A training run may ask for another type.
  wider = gpt.GPT(dataclasses.replace(run.model.cfg, param_dtype='float32'))
  shardings = gpt.shardings(wider, models.mesh())
  like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), wider, shardings)
  for path, array in params_of(checkpoint.load_model(tmp_path / 'run', like)).items():
    np.testing.assert_array_equal(np.asarray(array), np.asarray(params_of(run.model)[path]).astype('f4'))


def test_mixed_types_become_float32(tmp_path):
  write(tmp_path)
  half = lambda files: {k: v.astype(np.float16) if v.ndim > 1 else v for k, v in files.items()}
  retensor(tmp_path, half)
  cfg, back, _ = huggingface.import_model(tmp_path)
  assert cfg.param_dtype == 'float32'
  assert {array.dtype for array in models.params(back).values()} == {np.dtype('float32')}


def test_import_onto_a_mesh_is_sharded_and_bit_equal(tmp_path):
  cfg, model = write(tmp_path, 'llama3')
  mesh = models.mesh(fsdp=2)
  _, back, _ = huggingface.import_model(tmp_path, mesh)
  assert_same_params(model, back, cfg.vocab)
  assert params_of(back)['blocks/mlp/up_DF'].sharding.mesh == mesh
  assert len(params_of(back)['blocks/mlp/up_DF'].addressable_shards) == 2


def test_bare_models_with_buffers_and_tied_heads(tmp_path):
  """Files of GPT2Model have no prefix; old ones hold masks, and a copy of the tied head."""
  cfg, model = write(tmp_path, 'gpt2')

  def bare(files):
    files = {name.removeprefix('transformer.'): array for name, array in files.items()}
    files |= {f'h.{l}.attn.bias': np.ones((1, 1, 4, 4), np.float32) for l in range(2)}
    return files | {'lm_head.weight': files['wte.weight'].copy()}

  retensor(tmp_path, bare)
  _, back, _ = huggingface.import_model(tmp_path)
  assert_same_params(model, back, cfg.vocab)
  retensor(tmp_path, lambda files: files | {'lm_head.weight': files['wte.weight'] + 1})
  with fails('lm_head.weight', 'tie_word_embeddings'):
    huggingface.import_model(tmp_path)


def test_errors_name_mismatched_tensors(tmp_path):
  write(tmp_path)
  change = lambda files: {k.replace('q_proj', 'Wq'): v for k, v in files.items()}
  retensor(tmp_path, change)
  with fails('missing model.layers.0.self_attn.q_proj.weight, model.layers.1', 'model.layers.0.self_attn.Wq'):
    huggingface.import_model(tmp_path)
  retensor(tmp_path, lambda files: {k.replace('Wq', 'q_proj'): v for k, v in files.items()})
  edit(tmp_path, intermediate_size=41)
  with fails('mlp.down_proj.weight', 'F32[24, 40]', '[24, 41]'):
    huggingface.import_model(tmp_path)
  edit(tmp_path, intermediate_size=40)
  retensor(tmp_path, lambda files: files | {'lm_head.weight': files['lm_head.weight'].astype('i1')})
  with fails('lm_head.weight', 'I8'):
    huggingface.import_model(tmp_path)


def test_errors_name_damaged_and_missing_files(tmp_path):
  write(tmp_path)
  weights = tmp_path / 'model.safetensors'
  content = weights.read_bytes()
  for size in (len(content) - 1, 100, 4):
    weights.write_bytes(content[:size])
    with fails(str(weights), 'not a whole safetensors file'):
      huggingface.import_model(tmp_path)
  weights.rename(tmp_path / 'pytorch_model.bin')
  with fails('pickles', 'pytorch_model.bin'):
    huggingface.import_model(tmp_path)
  (tmp_path / 'pytorch_model.bin').unlink()
  with fails('0 safetensors files'):
    huggingface.import_model(tmp_path)
  (tmp_path / 'config.json').write_text('[]')
  with fails('config.json'):
    huggingface.import_model(tmp_path)
  (tmp_path / 'config.json').unlink()
  with fails('config.json'):
    huggingface.import_model(tmp_path)
  with fails('--source=', 'neither a folder, a GGUF file nor a hub id'):
    huggingface.import_model(tmp_path / 'nowhere')


def test_export_needs_an_empty_folder(tmp_path):
  (tmp_path / 'notes.txt').touch()
  with fails('--out=', 'not empty'):
    write(tmp_path)


def test_hub_ids_are_downloaded_without_pickles(tmp_path, monkeypatch):
  import huggingface_hub

  _, model = write(tmp_path)
  asked = []

  def download(name, **options):
    asked.append((name, options))
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  cfg, back, _ = huggingface.import_model('someone/some-model')
  assert_same_params(model, back, cfg.vocab)
  [(name, options)] = asked
  assert name == 'someone/some-model'
  keep = huggingface_hub.utils.filter_repo_objects(
    [
      'model.safetensors',
      'config.json',
      'tokenizer.model',
      'merges.txt',
      'vocab.json',
      'pytorch_model.bin',
      'modeling.py',
      'onnx/config.json',
      'consolidated.safetensors',
    ],
    **options,
  )
  assert list(keep) == ['model.safetensors', 'config.json', 'tokenizer.model', 'merges.txt', 'vocab.json']


def test_unreachable_hub_fails_with_a_fix(tmp_path, monkeypatch):
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  with fails('--source=someone/some-model', 'could not be downloaded'):
    huggingface.import_model('someone/some-model')


# -------------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize('kind', ['bytes', 'chars', 'bpe', 'gpt2', 'huggingface'])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_exported_tokenizers_are_exact(kind, data):
  from tokenizers import Tokenizer

  toks = Tokenizers.build(make(kind))
  model, specials = tokenizer_files.to_library(toks)
  theirs = Tokenizer.from_str(json.dumps(model))
  theirs.encode_special_tokens = True
  alphabet = st.characters(exclude_categories=('Cs',), exclude_characters='\u2581')
  string = data.draw(st.text(st.sampled_from(CORPUS) if kind == 'chars' else alphabet))
  ids = toks.encode_text(string)
  assert theirs.encode(string, add_special_tokens=False).ids == ids
  assert theirs.decode(ids, skip_special_tokens=False) == toks.decode_text(ids)
  some = data.draw(st.lists(st.integers(0, toks.text.size - 1), max_size=9))
  own = set(dict(toks.vocabulary.specials).values())
  some = [i for i in some if i not in own]  # half characters, mostly
  assert theirs.decode(some, skip_special_tokens=False) == toks.decode_text(some)
  assert {name: theirs.token_to_id(token) for name, token in specials.items()} == dict(
    toks.vocabulary.specials
  )


def test_unknown_character_stays_an_error_after_export():
  from tokenizers import Tokenizer

  model, _ = tokenizer_files.to_library(Tokenizers.build(make('chars')))
  with pytest.raises(Exception, match='unknown character'):
    Tokenizer.from_str(json.dumps(model)).encode('\u2603')


@pytest.mark.parametrize('kind', ['bytes', 'chars', 'bpe', 'gpt2', 'huggingface', 'sentencepiece'])
def test_tokenizers_round_trip(kind, tmp_path, capsys):
  toks = Tokenizers.build(make(kind))
  cfg, model = write(tmp_path, 'llama', toks)
  assert ('note: ' in capsys.readouterr().out) == (kind == 'sentencepiece')
  back, again, tokens = huggingface.import_model(tmp_path)
  assert_same_params(model, again, cfg.vocab)
  assert back.vocab == toks.vocabulary.size
  string = CORPUS[:180].replace('<|endoftext|>', '')  # which an imported tokenizer reads as a special
  assert tokens.encode_text(string) == toks.encode_text(string)
  ids = toks.encode_text(string)
  assert tokens.decode_text(ids) == toks.decode_text(ids)
  assert tokens.vocabulary.special('eos') == toks.vocabulary.special('eos')
  assert tokens.vocabulary.kinds == ('text',)  # no new specials
  assert tokens.start == ('bos' if kind == 'sentencepiece' else 'eos')  # of samples and of training texts
  tokens.save(tmp_path / 'saved')
  assert Tokenizers.load(tmp_path / 'saved').start == tokens.start


def test_tokenizer_larger_than_vocabulary_fails(tmp_path):
  write(tmp_path, 'llama')
  tokenizer_files.write(Tokenizers.build(make('bytes')), tmp_path, 32)
  with fails('272 ids', '131'):
    huggingface.import_model(tmp_path)


def test_gpt2_tokenizer_files_of_other_families_fail(tmp_path):
  """Qwen's vocab.json and merges.txt split text by another pattern."""
  toks = Tokenizers.build(make('gpt2'), specials=())
  write(tmp_path, 'gpt2', toks)
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (tmp_path / name).unlink()
  write_gpt2(tmp_path)
  _, _, back = huggingface.import_model(tmp_path)
  assert back.text.kind == 'gpt2'
  assert back.encode_text(CORPUS) == toks.encode_text(CORPUS)
  (tmp_path / 'tokenizer_config.json').write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
  with fails('Qwen2Tokenizer'):
    huggingface.import_model(tmp_path)


def test_chat_prompts_and_end_tokens_equal_transformers(hf, tmp_path, capsys):
  """Special tokens are read in text, each listed end token ends a text, the chat template is kept."""
  toks = Tokenizers.build(make('bytes'))
  write(tmp_path / 'source', 'llama', toks)
  ends = [toks.vocabulary.special(name) for name in ('eos', 'eot')]
  (tmp_path / 'source' / 'generation_config.json').write_text(json.dumps(dict(eos_token_id=ends)))
  (tmp_path / 'source' / 'chat_template.jinja').write_text('{{ messages }}')
  huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  run = trained.load(tmp_path / 'run')
  prompt = '<|bot|>user\nhi<|eot|>\n<|bot|>'
  theirs = hf.AutoTokenizer.from_pretrained(tmp_path / 'source')
  ids = run.tokenizers.encode_text(prompt)
  assert ids == theirs(prompt)['input_ids']
  assert len(ids) == 11
  rules = grammar.build(run.tokenizers.vocabulary, run.tokenizers.layout, run.model.cfg.V)
  assert sorted(np.flatnonzero(rules.ends_V)) == sorted(ends)
  huggingface.export_run(tmp_path / 'run', tmp_path / 'out')
  read = lambda name: json.loads((tmp_path / 'out' / name).read_text())['eos_token_id']
  assert read('generation_config.json') == read('config.json') == ends
  assert hf.AutoTokenizer.from_pretrained(tmp_path / 'out').chat_template == '{{ messages }}'


def test_config_json_adds_missing_specials(tmp_path):
  toks = Tokenizers.build(make('bytes'), specials=())
  write(tmp_path, 'llama', toks)
  edit(tmp_path, eos_token_id=10, bos_token_id=[1, 2], pad_token_id=10)
  _, _, back = huggingface.import_model(tmp_path)
  assert dict(back.vocabulary.specials) == {'eos': 10}


# ------------------------------------------------------------------------------- run folders


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """(source folder, run folder, GPT that was exported) of a tiny Llama that knows bytes."""
  folder = tmp_path_factory.mktemp('imported')
  _, model = write(folder / 'source', 'llama', Tokenizers.build(make('bytes')))
  huggingface.import_run(folder / 'source', folder / 'run')
  return folder / 'source', folder / 'run', model


def test_imported_run_loads_samples_and_evaluates(imported, tmp_path):
  source, workdir, model = imported
  run = trained.load(workdir)
  assert run.step == 0
  assert_same_params(model, run.model, model.cfg.vocab)
  assert run.cfg == config.of_run(workdir)
  assert run.cfg.tokenizer == TokenizerConfig('huggingface', str(source))
  assert text.build(run.cfg.tokenizer).hash == run.tokenizers.text.hash
  assert run_folder.read_config(workdir)['model']['dtype'] == 'auto'
  out = completions.complete(run.model, run.tokenizers, [[72]], SampleConfig(max_new_tokens=4))
  assert len(out[0][0][1]) <= 4
  subject = dataclasses.replace(run.subject(), cache_dir=tmp_path)
  scores = evaluate.run_tasks(subject, ['perplexity'], limit=256)
  assert {row['metric'] for row in scores} >= {'nats_per_token'}


def test_training_starts_from_an_imported_run(imported, tmp_path):
  _, workdir, model = imported
  base = config.of_run(workdir)
  settings = training.TrainConfig(init_from=str(workdir), batch_size=8)
  cfg = config.Config(model=base.model, tokenizer=base.tokenizer, train=settings)
  toks = run_tokenizers.build(cfg, tmp_path)
  model_cfg = language_model.resolve_model(cfg, toks)
  program = step.gpt_program(cfg, model_cfg, models.mesh())
  start = checkpoint.load_model(workdir, program.abstract.model)
  assert_same_params(model, start, model.cfg.vocab)


def test_import_needs_an_empty_folder_and_a_tokenizer(imported, tmp_path):
  source, workdir, _ = imported
  with fails('--workdir=', 'not empty'):
    huggingface.import_run(source, workdir)
  write(tmp_path / 'source')
  with fails('no tokenizer'):
    huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('width', [24, 27])  # shared by two devices, or held by both
def test_two_processes_import_what_one_does(width, tmp_path):
  heads = dict(heads=3, head_dim=8, kv_heads=1) if width % 2 else {}
  write(tmp_path / 'source', 'llama', Tokenizers.build(make('bytes')), width=width, **heads)
  words = ('import', f'--source={tmp_path / "source"}', f'--workdir={tmp_path / "two"}')
  codes, outputs = command_line.ended(command_line.start_all(2, *words, folder=tmp_path))
  assert codes == [0, 0], outputs
  assert [output.count('imported ') for output in outputs] == [1, 0]
  huggingface.import_run(tmp_path / 'source', tmp_path / 'one')
  two, one = trained.load(tmp_path / 'two'), trained.load(tmp_path / 'one')
  assert_same_params(one.model, two.model, one.model.cfg.vocab)
  assert dataclasses.replace(two.cfg, train=one.cfg.train) == one.cfg
  codes, outputs = command_line.ended(command_line.start_all(2, *words, folder=tmp_path))
  assert codes == [2, 2], outputs
  assert all('is not empty' in output for output in outputs)


def test_import_then_export_is_byte_equal(imported, tmp_path, capsys):
  source, workdir, _ = imported
  huggingface.export_run(workdir, tmp_path / 'out')
  lines = capsys.readouterr().out.strip().split('\n')
  assert len(lines) == 2
  assert 'step 0' in lines[0]
  for name in ('model.safetensors', 'tokenizer.json', 'config.json'):
    assert (tmp_path / 'out' / name).read_bytes() == (source / name).read_bytes(), name


def test_verbs_import_sample_and_export(imported, tmp_path, capsys, monkeypatch):
  """`import` in its own process, the others in this one."""
  source, _, _ = imported
  code, output = command_line.launch(
    'import', f'--source={source}', f'--workdir={tmp_path / "run"}', folder=tmp_path
  )
  assert code == 0, output
  assert output.startswith(f'imported {source}: llama, ')
  assert output.count('\n') == 2
  call = command_line.in_process(capsys, monkeypatch)
  code, output, _ = call('sample', f'--workdir={tmp_path / "run"}', '--prompt=Once', '--max_new_tokens=4')
  assert code == 0, output
  assert output.startswith('Once')
  code, output, _ = call('export', f'--workdir={tmp_path / "run"}', f'--out={tmp_path / "out"}')
  assert code == 0, output
  weights = [(folder / 'model.safetensors').read_bytes() for folder in (source, tmp_path / 'out')]
  assert weights[0] == weights[1]


# ------------------------------------------------------------------- real weights: stories260k


def read_llama2c(path):
  """A llama2.c version-0 file -> (header, tensors by Hugging Face's names).

  Its RoPE turns pairs (2i, 2i + 1); ours (i, i + K/2): the rows of a head of wq and wk move, even
  ones first.
  """
  content = path.read_bytes()
  dim, hidden, layers, heads, kv_heads, vocab, _ = header = struct.unpack('<7i', content[:28])
  stream, place = np.frombuffer(content, '<f4', offset=28), 0
  K = dim // heads
  shapes = {
    'model.embed_tokens.weight': (vocab, dim),
    'input_layernorm': (layers, dim),
    'self_attn.q_proj': (layers, heads * K, dim),
    'self_attn.k_proj': (layers, kv_heads * K, dim),
    'self_attn.v_proj': (layers, kv_heads * K, dim),
    'self_attn.o_proj': (layers, dim, dim),
    'post_attention_layernorm': (layers, dim),
    'mlp.gate_proj': (layers, hidden, dim),
    'mlp.down_proj': (layers, dim, hidden),
    'mlp.up_proj': (layers, hidden, dim),
    'model.norm.weight': (dim,),
  }
  files = {}
  for name, shape in shapes.items():
    array = stream[place : place + np.prod(shape)].reshape(shape)
    place += array.size
    if name.endswith(('q_proj', 'k_proj')):
      pairs = array.reshape(layers, -1, K // 2, 2, dim)
      array = pairs.swapaxes(2, 3).reshape(shape)
    if name.startswith('model.'):
      files[name] = np.ascontiguousarray(array)
    else:
      files |= {f'model.layers.{l}.{name}.weight': a.copy() for l, a in enumerate(array)}
  return header, files


def read_tok512(path):
  """llama2.c's tokenizer file -> the bytes of each id."""
  content, pieces = path.read_bytes(), []
  place = 4
  while place < len(content):
    (size,) = struct.unpack('<i', content[place + 4 : place + 8])
    piece = content[place + 8 : place + 8 + size]
    is_byte = piece.startswith(b'<0x') and len(piece) == 6
    pieces.append(bytes([int(piece[3:5], 16)]) if is_byte else piece)
    place += 8 + size
  return pieces


def test_stories260k_generates_its_reference(data_dir, tmp_path):
  header, files = read_llama2c(data_dir / 'stories260k/stories260K.bin')
  dim, hidden, layers, heads, kv_heads, vocab, length = header
  reference = json.loads((data_dir / 'stories260k/reference_greedy.json').read_text())
  save_file(files, tmp_path / 'model.safetensors')
  content = dict(
    model_type='llama',
    hidden_size=dim,
    intermediate_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    vocab_size=vocab,
    max_position_embeddings=length,
    rms_norm_eps=reference['rms_eps'],
    tie_word_embeddings=True,
    rope_theta=reference['rope_theta'],
  )
  (tmp_path / 'config.json').write_text(json.dumps(content))
  cfg, model, _ = huggingface.import_model(tmp_path)
  assert costs.count_params(cfg) == 260032

  ids, expected = reference['prompt_ids'], np.array(reference['logits_first4'])
  first = np.array([ids + reference['greedy_ids'][:3]], np.int32)
  difference = np.abs(our_logits(model, first)[0] - expected).max()
  print(f'stories260k: largest difference of the first logits {difference:.1e}')
  assert difference < 1e-4

  new = len(reference['greedy_ids'])
  chosen = SampleConfig(max_new_tokens=new, temperature=0.0)
  sampled = jax.jit(decoding_layout.for_sampling, static_argnums=1)(model, 'float32')
  state = sample.generate(sampled, [ids], chosen, grammar.plain(np.ones(cfg.V, bool)))
  [(greedy, _)] = completions.new_tokens(state, [ids], 1)
  assert greedy == reference['greedy_ids']
  pieces = read_tok512(data_dir / 'stories260k/tok512.bin')
  assert len(pieces) == vocab
  story = b''.join(pieces[i] for i in greedy).removeprefix(b' ').decode()
  assert story == reference['text']


def test_adapters_are_refused_by_name(tmp_path, capsys):
  adapter = tmp_path / 'adapter_config.json'
  adapter.mkdir()
  (adapter / 'adapter_config.json').write_text('{}')
  with pytest.raises(ValueError, match='is a PEFT adapter without its base model\nfix: .*--base'):
    huggingface.import_model(adapter)
  (adapter / 'config.json').write_text('{}')
  with pytest.raises(ValueError, match='model_type'):
    huggingface.import_model(adapter)
  assert 'has a PEFT adapter beside its model, which is left out' in capsys.readouterr().out
