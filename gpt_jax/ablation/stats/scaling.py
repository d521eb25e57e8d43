"""Scaling laws: power laws of loss over size with bootstrap intervals, and compute-optimal sizes.

Letters: P points (runs), N parameters, D tokens, L loss; E, A, B, alpha, beta as in
L(N, D) = E + A / N^alpha + B / D^beta. Exponents depend much on whether the caller's N includes embeddings.

Sources: Hoffmann et al. 2022 (Chinchilla; section 3.2 isoFLOP parabolas, 3.3 parametric fit: Huber loss on
logs, from a grid of starts); Besiroglu et al. 2024 (a summed objective, and the bootstrap over points).
"""

import itertools

import numpy as np

HUBER = 1e-3  # residuals of log L beyond this count linearly
MIN_GROUPS = 5  # seeds or other groups that a bootstrap needs
REFINED_STARTS = 8  # of the grid, the best by their objective
EXTRAPOLATION = 10.0  # a fitted curve ends at so many times the largest size


def power_law(sizes_P, losses_P, groups_P=None, draws=200, seed=0):
  """Fit L = E + A / N^alpha -> {E, A, alpha, intervals, residual, curve}.

  Args:
    sizes_P: N of each point, or any other resource: tokens, FLOPs.
    groups_P: group of each point for the bootstrap, such as its seed, which shifts all sizes alike; None =
      every point by itself.

  Returns:
    intervals: {E, A, alpha: [low, high]} at 95 %, or None with fewer than 5 groups. residual: root mean
    square of log L. curve: [[N, L, low, high], ...] up to 10 times the largest size.

  Raises:
    ValueError: fewer than three sizes, or a loss that is not positive.
  """
  sizes_P = np.asarray(sizes_P, float)
  law, drawn = _fit([sizes_P], losses_P, groups_P, draws, seed)
  grid = np.geomspace(sizes_P.min(), EXTRAPOLATION * sizes_P.max(), 40)
  bounds = [_interval([predict(one, size) for one in drawn]) or [None, None] for size in grid]
  lines = zip(grid.tolist(), predict(law, grid).tolist(), bounds, strict=True)
  return law | {'curve': [[size, loss, *pair] for size, loss, pair in lines]}


def predict_largest(sizes_P, losses_P, groups_P=None, draws=200, seed=0):
  """Fit a law without the largest size and ask it for that -> {size, predicted, interval, measured}.

  Arguments like `power_law`. interval: at 95 %, of the law's mean; None with fewer than 5 groups. measured:
  the mean loss there. None with fewer than four sizes, as one less determines no law.
  """
  sizes_P, losses_P = np.asarray(sizes_P, float), np.asarray(losses_P, float)
  if len(np.unique(sizes_P)) < 4:
    return None
  size = float(sizes_P.max())
  known = sizes_P < size
  groups_P = None if groups_P is None else np.asarray(groups_P)[known]
  law, drawn = _fit([sizes_P[known]], losses_P[known], groups_P, draws, seed)
  interval = _interval([predict(one, size) for one in drawn])
  measured = float(losses_P[~known].mean())
  return {'size': size, 'predicted': float(predict(law, size)), 'interval': interval, 'measured': measured}


def parametric(sizes_P, tokens_P, losses_P, groups_P=None, draws=200, seed=0):
  """Fit L = E + A / N^alpha + B / D^beta -> {E, A, alpha, B, beta, intervals, residual}.

  Sizes and tokens must vary independently. Arguments and errors like `power_law`.
  """
  resources = [np.asarray(sizes_P, float), np.asarray(tokens_P, float)]
  logs = np.log(np.stack(resources))
  if np.linalg.matrix_rank(logs - logs.mean(axis=1, keepdims=True), tol=1e-6) < 2:
    raise ValueError(
      'sizes and tokens rise in step: their parts of the loss cannot be separated\n'
      'fix: train some sizes for more and for fewer tokens'
    )
  return _fit(resources, losses_P, groups_P, draws, seed)[0]


def predict(law, sizes, tokens=None):
  """The loss that a law of `power_law` or, with tokens, of `parametric` predicts."""
  loss = law['E'] + law['A'] * np.asarray(sizes, float) ** -law['alpha']
  return loss if tokens is None else loss + law['B'] * np.asarray(tokens, float) ** -law['beta']


