"""Files made to harm: each is refused in seconds, with little memory, by a cause and a fix.

Limits, as a user meets them: 2 seconds of processor time, 200 MB above what the process had.
"""

import gzip
import json
import pathlib
import pickle
import resource
import shutil
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy
import tensorstore

from gpt_jax.runs import digests, records
from gpt_jax.tokenizers import bpe
from tests import command_line, tiny_runs

SECONDS, MEGABYTES = 2.0, 200
DEEP = '[' * 10_000 + ']' * 10_000
LLAMA = {
  'model_type': 'llama',
  'architectures': ['LlamaForCausalLM'],
  'hidden_size': 16,
  'intermediate_size': 32,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'vocab_size': 256,
  'max_position_embeddings': 32,
  'rms_norm_eps': 1e-6,
  'hidden_act': 'silu',
  'tie_word_embeddings': True,
  'num_key_value_heads': 2,
}


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture
def call(capsys, monkeypatch):
  return command_line.in_process(capsys, monkeypatch)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run folder. Do not change it."""
  return tiny_runs.finished(tmp_path_factory)


@pytest.fixture(autouse=True)
def room():
  """What takes far too much memory fails, and takes nothing else with it."""
  before = resource.getrlimit(resource.RLIMIT_AS)
  used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_AS, before)


def high_water():
  """Most memory in MB that this process had since `forget`."""
  status = pathlib.Path('/proc/self/status')
  if not status.exists():
    pytest.skip('memory is measured on Linux')
  return int(status.read_text().partition('VmHWM:')[2].split()[0]) / 1000


def forget():
  pathlib.Path('/proc/self/clear_refs').write_text('5')


def assert_refused(call, words, *parts):
  """Two lines with exit code 1 or 2, in time and memory."""
  forget()
  before, start = high_water(), time.process_time()
  code, out, err = call(*words)
  seconds, megabytes = time.process_time() - start, high_water() - before
  assert code in (1, 2), (out, err)
  lines = err.rstrip('\n').split('\n')
  assert len(lines) == 2 and lines[0].startswith('error: ') and lines[1].startswith('fix: '), err
  assert len(lines[0]) < 1010
  for part in parts:
    assert part in lines[0], lines[0]
  assert seconds < SECONDS, seconds
  assert megabytes < MEGABYTES, megabytes


# ------------------------------------------------------------------------------- models to import


class Harm:
  """What runs a command when it is unpickled."""

  def __reduce__(self):
    return (pathlib.Path.touch, (pathlib.Path('pwned'),))


def header(content, size=None, data=b'\0' * 64):
  """A safetensors file with this header, whatever it says."""
  text = content if isinstance(content, bytes) else json.dumps(content).encode()
  return struct.pack('<Q', len(text) if size is None else size) + text + data


def tensor(shape, begin, end):
  return {'dtype': 'F32', 'shape': shape, 'data_offsets': [begin, end]}


WEIGHTS = {
  'pickle': pickle.dumps(Harm()),
  'huge header': header({}, size=2**62),
  'header of 1 GB': header({}, size=2**30),
  'overlapping': header({'a': tensor([16], 0, 64), 'b': tensor([8], 16, 48)}),
  'huge shape': header({'a': tensor([2**40], 0, 2**42)}),
  'overflowing shape': header({'a': tensor([2**33, 2**33], 0, 64)}),
  'deep header': header(DEEP.encode()),
  'empty': b'',
}


def model_folder(folder, config=None, weights=None):
  """A folder to import, one byte a token, and the words that import it."""
  folder.mkdir(exist_ok=True)
  bytes_ = {character: byte for byte, character in enumerate(bpe.byte_characters())}
  (folder / 'tokenizer.json').write_text(json.dumps(bpe.tokenizer_json(bytes_, [])))
  text = config if isinstance(config, str) else json.dumps(LLAMA | (config or {}))
  (folder / 'config.json').write_text(text)
  if weights is None:
    weights = safetensors.numpy.save({'model.embed_tokens.weight': np.zeros((256, 16), np.float32)})
  (folder / 'model.safetensors').write_bytes(weights)
  return ('import', f'--source={folder}', f'--workdir={folder}/run')


@pytest.mark.parametrize('name', WEIGHTS)
def test_weights(call, tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  assert_refused(call, model_folder(tmp_path / 'hf', weights=WEIGHTS[name]), 'model.safetensors')
  assert not (tmp_path / 'pwned').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  'config',
  [
    DEEP,
    '{"a":' * 10_000 + '1' + '}' * 10_000,
    '9' * 10_000,
    '[]',
    'null',
    '"x"',
    '{"model_type": 3}',
    {'vocab_size': 2**62},
    {'hidden_size': 2**40},
    {'num_hidden_layers': 10**30},
    {'num_attention_heads': -1},
    {'max_position_embeddings': 1e400},
    {'hidden_size': 'x'},
    {'num_hidden_layers': []},
    {'model_type': 'x' * 10**6},
    {'rope_scaling': DEEP},
    {'intermediate_size': True},
  ],
  ids=lambda c: str(c)[:30],
)
def test_configs_of_models(call, tmp_path, config):
  assert_refused(call, model_folder(tmp_path / 'hf', config))


@pytest.mark.parametrize(
  'index',
  [
    DEEP,
    '{"weight_map": {"a": "../../etc/passwd"}}',
    '{"weight_map": {"a": "/etc/passwd"}}',
    '{"weight_map": 3}',
    '{"weight_map": {"a": 3}}',
    '{"weight_map": {"a": "x\\u0000"}}',
  ],
  ids=lambda c: c[:40],
)
def test_indices_of_weights(call, tmp_path, index):
  words = model_folder(tmp_path / 'hf')
  (tmp_path / 'hf' / 'model.safetensors.index.json').write_text(index)
  assert_refused(call, words)


@pytest.mark.parametrize('text', [DEEP, '{}', '[]', '{"model": 3}', '{"added_tokens": 3}'], ids=str)
def test_tokenizers_of_models(call, tmp_path, text):
  words = model_folder(tmp_path / 'hf')
  (tmp_path / 'hf' / 'tokenizer.json').write_text(text)
  assert_refused(call, words)


# -------------------------------------------------------------------------------- data to train on


def bomb_png():
  """A picture that says it has 2^34 pixels."""
  chunk = lambda kind, data: (
    struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
  )
  size = struct.pack('>IIBBBBB', 2**17, 2**17, 8, 0, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', size)
    + chunk(b'IDAT', zlib.compress(bytes(10**6)))
    + chunk(b'IEND', b'')
  )


def text_bomb_png():
  """A small picture whose text chunk unpacks to 500 MB."""
  chunk = lambda kind, data: (
    struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
  )
  pack = zlib.compressobj(9)
  packed = b''.join(pack.compress(bytes(10**6)) for _ in range(500)) + pack.flush()
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', struct.pack('>IIBBBBB', 8, 8, 8, 0, 0, 0, 0))
    + chunk(b'zTXt', b'k\0\0' + packed)
    + chunk(b'IDAT', zlib.compress(bytes(72)))
    + chunk(b'IEND', b'')
  )


def huge_wav(samples=2**40):
  """A sound that says it has so many samples; RIFF sizes have 32 bits, RF64's 64."""
  sizes = struct.pack('<QQQI', 2 * samples + 72, 2 * samples, samples, 0)
  return (
    b'RF64'
    + b'\xff' * 4
    + b'WAVEds64'
    + struct.pack('<I', len(sizes))
    + sizes
    + b'fmt '
    + struct.pack('<IHHIIHH', 16, 1, 1, 8000, 16000, 2, 16)
    + b'data'
    + b'\xff' * 4
    + bytes(100)
  )


