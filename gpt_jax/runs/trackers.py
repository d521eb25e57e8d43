"""Trackers of experiments, as rows of one table: TensorBoard, Weights & Biases, MLflow and Trackio.

A tracker gets the config, the curves and the samples (texts, images and sounds) of a run, or the verdicts of
a study. The key of `log` with its name turns it on. Where data go, and whether by the network, is said by
variables of the libraries: WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_DIR.
"""

import contextlib
import contextvars
import json
import os
import wave

import numpy as np

from gpt_jax.runs import records, secrets

MLFLOW_PATIENCE = {  # its own defaults, 7 retries and 120 s, hold a run up for minutes
  'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '2',
  'MLFLOW_HTTP_REQUEST_TIMEOUT': '10',  # seconds
}
KINDS = {'.png': 'image', '.wav': 'sound', '.txt': 'text'}  # of samples, by suffix


class Tracker:
  """One run of one tracker. A row of TRACKERS is a subclass with these methods.

  Args:
    library: the package, of `load`.
    folder: path of the run or study.
    project: the value of its key of `log`.
    config: nested dict.
    run_id: '' for a new run, else that of the run to go on with, which `run_id` then holds.
    resume_step: updates already made.
  """

  def log(self, step, metrics):
    """Add {name: number} measured after `step` updates."""

  def sample(self, step, name, path):
    """Add a sample, a .txt, .png or .wav file."""

  def table(self, name, columns, rows):
    """Add a table of texts."""

  def close(self, failed):
    """End the run, with its status."""


