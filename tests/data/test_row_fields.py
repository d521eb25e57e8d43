"""Rows of documents with media and conditions: masks, places, features and dropped conditions."""

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data import DataConfig, RowFields, Source, eval_rows
from gpt_jax.data.packing import PACKING
from tests.data_helpers import media_tokenizers

FEW = settings(max_examples=50, deadline=None)
MADE = {books: media_tokenizers(books) for books in (1, 2)}
TEMPLATE = '{image:patches}{audio:frames} -> {name}'


class Documents:
  """A cache in memory of random documents that the vocabulary of MADE could hold."""

  def __init__(self, documents, folder):
    self.ids = np.concatenate(documents).astype(np.uint16)
    self.offsets = np.cumsum([0, *map(len, documents[:-1])])
    key = '-'.join(map(str, self.offsets))[:80] + f'-{hash(self.ids.tobytes()) & 0xFFFFFF}'
    self.path, self.name = folder / f'{key}.json', 'fake (train)'
    special = MADE[1].vocabulary.special
    self.features = {}
    for kind, place, width in (('patches', 'patch', 4), ('frames', 'frame', 3)):
      at = np.flatnonzero(self.ids == special(place))
      self.features[kind] = (at[:, None] + np.arange(1, width + 1) / 8).astype(np.float16), at


@st.composite
def documents(draw, books=1, with_sep=None):
  """The ids of a document, with eos."""
  made = MADE[books]
  special, vocabulary = made.vocabulary.special, made.vocabulary

  def item(kinds):
    kind = draw(st.sampled_from(kinds))
    if kind == 'text':
      return draw(st.lists(st.integers(0, 255), min_size=1, max_size=4))
    if kind == 'patches':
      return [special('boi'), *[special('patch')] * 4, special('eoi')]
    if kind == 'frames':
      return [special('boa'), *[special('frame')] * draw(st.integers(1, 5)), special('eoa')]
    positions, of = (4, made.image) if kind == 'image' else (draw(st.integers(1, 4)), made.audio)
    codes = [
      vocabulary.start(name) + draw(st.integers(0, count - 1))
      for _ in range(positions)
      for name, count in of.ranges
    ]
    begin, end = ('boi', 'eoi') if kind == 'image' else ('boa', 'eoa')
    return [special(begin), *codes, special(end)]

  def side(kinds, least):
    return [i for _ in range(draw(st.integers(least, 2))) for i in item(kinds)]

  discrete = ['text', 'image', 'audio']
  if draw(st.booleans()) if with_sep is None else with_sep:
    ids = [*side([*discrete, 'patches', 'frames'], 0), special('sep'), *side(discrete, 1)]
  else:
    ids = side([*discrete, 'patches', 'frames'], 1)
  return np.array([*ids, special('eos')])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('row_fields')


def row_fields(books=1, template=TEMPLATE, **fields):
  source = Source('digits', template=template)
  return RowFields.of(DataConfig({'x': source}, packing='first_fit', **fields), MADE[books])


