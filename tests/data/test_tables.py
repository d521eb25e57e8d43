"""Records in tables and tar shards become the same tokens and batches as in JSON lines."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest

from gpt_jax import data
from gpt_jax.data import DataConfig, Source, decoders, media_io, templates, text_files
from gpt_jax.data.mixture import open_split
from gpt_jax.data.sources import open_source
from tests.data_helpers import media_tokenizers, two_lines

KINDS = {  # kind -> its path below a folder
  'jsonl': 'lines/a.jsonl',
  'csv': 'lines/a.csv',
  'parquet': 'parquet/a.parquet',
  'webdataset': 'shards/*.tar',
  'hf': 'saved',
}


def make_records(count):
  """Records of a text, a number, a picture and a sound, the media as files."""
  rng = np.random.default_rng(0)
  for number in range(count):
    image = media_io.to_png(rng.integers(0, 256, (4, 4, 1), np.uint8))
    audio = media_io.to_wav(rng.uniform(-1, 1, 10 + number % 3 * 10), 100)
    text = f'"{number}", é\ntwo\r\n' + 'x' * (number % 3)
    yield {'text': text, 'digit': number % 10, 'image': image, 'audio': audio}


def write_all(folder, records):
  """Write records as each of KINDS; return {kind: path}."""
  paths = {kind: folder / name for kind, name in KINDS.items()}
  for path in paths.values():
    path.parent.mkdir(parents=True, exist_ok=True)
  by_path = []
  for number, record in enumerate(records):
    beside = {'image': f'{number}.png', 'audio': f'{number}.wav'}
    for field, name in beside.items():
      (folder / 'lines' / name).write_bytes(record[field])
    by_path.append(record | beside)
  paths['jsonl'].write_text(''.join(json.dumps(record) + '\n' for record in by_path))
  write_csv(paths['csv'], by_path)
  write_parquet(paths['parquet'], records)
  write_shards(paths['webdataset'].parent, records)
  write_saved(paths['hf'], records)
  return {kind: str(path) for kind, path in paths.items()}


def write_csv(path, records):
  import csv

  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, records[0])
    writer.writeheader()
    writer.writerows(records)


def table_of(records):
  """The Arrow table of records, with media as Hugging Face stores them."""
  pyarrow = pytest.importorskip('pyarrow')
  media = lambda content: {'bytes': content, 'path': None} if isinstance(content, bytes) else content
  rows = [{key: media(value) for key, value in record.items()} for record in records]
  return pyarrow.Table.from_pylist(rows)


def write_parquet(path, records):
  table = table_of(records)
  from pyarrow import parquet

  parquet.write_table(table, path, row_group_size=7)


def write_shards(folder, records):
  for shard in range(0, len(records), 10):
    files = {}
    for number, record in enumerate(records[shard : shard + 10], shard):
      files |= {f'{number:05}.png': record['image'], f'{number:05}.wav': record['audio']}
      files[f'{number:05}.json'] = json.dumps({'digit': record['digit']}).encode()
      files[f'{number:05}.txt'] = record['text'].encode()
    write_tar(folder / f'{shard:05}.tar', files)


def write_tar(path, files, mode='w'):
  with tarfile.open(path, mode) as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))


def write_saved(folder, records):
  """Write the files of Dataset.save_to_disk that are read."""
  table = table_of(records)
  import pyarrow

  folder.mkdir()
  names = []
  for number, start in enumerate(range(0, len(records), 9)):
    names.append(f'data-{number:05}.arrow')
    with pyarrow.ipc.new_stream(folder / names[-1], table.schema) as writer:
      writer.write_table(table.slice(start, 9))
  (folder / 'state.json').write_text(json.dumps({'_data_files': [{'filename': name} for name in names]}))


def config_of(kind, path, **fields):
  source = Source(kind, path, '{image:image}{digit} -> {text}{audio:audio}', **fields)
  return DataConfig({'x': source}, packing='first_fit', prefetch=0)


def loader_of(cfg, folder):
  return data.Loader(
    cfg, media_tokenizers(), split='train', batch_size=4, length=64, seed=3, cache_dir=folder
  )


def assert_equal_batches(actual, expected):
  assert actual.keys() == expected.keys()
  for key, rows in expected.items():
    np.testing.assert_array_equal(actual[key], rows)


def check_kinds(folder, paths, batches, resume=KINDS):
  """The caches and the first batches of each kind are those of JSON lines; those of `resume` are resumed."""
  expected = {}
  for kind in KINDS:
    cfg = config_of(kind, paths[kind], valid_keep='digit=3')
    for split in ('train', 'valid'):
      cache = data.token_cache(cfg, 'x', media_tokenizers(), split, folder / kind)
      arrays = [np.asarray(x).tobytes() for x in (cache.ids, cache.offsets, cache.media_hashes)]
      assert len(cache.offsets) > 1 and arrays == expected.setdefault(split, arrays), (kind, split)
    loader = loader_of(cfg, folder / kind)
    actual = [next(loader) for _ in range(batches // 3)]
    if kind in resume:
      state = json.loads(json.dumps(loader.state()))
      loader.close()
      loader = loader_of(cfg, folder / kind)
      assert loader.restore(state) == []
    actual += [next(loader) for _ in range(batches - len(actual))]
    loader.close()
    for batch, first in zip(actual, expected.setdefault('batches', actual), strict=True):
      assert_equal_batches(batch, first)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Paths of 60 records by kind."""
  return write_all(tmp_path_factory.mktemp('kinds'), list(make_records(60)))


