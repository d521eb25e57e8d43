"""Task scores: shares of few examples, directions, curves and false verdicts."""

import numpy as np
import pytest

from gpt_jax.ablation.stats import analyze, inference, judging, scores
from gpt_jax.reports import study_figures, study_results
from tests import ablation_study
from tests.ablation.test_stats import curve, make_row, make_study, of_arm

METRIC = 'answer/text/exact_match'


def scored_row(arm, seed, value, n=100, **fields):
  row = make_row(arm, seed, 1.0)
  score = {'task': 'answer', 'source': 'text', 'metric': 'exact_match', 'value': value, 'n': n}
  row['result']['evaluations'] = [score]
  return row | fields


# ---------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize(
  ('value', 'n', 'examples'),
  [(0.25, 100, 100), (1.0, 30, 30), (1 / 3, 300, 300), (0.2512, 100, 0), (3.0, 100, 0), (0.5, None, 0)],
)
def test_a_share_of_examples_is_known_by_its_value(value, n, examples):
  assert scores.collect_scores([scored_row('a', 0, value, n)], METRIC).examples == examples


def test_a_share_is_no_more_certain_than_its_examples():
  """Five seeds agree that 3 of 100 examples differ: 3 against 0 is chance (McNemar); 20 against 0 is not."""
  judge = lambda hits, seeds=5, n=100: judging.judge(
    [(dict.fromkeys(range(seeds), 0.5 + hits / n), dict.fromkeys(range(seeds), 0.5))], 'higher', 0.0, n
  )[0]
  assert judge(3)['verdict'] == 'undecided' and judge(3)['interval'][0] < 0
  assert judge(20)['verdict'] == 'better' and judge(20)['interval'][0] > 0
  assert judge(50)['verdict'] == 'better', 'all of the others'
  assert judge(50, seeds=2)['verdict'] == 'undecided', 'two equal seeds have no spread'
  none = judging.judge([({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5})], 'higher', 0.01, 100)
  assert none[0]['verdict'] == 'undecided', 'a difference below one example cannot be seen'


@pytest.mark.parametrize('seeds', [2, 3, 5])
@pytest.mark.parametrize(('examples', 'accuracy'), [(30, 0.9), (100, 0.98), (1000, 0.9)])
def test_a_study_of_accuracies_is_judged_by_the_tests_that_are_simulated(examples, accuracy, seeds):
  """`judge` finds what p values and Holm's correction of all studies at once find."""
  values_SAN = null_studies(examples, accuracy, seeds, arms=6, studies=40)
  judged_S = []
  for base, *others in values_SAN:
    pairs = [(dict(enumerate(other)), dict(enumerate(base))) for other in others]
    verdicts = judging.judge(pairs, 'higher', 0.0, examples)
    judged_S.append(any(verdict['verdict'] in ('better', 'worse') for verdict in verdicts))
  assert judged_S == has_verdict(values_SAN, examples).tolist()


@pytest.mark.parametrize('arms', [1, 6])
@pytest.mark.parametrize('seeds', [2, 3, 5])
def test_null_studies_of_accuracies_are_wrong_in_at_most_six_percent(arms, seeds):
  rates = {
    (examples, accuracy): has_verdict(null_studies(examples, accuracy, seeds, arms, 1000), examples).mean()
    for examples in (30, 60, 100, 180, 1000)
    for accuracy in (0.5, 0.9, 0.95, 0.98)
  }
  assert max(rates.values()) <= 0.06 + 0.022, rates  # 6 %, and three standard errors
  assert np.mean(list(rates.values())) <= 0.05


def null_studies(examples, accuracy, seeds, arms, studies):
  """Accuracies [studies, the baseline and arms, seeds] without any effect."""
  rng = np.random.default_rng((examples, seeds, arms))
  return rng.binomial(examples, accuracy, (studies, arms + 1, seeds)) / examples


def has_verdict(value_SAN, examples):
  """Which studies have a verdict better or worse."""
  p_SA = inference.paired_test(value_SAN[:, 1:] - value_SAN[:, :1], examples)[-1]
  return (np.array(inference.holm(p_SA)) <= inference.ALPHA).any(axis=1)


def with_examples(rows, hits, seeds):
  """Give each run its examples: hits[arm] is [seeds, examples] of 0 and 1."""
  for row in rows:
    row['examples'] = hits[row['arm']][row['seed']].tolist()
    row['result']['evaluations'][0] |= {
      'value': hits[row['arm']][row['seed']].mean(),
      'n': len(row['examples']),
    }
  return rows


def test_paired_examples_make_the_error_of_the_examples_smaller_and_larger():
  """100 examples, of which 10 differ: all to one side, or 30 to one and 20 to the other (McNemar)."""
  study = make_study(('a',), seeds=5, metric=METRIC, better='higher')
  base = np.tile(np.arange(100) < 50, (5, 1)).astype(float)

  def judged(won, lost):
    hits = {'base': base, 'a': base.copy()}
    hits['a'][:, 50 : 50 + won], hits['a'][:, :lost] = 1.0, 0.0
    rows = [scored_row(arm, s, 0.0) for arm in hits for s in range(5)]
    return of_arm(analyze.analyze(study, with_examples(rows, hits, 5)), 'a')

  one_side, both_sides = judged(10, 0), judged(30, 20)
  assert one_side['difference'] == pytest.approx(0.1) and both_sides['difference'] == pytest.approx(0.1)
  variance = lambda won, lost: ((won + lost) / 100 - 0.1**2) / 99  # of the mean of -1, 0 and 1
  assert one_side['se_examples'] == pytest.approx(variance(10, 0) ** 0.5)
  assert both_sides['se_examples'] == pytest.approx(variance(30, 20) ** 0.5)
  assert (one_side['verdict'], both_sides['verdict']) == ('better', 'undecided')


