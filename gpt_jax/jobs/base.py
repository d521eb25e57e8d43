"""The protocol of a job: what the training loop asks of the thing that it trains."""

from typing import Any, Protocol


def trains_gpt(job):
  """Return whether a row of train.JOBS, by name, trains a GPT: all but the tokenizers do."""
  return not job.endswith('_tokenizer')


PREPARED = {'train.steps_per_call': 1, 'train.probe_every': 0}  # of jobs with a `prepare_batch`


def check_settings(cfg, wanted, cause):
  """Raise ValueError for a config key without the value of `wanted`; cause: why the job needs it."""
  for key, value in wanted.items():
    section, _, name = key.partition('.')
    if (found := getattr(getattr(cfg, section), name)) != value:
      raise ValueError(
        f'{key}={found} is not possible with train.job={cfg.train.job}, {cause}\nfix: use {key}={value!r}'
      )


def check_pooled(cfg):
  """Raise ValueError for shares of sources in a job that draws the items of all of them alike."""
  check_settings(cfg, {'data.stages': ''}, 'which draws items of all sources alike')
  for name, source in cfg.data.mixture.items():
    if source.weight not in (0, 1):
      raise ValueError(
        f'data.mixture.{name}.weight={source.weight} has no effect with train.job={cfg.train.job}, which '
        'draws items of all sources alike\nfix: use 1.0, or 0.0 to leave the source out'
      )


class Job(Protocol):
  """A model, its data and its program. `__init__(cfg, workdir, mesh)` builds and checks everything.

  The constructor writes nothing but token caches. Its errors are ValueErrors about the config. A method
  with a body here is optional.
  """

  unit: str  # plural name of what `tokens` counts: 'tokens', 'images', 'crops'
  loader: Any  # data.batches.BatchLoader of the training batches
  program: Any  # step.Program: abstract state, init, compiled step
  parameters: int  # entries of all parameters
  base: dict | None = None  # reference to the frozen base of adapters, in each of their checkpoints
  scores: tuple = ('valid_loss',)  # by `validate`, in result.json and at each evaluation
  logged: tuple = ()  # numbers of its steps beside those of every job
  scored_tasks: tuple = ()  # of the rows of `validate` and `finish` beside train.tasks
  loss_unit: str = 'per token'  # of valid_loss
  flops: dict = {}  # {'full', 'causal'}: FLOPs per token by convention; {} if there is no convention

  @classmethod
  def documents_per_row(cls, cfg):
    """Return how many times train.length tokens a row of a batch has."""
    return 1

  def example_batch(self):
    """Return a batch of training's shapes and dtypes; called to trace the step."""

  def prepare_batch(self, batch, state):
    """Return the batch on the mesh with what a model adds to it; called before each call of the step.

    state: before the step. `example_batch` has these entries, too. Trained alone only, not as a replica.
    """
    del state
    return batch

  def load_initial_weights(self, state, folder, step):
    """Return the state with the parameters of train.init_from, a run's verified checkpoint; for a new run."""
    return state

  def load_encoders(self, state):
    """Return the state of a new run without train.init_from with the weights of pretrained parts."""
    return state

  def parents(self):
    """Return {config key: RUN or RUN@STEP} of the runs that it needs beside init_from and branch_from."""
    return {}

  def load_frozen(self, state, extra):
    """Return the state with the frozen base of adapters, which extra, of its checkpoint, names."""
    return state

  def write_files(self):
    """Write the run folder's files besides checkpoints; called in process 0 when a run starts."""

  def describe(self):
    """Return one line about the model and its data; printed when a run starts or resumes."""

  def cleaning(self):
    """Return {source: {removed: {reason: n}, replaced: {row: n}}} of sources that are cleaned."""
    return {}

  def checkpoint_extra(self):
    """Return JSON that a checkpoint needs to be used without its run folder; called at each save."""
    return {}

  def raise_if_preempted(self):
    """Raise if the run must stop; the loop replaces this function, evaluations call it per batch."""

  def pop_scalars(self, values):
    """Remove metrics that are not one number per step from {name: values by step}; return numbers.

    Called with the fetched metrics of each logged interval.
    """
    return {}

  def utilization(self, per_second):
    """Return {name: throughput as a share of the hardware's peak}; called with each logged interval."""
    return {}

  def validate(self, state, limit):
    """Return ({score: number}, rows of result.json) on the validation data.

    limit: how many of `unit` to score, 0 = all. Called at each train.eval_every and at the end.
    """

  def samples(self, state):
    """Yield (content, name, suffix) of each sample; called at each train.sample_every and at the end."""

  def run_tasks(self, state, limit):
    """Return rows of train.tasks on `limit` validation examples a source; called at train.tasks_every."""
    return []

  def finish(self, state, say):
    """Run what is due once after the last step and return its rows of result.json; say: print a line."""

  def validation_digest(self):
    """Return a hash of the validation data where it is more than the sources' files; called by studies."""
    return ''

  def loss_settings(self):
    """Return {config key: value} of what gives valid_loss another scale; called by studies."""
    return {}

  def provenance(self):
    """Return fields of result.json about where the data's encoding comes from."""
    return {}
