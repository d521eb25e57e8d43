"""Train a small model on the predictions of a larger one, its teacher.

Command: launch.py import --source=gpt2 --workdir=runs/gpt2
  launch.py train --config=experiments/distil.py:teacher=runs/gpt2,size=384 --workdir=runs/small
The student has the teacher's architecture and tokenizer, fewer layers and a smaller width.
Arguments: teacher (a run folder), size (width; 0 is half of the teacher's), runlocal (a minute on a CPU).
"""

from gpt_jax import config as configs


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, teacher='runs/gpt2', size=0, runlocal=False)
  config = configs.default()
  teacher = configs.of_run(args.teacher, 'distil.teacher')
  heads, head = teacher.model.heads, teacher.model.width // teacher.model.heads
  size = args.size or head * max(1, heads // 2)
  config.model = configs.section(teacher.model)
  config.model.update(width=size, heads=max(1, size // head), param_dtype='float32')
  if not teacher.model.layer_pattern:
    config.model.layers = max(1, teacher.model.layers // 2)
  config.tokenizer = configs.section(teacher.tokenizer)
  config.data.mixture = {'text': {'kind': 'text', 'path': 'tinyshakespeare/input.txt'}}
  config.distil.teacher = args.teacher
  config.optim.update(lr=6e-4, warmup=100)
  config.train.update(job='distil', steps=5000, batch_size=16, eval_every=250, sample_every=1000)
  if args.runlocal:
    length = min(64, teacher.model.context)
    config.train.update(steps=10, batch_size=4, length=length, eval_every=5, eval_tokens=1024)
    config.optim.warmup = 2
    config.sample.max_new_tokens = 20
  return config
