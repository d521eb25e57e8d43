"""The command line with pictures and sounds: what it makes, and what it says to what cannot be."""

import io
import json
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from gpt_jax import data
from gpt_jax.data import media_io
from gpt_jax.data.synthetic import keypad
from gpt_jax.evaluation import trained
from gpt_jax.runs import loggers, records
from tests import command_line, tiny_runs
from tests.command_line import assert_user_error
from tests.tiny_runs import snapshot


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The run folder of the tiny experiment with pictures and sounds. Do not change it."""
  return tiny_runs.media_finished(tmp_path_factory)


@pytest.fixture
def copy(run, tmp_path):
  """A run folder to harm."""
  shutil.copytree(run, tmp_path / 'copy')
  return tmp_path / 'copy'


@pytest.fixture
def call(capsys, monkeypatch):
  return command_line.in_process(capsys, monkeypatch)


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
  """A PNG file, larger than the model's pictures and in color."""
  path = tmp_path_factory.mktemp('given') / 'seven.png'
  pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
  path.write_bytes(media_io.to_png(pixels))
  return path


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
  """A WAV file of another rate than the model's."""
  path = tmp_path_factory.mktemp('given') / 'seven.wav'
  path.write_bytes(media_io.to_wav(np.repeat(keypad.tone(7), 2), 16000))
  return path


# ---------------------------------------------------------------------------------- what it makes


def test_train_evaluate_and_sample(call, tmp_path, picture):
  """From a config file to a run, its rows and an answer, as a user would."""
  file, workdir = tmp_path / 'small.py', tmp_path / 'run'
  file.write_text("""from tests import tiny_runs

def get_config(arg=''):
  return tiny_runs.media(train__steps=2, train__eval_every=0, train__sample_every=0)
""")
  code, out, err = call('train', f'--config={file}', f'--workdir={workdir}')
  assert code == 0, err
  assert 'text ids, 18 image ids, 10 audio ids' in out
  assert 'loss/text' in out and 'loss/image' in out and 'loss/audio' in out
  samples = sorted(path.name for path in (workdir / 'samples').iterdir())
  names = ('dial.txt', 'dial.wav', 'draw.png', 'draw.txt', 'listen.txt', 'read.txt')
  assert samples == [f'step_00000002_{name}' for name in names]
  report = (workdir / 'report.html').read_text()
  assert 'audio/wav' in report and 'image/png' in report
  code, out, err = call('sample', f'--workdir={workdir}', f'--image={picture}')
  assert code == 0, err


def test_an_image_is_read(call, run, picture):
  before = snapshot(run)
  words = ('sample', f'--workdir={run}', f'--image={picture}', '--to=text')
  code, out, err = call(*words, '--seed=3')
  assert code == 0, err
  notes = '1 images resized from 30x40\n1 images color converted to gray\n'
  assert out.startswith(notes)
  answer = out.removeprefix(notes)
  assert answer.strip()
  assert call(*words, '--seed=3')[1] == out
  assert call(*words, '--seed=3', '--nostream')[1] == f'{notes}--- 1 of 1\n{answer}'
  assert snapshot(run) == before


def test_a_sound_is_heard(call, run, sound, tmp_path):
  out_file = tmp_path / 'answers.jsonl'
  code, out, err = call(
    'sample', f'--workdir={run}', f'--audio={sound}', '--num_samples=2', f'--out={out_file}', '--log_probs'
  )
  assert code == 0, err
  assert '16000 Hz' in out and '--- 2 of 2  mean log-probability' in out
  first, second = (json.loads(line) for line in out_file.read_text().splitlines())
  assert first['audio'] == second['audio'] == [str(sound)] and first['prompt'] == ''
  assert f'\n{loggers.printable(first["text"])}\n' in out


