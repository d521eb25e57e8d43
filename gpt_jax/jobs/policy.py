"""The job that trains a GPT on rewards of its own completions (GRPO); see base.Job.

Before each step the current weights sample a group of completions of each prompt; a function on the host
scores them, and the step raises the probability of those that are better than their group. With grpo.updates
above 1 as many steps share a batch of completions. The policy then leaves the one that sampled them, and the
ratio of their probabilities is clipped.

Letters: B completions, T tokens of a row, P prompts, G completions of each.
Sources: see rewards.py.
"""

import base64
import functools
import hashlib
import io
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import data, sample
from gpt_jax.cluster.batches import data_shard, to_devices
from gpt_jax.cluster.processes import fetch
from gpt_jax.data import mixture, templates
from gpt_jax.data.documents import Encoded
from gpt_jax.evaluation import metrics
from gpt_jax.evaluation.subject import document_rows
from gpt_jax.jobs import base, language_model, reward_files
from gpt_jax.jobs.rewards import ADVANTAGES, NORMALIZERS, RATIOS, REWARDS, clipped, exact, k3
from gpt_jax.model import adapters, moe, param_trees
from gpt_jax.sampling import completions, prompts
from gpt_jax.sampling.samplers import NEG_INF
from gpt_jax.step import Objective, count_tokens, eval_model, loss_fn
from gpt_jax.training import checkpoint

ROLLOUT = 2**31 - 1  # folded into the key of a step: its micro-batches fold in small numbers
PER_ROW = ('reward', 'reward_spread', 'right', 'advantage')


class Task(NamedTuple):
  """A question, as text and as prompt, and its right answer."""

  question: str
  prompt: object  # prompt_batch.Prompt
  answer: str


def read_tasks(job, split):
  """Return the Tasks of a split; ValueError for a source without question and answer in text."""
  tasks = []
  for name in data.source_names(job.cfg.data, split):
    template = job.cfg.data.mixture[name].template
    if templates.signature(template) != (('text',), ('text',)):
      raise ValueError(
        f'data.mixture.{name}.template={template!r} has no prompt and answer in text\n'
        "fix: write '{question} -> {answer}'"
      )
    sides = [
      templates.split(pieces) for _, pieces in mixture.open_split(job.cfg.data, name, split).examples()
    ]
    beginnings = [[*condition, templates.Piece('arrow')] for condition, _ in sides]
    questions, answers = ([''.join(p.value for p in side[i]) for side in sides] for i in (0, 1))
    tasks += map(Task, questions, prompts.encode(job, beginnings, 'text'), answers)
  return tasks


def sampled_logits(allowed_V, temperature):
  """Return the function from logits to those that completions are sampled from.

  Without the mask the ids that are never sampled have a gradient of noise alone. Their probabilities drift
  up, and the gradient with them, until answers get worse.
  """
  return lambda logits_BTV: jnp.where(allowed_V, logits_BTV / temperature, NEG_INF)


def policy_objective(cfg, allowed_V):
  """Return the Objective of scored completions: the mean over the completions of the step.

  allowed_V: the ids that completions are made of.
  """
  restrict = sampled_logits(allowed_V, cfg.temperature)

  def weigh(batch, hyper):
    return batch, jnp.float32(batch['advantage_B'].shape[0])

  def loss(model, probe, batch, weight, hyper, key):
    mask_BT = batch['loss_mask_BT']
    _, aux, nats_BT = loss_fn(model, batch, mask_BT.sum(), hyper, key, restrict=restrict)
    values, share = policy_values(cfg, batch, -nats_BT), mask_BT.shape[0] / weight
    values = {name: x_B.sum() / weight for name, x_B in values.items()}
    return values['loss'] + moe.experts_loss(aux, hyper) * share, values

  return Objective(weigh, loss, count_tokens)


def policy_values(cfg, batch, log_probs_BT):
  """Return {name: value_B} of completions: the loss, and what is logged; cfg: GrpoConfig."""
  mask_BT = batch['loss_mask_BT']
  tokens_B = mask_BT.sum(1)
  advantage_B1, values = batch['advantage_B'][:, None], {}
  if cfg.updates == 1:
    ratio_BT = jnp.exp(log_probs_BT - jax.lax.stop_gradient(log_probs_BT))  # 1, with a gradient
    loss_BT = -ratio_BT * advantage_B1
  else:
    ratio_BT = jnp.exp(RATIOS[cfg.ratio](log_probs_BT - batch['sampled_BT'], mask_BT))
    loss_BT = -clipped(cfg, ratio_BT, advantage_B1)
    is_clipped_BT = -loss_BT < ratio_BT * advantage_B1
    values['clipped_tokens'] = jnp.where(is_clipped_BT, mask_BT, 0.0).sum(1) / jnp.maximum(tokens_B, 1)
  if cfg.kl:
    kl_BT = k3(batch['reference_BT'] - log_probs_BT)
    loss_BT += cfg.kl * kl_BT
    values['kl'] = (kl_BT * mask_BT).sum(1) / jnp.maximum(tokens_B, 1)
  divisor_B = NORMALIZERS[cfg.normalize](cfg, jnp.maximum(tokens_B, 1))
  values['loss'] = (loss_BT * mask_BT).sum(1) / divisor_B
  logged = {name: batch[f'{name}_B'] for name in PER_ROW if name != 'advantage'}
  return values | logged | {'completion_tokens': tokens_B}


