"""Caches hold exactly the tokens, are made once, and are made again when they are broken."""

import dataclasses
import json
import logging
import multiprocessing
import os
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data import DataConfig, Source, cache, documents, token_cache
from gpt_jax.data.cache import read_cache
from gpt_jax.runs import progress, records
from gpt_jax.tokenizers import TokenizerConfig, Tokenizers, text
from tests.data_helpers import byte_tokenizers, text_of


@pytest.fixture
def corpus(tmp_path):
  """A mixture of three JSON documents, all for training."""

  def write(docs=('one', 'two é', '')):
    lines = [json.dumps({'text': doc}) + '\n' for doc in docs]
    (tmp_path / 'a.jsonl').write_text(''.join(lines))
    return DataConfig({'x': Source('jsonl', str(tmp_path / 'a.jsonl'))}, valid_fraction=0.0)

  return write


ARRAYS = ('.ids.npy', '.offsets.npy', '.media_hashes.npy')


def make(cfg, folder, tokenizers=None, split='train'):
  return token_cache(cfg, 'x', tokenizers or byte_tokenizers(), split, folder / 'cache')


def test_ids_offsets_and_bytes(corpus, tmp_path):
  made = make(corpus(), tmp_path)
  assert made.ids.tolist() == [*b'one', 256, *'two é'.encode(), 256, 256]
  assert made.offsets.tolist() == [0, 4, 11]
  assert made.bytes == len('onetwo é'.encode())
  assert made.ids.dtype == np.uint16
  assert isinstance(made.ids, np.memmap)
  names = [made.path.with_suffix(suffix).name for suffix in ARRAYS]
  assert sorted(os.listdir(tmp_path / 'cache')) == sorted([made.path.name, *names])  # nothing temporary


