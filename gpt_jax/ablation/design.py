"""A study: a baseline, factors with levels, a plan and a budget; and the arms that they make.

  def get_study(arg=''):
    return Study('experiments/x.py', {'positions': ['rope', 'learned', 'none']}, seeds=5)

A factor is a config key (its last part will do if no other key ends so) with a list of values; or
any name with {level: {key: value, ...}} for several keys together, or {level: function} for a
function that changes the ConfigDict which it is given. One level of a factor is the baseline's: the
one that leaves the base as it is, or 'base' if none does.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import tempfile
from typing import NamedTuple

from gpt_jax import config
from gpt_jax.ablation import budget as budgets
from gpt_jax.ablation.budget import Budget
from gpt_jax.ablation.sweeps import PLANS, Range, subsample
from gpt_jax.cli import experiment_file
from gpt_jax.runs.run_folder import flatten

BASE = 'base'  # the name of the baseline, and of a level that changes nothing


@dataclasses.dataclass(frozen=True)
class Study:
  """What to compare."""

  base: str  # experiment file with its arguments, as --config takes it
  factors: dict  # {name: list of values, Range, or {level: changes or function}}
  question: str = ''  # what the study is to answer
  seeds: int | tuple = 5  # so many, from 0 on; or these
  plan: str | list = 'one_at_a_time'  # a row of PLANS, or cells {factor: level}
  budget: Budget = Budget()  # what all arms have in common
  metric: str = 'valid_loss'  # key of result.json
  better: str = 'lower'  # which way of the metric: lower or higher
  tolerance: float = 0.01  # difference of the metric that does not matter
  changes: dict = dataclasses.field(default_factory=dict)  # {key: value} of every arm
  count: int = 0  # arms beside the baseline, at most; draws, proposals; 0 = all
  plan_seed: int = 0  # of what a plan draws
  batch: int = 4  # arms of a round; plan='optuna' only
  sampler: str = 'TPESampler'  # class of optuna.samplers; plan='optuna' only
  keeps_parameters: tuple = ()  # factors that must not change the parameters: flagged if they do
  name: str = ''  # the file's name, by load_study

  def __post_init__(self):
    if not self.factors and self.plan != []:
      raise ValueError('the study has no factors\nfix: name at least one, with its levels')
    if self.better not in ('lower', 'higher'):
      raise ValueError(f'better={self.better!r} is no direction\nfix: use lower or higher')
    if not self.tolerance >= 0:
      raise ValueError(f'tolerance={self.tolerance} is negative\nfix: use a difference >= 0')
    if isinstance(self.plan, str) and self.plan not in PLANS:
      raise ValueError(f'plan={self.plan!r} is not known\nfix: use one of {", ".join(PLANS)}')
    if self.count < 0:
      raise ValueError(f'count={self.count} is negative\nfix: use 0 for all')
    if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list):
      raise ValueError(f'seeds={self.seeds} are not different seeds\nfix: give a number >= 1')
    for factor, row in self.factors.items():
      if not isinstance(row, Range) and not len(row):
        raise ValueError(f'factor {factor} has no levels\nfix: list its values')
    for factor in self.keeps_parameters:
      if factor not in self.factors:
        raise ValueError(f'keeps_parameters names {factor!r}\nfix: use factors: {", ".join(self.factors)}')

  @property
  def seed_list(self):
    """The seeds themselves."""
    return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


class Arm(NamedTuple):
  """One config of a study."""

  name: str  # base, or what differs from it: 'positions=learned,mlp=gelu'
  slug: str  # the name as a folder
  levels: dict  # {factor: level} of all factors
  config: config.Config
  is_baseline: bool
  keys: tuple  # config keys that its factors set by name
  functions: tuple  # factors in which a function decides what is set


# ---------------------------------------------------------------------------------------- loading


def load_study(spec):
  """'x.py:args' -> the Study of get_study('args'), named x; errors say what to mend."""
  name, study = experiment_file.call_function(spec, 'get_study', 'experiments/ablations/norms.py')
  if not isinstance(study, Study):
    raise ValueError(
      f'--config={spec}: get_study returns a {type(study).__name__}\n'
      'fix: return a gpt_jax.ablation.design.Study'
    )
  return dataclasses.replace(study, name=study.name or name)


# ------------------------------------------------------------------------------------------- arms


class Factor(NamedTuple):
  """A factor whose levels are worked out."""

  levels: dict  # {level name: {key: value} or function}
  base: str  # the baseline's level
  range: Range | None = None
  key: str = ''  # the config key of a range


def arms(study, folder=None, least=2):
  """The arms, the baseline first; names and order depend on the study alone.

  folder: where token caches and step times that a budget needs are kept; default: a temporary one.
  least: fewer arms are an error.
  Raises ValueError naming the arm for a config that cannot be.
  """
  base = config.build(config.Config, experiment_file.load_config(study.base))
  base = changed(base, [keys_in_full(study.changes, base)], 'changes')
  factors = {name: resolved(name, row, base) for name, row in study.factors.items()}
  baseline = {name: factor.base for name, factor in factors.items()}
  if study.plan == 'leave_one_out':
    baseline = {name: first_of_two(name, factor) for name, factor in factors.items()}
  found = {}
  for cell in [{}, *cells(study, factors, baseline)]:
    cell = {name: level_of(name, factors[name], level) for name, level in cell.items()}
    full = baseline | cell
    made = arm(base, factors, baseline, full)
    found.setdefault(made.name, made)
  with tempfile.TemporaryDirectory() as temporary:
    measures = budgets.Measures(folder or temporary)
    found = [budgeted(made, study.budget, measures) for made in found.values()]
  assert len({made.slug for made in found}) == len(found)
  if len(found) < least:
    raise ValueError(
      'the study has no arm beside its baseline\nfix: give a factor a level that is not the '
      "base's, or another plan"
    )
  return found


def first_of_two(name, factor):
  """The first level of a factor that has two."""
  if factor.range is None and len(factor.levels) != 2:
    raise ValueError(
      f'factor {name} lists {", ".join(factor.levels)}, and a leave_one_out plan takes two levels\n'
      "fix: list the base's and the one to change it to, or use plan='one_at_a_time'"
    )
  return next(iter(factor.levels))


def runs_of(study, found=None):
  """All (arm, seed, Config) of a study, seed after seed, so that arms can be compared early."""
  found = arms(study) if found is None else found
  for seed in study.seed_list:
    for made in found:
      train = dataclasses.replace(made.config.train, seed=seed)
      yield made, seed, dataclasses.replace(made.config, train=train)


def cells(study, factors, baseline):
  """The plan's cells."""
  if not isinstance(study.plan, str):
    found = list(study.plan)
  else:
    rows = {name: factor.range or list(factor.levels) for name, factor in factors.items()}
    found = PLANS[study.plan](rows, baseline, study.count, study.plan_seed)
  for cell in found:
    for name in cell:
      if name not in factors:
        raise ValueError(f'the plan names factor {name!r}\nfix: use the factors {", ".join(factors)}')
  differs = lambda cell: any(
    level_of(name, factors[name], level) != baseline[name] for name, level in cell.items()
  )
  found = [cell for cell in found if differs(cell)]
  return subsample(found, study.count, study.plan_seed) if study.count else found


