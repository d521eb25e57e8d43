"""The training loop: set up, then save, evaluate, batch, step, log, in that order, until done.

One device or a thousand, one process or many: the same path. step.py has what a step computes,
training/session.py what happens between steps, and a job (a row of JOBS) what is trained.
"""

import dataclasses
import time

import jax

from gpt_jax.jobs import codec, distillation, language_model, policy, preferences
from gpt_jax.sharding import make_mesh
from gpt_jax.training import evaluations, session, start
from gpt_jax.training.loss_guard import GoBack


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Length and size of the training, and the period of everything that happens between steps."""

  job: str = 'gpt'  # a row of JOBS: what is trained
  steps: int = 2000  # batches, one optimizer step each, skipped steps included
  batch_size: int = 32  # rows per step, over all devices and micro-batches
  length: int = 0  # tokens per row; 0 = model.context
  accumulate: int = 1  # micro-batches per step
  steps_per_call: int = 1  # optimizer steps in one compiled call; more for tiny models
  seed: int = 0  # of initial values, dropout and data order
  eval_every: int = 250  # steps between validations; 0 = only at the end
  eval_tokens: int = 65536  # validation tokens (or items) scored each time; 0 = all (at the end always all)
  sample_every: int = 500  # steps between samples; 0 = only at the end
  sample_prompts: tuple[str, ...] = ('\n',)  # prompts of the text samples; () = none
  tasks: tuple[str, ...] = ()  # rows of evaluation.evaluate.TASKS to run at the end
  tasks_every: int = 0  # steps between runs of tasks before the end; 0 = never
  tasks_limit: int = 100  # examples of each source in these runs; 0 = as at the end
  probe_every: int = 0  # steps between measurements of every layer (probes.jsonl); 0 = never
  init_from: str = ''  # RUN or RUN@STEP whose parameters to start from, with a fresh optimizer
  branch_from: str = ''  # RUN or RUN@STEP to continue in a new folder, with optimizer, data and step number
  hang_seconds: float = 3600.0  # without progress until the watchdog ends the process; 0 = never
  max_skipped: int = 10  # non-finite steps in a row; then the run ends or, if spike_sigma > 0, rewinds
  spike_sigma: float = 0.0  # robust deviations above the median that skip a step; 0 = no guard
  spike_window: int = 128  # applied steps that count as recent
  spike_patience: int = 3  # spikes in a row until the run rewinds to the last good checkpoint
  sdc_every: int = 0  # steps between steps that run twice and are compared bitwise; 0 = never
  profile: tuple[int, ...] = ()  # (first, last) step traced into <workdir>/profile; () = none

  def __post_init__(self):
    if self.job not in JOBS:
      raise ValueError(f'train.job={self.job!r} is not known\nfix: use one of {", ".join(JOBS)}')
    for key, least in LIMITS.items():
      if not least <= getattr(self, key) < 2**31:  # a traced step has 32 bits
        raise ValueError(f'train.{key}={getattr(self, key)} is out of range\nfix: use {least} to {2**31 - 1}')
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'train.seed={self.seed} is not a 32-bit number\nfix: use 0 to 4294967295')
    if self.batch_size % self.accumulate:
      raise ValueError(
        f'train.accumulate={self.accumulate} does not divide train.batch_size={self.batch_size}\n'
        'fix: make batch_size a multiple of accumulate'
      )
    for key in ('steps', 'eval_every', 'tasks_every', 'sample_every', 'probe_every', 'sdc_every'):
      if getattr(self, key) % self.steps_per_call:
        raise ValueError(
          f'train.{key}={getattr(self, key)} is not a multiple of train.steps_per_call='
          f'{self.steps_per_call}\nfix: make it one'
        )
    if self.profile and not (len(self.profile) == 2 and self.profile[0] < self.profile[1]):
      raise ValueError(f'train.profile={self.profile} is not a window\nfix: use (first, last step)')


def train(cfg, workdir, should_stop=lambda step: False):
  """Train, or resume the run in `workdir`; return its result (also in result.json), None if stopped.

  should_stop: called in all processes with the number of steps done, before each step and between
  evaluation batches; True saves and returns None.
  Raises ValueError for a config or folder to correct, FloatingPointError when gradients stay non-finite.
  """
  workdir = start.check_workdir(cfg, workdir)
  mesh = make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    # Tokenizers, data, model and optimizer; the state restored from a checkpoint, or new. Nothing is written.
    s = session.setup(cfg, workdir, mesh, JOBS[cfg.train.job])
    with session.acquire_run_dir(s):
      if result := session.finished_result(s):
        session.write_report(s, 'this run is done; its report', again=False)  # a kill may have come before it
        return result
      s.run.print(f'run folder: {workdir}\n{s.job.describe()}, from step {s.step}')

      while True:
        try:
          session.save_if_due(s, stopping=False)  # first: an evaluation that fails then loses nothing
          stopping = should_stop(s.step) or not evaluations.run_due_evals(s, should_stop)
          session.save_if_due(s, stopping)
          if stopping or s.step == cfg.train.steps:
            break
          session.update_profile(s)
          began = time.perf_counter()
          batch = session.next_batch(s)
          compiled_step = session.step_function(s, batch)
          with jax.transfer_guard('disallow'):
            s.state, metrics = compiled_step(s.state, batch)
          # Logs the steps before: the device is computing this one, and its metrics are fetched later.
          session.record_step(s, metrics, time.perf_counter() - began)
        except GoBack as error:  # raised by logging: too many skipped steps in a row
          session.rewind(s, error)

      result = session.finish(s, stopping)
      if result:
        session.write_report(s)
      return result


LIMITS = {  # the least value of each number
  **dict.fromkeys(('steps', 'batch_size', 'accumulate', 'steps_per_call'), 1),
  **dict.fromkeys(('max_skipped', 'spike_window', 'spike_patience'), 1),
  **dict.fromkeys(('length', 'eval_every', 'eval_tokens', 'sample_every', 'probe_every'), 0),
  **dict.fromkeys(('tasks_every', 'tasks_limit', 'hang_seconds', 'spike_sigma', 'sdc_every'), 0),
}
JOBS = {
  'gpt': language_model.LanguageModelJob,
  'dpo': preferences.PreferenceJob,
  'grpo': policy.PolicyJob,
  'distil': distillation.DistillationJob,
  'image_tokenizer': codec.ImageTokenizerJob,
  'audio_tokenizer': codec.AudioTokenizerJob,
}
