"""Train with differential privacy: a small text model from scratch, or adapters of a trained one.

Each document (or each value of a field, such as a user) is protected: (epsilon, delta) is in the run's last
lines, its report and its model card.
Command: launch.py train --config=experiments/private.py:epsilon=8 --workdir=runs/private
  launch.py train --config=experiments/private.py:path=posts.jsonl,unit=user --workdir=runs/by_user
  launch.py train --config=experiments/private.py:from_model=runs/gpt2 --workdir=runs/private_lora
  launch.py train --config=experiments/private.py:path=posts.jsonl,unit=user,canaries=64 --workdir=runs/audit
Needs: pip install -e '.[privacy]'
Arguments: epsilon (0: the control of a curve, without privacy, on the same rows: delta, unit and secret have
no effect), delta, unit (document, or a field of .jsonl records), path (a .txt, cut into documents at empty
lines, or a .jsonl with the field text), valid (the same, held-out; '' = none), secret (a file of 32 random
bytes; '' = the seed), from_model (a run folder; '' trains from scratch), adapter (rank beside from_model),
canaries (secrets of each number of repeats, half of them planted, that are looked for after training; 0 =
none), steps, seed, runlocal.
The copies of a secret are documents: with unit=document each is a unit of its own, and for 64 of them
together 64 epsilon is proved. With unit=user they are one user's, whom epsilon protects as a whole; the
records of the other data need a field user, too.
Hardware: 2 CPU cores, or one GPU
The gain of large batches is the largest part of the art: noise is divided by the number of units of a batch.
"""

from gpt_jax import config as configs
from gpt_jax import data

REPEATS = (1, 4, 16, 64)  # of canaries


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg,
    {'adapter': 'from_model'},
    epsilon=8.0,
    delta=1e-5,
    unit='document',
    path='tinyshakespeare/input.txt',
    valid='',
    secret='',
    from_model='',
    adapter=8,
    canaries=0,
    steps=400,
    seed=0,
    runlocal=False,
  )
  config = configs.default()
  is_text = args.path.endswith('.txt')
  source = {'kind': 'text', 'separator': '\n\n'} if is_text else {'kind': 'jsonl'}
  source |= {'path': args.path, 'valid_path': args.valid}
  config.data.mixture = {'private': source}
  if args.canaries:
    secrets = {'kind': 'canaries', 'documents': args.canaries, 'repeats': REPEATS, 'digits': 3}
    config.data.mixture['secrets'] = secrets
    config.train.tasks = ('canaries',)
  config.data.update(packing='document', valid_fraction=0.0)
  config.privacy.update(epsilon=args.epsilon, delta=args.delta, clip=1.0, unit=args.unit, secret=args.secret)
  config.train.update(
    steps=args.steps, batch_size=256, accumulate=8, eval_every=100, sample_every=0, seed=args.seed
  )
  if args.from_model:
    configs.start_from(config, args.from_model, args.adapter, length=128)
    config.optim.update(lr=1e-3, warmup=20, schedule='linear', final_lr=0.0, weight_decay=0.0)
  else:
    # Bytes: an alphabet or merges of the private text would be published with the weights.
    config.tokenizer.kind = 'bytes'
    config.model.update(
      layers=4, width=192, heads=6, context=128, mlp='relu2', qk_norm=True, init_projections='zero'
    )
    config.optim.update(lr=1e-3, warmup=20, schedule='linear', final_lr=0.0)
  if not args.epsilon:
    config.privacy = configs.default().privacy
    if args.canaries:  # as often as the other documents
      config.data.mixture['secrets']['weight'] = round(count(secrets) / count(source), 4)
  if args.runlocal:
    config.train.update(steps=2, batch_size=8, accumulate=2, eval_every=0)
  return config


def count(source):
  """Return the number of documents of a source."""
  cfg = data.DataConfig({'source': data.Source(**source)}, valid_fraction=0.0)
  return sum(1 for _ in data.documents(cfg, 'train'))
