"""Answers without a model, on made-up texts."""

from gpt_jax.data import Piece
from gpt_jax.evaluation import metrics, text_baselines
from gpt_jax.evaluation.tasks import common


def examples(*pairs, **record):
  return [
    common.Example('place', record, [Piece('text', before)], [Piece('text', after)])
    for before, after in pairs
  ]


def test_a_dictionary_counts_which_words_meet():
  train = examples(('a red cat', 'ein roter Kater'), ('a dog', 'ein Hund'), ('red dog', 'roter Hund'))
  asked = examples(('a red dog, unseen', ''), ('cat', ''))
  assert text_baselines.dictionary(asked, train, '') == ['ein roter Hund , unseen', 'Kater']
  assert text_baselines.copy_source(asked, train, '') == ['a red dog, unseen', 'cat']


def test_sentences():
  asked = examples((' It works. Well? Yes.', ''), ('no end', ''))
  assert text_baselines.first_sentence(asked, [], '') == ['It works.', 'no end']
  chosen = text_baselines.random_sentence(asked, [], '')
  assert chosen[0] in ('It works.', 'Well?', 'Yes.') and chosen[1] == 'no end'
  assert text_baselines.random_sentence(asked[::-1], [], '') == chosen[::-1]
  many = examples(*((f'a{n}. b{n}. c{n}.', '') for n in range(60)))
  assert {text[0] for text in text_baselines.random_sentence(many, [], '')} == {'a', 'b', 'c'}


def test_a_window_lies_beside_the_words_of_the_question():
  passage = (
    'Rain fell on Monday. The bridge was designed by Ada Lovelace in spring. Nobody knew it before then.'
  )
  asked = examples((f'{passage} By whom, in spring?', 'Ada'), q='By whom, in spring?', c=passage)
  assert 'Ada' == text_baselines.best_span(passage.split(), {'by', 'in'}, 1)
  [answer] = text_baselines.window(asked, asked, '{c} {q} -> {a}')
  assert answer == 'Ada'  # as long as the answers of training
  assert text_baselines.window(asked, asked, '{q} -> {a}') is None


def test_each_chinese_character_is_a_word():
  assert metrics.token_f1('北京市', '北京') == 2 * 2 / 5
  assert metrics.token_f1('in 北京', '北京 city') == 2 * 2 / 6
