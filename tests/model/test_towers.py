"""Encoders in the model equal the cached path in outputs and gradients, on one device and on several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import sharding, step
from gpt_jax.cluster import batches
from gpt_jax.model import adapters, costs, encoder, gpt, param_trees, towers
from gpt_jax.tokenizers import EncoderConfig, in_step, readers
from gpt_jax.tokenizers.processors import Pixels
from gpt_jax.training import encoders as pretrained
from tests import encoders, models

SIGLIP = {
  **{k: v for k, v in encoders.CLIP.items() if k != 'model_type'},
  'model_type': 'siglip_vision_model',
  'num_channels': 3,
  'image_size': 16,
  'hidden_size': 6,
}


@pytest.fixture(scope='module')
def eye(tmp_path_factory):
  """The folder of a tiny CLIP: pictures of 8 x 8 gray pixels, four patches."""
  return encoders.write(tmp_path_factory.mktemp('eye'), encoders.CLIP)


@pytest.fixture(scope='module')
def siglip(tmp_path_factory):
  """The folder of a tiny SigLIP: pictures of 16 x 16 color pixels, 16 patches."""
  return encoders.write(tmp_path_factory.mktemp('siglip'), SIGLIP)


def open_readers(folder, **form):
  """(the reader of cached outputs, that of pixels) of an encoder; form: of an imported model."""
  cached = readers.EncoderReader.open(str(folder), EncoderConfig(image=str(folder)), 'patches')
  cached = readers.EncoderReader(**cached.fields() | form)
  return cached, in_step.put_in_step(cached)


def models_of(cached, stepped, training='frozen', **settings):
  """(GPT on cached outputs, GPT with the encoder in it) of equal weights."""
  cfg = models.tiny(patch_values=cached.feature_width, **settings)
  tower = in_step.tower_of(stepped, training)
  assert (tower.output_width, tower.input_width) == (cached.feature_width, stepped.feature_width)
  outside = models.fill(cfg)
  inside = gpt.GPT(dataclasses.replace(cfg, encoders=(tower.to_json(),)))
  values = step.params_of(outside) | pretrained.weights(inside.cfg)
  return outside, param_trees.map_params(lambda path, p: values[path], inside)


def batch_of(reader, pictures, places, T=16):
  """A batch of rows with the features of `pictures` [B][n] at their places, n x Q a row."""
  ids_BT = np.random.default_rng(0).integers(0, 50, (len(pictures), T)).astype(np.int32)
  x_BTA = np.zeros((*ids_BT.shape, reader.feature_width), np.float32)
  for row_TA, own in zip(x_BTA, pictures, strict=True):
    features = np.concatenate([np.zeros((0, reader.feature_width)), *reader.features(own)])
    row_TA[places[: len(features)]] = features
  zeros = np.zeros((len(pictures), 1), np.int32)
  targets = dict(
    target_ids_BT=np.append(ids_BT[:, 1:], zeros, 1), loss_mask_BT=np.ones(ids_BT.shape, np.float32)
  )
  return {'token_ids_BT': ids_BT, 'patches_BTA': x_BTA, **targets}


@jax.jit
def loss_and_grads(model, batch):
  """The mean cross-entropy and its gradients."""
  weight = jnp.float32(batch['loss_mask_BT'].size)
  loss = lambda model: step.loss_fn(model, batch, weight, {}, jax.random.key(0))[0]
  return jax.value_and_grad(loss)(model)


PLACES = np.array([1, 2, 3, 4, 8, 9, 10, 11])  # two pictures of four places, apart


# Settings of an imported model: the mean of a square of outputs (Gemma 3), or these side by side (Idefics3).
FORMS = {'plain': {}, 'mean': {'pool': 2}, 'beside': {'stack': 4}}


@pytest.mark.parametrize(
  'form, projector',
  [('plain', 'llava'), ('mean', 'mlp'), pytest.param('beside', 'linear', marks=pytest.mark.slow)],
)
def test_an_encoder_in_the_step_equals_the_cached_one(eye, siglip, form, projector):
  cached, stepped = open_readers(siglip if FORMS[form] else eye, **FORMS[form])
  outside, inside = models_of(cached, stepped, projector=projector)
  images = np.random.default_rng(0).integers(0, 256, (3, *cached.form[:3]), dtype=np.uint8)
  images[0, :4, :4] = 0  # a black patch is a patch
  pictures = [images[:2], images[2:], images[:0]]
  loss, grads = loss_and_grads(outside, batch_of(cached, pictures, PLACES))
  loss_inside, grads_inside = loss_and_grads(inside, batch_of(stepped, pictures, PLACES))
  np.testing.assert_allclose(loss_inside, loss, rtol=1e-5)
  grads_inside = step.params_of(grads_inside)
  for path, g in step.params_of(grads).items():
    np.testing.assert_allclose(grads_inside[path], g, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_an_ear_in_the_step_equals_the_cached_one(tmp_path):
  """Windows of 0.2 s: ten outputs, five in a place. Whole ones, since the cached one leaves silence out."""
  folder = encoders.write(tmp_path / 'ear', encoders.WHISPER)
  settings = EncoderConfig(audio=str(folder), seconds=0.2, stack=5)
  cached = readers.EncoderReader.open(str(folder), settings, 'frames')
  stepped = in_step.put_in_step(cached)
  cfg = models.tiny(frame_values=60, projector='mlp')
  tower = in_step.tower_of(stepped, 'whole')
  assert (tower.places, tower.input_width, tower.output_width) == (2, 160, 60)
  outside, inside = models.fill(cfg), gpt.GPT(dataclasses.replace(cfg, encoders=(tower.to_json(),)))
  values = step.params_of(outside) | pretrained.weights(inside.cfg)
  inside = param_trees.map_params(lambda path, p: values[path], inside)
  waves = [np.random.default_rng(n).standard_normal(3200 * n).astype(np.float32) for n in (1, 2)]
  both = [batch_of(reader, [waves, waves[:1]], PLACES) for reader in (cached, stepped)]
  for batch in both:
    batch['frames_BTM'] = batch.pop('patches_BTA')
  (loss, _), (loss_inside, grads) = map(loss_and_grads, (outside, inside), both)
  np.testing.assert_allclose(loss_inside, loss, rtol=1e-5)
  assert np.abs(step.params_of(grads)['audio_encoder/conv1_WMD']).max() > 1e-6
  [short] = stepped.features([waves[0][:1000]])
  assert short.shape == (2, 160)


def test_the_gradient_of_the_encoder_is_that_through_its_outputs(eye):
  """Composed by hand: d loss / d features of the cached path, through the encoder on the same pictures."""
  cached, stepped = open_readers(eye)
  outside, inside = models_of(cached, stepped, 'whole')
  images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
  batch, pixels = batch_of(cached, [images], PLACES), cached_pixels(cached, images)
  weight = jnp.float32(batch['loss_mask_BT'].size)

  @jax.jit
  def composed(eye_model, batch):
    y_BTA = eye_model(pixels)[:, 1:].reshape(1, 8, -1)
    inputs = {**batch, 'patches_BTA': jnp.zeros_like(batch['patches_BTA']).at[:, PLACES].set(y_BTA)}
    return step.loss_fn(outside, inputs, weight, {}, jax.random.key(0))[0]

  expected = step.params_of(jax.grad(composed)(inside.image_encoder, batch))
  _, grads = loss_and_grads(inside, batch_of(stepped, [images], PLACES))
  actual = step.params_of(grads)
  for path, g in expected.items():
    np.testing.assert_allclose(actual[f'image_encoder/{path}'], g, rtol=1e-4, atol=1e-6, err_msg=path)
    assert np.abs(g).max() > 1e-6 or 'k_bias' in path, path


def cached_pixels(reader, images):
  """The inputs of the encoder, patches in reading order."""
  pixels = np.stack([Pixels(*reader.pixels).normalize(image) for image in images])
  return encoder.cut_patches(pixels, reader.spec)


@pytest.mark.parametrize('remat', ['none', 'dots_no_batch', 'full'])
def test_half_precision_stays_half(eye, remat):
  """Shapes alone: each layer of the scan must give the type that it gets, as on an accelerator."""
  cached, stepped = open_readers(eye)
  _, inside = models_of(cached, stepped, 'whole', remat=remat, dtype='bfloat16')
  batch = batch_of(stepped, [np.zeros((1, 8, 8, 1), np.uint8)], PLACES)
  half = param_trees.cast(inside, jnp.bfloat16)
  seen = jax.eval_shape(lambda m, x: towers.encode(m, 'patches', x, jnp.bfloat16), half, batch['patches_BTA'])
  assert (seen.shape, seen.dtype) == ((1, 16, 8), jnp.bfloat16)
  loss, grads = jax.eval_shape(loss_and_grads, half, batch)
  assert loss.dtype == jnp.float32 and grads.image_encoder.patch_YXAD.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize('axis', ['fsdp', 'tensor', 'sequence'])
def test_two_devices_compute_what_one_does(eye, axis):
  cached, stepped = open_readers(eye)
  _, inside = models_of(cached, stepped, 'whole')
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
  batch = batch_of(stepped, [images[:2], images[2:3], images[3:], images[:0]], PLACES)
  loss, grads = loss_and_grads(inside, batch)
  mesh = sharding.make_mesh(sharding.MeshConfig(**{'data': 1, axis: 2}), jax.devices()[:2])
  with jax.set_mesh(mesh):
    placed = {name: jax.device_put(x, batches.batch_sharding(mesh, name)) for name, x in batch.items()}
    spread, spread_grads = loss_and_grads(jax.device_put(inside, gpt.shardings(inside, mesh)), placed)
  np.testing.assert_allclose(spread, loss, rtol=1e-5)
  spread_grads = step.params_of(spread_grads)
  for path, g in step.params_of(grads).items():
    np.testing.assert_allclose(spread_grads[path], g, rtol=1e-4, atol=1e-6, err_msg=path)


def test_flops_of_an_encoder_in_the_model(eye):
  cached, stepped = open_readers(eye)
  outside, _ = models_of(cached, stepped)
  without = costs.flops_per_token(outside.cfg, 16)['full']
  extra = {}
  for training in ('frozen', 'whole'):
    cfg = dataclasses.replace(outside.cfg, encoders=(in_step.tower_of(stepped, training).to_json(),))
    extra[training] = costs.flops_per_token(cfg, 16, adapters.AdapterConfig())['full'] - without
  # Four pictures of a class token and four patches; 8 wide, an MLP of 12, 2 layers; a stem of 16 pixels.
  weights = 2 * (4 * (8 * 8 + 8) + 2 * 8 * 12 + 12 + 8 + 4 * 8) + 16 * 8 + 8 + 2 * 8
  scores = 4 * 8 * 5 * 2
  np.testing.assert_allclose(extra['frozen'], 4 * 5 / 16 * (2 * weights + scores), rtol=1e-6)
  np.testing.assert_allclose(extra['whole'], 3 * extra['frozen'], rtol=1e-6)
