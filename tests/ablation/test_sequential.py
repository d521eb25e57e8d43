"""Sequential tests: error rates under any rule of stopping, intervals, and seeds that are not needed."""

import numpy as np
import pytest

from gpt_jax.ablation.stats import inference, judging, sequential
from gpt_jax.ablation.stats.sequential import Extended, Sequential

DESIGN = Sequential()
STUDIES = 2000


def differences(rng, studies, arms, kind='normal', effects=0.0):
  """Differences of arms to a shared baseline: [studies, arms, most seeds]."""
  shape = (studies, arms + 1, DESIGN.most)
  draw = {
    'normal': lambda: rng.normal(size=shape) / 2**0.5,
    't(2)': lambda: rng.standard_t(2, size=shape),
    'log-normal': lambda: np.exp(rng.normal(size=shape)),
  }
  values = draw[kind]()
  return values[:, 1:] - values[:, :1] + np.broadcast_to(effects, arms)[:, None]


def p_at_looks(difference_SAN):
  """The sequential p value of each arm at each look: [studies, arms, looks]."""
  studies, arms, most = difference_SAN.shape
  p_DK = sequential.p_values(difference_SAN.reshape(-1, most), DESIGN)
  looks = [sequential.sequential_p(p_DK[:, : k + 1], DESIGN) for k in range(p_DK.shape[1])]
  return np.stack(looks, axis=1).reshape(studies, arms, -1)


def holm(p_SA):
  """Holm's correction of each row."""
  order_SA = np.argsort(p_SA, axis=1)
  raised_SA = np.take_along_axis(p_SA, order_SA, 1) * np.arange(p_SA.shape[1], 0, -1)
  adjusted_SA = np.empty_like(p_SA)
  np.put_along_axis(adjusted_SA, order_SA, np.minimum(1, np.maximum.accumulate(raised_SA, 1)), 1)
  return adjusted_SA


@pytest.mark.parametrize('arms', [1, 3, 6, 12])
@pytest.mark.parametrize('kind', ['normal', 't(2)', 'log-normal'])
def test_whoever_judges_after_every_seed_errs_in_five_percent_of_studies(kind, arms):
  """The p value never rises, so that its last look holds every rule of stopping and dropping arms."""
  p_SAK = p_at_looks(differences(np.random.default_rng(arms), STUDIES, arms, kind))
  assert (np.diff(p_SAK, axis=2) <= 0).all()
  false = (holm(p_SAK[:, :, -1]) <= inference.ALPHA).any(axis=1).mean()
  assert false <= 0.055
  fixed = sequential.p_values(differences(np.random.default_rng(arms), STUDIES, arms, kind)[:, 0], DESIGN)
  assert arms > 1 or (fixed <= inference.ALPHA).any(axis=1).mean() > 0.1  # without the correction


def test_no_difference_is_shown_in_five_percent_of_arms_at_the_tolerance():
  difference_DN = differences(np.random.default_rng(0), STUDIES, 1, effects=1.0)[:, 0]
  n_N = np.arange(1, DESIGN.most + 1)
  one_sided_DK = sequential.p_values(difference_DN - 1.0, DESIGN)
  below_DK = (np.cumsum(difference_DN, axis=1) / n_N)[:, DESIGN.first - 1 :] < 1.0
  doubled_DK = np.where(below_DK, one_sided_DK, 1.0)
  assert 0.04 < (sequential.sequential_p(doubled_DK, DESIGN) / 2 <= inference.ALPHA).mean() <= 0.055


def test_an_interval_covers_the_effect_at_every_look():
  difference_DN = differences(np.random.default_rng(1), STUDIES, 1, effects=0.7)[:, 0]
  covers = np.ones(STUDIES, bool)
  for n in DESIGN.looks_K:
    level = sequential.nominal_level(n, inference.ALPHA, DESIGN)
    se_D = difference_DN[:, :n].std(axis=1, ddof=1) / n**0.5
    covers &= abs(difference_DN[:, :n].mean(axis=1) - 0.7) <= inference.half_width(n, 1.0, 0.0, level) * se_D
  assert 0.945 <= covers.mean() <= 0.96


def test_judging_uses_the_sequential_p_value_in_the_order_of_seeds():
  difference_N = np.random.default_rng(2).normal(0.9, 1.0, 14)
  comparison = ({str(k): x for k, x in enumerate(difference_N)}, {str(k): 0.0 for k in range(14)})
  [judged] = judging.judge([comparison], tolerance=0.01, design=DESIGN)
  p_K = sequential.p_values(difference_N[None], DESIGN)
  assert judged['p'] == pytest.approx(float(sequential.sequential_p(p_K, DESIGN)[0]), abs=2e-4)
  assert judged['p'] > judging.judge([comparison])[0]['p']
  low, high = judged['interval']
  assert (low > 0) == (judged['p'] <= inference.ALPHA) and low < difference_N.mean() < high
  assert judged['verdict'] == 'worse' and judged['seeds_needed'] == 0


def test_before_the_first_look_nothing_is_decided():
  [judged] = judging.judge([({0: 1.0, 1: 1.1}, {0: 0.0, 1: 0.0})], design=DESIGN)
  assert (judged['verdict'], judged['p'], judged['interval']) == ('undecided', None, None)
  assert judged['seeds_needed'] == 18


