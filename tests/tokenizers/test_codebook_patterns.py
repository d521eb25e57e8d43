"""Patterns of codebooks: what may be sampled is exactly the sounds whose codes a pattern orders."""

import functools

import jax
import numpy as np
import pytest

from gpt_jax.tokenizers import Tokenizers, audio, codebook_patterns, grammar, text

ROOM = 10_000


def test_delay_is_that_of_musicgen():
  """Codebook q of position p in step p + q."""
  cells = codebook_patterns.delay(3, 3).tolist()
  steps = [[(0, 0)], [(1, 0), (0, 1)], [(2, 0), (1, 1), (0, 2)], [(2, 1), (1, 2)], [(2, 2)]]
  assert list(map(tuple, cells)) == [cell for step in steps for cell in step]
  assert codebook_patterns.flat(2, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@functools.cache
def toks_of(pattern, books, positions=4):
  cfg = audio.AudioConfig(kind='codes', codes=3, books=books, pattern=pattern, longest=positions)
  return Tokenizers.build(text.ByteTokenizer(), audio=audio.build(cfg))


def grammar_of(toks, to):
  return grammar.build(toks.vocabulary, toks.layout, toks.vocabulary.padded, to)


@pytest.mark.parametrize('books', [1, 2, 3, 5])
@pytest.mark.parametrize('pattern', codebook_patterns.PATTERNS)
def test_ids_are_decoded_to_the_codes(pattern, books):
  toks = toks_of(pattern, books)
  for positions in (1, 2, 4):
    codes_PQ = np.random.default_rng(positions).integers(0, 3, (positions, books))
    ids = toks.encode_codes('audio', codes_PQ)
    assert ids.shape == (positions * books,)
    np.testing.assert_array_equal(toks.decode_codes('audio', ids), codes_PQ)
  with pytest.raises(ValueError, match='not a whole number of positions|is'):
    toks.decode_codes('audio', [*ids, toks.vocabulary.start('text')])


@pytest.mark.parametrize('books', [1, 2, 3, 5])
@pytest.mark.parametrize('pattern', codebook_patterns.PATTERNS)
def test_walks_under_the_grammar_are_whole_sounds(pattern, books):
  """Every walk decodes, all numbers of positions are reached, the counts of codes to come are true."""
  toks, rng = toks_of(pattern, books), np.random.default_rng(0)
  rules, lengths = grammar_of(toks, 'audio'), set()
  boa, eoa = (toks.vocabulary.special(name) for name in ('boa', 'eoa'))
  for _ in range(30):
    state, _ = grammar.read_prompts(rules, np.array([[boa]]), np.array([1]), np.array([ROOM]))
    ids, bounds = [], []
    while True:
      row = int(rules.sound.row_S[state.count_B[0]])
      allowed = np.flatnonzero(rules.table_NV[2 + rules.image_books + row])
      assert len(allowed)
      bounds.append(
        (int(grammar.min_new_tokens(rules, state)[0]), int(grammar.max_new_tokens(rules, state)[0]))
      )
      token = int(rng.choice(allowed))
      if token == eoa:
        break
      ids.append(token)
      state = grammar.advance(rules, state, np.array([token]))
    lengths.add(len(toks.decode_codes('audio', ids)))
    for done, (least, most) in enumerate(bounds):
      assert least <= len(ids) - done + 1 <= most
    for token in ids:  # the loss restricted to what competes with a target
      group_V, allowed_NV = toks.groups()
      assert allowed_NV[group_V[token], token]
  assert lengths == {1, 2, 3, 4}


@pytest.mark.parametrize('pattern', codebook_patterns.PATTERNS)
def test_real_sounds_are_legal_and_no_row_is_left_without_a_choice(pattern):
  toks = toks_of(pattern, 3)
  rules = grammar_of(toks, 'audio')
  boa, eoa = (toks.vocabulary.special(name) for name in ('boa', 'eoa'))
  allowed = jax.jit(grammar.allowed)
  shortest = int(rules.needs_V[boa])
  for room in (ROOM, shortest - 1):  # after the start marker
    state, _ = grammar.read_prompts(rules, np.array([[boa]]), np.array([1]), np.array([room]))
    codes_PQ = np.random.default_rng(0).integers(0, 3, (4 if room == ROOM else 1, 3))
    for token in [*toks.encode_codes('audio', codes_PQ), eoa]:
      mask_V = np.asarray(allowed(rules, jax.tree.map(jax.numpy.asarray, state)))[0]
      assert mask_V[token]
      state = grammar.advance(rules, state, np.array([token]))
  # Greedy for long sounds: with the least room that a sound may begin in it can still end.
  state, _ = grammar.read_prompts(rules, np.array([[boa]]), np.array([1]), np.array([shortest - 1]))
  for _ in range(shortest):
    mask_V = np.asarray(allowed(rules, jax.tree.map(jax.numpy.asarray, state)))[0]
    assert mask_V.any()
    token = np.flatnonzero(mask_V & ~rules.ends_V)[:1]
    if not len(token):
      break
    state = grammar.advance(rules, state, token)
  assert np.flatnonzero(mask_V).tolist() == [eoa]


def test_other_continuous_sounds_do_not_change_the_state_of_sounds():
  toks = toks_of('delay', 2)
  rules = grammar_of(toks, 'any')
  ids = [toks.vocabulary.special(name) for name in ('boa', 'frame', 'frame', 'frame', 'eoa')]
  state, _ = grammar.read_prompts(rules, np.array([ids]), np.array([5]), np.array([ROOM]))
  assert int(state.mode_B[0]) == grammar.TEXT and int(state.count_B[0]) == 0


def test_older_tokenizers_keep_their_hash():
  """Settings that are newer than a saved tokenizer are no part of its hash."""
  fields = toks_of('flat', 2).audio.fields()
  assert 'pattern' not in fields and fields['longest'] == 4
  assert toks_of('delay', 2).audio.fields()['pattern'] == 'delay'
