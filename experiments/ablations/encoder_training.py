"""What should a vision encoder learn beside the model that it was joined to?

Captions of emoji by a small model from scratch (base=RUN: by an imported one with adapters, as the encoder's
can have them, too), read by a pretrained encoder in the step.
Command: launch.py ablate --config=experiments/ablations/encoder_training.py --workdir=runs/encoder_training
Hardware: one GPU   Minutes: 30 by estimate
Needs: siglip-base, the folder of an encoder, and runs/emoji.jsonl (experiments/see.py).
Arguments: encoder, base, steps.
"""

from gpt_jax import config as configs
from gpt_jax.ablation.design import Study

WHOLE = {'encoder.train': 'whole'}


def get_study(arg=''):
  """Return the study; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, encoder='siglip-base', base='', steps=500)
  levels = {
    'frozen': {},
    'whole': WHOLE,
    'whole_tenth': WHOLE | {'optim.lr_multipliers': ('image_encoder/.*=0.1', '.*=1')},
    'whole_hundredth': WHOLE | {'optim.lr_multipliers': ('image_encoder/.*=0.01', '.*=1')},
  }
  if args.base:
    levels['adapters'] = {'encoder.train': 'adapters'}
  return Study(
    base=f'experiments/see.py:encoder={args.encoder},base={args.base},encoder_train=frozen,task=caption,text=',
    question='Should a vision encoder be frozen, adapted or trained whole?',
    factors={'encoder_train': levels},
    seeds=3,
    changes={'steps': args.steps, 'eval_every': 100, 'sample_every': 0},
  )
