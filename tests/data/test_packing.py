"""Packing loses no token, mixes no documents, and masks what must not be learnt."""

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data.packing import PACKING, eval_rows, eval_windows, first_fit, make_plan
from tests.data_helpers import FakeCache

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(lambda s: max(s) > 1)
LENGTHS = st.integers(1, 17)
FEW = settings(max_examples=60, deadline=None)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('packing')


def everything(rows):
  """All rows of an epoch as one batch."""
  return rows.gather(np.arange(rows.count))


def learnt(batch):
  """(input, target) pairs with mask 1, in order."""
  mask_BT = batch['loss_mask_BT'].astype(bool)
  return list(zip(batch['token_ids_BT'][mask_BT], batch['target_ids_BT'][mask_BT], strict=True))


def inside(sizes):
  """The pairs of neighbors within documents, when the tokens are 1, 2, .."""
  starts = np.cumsum([1, *sizes[:-1]])
  return [(t, t + 1) for start, n in zip(starts, sizes, strict=True) for t in range(start, start + n - 1)]


@pytest.mark.parametrize('packing', PACKING)
@pytest.mark.parametrize('mask_documents', [False, True])
def test_arrays(folder, packing, mask_documents):
  rows = PACKING[packing](FakeCache.of([30, 9, 14], folder), 8, 3, mask_documents)
  batch = rows.gather(np.arange(5) + 7)
  apart = mask_documents or packing in ('first_fit', 'document')
  assert set(batch) == {
    'token_ids_BT',
    'target_ids_BT',
    'loss_mask_BT',
    *(('segment_ids_BT', 'positions_BT') if apart else ()),
  }
  for key, value in batch.items():
    assert value.shape == (5, 8)
    assert value.dtype == (np.float32 if key == 'loss_mask_BT' else np.int32)
    assert value.flags.c_contiguous
  again = pickle.loads(pickle.dumps(rows)).gather(np.arange(5) + 7)
  assert all((batch[key] == again[key]).all() for key in batch)


@given(sizes=SIZES, length=LENGTHS)
@FEW
def test_split_scores_every_token_once(folder, sizes, length):
  cache = FakeCache.of(sizes, folder)
  rows = PACKING['split'](cache, length)
  batch = everything(rows)
  assert learnt(batch) == [(t, t + 1) for t in range(1, sum(sizes))]


@given(sizes=SIZES, length=LENGTHS)
@FEW
def test_split_by_documents_scores_pairs_inside_documents(folder, sizes, length):
  batch = everything(PACKING['split'](FakeCache.of(sizes, folder), length, 0, True))
  assert learnt(batch) == inside(sizes)
  check_segments(batch)


@given(sizes=SIZES, length=LENGTHS)
@FEW
def test_first_fit_scores_pairs_inside_documents_once(folder, sizes, length):
  rows = PACKING['first_fit'](FakeCache.of(sizes, folder), length)
  batch = everything(rows)
  assert sorted(learnt(batch)) == inside(sizes)
  check_segments(batch)
  assert np.mean(batch['segment_ids_BT'] > 0) > 0.5 or rows.count == 1 or length == 1


def check_segments(batch):
  """Segments are runs 1, 2, ..; positions restart; a segment's tokens are neighbors."""
  for tokens, segments, positions, mask in zip(
    batch['token_ids_BT'], batch['segment_ids_BT'], batch['positions_BT'], batch['loss_mask_BT'], strict=True
  ):
    real = segments > 0
    assert not (real[1:] & ~real[:-1]).any()  # padding comes last
    assert not mask[~real].any() and not tokens[~real].any() and not positions[~real].any()
    same = (segments[1:] == segments[:-1]) & real[1:]
    assert (np.diff(segments)[real[1:]] >= 0).all() and segments[0] <= 1
    assert (np.diff(positions)[same] == 1).all() and (np.diff(tokens)[same] == 1).all()
    assert (positions[1:][~same & real[1:]] == 0).all() and positions[0] == 0
    assert mask[:-1][same].all() and not mask[:-1][~same].any()


