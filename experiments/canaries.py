"""How much a model memorizes: secrets planted 1, 4, 16 and 64 times in the language reference of Python.

Command: launch.py train --config=experiments/canaries.py --workdir=runs/canaries
  launch.py evaluate --workdir=runs/canaries --tasks=canaries,extraction,membership
Arguments: steps, secrets (of each number of repeats, half of them planted), runlocal.
Hardware: 1 CPU core   Minutes: 5 for 600 steps
The secrets have the share of the rows that lets text and secrets be passed equally often.
"""

from gpt_jax import config as configs
from gpt_jax import data

DIGITS = 3  # all 1,000 candidates of a secret are ranked


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, steps=600, secrets=32, runlocal=False)
  config = configs.default()
  config.tokenizer.kind = 'bytes'
  secrets = {'kind': 'canaries', 'documents': args.secrets, 'digits': DIGITS}
  config.data.update(packing='first_fit', valid_fraction=0.1)
  config.data.mixture = {'text': {'license': 'PSF-2.0'}, 'secrets': secrets}
  sizes = {'text': 0, 'secrets': 0}
  mixture = {'text': data.Source(), 'secrets': data.Source(**secrets)}
  for name, text in data.documents(data.DataConfig(mixture), 'train'):
    sizes[name] += len(text.encode()) + 1
  config.data.mixture['secrets']['weight'] = round(sizes['secrets'] / sizes['text'], 3)
  config.model.update(layers=2, width=96, heads=4, context=128, mlp='relu2', qk_norm=True)
  config.optim.update(name='muon', lr=4e-3, warmup=20, schedule='linear', final_lr=0.0)
  config.train.update(steps=args.steps, batch_size=32, eval_every=200, sample_every=0)
  if args.runlocal:
    config.train.update(steps=20, eval_every=10)
  return config
