"""The run folder: all files of one training run, written by one process at a time.

  config.json      the resolved config; a folder that holds it is a run
  metrics.jsonl    {"step": 120, "time": 1764066000.123, "loss": 1.82, ...}: sorted, no step twice
  probes.jsonl     {"step": 120, "layers": {"blocks/0/attention": {"activation": 0.9}, ...}}
  events.jsonl     start resume compile checkpoint evaluate sample preempted done error; UTC;
                   startup: seconds of the process before that event, by phase; digest: of a sample
  CARD.md          data and model card: launch.py report --card; notes.md: sections of it, written by hand
  parents.json     the runs that it begins with or learns from: ancestry.py
  result.json      the final numbers; history.py lists the keys that reports show
  uncommitted.diff the source's difference from its commit when the run began; a session with other
                   changes adds uncommitted-HASH.diff, with the hash of versions
  arm.json         of a run in a study: {study, arm, seed, diff: {key: [baseline's value, arm's]}}
  against.jsonl    where its activations differ from another run's: launch.py report --against
  text_diff.jsonl  where its nats of a text differ from another run's: --against --texts
  plugins/         copies of the config's plugins: plugins.py
  samples/         step_00000120.txt, or step_00000120_NAME.png, .wav
  predictions.jsonl predictions/                  what `evaluate` judged: evaluation/predictions.py
  checkpoints/ cache/ tensorboard/ report.html     written by others
  .lock            held by the one process that writes; names it

A step is the number of updates made. A run that resumes at step s keeps what was logged up to and
including s; new metrics of s replace the old ones.
"""

import contextlib
import functools
import json
import operator
import os
import pathlib
import re
import time

from gpt_jax.runs import loggers, plugins, provenance, records, startup_timer, trackers
from gpt_jax.runs.secrets import check_secrets, redact
from gpt_jax.runs.text_table import join_some

# Allowed in a folder before its first run: a study's arm.json, caches, logs of a shell or scheduler,
# and files of a start that failed.
IGNORED_FILES = ('arm.json', 'cache', 'tokenizer', 'encoder', *trackers.TRACKERS, '*.log', '*.out', '*.err')
# Types of what readers use of a result: the file may come from anywhere.
EVALUATION = {'task': str, 'metric': str}
RESULT = {
  'steps?': int,
  'replicas?': int,
  'evaluations?': [EVALUATION],
  'hardware?': str,
  'versions?': dict,
  'defaults_diff?': dict,
  'hyper?': {str: int | float},
  'tail?': dict,
  'rescored?': [{'time': str, 'before': dict}],
  'data?': str,
}
MAX_SAMPLE_CHARACTERS = 400  # of each sample shown on the console


# --------------------------------------------------------------------------- checking a folder


def check_workdir(workdir, config, *, free=()):
  """Return whether a training with this config would start a 'new' run there or 'resume' one.

  Changes nothing on disk. With several processes, call it on the primary one.

  Args:
    workdir: path of the run folder; need not exist.
    config: nested dict of the resolved config.
    free: dotted keys, or prefixes of them ('mesh.'), that may differ from the stored config.

  Raises:
    ValueError: the folder cannot hold this run.
  """
  check_secrets(config)
  folder = _local_path(workdir)
  existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
  if not existing.is_dir():
    raise ValueError(
      f'workdir={folder}: {existing} is a file, expected a folder\nfix: give another --workdir'
    )
  if not os.access(existing, os.W_OK | os.X_OK):
    raise ValueError(
      f'workdir={folder}: no permission to write in {existing}\n'
      'fix: give a --workdir that you own, or change the permissions'
    )
  if existing != folder:
    return 'new'
  if not (folder / 'config.json').exists():
    if names := _unexpected_files(folder):
      raise ValueError(
        f'workdir={folder} is not a run (no config.json) and holds other files: {join_some(names, 5)}\n'
        'fix: give a new or empty folder as --workdir'
      )
    return 'new'
  changes = []
  for key, pair in records.diff(read_config(folder), config).items():
    if not any(f'{key}.'.startswith(prefix.rstrip('.') + '.') for prefix in free):
      old, new = ('absent' if x is None else json.dumps(x, ensure_ascii=False) for x in pair)
      changes.append(f'{key} {old} -> {new}')
  if changes:
    raise ValueError(
      f'workdir={folder} holds a run with another config: {join_some(changes, limit=20)}\n'
      'fix: give the old values to resume this run, or a new --workdir with train.branch_from, which '
      f'continues from {folder}'
    )
  return 'resume'


def _local_path(workdir):
  if re.match(r'\w+://', str(workdir)) or not str(workdir):
    raise ValueError(
      f"workdir='{workdir}' is not a folder of this machine\n"
      'fix: give a local path; a bucket can be mounted as one (gcsfuse, mountpoint-s3)'
    )
  return pathlib.Path(workdir).expanduser()


def _unexpected_files(folder):
  """Return the names in a folder that no run should be mixed with."""

  def is_ignored(path):
    by_name = path.name.startswith('.') or any(path.match(pattern) for pattern in IGNORED_FILES)
    return by_name or (path.is_dir() and not any(path.iterdir()))

  return sorted(path.name for path in folder.iterdir() if not is_ignored(path))


