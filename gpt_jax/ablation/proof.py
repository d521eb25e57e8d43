"""Proof, before anything runs, that arms differ, and in what: nothing is trained.

Of each arm: its config diff and parameter-tree diff against the baseline, and a fingerprint: a hash
of all that its result can depend on. That is the lowered text of the train step (no names, no
places in files) and of the initial values, the traced scalars, the shapes of model and optimizer
state, the data in their order, and the data that it is scored on. Equal fingerprints mean equal
results: an arm that has the baseline's, or another arm's, is refused.
"""

import dataclasses
import functools
import hashlib
import json
from typing import NamedTuple

import jax

from gpt_jax import config, step
from gpt_jax.ablation import budget as budgets
from gpt_jax.ablation.sweeps import Proposed
from gpt_jax.data.mixture import open_split, source_names
from gpt_jax.data.templates import ARROW
from gpt_jax.runs import hardware, records, run_folder
from gpt_jax.runs.text_table import format_table

GUESSED_SHARE = 0.35  # of the peak that a step reaches, for the estimate of time
SIZES = ('model.width', 'model.layers')  # factors that are meant to change the parameters
NOTABLE = 0.02  # relative difference in parameters that is flagged


class Proof(NamedTuple):
  """What is known of an arm before it runs."""

  diff: dict  # {key: (baseline's value, arm's)}
  shapes: dict  # {parameter path: shape}
  parameters: int
  flops_per_token: float  # training; 0 = not known for this kind of model
  steps: int
  tokens: int  # of a run, padding included
  seconds: float  # of a run's steps, a guess from FLOPs; 0 = not known
  program: str  # hash of the train step alone
  data: str  # hash of the data in their order
  losses: dict  # {what the validation loss is over: hash}; where equal, losses compare
  fingerprint: str  # hash of all that the result depends on


def prove(study, arms, folder):
  """-> {arm name: Proof}; ValueError for an arm that changes nothing.

  folder: where token caches and tokenizers are made, for the runs to share.
  """
  base = config.to_dict(arms[0].config)
  proofs, seen = {}, {}
  for arm in arms:
    try:
      proof = examine(arm.config, study, folder)
    except ValueError as error:
      raise ValueError(f'arm {arm.name}: {error}') from error
    proofs[arm.name] = proof._replace(diff=run_folder.changes(base, config.to_dict(arm.config)))
    twin = seen.setdefault(proof.fingerprint, arm)
    if twin is not arm:
      raise ValueError(twins(arm, twin))
  return proofs


def twins(arm, twin):
  """Why two arms are one."""
  pairs = run_folder.changes(config.to_dict(twin.config), config.to_dict(arm.config))
  keys = ', '.join(f'{key} {old} -> {new}' for key, (old, new) in pairs.items()) or 'equal configs'
  return (
    f'arm {arm.name} changes nothing: its initial values, train step and data are those of arm '
    f'{twin.name} ({keys})\n'
    f'fix: leave out one of the two, or also set what gives it an effect'
  )


def examine(cfg, study, folder):
  """A config -> Proof, its diff left empty."""
  with budgets.opened(cfg, folder) as (job, _):
    abstract = job.program.abstract
    traced = budgets.traced(job, cfg.train.steps_per_call)
    text = traced.lower().as_text()
    begin = functools.partial(step.init_state, abstract.model, job.program.optimizer, {})
    initial = jax.jit(begin, static_argnums=0).lower(cfg.train.seed).as_text()
    data = digest(job.loader.state()['fingerprint'])
  scored = scored_on(cfg)
  shapes = {path: tuple(p.shape) for path, p in step.params_of(abstract.model).items()}
  tree = [
    (jax.tree_util.keystr(path), x.shape, str(x.dtype))
    for path, x in jax.tree_util.tree_leaves_with_path(abstract)
  ]
  names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract)]
  hyper = {
    name: float(value)
    for name, value in step.hyper_of(cfg).items()
    if is_used(traced.jaxpr.jaxpr, names.index(f".hyper['{name}']"))
  }
  program = digest([text, tree])
  flops = job.flops.get('full', 0) if job.flops else 0
  tokens = cfg.train.steps * budgets.tokens_per_step(cfg)
  peak = hardware.peak_flops()[0] * jax.device_count() if flops else 0
  return Proof(
    diff={},
    shapes=shapes,
    parameters=job.parameters,
    flops_per_token=flops,
    steps=cfg.train.steps,
    tokens=tokens,
    seconds=study.budget.seconds or (flops * tokens / (GUESSED_SHARE * peak) if peak else 0.0),
    program=program,
    data=data,
    losses=losses_over(job, cfg, scored),
    fingerprint=digest([program, initial, hyper, data, scored, beside_step(cfg, study)]),
  )


