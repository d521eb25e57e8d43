"""A model to evaluate: its data, and the scores of batches and documents on its devices."""

import dataclasses
import functools
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
from gpt_jax.losses import token_losses
from gpt_jax.model import flow, gpt, param_trees
from gpt_jax.model.continuous import KINDS
from gpt_jax.model.kernels import target_places
from gpt_jax.runs.progress import Progress
from gpt_jax.sampling import prompt_batch, prompts
from gpt_jax.sharding import ACTIVATION_RULES
from gpt_jax.tokenizers.modality_tables import ModalityTables, restrict_logits, sum_by_label


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
  load_judge: Any = None  # trained.load_judge, of a finished run

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
    tokenizers.modalities, or `row`. With a flow head also patches and errors, their number and the sum of
    flow.errors: patches are no targets here.
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
    eos = self.tokenizers.vocabulary.special('eos')
    # A chat template has an end of its own.
    end = lambda pieces: [] if pieces[:1] and pieces[0].kind == 'chat' else [eos]
    encoded = data.encode_batch(self.tokenizers, documents)
    encoded = [e.with_end(end(pieces)) for e, pieces in zip(encoded, documents, strict=True)]
    longest = max(len(e.ids) for e in encoded) - 1
    length = prompt_batch.round_up_prompt(longest, self.model.cfg.context)
    if longest > length:
      raise ValueError(
        f'a document has {longest + 1} tokens and the context is {length}\n'
        'fix: use a model with more context, or shorter documents'
      )
    part, parts = data_shard(self.mesh)
    own = slice(part * self.batch_size // parts, (part + 1) * self.batch_size // parts)
    nats, progress = [], Progress('likelihood', 'documents', len(encoded))
    for first in range(0, len(encoded), self.batch_size):
      progress.report(first)
      some = encoded[first : first + self.batch_size]
      batch = document_rows(some, self.batch_size, length, self.row_fields)
      if not ends:
        batch['loss_mask_BT'] = batch['loss_mask_BT'] * (batch['target_ids_BT'] != eos)
      sums = self.score_rows({name: rows[own] for name, rows in batch.items()}, by='row')
      nats.append(fetch(sums['restricted']).astype(np.float64))
      self.raise_if_preempted()
    return np.concatenate(nats)[: len(encoded)]

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
  if model.cfg.flow_layers:
    zeros_BT, inputs = jnp.zeros_like(mask_BT), (gather, x_BTD, batch, jax.random.key(0))
    errors_BT, _ = flow.score_patches(model, (zeros_BT, zeros_BT), *inputs)
    is_patch_BT = (target_ids_BT == model.cfg.patch_id).astype(jnp.float32)
    sums = {name: x_BT * (1 - is_patch_BT) for name, x_BT in sums.items()}
    sums |= {'errors': errors_BT * mask_BT, 'patches': mask_BT * is_patch_BT}
  if by == 'row':
    return {name: x_BT.sum(1) for name, x_BT in sums.items()}
  modality_BT = jnp.asarray(tables.modality_V)[target_ids_BT]
  return {name: sum_by_label(x_BT, modality_BT, len(names)) for name, x_BT in sums.items()}


def document_rows(encoded, rows, length, row_fields):
  """Make a batch with one data.Encoded a row, of all its ids, with the arrays of `data.eval_rows`."""
  ids_BW, segments_BW = np.zeros((2, rows, length + 1), np.int32)
  for b, e in enumerate(encoded):
    ids_BW[b, : len(e.ids)], segments_BW[b, : len(e.ids)] = e.ids, 1
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
    places = np.flatnonzero(ids_BW.ravel() == getattr(row_fields.layout, KINDS[kind].place))
    features[kind] = np.concatenate([np.zeros((0, width), np.float32), *values]), places
  places_BW, nothing_BW = np.arange(ids_BW.size).reshape(ids_BW.shape), np.zeros_like(ids_BW, bool)
  targets_BW = np.zeros(ids_BW.shape, np.uint8)
  has_targets = any(e.targets is not None for e in encoded)
  for b, e in enumerate(encoded if has_targets else ()):
    targets_BW[b, : len(e.targets)] = e.targets
  stream = SimpleNamespace(features=features, targets=targets_BW.ravel() if has_targets else None)
  return batch | row_fields.add(batch, ids_BW, segments_BW, nothing_BW, places_BW, stream)
