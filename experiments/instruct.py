"""Instructions as conversations, of which the answers are learned: from scratch, or from a model.

Command: launch.py train --config=experiments/instruct.py --workdir=runs/instruct
  launch.py train --config=experiments/instruct.py:from_model=runs/gpt2 --workdir=runs/tuned
  launch.py chat --workdir=runs/instruct
  launch.py train --config=experiments/instruct.py:path=chats.jsonl --workdir=runs/chats
The 1,100 instructions of instruct_small/instruction-data.json (Raschka, "Build a Large Language Model") are
read in file order and without repeats: 85 % to train, 10 % for the test, 5 % for validation. They are too few
to learn a language: from scratch the model learns the form of answers.
Arguments: path (JSON lines of your own, each with `messages`; a tenth is held out), from_model (a run folder;
'' trains from scratch), steps (0: 600, or 200 for your own), runlocal (a minute on a CPU).
"""

import sys

from gpt_jax import config as configs
from gpt_jax import data
from gpt_jax.runs.loggers import say

INSTRUCTIONS = {
  'kind': 'jsonl',
  'path': 'instruct_small/instruction-data.json',
  'template': '{instruction:chat}',
  'unique': 'instruction,input',
  'train_split': 'train[:85%]',
  'test_split': 'train[85%:95%]',
  'valid_split': 'train[95%:]',
}
LONGEST = 1024  # tokens of a conversation


def context_of(source):
  """Print the size of a source; return a context for its longest conversation, at most LONGEST."""
  whole = data.DataConfig({'instruct': data.Source(**source)}, packing='first_fit', valid_fraction=0.0)
  sizes = [len(text.encode()) for _, text in data.documents(whole, 'train')]
  context = min(-(-max(sizes) // 64) * 64 + 64, LONGEST)  # special tokens of each turn are not in the text
  longest = f'the longest of {max(sizes)} bytes'
  say(f'{source["path"]}: {len(sizes)} conversations, {longest}; context {context}', file=sys.stderr)
  return context


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, path='', from_model='', steps=0, runlocal=False)
  config = configs.default()
  source = INSTRUCTIONS
  if args.path:
    source = {'kind': 'jsonl', 'path': args.path, 'template': '{messages:chat}'}
  config.data.mixture = {'instruct': source}
  config.data.packing = 'first_fit'
  steps = args.steps or (200 if args.path else 600)
  config.train.update(steps=steps, batch_size=16, eval_every=50, sample_every=200, sample_prompts=())
  config.sample.update(max_new_tokens=100, temperature=0.7)
  if args.from_model:
    configs.start_from(config, args.from_model, length=512)
    config.optim.update(lr=3e-5, warmup=10)
  else:
    config.tokenizer.update(kind='bpe', vocab=2048)
    config.model.update(
      layers=4, width=192, heads=6, context=context_of(source) if args.path else 512, dropout=0.1
    )
    config.optim.update(lr=1e-3, warmup=50)
    if args.path:  # the sizes of experiments/table.py: minutes on a CPU
      config.model.update(width=128, heads=4)
      config.train.batch_size = 8
  if args.runlocal:
    config.train.update(steps=20, batch_size=4, eval_every=10, sample_every=20, eval_tokens=2048)
    config.sample.max_new_tokens = 20
  return config
