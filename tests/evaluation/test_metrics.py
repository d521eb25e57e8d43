"""Each metric against a plain loop, a library or a value that can be worked out by hand."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.evaluation import metrics

rng = np.random.default_rng(0)


def two_lines(cause):
  """The pattern of a message with this in its first line, and a fix as its second."""
  return rf'^.*{re.escape(cause)}.*\nfix: .+$'


def normal(n, d=8, shift=0.0):
  return np.random.default_rng(n + int(100 * shift)).normal(shift, 1, (n, d))


# -------------------------------------------------------------------------------------- intervals


def test_repetition_and_distinct_n_grams():
  loop, varied = list('ababa'), list('abcd')
  assert metrics.repetition([loop], 2) == 1 - 2 / 4  # ab ba ab ba
  assert metrics.repetition([varied], 2) == 0 and metrics.repetition([['a'], loop], 2) == 0.5
  assert metrics.repetition([['a']], 2) == 0
  assert metrics.distinct([loop, varied], 1) == 4 / 9
  assert metrics.distinct([loop, varied], 2) == 4 / 7 and metrics.distinct([[]], 1) == 0


def test_accuracy_has_the_wilson_interval():
  """Its ends are where |p - hits / n| = z sqrt(p (1 - p) / n)."""
  interval = lambda hits, n: metrics.accuracy([True] * hits + [False] * (n - hits), [True] * n)[1]
  for hits, n in ((294, 300), (1, 10), (50, 100)):
    for p in interval(hits, n):
      assert abs(p - hits / n) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), rel=1e-5)
  assert interval(0, 10)[0] == 0
  assert interval(10, 10) == pytest.approx((0.7224672, 1.0))
  low, high = interval(294, 300)
  assert (high - low) / 2 == pytest.approx(0.016, abs=0.001)
  assert metrics.accuracy('abcd', 'abcx')[0] == 0.75


def test_bootstrap_is_near_the_normal_interval():
  values = normal(400, 1)[:, 0]
  low, high = metrics.bootstrap_mean(values, draws=2000)
  half = 1.96 * values.std() / 20
  assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
  assert metrics.bootstrap_mean(values) == metrics.bootstrap_mean(values)
  assert metrics.bootstrap_mean(values[:1]) == (values[0], values[0])


def test_bootstrap_is_the_quantiles_of_resampled_means():
  values = np.sort(normal(50, 1)[:, 0])
  rng = np.random.default_rng(0)
  means = [values[rng.integers(0, 50, 50)].mean() for _ in range(1000)]
  assert metrics.bootstrap_mean(values) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))


def test_a_bootstrap_does_not_depend_on_the_order_of_examples():
  values = normal(50, 1)[:, 0]
  assert metrics.bootstrap_mean(values) == metrics.bootstrap_mean(values[::-1])


# ------------------------------------------------------------------------------------------ images


def test_psnr():
  a = np.full((2, 4, 4, 1), 100, np.uint8)
  b = a.copy()
  b[1] += 5
  assert metrics.psnr(a, b) == pytest.approx([100, 10 * math.log10(255**2 / 25)])
  with pytest.raises(ValueError, match=two_lines('(2, 4, 4, 1)')):
    metrics.psnr(a, b[:1])


def test_ssim_against_a_loop_over_windows():
  a = rng.integers(0, 256, (1, 14, 13, 2)).astype(np.float64)
  b = np.clip(a + rng.normal(0, 40, a.shape), 0, 255)
  g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
  window = np.outer(g, g) / g.sum() ** 2
  actual = []
  for y in range(4):
    for x in range(3):
      for c in range(2):
        p, q = (z[0, y : y + 11, x : x + 11, c] for z in (a, b))
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
        both = (window * p * q).sum() - mp * mq
        c1, c2 = 2.55**2, 7.65**2
        actual.append((2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
  assert metrics.ssim(a, b) == pytest.approx([np.mean(actual)], rel=1e-9)
  assert metrics.ssim(a, a) == pytest.approx([1.0])
  small = np.zeros((3, 8, 8, 1), np.uint8)
  assert metrics.ssim(small, small + 255).max() < 0.01


def test_bits_per_dim():
  """Uniform over 256 values is 8 bits."""
  assert metrics.bits_per_dim(784 * math.log(256), 784) == pytest.approx(8)


# ------------------------------------------------------------------------------------------- codes


def test_codes():
  assert metrics.code_perplexity(np.arange(8), 8) == pytest.approx(8)
  assert metrics.code_perplexity([3, 3, 3], 8) == pytest.approx(1)
  assert metrics.code_perplexity([0, 0, 1, 2], 8) == pytest.approx(2**1.5)
  assert metrics.code_usage([0, 0, 1, 2], 8) == 3 / 8


# --------------------------------------------------------------------------------- sets of features


def test_distances_against_scipy():
  from scipy.spatial.distance import cdist

  a, b = normal(20), normal(30, shift=0.5)
  assert metrics.squared_distances(a, b) == pytest.approx(cdist(a, b, 'sqeuclidean'))
  index, distance = metrics.nearest_neighbors(a, b)
  assert (index == cdist(a, b).argmin(1)).all()
  assert distance == pytest.approx(cdist(a, b).min(1))


def test_frechet_distance_against_sqrtm():
  from scipy.linalg import sqrtm

  a, b = normal(200), normal(150, shift=0.5) @ np.diag(np.arange(1, 9.0))
  cov_a, cov_b = np.cov(a.T), np.cov(b.T)
  wanted = ((a.mean(0) - b.mean(0)) ** 2).sum()
  wanted += np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
  assert metrics.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)
  assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
  one = metrics.frechet_distance(a[:, :1], a[:, :1] + 3)
  assert one == pytest.approx(9)
  with pytest.raises(ValueError):
    metrics.frechet_distance(a[:1], b)


def test_mmd_against_a_loop():
  a, b = normal(5, 3), normal(4, 3, 1.0)
  k = lambda x, y: (x @ y / 3 + 1) ** 3
  aa = sum(k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / 20
  bb = sum(k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / 12
  ab = sum(k(x, y) for x in a for y in b) / 20
  assert metrics.squared_mmd(a, b) == pytest.approx(aa + bb - 2 * ab)


def test_kid_is_unbiased():
  """Of two halves of one set it is zero on average, of others not."""
  same = [metrics.kernel_distance(normal(100), normal(101), subsets=20, size=50)[0] for _ in range(1)]
  other = metrics.kernel_distance(normal(100), normal(100, shift=1.0), subsets=20, size=50)[0]
  assert abs(same[0]) < 0.3 < other


def test_precision_and_recall():
  """Copies of one real example are precise and recall little."""
  real = normal(60)
  assert metrics.precision_recall(real, real) == (1, 1)
  precision, recall = metrics.precision_recall(real, np.repeat(real[:1], 30, 0) + 1e-3)
  assert precision == 1
  assert recall < 0.1
  assert metrics.precision_recall(real, real + 100) == (0, 0)


def test_memorization_tells_copies_from_new_ones():
  train, held = normal(300), normal(100, shift=0.01)
  fresh = metrics.memorization(normal(101, shift=0.02), held, train)
  assert fresh['p'] > 0.01
  assert 0.8 < fresh['ratio'] < 1.2
  copied = metrics.memorization(train[:100] + 1e-6, held, train)
  assert copied['p'] < 1e-10
  assert copied['copies'] == 1
  assert copied['ratio'] < 0.01
  assert 0.3 < metrics.nearer_to_train(normal(200, shift=0.02), held, train[:100]).mean() < 0.7
  assert metrics.nearer_to_train(train[:100] + 1e-6, held, train[:100]).all()
  assert not metrics.nearer_to_train(held + 1e-6, held, train).any()


def test_diversity():
  x, labels = normal(60), np.repeat([0, 1, 2], 20)
  assert metrics.diversity(x / 2, labels, x, labels) == pytest.approx(0.5)
  only = metrics.diversity(np.repeat(x[:1], 20, 0), labels[:20], x, labels)
  assert only == pytest.approx(0, abs=1e-6)
  a, b = x[:2]
  assert metrics.spread([a, b, a], ['m', 'm', 'n']) == pytest.approx(np.linalg.norm(a - b))


def test_retrieval():
  scores = [[3, 2, 1], [3, 2, 1], [1, 1, 1]]
  actual = metrics.retrieval(scores, [0, 2, 0], at=(1, 2))
  assert actual == {
    'mrr': pytest.approx((1 + 1 / 3 + 1 / 3) / 3),
    'median_rank': 3,
    'recall@1': 1 / 3,
    'recall@2': 1 / 3,
  }


# -------------------------------------------------------------------------------------------- text


@settings(max_examples=60, deadline=None)
@given(st.text('ab', max_size=7), st.text('abc', max_size=7))
def test_levenshtein_against_the_recursion(a, b):
  def slow(i, j):
    if not i or not j:
      return i + j
    return min(slow(i - 1, j) + 1, slow(i, j - 1) + 1, slow(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

  if len(a) + len(b) < 11:
    assert metrics.levenshtein(a, b) == slow(len(a), len(b))
  assert metrics.levenshtein(a, b) == metrics.levenshtein(b, a)


def test_error_rates():
  assert metrics.levenshtein('kitten', 'sitting') == 3
  assert metrics.wer(['a b c', ''], ['a x c d', 'e']) == 3 / 5
  assert metrics.cer(['seven'], ['eleven']) == 2 / 6
  with pytest.raises(ValueError, match=two_lines('error rate')):
    metrics.wer(['a'], [''])


def test_squad_f1():
  assert metrics.normalize('The  Cat, an a-b!') == 'cat ab'
  assert metrics.token_f1('the cat sat', 'a cat sat down') == pytest.approx(2 * 2 / 5)
  assert metrics.token_f1('', '') == 1
  assert metrics.token_f1('x', '') == 0
  assert metrics.token_f1('x x', 'x') == pytest.approx(2 / 3)


def test_consensus_is_the_commonest_answer_or_the_one_between_the_others():
  assert metrics.consensus(['7', '9', '7', '8']) == '7'
  assert metrics.consensus(['red face', 'happy face', 'face', 'blue car', 'new face']) == 'face'
  assert metrics.consensus(['5', '-5', '-5']) == '-5'  # normalized, they are equal
  assert metrics.consensus(['b', 'a']) == 'b' and metrics.consensus(['']) == ''
