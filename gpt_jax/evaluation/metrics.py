"""How good is it: pure functions on numpy arrays and strings, for images, text and sets.

Sounds: sound_metrics.py, texts by the libraries of the field: text_metrics.py.

Letters: N examples, M other examples, D features (here a plain axis), Y X A image rows, columns,
channels. Intervals are (low, high) at 95 %.

Sources: SSIM (Wang et al. 2004), Frechet distance (Dowson and Landau 1982; Heusel et al. 2017 for
its use), KID (Binkowski et al. 2018), precision and recall (Kynkaanniemi et al. 2019), SQuAD's F1
(Rajpurkar et al. 2016), interval of a proportion (Wilson 1927).
"""

import collections
import re
import string

import numpy as np

Z95 = 1.959963984540054  # standard normal quantile at 97.5 %

# -------------------------------------------------------------------------------------- intervals


def wilson_interval(hits, n):
  """Share of `hits` in `n` -> (low, high); never empty, even at 0 of n or n of n."""
  if not 0 <= hits <= n or not n:
    raise ValueError(f'{hits} hits of {n} are no proportion\nfix: give 0 <= hits <= n and n > 0')
  p, z2 = hits / n, Z95 * Z95
  center = (p + z2 / (2 * n)) / (1 + z2 / n)
  half = Z95 / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
  low, high = float(center - half), float(center + half)
  return max(0.0, low) if hits else 0.0, min(1.0, high) if hits < n else 1.0


def bootstrap(values_N, statistic=np.mean, draws=1000, seed=0):
  """Percentile interval of a statistic of values [N, ...] over examples drawn with replacement."""
  values_N = np.asarray(values_N)
  rng = np.random.default_rng(seed)
  found = [statistic(values_N[rng.integers(0, len(values_N), len(values_N))]) for _ in range(draws)]
  return tuple(float(q) for q in np.quantile(found, (0.025, 0.975)))


def accuracy(found, wanted):
  """Share of equal pairs -> (accuracy, Wilson interval)."""
  hits = sum(f == w for f, w in zip(found, wanted, strict=True))
  return hits / len(found), wilson_interval(hits, len(found))


# ------------------------------------------------------------------------------------------ images


def psnr(a_NYXA, b_NYXA, peak=255.0, most=100.0):
  """Peak signal-to-noise ratio [N] in dB of each pair of images; equal images get `most`."""
  error_N = _difference(a_NYXA, b_NYXA).mean((1, 2, 3))
  floor = peak**2 / 10 ** (most / 10)
  return 10 * np.log10(peak**2 / np.maximum(error_N, floor))


def _difference(a_NYXA, b_NYXA):
  """Squared differences in float64."""
  if np.shape(a_NYXA) != np.shape(b_NYXA) or np.ndim(a_NYXA) != 4:
    raise ValueError(
      f'images of shapes {np.shape(a_NYXA)} and {np.shape(b_NYXA)} cannot be compared\n'
      'fix: give two arrays [N, Y, X, A] of one shape'
    )
  return (np.asarray(a_NYXA, np.float64) - np.asarray(b_NYXA, np.float64)) ** 2


def ssim(a_NYXA, b_NYXA, peak=255.0):
  """Structural similarity [N], 1 = equal: Gaussian windows of 11 x 11 with sigma 1.5.

  Only windows inside the image count; smaller images are mirrored at their edges instead.
  """
  from scipy.ndimage import gaussian_filter

  _difference(a_NYXA, b_NYXA)
  a, b = np.asarray(a_NYXA, np.float64), np.asarray(b_NYXA, np.float64)
  blur = lambda x: gaussian_filter(x, (0, 1.5, 1.5, 0), radius=(0, 5, 5, 0))
  mean_a, mean_b = blur(a), blur(b)
  var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
  both = blur(a * b) - mean_a * mean_b
  c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
  map_NYXA = (2 * mean_a * mean_b + c1) * (2 * both + c2)
  map_NYXA /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
  if min(a.shape[1:3]) > 10:
    map_NYXA = map_NYXA[:, 5:-5, 5:-5]
  return map_NYXA.mean((1, 2, 3))


