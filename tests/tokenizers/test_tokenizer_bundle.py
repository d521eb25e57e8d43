"""Text, image and audio tokenizers as one: ranges of ids, modalities, groups, save and load."""

import itertools

import numpy as np
import pytest

from gpt_jax.data.synthetic import keypad
from gpt_jax.tokenizers import AudioConfig, ImageConfig, TokenizerConfig, Tokenizers, audio, image
from gpt_jax.tokenizers import text as texts
from tests.tiny_runs import assert_two_lines, snapshot

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
WAVES = [keypad.tone(number % 10, number) for number in range(12)]
TEXT = texts.build(TokenizerConfig('bytes'))
PATCHES = image.build(ImageConfig('patches', '', 4, 4, 3, patch=2, codes=6), lambda: IMAGES)
PIXELS = image.build(ImageConfig('pixels', '', 4, 4, 3, patch=1, values=5), lambda: IMAGES)
FRAMES = audio.build(AudioConfig('frames', codes=5, books=2), lambda: WAVES)
BUNDLES = {
  'text': (None, None),
  'patches': (PATCHES, None),
  'pixels': (PIXELS, None),
  'frames': (None, FRAMES),
  'patches and frames': (PATCHES, FRAMES),
  'pixels and frames': (PIXELS, FRAMES),
}


@pytest.fixture(params=BUNDLES)
def toks(request):
  return Tokenizers.build(TEXT, *BUNDLES[request.param])


def members(toks, kind):
  """The ids of a range."""
  start = toks.vocabulary.start(kind)
  return range(start, start + toks.vocabulary.count(kind))


def test_ranges_are_disjoint_and_leave_nothing_out(toks):
  kinds = [kind for kind, _ in toks.vocabulary.ranges]
  assert kinds[:2] == ['text', 'special']
  books = {name: len(made.codebooks) for name, made in toks.media.items()}
  assert kinds[2:] == [f'{name}{q}' for name in books for q in range(books[name])]
  ids = list(itertools.chain(*(members(toks, kind) for kind in kinds)))
  assert ids == list(range(toks.vocabulary.size))
  assert toks.vocabulary.padded % 128 == 0 <= toks.vocabulary.padded - toks.vocabulary.size < 128
  for name, made in toks.media.items():
    for q, size in enumerate(made.codebooks):
      assert len(members(toks, f'{name}{q}')) == size


def test_ids_of_a_bundle_round_trip(toks):
  assert toks.decode_text(toks.encode_text('né')) == 'né'
  items = {'image': lambda made: list(made.encode(IMAGES[:3])), 'audio': lambda m: m.encode(WAVES)}
  for name, made in toks.media.items():
    for codes_PQ in items[name](made):
      ids = toks.encode_codes(name, codes_PQ)
      assert ids.dtype == np.int32 and ids.shape == (codes_PQ.size,)
      Q = len(made.codebooks)
      for place, token in enumerate(ids.tolist()):  # position by position, codebook by codebook
        assert token in members(toks, f'{name}{place % Q}')
      np.testing.assert_array_equal(toks.decode_codes(name, ids), codes_PQ)


def test_modalities_of_ids(toks):
  assert toks.modalities == ('text', *toks.media)
  of_V = toks.modality_V()
  assert of_V.shape == (toks.vocabulary.padded,) and of_V.dtype == np.int32
  special = toks.vocabulary.special
  for number, name in enumerate(toks.modalities):
    own = {i for kind, _ in toks.vocabulary.ranges if kind.startswith(name) for i in members(toks, kind)}
    if name != 'text':
      own |= {special(s) for s in {'image': ('eoi', 'patch'), 'audio': ('eoa', 'frame')}[name]}
      assert set(np.flatnonzero(of_V == number)) == own
    else:
      assert own <= set(np.flatnonzero(of_V == 0))
  for name in ('boi', 'boa', 'sep', 'eos', 'null'):
    assert of_V[special(name)] == 0


