"""A study: a baseline, factors with levels, a sweep and a budget; and the arms that they make.

  def get_study(arg=''):
    return Study('experiments/x.py', {'positions': ['rope', 'learned', 'none']}, seeds=5)

A factor is a config key (or its unique last part) with a list of values; or any name with
{level: {key: value, ...}}, or {level: function that changes the ConfigDict}. One level is the baseline's: the
one that leaves the base as it is, or 'base' if none does.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import operator
import re
import tempfile
from typing import NamedTuple

from gpt_jax import config
from gpt_jax.ablation import budget
from gpt_jax.ablation.budget import Budget
from gpt_jax.ablation.stats.sequential import Sequential
from gpt_jax.ablation.sweeps import SWEEPS, Range, Tuning, subsample
from gpt_jax.cli import experiment_file
from gpt_jax.runs import user_code
from gpt_jax.runs.records import flatten
from gpt_jax.training import ineffective

BASE = 'base'  # name of the baseline, and of a level that changes nothing


@dataclasses.dataclass(frozen=True)
class Study:
  """What to compare."""

  base: str  # experiment file with its arguments, like --config
  factors: dict  # {name: list of values, Range, or {level: changes or function}}
  question: str = ''  # what the study is to answer
  seeds: int | tuple | Sequential = 5  # number of seeds, from 0; the seeds; or as many as decide
  sweep: str | list = 'one_at_a_time'  # a row of SWEEPS, or cells {factor: level}
  budget: Budget = Budget()  # what all arms have in common
  tune: dict = dataclasses.field(default_factory=dict)  # {key: Range or values} to tune in each arm
  tuning: Tuning = Tuning()  # values, seeds, rungs and rounds of that
  metric: str = ''  # key of result.json, or TASK/SOURCE/METRIC; '' = valid_loss, or bits per byte
  better: str = 'lower'  # direction of the metric: lower or higher
  tolerance: float = 0.01  # difference of the metric that does not matter
  outcomes: dict = dataclasses.field(default_factory=dict)  # {further metric: (better, tolerance)}
  unequal_tokens: bool = False  # whether arms are meant to train on different numbers of tokens
  changes: dict = dataclasses.field(default_factory=dict)  # {key: value} of every arm
  count: int = 0  # most arms beside the baseline; draws, proposals; 0 = all
  sweep_seed: int = 0  # seed of a sweep's random draws
  batch: int = 4  # arms of a round; sweep='optuna' only
  sampler: str = 'TPESampler'  # class of optuna.samplers; sweep='optuna' only
  keeps_parameters: tuple = ()  # factors that must not change the parameters: flagged if they do
  name: str = ''  # set to the file's name by load_study

  def __post_init__(self):
    ranges = [row for row in self.tune.values() if isinstance(row, Range)]
    rungs, tune_rounds = self.tuning.rungs, self.tuning.rounds
    empty = [name for name, row in self.factors.items() if not isinstance(row, Range) and not len(row)]
    unknown = [name for name in self.keeps_parameters if name not in self.factors]
    sweep_is_known = not isinstance(self.sweep, str) or self.sweep in SWEEPS
    seeds, directions = self.seed_list, ('lower', 'higher')
    wrong = [name for name, row in self.outcomes.items() if not _is_outcome(row, directions)]
    for ok, cause, fix in (
      (self.factors or self.sweep == [], 'the study has no factors', 'name at least one, with its levels'),
      (self.better in directions, f'better={self.better!r} is not a direction', 'use lower or higher'),
      (not wrong, f'outcomes of {wrong} are not (better, tolerance)', "write {'NAME': ('higher', 0.02)}"),
      (self.metric not in self.outcomes, f'outcomes has metric={self.metric!r} again', 'leave it out'),
      (self.tolerance >= 0, f'tolerance={self.tolerance} is negative', 'use a difference >= 0'),
      (sweep_is_known, f'sweep={self.sweep!r} is not known', f'use one of {", ".join(SWEEPS)}'),
      (self.count >= 0, f'count={self.count} is negative', 'use 0 for all'),
      (self.sweep != 'optuna' or self.count > 0, 'an optuna sweep with count=0', 'set count to 1 or more'),
      (self.batch > 0, f'batch={self.batch} is not an amount', 'use 1 or more arms a round'),
      (0 < len(set(seeds)) == len(seeds), f'seeds={self.seeds} are not different', 'give a number >= 1'),
      (min(self.tuning) >= 1, f'{self.tuning} is empty', 'use 1 or more of each'),
      (1 in (rungs, tune_rounds), f'{self.tuning} has rungs and rounds', 'use one of them'),
      (
        not self.tune or ranges or tune_rounds == 1,
        f'{self.tuning} without a range',
        'tune a log_uniform(low, high)',
      ),
      (not self.tune or self.sweep != 'optuna', 'tune= with an optuna sweep', 'make the key a factor'),
      (not empty, f'factor {", ".join(empty)} has no levels', 'list its values'),
      (not unknown, f'keeps_parameters names {unknown}', f'use factors: {", ".join(self.factors)}'),
    ):
      if not ok:
        raise ValueError(f'{cause}\nfix: {fix}')
    if self.outcomes and (self.sequential or 'size' in self.factors):
      raise ValueError(
        'outcomes with seeds=Sequential(...) or a factor size, which are judged by one metric\n'
        'fix: leave out outcomes, or use a number of seeds and no size'
      )
    if self.sequential:
      self._check_sequential()

  def _check_sequential(self):
    """ValueError unless arms can be judged, and left out, one by one."""
    first, most = self.seeds
    if not 2 <= first <= most:
      raise ValueError(f'seeds={self.seeds} are not looks\nfix: use 2 <= first <= most')
    crossed = isinstance(self.sweep, str) and SWEEPS[self.sweep].main_effects
    if crossed or self.sweep == 'optuna' or 'size' in self.factors:
      raise ValueError(
        'seeds=Sequential(...) leave out single arms, which this sweep needs in all seeds\n'
        "fix: use a number of seeds, or sweep='one_at_a_time'"
      )

  @property
  def seed_list(self):
    """The seeds as a list."""
    if self.sequential:
      return list(range(self.seeds.most))
    return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

  @property
  def sequential(self):
    """The Sequential of the seeds, or None."""
    return self.seeds if isinstance(self.seeds, Sequential) else None


def _is_outcome(row, directions):
  """Whether a value of `outcomes` is a direction and a tolerance."""
  is_pair = isinstance(row, tuple | list) and len(row) == 2
  return is_pair and row[0] in directions and isinstance(row[1], int | float) and row[1] >= 0


class Arm(NamedTuple):
  """One config of a study."""

  name: str  # base, or its differences from it: 'positions=learned,mlp=gelu'
  slug: str  # the name of its folder
  levels: dict  # {factor: level} of all factors
  config: config.Config
  is_baseline: bool
  keys: tuple  # config keys that its factors set by name
  functions: tuple  # factors that set the config by a function


def load_study(spec):
  """Load the Study of get_study('args') from 'x.py:args', named x; ValueError states the fix."""
  name, study = experiment_file.call_function(spec, 'get_study', 'experiments/ablations/norms.py')
  if not isinstance(study, Study):
    raise ValueError(
      f'--config={spec}: get_study returns a {type(study).__name__}\n'
      'fix: return a gpt_jax.ablation.design.Study'
    )
  return dataclasses.replace(study, name=study.name or name)


# ------------------------------------------------------------------------------------------- arms


class Factor(NamedTuple):
  """A factor with resolved config keys."""

  levels: dict  # {level name: {key: value} or function}
  base: str  # the baseline's level
  range: Range | None = None
  key: str = ''  # the config key of a range

  def change(self, level):
    """The {key: value} or function that sets a level."""
    return {self.key: float(level)} if self.range and level != BASE else self.levels.get(level, {})


def make_arms(study, folder=None, at_least=2):
  """Make the arms, the baseline first; names and order depend on the study alone.

  folder: for token caches and step times that a budget needs; default: a temporary one. at_least: fewer
  arms are an error. Raises ValueError naming the arm for an invalid config.
  """
  base = config.build(config.Config, experiment_file.load_config(study.base))
  base = apply_changes(base, [_full_keys(study.changes, base)], 'changes')
  factors = {name: resolve_factor(name, row, base) for name, row in study.factors.items()}
  baseline = {name: factor.base for name, factor in factors.items()}
  if isinstance(study.sweep, str) and SWEEPS[study.sweep].from_first_levels:
    baseline = {name: _first_of_two_levels(name, factor) for name, factor in factors.items()}
  cells = [{}, *_cells(study, factors, baseline)]
  by_name = {arm.name: arm for arm in (_make_arm(base, factors, baseline, baseline | cell) for cell in cells)}
  arms = []
  with tempfile.TemporaryDirectory() as temporary:
    meter = budget.CostMeter(folder or temporary)
    for arm in by_name.values():
      try:
        arms.append(arm._replace(config=budget.apply_budget(arm.config, study.budget, meter)))
      except ValueError as error:
        raise ValueError(f'arm {arm.name}: {error}') from error
  assert len({arm.slug for arm in arms}) == len(arms)
  if len(arms) < at_least:
    raise ValueError(
      "the study has no arm beside its baseline\nfix: give a factor a level that is not the base's, "
      'or another sweep'
    )
  return arms


def iterate_runs(study, arms=None):
  """Yield (arm, seed, Config) of all runs, seed after seed, so that arms can be compared early."""
  arms = make_arms(study) if arms is None else arms
  for seed in study.seed_list:
    for arm in arms:
      train = dataclasses.replace(arm.config.train, seed=seed)
      yield arm, seed, dataclasses.replace(arm.config, train=train)


def _cells(study, factors, baseline):
  """The sweep's cells with level names, without those that equal the baseline."""
  if isinstance(study.sweep, str):
    levels = {name: factor.range or list(factor.levels) for name, factor in factors.items()}
    cells = SWEEPS[study.sweep].cells(levels, baseline, study.count, study.sweep_seed)
  else:
    cells = list(study.sweep)
  cells = [{name: _check_level(name, factors, level) for name, level in cell.items()} for cell in cells]
  cells = [cell for cell in cells if baseline | cell != baseline]
  return subsample(cells, study.count, study.sweep_seed) if study.count else cells