@given(sizes=SIZES, length=LENGTHS)
@FEW
def test_short_documents_stay_whole(folder, sizes, length):
  """Row tokens (inputs and the last target) give back each document that fits, in one piece."""
  cache = FakeCache.of(sizes, folder)
  start_N, size_N, row_N = make_plan(cache.offsets, sum(sizes), length)
  pieces = set(zip(start_N.tolist(), size_N.tolist(), strict=True))
  for start, size in zip(cache.offsets.tolist(), sizes, strict=True):
    assert ((start, size) in pieces) == (2 <= size <= length + 1)
  assert np.bincount(row_N, size_N).max() <= length + 1
  assert (np.bincount(row_N) > 0).all()  # no empty row


@given(sizes=st.lists(st.integers(1, 12), max_size=80))
@FEW
def test_first_fit_against_the_definition(sizes):
  room, bins = [], []
  for size in sizes:
    place = next((n for n, left in enumerate(room) if left >= size), len(room))
    if place == len(room):
      room.append(12)
    room[place] -= size
    bins.append(place)
  assert first_fit(sizes, 12) == bins


def test_the_plan_is_stored_and_rewritten_if_broken(folder, monkeypatch):
  cache = FakeCache.of([5, 9, 2, 14, 7], folder)
  first = everything(PACKING['first_fit'](cache, 6))
  path = cache.path.with_suffix('.first_fit-6.npy')
  made = path.read_bytes()
  path.write_bytes(made[:-9])
  again = everything(PACKING['first_fit'](cache, 6))
  assert path.read_bytes() == made
  assert all((first[key] == again[key]).all() for key in first)
  monkeypatch.setattr('gpt_jax.data.packing.make_plan', None)  # must not be called any more
  everything(PACKING['first_fit'](cache, 6))


def test_chunks_change_little(folder, monkeypatch):
  sizes = np.random.default_rng(0).integers(2, 60, 3000).tolist()
  cache = FakeCache.of(sizes, folder)
  whole = make_plan(cache.offsets, sum(sizes), 64)
  monkeypatch.setattr('gpt_jax.data.packing.CHUNK', 500)
  parts = make_plan(cache.offsets, sum(sizes), 64)
  assert parts[2].max() <= whole[2].max() * 1.1
  assert sorted(whole[0].tolist()) == sorted(parts[0].tolist())
  assert np.bincount(parts[2], parts[1]).max() <= 65


