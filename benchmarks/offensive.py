"""A classifier of offensive posts beside TF-IDF: `python -m benchmarks.offensive --workdir=RUN,RUN,...`.

The posts are those of Davidson et al. (2017) in GPT_JAX_DATA/offensive_tweets; hate speech and offensive
language are one class. `--out=runs/offensive.jsonl` writes what experiments/offensive.py reads: text, label,
part (of each ten rows the ninth is valid, the tenth test) and half (of the training posts, for two
classifiers that know nothing of each other). Held-out posts that occur in an earlier part are left out.

The baseline: logistic regression (C=4, balanced) on TF-IDF of character 2- to 5-grams and word 1- and
2-grams, fitted on the same training posts. Writes results/clean/offensive.json: the areas under the ROC curve
on the test posts, and the difference with a bootstrap interval over posts that are drawn once for all sides.
No text of a post is printed or kept.
"""

import argparse
import csv
import gzip
import html
import json
import os
from pathlib import Path

import numpy as np

from benchmarks.record import write_result
from gpt_jax.evaluation import attacks, trained

LABELS = ('offensive', 'fine')
DRAWS = 2000
VOTES = 3  # lines of a training post, as many as most posts have annotators
FPR = 0.05  # share of fine posts that a filter may block


def read_posts():
  """Return a list of {text, label, part, half, votes} without held-out posts that occur in an earlier part.

  votes: of VOTES, those for offensive.
  """
  path = Path(os.environ.get('GPT_JAX_DATA', '../shared/data')) / 'offensive_tweets/posts.csv.gz'
  with gzip.open(path, 'rt', encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  parts, posts, seen = {9: 'test', 8: 'valid'}, [], set()
  for number, row in enumerate(rows):
    text, label = ' '.join(html.unescape(row['text']).split()), LABELS[row['label'] == '2']
    votes = [int(row[name]) for name in ('hate', 'offensive', 'neither')]
    post = {'text': text, 'label': label, 'part': parts.get(number % 10, 'train'), 'half': number // 10 % 2}
    posts.append(post | {'votes': round(VOTES * (1 - votes[2] / max(1, sum(votes))))})
  chosen = []
  for part in ('train', 'valid', 'test'):
    own = [post for post in posts if post['part'] == part]
    chosen += [post for post in own if part == 'train' or post['text'].lower() not in seen]
    seen |= {post['text'].lower() for post in own}
  return chosen


def write_posts(path):
  """Write the posts as JSON lines; each of training three times, labelled by its annotators' votes."""
  lines = []
  for post in read_posts():
    offensive = post.pop('votes')
    labels = [LABELS[n >= offensive] for n in range(VOTES)] if post['part'] == 'train' else [post['label']]
    lines += [json.dumps(post | {'label': label}, ensure_ascii=False) + '\n' for label in labels]
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(lines), encoding='utf-8')


def tfidf_scores(train, test):
  """Return the log-odds that TF-IDF and logistic regression give to `offensive`, float64 [N]."""
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline, make_union

  features = make_union(
    TfidfVectorizer(analyzer='char_wb', ngram_range=(2, 5), min_df=2, sublinear_tf=True),
    TfidfVectorizer(analyzer='word', ngram_range=(1, 2), min_df=2, sublinear_tf=True),
  )
  model = make_pipeline(features, LogisticRegression(C=4, class_weight='balanced', max_iter=1000))
  model.fit([post['text'] for post in train], [post['label'] == LABELS[0] for post in train])
  return model.decision_function([post['text'] for post in test])


def run_scores(workdir, test):
  """Return the probability that a run gives to `offensive`, float64 [N]."""
  judge = trained.load_judge(f'{workdir}:{"|".join(LABELS)}', '--workdir')
  return np.array([most for _, most in judge.probabilities([{'text': post['text']} for post in test])])


def measure(scores_N, is_offensive_N):
  """Return (AUC, share of offensive posts found where FPR of the fine ones are blocked)."""
  sides = scores_N[is_offensive_N], scores_N[~is_offensive_N]
  return attacks.auc(*sides), attacks.true_positive_rate(*sides, FPR)


def compare(runs, baseline_N, is_offensive_N, seed=0):
  """Return AUCs and their differences of {name: scores [N]} to the baseline's scores, with intervals.

  The mean of the runs is that of their AUCs, not the AUC of their mean.
  """
  rng, places = (
    np.random.default_rng(seed),
    [np.flatnonzero(is_offensive_N == kind) for kind in (True, False)],
  )
  sides = {**runs, 'tfidf': baseline_N}
  draws = {name: [] for name in sides}
  for _ in range(DRAWS):
    chosen = [rng.choice(own, len(own)) for own in places]
    for name, scores_N in sides.items():
      draws[name].append(attacks.auc(*(scores_N[own] for own in chosen)))
  interval = lambda values_D: [float(x) for x in np.percentile(values_D, (2.5, 97.5))]
  base_D, mean_D = np.array(draws['tfidf']), np.mean([draws[name] for name in runs], 0)
  result = {}
  for name, scores_N in sides.items():
    area, found = measure(scores_N, is_offensive_N)
    result[name] = {'auc': area, 'interval': interval(draws[name]), 'found_at_5_percent_false': found}
  own = [result[name]['auc'] for name in runs]
  return result | {
    'mean_auc': float(np.mean(own)),
    'difference': float(np.mean(own)) - result['tfidf']['auc'],
    'difference_interval': interval(mean_D - base_D),
  }


def main():
  """Write the posts, or the comparison."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', default='')
  parser.add_argument('--workdir', default='')
  parser.add_argument('--part', default='test', choices=('valid', 'test'))
  options = parser.parse_args()
  posts = read_posts()
  if options.out:
    write_posts(Path(options.out))
  if options.workdir or not options.out:
    train, test = ([post for post in posts if post['part'] == part] for part in ('train', options.part))
    is_offensive_N = np.array([post['label'] == LABELS[0] for post in test])
    runs = {Path(name).name: run_scores(name, test) for name in options.workdir.split(',') if name}
    numbers = compare(runs or {'none': tfidf_scores(train, test)}, tfidf_scores(train, test), is_offensive_N)
    numbers |= {'train': len(train), options.part: len(test), 'offensive': int(is_offensive_N.sum())}
    print(json.dumps(numbers, indent=1))
    if options.part == 'test' and runs:
      claim = 'A classifier of offensive posts, beside TF-IDF and logistic regression'
      write_result('clean/offensive', claim, numbers)


if __name__ == '__main__':
  main()
