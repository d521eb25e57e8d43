"""The metrics of each job: units, headline, and the tiles of its report."""

from typing import NamedTuple


class JobMetrics(NamedTuple):
  """What the numbers of one job mean."""

  unit: str  # of valid_loss
  headline: tuple  # (metric, sentence with a place for it)
  items: str  # what its steps consume
  tiles: tuple  # (label, metric, format)
  losses_comparable: bool = False  # whether the training loss has the unit of valid_loss


CODE_TILES = (('codes in use', 'usage', '{:.1%}'.format), ('code perplexity', 'perplexity', '{:.1f}'.format))
# train.job: its metrics
JOB_METRICS = {
  'gpt': JobMetrics(
    'nats per token',
    ('valid_loss', 'Validation loss {:.3f} nats per token'),
    'tokens',
    (('validation loss, nats/token', 'valid_loss', '{:.3f}'.format),),
    losses_comparable=True,
  ),
  'image_tokenizer': JobMetrics(
    'squared pixel error',
    ('psnr', 'PSNR {:.2f} dB of held-out images'),
    'images',
    (
      ('PSNR, dB', 'psnr', '{:.2f}'.format),
      ('squared pixel error', 'valid_loss', '{:.3g}'.format),
      *CODE_TILES,
    ),
  ),
  'audio_tokenizer': JobMetrics(
    'log-mel RMSE of all frames',
    ('log_mel_rmse', 'Log-mel RMSE {:.4f} of held-out sounds'),
    'crops',
    (('log-mel RMSE', 'log_mel_rmse', '{:.4f}'.format), *CODE_TILES),
  ),
}
