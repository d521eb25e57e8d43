"""Prompts with worked examples, and answers."""

from types import SimpleNamespace

from benchmarks import few_shot, instructions, table
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


def test_the_table_shows_run_and_base_by_the_same_metric():
  """Spans of a paragraph: token F1, and not the match of whole answers."""
  row = dict(task='answer', source='q', split='test', n=64, baseline=0.1, baseline_of='window', chance=0.0)
  row |= {'difference': 0.3, 'difference_interval': [0.2, 0.4], 'interval': [0.3, 0.7]}
  values = {'exact_match': 0.4, 'normalized_match': 0.45, 'token_f1': 0.6}
  [text] = table.scores([row | {'metric': name, 'value': value} for name, value in values.items()])
  assert text.startswith('q token F1 60.0% ')
