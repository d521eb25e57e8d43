"""The programs of each job that trains a GPT, without its data: the train step, and what runs before it.

Before a step preferences are compared with a reference model (once), completions are sampled (grpo), a
teacher predicts (distil). These programs have other arguments than the step, and the state of the run stays
in memory meanwhile, as the reference model or the teacher does during the step.

Letters: B rows of a batch, T tokens of a row, V ids.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from gpt_jax import data, sample, sharding
from gpt_jax.cluster import batches
from gpt_jax.jobs import distillation, language_model, policy, preferences, private_training
from gpt_jax.jobs.modality_objective import modality_objective
from gpt_jax.jobs.preference_losses import PREFERENCE_LOSSES
from gpt_jax.jobs.preference_pairs import REFERENCE
from gpt_jax.model import adapters, gpt, param_trees
from gpt_jax.model.kernels import target_places
from gpt_jax.plan import abstract_inputs, sampling_programs
from gpt_jax.plan.sampling_programs import with_sharding
from gpt_jax.sampling import completions, prompt_batch
from gpt_jax.step import gpt_program
from gpt_jax.tokenizers.modality_tables import ModalityTables
from gpt_jax.training import checkpoint
from gpt_jax.training.memory import device_bytes


class Before(NamedTuple):
  """A program that runs before steps."""

  lowered: Any
  arguments: Any  # abstract
  calls: float  # before each step, on average; 0 = before the first step and in evaluations alone
  beside: int  # bytes of a device that are none of its arguments and stay meanwhile


class Run(NamedTuple):
  """What is known of a run without its data."""

  cfg: Any  # config.Config
  tokenizers: Any
  model: Any  # ModelConfig, resolved
  mesh: Any

  @property
  def length(self):
    """Tokens of a document's row."""
    return self.cfg.train.length or self.model.context

  def batch(self, length=0, alone=False, **more):
    """The abstract batch with its shardings; more: {name: dtype} of entries with a number a row."""
    entries = abstract_inputs.batch(self.cfg, self.tokenizers, length or self.length, alone)
    rows = (self.cfg.train.batch_size,)
    entries |= {name: jax.ShapeDtypeStruct(rows, dtype) for name, dtype in more.items()}
    place = lambda name, x: with_sharding(x, batches.batch_sharding(self.mesh, name))
    return {name: place(name, x) for name, x in entries.items()}


def total(tree):
  """Bytes of an abstract tree on a device."""
  return sum(map(device_bytes, jax.tree.leaves(tree)))


def initial_model(run):
  """The abstract model of a run, as evaluation and a reference take it."""
  return checkpoint.with_shardings(gpt.GPT(run.model), run.mesh)


def merged_bytes(run, state):
  """Bytes of the weights that evaluating and sampling merge with adapters or restore from codes."""
  if state.frozen is None:
    return 0
  _, scales = adapters.parts(state.frozen)
  paths = {*scales, *(path for path, entry in state.model.items() if not param_trees.is_param(entry))}
  return total({path: p for path, p in param_trees.named_params(initial_model(run)) if path in paths})


# ------------------------------------------------------------------------------------- language model


def gpt_objective(run):
  """The objective of documents, as LanguageModelJob builds it."""
  single = len(run.tokenizers.modalities) == 1
  tables = None if single else ModalityTables.build(run.tokenizers, run.model.V)
  objective = modality_objective(run.cfg.loss, tables, len(data.source_names(run.cfg.data, 'train')))
  if run.cfg.privacy.epsilon and run.cfg.train.job == 'gpt':  # the number of units gives the real multiplier
    return private_training.private_objective(run.cfg, objective, 1.0)
  return objective


def nothing_before(run, state, batch):
  """No programs, and nothing in memory beside the state."""
  return {}, {}


# --------------------------------------------------------------------------------------- preferences


def pair_batch(run):
  """The batch of pairs, all documents of one in a row, with their reference."""
  count = PREFERENCE_LOSSES[run.cfg.preference.loss].documents
  return run.batch(count * run.length, True, **dict.fromkeys(REFERENCE[:count], np.float32))


def score_pairs(run, state, batch):
  """The program that scores pairs by the reference model, and in evaluations by the current one."""
  model = initial_model(run)
  held = total(state) + merged_bytes(run, state)  # the model is a part of it
  lowered = preferences.evaluate_pairs.lower(model, batch)
  return {'score pairs': Before(lowered, (model, batch), 0, max(0, held - total(model)))}, {}


# ------------------------------------------------------------------------------------------- rewards


def completion_batch(run):
  """The batch of scored completions."""
  batch = run.batch(0, True, **{f'{name}_B': np.float32 for name in policy.PER_ROW})
  wanted = {'reference_BT': run.cfg.grpo.kl > 0, 'sampled_BT': run.cfg.grpo.updates > 1}
  return batch | {name: batch['loss_mask_BT'] for name, is_wanted in wanted.items() if is_wanted}


def allowed_ids(run):
  """The ids that completions are made of, bool [V]."""
  return completions.build_grammar(run.tokenizers, run.model.V).table_NV[0]


