"""Settings that were changed and mean nothing beside others: a run says so, and goes on.

They are not refused, so that an ablation may change one key and leave its companions as they are.
"""

import dataclasses
from collections.abc import Callable

from gpt_jax.model.position_schemes import ROPE_SCALINGS
from gpt_jax.model.positions import POSITIONS
from gpt_jax.runs import run_folder

Rule = Callable[..., bool]


def notes(cfg) -> list[str]:
  """A line for each key of a config.Config that differs from its default and has no effect."""
  changed = run_folder.changes(dataclasses.asdict(type(cfg)()), dataclasses.asdict(cfg))
  found = [(key, *IDLE[key]) for key in changed if key in IDLE]
  return [
    f'{key} has no effect with {told(cfg, beside)}' for key, beside, idle in found if idle(value(cfg, beside))
  ]


def value(cfg, key: str):
  """What a dotted key is."""
  for name in key.split('.'):
    cfg = getattr(cfg, name)
  return cfg


def told(cfg, key: str) -> str:
  """'optim.name=sgd'."""
  return f'{key}={value(cfg, key)}'


def among(*rows) -> Rule:
  """Whether a setting is one of these."""
  return lambda row: row in rows


def but(*rows) -> Rule:
  """Whether it is none of these."""
  return lambda row: row not in rows


def unless_read_by_row(key: str, table: dict) -> dict[str, tuple[str, Rule]]:
  """Rules for the settings that only some rows of a table of the model read, such as rope_theta."""
  fields = sorted({field for row in table.values() for field in row.settings})
  unread = lambda field: lambda row: field not in table[row].settings
  return {f'model.{field}': (f'model.{key}', unread(field)) for field in fields}


IDLE = {  # key: (what it depends on, where that makes it idle)
  'optim.b1': ('optim.name', among('adafactor')),
  'optim.b2': ('optim.name', among('sgd', 'adafactor')),
  'optim.eps': ('optim.name', among('sgd', 'adafactor', 'lion')),
  'optim.final_lr': ('optim.schedule', among('constant')),
  'optim.cooldown': ('optim.schedule', but('wsd')),
  **unless_read_by_row('positions', POSITIONS),
  **unless_read_by_row('rope_scaling', ROPE_SCALINGS),
  'model.norm_bias': ('model.norm', but('layernorm')),
  'model.experts_per_token': ('model.experts', among(0)),
  'loss.moe_balance': ('model.experts', among(0)),
  'loss.moe_z': ('model.experts', among(0)),
  'sample.length_penalty': ('sample.beams', among(0)),
  'train.spike_window': ('train.spike_sigma', among(0)),
  'train.spike_patience': ('train.spike_sigma', among(0)),
}
