"""Text scores against the libraries' own examples, and what is said where a library is missing."""

import sys

import numpy as np
import pytest

from gpt_jax.data import files
from gpt_jax.evaluation import metrics, text_metrics
from tests.tiny_runs import assert_two_lines

MADE = ['the cat sat on the mat', 'a dog runs in the park today']
WANTED = [['the cat sat on my mat'], ['a dog ran in the park today', 'A dog runs in the park today']]


def test_answers_count_the_best_of_several_references():
  actual = text_metrics.score_answers(MADE, WANTED)
  assert actual['exact_match']['value'] == 0
  assert actual['exact_match']['interval'][0] == 0 < actual['exact_match']['interval'][1]
  assert actual['token_f1']['value'] == pytest.approx((2 * 4 / 9 + 1) / 2)  # no articles
  assert actual['word_error_rate'] == dict(value=pytest.approx(2 / 13))  # of the first
  plain = text_metrics.score_answers(['b '], [['x', 'b']])
  assert plain['exact_match']['value'] == 1 and 'normalized_match' not in plain
  squad = text_metrics.score_answers(['the bridge', 'b'], [['A Bridge.'], ['c', 'B!']])
  assert (squad['exact_match']['value'], squad['normalized_match']['value']) == (0, 1)
  assert 'word_error_rate' not in text_metrics.score_answers(['x'], [['']])


def test_differences_are_those_of_the_scores_and_pair_examples():
  pytest.importorskip('sacrebleu')
  pytest.importorskip('rouge_score')
  others = ['a cat', 'the dog runs in a park']
  for measure in (text_metrics.ANSWERS, text_metrics.TRANSLATIONS, text_metrics.SUMMARIES):
    ours, theirs = (measure.score(texts, WANTED) for texts in (MADE, others))
    differences = text_metrics.paired_differences(measure, MADE, others, WANTED)
    assert set(differences) == set(ours)
    for metric, (value, (low, high)) in differences.items():
      assert value == pytest.approx(ours[metric]['value'] - theirs[metric]['value'], abs=0.01), metric
      assert low <= value <= high
    swapped = [some[::-1] for some in (MADE, others, WANTED)]
    assert text_metrics.paired_differences(measure, *swapped) == differences
    equal = text_metrics.paired_differences(measure, MADE, MADE, WANTED)
    assert all(difference == (0, [0, 0]) for difference in equal.values())


def test_the_interval_of_a_difference_is_that_of_its_examples():
  """Of 60 examples 20 are better by 1 and 40 equal; unpaired, the interval would be much wider."""
  ours, theirs = ['x'] * 40 + ['y'] * 20, ['x'] * 30 + ['y'] * 30
  wanted = [['x']] * 40 + [['y']] * 10 + [['x']] * 10
  ours[50:], theirs[50:] = ['x'] * 10, ['y'] * 10
  gain = np.array([a == w[0] for a, w in zip(ours, wanted, strict=True)], float)
  gain -= [b == w[0] for b, w in zip(theirs, wanted, strict=True)]
  value, (low, high) = text_metrics.paired_differences(text_metrics.ANSWERS, ours, theirs, wanted)[
    'exact_match'
  ]
  rng = np.random.default_rng(1)
  draws = [gain[rng.integers(0, 60, 60)].mean() for _ in range(4000)]
  assert value == pytest.approx(gain.mean())
  assert [low, high] == pytest.approx(np.percentile(draws, (2.5, 97.5)), abs=0.03)


def test_translation():
  pytest.importorskip('sacrebleu')
  actual = text_metrics.score_translations(MADE, [some[:1] for some in WANTED])
  assert actual['bleu']['value'] == pytest.approx(51.1359, abs=1e-4)
  assert 'tok:13a' in actual['bleu']['signature'] and 'case:lc' not in actual['bleu']['signature']
  assert 'case:lc' in actual['bleu_lower_case']['signature']
  assert 'chrF2' in actual['chrf']['signature'] or 'nc:6' in actual['chrf']['signature']
  low, high = actual['bleu']['interval']
  assert low < actual['bleu']['value'] < high
  several = text_metrics.score_translations(MADE, WANTED)
  assert several['bleu_lower_case']['value'] > actual['bleu_lower_case']['value']
  assert text_metrics.score_translations(['', ''], WANTED)['bleu'] == dict(
    value=0, signature=several['bleu']['signature']
  )


def test_translations_in_another_order_have_equal_intervals():
  pytest.importorskip('sacrebleu')
  assert text_metrics.score_translations(MADE, WANTED) == text_metrics.score_translations(
    MADE[::-1], WANTED[::-1]
  )


def test_bleu_is_left_out_where_no_reference_has_four_tokens(caplog, monkeypatch):
  pytest.importorskip('sacrebleu')
  monkeypatch.setattr(files, '_WARNED', set())
  scores = text_metrics.score_translations(['nine', 'two'], [['nine'], ['ten or so']])
  assert set(scores) == {'chrf'} and scores['chrf']['value'] > 0
  assert 'BLEU is left out: no reference has the four tokens' in caplog.text


def test_self_bleu_is_that_of_each_text_against_the_others():
  sacrebleu = pytest.importorskip('sacrebleu')
  texts = [*MADE, 'a dog runs in the park']
  each = [
    sacrebleu.sentence_bleu(text, texts[:n] + texts[n + 1 :], use_effective_order=True).score
    for n, text in enumerate(texts)
  ]
  assert text_metrics.self_bleu(texts) == pytest.approx(np.mean(each))
  assert text_metrics.self_bleu([MADE[0]] * 3) == pytest.approx(100)


def test_summaries():
  pytest.importorskip('rouge_score')
  actual = text_metrics.score_summaries(['the cats sat'], [['no word of it', 'the cat sat down']])
  values = {name: row['value'] for name, row in actual.items()}
  assert values == dict(rouge1=pytest.approx(6 / 7), rouge2=pytest.approx(0.8), rougeL=pytest.approx(6 / 7))
  assert 'stem:porter' in actual['rouge1']['signature']


def test_error_rates_are_those_of_jiwer():
  jiwer = pytest.importorskip('jiwer')
  wanted = [some[0] for some in WANTED]
  assert metrics.wer(MADE, wanted) == pytest.approx(jiwer.wer(wanted, MADE))
  assert metrics.cer(MADE, wanted) == pytest.approx(jiwer.cer(wanted, MADE))


def test_a_missing_package_is_an_error(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sacrebleu', None)
  monkeypatch.setattr(text_metrics.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError) as error:
    text_metrics.require_package('sacrebleu', 'translate')
  fix = assert_two_lines(error.value, '--tasks=translate', 'sacrebleu', 'not installed')[1]
  assert 'gpt_jax[metrics]' in fix
  text_metrics.require_package('', 'answer')
