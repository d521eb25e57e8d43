"""Tokenizers: text, images and sound to ids of one vocabulary and back, and the grammar of ids.

Light to import: tokenizer libraries are imported by the tokenizers that need them.
"""

from gpt_jax.tokenizers.audio import AudioConfig
from gpt_jax.tokenizers.base import MediaTokenizer
from gpt_jax.tokenizers.bundle import Tokenizers
from gpt_jax.tokenizers.image import ImageConfig
from gpt_jax.tokenizers.readers import EncoderConfig
from gpt_jax.tokenizers.text import TokenizerConfig
from gpt_jax.tokenizers.vocabulary import SPECIALS

__all__ = [
  'SPECIALS',
  'AudioConfig',
  'EncoderConfig',
  'ImageConfig',
  'MediaTokenizer',
  'TokenizerConfig',
  'Tokenizers',
]
