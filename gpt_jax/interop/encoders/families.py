"""The families of encoders: config.json -> Spec, and the names of their tensors.

An encoder is bidirectional blocks of our GPT behind a stem: two convolutions over frames of sound, or one
matrix on each patch of a picture. What has no setting of its own is folded into weights: quick GELU into the
two matrices of the MLP, DINOv2's layer scale into the outputs of both branches.

Letters: those of interop/tensors.py; of the stem W width of a convolution, I = D its inputs, M mel bands;
Y X A rows, columns and channels of a patch.

Source: transformers 5, `models/{whisper,qwen2_audio,voxtral,vit,clip,siglip,dinov2,idefics3}/`.
"""

import re
from typing import Any, NamedTuple

from gpt_jax.interop.tensors import Tensor, matrix, norm
from gpt_jax.model.encoder import Spec

ROOT, MLP = 'blocks/attention', 'blocks/mlp'
QUICK = 1.702  # x sigmoid(1.702 x) = silu(1.702 x) / 1.702
ACTIVATIONS = {
  'gelu': 'gelu_exact',
  'quick_gelu': 'silu',
  **dict.fromkeys(('gelu_new', 'gelu_fast', 'gelu_pytorch_tanh'), 'gelu'),
  **{name: name for name in ('relu', 'silu')},
}


class Family(NamedTuple):
  """One kind of encoder."""

  tensors: dict  # {path of our parameter: Tensor}, without the prefix of a whole model
  anchor: str  # a tensor that tells the prefix
  keys: dict  # our name -> key of config.json
  defaults: dict  # of config.json
  has_class: bool = False  # a class token stands before the patches
  has_pre_norm: bool = False  # a norm stands before the blocks
  has_final_norm: bool = True
  pool: int = 1  # outputs in a row whose mean goes to the final norm; then silence behind a sound is masked
  scales: dict = {}  # {path of our parameter: tensor that multiplies its outputs}
  older: tuple = ()  # (regex, replacement): names in older files
  mean: tuple = (0.5, 0.5, 0.5)  # of pixels between 0 and 1
  deviation: tuple = (0.5, 0.5, 0.5)


def _blocks(layer, attention, out, mlp, norms, k_bias=True):
  """Rows of the blocks. attention, out, mlp: names of the four projections and the two matrices."""
  rows = {}
  for path, letters, name in (('q', 'HK', 'q_proj'), ('k', 'GK', 'k_proj'), ('v', 'GK', 'v_proj')):
    bias = f'{ROOT}/{path}_bias_{letters}'
    name = f'{layer}.{attention}.{name}'
    rows |= matrix(
      f'{ROOT}/w{path}_D{letters}', name, f'{letters} D', '' if path == 'k' and not k_bias else bias
    )
    rows.setdefault(bias, Tensor(''))
  rows |= matrix(f'{ROOT}/wo_HKD', f'{layer}.{attention}.{out}', 'D HK', f'{ROOT}/o_bias_D')
  rows |= matrix(f'{MLP}/up_DF', f'{layer}.{mlp[0]}', 'F D', f'{MLP}/up_bias_F')
  rows |= matrix(f'{MLP}/down_FD', f'{layer}.{mlp[1]}', 'D F', f'{MLP}/down_bias_D')
  rows |= norm('blocks/attention_norm', f'{layer}.{norms[0]}', bias=True)
  return rows | norm('blocks/mlp_norm', f'{layer}.{norms[1]}', bias=True)


def _patches(name, position, bias, class_name=''):
  """Rows of the stem of pictures."""
  rows = {'patch_YXAD': Tensor(f'{name}.weight', 'D A Y X'), 'position_TD': Tensor(position, 'T D')}
  rows |= {'patch_bias_D': Tensor(f'{name}.bias', 'D')} if bias else {}
  return rows | ({'class_D': Tensor(class_name, 'D')} if class_name else {})


