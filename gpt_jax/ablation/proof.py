"""Proof, before anything runs, that arms differ, and in what: nothing is trained.

For each arm: its config diff and parameter-tree diff against the baseline, and a fingerprint: a hash of all
inputs of its result. These are the lowered text of the train step and of the initial values, the traced
scalars, the shapes of model and optimizer state, the training data in their order, the validation data, and
the code that evaluates. Equal fingerprints mean equal results: an arm with the fingerprint of another is an
error.
"""

import dataclasses
import difflib
import functools
import json
from typing import NamedTuple

import jax

from gpt_jax import config, step, train
from gpt_jax.ablation import budget, source_digest
from gpt_jax.ablation.stats import comparability, size_laws
from gpt_jax.ablation.sweeps import Proposed
from gpt_jax.data.mixture import open_split, source_names
from gpt_jax.data.templates import ARROW
from gpt_jax.evaluation import evaluate
from gpt_jax.evaluation.subject import Subject
from gpt_jax.evaluation.tasks import perplexity
from gpt_jax.jobs.base import trains_gpt
from gpt_jax.runs import hardware, loggers, plugins, provenance, records
from gpt_jax.runs.text_table import format_table, join_some
from gpt_jax.training import start

ASSUMED_MFU = 0.35  # for the estimate of a step's time
SIZE_KEYS = ('model.width', 'model.layers')  # factors that are meant to change the parameters
# Fields of a Proof in study.json.
STORED = ('parameters', 'flops_per_token', 'steps', 'tokens', 'program', 'scored_on', 'inputs', 'fingerprint')
TAILS = (  # of every job, of which the mean over the last tenth of a run is a result, tail/NAME
  *('objective', 'grad_norm', 'lr', 'skipped', 'memory_gib', 'mfu', 'mfu_causal', 'step_seconds'),
)
PARTS = ('loss', 'gradient_share')  # of a modality or source, as tail/loss/source/NAME


class Proof(NamedTuple):
  """What is known of an arm before it runs."""

  diff: dict  # {key: (baseline's value, arm's)}
  shapes: dict  # {parameter path: shape}
  parameters: int
  flops_per_token: float  # training; 0 = unknown for this kind of model
  steps: int
  tokens: int  # of a run, padding included
  seconds: float  # of a run's steps, estimated from FLOPs; 0 = unknown
  program: str  # hash of the train step alone
  data: str  # hash of the data in their order
  scored_on: dict  # what its scores are over, for `comparability`: see validation_inputs
  inputs: dict  # {what the result depends on: value or hash}
  fingerprint: str  # hash of the inputs


def prove_arms(study, arms, folder):
  """-> {arm name: Proof}; ValueError for an arm that changes nothing.

  folder: for token caches and tokenizers, which the runs share.
  """
  base = config.to_dict(arms[0].config)
  proofs, by_fingerprint = {}, {}
  for arm in arms:
    try:
      proof = compute_proof(arm.config, study, folder)
    except ValueError as error:
      raise ValueError(f'arm {arm.name}: {error}') from error
    proofs[arm.name] = proof._replace(diff=records.diff(base, config.to_dict(arm.config)))
    twin = by_fingerprint.setdefault(proof.fingerprint, arm)
    if twin is not arm:
      pairs = records.diff(config.to_dict(twin.config), config.to_dict(arm.config))
      keys = ', '.join(f'{key} {old} -> {new}' for key, (old, new) in pairs.items()) or 'equal configs'
      raise ValueError(
        f'arm {arm.name} changes nothing: its initial values, train step and data are those of arm '
        f'{twin.name} ({keys})\nfix: leave out one of the two, or also set what gives it an effect'
      )
  return proofs


