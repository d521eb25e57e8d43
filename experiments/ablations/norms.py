"""Which norm, and where in the block: before each branch, after the sum, or around the branch?

Command: launch.py ablate --config=experiments/ablations/norms.py --workdir=runs/norms
Hardware: 2 CPU cores   Minutes: 15
"""

from gpt_jax.ablation.design import Budget, Study


def get_study(arg=''):
  """Return the study; it takes no arguments."""
  return Study(
    base='experiments/shakespeare_char.py:small',
    question='Which norm, and where in the block?',
    factors={'norm': ['rmsnorm', 'layernorm'], 'norm_position': ['pre', 'post', 'sandwich']},
    sweep='full',
    budget=Budget(tokens=600_000),
  )
