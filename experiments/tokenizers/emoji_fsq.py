"""A learned tokenizer of color images: Noto emoji at 32 x 32 in 64 tokens of 1,000 codes.

Target: PSNR above k-means patches with 1,024 codes on the held-out images.
Command: python -m benchmarks.emoji_split --out=runs/emoji.jsonl
  launch.py train --config=experiments/tokenizers/emoji_fsq.py --workdir=runs/emoji_fsq
Arguments: steps, seed, runlocal.
"""

from gpt_jax import config as configs

EMOJI = dict(
  kind='jsonl',
  path='runs/emoji.jsonl',
  root='noto_emoji/images_72.zip',
  keep='group_split=train',
  valid_keep='group_split=valid',
  test_keep='group_split=test',
)


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, steps=2000, seed=0, runlocal=False)
  config = configs.default()
  config.image.update(kind='fsq', height=32, width=32, channels=3, patch=4, levels=(8, 5, 5, 5))
  config.data.packing = 'first_fit'
  config.data.mixture = {'emoji': dict(EMOJI, template='{image:image}')}
  config.optim.update(
    name='adamw', lr=2e-3, warmup=100, schedule='cosine', final_lr=0.01, weight_decay=0.0, ema=0.999
  )
  config.train.update(
    job='image_tokenizer',
    steps=args.steps,
    batch_size=64,
    eval_every=500,
    eval_tokens=2048,
    sample_every=1000,
    seed=args.seed,
  )
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20)
  return config