def reference(ids, books):
  """mask, prefix and places of one document, token by token."""
  special = MADE[books].vocabulary.special
  sep = ids.index(special('sep')) if special('sep') in ids else -1
  span = {special(name) for name in ('patch', 'frame')}
  mask, prefix, places = [], [], []
  clock = rank = 0
  for n, index in enumerate(ids):
    started = n == sep + 1 and index in (special('boi'), special('boa')) and sep >= 0
    ends_input = n > 0 and ids[n - 1] in span
    mask.append(n > sep and not started and index not in span and not ends_input)
    prefix.append(n <= sep)
    first = MADE[books].vocabulary.start('image0')
    is_code = first <= index < first + sum(MADE[books].image.codebooks)
    if is_code or index == special('patch'):
      place = rank // (books if is_code else 1)
      places.append((clock, clock + place // 2, clock + place % 2))
      rank += 1
      continue
    if rank:
      clock, rank = clock + 2, 0  # max(rows, columns) of the 2x2 grid
    places.append((clock,) * 3)
    clock += 1
  return mask, prefix, places


@pytest.mark.parametrize('books', [1, 2])
def test_rows_against_the_reference(folder, books):
  @given(given_=st.lists(documents(books), min_size=1, max_size=8))
  @FEW
  def check(given_):
    cache = Documents(given_, folder)
    rows = PACKING['first_fit'](cache, 42, 0, False, row_fields(books, prefix=True))  # the longest is 42
    batch = rows.gather(np.arange(rows.count))
    assert batch['positions_BT3'].dtype == np.int32 and batch['prefix_BT'].dtype == bool
    actual = []
    for row in range(rows.count):
      segments = batch['segment_ids_BT'][row]
      for number in range(1, segments.max() + 1):
        own = np.flatnonzero(segments == number)
        # The last target of a row has no input of its own: put it back.
        ids = [*batch['token_ids_BT'][row, own].tolist(), int(batch['target_ids_BT'][row, own[-1]])]
        if not any(ids == one.tolist() for one in given_):
          ids = ids[:-1]
        actual.append(ids)
        mask, prefix, places = reference(ids, books)
        length = len(own)
        targets = [*mask[1:], False][:length]
        assert batch['loss_mask_BT'][row, own].tolist() == targets
        assert batch['prefix_BT'][row, own].tolist() == prefix[:length]
        assert batch['positions_BT3'][row, own].tolist() == [list(p) for p in places[:length]]
        assert batch['positions_BT'][row, own].tolist() == list(range(length))
      padding = segments == 0
      assert not batch['loss_mask_BT'][row, padding].any()
      assert not batch['prefix_BT'][row, padding].any()
      assert not batch['positions_BT3'][row, padding].any()
    assert sorted(actual) == sorted(one.tolist() for one in given_ if len(one) > 1)

  check()


@given(given_=st.lists(documents(), min_size=1, max_size=8))
@FEW
def test_features_stand_at_their_ids(folder, given_):
  cache = Documents(given_, folder)
  rows = PACKING['first_fit'](cache, 40, 0, False, row_fields())
  batch = rows.gather(np.arange(rows.count))
  layout = row_fields().layout
  for key, kind, place in (('patches_BTA', 'patches', 'patch'), ('frames_BTM', 'frames', 'frame')):
    features, _ = cache.features[kind]
    at_BT = batch['token_ids_BT'] == getattr(layout, place)
    assert batch[key].dtype == np.float32
    assert not batch[key][~at_BT].any()
    inside = batch[key][at_BT]
    # Each feature is there once, and in a row they follow each other as in the stream.
    assert sorted(inside[:, 0].tolist()) == sorted(features[:, 0].astype(np.float32).tolist())
    for row in range(rows.count):
      for number in range(1, batch['segment_ids_BT'][row].max() + 1):
        own = at_BT[row] & (batch['segment_ids_BT'][row] == number)
        assert (np.diff(batch[key][row, own, 0]) > 0).all()
        if own.any():  # the feature names its place in the stream: there stands this document
          inside = np.flatnonzero(batch['segment_ids_BT'][row] == number)
          first = int(batch[key][row, own, 0][0]) - (np.flatnonzero(own)[0] - inside[0])
          ids = batch['token_ids_BT'][row, inside]
          np.testing.assert_array_equal(cache.ids[first : first + len(ids)], ids)


@given(given_=st.lists(documents(), min_size=2, max_size=6))
@FEW
def test_packed_equals_alone(folder, given_):
  """A document's part of a packed row is the row that it makes by itself."""
  made = row_fields(prefix=True)
  rows = PACKING['first_fit'](Documents(given_, folder), 40, 0, False, made)
  batch = rows.gather(np.arange(rows.count))
  alone = {}
  for one in given_:
    if len(one) > 1:
      single = Documents([one], folder)
      single.features = {
        kind: (np.ones_like(features), at) for kind, (features, at) in single.features.items()
      }
      batch_ = PACKING['first_fit'](single, 40, 0, False, made).gather(np.arange(1))
      alone[one[0], len(one), one.tobytes()] = batch_
  for row in range(rows.count):
    for number in range(1, batch['segment_ids_BT'][row].max() + 1):
      own = np.flatnonzero(batch['segment_ids_BT'][row] == number)
      part = {key: value[row, own] for key, value in batch.items()}
      ids = part['token_ids_BT']
      [same] = {
        key
        for key in alone
        if key[1] - len(ids) in (0, 1)
        and (np.frombuffer(key[2], np.int64)[: len(ids)] == ids).all()
        and (key[1] == len(ids) or part['target_ids_BT'][-1] == np.frombuffer(key[2], np.int64)[-1])
      } or [None]
      assert same
      for key, value in part.items():
        want = alone[same][key][0, : len(own)]
        if key == 'segment_ids_BT':
          value = np.minimum(value, 1)
        if key in ('patches_BTA', 'frames_BTM'):
          value, want = value != 0, want != 0
        if key in ('target_ids_BT', 'loss_mask_BT'):  # the last target may be the next document
          value, want = value[:-1], want[:-1]
        np.testing.assert_array_equal(value, want)


# ------------------------------------------------------------------------ dropped conditions


def dropping(folder, share, seed=0, documents_=None):
  special = MADE[1].vocabulary.special
  image = [special('boi'), *[special('patch')] * 4, special('eoi')]
  given_ = documents_ or [
    np.array([*image, 65 + n % 5, special('sep'), 97, 98 + n % 7, special('eos')])
    if n % 5
    else np.array([1, 2, 3, special('eos')])
    for n in range(400)
  ]
  cache = Documents(given_, folder)
  return PACKING['first_fit'](cache, 40, seed, False, row_fields(prefix=True, condition_dropout=share))


def test_dropped_conditions_are_null_and_nothing_else_changes(folder):
  whole, some = dropping(folder, 0.0), dropping(folder, 0.5)
  one, other = (rows.gather(np.arange(rows.count)) for rows in (whole, some))
  null, sep = whole.row_fields.layout.null, whole.row_fields.layout.sep
  changed = one['token_ids_BT'] != other['token_ids_BT']
  assert changed.any()
  assert (other['token_ids_BT'][changed] == null).all()
  assert (one['prefix_BT'][changed]).all()
  assert (other['token_ids_BT'] == sep).sum() == (one['token_ids_BT'] == sep).sum()
  for key in ('segment_ids_BT', 'positions_BT', 'positions_BT3', 'loss_mask_BT', 'prefix_BT'):
    np.testing.assert_array_equal(one[key], other[key])
  scored = one['loss_mask_BT'] > 0
  np.testing.assert_array_equal(one['target_ids_BT'][scored], other['target_ids_BT'][scored])
  assert not other['patches_BTA'][changed].any()
  kept = (one['token_ids_BT'] == whole.row_fields.layout.patch) & ~changed
  np.testing.assert_array_equal(one['patches_BTA'][kept], other['patches_BTA'][kept])
  assert kept.any() and (changed & (one['token_ids_BT'] == whole.row_fields.layout.patch)).any()
  # All of a condition or nothing of it.
  for row in range(whole.count):
    for number in range(1, one['segment_ids_BT'][row].max() + 1):
      own = (one['segment_ids_BT'][row] == number) & one['prefix_BT'][row]
      own &= one['token_ids_BT'][row] != sep
      assert changed[row, own].all() or not changed[row, own].any()


def nulls(rows, index_B):
  """How many conditions of the rows are dropped, and how many there are."""
  batch = rows.gather(index_B)
  layout = rows.row_fields.layout
  before = (batch['token_ids_BT'] == layout.sep)[:, 1:]
  return int((before & (batch['token_ids_BT'][:, :-1] == layout.null)).sum()), int(before.sum())


@pytest.mark.parametrize('share', [0.1, 0.5])
def test_the_share_of_dropped_conditions(folder, share):
  rows = dropping(folder, share)
  dropped, conditions = nulls(rows, np.arange(rows.count * 30))
  assert conditions == 320 * 30
  assert abs(dropped / conditions - share) < 4 * (share * (1 - share) / conditions) ** 0.5


def test_dropping_is_a_function_of_seed_row_and_document(folder):
  rows, other = dropping(folder, 0.5), dropping(folder, 0.5, seed=1)
  index = np.arange(rows.count)
  one = rows.gather(index)['token_ids_BT']
  np.testing.assert_array_equal(one[::-1], rows.gather(index[::-1])['token_ids_BT'])
  np.testing.assert_array_equal(one[7], rows.gather(np.array([7]))['token_ids_BT'][0])
  again = pickle.loads(pickle.dumps(rows)).gather(index)['token_ids_BT']
  np.testing.assert_array_equal(one, again)
  for different in (other.gather(index), rows.gather(index + rows.count)):
    changed = (different['token_ids_BT'] != one).any(1)
    assert changed.mean() > 0.5


def test_evaluation_drops_no_condition_and_scores_each_document_once(folder):
  rows = dropping(folder, 0.5)
  plan = PACKING['first_fit'](rows.cache, 40, 0, False, dataclasses.replace(rows.row_fields, dropout=0.0))
  whole = plan.gather(np.arange(plan.count))
  batches = list(eval_rows(rows.cache, 40, 6, row_fields=rows.row_fields))
  assert all(batch.keys() == whole.keys() for batch in batches)
  joined = {key: np.concatenate([batch[key] for batch in batches]) for key in whole}
  assert len(joined['token_ids_BT']) == -(-plan.count // 6) * 6 > plan.count
  for key in whole:
    np.testing.assert_array_equal(joined[key][: plan.count], whole[key])
  assert not joined['loss_mask_BT'][plan.count :].any()
  for index in range(2):
    own = list(eval_rows(rows.cache, 40, 6, row_fields=rows.row_fields, process_index=index, process_count=2))
    half = slice(index * 3, index * 3 + 3)
    for mine, all_ in zip(own, batches, strict=True):
      assert all((mine[key] == all_[key][half]).all() for key in all_)
  with pytest.raises(ValueError, match=r'batch_size=5 is not a multiple of 2 processes\nfix: '):
    next(eval_rows(rows.cache, 40, 5, row_fields=rows.row_fields, process_count=2))


def test_documents_that_would_be_cut_are_refused(folder):
  special = MADE[1].vocabulary.special
  short = np.array([65, special('sep'), 66, special('eos')])
  long = np.array([*range(1, 50), special('sep'), 66, special('eos')])
  text = np.array([*range(1, 90), special('eos')])
  picture = np.array([*range(1, 39), special('boi'), *range(300, 304), special('eoi')])
  rows = dropping(folder, 0.1, documents_=[short, long, text, picture, short])
  for made in (lambda: rows.count, lambda: next(eval_rows(rows.cache, 40, 2, row_fields=rows.row_fields))):
    with pytest.raises(ValueError) as error:
      made()
    cause, fix = str(error.value).split('\n')
    assert cause == (
      'data.mixture.fake (train) has 2 of 5 documents with media or a condition that are longer '
      'than the 41 tokens of a row, the longest 52'
    )
    assert fix.startswith('fix: raise train.length (model.context) to 51')
  assert dropping(folder, 0.1, documents_=[short, text]).count == 3  # text may be cut


# ------------------------------------------------------------------------------------ fields


def test_text_alone_adds_no_fields():
  cfg = DataConfig(packing='first_fit')
  assert RowFields.of(cfg, media_tokenizers(image=False)) == RowFields()
  assert RowFields.of(cfg, MADE[1]).layout.has_images  # text for a model of images has places too
  assert RowFields.of(cfg, MADE[1]).features == ()


@pytest.mark.parametrize(
  ('template', 'predict_start'),
  [
    ('{name} -> {x:image}', False),
    ('{name} -> {x:audio}', False),
    ('{x:image} -> {name}', False),
    ('{x:image} {name}', False),
    ('{p:parts}', False),
    ('{name} -> {x:image}{name}', True),
    ('{name} -> {name}{x:image}', True),
    ('{name} -> {p:parts}', True),
  ],
)
def test_start_markers_carry_loss_for_targets_of_several_kinds(template, predict_start):
  assert row_fields().of_template(template).predict_start == predict_start
  assert not RowFields().of_template(template).predict_start


def test_row_fields_of_a_config():
  assert row_fields().features == (('patches', 4), ('frames', 3))
  assert row_fields(template='{audio:frames} -> {image:image}').features == (('frames', 3),)
  made = row_fields(template='{label} -> {name}', prefix=True, condition_dropout=0.25)
  assert (made.mask, made.dropout, made.features) == ('condition', 0.25, ())
  assert pickle.loads(pickle.dumps(made)) == made
  tokenizers = media_tokenizers(image=False, audio=False)
  with pytest.raises(ValueError, match=r'a template asks for frames, but .*\nfix: '):
    source = Source('digits', template='{audio:frames} -> {name}')
    RowFields.of(DataConfig({'x': source}, packing='first_fit'), tokenizers)
  bare = type(tokenizers).build(tokenizers.text, specials=('pad', 'eos', 'sep'))
  source = Source('digits', template='{label} -> {name}')
  cfg = DataConfig({'x': source}, packing='first_fit', condition_dropout=0.1)
  with pytest.raises(ValueError, match=r'data.condition_dropout=0.1, but .* no null\nfix: '):
    RowFields.of(cfg, bare)
