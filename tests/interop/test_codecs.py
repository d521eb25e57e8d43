"""Codecs of transformers: their codes bit for bit, their waves, batches of many lengths, damaged folders."""

import json

import numpy as np
import pytest

from gpt_jax import config, train
from gpt_jax.data import media_io
from gpt_jax.evaluation import evaluate, trained
from gpt_jax.interop.codecs import chunks, codec, families, pictures
from gpt_jax.sampling import prompts
from gpt_jax.tokenizers import Tokenizers, audio, image, text
from tests import codecs, command_line, tiny_runs

LENGTHS = (1, 14, 15, 16, 31, 150, 301, 700)  # samples; a position has 15
CONFIGS = {'encodec': codecs.ENCODEC, 'dac': codecs.DAC, 'mimi': codecs.MIMI}
VARIANTS = {  # as no published codec is, but as configs may be
  'encodec': {
    'use_causal_conv': False,
    'num_residual_layers': 2,
    'use_conv_shortcut': False,
    'compress': 1,
    'num_lstm_layers': 1,
  },
  'dac': {'downsampling_ratios': [2, 4], 'upsampling_ratios': [4, 2]},
  'mimi': {'use_conv_shortcut': True, 'attention_bias': True, 'rope_parameters': None, 'sliding_window': 200},
}


def waves():
  rng = np.random.default_rng(0)
  return [(0.9 * rng.standard_normal(n)).astype(np.float32) for n in LENGTHS]


def spec_of(folder):
  return families.read_spec(json.loads((folder / 'config.json').read_text()))


def theirs(folder, kind):
  """Functions of transformers' model: wave [N] -> codes [P, Q], codes -> wave."""
  torch = pytest.importorskip('torch', reason='torch is not installed')
  transformers = pytest.importorskip('transformers', reason='transformers is not installed')
  name = {'encodec': 'EncodecModel', 'dac': 'DacModel', 'mimi': 'MimiModel'}[kind]
  model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
  unused = ('cluster_size', 'embed_avg', 'inited', 'initialized')
  assert all(name.endswith(unused) for name in report['missing_keys'])
  model.eval()
  model.save_pretrained(folder / 'saved')  # under the names of their newest version
  options = {'encodec': {'bandwidth': model.config.to_dict().get('target_bandwidths', [0])[-1]}}.get(kind, {})
  hop = spec_of(folder).hop if kind == 'dac' else 1

  def encode(wave):
    with torch.no_grad():
      padded = torch.tensor(np.pad(wave, (0, -len(wave) % hop)))
      codes = model.encode(padded[None, None], **options).audio_codes
    return codes.reshape(-1, codes.shape[-1]).numpy().T

  def decode(codes_PQ):
    codes = torch.tensor(codes_PQ.T.astype(np.int64))[None]
    with torch.no_grad():
      options = (
        {'audio_codes': codes[None], 'audio_scales': [None]} if kind == 'encodec' else {'audio_codes': codes}
      )
      return model.decode(**options).audio_values.numpy().reshape(-1)

  return encode, decode


@pytest.mark.slow
@pytest.mark.parametrize('is_variant', [False, True])
@pytest.mark.parametrize('kind', CONFIGS)
def test_codes_and_waves_equal_those_of_transformers(kind, is_variant, tmp_path):
  folder = codecs.write(tmp_path / kind, CONFIGS[kind], **(VARIANTS[kind] if is_variant else {}))
  encode, decode = theirs(folder, kind)
  spec = spec_of(folder)
  ours = codec.Codec.load(folder, spec)
  for name, array in codec.read_params(folder / 'saved', codec.tensors_of(spec)).items():
    np.testing.assert_allclose(array, ours.params[name], rtol=1e-6, err_msg=name)
  codes = ours.encode(waves(), spec.books)
  used = np.unique(np.concatenate(codes))
  assert len(used) > 3, 'the test should see several codes'
  for wave, codes_PQ in zip(waves(), codes, strict=True):
    np.testing.assert_array_equal(codes_PQ, encode(wave), err_msg=str(len(wave)))
  for codes_PQ, wave in zip(codes, ours.decode(codes), strict=True):
    np.testing.assert_allclose(wave, decode(codes_PQ), atol=1e-4, rtol=0, err_msg=str(len(codes_PQ)))