def is_used(jaxpr, position):
  """Whether an input of a jaxpr plays a part in more than its own copy among the outputs.

  The step hands `hyper` on as it is: the balance of experts that a model does not have, too.
  """
  variable = jaxpr.invars[position]
  for eqn in jaxpr.eqns:
    for i, given in enumerate(eqn.invars):
      nested = eqn.params.get('jaxpr') if eqn.primitive.name in ('jit', 'pjit', 'scan') else None
      if given is variable and (nested is None or is_used(nested.jaxpr, i)):
        return True
  return False


def scored_on(cfg):
  """The validation data, without reading more of them than the job did."""
  if cfg.train.job != 'gpt':
    return list(source_names(cfg.data, 'valid'))
  parts = {name: open_split(cfg.data, name, 'valid') for name in source_names(cfg.data, 'valid')}
  return {name: part.describe() for name, part in parts.items()}


def losses_over(job, cfg, scored):
  """{name: what decides the tokens that a validation loss is over}; conditions carry no loss."""
  if cfg.train.job != 'gpt':
    return {'validation data': digest(scored)}
  return {
    'tokenizer': job.tokenizers.hash,
    'row length': budgets.row_length(cfg),
    'template': digest([part['template'].rpartition(ARROW)[2] for part in scored.values()]),
    'validation data': digest([part | {'template': ''} for part in scored.values()]),
  }


def beside_step(cfg, study):
  """What a result depends on besides the programs and the data."""
  sampled = () if study.metric.startswith(('loss', 'valid')) else (cfg.sample, cfg.train.tasks)
  return [cfg.train.steps, cfg.train.init_from, repr(sampled)]