class TensorBoard(Tracker):
  """Event files in FOLDER/tensorboard."""

  package = 'tensorboardX'

  @staticmethod
  def load():
    """Import the package."""
    import tensorboardX

    return tensorboardX

  def __init__(self, library, folder, project, config, run_id, resume_step):
    # purge_step hides this step and later ones in an earlier process's file; the suffix keeps that file,
    # whose name is its second.
    options = {'purge_step': resume_step or None, 'filename_suffix': f'.{resume_step}'}
    self.run_id, self.writer = '', library.SummaryWriter(str(folder / 'tensorboard'), **options)
    self.writer.add_text('config', preformatted(json.dumps(config, indent=2)), resume_step)

  def log(self, step, metrics):
    """Add scalars."""
    for name, value in metrics.items():
      self.writer.add_scalar(name, value, step)

  def sample(self, step, name, path):
    """Add a text, an image or a sound."""
    kind = KINDS[path.suffix]
    if kind == 'text':
      self.writer.add_text(name, preformatted(path.read_text(encoding='utf-8')), step)
    elif kind == 'image':
      import PIL.Image

      pixels_YXA = np.array(PIL.Image.open(path).convert('RGB'))
      self.writer.add_image(name, pixels_YXA, step, dataformats='HWC')
    else:
      with wave.open(str(path)) as file:
        samples_N = np.frombuffer(file.readframes(file.getnframes()), '<i2') / 32768
        self.writer.add_audio(name, samples_N[:, None], step, sample_rate=file.getframerate())

  def table(self, name, columns, rows):
    """Add a table in Markdown."""
    lines = [columns, ['---'] * len(columns), *rows]
    self.writer.add_text(name, '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines), 0)

  def close(self, failed):
    """Close the file."""
    self.writer.close()


class Wandb(Tracker):
  """A run of Weights & Biases, with its files in FOLDER/wandb."""

  package = 'wandb'

  @staticmethod
  def load():
    """Import the package."""
    import wandb

    return wandb

  def __init__(self, library, folder, project, config, run_id, resume_step):
    self.library, self.run_id = library, run_id or os.urandom(4).hex()
    name, group = title(folder)
    options = {'group': group, 'dir': str(folder), 'config': config, 'resume': 'allow'}
    self.run = library.init(project=project, name=name, id=self.run_id, reinit='create_new', **options)
    # W&B's own step counter never goes back, but late lines and resumed runs do.
    self.run.define_metric('*', step_metric='step')

  def log(self, step, metrics):
    """Add a row of the history."""
    self.run.log({'step': step, **metrics})

  def sample(self, step, name, path):
    """Add an image, a sound, or a text as a table of one row."""
    media = {'image': self.library.Image, 'sound': self.library.Audio}.get(KINDS[path.suffix])
    if media:
      self.run.log({'step': step, f'samples/{name}': media(str(path))})
    else:
      self.table(f'samples/{name}', ['step', 'text'], [[step, path.read_text(encoding='utf-8')]])

  def table(self, name, columns, rows):
    """Add a table."""
    self.run.log({name: self.library.Table(columns=list(columns), data=[list(row) for row in rows])})

  def close(self, failed):
    """Finish the run."""
    self.run.finish(exit_code=int(failed))


class MLflow(Tracker):
  """A run of MLflow; its samples are artifacts."""

  package = 'mlflow'

  @staticmethod
  def load():
    """Import the package; bound how long a request to a server that has gone holds a run up."""
    import mlflow

    for name, value in MLFLOW_PATIENCE.items():
      os.environ.setdefault(name, value)
    return mlflow

  def __init__(self, library, folder, project, config, run_id, resume_step):
    self.library, self.client = library, library.MlflowClient()
    self.run_id = run_id or self._create_run(folder, project)
    values = {key: str(value)[:500] for key, value in records.flatten(config).items()}
    params = [library.entities.Param(key, value) for key, value in values.items()] if not run_id else []
    for start in range(0, len(params), 100):  # the most that a request may hold
      self.client.log_batch(self.run_id, params=params[start : start + 100])
    self.client.update_run(self.run_id, status='RUNNING')

  def _create_run(self, folder, project):
    """Return the id of a new run."""
    experiment = self.client.get_experiment_by_name(project)
    number = experiment.experiment_id if experiment else self.client.create_experiment(project)
    name, group = title(folder)
    return self.client.create_run(number, run_name=name, tags={'study': group} if group else {}).info.run_id

  def log(self, step, metrics):
    """Add metrics."""
    now = self.library.utils.time.get_current_time_millis()
    # Its file store cannot have loss and loss/image.
    named = {name.replace('/', '.'): value for name, value in metrics.items()}
    rows = [self.library.entities.Metric(name, value, now, step) for name, value in named.items()]
    self.client.log_batch(self.run_id, metrics=rows)

  def sample(self, step, name, path):
    """Keep the file."""
    self.client.log_artifact(self.run_id, str(path), 'samples')

  def table(self, name, columns, rows):
    """Add a table, which MLflow shows beside those of other runs; its own `log_table` needs pandas."""
    self.client.log_dict(self.run_id, {'columns': list(columns), 'data': rows}, f'{name}.json')
    tables = json.dumps([{'path': f'{name}.json', 'type': 'table'}])
    self.client.set_tag(self.run_id, 'mlflow.loggedArtifacts', tables)

  def close(self, failed):
    """Set the status."""
    self.client.set_terminated(self.run_id, 'FAILED' if failed else 'FINISHED')


class Trackio(Tracker):
  """A run of Trackio, which keeps its data on this machine unless told otherwise."""

  package = 'trackio'

  @staticmethod
  def load():
    """Import the package."""
    import trackio

    return trackio

  def __init__(self, library, folder, project, config, run_id, resume_step):
    name, group = title(folder)
    self.library, self.run_id = library, run_id or f'{name}-{os.urandom(4).hex()}'
    options = {'group': group, 'config': config, 'resume': 'allow', 'embed': False}
    # In the context of an earlier run, whose place it takes, `init` ends that run.
    start = lambda: library.init(project=project, name=self.run_id, **options)
    self.run = contextvars.Context().run(start)

  def log(self, step, metrics):
    """Add metrics."""
    self.run.log(dict(metrics), step=step)

  def sample(self, step, name, path):
    """Add a text, an image or a sound."""
    media = {'image': self.library.Image, 'sound': self.library.Audio}.get(KINDS[path.suffix])
    value = media(str(path)) if media else self.library.Markdown(preformatted(path.read_text('utf-8')))
    self.run.log({f'samples/{name}': value}, step=step)

  def table(self, name, columns, rows):
    """Add a table."""
    self.run.log({name: self.library.Table(columns=list(columns), data=rows)}, step=0)

  def close(self, failed):
    """Finish the run."""
    self.run.finish()


def preformatted(text):
  """Return a text as a block of Markdown that shows it as it is."""
  return '\n'.join(f'    {line}' for line in text.splitlines())


def title(folder):
  """Return (name, group) of a run: of a study's run its arm and seed, and the study."""
  if not (folder / 'arm.json').exists():
    return folder.name, ''
  about = records.read_json(folder / 'arm.json')
  return f'{about.get("arm")} seed {about.get("seed")}', str(about.get('study', ''))


def open_tracker(name, project, *args):
  """Return the Tracker of a row of TRACKERS; args: those of a Tracker after `project`.

  Raises ValueError where its package is missing, or it cannot be reached.
  """
  row, (folder, *more) = TRACKERS[name], args
  try:
    return row(row.load(), folder, project, *more)
  except Exception as error:
    cause, fix = f'cannot be opened: {describe(error)}', 'see the settings of its library, and its service'
    if isinstance(error, ImportError):
      cause, fix = f'needs the package {row.package}: {error}', f'pip install {row.package}'
    raise ValueError(f'log.{name}={project} {cause}\nfix: {fix}, or drop log.{name}') from error


def describe(error):
  """Return the type and text of an exception of a library in one line, without passwords of addresses."""
  return secrets.redact(' '.join(f'{type(error).__name__}: {error}'.split())[:300])


def ids_of(events):
  """Return {name: run_id} of the trackers of earlier sessions, from events.jsonl."""
  ids = {}
  for event in events:
    before = {'wandb': event['wandb_id']} if 'wandb_id' in event else {}
    ids |= event['trackers'] if isinstance(event.get('trackers'), dict) else before
  return {name: run_id for name, run_id in ids.items() if isinstance(run_id, str)}


class Trackers(contextlib.AbstractContextManager):
  """All trackers of a run. One that fails is left out from then on; the run folder has everything.

  As a context manager it ends their runs.
  """

  def __init__(self, say):
    self.trackers, self.failed, self.say = {}, {}, say  # {name: Tracker}

  def open(self, log, folder, config, ids=None, resume_step=0):
    """Open those that a LogConfig, as a dict, names; ids: {name: run_id} of an earlier process.

    Raises ValueError for one that cannot be opened.
    """
    for name in TRACKERS:
      if project := log.get(name):
        self.trackers[name] = open_tracker(
          name, project, folder, config, (ids or {}).get(name, ''), resume_step
        )

  @property
  def ids(self):
    """{name: run_id} of the runs."""
    return {name: tracker.run_id for name, tracker in self.trackers.items()}

  def call(self, method, *args):
    """Call a method of each."""
    for name, tracker in list(self.trackers.items()):
      try:
        getattr(tracker, method)(*args)
      except Exception as error:
        self.say(f'log.{name} is left out from now on: {describe(error)}')
        self.failed[name] = self.trackers.pop(name)

  def __exit__(self, kind, error, trace):
    """End the runs, as failed ones if an exception ends the context."""
    failed, self.failed = self.failed, {}
    self.call('close', kind is not None)
    for tracker in failed.values():
      with contextlib.suppress(Exception):  # it was said before
        tracker.close(kind is not None)


@contextlib.contextmanager
def of_study(log, folder, spec, say):
  """Open the Trackers of a study whose runs have this section `log`; FOLDER/trackers.json keeps their ids.

  One that cannot be opened is a note: the study's folder has everything.
  """
  path = folder / 'trackers.json'
  known = {key: spec[key] for key in ('name', 'question', 'base', 'factors', 'metric') if key in spec}
  with Trackers(say) as opened:
    for name in TRACKERS:
      try:
        opened.open({name: log.get(name)}, folder, known, ids_of([{'trackers': records.read_json(path)}]))
      except ValueError as error:
        say(f'note: verdicts are not tracked: {error}'.partition('\n')[0])
    if opened.ids:
      records.write_json(path, records.read_json(path) | opened.ids)
    yield opened


TRACKERS = {'tensorboard': TensorBoard, 'wandb': Wandb, 'mlflow': MLflow, 'trackio': Trackio}
