"""Blocked words never appear, however a tokenizer splits them. The words are made up."""

import functools
import itertools
import random
import string

import jax
import numpy as np
import pytest

from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import block, completions, decoding_layout, patterns
from gpt_jax.sampling.patterns import DEAD, START, Pattern
from gpt_jax.tokenizers import Tokenizers, block_table, bpe, subword, text
from tests import models

WORDS = ('zork', '/o[kz]é?/i', 'rk zo')
CORPUS = 'zork zor ork rk zo zorky a zork. bazork zorkéz zo-rk ZORK ké ok '
ALPHABET = 'zorkZORK éÉa-bcxyntoſK\n.'
PARTS = ('zork', 'Zork', 'abbc', 'nonot', 'z{}', 'a b', 'éa')
EXAMPLES = (
  Pattern(r'(?<!\w)zork(?!\w)', True),
  Pattern(r'ab{2,3}[c-e]|x.y'),
  Pattern(r'\bé\w+\b', True),
  Pattern(r'k\B.', True),
  Pattern(r'(?:no)+t|[^a-z\s]{3}', True),
  Pattern(r'z{}|\x61\sb|o??r{,2}\.', False),
)


@functools.cache
def tokenizers(kind):
  if kind == 'bytes':
    return Tokenizers.build(text.ByteTokenizer())
  if kind == 'chars':
    return Tokenizers.build(text.CharTokenizer(''.join(sorted({*CORPUS, *'.-\n'}))))
  if kind == 'bpe':
    model = bpe.train(lambda: [CORPUS * 5, 'zork zork'], 290)
    return Tokenizers.build(subword.LibraryTokenizer('bpe', model, {}, 'test'))
  return Tokenizers.build(subword.LibraryTokenizer('huggingface', fallback_json(), {'eos': 1}, 'test', True))


