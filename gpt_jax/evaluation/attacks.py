"""What attacks on a model's training data prove: AUC, exposure, and lower bounds on epsilon.

Scores are higher for what an attack takes for trained on. Pure functions of numpy arrays.

Letters: N members (trained on), M others, S candidates of a secret. Intervals are (low, high) at 95 %.

Sources: exposure (Carlini et al. 2019, The Secret Sharer, sections 4.2 and 4.3), epsilon from the rates of an
attack (Jagielski et al. 2020, Auditing Differentially Private Machine Learning; Nasr et al. 2021, Adversary
Instantiation), epsilon from one run with independent canaries (Steinke et al. 2023, theorem 5.2).
"""

import functools

import numpy as np

CONFIDENCE = 0.95
DELTA = 1e-5  # of a lower bound where no other is given
MOST_EPSILON = 50.0  # where the search for a bound ends
GUESSES = (0.125, 0.25, 0.5, 1.0)  # shares of the canaries that the one-run audit guesses

# ------------------------------------------------------------------------------------ membership


def auc(members_N, others_M):
  """Return the area under the ROC curve: the probability that a member scores higher, ties count half."""
  others_M, count = np.sort(others_M), len(members_N) * len(others_M)
  below_N, up_to_N = (np.searchsorted(others_M, members_N, side) for side in ('left', 'right'))
  return float((below_N.sum() + up_to_N.sum()) / 2 / count)


def true_positive_rate(members_N, others_M, fpr=0.01):
  """Return the largest share of members above a threshold that at most `fpr` of the others exceed."""
  allowed = int(np.floor(fpr * len(others_M) + 1e-9))  # others that may score above the threshold
  threshold = np.sort(others_M)[len(others_M) - 1 - allowed] if allowed < len(others_M) else -np.inf
  return float((np.asarray(members_N) > threshold).mean())


def bootstrap(measure, members_N, others_M, draws=1000, seed=0):
  """Return the percentile interval of measure(members, others), both drawn with replacement."""
  rng = np.random.default_rng(seed)
  draw = lambda x: np.asarray(x)[rng.integers(0, len(x), len(x))]
  values = [measure(draw(members_N), draw(others_M)) for _ in range(draws)]
  return [float(bound) for bound in np.percentile(values, (2.5, 97.5))]


# ------------------------------------------------------------------------------ bounds on epsilon


def epsilon_of_rates(hits, members, false_alarms, others, delta=DELTA, confidence=CONFIDENCE):
  """Return a lower bound on epsilon from the counts of one attack, 0 or more; arrays or numbers.

  (epsilon, delta)-privacy implies TPR <= e^epsilon FPR + delta, and the same of 1 - FPR and 1 - TPR. Rates
  are replaced by a lower and an upper Clopper-Pearson bound, which hold together with probability
  `confidence`. Each member and each other counts as an independent trial of the attack, with a threshold
  that does not depend on them.
  """
  tpr, fpr = lower_rate(hits, members, confidence), 1 - lower_rate(others - false_alarms, others, confidence)
  with np.errstate(divide='ignore', invalid='ignore'):
    bounds = np.log([(tpr - delta) / fpr, (1 - fpr - delta) / (1 - tpr)])
  return np.maximum(0, np.nan_to_num(bounds, nan=0, neginf=0).max(0))


def lower_rate(hits, count, confidence=CONFIDENCE):
  """Return the lower end of the Clopper-Pearson interval of a proportion; arrays or numbers."""
  from scipy.special import betaincinv

  hits = np.asarray(hits, float)
  low = betaincinv(np.maximum(hits, 1), count - np.maximum(hits, 1) + 1, (1 - confidence) / 2)
  return np.where(hits > 0, low, 0.0)


