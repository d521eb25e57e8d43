"""The share of known words in answers."""

import pytest

from benchmarks import spelling


def test_words_of_test_answers_are_counted():
  lines = [
    {'split': 'test', 'prediction': 'Grinning turle'},
    {'split': 'test', 'prediction': 'cat-face cat'},
    {'split': 'valid', 'prediction': 'nonsense'},
  ]
  assert spelling.share_known(lines, {'grinning', 'cat', 'face'}) == {'words': 5, 'known': 0.8}
  with pytest.raises(SystemExit, match='no test answer has a word\nfix: '):
    spelling.share_known(lines[2:], {'cat'})