def compute_proof(cfg, study, folder):
  """The Proof of a config, without its diff."""
  with budget.open_job(cfg, folder) as (job, _):
    abstract = job.program.abstract
    traced = budget.trace_step(job, cfg.train.steps_per_call)
    text = traced.lower().as_text()
    init = functools.partial(step.init_state, abstract.model, job.program.optimizer, {})
    initial = jax.jit(init, static_argnums=0).lower(cfg.train.seed).as_text()
    batches = job.loader.state()['fingerprint']
    data = budget.hash_json({key: x for key, x in batches.items() if key != 'teacher'})  # it is a parent
    parents = start.parent_digests(job, cfg)
  sources, scored_on = validation_inputs(job, cfg)
  leaves = [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(abstract)]
  positions = {path: i for i, (path, _) in enumerate(leaves)}
  jaxpr = traced.jaxpr.jaxpr
  hyper = {
    name: float(value)
    for name, value in step.hyper_of(cfg).items()
    if _is_used(jaxpr, positions[f".hyper['{name}']"])
  }
  program = budget.hash_json([text, [(path, x.shape, str(x.dtype)) for path, x in leaves]])
  flops = job.flops.get('full', 0) if job.flops else 0
  tokens = cfg.train.steps * budget.tokens_per_step(cfg)
  peak = hardware.peak_flops()[0] * jax.device_count() if flops else 0
  inputs = {
    'train step': program,
    'initial values': budget.hash_json(initial),
    'hyperparameters': hyper,
    'training data': data,
    'validation data': budget.hash_json(sources),
    'evaluation code': source_digest.scoring_code(),
    'train.steps': cfg.train.steps,
    'parents': parents,
    'evaluation settings': ' '.join(
      dict.fromkeys(filter(None, (evaluation_settings(cfg, m) for m in (study.metric, *study.outcomes))))
    ),
  }
  if used := plugins.used_digests(config.to_dict(cfg)):
    inputs['plugins'] = used
  return Proof(
    diff={},
    shapes={path: tuple(p.shape) for path, p in step.params_of(abstract.model).items()},
    parameters=job.parameters,
    flops_per_token=flops,
    steps=cfg.train.steps,
    tokens=tokens,
    seconds=study.budget.seconds or (flops * tokens / (ASSUMED_MFU * peak) if peak else 0.0),
    program=program,
    data=data,
    scored_on=scored_on,
    inputs=inputs,
    fingerprint=budget.hash_json(inputs),
  )


def _is_used(jaxpr, position):
  """Whether an input of a jaxpr is used by an equation, and not just copied to the outputs.

  The step returns `hyper` unchanged, including the expert balance of a model without experts.
  """
  variable = jaxpr.invars[position]
  for eqn in jaxpr.eqns:
    for i, operand in enumerate(eqn.invars):
      nested = eqn.params.get('jaxpr') if eqn.primitive.name in ('jit', 'pjit', 'scan') else None
      if operand is variable and (nested is None or _is_used(nested.jaxpr, i)):
        return True
  return False


def evaluation_settings(cfg, metric):
  """The settings that a metric depends on, as text, beside those of the model and the data."""
  if metric.startswith('tail/valid'):  # over a part of the validation data
    return f'eval_every={cfg.train.eval_every} eval_tokens={cfg.train.eval_tokens}'
  return '' if metric.startswith(('loss', 'valid')) or not metric else repr((cfg.sample, cfg.train.tasks))


