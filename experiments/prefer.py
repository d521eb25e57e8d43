"""Train a model on pairs of answers, one of them preferred (DPO and its relatives).

Command: launch.py import --source=gpt2 --workdir=runs/gpt2
  launch.py train --config=experiments/prefer.py:base=runs/gpt2 --workdir=runs/preferred
The 1,100 pairs are those of "Build a Large Language Model" (Raschka), in file order and without repeats: 85 %
to train, 10 % for the test, 5 % for validation. Model and tokenizer are those of the base run.
Arguments: base (a run folder), path (pairs of your own, JSON lines or one list, with the fields prompt, or
instruction and input, chosen and rejected, which are texts or lists of messages; a tenth is held out), loss
(as preference.loss), runlocal (a minute on a CPU).
"""

from gpt_jax import config as configs
from gpt_jax import data
from gpt_jax.data import sources

PAIRS = {
  'path': 'instruct_small/instruction-data-with-preference.json',
  'train_split': 'train[:85%]',
  'test_split': 'train[85%:95%]',
  'valid_split': 'train[95%:]',
}
INSTRUCTIONS = {'template': '{instruction} {input} -> {chosen}', 'unique': 'instruction,input'}


def fields_of(path):
  """Return the first record of a file of pairs; ValueError if it is none."""
  records = sources.open_source(data.Source('jsonl', path, template='{chosen}'), 'train').records()
  _, fields = next(records)
  missing = {'chosen', 'rejected'} - {*fields}
  if missing or (isinstance(fields['chosen'], str) and not {'prompt', 'instruction'} & {*fields}):
    raise ValueError(
      f'{path} has no pairs: its first record has {", ".join(fields)}\n'
      'fix: give each record prompt, chosen and rejected, or write an experiment with a template'
    )
  return fields


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, base='runs/gpt2', path='', loss='dpo', runlocal=False)
  config = configs.default()
  configs.start_from(config, args.base)
  source = {'kind': 'jsonl'} | ({'path': args.path} if args.path else PAIRS)
  fields = fields_of(args.path) if args.path else {'instruction': ''}
  if 'instruction' in fields:
    source |= INSTRUCTIONS
  elif isinstance(fields['chosen'], str):
    source['template'] = '{prompt} -> {chosen}'
  else:
    source['template'] = '{chosen:chat}'
    config.preference.prompt = 'prompt' if isinstance(fields.get('prompt'), list) else ''
  config.data.mixture = {'pairs': source}
  config.data.packing = 'first_fit'
  config.preference.loss = args.loss
  config.optim.update(lr=5e-6, schedule='constant', warmup=0)
  config.train.update(job='dpo', steps=200, batch_size=32, eval_every=50)
  config.train.sample_prompts = ()
  if args.runlocal:
    config.train.update(steps=10, batch_size=4, eval_every=5)
    config.sample.max_new_tokens = 20
  return config