def test_kinds_of_one_content_have_equal_caches_and_batches(written, tmp_path):
  check_kinds(tmp_path, written, 6, resume=('parquet',))


@pytest.mark.parametrize('kind', KINDS)
def test_a_share_of_equal_documents_is_held_out_of_every_kind(written, kind):
  texts = lambda kind: [
    [p.value for p in pieces if p.kind == 'text']
    for _, pieces in open_split(config_of(kind, written[kind]), 'x', 'valid').examples()
  ]
  assert len(texts(kind)) == 6 and texts(kind) == texts('jsonl')


@pytest.mark.parametrize('kind', KINDS)
def test_filters_and_the_key_of_a_cache_follow_the_content(tmp_path, kind):
  records = list(make_records(12))
  paths = write_all(tmp_path / 'a', records)
  cfg = config_of(kind, paths[kind], keep='digit=1|2')
  read = [record for _, record in open_source(cfg.mixture['x'], 'train').records()]
  assert [str(int(record['digit'])) for record in read] == ['1', '2', '1']
  content = lambda path: open_source(Source(kind, path, '{image:image}'), 'train').content()
  records[5]['image'] = records[4]['image']
  other = write_all(tmp_path / 'b', records)
  assert content(paths[kind]) == content(paths[kind]) != content(other[kind])


@pytest.mark.parametrize('kind', ['csv', 'parquet', 'hf'])
def test_a_column_that_is_missing_is_named_at_once(written, kind):
  source = Source(kind, written[kind], '{caption}', bad_records=99)
  with two_lines(ValueError, written[kind].split('*')[0], "no column 'caption', but 'text', 'digit'"):
    list(open_source(source, 'train').records())


def test_options_and_their_index_are_columns(tmp_path):
  write_parquet(tmp_path / 'a.parquet', [{'q': 'Which?', 'options': ['one', 'two'], 'gold': 1}])
  read = lambda template: open_source(Source('parquet', str(tmp_path), template, weight=0.0), 'valid')
  [(where, record)] = read('{q} -> {options[gold]}').records()
  assert templates.fill('{q} -> {options[gold]}', record, where)[-1].value == 'two'
  with two_lines(ValueError, "no column 'label'"):
    list(read('{q} -> {options[label]}').records())


def test_media_that_no_template_names_are_not_read(written):
  for kind in ('parquet', 'hf'):
    [(where, record), *_] = open_source(Source(kind, written[kind], '{text}'), 'train').records()
    assert record.keys() == {'text', 'digit'} and where.endswith(' row 0')


