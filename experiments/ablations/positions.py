"""With which position encoding does a small character model learn best?

Control: on text, without rows and columns, mrope equals rope, and the verdict should say so.
The table of sines has entries up to 1, embeddings start far smaller: sinusoidal_scaled multiplies
them by the root of the width (Vaswani et al. 2017, section 3.4); sinusoidal adds them unscaled.
Command: launch.py ablate --config=experiments/ablations/positions.py --workdir=runs/positions
Hardware: 2 CPU cores   Minutes: 12
"""

from gpt_jax.ablation.design import Budget, Study


def get_study(arg=''):
  """No arguments."""
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
