"""Encoders equal those of transformers: random weights of odd shapes, each family; and real weights.

GPT_JAX_WHISPER names the folder of a real Whisper.
"""

import copy
import os

import jax
import numpy as np
import pytest

from gpt_jax.data import media_io
from gpt_jax.interop.encoders import encoder, families, log_mel
from gpt_jax.model import param_trees
from gpt_jax.model.encoder import Encoder
from gpt_jax.tokenizers import EncoderConfig, base, readers
from tests import encoders, models, tiny_runs
from tests.interop.test_interop import hf

__all__ = ['hf']  # the fixture
PICTURE = {
  'hidden_size': 24,
  'num_hidden_layers': 3,
  'num_attention_heads': 3,
  'intermediate_size': 40,
  'image_size': 15,
  'patch_size': 5,
}
SOUND = {
  'd_model': 24,
  'encoder_layers': 3,
  'encoder_attention_heads': 3,
  'encoder_ffn_dim': 40,
  'num_mel_bins': 10,
  'max_source_positions': 14,
  'decoder_layers': 1,
  'vocab_size': 30,
  'decoder_start_token_id': 1,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'pad_token_id': 0,
}
OF_CLIP = PICTURE | {'hidden_act': 'quick_gelu'}
# name: (config class, model class, settings)
MODELS = {
  'whisper': ('WhisperConfig', 'WhisperForConditionalGeneration', SOUND),
  'vit': ('ViTConfig', 'ViTModel', PICTURE),
  'vit_classifier': ('ViTConfig', 'ViTForImageClassification', PICTURE),
  'clip': ('CLIPVisionConfig', 'CLIPVisionModel', OF_CLIP),
  'clip_gelu': ('CLIPVisionConfig', 'CLIPVisionModel', PICTURE | {'hidden_act': 'gelu'}),
  'siglip': ('SiglipVisionConfig', 'SiglipVisionModel', PICTURE),
  'dinov2': ('Dinov2Config', 'Dinov2Model', PICTURE | {'mlp_ratio': 2}),
  'dinov2_swiglu': ('Dinov2Config', 'Dinov2Model', PICTURE | {'use_swiglu_ffn': True}),
}


def randomize(model):
  """Give every parameter random values, norms and layer scales too, so that a missing term shows."""
  import torch

  torch.manual_seed(0)
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.copy_(0.2 * torch.randn_like(p) + (1.0 if p.ndim == 1 and name.endswith('weight') else 0.0))
  return model.eval()


@pytest.fixture(scope='module', params=MODELS)
def pair(request, hf, tmp_path_factory):
  """(transformers' model, the folder that it wrote)."""
  config_class, model_class, settings = MODELS[request.param]
  model = randomize(getattr(hf, model_class)(getattr(hf, config_class)(**settings)))
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder)
  return model, folder


def inputs_of(spec, rows=2):
  """Random inputs: log-mel frames or pixels, in our layout."""
  rng = np.random.default_rng(1)
  if spec.modality == 'audio':
    return rng.standard_normal((rows, 2 * spec.cfg.context, dict(spec.sizes)['M'])).astype(np.float32)
  side = spec.grid[0] * spec.side
  return rng.standard_normal((rows, side, side, 3)).astype(np.float32)


def their_outputs(model, x):
  """All hidden states and the last one of transformers."""
  import torch

  x = torch.tensor(np.moveaxis(x, -1, 1))
  model = getattr(model, 'model', model)  # Whisper
  model = getattr(model, 'encoder' if model.config.model_type == 'whisper' else 'vit', model)
  with torch.no_grad():
    out = model(x, output_hidden_states=True)
  return [h.numpy() for h in out.hidden_states], out.last_hidden_state.numpy()


def ours(folder, x, layer=0):
  """The outputs of our encoder."""
  spec = families.read_spec(base.read_json(folder / 'config.json', ''), layer)
  return encoder.run(encoder.load(folder, spec), x)