def fallback_json():
  """A tokenizer.json as Gemma's: spaces as U+2581, unknown characters as bytes; pieces that split words."""
  pieces = ['<unk>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256)), *'▁zorkéaZORK.-']
  pieces += ['zo', 'rk', 'zork', '▁zo', 'ork', '▁zork', 'k▁', 'rk▁zo', 'or', 'ky', '▁▁']
  return {
    'version': '1.0',
    'added_tokens': [],
    'normalizer': {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'},
    'pre_tokenizer': None,
    'decoder': {
      'type': 'Sequence',
      'decoders': [
        {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '},
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
        {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
      ],
    },
    'model': {
      'type': 'BPE',
      'vocab': {piece: n for n, piece in enumerate(dict.fromkeys(pieces))},
      'merges': [],
      'unk_token': '<unk>',
      'byte_fallback': True,
    },
  }


@functools.cache
def model(kind):
  """A model that likes every token about as much."""
  trained = models.fill(models.tiny(vocab=tokenizers(kind).vocabulary.size, context=32))
  return jax.jit(decoding_layout.for_sampling, static_argnames='dtype')(trained, 'float32')


def run_bytes(table, state, content):
  for byte in content:
    state = int(table[state, byte])
  return state


# ---------------------------------------------------------------------------------------- automaton


@pytest.mark.parametrize('chosen', [*((p,) for p in EXAMPLES), EXAMPLES], ids=lambda c: c[-1].source)
def test_the_automaton_equals_re(chosen):
  rng = random.Random(0)
  automaton, search = block.automaton(chosen), block.search(chosen)
  next_SY, ends_S = block.to_bytes(automaton)
  outcomes = set()
  for _ in range(1500):
    line = ''.join(rng.choices([*ALPHABET, *PARTS], k=rng.randint(0, 14)))
    by_character = START
    for character in line:
      by_character = int(automaton.next_SK[by_character, automaton.class_U[ord(character)]])
    expected = search(line)
    assert (by_character == DEAD or not automaton.ends_S[by_character]) == expected, line
    by_byte = run_bytes(next_SY, START, line.encode())
    assert by_byte == by_character
    assert bool(ends_S[by_byte]) != expected
    outcomes.add(expected)
  assert outcomes == {False, True}


def test_only_utf8_is_read():
  next_SY, ends_S = block.to_bytes(block.automaton((Pattern('zork'),)))
  rng = np.random.default_rng(0)
  for _ in range(4000):
    content = bytes(rng.choice([0x41, 0xC1, 0xC3, 0xE0, 0xED, 0xF0, 0xF4, 0x80, 0x90, 0xA0, 0xBF], 4))
    try:
      content.decode()
      is_text = True
    except UnicodeDecodeError:
      is_text = False
    assert bool(ends_S[run_bytes(next_SY, START, content)]) == is_text, content
  for code in (0, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF):
    assert ends_S[run_bytes(next_SY, START, chr(code).encode())]


def test_a_long_list_stays_small():
  rng = random.Random(1)
  words = tuple({''.join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 9))) for _ in range(150)})
  grammar = completions.build_grammar(tokenizers('bpe'), 320, blocked=words)
  letters = sum(map(len, words))
  assert len(grammar.block.next_SY) < 1.5 * letters + 1000
  assert grammar.block.allowed_NW.nbytes < 250 * letters


# ----------------------------------------------------------------------------------------- sampling


def decode(kind, prompt, ids):
  return tokenizers(kind).decode_text([*prompt, *ids])


SLOW = [
  pytest.param(kind, sampling, marks=pytest.mark.slow)
  for kind in ('bytes', 'bpe', 'chars')
  for sampling in (dict(temperature=0.0), dict(temperature=100.0), dict(beams=4))
]


@pytest.mark.parametrize(
  ('kind', 'sampling'),
  [
    ('bytes', dict(temperature=1.0)),
    ('bpe', dict(temperature=1.0)),
    ('fallback', dict(temperature=1.0)),
    ('fallback', dict(beams=4)),
    *SLOW,
  ],
)
def test_blocked_texts_are_never_sampled(kind, sampling):
  toks, rows = tokenizers(kind), 4 if 'beams' in sampling or not sampling['temperature'] else 32
  n = {} if rows == 4 and 'beams' not in sampling else {'num_samples': rows}
  cfg = SampleConfig(max_new_tokens=20, seed=3, **n, **sampling)
  search = block.search(block.read_patterns(WORDS))
  prompts = [toks.encode_text(prompt) for prompt in ('a zo', 'zor', 'a')]
  free, safe = (
    completions.generate_ids(model(kind), toks, prompts, c, ends=())
    for c in (cfg, SampleConfig(**{**cfg.__dict__, 'block': WORDS}))
  )
  found = [search(decode(kind, p, ids)) for p, group in zip(prompts, free, strict=True) for ids, _ in group]
  texts = [decode(kind, p, ids) for p, group in zip(prompts, safe, strict=True) for ids, _ in group]
  assert not any(map(search, texts)), [t for t in texts if search(t)]
  assert not any('\ufffd' in t for t in texts)
  if sampling.get('temperature') == 1.0 and kind == 'fallback':
    assert any(found)  # the words are there without a list


def test_a_list_that_matches_nothing_changes_no_valid_text():
  """Characters are all valid, so that the mask is the grammar's: bitwise the same ids and scores."""
  toks, cfg = tokenizers('chars'), dict(max_new_tokens=12, num_samples=8)
  prompts = [toks.encode_text('a zo')]
  [free] = completions.generate_ids(model('chars'), toks, prompts, SampleConfig(**cfg))
  [same] = completions.generate_ids(model('chars'), toks, prompts, SampleConfig(**cfg, block=('/q{9}/',)))
  assert free == same


def test_without_a_list_the_program_is_the_same():
  plain = completions.build_grammar(tokenizers('chars'), 64)
  assert plain.block is None
  own = [rule for rule in plain if rule is not None]  # no array of a list reaches the sampler
  assert len(jax.tree.leaves(plain)) == len(own)


def test_a_stream_shows_what_stays():
  toks, search = tokenizers('fallback'), block.search(block.read_patterns(('/zork/', 'rk zo')))
  for seed in range(3):
    cfg = SampleConfig(max_new_tokens=24, seed=seed, block=('/zork/', 'rk zo'))
    prompt = toks.encode_text('a zo')
    shown = ''
    for piece in completions.stream_text(model('fallback'), toks, prompt, cfg):
      shown += piece
      assert 'zork' not in 'a zo' + shown
    [[(whole, _)]] = completions.complete(model('fallback'), toks, [prompt], cfg)
    assert shown == whole
    assert not search('a zo' + shown)


def test_words_of_the_prompt_do_not_count():
  """What the user wrote may stand; what goes on from it may not complete another match."""
  grammar = completions.build_grammar(tokenizers('bytes'), 320, blocked=('zork', '/rkx/'))

  def after(prompt, new):
    ids = np.frombuffer(prompt.encode(), np.uint8).astype(np.int32)[None]
    state = block_table.read_prompts(grammar.block, ids, [len(prompt)])
    allowed_V = np.asarray(
      block_table.allowed(grammar.block, jax.numpy.asarray(state), jax.numpy.array([9]), 320)
    )
    return bool(allowed_V[0, ord(new)])

  assert after('I met zork', ' ')
  assert after('I met zork zor', 'm')
  assert not after('I met zork', 'x')  # rkx
  grammar = completions.build_grammar(tokenizers('bytes'), 320, blocked=(r'/zork\b/',))
  assert after('I met zork', ' ')


def test_token_bytes_are_those_of_decoding():
  rng = np.random.default_rng(0)
  for kind in ('bytes', 'chars', 'bpe', 'fallback'):
    tokenizer = tokenizers(kind).text
    pieces = tokenizer.token_bytes()
    for _ in range(200):
      ids = rng.integers(2, tokenizer.size, 6).tolist()
      try:
        expected = b''.join(pieces[i] for i in ids).decode()
      except UnicodeDecodeError:
        continue
      assert tokenizer.decode(ids) in (expected, expected.removeprefix(' '))


@pytest.mark.parametrize('words', [('zork',), ('/o[kz]é?/i', 'a zo'), ('/zo+rk/i', 'éa', '/k\\B./')], ids=str)
def test_no_split_into_tokens_gets_through(words):
  """100,000 random tokens of a vocabulary with each part of the words, within characters, too."""
  spelled = [text.encode() for text in (' zork', 'ZORK ', 'okéa zoork', 'é')]
  parts = {part[i:j] for part in spelled for i in range(len(part)) for j in range(i + 1, len(part) + 1)}
  pieces, V = [*sorted(parts), None], len(parts) + 1  # the last ends a text
  ends_V, text_V = np.arange(V) == V - 1, np.ones(V, bool)
  blocked = block.read_patterns(words)
  table, search = block.build_table(block.automaton(blocked), pieces, text_V, ends_V), block.search(blocked)
  next_SY = np.asarray(table.next_SY)
  after_SV = np.stack([run_bytes_of_all(next_SY, piece or b'') for piece in pieces], 1)
  rng, B, T = np.random.default_rng(0), 1000, 100
  for is_blocked in (False, True):
    state_B, lines = np.full(B, START), [b''] * B
    for t in range(T):
      allowed_BV = np.ones((B, V), bool)
      if is_blocked:
        allowed_BV = np.asarray(block_table.allowed(table, jax.numpy.asarray(state_B), np.full(B, T - t), V))
      token_B = np.where(allowed_BV & ~ends_V, rng.random((B, V)), -1).argmax(1)
      state_B = after_SV[state_B, token_B]
      lines = [line + pieces[token] for line, token in zip(lines, token_B, strict=True)]
    texts = [line.decode(errors='replace') for line in lines]
    assert any(map(search, texts)) != is_blocked
    assert any('\ufffd' in text for text in texts) != is_blocked


def run_bytes_of_all(next_SY, content):
  states_S = np.arange(len(next_SY))
  for byte in content:
    states_S = next_SY[states_S, byte]
  return states_S


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['bytes', 'chars', 'bpe', 'fallback'])
def test_blocked_texts_are_never_sampled_in_many_tokens(kind):
  """25,000 tokens of each tokenizer, 100,000 in all, from nearly greedy to the highest temperature."""
  toks, search = tokenizers(kind), block.search(block.read_patterns(WORDS))
  count, temperatures = 0, itertools.cycle((0.1, 1.0, 3.0, 1e6))
  for seed in itertools.count():
    cfg = SampleConfig(
      max_new_tokens=25, num_samples=250, seed=seed, temperature=next(temperatures), block=WORDS
    )
    [group] = completions.generate_ids(model(kind), toks, [toks.encode_text('a zo')], cfg)
    for ids, _ in group:
      assert not search(decode(kind, toks.encode_text('a zo'), ids))
      count += len(ids)
    if count >= 25_000 and seed >= 3:
      break


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
  ('entry', 'cause'),
  [
    ('/(?=x)a/', 'a lookaround'),
    (r'/(a)\1/', 'a backreference'),
    ('/^a/', 'an anchor'),
    ('/a*/', 'matches without a character'),
    (r'/\b/', 'matches without a character'),
    ('/a++/', 'a possessive match'),
    ('/(?P<n>a)/', 'a named group'),
    ('/[a/', 'not a regular expression'),
    ('/a.{18}b|c.{18}d/', 'states'),
    ('@nowhere.txt', 'cannot be read'),
    (r'/[\s\S]/', 'leaves no text'),
    (' ', 'has no word'),
  ],
)
def test_unsupported_lists_are_refused(entry, cause, monkeypatch):
  monkeypatch.setattr(patterns, 'MOST_STATES', 500)
  with pytest.raises(ValueError, match=cause) as error:
    completions.build_grammar(tokenizers('chars'), 64, blocked=(entry,))
  assert str(error.value).count('\nfix: ') == 1


def test_a_file_of_words(tmp_path):
  path = tmp_path / 'list.txt'
  path.write_text('zork\n\n two  words \n/x+y/i\n')
  search = block.search(block.read_patterns((f'@{path}',)))
  assert search('A ZORK.') and search('two \nWords') and search('aXXY')
  assert not search('zorky bazork')


def test_a_stop_string_within_a_word_is_refused():
  with pytest.raises(ValueError, match="--stop='END'"):
    completions.check_stop(['END'], ('zork',))
  completions.check_stop(['\nUser:'], ('zork',))
  completions.check_stop(['END'], ('/zork/',))


def test_decoders_that_rewrite_text_are_refused():
  with pytest.raises(ValueError, match='WordPiece'):
    subword.piece_decoder({'type': 'WordPiece'})
