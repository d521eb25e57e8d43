"""One optimizer step as a pure function, and the program that compiles it for a mesh.

`train_step` maps (state, batch) to (state, metrics). jit, shardings and donation are put around it
in `build_program`; vmap over states trains replicas. What an ablation may vary without compiling
again travels in `state.hyper`.

Letters: B batch rows, T length, A micro-batches a step; S, W as in loss_guard.py.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import losses
from gpt_jax.model import gpt
from gpt_jax.model import layers as nn
from gpt_jax.optim import Optimizer
from gpt_jax.sharding import replicated
from gpt_jax.training import loss_guard


class TrainState(NamedTuple):
  """All that changes during training."""

  step: jax.Array  # int32; batches consumed
  model: Any  # a gpt.GPT or an autoencoder
  opt_state: Any  # see optim.OptState
  key: jax.Array  # PRNG key; step s uses fold_in(key, s)
  hyper: dict  # traced scalars that an ablation may vary within one compiled step
  recent_SW: Any = None  # losses and norms of the last applied steps, for a spike guard


def params_of(model):
  """A model -> {path: array}, what the optimizer works on."""
  return {path: p.get_value() for path, p in nn.named_params(model)}


def with_params(model, params):
  """The model with these arrays."""
  return nn.map_params(lambda path, p: params[path], model)


def hyper_of(cfg):
  """The traced scalars of a config; one that has no effect at its value is left out, for speed."""
  always = {'lr': cfg.optim.lr, 'weight_decay': cfg.optim.weight_decay}
  terms = ('z_loss', 'label_smoothing', 'moe_balance', 'moe_z')
  optional = {'dropout': cfg.model.dropout, 'spike_sigma': cfg.train.spike_sigma}
  optional |= {name: getattr(cfg.loss, name) for name in terms}
  chosen = always | {name: value for name, value in optional.items() if value}
  weights = {name: getattr(cfg.loss, name) for name in losses.MODALITIES}
  chosen |= {name: value for name, value in weights.items() if value != 1}
  return {name: np.float32(value) for name, value in chosen.items()}


def init_state(abstract_model, optimizer, hyper, seed, window=0):
  """The state before the first step, a pure function of the seed; window: of a spike guard."""
  init_key, step_key = jax.random.split(jax.random.key(seed))
  model = nn.initialize(abstract_model, init_key)
  return TrainState(
    step=jnp.int32(0),
    model=model,
    opt_state=optimizer.init(params_of(model)),
    key=step_key,
    hyper=hyper,
    recent_SW=loss_guard.empty_window(window) if window else None,
  )


class Objective(NamedTuple):
  """What a step minimizes: the functions of one kind of model."""

  weigh: Any  # (batch, hyper) -> (batch, weight): the weight of the whole step
  loss: Any  # (model, tap, micro-batch, weight, hyper, key) -> (share of the objective, metrics)
  count: Any  # batch -> {'tokens': items that it holds: tokens or images, and other counts}
  tap: Any = lambda model, micro_batch: None  # zeros for `loss` to add somewhere inside
  tell: Any = lambda metrics, tap_grad, micro_batch: metrics  # what the tap's gradient says
  finish: Any = lambda params, metrics, key: (params, metrics)  # updates without gradients


def language_objective(cfg, kinds=None, sources=1):
  """The objective of a GPT over a vocabulary of `kinds` (None: text), on data of so many sources.

  cfg: losses.LossConfig. Beside the loss, metrics hold sums by modality (nats_M, targets_M, and
  gradient_M: norms of the gradient at the last hidden state) and the same by source (_N), each
  where there are two or more.
  """
  M = len(kinds.names) if kinds else 1
  modality = lambda batch: jnp.asarray(kinds.modality_V)[batch['target_ids_BT']]
  source = lambda batch: jnp.broadcast_to(batch['source_ids_B'][:, None], batch['target_ids_BT'].shape)
  labels = {'M': (modality, M), 'N': (source, sources)}  # letter: (batch -> labels_BT, how many)
  labels = {letter: row for letter, row in labels.items() if row[1] > 1}

  def weigh(batch, hyper):
    mask_BT = batch['loss_mask_BT']
    weighed_BT = mask_BT
    if M > 1:
      weighed_BT = losses.weigh(mask_BT, batch['target_ids_BT'], kinds, cfg.balance, hyper)
    weight = weighed_BT.sum()
    batch = batch | {'loss_mask_BT': weighed_BT, 'targets_BT': mask_BT}
    return batch, jnp.where(weight > 0, weight, 1.0)

  def loss(model, tap_BTD, batch, weight, hyper, key):
    total, metrics, nats_BT = loss_fn(
      model, batch, weight, hyper, key, tap_BTD, kinds if cfg.restrict else None
    )
    targets_BT = batch['targets_BT']
    for name, values_BT in (('nats', nats_BT * targets_BT), ('targets', targets_BT)):
      metrics |= sums(name, values_BT, batch)
    return total, metrics

  def sums(name, values_BT, batch):
    return {f'{name}_{letter}': losses.sum_by(values_BT, of(batch), n) for letter, (of, n) in labels.items()}

  def tap(model, batch):
    return jnp.zeros((*batch['token_ids_BT'].shape, model.cfg.width), jnp.float32)

  def tell(metrics, tap_grad_BTD, batch):
    return metrics | sums('gradient', jnp.linalg.norm(tap_grad_BTD, axis=-1), batch)

  made = Objective(weigh, loss, count_tokens)
  return made._replace(tap=tap, tell=tell) if labels else made


def count_tokens(batch):
  """-> {tokens: of documents, padding not counted; targets: those that carry loss}, float32."""
  mask_BT = batch['loss_mask_BT']
  if 'segment_ids_BT' in batch:
    tokens = (batch['segment_ids_BT'] > 0).sum()
  else:  # a stream: every token is a target but the one that its end leaves without
    tokens = jnp.minimum(mask_BT.sum(1) + 1, mask_BT.shape[1]).sum()
  return {'tokens': tokens.astype(jnp.float32), 'targets': mask_BT.sum()}


def loss_fn(model, batch, weight, hyper, key, tap_BTD=None, restricted=None):
  """A micro-batch's share of the objective -> (share, metrics, nats_BT).

  weight: sum of the step's loss mask. restricted: losses.Kinds, for a softmax over what can stand
  there.
  """
  rate = hyper.get('dropout')
  uses_dropout = rate is not None or model.cfg.attention_dropout
  x_BTD, _, aux = model.hidden(
    batch['token_ids_BT'],
    rate=jnp.float32(0) if rate is None else rate,
    key=key if uses_dropout else None,
    **gpt.inputs(model.cfg, batch),
  )
  if tap_BTD is not None:
    x_BTD = x_BTD + tap_BTD.astype(x_BTD.dtype)
  logits_BTV, mask_BT = model.logits(x_BTD, exact=False), batch['loss_mask_BT']
  if restricted is not None:
    logits_BTV = losses.restrict(logits_BTV, batch['target_ids_BT'], restricted)
  loss_BT, nats_BT = losses.objective(logits_BTV, batch['target_ids_BT'], model.cfg.vocab, hyper)
  share = mask_BT.sum() / weight
  total = (loss_BT * mask_BT).sum() / weight
  for name in ('moe_balance', 'moe_z'):
    if name in aux and name in hyper:
      total += hyper[name] * aux[name] * share
  metrics = {'loss': (nats_BT * mask_BT).sum() / weight} | {k: v * share for k, v in aux.items()}
  return total, metrics, nats_BT


def train_step(optimizer, objective, accumulate, dtype, state, batch):
  """One optimizer step -> (state, scalars). Pure; vmap it over states to train replicas."""
  # Cast once a step, outside the micro-batches; gradients are of the cast weights, summed in
  # float32.
  compute = nn.cast(state.model, dtype)
  counts = objective.count(batch)
  batch, weight = objective.weigh(batch, state.hyper)
  key = jax.random.fold_in(state.key, state.step)

  def piece_grads(a, micro_batch):
    differentiate = jax.value_and_grad(objective.loss, argnums=(0, 1), has_aux=True)
    tap, piece_key = objective.tap(compute, micro_batch), jax.random.fold_in(key, a)
    (total, metrics), (grads, tap_grad) = differentiate(
      compute, tap, micro_batch, weight, state.hyper, piece_key
    )
    grads = {path: g.astype(jnp.float32) for path, g in params_of(grads).items()}
    return objective.tell(metrics, tap_grad, micro_batch) | {'objective': total}, grads

  if accumulate == 1:
    metrics, grads = piece_grads(0, batch)
  else:
    # Row r goes to micro-batch r % A: each device keeps its own rows.
    split = lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)
    pieces = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], pieces)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(piece_grads, 0, first))
    add = lambda total, piece: (jax.tree.map(jnp.add, total, piece_grads(*piece)), None)
    (metrics, grads), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), pieces))
  state, params, scalars = guarded_update(optimizer, grads, state, metrics)
  finished, metrics = objective.finish(params, metrics, key)
  if finished is not params:  # a skipped step changes nothing
    keep = scalars['skipped'] == 0
    params = {path: jnp.where(keep, finished[path], p) for path, p in params.items()}
  metrics |= scalars | counts
  return state._replace(step=state.step + 1, model=with_params(state.model, params)), metrics


def guarded_update(optimizer, grads, state, metrics):
  """-> (state but for its model, params, scalars): as before where loss or gradient are not usable.

  That is: not finite, or with a spike guard far above those of the last applied steps.
  """
  finite = jnp.isfinite(metrics['objective']) & jnp.isfinite(metrics['loss'])
  recent_SW, updates = state.recent_SW, state.opt_state.updates
  value_S = lambda norm: jnp.stack([metrics['loss'], norm])
  spike = lambda norm: loss_guard.is_spike(recent_SW, value_S(norm), state.hyper['spike_sigma'])
  accept = lambda norm: finite if recent_SW is None else finite & ~spike(norm)
  params, opt_state, scalars = optimizer.update(
    grads, state.opt_state, params_of(state.model), state.hyper, accept
  )
  if recent_SW is not None:
    norm, applied = scalars['grad_norm'], scalars['skipped'] == 0
    scalars['spike'] = (finite & jnp.isfinite(norm) & ~applied).astype(jnp.float32)
    recent_SW = jnp.where(applied, loss_guard.update_window(recent_SW, value_S(norm), updates), recent_SW)
  return state._replace(opt_state=opt_state, recent_SW=recent_SW), params, scalars


# ------------------------------------------------------------------- onto devices, compiled


def state_shardings(abstract, mesh):
  """The state's NamedShardings; what the optimizer keeps of a parameter is laid out like it."""
  by_path = {}
  for path, p in nn.named_params(gpt.shardings(abstract.model, mesh)):
    by_path[path] = p.get_value()
  shapes = {path: p.get_value().shape for path, p in nn.named_params(abstract.model)}

  def place(path, leaf):
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    like = [name for name in names if shapes.get(name) == leaf.shape]
    return by_path[like[-1]] if like else replicated(mesh)

  opt_state = jax.tree_util.tree_map_with_path(place, abstract.opt_state)
  rest = jax.tree.map(lambda _: replicated(mesh), abstract._replace(model=None, opt_state=None))
  return rest._replace(model=gpt.shardings(abstract.model, mesh), opt_state=opt_state)


