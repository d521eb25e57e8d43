"""How good are texts beside references: what tasks measure, by the field's own libraries.

BLEU and chrF are sacreBLEU's (Post 2018; Papineni et al. 2002, Popovic 2015), ROUGE is Google's
(Lin 2004); both are optional: pip install 'gpt_jax[metrics]'. Their rows carry the signature that a
paper quotes. Error rates and F1 are metrics.py's own: they need no library.

Every function takes texts [N] and for each a list of references, and returns {metric: fields of
its row}: value, and as known interval (95 %, over examples) and signature.
"""

import importlib.metadata
import importlib.util
import json
import re

import numpy as np

from gpt_jax.evaluation import metrics

DRAWS = 1000  # of a bootstrap


def check(package, task):
  """ValueError unless the package that a task measures with is installed."""
  if package and not is_installed(package):
    raise ValueError(
      f'--tasks={task} measures with {package}, which is not installed\n'
      "fix: pip install 'gpt_jax[metrics]', or leave the task out"
    )


def is_installed(package):
  """Whether a package can be imported, without doing so; '' always can."""
  return not package or importlib.util.find_spec(package) is not None


def answers(made, wanted):
  """Exact match and F1 of words by the best reference; error rates by the first one."""
  best = lambda measure: [
    max(measure(text, w) for w in some) for text, some in zip(made, wanted, strict=True)
  ]
  same = best(lambda text, w: text.strip() == w.strip())
  exact, interval = metrics.accuracy(same, [True] * len(same))
  found = {'exact_match': dict(value=exact, interval=list(interval))}
  found['token_f1'] = _mean(best(metrics.token_f1))
  first = [some[0] for some in wanted]
  if any(first):
    found['character_error_rate'] = dict(value=metrics.cer(made, first))
  if any(text.split() for text in first):
    found['word_error_rate'] = dict(value=metrics.wer(made, first))
  return found


def translation(made, wanted):
  """BLEU (13a tokens, cased), the same in lower case as old papers have it, and chrF; 0 to 100."""
  from sacrebleu.metrics import BLEU, CHRF

  rows = {'bleu': BLEU(), 'bleu_lower_case': BLEU(lowercase=True), 'chrf': CHRF()}
  most, found = max(map(len, wanted)), {}
  streams = [[some[k] if k < len(some) else None for some in wanted] for k in range(most)]
  made = [text.strip() for text in made]
  for name, metric in rows.items():
    score = metric.corpus_score(made, streams, n_bootstrap=DRAWS)
    told = json.loads(score.format(width=4, signature=str(metric.get_signature()), is_json=True))
    found[name] = dict(value=told['score'], signature=told['signature'])
    if 'confidence_mean' in told:  # not where no word was made
      mean, half = told['confidence_mean'], told['confidence_var']
      found[name]['interval'] = [mean - half, mean + half]
  return found


def summary(made, wanted):
  """ROUGE-1, -2 and -L, F1 of stemmed words, by the best reference of each."""
  from rouge_score.rouge_scorer import RougeScorer

  names = ('rouge1', 'rouge2', 'rougeL')
  scorer = RougeScorer(names, use_stemmer=True)
  scores = [scorer.score_multi(some, text) for text, some in zip(made, wanted, strict=True)]
  version = importlib.metadata.version('rouge-score')
  about = dict(signature=f'f1|stem:porter|references:max|rouge-score:{version}')
  return {name: _mean([s[name].fmeasure for s in scores]) | about for name in names}


def copied(text):
  """A translation for nothing: the text itself."""
  return text


def first_sentence(text):
  """A summary for nothing."""
  return re.split(r'(?<=[.!?])\s', text.strip(), maxsplit=1)[0]


def _mean(values):
  """A mean over examples, with its interval."""
  return dict(value=float(np.mean(values)), interval=list(metrics.bootstrap(values, draws=DRAWS)))
