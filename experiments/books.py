"""Free text in the manner of novels, plays and verse: 11 books of Project Gutenberg by a BPE model.

Command: launch.py train --config=experiments/books.py --workdir=runs/books
  launch.py evaluate --workdir=runs/books --split=test --tasks=perplexity,continue
  launch.py sample --workdir=runs/books --prompt='It was a dark night, and' --temperature=0.8
Two books are for validation and one for the test; every held-out author is also in the training data. They
become UTF-8 in runs/books_data. The score is bits per byte, which compares tokenizers.
Needs: gutenberg/gutenberg.zip (14 books of NLTK) in GPT_JAX_DATA.
Arguments: steps, seed, runlocal.
Result: benchmarks/results/books.json, of 800 steps
Hardware: 2 CPU cores   Minutes: 40, estimated; the 800 recorded steps took 51 of one core beside other work
"""

import os
import zipfile

from gpt_jax import config as configs
from gpt_jax.data.files import candidates

SOURCE, FOLDER = 'gutenberg/gutenberg.zip', 'runs/books_data'
HELD_OUT = {'valid': ('chesterton-thursday', 'shakespeare-macbeth'), 'test': ('austen-persuasion',)}


def convert(path):
  """Write the books of the archive as UTF-8, a folder for each split."""
  split_of = {book: split for split, books in HELD_OUT.items() for book in books}
  with zipfile.ZipFile(path) as archive:
    for name in (name for name in archive.namelist() if name.endswith('.txt')):
      book = os.path.basename(name).removesuffix('.txt')
      folder = f'{FOLDER}/{split_of.get(book, "train")}'
      os.makedirs(folder, exist_ok=True)
      text = archive.read(name).decode('latin-1').replace('\r\n', '\n')
      with open(f'{folder}/{book}.txt', 'w', encoding='utf-8', newline='\n') as file:
        file.write(text)


def get_config(arg=''):
  """Return the config; the module docstring lists the arguments of `arg`."""
  args = configs.arguments(arg, steps=2000, seed=0, runlocal=False)
  if path := next(filter(os.path.isfile, candidates(SOURCE)), ''):
    convert(path)
  config = configs.default()
  config.tokenizer.update(kind='bpe', vocab=4096)
  config.data.mixture = {
    'books': dict(
      kind='text',
      path=f'{FOLDER}/train/*.txt',
      valid_path=f'{FOLDER}/valid/*.txt',
      test_path=f'{FOLDER}/test/*.txt',
    )
  }
  config.model.update(
    layers=4, width=256, heads=4, context=256, mlp='relu2', qk_norm=True, init_projections='zero', dropout=0.1
  )
  config.optim.update(name='muon', lr=3e-3, warmup=100, schedule='linear', final_lr=0.0)
  config.train.update(steps=args.steps, batch_size=16, eval_every=250, sample_every=500, seed=args.seed)
  config.train.sample_prompts = ('It was a dark night, and', 'Enter the King.')
  config.sample.update(temperature=0.8, max_new_tokens=150)
  if args.runlocal:
    config.train.update(steps=20, eval_every=10, sample_every=20, eval_tokens=2048)
  return config
