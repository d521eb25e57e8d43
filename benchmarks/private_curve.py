"""What privacy costs and buys: `python -m benchmarks.private_curve --workdir=DIR`.

A small byte model from scratch on passages of Gutenberg, each of a user of its own, and secrets that are
planted by a fair coin, 1, 4, 16 or 64 times. The arms are epsilon = infinity (plain training on the same
rows), 8, 4, 2 and 1 for each user, who owns all copies of a secret; and 8 for each document, where 64 copies
are 64 units, for which only 64 x 8 is proved. Each arm is one run of experiments/private.py in DIR, whose
command is in the result. The same command again resumes. Writes results/privacy/curve.json and curve.png.
Needs GPT_JAX_DATA and dp-accounting.
"""

import argparse
import json
import os
import random
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

from benchmarks import record
from gpt_jax.evaluation import trained
from gpt_jax.runs import run_folder

FILE = record.RESULTS / 'privacy' / 'curve.json'
ARMS = (('user', 0), ('user', 8), ('user', 1), ('document', 8), ('user', 4), ('user', 2))  # unit, epsilon
USERS, VALID, BYTES = 8_000, 1_000, 45  # passages for training and validation, their longest length
SECRETS = 64  # for each number of repeats, planted or not
FEW, MANY = 1, 64  # repeats that are drawn
SETTINGS = {
  'model.layers': 2,
  'model.width': 64,
  'model.heads': 4,
  'model.context': 48,
  'optim.lr': 5e-3,
  'train.eval_every': 0,
  'train.sample_prompts': (),
  'checkpoint.every': 100,
}
CLAIM = (
  'Loss, exposure and extraction of planted secrets, and a lower bound on epsilon, against what is proved'
)
KEYS = ('repeats', 'metric', 'value', 'interval', 'n', 'chance', 'of_bits', 'delta', 'guesses', 'right')


def write_passages(folder, users=USERS, valid=VALID):
  """Write train.jsonl and valid.jsonl: random passages of 14 books, with the fields text and user."""
  path = Path(os.environ['GPT_JAX_DATA']) / 'gutenberg' / 'gutenberg.zip'
  with zipfile.ZipFile(path) as books:
    names = sorted(name for name in books.namelist() if name.endswith('.txt'))
    text = ' '.join(books.read(name).decode('latin-1') for name in names)
  passages = cut(text)
  chosen = random.Random(0).sample(passages, users + valid)
  for name, part in (('valid', chosen[:valid]), ('train', chosen[valid:])):
    lines = (json.dumps({'text': text, 'user': f'user {n}'}) + '\n' for n, text in enumerate(part))
    (folder / f'{name}.jsonl').write_text(''.join(lines))


def cut(text):
  """Cut a text between words into passages of at most BYTES bytes."""
  passages, words = [], []
  for word in re.findall(r'\S+', text):
    if words and len(' '.join([*words, word]).encode()) > BYTES:
      passages.append(' '.join(words))
      words = []
    words.append(word)
  return passages


def command_of(folder, unit, epsilon, steps, seed):
  """Return the command of an arm."""
  options = {'path': folder / 'train.jsonl', 'valid': folder / 'valid.jsonl', 'unit': unit}
  options |= {'epsilon': epsilon, 'delta': 1e-6, 'canaries': SECRETS, 'steps': steps, 'seed': seed}
  arguments = ','.join(f'{key}={value}' for key, value in options.items())
  workdir = folder / f'{unit}_{epsilon}_{seed}'
  flags = [f'--config.{key}={value}' for key, value in SETTINGS.items()]
  config = f'--config=experiments/private.py:{arguments}'
  return ['launch.py', 'train', config, f'--workdir={workdir}', *flags]


def measured(workdir, unit, epsilon, seed):
  """Return the row of a finished arm; its loss is of whole passages, each from its start, as in training."""
  result = run_folder.read_result(workdir)
  lines = (workdir.parent / 'valid.jsonl').read_text().splitlines()
  texts = [json.loads(line)['text'] for line in lines]
  bits_N = np.array([score.bits_per_byte for score in trained.load(workdir).score(texts)])
  bytes_N = np.array([len(text.encode()) for text in texts])
  rows = [row for row in result['evaluations'] if row['task'] == 'canaries']
  return {
    'unit': unit,
    'epsilon': epsilon,
    'seed': seed,
    'bits_per_byte': float((bits_N * bytes_N).sum() / bytes_N.sum()),
    'seconds': result['seconds'],
    'privacy': result.get('privacy'),
    'canaries': [{key: row[key] for key in KEYS if key in row} for row in rows],
  }


