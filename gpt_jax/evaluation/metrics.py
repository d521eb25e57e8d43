"""Metrics of images, codes, sets of features and text: pure functions of numpy arrays and strings.

Sounds: audio_metrics.py. Text scores of other libraries: text_metrics.py.

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

WORD = re.compile(r'[\u3400-\u9fff]|[^\s\u3400-\u9fff]+')

# -------------------------------------------------------------------------------------- intervals


def accuracy(predictions, labels):
  """Return the share of equal pairs and its Wilson interval, which is never empty."""
  from scipy.stats import binomtest

  hits = sum(p == label for p, label in zip(predictions, labels, strict=True))
  interval = binomtest(hits, len(labels)).proportion_ci(method='wilson')
  return hits / len(labels), (float(interval.low), float(interval.high))


def bootstrap_mean(values_N, draws=1000, seed=0):
  """Return the percentile interval of a mean over examples drawn with replacement, in any order."""
  from scipy.stats import bootstrap

  if len(values_N) == 1:  # which scipy refuses
    return float(values_N[0]), float(values_N[0])
  rng = np.random.default_rng(seed)
  result = bootstrap((np.sort(values_N),), np.mean, n_resamples=draws, method='percentile', rng=rng)
  return tuple(map(float, result.confidence_interval))


# ------------------------------------------------------------------------------------------ images


def psnr(a_NYXA, b_NYXA, peak=255.0, most=100.0):
  """Peak signal-to-noise ratio [N] in dB of each pair of images, at most `most`."""
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
  covariance = blur(a * b) - mean_a * mean_b
  c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
  map_NYXA = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
  map_NYXA /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
  if min(a.shape[1:3]) > 10:
    map_NYXA = map_NYXA[:, 5:-5, 5:-5]
  return map_NYXA.mean((1, 2, 3))


def bits_per_dim(nats, dims):
  """Convert the nats of an image to bits for each of its `dims` values; for lossless tokens only."""
  return nats / (dims * np.log(2))


# ------------------------------------------------------------------------------------------- codes


def code_perplexity(codes, size):
  """exp(entropy) of the code frequencies: `size` if all are equally frequent, 1 if only one is used."""
  count = np.bincount(np.asarray(codes).ravel(), minlength=size)
  p = count[count > 0] / count.sum()
  return float(np.exp(-(p * np.log(p)).sum()))


def code_usage(codes, size):
  """Share of the codebook that is used at all."""
  return len(np.unique(codes)) / size


# --------------------------------------------------------------------------------- sets of features


def squared_distances(a_ND, b_MD):
  """Squared Euclidean distances [N, M]."""
  a_ND, b_MD = np.asarray(a_ND, np.float64), np.asarray(b_MD, np.float64)
  return np.maximum((a_ND**2).sum(1)[:, None] + (b_MD**2).sum(1)[None] - 2 * a_ND @ b_MD.T, 0)


def nearest_neighbors(a_ND, b_MD):
  """Return the nearest row of b for each row of a: (index [N], Euclidean distance [N])."""
  from sklearn.metrics import pairwise_distances_argmin_min

  return pairwise_distances_argmin_min(np.asarray(a_ND, np.float64), np.asarray(b_MD, np.float64))


def frechet_distance(a_ND, b_MD):
  """Frechet distance of two Gaussians fitted to features; it is FID only with Inception features.

  Grows as examples get fewer: compare equal numbers only, beside the distance of real to real.
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
  """KID: unbiased MMD^2 with the kernel (a.b / D + 1)^3 -> (mean, s.d.) over subsets."""
  size, rng = min(size, len(a_ND), len(b_MD)), np.random.default_rng(seed)
  if size < 2:
    raise ValueError('a kernel distance needs two examples or more of each\nfix: raise the limit')
  values = []
  for _ in range(subsets):
    a = np.asarray(a_ND)[rng.choice(len(a_ND), size, replace=False)].astype(np.float64)
    b = np.asarray(b_MD)[rng.choice(len(b_MD), size, replace=False)].astype(np.float64)
    values.append(squared_mmd(a, b))
  return float(np.mean(values)), float(np.std(values))


def squared_mmd(a_ND, b_MD):
  """Unbiased squared maximum mean discrepancy under the kernel of KID; may be below zero."""
  kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
  n, m = len(a_ND), len(b_MD)
  aa, bb = kernel(a_ND, a_ND), kernel(b_MD, b_MD)
  within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
  return float(within - 2 * kernel(a_ND, b_MD).mean())


def precision_recall(real_ND, samples_MD, k=3):
  """Share of samples within the k-NN balls of real examples (precision), and the converse (recall)."""

  def share_inside(x, centers):
    d_NN = squared_distances(centers, centers)
    np.fill_diagonal(d_NN, np.inf)
    nth = min(k, len(centers) - 1) - 1
    radii_N = np.partition(d_NN, nth, axis=1)[:, nth]
    return float((squared_distances(x, centers) <= radii_N[None]).any(1).mean())

  return share_inside(samples_MD, real_ND), share_inside(real_ND, samples_MD)


def nearer_to_train(samples_ND, held_out_MD, train_ND, seed=0):
  """Return whether the nearest neighbor of each sample is a training example, not a held-out one: bool [N].

  Equally many of both compete, so that half is chance. Of equally near ones the held-out one counts.
  """
  count = min(len(held_out_MD), len(train_ND))
  rng = np.random.default_rng(seed)
  choose = lambda x_ND: np.asarray(x_ND)[rng.permutation(len(x_ND))[:count]]
  train_N, held_out_N = (nearest_neighbors(samples_ND, choose(x_ND))[1] for x_ND in (train_ND, held_out_MD))
  return train_N < held_out_N