LAYER = 'layers.{l}'
WHISPER = Family(
  tensors={
    'conv1_WMD': Tensor('conv1.weight', 'D M W'),
    'conv1_bias_D': Tensor('conv1.bias', 'D'),
    'conv2_WID': Tensor('conv2.weight', 'D I W'),
    'conv2_bias_D': Tensor('conv2.bias', 'D'),
    'position_TD': Tensor('embed_positions.weight', 'T D'),
    **_blocks(
      LAYER, 'self_attn', 'out_proj', ('fc1', 'fc2'), ('self_attn_layer_norm', 'final_layer_norm'), False
    ),
    **norm('final_norm', 'layer_norm', bias=True),
  },
  anchor='conv1.weight',
  keys={
    'width': 'd_model',
    'layers': 'encoder_layers',
    'heads': 'encoder_attention_heads',
    'hidden': 'encoder_ffn_dim',
    'mlp': 'activation_function',
    'context': 'max_source_positions',
  },
  defaults={'num_mel_bins': 80, 'max_source_positions': 1500, 'activation_function': 'gelu'},
)
QWEN2_AUDIO = WHISPER._replace(defaults=WHISPER.defaults | {'num_mel_bins': 128}, pool=2)
VOXTRAL = WHISPER._replace(
  keys={
    'width': 'hidden_size',
    'layers': 'num_hidden_layers',
    'heads': 'num_attention_heads',
    'hidden': 'intermediate_size',
    'mlp': 'activation_function',
    'context': 'max_source_positions',
  },
  defaults=WHISPER.defaults
  | {
    'num_mel_bins': 128,
    'hidden_size': 1280,
    'num_hidden_layers': 32,
    'num_attention_heads': 20,
    'intermediate_size': 5120,
  },
)
VISION = {
  'width': 'hidden_size',
  'layers': 'num_hidden_layers',
  'heads': 'num_attention_heads',
  'hidden': 'intermediate_size',
  'mlp': 'hidden_act',
  'norm_eps': 'layer_norm_eps',
}
BASE = {  # of all four
  'hidden_size': 768,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
  'num_channels': 3,
  'image_size': 224,
}
TWO_NORMS, TWO_MATRICES = ('layer_norm1', 'layer_norm2'), ('mlp.fc1', 'mlp.fc2')
CLIP = Family(
  tensors={
    **_patches(
      'embeddings.patch_embedding',
      'embeddings.position_embedding.weight',
      False,
      'embeddings.class_embedding',
    ),
    **_blocks(f'encoder.{LAYER}', 'self_attn', 'out_proj', TWO_MATRICES, TWO_NORMS),
    **norm('pre_norm', 'pre_layrnorm', bias=True),
  },
  anchor='embeddings.patch_embedding.weight',
  keys=VISION,
  defaults=BASE | {'patch_size': 32, 'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5},
  has_class=True,
  has_pre_norm=True,
  has_final_norm=False,
  mean=(0.48145466, 0.4578275, 0.40821073),
  deviation=(0.26862954, 0.26130258, 0.27577711),
)
SIGLIP = Family(
  tensors={
    **_patches('embeddings.patch_embedding', 'embeddings.position_embedding.weight', True),
    **_blocks(f'encoder.{LAYER}', 'self_attn', 'out_proj', TWO_MATRICES, TWO_NORMS),
    **norm('final_norm', 'post_layernorm', bias=True),
  },
  anchor='embeddings.patch_embedding.weight',
  keys=VISION,
  defaults=BASE | {'patch_size': 16, 'hidden_act': 'gelu_pytorch_tanh', 'layer_norm_eps': 1e-6},
)
IDEFICS3 = SIGLIP._replace(  # SigLIP under other names
  defaults=SIGLIP.defaults | {'hidden_size': 1152, 'num_attention_heads': 16, 'patch_size': 32}
)
OLD = r'(layers\.\d+)\.'
OLDER = (
  (r'^encoder\.layer\.', 'layers.'),
  (r'\.attention\.attention\.(q|k|v)(?:uery|ey|alue)\.', r'.attention.\1_proj.'),
  (r'\.attention\.output\.dense\.', '.attention.o_proj.'),
  (rf'{OLD}intermediate\.dense\.', r'\1.mlp.fc1.'),
  (rf'{OLD}output\.dense\.', r'\1.mlp.fc2.'),
  (r'\.layer_scale(\d)\.gamma$', r'.layer_scale\1.lambda1'),
)
PATCHES = (
  'embeddings.patch_embeddings.projection',
  'embeddings.position_embeddings',
  True,
  'embeddings.cls_token',
)
VIT = Family(
  tensors={
    **_patches(*PATCHES),
    **_blocks(LAYER, 'attention', 'o_proj', TWO_MATRICES, ('layernorm_before', 'layernorm_after')),
    **norm('final_norm', 'layernorm', bias=True),
  },
  anchor='embeddings.patch_embeddings.projection.weight',
  keys=VISION,
  defaults=BASE | {'patch_size': 16, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-12, 'qkv_bias': True},
  has_class=True,
  older=OLDER,
)
DINOV2 = VIT._replace(
  tensors={
    **_patches(*PATCHES),
    **_blocks(LAYER, 'attention', 'o_proj', TWO_MATRICES, ('norm1', 'norm2')),
    **norm('final_norm', 'layernorm', bias=True),
  },
  defaults=VIT.defaults | {'patch_size': 14, 'layer_norm_eps': 1e-6, 'mlp_ratio': 4, 'use_swiglu_ffn': False},
  scales={
    **dict.fromkeys((f'{ROOT}/wo_HKD', f'{ROOT}/o_bias_D'), f'{LAYER}.layer_scale1.lambda1'),
    **dict.fromkeys((f'{MLP}/down_FD', f'{MLP}/down_bias_D'), f'{LAYER}.layer_scale2.lambda1'),
  },
  mean=(0.485, 0.456, 0.406),
  deviation=(0.229, 0.224, 0.225),
)
FAMILIES = {
  'whisper': WHISPER,
  'qwen2_audio_encoder': QWEN2_AUDIO,
  'voxtral_encoder': VOXTRAL,
  'vit': VIT,
  'dinov2': DINOV2,
  'clip_vision_model': CLIP,
  'siglip_vision_model': SIGLIP,
  **dict.fromkeys(('idefics3', 'idefics3_vision', 'smolvlm_vision'), IDEFICS3),
}


def read_spec(hf: dict, layer: int = 0) -> Spec:
  """Return the Spec of a config.json; of a whole model, that of its vision tower.

  layer: the encoder ends after so many layers, without its final norm; 0 = all of them, with it. Raises
  ValueError for what cannot be reproduced.
  """
  hf = hf.get('vision_config') or hf
  name = hf.get('model_type', '')
  if name not in FAMILIES:
    raise ValueError(
      f'model_type={name!r} is not a known encoder\n'
      f'fix: use one of {", ".join(FAMILIES)}, or {{field:vectors}}'
    )
  family = FAMILIES[name]
  hf = family.defaults | hf
  if lacking := sorted(set(family.keys.values()) - hf.keys()):
    raise ValueError(f'config.json has no {lacking[0]}\nfix: use the file that came with the weights')
  if hf.get('qkv_bias', True) is not True or hf.get('scale_embedding'):
    raise ValueError(
      'config.json has qkv_bias=false or scale_embedding=true, which no encoder here has\n'
      'fix: use another encoder, or {field:vectors}'
    )
  fields = {field: hf[key] for field, key in family.keys.items()}
  if name == 'dinov2':
    fields['hidden'] = int(hf['hidden_size'] * hf['mlp_ratio'])
    if hf['use_swiglu_ffn']:
      fields |= {'hidden': (int(fields['hidden'] * 2 / 3) + 7) // 8 * 8}
  if fields['mlp'] not in ACTIVATIONS:
    raise ValueError(
      f'config.json has the activation {fields["mlp"]!r}\nfix: only {", ".join(ACTIVATIONS)} are known'
    )
  if not 0 <= layer <= fields['layers']:
    raise ValueError(
      f'encoder.layer={layer}: this encoder has {fields["layers"]} layers\nfix: give 1 to that'
    )
  is_quick, fields['mlp'] = fields['mlp'] == 'quick_gelu', ACTIVATIONS[fields['mlp']]
  if hf.get('use_swiglu_ffn'):
    fields['mlp'] = 'swiglu'
  is_sound = 'conv1_WMD' in family.tensors
  stem = _sound(hf, fields) if is_sound else _picture(hf, family, fields)
  fields['layers'] = layer or fields['layers']
  ends = family.has_final_norm and not layer
  form = (family.has_class, family.has_pre_norm, ends, is_quick, family.pool)
  form += (is_sound or 'patch_bias_D' in family.tensors,)
  return Spec(name, tuple(fields.items()), *stem, *form)


def _sound(hf, fields):
  """Return (sizes of the stem, no grid)."""
  return (('W', 3), ('I', fields['width']), ('M', hf['num_mel_bins'])), ()


def _picture(hf, family, fields):
  """Return (sizes of the stem, grid); sets the number of positions."""
  pair = lambda x: (x, x) if isinstance(x, int) else tuple(x)
  (height, width), (side, other) = pair(hf['image_size']), pair(hf['patch_size'])
  if side != other:
    raise ValueError(f'patch_size={hf["patch_size"]} is not a square\nfix: use another encoder')
  grid = (height // side, width // side)
  fields['context'] = grid[0] * grid[1] + family.has_class
  return (('Y', side), ('X', side), ('A', hf['num_channels'])), grid


def tensor_rows(spec: Spec) -> dict[str, Tensor]:
  """Return {path: Tensor} of an encoder, without the prefix of its names."""
  rows = dict(FAMILIES[spec.family].tensors)
  if spec.cfg.gated:  # DINOv2's SwiGLU
    for part, name in enumerate(('gate', 'up')):
      bias = f'{MLP}/{name}_bias_F'
      rows |= matrix(f'{MLP}/{name}_DF', f'{LAYER}.mlp.weights_in', 'F+F D', bias, part)
    rows |= matrix(f'{MLP}/down_FD', f'{LAYER}.mlp.weights_out', 'D F', f'{MLP}/down_bias_D')
  if spec.is_quick:
    factors = {'up_DF': QUICK, 'up_bias_F': QUICK, 'down_FD': 1 / QUICK}
    for path, factor in factors.items():
      rows[f'{MLP}/{path}'] = rows[f'{MLP}/{path}']._replace(factors=(factor,) * spec.cfg.layers)
  return rows


def rename(family: Family, names) -> dict[str, Any]:
  """Return {name in the family's table: name in a file} of the tensors of an encoder in a larger model."""
  ends = sorted(name for name in names if name.endswith(family.anchor))
  if not ends:
    raise ValueError(f'no tensor is called {family.anchor}\nfix: use the weights that came with config.json')
  prefix, result = ends[0].removesuffix(family.anchor), {}
  for name in names:
    if name.startswith(prefix):
      new = name.removeprefix(prefix)
      for pattern, replacement in family.older:
        new = re.sub(pattern, replacement, new)
      result[new] = name
  return result
