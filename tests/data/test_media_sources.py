"""Sources of media give the fields that they promise, by split, and say what is wrong."""

import dataclasses
import functools
import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments import mnist as mnist_experiment
from gpt_jax import config, data
from gpt_jax.data import DataConfig, Source, documents, source_names
from gpt_jax.data.media_io import to_png, to_wav
from gpt_jax.data.sources import open_source
from gpt_jax.data.splits import matches
from gpt_jax.data.synthetic.keypad import decode


def records(source, split='train'):
  return [record for _, record in open_source(source, split).records()]


def refused(made, *words):
  """The cause line of the two lines that `made` raises."""
  with pytest.raises(ValueError) as caught:
    made()
  cause, fix = str(caught.value).split('\n')
  assert fix.startswith('fix: ')
  for word in words:
    assert word in cause
  return cause


# ------------------------------------------------------------------------------- built in


def test_digits():
  actual = records(Source('digits', template='{image:image} -> {name}'))
  assert len(actual) == 1797
  assert {r['image'].shape for r in actual} == {(8, 8, 1)}
  values = np.unique(np.stack([r['image'] for r in actual]))
  assert values.dtype == np.uint8
  assert values.tolist() == np.round(np.arange(17) * 255 / 16).tolist()
  assert [r['label'] for r in actual[:10]] == list(range(10))
  assert {(r['label'], r['name']) for r in actual} >= {(0, 'zero'), (7, 'seven')}
  assert len({r['name'] for r in actual}) == 10


def test_keypad_tones_match_their_labels():
  source = Source('keypad', template='{audio:audio} -> {name}', documents=12)
  actual = records(source)
  assert [r['label'] for r in actual] == [*range(10), 0, 1]
  cfg = DataConfig({'x': source}, packing='first_fit', valid_fraction=0.0)
  assert [decode(wave) for wave in data.load_waveforms(cfg, 8000)] == [str(r['label']) for r in actual]
  half = data.load_waveforms(cfg, 4000)  # the records know their rate
  assert abs(len(half[0]) - len(actual[0]['audio']) / 2) <= 1
  contents = {open_source(Source('keypad', documents=n), 'train').content() for n in (12, 13)}
  assert len(contents) == 2


# --------------------------------------------------------------------------------- arrays


def test_npz(tmp_path):
  path = str(tmp_path / 'a.npz')
  images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
  np.savez(path, image=images, label=np.array([2, 0, 1]), text=np.array(['a', 'b', 'c']))
  source = Source('arrays', path, '{image:image} {text} -> {name}', names=('x', 'y', 'z'))
  actual = records(source)
  assert [(r['name'], str(r['text'])) for r in actual] == [('z', 'a'), ('x', 'b'), ('y', 'c')]
  np.testing.assert_array_equal(actual[1]['image'], images[1])
  cfg = DataConfig({'x': source}, packing='first_fit', valid_fraction=0.0)
  np.testing.assert_array_equal(data.load_images(cfg, (4, 4, 1))[..., 0], images)
  assert list(documents(cfg, 'train'))[0] == ('x', ' az')


def test_npz_sounds_have_the_rate_of_the_source(tmp_path):
  np.savez(tmp_path / 'a.npz', s=np.zeros((2, 100), np.int16))
  source = Source('arrays', str(tmp_path / 'a.npz'), '{s:audio}', rate=200)
  cfg = DataConfig({'x': source}, packing='first_fit', valid_fraction=0.0)
  assert data.load_waveforms(cfg, 100)[0].shape == (50,)


def idx(array):
  head = bytes([0, 0, 8, array.ndim]) + b''.join(n.to_bytes(4, 'big') for n in array.shape)
  return head + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
  """Four idx files as MNIST has them, two of them compressed; images of 5x4."""
  for split, count in (('train', 6), ('t10k', 3)):
    images = np.arange(count * 20, dtype=np.uint8).reshape(count, 5, 4)
    labels = np.arange(count, dtype=np.uint8) % 3
    pack = gzip.compress if split == 'train' else bytes
    suffix = '.gz' if split == 'train' else ''
    (tmp_path / f'{split}-images-idx3-ubyte{suffix}').write_bytes(pack(idx(images)))
    (tmp_path / f'{split}-labels-idx1-ubyte{suffix}').write_bytes(pack(idx(labels)))
  return tmp_path


