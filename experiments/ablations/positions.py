"""Which position encoding learns best in a small character model?

Control: on text, without rows and columns, mrope equals rope, and the verdict should be no difference.
Sinusoids have entries up to 1 and embeddings start far smaller: sinusoidal_scaled multiplies the embeddings
by the root of the width (Vaswani et al. 2017, section 3.4), sinusoidal does not.
Result: benchmarks/results/ablations/positions.md, of all arms but sinusoidal_scaled, which was added later.
Command: launch.py ablate --config=experiments/ablations/positions.py --workdir=runs/positions
Hardware: 2 CPU cores   Minutes: 12
"""

from gpt_jax.ablation.design import Budget, Study


def get_study(arg=''):
  """Return the study; it takes no arguments."""
  names = ('mrope', 'learned', 'sinusoidal', 'alibi', 'none')
  scaled = {'positions': 'sinusoidal', 'embed_scale': 0.0}  # 0: the root of the width
  return Study(
    base='experiments/shakespeare_char.py:small',
    question='Which position encoding learns best?',
    factors={
      'positions': {'rope': {}}
      | {name: {'positions': name} for name in names}
      | {'sinusoidal_scaled': scaled}
    },
    budget=Budget(tokens=600_000),
  )
