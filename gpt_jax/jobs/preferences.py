"""The job that trains a GPT on pairs of answers, one of them preferred; see base.Job.

preference_pairs.py reads them. Log-probabilities under the initial model are computed
once, before the first step, and stored beside the token caches.

Letters: as in preference_pairs.py.
"""

import functools
import hashlib
import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import data
from gpt_jax.cluster.batches import data_shard, to_devices
from gpt_jax.cluster.processes import fetch
from gpt_jax.evaluation import metrics
from gpt_jax.jobs import base, language_model
from gpt_jax.jobs.preference_losses import PREFERENCE_LOSSES, PairScores
from gpt_jax.jobs.preference_pairs import REFERENCE, read_pairs
from gpt_jax.model import moe, param_trees
from gpt_jax.runs import ancestry, digests
from gpt_jax.step import Objective, count_tokens, eval_model, loss_fn
from gpt_jax.training import checkpoint

log = logging.getLogger(__name__)


def reference_name(split, pairs, reference):
  """Return the name of the file with the log-probabilities of pairs under a model, given by its digest."""
  key = hashlib.sha256(json.dumps([pairs.digest(), reference]).encode()).hexdigest()[:16]
  return f'reference-{split}-{key}.npy'


def pair_scores(model, batch, hyper, key, places=None):
  """Return (PairScores of a batch of rows, the loss of the experts, if any); places: see step.loss_fn."""
  A = sum(name in batch for name in REFERENCE)
  split = lambda x: x.reshape(A * x.shape[0], x.shape[1] // A, *x.shape[2:])
  rows = {name: split(x) for name, x in batch.items() if name.rsplit('_', 1)[1].startswith('BT')}
  mask_BT = rows['loss_mask_BT']
  _, aux, nats_BT = loss_fn(model, rows, mask_BT.sum(), hyper, key, places=places)
  sums_BA, tokens_BA = (x_BT.sum(1).reshape(-1, A) for x_BT in (-nats_BT * mask_BT, mask_BT))
  scores = PairScores(*sums_BA.T[:2], *tokens_BA.T[:2])._replace(**{n: batch[n] for n in REFERENCE[:A]})
  return scores._replace(mismatched_B=sums_BA[:, 2]) if A == 3 else scores, moe.experts_loss(aux, hyper)


def pair_metrics(cfg, scores):
  """Return {name: value_B} of a batch: the loss, rewards, and whether the margin is positive."""
  loss_B, chosen_B, rejected_B = PREFERENCE_LOSSES[cfg.loss].compute(cfg, scores)
  return {
    'loss': loss_B,
    'reward_accuracy': (chosen_B > rejected_B).astype(jnp.float32),
    'reward_margin': chosen_B - rejected_B,
    'reward_chosen': chosen_B,
    'reward_rejected': rejected_B,
    'log_prob_chosen': scores.chosen_B,
    'log_prob_rejected': scores.rejected_B,
  }


def preference_objective(cfg, places=None):
  """Return the Objective of pairs: the mean of the loss over the pairs of the step.

  cfg: PreferenceConfig. places: see step.loss_fn.
  """

  def weigh(batch, hyper):
    return batch, jnp.float32(batch['loss_mask_BT'].shape[0])

  def loss(model, probe, batch, weight, hyper, key):
    scores, experts = pair_scores(model, batch, hyper, key, places)
    values = {name: x_B.sum() / weight for name, x_B in pair_metrics(cfg, scores).items()}
    share = batch['loss_mask_BT'].shape[0] / weight
    return values['loss'] + experts * share, values

  return Objective(weigh, loss, count_tokens)


@functools.partial(jax.jit, static_argnames='places')
def evaluate_pairs(model, batch, places=None):
  """Return the PairScores of a batch without dropout."""
  return pair_scores(param_trees.cast(model, model.cfg.dtype), batch, {}, None, places)[0]


class PreferenceJob(language_model.LanguageModelJob):
  """A GPT in training on preferences."""

  loss_unit, scored_tasks = 'per pair', ('preferences',)
  scores = ('valid_loss', 'valid_reward_accuracy', 'valid_reward_margin')
  logged = (*(f'reward_{name}' for name in ('accuracy', 'margin', 'chosen', 'rejected')),)
  logged += ('log_prob_chosen', 'log_prob_rejected')

  @classmethod
  def check(cls, cfg):
    """Raise ValueError for settings that this job cannot honor."""
    super().check(cfg)
    base.check_pooled(cfg)
    for name, source in cfg.data.mixture.items():
      if source.copies:
        raise ValueError(
          f'data.mixture.{name}.copies={source.copies} has no effect with train.job=dpo, which compares each '
          'pair as it is\nfix: set copies=0 and leave out augment'
        )
    row = PREFERENCE_LOSSES[cfg.preference.loss]
    if row.needs_reference and not (cfg.train.init_from or cfg.train.branch_from):
      raise ValueError(
        f'preference.loss={cfg.preference.loss} compares with the initial model, and there is none\n'
        'fix: name a trained run in train.init_from, or use preference.loss=orpo or simpo'
      )
    if row.needs_mismatched and cfg.train.accumulate > 1:
      raise ValueError(
        f'train.accumulate={cfg.train.accumulate} would cut the batch whose mean KL preference.loss='
        f'{cfg.preference.loss} needs\nfix: set train.accumulate=1'
      )

  @classmethod
  def documents_per_row(cls, cfg):
    """Return the documents of a pair."""
    return PREFERENCE_LOSSES[cfg.preference.loss].documents

  def build_loader(self):
    """Return the loader of training pairs; read the validation pairs, too."""
    cfg = self.cfg
    self.row = PREFERENCE_LOSSES[cfg.preference.loss]
    splits = [split for split in ('train', 'valid') if data.source_names(cfg.data, split)]
    self.pairs = {split: read_pairs(cfg, self.tokenizers, split, self.length) for split in splits}
    self.leave_out_shared_prompts()
    train = self.pairs['train']
    fingerprint = dict(
      pairs=len(train),
      content=train.digest(),
      tokenizer=self.tokenizers.hash,
      batch_size=cfg.train.batch_size,
      seed=cfg.train.seed,
    )
    return PairLoader(
      self,
      cfg.data,
      train.gather,
      data.epoch_shuffle(cfg.train.seed, len(train)),
      batch_size=cfg.train.batch_size,
      share=data_shard(self.mesh),
      fingerprint=fingerprint,
    )

  def leave_out_shared_prompts(self):
    """Leave out the training pairs whose prompts are those of validation pairs, and log their number."""
    if 'valid' not in self.pairs:
      return
    before = len(self.pairs['train'])
    self.pairs['train'] = self.pairs['train'].without({*self.pairs['valid'].prompts})
    left = len(self.pairs['train'])
    if not left:
      raise ValueError(
        f'all {before} training pairs have prompts of validation pairs\n'
        'fix: give pairs of other prompts, set valid_path of the source, or data.valid_fraction=0.0'
      )
    if left < before:
      log.warning(
        '%d of %d training pairs are left out: validation pairs have their prompts', before - left, before
      )

  def build_objective(self):
    """Return the objective of the pairs."""
    return preference_objective(self.cfg.preference, self.places)

  def training_places(self):
    """Return `places` of the pairs; see LanguageModelJob."""
    return self.target_places(self.pairs['train'])

  def describe(self):
    """Return one line about the model and its pairs."""
    counts = ' and '.join(f'{len(pairs):,} {split}' for split, pairs in self.pairs.items())
    return f'{super().describe()}, {counts} pairs'

  def validation_digest(self):
    """Return a hash of the validation pairs."""
    return self.pairs['valid'].digest() if 'valid' in self.pairs else ''

  def loss_settings(self):
    """Return the settings that give losses and rewards their scale."""
    names = ('loss', 'beta', *self.row.uses)
    return {f'preference.{name}': getattr(self.cfg.preference, name) for name in names}

  def open_valid_caches(self):
    """Return {}: tasks open the token caches that they need."""
    return {}

  def example_batch(self):
    """Return a batch to trace the step with."""
    return self.pairs['train'].gather([0] * self.cfg.train.batch_size)

  def load_initial_weights(self, state, folder, step):
    """Return the state with the parameters of train.init_from; score the pairs under them once."""
    state = super().load_initial_weights(state, folder, step)
    if self.row.needs_reference:
      manifest = checkpoint.Checkpoints(folder / 'checkpoints').manifest(step)
      reference = digests.digest_of_manifest(manifest)[:16]
      model = eval_model(state)
      for split, pairs in self.pairs.items():
        values_NA = self.reference_log_probs(model, pairs)
        if jax.process_index() == 0:  # in the place of what a run that was stopped before may have left
          path = self.workdir / 'cache' / reference_name(split, pairs, reference)
          digests.write_file(path, functools.partial(np.save, arr=values_NA))
        pairs.reference_NA[:] = values_NA
      self.loader.fingerprint['reference'] = reference
    return state

  def pop_scalars(self, values):
    """Remove rewards and log-probabilities from {name: values by step}; return their means."""
    names = [name for name in values if name.startswith(('reward_', 'log_prob_'))]
    return {name: float(values.pop(name).mean()) for name in names}

  def set_reference(self, reference):
    """Read the stored log-probabilities under the model with the digest `reference`; ValueError for none.

    A branch takes those of the run that it continues, and stores a copy.
    """
    if self.loader.fingerprint.get('reference') == reference:
      return
    for split, pairs in self.pairs.items():
      name, folders = reference_name(split, pairs, reference), [self.workdir]
      if self.cfg.train.branch_from:
        folders.append(ancestry.parse_run(self.cfg.train.branch_from)[0])
      paths = [folder / 'cache' / name for folder in folders]
      path = next(filter(pathlib.Path.exists, paths), None)
      if path is None:
        raise ValueError(
          f'{paths[-1]} with the log-probabilities of the reference model is missing\n'
          'fix: copy it back or, for other pairs, start again with train.init_from in another --workdir'
        )
      try:
        digests.verify_file(path)
        values_NA = np.load(path)
      except (OSError, digests.Corrupt) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
          f'{path} with the log-probabilities of the reference model is not as it was written: {cause}\n'
          'fix: copy it and its .json back, or start again in another --workdir'
        ) from None
      if path != paths[0] and jax.process_index() == 0:
        digests.write_file(paths[0], functools.partial(np.save, arr=values_NA))
      pairs.reference_NA[:] = values_NA
    self.loader.fingerprint['reference'] = reference

  def reference_log_probs(self, model, pairs):
    """Return the log-probabilities of the answers of pairs, float32 [N, A]."""
    scores = self.score_pairs(model, pairs, len(pairs))
    columns = (scores.chosen_B, scores.rejected_B, scores.mismatched_B)[: len(pairs.sides)]
    return np.stack(columns, 1).astype(np.float32)

  def score_pairs(self, model, pairs, count):
    """Return the PairScores of the first `count` pairs."""
    size, (index, parts) = self.cfg.train.batch_size, data_shard(self.mesh)
    own, results, places = size // parts, [], self.target_places(pairs)
    for first in range(0, count, size):  # the last batch is filled up: another size would compile again
      numbers = np.minimum(np.arange(first, first + size), count - 1)[index * own : (index + 1) * own]
      batch = to_devices(pairs.gather(numbers), self.mesh)
      results.append(fetch(evaluate_pairs(model, batch, places=places)))
      self.raise_if_preempted()
    join = lambda *parts: np.concatenate(parts)[:count] if np.ndim(parts[0]) else parts[0]
    return jax.tree.map(join, *results)

  def validate(self, state, limit):
    """Return ({valid_loss, valid_reward_accuracy, valid_reward_margin}, rows); limit: tokens, 0 = all."""
    pairs = self.pairs.get('valid')
    if pairs is None:
      return {}, []
    count = min(len(pairs), max(1, limit // (self.row.documents * self.length)) if limit else len(pairs))
    values = pair_metrics(self.cfg.preference, self.score_pairs(eval_model(state), pairs, count))
    values = {name: np.asarray(x_N) for name, x_N in values.items()}
    scores, rows = {}, []
    for metric in ('loss', 'reward_accuracy', 'reward_margin'):
      scores[f'valid_{metric}'] = value = float(values[metric].mean())
      row = dict(task='preferences', metric=metric, value=value, source='all', split='valid', n=count)
      rows.append(row | {'interval': list(metrics.bootstrap_mean(values[metric]))})
    return scores, rows


class PairLoader(data.ItemLoader):
  """Batches of pairs; restoring a state also restores the log-probabilities of its reference model."""

  def __init__(self, job, *args, **fields):
    super().__init__(*args, **fields)
    self._job = job

  def restore(self, state, step=0):
    """Continue at the batch that `state` names: see BatchLoader.restore."""
    self._restore_reference(state)
    return super().restore(state, step)

  def branch(self, state, number):
    """Continue from another run's `state`, with its reference: see BatchLoader.branch."""
    self._restore_reference(state)
    return super().branch(state, number)

  def rows_identity(self, fingerprint, name):
    """Return the entries of a fingerprint on which the pairs and their order depend."""
    return {k: v for k, v in super().rows_identity(fingerprint, name).items() if k != 'reference'}

  def _restore_reference(self, state):
    if not self._job.row.needs_reference:
      return
    if 'reference' not in state['fingerprint']:
      raise ValueError(
        f'preference.loss={self._job.cfg.preference.loss} needs a reference model, and the run to continue '
        'has none\nfix: take its weights alone, with train.init_from'
      )
    self._job.set_reference(state['fingerprint']['reference'])
