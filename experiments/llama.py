"""Llama-shaped models, of which `size=7b` is the one to plan for a cluster, on a text of your own.

Command: launch.py plan --config=experiments/llama.py:size=7b --topology=v5e-256
         launch.py train --config=experiments/llama.py:size=1b,text=corpus/*.txt,tokens=DIR
tokens: a folder with a Llama tokenizer; without it one of 31,984 ids is trained on the text, which
with 16 specials makes 32,000. Arguments: size (small, 1b, 7b, 8b), text, tokens, rows (a step).
Hardware: the state of 7b takes 12 bytes a parameter, 81 GB: spread it with --config.mesh.data=1
--config.mesh.fsdp=-1; blocks are recomputed (remat=full). `launch.py plan --search` finds better.
Sources: Llama (Touvron et al. 2023, table 2: width, heads, layers, learning rates of 7b).
"""

from gpt_jax import config as configs
from gpt_jax.model.presets import llama

LEARNING_RATES = {'small': 6e-4, '1b': 3e-4, '7b': 3e-4, '8b': 3e-4}


def get_config(arg=''):
  """arg: see the module's docstring."""
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