# ------------------------------------------------------------------------------------- writing


def acquire_run_dir(workdir, config, *, log, total_steps, primary=True, resume_step=0, free=(), **info):
  """Lock a run folder, start or resume its run, and return the Run.

  Args:
    workdir, config, free: see `check_workdir`, which is called again here.
    log: a LogConfig.
    total_steps: updates in the whole run.
    primary: False makes every method a no-op.
    resume_step: updates already made; metrics of later steps are dropped.
    **info: details of the start or resume event, such as versions=versions(...).

  Raises:
    ValueError: see `check_workdir`; or the folder is in use, or a logger's package is missing.
  """
  run = Run(_local_path(workdir), log, total_steps, resume_step, primary)
  with contextlib.ExitStack() as stack:
    run._start(config, free, info, stack)
    run._stack = stack.pop_all()
  return run


def _on_primary(method):
  """Make a method of a Run do nothing on all but the primary process."""

  @functools.wraps(method)
  def wrapped(run, *args, **options):
    return method(run, *args, **options) if run.primary else None

  return wrapped


class Run:
  """A run folder that this process writes, made by `acquire_run_dir`. Use it as a context manager.

  On all but the primary process every method does nothing, so that callers need no branch.
  """

  def __init__(self, folder, log, total_steps, resume_step, primary):
    self.folder, self.log_config, self.total_steps = folder, log, total_steps
    self.resume_step, self.primary = resume_step, primary
    self._trackers = None  # opened with the run
    self._first_report = None  # (seconds, step) of the first training report, for the ETA
    self._probes = None  # lines of probes.jsonl, opened when needed

  @_on_primary
  def _start(self, config, free, info, stack):
    """Take the lock, repair the files of a previous session, open the loggers, log the event."""
    folder = self.folder
    self._lock(config, free, stack)
    event = {'new': 'start', 'resume': 'resume'}[check_workdir(folder, config, free=free)]
    events, dropped = records.repair_lines(folder / 'events.jsonl')
    self._trackers = stack.enter_context(trackers.Trackers(loggers.say))
    self._trackers.open(vars(self.log_config), folder, config, trackers.ids_of(events), self.resume_step)
    info |= {'trackers': self._trackers.ids} if self._trackers.ids else {}
    if event == 'start':
      records.write_json(folder / 'config.json', config)
    elif changes := records.diff(read_config(folder), config):
      info['changed'] = changes
      if changes.get('train.steps', [None])[0] == self.resume_step:
        self._date_evaluations()
      data = config.get('data', {})  # the next session must not reset the data again
      config = {**config, 'data': {**data, 'reset': False}} if data.get('reset') else config
      records.write_json(folder / 'config.json', config)
    plugins.write_copies(config, folder)
    if self.resume_step < self.total_steps:  # that of a shorter training, which read_result ignores
      (folder / 'result.json').unlink(missing_ok=True)
    self._metrics = records.StepLines(folder / 'metrics.jsonl', self.resume_step)
    dropped = {name: count + self._metrics.dropped[name] for name, count in dropped.items()}
    if any(dropped.values()):
      info['dropped_lines'] = dropped
    self._console = loggers.open_console(self.log_config.console, self.total_steps, self.resume_step)
    stack.callback(self._console.close)
    versions = info.get('versions', {})
    self._write_uncommitted_diff(versions.get('uncommitted', ''))
    if redacted := versions.get('redacted'):
      self.print(f'uncommitted.diff: {redacted}')
    startup_timer.mark_phase('open')
    info['startup'] = startup_timer.take_phases()
    self.event(event, step=self.resume_step, total_steps=self.total_steps, **info)

  def _date_evaluations(self):
    """Add the step to evaluations without one, which are of the end of a training that grows longer."""
    path = self.folder / 'evaluations.jsonl'
    if rows := records.read_lines(path, skip_unreadable=True):
      lines = [records.format_object({'step': self.resume_step} | row) for row in rows]
      records.write_atomically(path, b''.join(lines))

  def _lock(self, config, free, stack):
    check_workdir(self.folder, config, free=free)
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      stack.enter_context(records.locked(self.folder))
      (self.folder / 'samples').mkdir(exist_ok=True)
    except OSError as error:
      raise ValueError(
        f'workdir={self.folder} cannot be written: {error.strerror}\nfix: give another --workdir'
      ) from error

  def _write_uncommitted_diff(self, digest):
    path = self.folder / 'uncommitted.diff'
    if path.exists() and provenance.short_hash(path.read_bytes()) != digest:
      path = self.folder / f'uncommitted-{digest}.diff'
    if digest and not path.exists():
      records.write_atomically(path, provenance.uncommitted_diff())

  @_on_primary
  def log(self, step, metrics):
    """Log {name: number} measured after `step` updates; a step may be logged in parts."""
    step = operator.index(step)
    metrics = {name: _number(name, value) for name, value in metrics.items()}
    self._metrics.add({'step': step, 'time': round(startup_timer.unix_time(), 3), **metrics})
    self._trackers.call('log', step, metrics)
    is_training = not metrics.keys().isdisjoint(('loss', 'tokens_per_second'))
    eta = self._eta(step) if is_training else ''
    self._console.metrics(step, loggers.console_fields(metrics, eta), is_training)

  def _eta(self, step):
    now = time.monotonic()
    self._first_report = self._first_report or (now, step)
    seconds, steps = now - self._first_report[0], step - self._first_report[1]
    return loggers.duration(seconds / steps * (self.total_steps - step)) if steps > 0 else '-'

  @_on_primary
  def rewind(self, step):
    """Drop the metrics of later steps, which will be repeated."""
    self._metrics = records.StepLines(self.folder / 'metrics.jsonl', step)
    self._probes, self.resume_step, self._first_report = None, step, None

  @_on_primary
  def write_probes(self, step, layers):
    """Append {path: {name: number}} measured after `step` updates to probes.jsonl."""
    self._probes = self._probes or records.StepLines(self.folder / 'probes.jsonl', self.resume_step)
    self._probes.add({'step': step, 'layers': layers})

  @_on_primary
  def event(self, name, /, **info):
    """Append an event with its UTC time; it and all metrics so far are then safe on disk."""
    record = {'time': startup_timer.utc_time(), 'event': name, **info}
    records.append_line(self.folder / 'events.jsonl', record)
    self._metrics.sync()

  @_on_primary
  def write_sample(self, step, content, *, name='', suffix='.txt'):
    """Write a text (str), image or sound (bytes) to samples/step_00000120[_name]suffix."""
    file = f'step_{step:08}' + (f'_{name}' if name else '') + suffix
    data = records.to_bytes(content)
    records.write_atomically(self.folder / 'samples' / file, data)
    self._trackers.call('sample', step, name or 'text', self.folder / 'samples' / file)
    self.event('sample', step=step, file=file, digest=provenance.short_hash(data))
    if isinstance(content, str) and not name:
      more = ' ...' if len(content) > MAX_SAMPLE_CHARACTERS else ''
      self.print(f'sample after {step} steps: {content[:MAX_SAMPLE_CHARACTERS]}{more}')

  @_on_primary
  def write_result(self, result):
    """Write result.json, a dict of the final numbers, atomically."""
    records.write_json(self.folder / 'result.json', result)

  @_on_primary
  def print(self, *values):
    """Print a line, above the progress bar where there is one."""
    self._console.print(' '.join(map(str, values)))

  def close(self):
    """Close the loggers and unlock the folder; leaving the context does it too."""
    self.__exit__(None, None, None)

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if error is not None and not isinstance(error, SystemExit):
      first_line = (str(error).splitlines() or [''])[0]
      with contextlib.suppress(OSError):  # a full disk must not hide the first error
        self.event('error', type=kind.__name__, message=redact(first_line))
    startup_timer.reset()
    return self._stack.__exit__(kind, error, trace)


