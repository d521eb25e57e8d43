"""Filter by the judgment of a trained run: `score=RUN:LABEL|LABEL<0.5`.

RUN is the folder of a run whose template has a text, or an image, as its condition and a label as its target,
such as `{tweet} -> {label}`. The score is the probability of the first label among those that are named. A
document longer than the run's context is judged in parts, each of which must pass. The run is loaded by a
process of its own (evaluation/score_documents.py), on the CPU: the training may hold all of an accelerator's
memory.
"""

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt_jax.data import clips, content, media_io, templates
from gpt_jax.data.clean.rule import Document, Rule, number_between
from gpt_jax.runs import digests

FORM = re.compile(r'(?P<run>.+):(?P<labels>[^:<>]+)(?P<sign>[<>])(?P<limit>[^<>]+)')
BATCH = 256  # documents that are judged at once
JUDGE = 'gpt_jax.evaluation.score_documents'


class Score(Rule):
  """score=RUN:LABEL|LABEL<0.5: documents to which a run gives another probability of the first label."""

  learns, reads = True, 'any'

  def __init__(self, value: str):
    super().__init__(value)
    form = FORM.fullmatch(value)
    self.labels = [label.strip() for label in form['labels'].split('|')] if form else []
    if not form or len(set(self.labels)) < 2 or not all(self.labels):
      raise ValueError(
        f'clean=score={value} is not a run, its labels and a threshold\n'
        'fix: write score=RUN:LABEL|OTHER LABEL<0.5; documents below stay'
      )
    self.run, self.is_upper = Path(form['run']).expanduser(), form['sign'] == '<'
    self.limit = number_between('score', form['limit'], 0, 1)

  def describe(self) -> dict:
    """The digest of the run's newest checkpoint."""
    manifests = list((self.run / 'checkpoints' / 'digests').glob('*.json'))
    if not manifests:
      raise ValueError(f'clean=score={self.value}: {self.run} has no checkpoint\nfix: name a trained run')
    newest = max(manifests, key=lambda path: int(path.stem) if path.stem.isdecimal() else -1)
    return {'run': digests.digest_of_manifest(newest)}

  def learn(self, documents: Iterator[tuple[int, Document]]) -> None:
    """Judge all documents."""
    self.removed = set()
    command = [sys.executable, '-m', JUDGE, str(self.run), json.dumps(self.labels)]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding='utf-8')
    with (
      tempfile.TemporaryFile('w+', encoding='utf-8') as self.errors,  # a pipe that nobody reads fills up
      subprocess.Popen(command, env=environment, stderr=self.errors, **pipes) as judge,
    ):
      numbers, lines = [], []
      for number, document in documents:
        numbers.append(number)
        lines.append(_line(document))
        if len(lines) >= BATCH:
          self._judge(judge, numbers, lines)
          numbers, lines = [], []
      if lines:
        self._judge(judge, numbers, lines)
      judge.stdin.close()

  def _judge(self, judge, numbers: list[int], documents: list[dict]) -> None:
    """Read the scores of some documents."""
    answer = ''
    try:
      judge.stdin.write(json.dumps(documents) + '\n')
      judge.stdin.flush()
      answer = judge.stdout.readline()
    except BrokenPipeError:
      pass
    if not answer:
      judge.wait()
      self.errors.seek(0)
      lines = self.errors.read().strip().splitlines() or ['it ended without a message']
      cause = next((line for line in lines if line.startswith('error: ')), lines[-1]).removeprefix('error: ')
      fixes = [line for line in lines if line.startswith('fix: ')]
      fix = fixes[-1] if fixes else 'fix: name a run that reads these documents and writes these labels'
      raise ValueError(f'clean=score={self.value} cannot be computed: {cause}\n{fix}')
    for number, (least, most) in zip(numbers, json.loads(answer), strict=True):
      if not (most < self.limit if self.is_upper else least > self.limit):
        self.removed.add(number)

  def check(self, number: int, document: Document) -> str | None:
    """Whether the run's score is on the wrong side of the threshold."""
    return '' if number in self.removed else None


def _line(document: Document) -> dict:
  """Return a document as the judge reads it: its image, or else its text."""
  images = [piece for piece in document.pieces if templates.MODALITY.get(piece.kind) == 'image']
  if not images:
    return {'text': document.text}
  value = images[0].value
  if isinstance(value, clips.Clip):
    raise ValueError(
      f'{document.where} has a clip, which clean=score does not read\n'
      'fix: leave score out of the source, or give images'
    )
  encoded = media_io.to_png(value) if isinstance(value, np.ndarray) else content.of_piece(images[0])[1]
  return {'image': base64.b64encode(encoded).decode()}