def long_flac():
  """A sound that says it has 2^36 - 1 samples at 8,000 Hz."""
  about = (8000 << 44 | 15 << 36 | 2**36 - 1).to_bytes(8)
  return b'fLaC\x80\0\0\x22' + struct.pack('>HH', 4096, 4096) + bytes(6) + about + bytes(116)


def zipped(path, names, content=b'', bomb=0):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name in names:
      with archive.open(name, 'w', force_zip64=bomb > 2**31) as file:
        file.write(content)
        for _ in range(bomb >> 20):
          file.write(bytes(1 << 20))


def npy(shape, descr='<f4', data=b''):
  text = repr({'descr': descr, 'fortran_order': False, 'shape': shape}).encode().ljust(117) + b'\n'
  return b'\x93NUMPY\x01\0' + struct.pack('<H', len(text)) + text + data


def npz(path, content):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('image.npy', content)


def objects(path):
  np.savez(path, image=np.array([Harm()], dtype=object))


def understated(path):
  """A member of 2^28 zeros whose directory says that it has 100."""
  zipped(path, ['a.png'], bomb=2**28)
  path.write_bytes(path.read_bytes().replace(struct.pack('<I', 2**28), struct.pack('<I', 100)))


def damaged(path):
  zipped(path, ['a.png'], bytes(range(256)))
  content = bytearray(path.read_bytes())
  content[40] ^= 0xFF
  path.write_bytes(content)


