"""GPT-2 in four sizes, on your own text.

Command: launch.py train --config=experiments/gpt2.py:size=small,text=corpus/*.txt,bpe=DIR
DIR has GPT-2's vocab.json and merges.txt (or encoder.json and vocab.bpe); without it a tokenizer of 8,192 ids
is trained on the text. Without a text: the language reference that ships with Python, and 4,096 ids.
Arguments: preset (gpt2, llama, modern), size (small, medium, large, xl; llama: small, 1b, 7b, 8b), text, bpe,
runlocal (a minute on a CPU).
Hardware: one GPU of 80 GB for small at this batch; --config.mesh.preset=gpu8-fsdp for xl.
Sources: GPT-2 (Radford et al. 2019); half a million tokens per batch and learning rates by size from GPT-3
(Brown et al. 2020, table 2.1).
"""

from gpt_jax import config as configs
from gpt_jax.model.presets import PRESETS

LEARNING_RATES = {'small': 6e-4, 'medium': 3e-4, 'large': 2.5e-4, 'xl': 2e-4, '1b': 2e-4}


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, size='small', preset='gpt2', text='', bpe='', runlocal=False)
  if args.preset not in PRESETS:
    rows = ', '.join(PRESETS)
    raise ValueError(f'config argument preset={args.preset} is not known\nfix: use one of {rows}')
  config = configs.default()
  config.model = configs.section(PRESETS[args.preset](args.size, vocab=0))
  if args.text:
    config.data.mixture = {'text': {'kind': 'text', 'path': args.text}}
  if args.bpe:
    config.tokenizer.update(kind='gpt2', path=args.bpe)
  else:
    config.tokenizer.update(kind='bpe', vocab=512 if args.runlocal else 8192 if args.text else 4096)
  config.optim.update(lr=LEARNING_RATES.get(args.size, 1.2e-4), warmup=700, b2=0.95)
  config.train.update(steps=19073, batch_size=512, accumulate=8, eval_every=500, sample_every=1000)
  config.checkpoint.every = 1000
  if args.runlocal:
    config.model.update(layers=2, width=128, heads=4, kv_heads=0, hidden=0, context=64)
    config.optim.warmup = 5
    config.train.update(steps=30, batch_size=8, accumulate=2, eval_every=15, sample_every=30)
    config.train.eval_tokens = 4096
    config.sample.max_new_tokens = 40
  return config
