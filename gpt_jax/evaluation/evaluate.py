"""Tasks on a model: the same functions during training and from a finished run folder."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import data, sample
from gpt_jax.cluster.processes import fetch
from gpt_jax.data.row_fields import PLACES
from gpt_jax.evaluation import text_metrics
from gpt_jax.evaluation.tasks import answer, classify, common, cross, draw, perplexity, reconstruct, speak
from gpt_jax.losses import Kinds, restrict, sum_by, token_losses
from gpt_jax.model import gpt
from gpt_jax.model import layers as nn
from gpt_jax.runs.text_table import format_table
from gpt_jax.sampling import prompts
from gpt_jax.sharding import ACTIVATION_RULES, data_shard, to_devices


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model under examination."""

  cfg: Any  # config.Config
  model: Any  # parameters as trained; cast within the compiled score
  tokenizers: Any
  mesh: Any
  cache_dir: Path  # of token caches and of judges
  batch_size: int  # rows that are scored at once, over all processes
  caches: dict = dataclasses.field(default_factory=dict)  # what is opened once, by source, split
  raise_if_preempted: Any = lambda: None  # called between batches, in all processes equally often; may raise

  def cache(self, source, split):
    """The tokens of one source, opened once: opening reads and hashes the whole text."""
    if (source, split) not in self.caches:
      self.caches[source, split] = data.token_cache(
        self.cfg.data, source, self.tokenizers, split, self.cache_dir
      )
    return self.caches[source, split]

  @property
  def masks_documents(self):
    """Whether tokens see their own document only, as they did in training."""
    return self.cfg.data.mask_documents or self.cfg.data.packing == 'first_fit'

  @property
  def score(self):
    """Compiled: (model, batch) -> summed nats and weights."""
    return _score(self.model.cfg.dtype)

  @functools.cached_property
  def row_fields(self):
    """How rows of documents with media or a condition look."""
    return data.RowFields.of(dataclasses.replace(self.cfg.data, condition_dropout=0.0), self.tokenizers)

  def score_by_modality(self, batch):
    """This process's rows of a batch -> dict of the sums of its targets, on the devices.

    nats_M, restricted_M (under the softmax over what the grammar allows), targets_M: by modality,
    in the order of tokenizers.modalities. restricted_B: by row.
    """
    score = _score_by_modality(self.model.cfg.dtype, tuple(self.tokenizers.modalities))
    return score(self.model, to_devices(batch, self.mesh), self._kinds)

  @functools.cached_property
  def _kinds(self):
    """The arrays of losses.Kinds."""
    return tuple(Kinds.of(self.tokenizers, self.model.cfg.V))[1:]

  def target_nats(self, documents):
    """Documents (lists of Piece) -> nats of each one's targets, float64 [N].

    Under the softmax over what the grammar allows; a document stands in a row of its own.
    """
    encoded = data.encode_batch(self.tokenizers, documents)
    eos = self.tokenizers.vocabulary.special('eos')
    ids = [np.append(e.ids, eos) for e in encoded]
    length = sample.bucket(max(map(len, ids)) - 1, self.model.cfg.context)
    too_long = max(map(len, ids)) - 1
    if too_long > length:
      raise ValueError(
        f'a document has {too_long + 1} tokens and the context is {length}\n'
        'fix: use a model with more context, or shorter documents'
      )
    part, parts = data_shard(self.mesh)
    count, found = self.batch_size // parts, []
    own = slice(part * count, (part + 1) * count)
    for first in range(0, len(ids), self.batch_size):
      some = slice(first, first + self.batch_size)
      batch = _rows(ids[some], encoded[some], self.batch_size, length, self.row_fields)
      sums = self.score_by_modality({name: rows[own] for name, rows in batch.items()})
      found.append(fetch(sums['restricted_B']).astype(np.float64))
      self.raise_if_preempted()
    return np.concatenate(found)[: len(ids)]

  def generate(self, conditions, to, **sampling):
    """What the model makes of each condition: see prompts.generate."""
    return prompts.generate(self, conditions, to, **sampling)


