"""Likelihood of MNIST's 8-bit pixels in bits per dimension, on all 10,000 test images.

Result (2 CPU cores, 15 minutes of training): 0.920 bits/dim (counts of 4 neighbors: 1.176).
Command: launch.py train --config=experiments/mnist_pixels.py --workdir=runs/mnist_pixels
  launch.py evaluate --workdir=runs/mnist_pixels --split=test
The softmax covers the pixel values alone (loss.restrict); each row is one image.
Arguments: steps, seed, runlocal.
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, steps=1500, seed=0, runlocal=False)
  config = configs.default()
  config.image.update(kind='pixels', patch=1)
  config.data.update(packing='first_fit', valid_fraction=1 / 60)
  config.data.mixture = {
    'mnist': {
      'kind': 'arrays',
      'path': 'mnist/train-*-ubyte.gz',
      'template': '{image:image}',
      'test_path': 'mnist/t10k-*-ubyte.gz',
    }
  }
  config.loss.restrict = True
  config.model.update(
    layers=4,
    width=96,
    heads=2,
    context=787,
    mlp='relu2',
    qk_norm=True,
    positions='mrope',
    init_projections='zero',
    window=64,
    layer_pattern='SL',
  )
  config.optim.update(name='muon', lr=4e-3, warmup=50, schedule='linear', final_lr=0.0)
  config.train.update(
    steps=args.steps,
    batch_size=4,
    eval_every=300,
    sample_every=750,
    eval_tokens=131072,
    seed=args.seed,
    sample_prompts=(),
  )
  config.sample.update(max_new_tokens=787)
  if args.runlocal:
    config.train.update(steps=10, eval_every=5, sample_every=10, eval_tokens=2048)
  return config
