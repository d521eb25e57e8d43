"""One run in progress: how it is set up, and what happens to it between two steps.

`train` calls these functions in order; a group of vmapped replicas calls them once per run.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax.cluster import agreement
from gpt_jax.cluster.batches import to_devices
from gpt_jax.cluster.processes import barrier, main_process_first
from gpt_jax.runs import ancestry, hardware, provenance, records, run_folder
from gpt_jax.training import checkpoint, checkpoint_writer, ineffective, loss_guard, meter, sdc, start
from gpt_jax.training.evaluations import Preempted, is_due
from gpt_jax.training.memory import check_program, check_state
from gpt_jax.training.privacy import settings

SILENCE = 30  # seconds of steps before the first metrics, after which a run says that it is under way


@dataclasses.dataclass
class Session:
  """One process's part of one run. Mutable: `state` and `step` change with every step."""

  cfg: Any  # config.Config
  workdir: Path
  mesh: jax.sharding.Mesh
  job: Any  # jobs.base.Job: tokenizers, data, program
  meter: meter.Meter  # tokens, seconds, pending metrics
  state: Any  # step.TrainState
  step: int  # updates done
  notes: list  # lines to print when the run starts
  parents: list | None  # entries of ancestry; None for a run that resumes
  steps_on_disk: list  # checkpoints when the session was set up
  versions: dict  # of packages, source and device
  saved_step: int = 0  # of the last checkpoint
  rewound_to: int = -1  # step of the last rewind
  run: Any = None  # run_folder.Run, once acquired
  checkpoints: Any = None  # checkpoint_writer.CheckpointWriter, once acquired
  compiled_step: Any = None
  replayed_step: Any = None  # runs the compiled step twice and compares
  probe: Any = None  # (compiled probe, batch), once used
  profiling: bool = False
  valid: dict = dataclasses.field(default_factory=dict)  # scores of the last evaluation
  evaluations: list = dataclasses.field(default_factory=list)  # its rows


# ------------------------------------------------------------------------------------------- setup


def setup(cfg, workdir, mesh, job_class, replicas=1, trace=True):
  """Build a Session with its state restored or initialized; nothing is written but token caches.

  job_class: a row of train.JOBS. replicas: runs that share the machine. trace: False where the step was
  traced before; tracing refuses a kernel that cannot honor a mask before anything is written.
  """
  timer = meter.Meter(job_class.unit, cfg.train.steps_per_call, replicas)
  with main_process_first():  # it writes caches and tokenizers, the others read them
    job = job_class(cfg, workdir, mesh)
  # Each process reads the files by itself; the loader has the digests of what it read.
  agreement.require_equal_data(job.loader.fingerprint)
  if trace:
    jax.eval_shape(job.program.step, job.program.abstract, abstract_batch(cfg, job))
  check_state(job.program.abstract)
  timer.mark_phase('setup')
  steps_on_disk = checkpoint.Checkpoints(workdir / 'checkpoints').steps()
  begun = start.begin(job, cfg, workdir)
  versions = provenance.versions(hardware.name())
  timer.mark_phase('restore')
  if begun.extra is not None:
    timer.restore(begun.extra)
  fields = begun.state, begun.step, begun.notes, begun.parents
  return Session(cfg, workdir, mesh, job, timer, *fields, steps_on_disk, versions, saved_step=begun.step)


def abstract_batch(cfg, job):
  """Return the shapes and dtypes that one call of the step reads."""
  n = cfg.train.steps_per_call
  stack = lambda x: jax.ShapeDtypeStruct(x.shape if n == 1 else (n, *x.shape), x.dtype)
  return {name: stack(x) for name, x in job.example_batch().items()}


