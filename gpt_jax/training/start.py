"""What a run begins with: its own checkpoint, another run's to branch off from, or new weights.

A branch (train.branch_from) continues weights, optimizer state, PRNG key, spike window, counts and data of
another run in a new folder, under a config that may differ. Nothing is written here.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.optim import SCHEDULES
from gpt_jax.runs import ancestry, records, run_folder
from gpt_jax.runs.text_table import join_some
from gpt_jax.step import hyper_of
from gpt_jax.training import checkpoint, loss_guard

# Keys that may differ between a run and its resumption: its result does not depend on them.
FREE_ON_RESUME = (
  *('mesh.', 'log.', 'checkpoint.', 'sample.', 'model.unroll'),
  *('train.tasks', 'train.tasks_every', 'train.tasks_limit'),
  *('train.probe_every', 'train.hang_seconds', 'train.sdc_every', 'train.profile'),
  *('data.workers', 'data.prefetch', 'data.cache', 'data.reset', 'data.stages'),
)


class Start(NamedTuple):
  """The state of a run at its first step in this process."""

  state: Any  # step.TrainState
  step: int  # updates done
  extra: dict | None  # JSON of the checkpoint that it comes from, None for new weights
  notes: list  # lines to print
  parents: list | None  # entries of ancestry; None for a run that resumes


# ------------------------------------------------------------------------------ checks of a folder


def check_workdir(cfg, workdir):
  """Return the folder as a Path; ValueError if no run with this config can start or resume in it."""
  every, n = cfg.checkpoint.every, cfg.train.steps_per_call
  if every % n:
    raise ValueError(
      f'checkpoint.every={every} is not a multiple of train.steps_per_call={n}\nfix: use a multiple of {n}'
    )
  if jax.process_index() == 0:
    run_folder.check_workdir(workdir, dataclasses.asdict(cfg), free=free_on_resume(cfg, workdir))
  return Path(workdir).expanduser()  # not before: a Path makes gs://x the local gs:/x


def free_on_resume(cfg, workdir):
  """Return the keys that may differ from the stored config.

  With data.reset, the data too; train.steps where the learning rates so far do not depend on it; and keys
  that a version before this one did not have, at their defaults. Raises ValueError if train.steps is all that
  may not differ.
  """
  free = (*FREE_ON_RESUME, 'data.') if cfg.data.reset else FREE_ON_RESUME
  folder = Path(workdir).expanduser()
  stored = run_folder.read_config(folder) if (folder / 'config.json').exists() else {}
  free = (*free, *later_keys(cfg, stored), *(f'data.mixture.{name}.license' for name in cfg.data.mixture))
  before = stored.get('train', {}).get('steps', cfg.train.steps)
  if before == cfg.train.steps:
    return free
  if cfg.privacy.epsilon:
    raise ValueError(
      f'workdir={folder}: train.steps={cfg.train.steps} of a private run with the noise of {before} steps\n'
      f'fix: set train.steps={before}, or train in a new --workdir: its epsilon adds to that of this run'
    )
  done = max(checkpoint.Checkpoints(folder / 'checkpoints').steps(), default=0)
  if has_equal_past(cfg, before, done):
    return (*free, 'train.steps')
  changed = records.diff(stored, dataclasses.asdict(cfg))
  if all(key == 'train.steps' or is_free(key, free) for key in changed):
    cause = (
      f'is less than the {done} steps that are done'
      if done > cfg.train.steps
      else f'changes the learning rates of the {done} steps that are done with {before} '
      f'(optim.schedule={cfg.optim.schedule})'
    )
    raise ValueError(
      f'workdir={folder}: train.steps={cfg.train.steps} {cause}\n'
      f'fix: give a new --workdir with train.branch_from={folder}@STEP, a checkpoint to continue from'
    )
  return free


def later_keys(cfg, stored):
  """Return the dotted keys that a stored config lacks and that have their defaults in `cfg`."""
  defaults, known = dataclasses.asdict(type(cfg)()), records.flatten(stored)
  sources = {name: dataclasses.asdict(type(source)()) for name, source in cfg.data.mixture.items()}
  defaults['data']['mixture'] = sources
  same = records.flatten(defaults).items() & records.flatten(dataclasses.asdict(cfg)).items()
  return tuple(sorted(key for key, _ in same if key not in known)) if stored else ()


def is_free(key, free):
  """Whether a key, or a prefix of it, is among these."""
  return any(f'{key}.'.startswith(f'{prefix.rstrip(".")}.') for prefix in free)


def has_equal_past(cfg, steps, done):
  """Whether runs of `steps` and of train.steps have the same learning rates in their first `done` steps."""
  if steps == cfg.train.steps:
    return True
  updates, schedule = jnp.arange(done, dtype=jnp.int32), SCHEDULES[cfg.optim.schedule]
  past, other_past = (np.asarray(schedule(cfg.optim, updates, n)) for n in (steps, cfg.train.steps))
  return done <= cfg.train.steps and np.array_equal(past, other_past)


# ----------------------------------------------------------------------------- the state of a run


def begin(job, cfg, workdir):
  """Return the Start of a run: resumed, branched off, or new, also with the weights of train.init_from."""
  notes, verify = [], cfg.checkpoint.verify
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', report=notes.append, verify=verify)
  checkpoints.check_folders()
  step = checkpoints.latest_good()
  if step is not None:
    extra = checkpoints.read_extra(step)
    if 'imported' in extra:
      raise ValueError(
        f'{workdir} holds an imported model, which has no optimizer state to resume\n'
        f'fix: train in a new --workdir with train.init_from={workdir}, as experiments/finetune.py does'
      )
    free, before = FREE_ON_RESUME, extra.get('config', {}).get('train', {}).get('steps', cfg.train.steps)
    free = (*free, *later_keys(cfg, extra.get('config', {})))
    if has_equal_past(cfg, before, step):  # it was shorter then
      free = (*free, 'train.steps')
    checkpoints.check_origin(step, extra, dataclasses.asdict(cfg), free)
    notes += [f'data.reset: {line}' for line in job.loader.restore(extra['data'], step)]
    like = job.load_frozen(job.program.abstract, extra)
    return Start(checkpoints.restore(step, like), step, extra, notes, None)
  if cfg.train.branch_from and cfg.train.init_from:
    raise ValueError(
      f'train.branch_from={cfg.train.branch_from} and train.init_from={cfg.train.init_from} both give '
      'the weights\nfix: leave out one of the two'
    )
  begun = begun_with(workdir)
  names = parent_names(job, cfg)
  parents = {key: open_parent(key, begun.get(key, name), verify, notes.append) for key, name in names}
  entries = [ancestry.describe_run(key, *parent) for key, parent in parents.items()]
  if parent := parents.get('train.branch_from'):
    state, extra = branch(job, cfg, *parent, notes)
    return Start(state, parent[1], extra, notes, entries)
  state = job.program.init()
  if parent := parents.get('train.init_from'):
    state = job.load_initial_weights(state, *parent[:2])
  else:
    state = job.load_encoders(state)
  return Start(state, 0, None, notes, entries)


def begun_with(workdir):
  """Return {config key: RUN@STEP} of the parents of a run that was stopped before its first checkpoint.

  Its records begin at that step, and a parent may have newer ones since.
  """
  entries = ancestry.read_parents(workdir) if (workdir / 'config.json').exists() else []
  return {entry['how']: f'{entry["path"]}@{entry["step"]}' for entry in entries if 'step' in entry}


def parent_names(job, cfg):
  """Return [(config key, RUN or RUN@STEP)] of the runs that a run begins with or learns from."""
  names = {key: getattr(cfg.train, key.partition('.')[2]) for key in ancestry.LINKS} | job.parents()
  return [(key, name) for key, name in names.items() if name]


def parent_digests(job, cfg):
  """Return {config key: digest of the checkpoint} of the runs that a run begins with or learns from."""
  parents = {key: open_parent(key, name, 'size') for key, name in parent_names(job, cfg)}
  entries = [ancestry.describe_run(key, *parent) for key, parent in parents.items()]
  return {entry['how']: entry['digest'] for entry in entries}


def open_parent(key, name, verify='full', report=print):
  """Return (folder, step, extra) of RUN or RUN@STEP; by default its latest good step. key: for errors."""
  folder, step = ancestry.parse_run(name)
  run_folder.read_config(folder, key)  # else an error that lists the runs nearby
  checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', report=report, verify=verify)
  good = checkpoints.latest_good() if step is None else checkpoints.latest_good(step)
  if good is None or step not in (None, good):
    steps = join_some(map(str, sorted(checkpoints.steps())), 20) or 'none'
    raise ValueError(
      f'{key}={name}: {folder} has no good checkpoint{"" if step is None else f" of step {step}"}\n'
      f'fix: use one of its steps: {steps}; checkpoint.keep_every keeps more'
    )
  return folder, good, checkpoints.read_extra(good)


def branch(job, cfg, folder, step, extra, notes):
  """Return (state, extra) of a run that continues another's checkpoint under its own config.

  notes: gets lines about what the two runs do not share.
  """
  name = f'train.branch_from={folder}@{step}'
  check_branch(cfg, name, folder, step, extra)
  abstract = job.load_frozen(job.program.abstract, extra)
  checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', verify=cfg.checkpoint.verify)
  window, guard = checkpoints.array_metadata(step).get('recent_SW'), abstract.recent_SW
  keeps_window = None not in (window, guard) and window.shape == guard.shape
  like = abstract._replace(hyper={}, recent_SW=guard if keeps_window else None)
  fix = f'keep the model and the optimizer of that run, or take its weights alone: train.init_from={folder}'
  leave = ('hyper/', 'recent_SW')
  state = checkpoints.restore_part(step, like, leave, name, fix, cfg)
  hyper, key, empty_window = new_parts(cfg, abstract)
  state = state._replace(hyper=hyper)
  if guard is not None and not keeps_window:
    state = state._replace(recent_SW=empty_window)
    notes.append(f'{name}: the spike guard starts with an empty window')
  old_seed = extra['config'].get('train', {}).get('seed')
  if old_seed != cfg.train.seed:
    state = state._replace(key=key)
    notes.append(f'{name}: train.seed {old_seed} -> {cfg.train.seed}: dropout and the data order are new')
  notes += [f'{name}: data: {line}' for line in job.loader.branch(extra['data'], step)]
  return state, extra


def new_parts(cfg, abstract):
  """Return what a branch may have of its own: traced scalars, PRNG key, empty window of the spike guard."""

  def make(hyper, seed):
    window = None if abstract.recent_SW is None else loss_guard.empty_window(cfg.train.spike_window)
    return hyper, jax.random.split(jax.random.key(seed))[1], window

  parts = abstract.hyper, abstract.key, abstract.recent_SW
  shardings = jax.tree.map(lambda x: x.sharding, parts)
  return jax.jit(make, out_shardings=shardings)(hyper_of(cfg), np.uint32(cfg.train.seed))


def check_branch(cfg, name, folder, step, extra):
  """Raise ValueError for a branch whose config contradicts it or that its parent cannot give."""
  if 'imported' in extra:
    raise ValueError(
      f'{name} is an imported model, which has no optimizer state\nfix: use train.init_from={folder}'
    )
  if step >= cfg.train.steps:
    raise ValueError(
      f'{name} leaves no step to train: train.steps={cfg.train.steps}\n'
      f'fix: set train.steps, which counts from the beginning of that run, above {step}'
    )
  if step % cfg.train.steps_per_call:
    raise ValueError(
      f'{name}: {step} is not a multiple of train.steps_per_call={cfg.train.steps_per_call}\n'
      'fix: use a divisor of it'
    )
  if cfg.data.reset:
    raise ValueError(
      f'data.reset=True has no effect with {name}: unchanged sources go on, others start at their first row\n'
      'fix: leave out data.reset'
    )
  config = extra['config']
  for section, key in (('train', 'job'), ('optim', 'name')):
    old, new = config.get(section, {}).get(key), getattr(getattr(cfg, section), key)
    if old != new:
      raise ValueError(
        f'{name} has the state of {section}.{key}={old}, this run {section}.{key}={new}\n'
        f'fix: keep {section}.{key}={old}, or take the weights alone: train.init_from={folder}'
      )