@pytest.mark.parametrize('kind', ['parquet', 'webdataset', 'hf'])
@pytest.mark.parametrize('damage', ['cut', 'half', 'tail', 'zeros', 'empty'])
def test_a_damaged_file_is_two_lines(tmp_path, kind, damage):
  paths = write_all(tmp_path, list(make_records(9)))
  path = {'hf': f'{paths["hf"]}/data-00000.arrow', 'webdataset': paths[kind].replace('*', '00000')}.get(
    kind, paths[kind]
  )
  content = Path(path).read_bytes()
  half = len(content) // 2 // 512 * 512
  changed = {
    'cut': content[: half + 100],
    'half': content[:half],
    'tail': content.rstrip(b'\0')[:-4],
    'zeros': content[: half - 100] + b'\xff' * 900 + content[half + 800 :],
    'empty': b'',
  }
  Path(path).write_bytes(changed[damage])
  source = Source(kind, paths[kind], '{image:image} -> {text}{audio:audio}', bad_records=3)
  with two_lines(ValueError, path):
    list(
      open_split(DataConfig({'x': source}, packing='first_fit', valid_fraction=0.0), 'x', 'train').examples()
    )
    pytest.fail(f'{kind} with {damage} was read')


def test_parquet_that_unpacks_to_a_huge_table_is_refused(tmp_path, monkeypatch):
  table = table_of([{'text': ' ' * (1 << 21)}])
  from pyarrow import parquet

  parquet.write_table(table, tmp_path / 'a.parquet', compression='zstd', write_statistics=False)
  source = Source('parquet', str(tmp_path))
  assert len(list(open_source(source, 'train').records())) == 1
  monkeypatch.setattr(text_files, 'ALWAYS', 1 << 17)
  with two_lines(ValueError, 'a.parquet', 'unpack to', 'over 200 times as many'):
    list(open_source(source, 'train').records())


def csv_records(folder, text, name='a.csv', **fields):
  (folder / name).write_bytes(text.encode())
  source = Source('csv', str(folder / name), **{'template': '{a}', **fields})
  return [
    (where.rpartition('/')[2], record if isinstance(record, dict) else 'bad')
    for where, record in open_source(source, 'train').records()
  ]


def test_csv_has_quoted_newlines_and_tabs_by_suffix(tmp_path):
  assert csv_records(tmp_path, 'a,b\r\n"1\r\n,""2""",3\r\n\r\n4,\r\n') == [
    ('a.csv line 2', {'a': '1\r\n,"2"', 'b': '3'}),
    ('a.csv line 5', {'a': '4', 'b': ''}),
  ]
  assert csv_records(tmp_path, '\ufeffa\tb\n1,2\t3\n', 'a.tsv') == [('a.tsv line 2', {'a': '1,2', 'b': '3'})]


def test_equal_bytes_of_csv_and_tsv_are_not_equal_data(tmp_path):
  contents = []
  for name in ('a.csv', 'b.tsv', 'c.csv'):
    (tmp_path / name).write_text('a\n1\n')
    contents.append(open_source(Source('csv', str(tmp_path / name), template='{a}'), 'train').content())
  assert contents[0] == contents[2] != contents[1]


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('a,b\n1,2,3\n', ('a.csv line 2', '3 fields, and the header has 2')),
    ('a,b\n1,"2"3\n', ('a.csv line 2', "',' expected after")),
    ('a,b\n1,"2\n3,4\n', ('a.csv line 2', 'unexpected end of data')),
    ('a,a\n1,2\n', ("two columns 'a'",)),
    ('b,c\n1,2\n', ("no column 'a', but 'b', 'c'",)),
    ('"a\n', ('a.csv line 1', 'unexpected end')),
    ('\n1\n', ("no column 'a'",)),
  ],
)
def test_csv_that_is_wrong_names_its_line(tmp_path, text, words):
  with two_lines(ValueError, *words):
    csv_records(tmp_path, text)


