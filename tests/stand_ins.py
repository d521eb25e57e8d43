"""Stand-ins of seconds for what experiments need: small corpora, and the changes that make a config tiny."""

import gzip
import itertools
import json
import os
import sys
import zipfile
from unittest import mock

import numpy as np

from benchmarks import emoji_split, emoji_vectors, offensive
from gpt_jax.data import media_io
from gpt_jax.data.synthetic import keypad
from tests import codecs, data_helpers, encoders

SPEAKERS = ('george', 'jackson', 'lucas', 'nicolas', 'theo', 'yweweler')

# Of any experiment: small model, two steps, four new tokens.
SMALL = {
  'train': dict(
    steps=2,
    batch_size=8,
    accumulate=1,
    steps_per_call=1,
    length=0,
    eval_every=0,
    eval_tokens=256,
    sample_every=0,
  ),
  'sample': dict(max_new_tokens=4),
  'checkpoint': dict(every=0),
}
SMALL_MODEL = dict(layers=1, width=16, heads=2, kv_heads=0, head_dim=0, hidden=0)
SMALL_TOKENIZERS = {  # by kind
  'patches': dict(codes=16),
  'frames': dict(codes=8),
  'pixels': {},
  'continuous': {},
  '': {},
  'fsq': dict(network_width=8, network_blocks=1),
}


def write_corpora(folder):
  """Write a small stand-in for each corpus that an experiment names -> the folder, for GPT_JAX_DATA."""
  words = (
    'First Citizen: Before we proceed any further, hear me speak.\n\nAll: Speak, speak.\n\n'
    'You are all resolved rather to die than to famish? Resolved, resolved.\n\n'
  )
  for name in (
    'tinyshakespeare',
    'mnist',
    'fsdd',
    'noto_emoji',
    'runs',
    'multi30k',
    'scitldr',
    'instruct_small',
    'xquad',
    'gutenberg',
    'offensive_tweets',
  ):
    (folder / name).mkdir()
  (folder / 'tinyshakespeare/input.txt').write_text(words * 100)
  write_captions(folder / 'multi30k')
  write_abstracts(folder / 'scitldr')
  write_questions(folder / 'xquad')
  write_posts(folder / 'offensive_tweets/posts.csv.gz')
  with zipfile.ZipFile(folder / 'gutenberg/gutenberg.zip', 'w') as archive:
    for book in ('austen-emma', 'austen-persuasion', 'chesterton-thursday', 'shakespeare-macbeth'):
      archive.writestr(f'gutenberg/{book}.txt', (f'{book} caf\u00e9\r\n' + words * 20).encode('latin-1'))
  write_mnist(folder / 'mnist')
  questions = [dict(instruction=f'Add one to {n}.', input='', output=str(n + 1)) for n in range(60)]
  (folder / 'instruct_small/instruction-data.json').write_text(json.dumps(questions))
  fields = dict(input='', rejected='no')
  pairs = [fields | dict(instruction=f'Say {n}.', chosen=f'{n}') for n in range(60)]
  (folder / 'instruct_small/instruction-data-with-preference.json').write_text(json.dumps(pairs))
  write_recordings(folder / 'fsdd/recordings.zip')
  write_emoji(folder / 'noto_emoji')
  write_sentences(folder / 'runs/sentences')
  encoders.write(folder / 'whisper-base', encoders.WHISPER)
  codecs.write(folder / 'encodec_24khz', codecs.ENCODEC, sampling_rate=500, target_bandwidths=[0.5])
  encoders.write(folder / 'siglip-base', encoders.CLIP)
  data_helpers.write_classes(folder / 'shapes')
  (folder / 'book.txt').write_text(words * 40)
  rows = [f'What is {n} plus one?,{n + 1}\n' for n in range(40)]
  (folder / 'quiz.csv').write_text('question,answer\n' + ''.join(rows))
  with mock.patch.dict(os.environ, GPT_JAX_DATA=str(folder)):
    with mock.patch.object(sys, 'argv', ['emoji_split', f'--out={folder}/runs/emoji.jsonl']):
      emoji_split.main()
    write_vectors(folder / 'runs')
    offensive.write_posts(folder / 'runs/offensive.jsonl')
  return folder


def write_captions(folder):
  """The same sentences in three languages."""
  things = {'en': ('A', 'cat', 'dog'), 'de': ('Ein', 'Kater', 'Hund'), 'fr': ('Un', 'chat', 'chien')}
  for split, count in (('train', 60), ('val', 6), ('test_2016_flickr', 6)):
    for language_, (one, *animals) in things.items():
      lines = [f'{one} {animals[n % 2]} {n}.\n' for n in range(count)]
      (folder / f'{split}.{language_}.gz').write_bytes(gzip.compress(''.join(lines).encode()))


def write_abstracts(folder):
  """Abstracts of three sentences with two summaries."""
  for split, count in (('train', 30), ('dev', 4), ('test', 4)):
    lines = [
      json.dumps(
        {'source': [f'We study {n}.', 'It is hard.', 'It works.'], 'target': [f'On {n}.', f'About {n}.']}
      )
      + '\n'
      for n in range(count)
    ]
    (folder / f'{split}.jsonl').write_text(''.join(lines))


