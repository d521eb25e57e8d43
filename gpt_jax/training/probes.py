"""What goes on inside a model: how large activations, gradients, updates and parameters are.

All of it runs beside the train step, as compiled functions of their own, so that a run that asks
for none of it computes what it always did. Sizes are root mean squares of the entries (norm /
sqrt(count)): they compare between layers and widths. Paths are those of parameters with the number
of the layer, 'blocks/1/attention/wq_DHK'; activations go by the module that they leave:
'blocks/1/attention' is a branch, 'blocks/1' the residual stream after the layer.

Letters: B batch, T length, L layers.
Sources: coordinate check (Yang et al. 2022, appendix D.1).
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt_jax.cluster.processes import fetch
from gpt_jax.model import gpt
from gpt_jax.model import layers as nn
from gpt_jax.optim import Optimizer
from gpt_jax.sharding import replicated
from gpt_jax.step import hyper_of, init_state, language_objective, params_of, train_step

# ------------------------------------------------------------------------------------ activations


class Recorded(nnx.Module):
  """A module that also keeps what it gives, by path, in a dict."""

  def __init__(self, module, path, kept):
    self.call = lambda *args, **kwargs: keep(module(*args, **kwargs), path, kept)

  def __call__(self, *args, **kwargs):
    """What the module gives."""
    return self.call(*args, **kwargs)


def keep(output, path, kept):
  """The output, after its activation was kept: the first of a tuple."""
  kept[path] = output[0] if isinstance(output, tuple) else output
  return output


def activations(model, batch):
  """{path: activation, BTD} of a GPT on a batch, and 'logits', BTV; no dropout.

  The model is the one that trains, its layers as a Python loop.
  """
  kept, cfg = {}, model.cfg
  model = nn.map_params(lambda path, p: p.get_value(), model)  # ours to change
  model.cfg = dataclasses.replace(cfg, unroll='on', remat='none')
  blocks = nn.unstack(model.blocks)
  for l, block in enumerate(blocks):
    for name in ('attention', 'mlp'):
      setattr(block, name, Recorded(getattr(block, name), f'blocks/{l}/{name}', kept))
  model.blocks = nnx.List([Recorded(b, f'blocks/{l}', kept) for l, b in enumerate(blocks)])
  x_BTD, _, _ = model.hidden(batch['token_ids_BT'], **gpt.inputs(cfg, batch))
  return kept | {'final_norm': x_BTD, 'logits': model.logits(x_BTD)[..., : cfg.vocab]}


def places(cfg):
  """The paths of `activations`, in the order of the computation."""
  of_layer = ('/attention', '/mlp', '')
  blocks = [f'blocks/{l}{name}' for l in range(cfg.layers) for name in of_layer]
  return [*blocks, 'final_norm', 'logits']


def real_tokens(batch):
  """Float mask BT of the tokens that are not padding."""
  ids_BT = batch.get('segment_ids_BT')
  if ids_BT is None:
    return jnp.ones(batch['token_ids_BT'].shape, jnp.float32)
  return (ids_BT > 0).astype(jnp.float32)


def token_rms(x_BTD, real_BT):
  """Root mean square over the tokens that are real."""
  square_BT = jnp.square(x_BTD.astype(jnp.float32)).mean(-1)
  return jnp.sqrt((square_BT * real_BT).sum() / jnp.maximum(real_BT.sum(), 1.0))


# ---------------------------------------------------------------------------------------- a step


def rms(x, axes):
  """Root mean square of a parameter's array: one number, or one a layer."""
  over = tuple(range(axes.startswith('L'), x.ndim))
  return jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean(over))


def measure(optimizer, objective, accumulate, dtype, state, batch):
  """What the step from `state` on `batch` would do -> {path: {name: scalar, or one a layer}}.

  Pure. It follows train_step on the first micro-batch: with accumulation, gradients and updates
  are of that part of the rows.
  """
  batch = jax.tree.map(lambda x: x[::accumulate], batch)
  compute = nn.cast(state.model, dtype)
  weighed, weight = objective.weigh(batch, state.hyper)
  key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0)
  loss = lambda model: objective.loss(
    model, objective.probe(model, weighed), weighed, weight, state.hyper, key
  )
  grads = params_of(jax.grad(loss, has_aux=True)(compute)[0])
  grads = {path: g.astype(jnp.float32) for path, g in grads.items()}
  params = params_of(state.model)
  updated, _, _ = optimizer.update(grads, state.opt_state, params, state.hyper)
  updates = {path: updated[path].astype(jnp.float32) - p for path, p in params.items()}
  found = {}
  for path, axes in optimizer.axes.items():
    parts = {'gradient': grads[path], 'update': updates[path], 'parameter': params[path]}
    found[path] = {name: rms(x, axes) for name, x in parts.items()}
  if isinstance(state.model, gpt.GPT):
    real_BT = real_tokens(batch)
    for path, x_BTD in activations(compute, batch).items():
      found[path] = {'activation': token_rms(x_BTD, real_BT)}
  return found


