"""SciTLDR: one-sentence summaries of abstracts by a prefix language model.

Target: a smoke test on a CPU. On a GPU: ROUGE above the first sentence of the abstract, which the task prints
beside the model's (large pretrained models reach about 43 ROUGE-1 on this test).
Command: launch.py train --config=experiments/summarize.py --workdir=runs/summarize
  launch.py evaluate --workdir=runs/summarize --split=test --tasks=summarize --beams=4
  launch.py train --config=experiments/summarize.py:from_model=runs/gemma --workdir=runs/summarize_gemma
Needs: pip install -e '.[metrics]' for the evaluation; scitldr/ (SciTLDR-A) in GPT_JAX_DATA.
With from_model=runs/gemma (Gemma 3 270M), steps=60, batch_size=2 and lr=1e-3: 49 minutes of a shared CPU
core, ROUGE-1 44.6 % on 64 test abstracts, the first sentence 32.4 %.
Hardware: one GPU, 10 minutes. ROUGE is the best over all summaries of a paper.
Arguments: from_model (a run folder; '' trains from scratch), adapter (rank beside from_model; 0 trains all
parameters), steps (0: 2000, or 160 from a model), seed, runlocal.
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg, {'adapter': 'from_model'}, from_model='', adapter=16, steps=0, seed=0, runlocal=False
  )
  config = configs.default()
  config.data.packing = 'first_fit'
  config.data.mixture = {
    'abstracts': dict(
      kind='jsonl',
      path='scitldr/train.jsonl',
      valid_path='scitldr/dev.jsonl',
      test_path='scitldr/test.jsonl',
      template='{source.*} -> {target.0}',
    )
  }
  config.train.update(
    steps=args.steps or (160 if args.from_model else 2000),
    batch_size=16,
    eval_every=250,
    sample_every=500,
    eval_tokens=16384,
    seed=args.seed,
    sample_prompts=(),
  )
  config.sample.update(max_new_tokens=80)
  if args.from_model:
    configs.start_from(config, args.from_model, args.adapter, length=704)
    config.optim.update(lr=3e-4 if args.adapter else 3e-5, warmup=10, schedule='linear', final_lr=0.0)
    config.train.update(batch_size=4, eval_every=40)
  else:
    config.tokenizer.update(kind='bpe', vocab=4096)
    config.data.prefix = True
    config.model.update(
      layers=6,
      width=384,
      heads=6,
      context=768,
      mlp='relu2',
      qk_norm=True,
      init_projections='zero',
      dropout=0.2,
    )
    config.loss.label_smoothing = 0.1
    config.optim.update(name='muon', lr=2e-3, warmup=100, schedule='linear', final_lr=0.0)
  if args.runlocal:
    config.train.update(steps=4, eval_every=2, sample_every=4, eval_tokens=2048)
  return config