def validation_inputs(job, cfg):
  """Describe the validation data, without reading more of them than the job did.

  Returns (description of the sources, {sources: {name: {template, data: hashes}}, tokenizer: hash, row
  length, loss mask, part (of the data, during training), bytes: whether runs give bits per byte}). Of a
  template only the target counts, as prompts carry no loss.
  """
  names = [name for name in source_names(cfg.data, 'valid') if not cfg.data.mixture[name].is_benchmark]
  part = [cfg.train.eval_tokens, cfg.train.eval_every]
  if not trains_gpt(cfg.train.job):
    sources = {name: {'data': budget.hash_json(list(names))} for name in names}
    return list(names), {'sources': sources, 'part': part, 'bytes': False}
  sources = {name: open_split(cfg.data, name, 'valid').describe() for name in names}
  if digest := job.validation_digest():
    sources = {name: source | {'digest': digest} for name, source in sources.items()}
  hashes = {
    name: {
      'template': budget.hash_json(source['template'].rpartition(ARROW)[2]),
      'data': budget.hash_json(source | {'template': ''}),
    }
    for name, source in sources.items()
  }
  subject = Subject(cfg, None, job.tokenizers, None, None, 0, caches=job.caches)
  # Without token caches a job scores something else than the text.
  has_bytes = all(
    (name, 'valid') in job.caches and perplexity.counts_bytes(subject, name, 'valid') for name in names
  )
  return sources, {
    'sources': hashes,
    'tokenizer': job.tokenizers.hash,
    'row length': budget.row_length(cfg),
    'loss mask': [cfg.loss.restrict, subject.masks_documents],
    'part': part,
    'bytes': bool(names) and has_bytes,
    'unit': job.loss_unit,
    **job.loss_settings(),
  }


def check_metric(metric, cfg, scored_on):
  """ValueError, before anything runs, for a metric that no run of this config gives."""
  if not metric:
    return
  first, *rest = metric.split('/')
  job, tasks, sources = train.JOBS[cfg.train.job], cfg.train.tasks, scored_on['sources']
  possible = (*job.scored_tasks, *(evaluate.TASKS if trains_gpt(cfg.train.job) else ()))
  if first in possible and not {first, 'all'} & {*job.scored_tasks, *tasks}:
    raise ValueError(
      f'metric={metric!r} is of the task {first}, and train.tasks={tasks} does not run it\n'
      f"fix: changes={{'train.tasks': {(*tasks, first)}}} in the Study"
    )
  if metric.removeprefix('tail/') in job.scores and not sources:
    raise ValueError(
      f'metric={metric!r} needs validation data, and no source of data.mixture has any\n'
      'fix: set data.valid_fraction, or valid_path of a source'
    )
  if metric == 'valid_bits_per_byte' and metric in job.scores and not scored_on['bytes']:
    raise ValueError(
      f'metric={metric!r} needs validation data of plain text in one stream\n'
      "fix: use valid_loss, or a task's score"
    )
  if rest and first in possible:
    places = (*cfg.data.mixture, 'all' if trains_gpt(cfg.train.job) else job.modality)
    if rest[1:] and rest[0] not in places:
      raise ValueError(
        f'metric={metric!r} is of {rest[0]!r}, which is not a source of data.mixture\n'
        f'fix: use one of {", ".join(places)}'
      )
    return
  names, others = result_names(cfg, sources)
  is_part = cfg.train.job == 'gpt' and first == 'tail' and len(rest) > 1 and rest[0] in PARTS
  if metric not in (*names, *others) and not is_part:
    near = difflib.get_close_matches(metric, [*names, *others, *possible], 1)
    hint = f'did you mean {near[0]}?' if near else f'use one of {", ".join(names)}, or TASK/SOURCE/METRIC'
    raise ValueError(f'metric={metric!r} is in no result of this study\nfix: {hint}')


def result_names(cfg, sources):
  """(Scores and speeds of result.json, its other numbers) that runs of a config give; sources: validated."""
  job, is_gpt = train.JOBS[cfg.train.job], trains_gpt(cfg.train.job)
  means_sources = 'valid_bits_per_byte' in job.scores
  valid = [*job.scores, *(f'valid_loss/{name}' for name in sources if means_sources)]
  speed = f'{job.unit}_per_second'
  tails = [f'tail/{name}' for name in ('loss', *TAILS, *valid, speed, *job.logged)]
  counts = ('steps', 'replicas', job.unit, *(('targets', 'flops') if is_gpt else ()))
  return ['loss', *valid, speed, 'seconds', 'goodput', 'parameters'], [*tails, *counts]


