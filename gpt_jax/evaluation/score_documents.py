"""Judge documents by a trained run: `python -m gpt_jax.evaluation.score_documents RUN LABELS`.

The program that data/clean/score.py starts. LABELS is a JSON list. Each line of the input is a JSON list of
{"text": ..} or {"image": base64}; each line of the output holds [least, most] of each document: the
probability of the first label among all labels, over the parts of a text that is longer than the context.
"""

import base64
import json
import sys

import numpy as np

from gpt_jax import data
from gpt_jax.data import templates
from gpt_jax.evaluation import trained

LEAST_CHARACTERS = 8  # of a part of a text


class Judge:
  """The first source of a run whose template reads what documents are and writes a text."""

  def __init__(self, workdir, labels):
    self.run, self.labels = trained.load(workdir), labels
    self.subject = self.run.subject()

  def probabilities(self, documents):
    """Return [[least, most] of the first label's probability] of documents as in the module's docstring."""
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


def main(workdir, labels):
  """Answer each line of the input; errors are two lines, as those of launch.py."""
  try:
    judge = Judge(workdir, json.loads(labels))
    for line in sys.stdin:
      print(json.dumps(judge.probabilities(json.loads(line))), flush=True)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
