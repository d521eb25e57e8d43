"""SciTLDR: one-sentence summaries of abstracts by a prefix language model.

Target: a smoke test on a CPU. On a GPU: ROUGE above the first sentence of the abstract, which the task prints
beside the model's (large pretrained models reach about 43 ROUGE-1 on this test).
Command: launch.py train --config=experiments/summarize.py --workdir=runs/summarize
  launch.py evaluate --workdir=runs/summarize --split=test --tasks=summarize --beams=4
Needs: pip install -e '.[metrics]' for the evaluation; scitldr/ (SciTLDR-A) in GPT_JAX_DATA.
Hardware: one GPU, 10 minutes. ROUGE is the best over all summaries of a paper.
Arguments: steps, seed, runlocal.
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, steps=2000, seed=0, runlocal=False)
  config = configs.default()
  config.tokenizer.update(kind='bpe', vocab=4096)
  config.data.update(packing='first_fit', prefix=True)
  config.data.mixture = {
    'abstracts': dict(
      kind='jsonl',
      path='scitldr/train.jsonl',
      valid_path='scitldr/dev.jsonl',
      test_path='scitldr/test.jsonl',
      template='{source.*} -> {target.0}',
    )
  }
  config.model.update(
    layers=6, width=384, heads=6, context=768, mlp='relu2', qk_norm=True, init_projections='zero', dropout=0.2
  )
  config.loss.label_smoothing = 0.1
  config.optim.update(name='muon', lr=2e-3, warmup=100, schedule='linear', final_lr=0.0)
  config.train.update(
    steps=args.steps,
    batch_size=16,
    eval_every=250,
    sample_every=500,
    eval_tokens=16384,
    seed=args.seed,
    sample_prompts=(),
  )
  config.sample.update(max_new_tokens=80)
  if args.runlocal:
    config.train.update(steps=4, eval_every=2, sample_every=4, eval_tokens=2048)
  return config