# ------------------------------------------------------------------------------------- study.json


def describe_study(study, arms, proofs):
  """The content of study.json."""
  versions = provenance.versions(hardware.name())
  metric = study.metric or comparability.default_metric([proof.scored_on for proof in proofs.values()])
  for name in (metric, *study.outcomes):
    check_metric(name, arms[0].config, proofs[arms[0].name].scored_on)
  chosen = not study.metric and metric != 'valid_loss'
  keys = ('question', 'name', 'base', 'better', 'tolerance', 'unequal_tokens', 'changes')
  description = {key: getattr(study, key) for key in keys} | {
    'metric': metric,
    'outcomes': [
      {'metric': name, 'better': better, 'tolerance': float(tolerance)}
      for name, (better, tolerance) in study.outcomes.items()
    ],
    'metric_reason': f'judged by {metric}, as tokenizers differ and losses per token do not compare' * chosen,
    'command': versions['command'],
    'budget': dataclasses.asdict(study.budget),
    'seeds': study.seed_list,
    'sequential': study.sequential._asdict() if study.sequential else None,
    'sweep': sweep_name(study.sweep),
    'factors': {name: list(dict.fromkeys(arm.levels[name] for arm in arms)) for name in study.factors},
    'arms': [_describe_arm(arm, proofs[arm.name], proofs[arms[0].name]) for arm in arms],
    'tune': {key: list(row) for key, row in study.tune.items()},
    'tuning': study.tuning._asdict() if study.tune else {},
    'versions': versions,
    'base config': budget.hash_json(config.to_dict(arms[0].config)),
    'evaluation code': source_digest.scoring_code(),
    'analysis code': source_digest.analysis_code(),
  }
  for arm, described in zip(arms, description['arms'], strict=True):
    described['flags'] = _flags(study, description, arm, described)
  return description


def sweep_name(sweep):
  """The name of a sweep, custom for a study's own list of cells."""
  return sweep if isinstance(sweep, str) else 'optuna' if isinstance(sweep, Proposed) else 'custom'


def _describe_arm(arm, proof, base):
  """An arm's entry of study.json."""
  stored = {key: getattr(arm, key) for key in ('name', 'slug', 'levels', 'is_baseline')}
  stored |= {key: getattr(proof, key) for key in STORED}
  return stored | {
    'diff': {key: list(pair) for key, pair in proof.diff.items()},
    'parameter_diff': parameter_diff(base.shapes, proof.shapes),
    'flops': proof.flops_per_token * proof.tokens,
    'seconds_estimate': proof.seconds,
    'shares_program_with_base': proof.program == base.program,
    'shares_data_with_base': proof.data == base.data,
  }


def parameter_diff(old, new):
  """Two {path: shape} -> {added: [paths], removed: [paths], reshaped: {path: [old, new]}}."""
  return {
    'added': [path for path in new if path not in old],
    'removed': [path for path in old if path not in new],
    'reshaped': {path: [old[path], new[path]] for path in new if old.get(path, new[path]) != new[path]},
  }


