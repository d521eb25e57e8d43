"""Replicas: train several runs of one program in one compiled step, with their own seeds and traced numbers.

`jax.vmap` of a single run's step over stacked states; with more devices each holds whole runs, on the mesh
axis `replica`. Every run has its own folder, loader, log, evaluation, samples and checkpoints, so it may
resume alone or with others, at different steps. The frozen base of adapters is one for all runs. A run that
is done, fails or diverges keeps its place in the stack, whose numbers are ignored from then on; replicas do
not influence each other. Letters: R runs.
"""

import contextlib
import time
import traceback
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gpt_jax import train
from gpt_jax.cluster.batches import batch_sharding
from gpt_jax.config import to_dict
from gpt_jax.jobs import base
from gpt_jax.runs import plugins, records, secrets
from gpt_jax.sharding import MeshConfig, make_mesh
from gpt_jax.step import hyper_of
from gpt_jax.training import evaluations, session, start
from gpt_jax.training.memory import available_bytes, device_bytes

# Config keys whose values are traced, or not part of the program at all.
LOSS_KEYS = ('z_loss', 'label_smoothing', 'moe_balance', 'moe_z', 'text', 'image', 'audio')
MAY_DIFFER = ('train.seed', 'optim.lr', 'optim.weight_decay', 'model.dropout') + tuple(
  f'loss.{name}' for name in LOSS_KEYS
)
MEMORY_FRACTION = 0.8  # of the memory that a group may use


class Outcome(NamedTuple):
  """How an attempt at a run ended."""

  outcome: str  # done, stopped, diverged or failed
  code: int = 0  # as launch.py: 0 done, 75 stopped and saved, 1 error, 2 bad config
  message: str = ''  # first line of the error
  result: Any = None  # result.json of a run that is done


def outcome_of_result(result):
  """The Outcome of training without errors; result None means that it was stopped."""
  return Outcome('stopped', 75) if result is None else Outcome('done', result=result)


def outcome_of_error(error):
  """The Outcome of an error, whose traceback is printed to the log."""
  traceback.print_exception(error)
  error = plugins.as_user_error(error)
  message = secrets.redact((str(error).splitlines() or [''])[0])
  if isinstance(error, FloatingPointError):
    return Outcome('diverged', 1, message)
  code = 2 if isinstance(error, ValueError | FileNotFoundError) else 1
  return Outcome('failed', code, f'{type(error).__name__}: {message}')


def train_alone(cfg, folder, should_stop=lambda: False):
  """Train one run -> its Outcome; errors are outcomes, too."""
  try:
    return outcome_of_result(train.train(cfg, folder, lambda step: should_stop()))
  except Exception as error:
    return outcome_of_error(error)


def train_together(configs, folders, should_stop=lambda: False):
  """Train runs that differ in seeds and traced numbers only -> a list of Outcome.

  As many at once as fit into memory; one after another if only one does. An error of one run is its
  outcome and does not affect the others; ValueError if the configs are not of one program.
  """
  check_same_program(configs)
  # Rollbacks after spikes, SDC checks, batches that a model adds to, and private steps, each with a number of
  # micro-batches of its own, need a step of the run alone.
  adds = train.JOBS[configs[0].train.job].prepare_batch is not base.Job.prepare_batch
  alone = configs[0].train.spike_sigma or configs[0].train.sdc_every or adds or configs[0].privacy.epsilon
  pairs, outcomes, count = list(zip(configs, folders, strict=True)), {}, 1 if alone else len(configs)
  while waiting := [i for i in range(len(pairs)) if i not in outcomes]:
    some = waiting[:count]
    if should_stop():
      ended = [Outcome('stopped', 75)] * len(some)
    elif len(some) == 1:
      ended = [train_alone(*pairs[some[0]], should_stop)]
    else:
      group = Group([pairs[i] for i in some])
      if any(ended := group.outcomes()):  # some were done, or cannot start: the others, again
        count = len(pairs)
      elif (count := group.max_replicas) == len(some):
        ended = group.train(should_stop)
      group.release()
    outcomes |= {i: outcome for i, outcome in zip(some, ended, strict=False) if outcome}
  return [outcomes[i] for i in range(len(pairs))]


def check_same_program(configs):
  """Raise ValueError unless these runs can share a compiled step."""
  if jax.process_count() > 1:
    raise ValueError(f'replicas in {jax.process_count()} processes\nfix: train them in one process each')
  if configs[0].train.profile:
    raise ValueError(
      f'train.profile={configs[0].train.profile} is of one run\nfix: train it alone, or leave it ()'
    )
  for cfg in configs[1:]:
    pairs = records.diff(to_dict(configs[0]), to_dict(cfg))
    wrong = {key: pair for key, pair in pairs.items() if key not in MAY_DIFFER}
    if not wrong and hyper_of(cfg).keys() != hyper_of(configs[0]).keys():
      wrong = {key: pair for key, pair in pairs.items() if key.startswith(('loss.', 'model.'))}
    if wrong:
      key, (one, other) = next(iter(wrong.items()))
      raise ValueError(
        f'{key}={records.to_json(one)!r} and {records.to_json(other)!r} are two programs\n'
        'fix: train these runs one by one'
      )