@contextlib.contextmanager
def acquire_run_dir(s):
  """Lock the run folder, write what a run starts with; on exit finish the writes and release it."""
  primary, folder = jax.process_index() == 0, s.workdir / 'checkpoints'
  if primary and checkpoint.Checkpoints(folder).steps() != s.steps_on_disk:
    raise ValueError(
      f'workdir={s.workdir}: another process has saved a checkpoint there during setup\n'
      'fix: run the same command again: it resumes from that checkpoint'
    )
  s.run = run_folder.acquire_run_dir(
    s.workdir,
    dataclasses.asdict(s.cfg),
    log=s.cfg.log,
    total_steps=s.cfg.train.steps,
    primary=primary,
    resume_step=s.step,
    free=start.free_on_resume(s.cfg, s.workdir),
    versions=s.versions,
  )
  with s.run:
    try:
      if primary:
        s.job.write_files()
        if s.parents is not None:
          ancestry.write_parents(s.workdir, s.parents)
      barrier('run folder acquired')  # config and tokenizer are written
      s.checkpoints = checkpoint_writer.CheckpointWriter(folder, s.cfg.checkpoint, s.run.print)
      s.checkpoints.delete_after(s.step)  # unfinished or corrupt: their numbers are needed again
      ignored = [f'note: {line}' for line in ineffective.notes(s.cfg)]
      for note in (*s.notes, *ignored, *settings.notes(s.cfg)):
        s.run.print(note)
      if counts := s.job.cleaning():
        s.run.event('clean', sources=counts)
      yield
    except ValueError as error:  # the run had started: not a matter of arguments any more
      raise RuntimeError(str(error)) from error
    finally:
      stop_profile(s)
      s.job.loader.close()
      if s.checkpoints:
        s.checkpoints.close()


def finished_result(s):
  """Return the result of a run that was trained to its end before, else {}."""
  return run_folder.read_result(s.workdir) if s.step == s.cfg.train.steps else {}


# ------------------------------------------------------------------------------- between two steps


def save_if_due(s, stopping):
  """Start writing a checkpoint if due or stopping, before the data iterator moves: step and data agree."""
  if s.step > s.saved_step and (stopping or is_due(s, s.cfg.checkpoint.every)):
    save(s)
    s.saved_step = s.step
  s.checkpoints.poll()


def save(s):
  """Start writing a checkpoint, after logging the steps that belong to it."""
  s.meter.block_until_ready(s.state)
  log_pending(s, force=True)
  extra = {'step': s.step, 'config': dataclasses.asdict(s.cfg), 'data': s.job.loader.state()}
  extra |= s.job.checkpoint_extra() | s.meter.state()
  start = time.perf_counter()
  s.checkpoints.save(s.step, s.state, extra)
  s.run.event('checkpoint', step=s.step, blocked_seconds=time.perf_counter() - start)


def next_batches(loader, steps_per_call):
  """Return the next call's batch on the host; for several steps per call, with a leading axis of steps."""
  if steps_per_call == 1:
    return next(loader)
  batches = [next(loader) for _ in range(steps_per_call)]
  return {name: np.stack([b[name] for b in batches]) for name in batches[0]}


def next_batch(s):
  """Return the next call's batch on the mesh."""
  n = s.cfg.train.steps_per_call
  return s.job.prepare_batch(to_devices(next_batches(s.job.loader, n), s.mesh, n > 1), s.state)


def step_function(s, batch):
  """Return the compiled step, or at every train.sdc_every the one that runs twice and compares."""
  if s.compiled_step is None:
    start = time.perf_counter()
    s.compiled_step = s.job.program.step.lower(s.state, batch).compile()
    check_program(s.compiled_step)
    s.replayed_step = sdc.ReplayedStep(s.compiled_step, s.mesh)
    s.meter.add_step_time(start - time.perf_counter())  # compiling is not step time
    s.run.event('compile', step=s.step, seconds=time.perf_counter() - start)
  return s.replayed_step if is_due(s, s.cfg.train.sdc_every) else s.compiled_step


def record_step(s, metrics, seconds):
  """Count one call of the step; log the calls before it, while the device computes this one."""
  s.step += s.cfg.train.steps_per_call
  s.meter.add_step_time(seconds)
  waited, every = s.meter.interval_seconds, s.cfg.log.every
  if not s.meter.latest and s.step < every and waited >= SILENCE > waited - seconds:
    s.run.print(f'{s.step} steps took {waited:.0f} s with compilation; metrics follow after step {every}')
  log_pending(s)
  s.meter.add(s.step, metrics)


def log_pending(s, force=False):
  """Fetch and write the metrics of log.every steps when they are complete, or all with `force`.

  Raises FloatingPointError, or loss_guard.GoBack, after too many skipped steps in a row.
  """
  if not s.meter.pending or not (force or s.meter.interval_is_complete(s.cfg.log.every)):
    return
  step, scalars, guarded = s.meter.fetch(s.job.pop_scalars)
  scalars |= s.job.utilization(scalars[f'{s.job.unit}_per_second']) | {'memory_gib': hardware.memory_gib()}
  if guarded['skipped'].any():
    skips = loss_guard.describe_skips(guarded, step, s.job.loader, batch_offset(s))
    s.run.event('skipped', step=step, **skips)
  s.run.log(step, scalars)
  loss_guard.raise_if_too_many(guarded, step, s.cfg.train)


