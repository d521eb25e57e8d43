"""Batches do not depend on processes, workers or interruptions; changed data are noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data import DataConfig, Loader, Source
from gpt_jax.data.packing import PACKING
from gpt_jax.data.stages import mixture_cycle
from tests.data_helpers import byte_tokenizers, media_tokenizers

MIXTURE = {'words': Source('synthetic', documents=4, weight=3.0), 'prose': Source(weight=1.0)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('loader')


@pytest.fixture
def loader(folder):
  """Makes loaders of small batches over a shared cache, and closes them."""
  made = []

  def make(tokenizers=None, *, mixture=MIXTURE, batch_size=8, length=16, seed=5, **options):
    arguments = {k: options.pop(k) for k in ('process_index', 'process_count', 'split') if k in options}
    made.append(
      Loader(
        DataConfig(mixture, **options),
        tokenizers or byte_tokenizers(),
        batch_size=batch_size,
        length=length,
        seed=seed,
        cache_dir=folder,
        **{'split': 'train', **arguments},
      )
    )
    return made[-1]

  yield make
  for one in made:
    one.close()


def take(loader, count):
  return [next(loader) for _ in range(count)]


def assert_equal(ones, others):
  assert len(ones) == len(others)
  for one, other in zip(ones, others, strict=True):
    assert one.keys() == other.keys()
    for key in one:
      assert type(one[key]) is type(other[key]) is np.ndarray
      np.testing.assert_array_equal(one[key], other[key])


def join(parts):
  return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


@pytest.mark.parametrize('packing', PACKING)
@pytest.mark.parametrize('mixture', [MIXTURE, {'prose': Source()}], ids=['two', 'one'])
def test_processes_share_the_same_global_batches(loader, packing, mixture):
  alone = take(loader(packing=packing, mixture=mixture), 5)
  assert ('source_ids_B' in alone[0]) == (len(mixture) > 1)
  for count in (2, 4):
    shares = [
      loader(packing=packing, mixture=mixture, process_index=index, process_count=count)
      for index in range(count)
    ]
    assert_equal(alone, [join(parts) for parts in zip(*(take(s, 5) for s in shares), strict=True)])


@pytest.mark.parametrize('packing', PACKING)
@pytest.mark.parametrize('cut', [0, 1, 7])
def test_resumed_equals_uninterrupted(loader, packing, cut):
  whole = take(loader(packing=packing), 12)
  first = loader(packing=packing)
  assert_equal(whole[:cut], take(first, cut))
  state = json.loads(json.dumps(first.state()))
  assert state['next_batch'] == cut
  resumed = loader(packing=packing, prefetch=0)
  take(resumed, 3)
  assert resumed.restore(state) == []
  assert_equal(whole[cut:], take(resumed, 12 - cut))
  first.restore(state)  # and in the same loader
  assert_equal(whole[cut:], take(first, 12 - cut))


def test_identify_returns_the_rows_of_a_batch(loader):
  """In their order, by any process, whichever batch is next."""
  whole, second = loader(), loader(process_index=1, process_count=2)
  batches = take(whole, 4)
  rows = second.identify(3)
  assert rows == whole.identify(3)
  assert sum(map(len, rows.values())) == 8
  for number, name in enumerate(whole.names):
    own = whole.rows[name].gather(np.array(rows[name]))
    own_B = batches[3]['source_ids_B'] == number
    np.testing.assert_array_equal(own['token_ids_BT'], batches[3]['token_ids_BT'][own_B])
  assert_equal(take(whole, 1), take(loader(), 5)[4:])


def test_resume_on_another_number_of_processes(loader):
  whole = take(loader(), 6)
  state = {'next_batch': 4, 'fingerprint': loader(process_index=1, process_count=2).fingerprint}
  shares = [loader(process_index=index, process_count=4) for index in range(4)]
  for share in shares:
    assert share.restore(state) == []
  parts = zip(*(take(share, 2) for share in shares), strict=True)
  assert_equal(whole[4:], [join(part) for part in parts])


def test_worker_processes_give_the_same_batches(loader):
  whole = take(loader(packing='first_fit'), 7)
  worked = loader(packing='first_fit', workers=2)
  assert_equal(whole[:4], take(worked, 4))
  worked.restore(worked.state())
  assert_equal(whole[4:], take(worked, 3))


SCRIPT = """
import sys
from absl import app
sys.path.append({tests!r})
from tests.data_helpers import byte_tokenizers
from gpt_jax.data import DataConfig, Loader, Source