def make_replica_mesh(cfg, count):
  """The mesh of `count` runs: by default the most devices that divide them, each with whole runs."""
  if cfg != MeshConfig():
    mesh = make_mesh(cfg)
    if count % mesh.shape['replica']:
      raise ValueError(f'mesh.replica={mesh.shape["replica"]} does not divide {count} runs\nfix: leave it 1')
    return mesh
  devices = jax.devices()
  most = max(d for d in range(1, len(devices) + 1) if count % d == 0)
  return make_mesh(MeshConfig(replica=most, data=1), devices[:most])


def states_that_fit(abstract, count, devices, memory):
  """How many of `count` runs, at least 1, may hold a state in `memory` bytes of a device at once.

  Each is set up whole on every device, then stacked over them; the next run's base is read before it is
  shared. The gradients of a step need no more than the stacked states.
  """
  bytes_of = lambda tree: sum(map(device_bytes, jax.tree.leaves(tree)))
  shared, own = bytes_of(abstract.frozen), bytes_of(abstract._replace(frozen=None))
  return min(count, max(1, int((memory - 2 * shared) / (own * (1 + 1 / devices)))))


def replicas_that_fit(compiled, count, memory):
  """How many runs, at least 1, of a step compiled for `count` fit into `memory` bytes."""
  used = compiled.memory_analysis()
  # Twice the state: stacking copies it, and evaluation slices one replica out.
  need = 2 * used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
  need += used.temp_size_in_bytes
  return count if need <= memory else max(1, int(count * memory / need))


class Replica:
  """One run of a group, with its outcome."""

  def __init__(self, cfg, folder, mesh, replicas, trace):
    """Set up the run; an error is recorded as its outcome."""
    self.session, self.outcome, self.batch = None, None, None
    self.stack = contextlib.ExitStack()
    with self.isolate_errors():
      workdir = start.check_workdir(cfg, folder)
      self.session = session.setup(cfg, workdir, mesh, train.JOBS[cfg.train.job], replicas, trace)
      if result := session.finished_result(self.session):
        self.outcome = outcome_of_result(result)

  def open(self, number, compile_seconds):
    """Acquire the run folder, as the number-th of the stack."""
    s = self.session
    s.meter.replica = number
    self.stack.enter_context(session.acquire_run_dir(s))
    s.run.print(f'{s.job.describe()}, from step {s.step}')
    s.run.event('compile', step=s.step, seconds=compile_seconds)

  def close(self, outcome, error=None):
    """End the run; an error is recorded as an event in its folder."""
    self.outcome = outcome
    self.stack.__exit__(type(error) if error else None, error, error and error.__traceback__)
    if self.session:
      self.session.state = None

  @contextlib.contextmanager
  def isolate_errors(self):
    """Context in which an error ends this run and no other."""
    try:
      yield
    except Exception as error:
      try:
        self.close(outcome_of_error(error), error)
      except Exception as later:  # such as a full disk, which closing meets again
        traceback.print_exception(later)


