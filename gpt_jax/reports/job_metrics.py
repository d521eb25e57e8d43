"""What the numbers of each job mean: units, headline, and the tiles of its report."""

from typing import NamedTuple

from gpt_jax.runs import metric_names


class JobMetrics(NamedTuple):
  """What the numbers of one job mean."""

  unit: str  # of the validation curve
  headline: tuple  # (metric, sentence with a place for it)
  items: str  # what its steps consume
  tiles: tuple  # names of metrics
  losses_comparable: bool = False  # whether both curves have this unit
  in_nats: bool = False  # whether a loss has a meaning in bits
  chart: str = 'Loss'  # title of the first chart
  curves: tuple = ('loss', 'valid_loss')  # of it: metrics of training and of validation

  def title(self, name):
    """Return the label of a metric's tile."""
    return f'validation loss, {self.unit}' if name == 'valid_loss' else metric_names.title(name)


# train.job: its metrics
JOB_METRICS = {
  'gpt': JobMetrics(
    'nats per token',
    ('valid_loss', 'Validation loss {:.3f} nats per token'),
    'tokens',
    ('valid_loss',),
    losses_comparable=True,
    in_nats=True,
  ),
  'dpo': JobMetrics(
    'per pair',
    ('valid_reward_accuracy', 'Ranks {:.1%} of held-out pairs right'),
    'tokens',
    ('valid_reward_accuracy', 'valid_reward_margin', 'valid_loss'),
    losses_comparable=True,
  ),
  'grpo': JobMetrics(  # the loss of one update a batch is 0 by design; its gradient is not
    'share right',
    ('valid_accuracy', 'Answers {:.1%} of held-out questions right'),
    'tokens',
    ('valid_accuracy', 'reward', 'kl', 'completion_tokens'),
    losses_comparable=True,
    chart='Accuracy',
    curves=('right', 'valid_accuracy'),
  ),
  'image_tokenizer': JobMetrics(
    'squared pixel error',
    ('psnr', 'PSNR {:.2f} dB of held-out images'),
    'images',
    ('psnr', 'valid_loss', 'code_usage', 'code_perplexity'),
  ),
  'audio_tokenizer': JobMetrics(
    'log-mel RMSE of all frames',
    ('log_mel_rmse', 'Log-mel RMSE {:.4f} of held-out sounds'),
    'crops',
    ('log_mel_rmse', 'code_usage', 'code_perplexity'),
  ),
}


def is_mean_of_sources(run):
  """Whether valid_loss weighs sources equally, where the training loss weighs tokens: another aggregate."""
  return any(name.startswith('valid_loss/') for row in run.metrics for name in row)


def metrics_of(run):
  """Return the row of JOB_METRICS of a run; a GPT's by default."""
  return JOB_METRICS.get(run.config.get('train', {}).get('job'), JOB_METRICS['gpt'])
