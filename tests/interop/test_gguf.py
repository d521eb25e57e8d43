"""GGUF files: the weights and logits of the folder that they were made of, and errors in two lines."""

import contextlib
import json
import os
import pathlib
import struct
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt_jax.evaluation import trained
from gpt_jax.interop import families, gguf_files, gguf_tokenizers, huggingface
from gpt_jax.model.config import ModelConfig
from gpt_jax.tokenizers import bpe
from tests import models
from tests.interop.test_interop import SIZES, fails, hf, our_logits, rows, their_logits, write
from tests.tokenizers.test_tokenizers import CORPUS, make

gguf = pytest.importorskip('gguf', reason='gguf is not installed: pip install .[gguf]')
__all__ = ['hf']  # a fixture
NAMES = {'llama': 'llama', 'gpt2': 'gpt2', 'qwen3': 'qwen3'}  # row of OURS: architecture
GEMMA = dict(head_dim=6, mlp='geglu')
# architecture: (fields of ModelConfig besides those of all its models, metadata besides KEYS)
OTHERS = {
  'qwen2': (dict(kv_heads=2, tied_head=False, rope_theta=900.0), {}),
  'gemma': (GEMMA | dict(kv_heads=1), {'attention.value_length': 6, 'rope.dimension_count': 6}),
  'gemma2': (
    GEMMA | dict(kv_heads=2, window=5, layer_pattern='SL', attention_softcap=2.0, logit_softcap=3.0),
    {'attn_logit_softcapping': 2.0, 'final_logit_softcapping': 3.0, 'attention.value_length': 6},
  ),
  'phi3': (
    dict(kv_heads=2, tied_head=False, window=5, width=32, rope_fraction=0.5),
    {'rope.dimension_count': 4, 'rope.scaling.original_context_length': 32},
  ),
  'starcoder2': (dict(kv_heads=2, mlp='gelu', attention_bias=True, mlp_bias=True, rope_theta=500.0), {}),
}


def permuted(array, heads):
  """As convert_hf_to_gguf.py orders the rows of q and k of a Llama."""
  return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def convert(folder, path, arch, quantization=None, tokenizer=None, change=lambda writer: None):
  """Write the GGUF of an exported folder, as llama.cpp's converter does."""
  content, files = json.loads((folder / 'config.json').read_text()), load_file(folder / 'model.safetensors')
  writer, keys = gguf.GGUFWriter(path, arch), gguf_files.KEYS
  names = gguf_files.ARCHITECTURES[arch].keys
  for key, place in keys.items():
    value = content.get(names.get(key, key))
    if value is not None and key != 'vocab_size':
      add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
      add(f'{arch}.{place}', value)
  layers = content.get('num_hidden_layers', content.get('n_layer'))
  table = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), layers)
  for name, array in files.items():
    own = table.get_name(name, try_suffixes=('.weight', '.bias'))
    if arch == 'llama' and '_proj' in name and ('.q_' in name or '.k_' in name):
      array = permuted(array, content['num_attention_heads' if '.q_' in name else 'num_key_value_heads'])
    if arch.startswith('gemma') and name.endswith('norm.weight'):
      array = array + 1
    if arch == 'gpt2' and own.startswith('blk.'):
      array = array.T.copy()
    if quantization and array.ndim == 2 and array.shape[1] % 32 == 0:
      writer.add_tensor(own, gguf.quants.quantize(array, quantization), raw_dtype=quantization)
    else:
      writer.add_tensor(own, array)
  if tokenizer:
    tokenizer(writer)
  change(writer)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def add_bytes(writer):
  """A byte-level BPE of the 256 bytes, two merges and a special token, with bos before every text."""
  characters = gguf_tokenizers.bpe.byte_characters()
  tokens = [*characters, 'th', 'the', '<|end|>', '<|eot|>']
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('gpt-2')
  writer.add_token_list(tokens)
  writer.add_token_types([1] * 258 + [3, 3])
  writer.add_token_merges(['t h', 'th e'])
  writer.add_bos_token_id(258)
  writer.add_eos_token_id(258)
  writer.add_eot_token_id(259)
  writer.add_add_bos_token(True)
  writer.add_chat_template('{{ messages }}')