def number(row, metric, repeats, key='value'):
  """Return a number of the canaries of an arm."""
  return next(r[key] for r in row['canaries'] if (r['metric'], r['repeats']) == (metric, repeats))


def spread(rows, metric, repeats):
  """Return (mean, length below, above) over seeds; of one seed its own interval."""
  values = [number(row, metric, repeats) for row in rows]
  ends = number(rows[0], metric, repeats, 'interval') if len(rows) == 1 else (min(values), max(values))
  mean = float(np.mean(values))
  return mean, max(0.0, mean - ends[0]), max(0.0, ends[1] - mean)


def draw(rows):
  """Plot loss, exposure, extraction and the lower bound against epsilon."""
  import matplotlib.pyplot as plt

  figure, panels = plt.subplots(1, 4, figsize=(13, 3.4), layout='constrained')
  epsilons = sorted({row['epsilon'] for row in rows}, key=lambda epsilon: epsilon or 1e9)
  arms = lambda unit: [
    (place, some)
    for place, epsilon in enumerate(epsilons)
    if (some := [row for row in rows if (row['unit'], row['epsilon']) == (unit, epsilon)])
  ]
  curves = (  # unit, copies, color, marker, label
    ('user', MANY, 'C0', 'o-', f'{MANY} copies'),
    ('user', FEW, 'C1', 'o-', '1 copy'),
    ('document', MANY, 'C3', 'D', f'{MANY} copies, each a unit'),
  )
  for unit, repeats, color, mark, label in curves:
    if not arms(unit):
      continue
    places, groups = zip(*arms(unit), strict=True)
    for panel, metric in zip(panels[1:3], ('exposure', 'extracted'), strict=True):
      values, *errors = zip(*(spread(group, metric, repeats) for group in groups), strict=True)
      panel.errorbar(places, values, errors, fmt=mark, color=color, capsize=3, markersize=5, label=label)
    if repeats == MANY:
      losses = [np.mean([row['bits_per_byte'] for row in group]) for group in groups]
      panels[0].plot(places, losses, mark, color=color, label=f'epsilon for each {unit}')
    if unit == 'user':
      bounds = [max(number(row, 'epsilon_lower_bound', repeats) for row in group) for group in groups]
      panels[3].plot(places, bounds, mark, color=color, label=f'attack, {label}')
  places = [place for place, epsilon in enumerate(epsilons) if epsilon]
  panels[3].plot(places, [epsilons[place] for place in places], 'k--', label='proved')
  for panel, metric in zip(panels[1:3], ('exposure', 'extracted'), strict=True):
    panel.axhline(number(rows[0], metric, MANY, 'chance'), color='gray', ls=':', label='chance')
  titles = 'validation, bits per byte', 'exposure, bits', 'secrets extracted', 'epsilon: at least, at most'
  for panel, title in zip(panels, titles, strict=True):
    panel.set(title=title, xlabel='epsilon')
    panel.set_xticks(range(len(epsilons)), [f'{epsilon:g}' if epsilon else '∞' for epsilon in epsilons])
    panel.legend(frameon=False, fontsize=7)
  figure.savefig(FILE.with_suffix('.png'), dpi=110)


def main():
  """Train the arms that have not finished, write the result and draw it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--steps', type=int, default=300)
  parser.add_argument('--seeds', default='0')
  arguments = parser.parse_args()
  folder, rows, commands = Path(arguments.workdir), [], []
  folder.mkdir(parents=True, exist_ok=True)
  if not (folder / 'train.jsonl').exists():
    write_passages(folder)
  for seed in map(int, arguments.seeds.split(',')):
    for unit, epsilon in ARMS:
      command = command_of(folder, unit, epsilon, arguments.steps, seed)
      workdir = Path(command[3].partition('=')[2])
      if not (workdir / 'result.json').exists():
        subprocess.run([sys.executable, *command], check=True)
      rows.append(measured(workdir, unit, epsilon, seed))
      commands.append(shlex.join(['python', *command]))
      print({key: rows[-1][key] for key in ('unit', 'epsilon', 'bits_per_byte', 'seconds')}, flush=True)
      numbers = {'steps': arguments.steps, 'users': USERS, 'secrets': SECRETS, 'commands': commands}
      record.write_result('privacy/curve', CLAIM, numbers | {'rows': rows})
  draw(rows)


if __name__ == '__main__':
  main()
