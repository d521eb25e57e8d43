"""Optimizers, schedules and the update rule, over flat dicts {parameter path: array}.

A row of OPTIMIZERS gives a direction u of about unit size, and keeps its state where an update is
not accepted. This file applies it:

  p <- p - lr * schedule(updates) * multiplier(path) * (mup(path) u + weight_decay * p)

so that lr and weight decay are traced scalars, equal in meaning for every optimizer, and an
ablation can vary them within one compiled step.

mup(path) is 1 but for a model with model.mup_base: there it makes the best lr the same at every
width. Weight decay is left out of it, so that its strength does not depend on the width either.

Sources: AdamW (Loshchilov & Hutter 2019), Lion (Chen et al. 2023), Adafactor (Shazeer & Stern
2018), Muon (Jordan et al. 2024, with the RMS-matching scale of Liu et al. 2025, section 2.2), WSD
(Hu et al. 2024, section 4), muP (Yang et al. 2022, table 8 and appendix B.3; for Muon the spectral
condition of Yang, Simon & Bernstein 2023, equation 1), stochastic rounding (Gupta et al. 2015).
"""

import dataclasses
import math
import re
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Which optimizer, how fast, and when."""

  name: str = 'adamw'  # a row of OPTIMIZERS
  lr: float = 1e-3  # peak learning rate
  weight_decay: float = 0.1  # decoupled; times lr
  decay: str = ''  # regex of the paths that decay; '' = all matrices, no vectors
  b1: float = 0.9  # decay of the first moment (momentum for sgd, lion and muon)
  b2: float = 0.95  # decay of the second moment
  eps: float = 1e-8  # added to the root of the second moment
  clip: float = 1.0  # largest global norm of the gradient; 0 = any
  schedule: str = 'cosine'  # a row of SCHEDULES
  warmup: int = 100  # steps of linear warm-up
  final_lr: float = 0.1  # learning rate at the end / peak
  cooldown: float = 0.2  # share of the steps in which wsd decays
  lr_multipliers: tuple[str, ...] = ()  # 'regex=factor', first match counts, 0 freezes; () = all 1
  ema: float = 0.0  # decay of an average of weights, for evaluation and sampling; 0 = off

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
        raise ValueError(f'optim.{key}={getattr(self, key)} is no decay\nfix: use 0 <= x < 1')
    for key in ('final_lr', 'cooldown'):
      if not 0 <= getattr(self, key) <= 1:
        raise ValueError(f'optim.{key}={getattr(self, key)} is no share\nfix: use 0 to 1')
    try:
      re.compile(self.decay)
    except re.error as e:
      raise ValueError(f'optim.decay={self.decay!r} is no regex ({e})\nfix: correct it') from e
    for entry in self.lr_multipliers:
      parse_multiplier(entry)


class OptState(NamedTuple):
  """What the optimizer remembers."""

  updates: jax.Array  # int32; updates applied so far, skipped ones not counted
  skipped: jax.Array  # int32; skipped steps in a row
  direction: Any  # state of the optax transformation
  ema: dict | None  # {path: average of the weights}


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer bound to the parameters that it will update: `init` and `update` are pure."""

  cfg: OptimConfig
  steps: int  # updates in the whole run, for the schedule
  axes: dict  # {path: letters of the parameter}
  growth: float = 1.0  # ModelConfig.growth: width / width of muP's base; 1 = no muP

  def __post_init__(self):
    object.__setattr__(self, 'multipliers', match_multipliers(self.cfg.lr_multipliers, self.axes))
    # Gradients get smaller as models get wider, so what is added to them must too.
    scaled = dataclasses.replace(self.cfg, eps=self.cfg.eps / self.growth)
    object.__setattr__(self, 'transform', OPTIMIZERS[self.cfg.name](scaled, self.axes))
    powers = MUP_POWERS[self.cfg.name]
    mup = {path: self.growth ** powers[role(axes)] for path, axes in self.axes.items()}
    object.__setattr__(self, 'mup', mup)
    decay = self.cfg.decay
    decays = lambda path: re.fullmatch(decay, path) if decay else is_matrix(self.axes[path])
    object.__setattr__(self, 'decays', {path for path in self.axes if decays(path)})
    if decay and not self.decays:
      raise ValueError(
        f'optim.decay={decay!r} matches no parameter\nfix: use paths such as {next(iter(self.axes))}'
      )

  def init(self, params):
    """The state before the first update."""
    zero = jnp.zeros((), jnp.int32)
    params = in_float32(params)
    return OptState(zero, zero, self.transform.init(params), params if self.cfg.ema else None)

  def update(self, grads, state, params, hyper, accept=lambda norm: True):
    """One update -> (params, state, scalars: grad_norm, lr, skipped, skipped_in_a_row).

    hyper: dict with the traced scalars lr and weight_decay. A gradient with a non-finite norm, or
    one that `accept` is False for, changes nothing but `state.skipped`.
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
      directions, direction_state = self.transform.update(
        grads | frozen, state.direction, params32, accepted=accepted
      )
    lr = hyper['lr'] * SCHEDULES[self.cfg.schedule](self.cfg, state.updates, self.steps)

    def step(path, p):
      if not self.multipliers[path]:
        return p
      u = directions[path].astype(jnp.float32)
      if self.mup[path] != 1:
        u = u * self.mup[path]
      if path in self.decays:
        u = u + hyper['weight_decay'] * params32[path]
      return rounded(params32[path] - lr * self.multipliers[path] * u, p.dtype, path, state.updates)

    new_params = {path: step(path, p) for path, p in params.items()}
    ema = state.ema
    if ema is not None:
      # Young averages forget faster, or short runs would keep their random initial weights.
      count = state.updates.astype(jnp.float32)
      decay = jnp.minimum(self.cfg.ema, (1 + count) / (10 + count))
      mix = lambda e, p: decay * e + (1 - decay) * p
      ema = {path: mix(ema[path], p) for path, p in in_float32(new_params).items()}
    updates = jnp.where(accepted, state.updates + 1, state.updates)
    skipped = jnp.where(accepted, 0, state.skipped + 1)
    if ema is not None:
      ema = keep(accepted, ema, state.ema)
    scalars = {'skipped': (~accepted).astype(jnp.float32), 'skipped_in_a_row': skipped}
    scalars |= {'grad_norm': norm, 'lr': lr}
    params = keep(accepted, new_params, params)
    return params, OptState(updates, skipped, direction_state, ema), scalars


def in_float32(params):
  """A dict of arrays as float32."""
  return {path: p.astype(jnp.float32) for path, p in params.items()}


def rounded(x, dtype, path, count):
  """float32 x as float32, or stochastically as bfloat16: up or down by chance, right on average.

  Rounded to the nearest, a weight of 0.02 would never move by less than 4e-5, however many updates
  there are. path and count make the chance: no two draws are alike, and a resumed run has the same.
  Source: Gupta et al. 2015, section 3.
  """
  if dtype == jnp.float32:
    return x
  key = jax.random.fold_in(jax.random.key(zlib.crc32(path.encode())), count)
  below = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)  # the half that is cut off
  bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + below) & jnp.uint32(0xFFFF0000)
  return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)


def parse_multiplier(entry):
  """'regex=factor' -> (compiled regex, factor)."""
  pattern, _, factor = entry.rpartition('=')
  try:
    if not 0 <= float(factor) < math.inf:
      raise ValueError(f'{factor} is no factor')
    return re.compile(pattern), float(factor)
  except (re.error, ValueError) as e:
    raise ValueError(
      f'optim.lr_multipliers entry {entry!r} is not regex=factor ({e})\n'
      "fix: write e.g. ('embed_VD=0.1', '.*=1')"
    ) from e


def match_multipliers(entries, paths):
  """{path: factor} by the first entry that matches the whole path.

  Raises ValueError when an entry matches nothing or a path is matched by none: a typo must not
  train everything.
  """
  if not entries:
    return dict.fromkeys(paths, 1.0)
  parsed, result = [parse_multiplier(entry) for entry in entries], {}
  for path in paths:
    for i, (pattern, factor) in enumerate(parsed):
      if pattern.fullmatch(path):
        result[path] = (i, factor)
        break
  missed = [path for path in paths if path not in result]
  if missed:
    raise ValueError(
      f'optim.lr_multipliers matches nothing for {", ".join(missed)}\nfix: add the entry ".*=1" at the end'
    )
  idle = [entries[i] for i in range(len(entries)) if i not in {i for i, _ in result.values()}]
  if idle:
    raise ValueError(
      f'optim.lr_multipliers entry {idle[0]!r} is the first match of no parameter\n'
      f'fix: remove it, or use the paths {", ".join(paths)}'
    )
  return {path: factor for path, (_, factor) in result.items()}


def is_matrix(axes):
  """Whether these letters are of something that D is multiplied with or looked up in."""
  return 'D' in axes and len(axes.lstrip('LE')) > 1


def matrix_axes(axes):
  """(input axes, output axes) of a layer's matrix; None for vectors and tables."""
  inner = axes.lstrip('LE')
  if not is_matrix(axes) or set(inner) & set('VT'):
    return None
  offset = len(axes) - len(inner)
  d = offset + inner.index('D')
  others = tuple(i for i in range(offset, len(axes)) if i != d)
  return ((d,), others) if inner[0] == 'D' else (others, (d,))


