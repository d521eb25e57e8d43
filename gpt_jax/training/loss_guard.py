"""Loss guard: which steps are skipped, how skips are reported, and when a run goes back or ends.

A step is skipped, and changes nothing, where its loss or gradient is not finite, and, with
train.spike_sigma, where one of them is a spike: that many robust standard deviations above the
median of the last W applied steps. Median and median absolute deviation, because spikes shift means
and standard deviations themselves; skipped steps never enter the window.

Skips are counted since the last applied step, each kind by itself: `train.max_skipped` steps that are
not finite, or `train.spike_patience` spikes, are too many. So a streak that mixes both ends after
fewer than max_skipped + spike_patience steps.

Letters: S = 2 series (loss, norm of the gradient), W applied steps.
Sources: robust z-score, Iglewicz & Hoaglin 1993; going back and skipping the data, PaLM (Chowdhery
et al. 2022, section 5.1).
"""

import jax.numpy as jnp
import numpy as np

MAD_TO_STD = 1.4826  # standard deviation of a normal distribution / its median absolute deviation
MIN_DEVIATION = 0.01  # smallest standard deviation / median: constant losses have none


class GoBack(FloatingPointError):
  """Too many skipped steps in a row: resume from a checkpoint before them, with the data after them."""

  def __init__(self, message, before, step):
    """before: the last applied step; step: the last skipped one."""
    super().__init__(message)
    self.before, self.step = before, step


# ------------------------------------------------------------------------- inside the compiled step


def empty_window(window):
  """Return the window before the first step; nothing is a spike until it is full."""
  return jnp.full((2, window), jnp.nan, jnp.float32)


def is_spike(recent_SW, value_S, sigma):
  """Whether a step's loss or norm lies more than `sigma` deviations above the recent ones."""
  median_S1 = jnp.median(recent_SW, axis=1, keepdims=True)  # NaN while one of them is
  deviation_S = MAD_TO_STD * jnp.median(jnp.abs(recent_SW - median_S1), axis=1)
  median_S = median_S1[:, 0]
  deviation_S = jnp.maximum(deviation_S, MIN_DEVIATION * jnp.abs(median_S))
  return (value_S > median_S + sigma * deviation_S).any()


def update_window(recent_SW, value_S, updates):
  """Replace the oldest values by an applied step's; updates: how many were applied before it."""
  return recent_SW.at[:, updates % recent_SW.shape[1]].set(value_S)


# ------------------------------------------------------------------------------------- on the host


def count_streaks(skipped, spike, before):
  """Count skips since the last applied step -> int array [steps, 2]: not finite, spikes.

  skipped, spike: 0 or 1 by step. before: the two counts before the first of these steps.
  """
  counts, (nonfinite, spikes) = [], before
  for step_skipped, step_spike in zip(skipped, spike, strict=True):
    nonfinite = nonfinite + (not step_spike) if step_skipped else 0
    spikes = spikes + bool(step_spike) if step_skipped else 0
    counts.append((nonfinite, spikes))
  return np.array(counts)


def describe_skips(skips, step, loader, offset):
  """Return the event of the steps skipped in an interval that ends with `step`.

  {updates: how many; spikes: those of them that were finite (with a spike guard); batches: their
  numbers; rows: {number: rows by source}}. skips: {skipped, spike: arrays by step}. loader: its
  `identify` names the rows of a batch. offset: number of the batch that the run would take at step 0.
  """
  skipped = skips['skipped']
  numbers = [step - len(skipped) + i + offset for i in skipped.nonzero()[0].tolist()]
  spikes = {'spikes': int(skips['spike'].sum())} if 'spike' in skips else {}
  rows = {n: loader.identify(n) for n in numbers}
  return {'updates': len(numbers), **spikes, 'batches': numbers, 'rows': rows}


def raise_if_too_many(skips, step, cfg):
  """Raise FloatingPointError, or with a spike guard GoBack, after too many skips in a row.

  skips: {'streaks': result of `count_streaks`}. step: its last step. cfg: the TrainConfig.
  """
  limits = cfg.max_skipped, cfg.spike_patience
  too_many = (skips['streaks'] >= limits).any(1)
  if not too_many.any():
    return
  index = int(too_many.argmax())
  nonfinite, spikes = skips['streaks'][index].tolist()
  last = step - len(too_many) + 1 + index
  if not cfg.spike_sigma:
    raise FloatingPointError(
      f'loss or gradient were not finite in {nonfinite} steps in a row, up to step {last}: '
      f'train.max_skipped={cfg.max_skipped}\nfix: start again in a new --workdir with a lower optim.lr'
    )
  key = 'max_skipped' if nonfinite >= cfg.max_skipped else 'spike_patience'
  raise GoBack(
    f'{nonfinite + spikes} steps in a row, up to step {last}, were skipped: {nonfinite} not finite, '
    f'{spikes} spikes; train.{key}={getattr(cfg, key)}, and no checkpoint is left to go back to\n'
    'fix: start again in a new --workdir with a lower optim.lr, or a higher train.spike_sigma',
    last - nonfinite - spikes,
    last,
  )
