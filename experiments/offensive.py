"""A classifier of offensive posts: a judge of samples, a filter of data, and the measure of both.

Its area under the ROC curve is 0.983, that of TF-IDF and logistic regression on the same posts 0.984
(benchmarks/results/clean/offensive.json).
The labels are known to be biased against African-American English (Davidson et al. 2019, Sap et al. 2019),
and so is what learns from them. The posts are for filters alone: nothing of them is shown.
Command: python -m benchmarks.offensive --out=runs/offensive.jsonl
  launch.py train --config=experiments/offensive.py --workdir=runs/offensive
  python -m benchmarks.offensive --workdir=runs/offensive
  launch.py sample --workdir=RUN --prompt=Hello --judge='runs/offensive:offensive|fine'
Arguments: half (0 or 1: half of the training posts; '' = all), steps, seed, runlocal.
Hardware: 1 CPU core   Minutes: 5
"""

from gpt_jax import config as configs

POSTS = dict(kind='jsonl', path='runs/offensive.jsonl', license='MIT')


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, half='', steps=500, seed=0, runlocal=False)
  config = configs.default()
  keep = 'part=train' + (f',half={args.half}' if args.half else '')
  posts = dict(POSTS, keep=keep, valid_keep='part=valid', test_keep='part=test')
  config.data.mixture = {'posts': dict(posts, template='{text} -> {label}')}
  config.data.update(packing='first_fit', prefix=True)
  config.tokenizer.update(kind='bpe', vocab=2048)
  config.model.update(
    layers=1, width=128, heads=4, context=256, mlp='relu2', qk_norm=True, init_projections='zero', dropout=0.1
  )
  config.optim.update(name='muon', lr=2e-3, warmup=30, schedule='linear', final_lr=0.0, ema=0.99)
  config.train.update(
    steps=args.steps, batch_size=16, eval_every=250, sample_every=0, seed=args.seed, sample_prompts=()
  )
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, eval_tokens=2048)
  return config
