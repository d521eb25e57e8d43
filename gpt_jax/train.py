"""The training loop: setup, then evaluate, save, batch, step, log, in that order, until done.

One device or a thousand, one process or many: the same path. What a step computes is in step.py;
what is trained is a job, a row of JOBS: the GPT (language.py) or a learned tokenizer (codec.py).
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from gpt_jax import checkpoint, codec, hardware, language, runs
from gpt_jax.sharding import make_mesh, to_devices

# What may change between a run and its resumption: nothing that its result depends on.
FREE_ON_RESUME = ('mesh.', 'log.', 'train.tasks', 'checkpoint.', 'sample.', 'data.workers',
                  'data.prefetch', 'data.cache', 'data.reset', 'model.unroll')  # fmt: skip


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
  init_from: str = ''  # a run folder whose parameters to start from, with a fresh optimizer
  init_partial: bool = (
    False  # take what fits of init_from, report the rest; else any mismatch is an error
  )
  max_skipped: int = 10  # non-finite steps in a row before giving up
  profile: tuple[
    int, ...
  ] = ()  # (first step, last step) to trace into <workdir>/profile; () = none

  def __post_init__(self):
    if self.job not in JOBS:
      raise ValueError(f'train.job={self.job!r} is not known\nfix: use one of {", ".join(JOBS)}')
    for key in ('steps', 'batch_size', 'accumulate', 'steps_per_call', 'max_skipped'):
      if getattr(self, key) < 1:
        raise ValueError(f'train.{key}={getattr(self, key)} is too small\nfix: use at least 1')
    for key in ('length', 'eval_every', 'eval_tokens', 'sample_every'):
      if getattr(self, key) < 0:
        raise ValueError(f'train.{key}={getattr(self, key)} is negative\nfix: use 0 or more')
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'train.seed={self.seed} is no 32-bit number\nfix: use 0 to 4294967295')
    if self.init_partial and not self.init_from:
      raise ValueError('train.init_partial=True takes from nothing\nfix: set train.init_from')
    if self.batch_size % self.accumulate:
      raise ValueError(
        f'train.accumulate={self.accumulate} does not divide train.batch_size={self.batch_size}\n'
        'fix: make batch_size a multiple of accumulate'
      )
    for key in ('steps', 'eval_every', 'sample_every'):
      if getattr(self, key) % self.steps_per_call:
        raise ValueError(
          f'train.{key}={getattr(self, key)} is no multiple of train.steps_per_call='
          f'{self.steps_per_call}\nfix: make it one'
        )
    if self.profile and not (len(self.profile) == 2 and self.profile[0] < self.profile[1]):
      raise ValueError(
        f'train.profile={self.profile} is no window\nfix: use (first step, last step)'
      )


# -------------------------------------------------------------------------------------- setup


def initial_state(job, cfg, workdir):
  """-> (state, step, extra, notes): from the newest good checkpoint, or from `init_from`, or new.

  Changes nothing on disk. notes: lines for the reader.
  """
  notes = []
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', report=notes.append)
  step = checkpoints.newest_good()
  if step is not None and 'imported' in checkpoints.extra(step):
    raise ValueError(
      f'{workdir} holds an imported model, which has no optimizer to go on with\n'
      f'fix: train in a new --workdir with train.init_from={workdir}, as '
      'experiments/finetune_gpt2.py does'
    )
  if step is not None:
    return checkpoints.restore(step, job.program.abstract), step, checkpoints.extra(step), notes
  state = job.program.init()
  if cfg.train.init_from:
    state, lines = job.starting_model(state)
    notes += [f'init_from: {line}' for line in lines]
  return state, 0, None, notes


def next_batches(loader, steps_per_call, mesh):
  """The next call's batch on the devices; with several steps a call, one N axis in front."""
  if steps_per_call == 1:
    return to_devices(next(loader), mesh)
  batches = [next(loader) for _ in range(steps_per_call)]
  stacked = {name: np.stack([b[name] for b in batches]) for name in batches[0]}
  return to_devices(stacked, mesh, stacked=True)


# --------------------------------------------------------------------------------------- loop


