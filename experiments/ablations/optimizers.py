"""Which optimizer gets furthest in equal time, each at a learning rate of its own?

Equal time means: as many steps as fit into the seconds of the budget, by the step time that is
measured before the study; a slower step gets fewer of them.
Command: launch.py ablate --config=experiments/ablations/optimizers.py --workdir=runs/optimizers
Hardware: 2 CPU cores   Minutes: 15
"""

from gpt_jax.ablation.design import Budget, Study

SMALL = {'layers': 2, 'model.width': 64, 'heads': 4, 'context': 128, 'batch_size': 16,
         'eval_every': 60, 'eval_tokens': 16384, 'sample_every': 0}  # fmt: skip
RATES = {'muon': 3e-3, 'adamw': 1e-2, 'lion': 1e-3, 'adafactor': 1e-2, 'sgd': 0.3}


def get_study(arg=''):
  """No arguments."""
  return Study(
    base='experiments/shakespeare_char.py',
    question='Which optimizer gets furthest in equal time?',
    factors={
      'optimizer': {name: {'optim.name': name, 'optim.lr': lr} for name, lr in RATES.items()}
    },
    keeps_parameters=('optimizer',),
    changes=SMALL,
    budget=Budget(seconds=15),
  )
