"""Losses of the image and audio tokenizers alone, without a model: the ceiling of every other task.

Values are means over items, as in the training of a tokenizer (jobs/codec.py). `log_mel_rmse` there
compares spectrograms before the vocoder; `resynthesis_rmse` here compares sounds after it, by the
front end of evaluation.
"""

import numpy as np

from gpt_jax.evaluation import audio_metrics, metrics
from gpt_jax.evaluation.tasks import common


def fits(condition, target):
  """An image or a sound that becomes tokens, on either side."""
  return common.has_kind((*condition, *target), ('image', 'audio'))


def run(subject, source, split, limit):
  """Rows for one source."""
  examples, train = common.held_out_and_train(subject, source, split, limit)
  field = common.label_field(train)
  rows = []
  for modality, measure in (('image', measure_images), ('audio', measure_sounds)):
    if all(common.has_kind((*x.condition, *x.target), (modality,)) for x in (*examples, *train)):
      own = common.Rows('reconstruct', source, split, n=len(examples), modality=modality)
      media_of = common.images_of if modality == 'image' else common.waves_of
      real = media_of(subject, examples)
      decoded = measure(own, getattr(subject.tokenizers, modality), real)
      names, train_names, judged = common.labels(examples, field), common.labels(train, field), {}
      if common.are_classes(train_names):
        kind = {'image': 'image', 'audio': 'sound'}[modality]
        judge = common.judge(subject, kind, media_of(subject, train), train_names)
        rivals = dict(chance=common.chance(names, train_names), baseline=judge.accuracy(real, names)[0])
        predictions = judge.predict(decoded)
        own.add_accuracy('accuracy', predictions, names, **rivals)
        judged = dict(predictions=predictions, right=common.matches(predictions, names))
      subject.record(own, examples, targets=names, media=decoded, **judged)
      rows += own
  return rows


def measure_images(rows, tokenizer, real):
  """Add rows of an image tokenizer; return the decoded images."""
  codes_NPQ = tokenizer.encode(real)
  decoded = tokenizer.decode(codes_NPQ)
  rows.add('psnr', metrics.psnr(real, decoded).mean())
  rows.add('ssim', metrics.ssim(real, decoded).mean())
  add_codebooks(rows, codes_NPQ.reshape(-1, codes_NPQ.shape[-1]), tokenizer.codebooks)
  return decoded


def measure_sounds(rows, tokenizer, real):
  """Add rows of an audio tokenizer; return the decoded sounds."""
  codes = tokenizer.encode(real)
  decoded, rate = tokenizer.decode(codes), tokenizer.sample_rate
  mels = [[audio_metrics.log_mel(wave, rate) for wave in waves] for waves in (real, decoded)]
  pairs = list(zip(*mels, strict=True))
  rows.add('resynthesis_rmse', np.mean([audio_metrics.mel_rmse(a, b) for a, b in pairs]))
  distortion = np.mean([audio_metrics.mcd_dtw(a, b) for a, b in pairs])
  rows.add('mel_cepstral_distortion', distortion)
  add_codebooks(rows, np.concatenate(codes), tokenizer.codebooks)
  rows.add('codes_per_second', sum(c.size for c in codes) / (sum(map(len, real)) / rate))
  return decoded


def add_codebooks(rows, codes_PQ, sizes):
  """Add rows of how evenly each codebook is used."""
  for q, size in enumerate(sizes):
    which = {'codebook': q} if len(sizes) > 1 else {}
    rows.add('code_usage', metrics.code_usage(codes_PQ[:, q], size), codes=size, **which)
    rows.add('code_perplexity', metrics.code_perplexity(codes_PQ[:, q], size), codes=size, **which)
