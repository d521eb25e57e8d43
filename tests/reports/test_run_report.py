"""report.html of a run: complete, self-contained and safe, also for an unfinished or empty run."""

import datetime
import html
import html.parser
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import wave
import zlib

import numpy as np
import pytest

from gpt_jax.reports import figures, page, run_report, sections
from gpt_jax.runs import history, provenance, records

START = 1_764_000_000
NASTY = '<script>alert("x")</script> & </pre> caf\u00e9 \x00\x07\udc80'


def utc(seconds):
  moment = datetime.datetime.fromtimestamp(START + seconds, datetime.UTC)
  return moment.isoformat(timespec='milliseconds').replace('+00:00', 'Z')


def png(width=28, height=28):
  """A small gradient, as bytes of a PNG file."""

  def chunk(kind, body):
    checksum = zlib.crc32(kind + body)
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', checksum)

  rows = b''.join(b'\0' + bytes((8 * x * y // 28) % 256 for x in range(width)) for y in range(height))
  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  parts = ((b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b''))
  return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def wav():
  """A tenth of a second of a tone, as bytes of a WAV file."""
  file = io.BytesIO()
  with wave.open(file, 'wb') as sound:
    sound.setnchannels(1)
    sound.setsampwidth(2)
    sound.setframerate(8000)
    tone = 8000 * np.sin(2 * np.pi * 440 * np.arange(800) / 8000)
    sound.writeframes(tone.astype('<i2').tobytes())
  return file.getvalue()


def fake_metrics(steps, every=10, valid_every=100, tokens=16_384):
  """Lines of metrics.jsonl of a training with a restart in the middle."""
  random = np.random.default_rng(0)
  wander = np.cumsum(random.normal(size=steps + 1)) * 0.003
  for step in range(0, steps + 1, every):
    seen = (step + 1) * tokens
    pause = 900 if step > 0.45 * steps else 0
    clean = 1.22 + 3.1 / (1 + seen / 6e5) ** 0.75
    line = {'step': step, 'time': START + 40 + 0.12 * step + pause}
    if step < steps:
      warmup = min(1, step / (0.05 * steps))
      line |= {
        'loss': clean + 0.05 * random.normal(),
        'lr': 1e-3 * warmup * (0.55 + 0.45 * math.cos(math.pi * step / steps)),
        'grad_norm': 0.35 + 2.5 * math.exp(-step / 60) + abs(0.08 * random.normal()),
        'tokens': seen,
        'tokens_per_second': 136_000 * (1 + 0.02 * random.normal()) * (0.8 if step % 250 < 10 else 1),
        'mfu': 0.31 + 0.005 * random.normal(),
        'mfu_causal': 0.28,
        'memory_gib': 7.4,
        'step_seconds': 0.12,
        'loss/text': clean - 0.2 + 0.05 * random.normal(),
        'loss/image': clean + 0.4 + wander[step],
      }
    if step % valid_every == 0:
      line['valid_loss'] = clean + 0.04 + 0.08 * (step / steps) ** 2
      line['tokens'] = seen
    yield line


def fake_events(steps):
  """start, two sessions, a preemption, checkpoints, samples, the end."""
  versions = provenance.versions('1 x NVIDIA H100 80GB HBM3')
  half = int(0.45 * steps) // 100 * 100
  yield {'time': utc(0), 'event': 'start', 'step': 0, 'total_steps': steps, 'versions': versions}
  yield {'time': utc(38), 'event': 'compile', 'seconds': 31.2}
  for step in range(100, steps + 1, 100):
    pause = 900 if step > half else 0
    if step == half + 100:
      moment = utc(0.12 * half + 45)
      yield {'time': moment, 'event': 'preempted', 'step': half, 'signal': 'SIGTERM'}
      yield {
        'time': utc(0.12 * half + 920),
        'event': 'resume',
        'step': half,
        'total_steps': steps,
        'changed': {'mesh.data': [1, 2]},
        'versions': versions,
      }
    yield {'time': utc(40 + 0.12 * step + pause), 'event': 'evaluate', 'step': step}
    if step % 500 == 0:
      yield {'time': utc(41 + 0.12 * step + pause), 'event': 'checkpoint', 'step': step}
  yield {'time': utc(45 + 0.12 * steps + 900), 'event': 'done', 'step': steps}


CONFIG = {
  'seed': 1337,
  'model': {'layers': 6, 'width': 384, 'heads': 6, 'kv_heads': 6, 'positions': 'rope'}
  | {'norm': 'rms', 'dropout': 0.2, 'unroll': False, 'tie': True, 'window': 0},
  'optim': {'optimizer': 'adamw', 'lr': 1e-3, 'betas': [0.9, 0.99], 'weight_decay': 0.1}
  | {'clip': 1.0, 'schedule': 'cosine', 'warmup': 100, 'final': 0.1},
  'data': {
    'mixture': {'text': {'kind': 'text', 'path': 'tiny_shakespeare.txt', 'weight': 1.0}},
    'packing': 'crop',
    'valid_fraction': 0.1,
    'workers': 0,
  },
  'train': {'steps': 2000, 'batch_size': 64, 'length': 256, 'steps_per_call': 10},
  'mesh': {'data': 1, 'fsdp': 1, 'tensor': 1},
  'log': {'every': 10, 'tensorboard': False, 'wandb': ''},
}
SAMPLES = (
  'BNkel tho, wirt aned\nhe soul thy: mathe wime ond\nferd nat hisghot mare&yourl',
  'KING RICHARD:\nAnd the so dest with the sould of hath,\nTo the count the world to my heart.\n',
  'KING RICHARD II:\nShall I be plain? I wish the bastards dead;\nAnd I would have it suddenly '
  "perform'd.\n\nBUCKINGHAM:\nYour grace may do your pleasure, and the crown\nShall sit the "
  'easier for the want of these.\n',
)


def fake_run(folder, steps=2000):
  """A run folder of a training of tiny Shakespeare."""
  (folder / 'samples').mkdir(parents=True)
  records.write_json(folder / 'config.json', CONFIG)
  for name, lines in (('metrics', fake_metrics(steps)), ('events', fake_events(steps))):
    for line in lines:
      with open(folder / f'{name}.jsonl', 'a') as file:
        file.write(json.dumps(line) + '\n')
  for step, text in zip((0, 500, 1000, 1500, 2000), SAMPLES[:1] + SAMPLES + SAMPLES[2:], strict=True):
    (folder / 'samples' / f'step_{step:08}.txt').write_text(text + NASTY[:-1] * (step == 1000))
  (folder / 'samples' / 'step_00002000_digit-7.png').write_bytes(png())
  (folder / 'samples' / 'step_00002000_seven.wav').write_bytes(wav())
  evaluations = [
    {'task': 'classify/mnist', 'metric': 'accuracy', 'value': 0.9412, 'chance': 0.1},
    {'task': 'recognize/digits', 'metric': 'word error rate', 'value': 0.183, 'baseline': 0.9},
    {'task': 'perplexity', 'metric': 'bits_per_byte', 'value': 2.1519, 'source': 'text'}
    | {'split': 'valid', 'tokens': 111_540, 'interval': [2.148, 2.156]},
  ]
  result = {'steps': steps, 'loss': None, 'valid_loss': 1.4916, 'bits_per_byte': 2.1519}
  result |= {'tokens': 32_768_000, 'seconds': 331.0, 'parameters': 10_745_088}
  result |= {'defaults_diff': {'model.dropout': 0.0, 'optim.lr': 3e-4, 'train.steps': 5000}}
  records.write_json(folder / 'result.json', result | {'evaluations': evaluations})
  return folder


class Reader(html.parser.HTMLParser):
  """Check that elements nest; record tags, attributes and text."""

  VOID = ('meta', 'link', 'img', 'path', 'use', 'rect', 'br')

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.attributes, self.words = [], [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    if not self.open or self.open[-1] != 'style':
      self.words.append(data)

  def text(self):
    return ' '.join(' '.join(self.words).split())


def read_report(folder):
  path = run_report.write_report(folder)
  assert path == folder.resolve() / 'report.html'
  text = path.read_text(encoding='utf-8')
  return text, Reader(text)


def new_run(folder, *metrics, events=('start',), result=None, job='gpt'):
  """A folder with these lines of metrics, an event a second, and perhaps a result."""
  (folder / 'samples').mkdir(parents=True)
  records.write_json(folder / 'config.json', {'seed': 1, 'model': {}, 'train': {'job': job}})
  for step, line in enumerate(metrics):
    records.append_line(folder / 'metrics.jsonl', {'step': step, 'time': START + step, **line})
  for second, event in enumerate(events):
    event = event if isinstance(event, dict) else {'event': event, 'step': second}
    records.append_line(folder / 'events.jsonl', {'time': utc(second), **event})
  if result:
    records.write_json(folder / 'result.json', result)
  return folder


@pytest.fixture(scope='module')
def complete(tmp_path_factory):
  """(text, Reader) of the report of a complete run."""
  return read_report(fake_run(tmp_path_factory.mktemp('runs') / 'shakespeare_char'))


# --- a complete run


def test_the_page_is_self_contained(complete):
  text, reader = complete
  assert 'script' not in reader.tags
  assert 'http:' not in text
  assert 'https:' not in text
  assert '@import' not in text
  links = [value for name, value in reader.attributes if name in ('src', 'href', 'xlink:href')]
  assert len(links) > 3
  assert all(value.startswith(('data:', '#')) for value in links)
  assert all(url.startswith('#') for url in re.findall(r'url\(([^)]*)\)', text))


def test_references_within_the_figures_are_unique_and_resolve(complete):
  _, reader = complete
  ids = [value for name, value in reader.attributes if name == 'id']
  assert len(ids) == len(set(ids))
  used = [value for name, value in reader.attributes if name == 'xlink:href']
  clips = [value for name, value in reader.attributes if name == 'clip-path']
  assert {value[1:] for value in used} | {value[5:-1] for value in clips} == set(ids)


def test_the_header_states_the_result(complete):
  page_text = complete[1].text()
  assert (
    'Validation loss 1.492 nats per token (training 1.400) after 2,000 steps and 32.8M tokens in '
    '5.2 minutes on 1 x NVIDIA H100 80GB HBM3.'
  ) in page_text
  assert 'not finished' not in page_text
  # dt precedes dd: the tiles turn them round
  for tile in ('bits per byte 2.152', 'MFU 30.9%', 'parameters 10.7M', 'wall time 5:10'):
    assert tile in page_text
  for name in ('loss/image', 'loss/text', 'learning rate', 'gradient norm', 'memory'):
    assert name in page_text


def test_loss_curves_have_two_sizes_and_mark_the_restart(complete):
  text, reader = complete
  assert reader.tags.count('svg') == 2 + 8
  assert count_chunks(complete, 'valid 1.492') == 2
  assert count_chunks(complete, 'train 1.400') == 2
  assert count_chunks(complete, 'restart') == 2
  assert count_chunks(complete, 'nats per token') >= 2
  assert 'leaves out the first plunge, from 4.2' in complete[1].text()
  assert '#0000a' not in text  # each placeholder became a variable of the page
  assert 'var(--second)' in text


def probe_line(step, layers, size=1.0):
  """A line of probes.jsonl."""
  layers_by_path = {'embed_VD': {'gradient': 9.0, 'update': 9.0}, 'logits': {'activation': 9.0}}
  for l in range(layers):
    layers_by_path[f'blocks/{l}'] = {'activation': l + size}
    layers_by_path[f'blocks/{l}/mlp'] = {'activation': 9.0}
    for name in ('up_DF', 'down_FD'):
      layers_by_path[f'blocks/{l}/mlp/{name}'] = {'gradient': size, 'update': None, 'parameter': 1.0}
  return {'step': step, 'layers': layers_by_path}


def test_probes_are_drawn_by_layer(tmp_path):
  folder = new_run(tmp_path / 'run', *[{'loss': 1.0, 'tokens': 10 * step} for step in range(3)])
  assert 'Inside the model' not in read_report(folder)[1].text()
  for step in range(3):
    records.append_line(folder / 'probes.jsonl', probe_line(step, layers=12, size=1.0 + step))
  text, reader = read_report(folder)
  page_text = reader.text()
  assert 'Inside the model' in page_text
  assert 'activation by layer' in page_text and 'gradient by layer' in page_text
  assert 'update by layer' not in page_text  # never finite
  for layer in ('0', '2', '5', '8', '11'):
    assert sum(word.strip() == layer for word in reader.words) >= 2, layer


def test_the_size_of_a_layer():
  layers = {
    'blocks/1': {'activation': 3.0},
    'blocks/10/a': {'update': 9.0},
    'blocks/1/a': {'update': 1.0},
    'blocks/1/b': {'update': 7.0},
  }
  assert run_report.size_of(layers, '1', 'activation') == 3
  assert run_report.size_of(layers, '1', 'update') == 5
  assert math.isnan(run_report.size_of(layers, '1', 'gradient'))


def count_chunks(complete, words):
  return sum(words in chunk for chunk in complete[1].words)


def test_samples_are_escaped_and_show_progress(complete):
  text, reader = complete
  assert 'alert(' in text
  assert '<script' not in text
  assert '&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &lt;/pre&gt; caf\u00e9' in text
  assert not set(map(chr, range(9))) & set(text)
  steps = [word for word in reader.words if re.fullmatch(r'step [\d,]+ .*validation loss.*', word)]
  assert [word.split()[1] for word in steps] == ['0', '1,000', '2,000']
  assert 'BUCKINGHAM' in text


def test_images_and_sounds_are_embedded(complete):
  _, reader = complete
  sources = [value for name, value in reader.attributes if name == 'src']
  assert [value.split(',')[0] for value in sources] == ['data:image/png;base64', 'data:audio/wav;base64']
  assert 'digit-7' in reader.text()
  assert 'seven' in reader.text()


def test_evaluations_are_compared_with_chance_or_a_baseline(complete):
  page_text = complete[1].text()
  assert 'value chance accuracy 0.9412 0.1' in page_text
  assert 'value baseline word error rate 0.183 0.9' in page_text
  assert (
    'perplexity \u00b7 text \u00b7 valid metric of value interval bits per byte tokens 111,540 2.152'
    in page_text
  )
  assert page_text.index('word error rate') < page_text.index('bits per byte tokens')  # the loss comes last
  widths = [v for name, v in complete[1].attributes if name == 'style' and 'left' not in v]
  assert 'width:94.1%' in widths


def test_settings_mark_values_that_differ_from_their_defaults(complete):
  text, reader = complete
  assert text.count('class="changed"') == 3
  page_text = reader.text()
  assert 'lr 0.001 default 0.0003' in page_text
  assert 'betas (0.9, 0.99)' in page_text
  assert "wandb ''" in page_text
  for key in records.flatten(CONFIG):
    assert key.rpartition('.')[2] in page_text


def test_events_list_restarts_and_group_repeated_events(complete):
  page_text = complete[1].text()
  assert '2 sessions, 5:10 of work.' in page_text
  assert 'preempted signal SIGTERM' in page_text
  assert '17:08 900 resume mesh.data 1 \u2192 2' in page_text
  assert '100 to 900 evaluate 9 times' in page_text
  assert page_text.count(' evaluate ') == 2


def test_command_and_versions_are_listed(complete):
  page_text = complete[1].text()
  assert f'numpy {np.__version__}' in page_text
  assert 'python' in page_text
  assert ' '.join(provenance.versions()['command'].split()) in page_text


def test_the_same_run_gives_the_same_page(tmp_path):
  folder = fake_run(tmp_path / 'run', steps=2000)
  assert read_report(folder)[0] == read_report(folder)[0]


# --- less than a complete run


def test_a_run_without_metrics(tmp_path):
  page_text = read_report(new_run(tmp_path / 'run'))[1].text()
  assert 'Nothing has been measured yet. It has not finished.' in page_text
  assert 'Loss' not in page_text


def test_a_folder_with_a_config_alone(tmp_path):
  folder = new_run(tmp_path / 'imported', events=())
  page_text = read_report(folder)[1].text()
  assert 'imported Nothing has been measured yet.' in page_text
  assert 'Events' not in page_text


def test_three_steps_without_validation_or_tokens(tmp_path):
  lines = [{'loss': 4.0 - step} for step in range(3)]
  _, reader = read_report(new_run(tmp_path / 'run', *lines, events=('start', 'done')))
  assert 'Training loss 2.000 nats per token, without validation, after 2 steps in 2 seconds.' in (
    reader.text()
  )
  assert reader.tags.count('svg') == 2
  assert 'smoothed' not in reader.text()


def test_one_measurement_only(tmp_path):
  _, reader = read_report(new_run(tmp_path / 'run', {'loss': 4.0, 'valid_loss': 4.0, 'mfu': 0.0}))
  assert 'Validation loss 4.000' in reader.text()
  assert reader.tags.count('svg') == 3


@pytest.mark.parametrize(('mfu', 'is_shown'), [(0.4, True), (2.018, False)])
def test_a_utilization_beyond_the_measured_peak_is_left_out(tmp_path, mfu, is_shown):
  _, reader = read_report(new_run(tmp_path / 'run', {'loss': 4.0, 'valid_loss': 4.0, 'mfu': mfu}))
  assert ('MFU' in reader.text()) is is_shown


@pytest.mark.parametrize(
  ('job', 'line', 'words', 'unit'),
  [
    (
      'image_tokenizer',
      {'valid_loss': 0.002, 'psnr': 26.84, 'code_usage': 0.5, 'code_perplexity': 70, 'images': 320.0},
      'PSNR 26.84 dB of held-out images after 0 steps and 320 images',
      'squared pixel error',
    ),
    (
      'audio_tokenizer',
      {'valid_loss': 0.51, 'log_mel_rmse': 0.4991, 'code_usage': 0.5, 'crops': 320.0},
      'Log-mel RMSE 0.4991 of held-out sounds after 0 steps and 320 crops',
      'log-mel RMSE of all frames',
    ),
  ],
)
def test_a_tokenizer_has_its_own_units(tmp_path, job, line, words, unit):
  """Its training objective is not an error of pixels or frames, and neither is in nats."""
  _, reader = read_report(new_run(tmp_path / 'run', line | {'loss': 0.25}, job=job))
  page_text = reader.text()
  assert words in page_text and unit in page_text and 'codes in use 50.0%' in page_text
  assert 'training objective' in page_text and '(training' not in page_text
  assert 'nats' not in page_text and 'token' not in page_text.replace('tokenizer', '')


def test_rewards_have_an_accuracy_in_the_place_of_a_loss(tmp_path):
  lines = [
    {'loss': 1e-9, 'objective': 1e-9, 'reward': 0.55, 'reward_spread': 0.4, 'right': right, 'kl': 0.02}
    | {'completion_tokens': 3.67, 'valid_accuracy': 0.811, 'tokens': 320.0}
    for right in (0.5, 0.6)
  ]
  _, reader = read_report(new_run(tmp_path / 'run', *lines, job='grpo'))
  page_text = reader.text()
  assert 'Answers 81.1% of held-out questions right after' in page_text
  assert ' Accuracy ' in page_text and 'train 0.600 valid 0.811 share right' in page_text
  for tile in ('mean reward 0.55', 'KL divergence, nats per token 0.02', 'length of completions, tokens 3.7'):
    assert tile in page_text
  assert 'standard deviation of rewards in a group 0.4' in page_text
  assert 'loss' not in page_text.lower()


def test_losses_are_in_bits_too(complete, tmp_path):
  assert 'bits per token 2.152' in complete[1].text()  # of valid_loss 1.4916
  line = {'loss': 1.0, 'loss/source/read': 1.0, 'valid_loss/read': 2.0}
  page_text = read_report(new_run(tmp_path / 'run', line))[1].text()
  assert 'loss/source/read 1.000 nats, 1.443 bits' in page_text
  assert 'valid_loss/read 2.000 nats, 2.885 bits' in page_text


def test_a_mean_over_sources_is_not_drawn_with_the_training_loss(tmp_path):
  sources = {'valid_loss': 2.174, 'valid_loss/a': 4.025, 'valid_loss/b': 0.323}
  train = {'loss/source/a': 4.2, 'loss/source/b': 0.4}
  folder = new_run(tmp_path / 'run', {'loss': 3.8} | train, {'loss': 3.771} | train | sources)
  text, reader = read_report(folder)
  page_text = reader.text()
  assert (
    'Validation loss 2.174 nats per token, the mean of its sources (a 4.025, b 0.323), after' in page_text
  )
  assert '(training' not in page_text and 'valid 2.174' not in page_text
  assert 'validation loss, nats per token, mean of sources 2.174' in page_text
  assert 'Loss of each source against steps: a 4.02, b 0.32"' in text
  assert 'valid_loss, mean of sources 2.174 nats' in page_text and 'valid_loss/a 4.025 nats' in page_text


def test_losses_that_are_not_finite_raise_an_alarm(tmp_path):
  lines = [{'loss': math.nan if 50 <= i < 53 else 2.0 + 1 / (i + 1)} for i in range(100)]
  text, reader = read_report(new_run(tmp_path / 'run', *lines))
  assert 'The loss was not finite in 3 of 100 reports, first at step 50.' in reader.text()
  assert 'var(--warn)' in text.split('<svg')[1]  # crosses in the chart


def test_no_finite_number_at_all(tmp_path):
  lines = [{'loss': math.nan, 'valid_loss': math.inf, 'grad_norm': math.inf}] * 3
  _, reader = read_report(new_run(tmp_path / 'run', *lines, result={'loss': None}))
  assert 'No finite loss after 2 steps' in reader.text()
  assert 'svg' not in reader.tags
  assert 'gradient norm never finite' in reader.text()


def test_overfitting_raises_an_alarm(tmp_path):
  lines = [{'loss': 1.0, 'valid_loss': valid} for valid in (3.0, 2.0, 2.5)]
  page_text = read_report(new_run(tmp_path / 'run', *lines))[1].text()
  sentence = 'The validation loss was lowest, 2.000, at step 1; at step 2 it is 2.500 (+25.0%).'
  assert sentence in page_text
  assert run_report.describe_report(tmp_path / 'run', again=True).splitlines()[1:] == [sentence]


@pytest.mark.parametrize(
  ('event', 'ending'),
  [
    ({'event': 'preempted', 'step': 1200}, 'It was preempted at step 1200 and can be resumed.'),
    ({'event': 'error', 'type': 'KeyboardInterrupt', 'message': ''}, 'stopped by KeyboardInt'),
    ({'event': 'resume', 'step': 3}, 'It has not finished.'),
  ],
)
def test_the_verdict_ends_with_the_state_of_the_run(tmp_path, event, ending):
  folder = new_run(tmp_path / 'run', {'loss': 1.0}, events=('start', event, 'checkpoint'))
  assert ending in read_report(folder)[1].text()


def test_the_result_of_a_shorter_training_is_ignored(tmp_path):
  lines = [{'valid_loss': 5.0 - step} for step in range(4)]
  folder = new_run(tmp_path / 'run', *lines, result={'steps': 2, 'valid_loss': 9.0})
  assert history.read_history(folder).final('valid_loss') == 2.0


def test_later_evaluations_are_shown(tmp_path):
  folder = new_run(tmp_path / 'run', {'loss': 1.0})
  row = {'task': 'classify', 'metric': 'accuracy', 'value': 0.75, 'stride': 2, 'temperature': 0.5}
  for value in (0.75, 0.75, 0.5):
    records.append_line(folder / 'evaluations.jsonl', row | {'value': value})
  text = read_report(folder)[1].text()
  assert 'classify stride 2, temperature 0.5 metric value accuracy 0.75 accuracy 0.5' in text  # each once


def test_scores_with_a_chance_level_are_at_the_top(tmp_path):
  """The last score of the first such metric of each task: not its control, nor of other data."""
  folder = new_run(tmp_path / 'run', {'loss': 1.0})
  task = {'task': 'answer', 'source': 'read', 'split': 'valid', 'metric': 'exact_match', 'n': 40}
  levels = {'chance': 0.1, 'baseline': 0.9, 'interval': [0.7, 0.8]}
  first = {'task': 'perplexity', 'source': 'read', 'split': 'valid', 'metric': 'nats_per_token', 'value': 1.5}
  rows = [first, task | levels | {'value': 0.5}, task | levels | {'value': 0.75}]
  rows += [task | levels | {'value': 0.125, 'data.valid_fraction': '0.5'}]
  rows += [
    task | {'value': 0.0625, 'control': 'shuffled'},
    task | levels | {'metric': 'token_f1', 'value': 0.875},
  ]
  for row in rows:
    records.append_line(folder / 'evaluations.jsonl', row)
  text, reader = read_report(folder)
  words = reader.text()
  assert 'answer read: exact match, chance 10.0% 75.0%' in words
  assert (
    'task source metric value interval chance baseline answer read exact match 0.75 0.7 to 0.8 0.1 0.9'
    in words
  )
  assert words.index('0.0625') < words.index('perplexity')
  assert 'left:min(10.0%, 100% - 2px)' in text and 'left:min(90.0%, 100% - 2px)' in text


def test_conditions_stand_below_their_pictures(tmp_path):
  folder = new_run(tmp_path / 'run', {'loss': 1.0})
  (folder / 'samples').mkdir(exist_ok=True)
  (folder / 'samples/step_00000005_draw.png').write_bytes(png())
  (folder / 'samples/step_00000005_draw.txt').write_text('<one>\ttwo\nthree')
  text, reader = read_report(folder)
  assert 'draw \u00b7 step 5 <one> two three' in reader.text() and '--columns:2' in text
  assert (
    reader.tags.count('img') == 1 and 'pre' not in text.partition('Samples')[2].partition('</section>')[0]
  )


def test_a_result_without_its_done_event_is_a_finished_run(tmp_path):
  folder = new_run(tmp_path / 'run', {'loss': 1.0}, events=('start', 'checkpoint'), result={'steps': 5})
  assert 'not finished' not in read_report(folder)[1].text()
  (folder / 'config.json').write_text('{"train": {"steps": 9}}')  # the run was extended since
  assert 'It has not finished.' in read_report(folder)[1].text()


def test_the_report_tells_the_truth_wherever_a_run_was_killed(tmp_path):
  """Every prefix of a run's writes, the last line of each file torn."""
  whole = fake_run(tmp_path / 'whole', steps=200)
  lines = {name: (whole / f'{name}.jsonl').read_bytes().splitlines(True) for name in ('metrics', 'events')}
  for k in range(20):
    folder = new_run(tmp_path / f'run{k}', events=())
    for name, whole_lines in lines.items():
      cut = b''.join(whole_lines[: k * len(whole_lines) // 19])
      (folder / f'{name}.jsonl').write_bytes(cut + b'{"time": "2026' * (k < 19))
    if k == 19:
      records.write_json(folder / 'result.json', {'steps': 200})
    run = history.read_history(folder)
    assert ('not finished' in run_report.verdict(run) or 'preempted' in run_report.verdict(run)) == (k < 19)
    if k == 6:
      assert read_report(folder)[1].text()


def test_a_page_that_is_newer_than_the_result_is_left(tmp_path):
  folder = new_run(tmp_path / 'run', {'loss': 1.0}, result={'steps': 5})
  path = run_report.write_report(folder, again=False)  # it was missing
  path.write_text('as it was')
  assert run_report.write_report(folder, again=False) == path and path.read_text() == 'as it was'
  os.utime(path, (1, 1))  # of a training that was extended since
  assert 'svg' in run_report.write_report(folder, again=False).read_text()


def test_lost_metrics_and_unreadable_records_are_said(tmp_path):
  folder = new_run(tmp_path / 'run', events=('start', {'event': 'evaluate', 'step': 10}))
  page_text = read_report(folder)[1].text()
  assert (
    'metrics.jsonl is missing or empty, but the run was evaluated at step 10: lines are lost.' in page_text
  )
  records.append_line(folder / 'metrics.jsonl', {'step': 20, 'loss': 1.0})
  assert 'metrics.jsonl begins at step 20' in read_report(folder)[1].text()
  other = new_run(
    tmp_path / 'other', {'loss': 'low'}, events=('start', {'event': 3}, {'event': 'x', 'step': 'a'})
  )
  records.append_line(other / 'evaluations.jsonl', {'task': 'a'})
  page_text = read_report(other)[1].text()
  assert '3 unreadable records of its files are left out.' in page_text
  assert 'lines are lost' not in page_text


def test_a_clock_that_was_set_back_is_said_in_the_report(tmp_path):
  folder = new_run(tmp_path / 'run', {'loss': 1.0}, events=('start',))
  records.append_line(folder / 'events.jsonl', {'time': utc(-7200), 'event': 'resume', 'step': 0})
  assert 'A record is 7,200 s older than the record before' in read_report(folder)[1].text()
  assert 'A record is 7,200 s older' in run_report.rewrite_report(folder)


def test_files_outside_a_run_are_not_embedded(tmp_path):
  folder = new_run(tmp_path / 'run', {'loss': 1.0})
  (tmp_path / 'private.txt').write_text('not yours')
  (folder / 'samples' / 'step_00000001.txt').symlink_to(tmp_path / 'private.txt')
  (folder / 'samples' / 'step_00000002_own.txt').write_text('mine')
  (folder / 'samples' / 'step_00000003.txt').symlink_to(folder / 'samples' / 'step_00000002_own.txt')
  page_text = read_report(folder)[1].text()
  assert 'not yours' not in page_text and page_text.count('mine') == 2


def test_long_samples_are_cut_and_unknown_files_named(tmp_path):
  folder = new_run(tmp_path / 'run', {'loss': 1.0})
  (folder / 'samples' / 'step_00000001.txt').write_text('\nx' * 5000)
  (folder / 'samples' / 'step_00000001_a.bin').write_bytes(b'1')
  (folder / 'samples' / 'notes.txt').write_text('not a sample')
  page_text = read_report(folder)[1].text()
  assert '[8,500 more characters in samples/step_00000001.txt]' in page_text
  assert 'samples/step_00000001_a.bin, 0.0 MB, not shown' in page_text
  assert 'not a sample' not in page_text
  large = folder / 'samples' / 'step_00000001_b.png'
  large.write_bytes(b'0' * 2_000_000)
  assert 'samples/step_00000001_b.png, 2.0 MB, not shown' in page.media(large, max_bytes=1_000_000)


def test_names_are_escaped(tmp_path):
  line = {'loss': 1.0, '"><script>x': 1.0}
  event = {'event': '"><script>y', 'note': '<script>z'}
  folder = new_run(tmp_path / '<script>w', line, events=('start', event))
  text, _ = read_report(folder)
  assert '<script' not in text
  for letter in 'wxyz':
    assert f'&lt;script&gt;{letter}' in text


def test_a_missing_run_is_an_error_with_a_fix(tmp_path):
  with pytest.raises(FileNotFoundError, match='does not exist\nfix: '):
    run_report.write_report(tmp_path / 'nothing')


def test_runs_import_nothing_heavy():
  heavy = '{"jax", "matplotlib", "rich", "tensorboardX", "wandb"}'
  code = f'import sys; from gpt_jax import runs; print(*({heavy} & set(sys.modules)))'
  done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
  assert done.stdout.strip() == ''


# --- figures


NAMES = (
  '$x_1^{2$',
  'a\\frac%#&{}',
  'x' * 3000,
  'two\nlines',
  '\x1b[31m',
  '<script>&',
  '\u65e5\u672c \u05e9\u05dc \U0001f600',
)


def test_no_name_breaks_a_figure_or_a_table():
  for name in NAMES:
    line = figures.Series(np.arange(3.0), np.arange(3.0), label=name)
    svg = figures.chart(
      [line], name=name, label=name, size=(300, 130), marks=[(1, name)], units=(name, name), room=30
    )
    effects = [figures.Effect(name, 0.1, (0.0, 0.2), (0.1,), name), figures.Effect('b', 0.2)]
    for figure in (svg, figures.forest(effects, name=name, label=name, width=1000, equal=0.01)):
      assert Reader(figure).tags[0] == 'svg' and '<script' not in figure and '\x1b' not in figure
      assert html.escape(figures.cut(name, 10)[:-1], quote=False) in figure
    table = sections.make_table(('arm', '>x'), [(name, '1'), ('b', '2')])
    assert sections.table_to_markdown(table).count('\n') == 3
    assert len(re.findall(r'(?<!\\)&', sections.to_latex(table, name, name))) == 3  # of three rows


def test_smoothing_averages_noise_away_and_keeps_the_plunge():
  random = np.random.default_rng(0)
  clean = 1 + 3 / (1 + np.arange(2000) / 20)
  smoothed = figures.smooth(clean + 0.1 * random.normal(size=2000))
  assert abs(smoothed - clean)[400:].max() < 0.05
  assert abs(figures.smooth(clean) - clean).max() < 0.12
  np.testing.assert_array_equal(figures.smooth(np.arange(5.0)), np.arange(5.0))


def test_smoothing_skips_what_is_not_finite():
  y = np.ones(100)
  y[40] = np.nan
  expected = np.where(np.arange(100) == 40, np.nan, 1)
  np.testing.assert_allclose(figures.smooth(y, share=0.2), expected)


def test_thinning_keeps_every_spike_and_the_ends():
  y = np.zeros(100_000)
  y[[777, 50_001]] = 9, -9
  y[60_000] = np.nan
  x, thinned = figures.thin(np.arange(100_000.0), y)
  assert len(x) <= figures.MAX_POINTS + 2
  assert {0, 777, 50_001, 99_999} <= set(x)
  assert (np.diff(x) > 0).all()
  assert np.isfinite(thinned).all()


def test_limits_leave_out_a_plunge_but_never_the_end_of_validation():
  x = np.arange(1000.0)
  train = figures.Series(x, 1 + 9 * np.exp(-x / 10))
  low, high = figures.limits([train])
  assert low < 1 < high < 2
  valid = figures.Series(np.array([0.0, 500, 1000]), np.array([10.0, 3, 4]), 'points')
  assert 4 < figures.limits([train, valid])[1] < 5
  low, high = figures.limits([figures.Series(x[:4], np.array([9.0, 3, 2, 1]), 'points')])
  assert low < 1 < 9 < high  # few points are shown complete
  assert figures.limits([figures.Series(x[:2], np.array([np.nan, np.inf]))]) == ()


@pytest.mark.parametrize(
  ('value', 'text'),
  [(0, '0'), (2e6, '2M'), (1500, '1.5k'), (3e-4, '3e-4'), (1.5e-5, '1.5e-5'), (0.12, '0.12')]
  + [(-2000, '-2k'), (1e9, '1B')],
)
def test_compact_tick_labels(value, text):
  assert figures.compact(value) == text


@pytest.mark.parametrize(
  ('value', 'text'),
  [('rope', 'rope'), ('', "''"), ('\n', "'\\n'"), ([1, [2.5]], '(1, (2.5))'), (True, 'True')],
)
def test_settings_are_formatted_like_flags(value, text):
  assert page.literal(value) == text