def bits_per_dim(nats, dims):
  """Nats of a whole image -> bits for each of its `dims` values; for lossless tokens only."""
  return nats / (dims * np.log(2))


# ------------------------------------------------------------------------------------------- codes


def code_perplexity(codes, size):
  """exp(entropy) of the codes in use: `size` if all are equally frequent, 1 if one is alone."""
  count = np.bincount(np.asarray(codes).ravel(), minlength=size)
  p = count[count > 0] / count.sum()
  return float(np.exp(-(p * np.log(p)).sum()))


def code_usage(codes, size):
  """Share of the codebook that occurs at all."""
  return len(np.unique(codes)) / size


# --------------------------------------------------------------------------------- sets of features


def squared_distances(a_ND, b_MD):
  """Squared Euclidean distances [N, M]."""
  a_ND, b_MD = np.asarray(a_ND, np.float64), np.asarray(b_MD, np.float64)
  found_NM = (a_ND**2).sum(1)[:, None] + (b_MD**2).sum(1)[None] - 2 * a_ND @ b_MD.T
  return np.maximum(found_NM, 0)


def nearest_neighbors(a_ND, b_MD, rows=1024):
  """The nearest of b for each of a -> (index [N], distance [N]); memory for `rows` at a time."""
  index, distance = [], []
  for first in range(0, len(a_ND), rows):
    d_NM = squared_distances(a_ND[first : first + rows], b_MD)
    index.append(d_NM.argmin(1))
    distance.append(np.sqrt(d_NM.min(1)))
  return np.concatenate(index), np.concatenate(distance)


