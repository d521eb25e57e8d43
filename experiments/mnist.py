"""MNIST, read and drawn by one GPT: image -> name and name -> image.

Results (2 CPU cores; each run on one of them beside other work, 30 to 45 minutes):
  read from codes (task=read,copies=2,steps=2200): 98.0 % of all 10,000 test digits; from patches
  (task=read,continuous=True,steps=2000): 98.4 %.
  draw (task=draw,steps=2000; --guidance=1.5, chosen on validation): 98.4 % of 500 judged right, 93.7 %
  without guidance; a classifier trained on drawn digits is right on 90.6 % of real ones; 95.0 % of 200 digits
  are classified by the likelihood of their codes.
  both tasks in one model (33.6 minutes): 96.7 % read, 93.1 % drawn right without guidance.
Command: launch.py train --config=experiments/tokenizers/mnist_fsq.py --workdir=runs/mnist_fsq
  launch.py train --config=experiments/mnist.py:tokens=runs/mnist_fsq --workdir=runs/mnist
  launch.py evaluate --workdir=runs/mnist --split=test --tasks=answer,draw,classify
Arguments: tokens (run folder of a trained tokenizer; '' = k-means patches), head (codes, or flow: pictures
are numbers, read and drawn by a flow head, without a tokenizer), task (both, read, draw), continuous (read
patches instead of codes), copies (rotated, scaled and shifted copies of each digit to read), tfds (a prepared
TFDS data set of digits with a split named test, as in tfds=mnist, instead of MNIST's files), steps, seed,
runlocal.
"""

from gpt_jax import config as configs

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
MNIST = dict(kind='arrays', path='mnist/train-*-ubyte.gz', test_path='mnist/t10k-*-ubyte.gz', names=NAMES)


def check(args):
  """Raise ValueError for an argument that is not known, or that others leave without effect."""
  if args.task not in ('both', 'read', 'draw'):
    raise ValueError(f'config argument task={args.task} is not known\nfix: use one of both, read, draw')
  if args.task == 'draw' and (args.copies or args.continuous):
    raise ValueError('copies or continuous with task=draw: no digit is read\nfix: use task=read or both')
  if args.head not in ('codes', 'flow'):
    raise ValueError(f'config argument head={args.head} is not known\nfix: use one of codes, flow')
  if args.head == 'flow' and (args.tokens or args.continuous):
    raise ValueError('tokens or continuous with head=flow, whose pictures are never codes\nfix: leave it out')


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg,
    tokens='',
    head='codes',
    task='both',
    continuous=False,
    copies=0,
    tfds='',
    steps=3000,
    seed=0,
    runlocal=False,
  )
  check(args)
  config = configs.default()
  config.tokenizer.kind = 'chars'
  if args.head == 'flow':
    config.image.kind, config.model.flow_layers = 'continuous', 3
  elif args.tokens:
    config.image.update(kind='fsq', path=args.tokens)
  else:
    config.image.update(kind='patches', codes=240)
  config.data.update(
    packing='first_fit',
    valid_fraction=1 / 12,
    condition_dropout=0.1,
    prefix=args.continuous or args.task == 'read',
  )
  read = '{image:patches} -> {name}' if args.continuous else '{image:image} -> {name}'
  changed = dict(copies=args.copies, augment='rotate=10,scale=0.1,shift=2') if args.copies else {}
  digits = dict(kind='tfds', path=args.tfds, test_split='test', names=NAMES) if args.tfds else MNIST
  forms = {
    'read': dict(digits, template=read, **changed),
    'draw': dict(digits, template='{name} -> {image:image}'),
  }
  if args.task != 'both':
    forms = {args.task: forms[args.task]}
    config.data.condition_dropout = 0.1 if args.task == 'draw' else 0.0
  config.data.mixture = forms
  config.model.update(
    layers=4,
    width=128,
    heads=4,
    context=120,
    mlp='relu2',
    qk_norm=True,
    positions='mrope',
    init_projections='zero',
    dropout=0.05,
  )
  config.optim.update(name='muon', lr=3e-3, warmup=50, schedule='linear', final_lr=0.0)
  config.train.update(
    steps=args.steps,
    batch_size=32,
    eval_every=500,
    sample_every=1000,
    eval_tokens=65536,
    seed=args.seed,
    sample_prompts=(),
  )
  config.sample.update(max_new_tokens=80)
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20, eval_tokens=2048)
  return config
