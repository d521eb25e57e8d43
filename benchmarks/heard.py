"""Let Whisper hear spoken digits: recordings, audio tokenizers, speech of a model.

`python -m benchmarks.heard --whisper=FOLDER --tokens=RUN,RUN --speech=RUN` judges the official test
recordings of GPT_JAX_DATA/fsdd, the same ones encoded and decoded by the tokenizer of each run (of a GPT, by
the one that it speaks with), and a digit that the speech run samples for the word and speaker of each of
them. `copy-synthesis` is what the vocoder alone does: the log-mel frames of a recording made into a sound
again. FOLDER is a Whisper of transformers with its tokenizer and feature extractor. Every sound is treated
alike: scaled to one peak, resampled to 16 kHz, with silence on both sides. Writes
results/multimodal/heard.json, or another --name (only of all test recordings):

  forced    the digit is the word, of ten, whose written forms (seven, Seven, 7) have the largest probability
  free      first word of a greedy transcript, normalized: "7." is seven, and "for", which sounds so, is four
  trained   the project's own judge, logistic regression on cepstra of training recordings

How Whisper listens (window, silence, prompt) is chosen on validation recordings alone, which no tokenizer
touches. A window shorter than 30 s uses the first of the encoder's position embeddings. Intervals are 95 %:
Wilson for shares; for differences to the recordings, which are paired, bootstrap over recordings.
"""

import argparse
import functools
import io
import itertools
import os
import re
import string
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import record
from gpt_jax.evaluation import judges, metrics, trained
from gpt_jax.tokenizers import audio, bundle

WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
HOMOPHONES = {'won': 'one', 'to': 'two', 'too': 'two', 'for': 'four', 'ate': 'eight'}
PART = {**dict.fromkeys(range(5), 'test'), **dict.fromkeys(range(5, 10), 'valid')}  # by index; others train
RATE, WHISPER_RATE = 8000, 16000  # Hz
PEAK = 0.5  # level of all sounds
BATCH = 25  # sounds that Whisper hears at once
MAX_TOKENS = 4  # of a transcript, whose first word counts: in short windows Whisper repeats it
LISTEN = 100  # validation recordings that choose how Whisper listens


class Listening(NamedTuple):
  """How Whisper listens."""

  seconds: float  # window
  before: float  # seconds of silence before the sound; the rest of the window is after it
  prompt: str  # earlier transcript


GRID = [Listening(*x) for x in itertools.product((2.0, 3.0), (0.2, 0.5), ('', ' Zero. Four. Nine.'))]


class Recording(NamedTuple):
  """A recording of FSDD."""

  wave_N: np.ndarray  # float32
  label: int
  speaker: str


def read_recordings(part):
  """Return the recordings of train, valid or test, ordered by name."""
  import soundfile

  path, recordings = Path(os.environ.get('GPT_JAX_DATA', '../shared/data')) / 'fsdd/recordings.zip', []
  with zipfile.ZipFile(path) as archive:
    for name in sorted(archive.namelist()):
      match = re.search(r'(\d)_([a-z]+)_(\d+)\.wav$', name)
      if match and PART.get(int(match[3]), 'train') == part:
        wave_N, _ = soundfile.read(io.BytesIO(archive.read(name)), dtype='float32')
        recordings.append(Recording(wave_N, int(match[1]), match[2]))
  return recordings


def first_word(text):
  """Return the first word of a transcript in lower case, numerals and homophones of digits as words."""
  words = ''.join(' ' if c in string.punctuation else c for c in text.lower()).split()
  word = words[0] if words else ''
  return WORDS[int(word)] if word in set('0123456789') else HOMOPHONES.get(word, word)


def force(next_log_probs, forms):
  """Return the index [N] of the likeliest word; a word's probability is the sum of its written forms'.

  next_log_probs: token ids so far (a tuple) -> log-probabilities [N, V] of the next one. forms: for each word
  a list of tuples of token ids.
  """
  after = functools.cache(next_log_probs)
  nats = lambda ids: sum(after(ids[:n])[:, token] for n, token in enumerate(ids))
  return np.stack([np.logaddexp.reduce([nats(ids) for ids in own]) for own in forms], 1).argmax(1)


