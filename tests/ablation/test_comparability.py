"""Comparability: arms whose scores are on different scales have no verdict in any output."""

import numpy as np
import pytest

from gpt_jax.ablation.stats import analyze, comparability
from gpt_jax.reports import study_figures, study_report, study_results
from tests import ablation_study
from tests.ablation.test_stats import make_study, of_arm, simulated

SOURCE = {'text': {'template': 't', 'data': 'd'}}
CHARS = {'sources': SOURCE, 'tokenizer': 'chars', 'row length': 32, 'part': [0, 1], 'bytes': True}


@pytest.mark.parametrize(
  ('metric', 'kind'),
  [
    ('valid_loss', 'per token'),
    ('valid_loss/text', 'per token'),
    ('loss', 'per token'),
    ('tail/valid_loss', 'per token'),
    ('perplexity/text/nats_per_token', 'per token'),
    ('perplexity/nats_per_token', 'per token'),
    ('perplexity/bits_per_token', 'per token'),
    ('perplexity/text/bits_per_byte', 'per byte'),
    ('valid_bits_per_byte', 'per byte'),
    ('answer/text/exact_match', 'task'),
    ('answer/loss/exact_match', 'task'),
    ('tokens_per_second', 'speed'),
    ('tail/step_seconds', 'speed'),
    ('parameters', 'cost'),
  ],
)
def test_the_kind_of_a_metric(metric, kind):
  assert comparability.metric_kind(metric) == kind


def reasons(metric, other, base=None, tokens=(100, 100), **study):
  arms = [
    {'scored_on': side, 'tokens': n}
    for side, n in zip((other, CHARS if base is None else base), tokens, strict=True)
  ]
  return ' '.join(comparability.reasons({'metric': metric} | study, *arms))


def test_a_tokenizer_makes_losses_per_token_incomparable_and_nothing_else():
  bpe = CHARS | {'tokenizer': 'bpe'}
  assert 'another tokenizer (use valid_bits_per_byte)' in reasons('valid_loss', bpe)
  assert "use a task's score" in reasons('valid_loss', bpe | {'bytes': False})
  for metric in ('valid_bits_per_byte', 'answer/text/exact_match', 'seconds'):
    assert reasons(metric, bpe) == ''
  assert 'another loss mask' in reasons('valid_loss', CHARS | {'loss mask': [True, False]})
  assert reasons('valid_loss', CHARS) == reasons('valid_loss', {}, {}) == ''


def test_losses_of_pairs_are_named_and_compare_only_with_equal_settings():
  pairs = CHARS | {'unit': 'per pair', 'preference.loss': 'dpo', 'preference.beta': 0.1}
  text = reasons('valid_loss', pairs | {'preference.beta': 0.5}, pairs)
  assert text == 'valid_loss is per pair, and it has another preference.beta (use valid_reward_accuracy)'
  assert 'another preference.beta' in reasons('valid_reward_margin', pairs | {'preference.beta': 1}, pairs)
  assert 'another unit' in reasons('valid_loss', pairs, CHARS)
  assert reasons('valid_reward_accuracy', pairs | {'preference.loss': 'ipo'}, pairs) == ''


def test_verdicts_of_pairs_name_the_unit(tmp_path):
  planned = ablation_study.study(('learned', 'alibi'))
  for arm in planned['arms']:
    arm['scored_on'] = CHARS | {'unit': 'per pair'}
  rows = ablation_study.rows(planned, tmp_path, samples=False)
  study = study_results.StudyResults(planned, rows, analyze.analyze(planned, rows), (), tmp_path)
  assert 'valid_loss (per pair)' in of_arm(study.analysis, 'positions=alibi')['sentence']
  assert study.metric == 'validation loss per pair'
  assert study_figures.units(study)[1] == 'per pair'
  assert 'per token' not in study_report.FORMATS['html'](study)


@pytest.mark.parametrize('key', ['data.mixture.text.weight', 'loss.label_smoothing', 'model.dropout'])
def test_training_losses_compare_on_equal_data_weights_and_dropout_alone(key):
  changed, other = ({'diff': {key: [0.0, value]}} for value in (0.1, 0.2))
  text = lambda metric, *arms: ' '.join(comparability.reasons({'metric': metric}, *arms))
  for metric in ('loss', 'tail/loss', 'tail/objective', 'tail/loss/source/text'):
    assert text(metric, changed, {'diff': {}}).endswith(f'it has another {key} (use valid_loss)')
    assert key in text(metric, changed, other) and text(metric, changed, changed) == ''
  assert text('loss', {'diff': {'optim.lr': [1, 2]}}, {}) == ''
  assert text('valid_loss', changed, {}) == text('tail/valid_loss', changed, {}) == ''


@pytest.mark.parametrize('metric', ['tokens_per_second', 'seconds', 'tail/step_seconds', 'mfu'])
def test_speeds_compare_on_equal_hardware_and_for_equal_work(metric):
  assert reasons(metric, CHARS) == ''
  assert 'trains on 2 times the tokens' in reasons(metric, CHARS, tokens=(200, 100))
  of_other_tokens = reasons(metric, CHARS | {'tokenizer': 'bpe'})
  assert ('tokens of another tokenizer' in of_other_tokens) == ('tokens' in metric)
  study = make_study(('a',), metric=metric)
  rows = simulated(study, np.random.default_rng(0))
  for row in rows:
    row['result'] |= {
      'seconds': 9.0 + row['seed'],
      'mfu': 0.3,
      'tail': {'step_seconds': 0.1},
      'hardware': 'here',
    }
    row['how'] = 'alone'
  assert of_arm(analyze.analyze(study, rows), 'a')['reasons'] == []
  for row in rows:  # whole seeds on another machine: pairs stay on one
    row['result']['hardware'] = 'there' if row['seed'] == 1 else 'here'
  assert of_arm(analyze.analyze(study, rows), 'a')['reasons'] == []
  rows[-1]['result']['hardware'] = 'there'
  rows[-2]['how'] = 'process'
  arm = of_arm(analyze.analyze(study, rows), rows[-1]['arm'])
  assert arm['verdict'] == 'not comparable'
  assert arm['reasons'] == ['it was timed with another way of training and hardware in some seeds']


