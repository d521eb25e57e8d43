"""An imported text model learns to hear the keys of a telephone and to see handwritten digits.

Command: launch.py import --source=google/gemma-3-270m --workdir=runs/gemma
  launch.py train --config=experiments/senses.py:base=runs/gemma --workdir=runs/senses
  launch.py evaluate --workdir=runs/senses --tasks=answer
Each frame of a tone and each patch of a picture is mapped to the model's width by one new matrix; adapters
in the model do the rest, and no row of its embedding changes. Chance is 10 %. A text trained beside them
keeps the model from forgetting. What it lost:
  launch.py evaluate --workdir=RUN --tasks=perplexity --limit=10000 --config.data.mixture.book.kind=text
  --config.data.mixture.book.path=book.txt
for runs/gemma and runs/senses.
Needs: pip install scikit-learn for the digits.
Arguments: base (a run folder), text (file, glob or folder; '' = none), adapter (rank), steps, seed, runlocal.
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg, base='runs/gemma', text='tinyshakespeare/input.txt', adapter=16, steps=120, seed=0, runlocal=False
  )
  config = configs.default()
  configs.start_from(config, args.base, args.adapter, length=128)
  config.image.update(kind='patches', height=8, width=8, patch=4, codes=16)
  config.audio.update(kind='frames', codes=16)
  config.data.packing = 'first_fit'
  config.data.mixture = {
    'listen': {'kind': 'keypad', 'template': '{audio:frames} -> {name}'},
    'look': {'kind': 'digits', 'template': '{image:patches} -> {name}', 'weight': 2.0},  # the harder one
  }
  if args.text:
    config.data.mixture.text = {'kind': 'text', 'path': args.text}
  config.adapter.train = ('patch_AD', 'frame_MD')
  config.optim.update(lr=1e-3, warmup=10, schedule='linear', final_lr=0.0, weight_decay=0.0)
  config.train.update(
    steps=args.steps,
    batch_size=4,
    eval_every=30,
    sample_every=0,
    eval_tokens=512,
    seed=args.seed,
    sample_prompts=(),
    tasks=('answer',),
  )
  config.sample.max_new_tokens = 8
  if args.runlocal:
    config.train.update(steps=4, eval_every=2, eval_tokens=64, tasks=())
  return config