@pytest.mark.parametrize('name', NAMES)
def test_gguf_equals_its_folder(name, tmp_path):
  write(tmp_path / 'hf', name, **(dict(attention_bias=False) if name == 'qwen3' else {}))
  path = convert(tmp_path / 'hf', tmp_path / 'm.gguf', NAMES[name])
  back, model, toks = huggingface.import_model(path)
  cfg, expected, _ = huggingface.import_model(tmp_path / 'hf')
  assert toks is None
  for key, value in vars(cfg).items():
    if key not in ('init_std', 'attention_bias'):  # of which GGUF says nothing
      assert getattr(back, key) == (pytest.approx(value) if isinstance(value, float) else value), key
  ours, theirs = models.params(model), models.params(expected)
  assert ours.keys() == theirs.keys()
  for key in ours:
    np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


@pytest.mark.parametrize('name', OTHERS)
def test_gguf_logits_equal_those_of_its_folder(name, tmp_path):
  """Window, soft-caps, packed matrices, norms of 1 + scale, biases and a partly rotated head."""
  fields, metadata = OTHERS[name]
  cfg = ModelConfig(**SIZES | fields | families.FAMILIES[name].always)
  model = models.fill(cfg.resolved())
  if name == 'qwen2':  # whose outputs have no bias
    model.blocks.attention.o_bias_D.set_value(model.blocks.attention.o_bias_D.get_value() * 0)
  assert huggingface.export_model(cfg, model, None, tmp_path / 'hf', name) == name

  def change(writer):
    for key, value in metadata.items():
      (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f'{name}.{key}', value)

  path = convert(tmp_path / 'hf', tmp_path / 'm.gguf', name, change=change)
  _, ours, _ = huggingface.import_model(path)
  ids_BT = rows(cfg.vocab)
  np.testing.assert_allclose(our_logits(ours, ids_BT), our_logits(model, ids_BT), atol=1e-5)


def test_every_architecture_has_a_test():
  assert {*NAMES.values(), *OTHERS, 'gemma3'} == set(gguf_files.ARCHITECTURES)


def test_llama_logits_equal_transformers(hf, tmp_path):
  pytest.importorskip('accelerate')
  write(tmp_path / 'hf', 'llama', vocab=260)
  convert(tmp_path / 'hf', tmp_path / 'm.gguf', 'llama', tokenizer=add_bytes)
  theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file='m.gguf', dtype='float32')
  _, ours, _ = huggingface.import_model(tmp_path / 'm.gguf')
  ids_BT = rows(260)
  assert np.abs(our_logits(ours, ids_BT) - their_logits(theirs, ids_BT)).max() < 1e-4


@pytest.mark.parametrize('name', ['F16', 'BF16', 'Q8_0', 'Q4_0', 'Q5_0'])
def test_quantized_matrices_are_dequantized(name, tmp_path):
  write(tmp_path / 'hf', 'llama', width=32, hidden=64)
  quantization = gguf.GGMLQuantizationType[name]
  convert(tmp_path / 'hf', tmp_path / 'm.gguf', 'llama', quantization)
  _, model, _ = huggingface.import_model(tmp_path / 'm.gguf')
  embed_VD = load_file(tmp_path / 'hf/model.safetensors')['model.embed_tokens.weight']
  expected = gguf.quants.dequantize(gguf.quants.quantize(embed_VD, quantization), quantization)
  np.testing.assert_array_equal(models.params(model)['embed_VD'][: len(embed_VD)], expected)
  assert 0 < np.abs(expected - embed_VD).max() < 0.3


def test_rope_of_llama3_is_read_from_its_divisors(tmp_path):
  write(tmp_path / 'hf', 'llama')
  turns = 8192 * 10000 ** (-np.arange(0, 6, 2) / 6) / (2 * np.pi)
  divisors = [1.0 if n > 4 else 8.0 if n < 1 else 1 / ((4 - n) / 3 / 8 + (n - 1) / 3) for n in turns]
  add = lambda values: lambda writer: writer.add_tensor('rope_freqs.weight', np.array(values, np.float32))
  convert(tmp_path / 'hf', tmp_path / 'a.gguf', 'llama', change=add([*divisors[:2], 8.0]))
  if divisors[2] != 8.0:  # the slowest pair must show the whole factor
    with fails('rope_freqs.weight'):
      huggingface.import_model(tmp_path / 'a.gguf')
  convert(tmp_path / 'hf', tmp_path / 'b.gguf', 'llama', change=add([3.0, 3.0, 3.0]))
  with fails('rope_freqs.weight', 'Llama 3'):
    huggingface.import_model(tmp_path / 'b.gguf')


