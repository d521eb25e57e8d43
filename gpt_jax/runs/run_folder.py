"""The run folder: all that a training leaves behind, and all that it shows while it runs.

  config.json      the resolved config; a folder that holds it is a run
  metrics.jsonl    {"step": 120, "time": 1764066000.123, "loss": 1.82, ...}: sorted, no step twice
  probes.jsonl     {"step": 120, "layers": {"blocks/0/attention": {"activation": 0.9}, ...}}
  events.jsonl     start resume compile checkpoint evaluate sample preempted done error; UTC;
                   startup: seconds of the process before that event, by what it did
  result.json      the final numbers; report.py lists the keys that it shows
  uncommitted.diff what the source had beside its commit when the run began; a session with other
                   changes adds uncommitted-HASH.diff, with the hash of versions
  arm.json         of a run in a study: {study, arm, seed, diff: {key: [baseline's value, arm's]}}
  against.jsonl    where its activations part from another run's: launch.py report --against
  samples/         step_00000120.txt, or step_00000120_NAME.png, .wav
  checkpoints/ cache/ tensorboard/ report.html     written by others
  .lock            held by the one process that writes; names it

A step is the number of updates that had been made. A run that resumes at s keeps what was reported
up to and including s; what it reports of s again replaces that.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import operator
import os
import pathlib
import platform
import re
import shlex
import sys
import time

from gpt_jax.runs import loggers, provenance, records, startup_timer

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'gpt_jax')
# What may lie in a folder before its first run: what a study says of it, caches, logs of a shell or
# scheduler, and what a start that failed has left.
HARMLESS = ('arm.json', 'cache', 'tokenizer', 'tensorboard', 'wandb', '*.log', '*.out', '*.err')


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """How often a run reports, and where to besides its own folder."""

  every: int = 10  # steps between two lines of training metrics
  console: str = 'auto'  # row of loggers.CONSOLES; auto: bar on a terminal, plain elsewhere
  sample_characters: int = 400  # characters of each sample shown on the console; 0 is off
  tensorboard: bool = False  # event files in <workdir>/tensorboard
  wandb: str = ''  # Weights & Biases project; '' is off

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(f'log.every={self.every} is not a number of steps\nfix: give 1 or more')
    if self.console not in ('auto', *loggers.CONSOLES):
      rows = ', '.join(('auto', *loggers.CONSOLES))
      raise ValueError(f'log.console={self.console} is not known\nfix: choose one of {rows}')
    if self.sample_characters < 0:
      raise ValueError(f'log.sample_characters={self.sample_characters} is negative\nfix: give 0 or more')


# -------------------------------------------------------------------------------- may we write?


def flatten(tree, prefix=''):
  """{'a': {'b': 1}} -> {'a.b': 1}; an empty dict is a leaf."""
  flat = {}
  for key, value in tree.items():
    inner = isinstance(value, dict) and value
    flat |= flatten(value, f'{prefix}{key}.') if inner else {f'{prefix}{key}': value}
  return flat


def changes(old, new):
  """{dotted key: (old value, new value)} where two configs differ; None where one lacks the key."""
  old, new = (flatten(records.to_json(config)) for config in (old, new))
  pairs = {key: (old.get(key), new.get(key)) for key in old | new}
  return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def settled(config):
  """The config to go on with: data that were reset once are not to be reset again."""
  data = config.get('data', {})
  return {**config, 'data': {**data, 'reset': False}} if data.get('reset') else config


def check_workdir(workdir, config, *, free=()):
  """Says whether a training with this config would start a 'new' run there or 'resume' one.

  Changes nothing on disk. With several processes, ask on the primary one, before `Run.open`.

  Args:
    workdir: path of the run folder; need not exist.
    config: nested dict of the resolved config.
    free: dotted keys, or prefixes of them ('mesh.'), that may differ from the stored config.

  Raises:
    ValueError: the folder cannot hold this run; says why and what to do.
  """
  check_secrets(config)
  folder = _local(workdir)
  there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
  if not there.is_dir():
    raise ValueError(f'workdir={folder}: {there} is a file\nfix: give another --workdir')
  if not os.access(there, os.W_OK | os.X_OK):
    raise ValueError(
      f'workdir={folder}: no permission to write in {there}\n'
      'fix: give a --workdir that you own, or change the permissions'
    )
  if there != folder:
    return 'new'
  if not (folder / 'config.json').exists():
    if names := _strangers(folder):
      raise ValueError(
        f'workdir={folder} is not a run (no config.json) and holds other files: {_few(names)}\n'
        'fix: give a new or empty folder as --workdir'
      )
    return 'new'
  pairs = changes(read_config(folder), config)
  if bound := {key: pair for key, pair in pairs.items() if not _is_free(key, free)}:
    raise ValueError(
      f'workdir={folder} holds a run with another config: {_arrows(bound)}\n'
      'fix: give a new --workdir, or the old values to resume this run'
    )
  return 'resume'


def _local(workdir):
  if re.match(r'\w+://', str(workdir)) or not str(workdir):
    raise ValueError(
      f"workdir='{workdir}' is not a folder of this machine\n"
      'fix: give a local path; a bucket can be mounted as one (gcsfuse, mountpoint-s3)'
    )
  return pathlib.Path(workdir).expanduser()


def _is_free(key, free):
  return any(f'{key}.'.startswith(prefix.rstrip('.') + '.') for prefix in free)


def _strangers(folder):
  """Names in a folder that no run should be mixed with."""

  def harmless(path):
    named = path.name.startswith('.') or any(path.match(pattern) for pattern in HARMLESS)
    return named or (path.is_dir() and not any(path.iterdir()))

  return sorted(path.name for path in folder.iterdir() if not harmless(path))


def _few(names, most=5):
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


def _arrows(pairs):
  def show(value):
    return 'absent' if value is None else json.dumps(value, ensure_ascii=False)

  return _few([f'{key} {show(old)} -> {show(new)}' for key, (old, new) in pairs.items()], most=20)


# ------------------------------------------------------------------------------------- writing


class Run:
  """A run folder, open for writing by this process. Use it as a context manager.

  On all but the primary process every method does nothing, so that callers need no branch.
  """

  def __init__(self, folder, log, total_steps, primary):
    self.folder, self.log_config, self.total_steps = folder, log, total_steps
    self.primary = primary
    self._writers = []  # functions of (step, metrics)
    self._stack = contextlib.ExitStack()
    self._first = ()  # (seconds, step) of the first training report; the ETA counts from there

  @classmethod
  def open(cls, workdir, config, *, log, total_steps, primary=True, resume_step=0, free=(), **info):
    """Starts a run, or goes on with one, in `workdir`.

    Args:
      workdir, config, free: as of `check_workdir`, which is asked again here.
      log: a LogConfig.
      total_steps: updates in the whole run.
      primary: False makes every method a no-op.
      resume_step: updates already made; metrics of later steps are dropped.
      **info: details of the start or resume event, such as versions=versions(...).

    Raises:
      ValueError: as `check_workdir`; or the folder is in use, or a logger's package is missing.
    """
    run = cls(_local(workdir), log, total_steps, primary)
    if primary:
      with contextlib.ExitStack() as stack:
        run._begin(config, resume_step, free, info, stack)
        run._stack = stack.pop_all()
    return run

  def _begin(self, config, resume_step, free, info, stack):
    folder = self.folder
    check_workdir(folder, config, free=free)
    try:
      folder.mkdir(parents=True, exist_ok=True)
      stack.enter_context(records.locked(folder))
      (folder / 'samples').mkdir(exist_ok=True)
    except OSError as error:
      raise ValueError(
        f'workdir={folder} cannot be written: {error.strerror}\nfix: give another --workdir'
      ) from error
    kind = check_workdir(folder, config, free=free)  # again: now nobody else can change it
    events, lost = records.mend(folder / 'events.jsonl')
    if self.log_config.tensorboard:
      self._writers.append(loggers.tensorboard(folder, resume_step, stack))
    if project := self.log_config.wandb:
      info['wandb_id'] = _first_of(events, 'wandb_id') or os.urandom(4).hex()
      self._writers.append(loggers.wandb(folder, project, config, info['wandb_id'], stack))
    if kind == 'new':
      records.write_json(folder / 'config.json', config)
    elif changed := changes(read_config(folder), config):
      info['changed'] = changed
      records.write_json(folder / 'config.json', settled(config))  # what the run is from now on
    self._metrics = records.StepLines(folder / 'metrics.jsonl', resume_step)
    self._writers.insert(0, self._write_metrics)
    self._probes = None  # lines of probes.jsonl, if there are any
    self._resume_step = resume_step
    lost = {name: lost[name] + self._metrics.dropped[name] for name in lost}
    if any(lost.values()):
      info['dropped_lines'] = lost
    self._console = loggers.CONSOLES[self._console_row()](self.total_steps, resume_step)
    stack.callback(self._console.close)
    self._keep_uncommitted(info.get('versions', {}).get('uncommitted', ''))
    name = 'start' if kind == 'new' else 'resume'
    startup_timer.lap('open')
    info['startup'] = startup_timer.take()
    self.event(name, step=resume_step, total_steps=self.total_steps, **info)

  def _keep_uncommitted(self, digest):
    path = self.folder / 'uncommitted.diff'
    if path.exists() and _hash(path.read_bytes()) != digest:
      path = self.folder / f'uncommitted-{digest}.diff'
    if digest and not path.exists():
      records.write_atomically(path, uncommitted())

  def _console_row(self):
    live = sys.stdout.isatty() and os.environ.get('TERM') != 'dumb'
    row = self.log_config.console
    return row if row != 'auto' else 'bar' if live else 'plain'

  def _write_metrics(self, step, metrics):
    self._metrics.add({'step': step, 'time': round(time.time(), 3), **metrics})

  def log(self, step, metrics):
    """Reports {name: number} measured after `step` updates; a step may be reported in parts."""
    if not self.primary:
      return
    step = operator.index(step)
    metrics = {name: _number(name, value) for name, value in metrics.items()}
    for write in self._writers:
      write(step, metrics)
    is_training = not metrics.keys().isdisjoint(('loss', 'tokens_per_second'))
    eta = self._eta(step) if is_training else ''
    self._console.metrics(step, loggers.fields(metrics, eta), is_training)

  def _eta(self, step):
    now = time.monotonic()
    self._first = self._first or (now, step)
    seconds, steps = now - self._first[0], step - self._first[1]
    return loggers.duration(seconds / steps * (self.total_steps - step)) if steps > 0 else '-'

  def go_back(self, step):
    """Forgets metrics of later steps: they are made again."""
    if self.primary:
      self._metrics = records.StepLines(self.folder / 'metrics.jsonl', step)
      self._probes, self._resume_step, self._first = None, step, ()

  def probe(self, step, layers):
    """Keeps {path: {name: number}} measured after `step` updates."""
    if not self.primary:
      return
    path = self.folder / 'probes.jsonl'
    self._probes = self._probes or records.StepLines(path, self._resume_step)
    self._probes.add({'step': step, 'layers': layers})

  def event(self, name, /, **info):
    """Appends an event with its UTC time; it and all metrics so far are then safe on disk."""
    if not self.primary:
      return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
    record = {'time': now.replace('+00:00', 'Z'), 'event': name, **info}
    records.append_line(self.folder / 'events.jsonl', record)
    self._metrics.sync()

  def sample(self, step, content, *, name='', suffix='.txt'):
    """Keeps a text (str), picture or sound (bytes) as samples/step_00000120[_name]suffix."""
    if not self.primary:
      return
    file = f'step_{step:08}' + (f'_{name}' if name else '') + suffix
    records.write_atomically(self.folder / 'samples' / file, content)
    self.event('sample', step=step, file=file)
    limit = self.log_config.sample_characters
    if isinstance(content, str) and limit and not name:
      shown = content if len(content) <= limit else f'{content[:limit]} ...'
      self.print(f'sample after {step} steps: {shown}')

  def result(self, result):
    """Writes result.json, atomically: a dict of the final numbers."""
    if self.primary:
      records.write_json(self.folder / 'result.json', result)

  def print(self, *words):
    """A line for the reader, above the progress bar where there is one."""
    if self.primary:
      self._console.print(loggers.printable(' '.join(map(str, words))))

  def close(self):
    """Ends the loggers and frees the folder; leaving the context does it too."""
    self._stack.close()
    startup_timer.restart()

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if error is not None and not isinstance(error, SystemExit):
      first_line = (str(error).splitlines() or [''])[0]
      with contextlib.suppress(OSError):  # a full disk must not hide what came before
        self.event('error', type=kind.__name__, message=redact(first_line))
    startup_timer.restart()
    return self._stack.__exit__(kind, error, trace)


def _number(name, value):
  value = value.tolist() if hasattr(value, 'tolist') else value
  if not isinstance(value, (int, float)):
    raise TypeError(f'metrics[{name!r}] is {value!r}, but a metric is one number')
  return value


def _first_of(events, key):
  return next((event[key] for event in events if key in event), '')


# -------------------------------------------------------------------------------------- reading


def _run_folder(workdir):
  """The path, if it is a run; else an error that lists the runs in it or beside it."""
  folder = _local(workdir)
  if (folder / 'config.json').is_file():
    return folder
  state = 'is not a run: it has no config.json' if folder.exists() else 'does not exist'
  for place in (folder, folder.parent):
    if runs := sorted(str(path.parent) for path in place.glob('*/config.json')):
      raise FileNotFoundError(f'workdir={folder} {state}\nfix: give one of {_few(runs, most=8)}')
  raise FileNotFoundError(
    f'workdir={folder} {state}\nfix: give the --workdir of a run, or make one: launch.py train'
  )


def read_config(workdir):
  """The resolved config as nested dicts; tuples are lists. Errors name the runs nearby."""
  return records.read_json(_run_folder(workdir) / 'config.json')


def read_metrics(workdir):
  """One dict a step, sorted: step, time (Unix seconds) and the measured numbers, NaN included."""
  return records.read_lines(_run_folder(workdir) / 'metrics.jsonl')


def read_events(workdir):
  """One dict an event, in order: time (ISO 8601, UTC), event (its name) and its details."""
  return records.read_lines(_run_folder(workdir) / 'events.jsonl')


def read_result(workdir):
  """The final numbers, or {} while there are none."""
  return records.read_json(_run_folder(workdir) / 'result.json')


# ------------------------------------------------------------------------------------- versions


def redact(text):
  """The text without the values of secrets: --token=..., user:password@, hf_..., sk-..."""
  for pattern, replacement in SECRETS:
    text = re.sub(pattern, replacement, text)
  return text


def check_secrets(config):
  """Raise ValueError if a config holds a secret: it is written to files that others read."""
  for key, value in flatten(records.to_json(config)).items():
    text = json.dumps(value, ensure_ascii=False)
    named = re.fullmatch(rf'(?i)(?:.*\.)?{_SECRET_NAME}', key)
    if (named and value) or redact(text) != text:
      raise ValueError(
        f'config.{key} holds a secret, and a config is written to the run folder\n'
        'fix: take it out; give tokens by the environment (WANDB_API_KEY, HF_TOKEN)'
      )


def uncommitted():
  """What this process runs beside its commit, as a diff without secrets; '' if it is clean."""
  lines = provenance.source()[1].splitlines(keepends=True)
  # Looking for secrets takes a time that grows with the cube of a line's length.
  safe = lambda line: redact(line) if len(line) < 300 else f'{line[0]}***\n'
  return ''.join(safe(line) if re.search(MAY_BE_SECRET, line) else line for line in lines)


def _hash(content):
  return hashlib.sha256(content).hexdigest()[:12]


def versions(device=''):
  """What a reader needs to repeat a run; never environment variables, which hold secrets.

  Args:
    device: number and kind of the devices, such as '8 x NVIDIA H100'.

  Returns:
    {name: str}: python, packages, platform, device, command line, and if this is a checkout git;
    uncommitted is the start of the sha256 of `uncommitted()`, if that is not ''.
  """
  found = {'python': platform.python_version()}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = 'source tree' if package == 'gpt_jax' else 'not installed'
  found |= {'platform': platform.platform(), 'device': device}
  commit, _ = provenance.source()
  if commit:
    found['git'] = commit
  if diff := uncommitted():
    found['git'] += ' with uncommitted changes'
    found['uncommitted'] = _hash(diff.encode())
  executable, *arguments = sys.orig_argv
  words = redact('\0'.join([pathlib.Path(executable).name, *arguments])).split('\0')
  return found | {'command': shlex.join(words)}


_SECRET_NAME = (  # the last part of a flag's name; eos_token and max_new_tokens are none
  r'(?:(?:[\w-]*(?:api|auth|access|bearer|hf|hub|wandb|private)[_-]?)?token|[\w-]*secret[\w-]*'
  r'|[\w-]*(?:api|access|private|wandb)[_-]?key|[\w-]*passw(?:or)?d|[\w-]*credentials?)'
)
MAY_BE_SECRET = (  # in every line that `redact` changes
  r'(?i)token|secret|key|passw|credential|://|hf_|sk-|gh[pousr]_|github_pat_|akia'
)
SECRETS = (
  (rf'(?i)(--(?:[\w-]+\.)*{_SECRET_NAME}(?:=|[\s\0]+(?!-)))[^\0\n]*', r'\1***'),
  (r'(\w+://)[^/\s@]+@', r'\1***@'),
  (r'\b(hf_|sk-|gh[pousr]_|github_pat_|AKIA)[\w-]{8,}', r'\1***'),
)
