"""Tiny pretrained encoders with random weights, as folders that transformers and `readers` read."""

import json

import numpy as np
from safetensors.numpy import save_file

from gpt_jax.interop import tensors
from gpt_jax.interop.encoders import families

WHISPER = {
  'model_type': 'whisper',
  'd_model': 12,
  'encoder_layers': 2,
  'encoder_attention_heads': 3,
  'encoder_ffn_dim': 20,
  'num_mel_bins': 16,
  'max_source_positions': 50,  # a second
}
CLIP = {
  'model_type': 'clip_vision_model',
  'hidden_size': 8,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 12,
  'image_size': 8,
  'patch_size': 4,
  'num_channels': 1,
}


def write(folder, hf, seed=0):
  """Write an encoder of this config.json with random weights -> the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  spec = families.read_spec(hf)
  sizes, rng, files = tensors.sizes_of(spec.cfg) | dict(spec.sizes), np.random.default_rng(seed), {}
  for row in families.tensor_rows(spec).values():
    for _, name in tensors.places(row, sizes):
      files[name] = (0.3 * rng.standard_normal(tensors.shape_of(row, sizes))).astype(np.float32)
  (folder / 'config.json').write_text(json.dumps(hf))
  save_file(files, folder / 'model.safetensors')
  return folder
