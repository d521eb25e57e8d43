"""The jobs that train image and audio tokenizers: autoencoders with a quantizer.

They share the loop, run folder and report with the GPT. The trained tokenizer is the folder `codec/`
of the run, which `image.path` or `audio.path` of another experiment names.

Letters: B rows, N images, Y X A image, J frames, M mel bands, K codes, Q codebooks, P positions.
"""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import data
from gpt_jax.cluster.batches import check_batch, data_shard
from gpt_jax.cluster.processes import fetch
from gpt_jax.data import media_io
from gpt_jax.data.synthetic.random_bits import scramble
from gpt_jax.evaluation import metrics
from gpt_jax.jobs import base
from gpt_jax.model import param_trees
from gpt_jax.runs import hardware
from gpt_jax.runs.metric_names import METRICS
from gpt_jax.step import Objective, build_program, eval_model, params_of
from gpt_jax.tokenizers import audio, image
from gpt_jax.tokenizers.learned import autoencoder

SAMPLES = 8  # reconstructions in a sample
UNUSED = {  # settings of a GPT that have no effect here, beside the sections below
  'train': ('init_from', 'tasks', 'tasks_every', 'tasks_limit', 'length', 'sample_prompts'),
  'data': ('mask_documents', 'prefix', 'condition_dropout', 'workers'),
}
UNUSED_SECTIONS = ('model', 'adapter', 'tokenizer', 'loss', 'sample', 'privacy')