def write_questions(folder):
  """48 articles with one question each, in SQuAD's form."""
  for language_ in ('en', 'de'):
    articles = []
    for n in range(48):
      question = {'question': f'Who wrote book {n}?', 'answers': [{'text': f'Ada {n}', 'answer_start': 0}]}
      articles.append({'paragraphs': [{'context': f'Ada {n} wrote book {n}.', 'qas': [question]}]})
    (folder / f'xquad.{language_}.json').write_text(json.dumps({'data': articles}))


def write_posts(path):
  """Made-up posts with votes and labels."""
  posts = [
    f'{n % 3},{(n + 1) % 3},0,{n % 3},"post {n}, {"zork" if n % 3 < 2 else "tam"}"\n' for n in range(80)
  ]
  path.write_bytes(gzip.compress(('hate,offensive,neither,label,text\n' + ''.join(posts)).encode()))


def write_mnist(folder):
  """Noise with a bar at a height that depends on the label, as idx files."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 120), ('t10k', 40)):
    labels = np.arange(count, dtype=np.uint8) % 10
    images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
      image[4 + 2 * label : 8 + 2 * label, 6:22] = 230
    for name, array in (('images-idx3', images), ('labels-idx1', labels)):
      header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>i4').tobytes()
      path = folder / f'{split}-{name}-ubyte.gz'
      path.write_bytes(gzip.compress(header + array.tobytes(), 1))


def write_recordings(path):
  """Per digit and speaker one recording for the test, one for validation, two for training."""
  with zipfile.ZipFile(path, 'w') as archive:
    for digit, (s, speaker), index in itertools.product(range(10), enumerate(SPEAKERS), (0, 5, 10, 11)):
      wave = keypad.tone(digit, 100 * s + index)[:1600]
      archive.writestr(f'{digit}_{speaker}_{index}.wav', media_io.to_wav(wave, 8000))


def write_sentences(folder):
  """Tones with the words of their keys, as benchmarks.synthetic_speech writes its records."""
  (folder / 'audio').mkdir(parents=True)
  lines = []
  for n, part in enumerate(['train'] * 40 + ['valid'] * 4 + ['test'] * 4):
    wave = keypad.tone(n % 10, n)[:1600]
    (folder / f'audio/{n}.wav').write_bytes(media_io.to_wav(wave, 8000))
    lines.append(json.dumps(dict(audio=f'audio/{n}.wav', text=f'key {n % 10}', part=part)) + '\n')
  (folder / 'records.jsonl').write_text(''.join(lines))


def write_emoji(folder):
  """Sixty pictures of 72 x 72 pixels with names, each its own group."""
  rng = np.random.default_rng(1)
  colors, things = ('Amber', 'cyan', 'olive', 'teal'), ('kite', 'lamp', 'melon', 'otter', 'plum')
  lines = []
  with zipfile.ZipFile(folder / 'images_72.zip', 'w') as archive:
    for number, names in enumerate(itertools.product(colors, things, ('north', 'south', 'up'))):
      picture = np.full((72, 72, 4), 255, np.uint8)
      picture[8:64, 8:64, :3] = rng.integers(0, 256, 3)
      archive.writestr(f'emoji_{number}.png', media_io.to_png(picture))
      fields = dict(image=f'emoji_{number}.png', name=' '.join(names), group=('Objects', 'Food')[number % 2])
      lines.append(json.dumps(fields) + '\n')
  (folder / 'captions.jsonl').write_text(''.join(lines))


def write_vectors(folder):
  """Vectors of the emoji by a network of means: nine of four numbers from each picture."""
  means = lambda pixels: np.repeat(pixels.mean((1, 2))[:, None, [0, 1, 2, 0]], 9, 1) / 255
  command = ['emoji_vectors', f'--rows={folder}/emoji.jsonl', f'--out={folder}/emoji_vectors']
  with (
    mock.patch.object(sys, 'argv', command),
    mock.patch.object(emoji_vectors, 'load_network', lambda: means),
  ):
    emoji_vectors.main()


def tiny(section):
  """{dotted key: value} of the changes that make a loaded experiment take seconds."""
  values = {f'{part}.{key}': value for part, row in SMALL.items() for key, value in row.items()}
  if section.train.job != 'gpt':
    values = {key: value for key, value in values.items() if not key.startswith('sample.')}
  elif not section.train.init_from:
    values |= {f'model.{key}': value for key, value in SMALL_MODEL.items()}
    values['model.layers'] = len(section.model.layer_pattern) or 1
  if section.data.packing != 'first_fit':  # first_fit needs a context for whole documents
    values['model.context'] = 32
  elif section.model.context > 500:
    values['train.batch_size'] = 2
  if section.tokenizer.kind == 'bpe':
    values['tokenizer.vocab'] = 300
  for part in ('image', 'audio'):
    media = section[part]
    codes = SMALL_TOKENIZERS[media.kind] if not media.path else {}
    values |= {f'{part}.{key}': value for key, value in codes.items()}
  if section.privacy.epsilon:
    values['data.mixture.private.valid_path'] = section.data.mixture.private.path
  else:
    values['data.valid_fraction'] = 0.01  # the final evaluation scores all of it
  values['train.tasks'] = tuple(section.train.tasks[:1])  # test_tasks.py has them all
  return values
