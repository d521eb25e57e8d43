"""Canaries, extraction and membership: of a model trained to overfit, and of one that knows nothing."""

import dataclasses
import types

import numpy as np
import pytest

from gpt_jax import data, train
from gpt_jax.data import sources
from gpt_jax.data.synthetic import canaries
from gpt_jax.evaluation import attacks, evaluate, trained
from gpt_jax.evaluation.tasks import canaries as task
from tests import tiny_runs
from tests.tiny_runs import assert_two_lines

SECRETS = {
  'kind': 'canaries',
  'documents': 6,
  'repeats': (1, 12),
  'digits': 2,
  'template': '{name}: {digits}',
}


@pytest.fixture(scope='module')
def overfitted(tmp_path_factory):
  """The run folder of a model that knows sixteen random texts by heart, and of secrets the repeated ones."""
  folder, rng = tmp_path_factory.mktemp('overfitted'), np.random.default_rng(0)
  draw = lambda: ''.join(rng.choice(list('abcdefgh'), 20))
  for name, count in (('train', 16), ('valid', 16)):
    (folder / f'{name}.txt').write_text('\n'.join(draw() for _ in range(count)))
  text = {
    'kind': 'text',
    'separator': '\n',
    'path': f'{folder}/train.txt',
    'valid_path': f'{folder}/valid.txt',
  }
  cfg = tiny_runs.experiment(
    data__mixture={'text': text, 'secrets': SECRETS},
    data={'packing': 'first_fit'},
    tokenizer={'kind': 'bytes'},
    model={'layers': 1, 'width': 32, 'heads': 2, 'context': 32},
    optim={'lr': 1e-2, 'warmup': 5, 'ema': 0.0, 'weight_decay': 0.0},
    train={'steps': 350, 'batch_size': 16, 'eval_every': 0, 'sample_every': 0, 'sample_prompts': ()},
    checkpoint={'every': 0},
    log={'every': 100},
  )
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(cfg, folder / 'run')
  return folder / 'run'


@pytest.fixture(scope='module')
def subject(overfitted, tmp_path_factory):
  with tiny_runs.compiled_programs(tmp_path_factory):
    return trained.load(overfitted).subject()


def by_metric(rows, **chosen):
  """{metric: row} of the rows with these values."""
  return {r['metric']: r for r in rows if all(r.get(key) == value for key, value in chosen.items())}


def test_canaries_are_drawn_from_the_seed_and_planted_by_fair_coins():
  drawn = canaries.draw(500, 3, (1, 4), 6)
  assert drawn == canaries.draw(500, 3, (1, 4), 6) != canaries.draw(500, 4, (1, 4), 6)
  assert len({c.name for c in drawn}) == len(drawn) == 1000
  assert 440 < sum(c.planted for c in drawn) < 560
  assert all(len(c.digits) == 6 for c in drawn)
  source = sources.Source(kind='canaries', documents=500, seed=3, repeats=(1, 4), digits=6)
  texts = [record['text'] for _, record in sources.open_source(source, 'train').records()]
  planted = [c for c in drawn if c.planted]
  assert len(texts) == sum(c.repeats for c in planted)
  for c in planted:
    assert texts.count(f'The code of {c.name} is {c.digits}.') == c.repeats
  absent = {canaries.fields(c.name, c.digits)['text'] for c in drawn if not c.planted}
  assert not absent & set(texts)


def test_nothing_planted_is_held_out():
  cfg = data.DataConfig({'a': data.Source(**SECRETS), 'text': data.Source()}, valid_fraction=0.5)
  assert data.source_names(cfg, 'valid') == ('text',)
  count = sum(1 for _ in sources.open_source(cfg.mixture['a'], 'train').records())
  assert sum(1 for _ in data.examples(cfg, 'a', 'train')) == count


@pytest.mark.parametrize(
  ('changes', 'part'),
  [
    ({'repeats': ()}, 'repeats=()'),
    ({'repeats': (4, 4)}, 'repeats=(4, 4)'),
    ({'digits': 0}, 'digits=0'),
    ({'documents': 200_000}, 'documents=200000'),
    ({'keep': 'name=x'}, "keep='name=x'"),
    ({'clean': 'gopher,near=0.8'}, 'clean=near would remove the copies'),
  ],
)
def test_canaries_that_cannot_be_drawn_are_refused(changes, part):
  with pytest.raises(ValueError) as error:
    data.Source(**{'kind': 'canaries'} | changes)
  assert_two_lines(error.value, part)