def prepare(wave_N, listening, rate=RATE):
  """Return a sound as Whisper gets it, float32 [listening.seconds * 16,000]; longer ones are cut."""
  from scipy import signal

  wave_N = signal.resample_poly(wave_N if len(wave_N) else np.zeros(1), WHISPER_RATE, rate)
  wave_N = wave_N * (PEAK / max(np.abs(wave_N).max(), 1e-6))
  window_N = np.zeros(round(listening.seconds * WHISPER_RATE), np.float32)
  first = round(listening.before * WHISPER_RATE)
  window_N[first : first + len(wave_N)] = wave_N[: len(window_N) - first]
  return window_N


class Whisper:
  """Whisper of transformers, listening in one way."""

  def __init__(self, folder, listening):
    import torch
    import transformers

    processor = transformers.WhisperProcessor.from_pretrained(folder)
    self.tokenizer, self.extractor, self.listening = (
      processor.tokenizer,
      processor.feature_extractor,
      listening,
    )
    self.model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    encoder, places = self.model.model.encoder, round(listening.seconds * 50)
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:places])
    encoder.config.max_source_positions = places
    encode = lambda text: tuple(self.tokenizer.encode(text, add_special_tokens=False))
    before = f'<|startofprev|>{listening.prompt}' if listening.prompt else ''
    self.prompt = encode(f'{before}<|startoftranscript|><|en|><|transcribe|><|notimestamps|>')
    self.forms = [[encode(f' {x}') for x in (w, w.title(), str(n))] for n, w in enumerate(WORDS)]
    self.end, [self.blank] = self.tokenizer.eos_token_id, encode(' ')

  def hear(self, waves):
    """Return (index of the forced choice [N], transcripts) of float [N] waves."""
    import torch

    choices, texts = [], []
    for first in range(0, len(waves), BATCH):
      inputs = [prepare(wave_N, self.listening) for wave_N in waves[first : first + BATCH]]
      with torch.inference_mode():
        own = self.hear_batch(inputs)
      choices, texts = choices + own[0].tolist(), texts + own[1]
    return np.array(choices), texts

  def hear_batch(self, inputs):
    """Return (forced choice, transcripts) of prepared sounds."""
    import torch

    options = dict(sampling_rate=WHISPER_RATE, max_length=len(inputs[0]), return_tensors='pt')
    features = self.extractor(inputs, **options).input_features
    hidden = self.model.model.encoder(features).last_hidden_state

    @functools.cache
    def after(ids):
      return self.next_log_probs(hidden, torch.tensor([self.prompt + ids] * len(inputs)))[0].numpy()

    return force(after, self.forms), self.transcribe(hidden, after(()))

  def next_log_probs(self, hidden, ids, cache=None):
    """Return (log-probabilities [N, V] of the token after `ids`, cache of all so far)."""
    out = self.model.model.decoder(ids, encoder_hidden_states=hidden, past_key_values=cache, use_cache=True)
    return self.model.proj_out(out.last_hidden_state[:, -1]).log_softmax(-1), out.past_key_values

  def transcribe(self, hidden, first_NV):
    """Return greedy transcripts; first_NV: log-probabilities of their first token."""
    import torch

    log_probs_NV = torch.tensor(first_NV)
    log_probs_NV[:, [self.end, self.blank]] = -torch.inf  # as Whisper does at the beginning
    ids, cache = torch.tensor([self.prompt] * len(hidden)), None
    for step in range(MAX_TOKENS):
      log_probs_NV[:, self.end + 1 :] = -torch.inf  # other special tokens
      ids = torch.cat([ids, log_probs_NV.argmax(-1, keepdim=True)], 1)
      if step < MAX_TOKENS - 1:
        log_probs_NV, cache = self.next_log_probs(hidden, ids if cache is None else ids[:, -1:], cache)
    rows = ids[:, len(self.prompt) :].tolist()
    cut = lambda row: row[: row.index(self.end)] if self.end in row else row
    return [self.tokenizer.decode(cut(row)) for row in rows]


def judged(whisper, waves, labels, judge):
  """Return {judge: whether it is right, bool [N]} of sounds, and the transcripts."""
  choices, texts = whisper.hear(waves)
  words = np.array([first_word(text) for text in texts])
  right = {'forced': choices == labels, 'free': words == np.array(WORDS)[labels]}
  return right | {'trained': judge.predict(waves) == labels.astype(str)}, texts