def optimum(law, flops, per_token=6.0):
  """The compute-optimal model of a parametric law -> {parameters, tokens, loss}.

  flops: of the whole training = per_token * N * D. Hoffmann et al. 2022, equation 4.
  """
  total = law['alpha'] + law['beta']
  balance = (law['alpha'] * law['A'] / (law['beta'] * law['B'])) ** (1 / total)
  sizes = balance * (flops / per_token) ** (law['beta'] / total)
  tokens = flops / per_token / sizes
  return {'parameters': float(sizes), 'tokens': float(tokens), 'loss': float(predict(law, sizes, tokens))}


def isoflop(flops_P, sizes_P, losses_P, groups_P=None, draws=1000, seed=0):
  """Fit parabolas in log N, one for each compute budget -> {budgets, exponent, interval, notes}.

  budgets: [{flops, parameters, loss, inside}, ...], the minimum of each parabola, and whether it lies between
  the sizes tried. exponent: of optimal N over FLOPs, from the budgets whose minimum is inside, with a
  bootstrap interval over groups (see `power_law`); None with fewer than two such budgets.
  """
  flops_P, log_sizes_P = np.asarray(flops_P, float), np.log(np.asarray(sizes_P, float))
  losses_P, notes, budgets = np.asarray(losses_P, float), [], []
  fit_points = lambda chosen: _parabola_minimum(log_sizes_P[chosen], losses_P[chosen])
  for flops in map(float, np.unique(flops_P)):
    minimum = fit_points(flops_P == flops)
    if minimum is None:
      notes.append(f'{flops:.3g} FLOPs: fewer than three sizes, or no minimum')
      continue
    log_size, loss, inside = minimum
    budgets.append({'flops': flops, 'parameters': float(np.exp(log_size)), 'loss': loss, 'inside': inside})
    if not inside:
      notes.append(f'{flops:.3g} FLOPs: the minimum is outside the sizes tried, and not used')
  used = [budget for budget in budgets if budget['inside']]
  exponent, slopes = None, []
  if len(used) > 1:
    log_flops = np.log([budget['flops'] for budget in used])
    slope = lambda log_sizes: float(np.polyfit(log_flops, log_sizes, 1)[0])
    exponent = slope([np.log(budget['parameters']) for budget in used])
    for chosen in _resample(len(losses_P), groups_P, draws, seed):
      minima = [fit_points(chosen[flops_P[chosen] == budget['flops']]) for budget in used]
      if None not in minima:
        slopes.append(slope([minimum[0] for minimum in minima]))
  return {'budgets': budgets, 'exponent': exponent, 'interval': _interval(slopes), 'notes': notes}


def _parabola_minimum(log_sizes, losses):
  """(log N of the minimum, its loss, whether it is between the sizes); None if there is none."""
  if len(np.unique(log_sizes)) < 3:
    return None
  middle = log_sizes.mean()
  a, b, c = np.polyfit(log_sizes - middle, losses, 2)
  if a <= 0:
    return None
  best = middle - b / (2 * a)
  return best, float(c - b * b / (4 * a)), bool(log_sizes.min() <= best <= log_sizes.max())


def _interval(samples):
  """95 % between the quantiles of bootstrap samples; None with fewer than 20."""
  if len(samples) < 20:
    return None
  return [float(q) for q in np.quantile(samples, (0.025, 0.975))]


# ----------------------------------------------------------------------------------- optimization
#
# Inside, a law is (log E, log A', alpha[, log B', beta]), with A' = A / M^alpha at the geometric
# mean M of the sizes: height and slope are then uncorrelated, and the optimizer converges fast.


