"""The GPT as something to train: its tokenizers, data, program, evaluation and samples.

What train.Training asks of a job; codec.py is the other one.
"""

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import data, losses, tokenizers
from gpt_jax.cluster.sharding_table import summary
from gpt_jax.data import templates
from gpt_jax.evaluation import evaluate, panels
from gpt_jax.model import attention, gpt
from gpt_jax.runs import hardware, records, run_folder
from gpt_jax.sampling import completions, prompt_batch
from gpt_jax.sharding import check_batch, data_shard
from gpt_jax.step import eval_model, gpt_program, params_of
from gpt_jax.training import checkpoint

log = logging.getLogger(__name__)

# ---------------------------------------------------------------------------- what it is made of


def resolve_model(cfg, toks):
  """cfg.model with the vocabulary's size and every `auto` decided for this machine.

  Raises ValueError when the tokenizer has ids that the model has no row for.
  """
  size = toks.vocabulary.size
  if cfg.model.vocab and size > cfg.model.vocab:
    raise ValueError(
      f'the tokenizer has {size} ids and model.vocab={cfg.model.vocab}\n'
      f'fix: set model.vocab=0 to follow the tokenizer, or at least {size}'
    )
  length = cfg.train.length or cfg.model.context
  if length > cfg.model.context:
    raise ValueError(
      f'train.length={length} is longer than model.context={cfg.model.context}\n'
      'fix: raise model.context or lower train.length'
    )
  read = {kind for both in signatures(cfg) for kinds in both for kind in kinds}
  for kind, tokenizer in (('patches', toks.image), ('frames', toks.audio)):
    if kind in read and tokenizer is None:
      raise ValueError(
        f'a template of data.mixture has {kind}, and the tokenizers of this run make none\n'
        'fix: use another template, or a run whose tokenizers know them'
      )
  widths = {
    'patch_values': toks.image.feature_width if 'patches' in read else cfg.model.patch_values,
    'frame_values': toks.audio.feature_width if 'frames' in read else cfg.model.frame_values,
  }
  return dataclasses.replace(cfg.model, vocab=cfg.model.vocab or size, **widths).resolved()


def signatures(cfg):
  """What the sources of the mixture are made of: (kinds of the condition, kinds of the target)."""
  return [templates.signature(source.template) for source in cfg.data.mixture.values()]


def build_tokenizers(cfg, workdir):
  """The run's tokenizers: those that it already has, or new ones made from the config."""
  if (workdir / 'tokenizer' / 'vocabulary.json').exists():  # written last
    return tokenizers.Tokenizers.load(workdir / 'tokenizer')
  if cfg.train.init_from:
    base = Path(cfg.train.init_from).expanduser()
    kept = run_folder.read_config(base)
    for name in ('tokenizer', 'image', 'audio'):
      wanted = records.to_json(dataclasses.asdict(getattr(cfg, name)))
      if name in kept and kept[name] != wanted:
        raise ValueError(
          f'train.init_from={base} has the {name} section {kept[name]}, and this config another\n'
          'fix: take that section from its config, as experiments/finetune_gpt2.py does'
        )
    return tokenizers.Tokenizers.load(base / 'tokenizer')
  # An alphabet must cover the validation text; merges must not be learned from it.
  splits = ('train', 'valid') if cfg.tokenizer.kind == 'chars' else ('train',)
  texts = lambda: (text for split in splits for _, text in data.documents(cfg.data, split))
  text = tokenizers.text.build(cfg.tokenizer, texts)
  used = {kind for both in signatures(cfg) for kinds in both for kind in kinds}
  check_modalities(cfg, used)
  image = audio = None
  if cfg.image.kind:
    shape = (cfg.image.height, cfg.image.width, cfg.image.channels)
    images = lambda: data.load_images(cfg.data, shape)
    image = tokenizers.image.build(cfg.image, images)
  if cfg.audio.kind:
    waves = lambda: data.load_waveforms(cfg.data, cfg.audio.sample_rate, seconds=cfg.audio.seconds)
    audio = tokenizers.audio.build(cfg.audio, waves)
  return tokenizers.Tokenizers.build(text, image, audio)


def check_modalities(cfg, used):
  """Raise ValueError where templates and tokenizers do not name the same modalities."""
  for modality, kinds in (('image', {'image', 'patches'}), ('audio', {'audio', 'frames'})):
    chosen = getattr(cfg, modality).kind
    if 'parts' in used:
      continue
    if used & kinds and not chosen:
      raise ValueError(
        f'a template of data.mixture has {" and ".join(sorted(used & kinds))}, and '
        f'{modality}.kind is empty\nfix: choose an {modality} tokenizer, as in '
        f'experiments/demo.py'
      )
    if chosen and not used & kinds:
      raise ValueError(
        f'{modality}.kind={chosen} has no use: no template of data.mixture has an {modality}\n'
        f"fix: leave {modality}.kind='', or write {{field:{modality}}} in a template"
      )