def main(_):
  cfg = DataConfig({{'words': Source('synthetic', documents=9)}}, workers=1)
  made = Loader(cfg, byte_tokenizers(), split='train', batch_size=4, length=8, seed=0,
                cache_dir={folder!r})
  print([int(next(made)['token_ids_BT'].sum()) > 0 for _ in range(3)])
  made.close()
  heavy = {{'tensorflow', 'torch', 'tensorflow_datasets'}} & set(sys.modules)
  assert not heavy, heavy

if __name__ == '__main__':
  app.run(main)
"""


def test_workers_start_from_a_command_line_without_touching_devices(tmp_path):
  """With a platform that does not exist, any look at JAX's devices would be an error."""
  script = tmp_path / 'launch.py'
  script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
  env = {**os.environ, 'JAX_PLATFORMS': 'nonexistent', 'PYTHONPATH': str(Path(__file__).parents[2])}
  command = [sys.executable, '-W', 'error', str(script)]
  result = subprocess.run(command, capture_output=True, text=True, env=env)
  assert result.returncode == 0, result.stderr
  assert result.stdout.strip() == '[True, True, True]'


def test_import_is_light():
  code = (
    "import sys, gpt_jax.data; heavy = 'grain jax tensorflow_datasets tensorflow torch absl'; "
    'print(set(heavy.split()) & set(sys.modules))'
  )
  env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
  assert result.stdout.strip() == 'set()', result.stderr


def test_every_row_once_an_epoch_and_each_epoch_in_another_order(loader):
  source = {'words': Source('synthetic', documents=3)}
  made = loader(mixture=source, packing='split', batch_size=1, length=64, valid_fraction=0.0)
  count = made.rows['words'].count
  assert count > 20
  epochs = [[tuple(batch['token_ids_BT'][0]) for batch in take(made, count)] for _ in range(3)]
  ids = made.caches['words'].ids
  assert sum(len(row) for row in set(epochs[0])) >= len(ids) - 1
  assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_consecutive_seeds_share_no_epoch(loader):
  """Grain's epoch e with seed s is its epoch 0 with seed s + e: ours must not be."""
  source = {'words': Source('synthetic', documents=3)}
  options = {'mixture': source, 'packing': 'split', 'batch_size': 1, 'valid_fraction': 0.0}
  one = loader(seed=5, **options)
  count = one.rows['words'].count
  second_epoch = take(one, 2 * count)[count:]
  other = take(loader(seed=6, **options), count)
  same = [(a['token_ids_BT'] == b['token_ids_BT']).all() for a, b in zip(second_epoch, other, strict=True)]
  assert np.mean(same) < 0.1


def test_mixture_has_its_proportions(loader):
  made = loader(batch_size=16, length=4)
  assert made.names == ('prose', 'words')
  sources = np.stack([batch['source_ids_B'] for batch in take(made, 25)])
  assert (sources.sum(1) == 12).all()  # 3 : 1 in every batch, not only on average


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_mixture_cycle_is_evenly_spread(weights):
  source_C, rank_C, counts = mixture_cycle(weights)
  share = np.asarray(weights) / sum(weights)
  assert np.abs(np.asarray(counts) / len(source_C) - share).max() < 1e-3
  for number, count in enumerate(counts):
    own = rank_C[source_C == number]
    assert own.tolist() == list(range(count))
    seen = np.cumsum(source_C == number)
    even = np.arange(1, len(source_C) + 1) * count / len(source_C)
    assert np.abs(seen - even).max() <= len(weights)


def test_a_mixture_cycle_is_exact_for_decimal_weights():
  assert mixture_cycle([0.7, 0.3])[2] == [7, 3]
  assert mixture_cycle([0.1, 0.2])[2] == [1, 2]
  assert mixture_cycle([1e-9, 1.0])[2] == [1, 65536]


def changes(loader, **options):
  before, after = loader(), loader(**options)
  with pytest.raises(ValueError) as caught:
    after.restore(before.state())
  cause, fix = str(caught.value).split('\n')
  assert fix.startswith('fix: ') and 'data.reset=True' in fix
  start = 'the data differ from those of the saved run: '
  assert cause.startswith(start)
  return cause.removeprefix(start).split('; ')


def test_changed_data_are_refused(loader):
  heavier = {**MIXTURE, 'words': Source('synthetic', documents=4, weight=2.0)}
  longer = {**MIXTURE, 'words': Source('synthetic', documents=5, weight=3.0)}
  assert 'seed 5 -> 6' in changes(loader, seed=6)
  assert changes(loader, batch_size=16) == ['batch_size 8 -> 16']
  assert changes(loader, mask_documents=True) == ['mask_documents false -> true']
  assert 'mixture.words.weight 3.0 -> 2.0' in changes(loader, mixture=heavier)
  assert 'mixture.words.documents 4 -> 5' in changes(loader, mixture=longer)
  assert 'mixture.prose.weight 1.0 -> "nothing"' in changes(loader, mixture={'words': MIXTURE['words']})


