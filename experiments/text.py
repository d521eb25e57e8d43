"""A text of your own by characters, or a list such as names with one entry a line.

Command: launch.py train --config=experiments/text.py:path=book.txt --workdir=runs/book
  launch.py sample --workdir=runs/book --prompt='Once upon a time' --temperature=0.8
  launch.py train --config=experiments/text.py:path=names.txt,lines --workdir=runs/names
  launch.py sample --workdir=runs/names --num_samples=10
Arguments: path (a file, glob or folder of .txt), lines (each line is a document), steps (0: six passes over
the text, from 100 to 500), runlocal.
Hardware: 2 CPU cores   Minutes: 1 for lines, several for a book
A megabyte of English reaches 1.6 nats per character, where most words are words. A small text is memorized
when it is repeated more often: the last line of a run says at which step validation was best.
"""

import sys

from gpt_jax import config as configs
from gpt_jax import data
from gpt_jax.runs.loggers import say

PASSES = 6


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, path='book.txt', lines=False, steps=0, runlocal=False)
  config = configs.default()
  config.tokenizer.kind = 'chars'
  source = {'kind': 'text', 'path': args.path, 'separator': '\n' if args.lines else ''}
  config.data.mixture = {'text': source}
  config.model.update(
    layers=4, width=192, heads=6, context=256, mlp='relu2', qk_norm=True, init_projections='zero', dropout=0.1
  )
  config.optim.update(name='muon', lr=3e-3, warmup=50, schedule='linear', final_lr=0.0)
  config.train.batch_size = 16
  config.sample.update(temperature=0.8, max_new_tokens=200)
  if args.lines:
    config.model.update(layers=3, width=96, heads=4, context=64)
    config.train.sample_prompts = ('',)
    config.sample.max_new_tokens = 60
  whole = data.DataConfig({'text': data.Source(**source)}, valid_fraction=0.0)
  sizes = [len(text) for _, text in data.documents(whole, 'train')]
  steps = PASSES * sum(sizes) / (config.train.batch_size * config.model.context)
  steps = args.steps or int(min(max(round(steps, -2), 100), 500))
  config.train.update(steps=steps, eval_every=max(steps // 5, 1), sample_every=max(steps // 5, 1))
  parts = 'one document' if len(sizes) == 1 else f'{len(sizes):,} documents'
  say(f'{args.path}: {sum(sizes):,} characters, {parts}; {steps} steps', file=sys.stderr)
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20)
  return config
