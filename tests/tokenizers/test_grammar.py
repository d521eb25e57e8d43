"""Whatever is sampled under the grammar can be decoded, and stands where the layout says."""

import functools
import pickle
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax import sample
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import completions, decoding_layout, prompt_batch
from gpt_jax.tokenizers import grammar
from gpt_jax.tokenizers.layout import Layout
from gpt_jax.tokenizers.vocabulary import SPECIALS, Vocabulary
from tests import models

ROWS, COLUMNS, POSITIONS = 2, 3, 4  # an image of two codebooks, sounds of three
TEXT_IDS, BOOKS = 9, {'image': (5, 4), 'audio': (3, 2, 3)}
CONTEXT = 64


@functools.cache
def toys():
  """(vocabulary, layout) of tokenizers that are nothing but sizes."""
  codes = [(f'{name}{q}', n) for name, books in BOOKS.items() for q, n in enumerate(books)]
  specials = tuple((name, TEXT_IDS + i) for i, name in enumerate(SPECIALS))
  vocabulary = Vocabulary((('text', TEXT_IDS), ('special', len(SPECIALS)), *codes), specials, 64)
  ranges = lambda name: tuple(pair for pair in codes if pair[0].startswith(name))
  image = SimpleNamespace(
    ranges=ranges('image'), codebooks=BOOKS['image'], grid=(ROWS, COLUMNS), shape=(4, 6, 1)
  )
  audio = SimpleNamespace(
    ranges=ranges('audio'), codebooks=BOOKS['audio'], max_positions=POSITIONS, pattern='flat'
  )
  both = SimpleNamespace(vocabulary=vocabulary, image=image, audio=audio, readers={})
  return vocabulary, Layout.of(both)


@functools.cache
def rules(to):
  return grammar.build(*toys(), toys()[0].padded, to)


def special(name):
  return toys()[0].special(name)


def codes(modality, rng, n):
  """n random ids of a modality in turn of its codebooks."""
  vocabulary, _ = toys()
  kinds = [f'{modality}{q}' for q in range(len(BOOKS[modality]))]
  pick = lambda kind: vocabulary.start(kind) + int(rng.integers(vocabulary.count(kind)))
  return [pick(kinds[i % len(kinds)]) for i in range(n)]


IMAGE_CODES, AUDIO_BOOKS = ROWS * COLUMNS * len(BOOKS['image']), len(BOOKS['audio'])
PIECES = {
  'text': lambda rng: rng.integers(0, TEXT_IDS, rng.integers(1, 5)).tolist(),
  'sep': lambda rng: [special('sep')],
  'image': lambda rng: [special('boi'), *codes('image', rng, IMAGE_CODES), special('eoi')],
  'patches': lambda rng: [special('boi'), *[special('patch')] * (ROWS * COLUMNS), special('eoi')],
  'audio': lambda rng: [
    special('boa'),
    *codes('audio', rng, AUDIO_BOOKS * rng.integers(1, POSITIONS + 1)),
    special('eoa'),
  ],
  'frames': lambda rng: [
    special('boa'),
    *[special('frame')] * rng.integers(1, POSITIONS + 1),
    special('eoa'),
  ],
}
BEGUN = {
  'nothing': lambda rng: [],
  'image': lambda rng: [special('boi'), *codes('image', rng, rng.integers(0, IMAGE_CODES + 1))],
  'audio': lambda rng: [special('boa'), *codes('audio', rng, rng.integers(0, AUDIO_BOOKS * POSITIONS + 1))],
}


@st.composite
def prompts(draw):
  """Ids of whole pieces, then perhaps of an image or a sound that was begun."""
  kinds = draw(st.lists(st.sampled_from(list(PIECES)), max_size=2))
  rng = np.random.default_rng(draw(st.integers(0, 99)))
  ids = [i for kind in kinds for i in PIECES[kind](rng)]
  return ids + BEGUN[draw(st.sampled_from(list(BEGUN)))](rng) or [special('eos')]