def train(cfg, workdir, should_stop=lambda: False):
  """Train, or go on with what `workdir` holds -> the result, also in result.json.

  should_stop: asked before each step; True saves and returns None.
  Raises ValueError for what a user can mend, FloatingPointError when gradients stay non-finite.
  """
  if jax.process_index() == 0:
    runs.check_workdir(workdir, dataclasses.asdict(cfg), free=free_on_resume(cfg))
  workdir = Path(workdir).expanduser()  # not before: a Path makes gs://x the local gs:/x
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


def free_on_resume(cfg):
  """Which keys may differ from the stored config: with data.reset, the data too."""
  return (*FREE_ON_RESUME, 'data.') if cfg.data.reset else FREE_ON_RESUME


def due(every, step, steps):
  """Whether something done every so often (0 = only at the end) is done before this step."""
  return step == steps or (every > 0 and step > 0 and step % every == 0)


class Training:
  """One run under way."""

  def __init__(self, cfg, workdir, mesh):
    """Make and check everything; nothing is written but token caches."""
    self.cfg, self.workdir, self.mesh = cfg, workdir, mesh
    self.job = JOBS[cfg.train.job](cfg, workdir, mesh)
    self.loader, self.program = self.job.loader, self.job.program
    self.trace()
    self.state, self.step, extra, self.notes = initial_state(self.job, cfg, workdir)
    self.tokens = 0.0  # targets (or images, clips) trained on, over all sessions of the run
    self.seconds = 0.0  # in steps, evaluation and saving left out, over all sessions
    self.pending = []  # (steps done, metrics on the device) of calls not logged yet
    self.lap = 0.0  # seconds in steps since the last log
    self.profiling = False
    self.latest = {}  # last logged metrics
    if extra is not None:
      self.tokens, self.seconds = extra['tokens'], extra['seconds']
      self.latest = extra['latest']
      self.notes += [f'data.reset: {line}' for line in self.loader.restore(extra['data'])]
    self.evaluations = []  # rows of the last evaluation
    self.valid = {}  # its headline numbers

  def trace(self):
    """Trace the step: a kernel that cannot honour a mask is refused before anything is written."""
    n = self.cfg.train.steps_per_call
    stack = lambda x: jax.ShapeDtypeStruct(x.shape if n == 1 else (n, *x.shape), x.dtype)
    batch = {k: stack(v) for k, v in self.job.example().items()}
    jax.eval_shape(self.program.step, self.program.abstract, batch)

  def open(self):
    """Take the run folder, write what a run begins with -> the open runs.Run."""
    primary = jax.process_index() == 0
    self.run = runs.Run.open(
      self.workdir, dataclasses.asdict(self.cfg), log=self.cfg.log,
      total_steps=self.cfg.train.steps, primary=primary, resume_step=self.step,
      free=free_on_resume(self.cfg), versions=runs.versions(hardware.name()),
    )  # fmt: skip
    if primary:
      self.job.save()
    folder = self.workdir / 'checkpoints'
    self.checkpoints = checkpoint.Checkpoints(folder, self.cfg.checkpoint, self.run.print)
    self.checkpoints.drop_after(self.step)  # unfinished or corrupt: their numbers are needed again
    for note in self.notes:
      self.run.print(note)
    return self.run

  def loop(self, should_stop):
    """Evaluate and sample, save, take a batch, step, log: in this order, until the last step."""
    cfg, steps, n = self.cfg.train, self.cfg.train.steps, self.cfg.train.steps_per_call
    if self.step == steps and (result := runs.read_result(self.workdir)):
      self.run.print(f'this run is done; its report: {self.workdir / "report.html"}')
      return result
    self.run.print(f'{self.job.introduction()}, from step {self.step}')
    saved, train_step = self.step, None
    while True:
      if self.profiling and self.step >= cfg.profile[1]:
        self.settle()
        self.stop_profile()
      if due(cfg.eval_every, self.step, steps):
        self.evaluate()
      if due(cfg.sample_every, self.step, steps):
        self.sample()
      stopping = should_stop()
      if self.step > saved and (stopping or due(self.cfg.checkpoint.every, self.step, steps)):
        self.save()  # before the data iterator moves: step and data agree
        saved = self.step
      self.checkpoints.poll()
      if stopping or self.step == steps:
        break
      self.start_profile()
      start = time.perf_counter()
      batch = next_batches(self.loader, n, self.mesh)
      if train_step is None:
        train_step = self.compile(batch)
        start = time.perf_counter()
      with jax.transfer_guard('disallow'):
        self.state, metrics = train_step(self.state, batch)
      self.step += n
      self.lap += time.perf_counter() - start
      self.log()  # of the calls before: the device is already busy with this one
      self.pending.append((self.step, metrics))
    self.settle()
    self.log(force=True)
    self.checkpoints.finish()
    return self.stopped() if stopping else self.conclude()

  def close(self):
    """End what runs beside the loop, also after an error: what is being saved gets finished."""
    self.stop_profile()
    self.loader.close()
    self.checkpoints.close()

  def compile(self, batch):
    """The step for batches of this shape, compiled once: another shape would be an error."""
    start = time.perf_counter()
    compiled = self.program.step.lower(self.state, batch).compile()
    self.run.event('compile', step=self.step, seconds=time.perf_counter() - start)
    return compiled

  def log(self, force=False):
    """Fetch and write an interval of log.every steps when it is complete."""
    every, n = self.cfg.log.every, self.cfg.train.steps_per_call
    if not self.pending or not (
      force or self.pending[-1][0] // every > (self.pending[0][0] - n) // every
    ):
      return
    start = time.perf_counter()
    fetched = jax.device_get([metrics for _, metrics in self.pending])
    self.lap += time.perf_counter() - start
    stacked = (lambda x: x) if n > 1 else (lambda x: np.asarray(x)[None])  # one axis of steps
    values = {k: np.concatenate([stacked(m[k]) for m in fetched]) for k in fetched[0]}
    step, tokens, seconds = self.pending[-1][0], float(values.pop('tokens').sum()), self.lap
    self.pending, self.lap = [], 0.0
    self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
    means = {k: float(values.pop(k).mean()) for k in ('loss', 'objective')}
    means |= self.job.scalars(values)
    skipped, in_a_row = values.pop('skipped'), int(values.pop('skipped_in_a_row')[-1])
    unit, rate = self.job.unit, tokens / seconds
    scalars = {k: float(v[-1]) for k, v in values.items()} | means | self.job.speed(rate)
    scalars |= {f'{unit}_per_second': rate, 'memory_gib': hardware.memory_gib()}
    scalars |= {'step_seconds': seconds / len(skipped), unit: self.tokens}
    if skipped.any():
      scalars['skipped'] = float(skipped.sum())
      self.run.event('skipped', step=step, updates=int(skipped.sum()))
    self.latest = scalars
    self.run.log(step, scalars)
    if in_a_row >= self.cfg.train.max_skipped:
      raise FloatingPointError(
        f'the gradient was not finite in {in_a_row} steps in a row, up to step {step}; '
        'none was applied\n'
        'fix: start again in a new --workdir with a lower optim.lr'
      )

  def settle(self):
    """Wait for the device, on the clock of the steps: what comes next is not charged for them."""
    start = time.perf_counter()
    jax.block_until_ready(self.state)
    self.lap += time.perf_counter() - start

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

  def save(self):
    """Start writing a checkpoint; what is logged so far belongs to it."""
    self.settle()
    self.log(force=True)
    extra = {
      'config': dataclasses.asdict(self.cfg),
      **self.job.extra(),
      'data': self.loader.state(),
      'tokens': self.tokens,
      'seconds': self.seconds,
      'latest': self.latest,
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
    changed = runs.changes(dataclasses.asdict(type(self.cfg)()), dataclasses.asdict(self.cfg))
    unit, rate = self.job.unit, self.tokens / self.seconds if self.seconds else None
    result = {
      'steps': self.step,
      'loss': self.latest.get('loss'),
      **self.valid,
      'parameters': self.job.parameters,
      unit: self.tokens,
      'seconds': self.seconds,
      f'{unit}_per_second': rate,
      **({'flops': self.job.flops['full'] * self.tokens} if self.job.flops else {}),
      'hardware': hardware.name(),
      'peak': hardware.peak_flops(),
      'evaluations': self.evaluations,
      'defaults_diff': {key: default for key, (default, _) in changed.items()},
      'versions': runs.versions(hardware.name()),
    }
    self.run.result(result)
    self.run.event('done', step=self.step)
    if self.run.primary:
      from gpt_jax import report  # matplotlib takes a second to import

      self.run.print(f'report: {report.write_report(self.workdir)}')
    return result


JOBS = {
  'gpt': language.Language,
  'image_tokenizer': codec.ImageCodec,
  'audio_tokenizer': codec.AudioCodec,
}