def pack(arrays):
  """Return {name: array} as a string of JSON, exact; `unpack` reads it."""
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  return base64.b64encode(file.getvalue()).decode()


def unpack(text):
  """Return the {name: array} of a string of `pack`."""
  with np.load(io.BytesIO(base64.b64decode(text))) as arrays:
    return dict(arrays)


def saved_completions(cfg, length, extra):
  """Return (step, {name: array}) of the completions in a checkpoint; None if a run does not share them.

  A branch may have another batch, and rows of another length.
  """
  if cfg.grpo.updates == 1 or 'completions' not in extra:
    return None
  arrays = unpack(extra['completions']['arrays'])
  fits = arrays['token_ids_BT'].shape == (cfg.train.batch_size, length)
  fits = fits and ('reference_BT' in arrays) == bool(cfg.grpo.kl)
  return (extra['completions']['step'], arrays) if fits else None


def compares_with_base(cfg):
  """Whether the model that grpo.kl compares with is the frozen base, which is in memory already."""
  return bool(cfg.adapter.rank and not cfg.adapter.train and not cfg.adapter.base_dtype)


@functools.partial(jax.jit, static_argnames='rows')
def rollout_keys(key, step, rows):
  """Return a PRNG key for each completion of a step."""
  key = jax.random.fold_in(jax.random.fold_in(key, step), ROLLOUT)
  return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(rows))


@functools.partial(jax.jit, static_argnames='temperature')
def log_probs(model, batch, allowed_V, *, temperature):
  """Return the log-probabilities of the targets of a batch, as sampled, without dropout."""
  model = param_trees.cast(model, model.cfg.dtype)
  restrict = sampled_logits(allowed_V, temperature)
  return -loss_fn(model, batch, jnp.float32(1), {}, None, restrict=restrict)[2]


