"""Which optimizer gets furthest on equal tokens, or in equal time, each at its best of three rates?

How to read it: compare the best arm of each optimizer. They are chosen alike, of three rates a
factor of about three apart; one whose best rate is the lowest or the highest of the three may do
better beyond, so widen its rates before it is called worse. Weight decay is multiplied by the
learning rate, so each arm's is set such that what a step takes off the weights is the same in all.
The budget is tokens, for all rates of an optimizer train in one program; what its steps cost is in
the report's columns of time and of effective speed. With `:seconds=20` each run gets as many steps
as take 20 s on this machine, which are measured first: then runs have the machine to themselves.
Command: launch.py ablate --config=experiments/ablations/optimizers.py --workdir=runs/optimizers
Hardware: 2 CPU cores   Minutes: 25; with seconds=20 as many of steps alone
"""

from gpt_jax import config
from gpt_jax.ablation.design import Budget, Study

RATES = {
  'muon': (3e-3, 1e-3, 1e-2),
  'adamw': (3e-3, 1e-2, 3e-2),
  'lion': (3e-4, 1e-3, 3e-3),
  'adafactor': (3e-3, 1e-2, 3e-2),
  'sgd': (0.1, 0.3, 1.0),
}
DECAY = 3e-4  # learning rate times weight decay, of every arm


def get_study(arg=''):
  """Arguments: seconds, of each run's steps; 0 gives all runs the same tokens."""
  seconds = config.arguments(arg, seconds=0.0).seconds
  how = f'in {seconds:g} seconds of steps' if seconds else 'on equal tokens'
  levels = {
    f'{name}_{lr:g}': {'optim.name': name, 'optim.lr': lr, 'optim.weight_decay': float(f'{DECAY / lr:.6g}')}
    for name, rates in RATES.items()
    for lr in rates
  }
  return Study(
    base='experiments/shakespeare_char.py:small',
    question=f'Which optimizer gets furthest {how}, at its best learning rate?',
    factors={'optimizer': levels},
    keeps_parameters=('optimizer',),
    budget=Budget(seconds=seconds) if seconds else Budget(tokens=400_000),
  )