def test_outputs_equal_those_of_transformers(pair):
  model, folder = pair
  x = inputs_of(families.read_spec(base.read_json(folder / 'config.json', '')))
  hidden, last = their_outputs(model, x)
  actual = ours(folder, x)
  assert actual.std() > 0.1
  np.testing.assert_allclose(actual, last, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(ours(folder, x, 2), hidden[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('pair', ['vit', 'siglip', 'clip_gelu'], indirect=True)
def test_gradients_equal_those_of_transformers(pair, tmp_path):
  """Of random linear functions of the outputs; theirs are written as weights and read as ours."""
  import torch

  model, folder = pair
  spec = families.read_spec(base.read_json(folder / 'config.json', ''))
  x, loaded = inputs_of(spec), encoder.load(folder, spec)
  output = model(torch.tensor(np.moveaxis(x, -1, 1))).last_hidden_state
  direction = np.random.default_rng(2).standard_normal(tuple(output.shape)).astype(np.float32)
  model.zero_grad()
  (output * torch.tensor(direction)).sum().backward()
  gradients = copy.deepcopy(model)
  with torch.no_grad():
    for mine, theirs in zip(gradients.parameters(), model.parameters(), strict=True):
      mine.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
  gradients.save_pretrained(tmp_path)
  expected = models.params(encoder.load(tmp_path, spec))
  loss = jax.jit(lambda m: (m(encoder.cut_patches(x, spec)) * direction).sum())
  actual = models.params(jax.grad(loss)(loaded))
  for path, row in families.tensor_rows(spec).items():
    if not row.name:  # a bias that theirs does not have
      continue
    g = expected[path]
    scale = np.abs(g).max() if 'k_bias' not in path else 1.0  # the softmax does not depend on it
    np.testing.assert_allclose(actual[path], g, atol=1e-4 * scale + 1e-6, err_msg=path)
    assert scale > 1e-3, path


@pytest.mark.parametrize('mels, seconds', [(80, 1), (128, 2)])
def test_log_mel_equals_that_of_transformers(mels, seconds, hf):
  rng = np.random.default_rng(0)
  time = np.arange(seconds * log_mel.RATE - 777) / log_mel.RATE
  wave = 0.3 * np.sin(2 * np.pi * 440 * time * (1 + time)) + 0.01 * rng.standard_normal(len(time))
  extractor = hf.WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)
  theirs = extractor(wave.astype(np.float32), sampling_rate=log_mel.RATE, return_tensors='np').input_features
  padded = np.pad(wave, (0, 777)).astype(np.float32)
  actual = log_mel.log_mel(padded[None], mels)
  assert actual.shape == (1, 100 * seconds, mels)
  np.testing.assert_allclose(actual[0].T, theirs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_long_sound_equals_transformers_window_by_window(hf, tmp_path):
  """Of four windows, the last one filled with silence, whose outputs are left out."""
  import torch

  model = randomize(
    hf.WhisperForConditionalGeneration(hf.WhisperConfig(**SOUND | {'max_source_positions': 50}))
  )
  model.save_pretrained(tmp_path)
  extractor, rate = hf.WhisperFeatureExtractor(feature_size=10, chunk_length=1), log_mel.RATE
  wave = 0.3 * np.random.default_rng(2).standard_normal(3 * rate + 5000).astype(np.float32)
  parts = [wave[start : start + rate] for start in range(0, len(wave), rate)]
  with torch.no_grad():
    inputs = extractor(parts, sampling_rate=rate, return_tensors='pt').input_features
    expected = model.model.encoder(inputs).last_hidden_state.numpy().reshape(200, -1)
  reader = readers.EncoderReader.open(str(tmp_path), EncoderConfig(audio=str(tmp_path)), 'frames')
  [actual] = reader.features([wave])
  assert actual.shape == (166, 24)  # one for each 320 samples begun
  np.testing.assert_allclose(actual, expected[:166], rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_real_outputs_equal_those_of_transformers(hf, data_dir):
  import torch

  if not (folder := os.environ.get('GPT_JAX_WHISPER')):
    pytest.skip('no Whisper: set GPT_JAX_WHISPER to its folder')
  theirs = hf.WhisperForConditionalGeneration.from_pretrained(folder).eval().model.encoder
  extractor = hf.WhisperFeatureExtractor(feature_size=theirs.num_mel_bins)
  reader, worst = readers.EncoderReader.open(folder, EncoderConfig(audio=folder), 'frames'), 0.0
  for path in sorted(data_dir.glob('speech_samples/*.[wf]*'))[:3]:
    wave, _ = media_io.read_sound(path, log_mel.RATE)
    x = extractor(wave, sampling_rate=log_mel.RATE, return_tensors='pt').input_features
    with torch.no_grad():
      expected = theirs(x).last_hidden_state[0].numpy()
    [actual] = reader.features([wave])
    difference = np.abs(actual - expected[: len(actual)]).max() / np.abs(expected).max()
    worst = max(worst, float(difference))
  print(f'largest difference, relative to the largest output: {worst:.1e}')
  assert 0 < worst < 1e-4


def test_a_shorter_window_of_sound_uses_the_first_positions(tmp_path):
  spec = families.read_spec(encoders.WHISPER)
  loaded = encoder.load(encoders.write(tmp_path, encoders.WHISPER), spec)
  x = np.random.default_rng(0).standard_normal((1, 20, 16)).astype(np.float32)
  assert encoder.run(loaded, x).shape == (1, 10, 12)


def test_the_names_of_older_files(tmp_path):
  """ViT's files of before transformers 5, and a tower within another model."""
  old = {
    'vit.encoder.layer.3.attention.attention.query.weight': 'layers.3.attention.q_proj.weight',
    'vit.encoder.layer.3.attention.attention.key.bias': 'layers.3.attention.k_proj.bias',
    'vit.encoder.layer.3.attention.attention.value.bias': 'layers.3.attention.v_proj.bias',
    'vit.encoder.layer.3.attention.output.dense.weight': 'layers.3.attention.o_proj.weight',
    'vit.encoder.layer.3.intermediate.dense.weight': 'layers.3.mlp.fc1.weight',
    'vit.encoder.layer.3.output.dense.bias': 'layers.3.mlp.fc2.bias',
    'vit.embeddings.patch_embeddings.projection.weight': 'embeddings.patch_embeddings.projection.weight',
  }
  names = families.rename(families.VIT, [*old, 'classifier.weight'])
  assert names == {new: name for name, new in old.items()}


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model_type': 'wav2vec2'}, "model_type='wav2vec2' is not a known encoder"),
    ({'activation_function': 'gelu_10'}, "the activation 'gelu_10'"),
    ({'scale_embedding': True}, 'scale_embedding=true'),
    ({'encoder_layers': None}, 'encoder_layers'),
  ],
)
def test_configs_that_no_encoder_here_has(changes, words):
  settings = {key: value for key, value in (encoders.WHISPER | changes).items() if value is not None}
  with pytest.raises(ValueError) as error:
    families.read_spec(settings)
  tiny_runs.assert_two_lines(error.value, words)


@pytest.mark.parametrize('family', ['clip_vision_model', 'siglip_vision_model', 'vit', 'dinov2'])
def test_an_encoder_of_pictures_has_no_parameter_that_its_files_lack(family):
  """One that is trained whole would learn it: CLIP has no bias on its patches."""
  spec = families.read_spec(encoders.CLIP | {'model_type': family})
  params = {path for path, _ in param_trees.named_params(Encoder(spec))}
  rows = families.tensor_rows(spec)
  assert params == rows.keys() and all(row.name for row in rows.values())
  assert ('patch_bias_D' in params) == (family != 'clip_vision_model')


def test_weights_of_another_shape_are_errors(tmp_path):
  folder = encoders.write(tmp_path, encoders.WHISPER)
  for changes, words in (
    ({'encoder_ffn_dim': 24}, 'by config.json'),
    ({'encoder_layers': 3}, 'no tensor layers.2'),
  ):
    with pytest.raises(ValueError) as error:
      encoder.load(folder, families.read_spec(encoders.WHISPER | changes))
    tiny_runs.assert_two_lines(error.value, words)


def test_settings_of_a_processor_that_are_damaged(tmp_path):
  folder = encoders.write(tmp_path / 'eye', encoders.CLIP)
  (folder / 'preprocessor_config.json').write_text('{"image_mean": null}')
  with pytest.raises(ValueError) as error:
    readers.EncoderReader.open(str(folder), EncoderConfig(image=str(folder)), 'patches')
  tiny_runs.assert_two_lines(error.value, 'preprocessor_config.json is not')


def test_every_parameter_of_every_family_has_a_row():
  for config in (encoders.WHISPER, encoders.CLIP):
    spec = families.read_spec(config)
    paths = {path for path, _ in encoder.param_trees.named_params(encoder.Encoder(spec))}
    assert paths == set(families.tensor_rows(spec))
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(encoder.Encoder(spec)))
