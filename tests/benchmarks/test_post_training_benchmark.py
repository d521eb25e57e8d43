"""Our steps of fine-tuning, adapters and preferences against those of trl's own trainers."""

import pytest

from benchmarks import post_training


@pytest.mark.slow
def test_first_losses_and_gradients_equal_those_of_trl():
  for package in ('trl', 'peft', 'datasets'):
    pytest.importorskip(package)
  sides = [f'{stage} {who}' for stage in post_training.STAGES for who in ('ours', 'trl float32')]
  rows = post_training.measure_all(sides, steps=1, turns=1, tiny=True)
  post_training.check_equal(rows)
  assert all(row['tokens_per_second'] > 0 for row in rows.values())


def test_another_gradient_is_reported():
  row = {'loss': 1.0, 'grad_norm': 2.0}
  rows = {'sft ours': row | {'grad_norm': 2.1}, 'sft trl float32': row}
  with pytest.raises(AssertionError, match='sft: grad_norm 2.1 against 2.0'):
    post_training.check_equal(rows)
