"""Probes: sizes of activations, gradients, updates and parameters in every layer.

They run beside the train step, as compiled functions of their own, and never change it. Sizes are
root mean squares of the entries (norm / sqrt(count)), which compare between layers and widths. Paths
are those of parameters with the layer's number, 'blocks/1/attention/wq_DHK'; an activation has the path
of the module that returns it: 'blocks/1/attention' is a branch, 'blocks/1' the residual stream after
the layer.

Letters: B batch, T length, S keys, L layers, D width, H query heads, G key/value heads, M query heads per
key/value head, K head width.
Sources: coordinate check (Yang et al. 2022, appendix D.1).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt_jax.cluster.processes import fetch
from gpt_jax.model import adapters, gpt, layers, param_trees
from gpt_jax.model import mask as model_mask
from gpt_jax.model.positions import POSITIONS
from gpt_jax.optim import Optimizer
from gpt_jax.sharding import replicated
from gpt_jax.step import hyper_of, init_state, language_objective, loss_fn, params_of, train_step

# ------------------------------------------------------------------------------------ activations


class Recorded(nnx.Module):
  """A module that also records its activation, the first of a tuple, in a dict by path.

  measure: function of the module and its arguments, recorded as path/weights; None for no more.
  """

  def __init__(self, module, path, outputs, measure=None):
    def call(*args, **kwargs):
      output = module(*args, **kwargs)
      outputs[path] = output[0] if isinstance(output, tuple) else output
      if measure is not None:
        outputs[f'{path}/weights'] = measure(module, *args, **kwargs)
      return output

    self.call = call

  def __call__(self, *args, **kwargs):
    """Return the module's output."""
    return self.call(*args, **kwargs)


def activations(model, batch, with_weights=False):
  """Return {path: activation, BTD} of a GPT on a batch, and 'logits', BTV; without dropout.

  It computes the trained model with its layers unrolled. with_weights: also the attention weights of each
  layer, 'blocks/1/attention/weights', BHTS float32.
  """
  outputs, cfg = {}, model.cfg
  model = param_trees.map_params(lambda path, p: p.get_value(), model)  # a copy to change
  model.cfg = dataclasses.replace(cfg, unroll='on', remat='none')
  blocks = param_trees.unstack(model.blocks)
  for l, block in enumerate(blocks):
    for name, measure in (('attention', attention_weights if with_weights else None), ('mlp', None)):
      setattr(block, name, Recorded(getattr(block, name), f'blocks/{l}/{name}', outputs, measure))
  model.blocks = nnx.List([Recorded(b, f'blocks/{l}', outputs) for l, b in enumerate(blocks)])
  x_BTD, _, _ = model.trunk(batch['token_ids_BT'], **gpt.inputs(cfg, batch))
  return outputs | {'final_norm': x_BTD, 'logits': model.logits(x_BTD)[..., : cfg.vocab]}


