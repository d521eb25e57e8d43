"""Tiny codecs with random weights, as folders that transformers and `CodecTokenizer` read."""

import json

import numpy as np
from safetensors.numpy import save_file

from gpt_jax.interop.codecs import codec, families, pictures

ENCODEC = {  # odd strides and widths; 3 codebooks
  'model_type': 'encodec',
  'sampling_rate': 4000,
  'num_filters': 3,
  'upsampling_ratios': [5, 3],
  'hidden_size': 5,
  'codebook_size': 8,
  'target_bandwidths': [0.81, 2.42],
}
STEREO = ENCODEC | {  # as the one of 48 kHz: chunks of 900 samples, divided by their loudness
  'audio_channels': 2,
  'num_filters': 4,
  'chunk_length_s': 0.225,
  'overlap': 0.1,
  'normalize': True,
  'norm_type': 'time_group_norm',
  'use_causal_conv': False,
}
DAC = {
  'model_type': 'dac',
  'sampling_rate': 4000,
  'encoder_hidden_size': 4,
  'downsampling_ratios': [3, 5],
  'decoder_hidden_size': 12,
  'upsampling_ratios': [5, 3],
  'hidden_size': 16,
  'n_codebooks': 3,
  'codebook_size': 8,
  'codebook_dim': 3,
}
MIMI = {
  'model_type': 'mimi',
  'sampling_rate': 4000,
  'frame_rate': 133.5,
  'num_filters': 3,
  'upsampling_ratios': [5, 3],
  'hidden_size': 12,
  'codebook_size': 8,
  'codebook_dim': 6,
  'vector_quantization_hidden_dimension': 6,
  'num_quantizers': 3,
  'upsample_groups': 12,
  'num_hidden_layers': 1,
  'intermediate_size': 20,
  'num_attention_heads': 2,
  'num_key_value_heads': 1,
  'sliding_window': 5,
}


EMU3 = {
  'model_type': 'emu3_vqgan',
  'base_channels': 64,  # two in a group: norms of one alone amplify rounding
  'channel_multiplier': [1, 2],
  'num_res_blocks': 1,
  'attn_resolutions': [1],
  'hidden_size': 128,
  'num_attention_heads': 2,
  'codebook_size': 256,
  'embed_dim': 5,
  'latent_channels': 5,
}
VQGAN = {'base_channels': 64, 'channel_multiplier': [1, 2], 'num_res_blocks': 1, 'num_embeddings': 200}
VQGAN |= {'embed_dim': 6, 'latent_channels': 7}
CHAMELEON = VQGAN | {'model_type': 'chameleon_vqgan', 'resolution': 8, 'attn_resolutions': [4]}
JANUS = VQGAN | {'model_type': 'janus_vqgan', 'num_patches': 4}
SCALES = {'dac': 0.2}  # of weights: with larger ones the sounds of its many layers amplify rounding


def write_pictures(folder, config=EMU3, prefix='', seed=0):
  """Write a picture tokenizer of this config.json with random weights -> the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  rng, files = np.random.default_rng(seed), {}
  for name, shape in pictures.tensors_of(pictures.read_spec(config)).items():
    scale = 0.05 if name == pictures.ANCHOR else np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
    values = scale * rng.standard_normal(shape)
    is_positive = 'running_var' in name or ('norm' in name and name.endswith('weight') and len(shape) == 1)
    files[prefix + name] = (0.5 + np.abs(values) if is_positive else values).astype(np.float32)
  (folder / 'config.json').write_text(json.dumps(config))
  save_file(files, folder / 'model.safetensors')
  return folder


def write(folder, config, seed=0, **changes):
  """Write a codec of this config.json with random weights -> the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  config = config | changes
  spec, rng = families.read_spec(config), np.random.default_rng(seed)
  shapes = codec.tensors_of(spec)
  files = {}
  for name, shape in shapes.items():
    values = SCALES.get(spec.family, 0.3) * rng.standard_normal(shape)
    if name.endswith(('alpha', 'usage', 'scale', 'norm.weight')):
      values = 1 + np.abs(values)
    files[name] = values.astype(np.float32)
  if spec.family == 'encodec' and not any(
    'norm' in name for name in files
  ):  # kept as a factor and a direction
    for name in [name for name in files if name.startswith(('encoder', 'decoder')) and 'conv.weight' in name]:
      stem, v = name.removesuffix('weight') + 'parametrizations.weight.original', files.pop(name)
      files |= {f'{stem}1': v, f'{stem}0': (1 + rng.random((len(v), 1, 1))).astype(np.float32)}
  (folder / 'config.json').write_text(json.dumps(config))
  save_file(files, folder / 'model.safetensors')
  return folder
