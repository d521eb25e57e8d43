"""Does a norm over queries and keys widen the range of learning rates that work?

Command: launch.py ablate --config=experiments/ablations/qk_norm_lr.py --workdir=runs/qk_norm_lr
Hardware: 2 CPU cores   Minutes: 20
"""

from gpt_jax.ablation.design import Budget, Study

SMALL = {
  'layers': 2,
  'model.width': 64,
  'heads': 4,
  'context': 128,
  'batch_size': 16,
  'eval_every': 60,
  'eval_tokens': 16384,
  'sample_every': 0,
}


def get_study(arg=''):
  """No arguments."""
  return Study(
    base='experiments/shakespeare_char.py',
    question='Does QK-norm widen the range of learning rates that work?',
    factors={'qk_norm': [True, False], 'lr': [3e-3, 1e-3, 1e-2, 3e-2]},
    sweep='full',
    changes=SMALL,
    budget=Budget(tokens=600_000),
  )