def _make_arm(base, factors, baseline, levels):
  """The Arm of a cell that has all factors."""
  differing = [name for name in factors if levels[name] != baseline[name]]
  name = ','.join(f'{factor}={levels[factor]}' for factor in differing) or BASE
  changes = {f: [factors[f].change(row[f]) for row in (levels, baseline)] for f in differing}
  keys = {key for pair in changes.values() for change in pair if isinstance(change, dict) for key in change}
  functions = tuple(factor for factor, pair in changes.items() if any(map(callable, pair)))
  every = [factor.change(levels[name]) for name, factor in factors.items()]
  cfg = apply_changes(base, every, f'arm {name}')
  if cfg.train.seed != base.train.seed:
    raise ValueError(f'arm {name} sets train.seed, which a study sets itself\nfix: use seeds of the Study')
  return Arm(name, make_slug(name), levels, cfg, name == BASE, tuple(sorted(keys)), functions)


def make_slug(name):
  """A folder name: letters, digits and . = + - _ , with a hash if characters were replaced."""
  slug = re.sub(r'[^\w.=+,-]', '-', name)[:80]
  return slug if slug == name else f'{slug}-{hashlib.sha256(name.encode()).hexdigest()[:6]}'


# ---------------------------------------------------------------------------------------- factors


def resolve_factor(name, row, base):
  """Resolve a factor of the study to a Factor with full config keys and the baseline's level."""
  key = '' if isinstance(row, dict) else full_key(name, base)
  if isinstance(row, Range):
    if not isinstance(flatten(config.to_dict(base))[key], float):
      raise ValueError(f'factor {name} is a range, but {key} is not a float\nfix: list its values')
    return Factor({BASE: {}}, BASE, row, key)
  pairs = row.items() if isinstance(row, dict) else [(value, {key: value}) for value in row]
  levels = {
    level_name(level): change if callable(change) else _full_keys(change, base) for level, change in pairs
  }
  same = [level for level, change in levels.items() if _changes_nothing(base, change)]
  if len(levels) < len(row):
    raise ValueError(f'factor {name} has a level twice: {row}\nfix: list each value once')
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