def _flags(study, description, arm, described):
  """Warnings that a reader needs before believing an arm's verdict: lines of text.

  described: the arm's entry of the description of the study.
  """
  lines, limits, base = [], study.budget, description['arms'][0]
  if arm.functions:
    by_budget = {'model.width'} if limits.parameters else set()
    by_budget |= {'train.steps'} if any(getattr(limits, name) for name in budget.LENGTHS) else set()
    changed = sorted(set(described['diff']) - set(arm.keys) - by_budget)
    lines.append(f'a function sets {", ".join(arm.functions)}; it changes {", ".join(changed)}')
  keeping = [name for name in study.keeps_parameters if arm.levels[name] != base['levels'][name]]
  if keeping and any(described['parameter_diff'].values()):
    lines.append(f'{", ".join(keeping)} changes parameters, and should not')
  ratio = described['parameters'] / base['parameters'] - 1
  if abs(ratio) > comparability.NOTABLE and not set(arm.keys) & set(SIZE_KEYS):
    lines.append(f'{ratio:+.1%} parameters; Budget(parameters=...) would make them equal')
  if limits.parameters and abs(described['parameters'] / limits.parameters - 1) > comparability.NOTABLE:
    lines.append(f'{described["parameters"]:,} parameters are the nearest to the budget')
  if not described['shares_data_with_base']:
    lines.append("its data are not the baseline's: a seed may pair no more than initial values")
  sizes = [size_laws.size_of(each) for each in (described, base)]
  if 'size' in study.factors and sizes[0] != sizes[1]:  # compared with the baseline of its own size
    return lines
  lines += [f'not comparable: {text}' for text in comparability.reasons(description, described, base)]
  if study.unequal_tokens and abs(described['tokens'] / base['tokens'] - 1) > comparability.NOTABLE:
    lines.append(f'{described["tokens"] / base["tokens"]:.3g} times the tokens, as unequal_tokens declares')
  return lines


# --------------------------------------------------------------------------------------- dry run


def format_study(study):
  """The lines that --dry_run prints, from the content of study.json."""
  seeds, arms = study['seeds'], study['arms']
  first = f'{study["sequential"]["first"]} to ' if study['sequential'] else ''
  limits = ', '.join(f'{name} {value:g}' for name, value in study['budget'].items() if value)
  columns = {
    'arm': lambda arm: arm['name'],
    'parameters': lambda arm: f'{arm["parameters"]:,}',
    'steps': lambda arm: f'{arm["steps"]:,}',
    'tokens': lambda arm: f'{arm["tokens"]:,}',
    'TFLOP': lambda arm: f'{arm["flops"] / 1e12:.2f}',
    'time': lambda arm: f'~{loggers.duration(arm["seconds_estimate"])}',
    'program': lambda arm: arm['program'][:6],
  }
  lines = [study['question']] if study['question'] else []
  lines += [
    f'{study["name"]}: {len(arms)} arms x {first}{len(seeds)} seeds of {study["base"]}, sweep '
    f'{study["sweep"]}, budget {limits or "train.steps"}, metric {study["metric"]} '
    f'({study["better"]} is better, {study["tolerance"]:g} does not matter)',
    '',
    *format_table([[cell(arm) for cell in columns.values()] for arm in arms], list(columns)),
    '',
    *filter(None, [study['metric_reason']]),
  ]
  quote = lambda value: json.dumps(records.to_json(value))
  for arm in arms[1:]:
    pairs = ', '.join(f'{key} {quote(old)} -> {quote(new)}' for key, (old, new) in arm['diff'].items())
    lines.append(f'{arm["name"]}: {pairs}')
    lines += [f'  {line}' for line in _parameter_lines(arm['parameter_diff'])]
    lines += [f'  ! {line}' for line in arm['flags']]
  flops = len(seeds) * sum(arm['flops'] for arm in arms) / 1e12
  seconds = len(seeds) * sum(arm['seconds_estimate'] for arm in arms)
  runs = f'{"at most " * bool(first)}{len(arms) * len(seeds)} runs'
  total = f'in all {runs}, {flops:.1f} TFLOP, about {loggers.duration(seconds)}'
  assumed = '' if study['budget']['seconds'] else f' at {ASSUMED_MFU:.0%} of peak; small models take longer'
  return [*lines, f'{total} of steps one after another{assumed}']


def _parameter_lines(diff):
  """A parameter_diff as lines."""
  shape = lambda sizes: 'x'.join(map(str, sizes))
  reshaped = [f'{path} {shape(old)} -> {shape(new)}' for path, (old, new) in diff['reshaped'].items()]
  kinds = diff | {'reshaped': reshaped}
  return [f'{kind} {join_some(paths, 4)}' for kind, paths in kinds.items() if paths]
