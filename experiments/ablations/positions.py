"""Which position encoding learns best in a small character model?

Control: on text, without rows and columns, mrope equals rope, and the verdict should be no difference.
Sinusoids have entries up to 1 and embeddings start far smaller, which puts this arm at a disadvantage:
`:scaled` adds sinusoidal_scaled, which multiplies the embeddings by the root of the width (Vaswani et al.
2017, section 3.4). Each arm is tuned over four learning rates.
Result: benchmarks/results/ablations/positions.md
Command: launch.py ablate --config=experiments/ablations/positions.py --workdir=runs/positions
Hardware: 1 CPU core   Minutes: 28 (78 runs; 5 more with `:scaled`)
"""

from gpt_jax import config
from gpt_jax.ablation.design import Budget, Study


def get_study(arg=''):
  """Return the study; arguments: scaled (adds an arm)."""
  names = ('mrope', 'learned', 'sinusoidal', 'alibi', 'none')
  levels = {'rope': {}} | {name: {'positions': name} for name in names}
  if config.arguments(arg, scaled=False).scaled:
    levels['sinusoidal_scaled'] = {'positions': 'sinusoidal', 'embed_scale': 0.0}  # 0: the root of the width
  return Study(
    base='experiments/shakespeare_char.py:small',
    question='Which position encoding learns best?',
    factors={'positions': levels},
    tune={'optim.lr': [3e-3, 1e-2, 3e-2, 1e-1]},
    budget=Budget(tokens=600_000),
  )
