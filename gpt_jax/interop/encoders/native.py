"""Encoders of pictures in their own sizes: config.json -> NativeSpec, the names of tensors, their weights.

Letters: those of model/native_encoder.py.

Source: transformers 5.23, `models/{qwen2_vl,qwen2_5_vl}/`.
"""

import functools

import jax
import numpy as np

from gpt_jax.interop import tensors
from gpt_jax.interop.encoders import encoder as encoders
from gpt_jax.interop.encoders.families import ACTIVATIONS, MLP, QUICK, ROOT, Family
from gpt_jax.interop.tensors import Tensor, matrix, norm
from gpt_jax.model.config import ModelConfig
from gpt_jax.model.native_encoder import NativeEncoder, NativeSpec, cut_patches, windows

LAYER = 'blocks.{l}'
SHARED = {  # of both
  'patch_NYXAD': Tensor('patch_embed.proj.weight', 'D A N Y X'),
  **matrix(f'{ROOT}/wo_HKD', f'{LAYER}.attn.proj', 'D HK', f'{ROOT}/o_bias_D'),
  **matrix('merger_up_JI', 'merger.mlp.0', 'I J', 'merger_bias_I'),
  **matrix('merger_down_IO', 'merger.mlp.2', 'O I', 'merger_bias_O'),
}
for part, (path, letters) in enumerate((('q', 'HK'), ('k', 'GK'), ('v', 'GK'))):
  qkv, bias = f'{LAYER}.attn.qkv', f'{ROOT}/{path}_bias_{letters}'
  SHARED |= {
    f'{ROOT}/w{path}_D{letters}': Tensor(f'{qkv}.weight', 'HK+GK+GK D', part),
    bias: Tensor(f'{qkv}.bias', 'HK+GK+GK', part),
  }
NORMS = {
  'blocks/attention_norm': f'{LAYER}.norm1',
  'blocks/mlp_norm': f'{LAYER}.norm2',
  'merger_norm': 'merger.ln_q',
}
SIZES = {
  'depth': 32,
  'num_heads': 16,
  'in_channels': 3,
  'patch_size': 14,
  'spatial_merge_size': 2,
  'temporal_patch_size': 2,
}
QWEN2_VL = Family(
  tensors=SHARED
  | {path: row for own, name in NORMS.items() for path, row in norm(own, name, bias=True).items()}
  | matrix(f'{MLP}/up_DF', f'{LAYER}.mlp.fc1', 'F D', f'{MLP}/up_bias_F')
  | matrix(f'{MLP}/down_FD', f'{LAYER}.mlp.fc2', 'D F', f'{MLP}/down_bias_D'),
  anchor='patch_embed.proj.weight',
  keys={'width': 'embed_dim', 'out': 'hidden_size'},
  defaults=SIZES | {'embed_dim': 1280, 'hidden_size': 3584, 'mlp_ratio': 4, 'hidden_act': 'quick_gelu'},
  mean=(0.48145466, 0.4578275, 0.40821073),
  deviation=(0.26862954, 0.26130258, 0.27577711),
)
QWEN2_5_VL = QWEN2_VL._replace(
  tensors=SHARED
  | {path: row for own, name in NORMS.items() for path, row in norm(own, name).items()}
  | matrix(f'{MLP}/gate_DF', f'{LAYER}.mlp.gate_proj', 'F D', f'{MLP}/gate_bias_F')
  | matrix(f'{MLP}/up_DF', f'{LAYER}.mlp.up_proj', 'F D', f'{MLP}/up_bias_F')
  | matrix(f'{MLP}/down_FD', f'{LAYER}.mlp.down_proj', 'D F', f'{MLP}/down_bias_D'),
  keys={'width': 'hidden_size', 'out': 'out_hidden_size', 'hidden': 'intermediate_size'},
  defaults=SIZES
  | {
    'hidden_size': 3584,
    'out_hidden_size': 3584,
    'intermediate_size': 3420,
    'hidden_act': 'silu',
    'window_size': 112,
    'fullatt_block_indexes': (7, 15, 23, 31),
  },
)
FAMILIES = {  # the names in older files, too
  **dict.fromkeys(('qwen2_vl_vision', 'qwen2_vl'), QWEN2_VL),
  **dict.fromkeys(('qwen2_5_vl_vision', 'qwen2_5_vl'), QWEN2_5_VL),
}


