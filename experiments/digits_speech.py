"""Spoken digits (FSDD), recognized and spoken by one GPT: speech -> text and text -> speech.

Results (2 CPU cores beside other work, official test of 300): from mel frames 99.3 % recognized
(task=recognize,continuous=True,steps=1000, 13 minutes on one core). From codes, one model for both tasks
(44 minutes): 93.7 % recognized; 90.0 % of generated digits judged right (real ones 97.0, reconstructed ones
93.7), 95.3 % by the right speaker. Left-out speakers (steps=600, 11 minutes each on one core): 83.6 %
recognized from mel frames, the mean of 57.8 (george) to 98.6 (theo).
Command: launch.py train --config=experiments/tokenizers/fsdd_fsq.py --workdir=runs/fsdd_fsq
  launch.py train --config=experiments/digits_speech.py:tokens=runs/fsdd_fsq --workdir=runs/speech
  launch.py evaluate --workdir=runs/speech --split=test --tasks=answer,speak
Arguments: tokens (run folder of a trained tokenizer; '' = k-means frames), task (both, recognize, speak),
loso (speaker to leave out for the test), continuous (read mel frames), steps, seed, runlocal.
"""

from gpt_jax import config as configs

NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
SPEAKERS = ('george', 'jackson', 'lucas', 'nicolas', 'theo', 'yweweler')


def recordings(loso=''):
  """Source of recordings; the official test is the first five of each digit and speaker."""
  return dict(
    kind='files',
    path='fsdd/recordings.zip',
    names=NAMES,
    pattern=r'(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\.wav',
    valid_keep='index=5|6|7|8|9',
    test_keep=f'speaker={loso}' if loso else 'index=0|1|2|3|4',
  )


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg, tokens='', task='both', loso='', continuous=False, steps=1500, seed=0, runlocal=False
  )
  if args.loso and args.loso not in SPEAKERS:
    raise ValueError(
      f'config argument loso={args.loso} is not a speaker\nfix: use one of {", ".join(SPEAKERS)}'
    )
  config = configs.default()
  config.tokenizer.kind = 'bytes'  # a speaker left out may have letters that no other has
  if args.tokens:
    config.audio.update(kind='fsq', path=args.tokens)
  else:
    config.audio.update(kind='frames', codes=64 if args.continuous else 1024)
  read = '{audio:frames} -> {name}' if args.continuous else '{audio:audio} -> {name}'
  fsdd = recordings(args.loso)
  changed = dict(copies=8, augment='speed=0.2,equalize=4,noise=0.02,mask=0.08')
  forms = {
    'recognize': dict(fsdd, template=read, **changed),
    'speak': dict(fsdd, template='{speaker}: {name} -> {audio:audio}'),
  }
  if args.task not in ('both', *forms):
    raise ValueError(
      f'config argument task={args.task} is not known\nfix: use one of both, {", ".join(forms)}'
    )
  if args.task == 'speak' and args.continuous:
    raise ValueError('continuous=True with task=speak: no sound is read\nfix: use task=recognize or both')
  if args.task != 'both':
    forms = {args.task: forms[args.task]}
  config.data.mixture = forms
  config.data.update(
    packing='first_fit', prefix=args.continuous, condition_dropout=0.0 if args.task == 'recognize' else 0.1
  )
  config.model.update(
    layers=4, width=128, heads=4, context=96, mlp='relu2', qk_norm=True, init_projections='zero', dropout=0.2
  )
  config.optim.update(name='muon', lr=2e-3, warmup=50, schedule='linear', final_lr=0.0, ema=0.99)
  config.train.update(
    steps=args.steps,
    batch_size=32,
    eval_every=100,
    sample_every=500,
    eval_tokens=65536,
    seed=args.seed,
    sample_prompts=(),
  )
  config.sample.update(max_new_tokens=64)
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20, eval_tokens=2048)
  return config