def test_bad_rows_of_csv_are_counted_but_an_open_quote_is_not_one_row(tmp_path):
  rows = csv_records(tmp_path, 'a,b\n1,2,3\n"4"5,6\n7,8\n', bad_records=2)
  assert rows == [('a.csv line 2', 'bad'), ('a.csv line 3', 'bad'), ('a.csv line 4', {'a': '7', 'b': '8'})]
  with two_lines(ValueError, 'a.csv line 2 is not a row of CSV'):
    csv_records(tmp_path, 'a,b\n1,"2\n3,4\n5,"6"\n', bad_records=9)


def shard_records(folder, files, mode='w', name='a.tar', **fields):
  write_tar(folder / name, files, mode)
  source = Source('webdataset', str(folder / name), **{'template': '{txt}', **fields})
  return [
    (where, record if isinstance(record, dict) else 'bad')
    for where, record in open_source(source, 'train').records()
  ]


@pytest.mark.parametrize(('name', 'mode'), [('a.tar', 'w'), ('a.tar.gz', 'w:gz'), ('a.tgz', 'w:gz')])
def test_members_of_a_shard_are_grouped_by_key(tmp_path, name, mode):
  files = {
    'd/a.1.x.JPG': b'j',
    'd/a.txt': b't',
    'd/a.json': b'{"n": 1, "txt": 2}',
    '._b.txt': b'',
    'b.cls': b'3',
  }
  assert shard_records(tmp_path, files, mode, name) == [
    (
      f'{tmp_path}/{name}/d/a',
      {
        'key': 'd/a',
        '1.x.jpg': b'j',
        'image': b'j',
        'txt': b't',
        'text': b't',
        'json': {'n': 1, 'txt': 2},
        'n': 1,
      },
    ),
    (f'{tmp_path}/{name}/b', {'key': 'b', 'cls': b'3', 'label': b'3'}),
  ]


def test_a_sample_of_two_pictures_has_no_image(tmp_path):
  [(_, record)] = shard_records(tmp_path, {'a.jpg': b'1', 'a.seg.png': b'2', 'a.wav': b'3'})
  assert 'image' not in record and record['audio'] == b'3' and record['seg.png'] == b'2'


def test_wrong_samples_are_named_and_counted(tmp_path, monkeypatch):
  with two_lines(ValueError, 'a.tar/a comes twice'):
    shard_records(tmp_path, {'a.txt': b'', 'b.txt': b'', 'a.cls': b''}, bad_records=9)
  for files, cause in (
    ({'a.txt': b'', 'a.TXT': b''}, 'a.tar/a has two files txt'),
    ({'a.json': b'{'}, 'a.tar/a.json is not JSON'),
    ({'a.txt': b'x' * 200}, 'a.tar/a.txt has 200 bytes (unpacked), more than 100'),
  ):
    monkeypatch.setattr(media_io, 'MOST_BYTES', 100)
    with two_lines(ValueError, cause):
      shard_records(tmp_path, files)
    rows = shard_records(tmp_path, files | {'b.txt': b'good'}, bad_records=1)
    assert [record if record == 'bad' else record['txt'] for _, record in rows] == ['bad', b'good']


def test_a_sparse_member_is_refused(tmp_path):
  with tarfile.open(tmp_path / 'a.tar', 'w', format=tarfile.PAX_FORMAT) as archive:
    member = tarfile.TarInfo('a.txt')
    member.size, member.pax_headers = 3, {'GNU.sparse.size': str(100 << 20), 'GNU.sparse.map': '0,3'}
    archive.addfile(member, io.BytesIO(b'abc'))
  source = Source('webdataset', str(tmp_path / 'a.tar'), template='{text}')
  with two_lines(ValueError, 'a.tar/a.txt is a sparse file'):
    list(open_source(source, 'train').records())