def test_the_error_of_examples_is_that_of_two_crossed_random_effects():
  rng, shape = np.random.default_rng(0), (4, 50)
  drawn = [rng.normal(size=shape) + 2 * rng.normal(size=50) + rng.normal(size=(4, 1)) for _ in range(300)]
  mean_square = np.mean([inference.example_sampling(one) ** 2 for one in drawn])
  assert mean_square == pytest.approx(2**2 / 50, rel=0.1), 'without the rest and without the seeds'
  assert inference.example_sampling(np.ones((3, 5))) == 0


def test_examples_of_other_numbers_are_not_paired():
  study = make_study(('a',), seeds=2, metric=METRIC, better='higher')
  hits = {'base': np.eye(2, 10), 'a': np.eye(2, 20)}
  rows = with_examples([scored_row(arm, s, 0.0) for arm in hits for s in range(2)], hits, 2)
  assert scores.collect_scores(rows, METRIC).comparison(study, 'a', 'base').by_example == {}


def test_missing_task_scores_are_counted():
  study = make_study(('a',), seeds=4, metric=METRIC, better='higher')
  rows = [scored_row('base', s, 0.5 + 0.01 * s) for s in range(4)]
  rows += [scored_row('a', s, 0.9 + 0.02 * s) for s in range(4)]
  assert of_arm(analyze.analyze(study, rows), 'a')['verdict'] == 'better'
  rows[-1]['result']['evaluations'][0]['value'] = float('nan')
  arm = of_arm(analyze.analyze(study, rows), 'a')
  assert arm['verdict'] == 'undecided' and 'not finite in 1 of 4 seeds' in arm['sentence']
  rows[-1]['result']['evaluations'] = []
  assert 'not finite in 1 of 4 seeds' in of_arm(analyze.analyze(study, rows), 'a')['sentence']


# ------------------------------------------------------------------------------------- direction


def measured(sign, folder):
  """A study of the metric m = sign * loss, higher is better for sign -1, with its curves."""
  planned = ablation_study.study() | {'better': 'lower' if sign > 0 else 'higher', 'metric': 'm'}
  rows = ablation_study.rows(planned, folder, samples=False)
  for row in rows:
    row['result']['m'] = sign * row['result']['valid_loss']
    row['curve'] = [[x, sign * y] for x, y in row['curve']]
  return study_results.StudyResults(planned, rows, analyze.analyze(planned, rows), (), folder)


def test_a_metric_to_maximize_is_its_negative_to_minimize(tmp_path):
  low, high = (measured(sign, tmp_path) for sign in (1, -1))
  assert [arm['name'] for arm in low.arms] == [arm['name'] for arm in high.arms]
  names = lambda study: {
    k: [arm['name'] for arm in v] for k, v in study_results.arms_by_verdict(study).items()
  }
  assert names(low) == names(high) and names(low)['better'] and names(low)['worse']
  for a, b in zip(low.arms, high.arms, strict=True):
    for key in ('p', 'p_holm', 'p_equivalence', 'seeds_needed', 'se_paired', 'speedup'):
      assert a[key] == pytest.approx(b[key]), key
    if not a['is_baseline']:
      assert a['difference'] == pytest.approx(-b['difference'])
      assert a['interval'] == pytest.approx([-bound for bound in b['interval'][::-1]])
      assert (a['speedup'] > 1) == (a['difference'] < 0) or a['name'] == 'positions=nope=a|b'
      for (at, *one), (_, mean, bottom, top) in zip(a['at_fractions'], b['at_fractions'], strict=True):
        assert one == pytest.approx([-mean, -top, -bottom]), at
  beats = [study_results.headline(study).partition(':')[0] for study in (low, high)]
  assert beats[0] == beats[1] == 'positions=alibi beats the baseline (rope)'
  ends = lambda study: [svg.find('better') < svg.find('worse') for svg in study_figures.arm_effects(study)]
  assert ends(low) == [not end for end in ends(high)]


def test_a_metric_without_a_curve_has_no_curves_and_no_speedup():
  study = make_study(('a',), seeds=2, metric=METRIC, better='higher')
  rows = [scored_row(arm, s, 0.5 + 0.1 * s) for arm in ('base', 'a') for s in range(2)]
  results = study_results.StudyResults(study, rows, analyze.analyze(study, rows))
  assert results.others[0]['speedup'] is None and results.others[0]['at_fractions'] == []
  assert study_figures.overview(results) == [] and study_figures.differences(results) == []


def test_speedup_of_a_share_is_by_its_own_curve():
  """The arm reaches the baseline's last accuracy after half the tokens."""
  study = make_study(('a',), seeds=2, metric=METRIC, better='higher')
  rows = [scored_row('base', s, 0.4, curve=curve((0.1, 0.2, 0.3, 0.4))) for s in range(2)]
  rows += [scored_row('a', s, 0.8, curve=curve((0.2, 0.4, 0.6, 0.8))) for s in range(2)]
  assert of_arm(analyze.analyze(study, rows), 'a')['speedup'] == pytest.approx(2.0)
