"""Llama-shaped models on your own text; `size=7b` is the example for plans.

Command: launch.py plan --config=experiments/llama.py:size=7b --topology=v5e-256
         launch.py train --config=experiments/llama.py:size=1b,text=corpus/*.txt,tokens=DIR
Arguments: size (small, 1b, 7b, 8b), text, tokens (folder of a Llama tokenizer; '' = train one of 31,984 ids
on the text, 32,000 with the 16 specials), rows (per step).
Hardware: the state of 7b takes 12 bytes per parameter, 81 GB. Shard it with --config.mesh.data=1
--config.mesh.fsdp=-1; blocks are rematerialized (remat=full). `launch.py plan --search` finds better
settings.
Sources: Llama (Touvron et al. 2023, table 2: width, heads, layers, learning rate of 7b).
"""

from gpt_jax import config as configs
from gpt_jax.model.presets import llama

LEARNING_RATES = {'small': 6e-4, '1b': 3e-4, '7b': 3e-4, '8b': 3e-4}


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, size='small', text='', tokens='', rows=256)
  config = configs.default()
  config.model = configs.section(llama(args.size, vocab=0, remat='full'))
  config.optim.update(lr=LEARNING_RATES[args.size], warmup=2000, b2=0.95, weight_decay=0.1)
  config.train.update(steps=100_000, batch_size=args.rows, eval_every=1000, sample_every=5000)
  config.checkpoint.every = 1000
  if args.text:
    config.data.mixture = {'text': {'kind': 'text', 'path': args.text}}
  if args.tokens:
    config.tokenizer.update(kind='huggingface', path=args.tokens)
  else:
    config.tokenizer.update(kind='bpe', vocab=31984)
  return config
