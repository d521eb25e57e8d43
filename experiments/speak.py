"""Speech from text in the codes of a pretrained codec (EnCodec, DAC, Mimi): spoken digits.

Command: launch.py train --config=experiments/speak.py:codec=encodec_24khz,books=2 --workdir=runs/speak
  launch.py sample --workdir=runs/speak --prompt='theo: seven' --to=audio --out=seven.wav
  launch.py evaluate --workdir=runs/speak --split=test --tasks=reconstruct,speak
The codec is a folder as save_pretrained of transformers writes it. It is frozen and run once over the
recordings (FSDD, resampled to its rate); its codes lie in the token cache. Sampled codes are decoded by it,
or written as .npy with --to=codes.
Arguments: codec (a folder; '' = residual k-means of mel frames, made here), books (codebooks of it), pattern
(delay, flat: the order of their codes), context (tokens; a second of sound has books times the positions a
second of the codec), steps, seed, runlocal.
"""

from gpt_jax import config as configs

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg, codec='', books=2, pattern='delay', context=384, steps=1500, seed=0, runlocal=False
  )
  config = configs.default()
  config.tokenizer.kind = 'bytes'
  config.audio.update(kind='codec' if args.codec else 'frames', books=args.books, pattern=args.pattern)
  config.audio.update({'path': args.codec} if args.codec else {'codes': 256})
  config.data.mixture = {
    'speak': dict(  # the official test: the first five of each digit and speaker
      kind='files',
      path='fsdd/recordings.zip',
      names=NAMES,
      template='{speaker}: {name} -> {audio:audio}',
      pattern=r'(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\.wav',
      valid_keep='index=5|6|7|8|9',
      test_keep='index=0|1|2|3|4',
    )
  }
  config.data.update(packing='first_fit', condition_dropout=0.1)
  config.model.update(
    layers=4, width=128, heads=4, context=args.context, mlp='relu2', qk_norm=True, init_projections='zero'
  )
  config.optim.update(name='muon', lr=2e-3, warmup=50, schedule='linear', final_lr=0.0, ema=0.99)
  config.train.update(
    steps=args.steps,
    batch_size=8,
    eval_every=100,
    sample_every=500,
    eval_tokens=65536,
    seed=args.seed,
    sample_prompts=(),
  )
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20, eval_tokens=2048)
  return config
