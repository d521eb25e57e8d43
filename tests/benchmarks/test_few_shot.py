"""Prompts with worked examples."""

from benchmarks.few_shot import build_prompts
from gpt_jax.data import Piece
from gpt_jax.evaluation.tasks.common import Example


def example(condition, target):
  return Example('x', {}, [Piece('text', condition)], [Piece('text', target)])


def test_prompts_begin_with_the_shortest_training_examples_and_end_before_the_answer():
  train = [example('A long condition.', 'long'), example('Tiny.', 'tiny'), example('Small. ', 'small')]
  none, two = (build_prompts(['What? '], train, shots, 'Answer') for shots in (0, 2))
  assert none == ['What?\nAnswer:']
  assert two == ['Tiny.\nAnswer: tiny\n\nSmall.\nAnswer: small\n\nWhat?\nAnswer:']
