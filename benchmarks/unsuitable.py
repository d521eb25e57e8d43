"""What filters do to a model of polluted text: `python -m benchmarks.unsuitable --workdir=DIR`.

The corpus: paragraphs of Gutenberg and posts of GPT_JAX_DATA/offensive_tweets (benchmarks/offensive.py); a
share POLLUTED of the documents is offensive. Two classifiers of experiments/offensive.py learn from a half
of the training posts each: one is the filter, the other measures. The corpus has posts of `valid`, prompts
are of `test`.

arms  neither; data: `clean=score=FILTER` of the training corpus; output: `sample.judge=FILTER`; both
rows  `evaluate --tasks=unsuitable` on held-out posts (half of them offensive) and paragraphs, of each seed

Writes results/clean/unsuitable.json: the mean over seeds of each figure of each arm with its t-interval, the
paired difference to `neither`, and what the filter removes and refuses by the labels of the posts. No text is
printed or kept. A finished run in DIR is not trained again. About 20 minutes of one core.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks import clean, offensive
from benchmarks.record import write_result
from gpt_jax import config, train
from gpt_jax.cli import experiment_file
from gpt_jax.data import Piece
from gpt_jax.data.clean import cleaning
from gpt_jax.evaluation import evaluate, trained
from gpt_jax.evaluation.tasks import unsuitable
from gpt_jax.runs import run_folder

DOCUMENTS, POLLUTED, SEEDS = 8000, 0.05, 3
PARAGRAPH = (60, 200)  # characters
HELD_OUT = 200  # posts, half of them offensive, and as many paragraphs
CONTINUATIONS, LIMIT, NEW = 10, 100, 40
LABELS = '|'.join(offensive.LABELS)
ARMS = ('neither', 'data', 'output', 'both')


def write(path, texts):
  """Write JSON lines with a field `text` -> the path as a string."""
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts), encoding='utf-8')
  return str(path)


def make_corpus(seed=0):
  """Return ([(text, kind)] of training, held-out posts, held-out paragraphs); kind: offensive, fine, book."""
  rng, posts = random.Random(seed), offensive.read_posts()
  chosen = lambda part, label: [p['text'] for p in posts if (p['part'], p['label']) == (part, label)]
  books = [' '.join(text.split()) for text in clean.gutenberg(8_000_000)]
  books = [text for text in books if PARAGRAPH[0] <= len(text) <= PARAGRAPH[1]]
  rng.shuffle(books)
  bad = [(text, 'offensive') for text in chosen('valid', 'offensive')[: round(DOCUMENTS * POLLUTED)]]
  fine = [(text, 'fine') for text in chosen('valid', 'fine')]
  rest = [(text, 'book') for text in books[HELD_OUT : HELD_OUT + DOCUMENTS - len(bad) - len(fine)]]
  corpus = [*bad, *fine, *rest]
  rng.shuffle(corpus)
  half = HELD_OUT // 2
  return corpus, chosen('test', 'offensive')[:half] + chosen('test', 'fine')[:half], books[:HELD_OUT]


def finish(section, folder):
  """Train a run to its end, unless it is there -> its folder."""
  if not (folder.exists() and run_folder.read_result(folder)):
    train.train(config.build(config.Config, section), folder)
  return folder


def classifier(folder, half, steps):
  """Train a classifier of one half of the training posts -> its folder."""
  section = experiment_file.load_config(f'experiments/offensive.py:half={half},steps={steps}')
  for source in section.data.mixture.values():
    source.path = str(folder / 'posts.jsonl')
  return finish(section, folder / ('filter', 'measure')[half])


def model(folder, name, seed, steps):
  """Train a model of a corpus, FOLDER/NAME.jsonl -> its folder."""
  section = config.default()
  source = lambda name, **fields: dict(kind='jsonl', path=f'{folder}/{name}.jsonl', **fields)
  held_out = {
    part: source(part, valid_path=f'{folder}/{part}.jsonl', weight=0.0) for part in ('held_posts', 'books')
  }
  section.data.mixture = {'corpus': source(name), **held_out}
  section.data.update(packing='first_fit', valid_fraction=0.0)
  section.tokenizer.update(kind='bpe', vocab=1024)
  section.model.update(
    layers=2, width=96, heads=4, context=192, mlp='relu2', qk_norm=True, init_projections='zero'
  )
  section.optim.update(name='muon', lr=4e-3, warmup=20, schedule='linear', final_lr=0.0)
  section.train.update(steps=steps, batch_size=16, eval_every=0, sample_every=0, sample_prompts=(), seed=seed)
  return finish(experiment_file.complete_sources(section), folder / f'{name}_{seed}')


def filter_corpus(folder, corpus, judge):
  """Write what the filter leaves as clean.jsonl -> {kind: share of the documents removed}."""
  examples = lambda: ((str(n), [Piece('text', text)]) for n, (text, _) in enumerate(corpus))
  fate = cleaning.judge(f'score={judge}:{LABELS}<0.5', examples).fate
  write(
    folder / 'clean.jsonl', [text for (text, _), removed in zip(corpus, fate, strict=True) if not removed]
  )
  kinds = np.array([kind for _, kind in corpus])
  return {kind: float((np.array(fate)[kinds == kind] > 0).mean()) for kind in sorted(set(kinds))}


def share_refused(judge, texts):
  """Return the share of texts that the filter refuses."""
  scores = trained.load_judge(f'{judge}:{LABELS}').score([[Piece('text', text)] for text in texts])
  return float((np.array(scores) >= 0.5).mean())


def measure(workdir, judge, measures):
  """Return {SOURCE/METRIC/PROMPTS: value} of a run; judge: '' or the folder of the filter."""
  options = dict(max_new_tokens=NEW, limit=LIMIT)
  if judge:
    options['judge'] = f'{judge}:{LABELS}'
  subject = trained.load(workdir).subject()
  rows = evaluate.run_tasks(subject, ['unsuitable'], classifier=measures, **options)
  return {
    f'{row["source"]}/{row["metric"]}/{row.get("prompts", "")}'.rstrip('/'): row['value'] for row in rows
  }


def mean_row(values):
  """Return {value, interval} of a mean over seeds."""
  half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
  return {
    'value': float(np.mean(values)),
    'interval': [float(np.mean(values) - half), float(np.mean(values) + half)],
  }


def summarize(by_arm):
  """Return {arm: {figure: mean and interval}} of {arm: figures of each seed}, with differences to neither."""
  table = {}
  for arm, seeds in by_arm.items():
    table[arm] = {}
    for figure in sorted(set.intersection(*(set(seed) for seed in seeds))):
      own = np.array([seed[figure] for seed in seeds])
      table[arm][figure] = mean_row(own)
      if arm != 'neither' and all(figure in seed for seed in by_arm['neither']):
        others = np.array([seed[figure] for seed in by_arm['neither']])
        table[arm][figure]['difference'] = mean_row(own - others)
  return table


def main():
  """Train, measure and write the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--steps', type=int, default=400)
  parser.add_argument('--classifier_steps', type=int, default=300)
  parser.add_argument('--seeds', type=int, default=SEEDS)
  options = parser.parse_args()
  folder = Path(options.workdir).resolve()
  folder.mkdir(parents=True, exist_ok=True)
  offensive.write_posts(folder / 'posts.jsonl')
  judge, measures = (classifier(folder, half, options.classifier_steps) for half in (0, 1))
  corpus, posts, books = make_corpus()
  write(folder / 'polluted.jsonl', [text for text, _ in corpus])
  write(folder / 'held_posts.jsonl', posts)
  write(folder / 'books.jsonl', books)
  removed = filter_corpus(folder, corpus, judge)
  held_out = {'offensive': posts[: HELD_OUT // 2], 'fine': posts[HELD_OUT // 2 :], 'book': books}
  refused = {kind: share_refused(judge, texts) for kind, texts in held_out.items()}
  unsuitable.CONTINUATIONS = CONTINUATIONS
  measuring = trained.load_judge(f'{measures}:{LABELS}', '--workdir')
  by_arm = {arm: [] for arm in ARMS}
  for seed in range(options.seeds):
    runs = {name: model(folder, name, seed, options.steps) for name in ('polluted', 'clean')}
    for arm in ARMS:
      run = runs['clean' if arm in ('data', 'both') else 'polluted']
      by_arm[arm].append(measure(run, judge if arm in ('output', 'both') else '', measuring))
      print(seed, arm, json.dumps(by_arm[arm][-1]), flush=True)
  numbers = {
    'documents': len(corpus),
    'polluted': POLLUTED,
    'seeds': options.seeds,
    'removed_by_filter': removed,
    'refused_of_held_out': refused,
  }
  numbers['arms'] = summarize(by_arm)
  claim = 'A model of text that is 5 % offensive posts: filter at the data, at the output, both, neither'
  write_result('clean/unsuitable', claim, numbers)


if __name__ == '__main__':
  main()
