"""Losses by kind of token: which kinds there are, and what two models differ in."""

import types

import numpy as np
import pytest

from gpt_jax.reports import token_kinds
from gpt_jax.tokenizers.vocabulary import Vocabulary

TEXTS = [' the', 'cat', 's', '7', ',', '\n', ' a']


@pytest.fixture
def tokenizers():
  """A tokenizer of TEXTS, with a special and two image codes."""
  vocabulary = Vocabulary((('text', 7), ('special', 1), ('image', 2)), (('eos', 7),))
  return types.SimpleNamespace(
    vocabulary=vocabulary, decode_text=lambda ids: ''.join(TEXTS[index] for index in ids)
  )


def test_each_target_has_its_kind(tokenizers):
  inputs = np.array([[6, 1, 2, 3, 4, 5, 1, 7]])
  targets = np.array([[1, 2, 3, 4, 5, 1, 7, 8]])
  kinds = token_kinds.label_tokens(inputs, targets, tokenizers)
  names = [next(k for k in kinds if kinds[k][0, t] and k not in token_kinds.PAIRS) for t in range(8)]
  assert names == [
    *('inside a word', 'inside a word', 'number', 'punctuation', 'white space', 'start of a word'),
    *('special', 'image'),
  ]


def test_a_pair_is_seen_once_it_was_in_the_row(tokenizers):
  kinds = token_kinds.label_tokens(
    np.array([[1, 2, 1], [1, 2, 3]]), np.array([[2, 1, 2], [2, 3, 4]]), tokenizers
  )
  np.testing.assert_array_equal(kinds[token_kinds.PAIRS[0]], [[False, False, True], [False] * 3])
  np.testing.assert_array_equal(kinds[token_kinds.PAIRS[1]], [[True, True, False], [True] * 3])


def test_the_largest_difference_comes_first_with_its_share():
  nats_BT, other_BT = np.array([[2.0, 1.0], [3.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 1.5]])
  first = np.array([[True, False], [True, False]])
  rows = token_kinds.compare_kinds(nats_BT, other_BT, np.ones((2, 2)), {'b': ~first, 'a': first})
  assert [row['kind'] for row in rows] == ['a', 'b']
  assert rows[0]['difference'] == 1.5 and rows[0]['nats'] == [2.5, 1.0] and rows[0]['targets'] == 2
  assert rows[0]['error'] == pytest.approx(0.5)  # of the mean of 1 and 2
  assert [row['share'] for row in rows] == [3 / 2.5, -0.5 / 2.5]


def test_padding_counts_nowhere():
  mask_BT = np.array([[1.0, 0.0]])
  every = np.ones((1, 2), bool)
  [row] = token_kinds.compare_kinds(np.array([[2.0, 9.0]]), np.ones((1, 2)), mask_BT, {'a': every})
  assert row['targets'] == 1 and row['difference'] == 1.0
