"""Scores of texts against references, by the field's own libraries.

BLEU and chrF are sacreBLEU's (Post 2018; Papineni et al. 2002, Popovic 2015), ROUGE is Google's
(Lin 2004); both are optional: pip install 'gpt_jax[metrics]'. Their rows carry the signature that a
paper quotes. Error rates and F1 are those of metrics.py.

Every score takes texts [N] and for each a list of references, and returns {metric: fields of its
row}: value, and where known interval (95 %, over examples) and signature.

`paired_differences` compares two sets of texts of the same examples by a paired bootstrap (Koehn 2004), which
draws examples and computes both scores of each draw. It needs the statistics of each example that add up to
those of the corpus.

Letters: N examples, K statistics of a score, D draws.
"""

import importlib.metadata
import importlib.util
import json
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.data.files import warn_once
from gpt_jax.evaluation import metrics

DRAWS = 1000  # of a bootstrap


class Statistics(NamedTuple):
  """What a score of a corpus is computed from."""

  values_NK: Any  # of each example; their sums are those of the corpus
  score: Any  # sums [K] -> score


class Measure(NamedTuple):
  """How texts are scored against references."""

  score: Any  # (texts, references) -> {metric: fields of its row}
  statistics: Any  # (texts, references) -> {metric: Statistics}


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


def match_normalized(texts, references):
  """Whether each text equals a reference as SQuAD compares them; None where that is an exact match."""
  wanted = [[metrics.normalize(reference) for reference in group] for group in references]
  if all(map(lambda some, group: some == list(group), wanted, references)):
    return None
  return [metrics.normalize(text) in group for text, group in zip(texts, wanted, strict=True)]


def score_answers(texts, references):
  """Exact match and word F1 against the best reference; error rates against the first one.

  Where references have capitals, punctuation or articles, also SQuAD's exact match, which ignores these.
  """
  exact, f1 = match_answers(texts, references)
  scores = {}
  for name, matches in (('exact_match', exact), ('normalized_match', match_normalized(texts, references))):
    if matches is not None:
      value, interval = metrics.accuracy(matches, [True] * len(matches))
      scores[name] = dict(value=value, interval=list(interval))
  scores['token_f1'] = _mean_row(f1)
  first = [group[0] for group in references]
  if any(first):
    scores['character_error_rate'] = dict(value=metrics.cer(texts, first))
  if any(reference.split() for reference in first):
    scores['word_error_rate'] = dict(value=metrics.wer(texts, first))
  return scores


def answer_statistics(texts, references):
  """The statistics of `score_answers`."""
  first = [group[0] for group in references]
  words = lambda texts: [text.split() for text in texts]
  exact, f1 = match_answers(texts, references)
  normalized = match_normalized(texts, references)
  return {
    'exact_match': _mean_statistics(exact),
    **({} if normalized is None else {'normalized_match': _mean_statistics(normalized)}),
    'token_f1': _mean_statistics(f1),
    **_error_statistics('character_error_rate', texts, first),
    **_error_statistics('word_error_rate', words(texts), words(first)),
  }


def _mean_statistics(values_N):
  """The statistics of a mean over examples."""
  return Statistics(np.stack([values_N, np.ones(len(values_N))], 1), lambda sums_K: sums_K[0] / sums_K[1])


def _error_statistics(metric, texts, references):
  """{metric: the statistics of an error rate}, {} where references are empty."""
  edits_N, lengths_N = list(map(metrics.levenshtein, texts, references)), list(map(len, references))
  if not sum(lengths_N):
    return {}
  score = lambda sums_K: sums_K[0] / sums_K[1] if sums_K[1] else np.nan
  return {metric: Statistics(np.stack([edits_N, lengths_N], 1), score)}


def paired_differences(measure, texts, others, references):
  """{metric: (score of texts minus that of others, [low, high])}: a 95 % interval over examples.

  Both are scored on the same draws of examples, whose order does not matter.
  """
  order = sorted(range(len(texts)), key=lambda n: (references[n], texts[n], others[n]))
  texts, others, references = ([some[n] for n in order] for some in (texts, others, references))
  draws_DN = np.random.default_rng(0).multinomial(len(texts), np.full(len(texts), 1 / len(texts)), DRAWS)
  whole_DN, result = np.ones((1, len(texts)), int), {}
  rivals = measure.statistics(others, references)
  for metric, own in measure.statistics(texts, references).items():
    scores = lambda some, counts_DN: np.array([some.score(sums_K) for sums_K in counts_DN @ some.values_NK])
    [value], differences_D = (
      scores(own, counts_DN) - scores(rivals[metric], counts_DN) for counts_DN in (whole_DN, draws_DN)
    )
    result[metric] = float(value), np.nanpercentile(differences_D, (2.5, 97.5)).tolist()
  return result