PICTURES = {'kind': 'files', 'template': '{image:image}'}
SOUNDS = {'kind': 'files', 'template': '{audio:audio}'}
ARRAYS = {'kind': 'arrays', 'template': '{image:image}'}
TEXTS = {'kind': 'jsonl', 'template': '{text}'}
TOKENIZERS = {
  '{image:image}': {'image': tiny_runs.MEDIA['image']},
  '{audio:audio}': {'audio': tiny_runs.MEDIA['audio']},
  '{text}': {},
}
IDX = struct.pack('>BBBBIII', 0, 0, 8, 3, 2**31 - 1, 2**31 - 1, 2**31 - 1)
NEGATIVE = struct.pack('>BBBBii', 0, 0, 8, 2, -2, -3) + bytes(6)
DATA = {  # name: (file name, source, what writes it)
  'pixel bomb': ('x.png', PICTURES, lambda p: p.write_bytes(bomb_png())),
  'text bomb in a picture': ('x.png', PICTURES, lambda p: p.write_bytes(text_bomb_png())),
  'sound of 2^36 samples': ('x.flac', SOUNDS, lambda p: p.write_bytes(long_flac())),
  'sound of 2^40 samples': ('x.wav', SOUNDS, lambda p: p.write_bytes(huge_wav())),
  'zip bomb of pictures': ('x.zip', PICTURES, lambda p: zipped(p, ['a.png'], bomb=2**28)),
  'zip bomb of sounds': ('x.zip', SOUNDS, lambda p: zipped(p, ['a.wav'], b'RIFF', bomb=2**28)),
  'zip of the largest pictures': ('x.zip', PICTURES, lambda p: zipped(p, ['a.png'], bomb=2**26)),
  'zip bomb that says it is small': ('x.zip', PICTURES, understated),
  'zip of damaged members': ('x.zip', PICTURES, damaged),
  'zip with paths outside': ('x.zip', PICTURES, lambda p: zipped(p, ['../a.png', '/b.png'], b'x')),
  'pickles in an npz': ('x.npz', ARRAYS, objects),
  'npz of 2^40 elements': ('x.npz', ARRAYS, lambda p: npz(p, npy((2**40,)))),
  'npz of 2^62 rows of nothing': ('x.npz', ARRAYS, lambda p: npz(p, npy((2**62, 0)))),
  'npz bomb': ('x.npz', ARRAYS, lambda p: npz(p, npy((2**28,), '|u1', bytes(2**28)))),
  'npz of bytes': ('x.npz', ARRAYS, lambda p: npz(p, b'no array')),
  'npz header that is code': ('x.npz', ARRAYS, lambda p: npz(p, npy((2,), '__import__("os")'))),
  'idx of 2^93 bytes': ('image-ubyte', ARRAYS, lambda p: p.write_bytes(IDX + bytes(100))),
  'idx bomb': ('image.gz', ARRAYS, lambda p: p.write_bytes(gzip.compress(IDX + bytes(2**28)))),
  'idx of 255 dimensions': ('image', ARRAYS, lambda p: p.write_bytes(b'\0\0\x08\xff' + bytes(9))),
  'idx of -2 by -3': ('image', ARRAYS, lambda p: p.write_bytes(NEGATIVE)),
  'damaged gzip': ('image.gz', ARRAYS, lambda p: p.write_bytes(b'\x1f\x8b\x08' + bytes(99))),
  'deep JSON': ('x.jsonl', TEXTS, lambda p: p.write_text(f'{{"text": {DEEP}}}\n')),
  'long number': ('x.jsonl', TEXTS, lambda p: p.write_text(f'{{"text": {"9" * 10_000}}}\n')),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', DATA)
def test_data(call, tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  file, source, write = DATA[name]
  path = tmp_path / 'data' / file
  path.parent.mkdir()
  write(path)
  experiment = tmp_path / 'x.py'
  experiment.write_text(f"""from tests import tiny_runs

def get_config(arg=''):
  config = tiny_runs.section(data__mixture={{'data': {source | {'path': str(path)}!r}}})
  config.data.update(packing='first_fit', valid_fraction=0.0)
  config.update({TOKENIZERS[source['template']]!r})
  return config
""")
  words = ('train', f'--config={experiment}', f'--workdir={tmp_path}/run')
  # What says that it is long, but is short, is read as the short sound that it is: one of silence.
  short = name == 'sound of 2^40 samples'
  assert_refused(call, words, 'only 1 distinct vectors' if short else f'data/{file}')
  assert {p.name for p in tmp_path.iterdir()} <= {'data', 'x.py', 'run'}
  assert [p.name for p in path.parent.iterdir()] == [file]


# ------------------------------------------------------------------------------- folders of others


@pytest.fixture
def copy(run, tmp_path):
  return pathlib.Path(shutil.copytree(run, tmp_path / 'copy'))


SAMPLE = ('sample', '--prompt=a', '--max_new_tokens=4')


def changed(path, value):
  """What sets one value in the config of a run."""

  def change(folder):
    config = records.read_json(folder / 'config.json')
    *parents, name = path.split('.')
    node = config
    for parent in parents:
      node = node[parent]
    node[name] = value
    records.write_json(folder / 'config.json', config)

  return change


def checkpoint_of(folder):
  return max((folder / 'checkpoints').glob('[0-9]*'), key=lambda p: int(p.name))


def sealed(folder):
  """Digests are no signature: who can write a checkpoint can write them."""
  step = checkpoint_of(folder)
  digests.write_manifest(folder / 'checkpoints' / 'digests' / f'{step.name}.json', step)


def huge_array(folder):
  """A checkpoint in which the embedding says that it has 2^40 elements more."""
  place = checkpoint_of(folder) / 'state'
  spec = {'driver': 'ocdbt', 'base': f'file://{place}/'}
  store = tensorstore.KvStore.open(spec).result()
  keys = [key for key in store.list().result() if key.endswith(b'.zarray') and b'embed' in key]
  for key in keys:
    about = json.loads(store.read(key).result().value)
    about['shape'][0] = 2**40
    store.write(key, json.dumps(about).encode()).result()
  assert keys
  sealed(folder)


def extra(change):
  """What changes the JSON beside the state of a checkpoint."""

  def harm(folder):
    path = checkpoint_of(folder) / 'extra' / 'metadata'
    content = change(json.loads(path.read_text()))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    sealed(folder)

  return harm


RUNS = {
  'deep config': lambda folder: (folder / 'config.json').write_text(DEEP),
  'long number': lambda folder: (folder / 'config.json').write_text(f'{{"a": {"9" * 9999}}}'),
  'unknown key': changed('model.evil', 1),
  'unknown section': changed('evil', {'a': 1}),
  'huge width': changed('model.width', 2**40),
  'huge number of layers': changed('model.layers', 2**62),
  'longer than 64 bits': changed('model.layers', 10**30),
  'a list for a number': changed('model.width', [16]),
  'huge vocabulary': extra(lambda kept: kept | {'vocab': 2**40}),
  'huge array': huge_array,
  'deep extra': extra(lambda kept: DEEP),
  'extra of nothing': extra(lambda kept: {}),
  'tokenizer outside': extra(lambda kept: kept | {'tokenizer': {'../../x': 'AAAA'}}),
  'tokenizer that is no base64': extra(lambda kept: kept | {'tokenizer': {'text.json': '%'}}),
  'extra of another kind': extra(lambda kept: [1, 2]),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', RUNS)
def test_runs(call, copy, name):
  RUNS[name](copy)
  before = tiny_runs.snapshot(copy.parent)
  assert_refused(call, (*SAMPLE, f'--workdir={copy}'))
  assert tiny_runs.snapshot(copy.parent) == before


def test_the_same_run_unharmed(call, copy):
  assert call(*SAMPLE, f'--workdir={copy}')[0] == 0
