"""Sums of two numbers of two digits: trained a little on right answers, then on rewards alone (GRPO).

The second stage never reads an answer: a completion is right or not.
Command: launch.py train --config=experiments/sums.py --workdir=runs/sums
  launch.py train --config=experiments/sums.py:stage=grpo,base=runs/sums --workdir=runs/sums_grpo
Arguments: stage (pretrain, grpo), base (the run folder of the first stage), steps (0 = those of the stage),
seed, runlocal.
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, stage='pretrain', base='', steps=0, seed=0, runlocal=False)
  if args.stage not in ('pretrain', 'grpo'):
    raise ValueError(f'stage={args.stage} is not known\nfix: use stage=pretrain or grpo')
  if args.stage == 'pretrain' and args.base:
    raise ValueError(
      f'base={args.base} has no effect with stage=pretrain\nfix: use stage=grpo, or leave base out'
    )
  config = configs.default()
  config.data.mixture = {
    'sums': dict(
      kind='sums',
      documents=400 if args.runlocal else 20_000,
      template='{question} -> {answer}',
      valid_keep='part=8',
      test_keep='part=9',
    )
  }
  config.data.packing = 'first_fit'
  config.tokenizer.kind = 'chars'
  config.model.update(
    layers=2, width=128, heads=4, context=32, mlp='relu2', qk_norm=True, init_projections='zero'
  )
  config.train.update(seed=args.seed, sample_every=0, sample_prompts=(), tasks=('answer',))
  config.sample.max_new_tokens = 4
  if args.stage == 'pretrain':
    config.optim.update(name='adamw', lr=1e-3, warmup=50, schedule='linear', final_lr=0.0)
    config.train.update(steps=args.steps or 400, batch_size=32, eval_every=100)
  else:
    config.optim.update(
      name='adamw', lr=2e-4, b2=0.99, warmup=100, schedule='linear', final_lr=0.0, weight_decay=0.0, ema=0.0
    )
    config.grpo.update(group=8, max_new_tokens=4, advantage='mean', normalize='constant')
    config.train.update(
      job='grpo',
      init_from=args.base or 'runs/sums',
      steps=args.steps or 1000,
      batch_size=1024,
      eval_every=100,
    )
    # Micro-batches of 64 rows stay in the cache of a core: 1.5 times as fast as all rows at once.
    config.train.update(accumulate=16, length=10)
    config.model.context = 16  # also the size of prompts and caches
  if args.runlocal:
    config.train.update(steps=10, batch_size=32, accumulate=1, eval_every=5, eval_tokens=512)
  return config
