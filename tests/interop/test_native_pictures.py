"""Qwen2-VL beyond its battery in test_multimodal.py: rows of documents, flat files, refusals."""

import json
import shutil
import types

import numpy as np
import pytest

from gpt_jax import config
from gpt_jax.data.documents import decode_media, encode_batch
from gpt_jax.data.row_fields import RowFields
from gpt_jax.data.templates import Piece
from gpt_jax.evaluation import trained
from gpt_jax.interop import huggingface
from gpt_jax.interop.encoders import native
from gpt_jax.model import native_encoder
from tests import tiny_runs, wholes
from tests.interop.test_interop import hf

__all__ = ['hf']  # the fixture


def pieces_of(text, pictures):
  """A document: pictures in the place of their marks in a text."""
  words = text.split('<image>')
  between = [[Piece('image', picture)] for picture in pictures] + [[]]
  return [piece for pair in zip(words, between, strict=True) for piece in (Piece('text', pair[0]), *pair[1])]


@pytest.fixture(scope='module')
def whole(hf, tmp_path_factory):
  """(model and processor of transformers, their folder)."""
  folder = tmp_path_factory.mktemp('qwen2_vl')
  return *wholes.write(hf, 'qwen2_vl', folder), folder


def changed(folder, out, change):
  """Copy the folder of a model with another config.json; change: a function of its content -> content."""
  shutil.copytree(folder, out)
  content = json.loads((out / 'config.json').read_text())
  (out / 'config.json').write_text(json.dumps(change(content)))


def test_rows_of_documents_have_the_positions_of_transformers(whole, tmp_path):
  import torch

  model, processor, source = whole
  huggingface.import_run(source, tmp_path / 'run')
  run, pictures = trained.load(tmp_path / 'run'), wholes.pictures(5, [(20, 31), (40, 13), (9, 9)])
  texts = ['what is <begin> <image> <end> this <begin> <image> <end> ?', '<image> a cat']
  own = [pictures[:2], pictures[2:]]
  encoded = encode_batch(run.tokenizers, [pieces_of(*pair) for pair in zip(texts, own, strict=True)])
  ids = np.concatenate([e.ids for e in encoded] + [np.zeros(4, np.int32)])[None]
  segments = np.repeat([1, 2, 0], [*(len(e.ids) for e in encoded), 4])[None]
  place = np.arange(ids.shape[1])[None]
  is_patch = ids[0] == run.tokenizers.vocabulary.special('patch')
  features = {'patches': (np.concatenate([e.patches for e in encoded]), np.flatnonzero(is_patch))}
  fields = RowFields.of(config.build(config.Config, config.default()).data, run.tokenizers)
  cache = types.SimpleNamespace(features=features)
  batch = {'loss_mask_BT': np.ones((1, ids.shape[1] - 1), np.float32)}
  actual = fields.add(batch, ids, segments, np.zeros_like(ids, bool), place, cache)['positions_BT3'][0]
  expected = []
  for text, some in zip(texts, own, strict=True):
    theirs = processor(text=text, images=some, return_tensors='pt')
    grids, kinds = theirs['image_grid_thw'], theirs['mm_token_type_ids']
    positions, _ = model.model.get_rope_index(theirs['input_ids'], kinds, grids)
    expected.append(torch.moveaxis(positions, 0, -1)[0].numpy())
  expected.append(np.zeros((3, 3), np.int32))
  np.testing.assert_array_equal(actual, np.concatenate(expected))
  assert len({tuple(row) for row in (actual - actual[:, :1]).tolist()}) > 5


def flat(content):
  """A config.json as older files have it: no text_config, and an encoder without its model_type."""
  text, rope = content.pop('text_config'), {'type': 'mrope', 'mrope_section': [1, 2, 1]}
  del text['rope_parameters'], content['vision_config']['model_type']
  return text | content | {'rope_theta': 1e4, 'rope_scaling': rope}


def test_flat_settings_as_older_files_have_them(whole, hf, tmp_path):
  changed(whole[-1], tmp_path / 'source', flat)
  huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  run, picture = trained.load(tmp_path / 'run'), wholes.pictures()[1]
  assert run.model.cfg.rope_sections == (1, 2, 1) and run.model.cfg.context == 128
  [piece] = decode_media(run.tokenizers, [Piece('image', picture)])
  [vectors] = run.tokenizers.readers['patches'].features([piece.value])
  inputs = whole[1].image_processor(picture, return_tensors='pt')
  expected = whole[0].get_image_features(inputs['pixel_values'], inputs['image_grid_thw']).pooler_output[0]
  np.testing.assert_allclose(vectors[:, :-2], expected.detach().numpy(), rtol=1e-4, atol=1e-4)
  huggingface.export_run(tmp_path / 'run', tmp_path / 'out')
  again = hf.AutoConfig.from_pretrained(tmp_path / 'out')
  assert again.text_config.rope_parameters['mrope_section'] == [1, 2, 1]
  assert again.text_config.num_key_value_heads == 1 and again.vision_config.embed_dim == 16


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'hidden_act': 'mish'}, "config.json of the encoder has hidden_act='mish'"),
    ({'num_heads': 8}, 'config.json of the encoder has heads of width 2'),
    ({'patch_size': [3, 4]}, 'config.json of the encoder has patch_size=[3, 4]'),
    ({'hidden_size': 20}, 'config.json: an encoder whose outputs have 20 numbers cannot be imported'),
    ({'spatial_merge_size': 1}, 'merge_size=2 of the processor is not 1'),
  ],
)
def test_encoders_that_cannot_be_computed(whole, tmp_path, changes, words):
  vision = lambda content: {'vision_config': content['vision_config'] | changes}
  changed(whole[-1], tmp_path / 'source', lambda content: content | vision(content))
  with pytest.raises(ValueError) as error:
    huggingface.import_run(tmp_path / 'source', tmp_path / 'run')
  tiny_runs.assert_two_lines(error.value, words)
  assert not (tmp_path / 'run').exists()


def test_windows_are_squares_of_squares():
  hf = {'model_type': 'qwen2_5_vl_vision', 'hidden_size': 64, 'num_heads': 4, 'window_size': 56}
  spec = native.read_spec(hf)
  _, cells = native_encoder.cut_patches(np.zeros((84, 140, 3), np.float32), spec)
  assert spec.window == 2 and cells[:5].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]
  windows = native_encoder.windows(cells, spec)
  assert windows.min() == 1 and len(set(windows.tolist())) == 6
  assert np.array_equal(windows == 1, (cells < 4).all(1))
