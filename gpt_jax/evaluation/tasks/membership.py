"""Membership inference: whether losses tell training documents from held-out ones.

Attacks, each a score of a document that is higher for one that was trained on:
  loss       less nats per token (Yeom et al. 2018, Privacy Risk in Machine Learning, section 3)
  zlib       less nats per byte of the zlib-compressed text (Carlini et al. 2021, Extracting Training Data
             from Large Language Models, section 5): repetitive text has little loss without having been read
  reference  less nats than another model needs (ibid.), per token: --reference=RUN, with the same tokenizer
Each has its area under the ROC curve, its true positive rate at 1 % false positives (Carlini et al. 2022,
Membership Inference Attacks From First Principles, section 3), and the lower bound on epsilon that the rates
give at a threshold chosen on half of the documents. The bound takes documents for independent trials, and
needs a random split: where held-out documents are of another kind, an attack tells the kinds apart.
"""

import zlib

import numpy as np

from gpt_jax import data
from gpt_jax.data import Piece
from gpt_jax.data.units import DOCUMENT
from gpt_jax.evaluation import attacks, likelihood
from gpt_jax.evaluation.tasks import common, perplexity

LIMIT = 1000  # documents of each side where no limit is given
FPR = 0.01


def fits(condition, target):
  """Any document."""
  return True


def run(subject, source, split, limit, reference=None):
  """Rows for one source; reference: the Subject of a model that attacks compare with."""
  if reference is not None:
    check_reference(subject, reference)
  scores = {part: score_split(subject, reference, source, part, limit or LIMIT) for part in ('train', split)}
  rows = common.Rows('membership', source, split)
  for attack, members_N in scores['train'].items():
    others_M = scores[split][attack]
    fields = dict(attack=attack, n=len(members_N), held_out=len(others_M))
    interval = lambda measure, a=members_N, b=others_M: attacks.bootstrap(measure, a, b)
    value = attacks.auc(members_N, others_M)
    rows.add('auc', value, chance=0.5, interval=interval(attacks.auc), **fields)
    value = attacks.true_positive_rate(members_N, others_M, FPR)
    spread = interval(attacks.true_positive_rate)
    rows.add('true_positive_rate', value, chance=FPR, interval=spread, fpr=FPR, **fields)
    delta = common.delta(subject)
    value = attacks.epsilon_of_scores(members_N, others_M, delta)
    rows.add('epsilon_lower_bound', value, delta=delta, **fields, **common.proved(subject, *DOCUMENT))
  return rows


def check_reference(subject, reference):
  """Raise ValueError for a reference model whose nats are of other tokens."""
  name = reference.cache_dir.parent
  if reference.tokenizers.hash != subject.tokenizers.hash:
    raise ValueError(
      f'--reference={name} has another tokenizer: {reference.tokenizers.hash[:12]}, expected '
      f'{subject.tokenizers.hash[:12]}\n'
      'fix: train the reference with the tokenizer of this run'
    )


def score_split(subject, reference, source, split, limit):
  """Return {attack: scores [N]} of documents of a split."""
  if perplexity.is_stream(subject, source):
    windows = text_windows(subject, source, split, limit)
    texts = [subject.tokenizers.decode_text(ids) for ids in windows]
    tokens_N, nats = np.array([len(ids) for ids in windows]), lambda model: window_nats(model, windows)
  else:
    examples = common.examples(subject, source, split, limit)
    pieces = [[*x.condition, *([Piece('arrow')] if x.condition else []), *x.target] for x in examples]
    texts = (
      [common.text(p) for p in pieces] if all(set(kinds(p)) <= {'text', 'arrow'} for p in pieces) else ()
    )
    tokens_N = np.array([len(e.ids) for e in data.encode_batch(subject.tokenizers, pieces)])
    nats = lambda model: model.target_nats(pieces)
  own_N = nats(subject)
  scores = {'loss': -own_N / tokens_N}
  if texts:
    scores['zlib'] = -own_N / [len(zlib.compress(text.encode())) for text in texts]
  if reference is not None:
    scores['reference'] = (nats(reference) - own_N) / tokens_N
  return scores


def kinds(pieces):
  """The kinds of pieces."""
  return [piece.kind for piece in pieces]


def text_windows(subject, source, split, limit):
  """Return up to `limit` lists of ids, random windows of documents that fit the context."""
  cache, length = subject.cache(source, split), subject.model.cfg.context
  ends = [*cache.offsets[1:].tolist(), len(cache.ids)]
  places = [
    (start, min(start + length, end))
    for first, end in zip(cache.offsets.tolist(), ends, strict=True)
    for start in range(first, end, length)
  ]
  chosen = sorted(np.random.default_rng(0).permutation(len(places))[:limit].tolist())
  return [np.asarray(cache.ids[slice(*places[n])]).tolist() for n in chosen]


def window_nats(subject, windows):
  """Nats of each list of ids, float64 [N]."""
  start = likelihood.start_ids(subject)
  return likelihood.score_requests(subject, [likelihood.Request(start, ids) for ids in windows]).nats
