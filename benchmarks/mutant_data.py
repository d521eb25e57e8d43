"""Small data sets of every kind of file that a source reads: what benchmarks.mutants damages."""

import bz2
import gzip
import json
import lzma
import shutil
import wave
import zipfile

import numpy as np
from PIL import Image


def sentences(count=40, words_each=6):
  """Lines of made-up words."""
  rng = np.random.default_rng(0)
  words = ['lorem', 'ipsum', 'dolor', 'sit', 'amet', 'é', '3', 'elit']
  return [' '.join(rng.choice(words, words_each)) + f' {k}' for k in range(count)]


def texts(folder):
  """Plain texts of two encodings."""
  lines = '\n'.join(sentences()) + '\n'
  (folder / 'a.txt').write_text(lines)
  (folder / 'b.txt').write_text(lines.upper(), encoding='utf-16')
  (folder / 'c.txt').write_bytes(b'\xef\xbb\xbf' + lines.encode())


def packed_texts(folder):
  """Texts in three kinds of compression."""
  lines = ('\n'.join(sentences()) + '\n').encode()
  for suffix, pack in (('gz', gzip.compress), ('bz2', bz2.compress), ('xz', lzma.compress)):
    (folder / f'{suffix}.txt.{suffix}').write_bytes(pack(lines))


def json_lines(folder):
  """Questions and answers, nested."""
  rows = [
    {'question': line, 'answers': [line[:5], str(k)], 'n': k} for k, line in enumerate(sentences(40, 2))
  ]
  (folder / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def parallel_texts(folder):
  """Two languages, line by line."""
  for language in ('en', 'de'):
    (folder / f'train.{language}').write_text('\n'.join(sentences(40, 1)) + '\n')


def pictures(folder):
  """Small pictures in four formats, whose names hold a class."""
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  for k, suffix in enumerate(('png', 'jpg', 'gif', 'bmp', 'webp', 'tif', 'png', 'png', 'jpg', 'png')):
    pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f'{"abcdefghij"[k]}_{k}.{suffix}')


def sounds(folder):
  """Short sounds in three formats, whose names hold a class."""
  import soundfile

  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  for k, suffix in enumerate(('wav', 'flac', 'ogg', 'wav', 'flac', 'wav', 'aiff', 'wav', 'mp3', 'wav')):
    samples = rng.uniform(-0.5, 0.5, 2000)
    path = folder / f'{"abcdefghij"[k]}_{k}.{suffix}'
    if suffix == 'flac':
      path = folder / f'b_{k}.flac'
    soundfile.write(path, samples, 8000)
  with wave.open(str(folder / 'a_0.wav'), 'wb') as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
    file.writeframes((rng.uniform(-9999, 9999, 2000)).astype('<i2').tobytes())


def archive(folder):
  """Pictures in a .zip archive."""
  pictures(folder / 'loose')
  with zipfile.ZipFile(folder / 'pictures.zip', 'w', zipfile.ZIP_DEFLATED) as file:
    for path in sorted((folder / 'loose').iterdir()):
      file.write(path, path.name)
  shutil.rmtree(folder / 'loose')


def mixed_lines(folder):
  """JSON lines that name pictures and sounds beside them."""
  pictures(folder)
  sounds(folder)
  rows = [
    {'parts': [{'text': f'number {k}: '}, {'image': image.name}, {'audio': sound.name}]}
    for k, (image, sound) in enumerate(
      zip(sorted(folder.glob('*.png')), sorted(folder.glob('*.wav')), strict=False)
    )
  ]
  (folder / 'a.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def number_arrays(folder):
  """An .npz of pictures with labels, and its labels' names."""
  rng = np.random.default_rng(0)
  np.savez_compressed(
    folder / 'a.npz', image=rng.integers(0, 256, (20, 8, 8), dtype=np.uint8), label=np.arange(20) % 3
  )


def idx_files(folder):
  """MNIST's format."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (20, 8, 8), dtype=np.uint8)
  header = np.array([0x803, 20, 8, 8], '>i4').tobytes()
  (folder / 'train-images-idx3-ubyte.gz').write_bytes(gzip.compress(header + images.tobytes()))
  labels = np.array([0x801, 20], '>i4').tobytes() + (np.arange(20) % 3).astype(np.uint8).tobytes()
  (folder / 'train-labels-idx1-ubyte.gz').write_bytes(gzip.compress(labels))


def prepared_tfds(folder):
  """A prepared TFDS data set in array_record."""
  import tensorflow_datasets as tfds

  class TinyTalk(tfds.core.GeneratorBasedBuilder):
    """A data set of texts."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = {'text': tfds.features.Text(), 'n': tfds.features.Scalar(np.int64)}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {'train': self._generate_examples(0, 30)}

    def _generate_examples(self, first, last):
      for n in range(first, last):
        yield n, {'text': f'talk {n} and more of it', 'n': n}

  TinyTalk(data_dir=folder, file_format='array_record').download_and_prepare()