def test_idx(mnist):
  source = Source(
    'arrays', f'{mnist}/train-*-ubyte.gz', '{image:image} -> {label}', test_path=f'{mnist}/t10k-*-ubyte'
  )
  train, test = records(source), records(source, 'test')
  assert (len(train), len(test)) == (6, 3)
  assert train[1]['image'].shape == (5, 4, 1) and train[1]['image'].ravel().tolist() == list(range(20, 40))
  assert [int(r['label']) for r in train] == [0, 1, 2, 0, 1, 2]
  cfg = DataConfig({'x': source}, packing='first_fit', valid_fraction=0.0)
  assert [text for _, text in documents(cfg, 'test')] == ['0', '1', '2']


def test_bad_arrays(mnist, tmp_path):
  def opened(path):
    return lambda: open_source(Source('arrays', str(path)), 'train')

  refused(opened(tmp_path / 'gone.npz'), 'gone.npz matches no file')
  np.savez(tmp_path / 'a.npz', x=np.zeros(3), y=np.zeros(4))
  refused(opened(tmp_path / 'a.npz'), "different lengths: {'x': 3, 'y': 4}")
  np.savez(tmp_path / 'b.npz', x=np.float32(3))
  refused(opened(tmp_path / 'b.npz'), 'some without rows')
  np.savez(tmp_path / 'c.npz', x=np.array([{}]))
  refused(opened(tmp_path / 'c.npz'), 'c.npz is not a readable .npz')
  (tmp_path / 'd.npz').write_bytes(b'PK nothing')
  refused(opened(tmp_path / 'd.npz'), 'd.npz is not a readable .npz')
  refused(opened(f'{mnist}/*-images-*'), 'is neither the one .npz, nor the one idx file')
  (tmp_path / 'other.bin').write_bytes(b'')
  refused(opened(tmp_path / 'other.bin'), 'other.bin is neither')
  whole = (mnist / 't10k-images-idx3-ubyte').read_bytes()
  for broken in (whole[:-1], b'\0\0\x09' + whole[3:], b''):
    (mnist / 't10k-images-idx3-ubyte').write_bytes(broken)
    refused(opened(f'{mnist}/t10k-*'), 'is not a complete idx file')
  gz = mnist / 'train-images-idx3-ubyte.gz'
  gz.write_bytes(gz.read_bytes()[:-9])
  refused(opened(f'{mnist}/train-*'), 'is not a readable file')


def test_names_fit_the_labels(mnist):
  source = Source('arrays', f'{mnist}/train-*', '{name}', names=('only', 'two'))
  refused(lambda: records(source), 'row 2 has label=2, but names has 2 entries')


# ---------------------------------------------------------------------------------- files


