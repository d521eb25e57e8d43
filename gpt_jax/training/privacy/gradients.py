"""The private gradient: per-unit gradients, each clipped, summed, with Gaussian noise.

It takes the place of the plain gradient in step.train_step. A batch of data/poisson.py holds one row of each
sampled unit; its micro-batches are computed one after another until no unit is left, and in each the
gradients of all units at once: a row of GRADIENTS says how.

Letters: B slots of a batch, m units of a micro-batch, L layers.

Sources: Abadi et al. 2016 (arXiv:1607.00133), algorithm 1, divided by the expected number of units; ghost
clipping (Li et al. 2021, arXiv:2110.05679, section 4).
"""

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.model import param_trees, tapped

MECHANISM = 'DP-SGD: Poisson sampling, clipped gradients, Gaussian noise'


def private_objective(objective, clip, noise_multiplier, expected, micro, way='vmap'):
  """Return the step.Objective whose gradient is private: each row is a unit with a weight of its own.

  clip: largest norm of a unit's gradient. expected: mean number of units in a batch. micro: units of a
  micro-batch. way: row of GRADIENTS. The loss of a unit is the mean over its targets.
  """

  def loss(model, probe, batch, weight, hyper, key):
    batch, weight = objective.weigh(batch, hyper)
    return objective.loss(model, probe, batch, weight, hyper, key)

  def gradient(loss, gradients, model, batch):
    batch = dict(batch)
    key = jax.random.wrap_key_data(batch.pop('noise_key_B2')[0], impl='threefry2x32')
    metrics, grads = sum_clipped(GRADIENTS[way](loss, gradients, model, clip), batch, micro)
    return metrics, add_noise(grads, key, noise_multiplier * clip, expected)

  return objective._replace(
    weigh=lambda batch, hyper: (batch, 1.0),
    loss=loss,
    gradient=gradient,
    probe=lambda model, batch: None,  # norms of hidden gradients would be published without noise
    probe_metrics=lambda metrics, probe_grad, batch: metrics,
  )


def sum_clipped(clipped, batch, micro):
  """Return (metrics, {path: sum of the units' clipped gradients}).

  clipped: (numbers of m units, their rows, their weights) -> sums over them of (metrics, {path: gradient}).
  batch: slot r belongs to micro-batch r % (B / micro); unit_weight_B is 0 for padding, which adds nothing.
  Metrics are means over units, with `units` and the share of them that is `clipped`.
  """
  pieces = batch['unit_weight_B'].shape[0] // micro
  split = lambda x: x.reshape(micro, pieces, *x.shape[1:]).swapaxes(0, 1)
  batch = jax.tree.map(split, batch)
  # Units fill the first micro-batches: the others are not computed.
  used = jnp.ceil(batch['unit_weight_B'].sum() / micro).astype(jnp.int32)

  def piece(i):
    rows = jax.tree.map(lambda x: x[i], batch)
    weight_m = rows.pop('unit_weight_B')
    return clipped(i * micro + jnp.arange(micro), rows, weight_m)

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(piece, 0))
  add = lambda i, total: jax.tree.map(jnp.add, total, piece(i))
  metrics, grads = jax.lax.fori_loop(0, used, add, zeros)
  units = metrics.pop('units')
  return {name: x / jnp.maximum(units, 1.0) for name, x in metrics.items()} | {'units': units}, grads


def by_vmap(loss, gradients, model, clip):
  """Return `clipped` of sum_clipped that computes the gradient of each unit.

  gradients: (number of a unit, its batch of one row) -> (metrics, {path: gradient}), of which one that is not
  finite counts as 0.
  """

  def unit(number, row, weight):
    metrics, grads = gradients(number, one_row(row))
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in grads.values()))
    finite = jnp.isfinite(norm) & (weight > 0)
    clean = lambda x, factor: jnp.where(finite, x * factor, 0.0)
    metrics |= {'clipped': (norm > clip).astype(jnp.float32)}
    # `units` counts all, and the others are of units with a finite gradient.
    metrics = {name: clean(x, weight) for name, x in metrics.items()}
    return metrics | {'units': weight}, {path: clean(g, scale(norm, clip)) for path, g in grads.items()}

  return lambda *units: jax.tree.map(lambda x: x.sum(0), jax.vmap(unit)(*units))


