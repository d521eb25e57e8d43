"""report.html: complete, self-contained, safe, and there even when most of the run is not."""

import datetime
import html.parser
import io
import json
import math
import re
import struct
import subprocess
import sys
import wave
import zlib

import numpy as np
import pytest

from gpt_jax import figures, page, records, report, runs

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

  rows = b''.join(
    b'\0' + bytes((8 * x * y // 28) % 256 for x in range(width)) for y in range(height)
  )
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
  """Lines of metrics.jsonl as a training would write them, with a restart in the middle."""
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
  versions = runs.versions('1 x NVIDIA H100 80GB HBM3')
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
  """A run folder such as a training of tiny Shakespeare leaves."""
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
    {'task': 'recognise/digits', 'metric': 'word error rate', 'value': 0.183, 'baseline': 0.9},
    {'task': 'perplexity', 'metric': 'bits/byte', 'value': 2.115},
  ]
  result = {'step': steps, 'loss': 1.31, 'valid_loss': 1.4697, 'bits_per_byte': 2.1203}
  result |= {'tokens': 32_768_000, 'seconds': 331.0, 'parameters': 10_745_088}
  result |= {'defaults_diff': {'model.dropout': 0.0, 'optim.lr': 3e-4, 'train.steps': 5000}}
  records.write_json(folder / 'result.json', result | {'evaluations': evaluations})
  return folder
