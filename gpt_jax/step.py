"""One optimizer step as a pure function, and the program that compiles it for a mesh.

`train_step` maps (state, batch) to (state, metrics). `build_program` puts jit, shardings and donation
around it; vmap over states trains replicas (ablation/execute/replicas.py). Scalars that an ablation may
vary without compiling again travel in `state.hyper`.

Letters: B batch rows, T length, N places with logits, D width, V vocabulary; S, W: training/loss_guard.py.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import losses
from gpt_jax.model import adapters, flow, gpt, layers, moe, param_trees
from gpt_jax.model.kernels import target_places
from gpt_jax.optim import Optimizer
from gpt_jax.sharding import replicated
from gpt_jax.training import loss_guard


class TrainState(NamedTuple):
  """Everything that changes during training."""

  step: jax.Array  # int32; batches consumed
  model: Any  # a gpt.GPT or an autoencoder
  opt_state: Any  # see optim.OptState
  key: jax.Array  # PRNG key; step s uses fold_in(key, s)
  hyper: dict  # traced scalars of the config that an ablation may vary within one compiled step
  recent_SW: Any = None  # losses and norms of the last applied steps, for a spike guard
  frozen: Any = None  # the base of adapters (`model`), a gpt.GPT; not part of checkpoints


def params_of(model):
  """Return a model's parameters as {path: array}, which the optimizer works on."""
  return {path: p.get_value() for path, p in param_trees.named_params(model)}


def with_params(model, params):
  """Return the model with these arrays."""
  return param_trees.map_params(lambda path, p: params[path], model)


def eval_model(state):
  """Return the model to evaluate and sample with: its moving average if there is one."""
  model, ema = state.model, state.opt_state.ema
  if ema is not None:
    dtypes = {path: p.dtype for path, p in params_of(model).items()}
    model = with_params(model, {path: e.astype(dtypes[path]) for path, e in ema.items()})
  return adapters.merge(state.frozen, model)


def hyper_of(cfg):
  """Return a config's traced scalars; one that has no effect at its value is left out, for speed."""
  optional = {'dropout': cfg.model.dropout, 'spike_sigma': cfg.train.spike_sigma}
  optional |= {k: getattr(cfg.loss, k) for k in ('z_loss', 'label_smoothing', 'moe_balance', 'moe_z')}
  optional |= losses.parse_numbers('loss.terms', cfg.loss.terms, losses.TERMS)
  weights = {name: getattr(cfg.loss, name) for name in losses.MODALITIES}
  hyper = {'lr': cfg.optim.lr, 'weight_decay': cfg.optim.weight_decay}
  hyper |= {k: v for k, v in optional.items() if v} | {k: v for k, v in weights.items() if v != 1}
  return {name: np.float32(value) for name, value in hyper.items()}


def init_state(abstract_model, optimizer, hyper, seed, window=0):
  """Return the state before the first step, a pure function of the seed; window: of a spike guard."""
  init_key, step_key = jax.random.split(jax.random.key(seed))
  model = layers.initialize(abstract_model, init_key)
  recent_SW = loss_guard.empty_window(window) if window else None
  return TrainState(jnp.int32(0), model, optimizer.init(params_of(model)), step_key, hyper, recent_SW)


# ------------------------------------------------------------------------------ from batch to loss


class Objective(NamedTuple):
  """The quantity that a step minimizes, as functions: those of one kind of model."""

  weigh: Any  # (batch, hyper) -> (batch, weight): the weight of the whole step
  loss: Any  # (model, probe, micro-batch, weight, hyper, key) -> (its share, metrics with 'loss' in nats)
  count: Any  # batch -> {'tokens': items in it: tokens or images, and other counts}
  probe: Any = lambda model, micro_batch: None  # zeros added to a hidden state, to read the gradient there
  probe_metrics: Any = lambda metrics, probe_grad, micro_batch: metrics  # from the probe's gradient
  post_update: Any = lambda params, metrics, key: (params, metrics)  # updates without gradients
  gradient: Any = None  # (loss, gradients, model, batch) -> (metrics, grads) in their place: training/privacy


