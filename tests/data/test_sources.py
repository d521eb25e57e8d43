"""Sources read exactly what is in the files, and say where it is wrong."""

import dataclasses
import gzip
import json
import os
import re
import subprocess
import sys
import types
from collections import Counter
from math import log2
from pathlib import Path

import pytest

from gpt_jax.data import DataConfig, documents, files, record_sources, text_sources
from gpt_jax.data.sources import SOURCES, Source, SourceKind, open_source
from gpt_jax.data.splits import Corpus


def texts(source, split='train'):
  return [record['text'] for _, record in open_source(source, split).records()]


def error(source, split='train'):
  with pytest.raises(ValueError) as caught:
    list(open_source(source, split).records())
  cause, fix = str(caught.value).split('\n')
  assert fix.startswith('fix: ')
  return cause


def count_down(source, split):
  """An example of a new kind of source: `documents` records that count down."""
  records = lambda: ((f'number {n}', {'text': str(n)}) for n in range(source.documents, 0, -1))
  return Corpus(records, lambda: 'count down')


def test_a_new_source_costs_one_function_and_one_row(monkeypatch):
  monkeypatch.setitem(SOURCES, 'count_down', SourceKind(count_down, ('documents',)))
  source = Source('count_down', template='{text}!', documents=3)
  assert texts(source) == ['3', '2', '1']
  assert list(documents(DataConfig({'x': source}, valid_fraction=0.0), 'train')) == [
    ('x', '3!'),
    ('x', '2!'),
    ('x', '1!'),
  ]
  assert source.describe('train') == {'kind': 'count_down', 'template': '{text}!', 'documents': 3}
  with pytest.raises(ValueError) as caught:
    Source('count_down', seed=1)
  assert str(caught.value) == (
    'seed=1 has no effect on a source of kind=count_down\n'
    'fix: set kind=synthetic|stories|sums|canaries, which read it, or remove it; '
    'kind=count_down reads clean, documents, kind, license, scrub, template, weight'
  )
  monkeypatch.delitem(SOURCES, 'count_down')
  with pytest.raises(ValueError, match='kind=count_down is not a kind of source\nfix: use one of'):
    Source('count_down')


