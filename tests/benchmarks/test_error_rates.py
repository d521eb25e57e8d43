"""Rates of false verdicts: the recorded ones, some of them measured again, and all of them (slow)."""

import json

import pytest

from benchmarks import error_rates
from gpt_jax.ablation.stats import inference, judging

RESULT = error_rates.record.STUDIES / 'error_rates.json'
MOST = 0.055  # family-wise, of 20,000 studies whose true rate is at most 5 %


def check_rates(numbers):
  assert numbers['studies'] >= 2000
  assert set(numbers['false verdicts']) == set(error_rates.NOISES)
  for question in ('false verdicts', 'false winners'):
    for noise, rates in numbers[question].items():
      assert max(rates.values()) <= MOST, (question, noise, rates)
  for arms, (own, for_all) in numbers['headlines that miss (own interval, for all arms)'].items():
    assert for_all <= MOST and (arms.startswith('1 ') or own > for_all), arms
  for seeds, (normal, skewed) in numbers['false "no difference" (normal, log-normal differences)'].items():
    assert normal <= 0.065 and skewed > 0.1, seeds  # of 2,000 studies
  for seeds, (_, both) in numbers['task scores that miss (seeds alone, both levels)'].items():
    assert both <= 0.07, seeds  # of 2,000 studies


def test_recorded_rates_are_at_most_five_percent():
  check_rates(json.loads(RESULT.read_text())['numbers'])


@pytest.mark.parametrize('noise', ['normal', 't(2)', 'accuracy 0.9 of 100'])
def test_recorded_rates_can_be_measured_again(noise):
  numbers = json.loads(RESULT.read_text())['numbers']
  actual = error_rates.false_verdicts(noise, 3, 5, numbers['studies'])
  assert actual == pytest.approx(numbers['false verdicts'][noise]['3 arms, 5 seeds'], abs=1e-3)


def test_studies_of_the_benchmark_are_judged_as_in_reports():
  difference_SAN, examples = error_rates.draw(
    'accuracy 0.9 of 60', 3, 5, 20, error_rates.np.random.default_rng(0)
  )
  p_holm = inference.holm(inference.paired_test(difference_SAN, examples)[-1])
  for difference_AN, adjusted in zip(difference_SAN, p_holm, strict=True):
    base = dict.fromkeys(range(5), 0.0)
    verdicts = judging.judge([(dict(enumerate(one)), base) for one in difference_AN], 'higher', 0.0, examples)
    assert [verdict['p_holm'] for verdict in verdicts] == pytest.approx(adjusted)


@pytest.mark.slow
def test_all_rates_are_at_most_five_percent():
  check_rates(error_rates.measure())