def decoded(ids):
  """What ids hold, as [(kind, number of codes)]; fails where they hold no whole image or sound."""
  vocabulary, layout = toys()
  actual, i = [], 0
  while i < len(ids):
    if ids[i] == layout.boi:
      stop = ids.index(layout.eoi, i)
      span = ids[i + 1 : stop]
      if layout.patch in span:
        assert span == [layout.patch] * (ROWS * COLUMNS)
      else:
        kinds = [vocabulary.kind(x) for x in span]
        assert kinds == ['image0', 'image1'] * (ROWS * COLUMNS)
      actual.append(('image', stop - i - 1))
    elif ids[i] == layout.boa:
      stop = ids.index(layout.eoa, i)
      span = ids[i + 1 : stop]
      if layout.frame in span:
        assert set(span) == {layout.frame}
      else:
        assert len(span) % AUDIO_BOOKS == 0
        assert 1 <= len(span) // AUDIO_BOOKS <= POSITIONS
        kinds = [vocabulary.kind(x) for x in span]
        assert kinds == ['audio0', 'audio1', 'audio2'] * (len(span) // AUDIO_BOOKS)
      actual.append(('audio', stop - i - 1))
    else:
      assert vocabulary.kind(ids[i]) in ('text', 'special')
      assert ids[i] not in (layout.eoi, layout.eoa, layout.patch, layout.frame)
      actual.append((ids[i], 1))
      stop = i
    i = stop + 1
  return actual


@functools.cache
def model(seed):
  vocabulary, _ = toys()
  cfg = models.tiny(
    vocab=vocabulary.size,
    vocab_multiple=64,
    positions='mrope',
    head_dim=8,
    context=CONTEXT,
    layers=1,
    tied_head=False,
    patch_values=1,
    frame_values=1,
  )
  made = models.fill(cfg, seed)
  made.head_VD.set_value(made.head_VD.get_value() * 4)  # wild: some ids are far likelier
  return jax.jit(decoding_layout.for_sampling, static_argnames='dtype')(made, 'float32')


def continued(batch, to, seed, new):
  cfg = SampleConfig(max_new_tokens=new, seed=seed)
  prompts = []
  for ids in batch:
    ones = np.ones((len(ids), 1), np.float32)
    there = {name: special(name) in ids for name in ('patch', 'frame')}
    features = [ones if there['patch'] else None, ones if there['frame'] else None]
    prompts.append(prompt_batch.Prompt(ids, *features))
  state = sample.generate(model(seed % 3), prompts, cfg, rules(to))
  return [ids for ids, _ in completions.new_tokens(state, prompts, 1)]


@settings(max_examples=40, deadline=None)
@given(
  st.lists(prompts(), min_size=3, max_size=3),
  st.sampled_from(list(grammar.END_MARKERS)),
  st.integers(0, 50),
  st.integers(0, 10),
)
def test_samples_can_be_decoded(batch, to, seed, more):
  # The first prompt has all kinds of input and 40 tokens, so that all batches run the same compiled step.
  full = PIECES['patches'](None) + [special('boa'), special('frame'), special('eoa')]
  batch = [full + [0] * (40 - len(full)), *(p if len(p) <= 40 else [special('eos')] for p in batch)]
  long = max(map(len, batch))
  ids_BP = np.zeros((4, long), np.int32)
  for row, prompt in zip(ids_BP, batch, strict=True):
    row[: len(prompt)] = prompt
  lengths_B = np.array(list(map(len, batch)))
  state, _ = grammar.read_prompts(rules(to), ids_BP, lengths_B, np.zeros(4))
  least = int(grammar.min_new_tokens(rules(to), state).max())
  new = min(max(1, least + more), CONTEXT - long)
  if new < least:
    return
  stop = special(grammar.END_MARKERS[to][0])
  for prompt, ids in zip(batch, continued(batch, to, seed, new), strict=True):
    whole = prompt + ids
    assert len(ids) == new or ids[-1] == stop
    assert stop not in ids[:-1]
    pieces = decoded(whole)
    if to in ('image', 'audio'):
      assert ids[-1] == stop
      assert pieces[-1][0] == to
    layout = toys()[1]
    if to == 'text':  # what the prompt began is ended, no other image or sound is begun
      assert layout.boi not in ids
      assert layout.boa not in ids


@settings(max_examples=60, deadline=None)
@given(prompts())
def test_positions_agree_with_the_layout(prompt):
  _, layout = toys()
  ids_BP = np.array([prompt, prompt], np.int32)
  lengths_B = np.array([len(prompt), 1])
  state, positions_BP3 = grammar.read_prompts(rules('any'), ids_BP, lengths_B, np.zeros(2))
  expected_BP3 = layout.positions3(ids_BP, np.ones_like(ids_BP))
  np.testing.assert_array_equal(positions_BP3[0], expected_BP3[0])
  assert positions_BP3.dtype == np.int32
  # The next token, whatever it is: what comes after an image stands past its longer side.
  for token in (0, special('eoi'), toys()[0].start('image1')):
    after_BP = np.array([[*prompt, token]], np.int32)
    place_B3 = grammar.position3(rules('any'), State(state, 0), np.array([token]))
    if token == toys()[0].start('image1') and int(state.mode_B[0]) != grammar.IMAGE:
      continue
    np.testing.assert_array_equal(place_B3[0], layout.positions3(after_BP, np.ones_like(after_BP))[0, -1])


def State(state, row):
  """One row of a state."""
  return jax.tree.map(lambda x: x[row : row + 1], state)


@settings(max_examples=30, deadline=None)
@given(prompts(), st.sampled_from(list(grammar.END_MARKERS)))
def test_host_and_device_read_prompts_alike(prompt, to):
  """numpy on the host and jax in a compiled loop: the same states."""
  on_host, _ = grammar.read_prompts(rules(to), np.array([prompt]), np.array([len(prompt)]), np.array([7]))
  padded = np.zeros(60, np.int32)
  padded[: len(prompt)] = prompt
  in_loop = read_compiled(rules(to), padded, len(prompt))
  for name, a, b in zip(grammar.GrammarState._fields[:3], on_host, in_loop, strict=False):
    np.testing.assert_array_equal(a, b, err_msg=name)


@jax.jit
def read_compiled(rules_, ids_P, length):
  zeros_B = np.zeros(1, np.int32)
  state = grammar.GrammarState(*[jax.numpy.asarray(zeros_B)] * 4)
  step = lambda t, state: grammar.advance(rules_, state, jax.lax.dynamic_slice(ids_P, (t,), (1,)))
  return jax.lax.fori_loop(0, length, step, state)


def state_of(mode, count, room=99):
  return grammar.GrammarState(*(np.array([x], np.int32) for x in (mode, count, 0, room)))


def allowed_names(to, mode, count, room=99):
  """Names of the specials and kinds of the other ids that may follow."""
  vocabulary, _ = toys()
  mask_V = np.asarray(
    grammar.allowed(rules(to), jax.tree.map(jax.numpy.asarray, state_of(mode, count, room)))
  )[0]
  names = {index: name for name, index in vocabulary.specials}
  ids = np.flatnonzero(mask_V).tolist()
  kinds = [vocabulary.kind(i) for i in ids]
  for kind in set(kinds) - {'special'}:  # all of a kind or none
    assert kinds.count(kind) == vocabulary.count(kind)
  return {names.get(i, kind) for i, kind in zip(ids, kinds, strict=True)}


@pytest.mark.parametrize(
  ('to', 'mode', 'count', 'room', 'expected'),
  [
    ('text', grammar.TEXT, 0, 99, {'text', 'eos'}),
    ('any', grammar.TEXT, 0, 99, {'text', 'eos', 'boi', 'boa'}),
    ('any', grammar.TEXT, 0, 13, {'text', 'eos', 'boa'}),  # an image takes 14 tokens
    ('any', grammar.TEXT, 0, 4, {'text', 'eos'}),  # the shortest sound takes 5
    ('image', grammar.TEXT, 0, 99, {'boi'}),
    ('audio', grammar.TEXT, 0, 99, {'boa'}),
    ('any', grammar.IMAGE, 0, 99, {'image0'}),
    ('any', grammar.IMAGE, 7, 99, {'image1'}),
    ('any', grammar.IMAGE, 12, 99, {'eoi'}),
    ('any', grammar.AUDIO, 0, 99, {'audio0'}),
    ('any', grammar.AUDIO, 1, 99, {'audio1'}),
    ('any', grammar.AUDIO, 2, 99, {'audio2'}),
    ('any', grammar.AUDIO, 3, 99, {'audio0', 'eoa'}),
    ('any', grammar.AUDIO, 3, 3, {'eoa'}),  # no room for three codes and the end
    ('any', grammar.AUDIO, 12, 99, {'eoa'}),  # the longest sound
    ('text', grammar.TEXT, 0, 0, set()),
  ],
)
def test_allowed_ids(to, mode, count, room, expected):
  assert allowed_names(to, mode, count, room) == expected


@pytest.mark.parametrize(
  ('to', 'mode', 'count', 'least', 'most'),
  [
    ('text', grammar.TEXT, 0, 0, 0),
    ('any', grammar.TEXT, 0, 0, 0),
    ('any', grammar.IMAGE, 4, 9, 0),
    ('image', grammar.TEXT, 0, 14, 14),
    ('image', grammar.IMAGE, 0, 13, 13),
    ('image', grammar.IMAGE, 12, 1, 1),
    ('audio', grammar.TEXT, 0, 5, 14),
    ('audio', grammar.AUDIO, 0, 4, 13),
    ('audio', grammar.AUDIO, 4, 3, 9),
    ('audio', grammar.AUDIO, 12, 1, 1),
    ('audio', grammar.IMAGE, 12, 6, 15),  # the end of the image, then a sound
    ('image', grammar.AUDIO, 6, 15, 21),
  ],
)
def test_the_tokens_that_an_image_or_a_sound_takes(to, mode, count, least, most):
  state = state_of(mode, count)
  assert grammar.min_new_tokens(rules(to), state).tolist() == [least]
  assert grammar.max_new_tokens(rules(to), state).tolist() == [most]


def test_the_condition_ends_with_the_last_sep():
  sep = special('sep')
  ids_BP = np.array([[1, sep, 2, sep, 3], [1, 2, 3, 4, sep], [sep, 1, 1, 1, 1]])
  got = grammar.condition_mask(rules('any'), ids_BP, np.array([5, 4, 5]))
  assert got.astype(int).tolist() == [[1, 1, 1, 1, 0], [0] * 5, [1, 0, 0, 0, 0]]


def test_a_grammar_pickles_and_goes_through_vmap():
  made = pickle.loads(pickle.dumps(rules('any')))
  states = [state_of(mode, count) for mode, count in ((0, 0), (1, 3), (2, 3))]
  stacked = jax.tree.map(lambda *x: np.stack(x), *states)
  got = jax.vmap(grammar.allowed, (None, 0))(made, stacked)
  for row, state in zip(got, states, strict=True):
    one = grammar.allowed(rules('any'), jax.tree.map(jax.numpy.asarray, state))
    np.testing.assert_array_equal(row, one)


def test_modalities_outside_the_vocabulary_are_refused():
  vocabulary = Vocabulary(
    (('text', 5), ('special', 16)), tuple((name, 5 + i) for i, name in enumerate(SPECIALS)), 8
  )
  layout = Layout.of(SimpleNamespace(vocabulary=vocabulary, image=None, audio=None, readers={}))
  for to in ('image', 'audio'):
    with pytest.raises(ValueError, match=f'has no {to} tokens, only text\nfix: '):
      grammar.build(vocabulary, layout, 24, to)
  with pytest.raises(ValueError, match='to=video is not a modality to make\nfix: use one of text'):
    grammar.build(vocabulary, layout, 24, 'video')
  text = grammar.build(vocabulary, layout, 24, 'any')
  assert np.flatnonzero(text.table_NV[0]).tolist() == [*range(5), vocabulary.special('eos')]


def test_too_few_tokens_for_an_image_are_refused():
  with pytest.raises(ValueError, match='it takes 13 tokens\nfix: use --max_new_tokens=13 or more'):
    continued([[special('sep'), special('boi')]], 'image', 0, 12)
  [ids] = continued([[special('sep'), special('boi')]], 'image', 0, 13)
  assert decoded([special('boi'), *ids]) == [('image', 12)]
