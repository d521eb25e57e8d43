"""False verdicts and savings of sequential studies: the recorded ones, and some measured again."""

import json

import pytest

from benchmarks import record, sequential

RESULT = record.STUDIES / 'sequential.json'


def check(numbers):
  for noise, rates in numbers['false verdicts (uncorrected for looks, sequential)'].items():
    assert max(rate for _, rate in rates.values()) <= 0.055, noise
  assert numbers['false verdicts (uncorrected for looks, sequential)']['normal']['6 arms'][0] > 0.15
  for mix, saved in numbers['savings'].items():
    assert saved['saved'] > 0.15 and saved['power'] > 0.8, mix


def test_recorded_studies_err_in_five_percent_and_save_runs():
  numbers = json.loads(RESULT.read_text())['numbers']
  assert numbers['studies'] >= 2000
  check(numbers)


@pytest.mark.parametrize('noise', ['normal', 'accuracy 0.9 of 60'])
def test_recorded_rates_can_be_measured_again(noise):
  numbers = json.loads(RESULT.read_text())['numbers']['false verdicts (uncorrected for looks, sequential)']
  actual = sequential.false_verdicts(noise, 1)
  assert actual == pytest.approx(numbers[noise]['1 arms'], abs=2e-3)


@pytest.mark.slow
def test_all_rates_and_savings():
  check(sequential.measure())