def role(axes):
  """What a parameter is to muP: 'hidden' or 'output' (inputs grow with the width), or 'input'.

  A head is an 'input', as the embedding is that it may be tied to: the model multiplies logits by
  1/growth (table 8).
  """
  numbers = matrix_axes(axes)
  wide = lambda places: any(axes[i] in 'DFHG' for i in places)
  if numbers is None or not wide(numbers[0]):
    return 'input'
  return 'hidden' if wide(numbers[1]) else 'output'


def keep(accepted, new, old):
  """The new tree where `accepted`, else the old one."""
  return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)


def kept(transform):
  """An optax transformation whose state stays as it was where `accepted` is False."""

  def update(grads, state, params=None, *, accepted):
    directions, new_state = transform.update(grads, state, params)
    return directions, keep(accepted, new_state, state)

  return optax.GradientTransformationExtraArgs(transform.init, update)


def adamw(cfg, axes):
  """Adam's direction; weight decay is applied by Optimizer.

  As kept(optax.scale_by_adam), but that the direction is of moments that are kept already. Of new
  ones XLA computes it apart from what is kept, with copies of all old moments and weights: on a
  CPU three times as slow.
  """

  def update(grads, state, params=None, *, accepted):
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(grads, state.mu, cfg.b1, 1)
    nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, cfg.b2, 2)
    state = keep(accepted, optax.ScaleByAdamState(count, mu, nu), state)
    unbiased = lambda moment, decay: optax.tree.bias_correction(moment, decay, count)
    direction = lambda m, v: m / (jnp.sqrt(v) + cfg.eps)
    mu, nu = unbiased(state.mu, cfg.b1), unbiased(state.nu, cfg.b2)
    return jax.tree.map(direction, mu, nu), state

  init = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps).init
  return optax.GradientTransformationExtraArgs(init, update)


