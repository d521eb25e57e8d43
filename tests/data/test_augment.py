"""Changed copies: who gets them, how they differ, and that nothing but training sees them."""

import numpy as np
import pytest

from gpt_jax import data
from gpt_jax.data import augment, media_io
from gpt_jax.data.cache import token_cache
from gpt_jax.data.sources import Source
from gpt_jax.data.templates import Piece
from tests import data_helpers, tiny_runs

RATE = 8000


def tone(frequency, seconds=0.5):
  return np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE).astype(np.float32) / 2


def loudest(wave):
  """The frequency with the most energy."""
  return np.argmax(np.abs(np.fft.rfft(wave))) * RATE / len(wave)


def changed(value, modality, text, seed=0):
  return augment.change(value, modality, text, np.random.default_rng(seed), RATE)


def test_a_faster_sound_is_shorter_and_higher_by_the_same_factor():
  for seed in range(8):
    made = changed(tone(500), 'audio', 'speed=0.25', seed)
    factor = 0.5 * RATE / len(made)
    assert 0.79 < factor < 1.26
    assert loudest(made) == pytest.approx(500 * factor, rel=0.02)
  assert len({len(changed(tone(500), 'audio', 'speed=0.25', s)) for s in range(8)}) > 4


def test_an_equalizer_changes_levels_and_no_frequencies():
  both = tone(300) + tone(3000)
  made = changed(both / 2, 'audio', 'equalize=9')
  levels = np.abs(np.fft.rfft(made))[[150, 1500]]
  assert loudest(made) in (300, 3000) and not 0.9 < levels[0] / levels[1] < 1.1
  assert np.abs(made).max() == pytest.approx(np.abs(both / 2).max(), rel=1e-5)


def test_noise_and_masks_are_within_their_strength():
  wave = tone(400)
  added = changed(wave, 'audio', 'noise=0.1', 3) - wave
  assert 0 < added.std() < 0.05
  silent = [(changed(wave, 'audio', 'mask=0.05', s) == 0) & (wave != 0) for s in range(6)]
  assert 0 < max(s.sum() for s in silent) <= 0.05 * RATE


def test_an_image_is_moved_turned_and_zoomed():
  image = np.zeros((15, 15, 1), np.uint8)
  image[7, 7] = 255
  moved = [changed(image, 'image', 'shift=3', s) for s in range(20)]
  places = np.array([np.unravel_index(m[..., 0].argmax(), (15, 15)) for m in moved])
  assert np.abs(places - 7).max() == 3 and (places != 7).any(0).all()
  line = np.zeros((15, 15, 1), np.uint8)
  line[7] = 255
  assert changed(line, 'image', 'rotate=40', 1)[7, 0, 0] < 255
  size = [
    (
      changed(np.pad(np.full((5, 5, 1), 255, np.uint8), ((5, 5), (5, 5), (0, 0))), 'image', 'scale=0.4', s)
      > 127
    ).sum()
    for s in range(8)
  ]
  assert min(size) < 25 < max(size)


def test_copies_depend_on_the_record_and_the_copy_alone():
  source = Source('keypad', template='{audio:audio}', copies=3, augment='speed=0.2,noise=0.05')
  pieces = [Piece('text', 'five'), Piece('audio', tone(500))]
  first, again = (list(augment.copies(source, 7, pieces, {'audio': (RATE, 60.0)})) for _ in range(2))
  assert [[p.kind for p in copy] for copy in first] == [['text', 'audio']] * 3
  assert {copy[0].value for copy in first} == {'five'}
  for a, b in zip(first, again, strict=True):
    np.testing.assert_array_equal(a[1].value, b[1].value)
  other = next(augment.copies(source, 8, pieces, {'audio': (RATE, 60.0)}))[1].value
  waves = [copy[1].value for copy in first] + [other]
  assert len({wave.tobytes() for wave in waves}) == 4
  short = next(augment.copies(source, 7, pieces, {'audio': (RATE, 0.1)}))[1].value
  assert len(short) == 0.1 * RATE


def test_only_training_has_copies(tmp_path):
  cfg = lambda **fields: data.DataConfig(
    {'digits': Source('digits', template='{image:image} -> {name}', **fields)}, packing='first_fit'
  )
  plain, copied = cfg(), cfg(copies=2, augment='shift=1')
  tokenizers = data_helpers.media_tokenizers()
  count = lambda cfg, split: len(token_cache(cfg, 'digits', tokenizers, split, tmp_path).offsets)
  assert count(copied, 'train') == 3 * count(plain, 'train')
  assert count(copied, 'valid') == count(plain, 'valid')
  keys = lambda cfg, split: token_cache(cfg, 'digits', tokenizers, split, tmp_path).path
  assert keys(copied, 'valid') == keys(plain, 'valid') != keys(copied, 'train')
  images = data.load_images(copied, (8, 8, 1))
  assert len(images) == 3 * len(data.load_images(plain, (8, 8, 1)))
  assert not np.array_equal(images[0], images[1])


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'copies': 2}, 'give both'),
    ({'augment': 'shift=1'}, 'give both'),
    ({'copies': 1, 'augment': 'speed=0.1'}, 'changes audio'),
    ({'copies': 1, 'augment': 'shift'}, "'shift' is not a change"),
    ({'copies': 1, 'augment': 'zoom=1'}, 'use some of'),
    ({'copies': -1, 'augment': 'shift=1'}, 'negative'),
  ],
)
def test_impossible_augmentations_are_refused(fields, words):
  with pytest.raises(ValueError, match=words) as error:
    Source('digits', template='{image:image}', **fields)
  assert '\nfix: ' in str(error.value)


def source(changes):
  """A source of pictures with one copy of each."""
  return Source('jsonl', 'x', template='{x:image}', copies=1, augment=changes)


def test_a_picture_that_was_cut_is_not_cut_again():
  """An encoder's form: the shorter side to 20 pixels, then the center of 15 x 15."""
  form = (15, 15, 3, 3, 20, 0)
  picture, _ = media_io.read_image(np.random.default_rng(0).integers(0, 256, (40, 23, 3), np.uint8), form)
  [copy] = augment.copies(source('shift=1'), 0, [Piece('image', picture)], {'image': form})
  again, note = media_io.read_image(copy[0].value, form)
  assert again is copy[0].value and not note and (again != picture).any()


def test_tiles_are_not_changed_as_one_picture():
  form = (20, 20, 3, 3, 0, 40)
  picture, _ = media_io.read_image(np.zeros((64, 64, 3), np.uint8), form)
  pieces, forms = [Piece('image', picture)], {'image': form}
  with pytest.raises(ValueError) as error:
    list(augment.copies(source('rotate=5'), 0, pieces, forms))
  tiny_runs.assert_two_lines(error.value, 'augment=rotate=5 would change the tiles')
