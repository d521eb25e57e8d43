"""How loss falls with size: power laws with intervals, and compute-optimal sizes.

Letters: P points (runs), N parameters, D tokens, L loss; E, A, B, alpha, beta as in
L(N, D) = E + A / N^alpha + B / D^beta. N counts what the caller counts; of small models most
parameters are embeddings, and exponents differ much with and without them.

Sources: Hoffmann et al. 2022 (Chinchilla; section 3.2 isoFLOP parabolas, 3.3 parametric fit: Huber
on logs, from a grid of starts); Besiroglu et al. 2024 (why the objective must be a sum and the
optimizer run to the end, and the bootstrap over points). In place of their L-BFGS: Levenberg-
Marquardt with reweighting for Huber's loss, all starts or bootstrap draws as one batch.
"""

import itertools

import numpy as np

HUBER = 1e-3  # residuals of log L beyond this count linearly
GROUPS = 5  # seeds or other groups below which a bootstrap says nothing
DESCENT = 500  # most steps of a fit
BEYOND = 10.0  # how many times the largest size a fitted curve is drawn to

# ------------------------------------------------------------------------------------- the fits


def power_law(sizes_P, losses_P, groups_P=None, draws=200, seed=0):
  """Fit L = E + A / N^alpha -> {E, A, alpha, intervals, residual, curve}.

  Args:
    sizes_P: N of each point, or any other resource: tokens, FLOPs.
    groups_P: what is drawn together by the bootstrap, such as the seed of each point: seeds shift
      all sizes alike. None = every point by itself.

  Returns:
    intervals: {E, A, alpha: [low, high]} at 95 %, or None with fewer than 5 groups. residual: root
    mean square of log L. curve: [[N, L, low, high], ...] up to 10 times the largest size.

  Raises:
    ValueError: fewer than three sizes, or a loss that is not positive.
  """
  sizes_P = np.asarray(sizes_P, float)
  law, drawn = _fit([sizes_P], losses_P, groups_P, draws, seed)
  grid = np.geomspace(sizes_P.min(), BEYOND * sizes_P.max(), 40)
  bounds = [_interval([predict(one, size) for one in drawn]) or [None, None] for size in grid]
  lines = zip(grid.tolist(), predict(law, grid).tolist(), bounds, strict=True)
  return law | {'curve': [[size, loss, *pair] for size, loss, pair in lines]}


def parametric(sizes_P, tokens_P, losses_P, groups_P=None, draws=200, seed=0):
  """Fit L = E + A / N^alpha + B / D^beta -> {E, A, alpha, B, beta, intervals, residual}.

  Sizes and tokens must vary independently of each other. Arguments and errors as of `power_law`.
  """
  resources = [np.asarray(sizes_P, float), np.asarray(tokens_P, float)]
  logs = np.log(np.stack(resources))
  if np.linalg.matrix_rank(logs - logs.mean(axis=1, keepdims=True), tol=1e-6) < 2:
    raise ValueError(
      'sizes and tokens rise in step: their shares of the loss cannot be told apart\n'
      'fix: train some sizes for more and for fewer tokens'
    )
  return _fit(resources, losses_P, groups_P, draws, seed)[0]