def check_use(cfg, toks):
  """Raise ValueError for settings that this vocabulary or mixture gives nothing to do."""
  single = len(toks.modalities) == 1
  useless = {name: name not in toks.modalities for name in losses.MODALITIES}
  useless |= {'balance': single, 'restrict': single}
  for name, is_useless in useless.items():
    value = getattr(cfg.loss, name)
    if is_useless and value != getattr(losses.LossConfig, name):
      raise ValueError(
        f'loss.{name}={value} has no effect: the ids are {", ".join(toks.modalities)}\n'
        f'fix: leave loss.{name}={getattr(losses.LossConfig, name)}'
      )
  if cfg.sample.guidance != 1 and not cfg.data.condition_dropout:
    raise ValueError(
      f'sample.guidance={cfg.sample.guidance} needs a model that knows an empty condition\n'
      'fix: set data.condition_dropout=0.1, or sample.guidance=1.0'
    )


# ---------------------------------------------------------------------------------------- the job


class LanguageModelJob:
  """A GPT in training. See train.Training for when each method is called."""

  unit = 'tokens'
  raise_if_preempted = staticmethod(lambda: None)  # called between batches of an evaluation; may raise

  def __init__(self, cfg, workdir, mesh):
    """Make and check everything; nothing is written but token caches."""
    self.cfg, self.workdir, self.mesh = cfg, workdir, mesh
    self.tokenizers = build_tokenizers(cfg, workdir)
    check_use(cfg, self.tokenizers)
    self.model_cfg = resolve_model(cfg, self.tokenizers)
    self.length = cfg.train.length or self.model_cfg.context
    check_batch(cfg.train.batch_size // cfg.train.accumulate, self.length, mesh)
    prompts = [
      completions.encode_prompt(self.tokenizers, prompt, cfg.sample.begin)
      for prompt in cfg.train.sample_prompts
    ]
    prompt_batch.check_prompts(prompts, 1, self.model_cfg)  # now, not at the first sample
    rows = data_shard(mesh)
    self.loader = data.Loader(
      cfg.data,
      self.tokenizers,
      split='train',
      batch_size=cfg.train.batch_size,
      length=self.length,
      seed=cfg.train.seed,
      cache_dir=workdir / 'cache',
      process_index=rows[0],
      process_count=rows[1],
    )
    single = len(self.tokenizers.modalities) == 1
    kinds = None if single else losses.Kinds.of(self.tokenizers, self.model_cfg.V)
    self.program = gpt_program(cfg, self.model_cfg, mesh, kinds, len(self.loader.names))
    self.flops = gpt.flops_per_token(self.model_cfg, self.length)
    self.parameters = gpt.count_params(self.model_cfg)
    self.caches = self.held_out()  # validation tokens, opened once
    evaluate.check_tasks(self, cfg.train.tasks)  # now, not after the last step

  def held_out(self):
    """{(source, 'valid'): its tokens}; ValueError now for what could not be scored later."""
    caches, form = {}, data.RowFields.of(self.cfg.data, self.tokenizers)
    for name in data.source_names(self.cfg.data, 'valid'):
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
      caches[name, 'valid'] = cache
    return caches

  def example_batch(self):
    """A batch, to trace the step with."""
    rows = next(iter(self.loader.rows.values()))
    batch = rows.gather(np.zeros(self.cfg.train.batch_size, np.int64))
    if len(self.loader.names) > 1:
      batch['source_ids_B'] = np.zeros(self.cfg.train.batch_size, np.int32)
    return batch

  def load_initial_weights(self, state):
    """Return the state with the parameters of train.init_from, in the moving average too."""
    cfg = self.cfg
    model = checkpoint.load_model(cfg.train.init_from, self.program.abstract.model, cfg.checkpoint.verify)
    opt_state = state.opt_state
    if opt_state.ema is not None:
      copies = {path: p.astype(jnp.float32, copy=True) for path, p in params_of(model).items()}
      opt_state = opt_state._replace(ema=copies)
    return state._replace(model=model, opt_state=opt_state)

  def write_files(self):
    """Write what a run folder needs besides checkpoints."""
    if not (self.workdir / 'tokenizer' / 'vocabulary.json').exists():
      self.tokenizers.save(self.workdir / 'tokenizer')

  def checkpoint_extra(self):
    """What a checkpoint needs to be of use alone."""
    return {
      'vocab': self.model_cfg.vocab,
      'widths': [self.model_cfg.patch_values, self.model_cfg.frame_values],
      'tokenizer': checkpoint.pack_folder(self.workdir / 'tokenizer'),
    }

  def provenance(self):
    """What the ids were made by, for result.json."""
    return {'tokenizer': self.tokenizers.hash}

  def describe(self):
    """What is about to be trained, on what, by which attention kernel, and what lies where."""
    peak, source = hardware.peak_flops()
    counts = {
      name: int((self.tokenizers.modality_V()[: self.tokenizers.vocabulary.size] == m).sum())
      for m, name in enumerate(self.tokenizers.modalities)
    }
    ids = ', '.join(f'{count} {name} ids' for name, count in counts.items())
    with jax.set_mesh(self.mesh):
      kernel = attention.explained(self.model_cfg, self.example_batch(), self.length)
    state = f', state of {summary(self.program.abstract, self.mesh)}' if self.mesh.size > 1 else ''
    return (
      f'{self.parameters:,} parameters, {ids}, {self.flops["full"] / 1e6:.1f} MFLOP a token, '
      f'{hardware.name()} (peak {peak / 1e12:.2f} TFLOP/s each: {source}), '
      f'{self.cfg.train.batch_size} x {self.length} tokens a step, attention {kernel}{state}'
    )

  def pop_scalars(self, values):
    """Named numbers from sums over an interval, {name: array [steps, ...]}, which are taken out.

    loss/MODALITY and loss/source/NAME in nats a target, and gradient_share/ of the same.
    """
    found = {}
    told = (('M', '', self.tokenizers.modalities), ('N', 'source/', self.loader.names))
    for letter, of, names in told:  # a source may be called text
      sums = {
        x: values.pop(f'{x}_{letter}').sum(0)
        for x in ('nats', 'targets', 'gradient')
        if f'{x}_{letter}' in values
      }
      if 'nats' in sums:
        means = zip(names, sums['nats'], sums['targets'], strict=True)
        found |= {f'loss/{of}{name}': float(nats / n) for name, nats, n in means if n}
      if 'gradient' in sums:
        shares = sums['gradient'] / max(sums['gradient'].sum(), 1e-30)
        named = zip(names, shares, strict=True)
        found |= {f'gradient_share/{of}{name}': float(x) for name, x in named}
    return found

  def utilization(self, per_second):
    """Throughput as a share of the peak, in both conventions."""
    peak, _ = hardware.peak_flops()
    names = {'mfu': 'full', 'mfu_causal': 'causal'} if peak else {}
    return {
      name: per_second * self.flops[convention] / (peak * self.mesh.size)
      for name, convention in names.items()
    }

  def subject(self, state):
    """The model as it is now, for tasks."""
    return evaluate.Subject(
      cfg=self.cfg,
      model=eval_model(state),
      tokenizers=self.tokenizers,
      mesh=self.mesh,
      cache_dir=self.workdir / 'cache',
      batch_size=evaluate.eval_batch_size(self.cfg, self.mesh),
      caches=self.caches,
      raise_if_preempted=self.raise_if_preempted,
    )

  def validate(self, state, limit):
    """-> ({valid_loss: mean of sources, valid_loss/SOURCE, valid_bits_per_byte}, rows)."""
    rows = evaluate.run_tasks(self.subject(state), ('perplexity',), limit=limit)
    values = lambda metric: {
      row['source']: row['value'] for row in rows if row['metric'] == metric and 'modality' not in row
    }
    nats, bits = values('nats_per_token'), values('bits_per_byte')
    scores = {'valid_loss': float(np.mean(list(nats.values())))} if nats else {}
    if len(nats) > 1:
      scores |= {f'valid_loss/{source}': value for source, value in nats.items()}
    if nats and len(bits) == len(nats):
      scores['valid_bits_per_byte'] = float(np.mean(list(bits.values())))
    return scores, rows

  def samples(self, state):
    """Continued prompts, and what it makes of validation conditions: (content, name, suffix)."""
    subject = self.subject(state)
    if self.cfg.train.sample_prompts:
      yield panels.continue_prompts(subject, self.cfg.train.sample_prompts), '', '.txt'
    yield from panels.sample_conditions(subject)

  def finish(self, state, say):
    """Run the tasks of train.tasks -> their rows."""
    rows = evaluate.run_tasks(self.subject(state), self.cfg.train.tasks)
    for line in evaluate.summary_lines(rows):
      say(line)
    return rows