def arm(base, factors, baseline, full):
  """The Arm of a cell that has all factors."""
  differing = [name for name in factors if full[name] != baseline[name]]
  name = ','.join(f'{factor}={full[factor]}' for factor in differing) or BASE
  keys, functions = set(), []
  for factor in differing:
    both = [change_of(factors[factor], row[factor]) for row in (full, baseline)]
    keys = keys.union(*(change for change in both if isinstance(change, dict)))
    functions += [factor] if any(map(callable, both)) else []
  changes = [change_of(factors[factor], level) for factor, level in full.items()]
  made = changed(base, changes, f'arm {name}')
  if made.train.seed != base.train.seed:
    raise ValueError(f'arm {name} sets train.seed, which a study sets itself\nfix: use seeds of the Study')
  return Arm(name, slug(name), full, made, name == BASE, tuple(sorted(keys)), tuple(functions))


def budgeted(made, budget, measures):
  """The arm with its share of the budget."""
  try:
    return made._replace(config=budgets.apply(made.config, budget, measures))
  except ValueError as error:
    raise ValueError(f'arm {made.name}: {error}') from error


def slug(name):
  """A name as a folder: letters, digits and . = + - _ , with a hash where something was lost."""
  kept = re.sub(r'[^\w.=+,-]', '-', name)[:80]
  return kept if kept == name else f'{kept}-{hashlib.sha256(name.encode()).hexdigest()[:6]}'


