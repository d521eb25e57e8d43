"""tekken.json: ids against ten lines of Python and mistral-common; roles, imports, damaged files."""

import base64
import json
import pathlib
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt_jax.interop import huggingface, tokenizer_files
from gpt_jax.tokenizers import TokenizerConfig, bpe, tekken, text
from tests import tiny_runs
from tests.tokenizers.test_tokenizers import PLAIN

LOWER, UPPER = r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]', r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]'
PATTERN = (
  rf'[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*'
  r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
SPECIALS = 30
# Tokens that no merge makes, that two splits make, and that overlap with themselves.
ODD = (
  b'qxz',
  b'aa',
  b'aaa',
  b'aaaa',
  b'ab',
  b'ba',
  b'aba',
  b'bab',
  b'abab',
  b'  ',
  b'   ',
  b'\xf0\x9f',
  b' q',
)
TEXTS = (
  'aaaaaaa',
  'abababa baba',
  ' qxz qxzq',
  'Is it? ÉTÉ été',
  'e\u0301\u00a0\u2003x',
  '1234 Ⅷ१२',
  '//\r\n\n  \t .',
)


def tokens():
  merged = [a + b for a, b in bpe.learn_merges(bpe.count_words([PLAIN]), 320)]
  return [*(bytes([byte]) for byte in range(256)), *dict.fromkeys((*merged, *ODD))]


def write(folder, **changes):
  """A tekken.json with more tokens than are used -> its ranks."""
  used = tokens()
  rows = [
    {'rank': rank, 'token_bytes': base64.b64encode(token).decode(), 'token_str': None}
    for rank, token in enumerate([*used, b'left over'])
  ]
  sizes = {'default_vocab_size': len(used) + SPECIALS, 'default_num_special_tokens': SPECIALS}
  content = {'config': {'pattern': PATTERN, 'version': 'v3'} | sizes, 'vocab': rows} | changes
  (folder / tekken.NAME).write_text(json.dumps(content))
  return {token: rank for rank, token in enumerate(used)}


def by_ranks(ranks, string):
  """The ids of a text: in each piece, join the pair of the lowest rank, the leftmost of equals."""
  regex, ids = pytest.importorskip('regex', reason='regex is not installed'), []
  for piece in regex.findall(PATTERN, string):
    parts = [bytes([byte]) for byte in piece.encode()]
    while len(parts) > 1 and piece.encode() not in ranks:
      pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
      if min(pairs) == len(ranks):
        break
      at = pairs.index(min(pairs))
      parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids += [SPECIALS + ranks[part] for part in ([piece.encode()] if piece.encode() in ranks else parts)]
  return ids


@pytest.fixture(scope='module')
def both(tmp_path_factory):
  """(our tokenizer, ranks)."""
  folder = tmp_path_factory.mktemp('tekken')
  ranks = write(folder)
  return text.build(TokenizerConfig('huggingface', str(folder))), ranks


@settings(max_examples=40, deadline=None)
@example(string='\n'.join(TEXTS))
@given(
  string=st.text(st.sampled_from('aab q\n  /ÉéIts1日😀e\u0301\u00a0')) | st.text(st.characters(codec='utf-8'))
)
def test_ids_equal_those_by_ranks(both, string):
  ours, ranks = both
  ids = ours.encode(string)
  assert ids == by_ranks(ranks, string)
  assert ours.decode(ids) == string


def test_specials_are_read_in_text_and_have_roles(both):
  ours, ranks = both
  assert ours.encode('<s>[INST]the[/INST]<SPECIAL_29></s>') == [1, 3, *by_ranks(ranks, 'the'), 4, 29, 2]
  assert ours.specials == {'bos': 1, 'eos': 2, 'pad': 11} and ours.reserved == tuple(range(20, SPECIALS))
  assert ours.size == SPECIALS + len(ranks)


@pytest.mark.slow
def test_ids_equal_those_of_mistral_common(tmp_path):
  """Of its own file of 131,072 tokens, on random texts of many kinds and on every character of two planes."""
  library = pytest.importorskip('mistral_common', reason='mistral-common is not installed')
  from mistral_common.tokens.tokenizers.tekken import Tekkenizer

  path = pathlib.Path(library.__file__).parent / 'data' / 'tekken_240911.json'
  (tmp_path / tekken.NAME).write_bytes(path.read_bytes())
  ours, theirs = text.build(TokenizerConfig('huggingface', str(tmp_path))), Tekkenizer.from_file(path)
  assert ours.size == theirs.n_words
  rng, alphabets = random.Random(0), (' \t\n\r\u00a0\u3000\x0b\x85\u2028ab1', 'aAbB', '=-_#/\n0Жé')
  strings = [''.join(rng.choices(a, k=rng.randrange(1, 300))) for a in alphabets for _ in range(100)]
  strings += [character * 200 for character in 'a =-0Ж中é'] + [PLAIN]
  characters = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000]
  strings += ['x'.join(characters[start : start + 5000]) for start in range(0, len(characters), 5000)]
  for string, ids in zip(strings, ours.encode_batch(strings), strict=True):
    assert list(ids) == theirs.encode(string, bos=False, eos=False), string[:40]


def test_a_folder_with_tekken_json_alone_is_read_and_exported(both, tmp_path):
  _, ranks = both
  write(tmp_path)
  (tmp_path / 'chat_template.json').write_text(json.dumps({'chat_template': '{{ bos_token }}{{ messages }}'}))
  ours = tokenizer_files.read(tokenizer_files.find(tmp_path), tmp_path)
  assert ours.chat_template == '{{ bos_token }}{{ messages }}' and ours.special_tokens()['bos_token'] == '<s>'
  toks = tokenizer_files.with_roles(ours, {}, {}, ours.size, tmp_path)
  assert not tokenizer_files.write(toks, tmp_path / 'out', 32)
  again = text.build(TokenizerConfig('huggingface', str(tmp_path / 'out')))
  assert again.encode(TEXTS[1]) == by_ranks(ranks, TEXTS[1]) and again.specials == ours.specials
  assert huggingface.HUB_FILES.count('*.json')  # a download has it


def test_damaged_files_fail_in_two_lines(tmp_path):
  write(tmp_path)
  good = json.loads((tmp_path / tekken.NAME).read_text())
  rows, config = good['vocab'], good['config']
  for changes, words in (
    ({'vocab': rows[1:]}, 'not those of'),
    ({'vocab': [*rows[:-3], *rows[:3]]}, 'not those of'),
    ({'vocab': [rows[0] | {'token_bytes': '?'}, *rows[1:]]}, 'is not a tokenizer of Mistral'),
    ({'vocab': [rows[0] | {'token_bytes': 'eHh4eHg='}, *rows[1:]]}, 'no token of the byte 0'),
    ({'special_tokens': [{'rank': 5, 'token_str': '<s>'}]}, 'its special tokens are not 30'),
    ({'special_tokens': [{'rank': 0}]}, "has no 'token_str'"),
    ({'config': config | {'pattern': 3}}, 'expected text'),
    ({'config': config | {'pattern': '('}}, 'not a valid tokenizer'),
  ):
    write(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
      text.build(TokenizerConfig('huggingface', str(tmp_path)))
    tiny_runs.assert_two_lines(error.value, words)
