"""Optimizers, schedules and the update rule, over flat dicts {parameter path: array}.

A row of OPTIMIZERS gives a direction u, of about unit size for all but sgd. This file applies it:

  p <- p - lr * schedule(updates) * multiplier(path) * (mup(path) u + weight_decay * p)

so that lr and weight decay are traced scalars, equal in meaning for every optimizer, and an ablation can
vary them within one compiled step. mup(path) is 1 without model.mup_base (optimizers/mup.py); weight
decay is left out of it, so that its strength does not depend on the width.

Source: AdamW (Loshchilov & Hutter 2019).
"""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gpt_jax.optimizers import directions, mup, schedules
from gpt_jax.optimizers.directions import select_tree
from gpt_jax.optimizers.param_groups import match_decay, match_multipliers, parse_multiplier
from gpt_jax.optimizers.rounding import round_stochastically


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Optimizer, learning rate and schedule."""

  name: str = 'adamw'  # a row of OPTIMIZERS
  lr: float = 1e-3  # peak learning rate
  weight_decay: float = 0.1  # decoupled; times lr
  decay: str = ''  # regex of the paths with weight decay; '' = all matrices, no vectors
  b1: float = 0.9  # decay of the first moment (momentum for sgd, lion and muon)
  b2: float = 0.95  # decay of the second moment
  eps: float = 1e-8  # added to the root of the second moment
  clip: float = 1.0  # largest global norm of the gradient; 0 = no clipping
  schedule: str = 'cosine'  # a row of SCHEDULES
  warmup: int = 100  # steps of linear warmup
  final_lr: float = 0.1  # learning rate at the end / peak
  cooldown: float = 0.2  # fraction of the steps in which wsd decays
  lr_multipliers: tuple[str, ...] = ()  # 'regex=factor', first match counts, 0 freezes; () = all 1
  ema: float = 0.0  # decay of a moving average of weights, for evaluation and sampling; 0 = off

  def __post_init__(self):
    for key, rows in (('name', OPTIMIZERS), ('schedule', SCHEDULES)):
      if getattr(self, key) not in rows:
        raise ValueError(
          f'optim.{key}={getattr(self, key)!r} is not known\nfix: use one of {", ".join(rows)}'
        )
    for key in ('lr', 'weight_decay', 'clip', 'warmup', 'eps'):
      if not getattr(self, key) >= 0:
        raise ValueError(f'optim.{key}={getattr(self, key)} is negative\nfix: use a number >= 0')
    for key in ('b1', 'b2', 'ema'):
      if not 0 <= getattr(self, key) < 1:
        raise ValueError(f'optim.{key}={getattr(self, key)} is not a decay rate\nfix: use 0 <= x < 1')
    for key in ('final_lr', 'cooldown'):
      if not 0 <= getattr(self, key) <= 1:
        raise ValueError(f'optim.{key}={getattr(self, key)} is not a fraction\nfix: use 0 to 1')
    try:
      re.compile(self.decay)
    except re.error as e:
      raise ValueError(f'optim.decay={self.decay!r} is not a regex ({e})\nfix: correct it') from e
    for entry in self.lr_multipliers:
      parse_multiplier(entry)


class OptState(NamedTuple):
  """Optimizer state."""

  updates: jax.Array  # int32; updates applied so far, skipped ones not counted
  skipped: jax.Array  # int32; skipped steps in a row
  direction: Any  # state of the optax transformation
  ema: dict | None  # {path: average of the weights}


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer bound to the parameters that it will update: `init` and `update` are pure."""

  cfg: OptimConfig
  steps: int  # steps in the whole run, for the schedule; it advances with applied updates alone
  axes: dict  # {path: letters of the parameter}
  growth: float = 1.0  # ModelConfig.growth: width / width of muP's base; 1 = no muP

  def __post_init__(self):
    _ = self.multipliers, self.decays  # raise now for patterns that match nothing

  @functools.cached_property
  def transform(self):
    """The optax transformation from gradients to directions."""
    # Gradients shrink as models get wider, so eps must too.
    scaled = dataclasses.replace(self.cfg, eps=self.cfg.eps / self.growth)
    return OPTIMIZERS[self.cfg.name].make(scaled, self.axes)

  @functools.cached_property
  def multipliers(self):
    """{path: factor on the learning rate}; 0 freezes."""
    return match_multipliers(self.cfg.lr_multipliers, self.axes)

  @functools.cached_property
  def mup(self):
    """{path: muP's factor on the direction}."""
    powers = OPTIMIZERS[self.cfg.name].mup_powers
    return {path: self.growth ** powers[mup.role(axes)] for path, axes in self.axes.items()}

  @functools.cached_property
  def decays(self):
    """The paths with weight decay."""
    return match_decay(self.cfg.decay, self.axes)

  def init(self, params):
    """Return the state before the first update."""
    zero = jnp.zeros((), jnp.int32)
    params = in_float32(params)
    return OptState(zero, zero, self.transform.init(params), params if self.cfg.ema else None)

  def update(self, grads, state, params, hyper, accept=lambda norm: True):
    """Apply one update; return (params, state, scalars: grad_norm, lr, skipped, skipped_in_a_row).

    hyper: dict with the traced scalars lr and weight_decay. A gradient with a non-finite norm, or one for
    which `accept(norm)` is False, changes nothing but `state.skipped`.
    """
    grads = {path: g for path, g in grads.items() if self.multipliers[path]}
    params32 = in_float32(params)  # moments stay float32 whatever param_dtype is
    frozen = {path: jnp.zeros_like(p) for path, p in params32.items() if path not in grads}
    # Tested before clipping, which turns one inf into NaN everywhere.
    norm = optax.tree.norm(grads)
    accepted = jnp.isfinite(norm) & accept(norm)
    if self.cfg.clip:
      scale = jnp.minimum(1.0, self.cfg.clip / jnp.maximum(norm, 1e-30))
      grads = {path: g * scale.astype(g.dtype) for path, g in grads.items()}
    with jax.numpy_dtype_promotion('standard'):  # optax raises floats to an int32 count
      updates, direction = self.transform.update(grads | frozen, state.direction, params32, accepted=accepted)
    lr = hyper['lr'] * SCHEDULES[self.cfg.schedule](self.cfg, state.updates, self.steps)

    def step(path, p):
      if not self.multipliers[path]:
        return p
      u = updates[path].astype(jnp.float32)
      if self.mup[path] != 1:
        u = u * self.mup[path]
      if path in self.decays:
        u = u + hyper['weight_decay'] * params32[path]
      new = params32[path] - lr * self.multipliers[path] * u
      return round_stochastically(new, p.dtype, path, state.updates)

    new_params = {path: step(path, p) for path, p in params.items()}
    ema = state.ema
    if ema is not None:
      ema = select_tree(accepted, self.average(ema, new_params, state.updates), ema)
    count = jnp.where(accepted, state.updates + 1, state.updates)
    skipped = jnp.where(accepted, 0, state.skipped + 1)
    scalars = {'skipped': (~accepted).astype(jnp.float32), 'skipped_in_a_row': skipped}
    scalars |= {'grad_norm': norm, 'lr': lr}
    return select_tree(accepted, new_params, params), OptState(count, skipped, direction, ema), scalars

  def average(self, ema, params, updates):
    """Return the moving average of weights; early on it forgets faster, to lose the initial weights."""
    count = updates.astype(jnp.float32)
    decay = jnp.minimum(self.cfg.ema, (1 + count) / (10 + count))
    return {path: decay * ema[path] + (1 - decay) * p for path, p in in_float32(params).items()}


