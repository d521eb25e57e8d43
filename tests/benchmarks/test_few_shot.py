"""Prompts with worked examples, and answers."""

from types import SimpleNamespace

from benchmarks import few_shot, instructions
from benchmarks.few_shot import build_prompts
from gpt_jax import sample
from gpt_jax.data import Piece
from gpt_jax.evaluation.tasks.common import Example


def example(condition, target):
  return Example('x', {}, [Piece('text', condition)], [Piece('text', target)])


def test_prompts_begin_with_the_shortest_training_examples_and_end_before_the_answer():
  train = [example('A long condition.', 'long'), example('Tiny.', 'tiny'), example('Small. ', 'small')]
  none, two = (build_prompts(['What? '], train, shots, 'Answer') for shots in (0, 2))
  assert none == ['What?\nAnswer:']
  assert two == ['Tiny.\nAnswer: tiny\n\nSmall.\nAnswer: small\n\nWhat?\nAnswer:']


def test_an_answer_that_is_cut_off_did_not_stop(monkeypatch):
  texts = {'full': ('Yes.\n\n\n', [0.0] * 6), 'short': ('Yes.', [0.0] * 3)}
  complete = lambda model, tokenizers, prompts, cfg: [[texts[prompt.ids]] for prompt in prompts]
  monkeypatch.setattr(few_shot.completions, 'complete', complete)
  build = lambda run, text, **_: SimpleNamespace(ids=text.strip())
  monkeypatch.setattr(few_shot, 'build_prompt', build)
  run = SimpleNamespace(cfg=SimpleNamespace(sample=sample.SampleConfig()), model=None, tokenizers=None)
  examples = [Example(name, {'instruction': name, 'input': ''}, [], []) for name in texts]
  assert instructions.answers(run, examples, False, 6) == (('Yes.', 'Yes.'), [False, True])
