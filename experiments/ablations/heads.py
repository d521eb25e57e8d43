"""Are digits drawn better from codes, or patch by patch as numbers from a flow head, at equal FLOPs?

Judged by a classifier of real digits (judged right), and by the Frechet distance in its features. Codes cost
less a token and train for more steps; the FLOPs of their tokenizer are not counted.
Command: launch.py train --config=experiments/tokenizers/mnist_fsq.py --workdir=runs/mnist_fsq
  launch.py ablate --config=experiments/ablations/heads.py:tokens=runs/mnist_fsq --workdir=runs/heads
Hardware: 2 CPU cores   Minutes: 80 by estimate; flops=4e13, at which digits are drawn well, takes 320
Arguments: tokens (run folder of a trained tokenizer; '' = k-means patches), flops (of a run).
"""

from gpt_jax import config as configs
from gpt_jax.ablation.design import Budget, Study

FLOW = {'image.kind': 'continuous', 'image.path': '', 'image.codes': 256, 'model.flow_layers': 3}


def get_study(arg=''):
  """Return the study; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, tokens='', flops=1e13)
  return Study(
    base=f'experiments/mnist.py:task=draw,tokens={args.tokens}',
    question='Are digits drawn better from codes or by a flow head, at equal FLOPs?',
    factors={
      'head': {
        'codes': {},
        'flow': FLOW,
        'flow_1_block': FLOW | {'model.flow_layers': 1},
        'flow_7x7': FLOW | {'image.patch': 7},
      }
    },
    seeds=3,
    budget=Budget(flops=args.flops),
    metric='draw/draw/accuracy',
    better='higher',
    outcomes={'draw/draw/frechet_distance': ('lower', 0.5)},
    changes={'train.tasks': ('draw',), 'steps': 500, 'eval_every': 0, 'sample_every': 0},
  )
