"""Are pictures drawn better from codes, or patch by patch as numbers from a flow head, at equal FLOPs?

Digits are judged by a classifier of real ones (judged right) and by the Frechet distance in its features,
emoji by the Frechet distance in the features of a classifier of their groups. Codes cost less a token and
train for more steps; the FLOPs of their tokenizer are not counted.
Command: launch.py train --config=experiments/tokenizers/mnist_fsq.py --workdir=runs/mnist_fsq
  launch.py ablate --config=experiments/ablations/heads.py:tokens=runs/mnist_fsq --workdir=runs/heads
  launch.py ablate --config=experiments/ablations/heads.py:emoji,flops=4e12 --workdir=runs/emoji_heads
Hardware: 1 CPU core   Minutes: 75 for digits (AVX-512); flops=4e13 takes four times as long
Result (digits): codes are judged right in 82 %, the flow head in 57 %, in 67 % with one block, for which it
trains longer, in 15 % with patches of 7 x 7. Emoji with flops=4e12, 40 minutes: the Frechet distance is 79
from codes, blotches of color, and 137 to 146 from the flow head, which still draws noise.
Arguments: tokens (run folder of a trained tokenizer; '' = k-means patches), emoji (instead of digits), flops
(of a run).
"""

from gpt_jax import config as configs
from gpt_jax.ablation.design import Budget, Study

# The fields of tokenizers with codes take their defaults.
FLOW = {
  'image.kind': 'continuous',
  'image.path': '',
  'image.codes': 256,
  'image.levels': (8, 6, 5),
  'model.flow_layers': 3,
}


def get_study(arg=''):
  """Return the study; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, tokens='', emoji=False, flops=1e13)
  name, task, pixels = ('emoji', '', 8) if args.emoji else ('mnist', ',task=draw', 7)
  judged = {'draw/draw/accuracy': ('higher', 0.01), 'draw/draw/frechet_distance': ('lower', 0.5)}
  metric = 'draw/draw/frechet_distance' if args.emoji else 'draw/draw/accuracy'
  better, tolerance = judged.pop(metric)
  return Study(
    base=f'experiments/{name}.py:tokens={args.tokens}{task}',
    question=f'Is {name} drawn better from codes or by a flow head, at equal FLOPs?',
    factors={
      'head': {
        'codes': {},
        'flow': FLOW,
        'flow_1_block': FLOW | {'model.flow_layers': 1},
        f'flow_{pixels}x{pixels}': FLOW | {'image.patch': pixels},
      }
    },
    seeds=3,
    budget=Budget(flops=args.flops),
    metric=metric,
    better=better,
    tolerance=tolerance,
    outcomes={} if args.emoji else judged,
    changes={'train.tasks': ('draw',), 'steps': 500, 'eval_every': 0, 'sample_every': 0},
  )
