"""Settings that were changed and have no effect beside other settings: a run prints them and goes on.

They are not refused, so that an ablation may change one key and leave its companions as they are.
Which settings an optimizer, schedule or position scheme reads follows from its row or function.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from gpt_jax.model.position_schemes import ROPE_SCALINGS
from gpt_jax.model.positions import POSITIONS
from gpt_jax.optim import OPTIMIZERS, SCHEDULES
from gpt_jax.runs import records


def notes(cfg):
  """Return a line for each key of a config.Config that differs from its default without effect."""
  changed = records.diff(dataclasses.asdict(type(cfg)()), dataclasses.asdict(cfg))
  lines = []
  for selector, (keys, keys_read) in SELECTORS.items():
    ignored = [key for key in sorted(keys) if key in changed and key not in keys_read(cfg)]
    lines += [f'{key} has no effect with {selector}={value(cfg, selector)}' for key in ignored]
  return lines


def unread_keys(cfg):
  """Return the keys that a config does not read beside its other settings, changed or not."""
  return {key for keys, keys_read in SELECTORS.values() for key in {*keys} - {*keys_read(cfg)}}


def value(cfg, key):
  """Return the value of a dotted key."""
  return functools.reduce(getattr, key.split('.'), cfg)


class ReadRecorder:
  """A config section that records which of its fields a function reads."""

  def __init__(self, section):
    self._section, self.fields_read = section, set()

  def __getattr__(self, name):
    self.fields_read.add(name)
    return getattr(self._section, name)


def listed(selector, table, fields_of):
  """Return a row of SELECTORS for a table whose rows list the fields that they read."""
  section = selector.partition('.')[0]
  keys_of = lambda row: {f'{section}.{field}' for field in fields_of(row)}
  keys = sorted(set().union(*map(keys_of, table.values())))
  return keys, lambda cfg: keys_of(table[value(cfg, selector)])


def schedule_keys(cfg):
  """Return the keys that the schedule's function reads."""
  recorder, update = ReadRecorder(cfg.optim), jax.ShapeDtypeStruct((), jnp.int32)
  jax.eval_shape(lambda update: SCHEDULES[cfg.optim.schedule](recorder, update, 10), update)
  return {f'optim.{name}' for name in recorder.fields_read}


def if_on(selector, *keys):
  """Return a row of SELECTORS for keys that are read unless the selector is 0."""
  return keys, lambda cfg: keys if value(cfg, selector) else ()


def is_distance_alone(cfg):
  """Whether a student learns nothing by cross-entropy."""
  return cfg.train.job == 'distil' and cfg.distil.weight == 1


CROSS_ENTROPY_KEYS = tuple(
  f'loss.{name}'
  for name in ('z_loss', 'terms', 'label_smoothing', 'restrict', 'balance', 'text', 'image', 'audio')
)
JOB_KEYS = {  # row of train.JOBS: the keys that some jobs alone read
  'gpt': (*CROSS_ENTROPY_KEYS, 'data.condition_dropout'),
  'dpo': tuple(
    f'preference.{name}'
    for name in ('loss', 'beta', 'gamma', 'label_smoothing', 'chosen', 'rejected', 'prompt')
    + ('desirable_weight', 'undesirable_weight')
  ),
  'grpo': tuple(f'grpo.{name}' for name in ('group', 'reward', 'pattern', 'advantage', 'normalize'))
  + ('grpo.updates', 'grpo.kl', 'grpo.max_new_tokens', 'grpo.temperature'),
  'distil': tuple(f'distil.{name}' for name in ('teacher', 'loss', 'temperature', 'weight', 'beta'))
  + (*CROSS_ENTROPY_KEYS, 'data.condition_dropout'),
}
TOTAL_KEYS = ('loss.z_loss', 'loss.terms', 'loss.label_smoothing')  # terms beside weights of targets
LOSS_KEYS = {  # row of PREFERENCE_LOSSES: the keys that it alone reads
  'simpo': ('preference.gamma',),
  'kto': ('preference.desirable_weight', 'preference.undesirable_weight'),
}
CLIP_KEYS = ('grpo.ratio', 'grpo.clip_low', 'grpo.clip_high')
SELECTORS = {  # key that selects: (keys that depend on it, cfg -> those of them that are read)
  'optim.name': listed('optim.name', OPTIMIZERS, lambda row: row.uses),
  'optim.schedule': (('optim.final_lr', 'optim.cooldown'), schedule_keys),
  'model.positions': listed('model.positions', POSITIONS, lambda row: row.settings),
  'model.rope_scaling': listed('model.rope_scaling', ROPE_SCALINGS, lambda row: row.settings),
  'model.norm': (
    ('model.norm_bias',),
    lambda cfg: ('model.norm_bias',) if cfg.model.norm == 'layernorm' else (),
  ),
  'model.qk_norm': if_on('model.qk_norm', 'model.qk_norm_over'),
  'model.experts': if_on(
    'model.experts', 'model.experts_per_token', 'model.router_renormalize', 'loss.moe_balance', 'loss.moe_z'
  ),
  'train.job': (
    {key for keys in JOB_KEYS.values() for key in keys},
    lambda cfg: JOB_KEYS.get(cfg.train.job, ()),
  ),
  'preference.loss': (sum(LOSS_KEYS.values(), ()), lambda cfg: LOSS_KEYS.get(cfg.preference.loss, ())),
  'distil.weight': (TOTAL_KEYS, lambda cfg: () if is_distance_alone(cfg) else TOTAL_KEYS),
  'distil.loss': (('distil.beta',), lambda cfg: ('distil.beta',) if cfg.distil.loss == 'js' else ()),
  'grpo.updates': (CLIP_KEYS, lambda cfg: CLIP_KEYS if cfg.grpo.updates > 1 else ()),
  'adapter.rank': if_on(
    'adapter.rank', *(f'adapter.{name}' for name in ('kind', 'targets', 'alpha', 'dropout'))
  ),
  'privacy.epsilon': if_on(
    'privacy.epsilon', *(f'privacy.{name}' for name in ('delta', 'clip', 'unit', 'secret'))
  ),
  'model.flow_layers': if_on('model.flow_layers', 'sample.flow_steps'),
  'sample.beams': if_on('sample.beams', 'sample.length_penalty'),
  'train.spike_sigma': if_on('train.spike_sigma', 'train.spike_window', 'train.spike_patience'),
}