@pytest.mark.parametrize('kind', SOURCES)
def test_every_field_of_a_row_is_a_field_of_source(kind):
  assert {*SOURCES[kind].fields} <= {field.name for field in dataclasses.fields(Source)}


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A remote file system, with nothing on it yet; copies go to a folder of the test."""
  fsspec = pytest.importorskip('fsspec')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  system = fsspec.filesystem('memory')
  yield system
  system.rm('/bucket', recursive=True)


def test_files_of_a_bucket_are_those_of_a_folder(bucket, tmp_path):
  folder = tmp_path / 'local'
  for name, text in {'b/x.txt': 'second', 'a/x.txt': 'first', 'a/x.log': 'no text'}.items():
    bucket.pipe(f'/bucket/{name}', text.encode())
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(text)
  remote, local = Source('text', 'memory://bucket'), Source('text', str(folder))
  assert texts(remote) == texts(local) == ['first', 'second']
  assert open_source(remote, 'train').content() == open_source(local, 'train').content()
  assert texts(Source('text', 'memory://bucket/b/*')) == ['second']
  assert texts(Source('text', 'memory://bucket/a/x.txt')) == ['first']
  assert texts(Source('text', f'file://{folder}/a/x.txt')) == ['first']
  bucket.pipe('/bucket/a/x.txt', b'another')
  assert texts(remote) == ['another', 'second']


def test_files_of_a_bucket_are_copied_once(bucket, tmp_path, monkeypatch):
  bucket.pipe('/bucket/x.txt', b'text')
  assert texts(Source('text', 'memory://bucket')) == ['text']
  monkeypatch.setattr(type(bucket), 'get_file', None)
  assert texts(Source('text', 'memory://bucket')) == ['text']
  assert len([path for path in (tmp_path / 'cache').rglob('*') if path.is_file()]) == 1


def test_a_bucket_that_cannot_be_read(bucket):
  bucket.pipe('/bucket/x.txt', b'text')
  assert 'memory://bucket/y.txt matches no file' in error(Source('text', 'memory://bucket/y.txt'))
  assert 'nowhere://bucket cannot be read' in error(Source('text', 'nowhere://bucket'))


@pytest.mark.parametrize('kind', ['jsonl', 'csv', 'files'])
def test_pictures_are_not_looked_for_in_a_bucket(bucket, kind):
  bucket.pipe('/bucket/x.jsonl', b'{"image": "cat.png"}')
  with pytest.raises(ValueError) as actual:
    open_source(Source(kind, 'memory://bucket', template='{image:image}'), 'train')
    texts(Source(kind, 'memory://bucket', template='{image:image}'))
  assert 'memory://bucket: pictures and sounds' in str(actual.value)
  assert 'fix: mount it' in str(actual.value)


def test_builtin_is_sorted_prose_and_its_content_names_the_python():
  corpus = open_source(Source(), 'train')
  names = [record['name'] for _, record in corpus.records()]
  assert names == sorted(names)
  assert len(names) > 50
  assert sum(map(len, texts(Source()))) > 300_000
  assert corpus.content().startswith(f'python{sys.version_info.major}.{sys.version_info.minor}-')


def test_text_is_read_byte_for_byte(tmp_path, monkeypatch):
  monkeypatch.setattr(text_sources, 'BLOCK', 3)  # cuts characters and line ends
  text = 'a\r\nb é€😀\n\n'
  (tmp_path / 'b.txt').write_bytes(text.encode())
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'sub' / 'a.txt').write_bytes(b'second')
  (tmp_path / 'c.md').write_bytes(b'not text')
  assert texts(Source('text', str(tmp_path / 'b.txt'))) == [text]
  assert texts(Source('text', str(tmp_path))) == [text, 'second']
  assert texts(Source('text', str(tmp_path / '*.md'))) == ['not text']


@pytest.mark.parametrize('block', [1, 7, 1000])
def test_separator_cuts_documents(tmp_path, monkeypatch, block):
  monkeypatch.setattr(text_sources, 'BLOCK', block)
  (tmp_path / 'a.txt').write_text('one\n<|end|>two é<|end|>\n<|end|>three')
  source = Source('text', str(tmp_path / 'a.txt'), separator='<|end|>')
  assert texts(source) == ['one\n', 'two é', 'three']


def test_a_separator_that_does_not_occur_is_said(tmp_path, caplog):
  (tmp_path / 'a.txt').write_text('a b')
  (tmp_path / 'b.txt').write_text('c\n\nd')
  for separator, said in (('\n\n', ''), ('@@', "separator='@@' does not occur in ")):
    list(text_sources.text(Source('text', str(tmp_path), separator=separator), 'train').records())
    assert caplog.text.count('does not occur') == bool(said) and said in caplog.text


@pytest.mark.parametrize('block', [1, 2, 3, 5])
@pytest.mark.parametrize('separator', ['a', 'aa', 'aba', 'abab'])
def test_blocks_split_as_the_whole_text_does(separator, block):
  text = ''.join('ab'[n * n % 7 % 2] for n in range(200)) + 'aaaa'
  blocks = [text[start : start + block] for start in range(0, len(text), block)]
  assert list(text_sources.split_blocks(blocks, separator)) == list(filter(str.strip, text.split(separator)))


class CountedText(str):
  """Text that counts the characters that are searched for a separator."""

  searched = 0

  def __radd__(self, other):
    return CountedText(str(other) + str(self))

  def split(self, separator):
    CountedText.searched += len(self)
    return str(self).split(separator)


def test_a_separator_that_never_matches_costs_linear_time(monkeypatch):
  monkeypatch.setattr(CountedText, 'searched', 0)
  count, size = 50_000, 100  # searching the text again with each block would read 125 billion characters
  block = CountedText('x' * size)
  [document] = text_sources.split_blocks((block for _ in range(count)), '<|end|>')
  assert len(document) == count * size
  assert count * size <= CountedText.searched <= count * (size + len('<|end|>'))


@pytest.mark.parametrize('block', [1, 2, 1000])
@pytest.mark.parametrize('kind', ['text', 'jsonl'])
def test_bad_utf8_names_file_and_offset(tmp_path, monkeypatch, block, kind):
  monkeypatch.setattr(text_sources, 'BLOCK', block)
  start = '{"text": "é"}\n'.encode()
  (tmp_path / 'a').write_bytes(start + b'x \xe2\x82')
  assert error(Source(kind, str(tmp_path / 'a'))) == (
    f'{tmp_path}/a is not UTF-8: bad byte at offset {len(start) + 2}'
  )


def test_parallel_texts(tmp_path):
  """Also compressed; fields are named by the ends of names."""
  (tmp_path / 'train.en').write_bytes(b'A cat. \nA dog.\n')
  (tmp_path / 'train.de.gz').write_bytes(gzip.compress('Eine Katze.\nÄh?\n'.encode()))
  source = Source('parallel', f'{tmp_path}/train.*', template='{en} -> {de}')
  actual = list(open_source(source, 'train').records())
  assert [record for _, record in actual] == [
    {'en': 'A cat.', 'de': 'Eine Katze.'},
    {'en': 'A dog.', 'de': 'Äh?'},
  ]
  assert actual[1][0].endswith('train.* line 2')
  before = open_source(source, 'train').content()
  (tmp_path / 'train.en').write_bytes(b'A cat. \n')
  assert open_source(source, 'train').content() != before
  assert 'train.en has 1 lines and others' in error(source)
  (tmp_path / 'train.en').write_bytes(b'A cat. \n\xff')
  assert f'{tmp_path}/train.en is not UTF-8: bad byte at offset 8' in error(source)
  (tmp_path / 'train.en').write_bytes(b'A cat.\n' * 99)
  packed = gzip.compress(b'Eine Katze.\n' * 99)
  damaged = packed[:12] + bytes([packed[12] ^ 255]) + packed[13:]
  for content in (packed[:-9], packed[:20], damaged):
    (tmp_path / 'train.de.gz').write_bytes(content)
    assert 'train.de.gz is not a readable file' in error(source)
  for path in ('train.en', 'train.*z'):
    assert 'not one file of each language' in error(Source('parallel', f'{tmp_path}/{path}'))
  (tmp_path / 'b.en').write_bytes(b'again')
  assert 'b.en, train.de.gz, train.en' in error(Source('parallel', f'{tmp_path}/*'))


def answered(story, question):
  """The answer to a question, read from the sentences."""
  place, holder = {}, {}
  for who, verb, *_, what in (sentence.split() for sentence in story.rstrip('.').split('. ')):
    if verb == 'went':
      place[who] = what
    holder |= {what: who} if verb == 'took' else {what: place[who]} if verb == 'left' else {}
  what = question.rstrip('?').split()[-1]
  what = holder.get(what, what)
  return place.get(what, what)


def test_stories_have_the_right_answer_and_splits_share_none():
  source = Source('stories', template='{story}', documents=600, keep='facts=2', test_keep='part=9')
  actual = [record for _, record in open_source(source, 'train').records()]
  other = [record for _, record in open_source(source, 'test').records()]
  assert 200 < len(actual) < 300 and {r['facts'] for r in actual} == {2}
  assert not {r['story'] for r in actual} & {r['story'] for r in other}
  for record in (*actual, *other):
    assert answered(record['story'], record['question']) == record['answer'], record
    interview = re.findall(r'(Where is [^?]*\?) (\w+)', record['interview'])
    assert dict(interview)[record['question']] == record['answer'] and len(dict(interview)) == len(interview)
    assert all(answered(record['story'], question) == place for question, place in interview), record
  assert any('left' in r['story'] for r in actual) and {r['facts'] for r in other} == {1, 2}
  assert max(Counter(r['answer'] for r in actual).values()) < 0.3 * len(actual)
  again = open_source(dataclasses.replace(source, seed=1), 'train')
  assert again.content() != open_source(source, 'train').content()
  assert next(again.records()) != next(open_source(source, 'train').records())


def test_sums_are_right_and_splits_share_none():
  source = Source('sums', template='{question}', documents=300, test_keep='part=9')
  sides = [[record for _, record in open_source(source, split).records()] for split in ('train', 'test')]
  for record in (*sides[0], *sides[1]):
    assert sum(map(int, record['question'].split('+'))) == int(record['answer'])
  questions = [{record['question'] for record in side} for side in sides]
  assert not questions[0] & questions[1] and len(questions[1]) > 15


@pytest.mark.parametrize('kind', ['text', 'jsonl'])
def test_empty_and_missing_files(tmp_path, kind):
  (tmp_path / 'a').touch()
  assert error(Source(kind, str(tmp_path / 'a'))) == f'{tmp_path}/a is empty'
  assert 'path=nowhere/*.x matches no file' in error(Source(kind, 'nowhere/*.x'))


def test_relative_paths_here_then_in_the_data_folder(tmp_path, monkeypatch):
  here, there = tmp_path / 'here', tmp_path / 'there'
  for folder, names in ((here, 'a'), (there, 'ab')):
    folder.mkdir()
    for name in names:
      (folder / f'{name}.txt').write_text(f'{name} {folder.name}')
  monkeypatch.chdir(here)
  monkeypatch.setenv('GPT_JAX_DATA', str(there))
  assert texts(Source('text', 'a.txt')) == ['a here']
  assert texts(Source('text', 'b.txt')) == ['b there']


def test_jsonl(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": "one", "n": 1}\n\n{"text": "tw\\u00f6"}\n')
  source = Source('jsonl', str(tmp_path))
  assert list(open_source(source, 'train').records()) == [
    (f'{path} line 1', {'text': 'one', 'n': 1}),
    (f'{path} line 3', {'text': 'twö'}),
  ]
  path.write_text('{"text": "one"}\n{"text"\n')
  assert error(source).startswith(f'{path} line 2 is not JSON')
  path.write_text('{"text": "one"}\n[1]\n')
  assert error(source) == f'{path} line 2 is a JSON list, not an object'


@pytest.mark.parametrize('size', [2, 7, 1 << 16])
def test_json_list(tmp_path, monkeypatch, size):
  """Items that pieces of a file cut anywhere, in bounded memory."""
  monkeypatch.setattr(record_sources, 'PIECE', size)
  path = tmp_path / 'a.json'
  records = [{'text': f'tw\u00f6 ] , {n}', 'n': 10**n, 'more': [{}, [n]]} for n in range(40)]
  source = Source('jsonl', str(path))
  for text in (json.dumps(records), json.dumps(records, indent=2, ensure_ascii=False) + '\n'):
    path.write_text(text, encoding='utf-8')
    opened = list(open_source(source, 'train').records())
    assert opened == [(f'{path} item {n}', record) for n, record in enumerate(records, 1)]
  path.write_text('[ ]')
  assert list(open_source(source, 'train').records()) == []


@pytest.mark.parametrize(
  ('text', 'cause'),
  [
    ('[1]', 'item 1 is a JSON int, not an object'),
    ('[{}, {"a": 1]', "item 2 is not JSON: Expecting ',' delimiter"),
    ('[{}, {}', 'item 3 is not JSON: expected a comma and an item, or the end of the list'),
    ('[{}, ]', 'item 2 is not JSON'),
    ('[{}]\n[{}]', 'item 2 is not JSON: expected a comma'),
    ('[{} {}]', 'item 2 is not JSON: expected a comma'),
    ('[', 'item 1 is not JSON: the list is cut off'),
    ('[' + '[' * 100_000, 'item 1 cannot be read'),
    ('[{"a": "' + 'x' * 300, 'item 1 is not JSON: Unterminated string starting at within 200 characters'),
  ],
)
def test_what_is_no_list_of_objects_is_named(tmp_path, monkeypatch, text, cause):
  monkeypatch.setattr(record_sources, 'MOST_ITEM', 200 if 'xxx' in text else 1 << 22)
  path = tmp_path / 'a.json'
  path.write_text(text)
  assert error(Source('jsonl', str(path))).startswith(f'{path} {cause}')


def numbers(source, split):
  return [record['n'] for _, record in open_source(source, split).records()]


@pytest.mark.parametrize('kind', ['jsonl', 'csv'])
def test_parts_of_a_file_are_in_order_and_without_repeats(tmp_path, kind):
  path, questions = tmp_path / f'a.{kind}', [f'q{n // 2 if n < 4 else n}' for n in range(22)]  # 2 repeats
  rows = [{'q': q, 'n': str(n)} for n, q in enumerate(questions)]
  if kind == 'csv':
    path.write_text('q,n\n' + ''.join(f'{row["q"]},{row["n"]}\n' for row in rows))
  else:
    path.write_text(json.dumps(rows))
  parts = dict(train_split='train[:85%]', test_split='train[85%:19]', valid_split='train[95%:]')
  source = Source(kind, str(path), '{q} {n}', unique='q', **parts)
  rest = list(map(str, range(4, 22)))
  assert numbers(source, 'train') == ['0', '2', *rest[:15]]
  assert numbers(source, 'test') == rest[15:17] and numbers(source, 'valid') == rest[17:]
  contents = {open_source(source, split).content() for split in ('train', 'valid', 'test')}
  assert len(contents) == 3
  whole = dataclasses.replace(source, valid_split='', valid_path=str(path))
  assert numbers(whole, 'valid') == ['0', '2', *rest]  # the part is one of `path`
  with pytest.raises(ValueError, match=r"'valid\[:3\]' is not a part of a file's records\nfix: write train"):
    Source(kind, str(path), valid_split='valid[:3]')


def test_valid_path_is_read_for_validation_only(tmp_path):
  for name in ('t', 'v'):
    (tmp_path / f'{name}.txt').write_text(name)
  source = Source('text', str(tmp_path / 't.txt'), valid_path=str(tmp_path / 'v.txt'))
  assert (texts(source), texts(source, 'valid')) == (['t'], ['v'])


def test_content_depends_on_bytes_and_not_on_names(tmp_path):
  def content(name, text):
    (tmp_path / name).write_text(text)
    return open_source(Source('text', str(tmp_path / name)), 'train').content()

  assert content('a.txt', 'one') == content('b.txt', 'one') != content('a.txt', 'two')


def test_synthetic_is_deterministic_and_has_the_entropy_that_it_claims():
  docs = texts(Source('synthetic', documents=400))
  assert docs[:3] == texts(Source('synthetic', documents=3))
  assert docs[:3] != texts(Source('synthetic', documents=3, seed=1))
  assert docs[0].startswith('tan bum fer moom fais bat ')  # the same on every machine
  words = [doc[:-2].split(' ') for doc in docs]
  assert {len(doc) for doc in words} == {256}
  pairs = Counter(pair for doc in words for pair in zip(doc, doc[1:], strict=False))
  firsts = Counter()
  for (first, _), count in pairs.items():
    firsts[first] += count
  assert len(firsts) == 512
  total = sum(pairs.values())
  entropy = -sum(n / total * log2(n / firsts[first]) for (first, _), n in pairs.items())
  assert abs(entropy - 2.7296) < 0.04


@pytest.mark.parametrize(
  ('fields', 'cause'),
  [
    ({'kind': 'textt'}, 'kind=textt is not a kind of source'),
    ({'kind': 'text'}, 'path is empty for a source of kind=text'),
    ({'path': 'x.txt'}, "path='x.txt' has no effect on a source of kind=builtin"),
    ({'kind': 'jsonl', 'path': 'x', 'separator': ';'}, "separator=';' has no effect"),
    ({'kind': 'synthetic', 'seed': 2**32}, 'seed=4294967296 is not a 32-bit number'),
    ({'weight': -1.0}, 'weight=-1.0 is negative or infinite'),
    ({'weight': float('nan')}, 'weight=nan is negative or infinite'),
    ({'kind': 'synthetic', 'documents': 0}, 'documents=0 is not positive'),
    ({'template': '{'}, "template='{' is malformed"),
  ],
)
def test_bad_sources(fields, cause):
  with pytest.raises(ValueError) as caught:
    Source(**fields)
  assert str(caught.value).startswith(cause)
  assert '\nfix: ' in str(caught.value)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A TFDS data set of our own, written as array_record without TensorFlow."""
  import numpy as np
  import tensorflow_datasets as tfds

  class TinyTalk(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = {'text': tfds.features.Text(), 'n': tfds.features.Scalar(np.int64)}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {'train': self._generate_examples(0, 5), 'test': self._generate_examples(5, 8)}

    def _generate_examples(self, first, last):
      for n in range(first, last):
        yield n, {'text': f'talk {n} é', 'n': n}

  folder = tmp_path_factory.mktemp('tfds')
  TinyTalk(data_dir=folder, file_format='array_record').download_and_prepare()
  return folder


def test_tfds_is_read_without_tensorflow(prepared):
  """In a process of its own, as another test may have imported TensorFlow."""
  code = f"""
import sys
from gpt_jax.data import DataConfig, Source, documents
source = Source('tfds', 'tiny_talk', template='{{text}} #{{n}}', data_dir={str(prepared)!r},
                valid_split='test')
cfg = DataConfig({{'talk': source}})
print(sorted(documents(cfg, 'train')), sorted(documents(cfg, 'valid')))
assert not {{'tensorflow', 'torch'}} & set(sys.modules), 'heavy imports'
"""
  env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
  assert result.returncode == 0, result.stderr
  train = [('talk', f'talk {n} é #{n}') for n in range(5)]
  valid = [('talk', f'talk {n} é #{n}') for n in range(5, 8)]
  assert result.stdout.strip() == f'{train} {valid}'


def test_tfds_files_of_a_bucket_are_hashed_by_their_urls(bucket, tmp_path, monkeypatch):
  (tmp_path / 'a').write_bytes(b'records')
  bucket.pipe('/bucket/a', b'records')

  def content(path):
    split = types.SimpleNamespace(filepaths=[path])
    info = types.SimpleNamespace(splits={'train': split}, features={}, full_name='mine/1.0.0')
    monkeypatch.setattr(record_sources, '_tfds_builder', lambda source: types.SimpleNamespace(info=info))
    return open_source(Source('tfds', 'mine'), 'train').content()

  assert content('memory://bucket/a') == content(tmp_path / 'a')
  with pytest.raises(ValueError, match=r'nosuch://bucket/a cannot be read(.|\n)*\nfix: '):
    content('nosuch://bucket/a')


def test_tfds_errors_say_what_to_do(prepared):
  def tfds_source(**fields):
    return Source('tfds', **{'path': 'tiny_talk', 'data_dir': str(prepared), **fields})

  cause = error(tfds_source(train_split='dev'))
  assert cause == 'split dev of tfds path=tiny_talk does not exist'
  assert 'Dataset nosuchset not found' in error(tfds_source(path='nosuchset'))
  with pytest.raises(ValueError, match=r'not prepared as array_record') as caught:
    open_source(tfds_source(path='mnist'), 'train')
  command = str(caught.value).split('\nfix: python -c ')[1]
  assert f"tfds.builder('mnist', data_dir='{prepared}', file_format='array_record')" in command
  assert open_source(tfds_source(), 'train').content().startswith('tiny_talk/1.0.0-train-')


def test_gsm8k_by_template(data_dir):
  source = Source('jsonl', str(data_dir / 'gsm8k' / 'test.jsonl'), 'Q: {question}\nA: {answer}')
  lines = (data_dir / 'gsm8k' / 'test.jsonl').read_text().splitlines()
  records = list(open_source(source, 'train').records())
  assert len(records) == len(lines) == 1319
  assert records[0][1]['question'] == json.loads(lines[0])['question']


def test_a_file_is_hashed_once_in_a_process_until_it_changes(tmp_path, monkeypatch):
  path, digest, reads = tmp_path / 'a.txt', files.hashlib.file_digest, []
  path.write_text('abc')
  monkeypatch.setattr(files.hashlib, 'file_digest', lambda *args: reads.append(1) or digest(*args))
  monkeypatch.setattr(files, 'SETTLED_NS', 0)
  first = files.hash_files([path])
  assert files.hash_files([path]) == first and len(reads) == 1
  monkeypatch.undo()
  path.write_text('xyz')  # of the same size, and perhaps within a tick of the clock
  assert files.hash_files([path]) != first
  path.write_text('abc')
  assert files.hash_files([path]) == first


@pytest.mark.parametrize(
  ('source', 'is_one'),
  [
    (Source('text', 'book.txt'), True),
    (Source('text', 'book.txt.gz'), True),
    (Source('text', 'book.txt', separator='\n'), False),
    (Source('text', 'books/*.txt'), False),
    (Source('text', 'books'), False),
    (Source(), False),
  ],
)
def test_the_only_text_of_a_source_has_no_start_token(source, is_one):
  assert source.is_one_text == is_one
  assert DataConfig({'text': source}).has_start == (not is_one)
