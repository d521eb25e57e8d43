"""A learned audio tokenizer: spoken digits at 20 tokens per second of 1,000 codes (mel-FSQ).

Claim: log-mel RMSE, averaged over sounds, below the 0.566 of k-means with as many codes on the official test,
within minutes on 2 CPU cores.
Command: launch.py train --config=experiments/tokenizers/fsdd_fsq.py --workdir=runs/fsdd_fsq
Arguments: fine (40 tokens per second of 2,560 codes), loso (speaker to leave out for the test), steps, seed,
runlocal.
"""

from gpt_jax import config as configs

SPEAKERS = ('george', 'jackson', 'lucas', 'nicolas', 'theo', 'yweweler')


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, fine=False, loso='', steps=5000, seed=0, runlocal=False)
  if args.loso and args.loso not in SPEAKERS:
    raise ValueError(
      f'config argument loso={args.loso} is not a speaker\nfix: use one of {", ".join(SPEAKERS)}'
    )
  config = configs.default()
  config.audio.update(kind='fsq', levels=(8, 5, 5, 5), network_width=192, network_blocks=3)
  config.data.packing = 'first_fit'
  config.data.mixture = {
    'fsdd': {
      'kind': 'files',
      'path': 'fsdd/recordings.zip',
      'template': '{audio:audio}',
      'pattern': r'(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\.wav',
      'valid_keep': 'index=5|6|7|8|9',
      'test_keep': f'speaker={args.loso}' if args.loso else 'index=0|1|2|3|4',
    }
  }
  if args.fine:
    config.audio.update(stack=2, levels=(8, 8, 8, 5))
  config.optim.update(
    name='muon', lr=5e-3, warmup=100, schedule='cosine', final_lr=0.02, weight_decay=0.01, ema=0.99
  )
  config.train.update(
    job='audio_tokenizer',
    steps=args.steps,
    batch_size=32,
    eval_every=1000,
    eval_tokens=2048,
    sample_every=2500,
    seed=args.seed,
  )
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20)
  return config