def test_reset_starts_changed_data_at_their_beginning(loader):
  before = loader()
  take(before, 3)
  after = loader(seed=6, reset=True)
  fresh = take(after, 4)
  assert 'seed 5 -> 6' in after.restore(before.state())
  assert_equal(fresh, take(after, 4))
  state = after.state()
  assert after.restore(state) == []  # unchanged data go on where they were, reset or not
  assert after.state()['next_batch'] == 4


def test_stages_are_refused_after_a_reset(loader):
  """They count batches, which no longer are steps."""
  staged = loader(stages='7: words=1')
  state = lambda number: {'next_batch': number, 'fingerprint': staged.fingerprint}
  assert staged.restore(state(5), 5) == staged.restore(state(6), 5) == []  # 6: after a rewind
  with pytest.raises(ValueError) as caught:
    staged.restore(state(3), 5)
  assert 'at batch 3 of data that began again (data.reset) and at step 5\nfix: ' in str(caught.value)


def test_loader_of_validation_data_leaves_out_sources_without(loader):
  mixture = {
    'words': Source('synthetic', documents=4),
    'text': Source('text', __file__, valid_path=str(Path(__file__).parents[1] / 'data_helpers.py')),
  }
  made = loader(mixture=mixture, split='valid', valid_fraction=0.0)
  assert made.names == ('text',)
  assert made.caches['text'].bytes == len((Path(__file__).parents[1] / 'data_helpers.py').read_bytes())
  with pytest.raises(ValueError, match=r'data.mixture has no valid data with data.valid_fraction=0.0\n'):
    loader(split='valid', valid_fraction=0.0)


def test_bad_batch_sizes(loader):
  with pytest.raises(ValueError, match=r'batch_size=8 cannot be shared by 3 processes\nfix: '):
    loader(process_count=3)


MEDIA = {
  'draw': Source('digits', template='{name} -> {image:image}', keep='label=3|4', weight=2.0),
  'read': Source('digits', template='{image:patches} -> {name}', keep='label=5|6'),
  'hear': Source('keypad', template='{audio:audio} -> {name}', documents=30),
  'words': Source('synthetic', documents=3),
}
WITH = dict(mixture=MEDIA, packing='first_fit', length=48, condition_dropout=0.5, prefix=True)
KEYS = {
  'token_ids_BT',
  'target_ids_BT',
  'loss_mask_BT',
  'segment_ids_BT',
  'positions_BT',
  'positions_BT3',
  'prefix_BT',
  'patches_BTA',
  'source_ids_B',
}


def test_media_batches_have_the_same_keys_and_shapes(loader):
  batches = take(loader(media_tokenizers(), batch_size=2, **WITH), 12)
  assert {frozenset(batch) for batch in batches} == {frozenset(KEYS)}
  for batch in batches:
    assert batch['patches_BTA'].shape == (2, 48, 4) and batch['positions_BT3'].shape == (2, 48, 3)
    assert batch['positions_BT3'].dtype == np.int32 and batch['prefix_BT'].dtype == bool
  joined = join(batches)
  assert joined['patches_BTA'].any() and joined['prefix_BT'].any()
  read = joined['source_ids_B'] == 2
  assert not joined['patches_BTA'][~read].any()
  words = joined['source_ids_B'] == 3
  assert not joined['prefix_BT'][words].any()


def test_media_batches_resume_and_are_shared(loader):
  whole = take(loader(media_tokenizers(), **WITH), 8)
  first = loader(media_tokenizers(), **WITH)
  take(first, 3)
  resumed = loader(media_tokenizers(), **WITH)
  assert resumed.restore(json.loads(json.dumps(first.state()))) == []
  assert_equal(whole[3:], take(resumed, 5))
  shares = [loader(media_tokenizers(), process_index=index, process_count=2, **WITH) for index in range(2)]
  assert_equal(whole, [join(p) for p in zip(*(take(s, 8) for s in shares), strict=True)])
  worked = loader(media_tokenizers(), workers=1, **WITH)
  assert_equal(whole[:4], take(worked, 4))


def test_each_epoch_drops_other_conditions(loader):
  options = {**WITH, 'mixture': {'draw': MEDIA['draw']}, 'valid_fraction': 0.0}
  made = loader(media_tokenizers(), batch_size=1, **options)
  count, null = made.rows['draw'].count, made.rows['draw'].row_fields.layout.null
  epochs = [sorted(b['token_ids_BT'].tobytes() for b in take(made, count)) for _ in range(2)]
  assert len(set(epochs[0]) & set(epochs[1])) < count / 2
  shares = [np.mean(np.frombuffer(b''.join(epoch), np.int32) == null) for epoch in epochs]
  assert 0 < min(shares) and max(shares) < 2 * min(shares)


