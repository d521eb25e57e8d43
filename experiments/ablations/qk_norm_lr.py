"""Does QK-norm widen the range of learning rates that work?

Result: benchmarks/results/ablations/qk_norm_lr.md
Command: launch.py ablate --config=experiments/ablations/qk_norm_lr.py --workdir=runs/qk_norm_lr
Hardware: 1 CPU core   Minutes: 17 (40 runs, beside other work)
"""

from gpt_jax.ablation.design import Budget, Study


def get_study(arg=''):
  """Return the study; it takes no arguments."""
  return Study(
    base='experiments/shakespeare_char.py:small',
    question='Does QK-norm widen the range of learning rates that work?',
    factors={'qk_norm': [True, False], 'lr': [3e-3, 1e-3, 1e-2, 3e-2]},
    sweep='full',
    budget=Budget(tokens=600_000),
  )