def test_channels_are_made_those_of_the_model_and_it_is_said(call, run, tmp_path):
  stereo, clear = tmp_path / 'stereo.wav', tmp_path / 'clear.png'
  soundfile.write(stereo, np.repeat(keypad.tone(7)[:, None], 2, 1), 8000)
  Image.fromarray(np.full((8, 8, 4), 128, np.uint8)).save(clear)
  for word, note in (
    (f'--audio={stereo}', '2 channels averaged'),
    (f'--image={clear}', 'composited over white'),
  ):
    code, out, err = call('sample', f'--workdir={run}', word)
    assert code == 0 and note in out, err


def test_a_picture_is_drawn(call, run, tmp_path):
  file = tmp_path / 'x.png'
  words = ('sample', f'--workdir={run}', '--prompt=seven', '--to=image')
  code, out, err = call(*words, f'--out={file}', '--guidance=2', '--seed=5')
  assert code == 0, err
  assert str(file) in out
  picture = Image.open(file)
  assert picture.format == 'PNG' and picture.size == (256, 256)
  tokenizer = trained.load(run).tokenizers.image
  small = np.asarray(picture)[::32, ::32, None]
  np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(small[None]))[0], small)
  content = file.read_bytes()
  assert call(*words, f'--out={file}', '--guidance=2', '--seed=5')[0] == 0
  assert file.read_bytes() == content
  assert call(*words, f'--out={tmp_path}/more/', '--num_samples=3', '--seed=5')[0] == 0
  names = sorted(path.name for path in (tmp_path / 'more').iterdir())
  assert names == ['sample_0.png', 'sample_1.png', 'sample_2.png']
  assert len({path.read_bytes() for path in (tmp_path / 'more').iterdir()}) > 1


def test_a_sound_is_made_in_the_folder_of_the_run(call, copy):
  before = snapshot(copy)
  words = ('sample', f'--workdir={copy}', '--prompt=seven', '--to=audio')
  for number in range(2):
    code, out, err = call(*words, f'--seed={number}')
    assert code == 0, err
    assert f'sample_{number}.wav' in out
  after = snapshot(copy)
  assert {k for k in after if k not in before} == {'samples/sample_0.wav', 'samples/sample_1.wav'}
  assert {k for k in before if after[k] != before[k]} == set()
  wave, rate = soundfile.read(io.BytesIO((copy / 'samples/sample_0.wav').read_bytes()))
  assert rate == 8000 and 0 < len(wave) <= 3 * 8000 and np.isfinite(wave).all()


def test_all_tasks_that_fit_are_evaluated(call, copy, monkeypatch):
  before = snapshot(copy)
  code, out, err = call('evaluate', f'--workdir={copy}', '--tasks=perplexity,answer', '--limit=6')
  assert code == 0, err
  rows = records.read_lines(copy / 'evaluations.jsonl')
  *lines, kept, last = out.strip().splitlines()
  assert len(lines) == len(rows) and last.startswith('report: ')
  assert kept == f'predictions: {copy}/predictions.jsonl (12 examples)'
  assert {row['task'] for row in rows} == {'perplexity', 'answer'}
  answered = {row['source'] for row in rows if row['task'] == 'answer'}
  assert answered == {'read', 'listen'} and {row['split'] for row in rows} == {'valid'}
  for row in rows:
    if row['task'] == 'answer':
      assert row['n'] == 6 and np.isfinite(row['value'])
      shown = re.search(rf'^answer +{row["metric"]} +([\d.]+)', out, re.M)
      assert shown
  after = snapshot(copy)
  changed = {k for k in after if after[k] != before.get(k)}
  assert {k for k in changed if not k.startswith('predictions')} == {'evaluations.jsonl', 'report.html'}
  assert {'predictions.jsonl', 'predictions/answer-read-valid/00000_input.png'} < changed


@pytest.mark.slow
def test_every_task(call, copy):
  words = ('--tasks=all', '--limit=40', f'--recognizer={copy}')
  code, out, err = call('evaluate', f'--workdir={copy}', *words)
  assert code == 0, err
  rows = records.read_lines(copy / 'evaluations.jsonl')
  tasks = {'perplexity', 'answer', 'draw', 'speak', 'classify', 'reconstruct'}
  assert tasks <= {row['task'] for row in rows}
  assert any(row['task'] == 'speak' and row.get('recognizer') == copy.name for row in rows)
  assert all(np.isfinite(row['value']) for row in rows)


