"""Sentences for synthetic voices: what is read, and what is written of it."""

import json
import shutil
import zipfile

import pytest
import soundfile

from benchmarks import synthetic_speech
from gpt_jax.data.synthetic import keypad

BOOK = (
  'CHAPTER II. "It is well-known," said he, "and I don\u2019t mind." See page 12. No! '
  'Mr. Knightley could not stop, he said. She came back; it is well known, said he, '
  "and I don't mind. Why not?"
)


@pytest.fixture
def data(tmp_path, monkeypatch):
  """GPT_JAX_DATA with one small book for every name, and two recordings of people."""
  (tmp_path / 'gutenberg').mkdir()
  with zipfile.ZipFile(tmp_path / 'gutenberg/gutenberg.zip', 'w') as archive:
    for name in sum(synthetic_speech.BOOKS.values(), ()):
      archive.writestr(f'gutenberg/{name}.txt', BOOK.replace('\u2019', "'").encode('latin-1'))
  (tmp_path / 'speech_samples').mkdir()
  for name in ('LJ001-0001', 'jfk'):
    soundfile.write(tmp_path / f'speech_samples/{name}.wav', keypad.tone(1, 0), 8000)
  metadata = 'LJ001-0001|Printing, in 2|Printing, in two\n'
  (tmp_path / 'speech_samples/ljspeech_metadata.csv').write_text(metadata)
  monkeypatch.setenv('GPT_JAX_DATA', str(tmp_path))
  return tmp_path


def test_texts_are_words_in_lower_case():
  spoken = "'Tis well-known: I don\u2019t MIND \u2014 'no'!"
  assert synthetic_speech.normalized(spoken) == "tis well known i don't mind no"
  assert synthetic_speech.normalized("a ' b") == 'a b'


def test_sentences_of_words_alone_come_once(data):
  found = list(synthetic_speech.sentences('austen-emma'))
  texts = [text for _, text in found]
  assert texts == [
    "it is well known said he and i don't mind",
    'mr knightley could not stop he said',
    'she came back',
    'why not',
  ]
  assert found[0][0].startswith('It is well-known,')  # as a voice reads it


def test_people_are_the_test(data):
  texts = {name: text for name, _, _, text in synthetic_speech.people()}
  assert texts == {'LJ001-0001': 'printing in two', 'jfk': synthetic_speech.KENNEDY}


def test_missing_voices_are_named(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr('sys.argv', ['synthetic_speech', f'--out={tmp_path}/out'])
  monkeypatch.setattr(shutil, 'which', lambda program: None)
  with pytest.raises(SystemExit):
    synthetic_speech.main()
  assert 'flite and espeak-ng not found' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


@pytest.mark.skipif(
  not (shutil.which('flite') and shutil.which('espeak-ng')), reason='needs flite and espeak-ng'
)
def test_sounds_and_records(data, monkeypatch):
  out = data / 'out'
  monkeypatch.setattr('sys.argv', ['synthetic_speech', f'--out={out}', '--count=2'])
  synthetic_speech.main()
  records = [json.loads(line) for line in (out / 'records.jsonl').read_text().splitlines()]
  parts = [record['part'] for record in records]
  assert parts.count('train') == 2 and parts.count('test') == 2 and 'valid' in parts
  for record in records:
    assert soundfile.info(out / record['audio']).channels == 1
    assert record['text'] == synthetic_speech.normalized(record['text'])