class PolicyJob(language_model.LanguageModelJob):
  """A GPT in training on rewards."""

  scores, scored_tasks = ('valid_accuracy',), ('grpo',)
  logged = ('reward', 'reward_spread', 'right', 'completion_tokens', 'kl', 'clipped_tokens')
  reference = None  # see checkpoint.refer_to_base: the initial model, where grpo.kl compares with it
  reference_model = None  # None with a reference: the frozen base, see compares_with_base
  completions = None  # (step that they were sampled for, their batch), for the steps that share them

  def build_loader(self):
    """Return the loader of prompts, each as often in a row as it has completions; read the held-out ones."""
    cfg = self.cfg
    is_row = cfg.grpo.reward in REWARDS
    self.reward_file = None if is_row else reward_files.RewardFile(cfg.grpo.reward, self.workdir)
    self.reward = REWARDS[cfg.grpo.reward] if is_row else self.reward_file
    splits = [split for split in ('train', 'valid') if data.source_names(cfg.data, split)]
    self.tasks = {split: read_tasks(self, split) for split in splits}
    longest = max(len(task.prompt.ids) for tasks in self.tasks.values() for task in tasks)
    if longest + cfg.grpo.max_new_tokens > self.length:
      raise ValueError(
        f'grpo.max_new_tokens={cfg.grpo.max_new_tokens} after a prompt of {longest} tokens does not fit rows '
        f'of {self.length}\nfix: raise train.length (model.context), or lower max_new_tokens'
      )
    train, group, updates = self.tasks['train'], cfg.grpo.group, cfg.grpo.updates
    size = cfg.train.batch_size
    self.reward(cfg.grpo, train[0].question, train[0].answer, train[0].answer)  # fails now, not at step 1
    order = data.epoch_shuffle(cfg.train.seed, len(train))
    content = [[list(map(int, task.prompt.ids)), task.answer] for task in train]
    fingerprint = dict(
      prompts=len(train),
      content=hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
      tokenizer=self.tokenizers.hash,
      batch_size=size,
      group=group,
      seed=cfg.train.seed,
      **({'updates': updates} if updates > 1 else {}),
      **({'reward': self.reward_file.digest} if self.reward_file else {}),
    )
    return data.ItemLoader(
      cfg.data,
      lambda numbers: {'prompt_B': np.asarray(numbers, np.int32)},
      lambda place: order((place // (size * updates) * size + place % size) // group),
      batch_size=size,
      share=data_shard(self.mesh),
      fingerprint=fingerprint,
    )

  @classmethod
  def check(cls, cfg):
    """Raise ValueError for settings that this job cannot honor."""
    super().check(cfg)
    if not (cfg.train.init_from or cfg.train.branch_from):
      raise ValueError(
        'train.job=grpo learns from its own completions, and there is no model to make them\n'
        'fix: name a trained run in train.init_from'
      )
    base.check_pooled(cfg)
    base.check_settings(cfg, base.PREPARED, 'whose batches are sampled between two steps')
    if cfg.train.batch_size % cfg.grpo.group:
      raise ValueError(
        f'grpo.group={cfg.grpo.group} does not divide train.batch_size={cfg.train.batch_size}\n'
        'fix: make batch_size prompts times group'
      )

  def write_files(self):
    """Write tokenizer/ and the file of a user's reward into the run folder."""
    super().write_files()
    if self.reward_file:
      self.reward_file.write_copy(self.workdir)

  def training_places(self):
    """Return None: the objective computes logits at all places."""

  def build_objective(self):
    """Return the objective of scored completions."""
    self.allowed_V = completions.build_grammar(self.tokenizers, self.model_cfg.V).table_NV[0]
    return policy_objective(self.cfg.grpo, self.allowed_V)

  def open_valid_caches(self):
    """Return {}: tasks open the token caches that they need."""
    return {}

  def example_batch(self):
    """Return a batch to trace the step with."""
    size = self.cfg.train.batch_size
    batch = self.rows([self.tasks['train'][0].prompt.ids] * size, [[0]] * size)
    if self.cfg.grpo.kl:
      batch['reference_BT'] = np.zeros_like(batch['loss_mask_BT'])
    if self.cfg.grpo.updates > 1:
      batch['sampled_BT'] = np.zeros_like(batch['loss_mask_BT'])
    return batch | {f'{name}_B': np.zeros(size, np.float32) for name in PER_ROW}

  def rows(self, prompt_ids, completion_ids):
    """Return a batch with a completion a row, whose tokens alone carry loss."""
    pairs = zip(prompt_ids, completion_ids, strict=True)
    encoded = [
      Encoded(np.array([*p, *c]), targets=np.repeat(np.uint8([0, 1]), (len(p), len(c)))) for p, c in pairs
    ]
    row_fields = data.RowFields.of(self.cfg.data, self.tokenizers)
    batch = document_rows(encoded, len(encoded), self.length, row_fields)
    place_T, first_B = np.arange(self.length), np.array([len(prompt) - 1 for prompt in prompt_ids])
    end_B = np.array([len(e.ids) - 1 for e in encoded])
    mask_BT = (place_T >= first_B[:, None]) & (place_T < end_B[:, None])
    return batch | {'loss_mask_BT': mask_BT.astype(np.float32)}

  def prepare_batch(self, batch, state):
    """Return the batch of completions for this step, new ones at each grpo.updates steps."""
    if self.cfg.grpo.updates == 1:
      return self.sample_completions(batch, state)
    step = int(fetch(state.step))
    first = step - step % self.cfg.grpo.updates
    if self.completions is None or self.completions[0] != first:
      self.completions = first, self.sample_completions(batch, state)
    return self.completions[1]

  def sample_completions(self, batch, state):
    """Return the batch of completions of these prompts by the weights of `state`, with their advantages."""
    cfg = self.cfg.grpo
    tasks = [self.tasks['train'][n] for n in fetch(batch['prompt_B'])[:: cfg.group]]
    keys_B = rollout_keys(state.key, state.step, len(tasks) * cfg.group)
    model = adapters.merge(state.frozen, state.model)
    groups = self.complete(model, tasks, cfg.temperature, cfg.group, keys_B)
    texts = [self.texts(task, group) for task, group in zip(tasks, groups, strict=True)]
    score = lambda reward: [[reward(cfg, *pair) for pair in pairs] for pairs in texts]
    rewards, right = score(self.reward), score(exact)
    rewards_PG = np.array(rewards, np.float32)
    spread_PG = np.broadcast_to(rewards_PG.std(1, keepdims=True), rewards_PG.shape)
    values = rewards_PG, spread_PG, np.array(right), ADVANTAGES[cfg.advantage](rewards_PG)
    prompt_ids = [task.prompt.ids for task in tasks for _ in range(cfg.group)]
    whole = self.rows(prompt_ids, [ids for group in groups for ids in group])
    whole |= {f'{n}_B': np.float32(x).ravel() for n, x in zip(PER_ROW, values, strict=True)}
    rows = self.place(whole)
    score = functools.partial(log_probs, batch=rows, allowed_V=self.allowed_V, temperature=cfg.temperature)
    values = {}
    if cfg.kl:
      values['reference_BT'] = score(state.frozen if self.reference_model is None else self.reference_model)
    if cfg.updates > 1:
      values['sampled_BT'] = score(model)
    return rows | values

  def place(self, whole):
    """Return the batch of all processes on the mesh."""
    index, count = data_shard(self.mesh)
    own = self.cfg.train.batch_size // count
    return to_devices({name: x[index * own : (index + 1) * own] for name, x in whole.items()}, self.mesh)

  def complete(self, model, tasks, temperature, count, keys_B=None):
    """Return for each Task the token ids of `count` completions, eos included."""
    fields = dict(max_new_tokens=self.cfg.grpo.max_new_tokens, temperature=temperature, num_samples=count)
    some, sampling = [task.prompt for task in tasks], sample.SampleConfig(**fields)
    groups = completions.generate_ids(model, self.tokenizers, some, sampling, keys_B=keys_B)
    return [[ids for ids, _ in group] for group in groups]

  def texts(self, task, group):
    """Return [(question, text, right answer)] of a Task's completions; equal ones are decoded once."""
    texts = {tuple(ids): '' for ids in group}
    for ids in texts:
      texts[ids] = completions.decode_continuation(self.tokenizers, task.prompt.ids, ids)
    return [(task.question, texts[tuple(ids)], task.answer) for ids in group]

  def pop_scalars(self, values):
    """Remove rewards and what belongs to them from {name: values by step}; return their means."""
    names = [name for name in values if name in ('kl', 'clipped_tokens', 'completion_tokens', *PER_ROW)]
    return {name: float(values.pop(name).mean()) for name in names}

  def load_initial_weights(self, state, folder, step):
    """Return the state with the parameters of train.init_from, which grpo.kl compares with."""
    state = super().load_initial_weights(state, folder, step)
    if self.cfg.grpo.kl:
      self.set_reference(checkpoint.refer_to_base(checkpoint.Checkpoints(folder / 'checkpoints'), step))
    return state

  def load_frozen(self, state, extra):
    """Return the state with the frozen base of adapters; load what grpo.kl compares with, and completions."""
    if saved := saved_completions(self.cfg, self.length, extra):
      self.completions = saved[0], self.place(saved[1])
    if self.cfg.grpo.kl:
      if 'reference' not in extra:
        raise ValueError(
          f'grpo.kl={self.cfg.grpo.kl} compares with the initial model, and the run had none\n'
          'fix: start in another --workdir with train.init_from, or use grpo.kl=0.0'
        )
      self.set_reference(extra['reference'])
    return super().load_frozen(state, extra)

  def set_reference(self, reference):
    """Load the model that a reference of `checkpoint.refer_to_base` names, unless it is the frozen base."""
    checkpoints, step = checkpoint.open_base(reference, self.cfg.checkpoint.verify), reference['step']
    model = checkpoint.abstract_base(checkpoints, step, self.model_cfg, self.mesh)
    if model.cfg.vocab != self.model_cfg.vocab:
      raise ValueError(
        f'grpo.kl={self.cfg.grpo.kl} compares with a model of {model.cfg.vocab} ids, and this one has '
        f'{self.model_cfg.vocab}\nfix: train the new ids first, or use grpo.kl=0.0'
      )
    self.reference = reference
    if not compares_with_base(self.cfg):
      self.reference_model = checkpoints.restore_model(step, model)

  def checkpoint_extra(self):
    """Return what a checkpoint needs: also the reference to the initial model, and completions in use."""
    extra = super().checkpoint_extra() | ({'reference': self.reference} if self.reference else {})
    if self.completions:
      step, batch = self.completions
      extra['completions'] = {'step': step, 'arrays': pack({n: fetch(x) for n, x in batch.items()})}
    return extra

  def validate(self, state, limit):
    """Return ({valid_accuracy}, rows) of greedy answers to held-out prompts; limit: tokens, 0 = all."""
    tasks = self.tasks.get('valid', [])
    count = min(len(tasks), max(1, limit // self.length)) if limit else len(tasks)
    if not count:
      return {}, []
    model, size, right = eval_model(state), self.cfg.train.batch_size, []
    for first in range(0, count, size):  # the last batch is filled up: another size would compile again
      some = [tasks[min(n, count - 1)] for n in range(first, first + size)]
      groups = self.complete(model, some, 0.0, 1)
      texts = [self.texts(task, group)[0] for task, group in zip(some, groups, strict=True)]
      right += [exact(self.cfg.grpo, *text) for text in texts]
      self.raise_if_preempted()
    right_N = np.array(right[:count])
    row = dict(task='grpo', metric='accuracy', value=float(right_N.mean()), source='all', split='valid')
    row |= {'n': count, 'interval': list(metrics.bootstrap_mean(right_N))}
    return {'valid_accuracy': row['value']}, [row]
