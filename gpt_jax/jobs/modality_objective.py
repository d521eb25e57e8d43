"""The objective of a GPT over several modalities or data sources: weights, and metrics by group.

Letters: B batch, T length, D width, M modalities, N sources.
"""

import jax.numpy as jnp

from gpt_jax.step import Objective, count_tokens, language_objective, loss_fn
from gpt_jax.tokenizers.modality_tables import restrict_logits, sum_by_label, weigh_by_modality


def modality_objective(cfg, tables=None, sources=1, places=None):
  """Return the Objective of a GPT over a vocabulary with these ModalityTables (None: text alone).

  cfg: losses.LossConfig. places: see step.loss_fn, None with cfg.restrict. Metrics also hold sums by modality
  (nats_M, targets_M, and gradient_M: norms of the gradient at the last hidden state) and the same by source
  (_N), each where there are two or more.
  """
  assert not (cfg.restrict and places), 'loss.restrict needs the logits of all places'
  M = len(tables.names) if tables else 1
  modality = lambda batch: jnp.asarray(tables.modality_V)[batch['target_ids_BT']]
  source = lambda batch: jnp.broadcast_to(batch['source_ids_B'][:, None], batch['target_ids_BT'].shape)
  groups = {'M': (modality, M), 'N': (source, sources)}  # letter: (batch -> labels_BT, how many)
  groups = {letter: row for letter, row in groups.items() if row[1] > 1}
  if not groups:
    return language_objective(places)

  def sums(name, values_BT, batch):
    return {
      f'{name}_{letter}': sum_by_label(values_BT, labels(batch), n) for letter, (labels, n) in groups.items()
    }

  def weigh(batch, hyper):
    mask_BT = batch['loss_mask_BT']
    weighted_BT = mask_BT
    if M > 1:
      weighted_BT = weigh_by_modality(mask_BT, batch['target_ids_BT'], tables, cfg.balance, hyper)
    weight = weighted_BT.sum()
    batch = batch | {'loss_mask_BT': weighted_BT, 'targets_BT': mask_BT}
    return batch, jnp.where(weight > 0, weight, 1.0)

  def loss(model, probe_BTD, batch, weight, hyper, key):
    restrict = None
    if cfg.restrict:
      restrict = lambda logits_BTV: restrict_logits(logits_BTV, batch['target_ids_BT'], tables)
    total, metrics, nats_BT = loss_fn(model, batch, weight, hyper, key, probe_BTD, restrict, places)
    targets_BT = batch['targets_BT']
    for name, values_BT in (('nats', nats_BT * targets_BT), ('targets', targets_BT)):
      metrics |= sums(name, values_BT, batch)
    return total, metrics

  def probe(model, batch):
    return jnp.zeros((*batch['token_ids_BT'].shape, model.cfg.width), jnp.float32)

  def probe_metrics(metrics, probe_grad_BTD, batch):
    return metrics | sums('gradient', jnp.linalg.norm(probe_grad_BTD, axis=-1), batch)

  return Objective(weigh, loss, count_tokens, probe, probe_metrics)


def pop_means(values, modalities, sources):
  """Remove the sums of `modality_objective` from {name: array [steps, ...]}; return their means.

  loss/MODALITY and loss/source/NAME in nats per target, and gradient_share/ of the same.
  """
  scalars, groups = {}, (('M', '', modalities), ('N', 'source/', sources))  # a source may be called text
  for letter, prefix, names in groups:
    keys = [key for key in ('nats', 'targets', 'gradient') if f'{key}_{letter}' in values]
    sums = {key: values.pop(f'{key}_{letter}').sum(0) for key in keys}
    if 'nats' in sums:
      means = zip(names, sums['nats'], sums['targets'], strict=True)
      scalars |= {f'loss/{prefix}{name}': float(nats / n) for name, nats, n in means if n}
    if 'gradient' in sums:
      shares = sums['gradient'] / max(sums['gradient'].sum(), 1e-30)
      scalars |= {f'gradient_share/{prefix}{name}': float(x) for name, x in zip(names, shares, strict=True)}
  return scalars
