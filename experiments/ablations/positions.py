"""Which way of telling positions does a small character model learn best with?

Planted: text has no rows and columns, so that mrope is rope, and the verdict should say so.
Command: launch.py ablate --config=experiments/ablations/positions.py --workdir=runs/positions
Hardware: 2 CPU cores   Minutes: 15
"""

from gpt_jax.ablation.design import Budget, Study

SMALL = {'layers': 2, 'model.width': 64, 'heads': 4, 'context': 128, 'batch_size': 16,
         'eval_every': 60, 'eval_tokens': 16384, 'sample_every': 0}  # fmt: skip


def get_study(arg=''):
  """No arguments."""
  return Study(
    base='experiments/shakespeare_char.py',
    question='Which way of telling positions learns best?',
    factors={'positions': ['rope', 'mrope', 'learned', 'sinusoidal', 'alibi', 'none']},
    changes=SMALL,
    budget=Budget(tokens=600_000),
  )