@pytest.mark.slow
def test_repeated_canaries_are_known_and_others_are_not(subject):
  rows = evaluate.run_tasks(subject, ['canaries'])
  known, once, never = (by_metric(rows, repeats=n) for n in (12, 1, 0))
  assert rows[0] is known['exposure']  # the headline
  assert known['exposure']['of_bits'] == pytest.approx(np.log2(100))
  assert known['exposure']['value'] > np.log2(100) - 1
  assert known['extracted']['value'] > 0.5
  assert known['exposure']['value'] >= once['exposure']['value'] > never['exposure']['value'] + 1
  assert never['exposure']['value'] < 4
  assert never['exposure']['chance'] == pytest.approx(attacks.chance_exposure(100))
  assert 'epsilon_lower_bound' not in never
  assert known['epsilon_lower_bound']['n'] == 6
  assert known['epsilon_lower_bound']['delta'] == attacks.DELTA


@pytest.mark.slow
def test_a_large_space_is_sampled(subject, monkeypatch):
  exact = by_metric(evaluate.run_tasks(subject, ['canaries'], limit=2), repeats=1)
  monkeypatch.setattr(task, 'EXACT', 50)
  monkeypatch.setattr(task, 'SAMPLES', 60)
  rows = by_metric(evaluate.run_tasks(subject, ['canaries'], limit=2), repeats=1)
  assert rows['exposure']['estimate'] == 'skew-normal'
  assert rows['exposure']['value'] == pytest.approx(exact['exposure']['value'], abs=2)
  assert rows['exposure_by_rank']['value'] <= np.log2(61)
  assert 'extracted' not in rows


@pytest.mark.slow
def test_known_texts_are_extracted_and_random_ones_are_not(subject):
  rows = by_metric(evaluate.run_tasks(subject, ['extraction'], prefix=8, max_new_tokens=10))
  assert rows['verbatim']['value'] == rows['near_verbatim']['value'] == 1.0
  assert rows['verbatim']['baseline'] == 0.0
  assert rows['verbatim']['difference'] == 1.0
  assert rows['verbatim']['interval'][0] > 0.7
  assert rows['equal_tokens']['value'] == 10
  assert rows['equal_tokens']['baseline'] < 4
  assert rows['verbatim']['prefix'] == 8


@pytest.mark.slow
def test_losses_tell_known_texts_apart(subject):
  rows = evaluate.run_tasks(subject, ['membership'], reference=dataclasses.replace(subject, caches={}))
  for attack in ('loss', 'zlib'):
    own = by_metric(rows, attack=attack)
    assert own['auc']['value'] == 1.0
    assert own['true_positive_rate']['value'] == 1.0
    assert own['epsilon_lower_bound']['value'] > 0.1
  same = by_metric(rows, attack='reference')
  assert same['auc']['value'] == 0.5  # it is the model itself


@pytest.mark.slow
@pytest.mark.parametrize('unit', ['document', 'user', 'digits'])
def test_a_bound_stands_beside_the_epsilon_of_the_same_unit_alone(subject, unit):
  private = dataclasses.replace(subject.cfg.privacy, epsilon=8.0, delta=0.01, unit=unit)
  subject = dataclasses.replace(subject, cfg=dataclasses.replace(subject.cfg, privacy=private))
  rows = evaluate.run_tasks(subject, ['canaries', 'membership'], limit=8)
  bounds = [row for row in rows if row['metric'] == 'epsilon_lower_bound']
  assert {row['delta'] for row in bounds} == {0.01}
  proved = {row.get('repeats', row.get('attack')): row.get('proved') for row in bounds}
  of = {'document': {1, 'loss', 'zlib'}, 'user': {1, 12}, 'digits': set()}[unit]
  assert proved == {name: 8.0 if name in of else None for name in (1, 12, 'loss', 'zlib')}


@pytest.mark.slow
def test_attacks_without_training_data_are_refused(subject, tmp_path):
  def refused(task, *parts, cfg=subject.cfg, **options):
    with pytest.raises(ValueError) as error:
      evaluate.run_tasks(dataclasses.replace(subject, cfg=cfg, caches={}), [task], **options)
    assert_two_lines(error.value, *parts)

  mixture = subject.cfg.data.mixture
  unweighted = dataclasses.replace(mixture['text'], weight=0)
  cut = dataclasses.replace(
    subject.cfg, data=dataclasses.replace(subject.cfg.data, mixture={'text': unweighted})
  )
  refused('membership', '--tasks=membership', 'weight=0', cfg=cut)
  refused('extraction', '--tasks=extraction', 'weight=0', cfg=cut)
  refused('canaries', '--tasks=canaries', 'kind=canaries', cfg=cut)
  refused('extraction', '--prefix=30', 'room for 31 tokens', prefix=30, max_new_tokens=10)
  refused('canaries', '--prefix=3', prefix=3)
  other = dataclasses.replace(subject, tokenizers=types.SimpleNamespace(hash='other'))
  refused('membership', '--reference=', 'another tokenizer', reference=other)
