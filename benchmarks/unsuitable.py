"""What filters do to a model of polluted text: `python -m benchmarks.unsuitable --workdir=DIR`.

The corpus: paragraphs of Gutenberg and posts of GPT_JAX_DATA/offensive_tweets (benchmarks/offensive.py); a
share POLLUTED of the documents is offensive. Two classifiers of experiments/offensive.py learn from a half
of the training posts and of OWN other paragraphs each: one is the filter, the other measures. The filter's
threshold refuses FALSE of the harmless documents of the other half, which it has not seen. The corpus has
posts of `valid`, prompts are of `test`.

arms  neither; data: `clean=score=FILTER` of the training corpus; output: `sample.judge=FILTER`; both
rows  `evaluate --tasks=unsuitable` on held-out posts (half of them offensive) and paragraphs, of each seed;
      `baseline` is the rate of the documents' own continuations

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
PARAGRAPH = (40, 300)  # characters
HELD_OUT = 200  # posts, half of them offensive, and as many paragraphs
OWN = 2000  # harmless paragraphs, half of them for each classifier
FALSE = 0.05  # share of harmless documents that the filter refuses
CONTINUATIONS, LIMIT, NEW = 10, 100, 40
LABELS = '|'.join(offensive.LABELS)
ARMS = ('neither', 'data', 'output', 'both')


def write(path, texts):
  """Write JSON lines with a field `text` -> the path as a string."""
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts), encoding='utf-8')
  return str(path)


def make_corpus(seed=0):
  """Return ([(text, kind)] of training, held-out posts, held-out paragraphs, the classifiers' paragraphs).

  kind: offensive, fine, book.
  """
  rng, posts = random.Random(seed), offensive.read_posts()
  chosen = lambda part, label: [p['text'] for p in posts if (p['part'], p['label']) == (part, label)]
  books = [' '.join(text.split()) for text in clean.gutenberg(8_000_000)]
  books = [text for text in books if PARAGRAPH[0] <= len(text) <= PARAGRAPH[1]]
  rng.shuffle(books)
  bad = [(text, 'offensive') for text in chosen('valid', 'offensive')[: round(DOCUMENTS * POLLUTED)]]
  fine = [(text, 'fine') for text in chosen('valid', 'fine')]
  held_out, own, books = books[:HELD_OUT], books[HELD_OUT : HELD_OUT + OWN], books[HELD_OUT + OWN :]
  rest = [(text, 'book') for text in books[: DOCUMENTS - len(bad) - len(fine)]]
  corpus = [*bad, *fine, *rest]
  rng.shuffle(corpus)
  half = HELD_OUT // 2
  return corpus, chosen('test', 'offensive')[:half] + chosen('test', 'fine')[:half], held_out, own


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


def write_posts(path, paragraphs):
  """Write the posts, and the classifiers' paragraphs as fine ones of training, each half its own."""
  offensive.write_posts(path)
  with path.open('a', encoding='utf-8') as file:
    for number, text in enumerate(paragraphs):
      row = {'text': text, 'label': offensive.LABELS[1], 'part': 'train', 'half': number % 2}
      file.write(json.dumps(row) + '\n')


def choose_threshold(judge, paragraphs):
  """Return the score that FALSE of the harmless documents of the other half reach, posts and paragraphs."""
  kind = ('train', 1, offensive.LABELS[1])
  posts = [p['text'] for p in offensive.read_posts() if (p['part'], p['half'], p['label']) == kind]
  own = [random.Random(0).sample(texts, 500) for texts in (posts, paragraphs[1::2])]
  return round(float(np.quantile(scores_of(judge, own[0] + own[1]), 1 - FALSE)), 3)


def filter_corpus(folder, corpus, judge, threshold):
  """Write what the filter leaves as clean.jsonl -> {kind: share of the documents removed}."""
  examples = lambda: ((str(n), [Piece('text', text)]) for n, (text, _) in enumerate(corpus))
  fate = cleaning.judge(f'score={judge}:{LABELS}<{threshold}', examples).fate
  write(
    folder / 'clean.jsonl', [text for (text, _), removed in zip(corpus, fate, strict=True) if not removed]
  )
  kinds = np.array([kind for _, kind in corpus])
  return {kind: float((np.array(fate)[kinds == kind] > 0).mean()) for kind in sorted(set(kinds))}


def scores_of(judge, texts):
  """Return the probability that a classifier gives to `offensive`, float64 [N]."""
  return np.array(trained.load_judge(f'{judge}:{LABELS}').score([[Piece('text', text)] for text in texts]))


def measure(workdir, measures, **filters):
  """Return {SOURCE/METRIC/PROMPTS: value} of a run; filters: sampling settings of the judge."""
  subject = trained.load(workdir).subject()
  options = dict(max_new_tokens=NEW, limit=LIMIT, **filters)
  figures = {}
  for row in evaluate.run_tasks(subject, ['unsuitable'], classifier=measures, **options):
    name = f'{row["source"]}/{row["metric"]}/{row.get("prompts", "")}'.rstrip('/')
    figures[name] = row['value']
    if 'baseline' in row:
      figures[f'{name}/baseline'] = row['baseline']
  return figures


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
  corpus, posts, books, paragraphs = make_corpus()
  write_posts(folder / 'posts.jsonl', paragraphs)
  judge, measures = (classifier(folder, half, options.classifier_steps) for half in (0, 1))
  threshold = choose_threshold(judge, paragraphs)
  write(folder / 'polluted.jsonl', [text for text, _ in corpus])
  write(folder / 'held_posts.jsonl', posts)
  write(folder / 'books.jsonl', books)
  removed = filter_corpus(folder, corpus, judge, threshold)
  held_out = {'offensive': posts[: HELD_OUT // 2], 'fine': posts[HELD_OUT // 2 :], 'book': books}
  reached = lambda run, least: {
    kind: float((scores_of(run, texts) >= least).mean()) for kind, texts in held_out.items()
  }
  unsuitable.CONTINUATIONS = CONTINUATIONS
  measuring = trained.load_judge(f'{measures}:{LABELS}', '--workdir')
  by_arm = {arm: [] for arm in ARMS}
  for seed in range(options.seeds):
    runs = {name: model(folder, name, seed, options.steps) for name in ('polluted', 'clean')}
    for arm in ARMS:
      run = runs['clean' if arm in ('data', 'both') else 'polluted']
      filters = dict(judge=f'{judge}:{LABELS}', judge_threshold=threshold)
      by_arm[arm].append(measure(run, measuring, **filters if arm in ('output', 'both') else {}))
      print(seed, arm, json.dumps(by_arm[arm][-1]), flush=True)
  numbers = {
    'documents': len(corpus),
    'polluted': POLLUTED,
    'seeds': options.seeds,
    'threshold': threshold,
    'removed_by_filter': removed,
    'refused_of_held_out': reached(judge, threshold),
    'unsuitable_of_held_out': reached(measures, unsuitable.THRESHOLD),
  }
  numbers['arms'] = summarize(by_arm)
  claim = 'A model of text that is 5 % offensive posts: filter at the data, at the output, both, neither'
  write_result('clean/unsuitable', claim, numbers)


if __name__ == '__main__':
  main()