class Group:
  """Runs that train in one step, which is compiled for all of them."""

  def __init__(self, pairs):
    """pairs: (config, folder) of each run. Nothing is written but token caches."""
    self.mesh = make_replica_mesh(pairs[0][0].mesh, len(pairs))
    self.max_replicas, self.memory = len(pairs), MEMORY_FRACTION * available_bytes()  # before any state
    self.replicas, start = [], time.perf_counter()
    with jax.set_mesh(self.mesh):
      for cfg, folder in pairs:
        trace = not any(replica.session for replica in self.replicas)
        self.replicas.append(replica := Replica(cfg, folder, self.mesh, len(pairs), trace))
        self.share_frozen(replica)
        if trace and replica.session:
          abstract, devices = replica.session.job.program.abstract, self.mesh.shape['replica']
          self.max_replicas = states_that_fit(abstract, len(pairs), devices, self.memory)
          if self.max_replicas < len(pairs):
            return
      if any(self.outcomes()):
        return
      for replica in self.replicas:  # they were set up one after another, each for all
        replica.session.meter.began = start
      self.compile()
      self.max_replicas = replicas_that_fit(self.step, len(pairs), self.memory)

  def share_frozen(self, replica):
    """Replace the frozen base of a run by that of the first one, so that there is one in memory."""
    first = self.replicas[0].session
    with replica.isolate_errors():
      if replica.session and first and first.state.frozen is not None:
        if replica.session.job.base != first.job.base:
          raise ValueError(
            f'{replica.session.workdir} and {first.workdir} have adapters on different checkpoints\n'
            'fix: train them one by one'
          )
        replica.session.state = replica.session.state._replace(frozen=first.state.frozen)

  def outcomes(self):
    """The outcome of each run that was set up; None while it trains."""
    return [replica.outcome for replica in self.replicas]

  def live(self):
    """The replicas that still train."""
    return [replica for replica in self.replicas if replica.outcome is None]

  def compile(self):
    """Compile the step for all replicas, and the function that slices out the state of one."""
    start, R = time.perf_counter(), len(self.replicas)
    first = self.replicas[0].session
    program, n = first.job.program, first.cfg.train.steps_per_call
    sharding = lambda spec: NamedSharding(self.mesh, PartitionSpec('replica', *spec))
    stacked = lambda x, spec: jax.ShapeDtypeStruct((R, *x.shape), x.dtype, sharding=sharding(spec))
    own = program.abstract._replace(frozen=None)  # of one run; the frozen base is of all
    states = jax.tree.map(lambda x: stacked(x, x.sharding.spec), own)._replace(frozen=program.abstract.frozen)
    batch = {
      name: stacked(x, batch_sharding(self.mesh, name, n > 1).spec)
      for name, x in session.abstract_batch(first.cfg, first.job).items()
    }
    self.shardings, self.batch_shardings = jax.tree.map(lambda x: x.sharding, (states, batch))
    axes = jax.tree.map(lambda _: 0, own)  # no entries for what all runs share
    step = jax.vmap(program.pure, (axes, 0), (axes, 0), spmd_axis_name='replica')
    step = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, sharding(())))
    self.step = step.lower(states, batch).compile()
    # By leaves: static parts of a state, such as a dropout rate, may differ between runs.
    alone = [x.sharding for x in jax.tree.leaves(own)]
    self.slice_replica = jax.jit(lambda leaves, r: [x[r] for x in leaves], out_shardings=alone)
    self.compile_seconds = time.perf_counter() - start

  def release(self):
    """Free the memory of all states."""
    self.states = None
    for replica in self.replicas:
      if replica.session:
        replica.session.state = None

  def train(self, should_stop):
    """Train all replicas to their ends -> the Outcome of each run."""
    if should_stop():  # the step took long to compile: a later call may train these already
      return [Outcome('stopped', 75)] * len(self.replicas)
    with jax.set_mesh(self.mesh), contextlib.ExitStack() as stack:
      self.stack_states()  # before a folder turns out to be in use: its replica stays, and is not read
      for number, replica in enumerate(self.replicas):
        stack.push(replica.stack)
        with replica.isolate_errors():
          replica.open(number, self.compile_seconds / len(self.replicas))
      try:
        while self.live():
          self.run_due_actions(should_stop())
          if live := self.live():
            self.train_step(live)
      except Exception as error:  # of the step itself: it is everybody's
        for replica in self.live():
          with replica.isolate_errors():
            raise error
    return self.outcomes()

  def stack_states(self):
    """Stack the states of all replicas."""
    self.metrics = None  # of the last call
    frozen = self.replicas[0].session.state.frozen
    states = [replica.session.state._replace(frozen=None) for replica in self.replicas]
    self.treedefs = [jax.tree.structure(state) for state in states]
    leaves = [jax.tree.leaves(state) for state in states]
    stack = lambda leaves: [jnp.stack(parts) for parts in zip(*leaves, strict=True)]
    stack = jax.jit(stack, out_shardings=jax.tree.leaves(self.shardings._replace(frozen=None)))
    self.states = jax.tree.unflatten(self.treedefs[0], stack(leaves))._replace(frozen=frozen)
    for replica in self.replicas:
      replica.session.state = None

  def run_due_actions(self, stopping):
    """Evaluate, save and finish each replica where due, with its own state."""
    due = [replica for replica in self.live() if stopping or evaluations.needs_state(replica.session)]
    if due:
      start = time.perf_counter()
      jax.block_until_ready(self.states)
      for replica in self.live():
        replica.session.meter.add_step_time(time.perf_counter() - start)
    for replica in self.live():
      s = replica.session
      with replica.isolate_errors():
        if replica in due:
          r = s.meter.replica
          leaves = self.slice_replica(jax.tree.leaves(self.states._replace(frozen=None)), np.int32(r))
          s.state = jax.tree.unflatten(self.treedefs[r], leaves)._replace(frozen=self.states.frozen)
        session.save_if_due(s, stopping=False)
        ending = stopping or not evaluations.run_due_evals(s, lambda step: stopping)
        session.save_if_due(s, ending)
        if ending or s.step == s.cfg.train.steps:
          if result := session.finish(s, ending):
            session.write_report(s)
          replica.close(outcome_of_result(result))
        s.state = None

  def train_step(self, live):
    """Run one call of the step and record its metrics."""
    start = time.perf_counter()
    for replica in live:
      with replica.isolate_errors():
        n = replica.session.cfg.train.steps_per_call
        replica.batch = session.next_batches(replica.session.job.loader, n)
    batches = [replica.batch for replica in self.replicas]
    spare = next((batch for batch in batches if batch), None)
    if spare is None:
      return
    stacked = {name: np.stack([(batch or spare)[name] for batch in batches]) for name in self.batch_shardings}
    batch = jax.device_put(stacked, self.batch_shardings)
    with jax.transfer_guard('disallow'):
      self.states, metrics = self.step(self.states, batch)
    # Wait here, where the time counts for all replicas; the device already computes the next call.
    jax.block_until_ready(self.metrics)
    self.metrics, seconds = metrics, time.perf_counter() - start
    for replica in self.live():
      with replica.isolate_errors():
        session.record_step(replica.session, metrics, seconds)
