"""Predictions of tasks, example by example: what `launch.py evaluate` keeps of what it scores.

In the run folder, or that of --out:
  predictions.jsonl                              one line an example: task source split step index example
                                                 input target prediction right, a score, the answer of
                                                 a baseline, paths of its media
  predictions/TASK-SOURCE-SPLIT/                 00012.png, 00012.wav: generated; 00012_input.png: of the
                                                 condition; 00012_target.png: of the target
  predictions/TASK-SOURCE-SPLIT/confusion.json   of classes: true, predicted, counts (rows: true) of the
                                                 examples in predictions.jsonl
  predictions/TASK-SOURCE-SPLIT.json             the manifest of that folder (runs/digests.py)
A later evaluation of the same task, source and split replaces its lines and its folder. Evaluations of
a chosen step or chosen data keep apart: a hash of these follows SPLIT in the name of the folder.
"""

import collections
import hashlib
import json
from pathlib import Path

import numpy as np

from gpt_jax.data import media_io
from gpt_jax.evaluation.tasks import common
from gpt_jax.runs import digests, records

MAX_LINES, MAX_MEDIA = 10_000, 200  # examples of a task and source in predictions.jsonl, and with media
GROUP = ('source', 'split', 'way', 'modality')  # beside the task: fields of Rows that name one evaluation
OTHER = '(other)'  # column of predictions beyond common.MAX_CLASSES


class PredictionFiles:
  """Writes predictions.jsonl and the media beside it, in one process."""

  def __init__(self, folder, step, chosen):
    """Open `folder`; an error comes now, not after the sampling.

    step: of the checkpoint. chosen: {config key: value} of data in the place of the run's own, and the step
    if it was asked for.
    """
    self.folder, self.examples = Path(folder).expanduser(), 0
    self.fields, self.chosen = {'step': step, **chosen}, chosen
    self.folder.mkdir(parents=True, exist_ok=True)
    records.read_lines(self.folder / 'predictions.jsonl')

  def add(self, subject, rows, examples, *, targets, predictions=None, right=None, media=None, **scores):
    """Write what a task judged.

    Args:
      rows: the task's Rows, which name task, source and split.
      targets: right answers, texts or lists of texts.
      predictions: generated texts, or labels that a judge gave; None where nothing is named.
      right: bools; None where no example is right or wrong.
      media: generated images uint8 [Y, X, A] or sounds float32 [N].
      **scores: {name: one number, or one text, an example}.
    """
    group = {'task': rows.first['task'], **{key: rows.last[key] for key in GROUP if key in rows.last}}
    lines = []
    for index, example in enumerate(examples[:MAX_LINES]):
      line = {**group, **self.fields, 'index': index, 'example': example.where}
      target = targets[index]
      target = target[0] if isinstance(target, list) and len(target) == 1 else target
      line |= {'input': common.describe(example.condition), 'target': target}
      columns = {'prediction': predictions, 'right': right, **scores}
      lines.append(line | {name: column[index] for name, column in columns.items() if column is not None})
    folder = self.folder / 'predictions' / folder_name(group, self.chosen)
    self._clear(folder)
    for index in choose_media(lines):
      for suffix, content in media_files(
        subject, examples[index], media[index] if media is not None else None
      ):
        path = folder / f'{index:05}{suffix}'
        records.write_atomically(path, content)
        kind = suffix.partition('.')[0].strip('_')
        lines[index][f'{kind}_media' if kind else 'media'] = str(path.relative_to(self.folder))
    if (
      right is not None
      and predictions is not None
      and common.are_classes(firsts := [first(target) for target in targets[:MAX_LINES]])
    ):
      records.write_json(folder / 'confusion.json', count_confusions(firsts, predictions[:MAX_LINES]))
    digests.write_manifest(folder.with_name(f'{folder.name}.json'), folder)
    self._replace_lines(group | self.chosen, lines)
    self.examples += len(lines)

  def describe(self):
    """Return a line with the path and the number of examples, '' where there are none."""
    path = self.folder / 'predictions.jsonl'
    return f'predictions: {path} ({self.examples:,} examples)\n' if self.examples else ''

  def _clear(self, folder):
    """Make an empty folder for the files of a task; a file of the user's own stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*folder.glob('[0-9]*.png'), *folder.glob('[0-9]*.wav'), folder / 'confusion.json'):
      path.unlink(missing_ok=True)

  def _replace_lines(self, group, lines):
    path = self.folder / 'predictions.jsonl'
    names = {'task', *GROUP, *self.chosen}
    is_other = lambda line: {k: v for k, v in line.items() if k in names or '.' in k} != group
    others = list(filter(is_other, records.read_lines(path)))
    records.write_atomically(path, b''.join(map(records.format_object, [*others, *lines])))


def folder_name(group, chosen):
  """Return the name of an evaluation's folder, with a hash of what was chosen."""
  content = json.dumps(chosen, sort_keys=True).encode()
  parts = [*group.values(), *([hashlib.sha256(content).hexdigest()[:8]] if chosen else [])]
  return '-'.join(parts).replace(' ', '-')


def first(target):
  """Return the first right answer of one or several, as predictions are compared."""
  return (target if isinstance(target, str) else target[0]).strip()


def choose_media(lines):
  """Return the indices of the examples whose media are kept; wrong ones are up to half of them."""
  wrong = [n for n, line in enumerate(lines) if line.get('right') is False]
  others = [n for n, line in enumerate(lines) if line.get('right') is not False]
  wrong = wrong[: max(MAX_MEDIA // 2, MAX_MEDIA - len(others))]
  return sorted([*wrong, *others[: MAX_MEDIA - len(wrong)]])


def media_files(subject, example, generated):
  """Yield (suffix of the file, content) of what was generated, and of the example's own image or sound."""
  rate = getattr(subject.tokenizers.audio, 'sample_rate', 0)
  if generated is not None:
    yield encode_media(generated, rate)
  for side, pieces in (('input', example.condition), ('target', example.target)):
    for kinds, read in ((common.IMAGES, common.images_of), (common.SOUNDS, common.waves_of)):
      if common.has_kind(pieces, kinds):
        alone = [example._replace(condition=pieces, target=[])]
        [value] = read(subject, alone)
        own_rate = common.rate_of(subject, alone) if kinds is common.SOUNDS else 0
        suffix, content = encode_media(value, own_rate)
        yield f'_{side}{suffix}', content


def encode_media(value, rate):
  """Return (suffix, bytes) of an image uint8 [Y, X, A] or a sound float32 [N]."""
  value = np.asarray(value)
  return ('.png', media_io.to_png(value)) if value.ndim == 3 else ('.wav', media_io.to_wav(value, rate))


def count_confusions(targets, predictions):
  """Return {true: labels, predicted: the same labels and others, counts: [true][predicted]}."""
  predictions = [prediction.strip() for prediction in predictions]
  true = sorted(set(targets))
  others = sorted(set(predictions) - set(true))
  if len(true) + len(others) > common.MAX_CLASSES:
    others = [OTHER]
  columns = [*true, *others]
  count = collections.Counter(
    (target, prediction if prediction in columns else OTHER)
    for target, prediction in zip(targets, predictions, strict=True)
  )
  return {
    'true': true,
    'predicted': columns,
    'counts': [[count[target, prediction] for prediction in columns] for target in true],
  }
