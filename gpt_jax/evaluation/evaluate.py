"""Evaluate a model on tasks, during training and from a finished run folder."""

import dataclasses
import functools
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import data
from gpt_jax.cluster.batches import data_shard, to_devices
from gpt_jax.cluster.processes import fetch
from gpt_jax.data.row_fields import PLACES
from gpt_jax.evaluation import text_baselines, text_metrics
from gpt_jax.evaluation.tasks import (
  answer,
  canaries,
  choose,
  classify,
  cloze,
  common,
  continuation,
  cross,
  draw,
  extraction,
  membership,
  perplexity,
  reconstruct,
  speak,
)
from gpt_jax.losses import token_losses
from gpt_jax.model import gpt, param_trees
from gpt_jax.model.kernels import target_places
from gpt_jax.runs.progress import Progress
from gpt_jax.sampling import prompt_batch, prompts
from gpt_jax.sharding import ACTIVATION_RULES
from gpt_jax.tokenizers.modality_tables import ModalityTables, restrict_logits, sum_by_label

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model to evaluate, with all that tasks need."""

  cfg: Any  # config.Config
  model: Any  # parameters as trained; cast within the compiled score
  tokenizers: Any
  mesh: Any
  cache_dir: Path  # of token caches and of judges
  batch_size: int  # rows that are scored at once, over all processes
  caches: dict = dataclasses.field(default_factory=dict)  # token caches by (source, split), and more
  raise_if_preempted: Any = lambda: None  # called between batches, in all processes equally often
  predictions: Any = None  # predictions.PredictionFiles that keep what tasks judge, or None

  @classmethod
  def of_run(cls, cfg, model, tokenizers, mesh, workdir, **fields):
    """The Subject of a run; it scores a micro-batch at once, rounded up to what the mesh divides."""
    shards = math.prod(mesh.shape[axis] for axis in ACTIVATION_RULES['B'])
    rows = -(-cfg.train.batch_size // cfg.train.accumulate // shards) * shards
    return cls(cfg, model, tokenizers, mesh, workdir / 'cache', rows, **fields)

  def cache(self, source, split):
    """The token cache of one source, opened once: opening reads and hashes the whole text."""
    if (source, split) not in self.caches:
      self.caches[source, split] = data.token_cache(
        self.cfg.data, source, self.tokenizers, split, self.cache_dir
      )
    return self.caches[source, split]

  @property
  def masks_documents(self):
    """Whether tokens attend to their own document only, as in training."""
    return self.cfg.data.mask_documents or self.cfg.data.has_whole_documents

  @functools.cached_property
  def row_fields(self):
    """The fields of rows of documents with media or a condition."""
    return data.RowFields.of(dataclasses.replace(self.cfg.data, condition_dropout=0.0), self.tokenizers)

  @functools.cached_property
  def _table_arrays(self):
    """The arrays of ModalityTables."""
    return tuple(ModalityTables.build(self.tokenizers, self.model.cfg.V))[1:]

  def score(self, batch):
    """Sum this process's rows of a batch -> {nats, text_nats, targets} on the devices."""
    eos = dict(self.tokenizers.vocabulary.specials).get('eos', -1)
    return score(self.model, to_devices(batch, self.mesh), eos)

  def score_rows(self, batch, by='modality'):
    """Sum the targets of this process's rows -> {nats, restricted, targets: [M]} or [B], on the devices.

    restricted: nats under the softmax over what the grammar allows. by: `modality`, in the order of
    tokenizers.modalities, or `row`.
    """
    names, mask_BT = tuple(self.tokenizers.modalities), batch['loss_mask_BT']
    places = None
    if jax.process_count() == 1 and self.mesh.shape['sequence'] == 1:  # others have other rows
      most = int(mask_BT.sum(1).max())
      places = target_places.round_count(most, mask_BT.shape[1], self.model.cfg.vocab)
    options = dict(names=names, by=by, places=places)
    return score_rows(self.model, to_devices(batch, self.mesh), self._table_arrays, **options)

  def target_nats(self, documents, ends=True):
    """Nats of the targets of each document (a list of Piece), float64 [N].

    Under the softmax over what the grammar allows; each document has a row of its own. ends: whether the
    eos after the document counts, as in training; bits per byte leave it out.
    """
    encoded = data.encode_batch(self.tokenizers, documents)
    eos = self.tokenizers.vocabulary.special('eos')
    ids = [np.append(e.ids, eos) for e in encoded]
    longest = max(map(len, ids)) - 1
    length = prompt_batch.round_up_prompt(longest, self.model.cfg.context)
    if longest > length:
      raise ValueError(
        f'a document has {longest + 1} tokens and the context is {length}\n'
        'fix: use a model with more context, or shorter documents'
      )
    part, parts = data_shard(self.mesh)
    own = slice(part * self.batch_size // parts, (part + 1) * self.batch_size // parts)
    nats, progress = [], Progress('likelihood', 'documents', len(ids))
    for first in range(0, len(ids), self.batch_size):
      progress.report(first)
      some = slice(first, first + self.batch_size)
      batch = document_rows(ids[some], encoded[some], self.batch_size, length, self.row_fields)
      if not ends:
        batch['loss_mask_BT'] = batch['loss_mask_BT'] * (batch['target_ids_BT'] != eos)
      sums = self.score_rows({name: rows[own] for name, rows in batch.items()}, by='row')
      nats.append(fetch(sums['restricted']).astype(np.float64))
      self.raise_if_preempted()
    return np.concatenate(nats)[: len(ids)]

  def record(self, rows, examples, **judged):
    """Keep what a task judged where predictions are kept: see PredictionFiles.add."""
    if self.predictions:
      self.predictions.add(self, rows, examples, **judged)

  def generate(self, conditions, to, **sampling):
    """Generate one `to` for each condition: see prompts.generate."""
    return prompts.generate(self, conditions, to, **sampling)


@jax.jit
def score(model, batch, eos=-1):
  """Sum a batch with target_ids_BT and loss_mask_BT -> {nats, text_nats, targets}, float32 scalars.

  text_nats: those of targets other than eos, which spells no byte.
  """
  model = param_trees.cast(model, model.cfg.dtype)
  out = model(batch['token_ids_BT'], **gpt.inputs(model.cfg, batch))
  nats_BT, _ = token_losses(out.logits_BTV, batch['target_ids_BT'])
  mask_BT = batch['loss_mask_BT']
  nats_BT = nats_BT * mask_BT
  text_BT = batch['target_ids_BT'] != eos
  return {
    'nats': nats_BT.sum(),
    'text_nats': jnp.where(text_BT, nats_BT, 0.0).sum(),
    'targets': mask_BT.sum(),
  }


@functools.partial(jax.jit, static_argnames=('names', 'by', 'places'))
def score_rows(model, batch, table_arrays, *, names, by, places=None):
  """See Subject.score_rows; places: as in step.loss_fn."""
  model, tables = param_trees.cast(model, model.cfg.dtype), ModalityTables(names, *table_arrays)
  x_BTD, _, _ = model.trunk(batch['token_ids_BT'], **gpt.inputs(model.cfg, batch))
  gather, _ = target_places.choose_places(batch['loss_mask_BT'], places)  # from here on T counts these places
  target_ids_BT, mask_BT = gather(batch['target_ids_BT']), gather(batch['loss_mask_BT'])
  logits_BTV = model.logits(gather(x_BTD))
  nats_BT = token_losses(logits_BTV, target_ids_BT)[0] * mask_BT
  logits_BTV = restrict_logits(logits_BTV, target_ids_BT, tables)
  restricted_BT = token_losses(logits_BTV, target_ids_BT)[0] * mask_BT
  sums = {'nats': nats_BT, 'restricted': restricted_BT, 'targets': mask_BT}
  if by == 'row':
    return {name: x_BT.sum(1) for name, x_BT in sums.items()}
  modality_BT = jnp.asarray(tables.modality_V)[target_ids_BT]
  return {name: sum_by_label(x_BT, modality_BT, len(names)) for name, x_BT in sums.items()}


def document_rows(ids, encoded, rows, length, row_fields):
  """Make a batch with one document a row, with the arrays of `data.eval_rows`."""
  ids_BW, segments_BW = np.zeros((2, rows, length + 1), np.int32)
  for b, document in enumerate(ids):
    ids_BW[b, : len(document)], segments_BW[b, : len(document)] = document, 1
  positions_BT = np.where(segments_BW > 0, np.arange(length + 1), 0)[:, :-1].astype(np.int32)
  batch = {
    'token_ids_BT': ids_BW[:, :-1],
    'target_ids_BT': ids_BW[:, 1:],
    'loss_mask_BT': (segments_BW[:, 1:] > 0).astype(np.float32),
    'segment_ids_BT': segments_BW[:, :-1],
    'positions_BT': positions_BT,
  }
  if row_fields.layout is None:
    return batch
  features = {}
  for kind, width in row_fields.features:
    values = [getattr(e, kind) for e in encoded if getattr(e, kind) is not None]
    places = np.flatnonzero(ids_BW.ravel() == getattr(row_fields.layout, PLACES[kind]))
    features[kind] = np.concatenate([np.zeros((0, width), np.float32), *values]), places
  places_BW, nothing_BW = np.arange(ids_BW.size).reshape(ids_BW.shape), np.zeros_like(ids_BW, bool)
  targets_BW = np.zeros(ids_BW.shape, np.uint8)
  is_chat = any(e.targets is not None for e in encoded)
  for b, e in enumerate(encoded if is_chat else ()):
    targets_BW[b, : len(e.targets)] = e.targets
  stream = SimpleNamespace(features=features, targets=targets_BW.ravel() if is_chat else None)
  return batch | row_fields.add(batch, ids_BW, segments_BW, nothing_BW, places_BW, stream)


# ----------------------------------------------------------------------------------------- tasks


def run_tasks(
  subject,
  tasks,
  split='valid',
  limit=0,
  stride=0,
  recognizer=None,
  shots=0,
  reference=None,
  prefix=0,
  **sampling,
):
  """Run tasks by name -> list of result rows (dicts with task, metric, value, source, split).

  tasks: names of TASKS, or 'all' for those that fit a source of the mixture, suit its texts and whose
  packages are installed. limit: examples of a source (perplexity: tokens), 0 = all for perplexity and a
  task's own default. stride: tokens, see perplexity. recognizer, reference: Subjects of other runs, see
  tasks/speak.py and membership.py. shots: answered examples before each question, see tasks/choose.py.
  prefix: tokens, see tasks/extraction.py. sampling: fields of SampleConfig in the place of the run's own.

  Raises ValueError for an unknown task, one that fits no source, and options that no task takes.
  """
  names = check_tasks(subject, tasks, split)
  all_options = dict(stride=stride, recognizer=recognizer, shots=shots, reference=reference, prefix=prefix)
  _check_options(names, all_options, sampling)
  check_beams(subject, names, split, sampling.get('beams'))
  rows = []
  for name in names:
    task = TASKS[name]
    options = {option: all_options[option] for option in task.options if option != 'sampling'}
    if 'sampling' in task.options:
      options |= sampling
    for source in matching_sources(subject, name, split):
      if 'all' in tasks and not suits_texts(subject, name, source, split, limit):
        continue
      rows += task.run(subject, source, split, limit, **options)
  return [*rows, *common.centered_mean(rows)]


def check_tasks(subject, tasks, split='valid'):
  """Return the names of the tasks to run; ValueError for an unknown one or one that fits no source.

  subject: a Subject, or anything with the `cfg` of a run.
  """
  unknown = [task for task in tasks if task not in (*TASKS, 'all')]
  if unknown:
    raise ValueError(f'--tasks={unknown[0]} is not a task\nfix: use one of {", ".join(TASKS)}, or all')
  if 'all' in tasks:
    installed = [name for name in TASKS if text_metrics.is_installed(TASKS[name].package)]
    return [name for name in installed if TASKS[name].suits is not False]
  mixture = subject.cfg.data.mixture
  for name in tasks:
    text_metrics.require_package(TASKS[name].package, name)
    if name != 'perplexity' and not matching_sources(subject, name, split):
      check_training_documents(subject, name, split)
      sources = data.source_names(subject.cfg.data, split)
      has = ', '.join(f'{key} {mixture[key].template!r}' for key in sources) or 'nothing'
      raise ValueError(
        f'--tasks={name} needs a source such as {TASKS[name].example_template!r}; of {split} data the '
        f'mixture has {has}\n'
        'fix: choose another task or split, or give data.mixture a source with such a template'
      )
  return list(dict.fromkeys(tasks))


def check_training_documents(subject, task, split):
  """Raise ValueError where a task needs documents that the model was trained on, and there are none."""
  row = TASKS[task]
  if row.on_training and common.matching_sources(subject, row.fits, split):
    raise ValueError(
      f'--tasks={task} compares with training documents, and every source of {split} data that fits has '
      'weight=0\n'
      'fix: evaluate a run that was trained on such a source'
    )
  if row.kind:
    raise ValueError(
      f'--tasks={task} needs a source of kind={row.kind}, which data.mixture does not train on\n'
      f'fix: train with a source such as {{"kind": "{row.kind}", "documents": 64}}'
    )


def matching_sources(subject, task, split):
  """The sources with data for `split` that the task of this name scores."""
  row = TASKS[task]
  options = dict(kind=row.kind, on_training=row.on_training)
  return common.matching_sources(subject, row.fits, split, task if row.benchmark else '', **options)


def suits_texts(subject, task, source, split, limit=0):
  """Whether the texts of a source are as long as a task expects; logs why not."""
  suits = TASKS[task].suits
  if suits is None:
    return True
  before, after = common.median_words(common.examples(subject, source, split, limit or common.LIMIT))
  if not suits(before, after):
    log.warning(
      '--tasks=all leaves out %s for data.mixture.%s, which has %g words before -> and %g after (median); '
      '--tasks=%s scores it',
      *(task, source, before, after, task),
    )
  return suits(before, after)


def check_beams(subject, names, split='valid', beams=None):
  """Raise ValueError for a beam search (beams: default sample.beams) in tasks that make images or sounds."""
  beams = subject.cfg.sample.beams if beams is None else beams
  if not beams:
    return
  sources_of = {name: common.matching_sources(subject, TASKS[name].fits, split) for name in ('draw', 'speak')}
  sources_of['cross'] = list(cross.pairs(subject, split))
  for name in names:
    if sources_of.get(name):
      raise ValueError(
        f'sample.beams={beams} cannot make the images or sounds of --tasks={name}\n'
        'fix: set sample.beams=0, or leave the task out'
      )


def _check_options(names, options, sampling):
  """Raise ValueError for an option that no task takes, and for a recognizer that reads no sounds."""
  taken = {option for name in names for option in TASKS[name].options}
  if options['recognizer'] is not None:
    speak.recognizer_template(options['recognizer'])  # fails now, not after the sampling
  given = {name if name == 'stride' else f'--{name}': x for name, x in options.items() if x} | sampling
  for name, value in given.items():
    if name.lstrip('-') not in taken and not ('sampling' in taken and name in sampling):
      value = value.cache_dir.parent if isinstance(value, Subject) else value
      raise ValueError(
        f'{name}={value} has no effect on --tasks={",".join(names)}\n'
        'fix: leave it out, or choose a task that takes it'
      )


TASKS = {
  'perplexity': common.Task(perplexity.run, perplexity.fits, '{text}', options=('stride',)),
  'answer': common.Task(answer.run, answer.fits, '{image:image} -> {name}'),
  'translate': common.Task(
    functools.partial(
      answer.run,
      task='translate',
      measure=text_metrics.TRANSLATIONS,
      baselines={'copy': text_baselines.copy_source, 'dictionary': text_baselines.dictionary},
    ),
    answer.fits_texts,
    '{en} -> {de}',
    package='sacrebleu',
    suits=lambda before, after: after >= 4 and before / 2 <= after <= 2 * before,
  ),
  'summarize': common.Task(
    functools.partial(
      answer.run,
      task='summarize',
      measure=text_metrics.SUMMARIES,
      baselines={
        'first sentence': text_baselines.first_sentence,
        'random sentence': text_baselines.random_sentence,
      },
    ),
    answer.fits_texts,
    '{text} -> {summary}',
    package='rouge_score',
    suits=lambda before, after: 4 <= after < before / 2,
  ),
  'continue': common.Task(continuation.run, continuation.fits, '{text}', suits=False),
  'canaries': common.Task(canaries.run, canaries.fits, '{text}', (), suits=False, kind='canaries'),
  'extraction': common.Task(
    extraction.run, continuation.fits, '{text}', ('sampling', 'prefix'), suits=False, on_training=True
  ),
  'membership': common.Task(
    membership.run, membership.fits, '{text}', ('reference',), suits=False, on_training=True
  ),
  'draw': common.Task(draw.run, draw.fits, '{name} -> {image:image}'),
  'speak': common.Task(speak.run, speak.fits, '{name} -> {audio:audio}', options=('sampling', 'recognizer')),
  'classify': common.Task(classify.run, classify.fits, '{name} -> {image:image}', options=()),
  'choose': common.Task(choose.run, choose.fits, '{question} {options[answer]}', ('shots',), benchmark=True),
  'cloze': common.Task(cloze.run, cloze.fits, '{text:cloze}', (), benchmark=True),
  'reconstruct': common.Task(reconstruct.run, reconstruct.fits, '{image:image}', options=()),
  'cross': common.Task(cross.run, cross.fits, '{image:image} -> {name}'),
}