def predict(law, sizes, tokens=None):
  """The loss that a law of `power_law` or, with tokens, of `parametric` gives."""
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
  """Parabolas in log N, one a compute budget -> {budgets, exponent, interval, notes}.

  budgets: [{flops, parameters, loss, inside}, ...], the minimum of each parabola, and whether it
  lies between the sizes tried. exponent: of optimal N over FLOPs, from the budgets whose minimum is
  inside, with a bootstrap interval over groups (see `power_law`); None with fewer than two such
  budgets.
  """
  flops_P, log_sizes_P = np.asarray(flops_P, float), np.log(np.asarray(sizes_P, float))
  losses_P, notes, budgets = np.asarray(losses_P, float), [], []
  points = {float(c): np.flatnonzero(flops_P == c) for c in np.unique(flops_P)}
  minimum = lambda chosen: _parabola(log_sizes_P[chosen], losses_P[chosen])
  for flops, chosen in points.items():
    if (found := minimum(chosen)) is None:
      notes.append(f'{flops:.3g} FLOPs: fewer than three sizes, or no minimum')
      continue
    log_size, loss, inside = found
    budgets.append({'flops': flops, 'parameters': float(np.exp(log_size)), 'loss': loss, 'inside': inside})
    if not inside:
      notes.append(f'{flops:.3g} FLOPs: the minimum is outside the sizes tried, and not used')
  good = [one for one in budgets if one['inside']]
  if len(good) < 2:
    return {'budgets': budgets, 'exponent': None, 'interval': None, 'notes': notes}
  log_flops = np.log([one['flops'] for one in good])
  slope = lambda log_sizes: float(np.polyfit(log_flops, log_sizes, 1)[0])
  slopes = []
  for chosen in _resampled(len(losses_P), groups_P, draws, seed):
    again = [minimum(chosen[flops_P[chosen] == one['flops']]) for one in good]
    if None not in again:
      slopes.append(slope([one[0] for one in again]))
  exponent = slope([np.log(one['parameters']) for one in good])
  return {'budgets': budgets, 'exponent': exponent, 'interval': _interval(slopes), 'notes': notes}


def _parabola(log_sizes, losses):
  """(log N of the minimum, its loss, whether it is between the sizes); None if there is none."""
  if len(np.unique(log_sizes)) < 3:
    return None
  middle = log_sizes.mean()
  a, b, c = np.polyfit(log_sizes - middle, losses, 2)
  if a <= 0:
    return None
  best = middle - b / (2 * a)
  return best, float(c - b * b / (4 * a)), bool(log_sizes.min() <= best <= log_sizes.max())


def _interval(drawn):
  """95 % between the quantiles of bootstrap draws; None without enough of them."""
  if len(drawn) < 20:
    return None
  return [float(q) for q in np.quantile(drawn, (0.025, 0.975))]


# ------------------------------------------------------------------------------------ how it fits
#
# Inside, a law is (log E, log A', alpha[, log B', beta]), with A' = A / M^alpha at the geometric
# mean M of the sizes: height and slope are then independent, and the descent is short.


def _fit(resources, losses_P, groups_P, draws, seed):
  """-> (the law with residual and intervals, bootstrap draws of the law)."""
  losses_P = np.asarray(losses_P, float)
  if not all((values > 0).all() for values in (losses_P, *resources)):
    raise ValueError('a loss or size is not positive\nfix: fit a loss such as valid_loss')
  for values in resources:
    if (n := len(np.unique(values))) < 3:
      raise ValueError(f'{n} sizes do not determine a power law\nfix: give at least 3 sizes')
  logs = [np.log(values) for values in resources]
  middles = [values.mean() for values in logs]
  logs = [values - middle for values, middle in zip(logs, middles, strict=True)]
  whole = np.ones_like(losses_P)
  found_BK, value_B = _descend(_starts(logs, losses_P), logs, losses_P, whole)
  best = found_BK[value_B.argmin()]
  enough = len(losses_P) > 2 * len(resources) + 1
  weights_BP = [
    np.bincount(chosen, minlength=len(losses_P))
    for chosen in _resampled(len(losses_P), groups_P, draws * enough, seed)
    if all(len(np.unique(values[chosen])) >= 3 for values in resources)
  ]
  again_BK = _descend([best] * len(weights_BP), logs, losses_P, weights_BP)[0] if weights_BP else ()
  drawn = [_named(one, middles) for one in again_BK]
  law = _named(best, middles)
  intervals = {key: _interval([one[key] for one in drawn]) for key in law}
  residual = float(np.sqrt(np.mean((_total(best[None], logs)[0] - np.log(losses_P)) ** 2)))
  known = None if None in intervals.values() else intervals
  return law | {'intervals': known, 'residual': residual}, drawn