def test_crop_is_a_pure_function_of_seed_and_number(folder):
  cache = FakeCache.of([1000], folder)
  rows, other = PACKING['crop'](cache, 8, 1), PACKING['crop'](cache, 8, 2)
  batch = rows.gather(np.arange(20000))
  assert (batch['token_ids_BT'][77] == rows.gather(np.array([77]))['token_ids_BT'][0]).all()
  assert (batch['token_ids_BT'] != other.gather(np.arange(20000))['token_ids_BT']).any(1).mean() > 0.9
  assert (np.diff(batch['token_ids_BT']) == 1).all()
  assert (batch['target_ids_BT'] == batch['token_ids_BT'] + 1).all()
  assert batch['loss_mask_BT'].all()
  starts = batch['token_ids_BT'][:, 0] - 1
  assert (starts.min(), starts.max()) == (0, 1000 - 8 - 1)  # every window, and none beyond the end
  counts = np.bincount(starts // 31, minlength=32)  # 992 starts in 32 bins: chi-squared, 31 degrees
  assert ((counts - 625) ** 2 / 625).sum() < 62  # p = 0.001


@given(sizes=SIZES, length=LENGTHS, data=st.data())
@FEW
def test_eval_windows_score_every_token_once(folder, sizes, length, data):
  stride = data.draw(st.integers(1, length))
  batch_size = data.draw(st.sampled_from([2, 4, 6]))
  cache = FakeCache.of(sizes, folder)
  batches = list(eval_windows(cache, length, stride, batch_size))
  assert all(batch['token_ids_BT'].shape == (batch_size, length) for batch in batches)
  pairs = [pair for batch in batches for pair in learnt(batch)]
  assert pairs == [(t, t + 1) for t in range(1, sum(sizes))]
  for batch in batches:
    for tokens, mask in zip(batch['token_ids_BT'], batch['loss_mask_BT'], strict=True):
      if mask.any() and tokens[0] != 1:  # not the first window
        assert mask.argmax() >= length - stride
  for index in range(2):
    own = list(eval_windows(cache, length, stride, batch_size, process_index=index, process_count=2))
    half = slice(index * batch_size // 2, (index + 1) * batch_size // 2)
    assert len(own) == len(batches)
    for mine, whole in zip(own, batches, strict=True):
      assert all((mine[key] == whole[key][half]).all() for key in whole)


@given(sizes=SIZES, length=LENGTHS)
@FEW
def test_eval_windows_by_documents(folder, sizes, length):
  batches = eval_windows(FakeCache.of(sizes, folder), length, length, 4, mask_documents=True)
  assert [pair for batch in batches for pair in learnt(batch)] == inside(sizes)


@given(
  sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20), length=LENGTHS, start=st.sampled_from([0, 99])
)
@FEW
def test_every_packing_scores_every_token_once_after_its_document_so_far(folder, sizes, length, start):
  """The first token of a document follows the start token, also in rows that hold several documents."""
  cache = dataclasses.replace(FakeCache.of(sizes, folder), start=1000 + start)
  firsts = set((cache.offsets + 1).tolist())
  expected = [(cache.start if t in firsts else t - 1, t) for t in range(1, sum(sizes) + 1)]
  rows = [PACKING['first_fit'](cache, length)] + [
    PACKING['split'](cache, length, 0, m) for m in (False, True)
  ]
  batches = [[everything(r)] for r in rows]
  batches += [list(eval_windows(cache, length, length, 4, mask_documents=m)) for m in (False, True)]
  for some in batches:
    assert sorted((pair for batch in some for pair in learnt(batch)), key=lambda pair: pair[1]) == expected
  for batch in (batches[0][0], batches[2][0]):
    for tokens, segments, positions, mask in zip(
      *(batch[f'{x}_BT'] for x in ('token_ids', 'segment_ids', 'positions', 'loss_mask')), strict=True
    ):
      new = np.diff(segments, prepend=0) != 0
      assert (positions[new & (segments > 0)] == 0).all() and not mask[segments == 0].any()
      assert (np.diff(positions)[~new[1:] & (segments[1:] > 0)] == 1).all()
      assert new[(tokens == cache.start) & (segments > 0)].all()
  if sum(sizes) >= length:
    crop = PACKING['crop'](cache, length).gather(np.arange(200))
    assert crop['loss_mask_BT'].all() and set(learnt(crop)) <= set(expected)


def test_errors(folder):
  cache = FakeCache.of([8], folder)
  PACKING['crop'](cache, 7)
  with pytest.raises(ValueError, match=r'fake \(train\) has 8 tokens, a row needs 9\nfix: '):
    PACKING['crop'](cache, 8)
  with pytest.raises(ValueError, match=r'has 1 tokens, a row needs 2\nfix: '):
    PACKING['split'](FakeCache.of([1], folder), 8)
  with pytest.raises(ValueError, match=r'no document of two tokens or more\nfix: '):
    everything(PACKING['first_fit'](FakeCache.of([1, 1, 1], folder), 8))
  with pytest.raises(ValueError, match=r'stride=9 is not in 1 .. 8\nfix: '):
    next(eval_windows(cache, 8, 9, 4))
  with pytest.raises(ValueError, match=r'batch_size=3 is not a multiple of 2 processes\nfix: '):
    next(eval_windows(cache, 8, 8, 3, process_count=2))


def test_an_evaluation_keeps_documents_whole_and_in_order(folder):
  sizes, length = (3, 9, 4, 1, 30, 5, 2), 12
  cache = FakeCache.of(sizes, folder)
  batches = list(eval_rows(cache, length, 4, in_order=True))
  tokens, targets, segments, mask = (
    np.concatenate([batch[name] for batch in batches])
    for name in ('token_ids_BT', 'target_ids_BT', 'segment_ids_BT', 'loss_mask_BT')
  )
  ends = np.cumsum(sizes)
  inside = [n for n in range(ends[-1]) if n not in {0, *ends[:-1]}]  # the first of each has none before it
  assert targets[mask > 0].tolist() == np.asarray(cache.ids)[inside].tolist()
  assert [len(np.unique(row[row > 0])) for row in segments[:4]] == [2, 1, 1, 1]  # 3 + 9, 4, then 30 in three
  assert (tokens[1, :3] == np.asarray(cache.ids)[12:15]).all()