STEREO_LENGTHS = (1, 33, 811, 900, 905, 1000, 1620, 1630, 1701, 1800, 2000, 2431)  # chunks begin each 810


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes', [{}, {'chunk_length_s': None}, {'normalize': False, 'chunk_length_s': 0.1123}]
)
def test_chunks_and_loudness_equal_those_of_transformers(changes, tmp_path):
  torch = pytest.importorskip('torch', reason='torch is not installed')
  transformers = pytest.importorskip('transformers', reason='transformers is not installed')
  folder = codecs.write(tmp_path / 'stereo', codecs.STEREO, **changes)
  model = transformers.EncodecModel.from_pretrained(folder).eval()
  spec = spec_of(folder)
  ours, rng, compared = codec.Codec.load(folder, spec), np.random.default_rng(0), 0
  waves = [(rng.random() * rng.standard_normal((n, 2))).astype(np.float32) for n in STEREO_LENGTHS]
  items = ours.encode_chunks(waves, spec.books)
  assert len(np.unique(np.concatenate([codes_PQ for codes, _ in items for codes_PQ in codes]))) > 3

  @torch.no_grad()
  def encode(wave):
    return model.encode(torch.tensor(wave.T[None]), bandwidth=2.42)

  for wave, (codes, scales), decoded in zip(waves, items, ours.decode_chunks(items), strict=True):
    try:
      theirs = encode(wave)
    except RuntimeError as error:  # the chunk before the last has fewer positions than those before it
      assert 'stack expects each tensor to be equal size' in str(error)
      continue
    rest = theirs.last_frame_pad_length
    assert len(codes) == len(theirs.audio_codes)
    for number, codes_PQ in enumerate(codes):
      their_PQ = theirs.audio_codes[number, 0].numpy().T
      is_last = number == len(codes) - 1
      np.testing.assert_array_equal(codes_PQ, their_PQ[: len(their_PQ) - rest if is_last else None])
      if spec.normalizes:
        np.testing.assert_allclose(scales[number], theirs.audio_scales[number].item(), rtol=2e-7)
    try:
      with torch.no_grad():
        decoded_NC = model.decode(**theirs).audio_values[0].numpy().T
    except RuntimeError as error:  # the last chunk ends before the one before it
      assert 'must match the size of tensor' in str(error)
      continue
    compared += 1
    np.testing.assert_allclose(decoded, decoded_NC, atol=1e-4, rtol=0, err_msg=str(len(wave)))
  assert compared > len(waves) / 2