def attention_weights(attention, x_BTD, mask, positions_BT, cache=None, key=None, frequencies_k=None):
  """Return what an attention layer averages the values of its input with, BHTS float32: rows add up to 1.

  Arguments as the layer's; cache and key have no effect.
  """
  cfg = attention.cfg
  q_BTHK = layers.linear('BTD,DHK->BTHK', x_BTD, attention.wq_DHK, attention.q_bias_HK)
  k_BSGK = layers.linear('BTD,DGK->BTGK', x_BTD, attention.wk_DGK, attention.k_bias_GK)
  if attention.q_norm and attention.k_norm:
    q_BTHK, k_BSGK = attention.q_norm(q_BTHK), attention.k_norm(k_BSGK)
  rotate = POSITIONS[cfg.positions].rotate
  if rotate is not None:
    q_BTHK, k_BSGK = (rotate(cfg, x, positions_BT, frequencies_k) for x in (q_BTHK, k_BSGK))
  B, T, H, K = q_BTHK.shape
  q_BTGMK = q_BTHK.reshape(B, T, cfg.G, H // cfg.G, K)
  scores_BGMTS = model_mask.scores_BGMTS(cfg, q_BTGMK, k_BSGK, mask.t_BT, mask.s_BS)
  scores_BGMTS = jnp.where(mask.visible_BTS()[:, None, None], scores_BGMTS, -1e30)
  return jax.nn.softmax(scores_BGMTS, -1).reshape(B, H, T, -1)


def activation_paths(cfg):
  """Return the paths of `activations`, in the order of the computation."""
  blocks = [f'blocks/{l}{name}' for l in range(cfg.layers) for name in ('/attention', '/mlp', '')]
  return [*blocks, 'final_norm', 'logits']


def real_tokens(batch):
  """Return a float mask BT of the tokens that are not padding."""
  ids_BT = batch.get('segment_ids_BT')
  if ids_BT is None:
    return jnp.ones(batch['token_ids_BT'].shape, jnp.float32)
  return (ids_BT > 0).astype(jnp.float32)


def token_rms(x_BTD, real_BT):
  """Root mean square over the tokens that are not padding."""
  square_BT = jnp.square(x_BTD.astype(jnp.float32)).mean(-1)
  return jnp.sqrt((square_BT * real_BT).sum() / jnp.maximum(real_BT.sum(), 1.0))


# ---------------------------------------------------------------------------------------- a step


def rms(x, axes):
  """Root mean square of a parameter's array: one number, or one per layer."""
  reduced = tuple(range(axes.startswith('L'), x.ndim))
  return jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean(reduced))


def measure_step(optimizer, objective, accumulate, dtype, state, batch):
  """Measure the step that train_step would do from `state` -> {path: {name: scalar or one per layer}}.

  Pure. With accumulation, gradients and updates are those of the first micro-batch.
  """
  batch = jax.tree.map(lambda x: x[::accumulate], batch)
  compute, frozen = param_trees.cast(state.model, dtype), param_trees.cast(state.frozen, dtype)
  weighed, weight = objective.weigh(batch, state.hyper)
  key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0)

  def loss(trained):
    model = adapters.attach(frozen, trained, key)
    return objective.loss(model, objective.probe(model, weighed), weighed, weight, state.hyper, key)

  grads = params_of(jax.grad(loss, has_aux=True)(compute)[0])
  grads = {path: g.astype(jnp.float32) for path, g in grads.items()}
  params = params_of(state.model)
  updated, _, _ = optimizer.update(grads, state.opt_state, params, state.hyper)
  updates = {path: updated[path].astype(jnp.float32) - p for path, p in params.items()}
  sizes = {}
  for path, axes in optimizer.axes.items():
    parts = {'gradient': grads[path], 'update': updates[path], 'parameter': params[path]}
    sizes[path] = {name: rms(x, axes) for name, x in parts.items()}
  model = adapters.attach(frozen, compute)
  if isinstance(model, gpt.GPT):
    real_BT = real_tokens(batch)
    for path, x_BTD in activations(model, batch).items():
      sizes[path] = {'activation': token_rms(x_BTD, real_BT)}
  return sizes


def gradient_sizes(model, batch):
  """Return {path with its layer: RMS of the gradient of the mean loss} of a GPT on a batch."""
  return {path: row['gradient'] for path, row in by_layer(_gradient_sizes(model, batch)).items()}


@jax.jit
def _gradient_sizes(model, batch):
  weight = jnp.maximum(batch['loss_mask_BT'].sum(), 1.0)
  loss = lambda model: loss_fn(model, batch, weight, {}, None)[0]
  grads = params_of(jax.grad(loss)(param_trees.cast(model, model.cfg.dtype)))
  axes = {path: p.axes for path, p in param_trees.named_params(model)}
  return {path: {'gradient': rms(g, axes[path])} for path, g in grads.items()}


def compile_probe(optimizer, objective, accumulate, dtype, mesh):
  """Return the compiled `measure_step` of a run, (state, batch) -> sizes; nothing is donated.

  Arguments as in `step.train_step`. `by_layer` turns the result into rows.
  """
  fn = functools.partial(measure_step, optimizer, objective, accumulate, dtype)
  return jax.jit(fn, out_shardings=replicated(mesh))


