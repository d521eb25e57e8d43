"""What `launch.py evaluate` keeps of what it scores."""

import json
import types

import numpy as np
import pytest

from gpt_jax.data import Piece
from gpt_jax.evaluation import predictions
from gpt_jax.evaluation.predictions import PredictionFiles
from gpt_jax.evaluation.tasks import common
from gpt_jax.runs import digests, records

SUBJECT = types.SimpleNamespace(tokenizers=types.SimpleNamespace(audio=None))  # of pictures alone
NAMES = ['one', 'two', 'one', 'two', 'one', 'two']


def examples_of(names):
  return [common.Example(f'place {n}', {}, [Piece('text', name)], []) for n, name in enumerate(names)]


def keep(files, names, labels, *, source='draw', media=None):
  rows = common.Rows('draw', source, 'valid')
  right = common.matches(labels, names)
  files.add(SUBJECT, rows, examples_of(names), targets=names, predictions=labels, right=right, media=media)


def lines_of(folder):
  return records.read_lines(folder / 'predictions.jsonl')


def test_a_line_has_the_prompt_the_target_and_the_prediction(tmp_path):
  files = PredictionFiles(tmp_path / 'out', 400, {'data.valid_fraction': '0.5'})
  pictures = np.zeros((6, 4, 4, 3), np.uint8)
  keep(files, NAMES, ['one', 'two', 'two', 'two', 'one', 'three'], media=pictures)
  line, *_ = lines = lines_of(tmp_path / 'out')
  group = {'task': 'draw', 'source': 'draw', 'split': 'valid'}
  name = predictions.folder_name(group, {'data.valid_fraction': '0.5'})
  assert name.startswith('draw-draw-valid-')
  assert line == {
    'task': 'draw',
    'source': 'draw',
    'split': 'valid',
    'step': 400,
    'data.valid_fraction': '0.5',
    'index': 0,
    'example': 'place 0',
    'input': 'one',
    'target': 'one',
    'prediction': 'one',
    'right': True,
    'media': f'predictions/{name}/00000.png',
  }
  assert [line['right'] for line in lines] == [True, True, False, True, True, False]
  assert (tmp_path / 'out' / line['media']).read_bytes().startswith(b'\x89PNG')
  folder = tmp_path / 'out/predictions' / name
  digests.verify_folder(folder.with_suffix('.json'), folder)
  assert records.read_json(folder / 'confusion.json') == {
    'true': ['one', 'two'],
    'predicted': ['one', 'two', 'three'],
    'counts': [[2, 1, 0], [0, 2, 1]],
  }
  assert '(6 examples)' in files.describe()


def test_a_later_evaluation_replaces_its_own_lines_and_files_alone(tmp_path):
  files = PredictionFiles(tmp_path, 1, {})
  pictures = np.zeros((6, 4, 4, 3), np.uint8)
  keep(files, NAMES, NAMES, media=pictures)
  keep(files, NAMES, NAMES, source='other', media=pictures)
  keep(PredictionFiles(tmp_path, 2, {}), NAMES[:2], NAMES[:2], media=pictures[:2])
  assert [(line['source'], line['step']) for line in lines_of(tmp_path)] == [
    *[('other', 1)] * 6,
    *[('draw', 2)] * 2,
  ]
  count = lambda source: len(list((tmp_path / f'predictions/draw-{source}-valid').iterdir()))
  assert (count('draw'), count('other')) == (2, 7)  # two examples have no confusion matrix


def test_evaluations_of_chosen_steps_or_data_keep_apart(tmp_path):
  pictures = np.zeros((6, 4, 4, 3), np.uint8)
  for chosen in ({'step': 1}, {'step': 2}, {'step': 2, 'data.valid_fraction': '0.5'}, {'step': 2}):
    keep(PredictionFiles(tmp_path, chosen['step'], chosen), NAMES, NAMES, media=pictures)
  lines = lines_of(tmp_path)
  assert [(line['step'], line.get('data.valid_fraction')) for line in lines] == [
    *[(1, None)] * 6,
    *[(2, '0.5')] * 6,
    *[(2, None)] * 6,
  ]
  assert len({line['media'] for line in lines}) == 18
  assert all((tmp_path / line['media']).exists() for line in lines)


def test_what_is_kept_is_bounded_and_wrong_examples_come_first(tmp_path, monkeypatch):
  monkeypatch.setattr(predictions, 'MAX_LINES', 5)
  monkeypatch.setattr(predictions, 'MAX_MEDIA', 2)
  keep(
    PredictionFiles(tmp_path, 1, {}), NAMES, ['one', 'two', 'one', 'two', 'two', 'two'], media=[PICTURE] * 6
  )
  lines = lines_of(tmp_path)
  assert len(lines) == 5
  assert [line['index'] for line in lines if 'media' in line] == [0, 4]
  confusion = records.read_json(tmp_path / 'predictions/draw-draw-valid/confusion.json')
  assert confusion['counts'] == [[2, 1], [0, 2]]  # of the examples that are kept


PICTURE = np.zeros((2, 2, 1), np.uint8)


@pytest.mark.parametrize(
  'right, chosen',
  [
    ([True] * 6, [0, 1, 2, 3]),
    ([False] * 6, [0, 1, 2, 3]),
    ([True, True, True, False, False, False], [0, 1, 3, 4]),
    ([True, True, True, True, True, False], [0, 1, 2, 5]),
    ([None] * 6, [0, 1, 2, 3]),
  ],
)
def test_media_of_wrong_examples_are_up_to_half(right, chosen, monkeypatch):
  monkeypatch.setattr(predictions, 'MAX_MEDIA', 4)
  assert predictions.choose_media([{'right': r} for r in right]) == chosen


def test_many_different_wrong_answers_share_a_column(monkeypatch):
  monkeypatch.setattr(common, 'MAX_CLASSES', 3)
  found = predictions.count_confusions(['a', 'a', 'b', 'b'], ['x', ' a', 'y', 'z'])
  assert found == {'true': ['a', 'b'], 'predicted': ['a', 'b', '(other)'], 'counts': [[1, 0, 1], [0, 0, 2]]}


def test_a_folder_with_another_file_of_that_name_is_refused_before_sampling(tmp_path):
  (tmp_path / 'predictions.jsonl').write_text('mine\n')
  with pytest.raises(ValueError, match=r'predictions.jsonl line 1 is not a record'):
    PredictionFiles(tmp_path, 1, {})
  assert (tmp_path / 'predictions.jsonl').read_text() == 'mine\n'


def test_texts_may_be_any(tmp_path):
  """Byte-level models sample lone surrogates and escape sequences."""
  answers = ['\x1b[2J', '\ud800', 'a\nb', '', 'x', 'y']
  keep(PredictionFiles(tmp_path, 1, {}), NAMES, answers)
  content = (tmp_path / 'predictions.jsonl').read_bytes()
  assert b'\x1b' not in content and len(content.splitlines()) == 6
  assert [json.loads(line)['prediction'] for line in content.splitlines()][0] == answers[0]