def _first_of_two_levels(name, factor):
  if factor.range is None and len(factor.levels) != 2:
    raise ValueError(
      f'factor {name} lists {", ".join(factor.levels)}, and a leave_one_out sweep takes two levels\n'
      "fix: list the base's and the one to change it to, or use sweep='one_at_a_time'"
    )
  return next(iter(factor.levels))


def _changes_nothing(base, change):
  """Whether a change alone leaves the base equal; a change that is only valid with others does not."""
  try:
    return apply_changes(base, [change], '') == base
  except ValueError:
    return False


def _check_level(name, factors, level):
  """The name of a cell's level, given by name or by value; ValueError if the factor does not have it."""
  if name not in factors:
    raise ValueError(f'the sweep names factor {name!r}\nfix: use the factors {", ".join(factors)}')
  factor, level = factors[name], level_name(level)
  if factor.range is None and level not in factor.levels and level != factor.base:
    raise ValueError(
      f'the sweep names level {level} of factor {name}\nfix: use one of {", ".join(factor.levels)}'
    )
  return level


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


def full_key(name, base):
  """The one config key of this name or with this last part; ValueError if there is none or more than one.

  Keys that the base does not read, such as those of another job, count only where no other has the name.
  """
  keys = list(flatten(config.to_dict(base)))
  last_parts = [key.rpartition('.')[2] for key in keys]
  if name in keys or name == 'data.mixture':
    return name
  matches = [key for key, last in zip(keys, last_parts, strict=True) if last == name]
  if len(matches) > 1:
    matches = sorted({*matches} - ineffective.unread_keys(base)) or matches
  if len(matches) == 1:
    return matches[0]
  if matches:
    raise ValueError(f'{name} may be {", ".join(matches)}\nfix: write the whole key')
  near = difflib.get_close_matches(name, [*keys, *last_parts], 1)
  hint = f'did you mean {near[0]}?' if near else 'see config.json of a run for all keys'
  raise ValueError(
    f'{name} is not a config key\nfix: {hint} A factor of another name needs levels as a dict: '
    '{level: {key: value}}'
  )


