"""The job that trains a GPT: its tokenizers, data, program, evaluation and samples; see base.Job."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import data
from gpt_jax.cluster.batches import check_batch, data_shard
from gpt_jax.cluster.sharding_table import summary
from gpt_jax.data import stages, templates
from gpt_jax.data.clean import cleaning
from gpt_jax.data.templates import is_chat
from gpt_jax.evaluation import evaluate, format, panels, predictions
from gpt_jax.evaluation.subject import Subject
from gpt_jax.evaluation.tasks import perplexity
from gpt_jax.jobs import base, extended_model, private_training, run_tokenizers
from gpt_jax.jobs.modality_objective import modality_objective, pop_means
from gpt_jax.model import adapters, continuous, costs, param_trees
from gpt_jax.model.kernels import choice, target_places
from gpt_jax.runs import hardware
from gpt_jax.sampling import completions, prompt_batch
from gpt_jax.step import eval_model, gpt_program, params_of
from gpt_jax.tokenizers import Tokenizers
from gpt_jax.tokenizers.modality_tables import ModalityTables
from gpt_jax.training import checkpoint, encoders
from gpt_jax.training.privacy import settings

log = logging.getLogger(__name__)


def resolve_model(cfg, toks):
  """Return cfg.model with the vocabulary's size and every `auto` resolved for this machine.

  Raises ValueError if the tokenizers make ids or inputs that the model does not have.
  """
  size = toks.vocabulary.size
  vocab = cfg.model.vocab or size
  if cfg.train.init_from or cfg.train.branch_from:  # its vocabulary may have been extended
    vocab = max(vocab, size)
  if size > vocab:
    raise ValueError(
      f'the tokenizer has {size} ids and model.vocab={cfg.model.vocab}\n'
      f'fix: set model.vocab=0 to follow the tokenizer, or at least {size}'
    )
  if cfg.model.param_dtype == 'float16':
    raise ValueError(
      'model.param_dtype=float16 cannot be trained: small gradients would become zero\n'
      'fix: set model.param_dtype=float32, to which the weights of train.init_from are converted'
    )
  length = cfg.train.length or cfg.model.context
  if length > cfg.model.context:
    raise ValueError(
      f'train.length={length} is longer than model.context={cfg.model.context}\n'
      'fix: raise model.context or lower train.length'
    )
  own = {*toks.places, *(['patches'] if toks.makes_patches else [])}  # rows have these always
  kinds = run_tokenizers.template_kinds(cfg) | own
  run_tokenizers.check_flow(cfg, toks)
  for kind in continuous.KINDS:
    if kind in kinds and toks.reader(kind) is None:
      raise ValueError(
        f'a template of data.mixture has {kind}, and the tokenizers of this run make none\n'
        f'fix: set {templates.MAKERS[kind]} in the config, or use another template'
      )
  towers = {tower.kind: tower for tower in run_tokenizers.towers(cfg, toks, kinds)}
  width = lambda kind: towers[kind].output_width if kind in towers else toks.reader(kind).feature_width
  widths = {continuous.KINDS[kind].setting: width(kind) for kind in toks.vector_kinds(kinds)}
  widths['encoders'] = tuple(tower.to_json() for tower in towers.values())
  if toks.makes_patches:
    widths['patch_id'] = toks.vocabulary.special('patch')
  return dataclasses.replace(cfg.model, vocab=vocab, **widths).resolved()


def resolve_prompts(cfg, toks):
  """Return train.sample_prompts.

  The default is an empty prompt where the alphabet has no newline, and none where every source has a
  condition or turns: the samples of the sources show such a model.
  """
  is_default = cfg.train.sample_prompts == type(cfg.train).sample_prompts
  is_text = lambda source: not data.signature(source.template)[0] and not is_chat(source.template)
  if is_default and not any(map(is_text, cfg.data.mixture.values())):
    return ()
  for text in cfg.train.sample_prompts:
    try:
      toks.encode_text(text)
    except ValueError as error:
      if is_default:
        return ('',)
      cause = str(error).split('\n')[0]
      raise ValueError(
        f'train.sample_prompts has {text!r}, and {cause}\nfix: leave the prompt out, or use other characters'
      ) from None
  return cfg.train.sample_prompts


class LanguageModelJob(base.Job):
  """A GPT in training; base.Job says when each method is called."""

  unit, scored_tasks = 'tokens', ('perplexity',)
  base = None  # see checkpoint.refer_to_base, of what is frozen
  private = None  # private_training.PrivateTraining, with privacy.epsilon
  scores, logged = ('valid_loss', 'valid_bits_per_byte'), ('moe_balance', 'moe_z', 'moe_dropped')

  def __init__(self, cfg, workdir, mesh):
    """Build and check everything; write nothing but token caches."""
    self.cfg, self.workdir, self.mesh = cfg, workdir, mesh
    self.check(cfg)
    panels.check_beams(cfg)  # now, not at the first sample
    self.tokenizers = run_tokenizers.build(cfg, workdir)
    run_tokenizers.check_use(cfg, self.tokenizers)
    self.model_cfg = resolve_model(cfg, self.tokenizers)
    self.length = cfg.train.length or self.model_cfg.context
    check_batch(cfg.train.batch_size // cfg.train.accumulate, self.length, mesh)
    self.sample_prompts = resolve_prompts(cfg, self.tokenizers)
    begin = completions.begin_special(cfg, self.tokenizers)
    prompts = [completions.encode_prompt(self.tokenizers, text, begin) for text in self.sample_prompts]
    prompt_batch.check_prompts(prompts, 1, self.model_cfg)  # now, not at the first sample
    self.loader = self.build_loader()
    self.places = self.training_places()
    self.program = gpt_program(cfg, self.model_cfg, mesh, self.build_objective())
    self.flops = costs.flops_per_token(self.model_cfg, self.length, cfg.adapter)
    self.step_flops = costs.flops_per_token(self.model_cfg, self.length, cfg.adapter, self.places)  # for MFU
    self.parameters = costs.count_params(self.model_cfg)
    self.caches = self.open_valid_caches()  # also read by tasks, as those of Subject
    unscored = Subject.of_run(cfg, None, self.tokenizers, mesh, workdir, caches=self.caches)
    for source, split in list(self.caches):
      perplexity.check_targets(unscored, source, split)
    evaluate.check_beams(self, evaluate.check_tasks(self, cfg.train.tasks))  # now, not after the last step

  @classmethod
  def check(cls, cfg):
    """Raise ValueError for settings that this job cannot honor."""
    settings.check(cfg)
    if unknown := [task for task in cfg.train.tasks if task not in (*evaluate.TASKS, 'all')]:
      rows = ', '.join(evaluate.TASKS)
      raise ValueError(f'train.tasks has {unknown[0]!r}, not a task\nfix: use one of {rows}, or all')
    if cfg.adapter.freezes and not (cfg.train.init_from or cfg.train.branch_from):
      raise ValueError(
        f'adapter.rank={cfg.adapter.rank} and adapter.train={cfg.adapter.train} need a trained model\n'
        'fix: name its run folder in train.init_from'
      )

  def build_loader(self):
    """Return the loader of the training batches."""
    index, count = data_shard(self.mesh)
    fields = dict(
      split='train',
      batch_size=self.cfg.train.batch_size,
      length=self.length,
      seed=self.cfg.train.seed,
      cache_dir=self.workdir / 'cache',
      process_index=index,
      process_count=count,
    )
    if self.cfg.privacy.epsilon:
      self.private = private_training.PrivateTraining(self.cfg, self.tokenizers, fields)
      return self.private.loader
    return data.Loader(self.cfg.data, self.tokenizers, **fields)

  def build_objective(self):
    """Return the step.Objective."""
    single = len(self.tokenizers.modalities) == 1
    tables = None if single else ModalityTables.build(self.tokenizers, self.model_cfg.V)
    objective = modality_objective(self.cfg.loss, tables, len(self.loader.names), self.places)
    return self.private.objective(objective) if self.private else objective

  def training_places(self):
    """Return `places` of step.loss_fn in training, where alone the step computes logits; None: everywhere."""
    return self.target_places(self.loader)

  def target_places(self, rows):
    """Return `places` of step.loss_fn, of what has a `most_targets`."""
    is_small = self.model_cfg.vocab < target_places.LARGE
    if is_small or self.cfg.loss.restrict or self.mesh.shape['sequence'] > 1:
      return None
    return target_places.round_count(rows.most_targets(), self.length, self.model_cfg.vocab)

  def open_valid_caches(self):
    """Return {(source, 'valid'): token cache}; ValueError now for what could not be scored later."""
    caches, form = {}, data.RowFields.of(self.cfg.data, self.tokenizers)
    for name in data.source_names(self.cfg.data, 'valid'):
      if self.cfg.data.mixture[name].is_benchmark:
        continue
      cache = data.token_cache(self.cfg.data, name, self.tokenizers, 'valid', self.workdir / 'cache')
      form.refuse_cuts(cache, self.length)
      if shared := data.count_shared_media(cache, self.loader.caches.values()):
        log.warning(
          'data.mixture.%s: %d of its %d validation images and sounds are trained on too, by this '
          'source or by others; valid_keep or valid_path can keep them apart',
          name,
          shared,
          len(cache.media_hashes),
        )
      is_cut = name not in self.loader.caches or len(self.loader.caches[name].offsets) == 1
      if len(cache.offsets) == 1 and is_cut and 'valid_fraction' in cache.entries:
        separator = self.cfg.data.mixture[name].separator
        log.warning(
          'data.mixture.%s: validation data are the last %.3g%% of one text; if it is sorted, set %s',
          name,
          100 * self.cfg.data.valid_fraction,
          f'another separator than {separator!r}, which does not occur'
          if separator
          else 'separator or valid_path',
        )
      caches[name, 'valid'] = cache
    return caches

  def cleaning(self):
    """Return what `clean` and `scrub` did to the training data of each source."""
    caches, counts = getattr(self.loader, 'caches', {}), {}
    for name, cache in caches.items():
      removed, replaced = cleaning.removed(cache.notes), cleaning.replaced(cache.notes)
      if removed or replaced:
        counts[name] = {'removed': removed, 'replaced': replaced}
    return counts

  def example_batch(self):
    """Return a batch to trace the step with."""
    if self.private:
      return self.private.example_batch()
    rows = next(iter(self.loader.rows.values()))
    batch = rows.gather(np.zeros(self.cfg.train.batch_size, np.int64))
    if len(self.loader.names) > 1:
      batch['source_ids_B'] = np.zeros(self.cfg.train.batch_size, np.int32)
    return batch

  def load_initial_weights(self, state, folder, step):
    """Return the state with the parameters of train.init_from, in the moving average too."""
    old = Tokenizers.load(folder / 'tokenizer').vocabulary.size
    new, abstract = self.tokenizers.vocabulary.size, self.program.abstract
    checkpoints = checkpoint.Checkpoints(folder / 'checkpoints')
    if abstract.frozen is None and old == new and not self.model_cfg.encoders:
      return self.with_model(state, checkpoints.restore_model(step, abstract.model, self.cfg))
    base = checkpoint.load_base(checkpoints, step, self.model_cfg, self.mesh)
    pretrained = encoders.weights(self.model_cfg, base)
    if abstract.frozen is not None:
      self.check_new_ids(old, new)
      self.base = checkpoint.refer_to_base(checkpoints, step)
      state = state._replace(frozen=adapters.take_base(base, abstract.frozen, pretrained))
    model = extended_model.extend(params_of(base) | pretrained, state.model, old, new, state.frozen)
    if abstract.frozen is not None:
      model = adapters.initialize_magnitudes(state.frozen, model)
    model = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), model, abstract.model)
    return self.with_model(state, model)

  def load_encoders(self, state):
    """Return the state of a new model with the weights of the encoders in it."""
    pretrained, frozen = encoders.weights(self.model_cfg), self.program.abstract.frozen
    if frozen is not None:
      state = state._replace(frozen=adapters.take_base(None, frozen, pretrained))
    if not pretrained:
      return state
    return self.with_model(state, extended_model.extend(pretrained, state.model, 0, 0, state.frozen))

  def with_model(self, state, model):
    """Return the state with these parameters, in the moving average too."""
    opt_state = state.opt_state
    if opt_state.ema is not None:
      copies = {path: p.astype(jnp.float32, copy=True) for path, p in params_of(model).items()}
      opt_state = opt_state._replace(ema=copies)
    return state._replace(model=model, opt_state=opt_state)

  def check_new_ids(self, old, new):
    """Raise ValueError if the tables of new ids would stay frozen.

    They may where no template has these codes: pictures as patches and sounds as frames need no rows.
    """
    vocabulary, kinds = self.tokenizers.vocabulary, run_tokenizers.template_kinds(self.cfg)
    new_kinds = {vocabulary.kind(index).rstrip('0123456789') for index in range(old, new)}
    if new_kinds <= {'image', 'audio'} and not kinds & {*new_kinds, 'codes', 'parts', 'chat'}:
      return
    tables = {'embed_VD'} if self.model_cfg.tied_head else {'embed_VD', 'head_VD'}
    if old < new and (frozen := sorted(tables - self.program.abstract.model.keys())):
      raise ValueError(
        f'{new - old} ids are new and the rows of {", ".join(frozen)} are frozen\n'
        f'fix: train them, with --config.adapter.train="{tuple(sorted(tables))}"'
      )

  def load_frozen(self, state, extra):
    """Return the state with the frozen base that a checkpoint's `extra` names."""
    self.base, frozen = extra.get('base'), self.program.abstract.frozen
    if frozen is None:
      return state
    rest = self.mesh, frozen, self.cfg.checkpoint.verify
    return state._replace(frozen=checkpoint.load_frozen(self.base, self.model_cfg, *rest))

  def write_files(self):
    """Write tokenizer/ into the run folder."""
    if not (self.workdir / 'tokenizer' / 'vocabulary.json').exists():
      self.tokenizers.save(self.workdir / 'tokenizer')

  def checkpoint_extra(self):
    """Return what a checkpoint needs to be used without its run folder."""
    return {
      **continuous.to_extra(self.model_cfg),
      'tokenizer': checkpoint.pack_folder(self.workdir / 'tokenizer'),
      **({'base': self.base} if self.base else {}),
    }

  def provenance(self):
    """Return the hash of the tokenizers that made the ids."""
    return {'tokenizer': self.tokenizers.hash} | ({'privacy': self.private.statement} if self.private else {})

  def describe(self):
    """Return one line: parameters, ids, FLOPs, hardware, batch, attention kernel, sharded state, stages."""
    cfg = self.cfg
    peak, source = hardware.peak_flops()
    counts = {
      name: int((self.tokenizers.modality_V()[: self.tokenizers.vocabulary.size] == m).sum())
      for m, name in enumerate(self.tokenizers.modalities)
    }
    ids = ', '.join(f'{count:,} {name} ids' for name, count in counts.items())
    with jax.set_mesh(self.mesh):
      kernel = choice.describe_choice(self.model_cfg, self.example_batch(), self.length)
    plan = cfg.data.stages, cfg.data.mixture, cfg.train.batch_size, cfg.train.steps
    part_of_mixture = stages.describe(*plan, self.loader.state().get('origin'))
    rows = cfg.train.batch_size * self.documents_per_row(cfg)
    state = f', state of {summary(self.program.abstract, self.mesh)}' if self.mesh.size > 1 else ''
    trained = param_trees.count(self.program.abstract.model)
    is_part = self.program.abstract.frozen is not None
    part = f' ({trained:,} of them and of adapters are trained)' if is_part else ''
    if cfg.adapter.base_dtype:
      base_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.program.abstract.frozen))
      part += f' on a base of {base_bytes / 1e6:,.1f} MB, its blocks in {cfg.adapter.base_dtype}'
    return (
      f'{self.parameters:,} parameters{part}, {ids}, {self.step_flops["full"] / 1e6:.1f} MFLOP a token, '
      f'{hardware.name()} (peak {peak / 1e12:.2f} TFLOP/s each: {source}), '
      f'{rows} x {self.length} tokens a step, '
      f'attention {kernel}{state}{", " + self.private.describe() if self.private else ""}'
      f'{", " if part_of_mixture else ""}{part_of_mixture}'
    )

  def pop_scalars(self, values):
    """Remove sums by modality and source from {name: array [steps, ...]}; return their means."""
    return pop_means(values, self.tokenizers.modalities, self.loader.names)

  def utilization(self, per_second):
    """Return MFU, throughput over the hardware's peak, counting full or causal attention."""
    peak = hardware.peak_flops()[0] * self.mesh.size
    names = {'mfu': 'full', 'mfu_causal': 'causal'} if peak else {}
    return {name: per_second * self.step_flops[convention] / peak for name, convention in names.items()}

  def subject(self, state):
    """Return the current model as evaluation tasks take it."""
    fields = dict(caches=self.caches, raise_if_preempted=self.raise_if_preempted)
    run = (self.cfg, eval_model(state), self.tokenizers, self.mesh, self.workdir)
    return Subject.of_run(*run, **fields)

  def validate(self, state, limit):
    """Return ({valid_loss: mean over sources, valid_loss/SOURCE, valid_bits_per_byte}, rows)."""
    rows = evaluate.run_tasks(self.subject(state), ('perplexity',), limit=limit)
    values = lambda metric: {
      row['source']: row['value'] for row in rows if row['metric'] == metric and 'modality' not in row
    }
    nats, bits = values('nats_per_token') | values('loss_per_target'), values('bits_per_byte')
    scores = {'valid_loss': float(np.mean(list(nats.values())))} if nats else {}
    if len(nats) > 1:
      scores |= {f'valid_loss/{source}': value for source, value in nats.items()}
    if nats and len(bits) == len(nats):
      scores['valid_bits_per_byte'] = float(np.mean(list(bits.values())))
    return scores, rows

  def samples(self, state):
    """Yield continued prompts and completions of validation conditions: (content, name, suffix)."""
    subject = self.subject(state)
    if self.sample_prompts:
      yield panels.continue_prompts(subject, self.sample_prompts), '', '.txt'
    yield from panels.sample_conditions(subject)

  def run_tasks(self, state, limit):
    """Return rows of train.tasks on `limit` examples a source, without perplexity: see `validate`."""
    rows = evaluate.run_tasks(self.subject(state), self.cfg.train.tasks, limit=limit)
    return [row for row in rows if row['task'] != 'perplexity']

  def finish(self, state, say):
    """Run train.tasks, keep their predictions and return their rows."""
    subject = self.subject(state)
    if self.cfg.train.tasks and jax.process_index() == 0:
      files = predictions.PredictionFiles(self.workdir, self.cfg.train.steps, {})
      subject = dataclasses.replace(subject, predictions=files)
    rows = evaluate.run_tasks(subject, self.cfg.train.tasks)
    for line in format.summary_lines(rows):
      say(line)
    return rows
