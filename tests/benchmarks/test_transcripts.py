"""Transcripts as words, and their errors."""

import pytest

from benchmarks import transcripts
from tests import tiny_runs


def test_numerals_become_the_words_of_the_metadata():
  assert (
    transcripts.spelled('The 42-line Bible of about 1455.')
    == 'the forty two line bible of about fourteen fifty five'
  )
  for text in ('In 1942 they left', '142 ships'):
    with pytest.raises(ValueError) as error:
      transcripts.spelled(text)
    tiny_runs.assert_two_lines(error.value, 'has no words')


def test_errors_are_edits_of_all_words():
  rate = transcripts.error_rate(['a b', 'x d e f'], ['a b c', 'd e f'])
  assert rate['word_error_rate'] == pytest.approx(2 / 6)
  assert rate['interval'][0] <= 2 / 6 <= rate['interval'][1]
