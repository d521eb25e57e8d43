"""Sentences of books, read aloud by flite and espeak-ng, to learn to transcribe speech from.

Command: python -m benchmarks.synthetic_speech --out=runs/sentences

Needs the programs flite and espeak-ng. Sentences of Project Gutenberg (GPT_JAX_DATA/gutenberg) get a voice, a
speed and a pitch by hash. train and valid are synthetic, valid of a book that train lacks; test are the nine
recordings of people in GPT_JAX_DATA/speech_samples. Texts are lower case without punctuation. Writes
records.jsonl (audio, text, voice, part) and the sounds, 16-bit WAV of one channel.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np

BOOKS = {
  'train': ('austen-emma', 'austen-sense', 'chesterton-ball', 'chesterton-brown', 'melville-moby_dick'),
  'valid': ('chesterton-thursday',),
}
# slt twice: the readers of the test are a woman and a man, and the other flite voices are men.
VOICES = ('flite/slt', 'flite/rms', 'flite/awb', 'flite/slt', 'espeak-ng/en-us', 'espeak-ng/en-gb')
WORDS = (2, 28)  # fewest and most of a sentence
SECONDS = (0.7, 11.5)  # shortest and longest sound
KENNEDY = (
  'and so my fellow americans ask not what your country can do for you ask what you can do for your country'
)


def normalized(text):
  """Return the words in lower case; apostrophes stay."""
  text = text.lower().replace('\u2019', "'").replace('-', ' ')
  words = [word.strip("'") for word in re.sub(r"[^a-z' ]", ' ', text).split()]
  return ' '.join(filter(None, words))


def sentences(book):
  """Yield the sentences of a book of the archive that are words alone, each once."""
  path, seen = Path(os.environ.get('GPT_JAX_DATA', '../shared/data')) / 'gutenberg/gutenberg.zip', set()
  with zipfile.ZipFile(path) as archive:
    [name] = [name for name in archive.namelist() if name.endswith(f'{book}.txt')]
    text = ' '.join(archive.read(name).decode('latin-1').split())
  for sentence in re.split(r'(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)(?<=[.!?;:])["\')]*\s+', text):
    spoken = normalized(sentence)
    size = len(spoken.split())
    if (
      WORDS[0] <= size <= WORDS[1]
      and sentence.isascii()
      and not re.search(r'[\d_\[\]*&]|\b[A-Z]{2,}\b', sentence)
      and spoken not in seen
    ):
      seen.add(spoken)
      yield sentence.strip('"\'() '), spoken


def speak(sentence, path):
  """Write a sound, by the voice, speed and pitch of the sentence's hash, and return the voice."""
  choice = np.random.default_rng(int(hashlib.sha256(sentence.encode()).hexdigest()[:12], 16))
  voice = VOICES[choice.integers(len(VOICES))]
  program, name = voice.split('/')
  duration, pitch = choice.uniform(0.85, 1.25), choice.uniform(0.85, 1.2)
  if program == 'flite':
    mean = {'slt': 170, 'rms': 100, 'awb': 120}[name] * pitch
    command = ['flite', '-voice', name, '--setf', f'duration_stretch={duration:.2f}']
    command += ['--setf', f'int_f0_target_mean={mean:.0f}', '-t', sentence, '-o', path]
  else:
    command = ['espeak-ng', '-v', name, '-s', f'{165 / duration:.0f}', '-p', f'{50 * pitch:.0f}']
    command += ['-w', path, '--', sentence]
  subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
  return voice


def people():
  """Yield (name, wave, rate, text) of the recordings of people."""
  import soundfile

  source = Path(os.environ.get('GPT_JAX_DATA', '../shared/data')) / 'speech_samples'
  texts = {'jfk': KENNEDY}
  for line in (source / 'ljspeech_metadata.csv').read_text(encoding='utf-8').splitlines():
    name, _, text = line.split('|')
    texts[name] = normalized(text)
  for path in sorted([*source.glob('*.wav'), *source.glob('*.flac')]):
    wave, rate = soundfile.read(path, dtype='float32')
    yield path.stem, wave.mean(1) if wave.ndim > 1 else wave, rate, texts[path.stem]


def main():
  """Write the sounds and their records."""
  import soundfile

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', required=True)
  parser.add_argument('--count', type=int, default=3000, help='sentences of train; valid has 100')
  arguments = parser.parse_args()
  if missing := [program for program in ('flite', 'espeak-ng') if not shutil.which(program)]:
    parser.error(f'{" and ".join(missing)} not found: install them, as with apt install flite espeak-ng')
  out = Path(arguments.out)
  (out / 'audio').mkdir(parents=True, exist_ok=True)
  records = []
  for part, count in {'train': arguments.count, 'valid': 100}.items():
    pairs, written = [pair for book in BOOKS[part] for pair in sentences(book)], 0
    for n in np.random.default_rng(0).permutation(len(pairs)):
      if written == count:
        break
      sentence, text = pairs[n]
      path = out / 'audio' / f'{part}_{written:05}.wav'
      voice = speak(sentence, str(path))
      if SECONDS[0] <= soundfile.info(path).duration <= SECONDS[1]:
        records.append(dict(audio=f'audio/{path.name}', text=text, voice=voice, part=part))
        written += 1
    print(f'{part}: {written} of {count} sentences')
  for name, wave, rate, text in people():
    path = out / 'audio' / f'{name}.wav'
    soundfile.write(path, wave, rate, subtype='PCM_16')
    records.append(dict(audio=f'audio/{path.name}', text=text, voice='person', part='test'))
  (out / 'records.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  hours = sum(soundfile.info(out / record['audio']).duration for record in records) / 3600
  print(f'{out}: {len(records)} sounds, {hours:.2f} hours')


if __name__ == '__main__':
  main()
