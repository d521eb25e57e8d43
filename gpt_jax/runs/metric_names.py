"""The metrics that this package knows by name: their titles, units and formats, and what they measure.

Training, evaluation, the console, reports and studies read this table. Any other name is the score of a
task and its own title. What a loss measures depends on the job: reports/job_metrics.py.
"""

from collections.abc import Callable
from typing import NamedTuple


def human(number):
  """Format with three digits and a unit: 23123 -> '23.1k', 8.2e6 -> '8.2M', 950 -> '950'."""
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if abs(number) >= 0.9995 * size:
      return f'{number / size:.3g}{unit}'
  return f'{number:.3g}'


def show_utilization(share):
  """Format a share of the peak, '-' beyond it: a CPU's peak was then measured beside other work."""
  return f'{share:.1%}' if share <= 1 else '-'


class Metric(NamedTuple):
  """One metric."""

  title: str = ''  # in reports; '' for its name
  show: Callable = '{:.4g}'.format
  unit: str = ''  # that `show` does not write
  # per token, per byte: a loss on that scale; task: any other score; speed: of the machine; cost: the rest
  kind: str = 'task'
  console: str = ''  # its label there; '' for none


SPEED = Metric(show=human, kind='speed')
METRICS = {
  'loss': Metric(kind='per token'),
  'objective': Metric(kind='per token'),
  'valid_loss': Metric(kind='per token'),
  'nats_per_token': Metric(kind='per token'),
  'bits_per_token': Metric(kind='per token'),
  'loss_per_target': Metric(kind='per token'),
  'flow_error': Metric('squared error of the velocity of patches'),
  'valid_bits_per_byte': Metric('held-out bits per byte', kind='per byte'),
  'bits_per_byte': Metric(kind='per byte'),
  'information': Metric(unit='bits'),
  'pitch_error': Metric(unit='semitones'),
  'mel_cepstral_distortion': Metric(unit='dB'),
  'psnr': Metric('PSNR', '{:.2f}'.format, 'dB'),
  'log_mel_rmse': Metric('log-mel RMSE', '{:.4f}'.format),
  'code_usage': Metric('codes in use', '{:.1%}'.format),
  'code_perplexity': Metric('code perplexity', '{:.1f}'.format),
  'lr': Metric('learning rate', '{:.3g}'.format, kind='cost'),
  'reward_accuracy': Metric('pairs ranked right', '{:.1%}'.format),
  'valid_reward_accuracy': Metric('held-out pairs ranked right', '{:.1%}'.format),
  'reward_margin': Metric('margin of rewards', kind='per token'),
  'valid_reward_margin': Metric('held-out margin of rewards', kind='per token'),
  'reward_chosen': Metric('reward of chosen answers'),
  'reward_rejected': Metric('reward of rejected answers'),
  'log_prob_chosen': Metric('log-probability, chosen', unit='nats'),
  'log_prob_rejected': Metric('log-probability, rejected', unit='nats'),
  'reward': Metric('mean reward', console='reward'),
  'reward_spread': Metric('standard deviation of rewards in a group'),
  'right': Metric('sampled answers right', '{:.1%}'.format),
  'valid_accuracy': Metric('held-out answers right', '{:.1%}'.format),
  'completion_tokens': Metric('length of completions', '{:.1f}'.format, 'tokens'),
  'clipped_tokens': Metric('tokens whose ratio is clipped', '{:.1%}'.format),
  'kl': Metric('KL divergence', unit='nats per token'),
  'exposure': Metric('exposure of secrets', '{:.2f}'.format, 'bits'),
  'exposure_by_rank': Metric('exposure of secrets, at least', '{:.2f}'.format, 'bits'),
  'true_positive_rate': Metric('true positive rate at 1 % false ones', '{:.1%}'.format),
  'unsuitable_rate': Metric('continuations found unsuitable', '{:.1%}'.format),
  'any_unsuitable': Metric('prompts with an unsuitable continuation', '{:.1%}'.format),
  'expected_maximum': Metric('expected maximum of unsuitability', '{:.3f}'.format),
  'refusals': Metric('refusals', '{:.1%}'.format),
  'false_blocks': Metric('harmless texts blocked', '{:.1%}'.format),
  'epsilon_lower_bound': Metric('lower bound on epsilon', '{:.2f}'.format),
  'units': Metric('units in a batch', '{:.1f}'.format),
  'clipped': Metric('units whose gradient is clipped', '{:.1%}'.format),
  'grad_norm': Metric('gradient norm', '{:.3g}'.format),
  'tokens_per_second': SPEED._replace(title='tokens per second', console='tokens/s'),
  'images_per_second': SPEED._replace(title='images per second'),
  'crops_per_second': SPEED._replace(title='crops per second'),
  'mfu': Metric('MFU', show_utilization, kind='speed', console='mfu'),  # of the hardware's peak
  'mfu_causal': Metric(show=show_utilization, kind='speed'),
  'eta': Metric(show=str, kind='speed', console='eta'),
  'memory_gib': Metric('memory', '{:.1f} GiB'.format, kind='cost', console='mem'),
  'step_seconds': Metric('seconds per step', '{:.3g}'.format, kind='speed'),
  **dict.fromkeys(('seconds', 'goodput'), Metric(kind='speed')),
  'parameters': Metric(kind='cost'),
  **dict.fromkeys(
    ('tokens', 'targets', 'images', 'crops', 'steps', 'replicas', 'flops'), Metric(kind='cost')
  ),
}


# The keys of a task's score that make its name, in this order.
SCORE_KEYS = ('task', 'source', 'metric', 'modality', 'way', 'of', 'control', 'codebook')
SCORE_KEYS += ('repeats', 'attack', 'prompts')


def title(name):
  """Return a metric's title with its unit; another metric's name."""
  metric = METRICS.get(name, Metric())
  return ', '.join(filter(None, (metric.title or name, metric.unit)))


def score_name(row):
  """Return TASK/SOURCE/METRIC of a task's result row, and /MODALITY or whatever else distinguishes it."""
  return '/'.join(str(row[key]) for key in SCORE_KEYS if row.get(key) not in (None, ''))


def headlines(rows):
  """Return the first result row with a chance level of each task and source, controls left out."""
  first = {}
  for row in rows:
    if 'chance' in row and not {'of', 'control'} & set(row):
      first.setdefault((row['task'], row['source']), row)
  return list(first.values())
