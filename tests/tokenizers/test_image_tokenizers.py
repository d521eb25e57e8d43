"""Image tokenizers: one battery for every row, and what is particular to each."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.model import layers as nn
from gpt_jax.model import param_trees
from gpt_jax.tokenizers import base, image, kmeans, patches
from gpt_jax.tokenizers.image import IMAGE_TOKENIZERS, ImageConfig
from gpt_jax.tokenizers.learned import autoencoder

SMALL = dict(height=8, width=4)
CONFIGS = {
  'pixels': ImageConfig('pixels', patch=1, **SMALL),
  'pixels of 17 values': ImageConfig('pixels', patch=1, values=17, **SMALL),
  'pixels in color': ImageConfig('pixels', patch=1, channels=3, **SMALL),
  'palette': ImageConfig('pixels', patch=1, channels=3, palette=True, codes=8, **SMALL),
  'patches': ImageConfig('patches', patch=2, codes=8, channels=3, **SMALL),
  'fsq': ImageConfig('fsq', levels=(4, 3), codes=12, network_width=8, network_blocks=1, **SMALL),
  'vq': ImageConfig('vq', codes=8, network_width=8, network_blocks=1, **SMALL),
}
every = pytest.mark.parametrize('name', list(CONFIGS))
CONFIGS['continuous'] = ImageConfig('continuous', patch=2, channels=3, **SMALL)  # it has no codes
with_continuous = pytest.mark.parametrize('name', list(CONFIGS))


def pictures(shape, n=12, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


@functools.cache
def params_for(cfg, seed=0):
  abstract = autoencoder.Autoencoder(image.autoencoder_config(cfg))
  model = jax.jit(functools.partial(nn.initialize, abstract))(jax.random.key(seed))
  return {path: np.asarray(p.get_value()) for path, p in param_trees.named_params(model)}


@functools.cache
def made(name):
  cfg = CONFIGS[name]
  if cfg.kind in image.LEARNED:
    row = IMAGE_TOKENIZERS[cfg.kind]
    return row.from_model(cfg, image.autoencoder_config(cfg), params_for(cfg))
  return image.build(cfg, lambda: pictures(cfg.shape))


def test_every_row_is_tested():
  own = {'codec'}  # tests/interop/test_codecs.py
  assert {cfg.kind for cfg in CONFIGS.values()} == set(IMAGE_TOKENIZERS) - own


# ----------------------------------------------------------------------------------- the battery


@every
def test_images_become_codes_and_images(name):
  tokenizer, cfg = made(name), CONFIGS[name]
  images = pictures(cfg.shape, 5, seed=1)
  codes = tokenizer.encode(images)
  assert tokenizer.grid == (cfg.height // cfg.patch, cfg.width // cfg.patch)
  assert tokenizer.positions == tokenizer.grid[0] * tokenizer.grid[1]
  assert codes.shape == (5, tokenizer.positions, len(tokenizer.codebooks))
  assert codes.dtype == np.int32 and tokenizer.length == codes[0].size
  assert tokenizer.shape == cfg.shape and tokenizer.patch == cfg.patch
  again = tokenizer.decode(codes)
  assert again.shape == images.shape and again.dtype == np.uint8
  assert (codes >= 0).all() and (codes < np.array(tokenizer.codebooks)).all()
  one_by_one = np.concatenate([tokenizer.encode(images[i : i + 1]) for i in range(5)])
  np.testing.assert_array_equal(codes, one_by_one)
  assert tokenizer.encode(images[:0]).shape == (0, *codes.shape[1:])
  assert tokenizer.decode(codes[:0]).shape == (0, *cfg.shape)


@every
def test_any_codes_decode_to_an_image(name):
  tokenizer = made(name)
  rng = np.random.default_rng(0)
  shape = (20, tokenizer.positions, len(tokenizer.codebooks))
  codes = rng.integers(0, tokenizer.codebooks, shape)
  images = tokenizer.decode(codes)
  assert images.shape == (20, *tokenizer.shape)
  np.testing.assert_array_equal(tokenizer.decode(codes.astype(np.uint16)), images)


@every
def test_a_saved_tokenizer_loads_equal(name, tmp_path):
  tokenizer = made(name)
  tokenizer.save(tmp_path)
  loaded = image.load(tmp_path)
  assert loaded == tokenizer and loaded.hash == tokenizer.hash
  assert loaded.fields() == json.loads(json.dumps(tokenizer.fields()))
  images = pictures(tokenizer.shape, 3)
  np.testing.assert_array_equal(loaded.encode(images), tokenizer.encode(images))
  codes = tokenizer.encode(images)
  np.testing.assert_array_equal(loaded.decode(codes), tokenizer.decode(codes))


@with_continuous
def test_an_altered_folder_is_refused(name, tmp_path):
  made(name).save(tmp_path)
  path = tmp_path / 'image.json'
  saved = json.loads(path.read_text())
  for change in (
    {'fields': saved['fields'] | {'patch': 9}},
    {'fields': {}},
    {'hash': 'no'},
    {'kind': 'jpeg'},
  ):
    path.write_text(json.dumps(saved | change))
    with pytest.raises(ValueError, match=r'\nfix: '):
      image.load(tmp_path)
  path.write_text(json.dumps(saved))
  for file in tmp_path.glob('*.safetensors'):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for wrong in (content, content[:40]):
      file.write_bytes(wrong)
      with pytest.raises(ValueError, match=r'\nfix: '):
        image.load(tmp_path)


@every
def test_arrays_that_are_not_images_are_refused(name):
  tokenizer = made(name)
  images = pictures(tokenizer.shape, 2)
  for wrong in (images[0], images[:, 1:], images.astype(np.float32)):
    for use in (tokenizer.encode, tokenizer.features):
      with pytest.raises(ValueError, match=r'images are .*\nfix: give uint8 of shape'):
        use(wrong)
  codes = tokenizer.encode(images)
  for wrong in (codes[0], codes[:, 1:], codes + 0.5, codes - 1000, codes + 1000):
    with pytest.raises(ValueError, match=r'codes? .*\nfix: give codes of'):
      tokenizer.decode(wrong)


@with_continuous
def test_features_are_the_pixels_of_a_position(name):
  tokenizer = made(name)
  images = pictures(tokenizer.shape, 2)
  features = tokenizer.features(images)
  assert features.shape == (2, tokenizer.positions, tokenizer.feature_width)
  assert features.dtype == np.float32 and features.min() >= -1 and features.max() <= 1
  p = tokenizer.patch
  last = images[:, -p:, -p:].reshape(2, -1).astype(np.float32) / 127.5 - 1
  np.testing.assert_allclose(features[:, -1], last, atol=1e-6)
  pixels = np.round((features + 1) * 127.5).astype(np.uint8)
  pixels = pixels.reshape(-1, *tokenizer.grid, tokenizer.feature_width)
  np.testing.assert_array_equal(patches.from_patches(pixels, p), images)


# ---------------------------------------------------------------------------------------- pixels


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(2, 256), st.integers(0, 2**32 - 1))
def test_pixels_are_exact(channels, values, seed):
  tokenizer = image.PixelTokenizer((3, 5, channels), values)
  codes = np.random.default_rng(seed).integers(0, values, (4, 15, channels))
  images = tokenizer.decode(codes)
  np.testing.assert_array_equal(tokenizer.encode(images), codes)
  np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(images)), images)


def test_all_values_are_told_apart_and_span_the_range():
  for values in range(2, 257):
    tokenizer = image.PixelTokenizer((values, 1, 1), values)
    codes = np.arange(values).reshape(1, -1, 1)
    images = tokenizer.decode(codes)
    np.testing.assert_array_equal(tokenizer.encode(images), codes)
    assert images.min() == 0 and images.max() == 255


def test_scanned_digits_of_17_values_are_exact():
  images = np.round(np.arange(17) * (255 / 16)).astype(np.uint8).reshape(1, 17, 1, 1)
  tokenizer = image.PixelTokenizer((17, 1, 1), 17)
  np.testing.assert_array_equal(tokenizer.encode(images).reshape(-1), np.arange(17))
  np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(images)), images)


def test_a_palette_of_all_colors_is_exact():
  colors = pictures((3,), 8)
  images = colors[np.random.default_rng(1).integers(0, 8, (6, 8, 4))]
  tokenizer = image.build(CONFIGS['palette'], lambda: images)
  np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(images)), images)
  assert tokenizer.codebooks == (8,) and tokenizer.length == 32


# --------------------------------------------------------------------------------------- k-means


def test_k_means_is_the_same_each_time_and_in_any_order():
  vectors = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
  centroids = kmeans.fit(vectors, 7)
  assert centroids.shape == (7, 5) and centroids.dtype == np.float32
  np.testing.assert_array_equal(kmeans.fit(vectors, 7), centroids)
  np.testing.assert_array_equal(kmeans.fit(vectors[::-1], 7), centroids)
  assert (kmeans.fit(vectors, 7, seed=1) != centroids).any()


def test_k_means_recovers_separated_clusters():
  centers = np.array([[0, 0], [9, 0], [0, 9]], np.float32)
  noise = np.random.default_rng(0).normal(0, 0.1, (90, 2)).astype(np.float32)
  vectors = np.repeat(centers, 30, 0) + noise
  centroids = kmeans.fit(vectors, 3)
  codes = kmeans.assign(vectors, centroids)
  for i in range(3):
    assert len(set(codes[30 * i : 30 * i + 30])) == 1
    np.testing.assert_allclose(centroids[codes[30 * i]], vectors[30 * i : 30 * i + 30].mean(0), atol=1e-5)


def test_k_means_weighs_repeated_vectors():
  vectors = np.array([[0.0]] * 9 + [[1.0]], np.float32)
  np.testing.assert_allclose(kmeans.fit(vectors, 1), [[0.1]], atol=1e-6)


def test_k_means_on_a_share_of_many_vectors(monkeypatch):
  monkeypatch.setattr(kmeans, 'VECTORS', 50)
  vectors = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
  np.testing.assert_array_equal(kmeans.fit(vectors, 4), kmeans.fit(vectors, 4))


def test_assign_takes_the_nearest_block_by_block(monkeypatch):
  rng = np.random.default_rng(0)
  vectors, centroids = (rng.normal(size=(n, 4)).astype(np.float32) for n in (101, 9))
  expected = np.square(vectors[:, None] - centroids).sum(-1).argmin(1)
  for block in (1, 40, 1 << 24):
    monkeypatch.setattr(kmeans, 'BLOCK', block)
    codes = kmeans.assign(vectors, centroids)
    np.testing.assert_array_equal(codes, expected)
    assert codes.dtype == np.int32


def test_a_code_without_vectors_moves():
  vectors = np.array([[0.0], [1.0], [5.0]], np.float32)
  start = np.array([[0.0], [100.0]], np.float32)
  codes = kmeans.assign(vectors, start)
  np.testing.assert_allclose(kmeans._means(vectors, np.ones(3), codes, start), [[2.0], [5.0]])


def test_too_few_vectors_are_an_error():
  with pytest.raises(ValueError, match='codes=4, but only 2 distinct.*\nfix: give codes=2 or fewer'):
    kmeans.fit(np.array([[0.0], [1.0], [1.0]]), 4)


# --------------------------------------------------------------------------------------- learned


def test_a_trained_tokenizer_is_found_in_its_run_folder(tmp_path):
  tokenizer, cfg = made('fsq'), CONFIGS['fsq']
  tokenizer.save(tmp_path / 'codec')
  use = ImageConfig('fsq', str(tmp_path), levels=(4, 3), **SMALL)
  assert image.build(use, pictures) == tokenizer
  for change in (dict(kind='vq', levels=(8, 6, 5)), dict(height=4), dict(levels=(3, 4)), dict(patch=2)):
    with pytest.raises(ValueError, match=r'was trained with image\..*\nfix: set '):
      image.build(dataclasses.replace(use, **change), pictures)
  with pytest.raises(ValueError, match='trained first\nfix: train one'):
    image.build(cfg, pictures)
  with pytest.raises(FileNotFoundError, match=r'\nfix: '):
    image.build(dataclasses.replace(use, path=str(tmp_path / 'nowhere')), pictures)


def test_other_parameters_are_another_tokenizer():
  cfg = CONFIGS['fsq']
  from_model, codec_cfg = IMAGE_TOKENIZERS['fsq'].from_model, image.autoencoder_config(cfg)
  assert from_model(cfg, codec_cfg, params_for(cfg)) == made('fsq')
  assert from_model(cfg, codec_cfg, params_for(cfg, seed=1)) != made('fsq')


def test_codes_are_those_of_the_model():
  cfg = CONFIGS['vq']
  images = pictures(cfg.shape, 4)
  abstract = autoencoder.Autoencoder(image.autoencoder_config(cfg))
  params = made('vq').params
  model = param_trees.map_params(lambda path, _: jnp.asarray(params[path]), abstract)

  @jax.jit
  def run(x):
    codes = model.quantize(model.encode(x))[1]
    return codes, model.decode(model.lookup(codes))

  codes, x = run(images.astype(np.float32) / 127.5 - 1)
  np.testing.assert_array_equal(made('vq').encode(images)[..., 0], codes)
  pixels = np.clip(np.round((np.asarray(x) + 1) * 127.5), 0, 255)
  assert np.abs(made('vq').decode(codes[..., None]) - pixels).max() <= 1


def test_the_baseline_has_as_many_codes_and_positions():
  for name in ('fsq', 'vq'):
    cfg, tokenizer = CONFIGS[name], made(name)
    floor = image.build(image.baseline_config(cfg), lambda shape=cfg.shape: pictures(shape, 40))
    assert (floor.codebooks, floor.grid) == (tokenizer.codebooks, tokenizer.grid)


# ---------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
  ('wrong', 'key'),
  [
    (dict(kind='jpeg'), 'kind'),
    (dict(kind='patches', path='runs/x'), 'path'),
    (dict(height=0), 'height'),
    (dict(kind='pixels'), 'patch'),
    (dict(kind='fsq', patch=8), 'height'),
    (dict(kind='patches', patch=5), 'height'),
    (dict(kind='patches', channels=2), 'channels'),
    (dict(kind='patches', codes=1), 'codes'),
    (dict(kind='pixels', patch=1, values=300), 'values'),
    (dict(kind='patches', values=17), 'values'),
    (dict(kind='fsq', palette=True), 'palette'),
    (dict(kind='vq', levels=(8, 5, 5)), 'levels'),
    (dict(kind='fsq', levels=()), 'levels'),
    (dict(kind='fsq', codes=250), 'codes'),
    (dict(kind='pixels', patch=1, codes=17), 'codes'),
    (dict(kind='patches', network_width=32), 'network_width'),
  ],
  ids=str,
)
def test_a_config_that_cannot_be_honored_is_an_error(wrong, key):
  with pytest.raises(ValueError, match=rf'image\.{key}=.*\nfix: '):
    ImageConfig(**wrong)


def test_continuous_patches_become_images_again_and_have_no_codes(tmp_path):
  tokenizer = made('continuous')
  images = pictures(tokenizer.shape, 3)
  features = tokenizer.features(images)
  np.testing.assert_array_equal(tokenizer.decode_features(features), images)
  np.testing.assert_array_equal(tokenizer.decode_features(9 * np.sign(features))[images > 127], 255)
  np.testing.assert_array_equal(tokenizer.reconstruct(images), images)
  tokenizer.save(tmp_path)
  assert image.load(tmp_path) == tokenizer
  for use in (tokenizer.encode, lambda x: tokenizer.decode(np.zeros((3, 8, 0), np.int32))):
    with pytest.raises(ValueError, match='image.kind=continuous has no codes\nfix: '):
      use(images)


def test_importing_brings_no_jax():
  code = 'import sys, gpt_jax.tokenizers.image; assert not {"jax", "sklearn"} & set(sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)


def test_files_are_the_same_bytes_each_time():
  arrays = {'b': np.arange(3.0), 'a': np.arange(6).reshape(2, 3).T}
  content = base.pack_arrays(arrays)
  assert base.digest(content) == base.digest(base.pack_arrays(dict(reversed(arrays.items()))))
  for name, array in base.unpack_arrays(content).items():
    np.testing.assert_array_equal(array, arrays[name])
