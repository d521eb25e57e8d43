"""Which MLP, at equal parameters: gated ones have a third matrix, so two thirds of the hidden width.

Control: the tanh form of GELU is within 0.001 of the exact one.
Command: launch.py ablate --config=experiments/ablations/mlps.py --workdir=runs/mlps
Hardware: 2 CPU cores   Minutes: 13
"""

from gpt_jax.ablation.design import Budget, Study


def get_study(arg=''):
  """No arguments."""
  plain = {'relu2': {}, 'gelu': {'mlp': 'gelu'}, 'gelu_exact': {'mlp': 'gelu_exact'}}
  gated = {name: {'mlp': name, 'hidden': 170} for name in ('swiglu', 'geglu')}
  return Study(
    base='experiments/shakespeare_char.py:small',
    question='Which MLP is best at equal parameters?',
    factors={'mlp': plain | gated},
    budget=Budget(tokens=600_000),
  )
