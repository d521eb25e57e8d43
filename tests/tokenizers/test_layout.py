"""What ids say of their document, against a slow reading of one document after the other."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.tokenizers.layout import Layout

SEP, NULL, EOS, BOI, EOI, BOA, EOA, PATCH, FRAME = range(100, 109)
LAYOUT = Layout(
  sep=SEP,
  null=NULL,
  eos=EOS,
  boi=BOI,
  eoi=EOI,
  boa=BOA,
  eoa=EOA,
  patch=PATCH,
  frame=FRAME,
  image=(200, 300),
  audio=(300, 400),
  grid=(2, 3),
  image_books=2,
  audio_books=1,
  audio_positions=5,
)

PIECES = {
  'text': lambda n: list(range(1, 2 + n % 4)),
  'image': lambda n: [BOI, *(200 + (n + k) % 100 for k in range(12)), EOI],
  'patches': lambda n: [BOI, *[PATCH] * 6, EOI],
  'audio': lambda n: [BOA, *(300 + k for k in range(1 + n % 3)), EOA],
  'frames': lambda n: [BOA, *[FRAME] * (1 + n % 3), EOA],
}
pieces = st.lists(st.tuples(st.sampled_from(sorted(PIECES)), st.integers(0, 9)), max_size=3)
makable = st.lists(st.tuples(st.sampled_from(['text', 'image', 'audio']), st.integers(0, 9)), max_size=3)


def reading(condition, target):
  """One document -> (ids, is condition, carries loss, places), token by token."""
  ids, given_, loss, places = [], [], [], []
  clock = 0

  def put(token, is_condition, counts, place=None):
    nonlocal clock
    ids.append(token)
    given_.append(is_condition)
    loss.append(counts)
    places.append(place or (clock,) * 3)
    clock += place is None

  def put_piece(kind, n, is_condition, first):
    nonlocal clock
    tokens = PIECES[kind](n)
    if kind not in ('image', 'patches'):
      for i, token in enumerate(tokens):
        marker = i == 0 and kind != 'text'
        read_only = kind == 'frames' and i > 0
        put(token, is_condition, not is_condition and not (first and marker) and not read_only)
      return
    put(BOI, is_condition, not is_condition and not first)
    start, books = clock, 2 if kind == 'image' else 1
    for k, token in enumerate(tokens[1:-1]):
      place = (start, start + k // books // 3, start + k // books % 3)
      put(token, is_condition, not is_condition and kind == 'image', place)
    clock = start + 3
    put(EOI, is_condition, not is_condition and kind == 'image')

  for kind, n in condition or ():
    put_piece(kind, n, True, False)
  if condition is not None:
    put(SEP, True, False)
  for i, (kind, n) in enumerate(target):
    put_piece(kind, n, False, condition is not None and i == 0)
  put(EOS, False, True)
  return ids, given_, loss, places


documents = st.one_of(st.tuples(st.none(), pieces), st.tuples(pieces, makable))


@settings(max_examples=150, deadline=None)
@given(st.lists(documents, min_size=1, max_size=3))
def test_a_packed_row_has_the_layout_of_its_documents(row):
  read = [reading(*document) for document in row]
  columns = [sum((list(r[i]) for r in read), []) for i in range(4)]
  segments = [n for n, r in enumerate(read, 1) for _ in r[0]]
  pad = 3
  ids_BW = np.array([columns[0] + [0] * pad], np.int32)
  segments_BW = np.array([segments + [0] * pad], np.int32)
  padded = lambda values, fill: [*values, *[fill] * pad]
  assert LAYOUT.condition_mask(ids_BW, segments_BW)[0].tolist() == padded(columns[1], False)
  assert LAYOUT.target_mask(ids_BW, segments_BW)[0].tolist() == padded(columns[2], False)
  places = LAYOUT.positions3(ids_BW, segments_BW)[0].tolist()
  assert places == [list(p) for p in padded(columns[3], (0, 0, 0))]


def test_the_start_marker_of_a_mixed_target_carries_loss():
  ids_BW = np.array([[1, SEP, BOI, 200, EOI, 1, EOS, 2, SEP, 3, EOS, 0]], np.int32)
  segments_BW = np.array([[1] * 7 + [2] * 4 + [0]], np.int32)
  given_, learned = (LAYOUT.target_mask(ids_BW, segments_BW, start)[0] for start in (False, True))
  assert np.flatnonzero(given_ != learned).tolist() == [2] and learned[2]


def test_a_dropped_condition_keeps_its_length_and_its_sep():
  ids_BW = np.array([[1, 2, SEP, BOI, 200]], np.int32)
  condition_BW = LAYOUT.condition_mask(ids_BW, np.ones_like(ids_BW))
  assert LAYOUT.drop_condition(ids_BW, condition_BW).tolist() == [[NULL, NULL, SEP, BOI, 200]]


def test_text_without_these_ids_is_all_target():
  ids_BW = np.array([[5, 6, 7, 8]], np.int32)
  segments_BW = np.array([[1, 1, 2, 0]], np.int32)
  assert not Layout().condition_mask(ids_BW, segments_BW).any()
  assert Layout().target_mask(ids_BW, segments_BW).tolist() == [[True, True, True, False]]
  assert Layout().positions3(ids_BW, segments_BW)[0, :, 0].tolist() == [0, 1, 0, 0]