def _number(name, value):
  value = value.tolist() if hasattr(value, 'tolist') else value
  if not isinstance(value, (int, float)):
    raise TypeError(f'metrics[{name!r}] is {value!r}, expected one number')
  return value


# -------------------------------------------------------------------------------------- reading


def _existing_run(workdir, key='workdir'):
  """Return the path of a run; else raise an error that lists the runs in the folder or beside it."""
  folder = _local_path(workdir)
  if (folder / 'config.json').is_file():
    return folder
  cause = f'{key}={folder} ' + (
    'is not a run: it has no config.json' if folder.exists() else 'does not exist'
  )
  for place in (folder, folder.parent):
    if runs := sorted(str(path.parent) for path in place.glob('*/config.json')):
      raise FileNotFoundError(f'{cause}\nfix: give one of {join_some(runs)}')
  raise FileNotFoundError(f'{cause}\nfix: give the folder of a run, or make one: launch.py train')


def read_config(workdir, key='workdir'):
  """Return the resolved config as nested dicts; tuples are lists. Errors name `key` and the runs nearby."""
  folder = _existing_run(workdir, key)
  config = records.read_json(folder / 'config.json')
  if 'model_type' in config:
    raise ValueError(
      f'{key}={folder} is a model of transformers, not a run\n'
      f'fix: launch.py import --source={folder} --workdir=runs/{folder.resolve().name}, then name that run'
    )
  return config


def read_metrics(workdir):
  """Return one dict a step, sorted: step, time (Unix seconds) and the measured numbers, NaN included."""
  return records.read_lines(_existing_run(workdir) / 'metrics.jsonl', expected={'step': int})


def read_events(workdir):
  """Return one dict an event, in order: time (ISO 8601, UTC), event (its name) and its details."""
  return records.read_lines(_existing_run(workdir) / 'events.jsonl')


def read_result(workdir):
  """Return the final numbers, or {} before there are any; also where train.steps was raised since."""
  folder = _existing_run(workdir)
  result = records.read_json(folder / 'result.json', RESULT)
  steps = read_config(folder).get('train', {}).get('steps') if 'steps' in result else None
  return {} if isinstance(steps, int) and result['steps'] < steps else result