def roll_out(run, state, batch):
  """Prefill and decode of the completions of a step, and their log-probabilities by the reference model."""
  cfg, rows = run.cfg.grpo, run.cfg.train.batch_size
  reference = initial_model(run) if cfg.kl else {}
  slots = prompt_batch.round_up_slots(run.length, run.model.context)
  longest = prompt_batch.round_up_prompt(run.length - cfg.max_new_tokens, slots)
  merged = merged_bytes(run, state)
  own = {} if policy.compares_with_base(run.cfg) else reference  # beside the state
  beside = total(state) + merged + total(own)
  prefill = sampling_programs.lower_prefill(run.model, run.mesh, rows // cfg.group, longest, slots)
  sampling = sample.SampleConfig(temperature=cfg.temperature)
  decode = sampling_programs.lower_decode(run.model, run.mesh, rows, slots, sampling)
  programs = {
    'prefill of completions': Before(*prefill, 1 / cfg.updates, beside),
    'decode of completions': Before(*decode, cfg.max_new_tokens / cfg.updates, beside),
  }
  rows = {name: x for name, x in batch.items() if name not in ('reference_BT', 'sampled_BT')}
  score = functools.partial(policy.log_probs.lower, temperature=cfg.temperature)
  if cfg.kl:
    held = total(state) + merged - total(reference) + total(own)  # the base is an argument of it
    lowered = score(reference, rows, allowed_ids(run))
    programs['reference model'] = Before(lowered, (reference, rows), 1 / cfg.updates, held)
  if cfg.updates > 1:
    model = initial_model(run)
    held = total(state) + merged - total(model) + total(own)
    programs['sampled model'] = Before(
      score(model, rows, allowed_ids(run)), (model, rows), 1 / cfg.updates, held
    )
  return programs, {'reference model': total(own)} if own else {}


# -------------------------------------------------------------------------------------- distillation


def distillation_batch(run):
  """The batch with the teacher's logits."""
  batch = run.batch()
  shape = (*batch['token_ids_BT'].shape, run.tokenizers.vocabulary.size)
  placed = jax.sharding.NamedSharding(run.mesh, sharding.activation_spec('BTV', shape))
  return batch | {distillation.LOGITS: jax.ShapeDtypeStruct(shape, np.float32, sharding=placed)}


def predict(run, state, batch):
  """The teacher's predictions. Its folder gives its size: ValueError without one."""
  folder, step = distillation.find_teacher(run.cfg.distil.teacher, run.tokenizers, run.length)
  model = distillation.teacher_config(folder)
  if run.model.kernel == 'blocks':  # also where cuDNN's library is missing
    model = dataclasses.replace(model, kernel='blocks')
  checkpoints = checkpoint.Checkpoints(folder / 'checkpoints')
  teacher = checkpoint.abstract_base(checkpoints, step, model, run.mesh)
  rows = {name: x for name, x in batch.items() if name != distillation.LOGITS}
  lowered = distillation.logits.lower(teacher, rows, size=run.tokenizers.vocabulary.size)
  return {'teacher': Before(lowered, (teacher, rows), 1, total(state))}, {'teacher': total(teacher)}


# -------------------------------------------------------------------------------------------- a table


class JobRow(NamedTuple):
  """How a job's programs are made without data."""

  job: type
  objective: Callable  # Run -> step.Objective
  batch: Callable  # Run -> the abstract batch
  before: Callable  # (Run, abstract state, batch) -> ({name: Before}, {name: bytes beside the step})


def step_of(run):
  """Return (Program of a run, its abstract batch)."""
  row = JOBS[run.cfg.train.job]
  return gpt_program(run.cfg, run.model, run.mesh, row.objective(run)), row.batch(run)


def notes(run):
  """Lines about what depends on the data."""
  cfg, lines = run.cfg, []
  if cfg.train.job == 'grpo':
    longest = run.length - cfg.grpo.max_new_tokens
    lines.append(
      f'completions are planned for prompts of up to {longest} tokens and as if each had '
      f'grpo.max_new_tokens={cfg.grpo.max_new_tokens}; the time of the reward on the host is not counted'
    )
  is_large = run.model.vocab >= target_places.LARGE and run.mesh.shape['sequence'] == 1
  if is_large and (cfg.train.job == 'dpo' or cfg.train.job == 'gpt' and cfg.data.has_whole_documents):
    lines.append('logits are planned for all places of a row: a run with targets in few of them needs less')
  return lines


def check_job(cfg):
  """Raise ValueError for a job that is not in the table, or for settings that it refuses."""
  if cfg.train.job not in JOBS:
    raise ValueError(
      f'train.job={cfg.train.job} cannot be planned, only {", ".join(JOBS)}\nfix: plan what reads its tokens'
    )
  JOBS[cfg.train.job].job.check(cfg)


JOBS = {
  'gpt': JobRow(language_model.LanguageModelJob, gpt_objective, Run.batch, nothing_before),
  'dpo': JobRow(
    preferences.PreferenceJob,
    lambda run: preferences.preference_objective(run.cfg.preference),
    pair_batch,
    score_pairs,
  ),
  'grpo': JobRow(
    policy.PolicyJob,
    lambda run: policy.policy_objective(run.cfg.grpo, allowed_ids(run)),
    completion_batch,
    roll_out,
  ),
  'distil': JobRow(
    distillation.DistillationJob,
    lambda run: distillation.distillation_objective(run.cfg.distil, gpt_objective(run)),
    distillation_batch,
    predict,
  ),
}