def test_rows_hold_chunks_and_their_loudness(tmp_path):
  """The level is within half a step; rows of a sound are as many as counted; any rows are a sound."""
  folder = codecs.write(tmp_path / 'stereo', codecs.STEREO)
  spec, rng = spec_of(folder), np.random.default_rng(0)
  for n in range(1, 2600, 31):
    parts = chunks.cut(spec, chunks.filled(spec, np.ones(n, np.float32)))
    codes = [rng.integers(0, 8, (-(-len(part) // 15), 2)) for part in parts]
    assert all(len(codes_PQ) == 60 for codes_PQ in codes[:-1]) and parts[0].shape[1] == 2
    scales = (10 ** rng.uniform(-4, 0, len(parts))).astype(np.float32)
    rows_PQ = chunks.to_rows(spec, codes, scales)
    assert len(rows_PQ) == chunks.count_rows(spec, n) and rows_PQ.dtype.kind == 'i'
    again, levels = chunks.from_rows(spec, rows_PQ)
    assert len(again) == len(codes)
    for one, other in zip(again, codes, strict=True):
      np.testing.assert_array_equal(one, other)
    assert np.abs(20 * np.log10(levels / scales)).max() < 102.3 / 7 / 2 + 1e-3
  tokenizer = tokenizer_of(folder, seconds=0.5)
  wave = (0.3 * rng.standard_normal(2000)).astype(np.float32)
  [codes_PQ] = tokenizer.encode([wave])
  assert len(codes_PQ) == tokenizer.max_positions == chunks.count_rows(spec, 2010)
  for number in range(1, 40):  # sounds of the longest duration are not too long
    other = tokenizer_of(folder, seconds=number / 20)
    duration = other.max_positions / other.codes_per_second
    assert number / 20 <= duration < number / 20 + 15 / 4000 + 1e-9
  for size, samples in ((len(codes_PQ), 2010), (61, 900), (62, 900), (63, 900), (80, 1080), (1, 15), (2, 15)):
    [decoded] = tokenizer.decode([codes_PQ[:size]])
    assert decoded.shape == (samples,) and np.isfinite(decoded).all()
  both = tokenizer.codec.encode([np.stack([wave, wave], 1)], 2)[0]
  np.testing.assert_array_equal(codes_PQ, both)


@pytest.mark.slow
def test_pictures_and_their_codes_equal_those_of_transformers(tmp_path):
  torch = pytest.importorskip('torch', reason='torch is not installed')
  transformers = pytest.importorskip('transformers', reason='transformers is not installed')
  folder = codecs.write_pictures(tmp_path / 'emu3')
  model, report = transformers.Emu3VQVAE.from_pretrained(folder, output_loading_info=True)
  assert all(name.endswith('num_batches_tracked') for name in report['missing_keys'])
  tokenizer = pictures_of(folder)
  images = np.random.default_rng(0).integers(0, 256, (5, 6, 10, 3), np.uint8)
  codes_NPQ = tokenizer.encode(images)
  assert codes_NPQ.shape == (5, 15, 1) and len(np.unique(codes_NPQ)) > 3
  pixels = torch.tensor(images.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).float()
  with torch.no_grad():
    theirs = torch.stack(model.encode(pixels, torch.tensor([[6, 10]] * 5)).image_tokens)
    decoded = model.decode(theirs).numpy().transpose(0, 2, 3, 1)
  np.testing.assert_array_equal(codes_NPQ[..., 0].reshape(5, 3, 5), theirs.numpy())
  ours = pictures.run(pictures.decode, tokenizer.spec, tokenizer.params, theirs.numpy().astype(np.int32))
  np.testing.assert_allclose(ours, decoded, atol=1e-4, rtol=0)
  whole = dict(model_type='emu3', vq_config=codecs.EMU3)
  inside = pictures_of(codecs.write_pictures(tmp_path / 'whole', whole, 'model.vqmodel.'))
  np.testing.assert_array_equal(inside.encode(images), codes_NPQ)
  assert tokenizer.decode(codes_NPQ).shape == images.shape


@pytest.mark.slow
@pytest.mark.parametrize('changes', [{}, {'attn_type': 'none'}, codecs.JANUS])
def test_codes_of_vqgans_equal_those_of_transformers(changes, tmp_path):
  torch = pytest.importorskip('torch', reason='torch is not installed')
  transformers = pytest.importorskip('transformers', reason='transformers is not installed')
  folder = codecs.write_pictures(tmp_path / 'vqgan', codecs.CHAMELEON | changes)
  name = 'JanusVQVAE' if changes is codecs.JANUS else 'ChameleonVQVAE'
  model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
  own = {'post_quant_conv.weight', 'post_quant_conv.bias'} if name == 'ChameleonVQVAE' else set()
  assert set(report['missing_keys']) == own and not report['unexpected_keys']  # of a decoder that it lacks
  (folder / 'preprocessor_config.json').write_text(
    json.dumps({'rescale_factor': 0.0078, 'image_mean': [1.0] * 3, 'image_std': [1.0] * 3})
  )
  tokenizer = pictures_of(folder, height=8, width=8)
  images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
  codes_NPQ = tokenizer.encode(images)
  assert len(np.unique(codes_NPQ)) > 5
  pixels = torch.tensor(((images.astype(np.float64) * 0.0078).astype(np.float32) - 1).transpose(0, 3, 1, 2))
  with torch.no_grad():
    expected = model.encode(pixels).image_tokens.reshape(5, 16)
  np.testing.assert_array_equal(codes_NPQ[..., 0], expected.numpy())
  if name == 'ChameleonVQVAE':
    with pytest.raises(ValueError) as error:
      tokenizer.decode(codes_NPQ)
    tiny_runs.assert_two_lines(error.value, 'has no decoder')
    with pytest.raises(ValueError) as error:
      prompts.check_output(Tokenizers.build(text.ByteTokenizer(), image=tokenizer), 'image')
    tiny_runs.assert_two_lines(error.value, 'to=image')
    return
  with torch.no_grad():
    decoded = model.decode(expected).numpy().transpose(0, 2, 3, 1)
  grids = codes_NPQ.reshape(5, 4, 4)
  ours = pictures.run(pictures.decode, tokenizer.spec, tokenizer.params, grids)
  np.testing.assert_allclose(ours, decoded, atol=1e-4, rtol=0)
  assert tokenizer.decode(codes_NPQ).shape == images.shape


def pictures_of(folder, **changes):
  settings = dict(kind='codec', path=str(folder), height=6, width=10, channels=3, patch=2)
  return image.build(image.ImageConfig(**settings | changes), tuple)


def test_a_picture_tokenizer_is_saved_and_checked(tmp_path):
  folder = codecs.write_pictures(tmp_path / 'emu3')
  toks = Tokenizers.build(text.ByteTokenizer(), image=pictures_of(folder))
  assert toks.image.grid == (3, 5) and toks.vocabulary.count('image0') == 256
  toks.save(tmp_path / 'saved')
  assert Tokenizers.load(tmp_path / 'saved').hash == toks.hash
  for changes, words in (
    (dict(patch=1), 'image.patch=1, and the tokenizer'),
    (dict(path=''), "image.path='' with image.kind=codec"),
    (dict(path=str(codecs.write(tmp_path / 'dac', codecs.DAC))), 'model_type=dac, not a picture tokenizer'),
  ):
    with pytest.raises(ValueError) as error:
      pictures_of(folder, **changes)
    tiny_runs.assert_two_lines(error.value, words)
  (folder / 'model.safetensors').unlink()
  with pytest.raises(FileNotFoundError) as error:
    pictures_of(folder)
  tiny_runs.assert_two_lines(error.value, 'has no safetensors')


def tokenizer_of(folder, **changes):
  return audio.build(
    audio.AudioConfig(kind='codec', path=str(folder), **{'books': 2, 'seconds': 0.2} | changes)
  )


def test_a_codec_is_a_tokenizer(tmp_path):
  """Batches do not matter, the first codebooks alone are the same, and it is loaded as it was saved."""
  folder = codecs.write(tmp_path / 'encodec', codecs.ENCODEC)
  tokenizer = tokenizer_of(folder)
  assert (tokenizer.sample_rate, tokenizer.samples_per_code, tokenizer.codebooks) == (4000, 15, (8, 8))
  codes = tokenizer.encode(waves())
  assert [len(codes_PQ) for codes_PQ in codes] == [-(-n // 15) for n in LENGTHS]
  np.testing.assert_array_equal(tokenizer.encode(waves()[5:6])[0], codes[5])
  decoded = tokenizer.decode(codes)
  assert [len(wave) for wave in decoded] == [15 * len(codes_PQ) for codes_PQ in codes]
  toks = Tokenizers.build(text.ByteTokenizer(), audio=tokenizer)
  toks.save(tmp_path / 'saved')
  loaded = Tokenizers.load(tmp_path / 'saved')
  assert loaded.hash == toks.hash and loaded.audio.codebooks == (8, 8)
  moved = folder.rename(tmp_path / 'moved')
  assert tokenizer_of(moved).hash == tokenizer.hash
  with pytest.raises(FileNotFoundError) as error:
    loaded.audio.encode(waves())
  tiny_runs.assert_two_lines(error.value, 'the codec is not in')


def test_folders_and_settings_that_do_not_fit(tmp_path):
  folder = codecs.write(tmp_path / 'encodec', codecs.ENCODEC)

  def refused(words, change=lambda folder: None, **settings):
    other = tmp_path / words.replace('/', '').replace(' ', '')[:20]
    other.mkdir()
    for file in folder.iterdir():
      (other / file.name).write_bytes(file.read_bytes())
    change(other)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
      _ = tokenizer_of(other, **settings).codec
    tiny_runs.assert_two_lines(error.value, words)

  def config(**changes):
    entries = codecs.ENCODEC | changes
    return lambda other: (other / 'config.json').write_text(json.dumps(entries))

  refused('audio.books=4: the codec', books=4)
  refused('has no safetensors', lambda other: (other / 'model.safetensors').unlink())
  refused('does not exist', lambda other: (other / 'config.json').unlink())
  cut = lambda other: (other / 'model.safetensors').write_bytes(
    (folder / 'model.safetensors').read_bytes()[:-9]
  )
  refused('is not a whole safetensors file', cut)
  refused('model_type=llama, not a codec', config(model_type='llama'))
  refused('audio_channels=3, which is not supported', config(audio_channels=3))
  refused('overlap=None with chunk_length_s=1', config(chunk_length_s=1))
  refused('by config.json it should be', config(num_filters=4))
  refused('has no tensor', config(num_residual_layers=2, use_conv_shortcut=True))
  with pytest.raises(ValueError) as error:
    audio.build(audio.AudioConfig(kind='codec'))
  tiny_runs.assert_two_lines(error.value, "audio.path='' with audio.kind=codec")
  with pytest.raises(ValueError) as error:
    tokenizer_of(folder).encode([np.zeros(2000, np.float32)])
  tiny_runs.assert_two_lines(error.value, 'lasts 0.5 s, longer than audio.seconds=0.2')


@pytest.mark.slow
def test_a_model_speaks_in_the_codes_of_a_codec(tmp_path, tmp_path_factory, capsys, monkeypatch):
  folder = codecs.write(tmp_path / 'encodec', codecs.ENCODEC, sampling_rate=500, target_bandwidths=[0.5])
  fields = {
    'data__mixture': {'dial': {'kind': 'keypad', 'template': '{name} -> {audio:audio}', 'documents': 60}},
    'data__packing': 'first_fit',
    'audio': {'kind': 'codec', 'path': str(folder), 'books': 2, 'pattern': 'delay', 'seconds': 0.5},
    'model': {'layers': 1, 'width': 16, 'heads': 2, 'context': 64},
    'train': tiny_runs.TINY['train'] | {'steps': 4, 'sample_every': 0, 'eval_every': 0, 'sample_prompts': ()},
  }
  cfg = config.build(config.Config, tiny_runs.section(**fields))
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(cfg, tmp_path / 'run')
  rows = evaluate.run_tasks(trained.load(tmp_path / 'run').subject(), ['reconstruct'], limit=4)
  assert {row['metric'] for row in rows} >= {'mel_cepstral_distortion', 'code_usage'}
  call, out = command_line.in_process(capsys, monkeypatch), tmp_path / 'one.wav'
  flags = ('sample', f'--workdir={tmp_path}/run', '--prompt=one')
  assert call(*flags, '--to=audio', f'--out={out}')[0] == 0
  wave, _ = media_io.read_sound(str(out), 500)
  assert call(*flags, '--to=codes', f'--out={tmp_path}/one.npy')[0] == 0
  codes_PQ = np.load(tmp_path / 'one.npy')
  assert len(wave) == 15 * len(codes_PQ) and codes_PQ.shape[1] == 2
