"""Several runs of one program in one compiled step: seeds and traced numbers side by side.

`jax.vmap` of the step that a run alone computes, over states stacked in front; where there are
more devices each holds whole runs, on the mesh axis `replica`. Every run keeps what it would have
alone: folder, loader, log, evaluation, samples, checkpoints. So it may go on alone or together,
and runs at different steps may go on together. A run that is done, fails or diverges leaves its
lane, whose numbers nobody reads from then on; lanes do not touch each other.

Letters: R runs, in front of the letters of a run alone.
"""

import contextlib
import os
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax import train
from gpt_jax.config import to_dict
from gpt_jax.runs import records, run_folder
from gpt_jax.sharding import MeshConfig, batch_sharding, make_mesh
from gpt_jax.step import hyper_of
from gpt_jax.training import session

# Keys whose values are traced, or not part of the program at all.
MAY_DIFFER = (
  'train.seed',
  'optim.lr',
  'optim.weight_decay',
  'model.dropout',
  'loss.z_loss',
  'loss.label_smoothing',
  'loss.moe_balance',
  'loss.moe_z',
  'loss.text',
  'loss.image',
  'loss.audio',
)
BUSY = 0.8  # share of the memory that a group may take


class Outcome(NamedTuple):
  """How an attempt at a run ended."""

  outcome: str  # done, stopped, diverged or failed
  code: int = 0  # as launch.py: 0 done, 75 stopped and saved, 1 error, 2 bad config
  message: str = ''  # first line of the error
  result: Any = None  # result.json of a run that is done


def finished(result):
  """The outcome of a training without errors: None means that it was stopped."""
  return Outcome('stopped', 75) if result is None else Outcome('done', result=result)


def failure(error):
  """The outcome of an error, whose traceback goes to the log."""
  traceback.print_exception(error)
  message = run_folder.redact((str(error).splitlines() or [''])[0])
  if isinstance(error, FloatingPointError):
    return Outcome('diverged', 1, message)
  code = 2 if isinstance(error, ValueError | FileNotFoundError) else 1
  return Outcome('failed', code, f'{type(error).__name__}: {message}')


def train_alone(cfg, folder, should_stop=lambda: False):
  """Train one run -> its Outcome, whatever happens."""
  try:
    return finished(train.train(cfg, folder, lambda step: should_stop()))
  except Exception as error:
    return failure(error)


def train_together(configs, folders, should_stop=lambda: False):
  """Train runs that differ in seeds and traced numbers only -> a list of Outcome.

  As many at once as fit into memory; one after another if only one does. What happens to one run
  is its outcome and leaves the others alone; ValueError where the configs are not of one program.
  """
  check_alike(configs)
  # A run that may go back, or compares what a step gives, has its steps to itself.
  alone = configs[0].train.spike_sigma or configs[0].train.sdc_every
  pairs, found, count = list(zip(configs, folders, strict=True)), {}, 1 if alone else len(configs)
  while waiting := [i for i in range(len(pairs)) if i not in found]:
    some = waiting[:count]
    if should_stop():
      ended = [Outcome('stopped', 75)] * len(some)
    elif len(some) == 1:
      ended = [train_alone(*pairs[some[0]], should_stop)]
    else:
      group = Group([pairs[i] for i in some])
      if any(ended := group.outcomes()):  # some were done, or cannot start: the others, again
        count = len(pairs)
      elif (count := group.fitting()) == len(some):
        ended = group.train(should_stop)
    found |= {i: outcome for i, outcome in zip(some, ended, strict=True) if outcome}
  return [found[i] for i in range(len(pairs))]


def check_alike(configs):
  """Raise ValueError unless these runs can share a compiled step."""
  if jax.process_count() > 1:
    raise ValueError(f'replicas in {jax.process_count()} processes\nfix: train them in one process each')
  if configs[0].train.profile:
    raise ValueError(
      f'train.profile={configs[0].train.profile} is of one run\nfix: train it alone, or leave it ()'
    )
  for cfg in configs[1:]:
    pairs = run_folder.changes(to_dict(configs[0]), to_dict(cfg))
    wrong = {key: pair for key, pair in pairs.items() if key not in MAY_DIFFER}
    if not wrong and hyper_of(cfg).keys() != hyper_of(configs[0]).keys():
      wrong = {key: pair for key, pair in pairs.items() if key.startswith(('loss.', 'model.'))}
    if wrong:
      key, (one, other) = next(iter(wrong.items()))
      raise ValueError(
        f'{key}={records.to_json(one)!r} and {records.to_json(other)!r} are two programs\n'
        'fix: train these runs one by one'
      )


