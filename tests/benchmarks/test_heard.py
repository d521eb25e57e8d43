"""Whisper as a judge of spoken digits: the pure parts, and a tiny random model."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import heard
from tests import tiny_runs


@pytest.mark.parametrize(
  'text, word',
  [
    (' Seven.', 'seven'),
    (' 7', 'seven'),
    (' 7, 7, 7', 'seven'),
    (' For', 'four'),
    (' 77', '77'),
    (' ...', ''),
  ],
)
def test_the_first_word_of_a_transcript(text, word):
  assert heard.first_word(text) == word


def test_the_forced_choice_adds_the_probabilities_of_the_forms_of_a_word():
  """The second word has no form that is the likeliest, and the likeliest sum."""
  table = {
    (): [[0.5, 0.3, 0.2, 0.0], [0.8, 0.1, 0.1, 0.0]],
    (1,): [[0.1, 0.0, 0.0, 0.9], [0.1, 0.0, 0.0, 0.9]],
    (2,): [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]],
  }
  calls = []

  def next_log_probs(ids):
    calls.append(ids)
    with np.errstate(divide='ignore'):
      return np.log(np.array(table[ids]) * [0.8, 1, 1, 1])

  forms = [[(0,)], [(1, 3), (2, 3)]]
  assert heard.force(next_log_probs, forms).tolist() == [1, 0]  # .4 against .27 + .2; .64 against .19
  assert sorted(calls) == [(), (1,), (2,)]  # each once


def test_every_sound_gets_the_same_level_and_place_in_the_window():
  listening = heard.Listening(1.0, 0.25, '')
  wave_N = np.sin(np.arange(2000) / 5).astype(np.float32)
  window_N = heard.prepare(0.01 * wave_N, listening)
  assert window_N.shape == (16_000,) and window_N.dtype == np.float32
  assert not window_N[:4000].any() and not window_N[8000:].any()
  assert np.abs(window_N).max() == pytest.approx(heard.PEAK)
  np.testing.assert_allclose(heard.prepare(wave_N, listening), window_N, atol=1e-6)
  assert heard.prepare(np.tile(wave_N, 9), listening).shape == (16_000,)  # cut
  assert not heard.prepare(wave_N[:0], listening).any()


def test_the_tokenizer_of_a_run_is_its_own_or_that_of_its_gpt(tmp_path_factory):
  codec = tiny_runs.codec_finished(tmp_path_factory, 'audio')
  gpt = tiny_runs.media_finished(tmp_path_factory)
  loaded = dict(map(heard.load_tokenizer, (codec, gpt)))
  assert {name: tokenizer.cfg.kind for name, tokenizer in loaded.items()} == {
    codec.name: 'fsq',
    f'codec of {gpt.name}': 'frames',
  }


def test_differences_are_paired_with_the_recordings():
  real = {'forced': np.array([True] * 8 + [False] * 2)}
  same, worse = {'forced': real['forced'].copy()}, {'forced': np.array([True] * 6 + [False] * 4)}
  assert set(heard.summarize(real, real)['forced']) == {'accuracy', 'interval'}
  assert heard.summarize(same, real)['forced']['difference_interval'] == [0.0, 0.0]
  row = heard.summarize(worse, real)['forced']
  assert row['accuracy'] == 0.6 and row['difference'] == pytest.approx(-0.2)
  assert row['interval'][0] < 0.6 < row['interval'][1]
  assert row['difference_interval'][0] < -0.2 < row['difference_interval'][1]


@pytest.fixture(scope='module')
def hf(tmp_path_factory):
  """The folder of a random Whisper of a layer, whose tokenizer spells letter by letter."""
  torch = pytest.importorskip('torch', reason='torch is not installed')
  transformers = pytest.importorskip('transformers', reason='transformers is not installed')
  letters = ['Ġ', *map(chr, range(33, 127))]
  tokenizer = transformers.WhisperTokenizer({x: n for n, x in enumerate([*letters, '<|endoftext|>'])}, [])
  names = ('startofprev', 'startoftranscript', 'en', 'transcribe', 'notimestamps')
  tokenizer.add_special_tokens({'additional_special_tokens': [f'<|{name}|>' for name in names]})
  torch.manual_seed(0)
  cfg = transformers.WhisperConfig(
    vocab_size=len(tokenizer),
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    init_std=0.5,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=0,
    decoder_start_token_id=0,
  )
  path = tmp_path_factory.mktemp('whisper')
  transformers.WhisperForConditionalGeneration(cfg).save_pretrained(path)
  transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(path)
  return path


def test_transcripts_and_choices_are_those_of_transformers(hf):
  """Greedy with a cache = one forward pass over the whole transcript; sounds of a batch are independent."""
  import torch

  rng = np.random.default_rng(0)
  waves = [rng.normal(size=n).astype(np.float32) for n in (3000, 5000, 4000)]
  whisper = heard.Whisper(hf, heard.Listening(1.0, 0.2, ' 4.'))
  choices, texts = whisper.hear(waves)
  for n, wave_N in enumerate(waves):
    [choice], [text] = whisper.hear([wave_N])
    assert (choice, text) == (choices[n], texts[n])
    inputs = [heard.prepare(wave_N, whisper.listening)]
    options = dict(sampling_rate=16_000, max_length=16_000, return_tensors='pt')
    features = whisper.extractor(inputs, **options).input_features
    ids = [*whisper.prompt, *whisper.tokenizer.encode(text, add_special_tokens=False)]
    with torch.no_grad():
      logits = whisper.model(input_features=features, decoder_input_ids=torch.tensor([ids])).logits[0]
    logits[:, whisper.end + 1 :] = -torch.inf
    logits[len(whisper.prompt) - 1, [whisper.end, whisper.blank]] = -torch.inf
    best = logits[len(whisper.prompt) - 1 : -1].argmax(-1).tolist()
    assert best == ids[len(whisper.prompt) :] and text


def test_each_tokenizer_decodes_the_recordings_and_front_ends_are_copied_once(monkeypatch):
  """A run that speaks gets the speaker and the word of each recording."""

  class FrontEnd(str):
    log_mel = to_waveforms = staticmethod(lambda waves: waves)

  fake = lambda path: SimpleNamespace(
    spectrogram=FrontEnd(path.parent.name[0]), encode=list, decode=lambda codes: [-code for code in codes]
  )
  monkeypatch.setattr(heard.audio, 'load', fake)
  run = SimpleNamespace(generate=lambda prompts, to: prompts)
  monkeypatch.setattr(heard.trained, 'load', lambda path: run)
  recordings = [heard.Recording(np.ones(2), 7, 'theo')]
  sounds = dict(heard.make_sounds(recordings, ['runs/a1', 'runs/a2', 'runs/b'], ['runs/speech']))
  names = ['recordings', 'copy-synthesis', 'a1', 'a2', 'copy-synthesis of b', 'b', 'speech']
  assert list(sounds) == names and sounds['speech'] == ['theo: seven']
  assert sounds['copy-synthesis'][0][0] == 1 and sounds['a2'][0][0] == -1