def eval_batch_size(cfg, mesh):
  """Rows to score at once: a micro-batch of the training, rounded up to what the mesh divides."""
  shards = math.prod(mesh.shape[axis] for axis in ACTIVATION_RULES['B'])
  return -(-cfg.train.batch_size // cfg.train.accumulate // shards) * shards


@functools.cache
def _score(dtype):
  """One compiled function a dtype, shared by all evaluations of a process."""
  return jax.jit(lambda model, batch: score(nn.cast(model, dtype), batch))


@functools.cache
def _score_by_modality(dtype, names):
  """See Subject.score_by_modality."""

  def score(model, batch, arrays):
    model, kinds = nn.cast(model, dtype), Kinds(names, *arrays)
    out = model(batch['token_ids_BT'], **gpt.inputs(model.cfg, batch))
    target_ids_BT, mask_BT = batch['target_ids_BT'], batch['loss_mask_BT']
    nats_BT = token_losses(out.logits_BTV, target_ids_BT)[0] * mask_BT
    logits_BTV = restrict(out.logits_BTV, target_ids_BT, kinds)
    restricted_BT = token_losses(logits_BTV, target_ids_BT)[0] * mask_BT
    modality_BT = jnp.asarray(kinds.modality_V)[target_ids_BT]
    sums = {'nats': nats_BT, 'restricted': restricted_BT, 'targets': mask_BT}
    found = {f'{k}_M': sum_by(x_BT, modality_BT, len(names)) for k, x_BT in sums.items()}
    return found | {'restricted_B': restricted_BT.sum(1)}

  return jax.jit(score)


def _rows(ids, encoded, rows, length, form):
  """Documents, one a row -> a batch as `data.eval_rows` makes them."""
  ids_BW, segments_BW = np.zeros((2, rows, length + 1), np.int32)
  for b, document in enumerate(ids):
    ids_BW[b, : len(document)], segments_BW[b, : len(document)] = document, 1
  places_BW = np.arange(ids_BW.size).reshape(ids_BW.shape)
  mask_BT = (segments_BW[:, 1:] > 0).astype(np.float32)
  positions_BT = np.where(segments_BW > 0, np.arange(length + 1), 0)[:, :-1].astype(np.int32)
  batch = {
    'token_ids_BT': ids_BW[:, :-1],
    'target_ids_BT': ids_BW[:, 1:],
    'loss_mask_BT': mask_BT,
    'segment_ids_BT': segments_BW[:, :-1],
    'positions_BT': positions_BT,
  }
  if form.layout is None:
    return batch
  stream = _Stream(
    {
      kind: (
        _joined([getattr(e, kind) for e in encoded], width),
        np.flatnonzero(ids_BW.ravel() == getattr(form.layout, PLACES[kind])),
      )
      for kind, width in form.features
    }
  )
  return batch | form.add(batch, ids_BW, segments_BW, np.zeros_like(ids_BW, bool), places_BW, stream)


@dataclasses.dataclass(frozen=True)
class _Stream:
  """What RowFields.add reads of a token cache."""

  features: dict


def _joined(rows, width):
  """Features of several documents in a row."""
  return np.concatenate([np.zeros((0, width), np.float32), *(x for x in rows if x is not None)])


def run_tasks(subject, tasks, split='valid', limit=0, stride=0, recognizer=None, **sampling):
  """Run tasks by name -> list of result rows (dicts with task, metric, value, source, split).

  tasks: names of TASKS, or 'all' for those that fit a source of the mixture and whose packages are
  installed. limit: examples of a
  source (perplexity: tokens), 0 = all for perplexity and a task's own default. stride: tokens, see
  perplexity. recognizer: the Subject of another run, see tasks.speak. sampling: fields of
  SampleConfig in the place of the run's own.
  Raises ValueError for a name that is not in TASKS and for a task that fits no source.
  """
  names = check_tasks(subject, tasks, split)
  _check_options(names, stride, recognizer, sampling)
  rows = []
  for name in names:
    task = TASKS[name]
    sources = common.matching_sources(subject, task.fits, split)
    options = sampling if task.draws else {}
    if name == 'perplexity':
      options = {'stride': stride}
    if name == 'speak':
      options = options | {'recognizer': recognizer}
    for source in sources:
      rows += task.run(subject, source, split, limit, **options)
  return rows


def check_tasks(subject, tasks, split='valid'):
  """Names of the tasks to run; ValueError for one that is none or that fits no source.

  subject: a Subject, or anything with the `cfg` of a run.
  """
  unknown = [task for task in tasks if task not in (*TASKS, 'all')]
  if unknown:
    raise ValueError(f'--tasks={unknown[0]} is not a task\nfix: use one of {", ".join(TASKS)}, or all')
  if 'all' in tasks:
    return [name for name in TASKS if text_metrics.is_installed(TASKS[name].needs)]
  for name in tasks:
    text_metrics.require_package(TASKS[name].needs, name)
    if name != 'perplexity' and not common.matching_sources(subject, TASKS[name].fits, split):
      raise _no_source(subject, name, TASKS[name].form, split)
  return list(dict.fromkeys(tasks))


def _check_options(names, stride, recognizer, sampling):
  """ValueError for an option that none of the tasks takes, and for a recognizer that hears none."""
  if recognizer is not None:
    speak.reader_of(recognizer)  # now, not after the sampling
    if 'speak' not in names:
      raise ValueError(
        f'--recognizer={recognizer.cache_dir.parent} has no effect on --tasks={",".join(names)}\n'
        'fix: add the task speak, or leave it out'
      )
  unused = [] if 'perplexity' in names or not stride else ['stride']
  unused += [] if any(TASKS[name].draws for name in names) else list(sampling)
  if unused:
    value = stride if unused[0] == 'stride' else sampling[unused[0]]
    raise ValueError(
      f'{unused[0]}={value} has no effect on --tasks={",".join(names)}\n'
      'fix: leave it at its default, or choose a task that takes it'
    )


def _no_source(subject, name, form, split):
  """The error of a task that the mixture has nothing for."""
  mixture = subject.cfg.data.mixture
  named = data.source_names(subject.cfg.data, split)
  has = ', '.join(f'{key} {mixture[key].template!r}' for key in named) or 'nothing'
  return ValueError(
    f'--tasks={name} needs a source such as {form!r}; of {split} data the mixture has {has}\n'
    f'fix: choose another task or split, or give data.mixture a source with such a template'
  )


def format_row(row):
  """A result row as a line to print: value, interval, what to compare it with, then the rest."""
  shown = f'{row["task"]:12} {row["metric"]:24} {row["value"]:10.4f}'
  if 'interval' in row:
    shown += ' [{:.4f}, {:.4f}]'.format(*row['interval'])
  rivals = [f'{key} {row[key]:.4f}' for key in ('chance', 'baseline') if key in row]
  known = ('task', 'metric', 'value', 'interval', 'chance', 'baseline', 'source', 'split', 'sampling')
  rest = [
    f'{value} {key}' if key == 'tokens' else f'{key} {value}'
    for key, value in row.items()
    if key not in known
  ]
  return f'{shown}   ' + ', '.join([*rivals, f'{row["source"]} {row["split"]}', *rest])


def summary_lines(rows):
  """The first measure of each task and source, as lines to print: score, chance."""
  first = {}
  for row in rows:
    if 'chance' in row and not {'of', 'control'} & set(row):
      first.setdefault((row['task'], row['source']), row)
  cells = [
    (
      task,
      source,
      row['metric'].replace('_', ' '),
      f'{row["value"]:.1%}',
      f'{row["chance"]:.1%}',
      f'{row["n"]} of {row["split"]}',
    )
    for (task, source), row in first.items()
  ]
  header = ('task', 'source', 'measure', 'score', 'chance', 'examples')
  return format_table(cells, header) if cells else []


TASKS = {
  'perplexity': common.Task(perplexity.run, perplexity.fits, '{text}', False),
  'answer': common.Task(answer.run, answer.fits, '{image:image} -> {name}'),
  'translate': common.Task(
    functools.partial(
      answer.run, task='translate', score=text_metrics.score_translations, without=text_metrics.copy_source
    ),
    answer.fits_texts,
    '{en} -> {de}',
    needs='sacrebleu',
  ),
  'summarize': common.Task(
    functools.partial(
      answer.run, task='summarize', score=text_metrics.score_summaries, without=text_metrics.first_sentence
    ),
    answer.fits_texts,
    '{text} -> {summary}',
    needs='rouge_score',
  ),
  'draw': common.Task(draw.run, draw.fits, '{name} -> {image:image}'),
  'speak': common.Task(speak.run, speak.fits, '{name} -> {audio:audio}'),
  'classify': common.Task(classify.run, classify.fits, '{name} -> {image:image}', False),
  'reconstruct': common.Task(reconstruct.run, reconstruct.fits, '{image:image}', False),
  'cross': common.Task(cross.run, cross.fits, '{image:image} -> {name}'),
}


def score(model, batch):
  """Sums over a batch with target_ids_BT and loss_mask_BT -> (nats, weight), float32 scalars."""
  out = model(batch['token_ids_BT'], **gpt.inputs(model.cfg, batch))
  nats_BT, _ = token_losses(out.logits_BTV, batch['target_ids_BT'])
  mask_BT = batch['loss_mask_BT']
  return (nats_BT * mask_BT).sum(), mask_BT.sum()