def test_a_cut_archive_is_named_as_one(tmp_path):
  with zipfile.ZipFile(tmp_path / 'pictures.zip', 'w') as archive:
    archive.writestr('ring/1.png', bytes(1000))
  whole = (tmp_path / 'pictures.zip').read_bytes()
  (tmp_path / 'pictures.zip').write_bytes(whole[: len(whole) // 2])
  source = Source('files', f'{tmp_path}/pictures.zip', '{image:image}')
  refused(lambda: open_source(source, 'train'), 'pictures.zip is not a whole zip archive')


@pytest.fixture(params=['folder', 'zip', 'glob'])
def speech(tmp_path, request):
  """Recordings of two speakers, as files, or in a .zip: the path of a source."""
  folder = tmp_path / 'recordings'
  folder.mkdir()
  for digit in range(2):
    for speaker in ('theo', 'lucas'):
      for index in range(3):
        wave = np.full(10 + index, 0.1 * digit)
        (folder / f'{digit}_{speaker}_{index}.wav').write_bytes(to_wav(wave, 100))
  (folder / 'README.md').write_text('not a recording')
  if request.param == 'zip':
    with zipfile.ZipFile(tmp_path / 'recordings.zip', 'w') as archive:
      for file in sorted(folder.iterdir()):
        archive.write(file, file.name)
    return str(tmp_path / 'recordings.zip')
  return str(folder / '*.wav' if request.param == 'glob' else folder)


PATTERN = r'(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)'


def test_files(speech):
  source = Source('files', speech, '{audio:audio} -> {digit}', pattern=PATTERN)
  actual = records(source)
  assert len(actual) == 12
  assert [(r['digit'], r['speaker'], r['index']) for r in actual[:4]] == [
    ('0', 'lucas', '0'),
    ('0', 'lucas', '1'),
    ('0', 'lucas', '2'),
    ('0', 'theo', '0'),
  ]
  assert actual[0]['image'] == actual[0]['audio'] and actual[0]['file'] == '0_lucas_0.wav'
  cfg = DataConfig({'x': source}, packing='first_fit', valid_fraction=0.0)
  assert [len(wave) for wave in data.load_waveforms(cfg, 100)] == [10, 11, 12] * 4


def test_filters_make_disjoint_splits(speech):
  """Leave one speaker out: what is for the test is in no other split."""
  source = Source(
    'files',
    speech,
    '{speaker}{index}',
    pattern=PATTERN,
    test_keep='speaker=theo',
    valid_keep='index=2',
    keep='digit=0',
  )
  cfg = DataConfig({'x': source}, valid_fraction=0.0)
  parts = {split: [text for _, text in documents(cfg, split)] for split in data.SPLITS}
  assert parts == {
    'train': ['lucas0', 'lucas1'],
    'valid': ['lucas2', 'lucas2'],
    'test': [f'theo{n}' for n in (0, 1, 2)] * 2,
  }
  assert source_names(cfg, 'test') == ('x',)
  cfg = DataConfig({'x': dataclasses.replace(source, test_keep='')}, valid_fraction=0.0)
  assert source_names(cfg, 'test') == ()
  refused(lambda: data.mixture.open_split(cfg, 'x', 'test'), 'data.mixture.x has no test data')
  nobody = dataclasses.replace(source, test_keep='speaker=george')
  refused(lambda: list(documents(DataConfig({'x': nobody}), 'test')), 'x has no test documents')


def test_validation_is_cut_from_records_outside_the_test(speech):
  source = Source('files', speech, '{file}', pattern=PATTERN, test_keep='speaker=theo')
  cfg = DataConfig({'x': source}, valid_fraction=0.5)
  train, valid = ([t for _, t in documents(cfg, split)] for split in ('train', 'valid'))
  assert len(train) == len(valid) == 3
  assert all('lucas' in name for name in train + valid)


def test_filters():
  record = {'a': 'x', 'b': 2, 'c': {'d': np.int64(3)}}
  assert matches('', record, '')
  assert matches('a=x|y,b=2', record, '') and matches('c.d=3', record, '')
  assert not matches('a=x,b=3', record, '') and not matches('a=', record, '')
  refused(lambda: matches('z=1', record, 'here'), "here has no field 'z'")
  for bad in ('a', 'a=1,', '=1', 'a|b'):
    refused(functools.partial(Source, 'digits', keep=bad), f'keep={bad!r} is not a filter')


def test_a_filter_makes_another_cache():
  from gpt_jax.data.mixture import open_split

  def described(**fields):
    cfg = DataConfig({'x': Source('digits', template='{name}', **fields)})
    return open_split(cfg, 'x', 'train').describe()

  plain = described()
  assert set(plain) == {'content', 'kind', 'template', 'split', 'valid_fraction'}
  assert described(keep='label=1|2')['keep'] == 'label=1|2'
  assert described(test_keep='label=3')['without'] == ['label=3']


def test_captions(tmp_path):
  folder = tmp_path / 'pictures'
  (folder / 'in').mkdir(parents=True)
  lines = []
  for name in ('a.png', 'in/b.png'):
    (folder / name).write_bytes(to_png(np.zeros((2, 2), np.uint8)))
    lines.append(json.dumps({'image': name, 'text': f'picture {name}', 'split': name[0]}))
  (tmp_path / 'c.jsonl').write_text('\n'.join(lines) + '\n')
  source = Source('files', str(folder), '{image:image} -> {text}', captions=str(tmp_path / 'c.jsonl'))
  actual = records(source)
  assert [r['text'] for r in actual] == ['picture a.png', 'picture in/b.png']
  assert actual[0]['image'] == f'{folder}/a.png'
  content = open_source(source, 'train').content()
  (tmp_path / 'c.jsonl').write_text('\n'.join(lines[::-1]) + '\n')
  assert open_source(source, 'train').content() != content
  (tmp_path / 'c.jsonl').write_text(lines[0])
  refused(lambda: records(source), 'in/b.png: captions=', 'does not name it')
  (tmp_path / 'c.jsonl').write_text('\n'.join([lines[0], lines[0]]))
  refused(lambda: records(source), 'line 2 names no file in file, image, audio, or one')
  (tmp_path / 'c.jsonl').write_text('{"text": "a"}')
  refused(lambda: records(source), 'line 1 names no file')


def test_bad_files(tmp_path):
  refused(lambda: records(Source('files', str(tmp_path))), 'matches no media file')
  (tmp_path / 'x.wav').write_bytes(b'')
  source = Source('files', str(tmp_path), '{audio:audio}', pattern=r'(?P<n>\d)')
  refused(lambda: records(source), "x.wav: its name 'x.wav' does not match pattern=")
  refused(lambda: Source('files', 'x', pattern='('), 'is not a regular expression')
  refused(lambda: Source('files', 'x', pattern='.*'), 'has no named group')


@pytest.mark.parametrize(
  ('fields', 'cause'),
  [
    ({'kind': 'digits', 'path': 'x'}, "path='x' has no effect on a source of kind=digits"),
    ({'kind': 'keypad', 'seed': 3}, 'seed=3 has no effect on a source of kind=keypad'),
    ({'kind': 'arrays'}, 'path is empty for a source of kind=arrays'),
    ({'kind': 'files', 'path': 'x', 'root': 'y'}, "root='y' has no effect"),
    ({'kind': 'text', 'path': 'x', 'keep': 'a=b'}, "keep='a=b' has no effect"),
    ({'kind': 'tfds', 'path': 'x', 'test_path': 'y'}, "test_path='y' has no effect"),
    ({'kind': 'jsonl', 'path': 'x', 'pattern': '(?P<a>.)'}, 'pattern='),
    ({'kind': 'jsonl', 'path': 'x', 'bad_records': -1}, 'bad_records=-1 is negative'),
    ({'kind': 'digits', 'template': '{image:pixels}'}, 'template='),
  ],
)
def test_bad_sources(fields, cause):
  refused(lambda: Source(**fields), cause)


@pytest.mark.parametrize(
  ('fields', 'cause'),
  [
    ({'template': '{image:image} -> {name}'}, "has media, turns or ' -> ', and data.packing=crop would"),
    ({'template': '{label} -> {name}', 'packing': 'split'}, 'data.packing=split would cut'),
    ({'template': '{image:image}'}, 'data.packing=crop'),
    ({'condition_dropout': 0.1}, 'data.condition_dropout=0.1 has no effect'),
    ({'prefix': True}, 'data.prefix=True has no effect'),
    ({'condition_dropout': 1.0}, 'data.condition_dropout=1.0 is not in [0, 1)'),
  ],
)
def test_bad_configs(fields, cause):
  source = Source('digits', template=fields.pop('template', '{name}'))
  refused(lambda: DataConfig({'x': source}, **fields), cause)


def test_roots(tmp_path, monkeypatch):
  (tmp_path / 'a.jsonl').write_text('{"x": "a.png"}')
  source = Source('jsonl', str(tmp_path / 'a.jsonl'), '{x:image}', root='pictures')
  refused(lambda: records(source), 'root=pictures is not a folder or .zip')
  (tmp_path / 'pictures').mkdir()
  assert records(source)[0].root == f'{tmp_path}/pictures'
  (tmp_path / 'elsewhere').mkdir()
  monkeypatch.setenv('GPT_JAX_DATA', str(tmp_path / 'elsewhere'))
  (tmp_path / 'pictures').rename(tmp_path / 'elsewhere' / 'pictures')
  assert records(source)[0].root == f'{tmp_path}/elsewhere/pictures'


# ----------------------------------------------------------------------------------- TFDS


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A TFDS data set of our own with pictures and sounds, written without TensorFlow."""
  import tensorflow_datasets as tfds

  class TinyMedia(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = {
        'image': tfds.features.Image(shape=(4, 6, 1)),
        'audio': tfds.features.Tensor(shape=(None,), dtype=np.int16),  # Audio needs TensorFlow
        'label': tfds.features.ClassLabel(names=['cat', 'dog']),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {'train': self._generate_examples(0, 4), 'test': self._generate_examples(4, 6)}

    def _generate_examples(self, first, last):
      for n in range(first, last):
        yield (
          n,
          {
            'image': io.BytesIO(to_png(np.full((4, 6, 1), n, np.uint8))),  # encoded: no TensorFlow
            'audio': np.full(50 + n, 1000 * n, np.int16),
            'label': n % 2,
          },
        )

  folder = tmp_path_factory.mktemp('tfds_media')
  TinyMedia(data_dir=folder, file_format='array_record').download_and_prepare()
  return folder


TFDS = """
import sys
from gpt_jax import data
from gpt_jax.data import DataConfig, Source
template = '{{image:image}}{{audio:audio}} -> {{name}}'
source = Source('tfds', 'tiny_media', template, data_dir={folder!r}, test_split='test', rate=200,
                names=('cat', 'dog'), keep='name=dog')
cfg = DataConfig({{'x': source}}, packing='first_fit', valid_fraction=0.0)
for split in ('train', 'test'):
  levels = data.load_images(cfg, (4, 6, 1), split).max((1, 2, 3))
  waves = data.load_waveforms(cfg, 100, split)
  print(sorted(zip([t for _, t in data.documents(cfg, split)], levels.tolist(),
                   [len(w) for w in waves], [round(float(w[12]) * 32.768) for w in waves])))
assert not {{'tensorflow', 'torch'}} & set(sys.modules), 'heavy imports'
"""


def test_tfds_media_are_read_without_tensorflow(prepared):
  """In a process of its own, as another test may have imported TensorFlow."""
  env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
  code = TFDS.format(folder=str(prepared))
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().split('\n') == [
    "[('dog', 1, 26, 1), ('dog', 3, 27, 3)]",  # 51 and 53 samples at 200 Hz, at 100 Hz
    "[('dog', 5, 28, 5)]",
  ]


@pytest.mark.parametrize('arg', ['', ',task=read,copies=2'])
def test_the_experiment_of_digits_reads_them_from_tfds(prepared, arg):
  made = mnist_experiment.get_config(f'tfds=tiny_media{arg}')
  for source in made.data.mixture.values():
    source['data_dir'] = str(prepared)
  cfg = config.build(config.Config, made).data
  for split, count in (('train', 3), ('valid', 1), ('test', 2)):
    names = [name for _, name in documents(cfg, split)]
    assert len(names) == count * len(cfg.mixture) and set(names) <= {'zero', 'one'}
  assert data.load_images(cfg, (28, 28, 1), 'test').shape == (2 * len(cfg.mixture), 28, 28, 1)


def test_tfds_features_that_need_tensorflow(monkeypatch):
  import tensorflow_datasets as tfds

  def builder(*_, **__):
    raise ModuleNotFoundError("No module named 'tensorflow'", name='tensorflow')

  monkeypatch.setattr(tfds, 'builder', builder)
  source = Source('tfds', 'ljspeech', '{audio:audio}')
  refused(lambda: open_source(source, 'train'), 'a feature that TFDS reads with TensorFlow only')


# ------------------------------------------------------------------------- development data


def test_free_spoken_digits(data_dir):
  source = Source(
    'files',
    str(data_dir / 'fsdd' / 'recordings.zip'),
    '{audio:audio} -> {digit}',
    pattern=PATTERN,
    test_keep='index=0|1|2|3|4',
  )
  assert (len(records(source)), len(records(source, 'test'))) == (2700, 300)


def test_mnist(data_dir):
  folder = data_dir / 'mnist'
  source = Source(
    'arrays', f'{folder}/train-*.gz', '{image:image} -> {label}', test_path=f'{folder}/t10k-*.gz'
  )
  actual = records(source, 'test')
  assert len(actual) == 10_000 and actual[0]['image'].shape == (28, 28, 1)
  assert np.bincount([r['label'] for r in actual]).tolist() == [
    980,
    1135,
    1032,
    1010,
    982,
    892,
    958,
    1028,
    974,
    1009,
  ]


@pytest.mark.parametrize('kind', ['files', 'jsonl'])
def test_emoji(data_dir, kind):
  folder = data_dir / 'noto_emoji'
  fields = {'files': {'captions': f'{folder}/captions.jsonl'}, 'jsonl': {'root': 'images_72.zip'}}
  path = {'files': f'{folder}/images_72.zip', 'jsonl': f'{folder}/captions.jsonl'}
  source = Source(
    kind,
    path[kind],
    '{name} -> {image:image}',
    keep='split=train',
    valid_keep='split=valid',
    test_keep='split=test',
    **fields[kind],
  )
  cfg = DataConfig({'x': source}, packing='first_fit')
  assert [len(records(source, split)) for split in data.SPLITS] == [1310, 170, 164]
  assert data.load_images(cfg, (8, 8, 3), 'test').shape == (164, 8, 8, 3)