def test_groups_are_the_ids_valid_in_the_same_places(toks):
  group_V, allowed_NV = toks.groups()
  size, special = toks.vocabulary.size, toks.vocabulary.special
  assert group_V.shape == (toks.vocabulary.padded,) and group_V.dtype == np.int32
  assert allowed_NV.shape == (group_V.max() + 1, toks.vocabulary.padded)
  assert not allowed_NV[:, size:].any()
  ids = np.arange(size)
  assert allowed_NV[group_V[ids], ids].all()  # each id may stand in its own place
  assert (allowed_NV[:, :size].sum(0) == 1).all()  # and in no other
  together = lambda token: set(np.flatnonzero(allowed_NV[group_V[token]]))
  for name, made in toks.media.items():
    for q in range(len(made.codebooks)):
      own = set(members(toks, f'{name}{q}'))
      extra = {special('eoa')} if (name, q) == ('audio', 0) else set()
      assert together(min(own)) == own | extra
  if 'image' in toks.media:
    assert together(special('eoi')) == {special('eoi')}
  assert special('eos') in together(ord('a')) and special('boi') in together(ord('a'))


def test_a_saved_tokenizer_loads_equal(toks, tmp_path):
  toks.save(tmp_path)
  actual = Tokenizers.load(tmp_path)
  assert actual == toks and actual.hash == toks.hash
  assert actual.vocabulary.ranges == toks.vocabulary.ranges and actual.media.keys() == toks.media.keys()
  actual.save(tmp_path / 'again')
  before = {k: v for k, v in snapshot(tmp_path).items() if not k.startswith('again')}
  assert snapshot(tmp_path / 'again') == before
  for name, made in toks.media.items():
    items = IMAGES[:4] if name == 'image' else WAVES[:4]
    for a, b in zip(actual.media[name].encode(items), made.encode(items), strict=True):
      np.testing.assert_array_equal(a, b)


def test_hashes_tell_bundles_apart():
  bundles = [Tokenizers.build(TEXT, *media) for media in BUNDLES.values()]
  other = image.build(ImageConfig('patches', '', 4, 4, 3, patch=2, codes=6), lambda: IMAGES[:20])
  bundles.append(Tokenizers.build(TEXT, other, FRAMES))  # of equal sizes, but other centroids
  assert bundles[-1].vocabulary.ranges == bundles[4].vocabulary.ranges
  assert len({made.hash for made in bundles}) == len(bundles)
  assert Tokenizers.build(TEXT, PATCHES, FRAMES).hash == bundles[4].hash


@pytest.mark.parametrize('name', ['image.json', 'image.safetensors', 'audio.json', 'audio.safetensors'])
@pytest.mark.parametrize('harm', ['altered', 'missing'])
def test_an_altered_bundle_is_refused(name, harm, tmp_path):
  Tokenizers.build(TEXT, PATCHES, FRAMES).save(tmp_path)
  path = tmp_path / name
  if harm == 'missing':
    path.unlink()
  elif name.endswith('.json'):
    path.write_text(path.read_text().replace('"hash": "', '"hash": "0'))
  else:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # a bit of the last number
    path.write_bytes(bytes(content))
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    Tokenizers.load(tmp_path)
  assert_two_lines(error.value, str(tmp_path))


def test_a_tokenizer_of_another_bundle_does_not_fit(tmp_path):
  Tokenizers.build(TEXT, PATCHES, FRAMES).save(tmp_path / 'a')
  Tokenizers.build(TEXT, PIXELS, FRAMES).save(tmp_path / 'b')
  for path in (tmp_path / 'b').glob('image*'):
    (tmp_path / 'a' / path.name).write_bytes(path.read_bytes())
  with pytest.raises(ValueError) as error:
    Tokenizers.load(tmp_path / 'a')
  assert_two_lines(error.value, 'codebooks')
  vocabulary = Tokenizers.build(TEXT, PATCHES).vocabulary
  with pytest.raises(ValueError) as error:
    Tokenizers(vocabulary, TEXT)
  assert_two_lines(error.value, 'image0')


def test_missing_modalities_are_refused():
  toks = Tokenizers.build(TEXT, PATCHES)
  for call in (
    lambda: toks.encode_codes('audio', np.zeros((2, 1), np.int32)),
    lambda: toks.decode_codes('audio', [0]),
  ):
    with pytest.raises(ValueError) as error:
      call()
    assert_two_lines(error.value, 'no audio tokens', 'text, image')
  with pytest.raises(ValueError) as error:
    Tokenizers.build(TEXT, PIXELS).decode_codes('image', members(toks, 'image0')[:4])
  assert_two_lines(error.value, '4 image ids', '3 codes')
  with pytest.raises(ValueError) as error:
    toks.decode_text([members(toks, 'image0')[0]])
  assert_two_lines(error.value)