def by_ghost(loss, gradients, model, clip):
  """Return `clipped` of sum_clipped that computes norms first, then the gradient of the weighted loss.

  loss: (trained tree, probe, number of a unit, its batch of one row) -> (loss, metrics). The matrices of the
  blocks are model.tapped; every other parameter has a copy for each unit. Left to `by_vmap` are models
  without such matrices (adapters) or with experts, and, unit by unit, micro-batches with a gradient that is
  not finite, which a factor of 0 would not remove.
  """
  values = {path: p.get_value() for path, p in param_trees.named_params(model)}
  taps = [path for path, p in param_trees.named_params(model) if tapped.is_tapped(p)]
  exact = by_vmap(loss, gradients, model, clip)
  if not taps or any('E' in p.axes for _, p in param_trees.named_params(model)):
    return exact

  def unit(weights, others, probes, number, row):
    return loss(tapped.attach(model, probes, weights | others), None, number, one_row(row))

  def clipped(number_m, rows, weight_m):
    m, others = len(weight_m), {path: x for path, x in values.items() if path not in taps}
    copies = {path: jnp.broadcast_to(x, (m, *x.shape)) for path, x in others.items()}
    probes = {path: jnp.zeros((m, len(values[path]))) for path in taps}
    of_units = lambda *params: jax.vmap(unit, (None, 0, 0, 0, 0))(*params, number_m, rows)
    weights = {path: values[path] for path in taps}
    loss_m, pull_back, metrics = jax.vjp(of_units, weights, copies, probes, has_aux=True)
    _, others, squares = pull_back(jnp.ones_like(loss_m))  # XLA leaves out the gradients of weights
    others = {path: g.astype(jnp.float32) for path, g in others.items()}
    square_m = sum(x.sum(1) for x in squares.values())
    square_m += sum(jnp.square(g.reshape(m, -1)).sum(1) for g in others.values())
    norm_m = jnp.sqrt(square_m)

    def weighted(_):
      scale_m = weight_m * scale(norm_m, clip)
      grads = {path: g.astype(jnp.float32) for path, g in pull_back(scale_m.astype(loss_m.dtype))[0].items()}
      grads |= {path: jnp.tensordot(scale_m, g, 1) for path, g in others.items()}
      counts = {'clipped': (norm_m > clip).astype(jnp.float32), 'units': jnp.ones(m)}
      of_each = metrics | {'objective': loss_m} | counts
      return {name: jnp.tensordot(weight_m, x, 1) for name, x in of_each.items()}, grads

    alone = lambda _: one_by_one(exact, (number_m, rows, weight_m))
    return jax.lax.cond(jnp.isfinite(norm_m).all(), weighted, alone, None)

  return clipped


def one_by_one(clipped, units):
  """Return clipped(*units), computed for one unit after another: memory is that of one gradient."""
  of_one = lambda unit: clipped(*one_row(unit))
  first = jax.tree.map(lambda x: x[0], units)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_one, first))
  add = lambda total, unit: (jax.tree.map(jnp.add, total, of_one(unit)), None)
  return jax.lax.scan(add, zeros, units)[0]


def one_row(row):
  """Return arrays with a first axis of one row."""
  return jax.tree.map(lambda x: x[None], row)


def scale(norm, clip):
  """Return the factor on a gradient of this norm."""
  return jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-30))


def add_noise(grads, key, deviation, expected):
  """Return {path: (gradient + noise of this standard deviation) / expected}; a path has a key of its own."""

  def noisy(number, g):
    return (g + deviation * jax.random.normal(jax.random.fold_in(key, number), g.shape)) / expected

  return {path: noisy(np.uint32(number), grads[path]) for number, path in enumerate(sorted(grads))}


GRADIENTS = {'vmap': by_vmap, 'ghost': by_ghost}  # of the units of a micro-batch, clipped and summed