def test_media_as_paths_in_parquet_lie_below_the_file(tmp_path):
  records = list(make_records(2))
  (tmp_path / 'cat.png').write_bytes(records[0]['image'])
  rows = [{'image': {'bytes': None, 'path': 'cat.png'}}, {'image': {'bytes': None, 'path': '../cat.png'}}]
  write_parquet(tmp_path / 'a.parquet', rows)
  cfg = DataConfig(
    {'x': Source('parquet', str(tmp_path), '{image:image}')}, packing='first_fit', valid_fraction=0.0
  )
  with two_lines(ValueError, "is '../cat.png', which is not below"):
    open_split(cfg, 'x', 'train')
  write_parquet(tmp_path / 'a.parquet', rows[:1])
  [(_, [piece])] = open_split(cfg, 'x', 'train').examples()
  assert piece.value == f'{tmp_path}/cat.png'


def test_tables_and_shards_of_a_bucket_are_those_of_a_folder(written, tmp_path, monkeypatch):
  """Pictures and sounds in them, too."""
  fsspec = pytest.importorskip('fsspec')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  system = fsspec.filesystem('memory')
  for kind, pattern in (('parquet', '*.parquet'), ('webdataset', '*.tar')):
    folder = Path(written[kind]).parent
    for path in folder.glob(pattern):
      system.pipe(f'/tables/{path.name}', path.read_bytes())
    sources = [Source(kind, path, '{image:image}') for path in (f'memory://tables/{pattern}', written[kind])]
    remote, local = (open_source(source, 'train') for source in sources)
    assert [dict(fields) for _, fields in remote.records()] == [dict(x) for _, x in local.records()]
    assert remote.content() == local.content()
  system.rm('/tables', recursive=True)


def test_a_flipped_bit_of_an_arrow_file_ends_no_process(tmp_path):
  """In the offsets of a text or a picture, which pyarrow does not check unless asked."""
  write_saved(tmp_path / 'a', list(make_records(9)))
  path = tmp_path / 'a' / 'data-00000.arrow'
  content, rng = path.read_bytes(), np.random.default_rng(0)
  source, outcomes = Source('hf', str(tmp_path / 'a'), '{image:image} -> {text}{audio:audio}'), set()
  for place in rng.integers(0, len(content), 60).tolist():
    path.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
    try:
      outcomes.add(len(list(open_source(source, 'train').records())))
    except ValueError as error:
      outcomes.add(str(error).count('\n'))
  assert outcomes == {9, 1}


def test_a_saved_folder_with_splits(tmp_path):
  (tmp_path / 'both').mkdir()
  (tmp_path / 'both' / 'dataset_dict.json').write_text('{"splits": ["train", "dev"]}')
  for split, texts in (('train', 'ab'), ('dev', 'c')):
    write_saved(tmp_path / 'both' / split, [{'text': text} for text in texts])
  source = Source('hf', str(tmp_path / 'both'), valid_split='dev')
  read = lambda source, split: [record['text'] for _, record in open_source(source, split).records()]
  assert (read(source, 'train'), read(source, 'valid')) == (['a', 'b'], ['c'])
  with two_lines(ValueError, "both has no split 'test'"):
    read(Source('hf', str(tmp_path / 'both'), train_split='test'), 'train')
  with two_lines(ValueError, "no split 'test': it is one data set"):
    read(Source('hf', str(tmp_path / 'both' / 'dev'), train_split='test'), 'train')
  with two_lines(ValueError, "revision='v1' has no effect"):
    read(Source('hf', str(tmp_path / 'both'), revision='v1'), 'train')
  (tmp_path / 'both' / 'dataset_dict.json').write_text('{"splits"')
  with two_lines(ValueError, 'both is not a folder of save_to_disk'):
    read(source, 'train')


