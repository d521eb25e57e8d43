"""Which optimizer is best on equal tokens or in equal time, each at the best of three learning rates?

Compare the best arm of each optimizer. Its three rates are a factor of about three apart; if the best one is
the lowest or highest, add rates beyond it before calling the optimizer worse. Weight decay is multiplied by
the learning rate, so each arm's weight decay is set to the same decay per step.
The default budget is tokens, so that all rates of an optimizer train in one program; the report has the time
and effective speed. `:seconds=20` gives each run as many steps as take 20 s on this machine, measured first;
these runs do not share the machine.
Command: launch.py ablate --config=experiments/ablations/optimizers.py --workdir=runs/optimizers
Hardware: 2 CPU cores   Minutes: 25; with seconds=20 as many for the steps alone
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
DECAY = 3e-4  # learning rate times weight decay of every arm


def get_study(arg=''):
  """Return the study; arguments: seconds (of training per run; 0 = equal tokens)."""
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