def compile_probe(optimizer, objective, accumulate, dtype, mesh):
  """The probe of a run: (state, batch) -> what `measure` gives; nothing is donated.

  Arguments as `step.build_program` gives them to train_step. `by_layer` makes rows of the result.
  """
  fn = functools.partial(measure, optimizer, objective, accumulate, dtype)
  return jax.jit(fn, out_shardings=replicated(mesh))


def by_layer(found):
  """Fetch what a probe found -> {path: {name: float}}, a path for each layer."""
  rows = {}
  for path, values in fetch(found).items():
    for name, value in values.items():
      if np.ndim(value) == 0:
        rows.setdefault(path, {})[name] = float(value)
        continue
      for l, entry in enumerate(value):
        rows.setdefault(path.replace('/', f'/{l}/', 1), {})[name] = float(entry)
  return dict(sorted(rows.items(), key=lambda row: natural(row[0])))


def natural(path):
  """A sorting key by which layer 10 comes after layer 9."""
  return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split('/', path)]


# ------------------------------------------------------------------------------------ comparisons


def activation_diff(run_a, run_b, batch):
  """What two models make of one batch -> [(path, largest difference, relative difference)].

  run_a, run_b: GPTs, or anything with one as `.model`, such as trained.TrainedRun. batch: a small one,
  for every activation is kept. Rows are in the order of the computation: the first large one is
  where the two part. Relative: the difference's RMS over that of run_a's. NaN where one has no such
  activation, or one of another shape. Padding does not count.
  Raises ValueError for models over different vocabularies, which no batch serves.
  """
  a, b = (getattr(run, 'model', run) for run in (run_a, run_b))
  if a.cfg.vocab != b.cfg.vocab:
    raise ValueError(
      f'the runs read {a.cfg.vocab} and {b.cfg.vocab} ids: no batch means the same to both\n'
      'fix: compare runs of one tokenizer'
    )
  of_a, of_b, real_BT = fetch(jax.jit(_both)(a, b, batch))
  rows = []
  for path in places(a.cfg if a.cfg.layers > b.cfg.layers else b.cfg):
    shapes = {x[path].shape for x in (of_a, of_b) if path in x}
    if len(shapes) > 1 or path not in of_a or path not in of_b:
      rows.append((path, math.nan, math.nan))
      continue
    gap_BTD = np.abs(of_a[path] - of_b[path]) * real_BT[..., None]
    size_BTD = of_a[path] * real_BT[..., None]
    relative = np.linalg.norm(gap_BTD) / max(np.linalg.norm(size_BTD), 1e-30)
    rows.append((path, float(gap_BTD.max()), float(relative)))
  return rows


def _both(a, b, batch):
  """Activations of two models as each computes them, in float32, and the mask."""
  as_float32 = lambda found: {path: x.astype(jnp.float32) for path, x in found.items()}
  a, b = (as_float32(activations(nn.cast(run, run.cfg.dtype), batch)) for run in (a, b))
  return a, b, real_tokens(batch)


def coordinate_check(cfg, models, batch, steps=4):
  """How large activations are as models grow -> {path: {width: [RMS before each step, and after]}}.

  cfg: config.Config, for loss and optimizer. models: resolved ModelConfigs that differ in width.
  With muP no row grows with the width, whatever the learning rate; without it the later entries do.
  Every step is on the same batch.
  """
  found = {}
  for model_cfg in models:
    abstract = gpt.GPT(model_cfg)
    axes = {path: p.axes for path, p in nn.named_params(abstract)}
    optimizer = Optimizer(cfg.optim, cfg.train.steps, axes, model_cfg.growth)
    step = functools.partial(train_step, optimizer, language_objective(), 1, model_cfg.dtype)

    def advance(state, _, step=step):
      kept = activations(nn.cast(state.model, state.model.cfg.dtype), batch)
      sizes = {path: token_rms(x_BTD, real_tokens(batch)) for path, x_BTD in kept.items()}
      return step(state, batch)[0], sizes

    @jax.jit
    def run(abstract=abstract, optimizer=optimizer, advance=advance):
      state = init_state(abstract, optimizer, hyper_of(cfg), cfg.train.seed)
      return jax.lax.scan(advance, state, length=steps + 1)[1]

    for path, sizes in run().items():
      found.setdefault(path, {})[model_cfg.width] = np.asarray(sizes).tolist()
  return found
