"""Steps that are not applied: which, what is told about them, and when there are too many in a row.

A step is skipped, in all that it would change, where its loss or gradient is not finite, and, with
train.spike_sigma, where one of them is a spike: so many robust standard deviations above the median
of the last W applied steps. Median and median absolute deviation, because the values that are to be
found shift means and standard deviations themselves; skipped steps never enter the window.

Letters: S = 2 series (loss, norm of the gradient), W applied steps.

Sources: the robust z-score, Iglewicz & Hoaglin 1993; going back and skipping the data, PaLM
(Chowdhery et al. 2022, section 5.1); a window that NaN cannot poison: optax.apply_if_finite and
OLMo's skip_step_on_spikes have none.
"""

import jax.numpy as jnp

NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
LEAST = 0.01  # least standard deviation over the median: constant losses have none


class GoBack(FloatingPointError):
  """Too many skipped steps in a row: the run should go on from before them, after their data."""

  def __init__(self, message, before, step):
    """before: the step that was applied last; step: the last one that was skipped."""
    super().__init__(message)
    self.before, self.step = before, step


def empty_window(window):
  """The window before the first step; nothing is a spike until it is full."""
  return jnp.full((2, window), jnp.nan, jnp.float32)


def is_spike(recent_SW, value_S, sigma):
  """Whether a step's loss or norm lies more than `sigma` above the recent ones."""
  median_S1 = jnp.median(recent_SW, axis=1, keepdims=True)  # NaN while one of them is
  deviation_S = NORMAL * jnp.median(jnp.abs(recent_SW - median_S1), axis=1)
  median_S = median_S1[:, 0]
  deviation_S = jnp.maximum(deviation_S, LEAST * jnp.abs(median_S))
  return (value_S > median_S + sigma * deviation_S).any()


def update_window(recent_SW, value_S, updates):
  """The window with the values of an applied step in place of the oldest; updates: before it."""
  return recent_SW.at[:, updates % recent_SW.shape[1]].set(value_S)


def describe_skips(found, step, loader, offset):
  """What an event says of the steps skipped in an interval.

  Args:
    found: {skipped, skipped_in_a_row and, with a spike guard, spike: an array of steps}.
    step: the last of them.
    loader: whose `identify` names the rows of a batch.
    offset: number of the batch that the run would take at step 0.

  Returns:
    {updates: how many, spikes: those of them that were finite, batches: their numbers,
    rows: {number: rows by source}}.
  """
  skipped = found['skipped']
  first = step - len(skipped)
  numbers = [first + i + offset for i in skipped.nonzero()[0].tolist()]
  spikes = {'spikes': int(found['spike'].sum())} if 'spike' in found else {}
  rows = {n: loader.identify(n) for n in numbers}
  return {'updates': len(numbers), **spikes, 'batches': numbers, 'rows': rows}


def raise_if_too_many(found, step, cfg):
  """Raise FloatingPointError, or with a spike guard GoBack, after too many skipped in a row.

  found, step: as of `describe_skips`. cfg: the TrainConfig.
  """
  limit = cfg.spike_patience if cfg.spike_sigma else cfg.max_skipped
  in_a_row = found['skipped_in_a_row']
  if in_a_row.max() < limit:
    return
  last = step - len(in_a_row) + 1 + int((in_a_row >= limit).argmax())
  if not cfg.spike_sigma:
    raise FloatingPointError(
      f'loss or gradient were not finite in {limit} steps in a row, up to step {last}; none was '
      'applied\nfix: start again in a new --workdir with a lower optim.lr'
    )
  raise GoBack(
    f'loss or gradient were not finite, or spikes, in {limit} steps in a row, up to step {last}; '
    'none was applied, and no checkpoint is left to go back to\n'
    'fix: start again in a new --workdir with a lower optim.lr, or a higher train.spike_sigma',
    last - limit,
    last,
  )
