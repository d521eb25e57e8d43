"""Which optimizer is best on equal tokens or in equal time, each at its own best learning rate?

Every optimizer is tuned over five rates, each about three times the one before. The rates are in units of the
optimizer: 0.0001 to 0.01 for lion and 0.03 to 3 for sgd, where the others have 0.001 to 0.1. There is no
weight decay, which would change with the rate.
The default budget is tokens; the report has the time and effective speed. `:seconds=20` gives each run as
many steps as take 20 s on this machine, measured first; these runs do not share the machine.
Result: benchmarks/results/ablations/optimizers.md, optimizers_seconds.md
Command: launch.py ablate --config=experiments/ablations/optimizers.py --workdir=runs/optimizers
Hardware: 1 CPU core   Minutes: 23 (75 runs); 31 with seconds=20; both beside other work
"""

from gpt_jax import config
from gpt_jax.ablation.design import Budget, Study

UNITS = {'muon': 1, 'adamw': 1, 'lion': 0.1, 'adafactor': 1, 'sgd': 30}


def get_study(arg=''):
  """Return the study; arguments: seconds (of training per run; 0 = equal tokens)."""
  seconds = config.arguments(arg, seconds=0.0).seconds
  how = f'in {seconds:g} seconds of steps' if seconds else 'on equal tokens'
  levels = {name: {'optim.name': name} for name in UNITS}
  for name, unit in UNITS.items():
    levels[name] |= {'lr_multipliers': (f'.*={unit}',)} if unit != 1 else {}
  return Study(
    base='experiments/shakespeare_char.py:small',
    question=f'Which optimizer gets furthest {how}, at its best learning rate?',
    factors={'optimizer': levels},
    keeps_parameters=('optimizer',),
    changes={'optim.weight_decay': 0.0},
    tune={'optim.lr': [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]},
    budget=Budget(seconds=seconds) if seconds else Budget(tokens=400_000),
  )
