"""A language model learns to see: a pretrained vision encoder, vectors or patches, a projector, adapters.

Command: launch.py import --source=google/gemma-3-270m --workdir=runs/gemma
  python -m benchmarks.emoji_split --out=runs/emoji.jsonl
  launch.py train --config=experiments/see.py:base=runs/gemma,encoder=siglip-base --workdir=runs/see
  launch.py evaluate --workdir=runs/see --split=test --tasks=answer
  launch.py sample --workdir=runs/see --image=cat.png --prompt='Which group?'
The encoder (SigLIP, CLIP, ViT, DINOv2) is a folder as save_pretrained of transformers writes it. It is
frozen and run once over the pictures (Noto emoji, split so that siblings stay together); encoder_train
makes it a part of the step. Without one, the model reads the pixels of patches, or the vectors of another
network (benchmarks.emoji_vectors: EfficientNet-Lite0). The model captions a picture and says to which group
it belongs. Only the projector and the adapters are trained; base='' trains a small model from scratch.
Result (base=,vectors=runs/emoji_vectors,projector=linear,task=caption,text=,steps=800; evaluate with
--num_samples=32 --temperature=1): token F1 13.9 % of test captions, the nearest neighbor in pixels 7.2 %.
Arguments: base (a run folder, or ''), encoder (a folder; '' = 36 patches of 12 x 12 pixels), encoder_train
(cached; in the step: frozen, adapters, or whole at a tenth of the learning rate), vectors (a folder of
benchmarks.emoji_vectors), projector (linear, mlp), task (all, caption, group), text (a file to train beside
against forgetting; '' = none), adapter (rank), steps, seed, runlocal.
"""

from gpt_jax import config as configs

FORMS = {'caption': 'Caption. -> {name}', 'group': 'Which group? -> {group}'}
# Tokens of a row, and rows of a step: a picture of SigLIP has 196 to 256 places, one of vectors nine.
PICTURES = {'{image:patches}': (288, 4), '{vectors:vectors}': (48, 16)}


def check(args):
  """Raise ValueError for a task that is not known, or a picture that would be read in two ways."""
  if args.task not in ('all', *FORMS):
    raise ValueError(
      f'config argument task={args.task} is not known\nfix: use one of all, {", ".join(FORMS)}'
    )
  if args.encoder and args.vectors:
    raise ValueError('vectors with encoder: a picture is read in one way\nfix: leave one of them out')


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg,
    {'adapter': 'base', 'encoder_train': 'encoder'},
    base='runs/gemma',
    encoder='',
    encoder_train='cached',
    vectors='',
    projector='mlp',
    task='all',
    text='tinyshakespeare/input.txt',
    adapter=16,
    steps=600,
    seed=0,
    runlocal=False,
  )
  check(args)
  picture = '{vectors:vectors}' if args.vectors else '{image:patches}'
  length, rows = PICTURES[picture]
  config = configs.default()
  if args.base:
    configs.start_from(config, args.base, args.adapter, length=length)
    config.adapter.train = ('^vector_' if args.vectors else '^patch_',)
    config.optim.update(lr=1e-3, warmup=20)
  else:
    config.tokenizer.update(kind='bpe', vocab=2048)  # most words are one token
    config.model.update(layers=4, width=128, heads=4, context=length, mlp='relu2', qk_norm=True)
    config.model.update(init_projections='zero', dropout=0.2)
    config.optim.update(name='muon', lr=2e-3, warmup=50, ema=0.99)
  if args.encoder:
    config.encoder.update(image=args.encoder, train=args.encoder_train)
    if args.encoder_train == 'whole':
      config.optim.lr_multipliers = ('image_encoder/.*=0.1', '.*=1')
  elif not args.vectors:
    config.image.update(kind='patches', height=72, width=72, channels=3, patch=12, codes=16)
  config.model.projector = args.projector
  emoji = dict(
    kind='jsonl',
    path=f'{args.vectors}/rows.jsonl' if args.vectors else 'runs/emoji.jsonl',
    root='' if args.vectors else 'noto_emoji/images_72.zip',
    keep='group_split=train',
    valid_keep='group_split=valid',
    test_keep='group_split=test',
  )
  forms = FORMS if args.task == 'all' else {args.task: FORMS[args.task]}
  config.data.mixture = {name: dict(emoji, template=f'{picture} {form}') for name, form in forms.items()}
  if args.text:
    config.data.mixture.text = {'kind': 'text', 'path': args.text}
  config.data.packing = 'first_fit'
  config.optim.update(schedule='linear', final_lr=0.0, weight_decay=0.0)
  config.train.update(
    steps=args.steps,
    batch_size=rows,
    eval_every=100,
    sample_every=0,
    eval_tokens=4096,
    seed=args.seed,
    sample_prompts=(),
  )
  config.sample.update(max_new_tokens=24, temperature=0.0)
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, eval_tokens=512)
  return config
