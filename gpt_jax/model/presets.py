"""Model presets: gpt2, llama and modern, each a function of a size and overrides -> ModelConfig.

Sources: GPT-2 (Radford et al. 2019, table 2), Llama (Touvron et al. 2023), `modern` after the modded-nanogpt
speedrun.
"""

from gpt_jax.model.config import ModelConfig


def gpt2(size='small', **overrides):
  """GPT-2 exactly: sizes small (124M), medium (355M), large (774M), xl (1558M)."""
  settings = dict(vocab=50257, context=1024, positions='learned', norm='layernorm', mlp='gelu')
  settings |= dict(attention_bias=True, mlp_bias=True)
  return build(GPT2_SIZES, size, settings | overrides)


def llama(size='small', **overrides):
  """Llama-like: RMSNorm, RoPE, SwiGLU, grouped heads, no biases, untied head."""
  settings = dict(vocab=32000, context=2048, init_projections='same', tied_head=False)
  return build(LLAMA_SIZES, size, settings | overrides)


def modern(size='small', **overrides):
  """GPT-2's sizes with RMSNorm, RoPE, QK-norm, ReLU^2, zero-init projections, soft-cap 15."""
  settings = dict(vocab=50257, context=1024, mlp='relu2', qk_norm=True, init_projections='zero')
  settings |= dict(logit_softcap=15.0, tied_head=False)
  return build(GPT2_SIZES, size, settings | overrides)


def build(sizes, size, settings):
  """The ModelConfig of a row of sizes and these settings; ValueError for an unknown size."""
  if size not in sizes:
    raise ValueError(f'size={size} is not a size of this preset\nfix: use one of {", ".join(sizes)}')
  row = dict(zip(('layers', 'width', 'heads', 'kv_heads', 'hidden'), sizes[size], strict=False))
  return ModelConfig(**row | settings)


GPT2_SIZES = {'small': (12, 768, 12), 'medium': (24, 1024, 16), 'large': (36, 1280, 20), 'xl': (48, 1600, 25)}
LLAMA_SIZES = {
  'small': (12, 768, 12, 4, 2048),
  '1b': (16, 2048, 32, 8, 8192),
  '7b': (32, 4096, 32, 32, 11008),
  '8b': (32, 4096, 32, 8, 14336),
}
PRESETS = {'gpt2': gpt2, 'llama': llama, 'modern': modern}
