"""Judged samples: what is refused is sampled again, then replaced by the refusal."""

import collections
from types import SimpleNamespace

import numpy as np
import pytest

from gpt_jax import config
from gpt_jax.data.templates import Piece
from gpt_jax.evaluation import label_judge, trained
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import completions
from tests.sampling.test_block import model, tokenizers

JUDGED = SampleConfig(
  max_new_tokens=8, num_samples=6, judge='somewhere:bad|good', judge_tries=3, refusal='No.'
)


class FakeJudge:
  """Refuses texts with an even number of characters `o`, or all of them."""

  def __init__(self, all_=False):
    self.all, self.seen = all_, []

  def score(self, pieces):
    self.seen += [piece.value for [piece] in pieces]
    return [float(self.all or piece.value.count('o') % 2 == 0) for [piece] in pieces]


def run():
  kind = 'fallback'
  return trained.TrainedRun('.', config.Config(), model(kind), tokenizers(kind), None, 0)


def test_refused_texts_are_sampled_again(monkeypatch):
  judge, prompts = (
    FakeJudge(),
    [tokenizers('fallback').encode_text('zo'), tokenizers('fallback').encode_text('a')],
  )
  monkeypatch.setattr(trained, 'load_judge', lambda value: judge)
  groups = run().complete(prompts, JUDGED)
  plain = completions.complete(
    run().model, run().tokenizers, prompts, SampleConfig(max_new_tokens=8, num_samples=6)
  )
  assert [len(group) for group in groups] == [6, 6]
  outcomes = collections.Counter()
  for group, own in zip(groups, plain, strict=True):
    for (text, _), (first, _) in zip(group, own, strict=True):
      if first.count('o') % 2:
        assert text == first  # accepted at once: as without a judge
        outcomes['kept'] += 1
      else:
        assert text == 'No.' or (text.count('o') % 2 and text in judge.seen)
        outcomes['changed'] += 1
  assert outcomes['kept'] and outcomes['changed']
  assert run().complete(prompts, JUDGED) == groups


def test_after_the_tries_stands_the_refusal(monkeypatch):
  judge = FakeJudge(all_=True)
  monkeypatch.setattr(trained, 'load_judge', lambda value: judge)
  [group] = run().complete([[260]], JUDGED)
  assert [text for text, _ in group] == ['No.'] * 6
  assert len(judge.seen) == 18 and len(set(judge.seen)) > 6  # other texts each time
  greedy = SampleConfig(max_new_tokens=8, temperature=0.0, judge='somewhere:bad|good')
  judge.seen.clear()
  run().complete([[260]], greedy)
  assert len(judge.seen) == 1


def test_what_a_broken_judge_says_is_refused(monkeypatch):
  judge = label_judge.Judge(SimpleNamespace(subject=lambda: None), ['bad', 'good'])
  judge.probabilities = lambda documents: [[0.1, (0.2, float('nan'))[n % 2]] for n in range(len(documents))]
  text = Piece('text', 'a')
  assert np.isnan(judge.score([[text, text]])[0]) and judge.score([[text], []]) == [0.2, 0.0]
  judge.probabilities = lambda documents: [[float('nan')] * 2] * len(documents)
  monkeypatch.setattr(trained, 'load_judge', lambda value: judge)
  [group] = run().complete([[260]], JUDGED)
  assert {text for text, _ in group} == {'No.'}


def test_images_are_judged():
  judge = label_judge.Judge(SimpleNamespace(subject=lambda: None), ['bad', 'good'])
  seen = []
  judge.probabilities = lambda documents: (
    seen.extend(documents) or [[0.1, 0.2 + n / 10] for n in range(len(documents))]
  )
  picture = np.zeros((4, 4, 1), np.uint8)
  scores = judge.score([[Piece('image', picture), Piece('text', 'a')], [Piece('text', ' ')], []])
  assert scores == pytest.approx([0.3, 0.0, 0.0])
  assert [set(document) for document in seen] == [{'image'}, {'text'}]


@pytest.mark.parametrize(
  ('fields', 'cause'),
  [
    ({'judge_threshold': 1.5}, 'sample.judge_threshold=1.5 is out of range'),
    ({'judge_threshold': -0.1}, 'sample.judge_threshold=-0.1 is out of range'),
    ({'judge_tries': 0}, 'sample.judge_tries=0 is out of range'),
  ],
)
def test_values_out_of_range_are_refused(fields, cause):
  with pytest.raises(ValueError, match=cause) as error:
    SampleConfig(judge='run:a|b', **fields)
  assert '\nfix: ' in str(error.value)


@pytest.mark.parametrize(
  'fields', [{'judge_tries': 2}, {'refusal': 'x'}, {'judge': 'run:a|b', 'judge_tries': 2, 'temperature': 0.0}]
)
def test_fields_without_effect_are_refused(fields):
  with pytest.raises(ValueError, match='has no use'):
    SampleConfig(**fields).check_effective()


@pytest.mark.parametrize('value', ['run', 'run:a', 'run:a|a', ':a|b', 'run:a|'])
def test_a_judge_names_a_run_and_its_labels(value):
  with pytest.raises(ValueError, match='is not a run and its labels'):
    label_judge.parse_judge(value)


def test_a_judge_without_a_label_form_is_refused():
  sources = {'text': SimpleNamespace(template='{text}')}
  cfg = SimpleNamespace(data=SimpleNamespace(mixture=sources))
  judge = label_judge.Judge(SimpleNamespace(cfg=cfg, workdir='run', subject=lambda: None), ['bad', 'good'])
  with pytest.raises(ValueError, match='no template that reads text and writes a label'):
    judge.score([[Piece('text', 'a')]])


def test_sounds_cannot_be_judged():
  with pytest.raises(ValueError, match='not audio'):
    run().complete([[260]], JUDGED, 'audio')