def batch_offset(s):
  """Number of the batch that the run would take at step 0: above 0 after a rewind."""
  return s.job.loader.state()['next_batch'] - s.step


def rewind(s, error):
  """Continue from the last good checkpoint before skipped steps, with the data that follow them.

  error: loss_guard.GoBack; raised again if there is no such checkpoint, or rewinding did not help.
  """
  next_number = error.step + batch_offset(s)
  s.checkpoints.wait_until_finished()
  step = s.checkpoints.latest_good(error.before)
  if step in (None, s.rewound_to):
    raise error
  s.checkpoints.delete_after(step)
  s.state = s.checkpoints.restore(step, s.job.program.abstract._replace(frozen=s.state.frozen))
  s.job.loader.restore(s.job.loader.state() | {'next_batch': next_number})
  s.meter.rewind(s.checkpoints.read_extra(step))
  s.run.rewind(step)
  s.run.event('go_back', step=step, after=error.step, next_batch=next_number)
  s.run.print(f'too many skipped steps up to {error.step}: resuming from step {step}')
  s.step = s.saved_step = s.rewound_to = step


def update_profile(s):
  """Start or stop the profiler at the edges of train.profile."""
  first, last = s.cfg.train.profile or (0, 0)
  if s.profiling and s.step >= last:
    s.meter.block_until_ready(s.state)
    stop_profile(s)
  elif not s.profiling and first <= s.step < last:
    jax.profiler.start_trace(str(s.workdir / 'profile'))
    s.profiling = True


def stop_profile(s):
  """Write the trace if one is recorded: of fewer steps than asked where the run ends."""
  if s.profiling:
    jax.profiler.stop_trace()
    s.profiling = False
    s.run.print(f'profile up to step {s.step} in {s.workdir / "profile"}')


# --------------------------------------------------------------------------------------------- end


def finish(s, stopping):
  """Wait for checkpoints; run train.tasks and write result.json. Return the result, None if stopped."""
  s.meter.block_until_ready(s.state)
  s.checkpoints.wait_until_finished()
  try:
    if not stopping:
      s.evaluations = [*s.evaluations, *s.job.finish(s.state, s.run.print)]
  except Preempted:  # the last step is saved
    stopping = True
  if stopping:
    s.run.event('preempted', step=s.step)
    s.run.print(f'stopped and saved after step {s.step}; the same command resumes from here')
    return None
  result = summarize(s)
  s.run.write_result(result)
  s.run.event('done', step=s.step)
  return result


def write_report(s, name='report', again=True):
  """Write report.html in process 0, while the others wait: a process that leaves would end the job."""
  if s.run.primary:
    from gpt_jax.reports import run_report  # matplotlib takes a second to import

    s.run.print(f'{name}: {run_report.describe_report(s.workdir, again)}')
  barrier('report written')


def summarize(s):
  """Return the content of result.json."""
  changed = records.diff(dataclasses.asdict(type(s.cfg)()), dataclasses.asdict(s.cfg))
  lines = run_folder.read_metrics(s.workdir) if s.run.primary else ()
  return {
    'steps': s.step,
    'loss': s.meter.latest.get('loss'),
    **s.valid,
    'parameters': s.job.parameters,
    **s.meter.totals(),
    **({'flops': s.job.flops['full'] * s.meter.tokens} if s.job.flops else {}),
    'tail': meter.tail(lines, s.step, s.job.unit),
    'parents': ancestry.summarize(ancestry.read_parents(s.workdir), dataclasses.asdict(s.cfg)),
    'hyper': {name: float(value) for name, value in jax.device_get(s.state.hyper).items()},
    'data': meter.data_hash(s.job.loader.fingerprint),
    **s.job.provenance(),
    'hardware': hardware.name(),
    'peak': hardware.peak_flops(),
    'evaluations': s.evaluations,
    'defaults_diff': {key: default for key, (default, _) in changed.items()},
    'versions': s.versions,
  }
