"""Which MLP is best at equal parameters? Gated MLPs have three matrices, so two thirds of the hidden width.

Control: the tanh approximation of GELU is within 0.001 of the exact one. Each arm is tuned over four
learning rates.
Result: benchmarks/results/ablations/mlps.md
Command: launch.py ablate --config=experiments/ablations/mlps.py --workdir=runs/mlps
Hardware: 1 CPU core   Minutes: 27 (65 runs)
"""

from gpt_jax.ablation.design import Budget, Study


def get_study(arg=''):
  """Return the study; it takes no arguments."""
  plain = {'relu2': {}, 'gelu': {'mlp': 'gelu'}, 'gelu_exact': {'mlp': 'gelu_exact'}}
  gated = {name: {'mlp': name, 'hidden': 170} for name in ('swiglu', 'geglu')}
  return Study(
    base='experiments/shakespeare_char.py:small',
    question='Which MLP is best at equal parameters?',
    factors={'mlp': plain | gated},
    tune={'optim.lr': [3e-3, 1e-2, 3e-2, 1e-1]},
    budget=Budget(tokens=600_000),
  )
