"""A learned image or audio tokenizer as something to train: an autoencoder with a quantizer.

The same loop, run folder and report as a GPT (train.Training); what a run leaves for others is the
folder `codec/`, which `image.path` or `audio.path` of an experiment names.

Letters: B rows, Y X A image, J frames, M mel bands.
"""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import data
from gpt_jax.cluster.processes import fetch
from gpt_jax.data import media_io
from gpt_jax.data.synthetic.random_bits import scramble
from gpt_jax.evaluation import metrics
from gpt_jax.model import layers as nn
from gpt_jax.runs import hardware
from gpt_jax.sharding import check_batch, data_shard
from gpt_jax.step import Objective, build_program, eval_model, params_of
from gpt_jax.tokenizers import audio, image
from gpt_jax.tokenizers.learned import autoencoder

SCORED = 2048  # items that a validation during training looks at
SHOWN = 8  # reconstructions in a sample
OF_GPT = {  # settings, beside whole sections, that mean nothing here
  'train': ('init_from', 'tasks', 'length', 'sample_prompts'),
  'data': ('mask_documents', 'prefix', 'condition_dropout', 'workers', 'prefetch', 'reset'),
}


class Items:
  """Batches of whole items in an order that is shuffled anew each epoch; state as data.Loader's.

  Batch i is a pure function of (seed, i).
  """

  def __init__(self, count, batch_size, seed, gather, content, share=(0, 1), index=None):
    """gather: index_B -> batch.

    share: (index, count) of the equal part of each batch that this process makes. index: place_B of
    the endless order -> index_B, where items are not `count` that take turns.
    """
    self.count, self.batch_size, self.seed, self.gather = count, batch_size, seed, gather
    self.share, self._index = share, index or self._shuffled
    self._next = 0
    self.fingerprint = dict(count=count, batch_size=batch_size, seed=seed, content=content)

  def __iter__(self):
    return self

  def __next__(self):
    self._next += 1
    return self._batch(self._next - 1)

  def first(self):
    """Batch 0, whichever is next."""
    return self._batch(0)

  def _batch(self, number):
    index, count = self.share
    size = self.batch_size // count
    first = number * self.batch_size + index * size
    place_B = np.arange(first, first + size)
    return self.gather(self._index(place_B))

  def identify(self, number):
    """{'items': their numbers} of batch `number`, for all processes."""
    place_B = np.arange(number * self.batch_size, (number + 1) * self.batch_size)
    return {'items': self._index(place_B).tolist()}

  def _shuffled(self, place_B):
    """Which items are at these places of the endless order."""
    epoch_B, rank_B = np.divmod(place_B, self.count)
    orders = {e: self._order(int(e)) for e in np.unique(epoch_B)}
    return np.array([orders[e][r] for e, r in zip(epoch_B, rank_B, strict=True)])

  def _order(self, epoch):
    """The items of an epoch, shuffled."""
    return np.random.default_rng([self.seed, epoch]).permutation(self.count)

  def state(self):
    """JSON-able: the number of the next batch and what the order depends on."""
    return {'next_batch': self._next, 'fingerprint': self.fingerprint}

  def restore(self, state):
    """Goes on at the batch that `state` names; ValueError if the data are others."""
    if state['fingerprint'] != self.fingerprint:
      raise ValueError(
        f'the data differ from those of the saved run: {state["fingerprint"]} -> '
        f'{self.fingerprint}\nfix: restore them, or train in a new --workdir'
      )
    self._next = state['next_batch']
    return []

  def close(self):
    """Nothing runs beside the loop."""