def language_objective(places=None):
  """Return the Objective of a GPT on text: mean cross-entropy over the targets of the whole step.

  jobs/modality_objective.py adds weights and metrics by modality and by data source. places: see loss_fn.
  """

  def weigh(batch, hyper):
    weight = batch['loss_mask_BT'].sum()
    return batch, jnp.where(weight > 0, weight, 1.0)

  def loss(model, probe, batch, weight, hyper, key):
    return loss_fn(model, batch, weight, hyper, key, places=places)[:2]

  return Objective(weigh, loss, count_tokens)


def loss_fn(model, batch, weight, hyper, key, probe_BTD=None, restrict=None, places=None):
  """Return (part of the objective, metrics, nats_BT) of one micro-batch.

  batch: token_ids_BT, target_ids_BT (int32), loss_mask_BT (float32) and, where the data have them, the
  arguments of gpt.GPT.trunk: segment_ids_BT, positions_BT (or _BT3), prefix_BT, patches_BTA, ...
  weight: the normalizer of the whole step, from Objective.weigh. probe_BTD: added to the last hidden state.
  restrict: logits_BTV -> logits_BTV, for a softmax over fewer ids. places: an upper bound on the targets of a
  row, to compute few other logits (nats_BT is 0 there); None = all. Not with `restrict`.
  """
  rate = hyper.get('dropout')
  uses_dropout = rate is not None or model.cfg.attention_dropout
  x_BTD, _, aux = model.trunk(
    batch['token_ids_BT'],
    rate=jnp.float32(0) if rate is None else rate,
    key=key if uses_dropout else None,
    **gpt.inputs(model.cfg, batch),
  )
  if probe_BTD is not None:
    x_BTD = x_BTD + probe_BTD.astype(x_BTD.dtype)
  mask_BT = batch['loss_mask_BT']
  gather, scatter = target_places.choose_places(batch.get('targets_BT', mask_BT), places)
  logits_BNV = model.logits(gather(x_BTD), exact=False)
  if restrict is not None:
    logits_BNV = restrict(logits_BNV)
  scored = losses.objective(logits_BNV, gather(batch['target_ids_BT']), model.cfg.vocab, hyper)
  scored = flow.score_patches(model, scored, gather, x_BTD, batch, key)
  loss_BT, nats_BT = map(scatter, scored)
  fraction = mask_BT.sum() / weight
  total = (loss_BT * mask_BT).sum() / weight
  total += moe.experts_loss(aux, hyper) * fraction
  metrics = {'loss': (nats_BT * mask_BT).sum() / weight} | {k: v * fraction for k, v in aux.items()}
  return total, metrics, nats_BT


def count_tokens(batch):
  """Return float32 counts: tokens (padding not counted) and targets (those that carry loss)."""
  mask_BT = batch['loss_mask_BT']
  if 'segment_ids_BT' in batch:
    tokens = (batch['segment_ids_BT'] > 0).sum()
  else:  # crops of a stream: the last token of the stream has no target, all others have one
    tokens = jnp.minimum(mask_BT.sum(1) + 1, mask_BT.shape[1]).sum()
  return {'tokens': tokens.astype(jnp.float32), 'targets': mask_BT.sum()}


def train_step(optimizer, objective, accumulate, dtype, state, batch):
  """Apply one optimizer step; return (state, scalars). Pure; vmap it over states to train replicas."""
  # Cast once a step, outside the micro-batches; gradients of the cast weights are summed in float32.
  model, frozen = param_trees.cast(state.model, dtype), param_trees.cast(state.frozen, dtype)
  counts = objective.count(batch)
  batch, weight = objective.weigh(batch, state.hyper)
  key = jax.random.fold_in(state.key, state.step)

  def loss(model, probe, i, micro_batch):
    rest = micro_batch, weight, state.hyper, jax.random.fold_in(key, i)
    return objective.loss(adapters.attach(frozen, model, rest[-1]), probe, *rest)

  def gradients(i, micro_batch):
    differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    probe = objective.probe(adapters.attach(frozen, model), micro_batch)
    (total, metrics), (grads, probe_grad) = differentiate(model, probe, i, micro_batch)
    grads = {path: g.astype(jnp.float32) for path, g in params_of(grads).items()}
    return objective.probe_metrics(metrics, probe_grad, micro_batch) | {'objective': total}, grads

  if objective.gradient is not None:
    metrics, grads = objective.gradient(loss, gradients, model, batch)
  elif accumulate == 1:
    metrics, grads = gradients(0, batch)
  else:
    # Row r goes to micro-batch r % accumulate: each device keeps its own rows.
    micro_batches = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradients, 0, first))
    add = lambda total, item: (jax.tree.map(jnp.add, total, gradients(*item)), None)
    (metrics, grads), _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro_batches))
  state, params, scalars = guarded_update(optimizer, grads, state, metrics)
  updated, metrics = objective.post_update(params, metrics, key)
  if updated is not params:  # a skipped step changes nothing
    applied = scalars['skipped'] == 0
    params = {path: jnp.where(applied, updated[path], p) for path, p in params.items()}
  state = state._replace(step=state.step + 1, model=with_params(state.model, params))
  return state, metrics | scalars | counts