def test_metadata_of_gemma3_become_its_config(tmp_path):
  metadata = {'general.architecture': 'gemma3', 'gemma3.block_count': 7, 'gemma3.attention.head_count': 4}
  metadata |= {
    'gemma3.embedding_length': 640,
    'gemma3.attention.key_length': 256,
    'gemma3.rope.freq_base': 1e6,
  }
  content = gguf_files.read_config(gguf_files.GGUF(tmp_path, metadata, {}))
  assert content['model_type'] == 'gemma3_text'
  assert [kind[0] for kind in content['layer_types']] == list('sssssfs')
  assert content['rope_parameters']['full_attention'] == {'rope_type': 'default', 'rope_theta': 1e6}
  assert content['rope_parameters']['sliding_attention']['rope_theta'] == 1e4
  assert content['query_pre_attn_scalar'] == 256
  metadata |= {'gemma3.rope.scaling.type': 'linear', 'gemma3.rope.scaling.factor': 8.0}
  scaled = gguf_files.read_config(gguf_files.GGUF(tmp_path, metadata, {}))['rope_parameters']
  assert scaled['full_attention'] == {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6}
  assert scaled['sliding_attention'] == {'rope_type': 'default', 'rope_theta': 1e4}


@pytest.mark.parametrize(
  ('key', 'usual', 'other'),
  [
    ('rope.dimension_count', 256, 128),
    ('attention.value_length', 256, 128),
    ('attention.scale', 1 / 16, 1.0),
    ('rope.scaling.attn_factor', 1.0, 2.0),
    ('rope.scaling.yarn_beta_fast', 32.0, 16.0),
  ],
)
def test_a_setting_that_has_no_key_in_config_json_is_refused(tmp_path, key, usual, other):
  metadata = {'general.architecture': 'gemma3', 'gemma3.block_count': 7, 'gemma3.attention.head_count': 4}
  metadata |= {'gemma3.embedding_length': 640, 'gemma3.attention.key_length': 256}
  gguf_files.read_config(gguf_files.GGUF(tmp_path, metadata | {f'gemma3.{key}': usual}, {}))
  with fails(f'{key}={other} cannot be imported'):
    gguf_files.read_config(gguf_files.GGUF(tmp_path, metadata | {f'gemma3.{key}': other}, {}))


@pytest.mark.parametrize(('pre', 'is_llama3'), [('gpt-2', False), ('llama-bpe', True)])
def test_a_file_that_does_not_say_so_begins_with_bos_where_llama_cpp_does(tmp_path, pre, is_llama3):
  tokens = [*bpe.byte_characters(), 'he', '<|b|>', '<|e|>']
  metadata = {'model': 'gpt2', 'pre': pre, 'tokens': tokens, 'merges': ['h e']}
  metadata |= {'token_type': [1] * 257 + [3, 3], 'bos_token_id': 257, 'eos_token_id': 258}
  metadata = {f'tokenizer.ggml.{key}': value for key, value in metadata.items()}
  tokenizer = gguf_tokenizers.read_tokenizer(gguf_files.GGUF(tmp_path, metadata, {}))
  assert tokenizer.begin() == [257] * is_llama3
  assert json.loads(tokenizer.files()['tokenizer.json'])['model']['ignore_merges'] is is_llama3


def test_tokenizer_and_end_tokens_are_read_from_the_file(tmp_path):
  write(tmp_path / 'hf', 'llama', vocab=260)
  convert(tmp_path / 'hf', tmp_path / 'm.gguf', 'llama', tokenizer=add_bytes)
  (tmp_path / 'tokenizer.json').write_text('{}')  # of another model in this folder
  huggingface.import_run(tmp_path / 'm.gguf', tmp_path / 'run')
  run = trained.load(tmp_path / 'run')
  assert dict(run.tokenizers.vocabulary.specials) == {'bos': 258, 'eos': 258, 'eos2': 259}
  assert run.cfg.sample.begin == run.tokenizers.start == 'bos'
  assert run.tokenizers.encode_text('the<|eot|>') == [257, 259]
  assert run.tokenizers.text.files()['chat_template.jinja'] == b'{{ messages }}'
  assert run.cfg.tokenizer.path == str(tmp_path / 'run/tokenizer')


