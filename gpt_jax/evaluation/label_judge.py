"""A trained run as a judge: the probability of a label for texts and images.

The run has a template such as `{text} -> {label}`; the probability is shared among the labels that are named.
"""

import base64
import dataclasses
import functools

import jax
import numpy as np

from gpt_jax import data, sample
from gpt_jax.data import media_io, templates

LEAST_CHARACTERS = 8  # of a part of a text


def parse_judge(value, key='sample.judge'):
  """Return (run folder, labels) of RUN:LABEL|LABEL; ValueError, which names `key`, for anything else."""
  run, _, names = value.rpartition(':')
  labels = [name.strip() for name in names.split('|')]
  if not run or len(set(labels)) < 2 or not all(labels):
    raise ValueError(
      f'{key}={value} is not a run and its labels\n'
      'fix: write RUN:LABEL|OTHER LABEL; the first label is that of what is unsuitable'
    )
  return run, labels


class Judge:
  """The first source of a run whose template reads what documents are and writes a text."""

  def __init__(self, run, labels):
    """run: a trained.TrainedRun. labels: those that share the probability."""
    self.run, self.labels, self.subject = run, labels, run.subject()

  def probabilities(self, documents):
    """Return [[least, most] of the first label's probability] of dicts: text, or image (base64)."""
    parts = [self.parts(document) for document in documents]
    flat = [pieces for own in parts for pieces in own]
    nats_NC = self.subject.target_nats(flat).reshape(-1, len(self.labels))
    shifted_NC = np.exp(nats_NC.min(1, keepdims=True) - nats_NC)
    first_N = shifted_NC[:, 0] / shifted_NC.sum(1)
    ends = np.cumsum([len(own) // len(self.labels) for own in parts])[:-1]
    return [[float(own.min()), float(own.max())] for own in np.split(first_N, ends)]

  def parts(self, document):
    """Return the documents to score: each part of one with each label, in this order."""
    kind = 'image' if 'image' in document else 'text'
    template, fields = self.template(kind)
    content = base64.b64decode(document['image']) if kind == 'image' else document['text']
    fill = lambda part, label: templates.fill(template, dict(zip(fields, (part, label), strict=True)), 'it')
    whole, pending = [], [content]
    while pending:
      part = pending.pop(0)
      rows = [fill(part, label) for label in self.labels]
      longest = max(len(encoded.ids) for encoded in data.encode_batch(self.run.tokenizers, rows))
      if longest < self.subject.model.cfg.context + 1:
        whole += rows
      elif kind == 'image' or len(part) < 2 * LEAST_CHARACTERS:
        raise ValueError(
          f'a document has {longest} tokens, and the context of {self.run.workdir} is '
          f'{self.subject.model.cfg.context}\nfix: name a run with more context'
        )
      else:
        middle = part.rfind(' ', 1, len(part) // 2 + 1)
        middle = middle if middle > len(part) // 4 else len(part) // 2
        pending[:0] = [part[:middle], part[middle:]]
    return whole

  def template(self, kind):
    """Return (template, its field before the arrow and that after it) for a kind of document."""
    for source in self.run.cfg.data.mixture.values():
      slots = templates.parse(source.template)
      fields = [(slot, field) for slot, field in slots if slot not in ('literal', 'arrow')]
      condition, target = templates.signature(source.template)
      is_read = [templates.MODALITY.get(c, c) for c in condition if c != 'text'] == ['image'] * (
        kind == 'image'
      )
      if condition and is_read and target == ('text',) and len(fields) == 2:
        return source.template, [field for _, field in fields]
    form = '{image:image}' if kind == 'image' else '{text}'
    raise ValueError(
      f'{self.run.workdir} has no template that reads {kind} and writes a label\n'
      f"fix: name a run whose template is such as '{form} -> {{label}}'"
    )

  def score(self, pieces):
    """Return the greatest probability of the first label for each list of Piece; 0 for no text and image."""
    judged = [
      [p for p in own if p.kind == 'image' or (p.kind == 'text' and p.value.strip())] for own in pieces
    ]
    flat = [_document(piece) for own in judged for piece in own]
    most = iter([most for _, most in self.probabilities(flat)] if flat else [])
    return [float(np.max([next(most) for _ in own], initial=0.0)) for own in judged]  # NaN stays


def _document(piece):
  """A Piece as `probabilities` reads it."""
  if piece.kind == 'text':
    return {'text': piece.value}
  return {'image': base64.b64encode(media_io.to_png(piece.value)).decode()}


def resample(judge, cfg, prompts, generate, pieces_of):
  """Generate until the judge accepts, cfg.judge_tries times -> results as of `generate`; None: refused.

  generate: (prompts, cfg, keys_B) -> a list of cfg.num_samples results of each prompt. pieces_of: (prompt,
  result) -> its Pieces. The first try is that without a judge; each of the others has keys of its own.
  """
  n = cfg.num_samples
  keys_B = sample.row_keys(cfg.seed, len(prompts) * n)
  groups = generate(prompts, cfg, keys_B)
  rows = [result for group in groups for result in group]
  owners = np.repeat(np.arange(len(prompts)), list(map(len, groups)))
  refused = _refused(judge, cfg, [pieces_of(prompts[o], row) for o, row in zip(owners, rows, strict=True)])
  single = cfg.beams or cfg.temperature == 0
  for attempt in range(1, 1 if single else cfg.judge_tries):
    places = np.flatnonzero(refused)
    if not len(places):
      break
    again = np.resize(places, len(rows))  # as many rows as before: another number would compile again
    fold = jax.vmap(functools.partial(jax.random.fold_in, data=attempt))
    one = dataclasses.replace(cfg, num_samples=1)
    fresh = generate([prompts[owners[p]] for p in again], one, fold(keys_B[again]))
    for place, [result] in list(zip(again, fresh, strict=True))[: len(places)]:
      rows[place] = result
    judged = [pieces_of(prompts[owners[p]], rows[p]) for p in places]
    refused[places] = _refused(judge, cfg, judged)
  rows = [None if is_refused else row for row, is_refused in zip(rows, refused, strict=True)]
  return [[row for row, o in zip(rows, owners, strict=True) if o == p] for p in range(len(prompts))]


def _refused(judge, cfg, pieces):
  return ~(np.array(judge.score(pieces)) < cfg.judge_threshold)  # NaN, of a broken judge, is refused
