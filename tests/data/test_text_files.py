"""Texts are read whatever packs or encodes them, and other files are named."""

import bz2
import gzip
import io
import lzma
import zipfile

import pytest

from gpt_jax.data import Source, text_files
from gpt_jax.data.sources import open_source
from tests.data_helpers import two_lines

TEXT = 'first é\nsecond €\n'


def texts(path, kind='text'):
  return [record['text'] for _, record in open_source(Source(kind, str(path)), 'train').records()]


def zstandard(content):
  pyarrow = pytest.importorskip('pyarrow')
  return pyarrow.compress(content, codec='zstd', asbytes=True)


PACK = {'': bytes, '.gz': gzip.compress, '.bz2': bz2.compress, '.xz': lzma.compress, '.zst': zstandard}


@pytest.mark.parametrize('suffix', PACK)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
def test_packed_and_marked_files_are_read(tmp_path, suffix, encoding):
  (tmp_path / f'a.txt{suffix}').write_bytes(PACK[suffix](TEXT.encode(encoding)))
  lines = '{"text": "first é"}\n{"text": "second\u2028"}\n'
  (tmp_path / f'a.jsonl{suffix}').write_bytes(PACK[suffix](lines.encode(encoding)))
  assert texts(tmp_path) == [TEXT]
  assert texts(tmp_path, 'jsonl') == ['first é', 'second\u2028']
  pairs = Source('parallel', f'{tmp_path}/a.*', template='{txt}{jsonl}')
  assert next(open_source(pairs, 'train').records())[1] == {'txt': 'first é', 'jsonl': '{"text": "first é"}'}


def test_a_mark_and_an_encoding_are_logged(tmp_path, caplog):
  (tmp_path / 'a.txt').write_bytes(TEXT.encode('utf-16'))
  texts(tmp_path)
  assert 'a.txt has a byte order mark and is read as UTF-16' in caplog.text


def archive():
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as out:
    out.writestr('a.txt', TEXT.encode('utf-16') * 9)
  return file.getvalue()


@pytest.mark.parametrize(
  ('content', 'cause', 'fix'),
  [
    (b'PAR1\x15\xff', 'a.txt is a Parquet file, not text', 'convert it to UTF-8 text'),
    (b'\x89PNG\r\n\x1a\n', 'a.txt is a PNG picture, not text', 'leave it out of path'),
    (b'%PDF-1.7\n%\xe2\xe3\xcf\xd3\n', 'a.txt is a PDF document, not text', 'leave it out'),
    (archive(), 'a.txt is a zip archive, not text', 'unpack it'),
    (b'\x28\xb5\x2f\xfd \xff', 'a.txt is not a readable file', 'fetch it again'),
    ('café naïve\n'.encode('latin1'), 'bad byte at offset 3', 'iconv -f cp1252 -t utf-8'),
    ('“quoted”\n'.encode('cp1252'), 'bad byte at offset 0', 'iconv -f cp1252 -t utf-8'),
    ('Ünicode\n'.encode('utf-16le'), 'bad byte at offset 0', 'iconv -f utf-16le -t utf-8'),
    ('caf\u00e9 \u20ac'.encode()[:-1], 'bad byte at offset 6', 'repair it, or fetch it again'),
    ('é'.encode() * 9 + b'\xff' + 'é'.encode(), 'bad byte at offset 18', 'other characters are UTF-8'),
    (bytes(range(256)), 'bad byte at offset 128', 'it is not text'),
    (gzip.compress(TEXT.encode() * 99, mtime=0)[:-20], 'a.txt is not a readable file', 'fetch it again'),
  ],
)
def test_what_is_not_text_is_named(tmp_path, content, cause, fix):
  (tmp_path / 'a.txt').write_bytes(content)
  with pytest.raises(ValueError) as error:
    texts(tmp_path)
  first, second = str(error.value).split('\n')
  assert str(tmp_path) in first and cause in first and second.startswith('fix: ') and fix in second


def test_empty_files_of_a_folder_are_left_out(tmp_path, caplog):
  (tmp_path / 'a.txt').touch()
  (tmp_path / 'b.txt').write_text(TEXT)
  assert texts(tmp_path) == [TEXT]
  assert '1 of 2 files are empty and left out' in caplog.text
  with two_lines(ValueError, 'a.txt is empty'):
    texts(tmp_path / 'a.txt')


def test_a_packed_file_beside_its_content_is_left_out(tmp_path, caplog):
  (tmp_path / 'a.txt').write_text(TEXT)
  (tmp_path / 'a.txt.gz').write_bytes(gzip.compress(TEXT.encode()))
  assert texts(tmp_path) == [TEXT]
  assert '1 packed files lie beside their content and are left out: a.txt.gz' in caplog.text


def test_values_of_json_are_written_as_in_json(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"a.b": true, "a": {"c": 1.5, "d": NaN, "e": null, "f": 1e999}}')
  source = Source('jsonl', str(tmp_path), '{a.b} {a.c}')
  from gpt_jax.data import templates

  [(where, record)] = open_source(source, 'train').records()
  assert templates.fill(source.template, record, where)[0].value == 'true 1.5'
  for field, name in (('a.d', 'nan'), ('a.e', 'null'), ('a.f', 'inf')):
    with two_lines(ValueError, f'field {field!r} is {name}, not text'):
      templates.fill(f'{{{field}}}', record, where)


def test_an_unclosed_line_names_its_column(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "a"\n{"text": "b"}\n')
  with two_lines(ValueError, "a.jsonl line 1 is not JSON: Expecting ',' delimiter at column 13"):
    texts(tmp_path, 'jsonl')


@pytest.mark.parametrize('suffix', [name for name in PACK if name])
@pytest.mark.parametrize('kind', ['text', 'jsonl', 'csv', 'parallel'])
def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(tmp_path, monkeypatch, kind, suffix):
  """Also where it is one line, which is read at once."""
  monkeypatch.setattr(text_files, 'ALWAYS', 1 << 17)
  for name in ('a.en', 'a.de'):
    (tmp_path / f'{name}{suffix}').write_bytes(PACK[suffix](b' ' * (1 << 21)))
  size = (tmp_path / f'a.en{suffix}').stat().st_size
  with two_lines(ValueError, suffix, f'{size} bytes unpack to', 'over 200 times as many'):
    path = 'a.*' if kind == 'parallel' else f'a.en{suffix}'
    list(open_source(Source(kind, str(tmp_path / path), template='{en}'), 'train').records())