def test_sentencepiece_tokens_are_read_from_the_file(tmp_path):
  from sentencepiece import SentencePieceProcessor

  own = make('sentencepiece')
  processor = SentencePieceProcessor(model_proto=own.files()['tokenizer.model'])
  count = range(len(processor))
  types = [
    2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
    for i in count
  ]
  metadata = {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': [processor.id_to_piece(i) for i in count],
    'tokenizer.ggml.scores': [processor.get_score(i) for i in count],
    'tokenizer.ggml.token_type': types,
    'tokenizer.ggml.bos_token_id': processor.bos_id(),
    'tokenizer.ggml.eos_token_id': processor.eos_id(),
    'tokenizer.ggml.unknown_token_id': processor.unk_id(),
  }
  tokenizer = gguf_tokenizers.read_tokenizer(gguf_files.GGUF(tmp_path, metadata, {}))
  assert tokenizer.begin() == [processor.bos_id()]
  string = 'the cat \u2603 sat'
  assert tokenizer.encode(string) == own.encode(string)
  assert tokenizer.decode(tokenizer.encode(string)) == string


def test_damaged_files_fail_in_two_lines(tmp_path, monkeypatch):
  write(tmp_path / 'hf', 'llama')
  path = convert(tmp_path / 'hf', tmp_path / 'm.gguf', 'llama', tokenizer=add_bytes)
  content = path.read_bytes()
  for size in (0, 3, 20, 100, 1500, 4000, len(content) // 2, len(content) - 40):
    path.write_bytes(content[:size])
    with fails(str(path)):
      huggingface.import_model(path)
  rng = np.random.default_rng(0)
  for place in rng.integers(0, 3000, 60):  # counts, types and lengths among them
    path.write_bytes(content[:place] + rng.bytes(8) + content[place + 8 :])
    with contextlib.suppress(ValueError):
      gguf_files.read_config(gguf_files.open_gguf(path))
  header = content.index(b'output_norm.weight') + len('output_norm.weight') + 4 + 8
  path.write_bytes(content[:header] + struct.pack('<I', 99) + content[header + 4 :])
  with fails('output_norm.weight', '99'):
    huggingface.import_model(path)
  path.write_bytes(content.replace(b'\5\0\0\0\0\0\0\0llama', b'\5\0\0\0\0\0\0\0mamba', 1))
  with fails(str(path), 'mamba'):
    huggingface.import_model(path)
  (tmp_path / 'n.gguf').write_bytes(content)
  with fails('2 GGUF files'):
    huggingface.import_model(tmp_path)
  monkeypatch.setitem(sys.modules, 'gguf', None)
  with fails(str(path), 'gguf package'):
    huggingface.import_model(path)


@pytest.mark.slow
def test_gemma3_equals_transformers(hf, tmp_path):
  """Real weights in five block formats, and their dequantized folder."""
  folder = pathlib.Path(os.environ.get('GPT_JAX_MODELS', '~/.cache/gpt_jax/models')).expanduser()
  files = sorted(folder.glob('gemma-3-270m*.gguf'))
  if not files or not (folder / 'hf/model.safetensors').exists():
    pytest.skip(f'no Gemma 3 270M in {folder}: set GPT_JAX_MODELS')
  _, model, toks = huggingface.import_model(files[0])
  theirs = hf.AutoModelForCausalLM.from_pretrained(folder / 'hf')
  tokenizer = hf.AutoTokenizer.from_pretrained(folder / 'hf')
  for string in (CORPUS[:2000], '  two  spaces\n\n\n\ttab', '<start_of_turn>user\nhi<end_of_turn>'):
    assert toks.encode_text(string) == tokenizer(string, add_special_tokens=False)['input_ids']
  ids_BT = np.array([[2, *toks.encode_text('The capital of France is')]], np.int32)
  logits_BTV = np.asarray(models.logits(model, ids_BT))[..., : model.cfg.vocab]
  assert np.abs(logits_BTV - their_logits(theirs, ids_BT)).max() < 1e-3