def mesh_of(cfg, count):
  """The mesh of so many runs: by default as many devices as divide them, each with whole runs."""
  if cfg != MeshConfig():
    mesh = make_mesh(cfg)
    if count % mesh.shape['replica']:
      raise ValueError(f'mesh.replica={mesh.shape["replica"]} does not divide {count} runs\nfix: leave it 1')
    return mesh
  devices = jax.devices()
  most = max(d for d in range(1, len(devices) + 1) if count % d == 0)
  return make_mesh(MeshConfig(replica=most, data=1), devices[:most])


def memory_limit():
  """Bytes of one device; of a CPU, what is free now and within the limit of its control group."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit') or min([available(), *control_group_limits()])


def available(path='/proc/meminfo'):
  """Bytes that a process can have now: what the kernel would give up included."""
  try:
    lines = dict(line.split(':') for line in Path(path).read_text().splitlines())
    return 1024 * int(lines['MemAvailable'].split()[0])
  except (OSError, KeyError):  # no Linux, or an old one
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def control_group_limits(groups='/proc/self/cgroup', root='/sys/fs/cgroup'):
  """Bytes that this process's control groups allow, as in a container or a batch job."""
  lines = Path(groups).read_text().splitlines() if Path(groups).exists() else ()
  found = []
  for line in lines:
    _, kinds, path = line.split(':', 2)
    if 'memory' not in kinds.split(',') and kinds:
      continue
    top = Path(root, 'memory') if kinds else Path(root)
    place = top / path.lstrip('/')
    for folder in [place, *place.parents]:
      if folder.is_relative_to(top):
        with contextlib.suppress(OSError, ValueError):  # not there, or 'max'
          name = 'memory.limit_in_bytes' if kinds else 'memory.max'
          found.append(int((folder / name).read_text()))
  return found


def replicas_that_fit(compiled, count, memory):
  """How many runs, at least 1, of a step compiled for `count` would fit in so many bytes."""
  used = compiled.memory_analysis()
  # Twice the state: stacking copies it, and what looks at a run takes its lane out.
  need = 2 * used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
  need += used.temp_size_in_bytes
  return count if need <= memory else max(1, int(count * memory / need))


class Lane:
  """One run of a group and what became of it."""

  def __init__(self, cfg, folder, mesh, replicas, trace):
    """An error at the start is an outcome, too."""
    self.session, self.outcome, self.batch = None, None, None
    self.stack = contextlib.ExitStack()
    with self.guard():
      workdir = session.check_workdir(cfg, folder)
      self.session = session.setup(cfg, workdir, mesh, train.JOBS[cfg.train.job], replicas, trace)
      if result := session.finished_result(self.session):
        self.outcome = finished(result)

  def open(self, number):
    """Take the run folder."""
    s = self.session
    s.meter.lane = number
    self.stack.enter_context(session.acquire_run_dir(s))
    s.run.print(f'{s.job.describe()}, from step {s.step}')

  def close(self, outcome, error=None):
    """End the run; its folder gets an event if that was by an error."""
    self.outcome = outcome
    self.stack.__exit__(type(error) if error else None, error, error and error.__traceback__)
    if self.session:
      self.session.state = None

  @contextlib.contextmanager
  def guard(self):
    """An error in here ends this run and no other."""
    try:
      yield
    except Exception as error:
      try:
        self.close(failure(error), error)
      except Exception as later:  # such as a full disk, which closing meets again
        traceback.print_exception(later)


