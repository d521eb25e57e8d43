"""A learned image tokenizer: MNIST in 49 tokens of 240 codes (FSQ levels 8, 6, 5).

Claim: PSNR >= 25 dB on all 10,000 test images and >= 95 % of the codes in use, within minutes on 2 CPU cores
(k-means patches with as many codes: 23.3 dB; averages over images).
Command: launch.py train --config=experiments/tokenizers/mnist_fsq.py --workdir=runs/mnist_fsq
Arguments: vq (the VQ-EMA baseline instead), steps, seed, runlocal.
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, vq=False, steps=6000, seed=0, runlocal=False)
  config = configs.default()
  config.image.update(dict(kind='vq', codes=240) if args.vq else dict(kind='fsq', levels=(8, 6, 5)))
  config.data.update(packing='first_fit', valid_fraction=1 / 12)
  config.data.mixture = {
    'mnist': {
      'kind': 'arrays',
      'path': 'mnist/train-*-ubyte.gz',
      'template': '{image:image}',
      'test_path': 'mnist/t10k-*-ubyte.gz',
    }
  }
  config.optim.update(name='adamw', lr=6e-3, warmup=100, schedule='cosine', final_lr=0.01, weight_decay=0.0)
  config.train.update(
    job='image_tokenizer',
    steps=args.steps,
    batch_size=16,
    eval_every=1000,
    eval_tokens=2048,
    sample_every=2000,
    seed=args.seed,
  )
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20)
  return config
