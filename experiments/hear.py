"""A language model learns to hear: a pretrained speech encoder, a projector, a model with adapters.

Command: launch.py import --source=google/gemma-3-270m --workdir=runs/gemma
  launch.py train --config=experiments/hear.py:base=runs/gemma,encoder=whisper-base --workdir=runs/hear
  launch.py evaluate --workdir=runs/hear --split=test --tasks=answer
  launch.py sample --workdir=runs/hear --audio=seven.wav --prompt='Who speaks?'
The encoder is a folder as save_pretrained of transformers writes it. It is frozen and run once over the
recordings (FSDD); its outputs, four of them (80 ms) in a place, lie in the token cache. The model transcribes
a digit, writes it as a numeral, and says who speaks. Only the projector and the adapters are trained; base=''
trains a small model from scratch.
Results (official test of 300; minutes of one core, after the encoder's run): all words right (98.7 % at
least) with task=transcribe,steps=240 and the text beside, 55 minutes; a held-out book went from 1.23 to
1.38 bits per byte. With all tasks but text=, steps=150 and windows of one second, 25 minutes: numerals 98.7
%, words 97.7 %, speakers 33.7 % (chance 16.7); the book went to 2.63.
Left-out speakers (base='',text=,steps=300,task=transcribe, 2 minutes each): 96.0 % of the words, the mean of
88.2 (nicolas) to 98.6 (theo).
Arguments: base (a run folder, or ''), encoder (a folder), projector (linear, mlp, pool, resampler), task
(all, transcribe, number, who), loso (speaker to leave out for the test), text (a file to train beside, since
without it the model forgets to write; '' = none), adapter (rank), steps, seed, runlocal.
"""

from gpt_jax import config as configs

FORMS = {
  'transcribe': '{audio:frames} Transcribe. -> {name}',
  'number': '{audio:frames} Which digit? -> {label}',
  'who': '{audio:frames} Who speaks? -> {speaker}',
}
STACK = 4  # outputs of the encoder in a place
NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
SPEAKERS = ('george', 'jackson', 'lucas', 'nicolas', 'theo', 'yweweler')


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg,
    {'adapter': 'base'},
    base='runs/gemma',
    encoder='whisper-base',
    projector='mlp',
    task='all',
    loso='',
    text='tinyshakespeare/input.txt',
    adapter=16,
    steps=600,
    seed=0,
    runlocal=False,
  )
  if args.task not in ('all', *FORMS):
    raise ValueError(
      f'config argument task={args.task} is not known\nfix: use one of all, {", ".join(FORMS)}'
    )
  if args.loso and args.loso not in SPEAKERS:
    raise ValueError(
      f'config argument loso={args.loso} is not a speaker\nfix: use one of {", ".join(SPEAKERS)}'
    )
  config = configs.default()
  if args.base:
    configs.start_from(config, args.base, args.adapter, length=64)
    config.adapter.train = ('^frame_',)
    config.optim.update(lr=1e-3, warmup=20)
  else:
    config.tokenizer.kind = 'bytes'
    config.model.update(layers=4, width=128, heads=4, context=96, mlp='relu2', qk_norm=True)
    config.optim.update(name='muon', lr=2e-3, warmup=50, ema=0.99)
  config.encoder.update(audio=args.encoder, stack=STACK, seconds=3.0)
  config.model.projector = args.projector
  config.model.projector_parts = STACK if args.projector in ('pool', 'resampler') else 1
  forms = FORMS if args.task == 'all' else {args.task: FORMS[args.task]}
  recordings = dict(  # the official test: the first five of each digit and speaker
    kind='files',
    path='fsdd/recordings.zip',
    names=NAMES,
    pattern=r'(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\.wav',
    valid_keep='index=5|6|7|8|9',
    test_keep=f'speaker={args.loso}' if args.loso else 'index=0|1|2|3|4',
  )
  config.data.mixture = {name: dict(recordings, template=form) for name, form in forms.items()}
  if args.text:
    config.data.mixture.text = {'kind': 'text', 'path': args.text}
  config.data.packing = 'first_fit'
  config.optim.update(schedule='linear', final_lr=0.0, weight_decay=0.0)
  config.train.update(
    steps=args.steps,
    batch_size=8,
    eval_every=100,
    sample_every=0,
    eval_tokens=4096,
    seed=args.seed,
    sample_prompts=(),
  )
  config.sample.update(max_new_tokens=12, temperature=0.0)
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, eval_tokens=512)
  return config
