"""A learned tokenizer of color images: Noto emoji at 32 x 32 in 64 tokens, or 72 x 72 in 144, of 1,000 codes.

Target: PSNR above k-means patches with 1,024 codes on the held-out images. Missed at 72 x 72 (steps=1000):
22.0 dB against 22.2 (results/emoji_fsq_72.json).
Command: python -m benchmarks.emoji_split --out=runs/emoji.jsonl
  launch.py train --config=experiments/tokenizers/emoji_fsq.py --workdir=runs/emoji_fsq
Arguments: pixels (of a side: 32 or 72), steps, seed, runlocal.
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


PATCH = {32: 4, 72: 6}  # pixels of a side -> of a code


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, pixels=32, steps=2000, seed=0, runlocal=False)
  if args.pixels not in PATCH:
    raise ValueError(f'config argument pixels={args.pixels} is not known\nfix: use one of 32, 72')
  config = configs.default()
  sizes = dict(height=args.pixels, width=args.pixels, channels=3, patch=PATCH[args.pixels])
  config.image.update(sizes, kind='fsq', levels=(8, 5, 5, 5))
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