class TokenizerJob:
  """An autoencoder in training; its subclasses know what an item is."""

  raise_if_preempted = staticmethod(lambda: None)  # unused: its evaluations are short

  def __init__(self, cfg, workdir, mesh):
    self.cfg, self.workdir, self.mesh = cfg, workdir, mesh
    check_batch(cfg.train.batch_size // cfg.train.accumulate, 0, mesh)
    self.check()
    self.codec_cfg = self.read()
    model = autoencoder.Autoencoder(self.codec_cfg)
    objective = Objective(
      weigh=lambda batch, hyper: (batch, jnp.float32(cfg.train.batch_size)),
      loss=self.loss,
      count=lambda batch: {'tokens': jnp.float32(cfg.train.batch_size)},
      finish=functools.partial(update, self.codec_cfg),
    )
    self.program = build_program(cfg, model, objective, 'float32', mesh)
    self.flops = {}  # no convention for what an autoencoder should compute
    self.parameters = sum(int(np.prod(p.get_value().shape)) for _, p in nn.named_params(model))

  def check(self):
    """Raise ValueError for a kind that does not learn, and for settings of a GPT alone."""
    cfg, own = self.cfg, getattr(self.cfg, self.modality)
    learned = [kind for kind, row in self.rows.items() if row.from_model]
    if own.kind not in learned:
      raise ValueError(
        f'{self.modality}.kind={own.kind!r} does not learn, and train.job={cfg.train.job}\n'
        f'fix: use {self.modality}.kind={" or ".join(learned)}'
      )
    defaults, other = type(cfg)(), {'image': 'audio', 'audio': 'image'}[self.modality]
    unused = [f'{self.modality}.path', *(f'train.{name}' for name in OF_GPT['train'])]
    unused += [f'data.{name}' for name in OF_GPT['data']]
    for section in ('model', 'tokenizer', 'loss', 'sample', other):
      unused += [f'{section}.{field.name}' for field in dataclasses.fields(getattr(cfg, section))]
    for key in unused:
      section, name = key.split('.')
      value, default = (getattr(getattr(x, section), name) for x in (cfg, defaults))
      if value != default:
        raise ValueError(
          f'{key}={value!r} has no effect with train.job={cfg.train.job}\nfix: leave it at {default!r}'
        )

  def loss(self, model, tap, batch, weight, hyper, key):
    """A micro-batch's share -> (share, metrics)."""
    del tap, hyper, key
    x = self.inputs(batch)
    loss, found = autoencoder.loss(model, x)
    share = x.shape[0] / weight
    statistics = found.pop('statistics')
    found = {name: value * share for name, value in found.items()}
    return loss * share, found | {'loss': loss * share, 'statistics': statistics}

  def batches(self, count, gather, content, index=None):
    """The loader of so many items; arguments as of Items."""
    size, seed = self.cfg.train.batch_size, self.cfg.train.seed
    return Items(count, size, seed, gather, content, data_shard(self.mesh), index)

  def has_valid(self):
    """Whether anything is held out."""
    return bool(data.source_names(self.cfg.data, 'valid'))

  def example_batch(self):
    """A batch, to trace the step with."""
    rows = np.zeros(self.cfg.train.batch_size, np.int64)
    return self.loader.gather(rows)

  def write_files(self):
    """A run folder needs nothing besides checkpoints."""

  def checkpoint_extra(self):
    """Nothing besides the state."""
    return {}

  def provenance(self):
    """It makes a tokenizer and reads by none."""
    return {}

  def describe(self):
    """What is about to be trained, on what."""
    codes = ' x '.join(map(str, self.tokenizer(self.program.init()).codebooks))
    return (
      f'{self.parameters:,} parameters, {codes} codes, {self.loader.count} {self.unit}, '
      f'{hardware.name()}, {self.cfg.train.batch_size} a step'
    )

  def pop_scalars(self, values):
    """The other metrics are numbers already."""
    del values
    return {}

  def utilization(self, per_second):
    """No convention for what an autoencoder should compute."""
    del per_second
    return {}

  def tokenizer(self, state):
    """The tokenizer that these parameters make."""
    return self.make(fetch(params_of(eval_model(state))))

  def validate(self, state, limit):
    """-> ({valid_loss: error, ...}, rows), on the first held-out items or, at the end, on all."""
    if not len(self.held_out):
      return {}, []
    items = self.held_out[: SCORED if limit else None]
    scores, rows = self.score(self.tokenizer(state), items)
    return scores, self.told(rows, 'valid', items)

  def told(self, rows, split, items, **more):
    """Rows with what every row says."""
    about = dict(task='reconstruct', source=self.modality, split=split, n=len(items))
    return [about | row | more for row in rows]

  def finish(self, state, say):
    """Write codec/ -> rows of the test data, and of k-means with as many codes and positions."""
    tokenizer = self.tokenizer(state)
    if jax.process_index() == 0:
      tokenizer.save(self.workdir / 'codec')
    say(f"tokenizer: {self.modality}.path='{self.workdir}' in the experiment that uses it")
    apart = {'valid': self.held_out} if len(self.held_out) else {}
    rows = []
    if data.source_names(self.cfg.data, 'test'):
      apart['test'] = self.items('test')
      rows += self.told(self.score(tokenizer, apart['test'])[1], 'test', apart['test'])
    try:
      baseline = self.floor()
    except ValueError as error:  # fewer pieces than centroids
      say(f'no k-means to compare with: {str(error).splitlines()[0]}')
      return rows
    for split, items in apart.items():
      rows += self.told(self.score(baseline, items)[1], split, items, tokenizer='k-means')
    return rows


def update(codec_cfg, params, found, key):
  """The parameters that learn without a gradient: a codebook by moving averages."""
  statistics = found.pop('statistics')
  return autoencoder.after_update(codec_cfg, params, statistics, key), found


class ImageTokenizerJob(TokenizerJob):
  """An image tokenizer."""

  unit, modality, rows = 'images', 'image', image.IMAGE_TOKENIZERS

  def read(self):
    """Read the images, make the loader -> AutoencoderConfig."""
    self.section, self.row = self.cfg.image, self.rows[self.cfg.image.kind]
    self.images = self.items('train')
    self.held_out = self.items('valid') if self.has_valid() else ()
    content = hashlib.sha256(self.images).hexdigest()
    gather = lambda index_B: {'images_BYXA': self.images[index_B]}
    self.loader = self.batches(len(self.images), gather, content)
    return image.autoencoder_config(self.cfg.image)

  def items(self, split):
    """The images of a split, uint8 [N, Y, X, A]."""
    return data.load_images(self.cfg.data, self.section.shape, split)

  def inputs(self, batch):
    """Pixels from -1 to 1."""
    return batch['images_BYXA'].astype(jnp.float32) / 127.5 - 1

  def make(self, params):
    """The tokenizer of these parameters."""
    return self.row.from_model(self.section, self.codec_cfg, params)

  def score(self, tokenizer, images):
    """Mean PSNR of the images, and how codes are used; valid_loss is the error of all pixels."""
    codes = tokenizer.encode(images)
    made = tokenizer.decode(codes)
    error = float(np.square((images - made.astype(np.float32)) / 255).mean())
    scores = {'psnr': float(metrics.psnr(images, made).mean())}
    scores |= usage(codes, tokenizer.codebooks)
    return {'valid_loss': error} | scores, [dict(metric=k, value=v) for k, v in scores.items()]

  def floor(self):
    """k-means on patches of the same size."""
    cfg = image.baseline_config(self.cfg.image)
    return image.build(cfg, lambda: self.images)

  def samples(self, state):
    """Held-out images above what is left of them."""
    images = self.held_out[:SHOWN]
    if len(images):
      tokenizer = self.tokenizer(state)
      both = np.concatenate([images, tokenizer.decode(tokenizer.encode(images))])
      yield (
        media_io.to_png(media_io.tile(both, len(images)), scale=max(1, 56 // images.shape[1])),
        'reconstructions',
        '.png',
      )


def usage(codes_NPQ, codebooks):
  """Share of the codes in use and their perplexity, means over codebooks."""
  codes_NQ = np.concatenate([np.reshape(codes, (-1, len(codebooks))) for codes in codes_NPQ])
  columns = list(zip(codes_NQ.T, codebooks, strict=True))
  return {
    'usage': float(np.mean([metrics.code_usage(codes_N, K) for codes_N, K in columns])),
    'perplexity': float(np.mean([metrics.code_perplexity(codes_N, K) for codes_N, K in columns])),
  }


class AudioTokenizerJob(TokenizerJob):
  """An audio tokenizer, trained on crops of the log-mel frames of all clips in a row."""

  unit, modality, rows = 'crops', 'audio', audio.AUDIO_TOKENIZERS

  def read(self):
    """Read the sounds, make the loader -> AutoencoderConfig."""
    self.section, self.row = self.cfg.audio, self.rows[self.cfg.audio.kind]
    self.waves = self.items('train')
    self.held_out = self.items('valid') if self.has_valid() else ()
    self.statistics = audio.fit_statistics(self.section, self.waves)
    self.frames_JM = audio.AudioTokenizer(self.section, self.statistics).join_with_silence(self.waves)
    codec_cfg = audio.autoencoder_config(self.section)
    crop, seed = codec_cfg.shape[0], self.cfg.train.seed
    if len(self.frames_JM) <= crop:
      raise ValueError(
        f'the training sounds have {len(self.frames_JM)} frames, a crop has {crop}\nfix: give more sound'
      )

    starts = np.uint64(len(self.frames_JM) - crop)
    index = lambda place_B: (scramble(seed, place_B) % starts).astype(np.int64)
    gather = lambda start_B: {'frames_BJM': self.frames_JM[start_B[:, None] + np.arange(crop)]}

    content = hashlib.sha256(self.frames_JM).hexdigest()
    count = len(self.frames_JM) // crop
    self.loader = self.batches(count, gather, content, index)
    return codec_cfg

  def items(self, split):
    """The clips of a split, list of float32 [N]."""
    cfg = self.section
    return data.load_waveforms(self.cfg.data, cfg.sample_rate, split, cfg.seconds)

  def inputs(self, batch):
    """Standardized log-mel frames."""
    return batch['frames_BJM']

  def make(self, params):
    """The tokenizer of these parameters."""
    return self.row.from_model(self.section, self.statistics, self.codec_cfg, params)

  def score(self, tokenizer, waves):
    """Mean RMSE of the log-mel frames of a sound before the vocoder, by the tokenizer's own front
    end, and how codes are used; valid_loss is the RMSE of all frames.
    """
    codes = tokenizer.encode(waves)
    made = tokenizer.decode_mel(codes)
    real = tokenizer.spectrogram.log_mel(waves, self.section.stack)
    squares = [np.square(a - b) for a, b in zip(made, real, strict=True)]
    scores = {'log_mel_rmse': float(np.mean([np.sqrt(x.mean()) for x in squares]))}
    scores |= usage(codes, tokenizer.codebooks)
    rmse = float(np.sqrt(np.concatenate(squares).mean()))
    return {'valid_loss': rmse} | scores, [dict(metric=k, value=v) for k, v in scores.items()]

  def floor(self):
    """k-means on as many frames a code, with as many codes."""
    cfg = audio.baseline_config(self.section)
    return audio.build(cfg, lambda: self.waves)

  def samples(self, state):
    """Held-out sounds, each followed by what is left of it."""
    waves = list(self.held_out[:SHOWN])
    if waves:
      tokenizer = self.tokenizer(state)
      made = tokenizer.decode(tokenizer.encode(waves))
      pause = np.zeros(self.section.sample_rate // 5, np.float32)
      pairs = [x for pair in zip(waves, made, strict=True) for wave in pair for x in (wave, pause)]
      sound = media_io.to_wav(np.concatenate(pairs), self.section.sample_rate)
      yield sound, 'original_then_decoded', '.wav'
