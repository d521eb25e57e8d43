"""Records to batches: sources -> documents -> token cache -> rows -> Grain -> batches.

Importing this package is light: Grain and TFDS are imported where they are used.
"""

from gpt_jax.data.cache import TokenCache, token_cache
from gpt_jax.data.loader import Loader
from gpt_jax.data.mixture import DataConfig, documents, source_names
from gpt_jax.data.packing import PACKING, eval_windows
from gpt_jax.data.sources import SOURCES, Source

__all__ = [
  'PACKING',
  'SOURCES',
  'DataConfig',
  'Loader',
  'Source',
  'TokenCache',
  'documents',
  'eval_windows',
  'source_names',
  'token_cache',
]
