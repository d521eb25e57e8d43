"""Recordings of two people transcribed by a run that learned from synthetic voices, beside Whisper itself.

`python -m benchmarks.transcripts --workdir=RUN --data=runs/sentences --whisper=FOLDER` compares words,
lower case without punctuation, of experiments/transcribe.py's run with those of the whole Whisper whose
encoder it hears through. FOLDER is a Whisper of transformers with its tokenizer and feature extractor. Both
write what is likeliest, greedily. Intervals are 95 %, by bootstrap over recordings: eight are pieces of one
passage by one reader. Writes results/multimodal/transcripts.json of the test recordings where --whisper is
given, and else prints alone.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from benchmarks import record, synthetic_speech
from gpt_jax.evaluation import metrics, trained

RATE = 16000  # Hz
NUMERALS = {'15th': 'fifteenth', '42': 'forty two', '1455': 'fourteen fifty five'}  # as in the metadata


def spelled(text):
  """Return a transcript's words, its numerals spelled out."""
  for numeral, words in NUMERALS.items():
    text = re.sub(rf'\b{numeral}\b', words, text)
  if digits := re.findall(r'\S*\d\S*', text):
    raise ValueError(f'{digits[0]} in a transcript has no words\nfix: add it to NUMERALS')
  return synthetic_speech.normalized(text)


def whisper_texts(folder, paths):
  """Return Whisper's transcripts of sound files of up to 30 seconds."""
  import soundfile
  import torch
  import transformers
  from scipy import signal

  processor = transformers.WhisperProcessor.from_pretrained(folder)
  model, texts = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval(), []
  prompt = processor.tokenizer.convert_tokens_to_ids(
    ['<|startoftranscript|>', '<|en|>', '<|transcribe|>', '<|notimestamps|>']
  )
  for path in paths:
    wave_N, rate = soundfile.read(path, dtype='float32')
    wave_N = signal.resample_poly(wave_N, RATE, rate)
    features = processor.feature_extractor(wave_N, sampling_rate=RATE, return_tensors='pt').input_features
    with torch.inference_mode():
      ids = model.generate(features, decoder_input_ids=torch.tensor([prompt]), max_new_tokens=128)
    texts.append(processor.tokenizer.decode(ids[0], skip_special_tokens=True))
  return texts


def error_rate(texts, references):
  """Return {word_error_rate, interval} of texts; the interval is a bootstrap over recordings."""
  rng, n = np.random.default_rng(0), len(texts)
  edits = np.array(
    [metrics.levenshtein(a.split(), b.split()) for a, b in zip(texts, references, strict=True)]
  )
  words = np.array([len(reference.split()) for reference in references])
  draws = rng.integers(0, n, (10_000, n))
  rates = edits[draws].sum(1) / words[draws].sum(1)
  return {
    'word_error_rate': float(edits.sum() / words.sum()),
    'interval': np.quantile(rates, (0.025, 0.975)).tolist(),
  }


def main():
  """Transcribe with both, and write the result of the test."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--data', default='runs/sentences')
  parser.add_argument('--whisper', default='')
  parser.add_argument('--part', default='test', choices=('valid', 'test'))
  options = parser.parse_args()
  lines = (Path(options.data) / 'records.jsonl').read_text(encoding='utf-8').splitlines()
  records = [r for r in map(json.loads, lines) if r['part'] == options.part]
  paths, references = [Path(options.data) / r['audio'] for r in records], [r['text'] for r in records]
  heard = {'gpt_jax': trained.load(options.workdir).generate([{'sounds': [path]} for path in paths])}
  if options.whisper:
    heard['whisper'] = whisper_texts(options.whisper, paths)
  texts = {name: [spelled(text) for text in own] for name, own in heard.items()}
  numbers = {name: error_rate(own, references) for name, own in texts.items()}
  rows = [
    {'text': reference} | {name: own[n] for name, own in texts.items()}
    for n, reference in enumerate(references)
  ]
  print(json.dumps({'numbers': numbers, 'transcripts': rows}, indent=1))
  if options.part == 'test' and options.whisper:
    claim = (
      'Eight clips of one reader and one of Kennedy, transcribed by experiments/transcribe.py and by Whisper'
    )
    peers = record.peer_versions('torch', 'transformers')
    numbers = {'n': len(rows)} | numbers | {'transcripts': rows, 'peers': peers}
    record.write_result('multimodal/transcripts', claim, numbers)


if __name__ == '__main__':
  main()
