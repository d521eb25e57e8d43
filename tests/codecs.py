"""Tiny codecs with random weights, as folders that transformers and `CodecTokenizer` read."""

import json

import numpy as np
from safetensors.numpy import save_file

from gpt_jax.interop.codecs import families, layers
from gpt_jax.interop.codecs.quantizers import QUANTIZERS

ENCODEC = {  # odd strides and widths; 3 codebooks
  'model_type': 'encodec',
  'sampling_rate': 4000,
  'num_filters': 3,
  'upsampling_ratios': [5, 3],
  'hidden_size': 5,
  'codebook_size': 8,
  'target_bandwidths': [0.81, 2.42],
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


SCALES = {'dac': 0.2}  # of weights: with larger ones the sounds of its many layers amplify rounding


def write(folder, config, seed=0, **changes):
  """Write a codec of this config.json with random weights -> the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  config = config | changes
  spec, rng = families.read_spec(config), np.random.default_rng(seed)
  shapes = layers.tensors_of((*spec.encoder, *spec.decoder)) | QUANTIZERS[spec.family].tensors(spec)
  files = {}
  for name, shape in shapes.items():
    values = SCALES.get(spec.family, 0.3) * rng.standard_normal(shape)
    if name.endswith(('alpha', 'usage', 'scale', 'layernorm.weight')):
      values = 1 + np.abs(values)
    files[name] = values.astype(np.float32)
  if spec.family == 'encodec':  # kept as a factor and a direction
    for name in [name for name in files if name.startswith(('encoder', 'decoder')) and 'conv.weight' in name]:
      stem, v = name.removesuffix('weight') + 'parametrizations.weight.original', files.pop(name)
      files |= {f'{stem}1': v, f'{stem}0': (1 + rng.random((len(v), 1, 1))).astype(np.float32)}
  (folder / 'config.json').write_text(json.dumps(config))
  save_file(files, folder / 'model.safetensors')
  return folder