def epsilon_of_scores(members_N, others_M, delta=DELTA, confidence=CONFIDENCE, seed=0):
  """Return a lower bound on epsilon from the scores of an attack: see `epsilon_of_rates`.

  The threshold is the best one for a random half of the examples; the bound is that of the other half.
  """
  rng = np.random.default_rng(seed)
  halves = [np.array_split(rng.permutation(x), 2) for x in (members_N, others_M)]
  (choose_N, test_N), (choose_M, test_M) = halves
  if not len(test_N) or not len(test_M):
    return 0.0
  thresholds = np.unique(np.quantile(np.concatenate([choose_N, choose_M]), np.linspace(0, 1, 101)))
  above = lambda x, thresholds: len(x) - np.searchsorted(np.sort(x), thresholds)

  def bound(members, others, thresholds):
    hits, alarms = above(members, thresholds), above(others, thresholds)
    return epsilon_of_rates(hits, len(members), alarms, len(others), delta, confidence)

  bounds = bound(choose_N, choose_M, thresholds)
  best = np.flatnonzero(bounds == bounds.max())
  return float(bound(test_N, test_M, thresholds[best[len(best) // 2]]))


def epsilon_of_one_run(scores_N, planted_N, delta=DELTA, confidence=CONFIDENCE):
  """Return (lower bound on epsilon, guesses, right ones) from canaries with independent fair coins.

  The highest scores are guessed to be planted and as many lowest ones not to be. How many are guessed is
  one of GUESSES, with Bonferroni's correction for the choice.
  """
  order, m = np.argsort(-np.asarray(scores_N), kind='stable'), len(scores_N)
  planted_N = np.asarray(planted_N, bool)[order]
  best, level = (0.0, 0, 0), (1 - confidence) / len(GUESSES)
  for share in GUESSES:
    side = int(share * m / 2)
    right = int(planted_N[:side].sum() + (~planted_N[m - side :]).sum()) if side else 0
    epsilon = _largest_refuted(m, 2 * side, right, delta, level)
    best = max(best, (epsilon, 2 * side, right))
  return best


def _largest_refuted(m, guesses, right, delta, level):
  """Return the largest epsilon whose p-value is at most `level`, 0 if there is none."""
  p_value = functools.partial(one_run_p_value, m, guesses, right, delta=delta)
  low, high = 0.0, MOST_EPSILON
  if not guesses or p_value(epsilon=low) > level:
    return 0.0
  for _ in range(24):
    middle = (low + high) / 2
    low, high = (middle, high) if p_value(epsilon=middle) <= level else (low, middle)
  return low


def one_run_p_value(m, guesses, right, epsilon, delta=0.0):
  """Return the largest probability of so many right guesses about m coins under (epsilon, delta)-privacy."""
  from scipy.stats import binom

  rate = 1 / (1 + np.exp(-epsilon))
  tail = binom.sf(right - 1, guesses, rate)  # P[at least so many]
  if not delta or not right:
    return float(tail)
  below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, rate))  # P[right > X >= right - i]
  alpha = (below / np.arange(1, right + 1)).max()
  return float(min(1.0, tail + 2 * m * delta * alpha))


# --------------------------------------------------------------------------------------- exposure


def rank(nats, candidates_S):
  """Return the rank of a secret among all candidates, itself included: 1 = likeliest, ties by half."""
  candidates_S = np.asarray(candidates_S)
  return (candidates_S < nats).sum() + ((candidates_S == nats).sum() + 1) / 2


def exposure(nats, candidates_S):
  """Return log2 S - log2 rank of a secret among all S candidates, in bits.

  log2 S for the likeliest; 1 in the median, and up to 1.44 on average, for a model that knows nothing.
  """
  return float(np.log2(len(candidates_S)) - np.log2(rank(nats, candidates_S)))


def sampled_exposure(nats, candidates_S, space):
  """Return (exposure, bound by rank) of a secret from S random candidates of `space`, in bits.

  exposure: -log2 of the probability of fewer nats under a skew-normal fitted to the candidates' (section
  4.3), at most log2(space). By rank: from the secret's place among the candidates alone, which cannot
  exceed log2(S + 1).
  """
  from scipy.stats import skewnorm

  fitted = -skewnorm.logcdf(nats, *skewnorm.fit(candidates_S)) / np.log(2)
  by_rank = exposure(nats, np.append(candidates_S, nats))
  return float(min(fitted, np.log2(space))), by_rank


def chance_exposure(space):
  """Return the mean exposure of a uniformly random rank: log2(e) = 1.44 bits for a large space."""
  ranks = np.arange(1, min(space, 10**6) + 1)
  return float(np.log2(len(ranks)) - np.log2(ranks).mean())
