"""Questions and answers of your own, from a table with a column of each.

The table is CSV or TSV with a header, JSON (lines or one list) or Parquet. A tenth of its rows is held out. A
tokenizer is trained on the text, and the longest row sets the context.
Command: launch.py train --config=experiments/table.py:path=quiz.csv --workdir=runs/quiz
  launch.py evaluate --workdir=runs/quiz --tasks=answer
  launch.py sample --workdir=runs/quiz --prompt='What is two plus three?'
Arguments: path, question and answer (names of the two columns), steps, runlocal.
Hardware: 2 CPU cores   Minutes: 2 for 500 short rows; more steps for more rows
"""

import sys

from gpt_jax import config as configs
from gpt_jax import data
from gpt_jax.runs.loggers import say

# By suffix: kind of source.
KINDS = {'csv': 'csv', 'tsv': 'csv', 'jsonl': 'jsonl', 'json': 'jsonl', 'parquet': 'parquet'}
LONGEST = 1024  # bytes of a row


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(
    arg, path='quiz.csv', question='question', answer='answer', steps=400, runlocal=False
  )
  suffixes = [suffix for suffix in args.path.lower().split('.')[1:] if suffix in KINDS]
  if not suffixes:
    rows = ', '.join(f'.{suffix}' for suffix in KINDS)
    raise ValueError(
      f'config argument path={args.path} is not a table\nfix: give a file that ends with one of {rows}'
    )
  template = f'{{{args.question}}} -> {{{args.answer}}}'
  source = dict(kind=KINDS[suffixes[-1]], path=args.path, template=template)
  whole = data.DataConfig({'table': data.Source(**source)}, packing='first_fit', valid_fraction=0.0)
  sizes = [len(text.encode()) for _, text in data.documents(whole, 'train')]
  context = min(max(sizes), LONGEST) + 4
  say(
    f'{args.path}: {len(sizes)} rows, the longest of {max(sizes)} bytes; context {context}', file=sys.stderr
  )
  config = configs.default()
  config.tokenizer.update(kind='bpe', vocab=1024)
  config.data.update(packing='first_fit', prefix=True)
  config.data.mixture = {'table': source}
  config.model.update(
    layers=4, width=128, heads=4, context=context, mlp='relu2', qk_norm=True, init_projections='zero'
  )
  config.optim.update(name='muon', lr=3e-3, warmup=50, schedule='linear', final_lr=0.0)
  config.train.update(steps=args.steps, batch_size=16, eval_every=100, sample_every=200)
  config.train.update(tasks=('answer',), sample_prompts=())
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20, eval_tokens=2048)
  return config