def _resampled(count, groups_P, draws, seed):
  """Choices of `count` points, by groups drawn with replacement; none with too few groups."""
  groups_P = np.arange(count) if groups_P is None else np.asarray(groups_P)
  members = [np.flatnonzero(groups_P == name) for name in np.unique(groups_P)]
  if len(members) < GROUPS:
    return
  rng = np.random.default_rng(seed)
  for _ in range(draws):
    yield np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])


def _starts(logs, losses_P):
  """Starting points, the best first: E a share of the least loss, exponents from a grid."""
  shares, exponents = (0.05, 0.3, 0.6, 0.9, 0.98), (0.05, 0.15, 0.35, 0.7, 1.5)
  splits = (1.0,) if len(logs) == 1 else (0.1, 0.5, 0.9)
  starts = []
  for share, split, *powers in itertools.product(shares, splits, *[exponents] * len(logs)):
    rest = np.mean(losses_P) - share * losses_P.min()
    start = [np.log(share * losses_P.min())]
    for power, part in zip(powers, (split, 1 - split), strict=False):
      start += [np.log(rest * part), power]
    starts.append(np.array(start))
  return np.stack(starts)


def _total(law_BK, logs):
  """(log L [B, P], share of each term in it): sums of logs, so that no term is negative."""
  terms = [law_BK[:, :1] + np.zeros_like(logs[0])]
  for x, a, power in zip(logs, law_BK.T[1::2], law_BK.T[2::2], strict=True):
    terms.append(a[:, None] - power[:, None] * x)
  total = np.logaddexp.reduce(terms, axis=0)
  return total, np.exp(terms - total)


def _objective(law_BK, logs, losses_P, weights_BP):
  """Summed Huber loss of log L in units of HUBER^2 -> (values [B], residuals, shares of terms)."""
  total, shares = _total(law_BK, logs)
  scaled = (total - np.log(losses_P)) / HUBER
  size = np.abs(scaled)
  value = (weights_BP * np.where(size <= 1, scaled**2 / 2, size - 0.5)).sum(-1)
  return value, scaled, shares


def _descend(starts_BK, logs, losses_P, weights_BP):
  """Levenberg-Marquardt from each start, with its weights of the points -> (laws, values)."""
  law, weights = np.array(starts_BK), np.broadcast_to(weights_BP, (len(starts_BK), len(losses_P)))
  low = np.array([-50.0, *[-50.0, 0.0] * len(logs)])
  high = np.array([50.0, *[50.0, 5.0] * len(logs)])
  damping, diagonal = np.full(len(law), 1e-2), np.arange(law.shape[1])
  value, scaled, shares = _objective(law, logs, losses_P, weights)
  for _ in range(DESCENT):
    columns = [shares[0]]
    for x, share in zip(logs, shares[1:], strict=True):
      columns += [share, -x * share]
    slopes = np.stack(columns, -1) / HUBER
    pull = slopes * (weights / np.maximum(1, np.abs(scaled)))[..., None]
    curvature = slopes.mT @ pull
    curvature[:, diagonal, diagonal] *= 1 + damping[:, None]
    curvature[:, diagonal, diagonal] += 1e-9
    step = np.linalg.solve(curvature, pull.mT @ scaled[..., None])[..., 0]
    tried = np.clip(law - step, low, high)
    then = _objective(tried, logs, losses_P, weights)
    good = then[0] < value
    ended = np.where(good, value - then[0] < 1e-10 * value, damping > 1e8)
    damping = np.clip(np.where(good, damping / 4, damping * 4), 1e-12, 1e12)
    law[good] = tried[good]
    value = np.where(good, then[0], value)
    scaled = np.where(good[:, None], then[1], scaled)
    shares = np.where(good[:, None], then[2], shares)
    if ended.all():
      break
  return law, value


def _named(law, middles):
  """{E, A, alpha[, B, beta]} of what is fitted."""
  named = {'E': float(np.exp(law[0]))}
  names = (('A', 'alpha'), ('B', 'beta'))
  for (factor, power), a, x, middle in zip(names, law[1::2], law[2::2], middles, strict=False):
    named |= {factor: float(np.exp(a + x * middle)), power: float(x)}
  return named