def guarded_update(optimizer, grads, state, metrics):
  """Return (state but for its model, params, scalars), unchanged where loss or gradient are unusable.

  Unusable: not finite or, with a spike guard, far above those of the last applied steps.
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


# ------------------------------------------------------------------------- onto devices, compiled


def state_shardings(abstract, mesh):
  """Return the state's NamedShardings; optimizer state of a parameter is laid out like it."""
  by_path = params_of(gpt.shardings(abstract.model, mesh))
  shapes = {path: x.shape for path, x in params_of(abstract.model).items()}

  def place(path, leaf):
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    owners = [name for name in names if shapes.get(name) == leaf.shape]
    return by_path[owners[-1]] if owners else replicated(mesh)

  opt_state = jax.tree_util.tree_map_with_path(place, abstract.opt_state)
  rest = jax.tree.map(lambda _: replicated(mesh), abstract._replace(model=None, opt_state=None, frozen=None))
  model, frozen = gpt.shardings(abstract.model, mesh), gpt.shardings(abstract.frozen, mesh)
  return rest._replace(model=model, opt_state=opt_state, frozen=frozen)


class Program(NamedTuple):
  """A model, its objective and an optimizer bound to a mesh."""

  abstract: TrainState  # ShapeDtypeStructs with shardings
  init: Any  # () -> TrainState, born sharded, without `frozen`
  step: Any  # (TrainState, batch) -> (TrainState, metrics), jitted, donates its state; batches may be stacked
  optimizer: Optimizer
  pure: Any  # the function that `step` jits
  objective: Objective
  dtype: str  # of the computation


def gpt_program(cfg, model_cfg, mesh, objective=None):
  """Return the Program of a GPT; objective: default `language_objective`."""
  objective = objective or language_objective()
  model, frozen = adapters.split(cfg.adapter, gpt.GPT(model_cfg))
  return build_program(cfg, model, objective, model_cfg.dtype, mesh, model_cfg.growth, frozen)


def build_program(cfg, abstract_model, objective, dtype, mesh, growth=1.0, frozen=None):
  """Return the Program of a model; nothing is compiled yet.

  growth: width over that of the model whose learning rate it takes (muP). frozen: see TrainState.
  """
  axes = {path: p.axes for path, p in param_trees.named_params(abstract_model)}
  optimizer = Optimizer(cfg.optim, cfg.train.steps, axes, growth)
  window = cfg.train.spike_window if cfg.train.spike_sigma else 0
  make = functools.partial(init_state, abstract_model, optimizer, window=window)
  start = (hyper_of(cfg), np.uint32(cfg.train.seed))  # arguments: one program for all seeds
  abstract = jax.eval_shape(make, *start)._replace(frozen=frozen)
  shardings = state_shardings(abstract, mesh)
  step = functools.partial(train_step, optimizer, objective, cfg.train.accumulate, dtype)
  if cfg.train.steps_per_call > 1:
    step = functools.partial(jax.lax.scan, step)
  with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return Program(
    abstract=jax.tree.map(with_sharding, abstract, shardings),
    init=lambda: jax.jit(make, out_shardings=shardings._replace(frozen=None))(*start),
    step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))),
    optimizer=optimizer,
    pure=step,
    objective=objective,
    dtype=dtype,
  )
