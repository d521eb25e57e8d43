"""What the image and audio tokenizers lose, with no model in between: the ceiling of every task.

Figures are means over items, as those of a tokenizer in training (codec.py). There `log_mel_rmse`
compares spectrograms before the vocoder; `resynthesis_rmse` here what is heard after it, by the
front end of evaluation.
"""

import numpy as np

from gpt_jax.evaluation import audio_metrics, metrics
from gpt_jax.evaluation.tasks import common


def fits(condition, target):
  """An image or a sound that becomes tokens, on either side."""
  return common.has((*condition, *target), ('image', 'audio'))


def run(subject, source, split, limit):
  """Rows for one source."""
  found = common.examples(subject, source, split, limit or common.LIMIT)
  train = common.examples(subject, source, 'train', common.TRAIN_LIMIT)
  field = common.label_field(train)
  names = common.labels(found, field), common.labels(train, field)
  rows = []
  for modality, make in (('image', images), ('audio', sounds)):
    if all(common.has((*x.condition, *x.target), (modality,)) for x in (*found, *train)):
      some, add = common.rows('reconstruct', source, split, len(found), modality=modality)
      make(subject, add, found, train, names)
      rows += some
  return rows


def images(subject, add, found, train, names):
  """Rows of an image tokenizer."""
  tokenizer, real = subject.tokenizers.image, common.pixels(subject, found)
  codes_NPQ = tokenizer.encode(real)
  made = tokenizer.decode(codes_NPQ)
  add('psnr', metrics.psnr(real, made).mean(), unit='dB')
  add('ssim', metrics.ssim(real, made).mean())
  codebooks(add, codes_NPQ.reshape(-1, codes_NPQ.shape[-1]), tokenizer.codebooks)
  if common.are_classes(names[1]):
    judge = common.judge(subject, 'image', common.pixels(subject, train), names[1])
    agreement(add, judge, real, made, names[0])


def sounds(subject, add, found, train, names):
  """Rows of an audio tokenizer."""
  tokenizer, real = subject.tokenizers.audio, common.waves(subject, found)
  codes = tokenizer.encode(real)
  made, rate = tokenizer.decode(codes), tokenizer.sample_rate
  mels = [[audio_metrics.log_mel(wave, rate) for wave in waves] for waves in (real, made)]
  pairs = list(zip(*mels, strict=True))
  add('resynthesis_rmse', np.mean([audio_metrics.mel_rmse(a, b) for a, b in pairs]))
  add('mel_cepstral_distortion', np.mean([audio_metrics.mcd_dtw(a, b) for a, b in pairs]), unit='dB')
  codebooks(add, np.concatenate(codes), tokenizer.codebooks)
  seconds = sum(map(len, real)) / rate
  add('codes_per_second', sum(c.size for c in codes) / seconds)
  if common.are_classes(names[1]):
    judge = common.judge(subject, 'sound', common.waves(subject, train), names[1])
    agreement(add, judge, real, made, names[0])


def codebooks(add, codes_PQ, sizes):
  """Rows of how evenly each codebook is used."""
  for q, size in enumerate(sizes):
    which = {'codebook': q} if len(sizes) > 1 else {}
    add('code_usage', metrics.code_usage(codes_PQ[:, q], size), codes=size, **which)
    add('code_perplexity', metrics.code_perplexity(codes_PQ[:, q], size), codes=size, **which)


def agreement(add, judge, real, made, names):
  """A row of a judge on what comes back, beside what it says of the originals."""
  ceiling, _ = judge.accuracy(real, names)
  chance = common.chance(names)
  common.add_accuracy(add, 'accuracy', judge.predict(made), names, chance=chance, baseline=ceiling)
