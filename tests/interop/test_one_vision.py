"""LLaVA-OneVision beyond its battery in test_multimodal.py: resized vectors, several pictures, refusals."""

import types

import numpy as np
import pytest

from gpt_jax.data import media_io, picture_sizes, templates
from gpt_jax.data.documents import encode_batch
from gpt_jax.evaluation import trained
from gpt_jax.interop import huggingface
from gpt_jax.interop.families_multimodal import ONE_VISION
from gpt_jax.sampling import prompts
from gpt_jax.tokenizers import tiles
from tests import tiny_runs, wholes
from tests.interop.test_interop import hf
from tests.interop.test_multimodal import our_logits

__all__ = ['hf']  # the fixture
TEXT = 'USER : {image} and {image} is what ?'


@pytest.mark.parametrize('size', [(9, 6), (5, 4), (3, 7), (1, 1)])
def test_weighted_means_are_the_interpolation_of_torch(size, hf):
  import torch

  grid_YXD = np.random.default_rng(0).standard_normal((9, 7, 5)).astype(np.float32)
  parts = tiles.mix(grid_YXD, size).reshape(*size, 4, 6)
  actual = (parts[..., :-1] * parts[..., -1:]).sum(2)
  theirs = torch.from_numpy(grid_YXD.transpose(2, 0, 1))[None]
  expected = torch.nn.functional.interpolate(theirs, size, mode='bilinear')[0].numpy()
  np.testing.assert_allclose(actual, expected.transpose(1, 2, 0), atol=1e-6)


@pytest.mark.slow
def test_as_many_places_as_the_processor_gives(hf):
  sizes = ONE_VISION['image_grid_pinpoints']
  processor = object.__new__(hf.LlavaOnevisionProcessor)
  processor.image_processor = types.SimpleNamespace(image_grid_pinpoints=sizes)
  processor.num_image_tokens, processor.vision_aspect_ratio = 729, 'anyres_max_9'
  reader = object.__new__(tiles.OneVisionReader)
  reader.places = types.SimpleNamespace(most=9)
  rng, resized = np.random.default_rng(0), 0
  some = np.exp(rng.uniform(np.log(20), np.log(4000), (30, 2))).astype(int).tolist()
  for height, width in (*some, (1, 4000), (4000, 3)):
    expected = processor._get_number_of_features(height, width, 384, 384)
    down, across = picture_sizes.best_size(height, width, sizes)
    reader.tiles_of = lambda _, grid=(down // 384, across // 384): grid
    picture = types.SimpleNamespace(size_before=(height, width))
    count = down * across // 384**2
    assert len(reader.join(picture, [np.zeros((729, 1), np.float32)] * (count + 1))) == expected
    resized += expected < 729 * count
  assert 5 < resized < 25


def test_tiles_carry_the_size_of_their_picture_beside_their_pixels():
  form = (4, 4, 3, 3, 0, 0, ((4, 8), (8, 8)))  # tiles of 4x4
  black = [np.zeros((height, width, 3), np.uint8) for height, width in ((2, 6), (3, 8))]
  pictures = [media_io.read_image(image, form)[0] for image in black]
  assert [picture.shape for picture in pictures] == [(8, 8, 3)] * 2  # two tiles, and below them the whole
  assert [picture.size_before for picture in pictures] == [(2, 6), (3, 8)]
  assert media_io.read_image(pictures[0], form)[0] is pictures[0]
  reader = object.__new__(tiles.NextReader)
  reader.in_step, reader._cached = False, {}
  reader._encode = lambda items: [np.float32([[item.size_before[1]]]) for item in items]
  assert [x.item() for x in reader.features(pictures)] == [6, 8]  # though their pixels are the same


@pytest.mark.slow
def test_several_pictures_are_squares_without_tiles(hf, tmp_path):
  import torch

  model, processor = wholes.write(hf, 'llava_onevision', tmp_path / 'source')
  huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  run, (one, two, three, *_) = trained.load(tmp_path / 'run'), wholes.pictures()
  reader = run.tokenizers.readers['patches']
  assert reader.feature_width == 4 * 17 and reader.places.most == 2
  with torch.no_grad():
    for pair in ((two, three), (one, two)):
      text = TEXT.replace('{image}', '<image>')
      inputs = processor(text=text, images=[[*pair]], return_tensors='pt')
      ours = prompts.build_prompt(run, TEXT, images=pair)
      assert ours.ids == inputs['input_ids'][0].tolist()
      expected = model(**inputs).logits[0].numpy()
      np.testing.assert_allclose(our_logits(run, ours)[:, :48], expected, rtol=1e-4, atol=1e-4)
  clip = {'clip': [media_io.to_png(two), media_io.to_png(three)], 'name': 'a cat'}
  [encoded] = encode_batch(run.tokenizers, [templates.fill('{clip:video} what  -> {name}', clip, 'here')])
  ours = prompts.build_prompt(run, '{image}{image} what', images=[two, three])
  assert encoded.ids[: len(ours.ids)].tolist() == ours.ids
  np.testing.assert_array_equal(encoded.patches, ours.patches[ours.patches.any(1)])
  # Alone the second picture has three by two tiles, 54 vectors, of which 5 rows of 3 are left.
  alone = prompts.build_prompt(run, 'USER : {image}', images=[two])
  assert alone.patches.any(1).sum() == 9 + 5 * (3 + 1)


def test_a_ratio_that_is_not_known_is_refused(hf, tmp_path):
  wholes.write(hf, 'llava_onevision', tmp_path / 'source', vision_aspect_ratio='pad')
  with pytest.raises(ValueError) as error:
    huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  tiny_runs.assert_two_lines(error.value, "vision_aspect_ratio='pad'")