def _fit(resources, losses_P, groups_P, draws, seed):
  """-> (the law with residual and intervals, laws of the bootstrap samples)."""
  losses_P = np.asarray(losses_P, float)
  if not all((values > 0).all() for values in (losses_P, *resources)):
    raise ValueError('a loss or size is not positive\nfix: fit a loss such as valid_loss')
  for values in resources:
    if (n := len(np.unique(values))) < 3:
      raise ValueError(f'{n} sizes do not determine a power law\nfix: give at least 3 sizes')
  logs = [np.log(values) for values in resources]
  middles = [values.mean() for values in logs]
  logs = [values - middle for values, middle in zip(logs, middles, strict=True)]
  starts = sorted(_starts(logs, losses_P), key=lambda law: huber_loss(law, logs, losses_P))
  best = min((_minimize(law, logs, losses_P) for law in starts[:REFINED_STARTS]), key=lambda fit: fit.cost).x
  enough = len(losses_P) > 2 * len(resources) + 1
  samples = [
    _named(_minimize(best, [values[chosen] for values in logs], losses_P[chosen]).x, middles)
    for chosen in _resample(len(losses_P), groups_P, draws * enough, seed)
    if all(len(np.unique(values[chosen])) >= 3 for values in resources)
  ]
  law = _named(best, middles)
  intervals = {key: _interval([sample[key] for sample in samples]) for key in law}
  residual = float(np.sqrt(np.mean((_log_loss(best, logs)[0] - np.log(losses_P)) ** 2)))
  intervals = None if None in intervals.values() else intervals
  return law | {'intervals': intervals, 'residual': residual}, samples


def _resample(count, groups_P, draws, seed):
  """Yield `draws` choices of points, by groups drawn with replacement; none with too few groups."""
  groups_P = np.arange(count) if groups_P is None else np.asarray(groups_P)
  members = [np.flatnonzero(groups_P == name) for name in np.unique(groups_P)]
  if len(members) < MIN_GROUPS:
    return
  rng = np.random.default_rng(seed)
  for _ in range(draws):
    yield np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])


def _starts(logs, losses_P):
  """Starting points: E a fraction of the smallest loss, exponents from a grid."""
  fractions, exponents = (0.05, 0.3, 0.6, 0.9, 0.98), (0.05, 0.15, 0.35, 0.7, 1.5)
  splits = (1.0,) if len(logs) == 1 else (0.1, 0.5, 0.9)
  for fraction, split, *powers in itertools.product(fractions, splits, *[exponents] * len(logs)):
    rest = np.mean(losses_P) - fraction * losses_P.min()
    start = [np.log(fraction * losses_P.min())]
    for power, part in zip(powers, (split, 1 - split), strict=False):
      start += [np.log(rest * part), power]
    yield np.array(start)


def _log_loss(law, logs):
  """(log L [P], its gradient [P, 2 * resources + 1]): sums of exponentials, so that no term is negative."""
  terms = [law[0] + np.zeros_like(logs[0])]
  terms += [a - power * x for x, a, power in zip(logs, law[1::2], law[2::2], strict=True)]
  total = np.logaddexp.reduce(terms, axis=0)
  weights = np.exp(terms - total)
  columns = [weights[0]]
  for x, weight in zip(logs, weights[1:], strict=True):
    columns += [weight, -x * weight]
  return total, np.stack(columns, -1)


def huber_loss(law, logs, losses_P):
  """Summed Huber loss of log L, in units of HUBER^2."""
  from scipy import special

  return special.huber(1, (_log_loss(law, logs)[0] - np.log(losses_P)) / HUBER).sum()


def _minimize(start, logs, losses_P):
  """Minimize the Huber loss from a starting law -> scipy's OptimizeResult."""
  from scipy import optimize

  bounds = [-50.0, *[-50.0, 0.0] * len(logs)], [50.0, *[50.0, 5.0] * len(logs)]
  residual = lambda law: _log_loss(law, logs)[0] - np.log(losses_P)
  gradient = lambda law: _log_loss(law, logs)[1]
  options = dict(loss='huber', f_scale=HUBER, x_scale='jac', ftol=1e-11, xtol=1e-11, gtol=1e-11)
  return optimize.least_squares(residual, np.clip(start, *bounds), gradient, bounds=bounds, **options)


def _named(law, middles):
  """{E, A, alpha[, B, beta]} of a fitted law."""
  named = {'E': float(np.exp(law[0]))}
  names = (('A', 'alpha'), ('B', 'beta'))
  for (factor, exponent), a, x, middle in zip(names, law[1::2], law[2::2], middles, strict=False):
    named |= {factor: float(np.exp(a + x * middle)), exponent: float(x)}
  return named
