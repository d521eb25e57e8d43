"""How does the loss fall with size and tokens, and does an effect hold at every size?

Five sizes, each trained on three token budgets, and rope against no positions at each size. muP (Yang et al.
2022) transfers the learning rate of the smallest width to the others. The law of the four smaller sizes
predicts the largest.
Result: benchmarks/results/ablations/scaling.md
Command: launch.py ablate --config=experiments/ablations/scaling.py --workdir=runs/scaling
Hardware: 1 CPU core   Minutes: 33 (100 runs)
"""

from gpt_jax.ablation.design import Study
from gpt_jax.ablation.sweeps import chain, levels, product

WIDTHS = (32, 48, 64, 96, 128)
STEPS = {'300k': 150, '150k': 75, '600k': 300}
SMALL = {
  'layers': 2,
  'heads': 2,
  'context': 128,
  'batch_size': 16,
  'warmup': 20,
  'mup_base': 32,
  'eval_every': 50,
  'eval_tokens': 16384,
  'sample_every': 0,
}


def get_study(arg=''):
  """Return the study; it takes no arguments."""
  sizes = levels('size', *map(str, WIDTHS))
  return Study(
    base='experiments/shakespeare_char.py',
    question='How does the loss fall with size and tokens, and do positions help at every size?',
    factors={
      'size': {str(width): {'model.width': width} for width in WIDTHS},
      'tokens': {name: {'train.steps': steps} for name, steps in STEPS.items()},
      'positions': ['rope', 'none'],
    },
    sweep=chain(product(sizes, levels('tokens', *STEPS)), product(sizes, levels('positions', 'none'))),
    changes=SMALL | {'model.width': WIDTHS[0], 'train.steps': STEPS['300k']},
    seeds=5,
  )
