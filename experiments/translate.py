"""English to German: Multi30k captions, source and target in one row of a prefix language model.

Target (one CPU core, 45 minutes): BLEU 36 on test_2016 (sacreBLEU, 13a, cased, 4 beams). Copying the English
scores 0.5, word-by-word substitution by a co-occurrence dictionary 8.8.
Command: launch.py train --config=experiments/translate.py --workdir=runs/translate
  launch.py evaluate --workdir=runs/translate --split=test --tasks=translate --limit=1000 --beams=4
  launch.py train --config=experiments/translate.py:from_model=runs/gemma --workdir=runs/translate_gemma
Needs: pip install -e '.[metrics]' for the evaluation; multi30k/ (task 1, raw) in GPT_JAX_DATA.
Arguments: to (de, fr), from_model (a run folder; '' trains from scratch), adapter (rank beside from_model; 0
trains all parameters), steps (0: 1500, or 1000 from a model), seed, runlocal.
"""

from gpt_jax import config as configs

LANGUAGES = ('de', 'fr')


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg, {'adapter': 'from_model'}, to='de', from_model='', adapter=16, steps=0, seed=0, runlocal=False
  )
  if args.to not in LANGUAGES:
    raise ValueError(
      f'config argument to={args.to} is not a language of these files\nfix: use one of {", ".join(LANGUAGES)}'
    )
  config = configs.default()
  config.data.packing = 'first_fit'
  config.data.mixture = {
    'captions': dict(
      kind='parallel',
      path='multi30k/train.*.gz',
      valid_path='multi30k/val.*.gz',
      test_path='multi30k/test_2016_flickr.*.gz',
      template=f'{{en}} -> {{{args.to}}}',
    )
  }
  config.train.update(
    steps=args.steps or (1000 if args.from_model else 1500),
    batch_size=32,
    eval_every=500,
    sample_every=1000,
    eval_tokens=16384,
    seed=args.seed,
    sample_prompts=(),
  )
  config.sample.update(max_new_tokens=60)
  if args.from_model:
    configs.start_from(config, args.from_model, args.adapter, length=256)
    config.optim.update(lr=3e-4 if args.adapter else 3e-5, warmup=10, schedule='linear', final_lr=0.0)
    config.train.batch_size = 8
  else:
    config.tokenizer.update(kind='bpe', vocab=4096)
    config.data.prefix = True
    config.model.update(
      layers=4,
      width=192,
      heads=4,
      context=128,
      mlp='relu2',
      qk_norm=True,
      init_projections='zero',
      dropout=0.2,
    )
    config.loss.label_smoothing = 0.1
    config.optim.update(name='muon', lr=3e-3, warmup=100, schedule='linear', final_lr=0.0)
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20, eval_tokens=2048)
  return config