def adafactor(cfg, axes):
  """Second moments factored where two dimensions are >= 128, RMS clipped at 1, no momentum."""
  return kept(optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)))


def sgd(cfg, axes):
  """Momentum."""
  return kept(optax.trace(cfg.b1))


def lion(cfg, axes):
  """Sign of interpolated momentum."""
  return kept(optax.scale_by_lion(cfg.b1, cfg.b2))


def muon(cfg, axes):
  """Orthogonalized momentum at AdamW's RMS for matrices of layers and inputs; AdamW for the rest.

  Not tables and heads, nor what only looks like a matrix: a router's scores, the taps of a window.
  """
  inner = lambda letters: letters.lstrip('LE')
  matrices = {
    path: None if set(inner(letters)) & set('EW') else matrix_axes(letters) for path, letters in axes.items()
  }
  labels = {path: 'muon' if numbers else 'adamw' for path, numbers in matrices.items()}

  def dimension_numbers(tree):
    """Only matrices carry numbers; optax masks the rest."""
    number = lambda path: optax.contrib.MuonDimensionNumbers(*matrices[path])
    masked = lambda x: isinstance(x, optax.MaskedNode)
    return {path: x if masked(x) else number(path) for path, x in tree.items()}

  def match_rms(updates, params):
    """0.2 sqrt(max(inputs, outputs)) makes the RMS of an orthogonal matrix 0.2, as AdamW's."""

    def scaled(path, u):
      sizes = [math.prod(u.shape[i] for i in axis) for axis in matrices[path]]
      return u * (0.2 * max(sizes) ** 0.5)

    masked = lambda x: isinstance(x, optax.MaskedNode)
    return {path: u if masked(u) else scaled(path, u) for path, u in updates.items()}

  orthogonal = optax.chain(
    optax.contrib.scale_by_muon(beta=cfg.b1, weight_dimension_numbers=dimension_numbers),
    optax.stateless(match_rms),
  )
  return optax.partition({'muon': kept(orthogonal), 'adamw': adamw(cfg, axes)}, labels)


