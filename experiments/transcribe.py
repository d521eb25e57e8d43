"""Sentences transcribed from the outputs of a pretrained speech encoder, learned from synthetic voices alone.

Command: python -m benchmarks.synthetic_speech --out=runs/sentences
  launch.py train --config=experiments/transcribe.py:encoder=whisper-base --workdir=runs/transcribe
  launch.py evaluate --workdir=runs/transcribe --split=test --tasks=answer
  launch.py sample --workdir=runs/transcribe --audio=speech.wav --prompt=''
The encoder is a folder as save_pretrained of transformers writes it. It is frozen and run once over the
recordings, in windows of 6 seconds; four of its outputs (80 ms) are a place. The validation sentences have
the training voices, the test recordings are those of people. base=RUN learns a projector and adapters of a
language model instead of a small model from scratch.
Result (3,000 sentences, 3.6 hours; 43 minutes of one core, after the encoder's run of half an hour): 46 %
of the words are wrong in eight clips of one reader and one of Kennedy (33 to 58 over clips; of Whisper
itself 3): they are misspelled, taken for others, left out at an early end, or repeated. 32 % are in new
sentences of the synthetic voices (results/multimodal/transcripts.json, transcribe.json).
Arguments: base (a run folder, or ''), encoder (a folder), data (what benchmarks.synthetic_speech wrote),
projector (linear, mlp), adapter (rank), steps, seed, runlocal.
"""

from gpt_jax import config as configs

LENGTH = 320  # places of a row: 12 seconds have 150, and their text up to as many tokens


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg,
    {'adapter': 'base'},
    base='',
    encoder='whisper-base',
    data='runs/sentences',
    projector='mlp',
    adapter=16,
    steps=2000,
    seed=0,
    runlocal=False,
  )
  config = configs.default()
  if args.base:
    configs.start_from(config, args.base, args.adapter, length=LENGTH)
    config.adapter.train = ('^frame_',)
    config.optim.update(lr=1e-3, warmup=20)
  else:
    config.tokenizer.update(kind='bpe', vocab=512)
    config.model.update(layers=6, width=192, heads=6, context=LENGTH, mlp='relu2', qk_norm=True)
    config.model.update(init_projections='zero', dropout=0.1)
    config.optim.update(name='muon', lr=3e-3, warmup=100, ema=0.99)
  config.encoder.update(audio=args.encoder, stack=4, seconds=6.0)
  config.model.projector = args.projector
  config.data.mixture = {
    'transcribe': dict(
      kind='jsonl',
      path=f'{args.data}/records.jsonl',
      template='{audio:frames} -> {text}',
      keep='part=train',
      valid_keep='part=valid',
      test_keep='part=test',
    )
  }
  config.data.packing = 'first_fit'
  config.optim.update(schedule='linear', final_lr=0.0, weight_decay=0.0)
  config.train.update(
    steps=args.steps,
    batch_size=4,
    eval_every=200,
    sample_every=0,
    eval_tokens=16384,
    seed=args.seed,
    sample_prompts=(),
  )
  config.sample.update(max_new_tokens=128, temperature=0.0)
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, eval_tokens=512)
  return config
