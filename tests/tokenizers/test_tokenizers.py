"""Text tokenizers: one battery for every row of TOKENIZERS, then exactness against references."""

import collections
import functools
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt_jax.tokenizers import SPECIALS, TokenizerConfig, Tokenizers, bpe, subword
from gpt_jax.tokenizers.base import StreamDecoder
from gpt_jax.tokenizers.text import TOKENIZERS, build, load
from gpt_jax.tokenizers.vocabulary import Vocabulary
from tests.data_helpers import two_lines

KINDS = list(TOKENIZERS)
CORPUS = (
  'the cat sat on the mat, and the other cat sat there too. '
  "It's a café: naïve, 日本 日本, 😀😀 <|endoftext|> 12 12 12\n\n\tthat is that\n"
) * 8
PLAIN = CORPUS.replace('<|endoftext|>', '')
FLAGS = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
# What a row must encode and give back; chars knows only the characters of the corpus.
ANY_TEXT = st.text(st.characters(exclude_categories=('Cs',), exclude_characters='\u2581'))
CORPUS_TEXT = st.text(st.sampled_from(sorted(set(CORPUS))))


def text_of(kind):
  return CORPUS_TEXT if kind == 'chars' else ANY_TEXT


def write_gpt2(folder):
  """GPT-2 shaped files: a vocabulary of bytes and merges, then the special."""
  model = bpe.train(lambda: [CORPUS], 300)['model']
  vocab = {**model['vocab'], bpe.END_OF_TEXT: 300}
  (folder / 'vocab.json').write_text(json.dumps(vocab), encoding='utf-8')
  lines = ['#version: 0.2', *(' '.join(merge) for merge in model['merges'])]
  (folder / 'merges.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def write_llama(folder):
  """A tokenizer.json as Llama 2 has it: dummy prefix, byte fallback, special tokens."""
  specials = ['<unk>', '<s>', '</s>']
  pieces = ['▁', 't', 'h', 'e', 'c', 'a', '▁t', 'he', '▁the', '▁c', '▁ca', '▁cat']
  merges = ['▁ t', 'h e', '▁t he', '▁ c', '▁c a', '▁ca t']
  vocab = [*specials, *(f'<0x{byte:02X}>' for byte in range(256)), *pieces]
  model = {
    'version': '1.0',
    'truncation': {'direction': 'Right', 'max_length': 4, 'strategy': 'LongestFirst', 'stride': 0},
    'padding': None,
    'added_tokens': [
      {'id': i, 'content': token, 'special': True, **FLAGS} for i, token in enumerate(specials)
    ],
    'normalizer': {
      'type': 'Sequence',
      'normalizers': [
        {'type': 'Prepend', 'prepend': '▁'},
        {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'},
      ],
    },
    'pre_tokenizer': None,
    'post_processor': None,
    'decoder': {
      'type': 'Sequence',
      'decoders': [
        {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '},
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
        {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
      ],
    },
    'model': {
      'type': 'BPE',
      'unk_token': '<unk>',
      'fuse_unk': True,
      'byte_fallback': True,
      'vocab': {token: i for i, token in enumerate(vocab)},
      'merges': merges,
    },
  }
  (folder / 'tokenizer.json').write_text(json.dumps(model, indent=1), encoding='utf-8')


@functools.cache
def sentencepiece_model():
  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS.split('\n')),
    model_writer=model,
    vocab_size=310,
    model_type='bpe',
    byte_fallback=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  return model.getvalue()


@functools.cache
def make(kind):
  """One small tokenizer of each kind, from files of its own: no development data needed."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if kind == 'gpt2':
      write_gpt2(folder)
    elif kind == 'huggingface':
      write_llama(folder)
    elif kind == 'sentencepiece':
      (folder / 'llama.model').write_bytes(sentencepiece_model())
    path = name if kind in ('gpt2', 'huggingface', 'sentencepiece') else ''
    vocab = 300 if kind == 'bpe' else TokenizerConfig.vocab
    return build(TokenizerConfig(kind, path, vocab), lambda: iter([CORPUS]))


# --- the battery ---


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_text_round_trips(kind, data):
  tokenizer, text = make(kind), data.draw(text_of(kind))
  ids = tokenizer.encode(text)
  assert all(type(i) is int and 0 <= i < tokenizer.size for i in ids)
  assert tokenizer.decode(ids) == text
  assert tokenizer.decode(np.array(ids, np.uint16)) == text


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'huggingface'])
def test_literal_specials_are_ordinary_text(kind):
  tokenizer = make(kind)
  text = '<|endoftext|>' if kind == 'chars' else '<|endoftext|><s>a</s> <unk><0x41>'
  ids = tokenizer.encode(text)
  assert not set(ids) & set(tokenizer.specials.values())
  assert tokenizer.decode(ids) == text
  assert set(tokenizer.unparsed) <= {'<|endoftext|>', '<s>', '</s>'}
  assert bool(tokenizer.unparsed) == (kind in ('gpt2', 'sentencepiece'))


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_batch_encodes_like_its_rows(kind, data):
  tokenizer = make(kind)
  texts = data.draw(st.lists(text_of(kind), max_size=4)) + ['', CORPUS * 4, 'the cat ' * 400]
  assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
  assert tokenizer.encode_batch([]) == []


def test_the_library_gets_bounded_batches(monkeypatch):
  texts = ['', CORPUS * 9, 'a', '', 'the cat ' * 999]
  expected = make('gpt2').encode_batch(texts)
  monkeypatch.setattr(subword, 'BATCH', 2)
  assert make('gpt2').encode_batch(texts) == expected


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_ids_decode_and_stream_to_the_same_text(kind, data):
  tokenizer = make(kind)
  ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=30))
  whole = tokenizer.decode(ids)
  whole.encode()
  if kind != 'huggingface':  # its ByteFallback rewrites whole runs of bytes, good ones too
    assert streamed(tokenizer, ids) == whole


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_streams_never_show_half_a_character(kind, data):
  tokenizer, text = make(kind), data.draw(text_of(kind)) * data.draw(st.integers(1, 12))
  stream, ids, shown = StreamDecoder(tokenizer.decode), tokenizer.encode(text), ''
  for i in ids:
    shown += stream.push(i)
    assert text.startswith(shown)
  assert shown + stream.flush() == text


@pytest.mark.parametrize('kind', KINDS)
def test_streaming_costs_do_not_grow_with_the_text(kind):
  tokenizer, lengths = make(kind), []

  def decode(ids):
    lengths.append(len(ids))
    return tokenizer.decode(ids)

  stream, text = StreamDecoder(decode), CORPUS * 3
  assert ''.join([stream.push(i) for i in tokenizer.encode(text)]) + stream.flush() == text
  assert max(lengths) < 100


def test_bytes_that_never_become_text_are_not_held_back():
  stream = StreamDecoder(make('bytes').decode)
  shown = ''.join([stream.push(0xFF) for _ in range(9)])
  assert shown == '\ufffd' * 6
  assert ''.join([stream.push(byte) for byte in '日'.encode()]) == '\ufffd' * 3 + '日'
  assert stream.push(0xE6) == '' and stream.flush() == '\ufffd'
  assert stream.push(ord('a')) == 'a'


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'chars'])
def test_half_a_character_decodes_to_a_replacement(kind):
  tokenizer = make(kind)
  ids = tokenizer.encode('the\u0416')
  assert tokenizer.decode(ids[:-1]) == 'the\ufffd'
  assert tokenizer.decode(ids) == 'the\u0416'


def test_decode_shows_the_specials_of_gpt2():
  assert make('gpt2').decode([300]) == '<|endoftext|>'


def streamed(tokenizer, ids):
  stream = StreamDecoder(tokenizer.decode)
  return ''.join([stream.push(i) for i in ids]) + stream.flush()


@pytest.mark.parametrize('kind', KINDS)
def test_ids_out_of_range_raise(kind):
  tokenizer = make(kind)
  for wrong in (tokenizer.size, -1, 2**40):
    with two_lines(ValueError, f'id {wrong} ', tokenizer.size):
      tokenizer.decode([0, wrong])
  with two_lines(ValueError, 'float64'):
    tokenizer.decode([0.5])
  with two_lines(ValueError, '(1, 2)'):
    tokenizer.decode([[1, 2]])
  assert tokenizer.decode([]) == ''


@pytest.mark.parametrize('kind', KINDS)
def test_lone_surrogates_raise(kind):
  with two_lines(ValueError, 'U+D800', 'character 1'):
    make(kind).encode('a\ud800')


@pytest.mark.parametrize('kind', KINDS)
def test_a_saved_tokenizer_loads_equal(kind, tmp_path):
  tokenizer = make(kind)
  tokenizer.save(tmp_path / 'a')
  again = load(tmp_path / 'a')
  assert again == tokenizer and again.hash == tokenizer.hash
  assert (again.kind, again.size, again.specials) == (kind, tokenizer.size, tokenizer.specials)
  text = CORPUS if kind == 'chars' else CORPUS + 'ü \x00 😶'
  assert again.encode(text) == tokenizer.encode(text)
  again.save(tmp_path / 'b')
  assert files(tmp_path / 'a') == files(tmp_path / 'b')
  content = {'bytes': set(), 'chars': {'characters.json'}, 'sentencepiece': {'tokenizer.model'}}
  expected = content.get(kind, {'tokenizer.json'}) | {'text.json'}
  assert set(files(tmp_path / 'a')) == expected


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('kind', KINDS)
def test_altered_files_are_refused(kind, tmp_path):
  make(kind).save(tmp_path)
  for name, content in files(tmp_path).items():
    path = tmp_path / name
    middle = len(content) // 2
    damaged = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for wrong in (damaged, content[:middle], b'', b'{}'):
      path.write_bytes(wrong)
      with two_lines(ValueError, tmp_path):
        load(tmp_path)
    path.unlink()
    with two_lines(FileNotFoundError, name):
      load(tmp_path)
    path.write_bytes(content)
  described = json.loads((tmp_path / 'text.json').read_text())
  wrong = {'size': 7, 'specials': {'eos': 3}}
  altered = {key: {'fields': {**described['fields'], key: value}} for key, value in wrong.items()}
  for key, change in {**altered, 'kind': {'kind': 'gpt1'}, 'hash': {'hash': 'abc'}}.items():
    (tmp_path / 'text.json').write_text(json.dumps({**described, **change}))
    with two_lines(ValueError, key):
      load(tmp_path)
  other = 'chars' if kind == 'bytes' else 'bytes'
  (tmp_path / 'text.json').write_text(json.dumps({**described, 'kind': other}))
  with two_lines(ValueError, f'kind={other}'):
    load(tmp_path)


def test_hashes_agree_between_processes(tmp_path):
  code = f'from {__name__} import KINDS, make; print(*[make(kind).hash for kind in KINDS])'
  path = os.pathsep.join(part for part in sys.path if part)
  run = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    env={**os.environ, 'PYTHONPATH': path, 'PYTHONHASHSEED': '7'},
  )
  hashes = [make(kind).hash for kind in KINDS]
  assert run.stdout.split() == hashes
  assert len(set(hashes)) == len(KINDS)


def test_hashes_see_every_change(tmp_path):
  def chars(text):
    return build(TokenizerConfig('chars'), lambda: [text]).hash

  assert chars('abc') == chars('cabbage'[2:4] + 'ca') != chars('abd')
  write_gpt2(tmp_path)
  hashes = [build(TokenizerConfig('gpt2', str(tmp_path))).hash]
  merges = tmp_path / 'merges.txt'
  lines = merges.read_text(encoding='utf-8').split('\n')
  merges.write_text('\n'.join([lines[0], lines[2], lines[1], *lines[3:]]), encoding='utf-8')
  hashes.append(build(TokenizerConfig('gpt2', str(tmp_path))).hash)
  merges.write_text('\n'.join(lines[:-2]), encoding='utf-8')
  hashes.append(build(TokenizerConfig('gpt2', str(tmp_path))).hash)
  assert len(set(hashes)) == 3


def test_importing_is_light():
  code = (
    'import sys, gpt_jax.tokenizers; '
    'print([m for m in ("tokenizers", "sentencepiece", "jax", "torch") if m in sys.modules])'
  )
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert run.stdout.strip() == '[]'


# --- configs and files ---


@pytest.mark.parametrize(
  'fields, says',
  [
    ({'kind': 'word'}, 'tokenizer.kind=word'),
    ({'kind': 'bpe', 'vocab': 255}, 'tokenizer.vocab=255'),
    ({'kind': 'bytes', 'path': 'x'}, 'tokenizer.path=x'),
    ({'kind': 'gpt2'}, 'tokenizer.path is empty'),
    ({'kind': 'sentencepiece'}, 'tokenizer.path is empty'),
    ({'kind': 'chars', 'vocab': 300}, 'tokenizer.vocab=300'),
    ({'kind': 'bpe', 'path': 'x', 'vocab': 300}, 'tokenizer.vocab=300'),
  ],
)
def test_configs_that_cannot_be_honored_raise(fields, says):
  with two_lines(ValueError, says):
    TokenizerConfig(**fields)


@pytest.mark.parametrize('kind', ['gpt2', 'huggingface', 'sentencepiece', 'bpe', 'chars'])
def test_missing_and_empty_files_are_named(kind, tmp_path):
  with two_lines(FileNotFoundError, tmp_path):
    build(TokenizerConfig(kind, str(tmp_path)))
  with two_lines(FileNotFoundError, 'nowhere'):
    build(TokenizerConfig(kind, str(tmp_path / 'nowhere')))
  for name in ('vocab.json', 'tokenizer.json', 'tokenizer.model', 'text.json'):
    (tmp_path / name).touch()
  with two_lines(ValueError, tmp_path, 'empty'):
    build(TokenizerConfig(kind, str(tmp_path)))
  for name in ('vocab.json', 'tokenizer.json', 'tokenizer.model', 'text.json'):
    (tmp_path / name).write_bytes(b'\xffjunk' * 9)
  with two_lines(ValueError, tmp_path):
    build(TokenizerConfig(kind, str(tmp_path)))


def test_gpt2_files_must_fit_together(tmp_path):
  write_gpt2(tmp_path)
  vocab, merges = tmp_path / 'vocab.json', tmp_path / 'merges.txt'
  tokens = json.loads(vocab.read_text(encoding='utf-8'))
  cfg = TokenizerConfig('gpt2', str(tmp_path))
  for wrong, says in [
    ({**tokens, 'extra': 900}, '0, 1, 2'),
    ({token: i for i, token in enumerate(list(tokens)[1:])}, "'Ā'"),
    ([1], '0, 1, 2'),
    ({**tokens, 'a': []}, '0, 1, 2'),
    ({**tokens, 'a': True}, '0, 1, 2'),
  ]:
    vocab.write_text(json.dumps(wrong), encoding='utf-8')
    with two_lines(ValueError, vocab, says):
      build(cfg)
  vocab.write_text(json.dumps(tokens), encoding='utf-8')
  for wrong, says in [('t h\nq\n', "'q'"), ('#version: 0.2\n', 'merges.txt'), ('z q\n', 'zq')]:
    merges.write_text(wrong, encoding='utf-8')
    with two_lines(ValueError, tmp_path, says):
      build(cfg)
  (tmp_path / 'merges.txt').rename(tmp_path / 'vocab.bpe')
  (tmp_path / 'vocab.json').rename(tmp_path / 'encoder.json')
  write_gpt2(tmp_path)
  (tmp_path / 'vocab.bpe').write_bytes((tmp_path / 'merges.txt').read_bytes())
  by_other_names = tmp_path / 'other'
  by_other_names.mkdir()
  for name, other in [('vocab.json', 'encoder.json'), ('merges.txt', 'vocab.bpe')]:
    (tmp_path / name).rename(by_other_names / other)
  assert build(TokenizerConfig('gpt2', str(by_other_names))) == make('gpt2')


def test_unknown_characters_are_named():
  with two_lines(ValueError, "'ß'", 'U+00DF', '33 characters'):
    make('chars').encode('the caß')
  with two_lines(ValueError, 'U+1F636'):
    make('chars').encode('the ca😶')  # beyond the last character of the alphabet
  with two_lines(ValueError, 'are empty'):
    build(TokenizerConfig('chars'))


def test_a_trained_tokenizer_is_found_by_its_path(tmp_path):
  for kind in ('bpe', 'chars'):
    make(kind).save(tmp_path)
    assert build(TokenizerConfig(kind, str(tmp_path))) == make(kind)
  with two_lines(ValueError, 'chars', 'bpe'):
    build(TokenizerConfig('bpe', str(tmp_path)))


def test_huggingface_roles_and_truncation(tmp_path):
  write_llama(tmp_path)
  cfg = TokenizerConfig('huggingface', str(tmp_path))
  assert build(cfg).specials == {'bos': 1, 'eos': 2}
  assert len(build(cfg).encode('the cat the cat the cat')) == 6  # the file asks for 4 at most
  config = {'bos_token': None, 'eos_token': {'content': '</s>'}, 'pad_token': '</s>'}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  assert build(cfg).specials == {'eos': 2}  # a pad that is eos would hide every eos
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'pad_token': '<unk>'}))
  assert build(TokenizerConfig('huggingface', f'{tmp_path}/tokenizer.json')).specials == {'pad': 0}
  for wrong in ([], {'bos_token': 5}, {'eos_token': ['</s>']}):
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(wrong))
    with two_lines(ValueError, 'tokenizer_config.json'):
      build(cfg)


def test_a_saved_gpt2_is_an_ordinary_tokenizer_json(tmp_path):
  make('gpt2').save(tmp_path)
  again = build(TokenizerConfig('huggingface', str(tmp_path)))
  assert again.encode(PLAIN) == make('gpt2').encode(PLAIN)
  assert again.encode('<|endoftext|>') == [300]  # an imported tokenizer parses its special tokens
  assert again.specials == make('gpt2').specials == {'eos': 300}


@pytest.mark.parametrize('spelling', ['<unused{}>', '<|reserved_special_token_{}|>', '[unused{}]'])
def test_missing_specials_take_the_ids_that_a_tokenizer_sets_aside(spelling, tmp_path):
  make('gpt2').save(tmp_path)
  path = tmp_path / 'tokenizer.json'
  model = json.loads(path.read_text())
  spare = [{'id': 301 + i, 'content': spelling.format(i), 'special': True, **FLAGS} for i in range(16)]

  def extended(tokens):
    path.write_text(json.dumps({**model, 'added_tokens': [*model['added_tokens'], *tokens]}))
    toks = Tokenizers.build(build(TokenizerConfig('huggingface', str(path))), specials=())
    return toks.vocabulary, toks.extend().vocabulary

  old, new = extended(spare)
  assert new.size == old.size == 317
  assert set(dict(new.specials)) == set(SPECIALS)
  assert new.special('eos') == 300
  assert {index for name, index in new.specials if name != 'eos'} == {*range(301, 316)}
  old, new = extended(spare[:14])  # one too few: all have new ids
  assert new.size == old.size + 15


def with_prefix(model):
  return {**model, 'normalizer': {'type': 'Prepend', 'prepend': 'the'}}


def with_added_words(model):
  added = {'id': 301, 'content': 'cat sat', 'special': False, **FLAGS}
  return {**model, 'added_tokens': [added]}


def with_tokens_across_words(model):
  inner = {
    **model['model'],
    'vocab': {**model['model']['vocab'], 'eĠ': 301},
    'merges': [*model['model']['merges'], ['e', 'Ġ']],
  }
  return {**model, 'model': inner, 'pre_tokenizer': {**bpe.BYTE_LEVEL, 'use_regex': False}}


@pytest.mark.parametrize('change', [with_prefix, with_added_words, with_tokens_across_words])
def test_long_texts_are_cut_only_where_that_changes_nothing(change, tmp_path):
  from tokenizers import Tokenizer

  make('gpt2').save(tmp_path)
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(change(json.loads(path.read_text()))))
  text = 'the cat sat e z yy ' * 2999  # cuts come at every word of it
  expected = Tokenizer.from_file(str(path)).encode(text).ids
  assert build(TokenizerConfig('huggingface', str(path))).encode(text) == expected
  assert expected != make('gpt2').encode(text)


def test_sentencepiece_drops_only_the_space_in_front():
  tokenizer = make('sentencepiece')
  assert tokenizer.specials == {'bos': 1, 'eos': 2}
  for text in ('the cat', ' the cat', '  the  cat ', ' ', '', '\nthe', '日ø'):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.decode([1, *ids, 2]) == text
  ids = tokenizer.encode('ø')
  assert [tokenizer.decode(ids[:n]) for n in (1, 2, 3)] == ['', '\ufffd', 'ø']
  assert streamed(tokenizer, tokenizer.encode('the cat')) == 'the cat'


# --- training ---


def naive_merges(words, vocab):
  """The definition, counting everything anew for every merge."""
  words = {word: ([bytes([byte]) for byte in word], count) for word, count in words.items()}
  tokens, merges = {bytes([byte]) for byte in range(256)}, []
  while len(tokens) < vocab:
    totals = collections.Counter()
    for parts, count in words.values():
      for pair in zip(parts, parts[1:], strict=False):
        totals[pair] += count
    best = max(totals, key=lambda pair: (totals[pair], pair), default=None)
    if best is None or totals[best] < 2:
      return merges
    tokens.add(b''.join(best))
    merges.append(best)
    for word, (parts, count) in words.items():
      merged = []
      for part in parts:
        # A part that was just made is marked, so that it cannot join a second pair.
        if merged and merged[-1] == best[0] and part == best[1]:
          merged[-1] = [b''.join(best)]
        else:
          merged.append(part)
      words[word] = ([m[0] if isinstance(m, list) else m for m in merged], count)
  return merges


@settings(max_examples=100, deadline=None)
@given(
  st.dictionaries(
    st.lists(st.sampled_from(b'ab\xff'), min_size=1, max_size=12).map(bytes), st.integers(1, 5), max_size=12
  ),
  st.integers(256, 290),
)
@example({b'aaaa': 3, b'aaa': 2, b'aa': 1}, 262)
def test_bpe_training_matches_a_naive_trainer(words, vocab):
  expected = naive_merges(words, vocab)
  assert bpe.learn_merges(words, vocab) == expected


def test_a_text_that_repeats_too_little_has_fewer_tokens_which_is_logged(caplog):
  model = bpe.train(lambda: ['aaa aaa'], 300)
  assert len(model['model']['vocab']) == 258
  assert (
    'tokenizer.vocab=300: the text is too small for so many; the vocabulary has 258 tokens' in caplog.text
  )


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT, st.integers(1, 9))
@example('a  b\n\nc \n d\x1c \x85e\u3000 f', 1)
def test_cutting_a_text_changes_no_word(text, size):
  from tokenizers import pre_tokenizers

  split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
  parts = list(bpe.pieces(text, size))
  assert ''.join(parts) == text
  assert [w for part in parts for w, _ in split(part)] == [w for w, _ in split(text)]


def test_ids_of_a_trained_bpe_are_bytes_then_merges():
  tokenizer = make('bpe')
  assert (tokenizer.size, tokenizer.specials) == (300, {})
  assert tokenizer.encode('\x00zQ') == [0, ord('z'), ord('Q')]
  assert len(tokenizer.encode(CORPUS)) < len(CORPUS) / 2


def test_bpe_training_ignores_document_order_and_end_of_text_marks():
  documents = [f'{CORPUS[i : i + 60]}' for i in range(0, len(CORPUS), 60)]
  merges = bpe.train(lambda: documents, 300)
  random.Random(0).shuffle(documents)
  assert bpe.train(lambda: documents, 300) == merges
  marked = bpe.train(lambda: [CORPUS.replace(' ', '<|endoftext|>')], 270)
  assert not any('|' in token or '>' in token for token in list(marked['model']['vocab'])[256:])


# --- the bundle ---


def test_specials_alias_what_the_text_tokenizer_has():
  tokenizers = Tokenizers.build(make('gpt2'))
  vocabulary = tokenizers.vocabulary
  assert vocabulary.ranges == (('text', 301), ('special', 15))
  assert [name for name, _ in vocabulary.specials] == list(SPECIALS)
  assert (vocabulary.special('eos'), vocabulary.special('pad')) == (300, 301)
  assert vocabulary.kind(300) == 'text' and vocabulary.padded == 384
  imported = Tokenizers.build(make('gpt2'), specials=(), multiple=1)
  assert imported.vocabulary == Vocabulary((('text', 301),), (('eos', 300),), 1)


def test_text_ids_are_the_tokenizers_own_and_specials_are_skipped():
  tokenizers = Tokenizers.build(make('gpt2'))
  bos, eos = (tokenizers.vocabulary.special(name) for name in ('bos', 'eos'))
  ids = tokenizers.encode_text('the café')
  assert ids == make('gpt2').encode('the café')
  assert tokenizers.decode_text([bos, *ids, eos]) == 'the café'
  assert tokenizers.decode_text(np.array([], np.int32)) == ''
  stream = tokenizers.stream_decoder()
  shown = [stream.push(i) for i in [bos, *ids, eos]]
  assert (shown[0], ''.join(shown) + stream.flush()) == ('', 'the café')
  with two_lines(ValueError, '900'):
    tokenizers.decode_text([900])
  with two_lines(ValueError, '(1, 2)'):
    tokenizers.decode_text([[1, 2]])


@pytest.mark.parametrize('kind', KINDS)
def test_bundle_round_trip(kind, tmp_path):
  tokenizers = Tokenizers.build(make(kind))
  tokenizers.save(tmp_path)
  again = Tokenizers.load(tmp_path)
  assert again == tokenizers and again.hash == tokenizers.hash
  assert tokenizers.hash != Tokenizers.build(make(kind), specials=('pad',)).hash


def test_an_altered_bundle_is_refused(tmp_path):
  Tokenizers.build(make('bytes')).save(tmp_path)
  path = tmp_path / 'vocabulary.json'
  saved = json.loads(path.read_text())
  for wrong in ({**saved, 'multiple': 64}, {}, [], {**saved, 'hash': ''}):
    path.write_text(json.dumps(wrong))
    with two_lines(ValueError):
      Tokenizers.load(tmp_path)
  path.write_text(json.dumps(saved))
  make('chars').save(tmp_path)
  with two_lines(ValueError, '256 text ids', 'chars'):
    Tokenizers.load(tmp_path)
  path.unlink()
  with two_lines(FileNotFoundError, 'vocabulary.json'):
    Tokenizers.load(tmp_path)


# --- references ---


@pytest.fixture
def gpt2(data_dir):
  return build(TokenizerConfig('gpt2', str(data_dir / 'gpt2_bpe')))


def test_gpt2_encodes_the_reference_strings(data_dir, gpt2):
  cases = json.loads((data_dir / 'gpt2_bpe/reference_ids.json').read_text(encoding='utf-8'))
  assert len(cases) == 17
  assert gpt2.encode_batch([case['text'] for case in cases]) == [case['ids'] for case in cases]
  for case in cases:
    assert gpt2.decode(case['ids']) == streamed(gpt2, case['ids']) == case['text']
  assert (gpt2.size, gpt2.specials) == (50257, {'eos': 50256})


def test_gpt2_counts_tiny_shakespeare_and_wikitext(data_dir, gpt2):
  text = (data_dir / 'tinyshakespeare/input.txt').read_text(encoding='utf-8')
  cut = int(0.9 * len(text))
  assert [len(ids) for ids in gpt2.encode_batch([text[:cut], text[cut:]])] == [301966, 36059]
  raw = (data_dir / 'wikitext2/wiki.test.raw.canonical').read_bytes().decode()
  assert len(gpt2.encode(raw)) == 286221
  rows = [row + '\n' if row.strip() else '' for row in raw.split('\n')[:-1]]
  assert len(gpt2.encode('\n\n'.join(rows))) == 287644


def test_chars_are_nanogpts_65(data_dir):
  text = (data_dir / 'tinyshakespeare/input.txt').read_text(encoding='utf-8')
  tokenizer = build(TokenizerConfig('chars'), lambda: [text])
  assert tokenizer.size == 65
  assert tokenizer.encode('\n A') == [0, 1, 13]
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_trainer_learns_the_reference_merges_in_time(data_dir):
  folder = data_dir / 'bpe_train_fixture'
  lines = (folder / 'train-bpe-reference-merges.txt').read_text(encoding='utf-8').splitlines()
  corpus = (folder / 'corpus.en').read_bytes().decode()
  start = time.process_time()
  model = bpe.train(lambda: [corpus], 256 + 243)['model']
  seconds = time.process_time() - start
  assert model['merges'] == [line.split(' ') for line in lines]
  reference = json.loads((folder / 'train-bpe-reference-vocab.json').read_text(encoding='utf-8'))
  assert {*model['vocab'], bpe.END_OF_TEXT} == set(reference)
  assert seconds < 1.5


def test_end_of_text_in_stories_is_never_learned(data_dir):
  stories = (data_dir / 'bpe_train_fixture/tinystories_sample.txt').read_text(encoding='utf-8')
  assert stories.count(bpe.END_OF_TEXT) == 5
  tokens = bpe.train(lambda: [stories], 400)['model']['vocab']
  assert not any('<|' in token or '|>' in token for token in tokens)