def progress(cfg, step, steps, start):
  """Share (0 to 1) of the way from update `start` to the last one."""
  return jnp.clip((step - start) / max(steps - start, 1), 0.0, 1.0)


def warm(cfg, step):
  """Linear warm-up: 1/warmup at the first update, 1 from the last of them on."""
  return jnp.minimum(1.0, (step + 1) / max(cfg.warmup, 1))


def cosine(cfg, step, steps):
  """Half a cosine from 1 to final_lr after the warm-up."""
  fall = 0.5 * (1 + jnp.cos(jnp.pi * progress(cfg, step, steps, cfg.warmup)))
  return warm(cfg, step) * (cfg.final_lr + (1 - cfg.final_lr) * fall)


def linear(cfg, step, steps):
  """A straight line from 1 to final_lr after the warm-up."""
  return warm(cfg, step) * (1 - (1 - cfg.final_lr) * progress(cfg, step, steps, cfg.warmup))


def wsd(cfg, step, steps):
  """Warm-up, stable, then a straight line to final_lr over the last `cooldown` of the steps."""
  start = int(steps * (1 - cfg.cooldown))
  return warm(cfg, step) * (1 - (1 - cfg.final_lr) * progress(cfg, step, steps, start))


def constant(cfg, step, steps):
  """1 after the warm-up."""
  return warm(cfg, step)


# mup(path) = growth ** power. Where each number moves by about lr whatever its gradient is, a
# matrix moves its outputs by lr times the number of its inputs. Momentum alone follows gradients,
# and those of tables and vectors fall with the width. Muon's step, of spectral norm ~ sqrt(width),
# lies between.
ADAM_POWERS = {'input': 0, 'hidden': -1, 'output': -1}
MUP_POWERS = {
  'adamw': ADAM_POWERS,
  'lion': ADAM_POWERS,
  'adafactor': ADAM_POWERS,
  'muon': ADAM_POWERS | {'hidden': -0.5},
  'sgd': {'input': 1, 'hidden': 0, 'output': -1},
}
OPTIMIZERS = {'adamw': adamw, 'lion': lion, 'adafactor': adafactor, 'muon': muon, 'sgd': sgd}
SCHEDULES = {'cosine': cosine, 'linear': linear, 'wsd': wsd, 'constant': constant}
