"""Where a run reports while it trains: console, TensorBoard, Weights & Biases.

The console is a live bar on a terminal, and plain lines in a pipe or log file: aligned, and every
`name value` in them can be grepped:

  step 120/2000  loss 1.823  tokens/s 23.1k  mfu 12.3%  eta 1:23  mem 0.4 GiB
"""

import re
import sys
from typing import NamedTuple

# All of Unicode's control characters but tab and newline, surrogates, and two that are none.
CONTROL = re.compile('[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff]')


def human(number):
  """Three digits and a unit: 23123 -> '23.1k', 8.2e6 -> '8.2M', 950 -> '950'."""
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if abs(number) >= 0.9995 * size:
      return f'{number / size:.3g}{unit}'
  return f'{number:.3g}'


def duration(seconds):
  """83 -> '1:23', 7384 -> '2:03:04', 302400 -> '3d 12:00'."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  if hours >= 24:
    return f'{hours // 24}d {hours % 24:02}:{minute:02}'
  return f'{hours}:{minute:02}:{second:02}' if hours else f'{minute}:{second:02}'


def decimals(value):
  """A loss or score: 1.823, and three digits for the very small and the very large."""
  return f'{value:.3f}' if not value or 1e-3 <= abs(value) < 1e4 else f'{value:.3g}'


def printable(text):
  """The text without control characters and lone surrogates, which a model may sample.

  They could drive a terminal, and HTML forbids them.
  """
  return CONTROL.sub('\ufffd', text.replace('\r\n', '\n'))


def fields(metrics, eta=''):
  """[(label, text)] of the metrics worth a place on the console: losses and scores first.

  Training losses of single sources, which may be many, are in metrics.jsonl alone.
  """
  scores = [name for name in metrics if 'loss' in name or name.startswith(('valid', 'eval'))]
  scores = [name for name in scores if not name.startswith('loss/source/')]
  shown = [(name, decimals(metrics[name])) for name in scores]
  known = {**metrics, 'eta': eta} if eta else metrics
  return shown + [(label, show(known[key])) for key, label, show in COLUMNS if key in known]


class Plain:
  """Console of a pipe or a log file."""

  def __init__(self, total_steps, step):
    self.total_steps = total_steps

  def metrics(self, step, shown, is_training):
    """One line of `fields`."""
    of = f'{step}/{self.total_steps}'.ljust(2 * len(str(self.total_steps)) + 1)
    columns = [f'{label} {text}'.ljust(len(label) + 7) for label, text in shown]
    self.print('  '.join([f'step {of}', *columns]).rstrip())

  def print(self, text):
    """Text as it is, in whatever encoding the pipe has."""
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    print(text.encode(encoding, 'replace').decode(encoding), flush=True)

  def close(self):
    """Nothing is held."""


class Bar(Plain):
  """Console of a terminal: one live line; evaluations and messages stay above it."""

  def __init__(self, total_steps, step):
    from rich import progress, table, text

    class Line(progress.ProgressColumn):
      """Gives way where the terminal is narrow, rather than the bar or the count."""

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

  def metrics(self, step, shown, is_training):
    """Training moves the bar; an evaluation is a line to keep."""
    if not is_training:
      super().metrics(step, shown, is_training)
      return
    text = '  '.join(f'{label} {text}' for label, text in shown)
    self.progress.update(self.task, completed=step, text=text)

  def close(self):
    """Leaves the last state of the bar on the terminal."""
    self.progress.stop()


class Off(Plain):
  """No console at all."""

  def print(self, text):
    """Drops it."""


def tensorboard(folder, resume_step, stack):
  """A function of (step, {name: number}) that writes event files; `stack` closes them."""
  try:
    import tensorboardX
  except ImportError as error:
    raise ValueError(
      f'log.tensorboard=True needs the package tensorboardX: {error}\n'
      'fix: pip install tensorboardX, or drop log.tensorboard'
    ) from error
  # purge_step hides what an earlier process wrote of this step and later; the suffix keeps its
  # file, which is named by the second.
  writer = tensorboardX.SummaryWriter(
    str(folder / 'tensorboard'), purge_step=resume_step or None, filename_suffix=f'.{resume_step}'
  )
  stack.callback(writer.close)

  def write(step, metrics):
    for name, value in metrics.items():
      writer.add_scalar(name, value, step)

  return write


def wandb(folder, project, config, run_id, stack):
  """A function of (step, {name: number}) that reports to Weights & Biases; `stack` ends it."""
  try:
    import wandb as library
  except ImportError as error:
    raise ValueError(
      f'log.wandb={project} needs the package wandb: {error}\nfix: pip install wandb, or drop log.wandb'
    ) from error
  run = library.init(
    project=project, name=folder.name, id=run_id, dir=str(folder), config=config, resume='allow'
  )
  # Its own step counter refuses to go back, which a late line and a resumed run both do.
  run.define_metric('*', step_metric='step')
  stack.push(lambda kind, error, trace: run.finish(exit_code=int(kind is not None)))
  return lambda step, metrics: run.log({'step': step, **metrics})


class Job(NamedTuple):
  """What the numbers of one kind of run mean."""

  unit: str  # of valid_loss
  headline: tuple  # (metric, the same in words)
  items: str  # what its steps consume
  tiles: tuple  # (label, metric, how to show it)
  is_one_unit: bool = False  # whether the training loss is of the unit of valid_loss


def job_of(name):
  """The Job of a train.job; what is not known is a GPT."""
  return JOBS.get(name, JOBS['gpt'])


CODES = (  # of both
  ('codes in use', 'usage', '{:.1%}'.format),
  ('code perplexity', 'perplexity', '{:.1f}'.format),
)
# train.job: what its numbers are
JOBS = {
  'gpt': Job(
    'nats per token',
    ('valid_loss', 'Validation loss {:.3f} nats per token'),
    'tokens',
    (('validation loss, nats/token', 'valid_loss', '{:.3f}'.format),),
    is_one_unit=True,
  ),
  'image_tokenizer': Job(
    'squared pixel error',
    ('psnr', 'PSNR {:.2f} dB of held-out images'),
    'images',
    (('PSNR, dB', 'psnr', '{:.2f}'.format), ('squared pixel error', 'valid_loss', '{:.3g}'.format), *CODES),
  ),
  'audio_tokenizer': Job(
    'log-mel RMSE of all frames',
    ('log_mel_rmse', 'Log-mel RMSE {:.4f} of held-out sounds'),
    'crops',
    (('log-mel RMSE', 'log_mel_rmse', '{:.4f}'.format), *CODES),
  ),
}
CONSOLES = {'bar': Bar, 'plain': Plain, 'off': Off}
# name in metrics, label, how to show it; mfu is a fraction of the hardware's peak
COLUMNS = (
  ('tokens_per_second', 'tokens/s', human),
  ('mfu', 'mfu', '{:.1%}'.format),
  ('eta', 'eta', str),
  ('memory_gib', 'mem', '{:.1f} GiB'.format),
)
