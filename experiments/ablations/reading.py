"""Naming digits: are continuous patches better than codes, and do rows and columns help?

Images are scikit-learn's 8 x 8 digits in 16 patches; codes are the nearest of 64 k-means centers.
Each arm is tuned over four learning rates: inputs of other sizes may need other ones. Rows and columns
(mrope) turn slower pairs than the order of the patches does (rope): on this small grid that costs 0.13 nats.
Result: benchmarks/results/ablations/reading.md
Command: launch.py ablate --config=experiments/ablations/reading.py --workdir=runs/reading
Hardware: 1 CPU core   Minutes: 8 (52 runs)
"""

from gpt_jax.ablation.design import Study

DIGITS = {'read': {'kind': 'digits', 'template': '{image:image} -> {name}'}}
SMALL = {
  'data.mixture': DIGITS,
  'image.height': 8,
  'image.width': 8,
  'image.patch': 2,
  'image.codes': 64,
  'layers': 2,
  'model.width': 64,
  'context': 64,
  'dropout': 0.0,
  'steps': 250,
  'batch_size': 8,
  'eval_every': 50,
  'eval_tokens': 4096,
  'sample_every': 0,
}


def get_study(arg=''):
  """Return the study; it takes no arguments."""
  continuous = {'data.mixture.read.template': '{image:patches} -> {name}'}
  return Study(
    base='experiments/mnist.py:task=read',
    question='Are continuous patches read better than codes, and do rows and columns help?',
    factors={'input': {'codes': {}, 'patches': continuous}, 'positions': ['mrope', 'rope']},
    sweep='full',
    tune={'optim.lr': [1e-3, 3e-3, 1e-2, 3e-2]},
    changes=SMALL,
  )