def score_translations(texts, references):
  """BLEU (13a tokens, cased), BLEU in lower case as in old papers, and chrF; 0 to 100.

  Without BLEU where no reference has four tokens: it counts groups of up to four, and would be 0.
  """
  # Intervals draw examples by their number: their order must not matter.
  pairs = sorted((text.strip(), list(group)) for text, group in zip(texts, references, strict=True))
  texts, references = zip(*pairs, strict=True)
  scores = {}
  streams, table = _translation_metrics(references)
  for name, metric in table.items():
    score = metric.corpus_score(texts, streams, n_bootstrap=DRAWS)
    result = json.loads(score.format(width=4, signature=str(metric.get_signature()), is_json=True))
    scores[name] = dict(value=result['score'], signature=result['signature'])
    if 'confidence_mean' in result:  # missing where all texts are empty
      mean, half = result['confidence_mean'], result['confidence_var']
      scores[name]['interval'] = [mean - half, mean + half]
  return scores


def _translation_metrics(references):
  """(references as sacreBLEU reads them, its metrics by name); BLEU only if a reference has four tokens."""
  from sacrebleu.metrics import BLEU, CHRF

  count = max(map(len, references))
  streams = [[group[k] if k < len(group) else None for group in references] for k in range(count)]
  table = {'bleu': BLEU(force=True), 'bleu_lower_case': BLEU(lowercase=True, force=True), 'chrf': CHRF()}
  tokens = table['bleu'].tokenizer
  if not any(len(tokens(text).split()) >= 4 for group in references for text in group):
    warn_once('BLEU is left out: no reference has the four tokens that it counts; chrF compares letters')
    table = {'chrf': table['chrf']}
  return streams, table


def translation_statistics(texts, references):
  """The statistics of `score_translations`: sacreBLEU's of each sentence."""
  streams, table = _translation_metrics(references)

  def statistics(metric):
    values_NK = metric._extract_corpus_statistics([text.strip() for text in texts], streams)
    return Statistics(
      np.array(values_NK), lambda sums_K: metric._compute_score_from_stats(sums_K.tolist()).score
    )

  return {name: statistics(metric) for name, metric in table.items()}


def self_bleu(texts):
  """Mean BLEU of each text against all others: 100 if all are equal."""
  from sacrebleu.metrics import BLEU

  metric = BLEU(effective_order=True)
  others = lambda n: texts[:n] + texts[n + 1 :]
  return float(np.mean([metric.sentence_score(text, others(n)).score for n, text in enumerate(texts)]))


def score_summaries(texts, references):
  """ROUGE-1, -2 and -L: F1 of stemmed words against the best reference of each text."""
  version = importlib.metadata.version('rouge-score')
  signature = f'f1|stem:porter|references:max|rouge-score:{version}'
  return {
    name: _mean_row(of.values_NK[:, 0]) | {'signature': signature}
    for name, of in summary_statistics(texts, references).items()
  }


def summary_statistics(texts, references):
  """The statistics of `score_summaries`."""
  from rouge_score.rouge_scorer import RougeScorer

  names = ('rouge1', 'rouge2', 'rougeL')
  scorer = RougeScorer(names, use_stemmer=True)
  scores = [scorer.score_multi(group, text) for text, group in zip(texts, references, strict=True)]
  return {name: _mean_statistics([s[name].fmeasure for s in scores]) for name in names}


def _mean_row(values):
  """The fields of a row for a mean over examples."""
  return dict(value=float(np.mean(values)), interval=list(metrics.bootstrap_mean(values, draws=DRAWS)))


ANSWERS = Measure(score_answers, answer_statistics)
TRANSLATIONS = Measure(score_translations, translation_statistics)
SUMMARIES = Measure(score_summaries, summary_statistics)
