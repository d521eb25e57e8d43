"""The job that trains a GPT on the predictions of another, its teacher; see base.Job.

The teacher's logits of a batch are computed before the step and are an entry of the batch, so that the
teacher is neither in the state nor in checkpoints. The logged loss is the student's cross-entropy.

Letters: B batch, T length, V ids of the tokenizer.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.jobs import base, language_model
from gpt_jax.jobs.distillation_losses import distance, kl
from gpt_jax.model import gpt, moe, param_trees
from gpt_jax.model.config import ModelConfig
from gpt_jax.runs import ancestry, digests, run_folder
from gpt_jax.step import loss_fn
from gpt_jax.tokenizers import Tokenizers
from gpt_jax.training import checkpoint, start

LOGITS = 'teacher_logits_BTV'


def distillation_objective(cfg, objective):
  """Return the Objective of a student whose batches have its teacher's logits; cfg: DistilConfig.

  objective: that of the cross-entropy, which says what each target weighs.
  """

  def loss(model, probe, batch, weight, hyper, key):
    kept = []

    def keep(logits_BTV):  # loss_fn shows its logits here, and returns none
      kept.append(logits_BTV)
      return logits_BTV

    total, metrics, _ = loss_fn(model, batch, weight, hyper, key, restrict=keep)
    teacher_BTV = batch[LOGITS]
    student_BTV = kept[0][..., : teacher_BTV.shape[-1]]
    mean = lambda x_BT: (x_BT * batch['loss_mask_BT']).sum() / weight
    experts = moe.experts_loss(metrics, hyper)
    divergence = mean(distance(cfg, student_BTV, teacher_BTV))
    total = cfg.weight * divergence + (1 - cfg.weight) * (total - experts) + experts
    divergence_BT = kl(jax.nn.log_softmax(teacher_BTV), jax.nn.log_softmax(student_BTV))
    return total, metrics | {'kl': mean(divergence_BT)}

  return type(objective)(objective.weigh, loss, objective.count)


@functools.partial(jax.jit, static_argnames='size')
def logits(model, batch, *, size):
  """Return the model's logits of the first `size` ids at each token of a batch, without dropout."""
  model = param_trees.cast(model, model.cfg.dtype)
  x_BTD, _, _ = model.trunk(batch['token_ids_BT'], rate=jnp.float32(0), **gpt.inputs(model.cfg, batch))
  return model.logits(x_BTD)[..., :size]


def find_teacher(name, tokenizers, length):
  """Return (folder, step) of distil.teacher; ValueError for another vocabulary or a shorter context."""
  folder, step = ancestry.parse_run(name)
  context = run_folder.read_config(folder, 'distil.teacher')['model']['context']
  steps = checkpoint.Checkpoints(folder / 'checkpoints').steps()
  if not steps or step not in (None, *steps):
    found = ', '.join(map(str, sorted(steps))) or 'none'
    raise ValueError(
      f'distil.teacher={name}: {folder} has no such checkpoint\nfix: train there first, or use one of its '
      f'steps: {found}'
    )
  theirs, ours = Tokenizers.load(folder / 'tokenizer').hash, tokenizers.hash
  if theirs != ours:
    raise ValueError(
      f'distil.teacher={name} has other ids (tokenizer {theirs}) than this run ({ours})\n'
      'fix: use the tokenizer section and the data of its config.json, as experiments/distil.py does'
    )
  if context < length:
    raise ValueError(
      f'distil.teacher={name} has model.context={context}, shorter than rows of {length} tokens\n'
      f'fix: set train.length={context}'
    )
  return folder, max(steps) if step is None else step


def teacher_config(folder):
  """Return the ModelConfig of a teacher's run folder, resolved for the mesh in force."""
  section = run_folder.read_config(folder)['model']
  section = {k: tuple(x) if isinstance(x, list) else x for k, x in section.items()}
  return ModelConfig(**section).resolved()


class DistillationJob(language_model.LanguageModelJob):
  """A GPT in training on the predictions of a teacher."""

  logged = (*language_model.LanguageModelJob.logged, 'kl')
  teacher = None  # GPT; read at the first batch: the constructor runs in process 0 first

  def build_loader(self):
    """Return the loader of the training batches, which also depend on the teacher's checkpoint."""
    name = self.cfg.distil.teacher
    self.teacher_folder, self.teacher_step = find_teacher(name, self.tokenizers, self.length)
    loader = super().build_loader()
    manifest = checkpoint.Checkpoints(self.teacher_folder / 'checkpoints').manifest(self.teacher_step)
    loader.fingerprint['teacher'] = digests.digest_of_manifest(manifest)
    return loader

  @classmethod
  def check(cls, cfg):
    """Raise ValueError for settings that this job cannot honor."""
    super().check(cfg)
    if not cfg.distil.teacher:
      raise ValueError(
        "distil.teacher='' and train.job=distil learns from a trained model\n"
        'fix: name its run folder in distil.teacher'
      )
    wanted = base.PREPARED | {'loss.restrict': False}
    base.check_settings(cfg, wanted, 'whose teacher predicts all ids between two steps')

  def parents(self):
    """Return {config key: RUN@STEP} of the teacher."""
    return {'distil.teacher': f'{self.teacher_folder}@{self.teacher_step}'}

  def training_places(self):
    """Return None: the teacher is followed at all places."""

  def build_objective(self):
    """Return the step.Objective."""
    return distillation_objective(self.cfg.distil, super().build_objective())

  def example_batch(self):
    """Return a batch to trace the step with."""
    batch = super().example_batch()
    shape = (*batch['token_ids_BT'].shape, self.tokenizers.vocabulary.size)
    return batch | {LOGITS: np.zeros(shape, np.float32)}

  def prepare_batch(self, batch, state):
    """Return the batch with the teacher's logits."""
    if self.teacher is None:
      self.teacher = self.load_teacher()
    return batch | {LOGITS: logits(self.teacher, batch, size=self.tokenizers.vocabulary.size)}

  def load_teacher(self):
    """Return the GPT of the teacher's checkpoint, whose files are verified."""
    [(key, name)] = self.parents().items()
    folder, step, _ = start.open_parent(key, name, self.cfg.checkpoint.verify)
    checkpoints = checkpoint.Checkpoints(folder / 'checkpoints')
    return checkpoint.load_base(checkpoints, step, teacher_config(folder), self.mesh)