# ---------------------------------------------------------------------------------------- factors


def resolved(name, row, base):
  """A factor of the study -> Factor, with the baseline's level found."""
  if isinstance(row, Range):
    key = full_key(name, base)
    if not isinstance(flatten(config.to_dict(base))[key], float):
      raise ValueError(f'factor {name} is a range, and no fraction\nfix: list its values')
    return Factor({BASE: {}}, BASE, row, key)
  if isinstance(row, dict):
    levels = {
      level_name(level): change if callable(change) else keys_in_full(change, base)
      for level, change in row.items()
    }
  else:
    key = full_key(name, base)
    if len({level_name(value) for value in row}) < len(row):
      raise ValueError(f'factor {name} has a level twice: {row}\nfix: list each value once')
    levels = {level_name(value): {key: value} for value in row}
  same = [level for level, change in levels.items() if leaves(base, change)]
  if len(same) > 1:
    raise ValueError(
      f'factor {name}: {" and ".join(same)} both leave the base config as it is\nfix: keep one of them'
    )
  if not same and BASE in levels:
    raise ValueError(
      f'factor {name} has a level called {BASE!r} that changes the base\nfix: call it otherwise'
    )
  if len(levels) == len(same):
    raise ValueError(
      f'factor {name} has one level, {same[0]}, which is the base: nothing to compare\n'
      "fix: add a level that is not the base's, or leave the factor out"
    )
  return Factor(levels, same[0] if same else BASE)


def leaves(base, change):
  """Whether a change alone changes nothing; one that is only valid with others does not count."""
  try:
    return changed(base, [change], '') == base
  except ValueError:
    return False


def level_of(name, factor, level):
  """The name of a level that a cell gives by name or by value."""
  shown = level_name(level)
  if factor.range is None and shown not in factor.levels and shown != factor.base:
    raise ValueError(
      f'the plan names level {shown} of factor {name}\nfix: use one of {", ".join(factor.levels)}'
    )
  return shown


def change_of(factor, level):
  """What a level changes."""
  if factor.range is not None and level != BASE:
    return {factor.key: float(level)}
  return factor.levels.get(level, {})


def level_name(value):
  """A value as the name of a level: 'rope', '0.001', 'true', '4+4'."""
  if isinstance(value, str):
    return value or 'none'
  if isinstance(value, list | tuple):
    return '+'.join(map(level_name, value)) or 'none'
  if isinstance(value, float):
    return f'{value:.10g}'
  if isinstance(value, dict):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
  return str(value).lower()


def matching_keys(name, base):
  """The config keys that are called so, or whose last part is."""
  keys = flatten(config.to_dict(base))
  return [name] if name in keys else [key for key in keys if key.rpartition('.')[2] == name]


def full_key(name, base):
  """The one config key of this name; ValueError if there is none or more than one."""
  found = matching_keys(name, base)
  if len(found) == 1:
    return found[0]
  if name == 'data.mixture':
    return name
  if found:
    raise ValueError(f'{name} may be {", ".join(found)}\nfix: write the whole key')
  keys = list(flatten(config.to_dict(base)))
  last = {key.rpartition('.')[2]: key for key in keys}
  near = difflib.get_close_matches(name, [*keys, *last], 1)
  hint = f'did you mean {near[0]}?' if near else 'see config.json of a run for all keys'
  raise ValueError(
    f'{name} is not a config key\nfix: {hint} A factor of another name needs levels as a dict: '
    '{level: {key: value}}'
  )


def keys_in_full(changes, base):
  """{key: value} with whole keys."""
  if not isinstance(changes, dict):
    raise ValueError(
      f'a level is {changes!r}\nfix: give {{key: value}} or a function that changes the config'
    )
  return {full_key(key, base): value for key, value in changes.items()}


def changed(base, changes, where):
  """The base Config after these changes ({key: value} or functions), in order."""
  made = experiment_file.complete_sources(config.section(base))
  with made.unlocked(), made.ignore_type():
    for change in changes:
      if callable(change):
        change(made)
        continue
      for key, value in change.items():
        *parents, last = key.split('.')
        node = made
        for parent in parents:
          node = node[parent]
        node[last] = value
  try:
    return config.build(config.Config, made)
  except ValueError as error:
    raise ValueError(f'{where}: {error}' if where else str(error)) from error
