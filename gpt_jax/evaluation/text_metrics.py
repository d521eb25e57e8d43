"""Scores of texts against references, by the field's own libraries.

BLEU and chrF are sacreBLEU's (Post 2018; Papineni et al. 2002, Popovic 2015), ROUGE is Google's
(Lin 2004); both are optional: pip install 'gpt_jax[metrics]'. Their rows carry the signature that a
paper quotes. Error rates and F1 are those of metrics.py.

Every score takes texts [N] and for each a list of references, and returns {metric: fields of its
row}: value, and where known interval (95 %, over examples) and signature.
"""

import importlib.metadata
import importlib.util
import json
import re

import numpy as np

from gpt_jax.data.files import warn_once
from gpt_jax.evaluation import metrics

DRAWS = 1000  # of a bootstrap


def require_package(package, task):
  """Raise ValueError unless the package that a task measures with is installed."""
  if not is_installed(package):
    raise ValueError(
      f'--tasks={task} measures with {package}, which is not installed\n'
      "fix: pip install 'gpt_jax[metrics]', or leave the task out"
    )


def is_installed(package):
  """Whether a package can be imported, without importing it; True for ''."""
  return not package or importlib.util.find_spec(package) is not None


def match_answers(texts, references):
  """Whether each text equals one of its references, and its word F1 against the best of them."""
  best = lambda measure: [
    max(measure(text, reference) for reference in group)
    for text, group in zip(texts, references, strict=True)
  ]
  return best(lambda text, reference: text.strip() == reference.strip()), best(metrics.token_f1)


def score_answers(texts, references):
  """Exact match and word F1 against the best reference; error rates against the first one."""
  matches, f1 = match_answers(texts, references)
  exact, interval = metrics.accuracy(matches, [True] * len(matches))
  scores = {'exact_match': dict(value=exact, interval=list(interval))}
  scores['token_f1'] = _mean_row(f1)
  first = [group[0] for group in references]
  if any(first):
    scores['character_error_rate'] = dict(value=metrics.cer(texts, first))
  if any(reference.split() for reference in first):
    scores['word_error_rate'] = dict(value=metrics.wer(texts, first))
  return scores


def score_translations(texts, references):
  """BLEU (13a tokens, cased), BLEU in lower case as in old papers, and chrF; 0 to 100.

  Without BLEU where no reference has four tokens: it counts groups of up to four, and would be 0.
  """
  from sacrebleu.metrics import BLEU, CHRF

  # Intervals draw examples by their number: their order must not matter.
  pairs = sorted((text.strip(), list(group)) for text, group in zip(texts, references, strict=True))
  texts, references = zip(*pairs, strict=True)
  count, scores = max(map(len, references)), {}
  streams = [[group[k] if k < len(group) else None for group in references] for k in range(count)]
  table = (('bleu', BLEU()), ('bleu_lower_case', BLEU(lowercase=True)), ('chrf', CHRF()))
  tokens = table[0][1].tokenizer
  if not any(len(tokens(text).split()) >= 4 for group in references for text in group):
    warn_once('BLEU is left out: no reference has the four tokens that it counts; chrF compares letters')
    table = table[2:]
  for name, metric in table:
    score = metric.corpus_score(texts, streams, n_bootstrap=DRAWS)
    result = json.loads(score.format(width=4, signature=str(metric.get_signature()), is_json=True))
    scores[name] = dict(value=result['score'], signature=result['signature'])
    if 'confidence_mean' in result:  # missing where all texts are empty
      mean, half = result['confidence_mean'], result['confidence_var']
      scores[name]['interval'] = [mean - half, mean + half]
  return scores


def score_summaries(texts, references):
  """ROUGE-1, -2 and -L: F1 of stemmed words against the best reference of each text."""
  from rouge_score.rouge_scorer import RougeScorer

  names = ('rouge1', 'rouge2', 'rougeL')
  scorer = RougeScorer(names, use_stemmer=True)
  scores = [scorer.score_multi(group, text) for text, group in zip(texts, references, strict=True)]
  version = importlib.metadata.version('rouge-score')
  signature = f'f1|stem:porter|references:max|rouge-score:{version}'
  return {name: _mean_row([s[name].fmeasure for s in scores]) | {'signature': signature} for name in names}


def copy_source(text):
  """Baseline of translation: the source text itself."""
  return text


def first_sentence(text):
  """Baseline of summarization: the first sentence."""
  return re.split(r'(?<=[.!?])\s', text.strip(), maxsplit=1)[0]


def _mean_row(values):
  """The fields of a row for a mean over examples."""
  return dict(value=float(np.mean(values)), interval=list(metrics.bootstrap_mean(values, draws=DRAWS)))
