"""Which norm, and where in the block: before each branch, after the sum, or around the branch?

Each arm is tuned over four learning rates. At the rate of the base, 0.003, sandwich norms look better and
norms after the sum worse; with each at its own best rate nothing distinguishes them from the baseline.
Result: benchmarks/results/ablations/norms.md
Command: launch.py ablate --config=experiments/ablations/norms.py --workdir=runs/norms
Hardware: 1 CPU core   Minutes: 30 (78 runs)
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
