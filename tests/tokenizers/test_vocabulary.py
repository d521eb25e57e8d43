"""Vocabulary: ranges, round trips, the sampling mask, JSON and the hash."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.tokenizers.vocabulary import SPECIALS, Vocabulary
from tests.data_helpers import two_lines

TEXT = Vocabulary((('text', 256), ('special', 3)), (('pad', 256), ('bos', 257), ('eos', 258)))
MULTIMODAL = Vocabulary(
  (('text', 50), ('special', 3), ('image', 9), ('audio0', 7), ('audio1', 7)),
  (('pad', 50), ('boi', 51), ('eoi', 52), ('eos', 49)),
  multiple=64,
)


@st.composite
def vocabularies(draw):
  kinds = draw(st.lists(st.sampled_from(['image', 'audio0', 'audio1', 'video']), unique=True))
  counts = [draw(st.integers(1, 40)) for _ in range(2 + len(kinds))]
  ranges = tuple(zip(['text', 'special', *kinds], counts, strict=True))
  names = draw(st.lists(st.sampled_from(SPECIALS[1:]), unique=True))
  ids = [draw(st.integers(0, counts[0] + counts[1] - 2)) for _ in names]
  pad = (('pad', counts[0] + counts[1] - 1),)
  return Vocabulary(ranges, pad + tuple(zip(names, ids, strict=True)), draw(st.sampled_from([1, 8, 128])))


@given(vocabularies())
def test_ranges_are_disjoint_and_cover_every_id(vocabulary):
  spans = [range(vocabulary.start(k), vocabulary.start(k) + vocabulary.count(k)) for k in vocabulary.kinds]
  assert [i for span in spans for i in span] == list(range(vocabulary.size))
  for kind, span in zip(vocabulary.kinds, spans, strict=True):
    assert {vocabulary.kind(i) for i in span} == {kind}
  assert vocabulary.start('text') == 0
  assert vocabulary.padded % vocabulary.multiple == 0
  assert 0 <= vocabulary.padded - vocabulary.size < vocabulary.multiple


@given(vocabularies(), st.data())
def test_decode_inverts_encode(vocabulary, data):
  kind = data.draw(st.sampled_from(vocabulary.kinds))
  code = st.integers(0, vocabulary.count(kind) - 1)
  codes = np.array(data.draw(st.lists(code, max_size=8)), np.int64)
  ids = vocabulary.encode(kind, codes)
  assert ids.dtype == np.int32
  assert all(vocabulary.kind(i) == kind for i in ids)
  np.testing.assert_array_equal(vocabulary.decode(kind, ids), codes)


def test_encode_keeps_shape_and_takes_narrow_types():
  grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
  np.testing.assert_array_equal(MULTIMODAL.encode('image', grid), grid.astype(int) + 53)
  assert MULTIMODAL.encode('image', 8) == 61
  assert MULTIMODAL.decode('image', []).shape == (0,)


@pytest.mark.parametrize('code', [-1, 9, 2**40])
def test_codes_outside_a_range_raise(code):
  with two_lines(ValueError, str(code), "'image'", '9 codes'):
    MULTIMODAL.encode('image', [0, code])


@pytest.mark.parametrize('index, says', [(52, "'special'"), (62, "'audio0'"), (76, '76'), (-3, '-3')])
def test_ids_of_another_kind_raise(index, says):
  with two_lines(ValueError, str(index), says):
    MULTIMODAL.decode('image', [53, index])


def test_ids_that_are_not_in_use_have_no_kind():
  with two_lines(ValueError, '100', '76 ids', 'padding column'):
    MULTIMODAL.kind(100)
  with two_lines(ValueError, '128'):
    MULTIMODAL.kind(128)
  with pytest.raises(ValueError, match='-1'):
    MULTIMODAL.kind(-1)


@pytest.mark.parametrize('values', [[0.5], [True], ['a']])
def test_codes_are_integers(values):
  with two_lines(ValueError, match='integers'):
    TEXT.encode('text', values)


def test_unknown_names_list_the_known_ones():
  with two_lines(ValueError, 'image', 'text', 'special'):
    TEXT.start('image')
  with two_lines(ValueError, 'boi', 'pad', 'bos', 'eos'):
    TEXT.special('boi')
  assert TEXT.special('eos') == 258


@given(vocabularies(), st.data())
def test_allowed_never_holds_padding_columns_or_pad(vocabulary, data):
  names = [name for name, _ in vocabulary.specials]
  kinds = data.draw(st.lists(st.sampled_from([*vocabulary.kinds, *names]), unique=True))
  mask_V = vocabulary.allowed(kinds)
  assert mask_V.shape == (vocabulary.padded,)
  assert not mask_V[vocabulary.size :].any()
  assert not mask_V[vocabulary.special('pad')]
  specials = dict(vocabulary.specials)
  named = set(names if 'special' in kinds else kinds) & set(names)
  for i in np.flatnonzero(mask_V):
    owners = {name for name, index in specials.items() if index == i}
    assert owners & named if owners else vocabulary.kind(int(i)) in kinds
  for name in named - {'pad'}:
    assert mask_V[specials[name]]


def test_allowed_by_hand():
  assert np.flatnonzero(MULTIMODAL.allowed(('image', 'eoi'))).tolist() == [52, *range(53, 62)]
  assert np.flatnonzero(MULTIMODAL.allowed('text')).tolist() == list(range(49))
  assert np.flatnonzero(MULTIMODAL.allowed(('text', 'eos'))).tolist() == list(range(50))
  assert np.flatnonzero(MULTIMODAL.allowed(('special',))).tolist() == [49, 51, 52]
  assert not MULTIMODAL.allowed(()).any()
  with pytest.raises(ValueError, match='video'):
    MULTIMODAL.allowed(('video',))


@given(vocabularies())
def test_json_round_trip_is_equal_and_hash_is_stable(vocabulary):
  again = Vocabulary.from_dict(json.loads(json.dumps(dataclasses.asdict(vocabulary))))
  assert again == vocabulary
  assert isinstance(again.ranges, tuple) and isinstance(again.specials[0], tuple)
  assert again.hash() == vocabulary.hash() and hash(again) == hash(vocabulary)


def test_hash_is_the_same_in_another_process_and_sees_every_field():
  code = f'from {__name__} import MULTIMODAL; print(MULTIMODAL.hash())'
  run = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    env={'PYTHONPATH': ':'.join(p for p in sys.path if p), 'PYTHONHASHSEED': '7'},
  )
  assert run.stdout.strip() == MULTIMODAL.hash()
  changes = [
    {'multiple': 128},
    {'ranges': (*MULTIMODAL.ranges[:-1], ('audio1', 8))},
    {'ranges': (*MULTIMODAL.ranges[:-1], ('audio2', 7))},
    {'specials': MULTIMODAL.specials[1:]},
    {'specials': (*MULTIMODAL.specials[:-1], ('eos', 48))},
  ]
  hashes = {dataclasses.replace(MULTIMODAL, **change).hash() for change in changes}
  assert len(hashes | {MULTIMODAL.hash()}) == len(changes) + 1


@pytest.mark.parametrize(
  'ranges, specials, multiple, says',
  [
    ((), (), 128, 'no ids'),
    ((('text', 0),), (), 128, 'no ids'),
    ((('text', 5), ('text', 5)), (), 128, 'repeat'),
    ((('image', 5), ('text', 5)), (), 128, 'text first'),
    ((('text', 5),), (), 0, 'multiple=0'),
    ((('text', 5),), (('eos', 5),), 128, 'eos=5'),
    ((('text', 5), ('image', 5)), (('eos', 7),), 128, 'eos=7'),
    ((('text', 5),), (('eos', 1), ('eos', 2)), 128, 'repeat'),
    ((('text', 5),), (('text', 1),), 128, 'name of a range'),
    ((('text', 5),), (('eos', 1), ('pad', 1)), 128, 'pad=1'),
    ((('text', 'five'),), (), 128, 'malformed'),
    ((('text',),), (), 128, 'malformed'),
  ],
)
def test_contradictory_ranges_and_specials_raise(ranges, specials, multiple, says):
  with two_lines(ValueError, says):
    Vocabulary(ranges, specials, multiple)


def test_from_dict_refuses_other_fields():
  with two_lines(ValueError, match='sizes'):
    Vocabulary.from_dict({**dataclasses.asdict(TEXT), 'sizes': 1})


def test_specials_are_sixteen_names():
  assert len(set(SPECIALS)) == len(SPECIALS) == 16
  assert SPECIALS[:8] == ('pad', 'bos', 'eos', 'null', 'boi', 'eoi', 'boa', 'eoa')


def test_kind_takes_numpy_integers():
  assert MULTIMODAL.kind(np.int32(53)) == 'image'
