"""Multiple choice by likelihood: of several options, is the right one likeliest?

A template with `{options[answer]}` makes a document of each option. Plain text is scored as a base model
reads it: by the tokens of the option, or, where text follows the option, of that text (WinoGrande). With an
arrow the target is scored as in training, with its end; bits per byte leave the end out. `accuracy` compares
log-likelihoods (acc of lm-eval), `accuracy_by_characters` divides them by the characters that are scored
(acc_norm), and `accuracy_by_unconditional` subtracts the log-likelihood without a context
(acc_mutual_info).

With shots, other records with their right options come first, as in lm-eval: each followed by an empty line.

Source: centered accuracy and its mean (DCLM's CORE, Li et al. 2024): 0 is chance, 1 is always right.
"""

import copy
import dataclasses
import zlib
from typing import NamedTuple

import numpy as np

from gpt_jax.data import record_fields, templates
from gpt_jax.evaluation import likelihood, metrics
from gpt_jax.evaluation.tasks import common

SHOT_END = '\n\n'  # fewshot_delimiter of lm-eval


class Question(NamedTuple):
  """The options of an example."""

  gold: int  # number of the right one
  options: list  # as they are in the record
  documents: list  # a list of Piece for each option
  pairs: list  # (context, scored text) of each option


def fits(condition, target):
  """A document with a condition, or plain text."""
  return bool(condition) or target == ('text',)


def run(subject, source, split, limit, shots=0):
  """Rows for one source of the mixture; shots: answered examples before each question."""
  template = subject.cfg.data.mixture[source].template
  examples = common.examples(subject, source, split, limit)
  questions = [question(template, x.record, x.where) for x in examples]
  check_numbers(template, examples, source)
  before = fewshot_contexts(subject, source, split, examples, shots) if shots else ()
  log_p, bare, truncated = log_likelihoods(subject, template, questions, before)
  texts = [text for q in questions for _, text in q.pairs]
  scores = {'accuracy': log_p, 'accuracy_by_characters': log_p / [max(1, len(t)) for t in texts]}
  if bare is not None:
    scores['accuracy_by_unconditional'] = log_p - bare
  counts = [len(q.pairs) for q in questions]
  starts, gold = np.cumsum([0, *counts])[:-1], [q.gold for q in questions]
  levels = dict(chance=float(np.mean(1 / np.array(counts))), baseline=common.most_frequent(gold)[1])
  fields = {'shots': shots, 'truncated': truncated}
  rows = common.Rows('choose', source, split, n=len(gold), **{k: v for k, v in fields.items() if v})
  for name, values in scores.items():
    predictions = [int(part.argmax()) for part in np.split(values, starts[1:])]
    rows.add_judged(name, predictions, gold, **levels)
    if name == 'accuracy':
      record_answers(subject, rows, examples, questions, predictions)
  rows.add_centered(rows[0], levels['chance'])
  condition, target = templates.signature(template)
  if target == ('text',):  # images and sounds have no bytes of text
    documents = [q.documents[q.gold] for q in questions]
    nats_N = subject.target_nats(documents, ends=False) if condition else -log_p[starts + gold]
    bits_N = nats_N / np.log(2) / [target_bytes(q, bool(condition)) for q in questions]
    rows.add('bits_per_byte', bits_N.mean(), interval=list(metrics.bootstrap_mean(bits_N)))
  return rows


def target_bytes(question, has_condition):
  """UTF-8 bytes of the right option, with the white space that is scored with it."""
  context, text = question.pairs[question.gold]
  return len(text.encode()) if has_condition else likelihood.count_bytes(context, text)


def check_numbers(template, examples, source):
  """Raise ValueError for answers in text such as '1' to '4' without labels: do they begin at 0 or at 1?"""
  field, index = templates.options_of(template)
  answers = [record_fields.lookup(x.record, index, x.where) for x in examples]
  options = record_fields.lookup(examples[0].record, field, examples[0].where)
  labels = record_fields.option_labels(examples[0].record, field, len(options), examples[0].where)
  is_number = all(isinstance(answer, str) and answer.isdecimal() for answer in answers)
  if is_number and not labels and min(map(int, answers)) > 0:
    raise ValueError(
      f'data.mixture.{source}: no answer {index!r} is 0, so that they may be numbered from 0 or from 1\n'
      'fix: write them as JSON numbers from 0 or as letters from A, or name the options with '
      '{choices.text[answer]} beside a list choices.label'
    )