def choose_listening(folder, recordings, grid=GRID):
  """Return (the Listening with the highest mean of forced and free accuracy, all rows)."""
  waves, labels, rows = [r.wave_N for r in recordings], np.array([r.label for r in recordings]), []
  for listening in grid:
    choices, texts = Whisper(folder, listening).hear(waves)
    free = np.mean([first_word(text) == WORDS[label] for text, label in zip(texts, labels, strict=True)])
    rows.append({**listening._asdict(), 'forced': float(np.mean(choices == labels)), 'free': float(free)})
    print(rows[-1], flush=True)
  best = max(range(len(grid)), key=lambda n: rows[n]['forced'] + rows[n]['free'])  # of equals the first
  return grid[best], rows


def summarize(right, real):
  """Return {judge: accuracy, interval, and difference to the recordings} of {judge: bool [N]}."""
  result = {}
  for name, right_N in right.items():
    value, interval = metrics.accuracy(right_N.tolist(), [True] * len(right_N))
    result[name] = {'accuracy': value, 'interval': list(interval)}
    if right is not real:
      pairs_N = right_N.astype(float) - real[name]
      result[name] |= {
        'difference': float(pairs_N.mean()),
        'difference_interval': list(metrics.bootstrap_mean(pairs_N)),
      }
  return result


def load_tokenizer(run):
  """Return (name, audio tokenizer) of a run folder: what it trained, or what its GPT speaks with."""
  run = Path(run)
  if (run / 'tokenizer').exists():
    return f'codec of {run.name}', bundle.Tokenizers.load(run / 'tokenizer').audio
  return run.name, audio.load(run / 'codec')


def make_sounds(recordings, tokens, speech):
  """Yield (name, waves) of all kinds of sound; tokens, speech: run folders of different names."""
  waves, front_ends = [r.wave_N for r in recordings], set()
  yield 'recordings', waves
  for run in tokens:
    run_name, tokenizer = load_tokenizer(run)
    if (front_end := tokenizer.spectrogram) not in front_ends:
      front_ends.add(front_end)
      name = 'copy-synthesis' if len(front_ends) == 1 else f'copy-synthesis of {run_name}'
      yield name, front_end.to_waveforms(front_end.log_mel(waves))
    yield run_name, tokenizer.decode(tokenizer.encode(waves))
  for run in speech:
    prompts = [f'{r.speaker}: {WORDS[r.label]}' for r in recordings]
    yield Path(run).name, trained.load(run).generate(prompts, to='audio')


def main():
  """Judge all sounds and write the result."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--whisper', required=True)
  parser.add_argument('--tokens', default='')
  parser.add_argument('--speech', default='')
  parser.add_argument('--part', default='test', choices=('valid', 'test'))
  parser.add_argument('--name', default='heard')
  parser.add_argument('--limit', type=int, default=0, help='every n-th recording, so that these remain')
  options = parser.parse_args()
  thin = lambda recordings, most: recordings[:: max(1, len(recordings) // most)] if most else recordings
  listening, grid = choose_listening(options.whisper, thin(read_recordings('valid'), options.limit or LISTEN))
  recordings, train = thin(read_recordings(options.part), options.limit), read_recordings('train')
  judge = judges.SoundJudge.fit([r.wave_N for r in train], [r.label for r in train], rate=RATE)
  whisper, labels = Whisper(options.whisper, listening), np.array([r.label for r in recordings])
  rights, sounds, wrong = {}, {}, {}
  runs = [[run for run in names.split(',') if run] for names in (options.tokens, options.speech)]
  for name, waves in make_sounds(recordings, *runs):
    rights[name], texts = judged(whisper, waves, labels, judge)
    sounds[name] = summarize(rights[name], rights['recordings'])
    misheard = zip(labels, texts, strict=True)
    wrong[name] = [[WORDS[n], text] for n, text in misheard if first_word(text) != WORDS[n]][:10]
    print(name, sounds[name], flush=True)
  if options.part == 'test' and not options.limit:
    numbers = {'n': len(recordings), 'listening': listening._asdict(), 'grid': grid, 'sounds': sounds}
    claim = 'Spoken digits heard by Whisper base: recordings, tokenizers, and speech of a model'
    record.write_result(f'multimodal/{options.name}', claim, numbers | {'misheard': wrong})


if __name__ == '__main__':
  main()
