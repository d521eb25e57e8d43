"""One optimizer step as a pure function, and the program that compiles it for a mesh.

`train_step` maps (state, batch) to (state, metrics). jit, shardings and donation are put around it
in `build_program`; vmap over states trains replicas. What an ablation may vary without compiling
again travels in `state.hyper`.

Letters: B batch rows, T length, A micro-batches a step.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax import losses
from gpt_jax.model import gpt
from gpt_jax.model import layers as nn
from gpt_jax.optim import Optimizer
from gpt_jax.sharding import replicated


class TrainState(NamedTuple):
  """All that changes during training."""

  step: jax.Array  # int32; batches consumed
  model: gpt.GPT
  opt_state: Any  # see optim.OptState
  key: jax.Array  # PRNG key; step s uses fold_in(key, s)
  hyper: dict  # traced scalars that an ablation may vary within one compiled step


def params_of(model):
  """A model -> {path: array}, what the optimizer works on."""
  return {path: p.get_value() for path, p in nn.named_params(model)}


def with_params(model, params):
  """The model with these arrays."""
  return nn.map_params(lambda path, p: params[path], model)


def hyper_of(cfg):
  """The traced scalars of a config. A regulariser of weight 0 is left out, and costs nothing."""
  always = {'lr': cfg.optim.lr, 'weight_decay': cfg.optim.weight_decay}
  optional = {'dropout': cfg.model.dropout} | dataclasses.asdict(cfg.loss)
  chosen = always | {name: value for name, value in optional.items() if value}
  return {name: jnp.float32(value) for name, value in chosen.items()}


def init_state(abstract_model, optimizer, hyper, seed):
  """The state before the first step, a pure function of the seed."""
  init_key, step_key = jax.random.split(jax.random.key(seed))
  model = nn.initialise(abstract_model, init_key)
  return TrainState(
    step=jnp.int32(0),
    model=model,
    opt_state=optimizer.init(params_of(model)),
    key=step_key,
    hyper=hyper,
  )


def loss_fn(model, batch, weight, hyper, key):
  """A micro-batch's share of the objective, and its metrics; `weight` sums the step's loss mask."""
  rate = hyper.get('dropout')
  uses_dropout = rate is not None or model.cfg.attention_dropout
  out = model(
    batch['token_ids_BT'],
    positions_BT=batch.get('positions_BT'),
    segment_ids_BT=batch.get('segment_ids_BT'),
    prefix_BT=batch.get('prefix_BT'),
    rate=jnp.float32(0) if rate is None else rate,
    key=key if uses_dropout else None,
  )
  objective, nats = losses.objective(
    out.logits_BTV, batch['target_ids_BT'], batch['loss_mask_BT'], model.cfg.vocab, hyper
  )
  share = batch['loss_mask_BT'].sum() / weight
  total = objective / weight
  for name in ('moe_balance', 'moe_z'):
    if name in out.aux and name in hyper:
      total += hyper[name] * out.aux[name] * share
  return total, {'loss': nats / weight} | {k: v * share for k, v in out.aux.items()}


def train_step(optimizer, accumulate, dtype, state, batch):
  """One optimizer step -> (state, scalars). Pure; vmap it over states to train replicas."""
  # Cast once a step, outside the micro-batches; gradients are of the cast weights, summed in
  # float32.
  compute = nn.cast(state.model, dtype)
  weight = jnp.maximum(batch['loss_mask_BT'].sum(), 1.0)
  key = jax.random.fold_in(state.key, state.step)

  def piece_grads(a, micro_batch):
    (objective, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      compute, micro_batch, weight, state.hyper, jax.random.fold_in(key, a)
    )
    grads = {path: g.astype(jnp.float32) for path, g in params_of(grads).items()}
    return metrics | {'objective': objective}, grads

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
  params, opt_state, scalars = optimizer.update(
    grads, state.opt_state, params_of(state.model), state.hyper
  )
  metrics |= scalars | {'tokens': batch['loss_mask_BT'].sum()}
  state = state._replace(
    step=state.step + 1, model=with_params(state.model, params), opt_state=opt_state
  )
  return state, metrics


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
  """A model and optimizer bound to a mesh: what a run computes."""

  abstract: TrainState  # ShapeDtypeStructs with shardings
  init: Any  # () -> TrainState, born sharded
  step: Any  # (TrainState, batch) -> (TrainState, metrics), donated, compiled once
  optimizer: Optimizer


def build_program(cfg, model_cfg, mesh):
  """Everything that is compiled for one run; nothing runs yet."""
  abstract_model = gpt.GPT(model_cfg)
  axes = {path: p.axes for path, p in nn.named_params(abstract_model)}
  optimizer = Optimizer(cfg.optim, cfg.train.steps, axes)
  make = functools.partial(init_state, abstract_model, optimizer, seed=cfg.train.seed)
  abstract = jax.eval_shape(make, hyper_of(cfg))
  shardings = state_shardings(abstract, mesh)
  step = functools.partial(train_step, optimizer, cfg.train.accumulate, model_cfg.dtype)
  if cfg.train.steps_per_call > 1:
    step = functools.partial(jax.lax.scan, step)
  return Program(
    abstract=jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    ),
    init=lambda: jax.jit(make, out_shardings=shardings)(hyper_of(cfg)),
    step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))),
    optimizer=optimizer,
  )


def eval_model(state):
  """The weights to evaluate and sample with: the average if there is one."""
  ema = state.opt_state.ema
  if ema is None:
    return state.model
  dtypes = {path: p.dtype for path, p in params_of(state.model).items()}
  return with_params(state.model, {path: e.astype(dtypes[path]) for path, e in ema.items()})
