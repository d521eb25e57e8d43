"""What a run's page shows of the predictions that evaluations keep."""

import types

import numpy as np
import pytest

from gpt_jax.data import Piece
from gpt_jax.evaluation.predictions import PredictionFiles
from gpt_jax.evaluation.tasks import common
from gpt_jax.reports import page, predictions_part
from gpt_jax.runs import records
from tests.reports.test_run_report import Reader, new_run, read_report

SUBJECT = types.SimpleNamespace(tokenizers=types.SimpleNamespace(audio=None))
NAMES = ['one', 'two'] * 10
LABELS = ['one', 'one', 'two', 'two', *NAMES[4:]]


@pytest.fixture
def run(tmp_path):
  """A run whose evaluation drew twenty pictures and got two of them wrong."""
  folder = new_run(tmp_path / 'run', {'loss': 1.0})
  examples = [common.Example(f'place {n}', {}, [Piece('text', name)], []) for n, name in enumerate(NAMES)]
  judged = dict(targets=NAMES, predictions=LABELS, right=common.matches(LABELS, NAMES))
  pictures = np.zeros((20, 4, 4, 3), np.uint8)
  rows = common.Rows('draw', 'digits', 'valid')
  PredictionFiles(folder, 7, {}).add(SUBJECT, rows, examples, media=pictures, **judged)
  return folder


def shown(folder):
  """The section's words and its number of pictures."""
  text, _ = read_report(folder)
  reader = Reader(text.partition('<h2>Predictions</h2>')[2].partition('</section>')[0])
  return reader.text(), reader.tags.count('img')


def test_confusions_and_wrong_examples_are_shown(run):
  words, pictures = shown(run)
  assert 'draw \u00b7 digits \u00b7 valid 18 of 20 right' in words
  assert 'one two one 9 1 two 1 9' in words  # the matrix
  assert 'one predicted as two: 1 of 10 two predicted as one: 1 of 10' in words
  assert 'one not two' in words and 'two not one' in words
  assert pictures == 2 + predictions_part.MAX_RIGHT


def test_a_changed_file_is_not_shown(run):
  next((run / 'predictions/draw-digits-valid').glob('*.png')).write_bytes(b'changed')
  words, pictures = shown(run)
  assert '18 of 20 right' in words and 'predicted as' not in words and not pictures


def test_files_outside_the_run_are_not_embedded(run, tmp_path):
  lines = records.read_lines(run / 'predictions.jsonl')
  (tmp_path / 'secret.png').write_bytes(b'secret')
  for line in lines:
    line['media'] = '../../secret.png'
  content = b''.join(map(records.format_object, lines))
  (run / 'predictions.jsonl').write_bytes(content)
  assert shown(run)[1] == 0
  folder = run / 'predictions/draw-digits-valid'
  folder.rename(tmp_path / 'elsewhere')
  folder.symlink_to(tmp_path / 'elsewhere')
  assert shown(run)[1] == 0


def test_lines_of_other_types_are_left_out(run):
  with open(run / 'predictions.jsonl', 'ab') as file:
    for line in ({'task': 'draw'}, {'task': ['x'], 'target': {}}, {'right': None}):
      file.write(records.format_object(line))
    file.write(b'not json\n')
  assert '18 of 20 right' in shown(run)[0]


def test_texts_are_side_by_side_with_the_worst_first(tmp_path):
  folder = new_run(tmp_path / 'run', {'loss': 1.0})
  count = 2 * predictions_part.MAX_TEXTS + 5
  texts = [f'source {n} <b>' for n in range(count)]
  examples = [common.Example(f'place {n}', {}, [Piece('text', text)], []) for n, text in enumerate(texts)]
  scores = [n / count for n in range(count)][::-1]
  rows = common.Rows('translate', 'pairs', 'test')
  PredictionFiles(folder, 7, {}).add(
    SUBJECT,
    rows,
    examples,
    targets=[[f'right {n}', f'also {n}'] for n in range(count)],
    predictions=[f'ours {n}' if n else '' for n in range(count)],
    baseline=[f'copied {n}' for n in range(count)],
    token_f1=scores,
  )
  words, _ = shown(folder)
  assert f'translate \u00b7 pairs \u00b7 test {count} examples' in words
  worst, _, others = words.partition(f'{predictions_part.MAX_TEXTS} random')
  assert f'{predictions_part.MAX_TEXTS} worst by word F1' in worst
  last = count - 1
  line = f'{last} source {last} <b> right {last} / also {last} copied {last} ours {last} 0.00'
  assert line in worst and worst.index(line) < worst.index(f'ours {last - 1} ')
  assert worst.count('copied') == others.count('copied') == predictions_part.MAX_TEXTS


def test_texts_without_a_class_show_what_was_given_and_expected():
  line = {'input': 'A cat.', 'target': ['Eine Katze.', 'Die Katze.'], 'prediction': ''}
  words = ' '.join(predictions_part.captions(line))
  assert words == ' '.join(
    (
      page.element('div', 'A cat.', kind='about'),
      page.element('b', '(empty)'),
      page.element('div', 'Eine Katze. / Die Katze.', kind='about'),
    )
  )