class Hub(types.ModuleType):
  """A stand-in for the library `datasets` whose hub has one data set."""

  def __init__(self):
    super().__init__('datasets')
    self.config = types.SimpleNamespace(HF_CACHE_HOME='/cache')
    self.commit = 'c1'

  def load_dataset_builder(self, path, name, revision):
    if path == 'org/gated':
      raise ValueError(
        "Dataset 'org/gated' is a gated dataset on the Hub. You must be authenticated to access it."
      )
    if path == 'org/far':
      raise ConnectionError("Couldn't reach 'org/far' on the Hub (OfflineModeIsEnabled)")
    if path != 'org/talks':
      raise ValueError(f"Dataset '{path}' doesn't exist on the Hub or cannot be accessed.")
    table = table_of([{'text': f'{name} {n}', 'picture': b'x'} for n in range(3)])
    rows = types.SimpleNamespace(data=table, with_format=lambda form: rows)
    rows.select_columns = lambda columns: types.SimpleNamespace(
      iter=lambda size: table.select(columns).to_batches(size)
    )
    return types.SimpleNamespace(
      config=types.SimpleNamespace(name=name or 'default'),
      hash=revision or self.commit,
      download_and_prepare=lambda: None,
      as_dataset=lambda split: rows,
    )


def test_a_data_set_of_the_hub_is_known_by_its_commit(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', hub := Hub())
  source = Source('hf', 'org/talks', config='en')
  corpus = open_source(source, 'train')
  assert [(where, record) for where, record in corpus.records()][1] == (
    'org/talks train row 1',
    {'text': 'en 1'},
  )
  assert corpus.content() == 'org/talks-en-c1-train'
  hub.commit = 'c2'
  assert open_source(source, 'train').content() == 'org/talks-en-c2-train'
  pinned = Source('hf', 'org/talks', config='en', revision='c1')
  assert open_source(pinned, 'train').content() == corpus.content()
  assert pinned.describe('train') == source.describe('train')


def test_a_data_set_that_the_hub_does_not_give_is_two_lines(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', Hub())
  with two_lines(ValueError, 'path=org/gated', 'gated', match='\nfix: ask for access at .* HF_TOKEN'):
    open_source(Source('hf', 'org/gated'), 'train')
  with two_lines(ValueError, 'path=org/nothing', "doesn't exist", match='\nfix: correct the id'):
    open_source(Source('hf', 'org/nothing'), 'train')
  with two_lines(ValueError, 'path=org/far', "Couldn't reach", match='\nfix: check the network'):
    open_source(Source('hf', 'org/far'), 'train')
  with two_lines(ValueError, "no column 'caption'"):
    open_source(Source('hf', 'org/talks', '{caption}'), 'train')
  for path in ('s3://bucket/saved', '/no/such/folder'):
    with two_lines(ValueError, f'path={path} is neither'):
      open_source(Source('hf', path), 'train')


@pytest.mark.parametrize(('kind', 'package'), [('parquet', 'pyarrow'), ('hf', 'pyarrow'), ('hf', 'datasets')])
def test_a_missing_package_names_its_extra(monkeypatch, kind, package):
  pytest.importorskip('pyarrow')
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(ValueError) as error:
    open_source(Source(kind, 'org/talks'), 'train')
  cause, fix = str(error.value).split('\n')
  assert cause.startswith(f'kind={kind} needs the package {package}')
  assert fix == "fix: pip install 'gpt_jax[hf]'"


def test_parts_of_a_table_have_all_keys(tmp_path):
  """Arrow gives each struct of a list the keys of all, as null."""
  parts = [{'text': 'A cat: ', 'image': None}, {'text': None, 'image': 'cat.png'}]
  write_parquet(tmp_path / 'a.parquet', [{'parts': parts}])
  [(where, record)] = open_source(Source('parquet', str(tmp_path), '{parts:parts}'), 'train').records()
  pieces = templates.fill('{parts:parts}', record, where)
  assert [(piece.kind, piece.value) for piece in pieces] == [
    ('text', 'A cat: '),
    ('image', f'{tmp_path}/cat.png'),
  ]


@pytest.mark.parametrize('modality', ['image', 'audio'])
def test_another_version_of_a_decoder_makes_another_cache(written, tmp_path, monkeypatch, modality):
  """Its pixels or samples may differ; text does not depend on it."""

  def keys():
    for template in ('{text}', f'{{{modality}:{modality}}}'):
      source = Source('parquet', written['parquet'], template)
      cfg = DataConfig({'x': source}, packing='first_fit', valid_fraction=0.0)
      yield data.token_cache(cfg, 'x', media_tokenizers(), 'train', tmp_path).path.name

  text, media = keys()
  monkeypatch.setitem(decoders.DECODERS, modality, lambda: 'another')
  assert next(changed := keys()) == text and next(changed) != media


# A process that prints the digest of each batch, after it stored the state of the loader.
BATCHES = """
import hashlib, json, os, sys
sys.path.insert(0, {tests!r})
from tests.data import test_tables
loader = test_tables.loader_of(test_tables.config_of({kind!r}, {path!r}, valid_keep='digit=3'), {cache!r})
for batch in loader:
  with open({state!r} + '.new', 'w') as file:
    json.dump(loader.state(), file)
  os.replace({state!r} + '.new', {state!r})
  print(test_tables.digest_of(batch), flush=True)
"""


def digest_of(batch):
  return hashlib.sha256(b''.join(batch[key].tobytes() for key in sorted(batch))).hexdigest()


@pytest.mark.slow
def test_2000_records_of_every_kind_give_equal_batches_also_after_kills(tmp_path):
  """The saved folder is written by the library itself."""
  datasets = pytest.importorskip('datasets')
  records = list(make_records(2000))
  paths = write_all(tmp_path / 'data', records)
  shutil.rmtree(paths['hf'])
  datasets.Dataset(table_of(records)).save_to_disk(paths['hf'], num_shards=3)
  check_kinds(tmp_path, paths, 50)
  whole = loader_of(config_of('jsonl', paths['jsonl'], valid_keep='digit=3'), tmp_path / 'jsonl')
  expected = [digest_of(next(whole)) for _ in range(50)]
  whole.close()
  for kind in KINDS:
    state, cache = tmp_path / f'{kind}.json', tmp_path / kind
    code = BATCHES.format(
      tests=str(Path(__file__).parents[2]), kind=kind, path=paths[kind], cache=str(cache), state=str(state)
    )
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as process:
      digests = [process.stdout.readline().strip() for _ in range(17)]
      process.kill()
    resumed = loader_of(config_of(kind, paths[kind], valid_keep='digit=3'), cache)
    saved = json.loads(state.read_text())
    assert digests == expected[:17] and saved['next_batch'] >= 17, kind
    assert resumed.restore(saved) == []
    rest = expected[saved['next_batch'] :]
    assert [digest_of(next(resumed)) for _ in rest] == rest, kind
    resumed.close()


@pytest.mark.slow
def test_the_library_prepares_and_slices_a_data_set_of_the_hub(tmp_path, monkeypatch):
  """The library itself, with a local Parquet file in the place of the hub."""
  datasets = pytest.importorskip('datasets')
  media = [{'text': f'{n}', 'image': b'x', 'sound': b'y'} for n in range(10)]
  write_parquet(tmp_path / 'a.parquet', media)
  build = datasets.load_dataset_builder
  local = {'data_files': str(tmp_path / 'a.parquet'), 'cache_dir': str(tmp_path / 'cache')}
  monkeypatch.setattr(
    datasets, 'load_dataset_builder', lambda path, name, revision: build('parquet', **local)
  )
  source = Source(
    'hf', 'org/talks', '{image:image} {text}', train_split='train[:80%]', valid_split='train[80%:]'
  )
  train, valid = (open_source(source, split) for split in ('train', 'valid'))
  assert [fields['text'] for _, fields in train.records()] == [str(n) for n in range(8)]
  assert [dict(fields) for _, fields in valid.records()] == [
    {'text': str(n), 'image': {'bytes': b'x', 'path': None}} for n in (8, 9)
  ]
  assert train.content() != valid.content() and train.content().startswith('org/talks-default-')
  with two_lines(ValueError, 'path=org/talks', 'Unknown split'):
    open_source(Source('hf', 'org/talks', train_split='dev'), 'train')
