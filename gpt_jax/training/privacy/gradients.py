"""The private gradient: per-unit gradients, each clipped, summed, with Gaussian noise.

It takes the place of the plain gradient in step.train_step. A batch of data/poisson.py holds one row of each
sampled unit; its micro-batches are computed one after another until no unit is left, and in each the
gradients of all units at once, by vmap.

Letters: B slots of a batch, m units of a micro-batch.

Source: Abadi et al. 2016 (arXiv:1607.00133), algorithm 1, divided by the expected number of units.
"""

import jax
import jax.numpy as jnp
import numpy as np

MECHANISM = 'DP-SGD: Poisson sampling, clipped gradients, Gaussian noise'


def private_objective(objective, clip, noise_multiplier, expected, micro):
  """Return the step.Objective whose gradient is private: each row is a unit with a weight of its own.

  clip: largest norm of a unit's gradient. expected: mean number of units in a batch. micro: units of a
  micro-batch. The loss of a unit is the mean over its targets.
  """

  def loss(model, probe, batch, weight, hyper, key):
    batch, weight = objective.weigh(batch, hyper)
    return objective.loss(model, probe, batch, weight, hyper, key)

  def gradient(gradients, batch):
    batch = dict(batch)
    key = jax.random.wrap_key_data(batch.pop('noise_key_B2')[0], impl='threefry2x32')
    metrics, grads = sum_clipped(gradients, batch, clip, micro)
    return metrics, add_noise(grads, key, noise_multiplier * clip, expected)

  return objective._replace(weigh=lambda batch, hyper: (batch, 1.0), loss=loss, gradient=gradient)


def sum_clipped(gradients, batch, clip, micro):
  """Return (metrics, {path: sum of the units' clipped gradients}).

  gradients: (number of a unit, its batch of one row) -> (metrics, {path: gradient}), of which one that is not
  finite counts as 0. batch: slot r belongs to micro-batch r % (B / micro); unit_weight_B is 0 for padding,
  which adds nothing. Metrics are means over units, with `units` and the share of them that is `clipped`.
  """
  pieces = batch['unit_weight_B'].shape[0] // micro
  split = lambda x: x.reshape(micro, pieces, *x.shape[1:]).swapaxes(0, 1)
  batch = jax.tree.map(split, batch)
  # Units fill the first micro-batches: the others are not computed.
  used = jnp.ceil(batch['unit_weight_B'].sum() / micro).astype(jnp.int32)

  def unit(number, row, weight):
    metrics, grads = gradients(number, jax.tree.map(lambda x: x[None], row))
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in grads.values()))
    finite = jnp.isfinite(norm) & (weight > 0)
    scale = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-30))
    clean = lambda x, factor: jnp.where(finite, x * factor, 0.0)
    metrics |= {'clipped': (norm > clip).astype(jnp.float32), 'units': jnp.float32(1)}
    # `units` counts all, and the others are of units with a finite gradient.
    metrics = {name: clean(x, weight) for name, x in metrics.items()}
    return metrics | {'units': weight}, {path: clean(g, scale) for path, g in grads.items()}

  def piece(i):
    rows = jax.tree.map(lambda x: x[i], batch)
    weight_m = rows.pop('unit_weight_B')
    summed = jax.vmap(unit)(i * micro + jnp.arange(micro), rows, weight_m)
    return jax.tree.map(lambda x: x.sum(0), summed)

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(piece, 0))
  add = lambda i, total: jax.tree.map(jnp.add, total, piece(i))
  metrics, grads = jax.lax.fori_loop(0, used, add, zeros)
  units = metrics.pop('units')
  return {name: x / jnp.maximum(units, 1.0) for name, x in metrics.items()} | {'units': units}, grads


def add_noise(grads, key, deviation, expected):
  """Return {path: (gradient + noise of this standard deviation) / expected}; a path has a key of its own."""

  def noisy(number, g):
    return (g + deviation * jax.random.normal(jax.random.fold_in(key, number), g.shape)) / expected

  return {path: noisy(np.uint32(number), grads[path]) for number, path in enumerate(sorted(grads))}