class TokenizerJob(base.Job):
  """An autoencoder in training; see base.Job. Subclasses define its items and how they are scored.

  build() returns (AutoencoderConfig, gather, item_at, hash of the data, items of an epoch); gather and
  item_at: see data.ItemLoader.
  """

  logged, scored_tasks = ('mse', 'commitment'), ('reconstruct',)

  def __init__(self, cfg, workdir, mesh):
    self.cfg, self.workdir, self.mesh = cfg, workdir, mesh
    self.section = getattr(cfg, self.modality)
    check_batch(cfg.train.batch_size // cfg.train.accumulate, 0, mesh)
    self.check_settings()
    self.row = self.rows[self.section.kind]
    self.train_items = self.read_items('train')
    has_valid = data.source_names(cfg.data, 'valid')
    self.valid_items = self.read_items('valid') if has_valid else ()
    self.codec_cfg, gather, item_at, content, self.count = self.build()
    self.loader = data.ItemLoader(
      cfg.data,
      gather,
      item_at,
      batch_size=cfg.train.batch_size,
      share=data_shard(mesh),
      fingerprint=dict(
        count=self.count, batch_size=cfg.train.batch_size, seed=cfg.train.seed, content=content
      ),
    )
    model = autoencoder.Autoencoder(self.codec_cfg)
    objective = Objective(
      weigh=lambda batch, hyper: (batch, jnp.float32(cfg.train.batch_size)),
      loss=self.loss,
      count=lambda batch: {'tokens': jnp.float32(cfg.train.batch_size)},
      post_update=functools.partial(update_codebook, self.codec_cfg),
    )
    self.program = build_program(cfg, model, objective, 'float32', mesh)
    self.parameters = sum(int(np.prod(p.get_value().shape)) for _, p in param_trees.named_params(model))

  def check_settings(self):
    """Raise ValueError for a tokenizer that does not learn and for settings of a GPT."""
    cfg = self.cfg
    base.check_pooled(cfg)
    learned = [kind for kind, row in self.rows.items() if row.from_model]
    if self.section.kind not in learned:
      raise ValueError(
        f'{self.modality}.kind={self.section.kind!r} does not learn, and train.job={cfg.train.job}\n'
        f'fix: use {self.modality}.kind={" or ".join(learned)}'
      )
    defaults, other = type(cfg)(), {'image': 'audio', 'audio': 'image'}[self.modality]
    sections = {name: dataclasses.asdict(getattr(cfg, name)) for name in (*UNUSED_SECTIONS, other)}
    unused = {self.modality: ('path',), **UNUSED, **sections}
    for section, name in ((section, name) for section, names in unused.items() for name in names):
      value, default = (getattr(getattr(x, section), name) for x in (cfg, defaults))
      if value != default:
        raise ValueError(
          f'{section}.{name}={value!r} has no effect with train.job={cfg.train.job}\n'
          f'fix: leave it at {default!r}'
        )

  def loss(self, model, probe, batch, weight, hyper, key):
    """Return a micro-batch's share of the objective and its metrics, as step.Objective asks."""
    del probe, hyper, key
    x = self.inputs(batch)
    loss, values = autoencoder.loss(model, x)
    share = x.shape[0] / weight
    statistics = values.pop('statistics')
    values = {name: value * share for name, value in values.items()}
    return loss * share, values | {'loss': loss * share, 'statistics': statistics}

  def example_batch(self):
    """Return a batch to trace the step with."""
    return self.loader.gather([0] * self.cfg.train.batch_size)

  def describe(self):
    """Return the size of the network and of its data."""
    return (
      f'{self.parameters:,} parameters, {self.codec_cfg.codebook} codes, {self.count} {self.unit}, '
      f'{hardware.name()}, {self.cfg.train.batch_size} a step'
    )

  def tokenizer(self, state):
    """Return the tokenizer of these parameters."""
    return self.make(fetch(params_of(eval_model(state))))

  def samples(self, state):
    """Yield validation items with their reconstructions: a picture or a sound."""
    items = self.valid_items[:SAMPLES]
    if len(items):
      tokenizer = self.tokenizer(state)
      yield self.render(items, tokenizer.decode(tokenizer.encode(items)))

  def validate(self, state, limit):
    """Score the first `limit` validation items, 0 = all -> ({valid_loss, ...}, rows)."""
    if not len(self.valid_items):
      return {}, []
    items = self.valid_items[: limit or None]
    scores = self.score(self.tokenizer(state), items)
    return scores, self.result_rows(scores, 'valid', items)

  def result_rows(self, scores, split, items, **fields):
    """Return the rows of result.json for the scores of some items."""
    about = dict(task='reconstruct', source=self.modality, split=split, n=len(items))
    named = {name: value for name, value in scores.items() if name != 'valid_loss'}
    rows = [dict(metric=name, value=value, unit=METRICS[name].unit) for name, value in named.items()]
    return [about | {k: v for k, v in row.items() if v != ''} | fields for row in rows]

  def finish(self, state, say):
    """Write codec/; return rows of the test data, and of k-means with as many codes and positions."""
    tokenizer = self.tokenizer(state)
    if jax.process_index() == 0:
      tokenizer.save(self.workdir / 'codec')
    say(f"tokenizer: {self.modality}.path='{self.workdir}' in the experiment that uses it")
    splits = {'valid': self.valid_items} if len(self.valid_items) else {}
    rows = []
    if data.source_names(self.cfg.data, 'test'):
      splits['test'] = self.read_items('test')
      rows += self.result_rows(self.score(tokenizer, splits['test']), 'test', splits['test'])
    try:
      baseline = self.tokenizers.build(
        self.tokenizers.baseline_config(self.section), lambda: self.train_items
      )
    except ValueError as error:  # fewer pieces than centroids
      say(f'no k-means to compare with: {str(error).splitlines()[0]}')
      return rows
    for split, items in splits.items():
      rows += self.result_rows(self.score(baseline, items), split, items, tokenizer='k-means')
    return rows


def update_codebook(codec_cfg, params, values, key):
  """Update the parameters that learn without a gradient: a codebook by moving averages."""
  statistics = values.pop('statistics')
  return autoencoder.after_update(codec_cfg, params, statistics, key), values


def codebook_scores(codes_NPQ, codebooks):
  """Return the share of the codes in use and their perplexity, means over codebooks."""
  codes_NQ = np.concatenate([np.reshape(codes, (-1, len(codebooks))) for codes in codes_NPQ])
  columns = list(zip(codes_NQ.T, codebooks, strict=True))
  return {
    'code_usage': float(np.mean([metrics.code_usage(codes_N, K) for codes_N, K in columns])),
    'code_perplexity': float(np.mean([metrics.code_perplexity(codes_N, K) for codes_N, K in columns])),
  }


class ImageTokenizerJob(TokenizerJob):
  """An image tokenizer in training."""

  scores = ('valid_loss', 'psnr', 'code_usage', 'code_perplexity')
  unit, modality, tokenizers, rows = 'images', 'image', image, image.IMAGE_TOKENIZERS

  def read_items(self, split):
    """Return the images of a split, uint8 [N, Y, X, A]."""
    return data.load_images(self.cfg.data, self.section.shape, split)

  def build(self):
    """Return the network and data; each epoch has all images in an order of its own."""
    images, count = self.train_items, len(self.train_items)
    gather = lambda numbers: {'images_BYXA': images[np.asarray(numbers)]}
    shuffle = data.epoch_shuffle(self.cfg.train.seed, count)
    return image.autoencoder_config(self.section), gather, shuffle, hashlib.sha256(images).hexdigest(), count

  def inputs(self, batch):
    """Return pixels from -1 to 1."""
    return batch['images_BYXA'].astype(jnp.float32) / 127.5 - 1

  def make(self, params):
    """Return the tokenizer of these parameters."""
    return self.row.from_model(self.section, self.codec_cfg, params)

  def score(self, tokenizer, images):
    """Return valid_loss (the error of all pixels), the images' mean PSNR, usage and perplexity."""
    codes = tokenizer.encode(images)
    decoded = tokenizer.decode(codes)
    return {
      'valid_loss': float(np.square((images - decoded.astype(np.float32)) / 255).mean()),
      'psnr': float(metrics.psnr(images, decoded).mean()),
      **codebook_scores(codes, tokenizer.codebooks),
    }

  def render(self, images, decoded):
    """Return (content, name, suffix) of images above their reconstructions."""
    grid = media_io.tile(np.concatenate([images, decoded]), len(images))
    return media_io.to_png(grid, scale=max(1, 56 // images.shape[1])), 'reconstructions', '.png'


class AudioTokenizerJob(TokenizerJob):
  """An audio tokenizer in training, on crops of the log-mel frames of all clips joined."""

  scores = ('valid_loss', 'log_mel_rmse', 'code_usage', 'code_perplexity')
  unit, modality, tokenizers, rows = 'crops', 'audio', audio, audio.AUDIO_TOKENIZERS

  def read_items(self, split):
    """Return the clips of a split, list of float32 [samples]."""
    cfg = self.section
    return data.load_waveforms(self.cfg.data, cfg.sample_rate, split, cfg.seconds)

  def build(self):
    """Return the network and data; an item's number is the frame at which its crop starts."""
    self.statistics = audio.fit_statistics(self.section, self.train_items)
    front_end = audio.AudioTokenizer(self.section, self.statistics)
    self.frames_JM = frames_JM = front_end.join_with_silence(self.train_items)
    codec_cfg = audio.autoencoder_config(self.section)
    crop, seed = codec_cfg.shape[0], self.cfg.train.seed
    if len(frames_JM) <= crop:
      raise ValueError(
        f'the training sounds have {len(frames_JM)} frames, a crop has {crop}\nfix: give more sound'
      )
    starts = np.uint64(len(frames_JM) - crop)
    item_at = lambda place: int(scramble(seed, np.array([place]))[0] % starts)
    gather = lambda starts: {'frames_BJM': frames_JM[np.asarray(starts)[:, None] + np.arange(crop)]}
    content, count = hashlib.sha256(frames_JM).hexdigest(), len(frames_JM) // crop
    return codec_cfg, gather, item_at, content, count

  def inputs(self, batch):
    """Return standardized log-mel frames."""
    return batch['frames_BJM']

  def make(self, params):
    """Return the tokenizer of these parameters."""
    return self.row.from_model(self.section, self.statistics, self.codec_cfg, params)

  def score(self, tokenizer, waves):
    """Return valid_loss (RMSE of all log-mel frames), the clips' mean RMSE, usage and perplexity.

    Frames are compared before the vocoder, in the tokenizer's own front end.
    """
    codes = tokenizer.encode(waves)
    decoded, real = tokenizer.decode_mel(codes), tokenizer.spectrogram.log_mel(waves, self.section.stack)
    squares = [np.square(a - b) for a, b in zip(decoded, real, strict=True)]
    return {
      'valid_loss': float(np.sqrt(np.concatenate(squares).mean())),
      'log_mel_rmse': float(np.mean([np.sqrt(x.mean()) for x in squares])),
      **codebook_scores(codes, tokenizer.codebooks),
    }

  def render(self, waves, decoded):
    """Return (content, name, suffix) of clips, each followed by its reconstruction."""
    rate = self.section.sample_rate
    pause = np.zeros(rate // 5, np.float32)
    clips = [x for pair in zip(waves, decoded, strict=True) for wave in pair for x in (wave, pause)]
    return media_io.to_wav(np.concatenate(clips), rate), 'original_then_decoded', '.wav'