def record_answers(subject, rows, examples, questions, predictions):
  """Keep the chosen and the right option of each example."""
  chosen = [str(q.options[n]) for q, n in zip(questions, predictions, strict=True)]
  right = [str(q.options[q.gold]) for q in questions]
  inputs = [
    x if x.condition else x._replace(condition=[templates.Piece('text', q.pairs[q.gold][0])])
    for x, q in zip(examples, questions, strict=True)
  ]
  is_right = [q.gold == n for q, n in zip(questions, predictions, strict=True)]
  subject.record(rows, inputs, targets=right, predictions=chosen, right=is_right)


def fewshot_contexts(subject, source, split, examples, shots):
  """The text before each example's question: `shots` others with their right options, an empty line each.

  They are drawn from the training data where the source names data for `split`, or is trained on; else from
  `split` itself. Equal texts are never drawn. A draw depends on the seed, the example and the pool alone.
  """
  trained = subject.cfg.data.mixture[source]
  if templates.signature(trained.template)[0]:
    raise ValueError(
      f'--shots={shots} needs a plain text, and data.mixture.{source}.template={trained.template!r} has an '
      "arrow\nfix: leave out --shots, or write the template without ' -> '"
    )
  named = dataclasses.replace(trained, weight=trained.weight or 1.0)
  pool_split = 'train' if trained.weight or named.has(split) else split
  if pool_split == 'train':  # which a source of weight 0 has for nothing else
    section = dataclasses.replace(subject.cfg.data, mixture=subject.cfg.data.mixture | {source: named})
    subject = dataclasses.replace(subject, cfg=dataclasses.replace(subject.cfg, data=section))
  pool = common.examples(subject, source, pool_split, common.TRAIN_LIMIT)
  texts, contexts = sorted({common.text(x.target) for x in pool}), []
  for own in (common.text(x.target) for x in examples):
    rng = np.random.default_rng([common.FEWSHOT_SEED, zlib.crc32(own.encode())])
    others = [texts[i] for i in rng.permutation(len(texts))[: shots + 1] if texts[i] != own][:shots]
    if len(others) < shots:
      raise ValueError(
        f'--shots={shots} and data.mixture.{source} has {len(others)} other {pool_split} examples\n'
        'fix: give more examples, or fewer shots'
      )
    contexts.append(''.join(text + SHOT_END for text in others))
  return contexts


def question(template, record, where):
  """The options of a record -> Question."""
  field, index = templates.options_of(template)
  options = record_fields.lookup(record, field, where)
  gold = record_fields.option_index(record, index, len(options), where, field)
  labels = record_fields.option_labels(record, field, len(options), where) or range(len(options))
  documents, pairs = [], []
  for label in labels:
    changed = copy.copy(record)
    changed[index] = label
    documents.append(templates.fill(template, changed, where))
    pairs.append(_pair(template, changed, where))
  return Question(gold, options, documents, pairs)


def _pair(template, record, where):
  """(context, scored text) of a plain text or of a document's target."""
  slots = templates.parse(template)
  texts = [
    value if kind == 'literal' else templates.text_of(record, value, where) if kind == 'text' else ''
    for kind, value in slots
  ]
  if ('arrow', '') in slots:
    start = slots.index(('arrow', '')) + 1
  else:
    start = next(i for i, (_, value) in enumerate(slots) if record_fields.CHOICE.fullmatch(value))
    follows = any(kind == 'text' for kind, _ in slots[start + 1 :])
    start += follows
  return ''.join(texts[:start]), ''.join(texts[start:])


def log_likelihoods(subject, template, questions, before=()):
  """Log-likelihoods of all options, in order -> (after their context, without it or None, number truncated).

  before: the text before each question, () for none.
  Without a context: not for documents with ' -> ', which the model never sees without their condition.
  """
  if templates.signature(template)[0]:
    return -subject.target_nats([d for q in questions for d in q.documents]), None, 0
  before = before or [''] * len(questions)
  pairs = [(text + c, o) for text, q in zip(before, questions, strict=True) for c, o in q.pairs]
  requests = [likelihood.encode_pair(subject, *pair) for pair in pairs]
  spaces = [context[len(context.rstrip()) :] for context, _ in pairs]
  bare = [likelihood.encode_pair(subject, '', s + text) for s, (_, text) in zip(spaces, pairs, strict=True)]
  nats_N, _, truncated = likelihood.score_requests(subject, [*requests, *bare])
  return -nats_N[: len(pairs)], -nats_N[len(pairs) :], truncated
