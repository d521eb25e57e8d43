"""Fine-tune a model on another text, with a fresh optimizer: all of it, or low-rank adapters beside it.

Command: launch.py import --source=gpt2 --workdir=runs/gpt2
  launch.py train --config=experiments/finetune.py:base=runs/gpt2
  --config.data.mixture.text.path=my_text.txt
Model and tokenizer are those of the base run. Learning rate and batch follow nanoGPT's fine-tuning recipe;
adapters have ten times its rate (Schulman et al. 2025, "LoRA Without Regret").
Arguments: base (a run folder), adapter (rank; 0 trains all parameters), runlocal (a minute on a CPU).
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, base='runs/gpt2', adapter=0, runlocal=False)
  config = configs.default()
  configs.start_from(config, args.base, args.adapter)
  config.data.mixture = {'text': {'kind': 'text', 'path': 'tinyshakespeare/input.txt'}}
  config.optim.update(lr=3e-5, schedule='constant', warmup=0)
  config.train.update(steps=200, batch_size=32, eval_every=20, sample_every=100)
  if args.adapter:
    config.optim.update(lr=3e-4, weight_decay=0.0)
  if args.runlocal:
    config.train.update(
      steps=10, batch_size=4, length=min(64, config.model.context), eval_every=5, eval_tokens=1024
    )
    config.sample.max_new_tokens = 20
  return config