def in_float32(params):
  """Cast a dict of arrays to float32."""
  return {path: p.astype(jnp.float32) for path, p in params.items()}


def adamw(cfg, axes):
  """Adam's direction; weight decay is applied by Optimizer.

  Bitwise optax.scale_by_adam, but computed from the moments after `accepted` selected them: from fresh
  ones XLA copies every moment and weight (3x slower on CPU).
  """

  def update(grads, state, params=None, *, accepted):
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(grads, state.mu, cfg.b1, 1)
    nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, cfg.b2, 2)
    state = select_tree(accepted, optax.ScaleByAdamState(count, mu, nu), state)
    unbiased = lambda moment, decay: optax.tree.bias_correction(moment, decay, count)
    mu, nu = unbiased(state.mu, cfg.b1), unbiased(state.nu, cfg.b2)
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + cfg.eps), mu, nu), state

  init = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps).init
  return optax.GradientTransformationExtraArgs(init, update)


def cosine(cfg, step, steps):
  """Half a cosine from 1 to final_lr after the warmup."""
  fall = 0.5 * (1 + jnp.cos(jnp.pi * schedules.progress(step, steps, cfg.warmup)))
  return schedules.warmup(cfg, step) * (cfg.final_lr + (1 - cfg.final_lr) * fall)


class OptimizerRow(NamedTuple):
  """One optimizer."""

  # (OptimConfig, {path: letters}) -> optax transformation; must keep its state where not `accepted`
  make: Any
  uses: tuple = ()  # which of b1, b2 and eps it reads: the others have no effect
  mup_powers: dict = mup.ADAM_POWERS  # {role: power of growth}


muon = functools.partial(directions.muon, fallback=adamw)
OPTIMIZERS = {
  'adamw': OptimizerRow(adamw, ('b1', 'b2', 'eps')),
  'lion': OptimizerRow(directions.lion, ('b1', 'b2')),
  'adafactor': OptimizerRow(directions.adafactor),
  'muon': OptimizerRow(muon, ('b1', 'b2', 'eps'), mup.MUON_POWERS),
  'sgd': OptimizerRow(directions.sgd, ('b1',), mup.SGD_POWERS),
}
SCHEDULES = {
  'cosine': cosine,
  'linear': schedules.linear,
  'wsd': schedules.wsd,
  'constant': schedules.constant,
}
