"""Stages change the shares of a mixture at an exact row, and go on with the rows of each source."""

import numpy as np
import pytest

from gpt_jax.data import DataConfig, Loader, Source, stages
from tests.data_helpers import byte_tokenizers, two_lines

MIXTURE = {
  'a': Source('synthetic', documents=4),
  'b': Source(weight=3.0),
  'c': Source('stories', template='{story}'),
}
NAMES = ('a', 'b', 'c')


def schedule(written, batch_size=10, mixture=MIXTURE):
  return stages.Schedule(stages.of_mixture(written, mixture), NAMES, batch_size)


def test_counts_are_exact_to_a_row_and_no_row_is_lost_or_repeated():
  """The shares are 1:3:1, 7:1:2 from row 70 on, and all c from row 190 on."""
  made = schedule('7: a=0.7, b=0.1, c=0.2; 19: c=1')
  places = [made[place] for place in range(250)]
  for end in range(251):
    counts = np.bincount([source for source, _ in places[:end]], minlength=3)
    assert made.counts(end).tolist() == counts.tolist()
  assert made.counts(70).tolist() == [14, 42, 14]
  assert (made.counts(190) - made.counts(70)).tolist() == [84, 12, 24]
  assert (made.counts(250) - made.counts(190)).tolist() == [0, 0, 60]
  for number in range(3):
    assert [row for source, row in places if source == number] == list(range(made.counts(250)[number]))


def test_without_stages_the_order_is_that_of_the_cycle():
  source_C, rank_C, counts = stages.mixture_cycle([1.0, 3.0, 1.0])
  made = schedule('')
  for place in (0, 3, 4, 5, 1234567890123):
    cycle, at = divmod(place, len(source_C))
    assert made[place] == (source_C[at], cycle * counts[source_C[at]] + int(rank_C[at]))


def test_a_stage_of_step_0_takes_the_place_of_the_weights():
  mixture = {name: Source('synthetic', documents=4) for name in NAMES}
  made = schedule('0: a=1; 5: a=1, b=1, c=2', mixture=mixture)
  assert made.counts(50).tolist() == [50, 0, 0]
  assert made.counts(90).tolist() == [60, 10, 20]


def test_a_line_tells_the_rows_of_each_stage():
  written = '7: a=0.7, b=0.1, c=0.2; 19: c=1'
  assert stages.describe(written, MIXTURE, 10, 1019) == (
    'rows in steps 0 to 7: 14 a, 42 b, 14 c; 7 to 19: 84 a, 12 b, 24 c; 19 to 1019: 10,000 c'
  )
  assert stages.describe('', MIXTURE, 10, 1019) == ''
  origin = {'batch': 1000, 'rows': {'a': 7, 'b': 9}}
  ten_each = stages.describe('900: a=1, b=1; 1001: c=1', MIXTURE, 10, 1003, origin)
  assert ten_each == 'rows in steps 1000 to 1001: 5 a, 5 b; 1001 to 1003: 20 c'


@pytest.mark.parametrize(
  ('written', 'words'),
  [
    (' ', "has a stage ''"),
    ('7', "has a stage '7'"),
    ('7: a', "has a stage '7: a'"),
    ('7: a=x', "has a stage '7: a=x'"),
    ('-7: a=1', "has a stage '-7: a=1'"),
    ('7: a=1, a=2', "has a stage '7: a=1, a=2'"),
    ('7: d=1', "names 'd'"),
    ('7: a=0, b=1', 'a weight that is not positive'),
    ('7: a=nan', 'a weight that is not positive'),
    ('7: a=1; 7: b=1', 'has step 7 after 7'),
    ('7: a=2, b=6, c=2', 'has no effect at step 7: the shares are those from step 0 on'),
    ('7: a=1; 8: a=2', 'has no effect at step 8'),
    ('0: a=1, b=1, c=1', 'data.mixture.b.weight=3.0 has no effect'),
  ],
)
def test_stages_that_are_wrong_or_have_no_effect_are_refused(written, words):
  with two_lines(ValueError, words):
    DataConfig(MIXTURE, stages=written)


def test_stages_are_refused_where_they_cannot_be_honored():
  with two_lines(ValueError, 'has no effect on one source'):
    DataConfig({'a': Source()}, stages='7: a=1')
  with two_lines(ValueError, "stages='0: a=1' never uses b"):
    DataConfig({'a': Source(), 'b': Source()}, stages='0: a=1')
  with two_lines(ValueError, 'data.reset=True would begin'):
    DataConfig(MIXTURE, stages='7: a=1', reset=True)
  with two_lines(ValueError, 'from step 8 on, which train.steps=8 does not reach'):
    stages.check_end('7: a=1; 8: b=1', 8)
  stages.check_end('7: a=1', 8)
  with two_lines(ValueError, "stages='7: c=1' names 'c'"):  # it is only for evaluation
    DataConfig({'a': Source(), 'b': Source(), 'c': Source(weight=0.0)}, stages='7: c=1')


def test_batches_follow_the_stages_and_resume_in_any_of_them(tmp_path):
  """Stages that did not begin yet may be changed, others not; validation data have no stages."""

  def loader(written, split='train'):
    cfg = DataConfig({name: MIXTURE[name] for name in 'ab'}, stages=written, prefetch=0)
    return Loader(cfg, byte_tokenizers(), split=split, batch_size=8, length=8, seed=0, cache_dir=tmp_path)

  written = '2: a=3, b=1; 4: a=1'
  made = loader(written)
  batches = [next(made) for _ in range(6)]
  assert [int((batch['source_ids_B'] == 0).sum()) for batch in batches] == [2, 2, 6, 6, 8, 8]
  for start in (1, 3, 5):
    resumed = loader(written)
    assert resumed.restore({'next_batch': start, 'fingerprint': made.fingerprint}) == []
    for key, rows in next(resumed).items():
      np.testing.assert_array_equal(rows, batches[start][key])
  for before, after, allowed in ((written, '2: a=3, b=1; 4: b=1', 4), ('', written, 2), (written, '', 2)):
    state = lambda number, text=before: {'next_batch': number, 'fingerprint': loader(text).fingerprint}
    assert loader(after).restore(state(allowed)) == []
    with two_lines(ValueError, 'the data differ from those of the saved run: stages'):
      loader(after).restore(state(allowed + 1))
  assert loader(written, 'valid').fingerprint == loader('', 'valid').fingerprint