def read_spec(hf: dict) -> NativeSpec:
  """Return the NativeSpec of a vision_config; ValueError for what cannot be reproduced."""
  name, family = hf['model_type'], FAMILIES[hf['model_type']]
  hf = family.defaults | hf
  act, own = hf['hidden_act'], {field: hf[key] for field, key in family.keys.items()}
  width, heads, side, n = own['width'], hf['num_heads'], hf['patch_size'], hf['spatial_merge_size']
  K = width // heads
  rules = (
    (act not in ACTIVATIONS, f'hidden_act={act!r}', f'use one of {", ".join(ACTIVATIONS)}'),
    (('window_size' in hf) and act != 'silu', f'hidden_act={act!r} of a gated MLP', 'use a model with silu'),
    (not isinstance(side, int), f'patch_size={side}', 'use a model with square patches'),
    (K % 4 > 0 or K < 8, f'heads of width {K}', 'use a model whose heads have 8, 12, 16, .. numbers'),
  )
  for wrong, cause, fix in rules:
    if wrong:
      raise ValueError(f'config.json of the encoder has {cause}, which cannot be computed here\nfix: {fix}')
  is_gated = 'hidden' in own
  cfg = ModelConfig(
    width=width,
    layers=hf['depth'],
    heads=heads,
    hidden=own['hidden'] if is_gated else int(width * hf['mlp_ratio']),
    mlp='swiglu' if is_gated else ACTIVATIONS[act],
    norm='rmsnorm' if is_gated else 'layernorm',
    norm_eps=1e-6,
    attention_bias=True,
    mlp_bias=True,
    positions='mrope',
    rope_sections=(0, K // 4, K // 4),
    vocab=1,
    dtype='float32',
    remat='none',
    unroll='off',
  )
  square = n * n * width
  sizes = {'N': hf['temporal_patch_size'], 'Y': side, 'X': side, 'A': hf['in_channels']}
  sizes |= {'J': square, 'I': square, 'O': own['out']}
  theta = (hf.get('rope_parameters') or {}).get('rope_theta', 10000.0)
  window = hf['window_size'] // n // side if is_gated else 0
  whole = tuple(hf['fullatt_block_indexes']) if is_gated else ()
  return NativeSpec(name, cfg, tuple(sizes.items()), n, theta, window, whole, act == 'quick_gelu')


def tensor_rows(spec: NativeSpec) -> dict[str, Tensor]:
  """Return {path: Tensor} of an encoder, without the prefix of its names."""
  rows = dict(FAMILIES[spec.family].tensors)
  if spec.is_quick:
    factors = {'up_DF': QUICK, 'up_bias_F': QUICK, 'down_FD': 1 / QUICK}
    for path, factor in factors.items():
      rows[f'{MLP}/{path}'] = rows[f'{MLP}/{path}']._replace(factors=(factor,) * spec.cfg.layers)
  return rows


def load(folder, spec: NativeSpec) -> NativeEncoder:
  """Return the encoder of a folder of safetensors, in float32; errors as of encoder.load."""
  return encoders.fill(folder, *layout(spec), NativeEncoder(spec))


def layout(spec: NativeSpec) -> tuple:
  """Return (family, {path: Tensor}, {letter: size}), as encoder.layout does."""
  return FAMILIES[spec.family], tensor_rows(spec), tensors.sizes_of(spec.cfg) | dict(spec.sizes)


@functools.partial(jax.jit, static_argnames='precision')
def _run(encoder, x_BTP, cells_BT2, groups_BT, precision):
  with jax.default_matmul_precision(precision):
    return encoder(x_BTP, cells_BT2, groups_BT)


def run(encoder: NativeEncoder, pixels: np.ndarray) -> np.ndarray:
  """Return the vectors of the squares of a picture, float32 [S, O]; on a GPU, too, with products in float32.

  Patches are padded to one of few numbers, so that few sizes compile.
  """
  spec = encoder.spec
  patches, cells = cut_patches(pixels, spec)
  T, squares = len(patches), len(patches) // spec.square**2
  step = max(32, (1 << (T - 1).bit_length()) // 8) * spec.square**2
  pad = lambda x: np.pad(x, ((0, -T % step), *[(0, 0)] * (x.ndim - 1)))[None]
  inputs = jax.device_put(tuple(map(pad, (patches, cells, windows(cells, spec)))))
  return jax.device_get(_run(encoder, *inputs, 'float32'))[0, :squares]