def _full_keys(changes, base):
  """{key: value} with full config keys."""
  if not isinstance(changes, dict):
    raise ValueError(
      f'a level is {changes!r}\nfix: give {{key: value}} or a function that changes the config'
    )
  return {full_key(key, base): value for key, value in changes.items()}


def _call_change(change, section, where):
  """Call a user's function; its error is a ValueError that names the file and the line."""
  try:
    change(section)
  except Exception as error:
    function = getattr(change, 'func', change)  # of a functools.partial
    code = getattr(function, '__code__', None) or type(function).__call__.__code__
    cause = user_code.describe_error(error, code.co_filename)
    name = getattr(function, '__name__', type(function).__name__)
    raise ValueError(f'{where}: {cause}\nfix: correct {name}') from error


def apply_changes(base, changes, where):
  """The base Config after these changes ({key: value} or functions), in order."""
  section = experiment_file.complete_sources(config.section(base))
  with section.unlocked(), section.ignore_type():
    for change in changes:
      if callable(change):
        _call_change(change, section, where)
      else:
        for key, value in change.items():
          parents, _, last = key.rpartition('.')
          functools.reduce(operator.getitem, filter(None, parents.split('.')), section)[last] = value
  try:
    return config.build(config.Config, section)
  except ValueError as error:
    raise ValueError(f'{where}: {error}' if where else str(error)) from error