def test_settings_of_conditions_are_part_of_the_fingerprint(loader):
  before = loader(media_tokenizers(), **WITH)
  for changed, line in (
    ({'condition_dropout': 0.1}, 'condition_dropout 0.5 -> 0.1'),
    ({'condition_dropout': 0.0}, 'condition_dropout 0.5 -> 0.0'),
    ({'prefix': False}, 'prefix true -> false'),
  ):
    with pytest.raises(ValueError) as caught:
      loader(media_tokenizers(), **{**WITH, **changed}).restore(before.state())
    assert f'saved run: {line}\n' in str(caught.value)


# ------------------------------------------------------------------------------------- branches


def rows_of(loader, name, numbers):
  """The rows of a source in these batches, in order."""
  return [row for number in numbers for row in loader.identify(number).get(name, ())]


def test_a_branch_keeps_the_position_of_every_unchanged_source(loader):
  parent = loader()
  take(parent, 3)
  state = parent.state()
  assert state['rows'] == {'words': 18, 'prose': 6}
  mixture = {'words': MIXTURE['words'], 'prose': Source(weight=2.0), 'new': Source('synthetic', documents=5)}
  branch, whole = loader(mixture=mixture, batch_size=12), loader(mixture=mixture, batch_size=12)
  lines = branch.branch(json.loads(json.dumps(state)), 7)
  assert lines == [
    'new starts at its first row',
    'prose continues after 6 rows',
    'words continues after 18 rows',
  ]
  for name, done in (('words', 18), ('prose', 6), ('new', 0)):
    order = rows_of(whole, name, range(40))  # a source's own order does not depend on the others
    own = rows_of(branch, name, range(7, 12))
    assert own and own == order[done : done + len(own)], name
  assert rows_of(parent, 'words', range(3)) == rows_of(whole, 'words', range(40))[:18]


def test_a_branch_resumes_and_branches_again(loader):
  parent = loader()
  take(parent, 3)
  changed = {'words': Source('synthetic', documents=4, weight=1.0), 'prose': Source(weight=1.0)}
  branch = loader(mixture=changed)
  branch.branch(parent.state(), 3)
  batches = take(branch, 5)
  resumed = loader(mixture=changed)
  states = [branch.state() | {'next_batch': number} for number in (3, 6)]
  for number, state in zip((3, 6), states, strict=True):
    assert resumed.restore(state) == []
    assert_equal(take(resumed, 2), batches[number - 3 :][:2])
  halves = [loader(mixture=changed, process_index=i, process_count=2) for i in range(2)]
  for half in halves:
    half.restore(states[0])
  both = [next(half)['token_ids_BT'] for half in halves]
  np.testing.assert_array_equal(np.concatenate(both), batches[0]['token_ids_BT'])
  assert_equal([branch.first()], batches[:1])
  again = loader()
  again.branch(branch.state(), 8)
  rows = {name: parent.state()['rows'][name] + 20 for name in MIXTURE}
  assert again.state()['rows'] == branch.state()['rows'] == rows
  assert loader(mixture=changed).branch(branch.state(), 8) == []  # nothing changed


@pytest.mark.parametrize(
  ('changes', 'cause'),
  [({'seed': 6}, 'seed 5 -> 6'), ({'length': 8}, 'length 16 -> 8'), ({'packing': 'split'}, 'packing')],
)
def test_a_branch_begins_changed_rows_at_the_first(loader, changes, cause):
  parent = loader()
  take(parent, 2)
  branch = loader(**changes)
  lines = branch.branch(parent.state(), 2)
  assert all(f' starts at its first row ({cause}' in line for line in lines), lines
  assert_equal(take(branch, 2), take(loader(**changes), 2))


def test_a_branch_of_one_source_keeps_its_position_over_batch_sizes(loader):
  one = {'words': Source('synthetic', documents=4)}
  parent = loader(mixture=one)
  take(parent, 3)
  branch, whole = loader(mixture=one, batch_size=6), loader(mixture=one)
  assert branch.branch(parent.state(), 9) == ['words continues after 24 rows']
  assert rows_of(branch, 'words', (9, 10)) == rows_of(whole, 'words', range(5))[24:36]


def test_a_branch_enters_the_stage_that_is_due(loader):
  parent = loader()
  take(parent, 4)
  branch = loader(stages='2: prose=1; 6: words=1')
  assert branch.branch(parent.state(), 4)
  names = [sorted(branch.identify(number)) for number in range(4, 8)]
  assert names == [['prose'], ['prose'], ['words'], ['words']]
  assert rows_of(branch, 'words', [6]) == rows_of(loader(), 'words', range(8))[24:32]