def test_other_validation_data_make_every_score_incomparable():
  changed = {'text': SOURCE['text'] | {'data': 'e'}}
  more = SOURCE | {'more': SOURCE['text']}
  for metric in ('tail/valid_loss/text', 'valid_loss/text', 'perplexity/text/nats_per_token'):
    assert reasons(metric, CHARS | {'sources': more}) == '', 'of the same source'
  for metric in ('valid_loss', 'valid_bits_per_byte', 'answer/exact_match'):
    assert 'other validation data (data)' in reasons(metric, CHARS | {'sources': changed})
    assert 'other validation data' in reasons(metric, CHARS | {'sources': more})
    assert 'other validation data' in reasons(metric, CHARS, CHARS | {'sources': more})
  for metric in ('valid_loss/text', 'answer/text/exact_match'):  # of the source that both have
    assert reasons(metric, CHARS | {'sources': more}) == ''
  assert 'another part' in reasons('tail/valid_loss', CHARS | {'part': [5, 1]})


def test_unequal_training_tokens_are_incomparable_unless_they_are_meant():
  assert 'trains on 2 times the tokens' in reasons('valid_loss', CHARS, tokens=(200, 100))
  assert reasons('valid_loss', CHARS, tokens=(101, 100)) == ''
  assert reasons('valid_loss', CHARS, tokens=(200, 100), budget={'flops': 1e9}) == ''
  assert reasons('valid_loss', CHARS, tokens=(200, 100), unequal_tokens=True) == ''
  assert 'tokens' in reasons('valid_loss', CHARS, tokens=(200, 100), budget={'parameters': 1e6})


def test_the_default_metric_is_per_byte_where_tokenizers_differ_and_bytes_are_known():
  bpe = CHARS | {'tokenizer': 'bpe'}
  assert comparability.default_metric([CHARS, bpe]) == 'valid_bits_per_byte'
  assert comparability.default_metric([CHARS, CHARS]) == 'valid_loss'
  assert comparability.default_metric([CHARS, bpe | {'bytes': False}]) == 'valid_loss'


# -------------------------------------------------------------------------------------- verdicts


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  """A study in which positions=alibi, which is better by far, has another tokenizer."""
  planned, folder = ablation_study.study(('learned', 'alibi')), tmp_path_factory.mktemp('study')
  for arm in planned['arms']:
    arm['scored_on'] = CHARS | {'tokenizer': 'bpe' if 'alibi' in arm['name'] else 'chars'}
  rows = ablation_study.rows(planned, folder, samples=False)
  return study_results.StudyResults(planned, rows, analyze.analyze(planned, rows), (), folder)


def test_an_incomparable_arm_has_a_mean_and_no_other_number(study):
  arm = of_arm(study.analysis, 'positions=alibi')
  assert arm['verdict'] == 'not comparable' and arm['mean'] is not None
  keys = ('difference', 'interval', 'p', 'p_holm', 'speedup', 'seeds_needed', 'se_paired')
  assert [arm[key] for key in keys] == [None] * len(keys) and arm['at_fractions'] == []
  assert of_arm(study.analysis, 'positions=learned')['verdict'] == 'worse'
  assert study.analysis['family'] == 1


@pytest.mark.parametrize('suffix', study_report.FORMATS)
def test_every_output_says_not_comparable(study, suffix):
  text = study_report.FORMATS[suffix](study)
  assert 'not comparable' in text.lower()
  assert 'alibi beats' not in text and 'alibi is better' not in text
  assert 'another tokenizer' in text or suffix == 'tex'


def test_headline_and_sentence_say_not_comparable(study):
  assert '1 not comparable' in study_results.headline(study)
  sentence = of_arm(study.analysis, 'positions=alibi')['sentence']
  assert sentence.startswith('positions=alibi is not comparable: valid_loss is per token, and')


def test_an_incomparable_factor_has_no_main_effect_and_spoils_no_other():
  study = make_study((), sweep='full', factors={'f': [], 'g': []})
  study['arms'] = [
    {'name': f + g, 'levels': {'f': f, 'g': g}, 'is_baseline': f + g == '00'}
    | {'scored_on': CHARS | {'tokenizer': f}, 'tokens': 9}
    for f in '01'
    for g in '01'
  ]
  rows = simulated(study, np.random.default_rng(0), {'01': 0.3, '11': 0.3})
  actual = {one['factor']: one for one in analyze.analyze(study, rows)['effects']}
  assert (actual['f']['verdict'], actual['f']['difference']) == ('not comparable', None)
  assert actual['g']['verdict'] == 'worse'
  # One additive model of all arms would mix both scales.
  fitted = analyze.analyze(study | {'sweep': 'fractional'}, rows)['effects']
  assert {one['verdict'] for one in fitted} == {'not comparable'}