def frechet_distance(a_ND, b_MD):
  """Frechet distance of two Gaussians fitted to features. With features of one's own it is no FID.

  Grows as examples get fewer: compare equal numbers only, and print the distance of real to real.
  """
  a_ND, b_MD = np.asarray(a_ND, np.float64), np.asarray(b_MD, np.float64)
  if min(len(a_ND), len(b_MD)) < 2:
    raise ValueError('a Frechet distance needs two examples or more of each\nfix: raise the limit')
  mean = ((a_ND.mean(0) - b_MD.mean(0)) ** 2).sum()
  cov_a, cov_b = np.atleast_2d(np.cov(a_ND.T)), np.atleast_2d(np.cov(b_MD.T))
  value, vector = np.linalg.eigh(cov_a)
  root_a = (vector * np.sqrt(np.maximum(value, 0))) @ vector.T
  # The trace of (Sa Sb)^1/2 is that of the symmetric (Sa^1/2 Sb Sa^1/2)^1/2: no complex numbers.
  cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root_a @ cov_b @ root_a), 0)).sum()
  return float(max(0.0, mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def kernel_distance(a_ND, b_MD, subsets=100, size=1000, seed=0):
  """Kernel distance: unbiased MMD^2 with (a.b / D + 1)^3 -> (mean, s.d.) over subsets."""
  size, rng = min(size, len(a_ND), len(b_MD)), np.random.default_rng(seed)
  if size < 2:
    raise ValueError('a kernel distance needs two examples or more of each\nfix: raise the limit')
  found = []
  for _ in range(subsets):
    a = np.asarray(a_ND)[rng.choice(len(a_ND), size, replace=False)].astype(np.float64)
    b = np.asarray(b_MD)[rng.choice(len(b_MD), size, replace=False)].astype(np.float64)
    found.append(squared_mmd(a, b))
  return float(np.mean(found)), float(np.std(found))


def squared_mmd(a_ND, b_MD):
  """Unbiased squared maximum mean discrepancy under the kernel of KID; may be below zero."""
  kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
  n, m = len(a_ND), len(b_MD)
  aa, bb = kernel(a_ND, a_ND), kernel(b_MD, b_MD)
  within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
  return float(within - 2 * kernel(a_ND, b_MD).mean())


def precision_recall(real_ND, made_MD, k=3):
  """Share of made within the k-NN balls of real (precision), and the converse (recall)."""
  inside = lambda x, centers: float(
    (squared_distances(x, centers) <= _radii2(centers, k)[None]).any(1).mean()
  )
  return inside(made_MD, real_ND), inside(real_ND, made_MD)


def _radii2(x_ND, k):
  """Squared distance of each to its k-th neighbor, itself left out."""
  d_NN = squared_distances(x_ND, x_ND)
  np.fill_diagonal(d_NN, np.inf)
  k = min(k, len(x_ND) - 1)
  return np.partition(d_NN, k - 1, axis=1)[:, k - 1]


def memorization(made_ND, held_ND, train_MD):
  """Are samples nearer to the training set than real examples that were held out?

  -> dict(ratio: median distance of samples / of held out to their nearest of train; copies: share
  of samples nearer than all but 1 % of held out; p: of the one-sided Kolmogorov-Smirnov test).
  """
  from scipy.stats import ks_2samp

  made, held = nearest_neighbors(made_ND, train_MD)[1], nearest_neighbors(held_ND, train_MD)[1]
  return {
    'ratio': float(np.median(made) / max(np.median(held), 1e-12)),
    'copies': float((made < np.quantile(held, 0.01)).mean()),
    'p': float(ks_2samp(made, held, alternative='greater', method='asymp').pvalue),
  }


def spread(x_ND, labels):
  """Mean distance between two of a class, averaged over the classes with two or more."""
  labels, found = np.asarray(labels), []
  for label in np.unique(labels):
    x = np.asarray(x_ND)[labels == label]
    if len(x) > 1:
      found.append(np.sqrt(squared_distances(x, x)).sum() / (len(x) * (len(x) - 1)))
  return float(np.mean(found)) if found else float('nan')


def diversity(made_ND, made_labels, real_ND, real_labels):
  """Spread within classes relative to that of real examples: 1 = as varied, 0 = one of each."""
  kept = np.isin(real_labels, np.unique(made_labels))
  real = spread(np.asarray(real_ND)[kept], np.asarray(real_labels)[kept])
  return spread(made_ND, made_labels) / real


def retrieval(scores_NM, true_N, at=(1, 5, 10)):
  """Rank of the true candidate by score, ties counted against it.

  -> dict(mrr: mean of 1 / rank, median_rank: 1 = first, recall@k: share of ranks up to k).
  """
  scores_NM, true_N = np.asarray(scores_NM), np.asarray(true_N)
  mine_N1 = np.take_along_axis(scores_NM, true_N[:, None], 1)
  rank_N = (scores_NM >= mine_N1).sum(1)
  recall = {f'recall@{k}': float((rank_N <= k).mean()) for k in at if k < scores_NM.shape[1]}
  return {'mrr': float((1 / rank_N).mean()), 'median_rank': float(np.median(rank_N)), **recall}


# -------------------------------------------------------------------------------------------- text


def levenshtein(a, b):
  """Fewest insertions, deletions and substitutions that turn one sequence into the other."""
  codes = {}
  a = np.array([codes.setdefault(x, len(codes)) for x in a], int)
  b = np.array([codes.setdefault(x, len(codes)) for x in b], int)
  place = np.arange(len(b) + 1)
  row = place.copy()
  for i, x in enumerate(a, 1):
    best = np.minimum(row + 1, np.append(i, row[:-1] + (b != x)))
    row = np.minimum.accumulate(best - place) + place  # insertions, all at once
  return int(row[-1])


def wer(found, wanted):
  """Word error rate: edits of all texts / words of all references. May exceed 1."""
  return _error_rate([f.split() for f in found], [w.split() for w in wanted])


def cer(found, wanted):
  """Character error rate."""
  return _error_rate(found, wanted)


def _error_rate(found, wanted):
  length = sum(map(len, wanted))
  if not length:
    raise ValueError('an error rate needs a reference that is not empty\nfix: give references')
  return sum(levenshtein(f, w) for f, w in zip(found, wanted, strict=True)) / length


def normalize(text):
  """Lower case without punctuation, articles and double spaces, as SQuAD compares answers."""
  text = ''.join(c for c in text.lower() if c not in string.punctuation)
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def token_f1(found, wanted):
  """F1 of the words that two texts share after `normalize`."""
  f, w = normalize(found).split(), normalize(wanted).split()
  if not f or not w:
    return float(f == w)
  same = (collections.Counter(f) & collections.Counter(w)).total()
  return 2 * same / (len(f) + len(w))
