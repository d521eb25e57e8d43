"""Settings without effect are said, and no shipped experiment has any."""

import dataclasses

import pytest

from gpt_jax import config, train
from gpt_jax.training import ineffective
from tests import tiny_runs


def built(**changes):
  section = config.default()
  section.data.mixture = {'text': {'kind': 'synthetic', 'documents': 60}}
  for key, value in changes.items():
    name, _, field = key.partition('__')
    section[name][field] = value
  return config.build(config.Config, section)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (dict(optim__name='sgd', optim__b2=0.9), 'optim.b2 has no effect with optim.name=sgd'),
    (dict(optim__name='muon', optim__b2=0.9), None),
    (dict(optim__cooldown=0.5), 'optim.cooldown has no effect with optim.schedule=cosine'),
    (dict(optim__cooldown=0.5, optim__schedule='wsd'), None),
    (dict(loss__moe_z=0.1), 'loss.moe_z has no effect with model.experts=0'),
    (
      dict(model__positions='learned', model__rope_theta=5e5),
      'model.rope_theta has no effect with model.positions=learned',
    ),
  ],
)
def test_what_is_said(changes, said):
  assert ineffective.notes(built(**changes)) == ([said] if said else [])


def test_every_rule_names_settings_that_there_are():
  cfg = built()
  for key, (beside, rule) in ineffective.IDLE.items():
    ineffective.value(cfg, key)
    assert rule(ineffective.value(cfg, beside)) in (True, False)


def test_a_run_says_it(tmp_path, capsys):
  cfg = tiny_runs.experiment(train__steps=1, train__eval_every=0, train__sample_prompts=())
  cfg = dataclasses.replace(cfg, loss=dataclasses.replace(cfg.loss, moe_z=0.5))
  train.train(cfg, tmp_path / 'run')
  assert 'loss.moe_z has no effect with model.experts=0' in capsys.readouterr().out
