"""Train a model on pairs of answers, one of them preferred (DPO and its relatives).

Command: launch.py import --source=gpt2 --workdir=runs/gpt2
  launch.py train --config=experiments/prefer.py:base=runs/gpt2 --workdir=runs/preferred
Lines have the fields instruction, input, chosen and rejected. Model and tokenizer are those of the base run.
Pairs of the book "Build a Large Language Model" (Raschka) as lines:
  jq -c '.[]' instruction-data-with-preference.json > pairs.jsonl
Arguments: base (a run folder), path (JSON lines), loss (dpo, ipo, orpo, simpo), runlocal (a minute on a CPU).
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, base='runs/gpt2', path='pairs.jsonl', loss='dpo', runlocal=False)
  config = configs.default()
  base = configs.of_run(args.base)
  config.model = configs.section(base.model)
  config.model.param_dtype = 'float32'  # half precision loses small updates
  config.tokenizer = configs.section(base.tokenizer)
  template = '{instruction} {input} -> {chosen}'
  config.data.mixture = {'pairs': {'kind': 'jsonl', 'path': args.path, 'template': template}}
  config.data.packing = 'first_fit'
  config.preference.loss = args.loss
  config.optim.update(lr=5e-6, schedule='constant', warmup=0)
  config.train.update(job='dpo', init_from=args.base, steps=200, batch_size=32, eval_every=50)
  config.train.sample_prompts = ()
  if args.runlocal:
    config.train.update(steps=10, batch_size=4, eval_every=5)
    config.sample.max_new_tokens = 20
  return config
