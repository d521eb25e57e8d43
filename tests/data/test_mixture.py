"""The split is exact, stable and total; configs that cannot be honored are refused."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data import DataConfig, Source, documents, source_names


def write_jsonl(path, docs):
  path.write_text(''.join(json.dumps({'text': doc}) + '\n' for doc in docs))
  return Source('jsonl', str(path))


def part(cfg, split):
  return [text for _, text in documents(cfg, split)]


def test_tiny_shakespeare_is_cut_where_nanogpt_cuts_it(data_dir):
  cfg = DataConfig({'text': Source('text', str(data_dir / 'tinyshakespeare' / 'input.txt'))})
  [train], [valid] = part(cfg, 'train'), part(cfg, 'valid')
  assert (len(train), len(valid)) == (1_003_854, 111_540)
  assert train + valid == (data_dir / 'tinyshakespeare' / 'input.txt').read_text()


@given(text=st.text(min_size=4, max_size=50), fraction=st.floats(0.3, 0.7))
@settings(max_examples=25, deadline=None)
def test_one_document_is_cut_by_characters(tmp_path_factory, text, fraction):
  path = tmp_path_factory.mktemp('cut') / 'a.txt'
  path.write_bytes(text.encode())
  cfg = DataConfig({'text': Source('text', str(path))}, valid_fraction=fraction)
  cut = int((1 - fraction) * len(text))
  assert (part(cfg, 'train'), part(cfg, 'valid')) == ([text[:cut]], [text[cut:]])


@given(docs=st.lists(st.text('ab', max_size=8), min_size=2, max_size=40, unique=True))
@settings(max_examples=25, deadline=None)
def test_many_documents_are_split_whatever_their_order(tmp_path_factory, docs):
  path = tmp_path_factory.mktemp('many') / 'a.jsonl'
  cfg = DataConfig({'text': write_jsonl(path, docs)}, valid_fraction=0.2)
  train, valid = part(cfg, 'train'), part(cfg, 'valid')
  assert sorted(train + valid) == sorted(docs)
  assert len(valid) == max(1, round(0.2 * len(docs)))
  random.Random(0).shuffle(docs)
  write_jsonl(path, docs)
  assert set(part(cfg, 'valid')) == set(valid)
  assert part(cfg, 'train') == [doc for doc in docs if doc not in valid]  # in the order of the file


def test_equal_documents_stay_together(tmp_path):
  docs = [f'document {n % 50}' for n in range(100)]
  cfg = DataConfig({'text': write_jsonl(tmp_path / 'a.jsonl', docs)})
  assert not set(part(cfg, 'valid')) & set(part(cfg, 'train'))


def test_named_validation_data_are_used_whole(tmp_path):
  train = write_jsonl(tmp_path / 'train.jsonl', ['a', 'b'])
  write_jsonl(tmp_path / 'valid.jsonl', ['c', 'd'])
  source = Source('jsonl', train.path, valid_path=str(tmp_path / 'valid.jsonl'))
  cfg = DataConfig({'x': source, 'y': train}, valid_fraction=0.0)
  assert part(cfg, 'train') == ['a', 'b', 'a', 'b']
  assert list(documents(cfg, 'valid')) == [('x', 'c'), ('x', 'd')]
  assert source_names(cfg, 'valid') == ('x',)
  assert source_names(DataConfig(valid_fraction=0.0), 'valid') == ()


def test_an_empty_split_is_an_error(tmp_path):
  source = write_jsonl(tmp_path / 'a.jsonl', ['same', 'same'])
  with pytest.raises(ValueError, match=r'data.mixture.text leaves nothing for train.*\nfix: '):
    part(DataConfig({'text': source}), 'train')
  (tmp_path / 'a.txt').write_text('abc')
  with pytest.raises(ValueError, match=r'leaves nothing for valid with .*=1e-17\n'):
    part(DataConfig({'t': Source('text', str(tmp_path / 'a.txt'))}, valid_fraction=1e-17), 'valid')
  (tmp_path / 'b.jsonl').write_text('\n')
  with pytest.raises(ValueError, match=r'data.mixture.b has no train documents\nfix: '):
    part(DataConfig({'b': Source('jsonl', str(tmp_path / 'b.jsonl'))}), 'train')


def test_a_missing_field_names_file_line_and_fields(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"q": "1", "a": "2"}\n{"q": "1"}\n{"q": "1"}\n')
  cfg = DataConfig({'qa': Source('jsonl', str(path), '{q} {a}')})
  with pytest.raises(ValueError, match=rf"{path} line 2 has no field 'a': at 'a' it has q\nfix: "):
    part(cfg, 'train')


@pytest.mark.parametrize(
  'fields',
  [
    {'mixture': {}},
    {'mixture': {'a/b': Source()}},
    {'packing': 'tight'},
    {'valid_fraction': 1.0},
    {'valid_fraction': -0.1},
    {'workers': -1},
    {'prefetch': -1},
  ],
)
def test_bad_configs(fields):
  with pytest.raises(ValueError, match=rf'^data.{next(iter(fields))}(.|\n)*\nfix: '):
    DataConfig(**fields)