class Program(NamedTuple):
  """A model, its objective and an optimizer bound to a mesh: what a run computes."""

  abstract: TrainState  # ShapeDtypeStructs with shardings
  init: Any  # () -> TrainState, born sharded
  step: Any  # (TrainState, batch) -> (TrainState, metrics), donated, compiled once
  optimizer: Optimizer
  pure: Any  # what `step` compiles
  objective: Objective
  dtype: str  # that the step computes in


def gpt_program(cfg, model_cfg, mesh, kinds=None, sources=1):
  """The program of a GPT; see `language_objective`."""
  objective = language_objective(cfg.loss, kinds, sources)
  model = gpt.GPT(model_cfg)
  return build_program(cfg, model, objective, model_cfg.dtype, mesh, model_cfg.growth)


def build_program(cfg, abstract_model, objective, dtype, mesh, growth=1.0):
  """Everything that is compiled for one run; nothing runs yet.

  growth: width over that of the model whose learning rate it takes (muP).
  """
  axes = {path: p.axes for path, p in nn.named_params(abstract_model)}
  optimizer = Optimizer(cfg.optim, cfg.train.steps, axes, growth)
  window = cfg.train.spike_window if cfg.train.spike_sigma else 0
  make = functools.partial(init_state, abstract_model, optimizer, window=window)
  start = (hyper_of(cfg), np.uint32(cfg.train.seed))  # arguments: one program for all seeds
  abstract = jax.eval_shape(make, *start)
  shardings = state_shardings(abstract, mesh)
  step = functools.partial(train_step, optimizer, objective, cfg.train.accumulate, dtype)
  if cfg.train.steps_per_call > 1:
    step = functools.partial(jax.lax.scan, step)
  return Program(
    abstract=jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    ),
    init=lambda: jax.jit(make, out_shardings=shardings)(*start),
    step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))),
    optimizer=optimizer,
    pure=step,
    objective=objective,
    dtype=dtype,
  )


def eval_model(state):
  """The weights to evaluate and sample with: the average if there is one."""
  ema = state.opt_state.ema
  if ema is None:
    return state.model
  dtypes = {path: p.dtype for path, p in params_of(state.model).items()}
  return with_params(state.model, {path: e.astype(dtypes[path]) for path, e in ema.items()})
