"""The training loop: setup, then evaluate, save, batch, step, log, in that order, until done.

One device or a thousand, one process or many: the same path. What a step computes is in step.py;
what is trained is a job, a row of JOBS: the GPT (language.py) or a learned tokenizer (codec.py).
"""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import numpy as np

from gpt_jax.cluster.processes import barrier, main_process_first
from gpt_jax.jobs import codec, language_model
from gpt_jax.runs import hardware, run_folder
from gpt_jax.sharding import make_mesh, to_devices
from gpt_jax.training import checkpoint, ineffective, loss_guard, meter, probes, sdc

# What may change between a run and its resumption: nothing that its result depends on.
FREE_ON_RESUME = (
  'mesh.',
  'log.',
  'train.tasks',
  'train.probe_every',
  'train.hang_seconds',
  'train.sdc_every',
  'checkpoint.',
  'sample.',
  'data.workers',
  'data.prefetch',
  'data.cache',
  'data.reset',
  'model.unroll',
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, how much at a time, and how often to look."""

  job: str = 'gpt'  # a row of JOBS: what is trained
  steps: int = 2000  # optimizer updates
  batch_size: int = 32  # rows a step, over all devices and micro-batches
  length: int = 0  # tokens a row; 0 = model.context
  accumulate: int = 1  # micro-batches that a step's rows are split into
  steps_per_call: int = 1  # optimizer steps in one compiled call; more for tiny models
  seed: int = 0  # of initial values, dropout and data order
  eval_every: int = 250  # steps between validations; 0 = only at the end
  eval_tokens: int = 65536  # validation tokens scored each time; 0 = all (at the end always all)
  sample_every: int = 500  # steps between samples; 0 = only at the end
  sample_prompts: tuple[str, ...] = ('\n',)  # what the text samples continue; () = none
  tasks: tuple[str, ...] = ()  # rows of TASKS to run at the end
  probe_every: int = 0  # steps between looks at the sizes in each layer, probes.jsonl; 0 = none
  init_from: str = ''  # a run folder whose parameters to start from, with a fresh optimizer
  hang_seconds: float = 3600.0  # without a step, evaluation or save, until the run ends; 0 = never
  max_skipped: int = 10  # non-finite steps in a row before giving up
  spike_sigma: float = 0.0  # robust deviations above the recent median that skip a step; 0 = any
  spike_window: int = 128  # applied steps that are recent
  spike_patience: int = 3  # skipped in a row before going back to the last good checkpoint
  sdc_every: int = 0  # steps between steps that are made twice, to compare all bits; 0 = none
  profile: tuple[int, ...] = ()  # (first step, last step) traced into <workdir>/profile; () = none

  def __post_init__(self):
    if self.job not in JOBS:
      raise ValueError(f'train.job={self.job!r} is not known\nfix: use one of {", ".join(JOBS)}')
    for key in (
      'steps',
      'batch_size',
      'accumulate',
      'steps_per_call',
      'max_skipped',
      'spike_window',
      'spike_patience',
    ):
      if getattr(self, key) < 1:
        raise ValueError(f'train.{key}={getattr(self, key)} is too small\nfix: use at least 1')
    for key in (
      'length',
      'eval_every',
      'eval_tokens',
      'sample_every',
      'probe_every',
      'hang_seconds',
      'spike_sigma',
      'sdc_every',
    ):
      if getattr(self, key) < 0:
        raise ValueError(f'train.{key}={getattr(self, key)} is negative\nfix: use 0 or more')
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'train.seed={self.seed} is no 32-bit number\nfix: use 0 to 4294967295')
    if self.batch_size % self.accumulate:
      raise ValueError(
        f'train.accumulate={self.accumulate} does not divide train.batch_size={self.batch_size}\n'
        'fix: make batch_size a multiple of accumulate'
      )
    for key in ('steps', 'eval_every', 'sample_every', 'probe_every', 'sdc_every'):
      if getattr(self, key) % self.steps_per_call:
        raise ValueError(
          f'train.{key}={getattr(self, key)} is no multiple of train.steps_per_call='
          f'{self.steps_per_call}\nfix: make it one'
        )
    if self.profile and not (len(self.profile) == 2 and self.profile[0] < self.profile[1]):
      raise ValueError(f'train.profile={self.profile} is no window\nfix: use (first, last step)')


# -------------------------------------------------------------------------------------- setup


def initial_state(job, cfg, workdir):
  """-> (state, step, extra, notes): from the newest good checkpoint, or from `init_from`, or new.

  Changes nothing on disk. notes: lines for the reader.
  """
  notes = []
  folder, verify = workdir / 'checkpoints', cfg.checkpoint.verify
  checkpoints = checkpoint.Checkpoints(folder, report=notes.append, verify=verify)
  step = checkpoints.latest_good()
  if step is not None and 'imported' in checkpoints.read_extra(step):
    raise ValueError(
      f'{workdir} holds an imported model, which has no optimizer to go on with\n'
      f'fix: train in a new --workdir with train.init_from={workdir}, as '
      'experiments/finetune_gpt2.py does'
    )
  if step is not None:
    return checkpoints.restore(step, job.program.abstract), step, checkpoints.read_extra(step), notes
  state = job.program.init()
  if cfg.train.init_from:
    state = job.load_initial_weights(state)
  return state, 0, None, notes


def next_batches(loader, steps_per_call):
  """The next call's batch on the host; with several steps a call, one N axis in front."""
  if steps_per_call == 1:
    return next(loader)
  batches = [next(loader) for _ in range(steps_per_call)]
  return {name: np.stack([b[name] for b in batches]) for name in batches[0]}


# --------------------------------------------------------------------------------------- loop


def train(cfg, workdir, should_stop=lambda step: False):
  """Train, or go on with what `workdir` holds -> the result, also in result.json.

  should_stop: asked in all processes with the number of steps made, before each step and between
  batches of an evaluation; True saves and returns None.
  Raises ValueError for what a user can mend, FloatingPointError when gradients stay non-finite.
  """
  workdir = check(cfg, workdir)
  mesh = make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    training = Training(cfg, workdir, mesh)
    with training.open():
      try:
        return training.loop(should_stop)
      except ValueError as error:  # the run had begun: not a matter of arguments any more
        raise RuntimeError(str(error)) from error
      finally:
        training.close()


def check(cfg, workdir):
  """-> the folder as a Path; ValueError if no run with this config can start or go on in it."""
  every, n = cfg.checkpoint.every, cfg.train.steps_per_call
  if every % n:
    raise ValueError(f'checkpoint.every={every} is no multiple of train.steps_per_call={n}\nfix: make it one')
  if jax.process_index() == 0:
    run_folder.check_workdir(workdir, dataclasses.asdict(cfg), free=free_on_resume(cfg))
  return Path(workdir).expanduser()  # not before: a Path makes gs://x the local gs:/x


def free_on_resume(cfg):
  """Which keys may differ from the stored config: with data.reset, the data too."""
  return (*FREE_ON_RESUME, 'data.') if cfg.data.reset else FREE_ON_RESUME


def due(every, step, steps):
  """Whether something done every so often (0 = only at the end) is done before this step."""
  return step == steps or (every > 0 and step > 0 and step % every == 0)


class Interrupted(Exception):
  """The run is to stop, and an evaluation is not worth waiting for."""


class Training:
  """One run under way: alone by `loop`, or a lane of several by replicas.Group."""

  def __init__(self, cfg, workdir, mesh, replicas=1, trace=True):
    """Make and check everything; nothing is written but token caches.

    replicas: how many runs share the machine. trace: False where the step was traced before.
    """
    self.cfg, self.workdir, self.mesh = cfg, workdir, mesh
    job = JOBS[cfg.train.job]
    self.meter = meter.Meter(job.unit, cfg.train.steps_per_call, replicas)
    with main_process_first():  # the first one makes caches and tokenizers, and the others find them
      self.job = job(cfg, workdir, mesh)
    self.loader, self.program = self.job.loader, self.job.program
    if trace:
      self.trace()
    self.found = checkpoint.Checkpoints(workdir / 'checkpoints').steps()  # `open` looks again
    self.meter.mark_phase('setup')
    self.state, self.step, extra, self.notes = initial_state(self.job, cfg, workdir)
    self.meter.mark_phase('restore')
    self.saved = self.step  # of the last checkpoint
    self.back = -1  # the step that the run last went back to
    self.compiled = self.twice = None  # the step, and as it compares itself
    self.profiling, self.prober = False, None  # the prober is compiled when first used
    if extra is not None:
      self.meter.restore(extra)
      self.notes += [f'data.reset: {line}' for line in self.loader.restore(extra['data'])]
    self.evaluations, self.valid = [], {}  # rows of the last evaluation, its headline numbers

  def trace(self):
    """Trace the step: a kernel that cannot honor a mask is refused before anything is written."""
    jax.eval_shape(self.program.step, self.program.abstract, self.abstract_batch())

  def abstract_batch(self):
    """Shapes and dtypes of what a call of the step reads."""
    n = self.cfg.train.steps_per_call
    stack = lambda x: jax.ShapeDtypeStruct(x.shape if n == 1 else (n, *x.shape), x.dtype)
    return {k: stack(v) for k, v in self.job.example_batch().items()}

  def open(self):
    """Take the run folder, write what a run begins with -> the open runs.Run."""
    primary, folder = jax.process_index() == 0, self.workdir / 'checkpoints'
    if primary and checkpoint.Checkpoints(folder).steps() != self.found:
      raise ValueError(
        f'workdir={self.workdir}: another process has saved there while this one got ready\n'
        'fix: run the same command again: it goes on from there'
      )
    self.versions = run_folder.versions(hardware.name())
    self.run = run_folder.Run.open(
      self.workdir,
      dataclasses.asdict(self.cfg),
      log=self.cfg.log,
      total_steps=self.cfg.train.steps,
      primary=primary,
      resume_step=self.step,
      free=free_on_resume(self.cfg),
      versions=self.versions,
    )
    if primary:
      self.job.write_files()
    barrier('open')  # config and tokenizer are written
    self.checkpoints = checkpoint.Checkpoints(folder, self.cfg.checkpoint, self.run.print)
    self.checkpoints.delete_after(self.step)  # unfinished or corrupt: their numbers are needed again
    for note in (*self.notes, *ineffective.notes(self.cfg)):
      self.run.print(note)
    return self.run

  def loop(self, should_stop):
    """Evaluate and sample, save, take a batch, step, log: in this order, until the last step."""
    if result := self.begin():
      return result
    self.job.raise_if_preempted = functools.partial(self.between, should_stop)
    while True:
      try:
        return self.end(self.go_on(should_stop))
      except loss_guard.GoBack as error:
        self.go_back(error)

  def go_on(self, should_stop):
    """Steps, and what comes between them -> what `look` ended with."""
    n = self.cfg.train.steps_per_call
    while not (ending := self.look(should_stop)):
      self.start_profile()
      start = time.perf_counter()
      batch = to_devices(next_batches(self.loader, n), self.mesh, n > 1)
      if self.compiled is None:
        self.compile(batch)
        start = time.perf_counter()
      with jax.transfer_guard('disallow'):
        step = self.twice if self.due(self.cfg.train.sdc_every) else self.compiled
        self.state, metrics = step(self.state, batch)
      self.advance(metrics, time.perf_counter() - start)
    return ending

  def go_back(self, error):
    """Go on from the last good checkpoint, with the data after the steps that were skipped."""
    batch = error.step + self.offset()
    self.checkpoints.wait_until_finished()
    step = self.checkpoints.latest_good(error.before)
    if step in (None, self.back):  # there is none, or it did not help
      raise error
    self.checkpoints.delete_after(step)
    self.state = self.checkpoints.restore(step, self.program.abstract)
    self.loader.restore({'next_batch': batch, 'fingerprint': self.loader.fingerprint})
    self.meter.rewind(self.checkpoints.read_extra(step))
    self.run.go_back(step)
    self.run.event('go_back', step=step, after=error.step, next_batch=batch)
    self.run.print(f'too many skipped steps up to {error.step}: going on from step {step}')
    self.step = self.saved = self.back = step

  def offset(self):
    """Number of the batch that the run would take at step 0."""
    return self.loader.state()['next_batch'] - self.step

  def begin(self):
    """Say what is about to be trained -> the result, if that was done before."""
    if result := self.finished():
      self.run.print(f'this run is done; its report: {self.workdir / "report.html"}')
      return result
    self.run.print(f'{self.job.describe()}, from step {self.step}')
    return None

  def finished(self):
    """The result of a run that was trained to its end before, else {}."""
    return run_folder.read_result(self.workdir) if self.step == self.cfg.train.steps else {}

  def due(self, every):
    """Whether something done every so often is done before the next step."""
    return due(every, self.step, self.cfg.train.steps)

  def looks(self):
    """Whether `look` needs the state."""
    cfg = self.cfg
    often = (cfg.train.eval_every, cfg.train.sample_every, cfg.checkpoint.every)
    return any(map(self.due, often)) or self.probes()

  def probes(self):
    """Whether a probe is due."""
    return self.cfg.train.probe_every > 0 and self.due(self.cfg.train.probe_every)

  def look(self, should_stop):
    """Between two steps: evaluate, sample and save if due -> 'stopped', 'done' or '' to go on."""
    cfg = self.cfg.train
    if self.profiling and self.step >= cfg.profile[1]:
      self.settle()
      self.stop_profile()
    stopping = should_stop(self.step)
    if not stopping:
      try:
        self.examine()
      except Interrupted:  # the run does it again when it goes on
        stopping = True
    if self.step > self.saved and (stopping or self.due(self.cfg.checkpoint.every)):
      self.save()  # before the data iterator moves: step and data agree
      self.saved = self.step
    self.checkpoints.poll()
    return 'stopped' if stopping else 'done' if self.step == cfg.steps else ''

  def examine(self):
    """Evaluate, sample and probe, what is due of it."""
    if self.due(self.cfg.train.eval_every):
      self.evaluate()
    if self.due(self.cfg.train.sample_every):
      self.sample()
    if self.probes():
      self.probe()

  def between(self, should_stop):
    """Called between batches of an evaluation: Interrupted if the run is to stop."""
    if should_stop(self.step):
      raise Interrupted

  def advance(self, metrics, seconds):
    """Account for a call of the step, whose metrics are still on the device."""
    self.step += self.cfg.train.steps_per_call
    self.meter.add_step_time(seconds)
    self.log()  # of the calls before: the device is already busy with this one
    self.meter.add(self.step, metrics)

  def end(self, ending):
    """What `look` ended with -> the result, None if the run was stopped."""
    self.settle()
    self.log(force=True)
    self.checkpoints.wait_until_finished()
    try:
      return self.stopped() if ending == 'stopped' else self.conclude()
    except Interrupted:  # the last step is saved
      return self.stopped()

  def close(self):
    """End what runs beside the loop, also after an error: what is being saved gets finished."""
    self.stop_profile()
    self.loader.close()
    self.checkpoints.close()

  def compile(self, batch):
    """Compile the step for batches of this shape, once: another shape would be an error."""
    start = time.perf_counter()
    self.compiled = self.program.step.lower(self.state, batch).compile()
    self.twice = sdc.ReplayedStep(self.compiled, self.mesh)
    self.run.event('compile', step=self.step, seconds=time.perf_counter() - start)

  def log(self, force=False):
    """Fetch and write an interval of log.every steps when it is complete."""
    book = self.meter
    if not book.pending or not (force or book.interval_is_complete(self.cfg.log.every)):
      return
    step, scalars, found = book.fetch(self.job.pop_scalars)
    scalars |= self.job.utilization(scalars[f'{self.job.unit}_per_second'])
    scalars['memory_gib'] = hardware.memory_gib()
    if found['skipped'].any():
      self.run.event(
        'skipped', step=step, **loss_guard.describe_skips(found, step, self.loader, self.offset())
      )
    self.run.log(step, scalars)
    loss_guard.raise_if_too_many(found, step, self.cfg.train)

  def settle(self):
    """Wait for the device: what comes next is not charged to the steps."""
    self.meter.block_until_ready(self.state)

  def evaluate(self):
    """Score the validation data, the same part each time; for the result, all of it."""
    self.settle()
    start, limit = time.perf_counter(), self.cfg.train.eval_tokens
    self.valid, self.evaluations = self.job.validate(self.state, limit)
    if not self.valid:  # no validation data
      return
    self.run.log(self.step, self.valid)
    seconds = time.perf_counter() - start
    self.run.event('evaluate', step=self.step, seconds=seconds, **self.valid)
    if limit and self.step == self.cfg.train.steps:
      self.valid, self.evaluations = self.job.validate(self.state, 0)

  def sample(self):
    """Keep what the model makes now."""
    self.settle()
    for content, name, suffix in self.job.samples(self.state):
      self.run.sample(self.step, content, name=name, suffix=suffix)

  def probe(self):
    """Keep how large activations, gradients, updates and parameters are on the run's batch 0."""
    self.settle()
    if self.prober is None:
      program, accumulate = self.program, self.cfg.train.accumulate
      self.prober = probes.compile_probe(
        program.optimizer, program.objective, accumulate, program.dtype, self.mesh
      )
      self.probed = to_devices(self.loader.first(), self.mesh)
    self.run.probe(self.step, probes.by_layer(self.prober(self.state, self.probed)))

  def save(self):
    """Start writing a checkpoint; what is logged so far belongs to it."""
    self.settle()
    self.log(force=True)
    extra = {
      'config': dataclasses.asdict(self.cfg),
      **self.job.checkpoint_extra(),
      'data': self.loader.state(),
      **self.meter.state(),
    }
    start = time.perf_counter()
    self.checkpoints.save(self.step, self.state, extra)
    self.run.event('checkpoint', step=self.step, blocked_seconds=time.perf_counter() - start)

  def start_profile(self):
    """Start a trace if this step is in the window of train.profile."""
    first, last = self.cfg.train.profile or (0, 0)
    if not self.profiling and first <= self.step < last:
      jax.profiler.start_trace(str(self.workdir / 'profile'))
      self.profiling = True

  def stop_profile(self):
    """Write the trace, if one is being made: of fewer steps than asked where the run ends."""
    if self.profiling:
      jax.profiler.stop_trace()
      self.profiling = False
      self.run.print(f'profile up to step {self.step} in {self.workdir / "profile"}')

  def stopped(self):
    """Asked to stop: all is saved."""
    self.run.event('preempted', step=self.step)
    self.run.print(f'stopped and saved after step {self.step}; the same command goes on from here')

  def conclude(self):
    """Write result.json and report.html -> the result."""
    self.evaluations = [*self.evaluations, *self.job.finish(self.state, self.run.print)]
    changed = run_folder.changes(dataclasses.asdict(type(self.cfg)()), dataclasses.asdict(self.cfg))
    book, lines = self.meter, run_folder.read_metrics(self.workdir) if self.run.primary else ()
    result = {
      'steps': self.step,
      'loss': book.latest.get('loss'),
      **self.valid,
      'parameters': self.job.parameters,
      **book.totals(),
      **({'flops': self.job.flops['full'] * book.tokens} if self.job.flops else {}),
      'tail': meter.tail(lines, self.step, book.unit),
      'hyper': {name: float(value) for name, value in jax.device_get(self.state.hyper).items()},
      'data': meter.data_hash(self.loader.fingerprint),
      **self.job.provenance(),
      'hardware': hardware.name(),
      'peak': hardware.peak_flops(),
      'evaluations': self.evaluations,
      'defaults_diff': {key: default for key, (default, _) in changed.items()},
      'versions': self.versions,
    }
    self.run.result(result)
    self.run.event('done', step=self.step)
    if self.run.primary:
      from gpt_jax.reports import run_report  # matplotlib takes a second to import

      self.run.print(f'report: {run_report.write_report(self.workdir)}')
    barrier('done')  # who leaves a job heeds no signals any more, and the first one still writes
    return result


JOBS = {
  'gpt': language_model.LanguageModelJob,
  'image_tokenizer': codec.ImageTokenizerJob,
  'audio_tokenizer': codec.AudioTokenizerJob,
}
