"""Learning-rate schedules beside the cosine: factors on the peak learning rate.

Each takes (OptimConfig, update, number of updates) and returns a float32 scalar.
Source: WSD (Hu et al. 2024, section 4).
"""

import jax.numpy as jnp


def warmup(cfg, step):
  """Linear warmup: 1/cfg.warmup at the first update, 1 from the last of them on."""
  return jnp.minimum(1.0, (step + 1) / max(cfg.warmup, 1))


def progress(step, steps, start):
  """Fraction (0 to 1) of the way from update `start` to update `steps`, one after the last, as in optax."""
  return jnp.clip((step - start) / max(steps - start, 1), 0.0, 1.0)


def linear(cfg, step, steps):
  """A straight line from 1 to final_lr after the warmup."""
  return warmup(cfg, step) * (1 - (1 - cfg.final_lr) * progress(step, steps, cfg.warmup))


def wsd(cfg, step, steps):
  """Warmup, stable, then a straight line to final_lr over the last `cooldown` of the steps."""
  start = int(steps * (1 - cfg.cooldown))
  return warmup(cfg, step) * (1 - (1 - cfg.final_lr) * progress(step, steps, start))


def constant(cfg, step, steps):
  """1 after the warmup."""
  return warmup(cfg, step)
