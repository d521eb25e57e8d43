"""The console of a running training, its number formats, and the config of what is logged where.

The console is a live bar on a terminal, and plain aligned lines in a pipe or log file, in which every
`name value` can be grepped:

  step 120/2000  loss 1.823  tokens/s 23.1k  mfu 12.3%  eta 1:23  mem 0.4 GiB
"""

import dataclasses
import logging
import math
import os
import re
import sys

from gpt_jax.runs.metric_names import METRICS

# Unicode's control characters except tab and newline, line separators, bidirectional overrides, surrogates,
# and two noncharacters.
CONTROL = re.compile(
  '[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufffe\\uffff]'
)


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """How often a run reports, and where besides its own folder."""

  every: int = 10  # steps between two lines of training metrics
  console: str = 'auto'  # row of CONSOLES; auto: bar on a terminal, plain elsewhere
  tensorboard: bool = False  # event files in <workdir>/tensorboard
  wandb: str = ''  # project of Weights & Biases; '' is off
  mlflow: str = ''  # experiment of MLflow; '' is off
  trackio: str = ''  # project of Trackio; '' is off

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(f'log.every={self.every} is not a number of steps\nfix: give 1 or more')
    if self.console not in ('auto', *CONSOLES):
      rows = ', '.join(('auto', *CONSOLES))
      raise ValueError(f'log.console={self.console} is not a console\nfix: choose one of {rows}')


def duration(seconds):
  """Format seconds: 83 -> '1:23', 7384 -> '2:03:04', 302400 -> '3d 12:00'; '-' if not finite, or below 0."""
  if not (math.isfinite(seconds) and seconds >= 0):
    return '-'
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  if hours >= 24:
    return f'{hours // 24}d {hours % 24:02}:{minute:02}'
  return f'{hours}:{minute:02}:{second:02}' if hours else f'{minute}:{second:02}'


def decimals(value):
  """Format a loss or score: 1.823, and three digits for the very small and the very large."""
  return f'{value:.3f}' if not value or 1e-3 <= abs(value) < 1e4 else f'{value:.3g}'


def printable(text):
  """Return a text with control characters and lone surrogates spelled out: ESC becomes the letters \\x1b.

  Models, paths and files may hold them. They could drive a terminal, and HTML forbids them.
  """
  return CONTROL.sub(lambda match: match[0].encode('unicode_escape').decode(), text.replace('\r\n', '\n'))


def say(*values, **options):
  """Print as `print` does, control characters spelled out, in the encoding of the stream.

  Where the reader of a pipe has left, as `head` does, the work goes on and what it prints is dropped.
  """
  stream = options.get('file') or sys.stdout
  encoding = getattr(stream, 'encoding', None) or 'utf-8'
  text = printable(' '.join(map(str, values)))
  try:
    print(text.encode(encoding, 'replace').decode(encoding), **options)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class ConsoleHandler(logging.Handler):
  """Print warnings of this package and of libraries, each text once, as `note: ...` on stderr.

  It replaces the handlers that libraries add at import (orbax does, by absl), or all would print.
  """

  def __init__(self):
    super().__init__()
    self.notes = set()

  def emit(self, record):
    """Print one record; of a study each arm may have the same note."""
    label, text = 'note' if record.levelno < logging.ERROR else 'error', record.getMessage()
    if label == 'error' or text not in self.notes:
      say(f'{label}: {text}', file=sys.stderr, flush=True)
    self.notes.add(text)


def console_fields(metrics, eta=''):
  """Return [(label, text)] of the metrics for the console: losses and scores first.

  Training losses of single sources, which may be many, are only in metrics.jsonl.
  """
  scores = [name for name in metrics if 'loss' in name or name.startswith(('valid', 'eval'))]
  scores = [name for name in scores if not name.startswith('loss/source/')]
  texts = [(name, decimals(metrics[name])) for name in scores]
  known = {**metrics, 'eta': eta} if eta else metrics
  labeled = {name: metric for name, metric in METRICS.items() if metric.console and name in known}
  return texts + [(metric.console, metric.show(known[name])) for name, metric in labeled.items()]


def open_console(name, total_steps, step):
  """Return a row of CONSOLES by its name; auto: a bar on a live terminal, plain lines elsewhere."""
  is_live = sys.stdout.isatty() and os.environ.get('TERM') != 'dumb'
  name = name if name != 'auto' else 'bar' if is_live else 'plain'
  return CONSOLES[name](total_steps, step)


class Plain:
  """Console for a pipe or a log file."""

  def __init__(self, total_steps, step):
    self.total_steps = total_steps

  def metrics(self, step, fields, is_training):
    """Print one line of `console_fields`, if there are any."""
    if not fields:
      return
    of = f'{step}/{self.total_steps}'.ljust(2 * len(str(self.total_steps)) + 1)
    columns = [f'{label} {text}'.ljust(len(label) + 7) for label, text in fields]
    self.print('  '.join([f'step {of}', *columns]).rstrip())

  def print(self, text):
    """Print a text."""
    say(text, flush=True)

  def close(self):
    """Do nothing: a pipe needs no cleaning up."""


class Bar(Plain):
  """Console for a terminal: one live line; evaluations and messages stay above it."""

  def __init__(self, total_steps, step):
    from rich import progress, table, text

    class Line(progress.ProgressColumn):
      """The column that is cut where the terminal is narrow, rather than the bar or the count."""

      def render(self, task):
        return text.Text(task.fields['text'], no_wrap=True, overflow='ellipsis')

    super().__init__(total_steps, step)
    count = table.Column(width=2 * len(str(total_steps)) + 1, no_wrap=True)
    self.progress = progress.Progress(
      progress.MofNCompleteColumn(table_column=count),
      progress.BarColumn(16, table_column=table.Column(width=16)),
      Line(),
    )
    self.task = self.progress.add_task('', total=total_steps, completed=step, text='')
    self.progress.start()  # prints of anybody now appear above the bar

  def metrics(self, step, fields, is_training):
    """Move the bar for training; print a line for an evaluation."""
    if not is_training:
      super().metrics(step, fields, is_training)
      return
    text = '  '.join(f'{label} {text}' for label, text in fields)
    self.progress.update(self.task, completed=step, text=text)

  def close(self):
    """Leave the last state of the bar on the terminal."""
    self.progress.stop()


class Off(Plain):
  """No console."""

  def print(self, text):
    """Drop the text."""


CONSOLES = {'bar': Bar, 'plain': Plain, 'off': Off}
