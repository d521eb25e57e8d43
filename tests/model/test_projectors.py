"""Projectors: definitions in numpy, zeros add zeros, and their errors."""

import math

import numpy as np
import pytest

from gpt_jax.model import gpt, projectors
from gpt_jax.model.config import ModelConfig
from tests import models, tiny_runs

PARTS, PART = 3, 4
WIDTH = PARTS * PART


def model_of(projector, **overrides):
  parts = PARTS if projector in ('pool', 'resampler') else 1
  width = {'cells': 18, 'llava_onevision': 20}.get(projector, WIDTH)
  settings = dict(frame_values=width, projector=projector, projector_parts=parts)
  return models.fill(models.tiny(layers=1, **settings | overrides))


def softmax(x, axis):
  e = np.exp(x - x.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def linear(p, x):
  return x @ p['frame_MD']


def mlp(p, x):
  h = x @ p['frame_projector/up_AF']
  gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  return gelu @ p['frame_projector/down_FD']


def pool(p, x):
  return x.reshape(*x.shape[:2], PARTS, PART).mean(2) @ p['frame_projector/out_CD']


def resampler(p, x):
  parts = x.reshape(*x.shape[:2], PARTS, PART)
  weights = softmax(parts @ p['frame_projector/query_CH'] + p['frame_projector/place_NH'], 2)
  mixed = np.einsum('BTNH,BTNC->BTHC', weights, parts)
  heads = np.einsum('BTHC,CHK->BTHK', mixed, p['frame_projector/value_CHK'])
  return np.einsum('BTHK,HKD->BTD', heads, p['frame_projector/out_HKD'])


def llava(p, x):
  h = x @ p['frame_projector/up_AI'] + p['frame_projector/up_bias_I']
  gelu = 0.5 * h * (1 + np.vectorize(math.erf)(h / np.sqrt(2)))
  return gelu @ p['frame_projector/down_ID'] + p['frame_projector/down_bias_D']


def llava_onevision(p, x):
  parts = x.reshape(*x.shape[:2], 4, -1)
  bias = p['frame_projector/down_bias_D']
  outputs = np.stack([llava(p, parts[:, :, n, :-1]) - bias for n in range(4)], 2)
  return np.einsum('BTND,BTN->BTD', outputs, parts[..., -1]) + bias


def paligemma(p, x):
  return x @ p['frame_projector/out_AD'] + p['frame_projector/out_bias_D']


def gemma3(p, x):
  x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)
  return x * (1 + p['frame_projector/scale_A']) @ p['frame_projector/out_AD']


REFERENCES = {'linear': linear, 'mlp': mlp, 'pool': pool, 'resampler': resampler}
REFERENCES |= {  # in the place of embeddings
  'llava': llava,
  'llava_next': llava,
  'llava_onevision': llava_onevision,
  'paligemma': paligemma,
  'gemma3': gemma3,
  'cells': lambda p, x: x[..., :-2],
}


@pytest.mark.parametrize('projector', projectors.PROJECTORS)
def test_projectors_equal_their_definitions(projector):
  model = model_of(projector)
  x_BTM = np.random.default_rng(0).standard_normal((2, 5, model.cfg.frame_values)).astype(np.float32)
  x_BTM[:, 2:4] = 0
  before_BTD = np.ones((2, 5, 16), np.float32)
  after_BTD = np.asarray(projectors.add(model, before_BTD, {'frames_BTM': x_BTM, 'patches_BTA': None}))
  np.testing.assert_array_equal(after_BTD[:, 2:4], before_BTD[:, 2:4])
  expected_BTD = REFERENCES[projector](models.params(model), x_BTM)
  if projectors.PROJECTORS[projector].replaces:
    expected_BTD[:, 2:4] = before_BTD[:, 2:4]
  else:
    expected_BTD = before_BTD + expected_BTD
  assert np.abs(expected_BTD - before_BTD).max() > 0.1
  np.testing.assert_allclose(after_BTD, expected_BTD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('projector', ['mlp', 'resampler', 'llava', 'gemma3'])
def test_half_precision_computes(projector):
  model = gpt.param_trees.cast(model_of(projector), 'bfloat16')
  x_BTM = np.ones((1, 2, WIDTH), np.float32)
  assert projectors.add(model, np.ones((1, 2, 16), 'bfloat16'), {'frames_BTM': x_BTM}).dtype == 'bfloat16'


def test_an_argument_that_trunk_lacks_is_an_error():
  with pytest.raises(TypeError, match='no argument frames_BTX'):
    projectors.add(model_of('linear'), np.ones((1, 2, 16), np.float32), {'frames_BTX': None})


@pytest.mark.parametrize(
  'settings, words',
  [
    (dict(projector='mean'), "model.projector='mean' is not known"),
    (dict(projector='pool', projector_parts=5, frame_values=12), 'model.projector_parts=5 does not divide'),
    (dict(projector_parts=0), 'model.projector_parts=0 is too small'),
  ],
)
def test_impossible_projectors(settings, words):
  with pytest.raises(ValueError) as error:
    ModelConfig(**settings)
  tiny_runs.assert_two_lines(error.value, words)


def test_parts_without_effect():
  with pytest.raises(ValueError) as error:
    tiny_runs.experiment(model__projector_parts=2)
  tiny_runs.assert_two_lines(error.value, 'model.projector_parts=2 has no effect')
