"""Settings without effect are reported, and a run prints them."""

import dataclasses
import types

import pytest

from gpt_jax import config, optim, train
from gpt_jax.training import ineffective
from tests import tiny_runs


def build(**changes):
  section = config.default()
  section.data.mixture = {'text': {'kind': 'synthetic', 'documents': 60}}
  for key, value in changes.items():
    name, _, field = key.partition('__')
    section[name][field] = value
  return config.build(config.Config, section)


YARN = dict(model__rope_scaling='yarn', model__rope_factor=4.0, model__rope_original_context=32)


@pytest.mark.parametrize(
  ('changes', 'line'),
  [
    (dict(optim__name='sgd', optim__b2=0.9), 'optim.b2 has no effect with optim.name=sgd'),
    (dict(optim__name='muon', optim__b2=0.9), None),
    (dict(optim__name='lion', optim__eps=1e-3), 'optim.eps has no effect with optim.name=lion'),
    (dict(optim__cooldown=0.5), 'optim.cooldown has no effect with optim.schedule=cosine'),
    (dict(optim__cooldown=0.5, optim__schedule='wsd'), None),
    (
      dict(optim__final_lr=0.5, optim__schedule='constant'),
      'optim.final_lr has no effect with optim.schedule=constant',
    ),
    (dict(loss__moe_z=0.1), 'loss.moe_z has no effect with model.experts=0'),
    (dict(sample__flow_steps=30), 'sample.flow_steps has no effect with model.flow_layers=0'),
    (dict(sample__length_penalty=1.0), 'sample.length_penalty has no effect with sample.beams=0'),
    (
      dict(model__positions='learned', model__rope_theta=5e5),
      'model.rope_theta has no effect with model.positions=learned',
    ),
    (dict(model__rope_beta_fast=16.0), 'model.rope_beta_fast has no effect with model.rope_scaling=none'),
    (dict(model__rope_beta_fast=16.0, **YARN), None),
    (
      dict(train__job='dpo', train__init_from='x', loss__z_loss=1e-4),
      'loss.z_loss has no effect with train.job=dpo',
    ),
    (
      dict(train__job='grpo', train__init_from='x', loss__text=0.5),
      'loss.text has no effect with train.job=grpo',
    ),
    (
      dict(train__job='distil', distil__teacher='x', loss__label_smoothing=0.1),
      'loss.label_smoothing has no effect with distil.weight=1.0',
    ),
    (dict(train__job='distil', distil__teacher='x', loss__label_smoothing=0.1, distil__weight=0.5), None),
    (dict(loss__z_loss=1e-4), None),
    (
      dict(model__rope_low_frequency=2.0, **YARN),
      'model.rope_low_frequency has no effect with model.rope_scaling=yarn',
    ),
  ],
)
def test_each_setting_without_effect_is_named(changes, line):
  assert ineffective.notes(build(**changes)) == ([line] if line else [])


def test_a_new_schedule_needs_no_entry(monkeypatch):
  monkeypatch.setitem(optim.SCHEDULES, 'steep', lambda cfg, update, steps: 1.0 * cfg.cooldown)
  changes = dict(optim__schedule='steep', optim__final_lr=0.5, optim__cooldown=0.5)
  assert ineffective.notes(build(**changes)) == ['optim.final_lr has no effect with optim.schedule=steep']


def test_every_rule_names_existing_settings():
  cfg = build()
  for selector, (keys, keys_read) in ineffective.SELECTORS.items():
    for key in (selector, *keys):
      ineffective.value(cfg, key)
    assert isinstance(keys_read, types.FunctionType)


def test_a_run_prints_settings_without_effect(tmp_path, tmp_path_factory, capsys):
  cfg = tiny_runs.experiment(train__steps=1, train__eval_every=0, train__sample_prompts=())
  cfg = dataclasses.replace(cfg, loss=dataclasses.replace(cfg.loss, moe_z=0.5))
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(cfg, tmp_path / 'run')
  assert 'note: loss.moe_z has no effect with model.experts=0' in capsys.readouterr().out
