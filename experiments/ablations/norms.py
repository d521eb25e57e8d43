"""Which norm, and where in the block: before each branch, after the sum, or around the branch?

Each arm is tuned over four learning rates, as norms after the sum need lower ones.
Result: benchmarks/results/ablations/norms.md, of arms that were not tuned yet
Command: launch.py ablate --config=experiments/ablations/norms.py --workdir=runs/norms
Hardware: 2 CPU cores   Minutes: 19 (78 runs at the pace of the recorded 30)
"""

from gpt_jax.ablation.design import Budget, Study


def get_study(arg=''):
  """Return the study; it takes no arguments."""
  return Study(
    base='experiments/shakespeare_char.py:small',
    question='Which norm, and where in the block?',
    factors={'norm': ['rmsnorm', 'layernorm'], 'norm_position': ['pre', 'post', 'sandwich']},
    sweep='full',
    tune={'optim.lr': [3e-3, 1e-2, 3e-2, 1e-1]},
    budget=Budget(tokens=600_000),
  )
