"""Optimizers beside AdamW: gradients in, directions of about unit size out.

Each takes (OptimConfig, {path: letters}) and returns an optax transformation whose `update` also takes
`accepted`: where it is False, the state stays as it was.

Sources: Lion (Chen et al. 2023), Adafactor (Shazeer & Stern 2018), Muon (Jordan et al. 2024, with the
RMS-matching scale of Liu et al. 2025, section 2.2).
"""

import math

import jax
import jax.numpy as jnp
import optax

from gpt_jax.optimizers.mup import inner_axes, matrix_axes


def select_tree(accepted, new, old):
  """Return the new tree where `accepted`, else the old one."""
  return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)


def freeze_on_reject(transform):
  """Wrap an optax transformation: its state stays as it was where `accepted` is False."""

  def update(grads, state, params=None, *, accepted):
    directions, new_state = transform.update(grads, state, params)
    return directions, select_tree(accepted, new_state, state)

  return optax.GradientTransformationExtraArgs(transform.init, update)


def adafactor(cfg, axes):
  """Second moments factored where two dimensions are >= 128, RMS clipped at 1, no momentum."""
  return freeze_on_reject(optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)))


def sgd(cfg, axes):
  """Momentum."""
  return freeze_on_reject(optax.trace(cfg.b1))


def lion(cfg, axes):
  """Sign of interpolated momentum."""
  return freeze_on_reject(optax.scale_by_lion(cfg.b1, cfg.b2))


def muon(cfg, axes, fallback):
  """Orthogonalized momentum at AdamW's RMS for matrices of layers and inputs; `fallback` for the rest.

  The rest: tables, heads, vectors, and what only looks like a matrix, as a router's scores or the taps
  of a window.
  """
  matrices = {
    path: None if set(inner_axes(letters)) & set('EW') else matrix_axes(letters)
    for path, letters in axes.items()
  }
  labels = {path: 'muon' if numbers else 'fallback' for path, numbers in matrices.items()}
  is_masked = lambda x: isinstance(x, optax.MaskedNode)

  def dimension_numbers(tree):
    """Number the axes of matrices; optax masks the rest."""
    numbers = lambda path: optax.contrib.MuonDimensionNumbers(*matrices[path])
    return {path: x if is_masked(x) else numbers(path) for path, x in tree.items()}

  def match_rms(updates, params):
    """Scale by 0.2 sqrt(max(inputs, outputs)): an orthogonal matrix gets RMS 0.2, as AdamW's."""

    def scale(path, u):
      sizes = [math.prod(u.shape[i] for i in axis) for axis in matrices[path]]
      return u * (0.2 * max(sizes) ** 0.5)

    return {path: u if is_masked(u) else scale(path, u) for path, u in updates.items()}

  orthogonal = optax.chain(
    optax.contrib.scale_by_muon(beta=cfg.b1, weight_dimension_numbers=dimension_numbers),
    optax.stateless(match_rms),
  )
  return optax.partition({'muon': freeze_on_reject(orthogonal), 'fallback': fallback(cfg, axes)}, labels)