def test_a_long_pass_says_how_far_it_is(corpus, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(progress, 'SECONDS', 0.0)
  monkeypatch.setattr(cache, 'BATCH_DOCUMENTS', 1)
  make(corpus(), tmp_path)
  lines = capsys.readouterr().err.splitlines()
  assert [line.partition(' in ')[0] for line in lines] == [
    f'tokenizing x (train): {n} documents' for n in (1, 2, 3)
  ]


def test_special_tokens_that_become_plain_text_are_counted(corpus, tmp_path, caplog):
  tokenizers = byte_tokenizers()
  tokenizers.text.unparsed = ('<|end|>', '<|im_start|>')
  made = make(corpus(('a<|end|>b<|end|>', '<|en|>', 'c<|end|>')), tmp_path, tokenizers)
  assert made.notes == {'spellings of <|end|> encoded as plain text': 3}
  assert '3 spellings of <|end|> encoded as plain text' in caplog.text


@given(docs=st.lists(st.text(max_size=30), min_size=2, max_size=30))
@settings(max_examples=25, deadline=None)
def test_cached_documents_round_trip(tmp_path_factory, docs):
  folder = tmp_path_factory.mktemp('docs')
  (folder / 'a.jsonl').write_text(''.join(json.dumps({'text': doc}) + '\n' for doc in docs))
  cfg = DataConfig({'x': Source('jsonl', str(folder / 'a.jsonl'))}, valid_fraction=0.0)
  made = make(cfg, folder)
  ends = [*made.offsets[1:], len(made.ids)]
  pieces = [made.ids[a:b] for a, b in zip(made.offsets, ends, strict=True)]
  assert [text_of(piece) for piece in pieces] == docs
  assert all(piece[-1] == 256 for piece in pieces)


def test_the_only_text_of_a_source_has_no_eos(tmp_path):
  (tmp_path / 'a.txt').write_text('alone')
  mixture = {'x': Source('text', str(tmp_path / 'a.txt'))}
  cfg = DataConfig(mixture, valid_fraction=0.0)
  alone = make(cfg, tmp_path)
  assert alone.ids.tolist() == [*b'alone'] and alone.start == -1
  tokenizers = byte_tokenizers()
  tokenizers.start, tokenizers.vocabulary.specials = 'bos', (('bos', 257), ('eos', 256))
  assert make(cfg, tmp_path, tokenizers).start == 257  # an imported model that begins every text with bos


def test_large_vocabularies_get_32_bits(corpus, tmp_path):
  assert make(corpus(), tmp_path, byte_tokenizers(padded=65536)).ids.dtype == np.uint16
  wide = byte_tokenizers(padded=65664, name='wide')
  assert make(corpus(['a', 'b', 'c']), tmp_path, wide).ids.dtype == np.uint32


def test_the_tokenizer_runs_once(corpus, tmp_path):
  first, second = byte_tokenizers(), byte_tokenizers()
  assert make(corpus(), tmp_path, first).path == make(corpus(), tmp_path, second).path
  assert (len(first.text.calls), len(second.text.calls)) == (1, 0)


def test_any_change_makes_another_cache(corpus, tmp_path):
  cfg = corpus()
  paths = [make(cfg, tmp_path).path, make(cfg, tmp_path, byte_tokenizers(name='other')).path]
  source = Source('jsonl', cfg.mixture['x'].path, template='* {text}')
  paths.append(make(DataConfig({'x': source}, valid_fraction=0.0), tmp_path).path)
  split = DataConfig(cfg.mixture, valid_fraction=0.4)
  paths += [make(split, tmp_path, split=name).path for name in ('train', 'valid')]
  paths.append(make(corpus(['one', 'two', '']), tmp_path).path)
  assert len(set(paths)) == 6


def test_long_documents_are_cut_only_where_that_is_exact(corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(cache, 'BATCH_CHARACTERS', 10)
  docs = ['é' * 35, 'b', '', 'c' * 10, 'd' * 9]
  tokenizers, whole = byte_tokenizers(), byte_tokenizers(name='whole')
  whole.text.kind = 'bpe'
  one, other = make(corpus(docs), tmp_path, tokenizers), make(corpus(docs), tmp_path, whole)
  assert tokenizers.text.calls == [[10], [10], [10], [5, 1, 0, 10], [9]]
  assert whole.text.calls == [[35], [1, 0, 10], [9]]
  assert one.ids.tolist() == other.ids.tolist()
  assert one.offsets.tolist() == other.offsets.tolist() == [0, 71, 73, 74, 85]


@pytest.mark.parametrize('damage', ['truncated', 'grown', 'emptied', 'foreign', 'missing', 'flipped'])
@pytest.mark.parametrize('suffix', ['.json', '.ids.npy', '.offsets.npy'])
def test_broken_caches_are_found_and_written_again(corpus, tmp_path, caplog, suffix, damage):
  foreign = make(corpus(['TWO é', 'one', '']), tmp_path).path  # arrays of the same sizes
  path = make(corpus(), tmp_path).path
  content = path.with_suffix(suffix).read_bytes()
  damaged = {
    'truncated': content[:-3],
    'grown': content + b'}0000000',
    'emptied': b'',
    'flipped': content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    'foreign': foreign.with_suffix(suffix).read_bytes(),
  }
  if damage == 'missing':
    path.with_suffix(suffix).unlink()
  else:
    path.with_suffix(suffix).write_bytes(damaged[damage])
  with pytest.raises(ValueError, match=r'(not a complete token cache: |: was altered ).*\nfix: '):
    read_cache(path)
  with caplog.at_level(logging.WARNING):
    assert make(corpus(), tmp_path).path == path
  assert path.with_suffix(suffix).read_bytes() == content
  assert ('rewriting the token cache' in caplog.text) == ((suffix, damage) != ('.json', 'missing'))


@pytest.mark.parametrize('change', [{'notes': {'a': 'x'}}, {'media': {'skipped': None}}, {'bytes': '1'}])
def test_a_cache_whose_counts_are_not_numbers_is_written_again(corpus, tmp_path, caplog, change):
  path = make(corpus(), tmp_path).path
  content = path.read_bytes()
  path.write_bytes(json.dumps(records.parse_object(content) | change).encode())  # without its digest
  with caplog.at_level(logging.WARNING):
    make(corpus(), tmp_path)
  assert path.read_bytes() == content and 'rewriting the token cache' in caplog.text


def test_a_failure_leaves_nothing(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "good"}\n{"text": "good"}\n{"text"')
  cfg = DataConfig({'x': Source('jsonl', str(tmp_path / 'a.jsonl'))}, valid_fraction=0.0)
  with pytest.raises(ValueError, match='line 3 is not JSON'):
    make(cfg, tmp_path)
  assert not list((tmp_path / 'cache').iterdir())


def test_partial_files_of_other_processes_are_ignored(corpus, tmp_path):
  path = make(corpus(), tmp_path).path
  path.rename(path.with_name(path.name + '.0123.tmp'))
  assert make(corpus(), tmp_path).offsets.tolist() == [0, 4, 11]


def _make_in_process(barrier, cfg, folder, results):
  sums = []
  for seed in range(20):
    barrier.wait(60)
    parts = dataclasses.replace(cfg, valid_fraction=0.3 + seed / 100)  # a cache of its own
    made = [make(parts, folder, split=split) for split in ('train', 'valid')]
    sums.append([int(one.ids.sum()) for one in made])
  results.put(sums)


def test_a_flipped_bit_anywhere_in_a_cache_is_found_or_harmless(corpus, tmp_path):
  path, rng = make(corpus(), tmp_path).path, random.Random(0)
  whole = read_cache(path)
  for file in [*tmp_path.glob('cache/*')] * 20:
    content = bytearray(original := file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    try:
      again = read_cache(path)  # the name of the digest was hit
      assert file == path and again.ids.tolist() == whole.ids.tolist() and again.bytes == whole.bytes
    except ValueError as error:
      assert str(error).startswith(str(path)) and '\nfix: ' in str(error)
    file.write_bytes(original)


@pytest.mark.slow
def test_two_processes_at_once(corpus, tmp_path):
  context = multiprocessing.get_context('spawn')
  barrier, results = context.Barrier(2), context.Queue()
  arguments = (barrier, corpus(), tmp_path, results)
  processes = [context.Process(target=_make_in_process, args=arguments) for _ in range(2)]
  for process in processes:
    process.start()
  first, second = results.get(timeout=120), results.get(timeout=120)
  for process in processes:
    process.join()
  assert first == second
  assert {sum(parts) for parts in first} == {sum('onetwo é'.encode()) + 3 * 256}


def test_a_cache_pickles_as_its_path(corpus, tmp_path):
  made = make(corpus(), tmp_path)
  data = pickle.dumps(made)
  assert len(data) < 300
  again = pickle.loads(data)
  assert isinstance(again.ids, np.memmap)
  assert again.ids.tolist() == made.ids.tolist()


def test_cache_folder_of_the_config_wins(corpus, tmp_path):
  cfg = DataConfig(corpus().mixture, valid_fraction=0.0, cache=str(tmp_path / 'shared'))
  assert make(cfg, tmp_path).path.parent == tmp_path / 'shared'


def test_real_tokenizers(tmp_path):
  tokenizers = Tokenizers.build(text.build(TokenizerConfig('bytes'), lambda: iter(())))
  made = token_cache(DataConfig(), 'text', tokenizers, 'valid', tmp_path)
  eos = tokenizers.vocabulary.special('eos')
  texts = [document for _, document in documents(DataConfig(), 'valid')]
  assert (made.ids == eos).sum() == len(made.offsets) == len(texts)
  first = made.ids[: made.offsets[1]]
  assert first[-1] == eos
  assert tokenizers.decode_text(first) == texts[0]
  assert made.bytes == len(''.join(texts).encode())