def by_layer(sizes):
  """Fetch the result of a probe -> {path: {name: float}}, with a path for each layer."""
  rows = {}
  for path, values in fetch(sizes).items():
    for name, value in values.items():
      stack = 'blocks/' if 'blocks/' in path else '/'
      layers = [path.replace(stack, f'{stack}{l}/', 1) for l in range(np.size(value))]
      paths = layers if np.ndim(value) else [path]
      for layer_path, size in zip(paths, np.atleast_1d(value), strict=True):
        rows.setdefault(layer_path, {})[name] = float(size)
  natural_key = lambda path: [(p.isdigit(), int(p) if p.isdigit() else p) for p in path.split('/')]
  return {path: rows[path] for path in sorted(rows, key=natural_key)}  # layer 10 after layer 9


# ------------------------------------------------------------------------------------ comparisons


def activation_diff(run_a, run_b, batch):
  """Compare the activations of two models on one batch -> [(path, largest, relative difference)].

  run_a, run_b: GPTs, or anything with one as `.model`, such as trained.TrainedRun. batch: small,
  because every activation is stored. Rows are in the order of the computation: the first large one is
  where the models diverge. Relative: the difference's RMS / that of run_a's activation. NaN where the
  other has no such activation, or one of another shape. Padding does not count.
  Raises ValueError for models over different vocabularies.
  """
  a, b = (getattr(run, 'model', run) for run in (run_a, run_b))
  if a.cfg.vocab != b.cfg.vocab:
    raise ValueError(
      f'the vocabularies have {a.cfg.vocab} and {b.cfg.vocab} ids: no batch means the same to both\n'
      'fix: compare runs of one tokenizer'
    )
  of_a, of_b, real_BT = fetch(jax.jit(_activations_of_both)(a, b, batch))
  rows = []
  for path in activation_paths(a.cfg if a.cfg.layers > b.cfg.layers else b.cfg):
    shapes = {x[path].shape for x in (of_a, of_b) if path in x}
    if len(shapes) > 1 or path not in of_a or path not in of_b:
      rows.append((path, math.nan, math.nan))
      continue
    gap_BTD = np.abs(of_a[path] - of_b[path]) * real_BT[..., None]
    size_BTD = of_a[path] * real_BT[..., None]
    relative = np.linalg.norm(gap_BTD) / max(np.linalg.norm(size_BTD), 1e-30)
    rows.append((path, float(gap_BTD.max()), float(relative)))
  return rows


def _activations_of_both(a, b, batch):
  """Return the activations of two models, each in its own dtype, as float32, and the padding mask."""
  as_float32 = lambda outputs: {path: x.astype(jnp.float32) for path, x in outputs.items()}
  a, b = (as_float32(activations(param_trees.cast(run, run.cfg.dtype), batch)) for run in (a, b))
  return a, b, real_tokens(batch)


def coordinate_check(cfg, models, batch, steps=4):
  """Measure activations as models grow -> {path: {width: [RMS before each step, and after the last]}}.

  cfg: config.Config, for loss and optimizer. models: resolved ModelConfigs that differ in width.
  With muP no row grows with the width, whatever the learning rate; without it the later entries do.
  Every step is on the same batch.
  """
  sizes_by_path = {}
  for model_cfg in models:
    abstract = gpt.GPT(model_cfg)
    axes = {path: p.axes for path, p in param_trees.named_params(abstract)}
    optimizer = Optimizer(cfg.optim, cfg.train.steps, axes, model_cfg.growth)
    step = functools.partial(train_step, optimizer, language_objective(), 1, model_cfg.dtype)

    def advance(state, _, step=step):
      outputs = activations(param_trees.cast(state.model, state.model.cfg.dtype), batch)
      sizes = {path: token_rms(x_BTD, real_tokens(batch)) for path, x_BTD in outputs.items()}
      return step(state, batch)[0], sizes

    @jax.jit
    def run(abstract=abstract, optimizer=optimizer, advance=advance):
      state = init_state(abstract, optimizer, hyper_of(cfg), cfg.train.seed)
      return jax.lax.scan(advance, state, length=steps + 1)[1]

    for path, sizes in run().items():
      sizes_by_path.setdefault(path, {})[model_cfg.width] = np.asarray(sizes).tolist()
  return sizes_by_path