def digest(value):
  """A short hash of JSON-able values."""
  text = json.dumps(records.to_json(value), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------ description


def parameter_diff(old, new):
  """Two {path: shape} -> {added: [paths], removed: [paths], reshaped: {path: [old, new]}}."""
  both = [path for path in new if path in old]
  return {
    'added': [path for path in new if path not in old],
    'removed': [path for path in old if path not in new],
    'reshaped': {path: [old[path], new[path]] for path in both if old[path] != new[path]},
  }


def budget_keys(study):
  """Keys that a budget sets, and not a factor."""
  given = {name for name, value in dataclasses.asdict(study.budget).items() if value}
  keys = {'model.width'} if 'parameters' in given else set()
  return keys | ({'train.steps'} if given & set(budgets.LENGTHS) else set())


def flags(study, arm, proof, baseline, base):
  """What a reader should know of an arm before believing its verdict: lines of text."""
  found = []
  if arm.functions:
    moved = sorted(set(proof.diff) - set(arm.keys) - budget_keys(study))
    found.append(f'a function sets {", ".join(arm.functions)}; it changes {", ".join(moved)}')
  kept = [name for name in study.keeps_parameters if arm.levels[name] != baseline.levels[name]]
  if kept and any(parameter_diff(base.shapes, proof.shapes).values()):
    found.append(f'{", ".join(kept)} changes parameters, and should not')
  ratio = proof.parameters / base.parameters - 1
  if abs(ratio) > NOTABLE and not set(arm.keys) & set(SIZES):
    found.append(f'{ratio:+.1%} parameters; Budget(parameters=...) would make them equal')
  if study.budget.parameters and abs(proof.parameters / study.budget.parameters - 1) > NOTABLE:
    found.append(f'{proof.parameters:,} parameters are the nearest to the budget')
  if proof.data != base.data:
    found.append("its data are not the baseline's: a seed may pair no more than initial values")
  return found + incomparable(study, proof, base)


def incomparable(study, proof, base):
  """Flags of an arm whose validation loss is over other tokens than the baseline's."""
  differs = [name for name, value in base.losses.items() if proof.losses[name] != value]
  if 'validation data' in differs:
    return [f'it is scored on other validation data: {study.metric} does not compare']
  if differs and study.metric.startswith('valid_loss'):
    why = ', '.join(differs)
    return [f'its {study.metric} is over other tokens ({why}): use valid_bits_per_byte']
  return []


def describe(study, arms, proofs):
  """The content of study.json."""
  base = proofs[arms[0].name]
  versions = run_folder.versions(hardware.name())
  levels = {name: [] for name in study.factors}
  for arm in arms:
    for name, level in arm.levels.items():
      if level not in levels[name]:
        levels[name].append(level)
  return {
    'question': study.question,
    'name': study.name,
    'base': study.base,
    'command': versions['command'],
    'metric': study.metric,
    'better': study.better,
    'tolerance': study.tolerance,
    'budget': dataclasses.asdict(study.budget),
    'seeds': study.seed_list,
    'plan': plan_name(study.plan),
    'changes': study.changes,
    'factors': levels,
    'arms': [described(study, arm, proofs[arm.name], arms[0], base) for arm in arms],
    'versions': versions,
  }


def plan_name(plan):
  """The name of a plan, custom for a study's own list of cells."""
  return plan if isinstance(plan, str) else 'optuna' if isinstance(plan, Proposed) else 'custom'


def described(study, arm, proof, baseline, base):
  """An arm's entry of study.json."""
  return {
    'name': arm.name,
    'slug': arm.slug,
    'levels': arm.levels,
    'is_baseline': arm.is_baseline,
    'diff': {key: list(pair) for key, pair in proof.diff.items()},
    'parameters': proof.parameters,
    'parameter_diff': parameter_diff(base.shapes, proof.shapes),
    'flops_per_token': proof.flops_per_token,
    'flops': proof.flops_per_token * proof.tokens,
    'steps': proof.steps,
    'tokens': proof.tokens,
    'seconds_estimate': proof.seconds,
    'program': proof.program,
    'fingerprint': proof.fingerprint,
    'shares_program_with_base': proof.program == base.program,
    'flags': flags(study, arm, proof, baseline, base),
  }


def table(study):
  """What --dry_run prints of a study.json dict: lines."""
  seeds, arms = study['seeds'], study['arms']
  budget = ', '.join(f'{name} {value:g}' for name, value in study['budget'].items() if value)
  lines = [
    *([study['question']] if study['question'] else []),
    f'{study["name"]}: {len(arms)} arms x {len(seeds)} seeds of {study["base"]}, plan '
    f'{study["plan"]}, budget {budget or "train.steps"}, metric {study["metric"]} '
    f'({study["better"]} is better, {study["tolerance"]:g} does not matter)',
    '',
  ]
  heads = ('arm', 'parameters', 'steps', 'tokens', 'TFLOP', 'minutes', 'program')
  rows = [
    (
      arm['name'],
      f'{arm["parameters"]:,}',
      f'{arm["steps"]:,}',
      f'{arm["tokens"]:,}',
      f'{arm["flops"] / 1e12:.2f}',
      f'~{arm["seconds_estimate"] / 60:.1f}',
      arm['program'][:6],
    )
    for arm in arms
  ]
  lines += [*format_table(rows, heads), '']
  for arm in arms[1:]:
    pairs = ', '.join(f'{key} {_json(old)} -> {_json(new)}' for key, (old, new) in arm['diff'].items())
    lines.append(f'{arm["name"]}: {pairs}')
    lines += [f'  {line}' for line in parameter_lines(arm['parameter_diff'])]
    lines += [f'  ! {line}' for line in arm['flags']]
  flops = len(seeds) * sum(arm['flops'] for arm in arms) / 1e12
  minutes = len(seeds) * sum(arm['seconds_estimate'] for arm in arms) / 60
  lines.append(
    f'in all {len(arms) * len(seeds)} runs, {flops:.1f} TFLOP, about {minutes:.0f} minutes '
    'of steps one after another'
  )
  return lines


def parameter_lines(diff):
  """A parameter_diff in words."""
  few = lambda paths: ', '.join(paths[:4]) + (f' and {len(paths) - 4} more' if len(paths) > 4 else '')
  lines = [f'{kind} {few(diff[kind])}' for kind in ('added', 'removed') if diff[kind]]
  reshaped = [
    f'{path} {"x".join(map(str, old))} -> {"x".join(map(str, new))}'
    for path, (old, new) in diff['reshaped'].items()
  ]
  return lines + ([f'reshaped {few(reshaped)}'] if reshaped else [])


def _json(value):
  return json.dumps(records.to_json(value))