@pytest.mark.parametrize(
  'mean, sd, margin, left',
  [(0.0, 1.0, 0.0, 0), (1.0, 1.0, 0.0, 12), (0.1, 1.0, 2.0, 12), (1.0, 0.0, 0.0, 12)],
)
def test_an_arm_that_would_hardly_be_decided_gets_no_more_seeds(mean, sd, margin, left):
  assert sequential.seeds_left(8, mean, sd, margin, 0.05, DESIGN) == left
  assert sequential.seeds_left(20, mean, sd, margin, 0.05, DESIGN) == 0


def test_small_p_values_are_bounded_by_what_each_look_spends():
  weights = DESIGN.weights_K
  for p in (1e-12, 1e-7, 1e-5):
    got = float(sequential.sequential_p([p], DESIGN))
    assert p < got <= p / weights[0] * weights.sum() * (1 + 1e-9)
  p_values = sequential.sequential_p(np.geomspace(1e-9, 1, 500)[:, None], DESIGN)
  assert (np.diff(p_values) >= 0).all() and p_values[-1] == 1.0


# ----------------------------------------------------------------- seeds added to a fixed number of them


def false_verdicts_with_added_seeds(difference_SAN, planned):
  """The share of studies with a false verdict at the planned number of seeds or any later one."""
  design, ever = Extended(planned), False
  studies, arms, most = difference_SAN.shape
  flat_DN = difference_SAN.reshape(-1, most)
  n_N = np.arange(1, most + 1)
  mean_DN = np.cumsum(flat_DN, axis=1) / n_N
  p_DK = sequential.p_values(flat_DN, design)
  for k, n in enumerate(range(planned, most + 1)):
    same_DK = mean_DN[:, planned - 1 : n] * mean_DN[:, n - 1 : n] > 0
    p_D = sequential.sequential_p(np.where(same_DK, p_DK[:, : k + 1], 1.0), design)
    ever |= (holm(p_D.reshape(studies, arms)) <= inference.ALPHA).any(axis=1)
  return ever.mean()


@pytest.mark.parametrize('arms', [1, 3, 6])
@pytest.mark.parametrize('planned', [3, 5])
def test_who_adds_seeds_one_by_one_errs_in_at_most_five_and_a_half_percent_of_studies(planned, arms):
  """Every number of seeds is a look, which holds every rule of adding some, and of when to stop."""
  difference_SAN = differences(np.random.default_rng(arms), 2 * STUDIES, arms)
  assert false_verdicts_with_added_seeds(difference_SAN, planned) <= 0.055
  alone = sequential.p_values(difference_SAN.reshape(-1, DESIGN.most), Extended(planned))
  false_SAK = np.stack([holm(alone[:, k].reshape(-1, arms)) <= 0.05 for k in range(alone.shape[1])])
  assert false_SAK.any(axis=(0, 2)).mean() > 0.12  # what the audit found without the correction


def test_added_seeds_do_not_change_what_the_plan_decided_unless_they_contradict_it():
  planned, later = np.array([1.0, 1.1, 0.9, 1.05, 0.95]), np.array([0.5, -0.4, 0.6])
  values = {str(k): x for k, x in enumerate(planned)}
  [alone] = judging.judge([(values, dict.fromkeys(values, 0.0))])
  more = {str(k): x for k, x in enumerate([*planned, *later])}
  [judged] = judging.judge([(more, dict.fromkeys(more, 0.0))], design=Extended(5))
  assert judged['p'] == pytest.approx(alone['p'], rel=1e-3) and judged['verdict'] == 'worse'
  assert np.ptp(judged['interval']) > np.ptp(judging.judge([(more, dict.fromkeys(more, 0.0))])[0]['interval'])
  against = {str(k): x for k, x in enumerate([*planned, *np.full(9, -1.5)])}
  [turned] = judging.judge([(against, dict.fromkeys(against, 0.0))], design=Extended(5))
  assert turned['difference'] < 0 and turned['verdict'] == 'undecided'


def test_the_seeds_that_are_asked_for_decide_a_later_look():
  values = {str(k): x for k, x in enumerate([-0.03, 0.01, -0.04, 0.0, -0.02])}
  [judged] = judging.judge([(values, dict.fromkeys(values, 0.0))])
  mean, sd = judged['difference'], np.std(list(values.values()), ddof=1)
  asked = [inference.seeds_needed(5, mean, sd, 0.0, level) for level in (0.05, 0.05 * sequential.LATER)]
  assert judged['verdict'] == 'undecided' and asked[0] < judged['seeds_needed'] == asked[1]


def test_who_follows_the_advice_is_told_and_judged_as_planned():
  """Seeds that were added are a change of the protocol; replaced ones are no extension of the plan."""
  study = {'seeds': [0, 1, 2, 3, 4], 'planned_seeds': [0, 1, 2]}
  assert judging.sequential_of(study) == Extended(3)
  for seeds in ([0, 1, 2], [0, 1], [5, 6, 7, 8]):
    assert judging.sequential_of(study | {'seeds': seeds}) is None
  assert judging.sequential_of({'seeds': [0, 1]}) is None