class Group:
  """Runs that train in one step, which is compiled for all of them."""

  def __init__(self, pairs):
    """pairs: (config, folder) of each run. Nothing is written but token caches."""
    self.mesh = mesh_of(pairs[0][0].mesh, len(pairs))
    self.lanes, start = [], time.perf_counter()
    with jax.set_mesh(self.mesh):
      for cfg, folder in pairs:
        trace = not any(lane.session for lane in self.lanes)
        self.lanes.append(Lane(cfg, folder, self.mesh, len(pairs), trace))
      if any(self.outcomes()):
        return
      for lane in self.lanes:  # they were set up one after another, each for all
        lane.session.meter.began = start
      self.compile()

  def outcomes(self):
    """What became of each run; None while it goes on."""
    return [lane.outcome for lane in self.lanes]

  def live(self):
    """The lanes that still train."""
    return [lane for lane in self.lanes if lane.outcome is None]

  def place(self, spec):
    """The sharding of something stacked whose part for one run has this spec."""
    return NamedSharding(self.mesh, PartitionSpec('replica', *spec))

  def compile(self):
    """Compile the step for all lanes, and what takes the state of a lane out."""
    start, R = time.perf_counter(), len(self.lanes)
    first = self.lanes[0].session
    program, n = first.job.program, first.cfg.train.steps_per_call
    stacked = lambda x, spec: jax.ShapeDtypeStruct((R, *x.shape), x.dtype, sharding=self.place(spec))
    states = jax.tree.map(lambda x: stacked(x, x.sharding.spec), program.abstract)
    batch = {
      name: stacked(x, batch_sharding(self.mesh, name, n > 1).spec)
      for name, x in session.abstract_batch(first.cfg, first.job).items()
    }
    self.batch_shardings = {name: x.sharding for name, x in batch.items()}
    self.shardings = jax.tree.map(lambda x: x.sharding, states)
    step = jax.vmap(program.pure, spmd_axis_name='replica')
    step = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, self.place(())))
    self.step = step.lower(states, batch).compile()
    # By leaves: what is static in a state, as a dropout rate, may differ between runs.
    alone = [x.sharding for x in jax.tree.leaves(program.abstract)]
    self.take = jax.jit(lambda leaves, r: [x[r] for x in leaves], out_shardings=alone)
    self.compile_seconds = time.perf_counter() - start

  def fitting(self):
    """How many of the lanes fit into memory at once."""
    return replicas_that_fit(self.step, len(self.lanes), BUSY * memory_limit())

  def train(self, should_stop):
    """Train all lanes to their ends -> the outcome of each run."""
    if should_stop():  # the step took long to compile: a later call may train these already
      return [Outcome('stopped', 75)] * len(self.lanes)
    with jax.set_mesh(self.mesh), contextlib.ExitStack() as stack:
      self.gather()  # before a folder turns out to be in use: its lane stays, and is not read
      for number, lane in enumerate(self.lanes):
        stack.push(lane.stack)
        with lane.guard():
          lane.open(number)
          seconds = self.compile_seconds / len(self.lanes)
          lane.session.run.event('compile', step=lane.session.step, seconds=seconds)
      try:
        while self.live():
          self.look(should_stop())
          if live := self.live():
            self.advance(live)
      except Exception as error:  # of the step itself: it is everybody's
        for lane in self.live():
          with lane.guard():
            raise error
    return self.outcomes()

  def gather(self):
    """Stack the states of all lanes."""
    self.metrics = None  # of the last call
    states = [lane.session.state for lane in self.lanes]
    self.treedefs = [jax.tree.structure(state) for state in states]
    leaves = [jax.tree.leaves(state) for state in states]
    stack = lambda leaves: [jnp.stack(parts) for parts in zip(*leaves, strict=True)]
    stack = jax.jit(stack, out_shardings=jax.tree.leaves(self.shardings))
    self.states = jax.tree.unflatten(self.treedefs[0], stack(leaves))
    for lane in self.lanes:
      lane.session.state = None

  def look(self, stopping):
    """What each run does between two steps, with its own state before it."""
    looking = [lane for lane in self.live() if stopping or session.needs_state(lane.session)]
    if looking:
      start = time.perf_counter()
      jax.block_until_ready(self.states)
      self.charge(time.perf_counter() - start)
    for lane in self.live():
      s = lane.session
      with lane.guard():
        if lane in looking:
          r = s.meter.lane
          leaves = self.take(jax.tree.leaves(self.states), np.int32(r))
          s.state = jax.tree.unflatten(self.treedefs[r], leaves)
        ending = stopping or not session.run_due_evals(s, lambda step: stopping)
        session.save_if_due(s, ending)
        if ending or s.step == s.cfg.train.steps:
          result = session.finish(s, ending)
          if result:
            train.write_report(s)
          lane.close(finished(result))
        s.state = None

  def charge(self, seconds):
    """Time in steps is shared by those that train."""
    for lane in self.live():
      lane.session.meter.add_step_time(seconds)

  def advance(self, live):
    """One call of the step."""
    start = time.perf_counter()
    for lane in live:
      with lane.guard():
        n = lane.session.cfg.train.steps_per_call
        lane.batch = session.next_batches(lane.session.job.loader, n)
    batches = [lane.batch for lane in self.lanes]
    spare = next((batch for batch in batches if batch), None)
    if spare is None:
      return
    stacked = {name: np.stack([(batch or spare)[name] for batch in batches]) for name in self.batch_shardings}
    batch = jax.device_put(stacked, self.batch_shardings)
    with jax.transfer_guard('disallow'):
      self.states, metrics = self.step(self.states, batch)
    # Waited for here, where it is charged to all: the device is busy with the next call already.
    jax.block_until_ready(self.metrics)
    self.metrics, seconds = metrics, time.perf_counter() - start
    for lane in self.live():
      with lane.guard():
        session.record_step(lane.session, metrics, seconds)
