"""Attacks: AUC and rates against scikit-learn, exposure of known models, bounds on a known epsilon."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from gpt_jax.evaluation import attacks


def test_auc_and_rate_equal_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  for digits in (0, 1, 6):  # with many ties, few, and none
    members, others = rng.normal(0.5, 1, 300).round(digits), rng.normal(0, 1, 170).round(digits)
    truth, scores = np.repeat([1, 0], [300, 170]), np.concatenate([members, others])
    assert attacks.auc(members, others) == pytest.approx(roc_auc_score(truth, scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    for most in (0.0, 0.01, 0.1, 1.0):
      assert attacks.true_positive_rate(members, others, most) == pytest.approx(tpr[fpr <= most].max())
  low, high = attacks.bootstrap(attacks.auc, members, others)
  assert low < attacks.auc(members, others) < high
  assert 0.03 < high - low < 0.2


def test_exposure_of_a_model_that_knows_the_secret_or_nothing():
  rng, space = np.random.default_rng(0), 1024
  candidates = rng.normal(20, 1, space)
  candidates[7] = 3.0
  assert attacks.exposure(3.0, candidates) == 10.0  # log2(1024)
  assert attacks.exposure(np.float64(20), np.full(space, 20.0)) == pytest.approx(1, abs=0.01)  # all alike
  nothing = [attacks.exposure(x[0], x) for x in rng.normal(size=(2000, space))]
  assert np.median(nothing) == pytest.approx(1, abs=0.1)
  assert np.mean(nothing) == pytest.approx(attacks.chance_exposure(space), abs=0.1)
  assert attacks.chance_exposure(space) == pytest.approx(np.log2(np.e), abs=0.01)


def test_sampled_exposure_estimates_the_rank_in_the_whole_space():
  rng, space = np.random.default_rng(1), 100_000
  nats = rng.gamma(60.0, 0.25, space)  # skewed
  for rank in (2000, 20_000, 70_000):
    own = np.sort(nats)[rank - 1]
    fitted, by_rank = attacks.sampled_exposure(own, rng.choice(nats, 5000), space)
    assert fitted == pytest.approx(attacks.exposure(own, nats), abs=0.6)
    assert by_rank == pytest.approx(attacks.exposure(own, nats), abs=0.5)
  fitted, by_rank = attacks.sampled_exposure(0.1, rng.choice(nats, 1000), space)
  assert fitted == pytest.approx(np.log2(space))  # at most
  assert by_rank == pytest.approx(np.log2(1001), abs=0.01)


@pytest.mark.parametrize('epsilon', [0.5, 2.0, 4.0])
def test_bounds_hold_for_randomized_response_and_are_not_trivial(epsilon):
  """Randomized response tells the truth with probability e^epsilon / (1 + e^epsilon)."""
  rng, n = np.random.default_rng(int(10 * epsilon)), 400
  of_rates, of_scores, of_one_run = [], [], []
  for k in range(100):
    member = rng.random(2 * n) < 0.5
    answers = np.where(rng.random(2 * n) < 1 / (1 + np.exp(-epsilon)), member, ~member)
    inside, outside = answers[member], answers[~member]
    counts = inside.sum(), len(inside), outside.sum(), len(outside)
    of_rates.append(attacks.epsilon_of_rates(*counts, delta=0))
    noise = rng.uniform(0, 0.1, 2 * n)  # no ties
    of_one_run.append(attacks.epsilon_of_one_run(answers + noise, member, delta=0)[0])
    scores = answers + noise
    of_scores.append(attacks.epsilon_of_scores(scores[member], scores[~member], delta=0, seed=k))
  for bounds in (of_rates, of_scores, of_one_run):
    assert np.mean(np.array(bounds) <= epsilon) >= 0.95
    assert np.mean(bounds) > 0.2 * epsilon


def test_a_bound_is_zero_without_evidence_and_delta_lowers_it():
  assert attacks.epsilon_of_rates(50, 100, 50, 100) == 0.0
  assert attacks.epsilon_of_rates(0, 100, 0, 100) == 0.0
  perfect = [attacks.epsilon_of_rates(100, 100, 0, 100, delta) for delta in (0.0, 0.1, 0.5)]
  assert perfect[0] > perfect[1] > perfect[2] > 0
  planted = np.arange(200) % 2 == 0
  sure = [attacks.epsilon_of_one_run(planted.astype(float), planted, delta)[0] for delta in (0.0, 1e-5, 1e-3)]
  assert sure[0] > sure[1] > sure[2] > 0
  assert attacks.epsilon_of_one_run(np.zeros(3), [True, False, True])[0] == 0.0


def test_one_run_p_value_equals_that_of_jax_privacy():
  auditing = pytest.importorskip('jax_privacy.auditing')
  for numbers in ((100, 50, 45, 1.0, 0.0), (1000, 200, 150, 0.5, 1e-5), (64, 64, 64, 3.0, 1e-3)):
    expected = auditing._one_run_p_value(*numbers)
    assert attacks.one_run_p_value(*numbers) == pytest.approx(expected)