def memorization(samples_ND, held_out_ND, train_MD):
  """Test whether samples are nearer to the training set than held-out real examples are.

  Returns dict(ratio: median distance of samples / of held-out examples to their nearest of train;
  copies: share of samples nearer than all but 1 % of held out; p: of the one-sided
  Kolmogorov-Smirnov test).
  """
  from scipy.stats import ks_2samp

  samples_N, held_out_N = (nearest_neighbors(x_ND, train_MD)[1] for x_ND in (samples_ND, held_out_ND))
  return {
    'ratio': float(np.median(samples_N) / max(np.median(held_out_N), 1e-12)),
    'copies': float((samples_N < np.quantile(held_out_N, 0.01)).mean()),
    'p': float(ks_2samp(samples_N, held_out_N, alternative='greater', method='asymp').pvalue),
  }


def spread(x_ND, labels):
  """Mean distance between two of a class, averaged over the classes with two or more."""
  from scipy.spatial.distance import pdist

  classes = [np.asarray(x_ND, np.float64)[np.asarray(labels) == label] for label in np.unique(labels)]
  means = [pdist(x_ND).mean() for x_ND in classes if len(x_ND) > 1]
  return float(np.mean(means)) if means else float('nan')


def diversity(samples_ND, sample_labels, real_ND, real_labels):
  """Spread within classes relative to that of real examples: 1 = as varied, 0 = one of each."""
  in_samples_N = np.isin(real_labels, np.unique(sample_labels))
  real = spread(np.asarray(real_ND)[in_samples_N], np.asarray(real_labels)[in_samples_N])
  return spread(samples_ND, sample_labels) / real


def ranks(scores_NM, true_N):
  """Rank of the true candidate by score, 1 = first, ties counted against it: int [N]."""
  scores_NM, true_N = np.asarray(scores_NM), np.asarray(true_N)
  return (scores_NM >= np.take_along_axis(scores_NM, true_N[:, None], 1)).sum(1)


def retrieval(scores_NM, true_N, at=(1, 5, 10)):
  """Rank the true candidate by score, ties counted against it.

  Returns dict(mrr: mean of 1 / rank, median_rank: 1 = first, recall@k: share of ranks up to k).
  """
  scores_NM = np.asarray(scores_NM)
  rank_N = ranks(scores_NM, true_N)
  recall = {f'recall@{k}': float((rank_N <= k).mean()) for k in at if k < scores_NM.shape[1]}
  return {'mrr': float((1 / rank_N).mean()), 'median_rank': float(np.median(rank_N)), **recall}


# -------------------------------------------------------------------------------------------- text


def levenshtein(a, b):
  """Fewest insertions, deletions and substitutions that turn one sequence into the other."""
  codes = {}
  a, b = (np.array([codes.setdefault(x, len(codes)) for x in sequence], int) for sequence in (a, b))
  place = np.arange(len(b) + 1)
  row = place.copy()
  for i, x in enumerate(a, 1):
    best = np.minimum(row + 1, np.append(i, row[:-1] + (b != x)))
    row = np.minimum.accumulate(best - place) + place  # insertions, all at once
  return int(row[-1])


def wer(texts, references):
  """Word error rate: edits of all texts / words of all references. May exceed 1."""
  return cer([text.split() for text in texts], [reference.split() for reference in references])


def cer(texts, references):
  """Character error rate: edits of all texts / characters of all references. May exceed 1."""
  length = sum(map(len, references))
  if not length:
    raise ValueError('an error rate needs a reference that is not empty\nfix: give references')
  return sum(map(levenshtein, texts, references)) / length


def ngrams(words, n):
  """Return the n-grams of a list of words."""
  return list(zip(*(words[k:] for k in range(n)), strict=False))


def repetition(texts, n):
  """Share of n-grams that repeat an earlier one of their text (seq-rep-n), over texts that have any."""
  groups = [some for words in texts if (some := ngrams(words, n))]
  return float(np.mean([1 - len(set(some)) / len(some) for some in groups])) if groups else 0.0


def distinct(texts, n):
  """Share of different n-grams among those of all texts (distinct-n)."""
  every = [ngram for words in texts for ngram in ngrams(words, n)]
  return len(set(every)) / max(1, len(every))


def normalize(text):
  """Lower case without punctuation, articles and double spaces, as SQuAD compares answers."""
  text = ''.join(c for c in text.lower() if c not in string.punctuation)
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def consensus(texts):
  """The text with the largest mean `token_f1` to all of them; of equal ones the commonest, then the first.

  Of answers of one word that is the commonest (self-consistency, Wang et al. 2023), of others what the
  samples expect to score best (minimum Bayes risk, Eikema and Aziz 2022, section 2).
  """
  count = collections.Counter(texts)
  score = lambda text: sum(n * token_f1(text, other) for other, n in count.items())
  return max(count, key=lambda text: (score(text), count[text]))


def token_f1(text, reference):
  """F1 of the words that two texts share after `normalize`; each Chinese character is a word, as in MLQA."""
  words, expected = (WORD.findall(normalize(x)) for x in (text, reference))
  if not words or not expected:
    return float(words == expected)
  shared = (collections.Counter(words) & collections.Counter(expected)).total()
  return 2 * shared / (len(words) + len(expected))