# ------------------------------------------------------------------------------------- mistakes


def huge_png(folder):
  """A PNG of a few bytes whose header promises 100,000 x 100,000 pixels."""
  chunk = lambda kind, content: (
    struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
  )
  header = struct.pack('>IIBBBBB', 100_000, 100_000, 8, 0, 0, 0, 0)
  path = folder / 'huge.png'
  chunks = [chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(b'')), chunk(b'IEND', b'')]
  path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(chunks))
  return path


@pytest.fixture(scope='module')
def bad(tmp_path_factory, picture, sound):
  """{name: path} of files that cannot be read as they are meant."""
  folder = tmp_path_factory.mktemp('bad')
  contents = {
    'text.png': b'no picture at all',
    'cut.png': picture.read_bytes()[:200],
    'empty.png': b'',
    'text.wav': b'no sound at all',
    'cut.wav': sound.read_bytes()[:30],
    'silent.wav': media_io.to_wav(np.zeros(0), 8000),
    'long.wav': media_io.to_wav(np.zeros(8000 * 4), 8000),
  }
  for name, content in contents.items():
    (folder / name).write_bytes(content)
  paths = {name: folder / name for name in contents}
  return paths | {'huge.png': huge_png(folder), 'none.png': folder / 'none.png'}


@pytest.mark.parametrize(
  'name, part',
  [
    ('text.png', 'text.png'),
    ('cut.png', 'cut.png'),
    ('empty.png', 'empty.png'),
    ('huge.png', '100000'),
    ('none.png', 'none.png'),
    ('text.wav', 'text.wav'),
    ('cut.wav', 'cut.wav'),
    ('silent.wav', 'no samples'),
    ('long.wav', '4 s'),
  ],
)
def test_files_that_cannot_be_read(call, run, bad, name, part, tmp_path):
  before = snapshot(run)
  flag = 'image' if name.endswith('.png') else 'audio'
  outcome = call('sample', f'--workdir={run}', f'--{flag}={bad[name]}', f'--out={tmp_path}/x.jsonl')
  assert_user_error(outcome, part)
  assert snapshot(run) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'words, cause, fix',
  [
    (['--audio=SOUND', '--to=image'], 'not trained to make image from 1 audio', 'text -> image'),
    (['--image=PICTURE', '--to=audio'], 'not trained to make audio from 1 image', 'text -> audio'),
    (['--image=PICTURE', '--audio=SOUND'], 'from 1 image, 1 audio', 'image -> text'),
    (['--image=PICTURE', '--image=PICTURE'], 'from 2 image', 'image -> text'),
    (['--image=PICTURE', '--prompt=what'], 'text from text, 1 image', 'image -> text'),
    (['--prompt=seven'], 'not trained to make text from text', 'audio -> text'),
    (['--to=image'], 'not trained to make image from nothing', 'text -> image'),
    (['--prompt=a', '--to=any'], 'not trained to make any', ''),
    (['--prompt=seven', '--to=image', '--out=x.wav'], '--out=x.wav', '.png'),
    (['--prompt=seven', '--to=image', '--stop=a'], '--stop', 'leave it out'),
    (['--prompt=seven', '--to=image', '--guidance=-1'], 'guidance=-1', ''),
    (['--prompt=seven', '--to=image', '--max_new_tokens=90'], 'max_new_tokens=90', ''),
    (['--prompt=seven', '--to=image', '--beams=2'], 'beams', ''),
    (['--prompt=' + 'x' * 40, '--to=image'], 'context', ''),
  ],
)
def test_what_was_not_trained(call, run, picture, sound, words, cause, fix, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  before = snapshot(run)
  words = [word.replace('SOUND', str(sound)).replace('PICTURE', str(picture)) for word in words]
  outcome = call('sample', f'--workdir={run}', *words)
  assert fix in assert_user_error(outcome, cause)
  assert snapshot(run) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize('words', [['--to=audio'], ['--to=image'], ['--image=PICTURE']])
def test_a_text_model_knows_text_only(call, tmp_path_factory, picture, words):
  run = tiny_runs.finished(tmp_path_factory)
  before = snapshot(run)
  words = [word.replace('PICTURE', str(picture)) for word in words]
  outcome = call('sample', f'--workdir={run}', '--prompt=seven', *words)
  assert_user_error(outcome, 'was not trained to make')
  assert snapshot(run) == before


def test_guidance_needs_dropped_conditions(call, copy):
  saved = records.read_json(copy / 'config.json')
  saved['data']['condition_dropout'] = 0.0
  records.write_json(copy / 'config.json', saved)
  before = snapshot(copy)
  words = ('sample', f'--workdir={copy}', '--prompt=seven', '--to=image', '--guidance=2')
  assert 'data.condition_dropout=0.1' in assert_user_error(call(*words), 'guidance=2.0')
  assert snapshot(copy) == before


@pytest.mark.parametrize('name', ['image.safetensors', 'audio.json', 'vocabulary.json'])
def test_a_tokenizer_that_was_altered_in_the_run_folder(call, copy, name):
  """It is trained with no more; what samples is the copy in the checkpoint."""
  path = copy / 'tokenizer' / name
  content = bytearray(path.read_bytes())
  if name.endswith('.json'):
    content = content.replace(b'"hash": "', b'"hash": "0')
  else:
    content[-2] ^= 1
  path.write_bytes(bytes(content))
  (copy / 'result.json').unlink()
  before = snapshot(copy)
  assert_user_error(call('train', f'--workdir={copy}'), 'tokenizer', 'was altered')
  assert snapshot(copy) == before
  assert call('sample', f'--workdir={copy}', '--prompt=seven', '--to=image')[0] == 0


def test_a_learned_tokenizer_is_no_model(call, tmp_path_factory):
  run = tiny_runs.codec_finished(tmp_path_factory, 'image')
  before = snapshot(run)
  for words in (['sample', '--prompt=a'], ['evaluate']):
    fix = assert_user_error(call(*words, f'--workdir={run}'), 'holds an image tokenizer')
    assert 'image.path' in fix
  assert snapshot(run) == before


@pytest.mark.parametrize(
  'words, cause',
  [
    (['--tasks=drwa'], '--tasks=drwa'),
    (['--tasks=perplexity', '--guidance=2'], 'guidance=2.0'),
    (['--split=test'], 'split'),
    (['--tasks=answer', '--limit=-1'], 'limit=-1'),
    (['--stride=-1'], 'stride=-1'),
  ],
)
def test_mistakes_of_evaluate(call, run, words, cause):
  before = snapshot(run)
  assert_user_error(call('evaluate', f'--workdir={run}', *words), cause)
  assert snapshot(run) == before


def test_settings_of_media_that_cannot_be(call, tmp_path):
  file = tmp_path / 'small.py'
  file.write_text("""from tests import tiny_runs

def get_config(arg=''):
  return tiny_runs.media()
""")
  for word, cause in (
    ('image.patch=3', 'image.height=8'),
    ('image.kind=jpeg', 'image.kind=jpeg'),
    ('audio.hop=0', 'hop=0'),
    ('audio.kind=mp3', 'audio.kind=mp3'),
    ('data.packing=crop', 'data.packing=crop'),
    ('model.context=8', 'documents'),
    ('loss.balance=even', "loss.balance='even'"),
    ('train.job=tokenizer', "train.job='tokenizer'"),
    ('train.job=image_tokenizer', "image.kind='patches'"),
  ):
    outcome = call('train', f'--config={file}', f'--workdir={tmp_path}/run', f'--config.{word}')
    assert_user_error(outcome, cause)
    assert not (tmp_path / 'run/config.json').exists()


def test_the_held_out_pictures_are_those_of_the_config(run):
  """What the run was scored on can be made again from its folder."""
  cfg = trained.load(run).cfg
  assert len(data.load_images(cfg.data, (8, 8, 1), 'valid')) == 2 * 180  # read and drawn
